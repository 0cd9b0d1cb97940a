//! A model of real workers around the cluster: messages are delayed, cut and repeated; hosts and coordinators die. After
//! every step the invariants hold, and what the workers know agrees with what was promised.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use cooper_common::ids::{SessionId, TaskId};
use cooper_core::{
    Now,
    cluster::{AttemptItem, Cluster, Effect, Hello, Message, Out, SessionItem, Update, Verdict},
    lease::{Fence, Timing},
    session::{self, Session},
    task::{self, End, Kind, Submit, Task},
    worker::{self, Body, Worker},
};
use proptest::prelude::*;

const WORKERS: usize = 3;
const PLACES: u32 = 3;

#[derive(Debug, Clone)]
enum Action {
    CreateSession,
    DestroySession(usize),
    Submit {
        kind: u8,
        target: usize,
    },
    Cancel(usize),
    /// The worker takes the oldest message of its stream.
    Deliver(usize),
    /// The worker sends the oldest of what it has to say.
    Say(usize),
    /// An attempt on the worker ends.
    Finish(usize, usize),
    Grant(usize),
    Cut(usize),
    Attach(usize),
    HostDies(usize),
    CoordinatorDies,
    Pass(u64),
}

fn action() -> impl Strategy<Value = Action> {
    let worker = 0..WORKERS;
    prop_oneof![
        2 => Just(Action::CreateSession),
        1 => (0usize..8).prop_map(Action::DestroySession),
        8 => (0u8..4, 0usize..8).prop_map(|(kind, target)| Action::Submit { kind, target }),
        1 => (0usize..64).prop_map(Action::Cancel),
        14 => worker.clone().prop_map(Action::Deliver),
        8 => worker.clone().prop_map(Action::Say),
        8 => (worker.clone(), 0usize..8).prop_map(|(w, i)| Action::Finish(w, i)),
        6 => worker.clone().prop_map(Action::Grant),
        1 => worker.clone().prop_map(Action::Cut),
        4 => worker.clone().prop_map(Action::Attach),
        1 => worker.prop_map(Action::HostDies),
        1 => Just(Action::CoordinatorDies),
        2 => (0u64..40_000).prop_map(Action::Pass),
    ]
}

/// What a real worker holds.
#[derive(Default)]
struct Host {
    incarnation: u64,
    attach: Option<u64>,
    seen: u64,
    inbox: VecDeque<Message>,
    sessions: BTreeMap<SessionId, Fence>,
    running: BTreeMap<TaskId, Fence>,
    /// Results that were not acked.
    results: BTreeMap<TaskId, Fence>,
    says: VecDeque<Says>,
}

enum Says {
    Ready(SessionId, Fence),
    Destroyed(SessionId, Fence),
    Result(TaskId, Fence),
}

struct World {
    cluster: Cluster,
    epoch: u64,
    now: Now,
    next: u128,
    hosts: Vec<Host>,
    /// What the store holds, by id.
    tasks: BTreeMap<String, cooper_core::change::Change>,
    sessions: BTreeMap<String, cooper_core::change::Change>,
    workers: BTreeMap<String, cooper_core::change::Change>,
    /// Fence of the newest start of an attempt anywhere, and every start of code that must not run twice.
    started: BTreeMap<TaskId, BTreeSet<Fence>>,
    kinds: BTreeMap<TaskId, Kind>,
    ended: BTreeMap<TaskId, End>,
}

fn name(worker: usize) -> Arc<str> {
    format!("w{worker}").into()
}

impl World {
    fn new() -> Self {
        let now = Now { mono_ms: 0, wall_ms: 0 };
        Self {
            cluster: Cluster::new(now, 1, Timing::default()),
            epoch: 1,
            now,
            next: 1,
            hosts: (0..WORKERS).map(|_| Host { incarnation: 1, ..Host::default() }).collect(),
            tasks: BTreeMap::new(),
            sessions: BTreeMap::new(),
            workers: BTreeMap::new(),
            started: BTreeMap::new(),
            kinds: BTreeMap::new(),
            ended: BTreeMap::new(),
        }
    }

