//! Workers as they really are around the cluster: messages are delayed, cut and repeated; hosts and coordinators die. What
//! the cluster says and records is held against the reference model.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use cooper_common::ids::{CheckpointId, SessionId, TaskId};
use cooper_core::{
    Now,
    change::{Aggregate, Change},
    cluster::{
        AttemptItem, Cluster, Effect, Hello, Message, Out, Said, SessionItem, Transfer, Update, Verdict, What,
    },
    lease::{Fence, Timing},
    session::{self, Session},
    task::{self, Body, End, Kind, State, Submit, Task},
    worker::{self, Drain, Worker},
};

use super::model::{Action, Model, Terms, WORKERS, labels};

pub const PLACES: u32 = 3;
const TIMEOUT_MS: u64 = 20_000;

/// What a real worker holds.
#[derive(Default)]
pub struct Host {
    incarnation: u64,
    pub attach: Option<u64>,
    muted: bool,
    seen: u64,
    pub inbox: VecDeque<Message>,
    sessions: BTreeMap<SessionId, Fence>,
    /// How much was executed in each, which is what its files hold.
    files: BTreeMap<SessionId, u64>,
    /// Those that wait for their files.
    restoring: BTreeSet<SessionId>,
    running: BTreeMap<TaskId, Fence>,
    /// Results that were not acked.
    results: BTreeMap<TaskId, (Fence, End)>,
    says: VecDeque<Says>,
}

enum Says {
    Ready(SessionId, Fence),
    Destroyed(SessionId, Fence),
    Started(TaskId, Fence),
    Result(TaskId),
}

impl Host {
    fn forget(&mut self, session: SessionId) {
        self.sessions.remove(&session);
        self.files.remove(&session);
        self.restoring.remove(&session);
    }

    /// What it says of an attempt; nothing where the result was acked meanwhile.
    fn said(&self, says: Says) -> Option<Said> {
        match says {
            Says::Started(task, fence) => Some(Said::Started { task, fence }),
            Says::Result(task) => self.results.get(&task).map(|(fence, end)| result(task, *fence, *end)),
            Says::Ready(..) | Says::Destroyed(..) => None,
        }
    }
}

/// An attempt's end as its worker says it.
pub fn result(task: TaskId, fence: Fence, end: End) -> Said {
    Said::Result { task, fence, end, result: Vec::new(), output: Vec::new(), artifacts: Vec::new() }
}

pub struct World {
    pub cluster: Cluster,
    epoch: u64,
    pub now: Now,
    next_session: u128,
    pub hosts: Vec<Host>,
    /// What the store holds, by id.
    pub tasks: BTreeMap<TaskId, Change>,
    /// The bodies of those rows.
    bodies: BTreeMap<TaskId, Body>,
    pub sessions: BTreeMap<String, Change>,
    workers: BTreeMap<String, Change>,
    /// By the events, so that transitions inside one change count too.
    states: BTreeMap<TaskId, &'static str>,
    /// Starts since the submit or the last requeue.
    starts: BTreeMap<TaskId, BTreeSet<Fence>>,
    since_ms: BTreeMap<TaskId, i64>,
    pub ended: BTreeMap<TaskId, End>,
    /// When a tick, or a start, last did what was due.
    ticked_ms: i64,
    creating: BTreeMap<SessionId, usize>,
    carrying: Vec<Transfer>,
    /// Durable, and what is in them.
    checkpoints: BTreeMap<CheckpointId, u64>,
    /// What the files of each session hold, wherever they are.
    written: BTreeMap<SessionId, u64>,
}

fn name(worker: usize) -> Arc<str> {
    format!("w{worker}").into()
}

impl World {
    pub fn new(model: &Model) -> Self {
        let now = Now { mono_ms: 0, wall_ms: model.wall_ms };
        Self {
            cluster: Cluster::new(now, 1, Timing::default()),
            epoch: 1,
            now,
            next_session: 1,
            hosts: (0..WORKERS).map(|_| Host { incarnation: 1, ..Host::default() }).collect(),
            tasks: BTreeMap::new(),
            bodies: BTreeMap::new(),
            sessions: BTreeMap::new(),
            workers: BTreeMap::new(),
            states: BTreeMap::new(),
            starts: BTreeMap::new(),
            since_ms: BTreeMap::new(),
            ended: BTreeMap::new(),
            ticked_ms: now.wall_ms,
            creating: BTreeMap::new(),
            carrying: Vec::new(),
            checkpoints: BTreeMap::new(),
            written: BTreeMap::new(),
        }
    }

