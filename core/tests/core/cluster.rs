//! The cluster against a reference model, in a world that cuts, delays, kills and stalls.

#[path = "cluster/model.rs"]
mod model;
#[path = "cluster/world.rs"]
mod world;

use cooper_common::ids::SessionId;
use cooper_core::{
    cluster::{Effect, Message},
    lease::Fence,
    task::{self, End, Kind, Scheduling},
    worker,
};
use proptest::prelude::*;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};

use self::{
    model::{Action, Model, Terms},
    world::{World, create, result},
};

struct Machine;

impl StateMachineTest for Machine {
    type SystemUnderTest = World;
    type Reference = Model;

    fn init_test(model: &Model) -> World {
        World::new(model)
    }

    fn apply(mut world: World, model: &Model, action: Action) -> World {
        world.step(model, &action);
        world
    }

    fn check_invariants(world: &World, model: &Model) {
        world.check(model);
    }

    /// I3: everything ends that somebody can do.
    fn teardown(mut world: World, model: Model) {
        world.settle(&model);
        world.check(&model);
    }
}

prop_state_machine! {
    // 80 sequences of up to 400 inputs: about 16,000 in a run.
    #![proptest_config(ProptestConfig {
        cases: 80, max_shrink_iters: 4_000, failure_persistence: None, ..ProptestConfig::default()
    })]

    /// I1, I3, I13: whatever is cut, delayed, stalled or killed, every task ends exactly once, within its attempts and
    /// deadlines, in the order that was asked for, where it may; and no worker with room is idle while somebody waits.
    /// Sessions that are saved, moved or hibernate have one owner, and what was executed in them is where they wake.
    #[test]
    fn every_task_ends_exactly_once_whatever_happens(sequential 1..400 => Machine);
}

/// A world by hand: the model hears what the world does.
struct Told {
    world: World,
    model: Model,
}

impl Told {
    fn new() -> Self {
        let model = Model { wall_ms: 1_000_000, ..Model::default() };
        Self { world: World::new(&model), model }
    }
    fn step(&mut self, action: Action) {
        self.model = Model::apply(self.model.clone(), &action);
        self.world.step(&self.model, &action);
        self.world.check(&self.model);
    }
    fn noop(&mut self, priority: i8, scheduling: Scheduling) {
        self.step(Action::Submit(Terms { kind: Kind::Noop, target: 0, priority, scheduling }));
    }
    fn handed_out(&self, w: usize) -> Option<(cooper_common::ids::TaskId, Fence)> {
        match self.world.hosts[w].inbox.front() {
            Some(Message::Assign { task, fence, .. }) => Some((*task, *fence)),
            _ => None,
        }
    }
}

#[test]
fn a_result_under_an_old_fence_changes_nothing_and_is_acked_as_stale() {
    let mut told = Told::new();
    told.step(Action::Attach(0));
    told.step(Action::Grant(0));
    told.noop(0, Scheduling::default());
    let (task, fence) = told.handed_out(0).expect("the task was handed out");
    let world = &mut told.world;
    let old = Fence { epoch: fence.epoch, attempt: fence.attempt - 1 };
    let attach = world.hosts[0].attach.expect("attached");
    let out = world.cluster.hear(world.now, "w0", attach, vec![result(task, old, End::Failed)]);
    assert!(out.changes.is_empty());
    assert!(matches!(
        out.effects.as_slice(),
        [Effect::Send { message: Message::ResultAck { stale: true, .. }, .. }]
    ));
    assert!(world.cluster.task(task).is_some_and(|task| task.body.state == task::State::Assigned));
}

#[test]
fn two_workers_share_sessions_by_free_capacity_and_a_full_cluster_refuses() {
    let mut told = Told::new();
    for w in 0..2 {
        told.step(Action::Attach(w));
    }
    for _ in 0..4 {
        told.step(Action::CreateSession { labels: 0 });
    }
    let on = |w: &str| told.world.cluster.worker(w).map(|worker| worker.sessions.len());
    assert_eq!((on("w0"), on("w1")), (Some(2), Some(2)));
    let world = &mut told.world;
    let refused = world.cluster.create_session(world.now, create(SessionId::from_u128(1))).expect_err("full");
    assert_eq!(refused.code, cooper_common::error::Code::NoCapacity);
}

