//! A run: one repair from queued to a true end. Decides the next step; the coordinator performs it as a task.

mod attempt;
mod decision;
mod record;
mod step;

use std::sync::Arc;

use cooper_common::{
    error::Code,
    ids::{ApprovalId, RunId, TaskId},
    limits,
};
use serde::{Deserialize, Serialize};

pub use self::{
    attempt::Tried,
    decision::{Approval, Approver},
    step::{Step, StepEnd},
};
use crate::{Now, change::Version, session::Reason};

macro_rules! names {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($variant,)* }
        impl $name {
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];
            pub const fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }
        }
    };
}

names!(
    /// Progress inside `Running` is the steps'.
    State {
        Queued = "queued",
        Planning = "planning",
        AwaitingApproval = "awaiting_approval",
        Running = "running",
        Succeeded = "succeeded",
        RollingBack = "rolling_back",
        RolledBack = "rolled_back",
        RollbackFailed = "rollback_failed",
        Failed = "failed",
        Rejected = "rejected",
        Expired = "expired",
        Cancelled = "cancelled",
        Refused = "refused",
    }
);

names!(
    /// What a step does.
    StepKind {
        Analyze = "analyze",
        Patch = "patch",
        Build = "build",
        Restart = "restart",
        Verify = "verify",
        Promote = "promote",
        Rollback = "rollback",
    }
);

names!(StepState {
    Pending = "pending",
    Running = "running",
    Succeeded = "succeeded",
    Failed = "failed",
    Skipped = "skipped",
});

names!(Decision { Pending = "pending", Approved = "approved", Rejected = "rejected", Expired = "expired", Cancelled = "cancelled", });

impl State {
    pub const fn ended(self) -> bool {
        match self {
            State::Queued
            | State::Planning
            | State::AwaitingApproval
            | State::Running
            | State::RollingBack => false,
            State::Succeeded
            | State::RolledBack
            | State::RollbackFailed
            | State::Failed
            | State::Rejected
            | State::Expired
            | State::Cancelled
            | State::Refused => true,
        }
    }
}

/// What is decided on; the row's body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Body {
    pub state: State,
    pub stack: String,
    pub dir: String,
    pub worker: String,
    pub service: String,
    #[serde(default)]
    pub instruction: String,
    #[serde(default)]
    pub dry_run: bool,
    /// Nobody asked for it: something started it by itself.
    #[serde(default)]
    pub automatic: bool,
    /// What a worker saw that started it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub trigger: String,
    /// It is carried out when its failure was posted this often.
    #[serde(default)]
    pub recurring: u32,
    /// Of the failure that its last plan is about.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub fingerprint: String,
    /// Among those that wait for the same service the highest comes first.
    #[serde(default)]
    pub priority: i8,
    /// While it is queued: how many come before it on its service.
    #[serde(default)]
    pub queue_position: u32,
    #[serde(default)]
    pub origin: Origin,
    /// The attempt that goes on, or was the last; from 1.
    #[serde(default = "first")]
    pub attempt: u32,
    /// Known with the first plan.
    #[serde(default = "first")]
    pub max_attempts: u32,
    /// A plan of this run, or the run that it repeats, needed an approval: every further one does (I8).
    #[serde(default)]
    pub needs_approval: bool,
    /// The rollback that goes on is followed by another attempt.
    #[serde(default)]
    pub tries_again: bool,
    /// Attempts that have a plan, the one that goes on included.
    #[serde(default)]
    pub tried: Vec<Tried>,
    #[serde(default)]
    pub cause: String,
    #[serde(default)]
    pub rule_id: String,
    #[serde(default)]
    pub plan_hash: String,
    #[serde(default)]
    pub files: Vec<String>,
    #[serde(default)]
    pub promotion: String,
    /// Of a run that was rolled back: whether the service runs from the very image of before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_equal: Option<bool>,
    #[serde(default)]
    pub cancel_requested: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    #[serde(default)]
    pub artifacts: Vec<Artifact>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub model_calls: Vec<ModelCall>,
}

/// A question to a language model. Recorded before it is asked, with what it may cost at most.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelCall {
    pub at_ms: i64,
    pub model: String,
    /// `asked`, then how it ended: `answered`, or why there is no answer.
    pub status: String,
    pub latency_ms: u64,
    pub tokens: u64,
    #[serde(default)]
    pub message: String,
}

const fn first() -> u32 {
    1
}

/// Where a run comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Origin {
    /// A request to repair.
    #[default]
    Repair,
    /// Another run over again; from a step on, by the plan of that run.
    Retry {
        of: RunId,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<StepKind>,
    },
    /// Takes a run back that has succeeded.
    Undo { of: RunId },
}

/// A named, content-addressed file of the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    pub name: String,
    pub size_bytes: u64,
    /// BLAKE3, hex.
    pub digest: String,
    pub created_ms: i64,
}