    pub fn body(&self, id: TaskId) -> &Body {
        &self.bodies[&id]
    }

    /// Records and performs, as the coordinator does.
    fn take(&mut self, model: &Model, out: Out) {
        for change in out.changes {
            match change.aggregate {
                Aggregate::Task => {
                    let id = change.id.parse().expect("an id");
                    self.follow(model, id, &change);
                    record(&mut self.tasks, id, change);
                }
                Aggregate::Session => record(&mut self.sessions, change.id.clone(), change),
                Aggregate::Worker => record(&mut self.workers, change.id.clone(), change),
                other => panic!("{other:?} is not the cluster's"),
            }
        }
        for effect in &out.effects {
            match effect {
                Effect::Send { worker, attach, message } => {
                    if let Message::Assign { task, .. } = message {
                        self.judge_assign(model, *task, worker);
                    }
                    if let Message::SessionGrant { session, .. } = message
                        && let Some(wanted) = self.creating.get(session)
                    {
                        assert!(self.has(worker, &labels(*wanted)), "{session} went to {worker}");
                    }
                    let mut hosts = self.hosts.iter_mut().enumerate();
                    if let Some((_, host)) = hosts.find(|(i, _)| name(*i) == *worker)
                        && host.attach == Some(*attach)
                    {
                        host.inbox.push_back(message.clone());
                    }
                }
                Effect::TaskEnded(ended) => {
                    let before = self.ended.insert(ended.task, ended.end);
                    assert!(before.is_none(), "I3: {} ended twice", ended.task);
                    self.judge_end(model, ended.task);
                }
                Effect::Close { worker, attach } => {
                    for (i, host) in self.hosts.iter_mut().enumerate() {
                        if name(i) == *worker && host.attach == Some(*attach) {
                            host.attach = None;
                            host.inbox.clear();
                        }
                    }
                }
                Effect::Restarted { .. }
                | Effect::SessionChanged { .. }
                | Effect::CapacityChanged
                | Effect::TransfersDue
                | Effect::EvictionsBraked { .. } => {}
            }
        }
    }

    /// Every transition is one that the design has, and says so in an event.
    fn follow(&mut self, model: &Model, id: TaskId, change: &Change) {
        for event in &change.events {
            let before = self.states.get(&id).copied();
            let held = matches!(before, Some("assigned" | "running"));
            let live = held || before == Some("queued");
            let (next, allowed) = match event.kind.as_str() {
                "task.queued" => ("queued", before.is_none() || held),
                "task.assigned" => ("assigned", before == Some("queued")),
                "task.running" => ("running", before == Some("assigned")),
                "task.requeued" => ("queued", before == Some("dead_letter")),
                "task.deadline_passed" => (before.unwrap_or_default(), held),
                "task.succeeded" => ("succeeded", held),
                "task.failed" => ("failed", held),
                "task.lost" => ("lost", held),
                "task.dead_letter" => ("dead_letter", held),
                "task.timed_out" => ("timed_out", live),
                "task.cancelled" => ("cancelled", live),
                other => panic!("{other} is no event of a task"),
            };
            assert!(allowed, "{id}: {} after {before:?}", event.kind);
            if event.kind == "task.requeued" {
                self.ended.remove(&id);
                self.starts.remove(&id);
                self.since_ms.insert(id, self.now.wall_ms);
            }
            self.states.insert(id, next);
        }
        assert_eq!(self.states.get(&id).copied(), Some(change.row.state.as_str()), "{id}: an event each");
        let body: Body = serde_json::from_str(&change.row.body).expect("a body");
        let assigned = change.events.iter().any(|event| event.kind == "task.assigned");
        let not_before = self.bodies.get(&id).map_or(0, Body::not_before_ms);
        assert!(!assigned || not_before <= self.now.wall_ms, "{id} was handed out before its time");
        let used = body.attempts_used() as usize;
        let most = model.terms(id).starts_max();
        assert!(used <= most, "{id}: {used} of {most} attempts");
        let dead = body.state == State::Ended(End::DeadLetter);
        assert!(!dead || used == most, "{id}: given up after {used} of {most} attempts");
        self.bodies.insert(id, body);
    }

