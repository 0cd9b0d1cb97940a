//! A coordinator and workers as processes of their own.

use std::collections::BTreeMap;

use cooper_common::clock;
use cooper_tests::{fleet::Fleet, grpc, http, seconds};

#[test]
fn two_workers_share_sessions_by_free_capacity_and_a_full_cluster_says_so() {
    let mut fleet = Fleet::new();
    fleet.start_coordinator();
    for (index, id) in ["left", "right"].into_iter().enumerate() {
        let health = fleet.start_worker(id);
        let lines = fleet.await_registered(index);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains(id) && lines[0].contains("epoch"), "{lines:?}");
        let answer = http::get(&format!("http://127.0.0.1:{health}"), "/health");
        assert_eq!((answer.status, &answer.json()["status"]), (200, &"healthy".into()));
        let metrics = http::get(&format!("http://127.0.0.1:{health}"), "/metrics");
        assert_eq!(metrics.status, 200);
    }
    let cooper = fleet.cooper();
    let sessions: Vec<String> = (0..4).map(|_| cooper.session()).collect();
    let mut shares = BTreeMap::<String, u32>::new();
    for session in &sessions {
        let worker =
            cooper.json(["session", "show", session])["worker_id"].as_str().expect("a worker").to_owned();
        *shares.entry(worker).or_default() += 1;
    }
    assert_eq!(shares, BTreeMap::from([("left".to_owned(), 2), ("right".to_owned(), 2)]));

    let full = cooper.error(["session", "create"]);
    assert_eq!((full.status, full.code.as_str()), (1, "no_capacity"));
    assert!(full.hint.contains("--wait"), "{full:?}");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let token = std::fs::read_to_string(fleet.scratch.join("coordinator/admin.token")).expect("a token");
    let url = fleet.url();
    let status = runtime.block_on(async move {
        let client = grpc::Client::connect(&url, Some(token.trim())).await;
        client
            .sessions()
            .create_session(cooper_proto::v1::CreateSessionRequest::default())
            .await
            .expect_err("full")
    });
    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    assert_eq!(grpc::refusal(&status).code, "no_capacity");

    // Who waits gets the room that comes free, and not before.
    let start = clock::mono_ms();
    let waiting = cooper.start(["session", "create", "--wait", "20s"], b"");
    let some_time = cooper.run(["session", "create", "--wait", "1s"]).expect(1);
    assert_eq!(some_time.error_line().0, "no_capacity");
    assert!(clock::mono_ms() - start >= 1_000, "it waited");
    let gone = cooper.json(["session", "show", &sessions[0]])["worker_id"].clone();
    cooper.ok(["session", "destroy", &sessions[0]]);
    let made = waiting.finish(seconds(20)).expect(0).out();
    assert_eq!(cooper.json(["session", "show", made.trim()])["worker_id"], gone);
    assert_eq!(cooper.exec(made.trim(), "print('hi')"), "hi");
    fleet.stop();
}

#[test]
fn a_worker_that_comes_before_its_coordinator_registers_when_that_comes() {
    let mut fleet = Fleet::new();
    // Only a coordinator that ran before could have written the token.
    fleet.start_coordinator();
    let coordinator = fleet.coordinator.take().expect("it runs");
    coordinator.signal(rustix::process::Signal::TERM);
    coordinator.finish(seconds(5)).expect(0);

    fleet.start_worker("early");
    fleet.worker(0).await_said("a try to reach the coordinator", seconds(20), |worker| {
        worker.stderr().contains("not attached").then_some(())
    });
    assert!(!fleet.worker(0).stderr().contains("registered worker"), "not yet");
    fleet.start_coordinator();
    assert_eq!(fleet.await_registered(0).len(), 1);
    let session = fleet.cooper().ok(["session", "create", "--wait", "10s"]);
    assert_eq!(fleet.cooper().exec(&session, "print(1 + 1)"), "2");
    fleet.stop();
}

#[test]
fn a_worker_without_a_valid_join_token_does_not_join() {
    let mut fleet = Fleet::new();
    fleet.start_coordinator();
    std::fs::write(fleet.scratch.join("coordinator/worker.token"), "not-a-token").expect("written");
    fleet.start_worker("stranger");
    fleet.worker(0).await_said("why it cannot join", seconds(20), |worker| {
        worker.stderr().contains("unauthenticated").then_some(())
    });
    assert_eq!(fleet.cooper().json(["workers"])["workers"], serde_json::json!([]));
}
