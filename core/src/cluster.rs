//! The cluster: which worker holds which session and attempt, and what may go where next. Every decision about dispatch
//! is made here, synchronously; the coordinator records what comes out and only then lets it take effect (I2).
//!
//! `sessions` creates and ends sessions, `tasks` moves tasks, `attach` reconciles a worker's inventory with ours,
//! `silence` judges workers that say nothing, `drain` empties workers, `moves` saves and moves sessions, `hibernate` saves those that idle, `timers` does what
//! is due (deadlines, retries),
//! `lifetime` changes and ends sessions whose time is over, `quota` bounds tenants, `spares` keeps
//! sessions in stock, `explain` says what a task waits for.

mod attach;
mod drain;
mod explain;
mod hibernate;
mod lifetime;
mod moves;
mod pools;
mod quota;
mod sessions;
mod silence;
mod spares;
mod tasks;
mod timers;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use cooper_common::ids::{SessionId, TaskId};

use self::pools::Pools;
pub use self::{
    attach::{AttemptItem, AttemptVerdict, Hello, SessionItem, SessionVerdict, Verdict, Welcome},
    explain::{Cause, Why},
    lifetime::Changed,
    moves::{Transfer, What},
    quota::Quota,
    sessions::Update,
    tasks::Said,
};
use crate::{
    Now,
    change::Change,
    lease::{Fence, Timing},
    queue::Place,
    retry::Budget,
    session::{self, Session},
    task::{End, State, Task},
    worker::{Worker, WorkerId},
};