    /// The drain of a worker, as its row has it.
    fn drain(&self, worker: &str) -> Option<Drain> {
        let body: worker::Body = serde_json::from_str(&self.workers.get(worker)?.row.body).expect("a body");
        body.drain
    }

    fn has(&self, worker: &str, wanted: &BTreeMap<String, String>) -> bool {
        let index: usize = worker.trim_start_matches('w').parse().expect("a worker of ours");
        let has = labels(index);
        wanted.iter().all(|(name, value)| has.get(name) == Some(value))
    }

    /// Tasks in line for their turn, as the rows have it: queued, and not waiting for their time.
    fn in_line(&self) -> impl Iterator<Item = (TaskId, &Body)> {
        let queued = self.bodies.iter().filter(|(_, body)| body.state == State::Queued);
        queued.map(|(id, body)| (*id, body)).filter(|(_, body)| body.not_before_ms() <= self.ticked_ms)
    }

    /// Whoever is handed out may be, and nobody who should have come first is left in line.
    fn judge_assign(&self, model: &Model, id: TaskId, worker: &str) {
        let (terms, row) = (model.terms(id), &self.tasks[&id].row);
        assert!(self.has(worker, &terms.scheduling.worker_labels), "{id} went to {worker}");
        let mine = self.body(id);
        if let Some(drain) = self.drain(worker) {
            let bound = mine.session.is_some() || mine.kind == Kind::Step;
            assert!(bound, "{id} went to {worker}, which is being emptied");
            assert!(drain.drained_ms == 0, "{id} went to {worker}, which is empty");
        }
        for (other, body) in self.in_line() {
            if model.place(other) > model.place(id) || body.session != mine.session {
                continue;
            }
            // What a person puts back into the queue begins at its end, and has its old place again after a restart.
            if body.scheduling.as_ref().is_some_and(|scheduling| scheduling.requeued_ms > 0) {
                continue;
            }
            let passed_over = match (body.session, body.kind) {
                // One that needs the interpreter lets others pass.
                (Some(_), kind) => {
                    kind != Kind::Python
                        || !self.bodies.values().any(|body| {
                            matches!(body.state, State::Assigned | State::Running)
                                && body.kind == Kind::Python
                                && body.session == mine.session
                        })
                }
                (None, Kind::Step) => mine.kind == Kind::Step && body.worker == mine.worker,
                (None, _) => {
                    mine.kind != Kind::Step && self.has(worker, &model.terms(other).scheduling.worker_labels)
                }
            };
            assert!(!passed_over, "{other} should have gone before {id} to {worker} ({})", row.body);
        }
    }

    fn judge_end(&self, model: &Model, id: TaskId) {
        let (terms, body) = (model.terms(id), self.body(id));
        match body.state {
            State::Ended(End::TimedOut) => {
                let Some(reason) = &body.reason else { return };
                let passed = self.now.wall_ms - self.since_ms[&id];
                let over = |ms: u64| ms > 0 && passed >= ms as i64;
                let why = reason.message.as_str();
                let true_ = if why.contains("schedule_to_start") {
                    over(terms.scheduling.schedule_to_start_ms)
                } else if why.contains("schedule_to_close") {
                    over(terms.scheduling.schedule_to_close_ms)
                } else {
                    why.contains("start_to_close") && passed >= TIMEOUT_MS as i64
                };
                assert!(true_, "{id}: {why}, after {passed} ms");
            }
            State::Ended(End::Lost) => {
                assert_eq!(terms.retried(), task_if_not_started(), "{id} may be rerun")
            }
            State::Ended(End::DeadLetter) => {
                assert_ne!(terms.retried(), task_if_not_started(), "{id} may not be rerun");
            }
            _ => {}
        }
    }

    /// No deadline is over for longer than a tick, and nobody waits for a time that has come.
    fn judge_tick(&self, model: &Model) {
        for (id, change) in &self.tasks {
            if change.row.ended {
                continue;
            }
            let (scheduling, body) = (&model.terms(*id).scheduling, self.body(*id));
            let passed = self.now.wall_ms - self.since_ms[id];
            let over = |ms: u64| ms > 0 && passed >= ms as i64;
            if body.state == State::Queued {
                assert!(!over(scheduling.schedule_to_close_ms), "{id} waits past schedule_to_close");
                let started = body.attempts_used() > 0;
                assert!(
                    started || !over(scheduling.schedule_to_start_ms),
                    "{id} waits past schedule_to_start"
                );
            } else if over(scheduling.schedule_to_close_ms) {
                assert!(body.passed().is_some(), "{id} is held past schedule_to_close and nobody was told");
            }
        }
    }

