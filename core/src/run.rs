//! A run: one repair from queued to a true end. Decides the next step; the coordinator performs it as a task.

mod record;

use std::sync::Arc;

use cooper_common::{
    error::{Code, Error, Result},
    ids::{ApprovalId, RunId, TaskId},
    limits,
};
use serde::{Deserialize, Serialize};

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

/// A named, content-addressed file of the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    pub name: String,
    pub size_bytes: u64,
    /// BLAKE3, hex.
    pub digest: String,
    pub created_ms: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
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
    #[serde(skip)]
    version: Version,
    #[serde(skip)]
    touched: bool,
}

/// A decision bound to one plan hash (I8).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    pub id: ApprovalId,
    pub plan_hash: String,
    pub decision: Decision,
    pub reasons: Vec<String>,
    pub approvers: Vec<String>,
    #[serde(default)]
    pub decided_by: String,
    #[serde(default)]
    pub comment: String,
    #[serde(default)]
    pub decided_ms: i64,
    pub expires_ms: i64,
    #[serde(skip)]
    version: Version,
    #[serde(skip)]
    touched: bool,
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
    pub steps: Vec<(StepKind, u64)>,
    pub verdict: Verdict,
}

/// What policy says to a plan.
#[derive(Debug, Clone)]
pub enum Verdict {
    Allowed,
    /// `ttl_ms` is how long somebody may take to decide.
    NeedsApproval {
        id: ApprovalId,
        reasons: Vec<String>,
        approvers: Vec<String>,
        ttl_ms: u64,
    },
    Refused(Vec<String>),
}

/// How a step ended.
#[derive(Debug, Clone, Default)]
pub struct StepEnd {
    pub ok: bool,
    pub code: String,
    pub message: String,
    /// Rollback: everything is as it was.
    pub restored: bool,
    /// Rollback: false where the image of before was gone and was built again.
    pub image_equal: Option<bool>,
    pub promotion: String,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Perform this step.
    Start(StepKind),
    /// Make a plan from the evidence of the analyze step.
    Plan,
    /// A decision, an ongoing step, or the service's other run comes first.
    Wait,
    Done,
}

/// Who decides about a plan.
#[derive(Debug, Clone, Copy)]
pub struct Approver<'a> {
    pub name: &'a str,
    /// Scope operator or admin.
    pub may_approve: bool,
}

