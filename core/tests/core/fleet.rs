//! Workers that are emptied, that stop, and that fall silent together: what is said to whom and when.

use std::{collections::BTreeMap, sync::Arc};

use cooper_common::{
    error::Code,
    ids::{SessionId, TaskId},
};
use cooper_core::{
    Now,
    change::NewEvent,
    cluster::{Cluster, Effect, Hello, Message, Out, Said, Update},
    lease::{Fence, Timing},
    session,
    task::{self, End, Kind, Submit},
    worker::{self, Body, State, Worker},
};

/// A cluster past its grace, and all events it ever recorded.
pub struct World {
    pub cluster: Cluster,
    pub now: Now,
    pub events: Vec<(String, NewEvent)>,
    pub sent: Vec<(String, Message)>,
    attaches: BTreeMap<String, u64>,
    next: u128,
    rows: BTreeMap<String, cooper_core::change::Change>,
}

impl World {
    pub fn new() -> Self {
        let now = Now { mono_ms: 0, wall_ms: 1_000_000 };
        let mut world = Self {
            cluster: Cluster::new(now, 1, Timing::default()),
            now,
            events: Vec::new(),
            sent: Vec::new(),
            attaches: BTreeMap::new(),
            next: 0,
            rows: BTreeMap::new(),
        };
        world.pass(Timing::default().reattach_grace_ms, &[]);
        world
    }

    pub fn with(workers: &[&str]) -> Self {
        let mut world = Self::new();
        for worker in workers {
            world.attach(worker, 2, &[]);
        }
        world
    }

    pub fn take(&mut self, out: Out) {
        for change in out.changes {
            self.events.extend(change.events.iter().map(|event| (change.id.clone(), event.clone())));
            if change.aggregate == cooper_core::change::Aggregate::Worker {
                self.rows.insert(change.id.clone(), change);
            }
        }
        for effect in out.effects {
            if let Effect::Send { worker, message, .. } = effect {
                self.sent.push((worker.to_string(), message));
            }
        }
        assert_eq!(self.cluster.violation(), None);
    }

    pub fn attach(&mut self, id: &str, protocol: u32, sessions: &[(SessionId, Fence)]) {
        self.attach_with(id, protocol, sessions, |_| {});
    }

    /// A worker that says something else of itself.
    pub fn attach_as(&mut self, id: &str, with: impl FnOnce(&mut Body)) {
        self.attach_with(id, 2, &[], with);
    }

    pub fn update(&mut self, worker: &str, id: SessionId, fence: Fence, update: Update) {
        let out = self.cluster.session_update(self.now, worker, self.attaches[worker], id, fence, update);
        self.take(out);
    }

    fn attach_with(
        &mut self,
        id: &str,
        protocol: u32,
        sessions: &[(SessionId, Fence)],
        with: impl FnOnce(&mut Body),
    ) {
        let mut body = Body {
            state: State::Ready,
            incarnation: 1,
            version: "1".into(),
            capabilities: ["python".to_owned()].into(),
            labels: BTreeMap::new(),
            sessions_max: 2,
            tasks_max: 4,
            stacks: vec![],
            hostname: id.into(),
            boot_id: id.into(),
            python_version: String::new(),
            python_versions: vec![],
            tier: "T1".into(),
            sessions_refused: None,
            drain: None,
            refused: None,
        };
        with(&mut body);
        let sessions = sessions
            .iter()
            .map(|(session, fence)| cooper_core::cluster::SessionItem {
                session: *session,
                fence: *fence,
                interpreter_restarted: false,
                sealed: false,
            })
            .collect();
        let (worker, tenant) = (id.into(), "t".into());
        let hello = Hello { worker, tenant, protocol, body, sessions, attempts: vec![] };
        let (welcome, out) = self.cluster.attach(self.now, hello).expect("welcome");
        self.take(out);
        self.attaches.insert(id.to_owned(), welcome.attach);
        let said = vec![Said::Credit { granted: 4, seen: 0 }];
        let out = self.cluster.hear(self.now, id, welcome.attach, said);
        self.take(out);
    }