    pub fn step(&mut self, model: &Model, action: &Action) {
        match action {
            Action::CreateSession { labels } => self.create_session(model, *labels),
            Action::DestroySession(n) => {
                if let Some(id) = self.live_session(*n)
                    && let Ok(out) = self.cluster.destroy_session(self.now, id)
                {
                    self.take(model, out);
                }
            }
            Action::Submit(terms) => self.submit(model, terms),
            Action::Cancel(n) => {
                let id = Model::id(*n);
                if let Ok(out) = self.cluster.cancel(self.now, id) {
                    self.take(model, out);
                }
            }
            Action::Drain(w, ms) => {
                if let Ok(out) = self.cluster.drain(self.now, &name(*w), *ms, ms % 2 == 1, "an operator") {
                    self.take(model, out);
                }
            }
            Action::Undrain(w) => {
                if let Ok(out) = self.cluster.undrain(self.now, &name(*w)) {
                    self.take(model, out);
                }
            }
            Action::Save(n, destroy) => self.save(model, *n, *destroy),
            Action::Touch(n) => {
                if let Some(id) = self.live_session(*n)
                    && let Ok(out) = self.cluster.wake(self.now, id)
                {
                    self.take(model, out);
                }
            }
            Action::Carry => {
                let due = self.cluster.due_transfers(self.now);
                self.carrying.extend(due);
            }
            Action::Carried(n, well) => {
                if *n < self.carrying.len() {
                    let transfer = self.carrying.remove(*n);
                    self.carried(model, transfer, *well);
                }
            }
            Action::Requeue(n) => self.requeue(model, Model::id(*n)),
            Action::Deliver(w) => self.deliver(model, *w),
            Action::Say(w) => self.say(model, *w),
            Action::Start(w, n) => {
                let host = &mut self.hosts[*w];
                if let Some((id, fence)) = host.running.iter().nth(*n).map(|(id, fence)| (*id, *fence)) {
                    host.says.push_back(Says::Started(id, fence));
                }
            }
            Action::Finish(w, n, end) => {
                let host = &mut self.hosts[*w];
                if let Some((id, fence)) = host.running.iter().nth(*n).map(|(id, fence)| (*id, *fence)) {
                    host.running.remove(&id);
                    host.results.insert(id, (fence, *end));
                    host.says.push_back(Says::Result(id));
                }
            }
            Action::Grant(w) => {
                let host = &self.hosts[*w];
                if let Some(attach) = host.attach.filter(|_| !host.muted) {
                    let free = PLACES.saturating_sub(host.running.len() as u32);
                    let seen = host.seen;
                    let said = vec![Said::Credit { granted: free, seen }];
                    let out = self.cluster.hear(self.now, &name(*w), attach, said);
                    self.take(model, out);
                }
            }
            Action::Cut(w) => self.cut(model, *w),
            Action::Mute(w) => self.hosts[*w].muted = true,
            Action::Attach(w) => self.attach(model, *w),
            Action::HostDies(w) => {
                self.cut(model, *w);
                let host = &mut self.hosts[*w];
                host.incarnation += 1;
                host.running.clear();
                host.results.clear();
                host.says.clear();
            }
            Action::CoordinatorDies => self.restart(),
            Action::Pass(ms) => self.pass(model, *ms),
            Action::Stall(ms) => {
                self.now.mono_ms += ms;
                self.now.wall_ms += *ms as i64;
            }
        }
    }

