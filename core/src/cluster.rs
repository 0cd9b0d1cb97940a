//! The cluster: which worker holds which session and attempt, and what may go where next. Every decision about dispatch
//! is made here, synchronously; the coordinator records what comes out and only then lets it take effect (I2).
//!
//! `sessions` creates and ends sessions, `tasks` moves tasks, `attach` reconciles a worker's inventory with ours,
//! `silence` judges workers that say nothing.

mod attach;
mod sessions;
mod silence;
mod tasks;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use cooper_common::ids::{SessionId, TaskId};

pub use self::{
    attach::{AttemptItem, AttemptVerdict, Hello, SessionItem, SessionVerdict, Verdict, Welcome},
    sessions::Update,
};
use crate::{
    Now,
    change::Change,
    lease::{Fence, Timing},
    session::Session,
    task::{End, Task},
    worker::{Worker, WorkerId},
};

/// A message for a worker, without its encoding.
#[derive(Debug, Clone)]
pub enum Message {
    Assign { task: TaskId, fence: Fence, spec: Arc<[u8]>, timeout_ms: u64, output_limit_bytes: u64 },
    Cancel { task: TaskId, fence: Fence },
    ResultAck { task: TaskId, fence: Fence, stale: bool },
    SessionGrant { session: SessionId, fence: Fence, spec: Arc<[u8]> },
    SessionEnd { session: SessionId, fence: Fence },
}

/// What to do once the changes are durable.
#[derive(Debug, Clone)]
pub enum Effect {
    /// To the worker's stream of this attach; if another took its place meanwhile, drop it: the inventory at that attach
    /// said the same.
    Send {
        worker: WorkerId,
        attach: u64,
        message: Message,
    },
    /// A task ended: tell whoever follows it.
    TaskEnded(Arc<Ended>),
    SessionChanged {
        session: SessionId,
    },
    /// The worker was given up while its stream was open: end it, the worker has to attach again.
    Close {
        worker: WorkerId,
        attach: u64,
    },
    /// The task waits for its next attempt, whose output begins at 0: forget what there is.
    Restarted {
        task: TaskId,
    },
    /// Room for a session may have appeared.
    CapacityChanged,
}

/// A task at its end, complete: what a follower gets without asking the store.
#[derive(Debug)]
pub struct Ended {
    pub task: TaskId,
    pub end: End,
    pub tenant: Arc<str>,
    pub created_ms: i64,
    pub body: crate::task::Body,
    /// Encoded cooper.v1.Outcome; absent where `body.reason` says why.
    pub result: Option<Vec<u8>>,
    /// Streams that rode in the result whole.
    pub output: Vec<crate::change::InlineOutput>,
}

/// What one input led to.
#[derive(Debug, Default)]
pub struct Out {
    pub changes: Vec<Change>,
    pub effects: Vec<Effect>,
    /// Some change must survive power loss before anybody hears of it; else the next such commit carries it (DESIGN §9).
    pub full: bool,
    tasks: BTreeSet<TaskId>,
    sessions: BTreeSet<SessionId>,
    workers: BTreeSet<WorkerId>,
}

/// Numbers for `/metrics` and `cooper status`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub workers_attached: usize,
    pub sessions_live: usize,
    pub tasks_queued: usize,
    pub tasks_held: usize,
}

#[derive(Debug)]
pub struct Cluster {
    epoch: u64,
    timing: Timing,
    /// Nothing is lost before this (reattach grace).
    grace_until_mono_ms: u64,
    last_tick_mono_ms: u64,
    attaches: u64,
    pub(crate) workers: BTreeMap<WorkerId, Worker>,
    pub(crate) sessions: BTreeMap<SessionId, Session>,
    pub(crate) tasks: BTreeMap<TaskId, Task>,
    /// Names of live sessions by tenant.
    names: BTreeMap<(Arc<str>, String), SessionId>,
    /// Tasks that any worker can do, in order.
    ready: VecDeque<TaskId>,
    /// Workers with free credit, most credit last.
    free: BTreeSet<(u32, WorkerId)>,
    /// What `free` holds of each worker.
    free_of: BTreeMap<WorkerId, u32>,
    held: usize,
}

