//! Steps: how they start, and what their ends make of the run.

use cooper_common::{error::Code, ids::TaskId};
use serde::{Deserialize, Serialize};

use super::{Next, Origin, Run, State, StepKind, StepState};
use crate::{Now, change::Version, session::Reason};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The attempt it belongs to.
    #[serde(default = "super::first")]
    pub attempt: u32,
    /// Its place in the attempt. Steps of older records have none: theirs is that of their kinds.
    #[serde(default)]
    pub(super) place: usize,
    pub kind: StepKind,
    pub state: StepState,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskId>,
    #[serde(default)]
    pub timeout_ms: u64,
    #[serde(default)]
    pub started_ms: i64,
    #[serde(default)]
    pub ended_ms: i64,
    #[serde(default)]
    pub message: String,
    /// Id of its row.
    #[serde(skip)]
    pub(super) row: String,
    #[serde(skip)]
    pub(super) version: Version,
    #[serde(skip)]
    pub(super) touched: bool,
}

/// How a step ended.
#[derive(Debug, Clone, Default)]
pub struct StepEnd {
    pub ok: bool,
    pub code: String,
    pub message: String,
    /// What shows the failure came with it: log and state of what was built or started.
    pub shown: bool,
    /// Rollback: everything is as it was.
    pub restored: bool,
    /// Rollback: false where the image of before was gone and was built again.
    pub image_equal: Option<bool>,
    pub promotion: String,
}

impl Run {
    /// The step of this kind of the attempt that goes on, or was the last.
    pub fn step(&self, kind: StepKind) -> Option<&Step> {
        self.steps.iter().find(|step| step.attempt == self.body.attempt && step.kind == kind)
    }

    fn step_mut(&mut self, kind: StepKind) -> Option<&mut Step> {
        let attempt = self.body.attempt;
        self.steps.iter_mut().find(|step| step.attempt == attempt && step.kind == kind)
    }

    pub fn running_step(&self) -> Option<&Step> {
        self.steps.iter().find(|step| step.state == StepState::Running)
    }

    /// The step that made the attempt fail.
    pub fn failed_step(&self, attempt: u32) -> Option<&Step> {
        let failed = |step: &&Step| step.attempt == attempt && step.state == StepState::Failed;
        self.steps.iter().filter(|step| step.kind != StepKind::Rollback).find(failed)
    }

    pub(super) fn add_step(&mut self, kind: StepKind, timeout_ms: u64) {
        let attempt = self.body.attempt;
        self.steps.push(Step {
            attempt,
            place: self.steps.iter().filter(|step| step.attempt == attempt).count(),
            kind,
            state: StepState::Pending,
            task: None,
            timeout_ms,
            started_ms: 0,
            ended_ms: 0,
            message: String::new(),
            row: format!("{}/{attempt}/{}", self.id, kind.as_str()),
            version: 0,
            touched: true,
        });
    }

    pub(super) fn skip_pending(&mut self) {
        for step in &mut self.steps {
            if step.state == StepState::Pending {
                step.state = StepState::Skipped;
                step.touched = true;
            }
        }
    }

    /// The step was given to a worker as this task.
    pub fn step_started(&mut self, now: Now, kind: StepKind, task: TaskId) {
        let attempt = self.body.attempt;
        if let Some(step) = self.step_mut(kind) {
            step.state = StepState::Running;
            step.task = Some(task);
            step.started_ms = now.wall_ms;
            step.touched = true;
        }
        self.events.push((
            "step.running".to_owned(),
            serde_json::json!({"step": kind.as_str(), "attempt": attempt, "task": task}).to_string(),
        ));
    }

    /// The step's task ended.
    pub fn step_ended(&mut self, now: Now, kind: StepKind, end: StepEnd) {
        let attempt = self.body.attempt;
        let Some(step) = self.step_mut(kind) else { return };
        if step.state != StepState::Running {
            return;
        }
        step.state = if end.ok { StepState::Succeeded } else { StepState::Failed };
        step.ended_ms = now.wall_ms;
        step.message = end.message.clone();
        step.touched = true;
        let event = if end.ok { "step.succeeded" } else { "step.failed" };
        self.events.push((
            event.to_owned(),
            serde_json::json!({"step": kind.as_str(), "attempt": attempt, "code": end.code}).to_string(),
        ));
        match kind {
            StepKind::Analyze if self.body.cancel_requested => self.after_cancel(),
            // A policy that cannot be read forbids everything.
            StepKind::Analyze if !end.ok && end.code == Code::PolicyRefused.as_str() => {
                self.refuse(Code::PolicyRefused, end.message);
            }
            // An undo that would meet what somebody has changed.
            StepKind::Analyze if !end.ok && end.code == Code::PromotionConflict.as_str() => {
                self.refuse(Code::PromotionConflict, end.message);
            }
            StepKind::Analyze if !end.ok => self.fail(&end.code, end.message),
            StepKind::Analyze => {}
            StepKind::Rollback => self.rolled_back(end),
            // Nothing was staged, let alone deployed.
            StepKind::Patch if !end.ok && end.code == Code::PolicyRefused.as_str() => {
                self.end_untouched(State::Refused, &end.code, end.message);
            }
            StepKind::Promote if end.ok && end.promotion == "conflict" => {
                self.body.promotion = end.promotion;
                self.conflicts(end.message);
            }
            StepKind::Patch | StepKind::Build | StepKind::Restart | StepKind::Verify | StepKind::Promote => {
                if !end.promotion.is_empty() {
                    self.body.promotion = end.promotion.clone();
                }
                if end.image_equal.is_some() {
                    self.body.image_equal = end.image_equal;
                }
                let done = end.ok && self.next() == Next::Done;
                if done && kind == StepKind::Promote {
                    // Everything is done, whatever was asked for meanwhile.
                    self.to(State::Succeeded);
                } else if self.body.cancel_requested {
                    self.after_cancel();
                } else if !end.ok {
                    self.body.tries_again = self.may_try_again(kind, &end);
                    self.roll_back(&end.code, end.message);
                } else if done {
                    // A plan without promotion (a mere restart) ends with its last step.
                    self.to(State::Succeeded);
                }
            }
        }
    }

    /// A file of the checkout is not what the plan was made for, and nothing was written.
    fn conflicts(&mut self, message: String) {
        let code = Code::PromotionConflict.as_str();
        if matches!(self.body.origin, Origin::Undo { .. }) {
            // Files come first there: nothing at all was touched.
            return self.end(State::Refused, code, message);
        }
        self.body.reason = Some(Reason { code: code.to_owned(), message });
        self.to(State::Succeeded);
    }
}
