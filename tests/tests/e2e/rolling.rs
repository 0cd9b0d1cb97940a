//! A rolling upgrade under load, as docs/configuration.md tells it: coordinator, links, workers, one after the other.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cooper_proto::v1::{
    GetInfoRequest, NoopSpec, SubmitTaskRequest, TaskSpec, TaskState, WatchTasksRequest, task_spec::Kind,
    tasks_client::TasksClient,
};
use cooper_tests::{fleet::Fleet, processes, seconds, wait::until_true};
use rustix::process::{Signal, kill_process};

use super::repair::text;

/// Prints numbered lines over about twelve seconds.
const COUNT: &str = "
import time
start = time.monotonic()
for i in range(60_000):
    print(i)
    if i % 500 == 0: time.sleep(max(0, start + 12 * i / 60_000 - time.monotonic()))
";

#[test]
fn an_upgrade_of_everything_one_after_the_other_loses_and_doubles_nothing() {
    let (mut fleet, sessions) = Fleet::of_two();
    let cooper = fleet.cooper();
    let counting =
        sessions.each_ref().map(|session| cooper.start(["--json", "exec", session, "-c", COUNT], b""));

    // One that had not reached its worker would be sent again after the restart, as a second attempt.
    cooper.until_json("both to run", seconds(30), &["tasks", "list", "--state", "running"], |list| {
        list["tasks"].as_array().is_some_and(|tasks| tasks.len() == 2)
    });

    // Small tasks all the while, each with a key: whoever is cut asks again.
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (url, stop) = (fleet.url(), Arc::new(AtomicBool::new(false)));
    let token = std::fs::read_to_string(fleet.scratch.join("coordinator/admin.token")).expect("a token");
    let first_seq = runtime.block_on(async {
        let client = fleet.client().await;
        client.admin().get_info(GetInfoRequest {}).await.expect("info").into_inner().last_event_seq + 1
    });
    let load = runtime.spawn(load(url, token.trim().to_owned(), Arc::clone(&stop)));

    // The coordinator.
    fleet.end_coordinator();
    fleet.start_coordinator();
    fleet.await_ready(200);
    for id in ["left", "right"] {
        let before = fleet.link(id);
        // The link of a worker, by the host; the program at its place is the upgrade.
        let host = processes::of(&fleet.scratch.join(id))
            .into_iter()
            .find(|process| process.args.get(1).is_some_and(|arg| arg == "worker"))
            .expect("the host");
        kill_process(host.pid(), Signal::USR2).expect("it runs");
        until_true("another link", seconds(20), || {
            !processes::is_alive(before.pid) && fleet.link(id).pid != before.pid
        });
    }
    // The coordinator once more, with new links on old hosts.
    fleet.end_coordinator();
    fleet.start_coordinator();
    fleet.await_ready(200);
    let attached = |workers: usize| {
        fleet
            .cooper()
            .until_json("the workers", seconds(30), &["status"], |it| it["workers_attached"] == workers);
    };
    attached(2);
    // A worker: emptied, ended, started anew.
    let drained = cooper.json(["drain", "left", "--deadline", "2m", "--wait"]);
    assert!(drained["drained_at_ms"].as_i64() > Some(0));
    fleet.end_worker(0, seconds(10));
    fleet.start_worker("left");
    fleet.await_registered(1);
    cooper.ok(["undrain", "left"]);
    // The other one is just told to stop: it waits for what runs.
    fleet.end_worker(0, seconds(60));
    fleet.start_worker("right");
    fleet.await_registered(1);

    let expected: String = (0..60_000).map(|i| format!("{i}\n")).collect();
    for exec in counting {
        let ended = exec.finish(seconds(60)).expect(0).json();
        assert!(text(&ended, "stdout") == expected, "every byte, once");
        assert_eq!((text(&ended, "state"), &ended["attempt"]), ("succeeded", &1.into()));
    }
    stop.store(true, Ordering::SeqCst);
    let submitted = runtime.block_on(async {
        tokio::time::timeout(seconds(60), load).await.expect("in time").expect("it ends")
    });
    assert!(submitted.len() > 200, "there was load: {}", submitted.len());
    // I3: each ended, once, and well.
    let ends = runtime.block_on(async {
        let client = fleet.client().await;
        let request = WatchTasksRequest { task_ids: Vec::new(), from_seq: first_seq };
        let mut watch = client.tasks().watch_tasks(request).await.expect("a watch").into_inner();
        let mut ends = BTreeMap::new();
        while !submitted.iter().all(|id| ends.contains_key(id)) {
            let batch = tokio::time::timeout(seconds(30), watch.message()).await.expect("all end");
            for task in batch.expect("it goes on").expect("it has no end").tasks {
                assert_eq!(ends.insert(task.id.clone(), task.state()), None, "{} twice", task.id);
            }
        }
        ends
    });
    assert!(ends.values().all(|state| *state == TaskState::Succeeded), "nothing is lost");
    for session in &sessions {
        assert_eq!(cooper.exec(session, "print(6 * 7)"), "42", "sessions came through");
    }
    fleet.stop();
}

async fn load(url: String, token: String, stop: Arc<AtomicBool>) -> Vec<String> {
    let mut submitted = Vec::new();
    let mut key = 0;
    let bearer: tonic::metadata::MetadataValue<_> = format!("Bearer {token}").parse().expect("a token");
    while !stop.load(Ordering::SeqCst) {
        let endpoint = tonic::transport::Endpoint::from_shared(url.clone()).expect("a URL");
        let Ok(channel) = endpoint.connect().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let bearer = bearer.clone();
        let mut client = TasksClient::with_interceptor(channel, move |mut request: tonic::Request<()>| {
            request.metadata_mut().insert("authorization", bearer.clone());
            Ok(request)
        });
        while !stop.load(Ordering::SeqCst) {
            let spec = TaskSpec { kind: Some(Kind::Noop(NoopSpec {})), ..TaskSpec::default() };
            let idempotency_key = format!("load-{key}");
            let request = SubmitTaskRequest { spec: Some(spec), idempotency_key, ..Default::default() };
            let Ok(answer) = client.submit_task(request).await else { break };
            submitted.push(answer.into_inner().id);
            key += 1;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    submitted
}
