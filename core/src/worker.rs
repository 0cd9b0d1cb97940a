//! A worker as the coordinator knows it: attached or not, fresh or silent, and what it holds.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use cooper_common::ids::{SessionId, TaskId};
use serde::{Deserialize, Serialize};

use crate::{
    Now,
    change::{Aggregate, Change, NewEvent, Row, Version},
    credit::Credit,
    queue::Queue,
};

/// Chosen by whoever runs the worker, or random and kept on its disk.
pub type WorkerId = Arc<str>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Known from the store, not back since the coordinator started.
    Joining,
    Ready,
    Draining,
    /// Silent: no new work.
    Suspect,
    /// Silent for so long that its attempts were given up.
    Lost,
    /// Said goodbye.
    Gone,
}

impl State {
    pub const fn as_str(self) -> &'static str {
        match self {
            State::Joining => "joining",
            State::Ready => "ready",
            State::Draining => "draining",
            State::Suspect => "suspect",
            State::Lost => "lost",
            State::Gone => "gone",
        }
    }
}

/// What the worker said of itself at its last attach; the row's body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Body {
    pub state: State,
    pub incarnation: u64,
    #[serde(default)]
    pub version: String,
    #[serde(default)]
    pub capabilities: BTreeSet<String>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub sessions_max: u32,
    #[serde(default)]
    pub tasks_max: u32,
    /// Name and directory, in the worker's order: the first is the default.
    #[serde(default)]
    pub stacks: Vec<(String, String)>,
    #[serde(default)]
    pub hostname: String,
    #[serde(default)]
    pub boot_id: String,
    #[serde(default)]
    pub python_version: String,
}

/// The control stream that may write for this worker.
#[derive(Debug, Clone, Copy)]
pub struct Attached {
    /// Strictly increasing over all attaches of all workers; only the newest of a worker is listened to.
    pub epoch: u64,
    pub credit: Credit,
}

#[derive(Debug, Clone)]
pub struct Worker {
    pub id: WorkerId,
    /// Whose join token it came with: its stacks are this tenant's.
    pub tenant: Arc<str>,
    pub created_ms: i64,
    pub version: Version,
    pub body: Body,
    pub attached: Option<Attached>,
    pub last_seen_mono_ms: u64,
    pub last_seen_ms: i64,
    pub sessions: BTreeSet<SessionId>,
    pub running: BTreeSet<TaskId>,
    /// Steps that only this worker can do.
    pub pinned: Queue,
    /// Its sessions with tasks that wait.
    pub waiting: BTreeSet<SessionId>,
    events: Vec<&'static str>,
}

impl Worker {
    pub fn new(now: Now, id: WorkerId, body: Body) -> Self {
        Self {
            id,
            tenant: "".into(),
            created_ms: now.wall_ms,
            version: 0,
            body,
            attached: None,
            last_seen_mono_ms: now.mono_ms,
            last_seen_ms: now.wall_ms,
            sessions: BTreeSet::new(),
            running: BTreeSet::new(),
            pinned: Queue::default(),
            waiting: BTreeSet::new(),
            events: Vec::new(),
        }
    }

    pub fn restore(now: Now, id: &str, version: Version, row: Row) -> Result<Self, serde_json::Error> {
        let mut worker = Self::new(now, id.into(), serde_json::from_str(&row.body)?);
        worker.version = version;
        worker.tenant = row.tenant.as_str().into();
        worker.created_ms = row.created_ms;
        worker.last_seen_ms = row.updated_ms;
        // Whatever it was: it has to come back to be more than this. One that said goodbye is not awaited.
        if worker.body.state != State::Gone {
            worker.body.state = State::Joining;
        }
        Ok(worker)
    }

    pub fn to(&mut self, next: State) -> bool {
        let changed = self.body.state != next;
        if changed {
            self.body.state = next;
            self.events.push(match next {
                State::Joining => "worker.joining",
                State::Ready => "worker.ready",
                State::Draining => "worker.draining",
                State::Suspect => "worker.suspect",
                State::Lost => "worker.lost",
                State::Gone => "worker.gone",
            });
        }
        changed
    }

    /// Its host was started anew: what the one before it ran is over.
    pub fn restarted(&mut self) {
        self.events.push("worker.restarted");
    }

    /// Takes new sessions and attempts.
    pub fn accepts(&self) -> bool {
        self.attached.is_some() && self.body.state == State::Ready
    }

    /// Has every label of a selector.
    pub fn has(&self, labels: &BTreeMap<String, String>) -> bool {
        labels.iter().all(|(name, value)| self.body.labels.get(name) == Some(value))
    }

    /// Attempts it can take now.
    pub fn available(&self) -> u32 {
        match self.attached {
            Some(attached) if self.accepts() => attached.credit.available(),
            _ => 0,
        }
    }

    /// Sessions it can take now.
    pub fn free_sessions(&self) -> u32 {
        if self.accepts() && self.body.capabilities.contains("python") {
            self.body.sessions_max.saturating_sub(u32::try_from(self.sessions.len()).unwrap_or(u32::MAX))
        } else {
            0
        }
    }

    pub fn take_change(&mut self, now: Now) -> Change {
        let expected = self.version;
        self.version += 1;
        Change {
            aggregate: Aggregate::Worker,
            id: self.id.to_string(),
            expected,
            row: Row {
                tenant: self.tenant.to_string(),
                state: self.body.state.as_str().to_owned(),
                ended: false,
                created_ms: self.created_ms,
                updated_ms: now.wall_ms,
                body: serde_json::to_string(&self.body).unwrap_or_default(),
                ..Row::default()
            },
            events: self
                .events
                .drain(..)
                .map(|kind| NewEvent {
                    kind: kind.to_owned(),
                    body: format!(r#"{{"incarnation":{}}}"#, self.body.incarnation),
                })
                .collect(),
            output: Vec::new(),
        }
    }
}
