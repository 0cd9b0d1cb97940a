//! Which worker gets a session that wants a Python, or whose files were made with one.

use cooper_common::{error::Code, ids::CheckpointId};
use cooper_core::cluster::Message;

use crate::fleet::World;

const NEW: &[&str] = &["3.11.7", "3.12.1", "3.12.10"];

/// `old` says what workers of before say: one version.
fn world() -> World {
    let mut world = World::new();
    world.attach_as("new", |body| {
        body.sessions_max = 20;
        body.capabilities.insert("checkpoint".to_owned());
        body.python_version = NEW[0].to_owned();
        body.python_versions = NEW.iter().map(|&version| version.to_owned()).collect();
    });
    world.attach_as("old", |body| {
        body.sessions_max = 50;
        body.capabilities.insert("checkpoint".to_owned());
        body.python_version = "3.9.18".to_owned();
    });
    world
}

/// Its worker, and the Python it was told to take.
fn placed(world: &mut World, wanted: &str, made: Option<&str>) -> Result<(String, String), Code> {
    let restore = made.map(|made| (CheckpointId::new(), made.to_owned()));
    world.session_with(|create| (create.python, create.restore) = (wanted.to_owned(), restore))?;
    match world.sent.last() {
        Some((worker, Message::SessionGrant { python, .. })) => Ok((worker.clone(), python.clone())),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_session_goes_where_its_python_is_and_nowhere_else() {
    let mut world = world();
    let at = |worker: &str, python: &str| Ok((worker.to_owned(), python.to_owned()));
    assert_eq!(placed(&mut world, "", None), at("old", ""), "the one with the most room");
    assert_eq!(placed(&mut world, "3.12", None), at("new", "3.12"));
    assert_eq!(placed(&mut world, "3.12.1", None), at("new", "3.12.1"));
    assert_eq!(placed(&mut world, "3.9", None), at("old", "3.9"));
    for wanted in ["3.12.2", "3.13", "3.1"] {
        assert_eq!(placed(&mut world, wanted, None), Err(Code::NoWorker), "{wanted}");
    }
}

#[test]
fn what_begins_from_a_checkpoint_keeps_its_minor_version() {
    let mut world = world();
    let at = |worker: &str, python: &str| Ok((worker.to_owned(), python.to_owned()));
    assert_eq!(placed(&mut world, "", Some("3.12.3")), at("new", "3.12.3"));
    assert_eq!(placed(&mut world, "3.12", Some("3.12.3")), at("new", "3.12.3"));
    assert_eq!(placed(&mut world, "3.12.1", Some("3.12.3")), at("new", "3.12.1"), "it was named");
    assert_eq!(placed(&mut world, "", Some("3.9.2")), at("old", "3.9.2"));
    assert_eq!(placed(&mut world, "3.12.3", Some("3.12.3")), Err(Code::NoWorker));
    assert_eq!(placed(&mut world, "", Some("3.13.0")), Err(Code::NoWorker));
}

#[test]
fn a_worker_that_offers_it_but_is_full_is_waited_for_and_said_to_be_full() {
    let mut world = World::new();
    world.attach_as("full", |body| {
        body.sessions_max = 0;
        body.python_versions = vec!["3.12.1".to_owned()];
    });
    world.attach_as("other", |body| body.python_version = "3.11.7".to_owned());
    assert_eq!(placed(&mut world, "3.12", None), Err(Code::NoCapacity));
    let mut asked = None;
    let made = world.session_with(|create| {
        create.python = "3.13".to_owned();
        asked = Some(create.clone());
    });
    assert_eq!(made.map(drop), Err(Code::NoWorker));
    let refused = world.cluster.create_session(world.now, asked.expect("it was asked"));
    let refused = refused.expect_err("nobody offers it");
    assert_eq!(refused.message, "no attached worker has Python 3.13; there are 3.11.7, 3.12.1");
}