    fn pass(&mut self, model: &Model, ms: u64) {
        let end = self.now.mono_ms + ms;
        while self.now.mono_ms < end {
            let step = 1_000.min(end - self.now.mono_ms);
            self.now.mono_ms += step;
            self.now.wall_ms += step as i64;
            for w in 0..WORKERS {
                if let Some(attach) = self.hosts[w].attach.filter(|_| !self.hosts[w].muted) {
                    let (current, out) = self.cluster.heartbeat(self.now, &name(w), attach);
                    self.take(model, out);
                    if !current {
                        self.hosts[w].attach = None;
                    }
                }
            }
            // What a stall left undone, the tick after the first one does.
            let lagged = self.cluster.is_due(self.now);
            let out = self.cluster.tick(self.now);
            // What comes due in this tick is in line from here on.
            let due = self.ticked_ms;
            if !self.cluster.is_due(self.now) {
                self.ticked_ms = self.now.wall_ms;
            }
            self.take(model, out);
            if self.ticked_ms > due {
                self.judge_tick(model);
            } else {
                assert!(lagged, "a tick leaves nothing that is due, unless it was late itself");
            }
        }
    }

    fn create_session(&mut self, model: &Model, wanted: usize) {
        self.next_session += 1;
        let id = SessionId::from_u128(self.next_session);
        let hibernate_after_ms = if wanted.is_multiple_of(2) { 5_000 } else { 0 };
        let create = session::Create { worker_labels: labels(wanted), hibernate_after_ms, ..create(id) };
        self.creating.insert(id, wanted);
        match self.cluster.create_session(self.now, create) {
            Ok(out) => {
                self.take(model, out);
                let worker = self.cluster.session(id).expect("it was created").body.worker.clone();
                assert!(self.drain(&worker).is_none(), "{id} went to {worker}, which is being emptied");
            }
            Err(refused) => {
                let room = (0..WORKERS).filter(|w| {
                    self.has(&name(*w), &labels(wanted))
                        && self.cluster.worker(&name(*w)).is_some_and(|w| w.free_sessions() > 0)
                });
                assert_eq!(room.count(), 0, "{refused}, and there was room");
            }
        }
    }

    fn save(&mut self, model: &Model, n: usize, destroy: bool) {
        let Some(id) = self.live_session(n) else { return };
        self.next_session += 1;
        let saving = session::Saving {
            checkpoint: CheckpointId::from_u128(self.next_session),
            purpose: if destroy { session::Purpose::Destroy } else { session::Purpose::Keep },
            name: String::new(),
            key: String::new(),
            give_up_at_ms: self.now.wall_ms + 30_000,
            globals: false,
        };
        if let Ok(out) = self.cluster.checkpoint(self.now, id, saving) {
            self.take(model, out);
        }
    }

    /// The end of a transfer, as who carries says it.
    fn carried(&mut self, model: &Model, transfer: Transfer, well: bool) {
        let Transfer { job, session: id, worker, what } = transfer;
        let Some(w) = (0..WORKERS).find(|w| name(*w) == worker) else { return };
        let host = &mut self.hosts[w];
        let reached = well && host.attach.is_some() && !host.muted;
        let wanted = self.cluster.wants_transfer(id, job);
        let out = match what {
            What::Pack { saving, .. } => match host.files.get(&id).copied().filter(|_| reached) {
                Some(content) if wanted => {
                    self.checkpoints.insert(saving.checkpoint, content);
                    self.cluster.packed(self.now, id, job)
                }
                _ => self.cluster.pack_failed(self.now, id, job, None),
            },
            What::Restore { checkpoint } => {
                let content = self.checkpoints[&checkpoint];
                if reached && wanted && host.restoring.remove(&id) {
                    assert_eq!(content, self.written[&id], "{id}: what was executed in it is lost");
                    host.files.insert(id, content);
                    host.says.push_back(Says::Ready(id, host.sessions[&id]));
                    self.cluster.restored(id, job);
                    return;
                }
                self.cluster.restore_failed(self.now, id, job, None)
            }
        };
        self.take(model, out);
    }

    fn live_session(&self, n: usize) -> Option<SessionId> {
        let live: Vec<_> = self.sessions.values().filter(|change| !change.row.ended).collect();
        live.get(n % live.len().max(1)).and_then(|change| change.id.parse().ok())
    }

    fn submit(&mut self, model: &Model, terms: &Terms) {
        let id = Model::id(model.tasks.len() - 1);
        let session = match terms.kind {
            Kind::Python | Kind::Shell | Kind::Install => match self.live_session(terms.target) {
                Some(id) => Some(id),
                None => return,
            },
            Kind::Noop | Kind::Step => None,
        };
        let submit = Submit {
            id,
            tenant: format!("t{}", terms.target % 2).into(),
            key: String::new(),
            kind: terms.kind,
            session,
            worker: (terms.kind == Kind::Step).then(|| name(terms.target % WORKERS)),
            timeout_ms: TIMEOUT_MS,
            output_limit_bytes: 1,
            priority: terms.priority,
            scheduling: Some(Box::new(terms.scheduling.clone())),
            spec: Arc::from([]),
        };
        if let Ok(out) = self.cluster.submit(self.now, submit, true) {
            self.since_ms.insert(id, self.now.wall_ms);
            self.take(model, out);
        }
    }

