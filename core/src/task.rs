//! A task: the durable unit streamed to a worker. Which transitions there are, and what a lost attempt means.

use std::sync::Arc;

use cooper_common::ids::{SessionId, TaskId};
use serde::{Deserialize, Serialize};

use crate::{
    Now,
    change::{Aggregate, Change, InlineOutput, NewEvent, Row, Version},
    lease::Fence,
    session::Reason,
    worker::WorkerId,
};

/// What a task does, as far as it matters to decisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Noop,
    Python,
    Shell,
    Install,
    Step,
}

impl Kind {
    /// May an attempt that possibly ran be started again? Steps are idempotent; code of users is never silently rerun.
    pub const fn rerunnable(self) -> bool {
        matches!(self, Kind::Noop | Kind::Step)
    }
    /// Runs in the session's one interpreter: one at a time.
    pub const fn exclusive(self) -> bool {
        matches!(self, Kind::Python)
    }
}

/// How a task ended. Absorbing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    Succeeded,
    Failed,
    TimedOut,
    Cancelled,
    Lost,
    DeadLetter,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Queued,
    Assigned,
    Running,
    #[serde(untagged)]
    Ended(End),
}

impl State {
    pub const fn as_str(self) -> &'static str {
        match self {
            State::Queued => "queued",
            State::Assigned => "assigned",
            State::Running => "running",
            State::Ended(End::Succeeded) => "succeeded",
            State::Ended(End::Failed) => "failed",
            State::Ended(End::TimedOut) => "timed_out",
            State::Ended(End::Cancelled) => "cancelled",
            State::Ended(End::Lost) => "lost",
            State::Ended(End::DeadLetter) => "dead_letter",
        }
    }
}

/// What is decided on; the row's body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Body {
    pub state: State,
    pub kind: Kind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// Pinned to this worker (steps: the one that owns the stack), or held by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// The current or last grant.
    pub fence: Fence,
    pub timeout_ms: u64,
    pub output_limit_bytes: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancel_requested: bool,
    /// Why Cooper, not the worker, ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    #[serde(default)]
    pub started_ms: i64,
    #[serde(default)]
    pub ended_ms: i64,
}

/// A task that has not ended, with what is needed to hand it out (again).
#[derive(Debug, Clone)]
pub struct Task {
    pub id: TaskId,
    pub tenant: Arc<str>,
    pub key: String,
    pub created_ms: i64,
    pub version: Version,
    pub body: Body,
    /// Encoded cooper.v1.TaskSpec.
    pub spec: Arc<[u8]>,
    events: Vec<&'static str>,
    result: Option<Vec<u8>>,
    output: Vec<InlineOutput>,
}

/// A transition that the state does not allow; the message that asked for it changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a task that is {from} cannot become {to}")]
pub struct Rejected {
    from: &'static str,
    to: &'static str,
}

/// What to submit.
#[derive(Debug, Clone)]
pub struct Submit {
    pub id: TaskId,
    pub tenant: Arc<str>,
    pub key: String,
    pub kind: Kind,
    pub session: Option<SessionId>,
    /// Steps: the worker that owns the stack.
    pub worker: Option<WorkerId>,
    pub timeout_ms: u64,
    pub output_limit_bytes: u64,
    pub spec: Arc<[u8]>,
}

impl Task {
    pub fn new(now: Now, submit: Submit) -> Self {
        Self {
            id: submit.id,
            tenant: submit.tenant,
            key: submit.key,
            created_ms: now.wall_ms,
            version: 0,
            body: Body {
                state: State::Queued,
                kind: submit.kind,
                session: submit.session,
                worker: submit.worker.map(|w| w.to_string()),
                fence: Fence::default(),
                timeout_ms: submit.timeout_ms,
                output_limit_bytes: submit.output_limit_bytes,
                cancel_requested: false,
                reason: None,
                started_ms: 0,
                ended_ms: 0,
            },
            spec: submit.spec,
            events: vec!["task.queued"],
            result: None,
            output: Vec::new(),
        }
    }

