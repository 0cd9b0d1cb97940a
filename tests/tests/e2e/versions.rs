//! Workers of other versions: the contract spoken by hand, as an older or a newer build would.

use std::time::Duration;

use cooper_common::limits::link::PROTOCOL_MAX;
use cooper_proto::v1::{
    self, Credit, Down, Hello, NoopSpec, SubmitTaskRequest, TaskSpec, TaskState, Up, down, task_spec::Kind,
    up, worker_link_client::WorkerLinkClient,
};
use cooper_tests::{
    Setup,
    grpc::{Client, refusal},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::repair::text;

const PATIENCE: Duration = Duration::from_secs(20);

/// A worker as its coordinator sees it.
struct ByHand {
    up: mpsc::Sender<Up>,
    down: Streaming<Down>,
}

impl ByHand {
    async fn attach(
        url: &str,
        token: &str,
        id: &str,
        protocol: (u32, u32),
    ) -> Result<(Self, v1::Welcome), Status> {
        let service = Client::connect(url, Some(token)).await.service;
        let (up, ups) = mpsc::channel(16);
        let hello = Hello {
            protocol_min: protocol.0,
            protocol_max: protocol.1,
            worker_id: id.to_owned(),
            incarnation: 1,
            version: "0.0.1".to_owned(),
            capacity: Some(v1::Capacity { sessions_max: 0, tasks_max: 8 }),
            hostname: "by-hand".to_owned(),
            boot_id: id.to_owned(),
            ..Hello::default()
        };
        up.send(Up { message: Some(up::Message::Hello(hello)) }).await.expect("room");
        let down = WorkerLinkClient::new(service).attach(ReceiverStream::new(ups)).await?.into_inner();
        let mut worker = Self { up, down };
        match worker.hear().await {
            down::Message::Welcome(welcome) => Ok((worker, welcome)),
            other => panic!("not Welcome: {other:?}"),
        }
    }

    async fn hear(&mut self) -> down::Message {
        let heard = tokio::time::timeout(PATIENCE, self.down.message()).await.expect("a message in time");
        heard.expect("the stream goes on").expect("it has no end").message.expect("known here")
    }

    async fn say(&self, message: up::Message) {
        self.up.send(Up { message: Some(message) }).await.expect("room");
    }

    /// The next assignment; whatever else comes before it is given to `seen`.
    async fn assigned(&mut self, seen: &mut Vec<down::Message>) -> v1::Assign {
        loop {
            match self.hear().await {
                down::Message::Assign(assign) => return assign,
                other => seen.push(other),
            }
        }
    }

    async fn end(&self, assign: &v1::Assign) {
        let result = v1::Result {
            task_id: assign.task_id.clone(),
            fence: assign.fence,
            state: TaskState::Succeeded.into(),
            outcome: Some(v1::Outcome::default()),
            ..v1::Result::default()
        };
        self.say(up::Message::Result(result)).await;
    }
}

fn noop() -> SubmitTaskRequest {
    let spec = TaskSpec { kind: Some(Kind::Noop(NoopSpec {})), ..TaskSpec::default() };
    SubmitTaskRequest { spec: Some(spec), ..SubmitTaskRequest::default() }
}

#[tokio::test]
async fn a_worker_of_protocol_1_works_and_is_drained_without_a_word_that_it_does_not_know() {
    let cluster = Setup::python().arg("--no-worker").start();
    let (worker_token, admin) = (cluster.token("default", "worker"), cluster.admin_token());
    let client = Client::connect(&cluster.url, Some(&admin)).await;
    let (mut old, welcome) =
        ByHand::attach(&cluster.url, &worker_token, "old", (1, 1)).await.expect("it is let in");
    assert_eq!(welcome.protocol, 1);
    old.say(up::Message::Credit(Credit { tasks: 8, assigns_seen: 0 })).await;
    let mut seen = Vec::new();
    client.tasks().submit_task(noop()).await.expect("taken");
    let assign = old.assigned(&mut seen).await;
    let drain = v1::DrainWorkerRequest { worker_id: "old".to_owned(), deadline_ms: None, checkpoint: false };
    let drained = client.admin().drain_worker(drain).await.expect("drained").into_inner();
    assert_eq!((drained.state.as_str(), drained.protocol, drained.running), ("draining", 1, 1));
    old.end(&assign).await;
    old.say(up::Message::Credit(Credit { tasks: 8, assigns_seen: 1 })).await;
    let waits = client.tasks().submit_task(noop()).await.expect("taken").into_inner();
    let undrain = v1::UndrainWorkerRequest { worker_id: "old".to_owned() };
    client.admin().undrain_worker(undrain).await.expect("undrained");
    assert_eq!(old.assigned(&mut seen).await.task_id, waits.id, "it waited for the undrain");
    assert!(!seen.iter().any(|message| matches!(message, down::Message::Drain(_))), "{seen:?}");
}

#[tokio::test]
async fn a_worker_of_this_protocol_is_told_of_its_drain_and_hands_back_what_it_did_not_take() {
    let cluster = Setup::python().arg("--no-worker").start();
    let (worker_token, admin) = (cluster.token("default", "worker"), cluster.admin_token());
    let client = Client::connect(&cluster.url, Some(&admin)).await;
    // One that is older than we are and newer than the coordinator: the range decides.
    let (mut first, welcome) = ByHand::attach(&cluster.url, &worker_token, "first", (1, PROTOCOL_MAX + 5))
        .await
        .expect("it is let in");
    assert_eq!(welcome.protocol, PROTOCOL_MAX);
    first.say(up::Message::Credit(Credit { tasks: 2, assigns_seen: 0 })).await;
    let mut tasks = Vec::new();
    for _ in 0..2 {
        tasks.push(client.tasks().submit_task(noop()).await.expect("taken").into_inner().id);
    }
    let mut seen = Vec::new();
    let taken = first.assigned(&mut seen).await;
    let left = first.assigned(&mut seen).await;
    let (mut second, _) =
        ByHand::attach(&cluster.url, &worker_token, "second", (2, 2)).await.expect("it is let in");
    second.say(up::Message::Credit(Credit { tasks: 2, assigns_seen: 0 })).await;

    let drain = v1::DrainWorkerRequest {
        worker_id: "first".to_owned(),
        deadline_ms: Some(60_000),
        checkpoint: false,
    };
    client.admin().drain_worker(drain).await.expect("drained");
    let told = first.hear().await;
    assert!(
        matches!(told, down::Message::Drain(v1::Drain { draining: true, deadline_in_ms: 50_000..=60_000 })),
        "{told:?}"
    );
    // SIGTERM: of two assignments it took one.
    let item = v1::AttemptItem {
        task_id: taken.task_id.clone(),
        fence: taken.fence,
        running: true,
        ..Default::default()
    };
    let draining =
        v1::Draining { remaining: 1, deadline_in_ms: 1_000, attempts: vec![item], checkpoint: false };
    first.say(up::Message::Draining(draining)).await;
    let again = second.assigned(&mut seen).await;
    assert_eq!(again.task_id, left.task_id, "the other goes to another worker");
    assert!(again.fence.expect("a fence").attempt > left.fence.expect("a fence").attempt);
    second.end(&again).await;
    first.end(&taken).await;
    first.say(up::Message::Goodbye(v1::Goodbye::default())).await;
    for id in tasks {
        let follow = v1::FollowRequest { task_id: id, ..v1::FollowRequest::default() };
        let mut events = client.tasks().follow(follow).await.expect("followed").into_inner();
        let mut end = None;
        while let Some(message) = events.message().await.expect("it goes on") {
            if let Some(v1::execute_response::Event::Ended(task)) = message.event {
                end = Some(task.state());
            }
        }
        assert_eq!(end, Some(TaskState::Succeeded));
    }
}

#[tokio::test]
async fn a_worker_that_is_too_new_is_told_what_to_do_and_so_is_whoever_looks_for_it() {
    let cluster = Setup::python().arg("--no-worker").start();
    let token = cluster.token("default", "worker");
    for (id, range, hint) in [
        ("new", (PROTOCOL_MAX + 1, PROTOCOL_MAX + 2), "upgrade the coordinator"),
        ("ancient", (0, 0), "upgrade the worker"),
    ] {
        for _ in 0..2 {
            let refused = ByHand::attach(&cluster.url, &token, id, range).await.err().expect("it is refused");
            let refused = refusal(&refused);
            assert_eq!(refused.code, "protocol_version");
            assert!(refused.hint.contains(hint), "{refused:?}");
        }
    }
    let cooper = cluster.cooper();
    let list = cooper.json(["workers"]);
    let new = list["workers"].as_array().expect("a list").iter().find(|it| it["worker_id"] == "new");
    let new = new.unwrap_or_else(|| panic!("{list:#}"));
    assert_eq!((text(new, "state"), text(&new["refused"], "code")), ("joining", "protocol_version"));
    let table = cooper.run(["workers"]).expect(0);
    assert!(table.err().contains("upgrade the coordinator"), "{table}");
    let events = cooper.json(["events"]);
    let refusals = events["events"].as_array().expect("a list").iter();
    let refusals = refusals.filter(|it| it["kind"] == "worker.refused" && it["subject"] == "new");
    assert_eq!(refusals.count(), 1, "said once, however often it tries");
}