    fn requeue(&mut self, model: &Model, id: TaskId) {
        let Some(change) = self.tasks.get(&id) else { return };
        let task = Task::restore(self.now, id, change.expected + 1, change.row.clone()).expect("a task");
        let dead = task.body.state == State::Ended(End::DeadLetter);
        match self.cluster.requeue(self.now, task, "") {
            Ok(out) => {
                assert!(dead, "{id} was taken out of another end");
                self.take(model, out);
            }
            Err(refused) => assert!(!dead || model.terms(id).kind != Kind::Noop, "{refused}"),
        }
    }

    fn deliver(&mut self, model: &Model, w: usize) {
        let host = &mut self.hosts[w];
        let Some(message) = host.inbox.pop_front() else { return };
        match message {
            Message::Assign { task, fence, .. } => {
                host.seen += 1;
                host.running.insert(task, fence);
                if let Some(session) = self.bodies[&task].session
                    && let Some(files) = host.files.get_mut(&session)
                {
                    *files += 1;
                    self.written.insert(session, *files);
                }
                assert!(host.running.len() as u32 <= PLACES, "w{w} is overfilled");
                let starts = self.starts.entry(task).or_default();
                assert!(
                    starts.last().is_none_or(|last| *last < fence),
                    "I1: {task} was granted an older fence"
                );
                starts.insert(fence);
                let most = model.terms(task).starts_max();
                assert!(
                    starts.len() <= most,
                    "I3: {task} was started {} times, allowed {most}",
                    starts.len()
                );
            }
            Message::Cancel { task, fence } => {
                if host.running.get(&task) == Some(&fence) {
                    host.running.remove(&task);
                    host.results.insert(task, (fence, End::Cancelled));
                    host.says.push_back(Says::Result(task));
                }
            }
            Message::ResultAck { task, fence, .. } => {
                if host.results.get(&task).is_some_and(|(held, _)| *held == fence) {
                    host.results.remove(&task);
                }
            }
            Message::SessionGrant { session, fence, restore, .. } => {
                let new = host.sessions.insert(session, fence).is_none();
                if restore && new {
                    host.restoring.insert(session);
                }
                if !host.restoring.contains(&session) {
                    host.files.entry(session).or_insert(0);
                    self.written.entry(session).or_insert(0);
                    host.says.push_back(Says::Ready(session, fence));
                }
            }
            Message::SessionEnd { session, fence } => {
                if host.sessions.get(&session).is_none_or(|held| *held <= fence) {
                    host.forget(session);
                    host.says.push_back(Says::Destroyed(session, fence));
                }
            }
            Message::Drain { .. } => {}
        }
    }

    fn say(&mut self, model: &Model, w: usize) {
        let host = &mut self.hosts[w];
        let Some(attach) = host.attach.filter(|_| !host.muted) else { return };
        let Some(says) = host.says.pop_front() else { return };
        let id = name(w);
        let out = match says {
            Says::Ready(session, fence) => {
                let update = Update::Ready {
                    python_version: String::new(),
                    facilities: vec![],
                    globals: String::new(),
                };
                self.cluster.session_update(self.now, &id, attach, session, fence, update)
            }
            Says::Destroyed(session, fence) => {
                self.cluster.session_update(self.now, &id, attach, session, fence, Update::Destroyed)
            }
            first @ (Says::Started(..) | Says::Result(_)) => {
                // Sometimes several arrive together.
                let together = host.says.len() % 3;
                let mut said: Vec<Said> = host.said(first).into_iter().collect();
                while said.len() < together
                    && let Some(Says::Started(..) | Says::Result(_)) = host.says.front()
                    && let Some(next) = host.says.pop_front()
                {
                    said.extend(host.said(next));
                }
                self.cluster.hear(self.now, &id, attach, said)
            }
        };
        self.take(model, out);
    }