#[derive(Debug, Clone)]
pub struct Create {
    pub id: RunId,
    pub tenant: Arc<str>,
    pub key: String,
    pub stack: String,
    pub dir: String,
    pub worker: String,
    pub service: String,
    pub instruction: String,
    pub dry_run: bool,
    pub automatic: bool,
    pub trigger: String,
    pub recurring: u32,
    pub priority: i8,
    pub origin: Origin,
    /// The run that this one repeats or takes back needed an approval.
    pub needs_approval: bool,
    /// Encoded cooper.v1.CreateRunRequest.
    pub spec: Vec<u8>,
}

/// What the planner made of the evidence.
#[derive(Debug, Clone)]
pub struct Planned {
    pub hash: String,
    pub cause: String,
    pub rule_id: String,
    pub files: Vec<String>,
    /// Names what is done about the cause: no two attempts of a run do the same.
    pub fix: String,
    pub max_attempts: u32,
    pub steps: Vec<(StepKind, u64)>,
    pub verdict: Verdict,
    /// Of the approval, if one is needed.
    pub approval: ApprovalId,
    /// How long somebody may take to decide.
    pub approval_ttl_ms: u64,
}

/// What policy says to a plan.
#[derive(Debug, Clone)]
pub enum Verdict {
    Allowed,
    NeedsApproval { reasons: Vec<String>, approvers: Vec<String> },
    Refused(Vec<String>),
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Perform this step of the attempt.
    Start(StepKind),
    /// Make a plan from the evidence of the analyze step.
    Plan,
    /// A decision, an ongoing step, or the service's other run comes first.
    Wait,
    Done,
}

#[derive(Debug, Clone)]
pub struct Run {
    pub id: RunId,
    pub tenant: Arc<str>,
    pub key: String,
    pub created_ms: i64,
    pub version: Version,
    pub body: Body,
    /// Of all attempts, in the order in which they come.
    pub steps: Vec<Step>,
    /// At most one an attempt, in their order.
    pub approvals: Vec<Approval>,
    spec: Option<Vec<u8>>,
    events: Vec<(String, String)>,
}

impl Run {
    pub fn new(now: Now, create: Create) -> Self {
        let mut run = Self {
            id: create.id,
            tenant: create.tenant,
            key: create.key,
            created_ms: now.wall_ms,
            version: 0,
            body: Body {
                state: State::Queued,
                stack: create.stack,
                dir: create.dir,
                worker: create.worker,
                service: create.service,
                instruction: create.instruction,
                dry_run: create.dry_run,
                automatic: create.automatic,
                trigger: create.trigger,
                recurring: create.recurring,
                fingerprint: String::new(),
                priority: create.priority,
                queue_position: 0,
                origin: create.origin,
                attempt: 1,
                max_attempts: 1,
                needs_approval: create.needs_approval,
                tries_again: false,
                tried: Vec::new(),
                cause: String::new(),
                rule_id: String::new(),
                plan_hash: String::new(),
                files: Vec::new(),
                promotion: String::new(),
                image_equal: None,
                cancel_requested: false,
                reason: None,
                artifacts: Vec::new(),
                model_calls: Vec::new(),
            },
            steps: Vec::new(),
            approvals: Vec::new(),
            spec: Some(create.spec),
            events: Vec::new(),
        };
        run.add_step(StepKind::Analyze, limits::exec::STEP_TIMEOUT_MS);
        run.to(State::Queued);
        run
    }

    /// What two runs may not do at once is to work on the same service.
    pub fn lock(&self) -> (String, String, String) {
        (self.body.worker.clone(), self.body.dir.clone(), self.body.service.clone())
    }

    fn to(&mut self, next: State) {
        self.body.state = next;
        let reason = self.body.reason.as_ref().map(|r| r.code.as_str()).unwrap_or_default();
        let body = serde_json::json!({
            "stack": self.body.stack, "service": self.body.service, "attempt": self.body.attempt, "reason": reason,
        });
        self.events.push((format!("run.{}", next.as_str()), body.to_string()));
    }

    fn end(&mut self, next: State, code: &str, message: impl Into<String>) {
        self.body.reason = Some(Reason { code: code.to_owned(), message: message.into() });
        self.cancel_approval();
        self.skip_pending();
        self.to(next);
    }

    pub fn next(&self) -> Next {
        if self.body.state.ended() {
            return Next::Done;
        }
        if self.running_step().is_some() {
            return Next::Wait;
        }
        match self.body.state {
            State::Queued | State::AwaitingApproval => Next::Wait,
            State::Planning => match self.step(StepKind::Analyze).map(|step| step.state) {
                Some(StepState::Pending) => Next::Start(StepKind::Analyze),
                _ => Next::Plan,
            },
            State::Running => self
                .steps
                .iter()
                .find(|step| step.state == StepState::Pending && step.kind != StepKind::Rollback)
                .map_or(Next::Done, |step| Next::Start(step.kind)),
            State::RollingBack => Next::Start(StepKind::Rollback),
            State::Succeeded
            | State::RolledBack
            | State::RollbackFailed
            | State::Failed
            | State::Rejected
            | State::Expired
            | State::Cancelled
            | State::Refused => Next::Done,
        }
    }

