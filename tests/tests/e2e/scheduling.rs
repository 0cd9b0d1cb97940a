//! What runs when: priority, labels, deadlines, attempts, and what a task waits for.

use cooper_proto::v1::{
    ExplainTaskRequest, GetTaskRequest, NoopSpec, SubmitTaskRequest, TaskSpec, TaskState, task_spec::Kind,
};
use cooper_tests::{Cluster, Cooper, Running, fleet::Fleet, grpc::Client, seconds, shared, wait::until_true};
use serde_json::Value;

/// Tasks of a session in a state, newest first.
fn tasks_in(cooper: &Cooper, session: &str, state: &str) -> Vec<Value> {
    let list = cooper.json(["tasks", "list", "--session", session, "--state", state]);
    list["tasks"].as_array().expect("a list").clone()
}

/// Starts an execution and waits until it is queued; its id.
fn queued(cooper: &Cooper, session: &str, args: &[&str]) -> (Running, String) {
    let before = tasks_in(cooper, session, "queued").len();
    let running = cooper.start(["exec", session].iter().chain(args), b"");
    until_true("one more in the queue", seconds(20), || tasks_in(cooper, session, "queued").len() > before);
    let newest = tasks_in(cooper, session, "queued")[0]["task_id"].as_str().expect("an id").to_owned();
    (running, newest)
}

/// An execution that has the interpreter until [`let_go`].
fn busy(cooper: &Cooper, session: &str) -> (Running, String) {
    let code = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.02)";
    let running = cooper.start(["exec", session, "-c", code], b"");
    let holds = || tasks_in(cooper, session, "running").first().map(|task| task["task_id"].clone());
    until_true("the interpreter is busy", seconds(20), || holds().is_some());
    let id = holds().and_then(|id| id.as_str().map(str::to_owned)).expect("an id");
    (running, id)
}

fn let_go(cooper: &Cooper, session: &str) {
    cooper.ok(["sh", "-n", session, "touch", "go"]);
}

#[test]
fn a_higher_priority_goes_first_and_a_task_says_what_it_waits_for() {
    let cluster = shared();
    let cooper = cluster.cooper();
    let session = cooper.session();
    cooper.exec(&session, "order = []");
    let (first, holder) = busy(&cooper, &session);
    let (low, low_id) = queued(&cooper, &session, &["-c", "order.append('low')"]);
    let (high, high_id) = queued(&cooper, &session, &["--priority", "5", "-c", "order.append('high')"]);
    let (last, _) = queued(&cooper, &session, &["--priority", "-1", "-c", "order.append('last')"]);

    let why = cooper.json(["tasks", "why", &low_id]);
    assert_eq!(why["code"], "interpreter_busy", "{why}");
    assert_eq!(why["blocking_task_id"], holder.as_str());
    assert_eq!(why["ahead"], 1, "the one of the higher priority");
    let said = cooper.ok(["tasks", "why", &high_id]);
    assert!(said.starts_with("interpreter_busy: the interpreter of") && said.contains(&holder), "{said}");
    let why = cooper.json(["tasks", "why", &holder]);
    assert_eq!(why["code"], "running", "{why}");

    let_go(&cooper, &session);
    for done in [first, low, high, last] {
        done.finish(seconds(30)).expect(0);
    }
    assert_eq!(cooper.exec(&session, "print(*order)"), "high low last");
    let why = cooper.json(["tasks", "why", &high_id]);
    assert_eq!((&why["code"], &why["sentence"]), (&"ended".into(), &"it ended as succeeded".into()));
    cooper.ok(["session", "destroy", &session]);
}

#[test]
fn a_task_that_used_up_its_attempts_is_a_dead_letter_until_it_is_requeued() {
    let cluster = shared();
    let cooper = cluster.cooper();
    let session = cooper.session();
    cooper.exec(&session, "n = 0");
    let code = "n += 1\nprint('attempt', n)\nassert n > 2, n";
    let retry = ["--retry", "always", "--max-attempts", "2"];
    let (status, dead) = cooper.run_json([&["exec", session.as_str()][..], &retry, &["-c", code]].concat());
    assert_eq!((status, &dead["state"]), (125, &"dead_letter".into()), "{dead}");
    assert_eq!(dead["error"]["code"], "attempts_exhausted");
    assert_eq!((&dead["attempts_used"], &dead["max_attempts"]), (&2.into(), &2.into()));
    assert_eq!(dead["stdout"], "attempt 2\n", "output is the last attempt's, each byte once");
    assert_eq!(dead["exception"]["name"], "AssertionError", "the last attempt's own end is kept");

    let id = dead["task_id"].as_str().expect("an id");
    assert_eq!(tasks_in(&cooper, &session, "dead_letter")[0]["task_id"], id);
    let again = cooper.json(["tasks", "requeue", id]);
    assert_eq!(again["attempts_used"], 0, "{again}");
    let (status, done) = cooper.run_json(["tasks", "follow", id]);
    assert_eq!((status, &done["state"], &done["stdout"]), (0, &"succeeded".into(), &"attempt 3\n".into()));
    assert_eq!(done["attempt"], 3, "fences go on");
    assert_eq!(cooper.error(["tasks", "requeue", id]).code, "not_dead_letter");

    let events = cooper.ok(["events", "--json"]);
    let of_it: Vec<Value> = serde_json::Deserializer::from_str(&events)
        .into_iter::<Value>()
        .filter_map(Result::ok)
        .flat_map(|one| one["events"].as_array().cloned().unwrap_or_else(|| vec![one]))
        .filter(|event| event["subject"] == id)
        .collect();
    let kinds: Vec<&str> = of_it.iter().filter_map(|event| event["kind"].as_str()).collect();
    let ends: Vec<&str> =
        kinds.iter().copied().filter(|kind| !["task.assigned", "task.running"].contains(kind)).collect();
    assert_eq!(
        ends,
        ["task.queued", "task.queued", "task.dead_letter", "task.requeued", "task.succeeded"],
        "{of_it:?}"
    );
    cooper.ok(["session", "destroy", &session]);
}

