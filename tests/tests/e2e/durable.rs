//! I4 and I5: what runs goes on when a coordinator or a link dies, and no byte is lost or doubled.

use cooper_tests::{Cluster, Running, Setup, docker, docker::Stack, seconds, wait::until_true};
use rustix::process::{Signal, kill_process};

use super::repair::{patient, text};

const LINES: usize = 200_000;

/// Prints numbered lines over about six seconds.
const COUNT: &str = "
import time
start = time.monotonic()
for i in range(200_000):
    print(i)
    if i % 500 == 0: time.sleep(max(0, start + 6 * i / 200_000 - time.monotonic()))
";

fn begin(cluster: &Cluster, session: &str) -> Running {
    cluster.cooper().start(["exec", session, "-c", COUNT], b"")
}

fn await_bytes(counting: &mut Running, bytes: usize) {
    let what = format!("{bytes} bytes of output");
    counting.await_said(&what, seconds(60), |counting| (counting.stdout_len() >= bytes).then_some(()));
}

#[track_caller]
fn is_complete(counting: Running) {
    let done = counting.finish(seconds(90)).expect(0);
    let expected: Vec<String> = (0..LINES).map(|line| line.to_string()).collect();
    let out = done.out();
    let mut lines = 0;
    for (line, expected) in out.lines().zip(&expected) {
        assert_eq!(line, expected, "line {lines} of {}", out.lines().count());
        lines += 1;
    }
    assert_eq!((lines, out.lines().count()), (LINES, LINES), "every line, once");
}

#[test]
fn an_execution_outlives_three_kills_of_the_coordinator_and_its_output_is_complete() {
    let cluster = Cluster::start();
    let session = cluster.cooper().session();
    let mut counting = begin(&cluster, &session);
    for bytes in [100_000, 500_000, 900_000] {
        await_bytes(&mut counting, bytes);
        cluster.kill("coordinator");
    }
    is_complete(counting);
    // All bytes may have been there before the last kill: the coordinator may just be coming back.
    let list = ["tasks", "list", "--session", &session];
    let tasks = cluster.cooper().until_json("a list of tasks", seconds(30), &list, |_| true);
    let ends: Vec<(&str, u64)> = tasks["tasks"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|task| (text(task, "state"), task["attempt"].as_u64().unwrap_or_default()))
        .collect();
    assert_eq!(ends, [("succeeded", 1)], "it ran once");
    assert_eq!(cluster.cooper().exec(&session, "i"), "199999", "the interpreter is the same");
}

#[test]
fn an_execution_outlives_kills_of_the_workers_link_and_its_output_is_complete() {
    let cluster = Cluster::start();
    let session = cluster.cooper().session();
    let host = cluster.process("worker");
    let mut counting = begin(&cluster, &session);
    for bytes in [100_000, 600_000] {
        await_bytes(&mut counting, bytes);
        cluster.kill("worker-link");
    }
    is_complete(counting);
    assert_eq!(cluster.process("worker"), host, "the host is the same");
    assert_eq!(cluster.cooper().exec(&session, "i"), "199999");
}

#[test]
fn an_execution_that_ends_while_the_coordinator_is_away_has_its_result() {
    let mut cluster = Cluster::start();
    let session = cluster.cooper().session();
    // `up` would start it again at once.
    let up = cluster.pid();
    let code = "
import os, time
print('on', flush=True)
while not os.path.exists('go'): time.sleep(0.01)
print('done', flush=True)
open('went', 'w').close()
6 * 7
";
    let mut exec = cluster.cooper().start(["exec", &session, "-c", code], b"");
    exec.await_said("that it runs", seconds(20), |exec| exec.stdout().contains("on").then_some(()));
    kill_process(up, Signal::STOP).expect("it runs");
    cluster.kill("coordinator");
    let workspace = cluster.data.join("worker/sessions").join(&session).join("workspace");
    std::fs::write(workspace.join("go"), "").expect("written");
    until_true("the end of the code", seconds(20), || workspace.join("went").exists());
    kill_process(up, Signal::CONT).expect("it is there");
    assert_eq!(exec.finish(seconds(60)).expect(0).out(), "on\ndone\n42\n");
    cluster.stop().expect(0);
}

