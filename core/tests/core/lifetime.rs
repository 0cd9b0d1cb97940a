//! How long sessions live, what changes in them meanwhile, and what a tenant may hold.

use std::sync::Arc;

use cooper_common::{error::Code, ids::SessionId};
use cooper_core::{
    cluster::{Changed, Cluster, Message, Quota, Update},
    lease::Timing,
    session::{self, Share, State},
    task::{End, Kind},
};

use crate::fleet::World;

const UP: &[&str] = &["w"];

fn state(world: &World, id: SessionId) -> Option<State> {
    world.cluster.session(id).map(|session| session.body.state)
}

fn changed() -> Changed {
    Changed {
        ttl_ms: None,
        idle_timeout_ms: None,
        hibernate_after_ms: None,
        exec_timeout_ms: 7,
        output_limit_bytes: 8,
        share: Share::default(),
        spec: Arc::from(*b"new"),
    }
}

#[test]
fn a_session_ends_with_its_ttl_even_while_it_works_and_says_why() {
    let mut world = World::with(UP);
    let (id, _) = world.session_with(|create| create.ttl_ms = 10_000).expect("room");
    world.submit(Kind::Python, Some(id), None).expect("taken");
    world.pass(9_000, UP);
    assert_eq!(state(&world, id), Some(State::Ready));
    world.pass(2_000, UP);
    let body = &world.cluster.session(id).expect("its worker has it yet").body;
    assert_eq!(body.state, State::Draining);
    assert_eq!(body.reason.as_ref().map(|reason| &*reason.code), Some(Code::SessionExpired.as_str()));
    assert!(matches!(world.sent.last(), Some((_, Message::SessionEnd { session, .. })) if *session == id));
}

#[test]
fn an_extended_session_lives_on_from_now() {
    let mut world = World::with(UP);
    let (id, _) = world.session_with(|create| create.ttl_ms = 10_000).expect("room");
    world.pass(9_000, UP);
    let changed = Changed { ttl_ms: Some(10_000), ..changed() };
    let out = world.cluster.update_session(world.now, id, changed).expect("it lives");
    world.take(out);
    world.pass(9_000, UP);
    assert_eq!(state(&world, id), Some(State::Ready));
    let out = world.cluster.update_session(world.now, id, Changed { ttl_ms: Some(0), ..self::changed() });
    world.take(out.expect("it lives"));
    world.pass(60_000, UP);
    assert_eq!(state(&world, id), Some(State::Ready), "0 is for ever");
}

#[test]
fn idling_begins_when_the_last_execution_ends_and_a_call_begins_it_anew() {
    let mut world = World::with(UP);
    let (id, _) = world.session_with(|create| create.idle_timeout_ms = 10_000).expect("room");
    let task = world.submit(Kind::Python, Some(id), None).expect("taken");
    world.pass(60_000, UP);
    assert_eq!(state(&world, id), Some(State::Ready), "it works");
    world.end(task, End::Succeeded);
    world.pass(9_000, UP);
    let now = world.now;
    world.cluster.touch_session(now, id);
    world.pass(9_000, UP);
    assert_eq!(state(&world, id), Some(State::Ready), "a file was read");
    world.pass(2_000, UP);
    assert_eq!(state(&world, id), Some(State::Draining));
    assert_eq!(world.happened(&id.to_string(), "session.draining"), 1);
}

#[test]
fn a_ttl_counts_on_over_a_restart_and_idling_begins_anew() {
    let mut world = World::with(UP);
    let (id, _) = world
        .session_with(|create| (create.ttl_ms, create.idle_timeout_ms) = (100_000, 50_000))
        .expect("room");
    world.pass(40_000, UP);
    let session = world.cluster.session(id).expect("it lives").clone();
    let row = session.clone().take_change(world.now).row;
    let restored = session::Session::restore(world.now, id, session.version + 1, row).expect("stored");
    let mut cluster = Cluster::restore(world.now, 2, Timing::default(), vec![], vec![restored], vec![]);
    let mut now = world.now;
    for (seconds, lives) in [(45, true), (10, false)] {
        now.mono_ms += seconds * 1_000;
        now.wall_ms += (seconds * 1_000) as i64;
        // The first tick after a pause judges nothing.
        let _ = cluster.tick(now);
        let _ = cluster.tick(now);
        assert_eq!(cluster.session(id).is_some(), lives, "after {seconds} s");
    }
}

