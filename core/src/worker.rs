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
    python,
    queue::Queue,
    session::Reason,
};

/// Capability of a worker that packs and unpacks sessions.
pub const CHECKPOINT: &str = "checkpoint";
/// The capability of workers that take calls to executions that run, and open standard input and terminals for them.
pub const INTERACTIVE: &str = "interactive";

/// Capability of a worker that can be granted a session again while it still removes it.
pub const HIBERNATE: &str = "hibernate";

/// Capability of a worker that gives sessions the secrets of their grants.
pub const SECRETS: &str = "secrets";
/// Capability of a worker whose proxy puts secrets into requests of sessions.
pub const INJECT: &str = "inject";

/// Capability of a worker that knows the formats of archives, and makes their directories anew.
pub const ARCHIVES: &str = "archives";

/// Capability of a worker that knows all fields of an install, and uninstalls.
pub const PACKAGES: &str = "packages";

/// Capability of a worker that serves connections to what its sessions listen on.
pub const PORTS: &str = "ports";

/// Chosen by whoever runs the worker, or random and kept on its disk.
pub type WorkerId = Arc<str>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Known from the store, not back since the coordinator started.
    Joining,
    Ready,
    /// Being emptied: by an operator ([`Body::drain`]), or because it stops.
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

/// An operator wants the worker empty. Durable: it outlives restarts of the coordinator and of the worker (I13).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    pub since_ms: i64,
    /// When executions that are left are ended. Wall clock, because it has to mean something to another process.
    pub deadline_ms: i64,
    /// Since when nothing runs there any more; 0 = not yet. From then on nothing is started there.
    #[serde(default)]
    pub drained_ms: i64,
    /// Name of the token that asked.
    #[serde(default)]
    pub by: String,
    /// Its sessions go on elsewhere, from checkpoints.
    #[serde(default)]
    pub checkpoint: bool,
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
    /// All that it offers; empty = it only said `python_version`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub python_versions: Vec<String>,
    /// Isolation of its sessions; empty = it did not say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tier: String,
    /// Why it takes no sessions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sessions_refused: Option<Reason>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<Drain>,
    /// Why it could not attach when it tried last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Reason>,
}

impl Body {
    /// Versions of the Pythons that its sessions can run on, the one for those that name none first.
    pub fn pythons(&self) -> &[String] {
        match self.python_versions.is_empty() {
            true if self.python_version.is_empty() => &[],
            true => std::slice::from_ref(&self.python_version),
            false => &self.python_versions,
        }
    }

    /// Whether a session that wants this Python can be there.
    pub fn offers(&self, python: &str) -> bool {
        python.is_empty() || self.pythons().iter().any(|version| python::is(version, python))
    }

    /// Of a worker that nothing is known of.
    pub fn unknown() -> Self {
        Self {
            state: State::Joining,
            incarnation: 0,
            version: String::new(),
            capabilities: BTreeSet::new(),
            labels: BTreeMap::new(),
            sessions_max: 0,
            tasks_max: 0,
            stacks: Vec::new(),
            hostname: String::new(),
            boot_id: String::new(),
            python_version: String::new(),
            python_versions: Vec::new(),
            tier: String::new(),
            sessions_refused: None,
            drain: None,
            refused: None,
        }
    }
}

/// The control stream that may write for this worker.
#[derive(Debug, Clone, Copy)]
pub struct Attached {
    /// Strictly increasing over all attaches of all workers; only the newest of a worker is listened to.
    pub epoch: u64,
    /// Version of the link protocol: what it was not made for is not sent.
    pub protocol: u32,
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
    /// It said that it stops and takes nothing more; until it attaches again.
    pub stopping: bool,
    /// With that it asked for its sessions to go on elsewhere.
    pub(crate) saves: bool,
    /// The drain's deadline on our own clock.
    pub(crate) drain_due_mono_ms: u64,
    /// When the deadline was carried out.
    pub(crate) drain_cut_mono_ms: Option<u64>,
    /// Nothing ran and nothing waited at the last look.
    pub(crate) drain_idle: bool,
    /// The brake keeps it from being given up, and that was said.
    pub(crate) spared: bool,
    events: Vec<(&'static str, String)>,
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
            stopping: false,
            saves: false,
            drain_due_mono_ms: 0,
            drain_cut_mono_ms: None,
            drain_idle: false,
            spared: false,
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
        if let Some(drain) = &worker.body.drain {
            let left_ms = u64::try_from(drain.deadline_ms.saturating_sub(now.wall_ms)).unwrap_or(0);
            worker.drain_due_mono_ms = now.mono_ms + left_ms;
        }
        Ok(worker)
    }

    pub fn to(&mut self, next: State) -> bool {
        let changed = self.body.state != next;
        if changed {
            self.body.state = next;
            self.note(match next {
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
        self.note("worker.restarted");
    }

    /// Records a fact with the next change.
    pub(crate) fn note(&mut self, kind: &'static str) {
        self.note_with(kind, String::new());
    }

    /// `more`: JSON members, each with its leading comma.
    pub(crate) fn note_with(&mut self, kind: &'static str, more: String) {
        self.events.push((kind, format!(r#"{{"incarnation":{}{more}}}"#, self.body.incarnation)));
    }

    /// What it is as long as it is heard.
    pub fn heard(&self) -> State {
        if self.stopping || self.body.drain.is_some() { State::Draining } else { State::Ready }
    }

    /// Takes new sessions, and tasks that any worker can do.
    pub fn accepts(&self) -> bool {
        self.attached.is_some() && self.body.state == State::Ready
    }

    /// Has every label of a selector.
    pub fn has(&self, labels: &BTreeMap<String, String>) -> bool {
        labels.iter().all(|(name, value)| self.body.labels.get(name) == Some(value))
    }

    /// Goes on with what is bound to it: executions in its sessions, steps on its stacks. While it is drained it does
    /// so until nothing runs there, or until the deadline.
    pub fn goes_on(&self) -> bool {
        self.attached.is_some()
            && match self.body.state {
                State::Ready => true,
                State::Draining => !self.closed(),
                State::Joining | State::Suspect | State::Lost | State::Gone => false,
            }
    }

    /// Nothing more is started there, not even in its sessions: it stops, or its drain is over.
    pub fn closed(&self) -> bool {
        let over = self.drain_cut_mono_ms.is_some();
        self.stopping || self.body.drain.as_ref().is_some_and(|drain| over || drain.drained_ms != 0)
    }

    /// Attempts it can take now, of tasks that any worker can do.
    pub fn available(&self) -> u32 {
        if self.accepts() { self.credit() } else { 0 }
    }

    /// Attempts it can take now, of tasks that are bound to it.
    pub fn available_bound(&self) -> u32 {
        if self.goes_on() { self.credit() } else { 0 }
    }

    fn credit(&self) -> u32 {
        self.attached.map_or(0, |attached| attached.credit.available())
    }

    /// Its sessions are kept from each other: they have uids of their own. What does not say so does not.
    pub fn keeps_tenants_apart(&self) -> bool {
        matches!(&*self.body.tier, "T1" | "T2" | "T3")
    }

    /// Sessions it can take now.
    pub fn free_sessions(&self) -> u32 {
        let takes = self.body.capabilities.contains("python") && self.body.sessions_refused.is_none();
        if self.accepts() && takes {
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
                .map(|(kind, body)| NewEvent { kind: kind.to_owned(), body })
                .collect(),
            output: Vec::new(),
        }
    }
}