    /// Time passes in ticks of a second; only these workers are heard.
    pub fn pass(&mut self, ms: u64, heard: &[&str]) {
        for _ in 0..ms / 1_000 {
            self.now.mono_ms += 1_000;
            self.now.wall_ms += 1_000;
            for worker in heard {
                let attach = self.attaches[*worker];
                let (_, out) = self.cluster.heartbeat(self.now, worker, attach);
                self.take(out);
            }
            let out = self.cluster.tick(self.now);
            self.take(out);
        }
    }

    fn session(&mut self) -> Result<(SessionId, String), Code> {
        self.session_with(|_| {})
    }

    pub fn session_with(
        &mut self,
        with: impl FnOnce(&mut session::Create),
    ) -> Result<(SessionId, String), Code> {
        self.next += 1;
        let id = SessionId::from_u128(self.next);
        let mut create = session::Create {
            id,
            tenant: "t".into(),
            key: String::new(),
            name: String::new(),
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
            exec_timeout_ms: 1,
            output_limit_bytes: 1,
            spec: Arc::from([]),
        };
        with(&mut create);
        let out = self.cluster.create_session(self.now, create).map_err(|error| error.code)?;
        self.take(out);
        let body = &self.cluster.session(id).expect("made").body;
        let (worker, fence) = (body.worker.clone(), body.fence);
        let ready =
            Update::Ready { python_version: String::new(), facilities: vec![], globals: String::new() };
        let out = self.cluster.session_update(self.now, &worker, self.attaches[&worker], id, fence, ready);
        self.take(out);
        Ok((id, worker))
    }

    pub fn submit(
        &mut self,
        kind: Kind,
        session: Option<SessionId>,
        worker: Option<&str>,
    ) -> Result<TaskId, Code> {
        self.next += 1;
        let id = TaskId::from_u128(self.next);
        let submit = Submit {
            id,
            tenant: "t".into(),
            key: String::new(),
            kind,
            session,
            worker: worker.map(Into::into),
            priority: 0,
            scheduling: None,
            timeout_ms: 86_400_000,
            output_limit_bytes: 1,
            spec: Arc::from([]),
        };
        let out = self.cluster.submit(self.now, submit, true).map_err(|error| error.code)?;
        self.take(out);
        Ok(id)
    }

    pub fn end(&mut self, id: TaskId, end: End) {
        let body = &self.cluster.task(id).expect("it is held").body;
        let (worker, fence) = (body.worker.clone().expect("it is held"), body.fence);
        let attach = self.attaches[&worker];
        let said =
            vec![Said::Result { task: id, fence, end, result: vec![], output: vec![], artifacts: vec![] }];
        let out = self.cluster.hear(self.now, &worker, attach, said);
        self.take(out);
    }

    fn drain(&mut self, worker: &str, ms: u64) {
        let out = self.cluster.drain(self.now, worker, ms, false, "operator").expect("it is known");
        self.take(out);
    }

    fn state(&self, worker: &str) -> State {
        self.worker(worker).body.state
    }
    fn worker(&self, worker: &str) -> &Worker {
        self.cluster.worker(worker).expect("it is known")
    }
    fn is_drained(&self, worker: &str) -> bool {
        self.worker(worker).body.drain.as_ref().is_some_and(|drain| drain.drained_ms != 0)
    }
    pub fn happened(&self, subject: &str, kind: &str) -> usize {
        self.events.iter().filter(|(id, event)| id == subject && event.kind == kind).count()
    }
    fn held(&self, id: TaskId) -> Option<String> {
        self.cluster.task(id).filter(|task| task.held()).and_then(|task| task.body.worker.clone())
    }
}

