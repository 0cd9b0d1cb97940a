//! A session: where it is, which of its tasks run, and which may start next.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use cooper_common::ids::{SessionId, TaskId};
use serde::{Deserialize, Serialize};

use crate::{
    Now,
    change::{Aggregate, Change, NewEvent, Row, Version},
    lease::Fence,
    queue::Queue,
};

/// `busy` and `idle` are derived from its tasks, not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Initializing,
    Ready,
    Checkpointing,
    Draining,
    Destroyed,
    Failed,
}

impl State {
    pub const fn as_str(self) -> &'static str {
        match self {
            State::Initializing => "initializing",
            State::Ready => "ready",
            State::Checkpointing => "checkpointing",
            State::Draining => "draining",
            State::Destroyed => "destroyed",
            State::Failed => "failed",
        }
    }
    pub const fn ended(self) -> bool {
        matches!(self, State::Destroyed | State::Failed)
    }
}

/// Why a session failed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    pub code: String,
    pub message: String,
}

/// What is decided on; the row's body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Body {
    pub state: State,
    #[serde(default)]
    pub name: String,
    pub worker: String,
    pub fence: Fence,
    #[serde(default)]
    pub exec_timeout_ms: u64,
    #[serde(default)]
    pub output_limit_bytes: u64,
    #[serde(default)]
    pub python_version: String,
    #[serde(default)]
    pub facilities: Vec<String>,
    #[serde(default)]
    pub interpreter_restarted: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
}

/// What to create.
#[derive(Debug, Clone)]
pub struct Create {
    pub id: SessionId,
    pub tenant: Arc<str>,
    pub key: String,
    pub name: String,
    pub exec_timeout_ms: u64,
    pub output_limit_bytes: u64,
    /// Labels that its worker must have.
    pub worker_labels: BTreeMap<String, String>,
    /// Encoded cooper.v1.CreateSessionRequest.
    pub spec: Arc<[u8]>,
}

/// A session that has not ended.
#[derive(Debug, Clone)]
pub struct Session {
    pub id: SessionId,
    pub tenant: Arc<str>,
    pub key: String,
    pub created_ms: i64,
    pub version: Version,
    pub body: Body,
    pub spec: Arc<[u8]>,
    /// Tasks that wait for their turn.
    pub queue: Queue,
    /// Tasks that wait for their `not_before`.
    pub delayed: BTreeSet<TaskId>,
    pub running: BTreeSet<TaskId>,
    /// The one that has the interpreter.
    pub interpreter: Option<TaskId>,
    events: Vec<&'static str>,
}

/// Executions of one session that run side by side; more wait.
pub const PARALLEL_MAX: usize = 16;

impl Session {
    pub fn new(now: Now, create: Create, worker: &str, epoch: u64) -> Self {
        Self {
            id: create.id,
            tenant: create.tenant,
            key: create.key,
            created_ms: now.wall_ms,
            version: 0,
            body: Body {
                state: State::Initializing,
                name: create.name,
                worker: worker.to_owned(),
                fence: Fence { epoch, attempt: 1 },
                exec_timeout_ms: create.exec_timeout_ms,
                output_limit_bytes: create.output_limit_bytes,
                python_version: String::new(),
                facilities: Vec::new(),
                interpreter_restarted: false,
                reason: None,
            },
            spec: create.spec,
            queue: Queue::default(),
            delayed: BTreeSet::new(),
            running: BTreeSet::new(),
            interpreter: None,
            events: vec!["session.initializing"],
        }
    }

    pub fn restore(id: SessionId, version: Version, row: Row) -> Result<Self, serde_json::Error> {
        Ok(Self {
            id,
            tenant: row.tenant.into(),
            key: row.key,
            created_ms: row.created_ms,
            version,
            body: serde_json::from_str(&row.body)?,
            spec: row.spec.unwrap_or_default().into(),
            queue: Queue::default(),
            delayed: BTreeSet::new(),
            running: BTreeSet::new(),
            interpreter: None,
            events: Vec::new(),
        })
    }

    /// Tasks that wait or run.
    pub fn active(&self) -> usize {
        self.queue.len() + self.delayed.len() + self.running.len()
    }

    /// Moves on if the state allows it; false = nothing changed.
    pub fn to(&mut self, next: State) -> bool {
        use State::{Checkpointing, Destroyed, Draining, Failed, Initializing, Ready};
        let allowed = match (self.body.state, next) {
            (Initializing, Ready | Draining | Destroyed | Failed)
            | (Ready, Checkpointing | Draining | Destroyed | Failed)
            | (Checkpointing, Ready | Draining | Destroyed | Failed)
            | (Draining, Destroyed | Failed) => true,
            (Initializing | Ready | Checkpointing | Draining | Destroyed | Failed, _) => false,
        };
        if allowed {
            self.body.state = next;
            self.events.push(match next {
                Initializing => "session.initializing",
                Ready => "session.ready",
                Checkpointing => "session.checkpointing",
                Draining => "session.draining",
                Destroyed => "session.destroyed",
                Failed => "session.failed",
            });
        }
        allowed
    }

    /// The interpreter was started anew behind the session's back: say so until the next execution has told its client.
    pub fn interpreter_restarted(&mut self, restarted: bool) -> bool {
        let changed = self.body.interpreter_restarted != restarted;
        if changed {
            self.body.interpreter_restarted = restarted;
            if restarted {
                self.events.push("session.interpreter_restarted");
            }
        }
        changed
    }

    pub fn take_change(&mut self, now: Now) -> Change {
        let expected = self.version;
        self.version += 1;
        Change {
            aggregate: Aggregate::Session,
            id: self.id.to_string(),
            expected,
            row: Row {
                tenant: self.tenant.to_string(),
                state: self.body.state.as_str().to_owned(),
                ended: self.body.state.ended(),
                parent: self.body.worker.clone(),
                key: self.key.clone(),
                created_ms: self.created_ms,
                updated_ms: now.wall_ms,
                body: serde_json::to_string(&self.body).unwrap_or_default(),
                spec: (expected == 0).then(|| self.spec.to_vec()),
                result: None,
            },
            events: self
                .events
                .drain(..)
                .map(|kind| NewEvent {
                    kind: kind.to_owned(),
                    body: format!(r#"{{"worker":{:?}}}"#, self.body.worker),
                })
                .collect(),
            output: Vec::new(),
        }
    }
}
