//! Workers that are emptied by an operator, and workers that stop.

use cooper_proto::v1::{
    NoopSpec, SubmitTaskRequest, SubmitTasksRequest, TaskSpec, TaskState, WatchTasksRequest, task_spec::Kind,
};
use cooper_tests::{Answer, Cooper, fleet::Fleet, program::Running, seconds};

use super::repair::text;

/// Runs until the file `go` is there.
const UNTIL_GO: &str = "
import os, time
print('on', flush=True)
while not os.path.exists('go'): time.sleep(0.01)
print('done', flush=True)
";

fn worker(cooper: &Cooper, id: &str) -> Answer {
    let list = cooper.json(["workers"]);
    let mut workers = list["workers"].as_array().expect("a list").iter();
    workers.find(|worker| worker["worker_id"] == id).expect("it is known").clone()
}

fn begin(cooper: &Cooper, session: &str, code: &str) -> Running {
    let mut exec = cooper.start(["--json", "exec", session, "-c", code], b"");
    let list = ["tasks", "list", "--session", session];
    cooper.until_json("that it runs", seconds(20), &list, |list| list["tasks"][0]["state"] == "running");
    assert!(!exec.has_ended());
    exec
}

fn go(fleet: &Fleet, id: &str, session: &str) {
    let workspace = fleet.scratch.join(id).join("worker/sessions").join(session).join("workspace");
    std::fs::write(workspace.join("go"), "").expect("written");
}

#[test]
fn a_drained_worker_takes_nothing_new_and_finishes_what_it_has_across_a_restart_of_the_coordinator() {
    let (mut fleet, [left, _]) = Fleet::of_two();
    let cooper = fleet.cooper();
    cooper.exec(&left, "kept = 41");
    let running = begin(&cooper, &left, UNTIL_GO);
    let drained = cooper.json(["drain", "left", "--deadline", "5m"]);
    assert_eq!((text(&drained, "state"), &drained["drained_at_ms"]), ("draining", &0.into()));
    assert!(drained["drain_deadline_at_ms"].as_i64() > drained["draining_since_ms"].as_i64());
    assert_eq!(text(&worker(&cooper, "right"), "state"), "ready");
    assert!(cooper.ok(["workers"]).contains("left)"), "the table shows how long it may still take");

    // Nothing new, but what is there goes on: its session too.
    let there = cooper.session();
    assert_eq!(text(&cooper.json(["session", "show", &there]), "worker_id"), "right");
    assert_eq!(cooper.error(["session", "create"]).code, "no_capacity");
    assert_eq!(cooper.ok(["sh", &left, "--", "echo", "beside"]), "beside");

    // I13.
    fleet.end_coordinator();
    fleet.start_coordinator();
    cooper.until_json("both workers again", seconds(20), &["workers"], |list| {
        let states: Vec<_> =
            list["workers"].as_array().expect("a list").iter().map(|it| text(it, "state")).collect();
        states == ["draining", "ready"]
    });
    let waiting = cooper.start(["--json", "drain", "left", "--wait", "--deadline", "5m"], b"");
    go(&fleet, "left", &left);
    let ended = running.finish(seconds(30)).expect(0).json();
    assert_eq!(text(&ended, "stdout"), "on\ndone\n");
    let drained = waiting.finish(seconds(30)).expect(0).json();
    assert!(drained["drained_at_ms"].as_i64() > Some(0), "{drained:#}");
    assert_eq!(drained["sessions"], 1, "its session stays");
    assert_eq!(cooper.error(["exec", &left, "-c", "1"]).code, "worker_draining");

    assert_eq!(text(&cooper.json(["undrain", "left"]), "state"), "ready");
    assert_eq!(cooper.exec(&left, "kept + 1"), "42", "the interpreter is the same");
    let kinds: Vec<String> = cooper.json(["events"])["events"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|event| event["subject"] == "left")
        .map(|event| text(event, "kind").to_owned())
        .collect();
    for kind in ["worker.drain", "worker.draining", "worker.drained", "worker.undrained"] {
        assert!(kinds.iter().any(|known| known == kind), "{kind} in {kinds:?}");
    }
    assert_eq!(cooper.error(["drain", "nobody"]).code, "worker_not_found");
    fleet.stop();
}