#[test]
fn a_worker_that_drains_takes_no_new_work_and_goes_on_with_its_sessions() {
    let mut world = World::with(&["left", "right"]);
    let (session, _) = world.session().expect("room");
    let (other, _) = world.session().expect("room");
    let (left, _) = if world.cluster.session(session).expect("made").body.worker == "left" {
        (session, other)
    } else {
        (other, session)
    };
    let running = world.submit(Kind::Python, Some(left), None).expect("taken");
    world.drain("left", 600_000);
    assert_eq!(world.state("left"), State::Draining);

    // What any worker can do goes elsewhere, and so do sessions, until that is full.
    for _ in 0..3 {
        let noop = world.submit(Kind::Noop, None, None).expect("taken");
        assert_eq!(world.held(noop).as_deref(), Some("right"));
    }
    assert_eq!(world.session().expect("room").1, "right");
    assert_eq!(world.session(), Err(Code::NoCapacity));
    // Its own session goes on.
    let command = world.submit(Kind::Shell, Some(left), None).expect("taken");
    assert_eq!(world.held(command).as_deref(), Some("left"));
    world.pass(5_000, &["left", "right"]);
    assert!(!world.is_drained("left"));

    world.end(running, End::Succeeded);
    world.end(command, End::Succeeded);
    world.pass(2_000, &["left", "right"]);
    assert!(world.is_drained("left"));
    assert_eq!((world.happened("left", "worker.drain"), world.happened("left", "worker.drained")), (1, 1));
    assert_eq!(
        world.submit(Kind::Python, Some(left), None),
        Err(Code::WorkerDraining),
        "nothing starts there"
    );

    let out = world.cluster.undrain(world.now, "left").expect("it is known");
    world.take(out);
    assert_eq!(world.state("left"), State::Ready);
    let again = world.submit(Kind::Python, Some(left), None).expect("taken");
    assert_eq!(world.held(again).as_deref(), Some("left"), "its sessions are there");
}

#[test]
fn at_the_deadline_executions_are_cancelled_with_the_reason_and_a_step_may_finish() {
    let mut world = World::with(&["left"]);
    let (session, _) = world.session().expect("room");
    let running = world.submit(Kind::Python, Some(session), None).expect("taken");
    let waiting = world.submit(Kind::Python, Some(session), None).expect("taken");
    let step = world.submit(Kind::Step, None, Some("left")).expect("taken");
    world.drain("left", 3_000);
    world.pass(2_000, &["left"]);
    assert!(world.cluster.task(running).is_some_and(|task| !task.body.cancel_requested));
    world.pass(1_000, &["left"]);
    let cancelled = |(_, message): &(String, Message)| matches!(message, Message::Cancel { task, .. } if *task == running);
    assert!(world.sent.iter().any(cancelled), "the worker is told");
    assert!(world.cluster.task(waiting).is_none(), "what waits will not start");
    let reason = world.cluster.task(running).and_then(|task| task.body.reason.clone()).expect("a reason");
    assert_eq!(reason.code, "worker_draining");
    // The worker does not answer: after a while it is not asked any more. The step goes on.
    world.pass(11_000, &["left"]);
    assert!(world.cluster.task(running).is_none());
    assert_eq!(world.held(step).as_deref(), Some("left"));
    assert!(!world.is_drained("left"));
    let next = world.submit(Kind::Step, None, Some("left")).expect("it waits");
    assert_eq!(world.held(next), None, "nothing new starts");
    world.end(step, End::Succeeded);
    world.pass(1_000, &["left"]);
    assert!(world.is_drained("left"));
}

#[test]
fn a_drain_outlives_the_coordinator_and_the_worker() {
    let mut world = World::with(&["left"]);
    let (session, _) = world.session().expect("room");
    let running = world.submit(Kind::Python, Some(session), None).expect("taken");
    world.drain("left", 60_000);
    let row = world.rows["left"].clone();
    // I13: half a minute later, on another clock.
    let now = Now { mono_ms: 7, wall_ms: world.now.wall_ms + 30_000 };
    let restored = Worker::restore(now, "left", row.expected + 1, row.row).expect("a stored worker");
    let tasks = world.cluster.task(running).cloned().into_iter().collect();
    let sessions = world.cluster.session(session).cloned().into_iter().collect();
    world.cluster = Cluster::restore(now, 2, Timing::default(), vec![restored], sessions, tasks);
    (world.now, world.sent) = (now, vec![]);
    let fence = world.cluster.session(session).expect("kept").body.fence;
    world.attach("left", 2, &[(session, fence)]);
    assert_eq!(world.state("left"), State::Draining);
    let told = world.sent.iter().find_map(|(_, message)| match message {
        Message::Drain { draining: true, deadline_in_ms } => Some(*deadline_in_ms),
        _ => None,
    });
    assert_eq!(told, Some(30_000), "the worker is told what is left of it");
    world.pass(42_000, &["left"]);
    assert!(world.is_drained("left"));
}