#[derive(Debug, Clone)]
pub struct Run {
    pub id: RunId,
    pub tenant: Arc<str>,
    pub key: String,
    pub created_ms: i64,
    pub version: Version,
    pub body: Body,
    pub steps: Vec<Step>,
    pub approval: Option<Approval>,
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
            steps: vec![Step::new(StepKind::Analyze, limits::exec::STEP_TIMEOUT_MS)],
            approval: None,
            spec: Some(create.spec),
            events: Vec::new(),
        };
        run.to(State::Queued);
        run
    }

    /// What two runs may not do at once is to work on the same service.
    pub fn lock(&self) -> (String, String, String) {
        (self.body.worker.clone(), self.body.dir.clone(), self.body.service.clone())
    }

    pub fn step(&self, kind: StepKind) -> Option<&Step> {
        self.steps.iter().find(|step| step.kind == kind)
    }

    fn step_mut(&mut self, kind: StepKind) -> Option<&mut Step> {
        self.steps.iter_mut().find(|step| step.kind == kind)
    }

    pub fn running_step(&self) -> Option<&Step> {
        self.steps.iter().find(|step| step.state == StepState::Running)
    }

    fn to(&mut self, next: State) {
        self.body.state = next;
        let reason = self.body.reason.as_ref().map(|r| r.code.as_str()).unwrap_or_default();
        let body =
            serde_json::json!({"stack": self.body.stack, "service": self.body.service, "reason": reason});
        self.events.push((format!("run.{}", next.as_str()), body.to_string()));
    }

    fn end(&mut self, next: State, code: &str, message: impl Into<String>) {
        self.body.reason = Some(Reason { code: code.to_owned(), message: message.into() });
        if let Some(approval) = self.approval.as_mut().filter(|it| it.decision == Decision::Pending) {
            approval.decision = Decision::Cancelled;
            approval.touched = true;
        }
        for step in &mut self.steps {
            if step.state == StepState::Pending {
                step.state = StepState::Skipped;
                step.touched = true;
            }
        }
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
    pub fn wait_for(&mut self, holder: RunId) -> bool {
        let reason = Reason {
            code: Code::ServiceLocked.as_str().to_owned(),
            message: format!("waits for run {holder}, which has this service"),
        };
        let news = self.body.state == State::Queued && self.body.reason.as_ref() != Some(&reason);
        if news {
            self.body.reason = Some(reason);
        }
        news
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
            self.end(State::Refused, code.as_str(), message);
        }
    }

    /// An error before anything was touched.
    pub fn fail(&mut self, code: &str, message: impl Into<String>) {
        if matches!(self.body.state, State::Queued | State::Planning) {
            self.end(State::Failed, code, message);
        }
    }

    /// There is a plan: it runs, waits for approval, or is refused.
    pub fn planned(&mut self, now: Now, planned: Planned) {
        if self.body.state != State::Planning {
            return;
        }
        self.body.cause = planned.cause;
        self.body.rule_id = planned.rule_id;
        self.body.files = planned.files;
        self.body.plan_hash = planned.hash.clone();
        for (kind, timeout_ms) in planned.steps {
            self.steps.push(Step::new(kind, timeout_ms));
        }
        match planned.verdict {
            Verdict::Refused(reasons) => {
                self.end(State::Refused, Code::PolicyRefused.as_str(), reasons.join("; "));
            }
            _ if self.body.dry_run => {
                for step in &mut self.steps {
                    if step.state == StepState::Pending {
                        step.state = StepState::Skipped;
                        step.touched = true;
                    }
                }
                self.to(State::Succeeded);
            }
            Verdict::Allowed => self.to(State::Running),
            Verdict::NeedsApproval { id, reasons, approvers, ttl_ms } => {
                self.approval = Some(Approval {
                    id,
                    plan_hash: planned.hash,
                    decision: Decision::Pending,
                    reasons,
                    approvers,
                    decided_by: String::new(),
                    comment: String::new(),
                    decided_ms: 0,
                    expires_ms: now.wall_ms.saturating_add(i64::try_from(ttl_ms).unwrap_or(i64::MAX)),
                    version: 0,
                    touched: true,
                });
                self.to(State::AwaitingApproval);
            }
        }
    }

    /// A person decides (I8).
    ///
    /// # Errors
    /// `not_awaiting_approval`, `plan_changed`, `forbidden`.
    pub fn decide(
        &mut self,
        now: Now,
        approve: bool,
        approver: Approver<'_>,
        comment: &str,
        plan_hash: &str,
    ) -> Result<()> {
        self.expire(now);
        let state = self.body.state;
        let Some(approval) = self.approval.as_mut().filter(|_| state == State::AwaitingApproval) else {
            return Err(Error::new(
                Code::NotAwaitingApproval,
                format!("run {} is {} and waits for no decision", self.id, state.as_str()),
            ));
        };
        if !plan_hash.is_empty() && plan_hash != approval.plan_hash {
            return Err(Error::new(
                Code::PlanChanged,
                format!("the plan of run {} is another one now", self.id),
            ));
        }
        let named =
            approval.approvers.is_empty() || approval.approvers.iter().any(|name| name == approver.name);
        if !approver.may_approve || !named {
            return Err(Error::new(
                Code::Forbidden,
                format!("{:?} may not decide about run {}", approver.name, self.id),
            )
            .with_hint(if approval.approvers.is_empty() {
                "use a token with scope operator or admin".to_owned()
            } else {
                format!("one of these may: {}", approval.approvers.join(", "))
            }));
        }
        approval.decision = if approve { Decision::Approved } else { Decision::Rejected };
        approval.decided_by = approver.name.to_owned();
        approval.comment = comment.to_owned();
        approval.decided_ms = now.wall_ms;
        approval.touched = true;
        if approve {
            self.to(State::Running);
        } else {
            self.end(State::Rejected, "rejected", format!("rejected by {}", approver.name));
        }
        Ok(())
    }

    /// When the approval that the run waits for expires, if it waits for one.
    pub fn expires_ms(&self) -> Option<i64> {
        let approval = self.approval.as_ref()?;
        (self.body.state == State::AwaitingApproval).then_some(approval.expires_ms)
    }

    /// Ends a run whose approval nobody gave in time. True if it did.
    pub fn expire(&mut self, now: Now) -> bool {
        let Some(approval) = &mut self.approval else { return false };
        let due = self.body.state == State::AwaitingApproval && now.wall_ms >= approval.expires_ms;
        if due {
            approval.decision = Decision::Expired;
            approval.touched = true;
            self.end(State::Expired, "expired", "nobody decided in time");
        }
        due
    }

    /// Asks for the end of the run. Returns the task to cancel, if a step is on.
    pub fn cancel(&mut self) -> Option<TaskId> {
        match self.body.state {
            State::Queued | State::AwaitingApproval => {
                self.end(State::Cancelled, Code::Cancelled.as_str(), "cancelled; nothing was touched");
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
            // A rollback goes on to its end: half restored helps nobody.
            State::RollingBack
            | State::Succeeded
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
            self.end(State::Cancelled, Code::Cancelled.as_str(), "cancelled; nothing was touched");
        } else {
            self.roll_back(Code::Cancelled.as_str(), "cancelled".to_owned());
        }
    }

    fn roll_back(&mut self, code: &str, message: String) {
        self.body.reason = Some(Reason { code: code.to_owned(), message });
        for step in &mut self.steps {
            if step.state == StepState::Pending {
                step.state = StepState::Skipped;
                step.touched = true;
            }
        }
        self.steps.push(Step::new(StepKind::Rollback, limits::exec::STEP_TIMEOUT_MS));
        self.to(State::RollingBack);
    }

    /// The step was given to a worker as this task.
    pub fn step_started(&mut self, now: Now, kind: StepKind, task: TaskId) {
        if let Some(step) = self.step_mut(kind) {
            step.state = StepState::Running;
            step.task = Some(task);
            step.started_ms = now.wall_ms;
            step.touched = true;
        }
        self.events.push((
            "step.running".to_owned(),
            serde_json::json!({"step": kind.as_str(), "task": task}).to_string(),
        ));
    }

    /// The step's task ended.
    pub fn step_ended(&mut self, now: Now, kind: StepKind, end: StepEnd) {
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
            serde_json::json!({"step": kind.as_str(), "code": end.code}).to_string(),
        ));
        match kind {
            StepKind::Analyze if self.body.cancel_requested => self.after_cancel(),
            StepKind::Analyze if !end.ok => self.fail(&end.code, end.message),
            StepKind::Analyze => {}
            StepKind::Rollback => self.rolled_back(end),
            // Nothing was staged, let alone deployed.
            StepKind::Patch if !end.ok && end.code == Code::PolicyRefused.as_str() => {
                self.end(State::Refused, &end.code, end.message);
            }
            StepKind::Promote if end.ok => {
                self.body.promotion = end.promotion.clone();
                if end.promotion == "conflict" {
                    self.body.reason = Some(Reason {
                        code: Code::PromotionConflict.as_str().to_owned(),
                        message: end.message,
                    });
                }
                self.to(State::Succeeded);
            }
            StepKind::Patch | StepKind::Build | StepKind::Restart | StepKind::Verify | StepKind::Promote => {
                if self.body.cancel_requested {
                    self.after_cancel();
                } else if !end.ok {
                    self.roll_back(&end.code, end.message);
                } else if self.next() == Next::Done {
                    // A plan without promotion (a mere restart) ends with its last step.
                    self.to(State::Succeeded);
                }
            }
        }
    }

    fn rolled_back(&mut self, end: StepEnd) {
        self.body.image_equal = end.image_equal;
        if end.ok && end.restored {
            let cancelled = self.body.cancel_requested;
            self.to(if cancelled { State::Cancelled } else { State::RolledBack });
        } else {
            let why = self.body.reason.take().map(|r| r.message).unwrap_or_default();
            self.body.reason = Some(Reason {
                code: Code::RollbackFailed.as_str().to_owned(),
                message: format!("{}; the rollback was for: {why}", end.message),
            });
            self.to(State::RollbackFailed);
        }
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

impl Step {
    fn new(kind: StepKind, timeout_ms: u64) -> Self {
        Self {
            kind,
            state: StepState::Pending,
            task: None,
            timeout_ms,
            started_ms: 0,
            ended_ms: 0,
            message: String::new(),
            version: 0,
            touched: true,
        }
    }
}