#[test]
fn a_coordinator_that_was_stopped_itself_gives_up_nobody() {
    let mut told = Told::new();
    told.step(Action::Attach(0));
    let world = &mut told.world;
    world.now.mono_ms += 600_000;
    let out = world.cluster.tick(world.now);
    assert!(out.changes.is_empty() && out.effects.is_empty());
    assert!(world.cluster.worker("w0").is_some_and(|worker| worker.body.state == worker::State::Ready));
}

#[test]
fn a_retry_waits_for_its_time_even_over_a_restart() {
    let mut told = Told::new();
    told.step(Action::Attach(0));
    told.step(Action::Grant(0));
    told.noop(0, Scheduling { max_attempts: 3, ..Scheduling::default() });
    told.step(Action::Deliver(0));
    told.step(Action::HostDies(0));
    told.step(Action::Attach(0));
    let id = Model::id(0);
    let at = told.world.body(id).not_before_ms();
    assert!(at > 0 && told.world.body(id).attempts_used() == 1, "{:?}", told.world.body(id));
    // So that it is still to come however the jitter fell.
    let left = u64::try_from(at - told.world.now.wall_ms).expect("in the future");
    if left > 1 {
        told.step(Action::CoordinatorDies);
        told.step(Action::Attach(0));
        told.step(Action::Grant(0));
        assert!(told.handed_out(0).is_none());
        let why = told.world.cluster.explain(told.world.now, id).expect("it waits");
        assert_eq!(why.cause.as_str(), "not_before");
    }
    told.step(Action::Pass(1_000));
    assert_eq!(told.handed_out(0).map(|(task, fence)| (task, fence.attempt)), Some((id, 2)));
}

/// I13: found by jumps of the clock in `make chaos`.
#[test]
fn a_wall_clock_that_was_set_before_a_restart_ends_nothing_that_runs() {
    const DAY_MS: i64 = 86_400_000;
    let mut told = Told::new();
    told.step(Action::Attach(0));
    told.step(Action::Grant(0));
    told.noop(0, Scheduling { max_attempts: 3, ..Scheduling::default() });
    told.step(Action::Deliver(0));
    told.step(Action::Start(0, 0));
    told.step(Action::Say(0));
    told.world.now.wall_ms += DAY_MS;
    told.step(Action::CoordinatorDies);
    told.step(Action::Attach(0));
    told.step(Action::Pass(1_000));
    assert_eq!(told.world.body(Model::id(0)).passed(), None);
}

#[test]
fn a_worker_that_is_out_of_reach_keeps_a_task_past_its_deadline_no_longer_than_its_lease() {
    let mut told = Told::new();
    told.step(Action::Pass(60_000));
    told.step(Action::Attach(0));
    told.step(Action::Grant(0));
    told.noop(0, Scheduling { schedule_to_close_ms: 5_000, ..Scheduling::default() });
    told.step(Action::Deliver(0));
    told.step(Action::Mute(0));
    told.step(Action::Pass(10_000));
    let why = told.world.cluster.explain(told.world.now, Model::id(0)).expect("it is held");
    assert_eq!(why.cause.as_str(), "deadline_passed");
    told.step(Action::Pass(21_000));
    assert_eq!(told.world.ended.get(&Model::id(0)), Some(&End::TimedOut));
}

#[test]
fn a_row_of_the_previous_version_loads_and_a_plain_one_stays_as_small() {
    let body = r#"{"state":"queued","kind":"noop","fence":{"epoch":0,"attempt":0},"timeout_ms":1,"output_limit_bytes":2,"started_ms":0,"ended_ms":0}"#;
    let old: task::Body = serde_json::from_str(body).expect("a row of the version before");
    assert_eq!(serde_json::to_string(&old).expect("JSON"), body);
}