#[test]
fn a_worker_of_protocol_1_is_drained_without_being_told() {
    let mut world = World::new();
    world.attach("old", 1, &[]);
    world.drain("old", 0);
    world.pass(2_000, &["old"]);
    assert!(world.is_drained("old"));
    assert!(!world.sent.iter().any(|(_, message)| matches!(message, Message::Drain { .. })));
}

#[test]
fn what_a_stopping_worker_did_not_take_goes_to_another_and_what_it_took_stays() {
    let mut world = World::with(&["left"]);
    let (session, _) = world.session().expect("room");
    let crossing = world.submit(Kind::Noop, None, None).expect("taken");
    let taken = world.submit(Kind::Python, Some(session), None).expect("taken");
    let behind = world.submit(Kind::Shell, Some(session), None).expect("taken");
    world.attach("right", 2, &[]);
    let fence = world.cluster.task(taken).expect("held").body.fence;
    let attach = world.attaches["left"];
    let out = world.cluster.stopping(world.now, "left", attach, &[(taken, fence)].into(), false);
    world.take(out);
    assert_eq!(world.state("left"), State::Draining);
    assert_eq!(world.held(crossing).as_deref(), Some("right"));
    assert_eq!(world.held(taken).as_deref(), Some("left"));
    let waits = world.cluster.task(behind).expect("not lost");
    assert_eq!(waits.body.state, task::State::Queued, "it waits for its session's worker");
    assert_eq!(world.submit(Kind::Python, Some(session), None), Err(Code::WorkerDraining));
    world.end(taken, End::Succeeded);
    let out = world.cluster.detach(world.now, "left", attach, true);
    world.take(out);
    assert_eq!((world.state("left"), world.happened("left", "worker.gone")), (State::Gone, 1));
    assert_eq!(world.events.iter().filter(|(_, event)| event.kind == "task.lost").count(), 0);
    // It comes back and takes work: that it stopped is over.
    let fence = world.cluster.session(session).expect("kept").body.fence;
    world.attach("left", 2, &[(session, fence)]);
    assert_eq!(world.state("left"), State::Ready);
    let out = world.cluster.session_update(
        world.now,
        "left",
        world.attaches["left"],
        session,
        fence,
        Update::Ready { python_version: String::new(), facilities: vec![], globals: String::new() },
    );
    world.take(out);
    assert_eq!(world.held(behind).as_deref(), Some("left"));
}

/// A worker that makes checkpoints and may be granted what it had.
fn saves(body: &mut Body) {
    body.capabilities.extend([worker::CHECKPOINT.to_owned(), worker::HIBERNATE.to_owned()]);
}

#[test]
fn the_only_worker_leaves_what_is_saved_when_it_stops_and_gets_it_when_it_is_back() {
    let mut world = World::new();
    world.attach_as("only", saves);
    let (session, _) = world.session().expect("room");
    let attach = world.attaches["only"];
    let out = world.cluster.stopping(world.now, "only", attach, &[].into(), true);
    world.take(out);
    let job = world.cluster.due_transfers(world.now).pop().expect("it is saved").job;
    let out = world.cluster.packed(world.now, session, job);
    world.take(out);
    let left = world.cluster.session(session).expect("kept");
    assert!(left.is_saved() && left.body.worker.is_empty(), "nobody has it");
    let told = |(to, message): &(String, Message)| {
        to == "only" && matches!(message, Message::SessionEnd { session: id, .. } if *id == session)
    };
    assert!(world.sent.iter().any(told), "the worker has nothing to wait for");
    let out = world.cluster.detach(world.now, "only", attach, true);
    world.take(out);
    world.pass(5_000, &[]);
    world.attach_as("only", saves);
    world.pass(1_000, &["only"]);
    let body = &world.cluster.session(session).expect("kept").body;
    assert_eq!((body.state, body.worker.as_str()), (session::State::Initializing, "only"));
}