    fn cut(&mut self, model: &Model, w: usize) {
        let host = &mut self.hosts[w];
        host.muted = false;
        host.inbox.clear();
        host.says.clear();
        if let Some(attach) = host.attach.take() {
            let out = self.cluster.detach(self.now, &name(w), attach, false);
            self.take(model, out);
        }
    }

    fn attach(&mut self, model: &Model, w: usize) {
        let host = &mut self.hosts[w];
        if host.attach.is_some() && !host.muted {
            return;
        }
        host.muted = false;
        let item = |pending: bool| {
            move |(task, fence): (&TaskId, &Fence)| AttemptItem {
                task: *task,
                fence: *fence,
                result_pending: pending,
            }
        };
        let results: BTreeMap<TaskId, Fence> =
            host.results.iter().map(|(task, (fence, _))| (*task, *fence)).collect();
        let hello = Hello {
            worker: name(w),
            tenant: "t".into(),
            protocol: 2,
            body: worker::Body { incarnation: host.incarnation, labels: labels(w), ..worker_body() },
            sessions: host
                .sessions
                .iter()
                .map(|(session, fence)| SessionItem {
                    session: *session,
                    fence: *fence,
                    interpreter_restarted: false,
                    sealed: false,
                })
                .collect(),
            attempts: host.running.iter().map(item(false)).chain(results.iter().map(item(true))).collect(),
        };
        let (welcome, out) = self.cluster.attach(self.now, hello).expect("nobody else has this id");
        let host = &mut self.hosts[w];
        host.attach = Some(welcome.attach);
        host.seen = 0;
        host.inbox.clear();
        host.says.clear();
        for verdict in welcome.attempts {
            match verdict.verdict {
                Verdict::Keep => {}
                Verdict::ResendResult => host.says.push_back(Says::Result(verdict.task)),
                Verdict::Cancel | Verdict::Forget => {
                    host.running.remove(&verdict.task);
                    host.results.remove(&verdict.task);
                }
            }
        }
        for verdict in welcome.sessions {
            match verdict.verdict {
                Verdict::Keep if host.restoring.contains(&verdict.session) => {}
                Verdict::Keep => {
                    // The link says again what may have been lost with the cut.
                    let fence = host.sessions[&verdict.session];
                    host.says.push_back(Says::Ready(verdict.session, fence));
                }
                _ => host.forget(verdict.session),
            }
        }
        self.take(model, out);
    }

    /// kill -9 of the coordinator: what was recorded is all there is, and its clock begins anew.
    fn restart(&mut self) {
        for host in &mut self.hosts {
            host.attach = None;
            host.muted = false;
            host.inbox.clear();
            host.says.clear();
        }
        self.carrying.clear();
        self.epoch += 1;
        self.now.mono_ms = 77;
        self.ticked_ms = self.now.wall_ms;
        let now = self.now;
        let workers = self.workers.values().map(|change| {
            Worker::restore(now, &change.id, change.expected + 1, change.row.clone())
                .expect("a stored worker")
        });
        let live = |change: &&Change| !change.row.ended;
        let sessions = self.sessions.values().filter(live).map(|change| {
            let id = change.id.parse().expect("an id");
            Session::restore(self.now, id, change.expected + 1, change.row.clone()).expect("a stored session")
        });
        let tasks = self.tasks.values().filter(live).map(|change| {
            let id = change.id.parse().expect("an id");
            Task::restore(now, id, change.expected + 1, change.row.clone()).expect("a stored task")
        });
        self.cluster = Cluster::restore(
            now,
            self.epoch,
            Timing::default(),
            workers.collect(),
            sessions.collect(),
            tasks.collect(),
        );
    }

    /// Everybody comes back and works until nothing is left to do but what nobody can do.
    pub fn settle(&mut self, model: &Model) {
        for _ in 0..60 {
            for w in 0..WORKERS {
                self.attach(model, w);
                self.step(model, &Action::Undrain(w));
                self.step(model, &Action::Grant(w));
                while !self.hosts[w].inbox.is_empty() {
                    self.step(model, &Action::Deliver(w));
                }
                self.step(model, &Action::Carry);
                while !self.carrying.is_empty() {
                    self.step(model, &Action::Carried(0, true));
                }
                while !self.hosts[w].running.is_empty() {
                    self.step(model, &Action::Finish(w, 0, End::Failed));
                }
                while !self.hosts[w].says.is_empty() {
                    self.step(model, &Action::Say(w));
                }
            }
            if self.left(model).is_empty() {
                return;
            }
            // Retries are due, at the latest.
            self.step(model, &Action::Pass(60_000));
        }
        panic!("never ended: {:?}", self.left(model));
    }