#[test]
fn the_loss_of_the_host_loses_what_ran_and_nothing_else() {
    let cluster = Cluster::start();
    let cooper = cluster.cooper();
    let session = cooper.session();
    cooper.exec(&session, "open('kept', 'w').write('bytes'); gone = 1");
    let code = "import time; print('begun', flush=True); time.sleep(1000)";
    let busy = cooper.start(["--json", "exec", &session, "-c", code], b"");
    cooper.until_json("that it runs", seconds(20), &["tasks", "list", "--session", &session], |list| {
        list["tasks"][0]["state"] == "running"
    });
    let before = cluster.process("worker");
    cluster.kill("worker");
    let done = busy.finish(seconds(60));
    assert_eq!(done.status, 125, "{done}");
    let task = done.json();
    assert_eq!((text(&task, "state"), &task["error"]["code"]), ("lost", &"worker_lost".into()), "{task:#}");
    assert!(
        task["stdout"].as_str().is_some_and(|out| "begun\n".starts_with(out)),
        "no byte that was not there"
    );

    let session_now = cooper.until_json(
        "the session to be ready",
        seconds(30),
        &["session", "show", &session],
        |session| session["state"] == "ready",
    );
    assert_eq!(session_now["interpreter_restarted"], true, "{session_now:#}");
    assert_ne!(cluster.process("worker").pid, before.pid);
    assert_eq!(cooper.exec(&session, "print(open('kept').read())"), "bytes");
    assert!(cooper.run(["exec", &session, "-c", "gone"]).expect(1).err().contains("NameError"));
}

#[test]
fn a_repair_outlives_a_kill_of_the_coordinator_in_its_build() {
    if !docker::wanted("a_repair_outlives_a_kill_of_the_coordinator_in_its_build") {
        return;
    }
    let stack = Stack::files("durable");
    stack.break_it("missing-python-package");
    // Or the layer of another test is used, and the build is over before anybody sees it.
    stack.append("web/requirements.txt", &format!("# {}\n", stack.project));
    stack.compose(&["up", "-d", "--build"]);
    let cluster = Setup::compose().start();
    let cooper = patient(cluster.cooper());
    let mut following = cooper.start(["--json", "repair", "web", "--stack", stack.arg()], b"");
    let building = cooper.until_json("a running build", seconds(120), &["runs", "list"], |list| {
        let steps = list["runs"][0]["steps"].as_array();
        steps.is_some_and(|steps| {
            steps.iter().any(|step| step["name"] == "build" && step["state"] == "running")
        })
    });
    cluster.kill("coordinator");
    assert!(!following.has_ended(), "whoever follows waits");
    let run = following.finish(seconds(300)).expect(0).json();
    assert_eq!(
        (text(&run, "state"), &run["run_id"]),
        ("succeeded", &building["runs"][0]["run_id"]),
        "{run:#}"
    );
    assert_eq!(stack.health("web"), "healthy");
    assert!(!cooper.run(["runs", "artifact", text(&run, "run_id"), "build.log"]).expect(0).stdout.is_empty());
}

#[test]
fn a_run_that_waits_for_approval_outlives_a_kill_of_everything() {
    if !docker::wanted("a_run_that_waits_for_approval_outlives_a_kill_of_everything") {
        return;
    }
    let stack = Stack::broken("waiting", &["protected"]);
    let mut cluster = Setup::compose().start();
    let cooper = patient(cluster.cooper());
    let (status, run) = cooper.run_json(["repair", "web", "--stack", stack.arg()]);
    assert_eq!(status, 3, "{run:#}");
    cluster.kill_everything_but(|_| false);
    cluster.start_up();
    let id = text(&run, "run_id");
    let again = cooper.json(["runs", "show", id]);
    for field in ["state", "plan_hash", "approval", "artifacts"] {
        assert_eq!(again[field], run[field], "{field}");
    }
    assert_eq!(text(&cooper.json(["approve", id, "--follow"]), "state"), "succeeded");
    assert_eq!(stack.health("web"), "healthy");
}
