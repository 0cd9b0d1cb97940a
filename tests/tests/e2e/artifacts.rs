//! What a session writes beneath `artifacts/` is kept, whatever becomes of the session, the link and the coordinator.

use cooper_tests::{Cluster, Cooper, Setup, fleet::Fleet, seconds, wait::until_true};
use serde_json::Value;

use super::repair::text;

/// Two good ones, and one of each that is not taken.
const MAKE: &str = "
import os
os.makedirs('artifacts/plots', exist_ok=True)
open('artifacts/report.csv', 'w').write('a,b\\n1,2\\n')
open('artifacts/plots/one.png', 'wb').write(bytes(range(256)) * 1000)
os.symlink('/etc/passwd', 'artifacts/link')
os.mkfifo('artifacts/fifo')
open('artifacts/large', 'wb').truncate((64 << 20) + 1)
";

fn listed(cooper: &Cooper, session: &str, more: &[&str]) -> Vec<Value> {
    let args = [&["artifacts", "list", session], more].concat();
    cooper.json(args)["artifacts"].as_array().expect("a list").clone()
}

fn names(artifacts: &Value) -> Vec<&str> {
    artifacts.as_array().expect("a list").iter().map(|it| text(it, "name")).collect()
}

fn get(cooper: &Cooper, args: &[&str]) -> Vec<u8> {
    cooper.run([&["artifacts", "get"], args, &["--to", "-"]].concat()).expect(0).stdout
}

#[test]
fn what_is_written_beneath_artifacts_is_kept_and_what_is_not_is_said() {
    let cluster = Cluster::start();
    let cooper = cluster.cooper();
    let session = cooper.session();
    let nothing = cooper.json(["exec", &session, "-c", "1"]);
    assert_eq!(names(&nothing["artifacts"]), [""; 0]);

    let made = cooper.json(["exec", &session, "-c", MAKE]);
    assert_eq!(names(&made["artifacts"]), ["plots/one.png", "report.csv"]);
    let mut skipped: Vec<_> = made["artifacts_skipped"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|it| (text(it, "name"), text(it, "reason")))
        .collect();
    skipped.sort_unstable();
    assert_eq!(skipped, [("fifo", "special"), ("large", "too_large"), ("link", "symlink")]);
    let task = text(&made, "task_id");
    let report = &made["artifacts"][1];
    assert_eq!((text(report, "media_type"), &report["size_bytes"]), ("text/csv", &8.into()));

    // Nothing changed: neither again, nor said again. What a command changes is another artifact of the same name.
    let quiet = cooper.json(["exec", &session, "-c", "2"]);
    assert_eq!((names(&quiet["artifacts"]).len(), &quiet["artifacts_skipped_count"]), (0, &0.into()));
    let more = cooper.json(["sh", &session, "--", "sh", "-c", "echo 3,4 >> artifacts/report.csv"]);
    assert_eq!(names(&more["artifacts"]), ["report.csv"]);

    let all = listed(&cooper, &session, &[]);
    assert_eq!(names(&all.clone().into()), ["report.csv", "report.csv", "plots/one.png"]);
    assert_eq!(listed(&cooper, &session, &["--task", task]).len(), 2);
    assert_eq!(get(&cooper, &[&session, "report.csv"]), b"a,b\n1,2\n3,4\n", "the newest");
    assert_eq!(get(&cooper, &[text(report, "artifact_id")]), b"a,b\n1,2\n");

    cooper.ok(["session", "destroy", &session]);
    let bytes: Vec<u8> = (0..=255).collect::<Vec<u8>>().repeat(1000);
    assert_eq!(get(&cooper, &[&session, "plots/one.png"]), bytes);
    let part = get(&cooper, &[&session, "plots/one.png", "--offset", "200000", "--length", "100"]);
    assert_eq!(part, bytes[200_000..200_100]);

    // Another tenant's are not there.
    let stranger = Cooper::with_token(&cluster.url, &cluster.token("other", "client"));
    for args in [
        &["get", &session, "report.csv"][..],
        &["get", text(report, "artifact_id")],
        &["rm", text(report, "artifact_id")],
    ] {
        assert_eq!(stranger.error([&["artifacts"], args].concat()).code, "artifact_not_found", "{args:?}");
    }
    assert_eq!(stranger.error(["artifacts", "list", &session]).code, "session_not_found");
    cooper.ok(["artifacts", "rm", text(report, "artifact_id")]);
    assert_eq!(listed(&cooper, &session, &[]).len(), 2);
}