#[test]
fn a_worker_hears_of_new_limits_now_or_when_it_attaches_again() {
    let mut world = World::with(UP);
    let (id, _) = world.session_with(|_| {}).expect("room");
    let out = world.cluster.update_session(world.now, id, changed()).expect("it lives");
    world.take(out);
    let granted = |world: &World| matches!(world.sent.last(), Some((_, Message::SessionGrant { session, spec, .. })) if *session == id && **spec == *b"new");
    assert!(granted(&world));
    let fence = world.cluster.session(id).expect("it lives").body.fence;
    world.sent.clear();
    world.attach("w", 2, &[(id, fence)]);
    assert!(granted(&world));
}

#[test]
fn a_worker_that_cannot_keep_tenants_apart_holds_sessions_of_one_tenant() {
    for tier in ["T0", "unconfined", ""] {
        let mut world = World::new();
        world.attach_as("a", |body| body.tier = tier.into());
        let (first, _) = world.session_with(|_| {}).expect("room");
        let refused = world.session_with(|create| create.tenant = "other".into());
        assert_eq!(refused.map(drop), Err(Code::NoCapacity), "{tier:?}");
        // Its own tenant goes on; a worker that keeps tenants apart takes the other.
        world.session_with(|_| {}).expect("room");
        world.attach_as("b", |body| body.tier = "T1".into());
        let (_, worker) = world.session_with(|create| create.tenant = "other".into()).expect("room");
        assert_eq!(worker, "b");
        let out = world.cluster.destroy_session(world.now, first).expect("it lives");
        world.take(out);
    }
}

#[test]
fn a_worker_left_by_one_tenant_is_free_for_another() {
    let mut world = World::new();
    world.attach_as("a", |body| body.tier = "T0".into());
    let (first, _) = world.session_with(|_| {}).expect("room");
    let fence = world.cluster.session(first).expect("it lives").body.fence;
    let out = world.cluster.destroy_session(world.now, first).expect("it lives");
    world.take(out);
    let other = |create: &mut session::Create| create.tenant = "other".into();
    assert_eq!(world.session_with(other).map(drop), Err(Code::NoCapacity), "it is still being destroyed");
    world.update("a", first, fence, Update::Destroyed);
    world.session_with(other).expect("room");
}

#[test]
fn a_worker_below_its_own_least_tier_takes_no_session() {
    let mut world = World::new();
    let refused = session::Reason { code: "isolation_unavailable".into(), message: "T0 is the least".into() };
    world.attach_as("a", |body| body.sessions_refused = Some(refused));
    assert_eq!(world.session_with(|_| {}).map(drop), Err(Code::IsolationUnavailable));
    world.attach("b", 2, &[]);
    let (id, worker) = world.session_with(|_| {}).expect("room");
    assert_eq!((&*worker, &*world.cluster.session(id).expect("it lives").body.tier), ("b", "T1"));
}

#[test]
fn a_tenant_holds_no_more_than_its_quota() {
    let mut world = World::new();
    world.cluster = world.cluster.with_quota(Quota { sessions: 2, memory_bytes: 100, disk_bytes: 0 });
    world.attach("a", 2, &[]);
    world.attach("b", 2, &[]);
    let share = |memory_bytes| Share { memory_bytes, disk_bytes: 0 };
    assert_eq!(world.session_with(|_| {}).map(drop), Err(Code::QuotaExceeded), "without a limit of its own");
    let (first, _) = world.session_with(|create| create.share = share(60)).expect("room");
    assert_eq!(world.session_with(|create| create.share = share(60)).map(drop), Err(Code::QuotaExceeded));
    world.session_with(|create| create.share = share(40)).expect("room");
    assert_eq!(world.session_with(|create| create.share = share(0)).map(drop), Err(Code::QuotaExceeded));
    // Another tenant has a quota of its own.
    world.session_with(|create| (create.tenant, create.share) = ("other".into(), share(100))).expect("room");
    let more = Changed { share: share(61), ..changed() };
    let refused = world.cluster.update_session(world.now, first, more).map(drop);
    assert_eq!(refused.map_err(|error| error.code), Err(Code::QuotaExceeded));
    let same = Changed { share: share(60), ..changed() };
    assert!(world.cluster.update_session(world.now, first, same).is_ok());
}
