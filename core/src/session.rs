//! A session: where it is, which of its tasks run, and which may start next.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use cooper_common::{
    error::Code,
    ids::{CheckpointId, SessionId, TaskId, TemplateId},
};
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

/// What a checkpoint that is being made is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Somebody wants to have it.
    Keep,
    /// The session goes on from it on another worker.
    Move,
    /// Somebody wants to have it, and the session destroyed then.
    Destroy,
    /// The session is idle, and no worker needs to hold it.
    Hibernate,
}

impl Purpose {
    /// Whether it is kept for its tenant, and counts against its quota.
    pub const fn is_for_somebody(self) -> bool {
        matches!(self, Purpose::Keep | Purpose::Destroy)
    }
}

/// A checkpoint that is being made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saving {
    pub checkpoint: CheckpointId,
    pub purpose: Purpose,
    pub name: String,
    /// Idempotency key of who wants it.
    pub key: String,
    /// When executions still run then, there is none.
    pub give_up_at_ms: i64,
    /// Also the interpreter's variables.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub globals: bool,
}

/// What the session's files are to be made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restore {
    pub checkpoint: CheckpointId,
    /// The session was elsewhere before; else it begins with this.
    pub moved: bool,
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
    /// The one that was asked for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub python_wanted: String,
    #[serde(default)]
    pub facilities: Vec<String>,
    /// Its worker's when it became ready.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tier: String,
    #[serde(default)]
    pub interpreter_restarted: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// When Cooper ends it by itself.
    #[serde(flatten)]
    pub lifetime: Lifetime,
    /// What it counts against its tenant's quota.
    #[serde(flatten)]
    pub share: Share,
    /// Its spec is not the one that it was created by any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub updated: bool,
    /// Connections that its network policy refused.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub network_refused: u64,
    /// What its connections carried.
    #[serde(default, skip_serializing_if = "Traffic::is_none")]
    pub traffic: Traffic,
    /// Labels that its worker must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub worker_labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saving: Option<Saving>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<Restore>,
    /// Saved, and no worker is to have it until something is wanted of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hibernated: bool,
    /// What became of the variables that its checkpoint held: an encoded cooper.v1.GlobalsSummary in base64, opaque here.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub globals: String,
    /// What was saved of it when it was destroyed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_checkpoint: Option<CheckpointId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spare: Option<Spare>,
    /// Its worker has to know secrets.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub secrets: bool,
    /// Its worker has to put secrets into its requests.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub injects: bool,
}

/// Bytes and connections, as a worker counts them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    pub sent: u64,
    pub received: u64,
    pub connects: u64,
}

impl Carried {
    fn each(self, other: Self, f: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            sent: f(self.sent, other.sent),
            received: f(self.received, other.received),
            connects: f(self.connects, other.connects),
        }
    }
}

/// All that was carried, out of counts that begin anew with every worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    pub total: Carried,
    /// The count that was heard last.
    pub count_id: u64,
    pub counted: Carried,
}

impl Traffic {
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// What a worker says now; said again, or late, it changes nothing.
    pub fn heard(&mut self, count_id: u64, counted: Carried) {
        let before = if count_id == self.count_id { self.counted } else { Carried::default() };
        self.total = self.total.each(counted.each(before, u64::saturating_sub), u64::saturating_add);
        (self.count_id, self.counted) = (count_id, counted.each(before, u64::max));
    }
}

/// Made of a template before anybody asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spare {
    pub template: TemplateId,
    /// The template's warm-up ran.
    pub warm: bool,
}

/// When Cooper ends a session by itself; 0 = never.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lifetime {
    /// Unix milliseconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub expires_at_ms: i64,
    /// Without an execution or a call for this long.
    #[serde(skip_serializing_if = "is_zero")]
    pub idle_timeout_ms: u64,
    /// Without an execution or a call for this long it is saved, and no worker holds it until the next one. 0 = never.
    #[serde(skip_serializing_if = "is_zero")]
    pub hibernate_after_ms: u64,
}

/// What a session may use; 0 = without limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Share {
    #[serde(skip_serializing_if = "is_zero")]
    pub memory_bytes: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub disk_bytes: u64,
}

fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
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
    /// From its creation; 0 = for ever.
    pub ttl_ms: u64,
    pub idle_timeout_ms: u64,
    pub hibernate_after_ms: u64,
    pub share: Share,
    /// Begins from this checkpoint, on a worker with this Python.
    pub restore: Option<(CheckpointId, String)>,
    /// `3.12` or `3.12.1`; empty = whatever its worker offers first.
    pub python: String,
    /// Nobody's yet.
    pub spare: Option<Spare>,
    /// Its spec names some: its worker has to know them.
    pub secrets: bool,
    /// Its spec says where its worker puts some.
    pub injects: bool,
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
    /// `lifetime.expires_at_ms` by the monotonic clock.
    expires_mono_ms: Option<u64>,
    /// Last time that something happened in it.
    pub(crate) active_mono_ms: u64,
    /// When what its connections carried was recorded for its own sake.
    pub(crate) traffic_recorded_mono_ms: u64,
    /// When the cluster's timers look at it.
    pub(crate) due_mono_ms: Option<u64>,
    spec_changed: bool,
    /// Bytes of it are being carried, under this number.
    pub(crate) transfer: Option<u64>,
    pub(crate) transfer_after_mono_ms: u64,
    /// No worker has it: only its checkpoint is left.
    pub(crate) homeless: bool,
    /// Why it cannot be moved.
    pub(crate) stays: Option<Reason>,
    /// It is not to hibernate before this.
    pub(crate) awake_until_mono_ms: u64,
    events: Vec<&'static str>,
    /// Events that say more than that something happened.
    told: Vec<NewEvent>,
}

/// Executions of one session that run side by side; more wait.
pub const PARALLEL_MAX: usize = 16;