#[test]
fn an_execution_that_asked_for_it_runs_again_after_the_loss_of_its_host() {
    let cluster = Cluster::start();
    let cooper = cluster.cooper();
    let session = cooper.session();
    let code = "
import os, time
first = not os.path.exists('begun')
open('begun', 'a').write('x')
print('first' if first else 'second', flush=True)
if first: time.sleep(1000)
";
    let running = cooper.start(["--json", "exec", &session, "--retry", "lost", "-c", code], b"");
    let begun = cluster.data.join("worker/sessions").join(&session).join("workspace/begun");
    until_true("that it runs", seconds(20), || begun.exists());
    cluster.kill("worker");
    let done = running.finish(seconds(60)).expect(0).json();
    assert_eq!(done["state"], "succeeded", "{done}");
    assert_eq!(done["stdout"], "second\n", "the lost attempt's output does not count");
    assert_eq!((&done["attempts_used"], &done["attempt"]), (&1.into(), &2.into()), "{done}");
    assert_eq!(cooper.exec(&session, "print(open('begun').read())"), "xx");
}

#[test]
fn a_deadline_ends_what_waits_and_what_runs_and_says_which_one_it_was() {
    let cluster = shared();
    let cooper = cluster.cooper();
    let session = cooper.session();
    let (first, _) = busy(&cooper, &session);
    let started = "open('started', 'w')";
    let (status, late) = cooper.run_json(["exec", &session, "--schedule-to-start", "1s", "-c", started]);
    assert_eq!((status, &late["state"]), (124, &"timed_out".into()), "{late}");
    assert_eq!(late["attempt"], 0, "it was handed to nobody");
    let message = late["error"]["message"].as_str().expect("a message");
    assert!(message.starts_with("deadline schedule_to_start"), "{message}");
    let_go(&cooper, &session);
    first.finish(seconds(30)).expect(0);

    let forever = "import time\nprint('on', flush=True)\ntime.sleep(600)";
    let (status, late) = cooper.run_json(["exec", &session, "--schedule-to-close", "1s", "-c", forever]);
    assert_eq!((status, &late["state"]), (124, &"timed_out".into()), "{late}");
    let message = late["error"]["message"].as_str().expect("a message");
    assert!(message.starts_with("deadline schedule_to_close"), "{message}");
    assert_eq!(late["stdout"], "on\n", "what it wrote is kept");
    assert_eq!(cooper.exec(&session, "import os; print(os.path.exists('started'))"), "False");
    cooper.ok(["session", "destroy", &session]);
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_say_where_sessions_and_tasks_may_go() {
    let mut fleet = Fleet::new();
    fleet.start_coordinator();
    fleet.start_labelled_worker("plain", "");
    fleet.await_registered(0);
    let cooper = fleet.cooper();
    let refused = cooper.error(["session", "create", "--on", "zone=b"]);
    assert_eq!(refused.code, "no_worker");
    assert!(refused.message.contains("zone=b"), "{refused:?}");

    let token = std::fs::read_to_string(fleet.scratch.join("coordinator/admin.token")).expect("a token");
    let client = Client::connect(&fleet.url(), Some(token.trim())).await;
    let noop = SubmitTaskRequest {
        spec: Some(TaskSpec { kind: Some(Kind::Noop(NoopSpec {})), ..TaskSpec::default() }),
        worker_labels: [("zone".to_owned(), "b".to_owned())].into(),
        ..SubmitTaskRequest::default()
    };
    let task_id = client.tasks().submit_task(noop).await.expect("taken").into_inner().id;
    let why = client.tasks().explain_task(ExplainTaskRequest { task_id: task_id.clone() }).await;
    let why = why.expect("an answer").into_inner();
    assert_eq!(why.code, "no_worker_with_labels", "{}", why.sentence);
    assert!(why.sentence.contains("zone=b"), "{}", why.sentence);

    fleet.start_labelled_worker("b", "zone=b,gpu=no");
    fleet.await_registered(1);
    let done = loop {
        let request = GetTaskRequest { task_id: task_id.clone() };
        let task = client.tasks().get_task(request).await.expect("there").into_inner();
        if task.state() >= TaskState::Succeeded {
            break task;
        }
    };
    assert_eq!((done.state(), done.worker_id.as_str()), (TaskState::Succeeded, "b"));
    let made = cooper.json(["session", "create", "--on", "zone=b", "--on", "gpu=no"]);
    assert_eq!(made["worker_id"], "b", "{made}");
    let session = made["session_id"].as_str().expect("an id");
    assert_eq!(cooper.exec(session, "print(1)"), "1", "its tasks go where it is");
    fleet.stop();
}