    fn id(&mut self) -> u128 {
        self.next += 1;
        self.next
    }

    /// Records and performs, as the coordinator does.
    fn take(&mut self, out: Out) {
        for change in out.changes {
            use cooper_core::change::Aggregate;
            let rows = match change.aggregate {
                Aggregate::Task => &mut self.tasks,
                Aggregate::Session => &mut self.sessions,
                Aggregate::Worker => &mut self.workers,
                other => panic!("{other:?} is not the cluster's"),
            };
            let before = rows.get(&change.id);
            assert_eq!(
                before.map_or(0, |before| before.expected + 1),
                change.expected,
                "{}: decided on the version before",
                change.id
            );
            assert!(before.is_none_or(|before| !before.row.ended), "{}: a terminal state absorbs", change.id);
            let mut change = change;
            if let Some(before) = before {
                change.row.spec = change.row.spec.or(before.row.spec.clone());
            }
            rows.insert(change.id.clone(), change);
        }
        for effect in out.effects {
            match effect {
                Effect::Send { worker, attach, message } => {
                    let mut hosts = self.hosts.iter_mut().enumerate();
                    if let Some((_, host)) = hosts.find(|(i, _)| name(*i) == worker)
                        && host.attach == Some(attach)
                    {
                        host.inbox.push_back(message);
                    }
                }
                Effect::TaskEnded(ended) => {
                    let before = self.ended.insert(ended.task, ended.end);
                    assert!(before.is_none(), "I3: {} ended twice", ended.task);
                }
                Effect::Close { worker, attach } => {
                    for (i, host) in self.hosts.iter_mut().enumerate() {
                        if name(i) == worker && host.attach == Some(attach) {
                            host.attach = None;
                            host.inbox.clear();
                        }
                    }
                }
                Effect::Restarted { .. } | Effect::SessionChanged { .. } | Effect::CapacityChanged => {}
            }
        }
    }

    fn step(&mut self, action: Action) {
        match action {
            Action::CreateSession => {
                let create = session::Create {
                    id: SessionId::from_u128(self.id()),
                    tenant: "t".into(),
                    key: String::new(),
                    name: String::new(),
                    exec_timeout_ms: 1,
                    output_limit_bytes: 1,
                    worker_labels: BTreeMap::new(),
                    spec: Arc::from([]),
                };
                if let Ok(out) = self.cluster.create_session(self.now, create) {
                    self.take(out);
                }
            }
            Action::DestroySession(n) => {
                if let Some(id) = self.live_session(n)
                    && let Ok(out) = self.cluster.destroy_session(self.now, id)
                {
                    self.take(out);
                }
            }
            Action::Submit { kind, target } => self.submit(kind, target),
            Action::Cancel(n) => {
                let live: Vec<TaskId> =
                    self.kinds.keys().filter(|id| !self.ended.contains_key(id)).copied().collect();
                if let Some(id) = live.get(n % live.len().max(1))
                    && let Ok(out) = self.cluster.cancel(self.now, *id)
                {
                    self.take(out);
                }
            }
            Action::Deliver(w) => self.deliver(w),
            Action::Say(w) => self.say(w),
            Action::Finish(w, n) => {
                let host = &mut self.hosts[w];
                if let Some((id, fence)) = host.running.iter().nth(n).map(|(id, fence)| (*id, *fence)) {
                    host.running.remove(&id);
                    host.results.insert(id, fence);
                    host.says.push_back(Says::Result(id, fence));
                }
            }
            Action::Grant(w) => {
                let host = &self.hosts[w];
                if let Some(attach) = host.attach {
                    let free = PLACES.saturating_sub(host.running.len() as u32);
                    let seen = host.seen;
                    let out = self.cluster.credit(self.now, &name(w), attach, free, seen);
                    self.take(out);
                }
            }
            Action::Cut(w) => self.cut(w),
            Action::Attach(w) => self.attach(w),
            Action::HostDies(w) => {
                self.cut(w);
                let host = &mut self.hosts[w];
                host.incarnation += 1;
                host.running.clear();
                host.results.clear();
                host.says.clear();
            }
            Action::CoordinatorDies => self.restart(),
            Action::Pass(ms) => {
                let end = self.now.mono_ms + ms;
                while self.now.mono_ms < end {
                    self.now.mono_ms += 1_000.min(end - self.now.mono_ms);
                    for w in 0..WORKERS {
                        if let Some(attach) = self.hosts[w].attach {
                            let (current, out) = self.cluster.heartbeat(self.now, &name(w), attach);
                            self.take(out);
                            if !current {
                                self.hosts[w].attach = None;
                            }
                        }
                    }
                    let out = self.cluster.tick(self.now);
                    self.take(out);
                }
            }
        }
        if let Some(broken) = self.cluster.violation() {
            panic!("{broken}");
        }
    }

