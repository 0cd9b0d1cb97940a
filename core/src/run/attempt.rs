//! Attempts of a run: each has an analysis, a plan, steps and, where it is needed, an approval of its own.
//!
//! What failed is rolled back before the next attempt begins (I7), so that between two attempts everything is as it was:
//! a run may end there, by whatever comes, and owes nothing.

use serde::{Deserialize, Serialize};

use super::{Origin, Planned, Run, State, StepEnd, StepKind};
use crate::session::Reason;

/// What an attempt did, and why that was not it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tried {
    pub attempt: u32,
    pub plan_hash: String,
    pub rule_id: String,
    pub cause: String,
    pub files: Vec<String>,
    /// As of [`Planned`].
    pub fix: String,
    /// Why it was rolled back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
}

/// The name of an artifact of an attempt: those of the first have the plain ones.
pub fn artifact_name(attempt: u32, name: &str) -> String {
    if attempt <= 1 { name.to_owned() } else { format!("attempt-{attempt}/{name}") }
}

impl Run {
    /// [`artifact_name`] of the attempt that goes on.
    pub fn artifact_name(&self, name: &str) -> String {
        artifact_name(self.body.attempt, name)
    }

    pub(super) fn note_tried(&mut self, planned: &Planned) {
        self.body.tried.push(Tried {
            attempt: self.body.attempt,
            plan_hash: planned.hash.clone(),
            rule_id: planned.rule_id.clone(),
            cause: planned.cause.clone(),
            files: planned.files.clone(),
            fix: planned.fix.clone(),
            reason: None,
        });
    }

    /// Whether what failed is followed by another attempt: only if the worker brought what shows the failure, since
    /// without that there is nothing new to go by. Not after what a person took back or wanted from a step on.
    pub(super) fn may_try_again(&self, kind: StepKind, end: &StepEnd) -> bool {
        let repairs = matches!(self.body.origin, Origin::Repair | Origin::Retry { from: None, .. });
        let deploys = matches!(kind, StepKind::Build | StepKind::Restart | StepKind::Verify);
        repairs && deploys && end.shown && self.body.attempt < self.body.max_attempts
    }

    pub(super) fn roll_back(&mut self, code: &str, message: String) {
        let reason = Reason { code: code.to_owned(), message };
        let attempt = self.body.attempt;
        if let Some(tried) = self.body.tried.iter_mut().find(|tried| tried.attempt == attempt) {
            tried.reason = Some(reason.clone());
        }
        self.body.reason = Some(reason);
        self.skip_pending();
        self.add_step(StepKind::Rollback, cooper_common::limits::exec::STEP_TIMEOUT_MS);
        self.to(State::RollingBack);
    }

    /// The attempt's rollback has ended.
    pub(super) fn rolled_back(&mut self, end: StepEnd) {
        let again = std::mem::take(&mut self.body.tries_again);
        self.body.image_equal = end.image_equal;
        if !(end.ok && end.restored) {
            let why = self.body.reason.take().map(|r| r.message).unwrap_or_default();
            self.body.reason = Some(Reason {
                code: cooper_common::error::Code::RollbackFailed.as_str().to_owned(),
                message: format!("{}; the rollback was for: {why}", end.message),
            });
            self.to(State::RollbackFailed);
        } else if self.body.cancel_requested {
            self.to(State::Cancelled);
        } else if again {
            self.body.attempt += 1;
            self.add_step(StepKind::Analyze, cooper_common::limits::exec::STEP_TIMEOUT_MS);
            self.to(State::Planning);
        } else {
            self.end_rolled_back(None);
        }
    }

    /// Ends a run in whose attempt nothing was touched: in the first one in this state; later as rolled back, since
    /// that is what has become of what was tried.
    pub(super) fn end_untouched(&mut self, state: State, code: &str, message: String) {
        if self.body.attempt == 1 {
            self.end(state, code, message);
        } else {
            self.end_rolled_back(Some(message));
        }
    }

    /// The first failure is the reason; what was tried, and why there is nothing more to try, is said with it.
    fn end_rolled_back(&mut self, then: Option<String>) {
        let failed = |tried: &Tried| Some((tried.attempt, tried.rule_id.clone(), tried.reason.clone()?));
        let failed: Vec<_> = self.body.tried.iter().filter_map(failed).collect();
        let Some((_, _, first)) = failed.first().cloned() else {
            return self.to(State::RolledBack);
        };
        let mut message = first.message;
        for (attempt, rule, reason) in failed.iter().skip(1) {
            message.push_str(&format!("; attempt {attempt} ({rule}): {}", reason.message));
        }
        if let Some(then) = then {
            message.push_str(&format!("; attempt {} was not made: {then}", self.body.attempt));
        }
        self.end(State::RolledBack, &first.code, message);
    }
}