#[test]
fn a_quota_that_is_used_up_is_said_and_what_is_deleted_makes_room() {
    let cluster =
        Setup::python().env("COOPER_QUOTA_ARTIFACTS", "2").env("COOPER_QUOTA_ARTIFACT_MIB", "1").start();
    let cooper = cluster.cooper();
    let session = cooper.session();
    let write = |name: &str, bytes: usize| {
        let code = format!(
            "import os; os.makedirs('artifacts', exist_ok=True); open('artifacts/{name}', 'wb').write(b'x' * {bytes})"
        );
        cooper.json(["exec", &session, "-c", &code])
    };
    let large = write("large", (1 << 20) + 1);
    assert_eq!(large["artifacts_skipped"][0]["reason"], "quota_exceeded");
    let first = write("first", 1);
    write("second", 1);
    let third = write("third", 1);
    assert_eq!(third["artifacts_skipped"][0]["reason"], "quota_exceeded", "{third}");
    assert_eq!(text(&third, "state"), "succeeded");
    cooper.ok(["artifacts", "rm", text(&first["artifacts"][0], "artifact_id")]);
    assert_eq!(names(&write("fourth", 1)["artifacts"]), ["fourth"]);
    // Counted anew by the next coordinator.
    cluster.kill("coordinator");
    let list = ["artifacts", "list", &session];
    cooper.until_json("the coordinator", seconds(30), &list, |list| list["artifacts"].as_array().is_some());
    assert_eq!(write("fifth", 1)["artifacts_skipped"][0]["reason"], "quota_exceeded");
}

#[test]
fn artifacts_survive_kills_of_the_coordinator_before_it_says_that_it_has_them() {
    for failpoint in ["artifact-before-kept=1", "artifact-before-kept=2", "output-before-result=1"] {
        let mut fleet = Fleet::new();
        fleet.start_coordinator();
        fleet.start_worker("left");
        fleet.await_registered(0);
        let cooper = fleet.cooper();
        let session = cooper.session();
        fleet.end_coordinator();
        fleet.start_failing_coordinator(failpoint);
        cooper.until_json("the worker", seconds(30), &["workers"], |it| it["workers"][0]["state"] == "ready");
        let running = cooper.start(["--json", "exec", &session, "-c", MAKE], b"");
        fleet.await_dead_coordinator(seconds(30));
        fleet.start_coordinator();
        let made = running.finish(seconds(60)).expect(0).json();
        assert_eq!(names(&made["artifacts"]), ["plots/one.png", "report.csv"], "{failpoint}");
        assert_eq!(listed(&cooper, &session, &[]).len(), 2, "{failpoint}");
        assert_eq!(get(&cooper, &[&session, "report.csv"]), b"a,b\n1,2\n");
        fleet.stop();
    }
}

#[test]
fn artifacts_survive_a_kill_of_the_link_between_them_and_their_result() {
    let mut fleet = Fleet::new();
    fleet.start_coordinator();
    // The next link passes once before it would die again.
    fleet.start_worker_in("left", &[("FAILPOINTS", "artifacts-before-result=2")]);
    fleet.await_registered(0);
    let cooper = fleet.cooper();
    let session = cooper.session();
    let write = |name: &str| {
        let code = format!(
            "import os; os.makedirs('artifacts', exist_ok=True); open('artifacts/{name}', 'w').write('{name}')"
        );
        cooper.json(["exec", &session, "-c", &code])
    };
    let before = fleet.link("left").pid;
    assert_eq!(names(&write("a")["artifacts"]), ["a"]);
    assert_eq!(names(&write("b")["artifacts"]), ["b"]);
    assert_ne!(fleet.link("left").pid, before, "it died");
    assert_eq!(listed(&cooper, &session, &[]).len(), 2, "each once");
    assert_eq!(get(&cooper, &[&session, "b"]), b"b");
    fleet.stop();
}

#[test]
fn what_came_with_a_checkpoint_is_not_made_again_and_a_new_host_knows_what_was() {
    let mut fleet = Fleet::new();
    fleet.start_coordinator();
    fleet.start_worker("left");
    fleet.await_registered(0);
    let cooper = fleet.cooper();
    let session = cooper.session();
    cooper.exec(&session, MAKE);
    let saved = cooper.json(["checkpoint", "create", &session]);
    let restored = cooper.json(["checkpoint", "restore", text(&saved, "checkpoint_id")]);
    let restored = text(&restored, "session_id");
    let quiet = cooper.json(["exec", restored, "-c", "1"]);
    assert_eq!((names(&quiet["artifacts"]).len(), &quiet["artifacts_skipped_count"]), (0, &0.into()));
    let code = "open('artifacts/report.csv', 'w').write('anew')";
    assert_eq!(names(&cooper.json(["exec", restored, "-c", code])["artifacts"]), ["report.csv"]);

    fleet.end_worker(0, seconds(20));
    fleet.start_worker("left");
    fleet.await_registered(0);
    until_true("its interpreter", seconds(30), || cooper.run(["exec", &session, "-c", "1"]).status == 0);
    assert_eq!(listed(&cooper, &session, &[]).len(), 2, "none was made again");
    assert_eq!(get(&cooper, &[restored, "report.csv"]), b"anew");
    fleet.stop();
}