#[test]
fn an_operator_gives_up_a_silent_worker_by_draining_it_at_once() {
    let mut world = World::with(&["left"]);
    let (session, _) = world.session().expect("room");
    let running = world.submit(Kind::Python, Some(session), None).expect("taken");
    let attach = world.attaches["left"];
    let out = world.cluster.detach(world.now, "left", attach, false);
    world.take(out);
    world.drain("left", 0);
    world.pass(1_000, &[]);
    assert!(world.cluster.task(running).is_none());
    assert_eq!(world.happened(&running.to_string(), "task.lost"), 1);
}

const MANY: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

#[test]
fn a_coordinator_that_hears_nothing_of_most_workers_gives_up_none_until_the_silence_is_clearly_longer() {
    let mut world = World::with(&MANY);
    let noops: Vec<TaskId> = (0..6).map(|_| world.submit(Kind::Noop, None, None).expect("taken")).collect();
    world.pass(100_000, &["a", "b"]);
    for silent in &MANY[2..] {
        assert_eq!(world.state(silent), State::Suspect, "{silent}");
        assert_eq!(world.happened(silent, "worker.spared"), 1, "said once");
    }
    assert!(noops.iter().all(|id| world.held(*id).is_some()));
    // One is heard again: it never was away.
    world.pass(100_000, &["a", "b", "c"]);
    assert_eq!(world.state("c"), State::Ready);
    world.pass(101_000, &["a", "b", "c"]);
    for silent in &MANY[3..] {
        assert_eq!(world.state(silent), State::Lost, "five minutes are no blip");
    }
}

#[test]
fn one_of_many_and_two_of_two_are_given_up_after_a_minute() {
    let mut world = World::with(&MANY);
    world.pass(61_000, &MANY[1..]);
    assert_eq!(world.state("a"), State::Lost);
    let mut world = World::with(&["a", "b"]);
    world.pass(61_000, &[]);
    assert_eq!((world.state("a"), world.state("b")), (State::Lost, State::Lost));
}

#[test]
fn the_brake_counts_what_was_given_up_a_moment_before() {
    let mut world = World::with(&MANY);
    world.pass(10_000, &MANY[2..]);
    // Two fall silent ten seconds before two others.
    world.pass(51_000, &MANY[4..]);
    assert_eq!((world.state("a"), world.state("b")), (State::Lost, State::Lost));
    world.pass(20_000, &MANY[4..]);
    assert_eq!((world.state("c"), world.state("d")), (State::Suspect, State::Suspect));
    assert_eq!(world.happened("c", "worker.spared"), 1);
}

#[test]
fn a_refusal_is_kept_with_the_worker_until_it_attaches_and_said_once() {
    let mut world = World::new();
    let reason = session::Reason { code: "protocol_version".into(), message: "too new".into() };
    for _ in 0..3 {
        let out = world.cluster.refused(world.now, "new", "t".into(), "9.0", "host", reason.clone());
        world.take(out);
    }
    assert_eq!(world.happened("new", "worker.refused"), 1);
    assert_eq!(world.worker("new").body.refused.as_ref(), Some(&reason));
    world.attach("new", 2, &[]);
    assert_eq!((world.state("new"), &world.worker("new").body.refused), (State::Ready, &None));
    // Whoever else claims the name of a worker that is here changes nothing of it.
    let out = world.cluster.refused(world.now, "new", "t".into(), "9.0", "host", reason);
    world.take(out);
    assert_eq!(world.worker("new").body.refused, None);
    assert_eq!(worker::State::Ready, world.state("new"));
}

#[test]
fn a_session_with_secrets_goes_only_to_a_worker_that_knows_them() {
    let mut world = World::with(&["a", "old"]);
    assert_eq!(world.session_with(|create| create.secrets = true).unwrap_err(), Code::NotSupported);
    world.attach_as("new", |body| body.capabilities.extend([worker::SECRETS.to_owned()]));
    for _ in 0..2 {
        let (_, place) = world.session_with(|create| create.secrets = true).unwrap();
        assert_eq!(place, "new");
    }
    assert_eq!(world.session_with(|create| create.secrets = true).unwrap_err(), Code::NoCapacity);
    let grants = world.sent.iter().filter_map(|(_, message)| match message {
        Message::SessionGrant { secrets_of, .. } => Some(secrets_of.as_deref()),
        _ => None,
    });
    assert_eq!(grants.collect::<Vec<_>>(), [Some("t"), Some("t")]);
}