    fn live_session(&self, n: usize) -> Option<SessionId> {
        let live: Vec<_> = self.sessions.values().filter(|change| !change.row.ended).collect();
        live.get(n % live.len().max(1)).and_then(|change| change.id.parse().ok())
    }

    fn submit(&mut self, kind: u8, target: usize) {
        let kind = [Kind::Noop, Kind::Python, Kind::Shell, Kind::Step][usize::from(kind)];
        let session = match kind {
            Kind::Python | Kind::Shell => match self.live_session(target) {
                Some(id) => Some(id),
                None => return,
            },
            Kind::Noop | Kind::Step | Kind::Install => None,
        };
        let id = TaskId::from_u128(self.id());
        let submit = Submit {
            id,
            tenant: "t".into(),
            key: String::new(),
            kind,
            session,
            worker: (kind == Kind::Step).then(|| name(target % WORKERS)),
            timeout_ms: 3_600_000,
            output_limit_bytes: 1,
            priority: 0,
            scheduling: None,
            spec: Arc::from([]),
        };
        if let Ok(out) = self.cluster.submit(self.now, submit, true) {
            self.kinds.insert(id, kind);
            self.take(out);
        }
    }

    fn deliver(&mut self, w: usize) {
        let host = &mut self.hosts[w];
        let Some(message) = host.inbox.pop_front() else { return };
        match message {
            Message::Assign { task, fence, .. } => {
                host.seen += 1;
                host.running.insert(task, fence);
                assert!(host.running.len() as u32 <= PLACES, "w{w} is overfilled");
                let starts = self.started.entry(task).or_default();
                assert!(
                    starts.last().is_none_or(|last| *last < fence),
                    "I1: {task} was granted an older fence"
                );
                starts.insert(fence);
                let kind = self.kinds[&task];
                assert!(
                    kind.rerunnable() || starts.len() == 1,
                    "I3: {task}, which must not run twice, was started {} times",
                    starts.len()
                );
            }
            Message::Cancel { task, fence } => {
                if host.running.get(&task) == Some(&fence) {
                    host.running.remove(&task);
                    host.results.insert(task, fence);
                    host.says.push_back(Says::Result(task, fence));
                }
            }
            Message::ResultAck { task, fence, .. } => {
                if host.results.get(&task) == Some(&fence) {
                    host.results.remove(&task);
                }
            }
            Message::SessionGrant { session, fence, .. } => {
                host.sessions.insert(session, fence);
                host.says.push_back(Says::Ready(session, fence));
            }
            Message::SessionEnd { session, fence } => {
                host.sessions.remove(&session);
                host.says.push_back(Says::Destroyed(session, fence));
            }
        }
    }