#[test]
fn at_the_deadline_of_a_drain_what_still_runs_is_cancelled_and_told_why() {
    let (mut fleet, [left, _]) = Fleet::of_two();
    let cooper = fleet.cooper();
    let running = begin(&cooper, &left, "import time; time.sleep(1000)");
    let drained = cooper.json(["drain", "left", "--deadline", "1s", "--wait"]);
    assert!(drained["drained_at_ms"].as_i64() > Some(0), "{drained:#}");
    let ended = running.finish(seconds(20)).json();
    assert_eq!((text(&ended, "state"), text(&ended["error"], "code")), ("cancelled", "worker_draining"));
    // With nothing that runs there is nothing to wait for.
    cooper.ok(["undrain", "left"]);
    cooper.ok(["drain", "left", "--deadline", "0s", "--wait"]);
    fleet.stop();
}

#[test]
fn a_worker_that_is_told_to_stop_lets_what_runs_end_and_delivers_it() {
    let (mut fleet, [left, _]) = Fleet::of_two();
    let cooper = fleet.cooper();
    cooper.exec(&left, "open('kept', 'w').write('bytes')");
    let code =
        "import time\nfor i in range(20_000):\n    print(i)\n    if i % 1000 == 0: time.sleep(0.1)\n'last'";
    let running = begin(&cooper, &left, code);
    let said = fleet.end_worker(0, seconds(30));
    assert!(said.err().contains("draining"), "{said}");
    let ended = running.finish(seconds(5)).expect(0).json();
    let lines: String = (0..20_000).map(|i| format!("{i}\n")).collect();
    assert_eq!((text(&ended, "stdout"), &ended["attempt"]), (lines.as_str(), &1.into()));
    assert_eq!(text(&worker(&cooper, "left"), "state"), "gone");
    // It comes back with its session: files are there, variables are not.
    fleet.start_worker("left");
    fleet.await_registered(1);
    let show = ["session", "show", &left];
    let session = cooper.until_json("its session", seconds(20), &show, |it| it["state"] == "ready");
    assert_eq!(session["interpreter_restarted"], true);
    assert_eq!(cooper.exec(&left, "print(open('kept').read())"), "bytes");
    fleet.stop();
}

#[test]
fn tasks_that_cross_the_stop_of_their_worker_are_done_by_another() {
    const TASKS: usize = 5_000;
    let (mut fleet, _) = Fleet::of_two();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let client = runtime.block_on(fleet.client());
    let (watching, submitting) = (client.clone(), client.clone());
    let ended = runtime.spawn(async move {
        let mut watch =
            watching.tasks().watch_tasks(WatchTasksRequest::default()).await.expect("a watch").into_inner();
        let mut ends = std::collections::BTreeMap::new();
        while ends.len() < TASKS {
            let batch = watch.message().await.expect("the watch goes on").expect("it has no end");
            for task in batch.tasks {
                let before = ends.insert(task.id.clone(), task.state());
                assert_eq!(before, None, "I3: {} ended twice", task.id);
            }
        }
        ends
    });
    runtime.spawn(async move {
        let noop = |_| SubmitTaskRequest {
            spec: Some(TaskSpec { kind: Some(Kind::Noop(NoopSpec {})), ..TaskSpec::default() }),
            ..SubmitTaskRequest::default()
        };
        let batches =
            (0..TASKS / 500).map(move |_| SubmitTasksRequest { tasks: (0..500).map(noop).collect() });
        let answers = submitting.tasks().submit_tasks(tokio_stream::iter(batches)).await.expect("taken");
        let mut answers = answers.into_inner();
        while let Some(answer) = answers.message().await.expect("all are taken") {
            assert!(answer.errors.is_empty(), "{:?}", answer.errors);
        }
    });
    // In the middle of it.
    cooper_tests::wait::until_true("some of them", seconds(20), || {
        fleet.cooper().json(["status"])["tasks_queued"].as_u64() > Some(0) || ended.is_finished()
    });
    fleet.end_worker(0, seconds(10));
    let ends = runtime
        .block_on(async { tokio::time::timeout(seconds(60), ended).await.expect("all end").expect("once") });
    assert!(ends.values().all(|state| *state == TaskState::Succeeded));
    fleet.stop();
}

#[test]
fn a_second_signal_ends_a_worker_that_waits() {
    let (mut fleet, [left, _]) = Fleet::of_two();
    let running = begin(&fleet.cooper(), &left, "import time; time.sleep(1000)");
    fleet.worker(0).signal(rustix::process::Signal::TERM);
    fleet.worker(0).await_said("that it drains", seconds(10), |worker| {
        worker.stderr().contains("draining").then_some(())
    });
    assert!(!fleet.worker(0).has_ended(), "it waits");
    fleet.end_worker(0, seconds(5));
    drop(running);
    fleet.stop();
}