impl Session {
    pub fn new(now: Now, create: Create, worker: &str, epoch: u64) -> Self {
        let mut session = Self {
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
                python_version: create.restore.as_ref().map(|(_, python)| python.clone()).unwrap_or_default(),
                python_wanted: create.python,
                facilities: Vec::new(),
                tier: String::new(),
                interpreter_restarted: false,
                reason: None,
                lifetime: Lifetime {
                    idle_timeout_ms: create.idle_timeout_ms,
                    hibernate_after_ms: create.hibernate_after_ms,
                    ..Lifetime::default()
                },
                share: create.share,
                updated: false,
                network_refused: 0,
                traffic: Traffic::default(),
                worker_labels: create.worker_labels,
                saving: None,
                restore: create.restore.map(|(checkpoint, _)| Restore { checkpoint, moved: false }),
                hibernated: false,
                globals: String::new(),
                last_checkpoint: None,
                spare: create.spare,
                secrets: create.secrets,
                injects: create.injects,
            },
            spec: create.spec,
            queue: Queue::default(),
            delayed: BTreeSet::new(),
            running: BTreeSet::new(),
            interpreter: None,
            expires_mono_ms: None,
            active_mono_ms: now.mono_ms,
            traffic_recorded_mono_ms: now.mono_ms,
            due_mono_ms: None,
            spec_changed: false,
            transfer: None,
            transfer_after_mono_ms: 0,
            homeless: false,
            stays: None,
            awake_until_mono_ms: 0,
            events: vec!["session.initializing"],
            told: Vec::new(),
        };
        session.live_for(now, create.ttl_ms);
        session
    }

    /// As it was recorded. What it idled before counts for nothing; its end stays where it was.
    pub fn restore(now: Now, id: SessionId, version: Version, row: Row) -> Result<Self, serde_json::Error> {
        let body: Body = serde_json::from_str(&row.body)?;
        let expires_at_ms = body.lifetime.expires_at_ms;
        let left_ms = u64::try_from(expires_at_ms.saturating_sub(now.wall_ms)).unwrap_or(0);
        Ok(Self {
            id,
            tenant: row.tenant.into(),
            key: row.key,
            created_ms: row.created_ms,
            version,
            body,
            spec: row.spec.unwrap_or_default().into(),
            queue: Queue::default(),
            delayed: BTreeSet::new(),
            running: BTreeSet::new(),
            interpreter: None,
            expires_mono_ms: (expires_at_ms != 0).then(|| now.mono_ms.saturating_add(left_ms)),
            active_mono_ms: now.mono_ms,
            traffic_recorded_mono_ms: now.mono_ms,
            due_mono_ms: None,
            spec_changed: false,
            transfer: None,
            transfer_after_mono_ms: 0,
            homeless: false,
            stays: None,
            awake_until_mono_ms: 0,
            events: Vec::new(),
            told: Vec::new(),
        })
    }

    /// From now on it lives this long; 0 = until it is destroyed.
    pub fn live_for(&mut self, now: Now, ttl_ms: u64) {
        let ends = (ttl_ms != 0).then_some(ttl_ms);
        self.expires_mono_ms = ends.map(|ttl_ms| now.mono_ms.saturating_add(ttl_ms));
        self.body.lifetime.expires_at_ms =
            ends.map_or(0, |ttl_ms| now.wall_ms.saturating_add(i64::try_from(ttl_ms).unwrap_or(i64::MAX)));
    }

    /// When its lifetime has to be looked at.
    pub(crate) fn next_due(&self) -> Option<u64> {
        if matches!(self.body.state, State::Draining | State::Destroyed | State::Failed) {
            return None;
        }
        let idle = Some(self.body.lifetime.idle_timeout_ms).filter(|ms| *ms != 0);
        let idle = idle.map(|ms| self.active_mono_ms.saturating_add(ms));
        self.expires_mono_ms.into_iter().chain(idle).chain(self.sleep_due()).min()
    }

    /// When it hibernates, if nothing happens in it.
    fn sleep_due(&self) -> Option<u64> {
        let after_ms = self.body.lifetime.hibernate_after_ms;
        (self.body.state == State::Ready && after_ms != 0 && self.body.spare.is_none())
            .then(|| self.active_mono_ms.saturating_add(after_ms).max(self.awake_until_mono_ms))
    }

    pub(crate) fn is_sleepy(&self, now: Now) -> bool {
        self.active() == 0 && self.sleep_due().is_some_and(|due| due <= now.mono_ms)
    }

    /// Whether nothing happened for as long as it is to be awake without.
    pub(crate) fn slept_through(&self, now: Now) -> bool {
        let after_ms = self.body.lifetime.hibernate_after_ms;
        after_ms != 0 && self.active() == 0 && now.mono_ms.saturating_sub(self.active_mono_ms) >= after_ms
    }

    /// Why it is to end now, if it is.
    pub(crate) fn over(&self, now: Now) -> Option<Reason> {
        let reason = |code: Code, message: String| Some(Reason { code: code.as_str().to_owned(), message });
        if self.expires_mono_ms.is_some_and(|at| at <= now.mono_ms) {
            return reason(Code::SessionExpired, "its time to live was over".to_owned());
        }
        let idle_ms = self.body.lifetime.idle_timeout_ms;
        let idle =
            idle_ms != 0 && self.active() == 0 && now.mono_ms.saturating_sub(self.active_mono_ms) >= idle_ms;
        let text = || format!("nothing happened in it for {} s", idle_ms as f64 / 1_000.0);
        idle.then(|| reason(Code::SessionIdle, text())).flatten()
    }

    /// A spare becomes the session that somebody asked for.
    pub(crate) fn take(&mut self, now: Now, create: Create) {
        self.key = create.key;
        self.body.name = create.name;
        self.body.exec_timeout_ms = create.exec_timeout_ms;
        self.body.output_limit_bytes = create.output_limit_bytes;
        self.body.share = create.share;
        self.body.spare = None;
        self.body.lifetime.idle_timeout_ms = create.idle_timeout_ms;
        self.body.lifetime.hibernate_after_ms = create.hibernate_after_ms;
        self.live_for(now, create.ttl_ms);
        self.active_mono_ms = now.mono_ms;
        self.spec = create.spec;
        self.spec_changed = true;
        self.events.push("session.taken");
    }

    /// Another spec, from an update.
    pub(crate) fn replace_spec(&mut self, spec: Arc<[u8]>) {
        self.spec = spec;
        self.spec_changed = true;
        self.body.updated = true;
        self.events.push("session.updated");
    }

    /// Its policy refused connections; `body` is the event's.
    pub(crate) fn refused(&mut self, count: u64, body: String) {
        self.body.network_refused = self.body.network_refused.saturating_add(count);
        self.told.push(NewEvent { kind: "session.network_refused".to_owned(), body });
    }

    /// Tasks that wait or run.
    pub fn active(&self) -> usize {
        self.queue.len() + self.delayed.len() + self.running.len()
    }

    /// Moves on if the state allows it; false = nothing changed.
    pub fn to(&mut self, next: State) -> bool {
        use State::{Checkpointing, Destroyed, Draining, Failed, Initializing, Ready};
        let allowed = match (self.body.state, next) {
            (Initializing, Ready | Checkpointing | Draining | Destroyed | Failed)
            | (Ready, Checkpointing | Draining | Destroyed | Failed)
            | (Checkpointing, Ready | Initializing | Draining | Destroyed | Failed)
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

    /// Records a fact with the next change.
    pub(crate) fn note(&mut self, kind: &'static str) {
        self.events.push(kind);
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
                spec: (expected == 0 || std::mem::take(&mut self.spec_changed)).then(|| self.spec.to_vec()),
                result: None,
            },
            events: self
                .events
                .drain(..)
                .map(|kind| NewEvent {
                    kind: kind.to_owned(),
                    body: format!(r#"{{"worker":{:?}}}"#, self.body.worker),
                })
                .chain(self.told.drain(..))
                .collect(),
            output: Vec::new(),
        }
    }
}