    fn say(&mut self, w: usize) {
        let host = &mut self.hosts[w];
        let Some(attach) = host.attach else { return };
        let Some(says) = host.says.pop_front() else { return };
        let id = name(w);
        let out = match says {
            Says::Ready(session, fence) => {
                let update = Update::Ready { python_version: String::new(), facilities: vec![] };
                self.cluster.session_update(self.now, &id, attach, session, fence, update)
            }
            Says::Destroyed(session, fence) => {
                self.cluster.session_update(self.now, &id, attach, session, fence, Update::Destroyed)
            }
            Says::Result(task, fence) => {
                self.cluster.result(self.now, &id, attach, task, fence, End::Succeeded, vec![], vec![])
            }
        };
        self.take(out);
    }

    fn cut(&mut self, w: usize) {
        let host = &mut self.hosts[w];
        host.inbox.clear();
        host.says.retain(|says| matches!(says, Says::Result(..)));
        if let Some(attach) = host.attach.take() {
            let out = self.cluster.detach(self.now, &name(w), attach, false);
            self.take(out);
        }
    }

    fn attach(&mut self, w: usize) {
        let host = &self.hosts[w];
        if host.attach.is_some() {
            return;
        }
        let item = |pending: bool| {
            move |(task, fence): (&TaskId, &Fence)| AttemptItem {
                task: *task,
                fence: *fence,
                result_pending: pending,
            }
        };
        let hello = Hello {
            worker: name(w),
            tenant: "t".into(),
            body: Body {
                state: worker::State::Ready,
                incarnation: host.incarnation,
                version: String::new(),
                capabilities: ["python".to_owned()].into(),
                labels: BTreeMap::new(),
                sessions_max: 2,
                tasks_max: PLACES,
                stacks: vec![],
                hostname: "h".into(),
                boot_id: "b".into(),
                python_version: String::new(),
            },
            sessions: host
                .sessions
                .iter()
                .map(|(session, fence)| SessionItem {
                    session: *session,
                    fence: *fence,
                    interpreter_restarted: false,
                })
                .collect(),
            attempts: host
                .running
                .iter()
                .map(item(false))
                .chain(host.results.iter().map(item(true)))
                .collect(),
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
                Verdict::ResendResult => host.says.push_back(Says::Result(verdict.task, verdict.fence)),
                Verdict::Cancel | Verdict::Forget => {
                    host.running.remove(&verdict.task);
                    host.results.remove(&verdict.task);
                }
            }
        }
        for verdict in welcome.sessions {
            match verdict.verdict {
                Verdict::Keep => {
                    // The link says again what may have been lost with the cut.
                    let fence = host.sessions[&verdict.session];
                    host.says.push_back(Says::Ready(verdict.session, fence));
                }
                _ => {
                    host.sessions.remove(&verdict.session);
                }
            }
        }
        self.take(out);
    }

    /// kill -9 of the coordinator: what was recorded is all there is.
    fn restart(&mut self) {
        for host in &mut self.hosts {
            host.attach = None;
            host.inbox.clear();
            host.says.retain(|says| matches!(says, Says::Result(..)));
        }
        self.epoch += 1;
        let workers = self.workers.values().map(|change| {
            Worker::restore(self.now, &change.id, change.expected + 1, change.row.clone())
                .expect("a stored worker")
        });
        let live = |change: &&cooper_core::change::Change| !change.row.ended;
        let sessions = self.sessions.values().filter(live).map(|change| {
            let id = change.id.parse().expect("an id");
            Session::restore(id, change.expected + 1, change.row.clone()).expect("a stored session")
        });
        let tasks = self.tasks.values().filter(live).map(|change| {
            let id = change.id.parse().expect("an id");
            Task::restore(self.now, id, change.expected + 1, change.row.clone()).expect("a stored task")
        });
        self.cluster = Cluster::restore(
            self.now,
            self.epoch,
            Timing::default(),
            workers.collect(),
            sessions.collect(),
            tasks.collect(),
        );
    }

    /// Everybody comes back and works until nothing is left to do.
    fn settle(&mut self) {
        for _ in 0..200 {
            // Retries are due, at the latest.
            self.step(Action::Pass(60_000));
            for w in 0..WORKERS {
                self.attach(w);
                self.step(Action::Grant(w));
                while !self.hosts[w].inbox.is_empty() {
                    self.step(Action::Deliver(w));
                }
                while !self.hosts[w].running.is_empty() {
                    self.step(Action::Finish(w, 0));
                }
                while !self.hosts[w].says.is_empty() {
                    self.step(Action::Say(w));
                }
            }
            if self.cluster.counts().tasks_held + self.cluster.counts().tasks_queued == 0 {
                return;
            }
        }
    }
}

