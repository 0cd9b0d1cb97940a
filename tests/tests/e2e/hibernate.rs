//! Sessions that idle leave their worker and come back when something is wanted of them.

use std::thread;

use cooper_tests::{Cooper, cluster::Setup, fleet::Fleet, seconds};

use super::repair::text;

const MAKE: &str =
    "import math\nopen('data.txt', 'w').write('kept')\nnumbers = [1, 2]\ndef double(n): return 2 * n";

fn sleepy(cooper: &Cooper, name: &str) -> String {
    cooper.ok(["session", "create", "--name", name, "--label", "kind=sleepy", "--hibernate-after", "1s"])
}

#[track_caller]
fn asleep(cooper: &Cooper, session: &str) -> cooper_tests::cooper::Answer {
    let show = ["session", "show", session];
    cooper.until_json("that it hibernates", seconds(30), &show, |it| it["hibernated"] == true)
}

#[test]
fn a_session_that_idles_frees_its_place_and_wakes_where_there_is_room_with_its_variables() {
    let mut fleet = Fleet::new().env("COOPER_QUOTA_SESSIONS", "2");
    fleet.start_coordinator();
    fleet.start_worker_in("left", &[("MAX_SESSIONS", "1")]);
    fleet.await_registered(0);
    let cooper = fleet.cooper();
    let id = sleepy(&cooper, "sleepy");
    cooper.exec(&id, MAKE);
    let seen = asleep(&cooper, &id);
    assert_eq!((text(&seen, "state"), text(&seen, "worker_id")), ("checkpointing", ""));
    let workspace = fleet.scratch.join("left/worker/sessions").join(&id);
    cooper_tests::wait::until_true("that its files are gone", seconds(20), || !workspace.exists());

    // Its place and its share of the quota are free.
    let other = cooper.session();
    assert_eq!(cooper.error(["session", "create"]).code, "no_capacity");
    cooper.ok(["session", "destroy", &other]);

    // On the worker that had it; each call wakes, all of them once.
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                assert_eq!(cooper.exec("sleepy", "numbers, double(21), math.floor(2.5)"), "([1, 2], 42, 2)")
            });
            scope.spawn(|| assert_eq!(cooper.ok(["files", "cat", "sleepy", "data.txt"]), "kept"));
        }
    });
    let awake = cooper.json(["session", "show", "sleepy"]);
    assert_eq!((text(&awake, "session_id"), text(&awake, "worker_id")), (id.as_str(), "left"));
    assert_eq!(text(&awake["globals"], "error"), "", "{awake:#}");
    let wakings = cooper.json(["events"])["events"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|event| event["kind"] == "session.waking")
        .count();
    assert_eq!(wakings, 1);

    // A file call alone wakes it too, and on another worker.
    asleep(&cooper, &id);
    cooper.ok(["drain", "left", "--deadline", "0s"]);
    fleet.start_worker("right");
    fleet.await_registered(1);
    assert_eq!(cooper.ok(["files", "cat", "sleepy", "data.txt"]), "kept");
    assert_eq!(text(&cooper.json(["session", "show", "sleepy"]), "worker_id"), "right");
    assert_eq!(cooper.exec("sleepy", "numbers"), "[1, 2]");

    // Asleep it is destroyed as any other.
    asleep(&cooper, &id);
    cooper.ok(["session", "destroy", "sleepy"]);
    assert_eq!(cooper.error(["exec", &id, "-c", "1"]).code, "session_ended");
    fleet.stop();
}

#[test]
fn time_to_live_goes_on_while_a_session_hibernates_and_a_quota_keeps_it_asleep() {
    let mut fleet = Fleet::new().env("COOPER_QUOTA_SESSIONS", "1");
    fleet.start_coordinator();
    fleet.start_worker("left");
    fleet.await_registered(0);
    let cooper = fleet.cooper();
    let id = sleepy(&cooper, "sleepy");
    cooper.exec(&id, MAKE);
    asleep(&cooper, &id);
    let other = cooper.session();
    assert_eq!(cooper.error(["exec", &id, "-c", "numbers"]).code, "quota_exceeded");
    assert_eq!(cooper.json(["session", "show", &id])["hibernated"], true);
    cooper.ok(["session", "destroy", &other]);
    assert_eq!(cooper.exec(&id, "numbers"), "[1, 2]");
    asleep(&cooper, &id);
    cooper.ok(["session", "extend", &id, "1s"]);
    let show = ["session", "show", &id];
    let ended = cooper.until_json("its end", seconds(20), &show, |it| it["state"] == "destroyed");
    assert_eq!(text(&ended["error"], "code"), "session_expired");
    fleet.stop();
}

#[test]
fn a_session_that_hibernates_or_wakes_survives_kills_of_the_coordinator() {
    for failpoint in ["packed-before-kept=1", "restore-before-unpacked=1"] {
        let mut fleet = Fleet::new();
        fleet.start_coordinator();
        fleet.start_worker("left");
        fleet.await_registered(0);
        let cooper = fleet.cooper();
        let id = cooper.session();
        cooper.exec(&id, MAKE);
        fleet.end_coordinator();
        fleet.start_failing_coordinator(failpoint);
        let show = ["session", "show", id.as_str()];
        cooper.until_json("the worker", seconds(30), &["workers"], |list| {
            list["workers"].as_array().expect("a list").iter().all(|it| it["state"] == "ready")
        });
        cooper.ok(["session", "update", &id, "--hibernate-after", "500ms"]);
        if failpoint.starts_with("restore") {
            asleep(&cooper, &id);
            let waiting = cooper.start(["exec", &id, "-c", "numbers"], b"");
            fleet.await_dead_coordinator(seconds(30));
            fleet.start_coordinator();
            assert_eq!(waiting.finish(seconds(60)).expect(0).out().trim(), "[1, 2]", "{failpoint}");
        } else {
            fleet.await_dead_coordinator(seconds(30));
            fleet.start_coordinator();
            cooper.until_json("that it hibernates", seconds(60), &show, |it| it["hibernated"] == true);
        }
        assert_eq!(
            cooper.exec(&id, "numbers, double(2), open('data.txt').read()"),
            "([1, 2], 4, 'kept')",
            "{failpoint}"
        );
        fleet.stop();
    }
}

#[test]
fn what_a_session_leaves_open_the_operator_says_and_what_an_update_resets_is_that_again() {
    let cluster = Setup::python()
        .env("COOPER_SESSION_MEMORY_MIB", "300")
        .env("COOPER_HIBERNATE_AFTER_MS", "3600000")
        .start();
    let cooper = cluster.cooper();
    let open = cooper.json(["session", "create"]);
    assert_eq!(open["limits"]["memory_bytes"], 300 << 20);
    assert_eq!(open["hibernate_after_ms"], 3_600_000);
    let said = [
        "session",
        "create",
        "--name",
        "said",
        "--memory",
        "64M",
        "--cpu",
        "500",
        "--hibernate-after",
        "never",
    ];
    let said = cooper.json(said);
    assert_eq!(
        (&said["limits"]["memory_bytes"], &said["hibernate_after_ms"]),
        (&(64 << 20).into(), &0.into())
    );
    let again = cooper.json(["session", "update", "said", "--reset", "memory", "--reset", "cpu"]);
    assert_eq!(
        (&again["limits"]["memory_bytes"], &again["limits"]["cpu_millis"]),
        (&(300 << 20).into(), &0.into())
    );
    // It has them: what was too much is not.
    assert_eq!(cooper.exec("said", "len(bytearray(100 << 20))"), "104857600");
}