/// A message for a worker, without its encoding.
#[derive(Debug, Clone)]
pub enum Message {
    Assign {
        task: TaskId,
        fence: Fence,
        spec: Arc<[u8]>,
        timeout_ms: u64,
        output_limit_bytes: u64,
    },
    Cancel {
        task: TaskId,
        fence: Fence,
    },
    ResultAck {
        task: TaskId,
        fence: Fence,
        stale: bool,
    },
    SessionGrant {
        session: SessionId,
        fence: Fence,
        spec: Arc<[u8]>,
        /// A checkpoint follows; the session is ready when that is unpacked.
        restore: bool,
        /// Whose secrets go with it, as far as the spec names them.
        secrets_of: Option<Arc<str>>,
        /// Which Python to make it with; empty = the worker's first.
        python: String,
    },
    SessionEnd {
        session: SessionId,
        fence: Fence,
    },
    /// An operator empties the worker, or does so no longer. From protocol 2 on.
    Drain {
        draining: bool,
        deadline_in_ms: u64,
    },
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
        attempts_used: u32,
    },
    /// Room for a session may have appeared.
    CapacityChanged,
    /// [`Cluster::due_transfers`] may have something.
    TransfersDue,
    /// So many workers are silent at once that none is given up.
    EvictionsBraked {
        silent: usize,
        of: usize,
    },
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
    /// When workers were given up lately.
    evictions: VecDeque<u64>,
    attaches: u64,
    /// Transfers given out.
    transfers: u64,
    pub(crate) workers: BTreeMap<WorkerId, Worker>,
    pub(crate) sessions: BTreeMap<SessionId, Session>,
    pub(crate) tasks: BTreeMap<TaskId, Task>,
    /// Names of live sessions by tenant.
    names: BTreeMap<(Arc<str>, String), SessionId>,
    /// Tasks without a session that wait for a worker.
    pools: Pools,
    /// When which task is to be looked at; each at most once.
    timers: BTreeSet<(u64, TaskId)>,
    /// When the lifetime of which session is to be looked at.
    session_timers: BTreeSet<(u64, SessionId)>,
    /// What a tenant may hold.
    quota: Quota,
    /// Of tenants that had retries lately.
    budgets: BTreeMap<Arc<str>, Budget>,
    /// Submits so far.
    submits: u64,
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
            evictions: VecDeque::new(),
            attaches: 0,
            transfers: 0,
            workers: BTreeMap::new(),
            sessions: BTreeMap::new(),
            tasks: BTreeMap::new(),
            names: BTreeMap::new(),
            pools: Pools::default(),
            timers: BTreeSet::new(),
            session_timers: BTreeSet::new(),
            quota: Quota::default(),
            budgets: BTreeMap::new(),
            submits: 0,
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
            let id = session.id;
            cluster.sessions.insert(id, session);
            cluster.rearm_session(id);
        }
        // Ids are time-ordered, so this is the order of submission.
        let mut tasks = tasks;
        tasks.sort_by_key(|task| task.id);
        for mut task in tasks {
            let id = task.id;
            let held = task.held();
            task.place = cluster.next_place(task.body.priority);
            if task.not_before_mono_ms.is_some() {
                // Retries that wait are what is left of the budget they were taken from.
                cluster.budget_wait(now, &task.tenant);
            }
            cluster.tasks.insert(id, task);
            if held {
                cluster.hold(id);
            } else {
                cluster.enqueue(id);
            }
            cluster.rearm(now, id);
        }
        cluster
    }

    fn next_place(&mut self, priority: i8) -> Place {
        self.submits += 1;
        Place::new(priority, self.submits)
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

    pub fn sessions(&self) -> impl Iterator<Item = &Session> {
        self.sessions.values()
    }

    pub fn task(&self, id: TaskId) -> Option<&Task> {
        self.tasks.get(&id)
    }

    /// The live session of this name.
    pub fn session_named(&self, tenant: &Arc<str>, name: &str) -> Option<SessionId> {
        self.names.get(&(tenant.clone(), name.to_owned())).copied()
    }

    fn reindex(&mut self, id: &WorkerId) {
        self.pools.reindex(id, self.workers.get(id));
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
                let ended = session.body.state.ended();
                self.rearm_session(id);
                if ended {
                    self.forget_session(id);
                }
            }
        }
        for id in std::mem::take(&mut out.tasks) {
            if let Some(task) = self.tasks.get_mut(&id) {
                out.changes.push(task.take_change(now));
                if let State::Ended(end) = task.body.state {
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
                    if let Some(due) = task.due_mono_ms {
                        self.timers.remove(&(due, id));
                    }
                    self.tasks.remove(&id);
                } else {
                    self.rearm(now, id);
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
            if matches!(task.body.state, State::Ended(_)) {
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
                if task.not_before_mono_ms.is_some() {
                    return Some(format!("{} is held and waits for its time", task.id));
                }
            } else if let Some(lost) = self.misplaced(task) {
                return Some(lost);
            }
            if task.due_mono_ms.is_some_and(|due| !self.timers.contains(&(due, task.id))) {
                return Some(format!("{}: its timer is gone", task.id));
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
            for id in &worker.sessions {
                if self.sessions.get(id).is_none_or(|session| *session.body.worker != *worker.id) {
                    return Some(format!("I1: {} holds {id}, which is not its", worker.id));
                }
            }
            if self.pools.free_of(&worker.id) != worker.available() {
                return Some(format!("{}: free credit is indexed wrongly", worker.id));
            }
            if worker.available() > 0 && !worker.pinned.is_empty() {
                return Some(format!("{}: its steps wait and there is room", worker.id));
            }
        }
        if let Some(waits) = self.pools.violation() {
            return Some(waits);
        }
        let timed = self.tasks.values().filter(|task| task.due_mono_ms.is_some()).count();
        if timed != self.timers.len() {
            return Some(format!("{timed} tasks have a timer, {} timers are kept", self.timers.len()));
        }
        for session in self.sessions.values() {
            let kept = session.due_mono_ms.filter(|at| self.session_timers.contains(&(*at, session.id)));
            if kept != session.due_mono_ms
                || session.next_due().is_some_and(|at| kept.is_none_or(|kept| kept > at))
            {
                return Some(format!("{}: its timer is gone or late", session.id));
            }
        }
        for session in self.sessions.values() {
            if session.body.state == session::State::Checkpointing
                && session.body.saving.is_some() == session.body.restore.is_some()
            {
                return Some(format!("{}: it is neither being saved nor saved, or both", session.id));
            }
            let nowhere = session.body.worker.is_empty();
            if (nowhere && !session.is_saved()) || (session.body.hibernated && !nowhere) {
                return Some(format!("I1: {} hibernates with a worker, or is nowhere", session.id));
            }
            if session.body.hibernated && session.active() > 0 {
                return Some(format!("{}: tasks wait in it and it hibernates", session.id));
            }
            if session.queue.iter().any(|(_, id)| self.tasks.get(&id).is_none_or(|task| task.held())) {
                return Some(format!("{}: a queued task is held or gone", session.id));
            }
            if self.startable(session).is_some()
                && self.workers.get(session.body.worker.as_str()).is_some_and(|w| w.available() > 0)
            {
                return Some(format!("{}: a task waits and there is room", session.id));
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
    /// A task that is queued waits in exactly the place that its turn will come from.
    fn misplaced(&self, task: &Task) -> Option<String> {
        let waits = |queue: &crate::queue::Queue| queue.contains(task.place);
        let (queued, delayed) = match (task.body.session, task.body.kind, task.body.worker.as_deref()) {
            (Some(id), ..) => {
                let session = self.sessions.get(&id);
                (
                    session.is_some_and(|s| waits(&s.queue)),
                    session.is_some_and(|s| s.delayed.contains(&task.id)),
                )
            }
            (None, crate::task::Kind::Step, worker) => {
                let worker = worker.and_then(|w| self.workers.get(w));
                (worker.is_some_and(|w| waits(&w.pinned)), task.not_before_mono_ms.is_some())
            }
            (None, ..) => {
                let pool = self.pools.get(task.worker_labels());
                (pool.is_some_and(|pool| waits(&pool.queue)), task.not_before_mono_ms.is_some())
            }
        };
        let timed = task.not_before_mono_ms.is_some();
        (queued == timed || delayed != timed)
            .then(|| format!("{} is queued and would wait for ever (in line: {queued})", task.id))
    }

    /// The task of a session that may start next, given room on its worker: one that needs the interpreter waits for it
    /// and lets commands pass.
    fn startable(&self, session: &Session) -> Option<(Place, TaskId)> {
        if session.body.state != session::State::Ready || session.running.len() >= session::PARALLEL_MAX {
            return None;
        }
        let exclusive = |id: &TaskId| self.tasks.get(id).is_some_and(|task| task.body.kind.exclusive());
        session.queue.iter().find(|(_, id)| session.interpreter.is_none() || !exclusive(id))
    }
}

/// Labels as they are written: `zone=a,gpu=yes`.
fn named(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")
}