impl Cluster {
    /// An empty cluster under a coordinator epoch that no earlier coordinator had.
    pub fn new(now: Now, epoch: u64, timing: Timing) -> Self {
        Self {
            epoch,
            timing,
            grace_until_mono_ms: now.mono_ms + timing.reattach_grace_ms,
            last_tick_mono_ms: now.mono_ms,
            attaches: 0,
            workers: BTreeMap::new(),
            sessions: BTreeMap::new(),
            tasks: BTreeMap::new(),
            names: BTreeMap::new(),
            ready: VecDeque::new(),
            free: BTreeSet::new(),
            free_of: BTreeMap::new(),
            held: 0,
        }
    }

    /// A cluster as the store remembers it. Attempts stay with their workers until those are back or given up.
    pub fn restore(
        now: Now,
        epoch: u64,
        timing: Timing,
        workers: Vec<Worker>,
        sessions: Vec<Session>,
        tasks: Vec<Task>,
    ) -> Self {
        let mut cluster = Self::new(now, epoch, timing);
        for worker in workers {
            cluster.workers.insert(worker.id.clone(), worker);
        }
        for session in sessions {
            if !session.body.name.is_empty() {
                cluster.names.insert((session.tenant.clone(), session.body.name.clone()), session.id);
            }
            if let Some(worker) = cluster.workers.get_mut(session.body.worker.as_str()) {
                worker.sessions.insert(session.id);
            }
            cluster.sessions.insert(session.id, session);
        }
        // Ids are time-ordered, so this is the order of submission.
        let mut tasks = tasks;
        tasks.sort_by_key(|task| task.id);
        for task in tasks {
            let id = task.id;
            let held = task.held();
            cluster.tasks.insert(id, task);
            if held {
                cluster.hold(id);
            } else {
                cluster.enqueue(id);
            }
        }
        cluster
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    pub fn counts(&self) -> Counts {
        Counts {
            workers_attached: self.workers.values().filter(|w| w.attached.is_some()).count(),
            sessions_live: self.sessions.len(),
            tasks_queued: self.tasks.len() - self.held,
            tasks_held: self.held,
        }
    }

    /// What a tenant may know of [`Self::counts`]: its own. Linear in what is live.
    pub fn counts_of(&self, tenant: &str) -> Counts {
        let tasks = || self.tasks.values().filter(|task| &*task.tenant == tenant);
        let held = tasks().filter(|task| task.held()).count();
        Counts {
            workers_attached: self.counts().workers_attached,
            sessions_live: self.sessions.values().filter(|session| &*session.tenant == tenant).count(),
            tasks_queued: tasks().count() - held,
            tasks_held: held,
        }
    }

    pub fn worker(&self, id: &str) -> Option<&Worker> {
        self.workers.get(id)
    }

    pub fn workers(&self) -> impl Iterator<Item = &Worker> {
        self.workers.values()
    }

    pub fn session(&self, id: SessionId) -> Option<&Session> {
        self.sessions.get(&id)
    }

    pub fn task(&self, id: TaskId) -> Option<&Task> {
        self.tasks.get(&id)
    }

    /// The live session of this name.
    pub fn session_named(&self, tenant: &Arc<str>, name: &str) -> Option<SessionId> {
        self.names.get(&(tenant.clone(), name.to_owned())).copied()
    }

    /// Keeps `free` true after anything that changes a worker's credit or state.
    fn reindex(&mut self, id: &WorkerId) {
        let available = self.workers.get(id).map_or(0, Worker::available);
        let before = self.free_of.get(id).copied().unwrap_or(0);
        if before == available {
            return;
        }
        if before > 0 {
            self.free.remove(&(before, id.clone()));
        }
        if available > 0 {
            self.free.insert((available, id.clone()));
            self.free_of.insert(id.clone(), available);
        } else {
            self.free_of.remove(id);
        }
    }

    /// Books a held attempt on its worker and session.
    fn hold(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get(&id) else { return };
        if let Some(worker) = task.body.worker.as_deref().and_then(|w| self.workers.get_mut(w))
            && worker.running.insert(id)
        {
            self.held += 1;
        }
        if let Some(session) = task.body.session.and_then(|s| self.sessions.get_mut(&s)) {
            session.running.insert(id);
            if task.body.kind.exclusive() {
                session.interpreter = Some(id);
            }
        }
    }

    /// The opposite of [`Self::hold`].
    fn release(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get(&id) else { return };
        if let Some(worker) = task.body.worker.as_deref().and_then(|w| self.workers.get_mut(w))
            && worker.running.remove(&id)
        {
            self.held -= 1;
        }
        if let Some(session) = task.body.session.and_then(|s| self.sessions.get_mut(&s)) {
            session.running.remove(&id);
            if session.interpreter == Some(id) {
                session.interpreter = None;
            }
        }
    }

    /// Turns what was touched into one change per aggregate.
    fn finish(&mut self, now: Now, out: &mut Out) {
        for id in std::mem::take(&mut out.workers) {
            if let Some(worker) = self.workers.get_mut(&id) {
                out.changes.push(worker.take_change(now));
            }
        }
        for id in std::mem::take(&mut out.sessions) {
            if let Some(session) = self.sessions.get_mut(&id) {
                out.changes.push(session.take_change(now));
                out.effects.push(Effect::SessionChanged { session: id });
                if session.body.state.ended() {
                    self.forget_session(id);
                }
            }
        }
        for id in std::mem::take(&mut out.tasks) {
            if let Some(task) = self.tasks.get_mut(&id) {
                out.changes.push(task.take_change(now));
                if let crate::task::State::Ended(end) = task.body.state {
                    let change = out.changes.last();
                    out.effects.push(Effect::TaskEnded(Arc::new(Ended {
                        task: id,
                        end,
                        tenant: task.tenant.clone(),
                        created_ms: task.created_ms,
                        body: task.body.clone(),
                        result: change.and_then(|c| c.row.result.clone()),
                        output: change.map(|c| c.output.clone()).unwrap_or_default(),
                    })));
                    self.tasks.remove(&id);
                }
            }
        }
        // Linear in what is live: debug builds check small clusters, property tests all of them.
        debug_assert!(self.tasks.len() > 100 || self.violation().is_none(), "{:?}", self.violation());
    }

    fn send(&self, worker: &WorkerId, message: Message, out: &mut Out) {
        if let Some(attached) = self.workers.get(worker).and_then(|w| w.attached) {
            out.effects.push(Effect::Send { worker: worker.clone(), attach: attached.epoch, message });
        }
    }

    /// What must hold between any two inputs; the first thing that does not. Shared by property tests, simulation and
    /// (in debug builds) every call.
    pub fn violation(&self) -> Option<String> {
        let mut held = 0;
        for task in self.tasks.values() {
            if matches!(task.body.state, crate::task::State::Ended(_)) {
                return Some(format!("{} ended and is still here", task.id));
            }
            if task.held() {
                held += 1;
                let worker = task.body.worker.as_deref().unwrap_or_default();
                match self.workers.get(worker) {
                    Some(worker) if worker.running.contains(&task.id) => {}
                    _ => return Some(format!("I1: {} is held by {worker:?}, which does not know", task.id)),
                }
                if task.body.fence.epoch > self.epoch {
                    return Some(format!("I1: {} has a fence of the future", task.id));
                }
            }
        }
        if held != self.held {
            return Some(format!("{held} tasks are held, {} counted", self.held));
        }
        for worker in self.workers.values() {
            for id in &worker.running {
                match self.tasks.get(id) {
                    Some(task) if task.held() && task.body.worker.as_deref() == Some(&*worker.id) => {}
                    _ => return Some(format!("I1: {} runs {id}, which is not its", worker.id)),
                }
            }
            if self.free_of.get(&worker.id).copied().unwrap_or(0) != worker.available() {
                return Some(format!("{}: free credit is indexed wrongly", worker.id));
            }
        }
        for session in self.sessions.values() {
            if session.queue.iter().any(|id| self.tasks.get(id).is_none_or(|task| task.held())) {
                return Some(format!("{}: a queued task is held or gone", session.id));
            }
            if session.running.iter().any(|id| self.tasks.get(id).is_none_or(|task| !task.held())) {
                return Some(format!("{}: a running task is not held", session.id));
            }
            let exclusive = session
                .running
                .iter()
                .filter(|id| self.tasks.get(id).is_some_and(|task| task.body.kind.exclusive()))
                .count();
            if exclusive > 1 {
                return Some(format!("{}: {exclusive} tasks have the interpreter", session.id));
            }
        }
        None
    }
}