    /// Another run works on the service. True if that is news.
    pub fn wait_for(&mut self, holder: RunId, position: u32) -> bool {
        let reason = Reason {
            code: Code::ServiceLocked.as_str().to_owned(),
            message: format!("waits for run {holder}, which has this service"),
        };
        let news = self.body.state == State::Queued && self.body.reason.as_ref() != Some(&reason);
        let moved = self.body.state == State::Queued && self.body.queue_position != position;
        if news || moved {
            self.body.reason = Some(reason);
            self.body.queue_position = position;
        }
        news || moved
    }

    /// The service's lock is ours: collect evidence.
    pub fn begin(&mut self) {
        if self.body.state == State::Queued {
            self.body.reason = None;
            self.to(State::Planning);
        }
    }

    /// Nothing to do that Cooper may or can do; nothing was touched.
    pub fn refuse(&mut self, code: Code, message: impl Into<String>) {
        if self.body.state == State::Planning {
            self.end_untouched(State::Refused, code.as_str(), message.into());
        }
    }

    /// An error before anything was touched.
    pub fn fail(&mut self, code: &str, message: impl Into<String>) {
        if matches!(self.body.state, State::Queued | State::Planning) {
            self.end_untouched(State::Failed, code, message.into());
        }
    }

    /// There is a plan: it runs, waits for approval, or is refused.
    pub fn planned(&mut self, now: Now, planned: Planned) {
        if self.body.state != State::Planning {
            return;
        }
        if self.body.attempt == 1 {
            self.body.max_attempts = planned.max_attempts.clamp(1, limits::run::ATTEMPTS_MAX);
        } else if self.body.tried.iter().any(|tried| tried.fix == planned.fix) {
            let message = format!("{} would be repaired as it was before", planned.rule_id);
            return self.refuse(Code::NoDiagnosis, message);
        }
        self.note_tried(&planned);
        self.body.cause = planned.cause;
        self.body.rule_id = planned.rule_id;
        self.body.files = planned.files;
        self.body.plan_hash.clone_from(&planned.hash);
        for (kind, timeout_ms) in planned.steps {
            self.add_step(kind, timeout_ms);
        }
        let needed = match planned.verdict {
            Verdict::Refused(reasons) => {
                return self.refuse(Code::PolicyRefused, reasons.join("; "));
            }
            Verdict::Allowed if self.body.needs_approval => {
                let approvers = self.approvals.last().map(|approval| approval.approvers.clone());
                Some((
                    vec!["what came before it needed an approval".to_owned()],
                    approvers.unwrap_or_default(),
                ))
            }
            Verdict::Allowed => None,
            Verdict::NeedsApproval { reasons, approvers } => Some((reasons, approvers)),
        };
        match needed {
            _ if self.body.dry_run => {
                self.skip_pending();
                self.to(State::Succeeded);
            }
            None => self.to(State::Running),
            Some((reasons, approvers)) => {
                self.body.needs_approval = true;
                let attempt = self.body.attempt;
                let (id, hash) = (planned.approval, planned.hash);
                let ttl_ms = i64::try_from(planned.approval_ttl_ms).unwrap_or(i64::MAX);
                let expires_ms = now.wall_ms.saturating_add(ttl_ms);
                self.approvals.push(Approval::new(id, attempt, hash, reasons, approvers, expires_ms));
                self.to(State::AwaitingApproval);
            }
        }
    }

    /// Asks for the end of the run. Returns the task to cancel, if a step is on.
    pub fn cancel(&mut self) -> Option<TaskId> {
        match self.body.state {
            State::Queued | State::AwaitingApproval => {
                self.end_cancelled();
                None
            }
            State::Planning | State::Running => {
                self.body.cancel_requested = true;
                let task = self.running_step().and_then(|step| step.task);
                if task.is_none() {
                    self.after_cancel();
                }
                task
            }
            // A rollback goes on to its end: half restored helps nobody. But nothing comes after it.
            State::RollingBack => {
                self.body.tries_again = false;
                None
            }
            State::Succeeded
            | State::RolledBack
            | State::RollbackFailed
            | State::Failed
            | State::Rejected
            | State::Expired
            | State::Cancelled
            | State::Refused => None,
        }
    }

    fn after_cancel(&mut self) {
        if self.body.state == State::Planning {
            self.end_cancelled();
        } else {
            self.roll_back(Code::Cancelled.as_str(), "cancelled".to_owned());
        }
    }

    fn end_cancelled(&mut self) {
        let message = match self.body.attempt {
            1 => "cancelled; nothing was touched",
            _ => "cancelled; everything is as it was",
        };
        self.end(State::Cancelled, Code::Cancelled.as_str(), message);
    }

    /// A model is about to be asked.
    pub fn asks(&mut self, call: ModelCall) {
        self.body.model_calls.push(call);
    }

    /// The model that was asked last has answered, or has not.
    pub fn asked(&mut self, call: ModelCall) {
        if let Some(last) = self.body.model_calls.last_mut() {
            *last = call;
        }
    }

    /// Adds a file, or replaces the one of that name.
    pub fn artifact(&mut self, artifact: Artifact) {
        self.body.artifacts.retain(|known| known.name != artifact.name);
        self.body.artifacts.push(artifact);
    }
}