    /// Live tasks that some worker could do.
    fn left(&self, model: &Model) -> Vec<(TaskId, &Body)> {
        let somewhere = |id: &TaskId| {
            (0..WORKERS).any(|w| self.has(&name(w), &model.terms(*id).scheduling.worker_labels))
        };
        // One that is saved may wait for room for ever: all of it can be taken by sessions that stay.
        let saved = |id: &TaskId| {
            let session = self.body(*id).session.and_then(|session| self.cluster.session(session));
            session.is_some_and(Session::is_saved)
        };
        let live = self.tasks.iter().filter(|(id, change)| !change.row.ended && somewhere(id) && !saved(id));
        live.map(|(id, _)| (*id, self.body(*id))).collect()
    }

    /// What must hold between any two inputs.
    pub fn check(&self, model: &Model) {
        if let Some(broken) = self.cluster.violation() {
            panic!("{broken}");
        }
        // I1: of a session there is one owner, and between two of them its checkpoint is there.
        for session in self.cluster.sessions() {
            let (id, fence) = (session.id, session.body.fence);
            let owners = self.hosts.iter().filter(|host| host.sessions.get(&id) == Some(&fence)).count();
            assert!(owners <= 1, "I1: {id} has {owners} owners");
            let checkpoint = session.body.restore.as_ref().map(|restore| restore.checkpoint);
            assert!(
                checkpoint.is_none_or(|checkpoint| self.checkpoints.contains_key(&checkpoint)),
                "I2: {id} is to be restored from what is not durable"
            );
        }
        for (id, change) in &self.tasks {
            let why = self.cluster.explain(self.now, *id);
            assert_eq!(why.is_none(), change.row.ended, "{id}: {why:?}");
            // I1: of what may not run twice, one attempt runs, wherever anybody looks.
            let running = self.hosts.iter().filter(|host| host.running.contains_key(id)).count();
            assert!(running <= model.terms(*id).starts_max(), "I1: {id} runs {running} times");
            let fence = self.body(*id).fence;
            let current = self.hosts.iter().filter(|host| host.running.get(id) == Some(&fence)).count();
            assert!(current <= 1, "I1: {id} has {current} live attempts");
        }
    }
}

fn record<K: Ord>(rows: &mut BTreeMap<K, Change>, id: K, mut change: Change) {
    let before = rows.get(&id);
    assert_eq!(
        before.map_or(0, |before| before.expected + 1),
        change.expected,
        "{}: decided on the version before",
        change.id
    );
    let requeued = change.events.iter().any(|event| event.kind == "task.requeued");
    assert!(before.is_none_or(|b| !b.row.ended || requeued), "{}: a terminal state absorbs", change.id);
    if let Some(before) = before {
        change.row.spec = change.row.spec.or(before.row.spec.clone());
    }
    rows.insert(id, change);
}

fn task_if_not_started() -> cooper_core::retry::When {
    task::Kind::Python.retried()
}

pub fn create(id: SessionId) -> session::Create {
    session::Create {
        id,
        tenant: "t".into(),
        key: String::new(),
        name: String::new(),
        exec_timeout_ms: 1,
        output_limit_bytes: 1,
        worker_labels: BTreeMap::new(),
        ttl_ms: 0,
        idle_timeout_ms: 0,
        hibernate_after_ms: 0,
        restore: None,
        python: String::new(),
        spare: None,
        secrets: false,
        injects: false,
        share: session::Share::default(),
        spec: Arc::from([]),
    }
}

fn worker_body() -> worker::Body {
    worker::Body {
        state: worker::State::Ready,
        incarnation: 1,
        version: String::new(),
        capabilities: ["python", "checkpoint", "hibernate"].map(str::to_owned).into(),
        labels: BTreeMap::new(),
        sessions_max: 2,
        tasks_max: PLACES,
        stacks: vec![],
        hostname: "h".into(),
        boot_id: "b".into(),
        python_version: String::new(),
        python_versions: vec![],
        tier: "T1".into(),
        sessions_refused: None,
        drain: None,
        refused: None,
    }
}
