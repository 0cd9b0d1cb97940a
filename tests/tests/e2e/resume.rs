//! I4: whoever watches goes on where a cut left it, over restarts of the coordinator, without a gap and without doubles.

use std::collections::BTreeMap;

use cooper_proto::v1::{
    FollowRequest, GetInfoRequest, NoopSpec, SubmitTaskRequest, SubmitTasksRequest, TaskSpec, TaskState,
    WatchEventsRequest, WatchTasksRequest, execute_response, task_spec::Kind,
};
use cooper_tests::{fleet::Fleet, grpc::Client, seconds};
use tokio::{runtime::Runtime, time::timeout};

use super::repair::text;

fn started() -> (Fleet, Runtime) {
    let mut fleet = Fleet::new();
    fleet.start_coordinator();
    fleet.start_worker("only");
    fleet.await_registered(0);
    (fleet, Runtime::new().expect("a runtime"))
}

fn restart(fleet: &mut Fleet) {
    fleet.end_coordinator();
    fleet.start_coordinator();
    fleet.await_ready(200);
}

async fn submit(client: &Client, tasks: usize) -> Vec<String> {
    let noop = |_| SubmitTaskRequest {
        spec: Some(TaskSpec { kind: Some(Kind::Noop(NoopSpec {})), ..TaskSpec::default() }),
        ..SubmitTaskRequest::default()
    };
    let batch = SubmitTasksRequest { tasks: (0..tasks).map(noop).collect() };
    let mut answers =
        client.tasks().submit_tasks(tokio_stream::once(batch)).await.expect("taken").into_inner();
    answers.message().await.expect("an answer").expect("one").task_ids
}

#[test]
fn watched_tasks_are_seen_to_end_once_each_across_cuts_and_restarts() {
    let (mut fleet, runtime) = started();
    let mut next_seq = runtime.block_on(async {
        let client = fleet.client().await;
        client.admin().get_info(GetInfoRequest {}).await.expect("info").into_inner().last_event_seq + 1
    });
    let (mut submitted, mut seen) = (Vec::new(), BTreeMap::new());
    for round in 0..4 {
        submitted.extend(runtime.block_on(async { submit(&fleet.client().await, 200).await }));
        // Some of them are seen, then the watch is cut, and more end while nobody looks.
        runtime.block_on(async {
            let client = fleet.client().await;
            let request = WatchTasksRequest { task_ids: Vec::new(), from_seq: next_seq };
            let mut watch = client.tasks().watch_tasks(request).await.expect("a watch").into_inner();
            while seen.len() < submitted.len() - 120 {
                let batch = timeout(seconds(20), watch.message()).await.expect("in time");
                let batch = batch.expect("the watch goes on").expect("it has no end");
                for task in batch.tasks {
                    assert_eq!(task.state(), TaskState::Succeeded);
                    assert_eq!(seen.insert(task.id.clone(), round), None, "{} twice", task.id);
                    next_seq = batch.next_seq;
                }
            }
        });
        restart(&mut fleet);
    }
    runtime.block_on(async {
        let client = fleet.client().await;
        let request = WatchTasksRequest { task_ids: Vec::new(), from_seq: next_seq };
        let mut watch = client.tasks().watch_tasks(request).await.expect("a watch").into_inner();
        while seen.len() < submitted.len() {
            let batch = timeout(seconds(20), watch.message()).await.expect("in time");
            for task in batch.expect("the watch goes on").expect("it has no end").tasks {
                assert_eq!(seen.insert(task.id.clone(), 9), None, "{} twice", task.id);
            }
        }
    });
    assert!(submitted.iter().all(|id| seen.contains_key(id)), "every one, once");
    fleet.stop();
}

#[test]
fn events_go_on_where_they_were_cut_and_end_where_they_end() {
    let (mut fleet, runtime) = started();
    let cooper = fleet.cooper();
    let mut following = cooper.start(["--json", "events", "--follow", "--from", "1"], b"");
    for _ in 0..3 {
        runtime.block_on(async { submit(&fleet.client().await, 50).await });
        restart(&mut fleet);
    }
    let last = runtime.block_on(async { submit(&fleet.client().await, 1).await }).remove(0);
    cooper.until_json("its end", seconds(20), &["tasks", "show", &last], |task| task["state"] == "succeeded");
    following.await_said("the last event", seconds(30), |following| {
        let said = following.stdout();
        let ended = said.lines().any(|line| line.contains(&last) && line.contains("task.succeeded"));
        ended.then_some(())
    });
    let said = following.stdout();
    let follower: Vec<u64> = said
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).expect("JSON")["seq"].as_u64().expect("a number")
        })
        .collect();
    drop(following);
    // Without --follow it ends by itself, with all there is: that is what the follower saw.
    let all = cooper.json(["events"]);
    let all: Vec<u64> = all["events"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|it| it["seq"].as_u64().expect("a number"))
        .collect();
    assert_eq!(follower[..], all[..follower.len()], "no gap, no double");
    assert!(follower.len() > 400 && all.windows(2).all(|pair| pair[0] < pair[1]));

    // As programs do it.
    let (mut next_seq, mut seen) = (1, Vec::new());
    for stop_at in [100, 300, all.len()] {
        runtime.block_on(async {
            let client = fleet.client().await;
            let request = WatchEventsRequest { from_seq: next_seq, until_end: false };
            let mut feed = client.admin().watch_events(request).await.expect("a feed").into_inner();
            while seen.len() < stop_at {
                let event = timeout(seconds(20), feed.message()).await.expect("in time").expect("it goes on");
                let event = event.expect("it has no end");
                seen.push(event.seq);
                next_seq = event.seq + 1;
            }
        });
        restart(&mut fleet);
    }
    assert_eq!(seen, all);
    fleet.stop();
}

#[test]
fn output_is_followed_from_an_offset_across_restarts() {
    let (mut fleet, runtime) = started();
    let cooper = fleet.cooper();
    let session = cooper.session();
    let code = "import time\nfor i in range(30_000):\n    print(i)\n    if i % 1000 == 0: time.sleep(0.1)";
    let running = cooper.start(["--json", "exec", &session, "-c", code], b"");
    let list = ["tasks", "list", "--session", &session];
    let listed =
        cooper.until_json("that it runs", seconds(20), &list, |list| list["tasks"][0]["state"] == "running");
    let task_id = text(&listed["tasks"][0], "task_id").to_owned();
    let expected: String = (0..30_000).map(|i| format!("{i}\n")).collect();
    let mut output = Vec::new();
    for stop_at in [10_000, 60_000, expected.len()] {
        runtime.block_on(async {
            let client = fleet.client().await;
            let stdout_offset = output.len() as u64;
            let request =
                FollowRequest { task_id: task_id.clone(), stdout_offset, ..FollowRequest::default() };
            let mut events = client.tasks().follow(request).await.expect("followed").into_inner();
            while output.len() < stop_at {
                let event =
                    timeout(seconds(20), events.message()).await.expect("in time").expect("it goes on");
                if let Some(execute_response::Event::Output(piece)) = event.expect("not yet its end").event {
                    assert_eq!(piece.offset, output.len() as u64, "no gap, no double");
                    output.extend_from_slice(&piece.data);
                }
            }
        });
        restart(&mut fleet);
    }
    assert!(output == expected.as_bytes(), "{} of {} bytes", output.len(), expected.len());
    // The command that ran it went on by itself.
    assert_eq!(text(&running.finish(seconds(60)).expect(0).json(), "stdout"), expected);
    fleet.stop();
}