    /// A task as it was stored.
    pub fn restore(id: TaskId, version: Version, row: Row) -> Result<Self, serde_json::Error> {
        Ok(Self {
            id,
            tenant: row.tenant.into(),
            key: row.key,
            created_ms: row.created_ms,
            version,
            body: serde_json::from_str(&row.body)?,
            spec: row.spec.unwrap_or_default().into(),
            events: Vec::new(),
            result: None,
            output: Vec::new(),
        })
    }

    pub fn held(&self) -> bool {
        matches!(self.body.state, State::Assigned | State::Running)
    }

    fn to(&mut self, state: State, allowed: bool) -> Result<(), Rejected> {
        if !allowed {
            return Err(Rejected { from: self.body.state.as_str(), to: state.as_str() });
        }
        self.body.state = state;
        self.events.push(match state {
            State::Queued => "task.queued",
            State::Assigned => "task.assigned",
            State::Running => "task.running",
            State::Ended(End::Succeeded) => "task.succeeded",
            State::Ended(End::Failed) => "task.failed",
            State::Ended(End::TimedOut) => "task.timed_out",
            State::Ended(End::Cancelled) => "task.cancelled",
            State::Ended(End::Lost) => "task.lost",
            State::Ended(End::DeadLetter) => "task.dead_letter",
        });
        Ok(())
    }

    /// Grants the next attempt to a worker.
    pub fn assign(&mut self, epoch: u64, worker: &str) -> Result<Fence, Rejected> {
        self.to(State::Assigned, self.body.state == State::Queued)?;
        self.body.fence = Fence { epoch, attempt: self.body.fence.attempt + 1 };
        self.body.worker = Some(worker.to_owned());
        Ok(self.body.fence)
    }

    pub fn start(&mut self, now: Now) -> Result<(), Rejected> {
        self.to(State::Running, self.body.state == State::Assigned)?;
        self.body.started_ms = now.wall_ms;
        Ok(())
    }

    /// Takes the attempt back: its worker never started it, or its kind may be rerun.
    pub fn requeue(&mut self) -> Result<(), Rejected> {
        self.to(State::Queued, self.held())
    }

    /// Ends the task. `result` is the worker's encoded cooper.v1.Outcome, absent where `body.reason` says why.
    pub fn end(
        &mut self,
        now: Now,
        end: End,
        result: Option<Vec<u8>>,
        output: Vec<InlineOutput>,
    ) -> Result<(), Rejected> {
        self.to(State::Ended(end), !matches!(self.body.state, State::Ended(_)))?;
        self.body.ended_ms = now.wall_ms;
        if self.body.started_ms == 0 && self.body.fence.attempt > 0 {
            self.body.started_ms = now.wall_ms;
        }
        self.result = result;
        self.output = output;
        Ok(())
    }

    /// Everything since the last call as one row write, however many transitions it was.
    pub fn take_change(&mut self, now: Now) -> Change {
        let expected = self.version;
        self.version += 1;
        let ended = matches!(self.body.state, State::Ended(_));
        let Fence { epoch, attempt } = self.body.fence;
        let body = match &self.body.worker {
            // A name of a worker needs no escapes.
            Some(worker) => format!(r#"{{"attempt":{attempt},"epoch":{epoch},"worker":"{worker}"}}"#),
            None => format!(r#"{{"attempt":{attempt}}}"#),
        };
        Change {
            aggregate: Aggregate::Task,
            id: self.id.to_string(),
            expected,
            row: Row {
                tenant: self.tenant.to_string(),
                state: self.body.state.as_str().to_owned(),
                ended,
                parent: self.body.session.map(|s| s.to_string()).unwrap_or_default(),
                key: self.key.clone(),
                created_ms: self.created_ms,
                updated_ms: now.wall_ms,
                body: serde_json::to_string(&self.body).unwrap_or_default(),
                spec: (expected == 0).then(|| self.spec.to_vec()),
                result: self.result.take(),
            },
            events: self
                .events
                .drain(..)
                .map(|kind| NewEvent { kind: kind.to_owned(), body: body.clone() })
                .collect(),
            output: std::mem::take(&mut self.output),
        }
    }
}