proptest! {
    // 128 cases of up to 400 steps: far beyond 10,000 transitions in a run.
    #![proptest_config(ProptestConfig { cases: 128, max_shrink_iters: 4_000, ..ProptestConfig::default() })]

    /// I1, I3: whatever is cut, delayed or killed, every task ends exactly once, code of users is never started twice, and
    /// no worker is overfilled.
    #[test]
    fn every_task_ends_exactly_once_whatever_happens(actions in prop::collection::vec(action(), 1..400)) {
        let mut world = World::new();
        for action in actions {
            world.step(action);
        }
        world.settle();
        for id in world.kinds.keys() {
            prop_assert!(world.ended.contains_key(id), "{id} ({:?}) never ended: {:?}", world.kinds[id], world.tasks[&id.to_string()].row);
        }
    }
}

#[test]
fn a_result_under_an_old_fence_changes_nothing_and_is_acked_as_stale() {
    let mut world = World::new();
    world.step(Action::Attach(0));
    world.step(Action::Grant(0));
    world.step(Action::Submit { kind: 0, target: 0 });
    let Some(Message::Assign { task, fence, .. }) = world.hosts[0].inbox.front().cloned() else {
        panic!("the task was not handed out")
    };
    let old = Fence { epoch: fence.epoch, attempt: fence.attempt - 1 };
    let attach = world.hosts[0].attach.expect("attached");
    let out = world.cluster.result(world.now, "w0", attach, task, old, End::Failed, vec![], vec![]);
    assert!(out.changes.is_empty());
    assert!(matches!(
        out.effects.as_slice(),
        [Effect::Send { message: Message::ResultAck { stale: true, .. }, .. }]
    ));
    assert!(world.cluster.task(task).is_some_and(|task| task.body.state == task::State::Assigned));
}

#[test]
fn two_workers_share_sessions_by_free_capacity_and_a_full_cluster_refuses() {
    let mut world = World::new();
    for w in 0..2 {
        world.step(Action::Attach(w));
    }
    for _ in 0..4 {
        world.step(Action::CreateSession);
    }
    let on = |w: &str| world.cluster.worker(w).map(|worker| worker.sessions.len());
    assert_eq!((on("w0"), on("w1")), (Some(2), Some(2)));
    let create = session::Create {
        id: SessionId::from_u128(1),
        tenant: "t".into(),
        key: String::new(),
        name: String::new(),
        exec_timeout_ms: 1,
        output_limit_bytes: 1,
        worker_labels: BTreeMap::new(),
        spec: Arc::from([]),
    };
    let refused = world.cluster.create_session(world.now, create).expect_err("full");
    assert_eq!(refused.code, cooper_common::error::Code::NoCapacity);
}

#[test]
fn a_coordinator_that_was_stopped_itself_gives_up_nobody() {
    let mut world = World::new();
    world.step(Action::Attach(0));
    world.now.mono_ms += 600_000;
    let out = world.cluster.tick(world.now);
    assert!(out.changes.is_empty() && out.effects.is_empty());
    assert!(world.cluster.worker("w0").is_some_and(|worker| worker.body.state == worker::State::Ready));
}
