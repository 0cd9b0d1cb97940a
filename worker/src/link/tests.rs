//! The whole link between a fake host and a fake coordinator, over real sockets: attaches, tasks, sessions, the end.

use std::os::fd::AsFd;

use cooper_proto::{
    host::{self, HostHello, to_host, to_link},
    v1::{self, down, task_spec::Kind, up},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::End;
use fakes::{Coordinator, Host, fence, link, link_with, soon, spool};

mod drain;
mod fakes;
mod files;
mod output;

/// A host of the version before: it never waits for what runs, and is not told whether a coordinator is reached.
fn hello() -> HostHello {
    HostHello {
        version: 1,
        incarnation: 7,
        worker_id: "wrk-test".into(),
        python_version: "3.11.7".into(),
        capabilities: vec!["python".into()],
        capacity: Some(v1::Capacity { sessions_max: 4, tasks_max: 64 }),
        ..HostHello::default()
    }
}

fn python() -> Kind {
    Kind::Python(v1::PythonSpec::default())
}
fn noop() -> Kind {
    Kind::Noop(v1::NoopSpec {})
}

async fn started_task(host: &mut Host) -> String {
    match host.next().await {
        to_host::Message::Start(assign) => assign.task_id,
        other => panic!("not Start: {other:?}"),
    }
}

async fn end_task(host: &Host, task: &str, stdout: &[u8]) {
    let outcome = Some(v1::Outcome { stdout_bytes: stdout.len() as u64, ..v1::Outcome::default() });
    let state = v1::TaskState::Succeeded.into();
    let ended = host::Ended { task_id: task.into(), fence: fence(1, 1), state, outcome, artifacts: vec![] };
    let file = spool(stdout);
    let fds = if stdout.is_empty() { vec![] } else { vec![file.as_fd()] };
    host.say(to_link::Message::Ended(ended), &fds).await;
}

#[tokio::test]
async fn it_registers_with_what_the_host_told_and_its_token() {
    let mut coordinator = Coordinator::start().await;
    let sessions = vec![v1::SessionItem {
        session_id: "s".into(),
        state: "initializing".into(),
        ..v1::SessionItem::default()
    }];
    let (_host, _link) = link(&coordinator.addr, HostHello { sessions: sessions.clone(), ..hello() }).await;
    let mut attach = coordinator.attach().await;
    assert_eq!(attach.metadata.get("authorization").unwrap(), "Bearer cpr_test");
    let said = attach.welcome(1, vec![]).await;
    assert_eq!((said.worker_id.as_str(), said.incarnation, said.sessions), ("wrk-test", 7, sessions));
    assert_eq!(said.labels["zone"], "a");
    assert!(!said.boot_id.is_empty() && !said.hostname.is_empty());
    // Credit first, then a heartbeat at the interval of the Welcome.
    let credit = attach.hear().await.unwrap().message.unwrap();
    assert_eq!(credit, up::Message::Credit(v1::Credit { tasks: 64, assigns_seen: 0 }));
    let beat = attach.hear().await.unwrap().message.unwrap();
    assert_eq!(
        beat,
        up::Message::Heartbeat(v1::Heartbeat { seq: 1, sessions: 1, ..v1::Heartbeat::default() })
    );
}

#[tokio::test]
async fn a_noop_goes_round_without_the_host() {
    let mut coordinator = Coordinator::start().await;
    let (mut host, _link) = link(&coordinator.addr, hello()).await;
    let mut attach = coordinator.attach().await;
    attach.welcome(1, vec![]).await;
    for i in 0..500 {
        attach.assign(&format!("t{i}"), fence(1, 1), noop()).await;
    }
    for i in 0..500 {
        let result = attach.result().await;
        assert_eq!((result.task_id.clone(), result.state()), (format!("t{i}"), v1::TaskState::Succeeded));
        attach.ack(&result).await;
    }
    host.hears_nothing().await;
}

/// How fast, by hand: `cargo test --release -p cooper-worker --lib -- --ignored --nocapture noops_a_second`. Link, fake
/// coordinator and test share the machine.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "a measurement"]
async fn noops_a_second() {
    let mut coordinator = Coordinator::start().await;
    let addr = coordinator.addr.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (_host, link) = link(&addr, hello()).await;
            link.await.unwrap()
        })
    });
    let mut attach = coordinator.attach().await;
    attach.welcome(1, vec![]).await;
    for in_flight in [1, 16, 256, 1024] {
        let tasks = if in_flight == 1 { 5_000 } else { 100_000 };
        let started = cooper_common::clock::since_start();
        let mut sent = 0;
        for done in 0..tasks {
            while sent < tasks && sent - done < in_flight {
                attach.assign(&format!("t{in_flight}-{sent}"), fence(1, 1), noop()).await;
                sent += 1;
            }
            let result = attach.result().await;
            attach.ack(&result).await;
        }
        let seconds = (cooper_common::clock::since_start() - started).as_secs_f64();
        println!("{in_flight} in flight: {:.0} noops/s", f64::from(tasks) / seconds);
    }
}

#[tokio::test]
async fn a_result_is_said_again_after_a_cut_until_it_is_acked_and_then_forgotten_by_the_host() {
    let mut coordinator = Coordinator::start().await;
    let (mut host, _link) = link(&coordinator.addr, hello()).await;
    let mut attach = coordinator.attach().await;
    attach.welcome(1, vec![]).await;
    attach.assign("t", fence(1, 1), python()).await;
    assert_eq!(started_task(&mut host).await, "t");
    end_task(&host, "t", b"hello\n").await;
    for _ in 0..3 {
        let result = attach.result().await;
        assert_eq!(&result.stdout_tail.unwrap().data[..], b"hello\n");
        drop(attach);
        attach = coordinator.attach().await;
        let said = attach.welcome(1, vec![]).await;
        assert!(said.attempts.len() == 1 && said.attempts[0].result_pending);
    }
    let result = attach.result().await;
    attach.ack(&result).await;
    let forget = host::Forget { task_id: "t".into(), fence: fence(1, 1) };
    assert_eq!(host.next().await, to_host::Message::Forget(forget));
    drop(attach);
    attach = coordinator.attach().await;
    assert_eq!(attach.hello().await.attempts, vec![]);
}

#[tokio::test]
async fn an_older_fence_changes_nothing() {
    let mut coordinator = Coordinator::start().await;
    let (mut host, _link) = link(&coordinator.addr, hello()).await;
    let mut attach = coordinator.attach().await;
    attach.welcome(2, vec![]).await;
    attach.assign("t", fence(2, 2), python()).await;
    assert_eq!(started_task(&mut host).await, "t");
    attach.assign("t", fence(1, 5), python()).await;
    let cancel = v1::Cancel { task_id: "t".into(), fence: fence(2, 1), grace_ms: 1 };
    attach.tell(down::Message::Cancel(cancel)).await;
    host.hears_nothing().await;
    let cancel = v1::Cancel { task_id: "t".into(), fence: fence(2, 2), grace_ms: 1 };
    attach.tell(down::Message::Cancel(cancel.clone())).await;
    assert_eq!(host.next().await, to_host::Message::Stop(cancel));
}

#[tokio::test]
async fn an_execution_that_goes_on_is_said_to_have_started() {
    let mut coordinator = Coordinator::start().await;
    let (mut host, _link) = link(&coordinator.addr, hello()).await;
    let mut attach = coordinator.attach().await;
    attach.welcome(1, vec![]).await;
    attach.assign("t", fence(1, 1), python()).await;
    started_task(&mut host).await;
    let started = v1::Started { task_id: "t".into(), fence: fence(1, 1) };
    host.say(to_link::Message::Started(started.clone()), &[]).await;
    assert_eq!(attach.next().await, up::Message::Started(started));
}

#[tokio::test]
async fn a_coordinator_with_an_older_epoch_is_not_obeyed() {
    let mut coordinator = Coordinator::start().await;
    let (mut host, _link) = link(&coordinator.addr, hello()).await;
    let mut attach = coordinator.attach().await;
    attach.welcome(5, vec![]).await;
    attach.assign("n", fence(5, 1), noop()).await;
    attach.result().await;
    drop(attach);
    let mut old = coordinator.attach().await;
    old.welcome(4, vec![]).await;
    old.assign("t", fence(4, 1), python()).await;
    assert!(old.hear().await.is_none(), "the link says nothing to it and goes");
    let mut new = coordinator.attach().await;
    new.welcome(6, vec![]).await;
    new.assign("u", fence(6, 1), python()).await;
    assert_eq!(started_task(&mut host).await, "u");
}

#[tokio::test]
async fn asked_to_attach_again_it_does() {
    let mut coordinator = Coordinator::start().await;
    let (_host, _link) = link(&coordinator.addr, hello()).await;
    let mut attach = coordinator.attach().await;
    attach.welcome(1, vec![]).await;
    attach.tell(down::Message::Reattach(v1::Reattach {})).await;
    coordinator.attach().await.welcome(1, vec![]).await;
}

#[tokio::test]
async fn drained_by_a_host_of_version_1_it_says_goodbye_after_the_last_result_and_ends() {
    let mut coordinator = Coordinator::start().await;
    let (mut host, link) = link(&coordinator.addr, hello()).await;
    let mut attach = coordinator.attach().await;
    attach.welcome(1, vec![]).await;
    attach.assign("t", fence(1, 1), python()).await;
    started_task(&mut host).await;
    end_task(&host, "t", b"").await;
    let drain = host::Drain { reason: "SIGTERM".into(), deadline_in_ms: 0, checkpoint: false };
    host.say(to_link::Message::Drain(drain), &[]).await;
    assert!(matches!(attach.next().await, up::Message::Draining(_)));
    let result = attach.result().await;
    attach.ack(&result).await;
    let goodbye = attach.next().await;
    assert_eq!(goodbye, up::Message::Goodbye(v1::Goodbye { reason: "SIGTERM".into() }));
    drop(attach);
    assert!(matches!(host.next().await, to_host::Message::Forget(_)));
    assert_eq!(host.next().await, to_host::Message::Drained(host::Drained {}));
    assert_eq!(soon("the end", link).await.unwrap(), End::Drained);
}

#[tokio::test]
async fn without_a_coordinator_it_drains_at_once_and_without_a_host_it_ends() {
    let (mut host, draining) = link("127.0.0.1:1", hello()).await;
    host.say(to_link::Message::Drain(host::Drain::default()), &[]).await;
    assert_eq!(host.next().await, to_host::Message::Drained(host::Drained {}));
    assert_eq!(soon("the end", draining).await.unwrap(), End::Drained);

    let (host, orphan) = link("127.0.0.1:1", hello()).await;
    drop(host);
    assert_eq!(soon("the end", orphan).await.unwrap(), End::HostGone);
}

#[tokio::test]
async fn a_session_is_granted_changed_and_ended_through_the_link() {
    let mut coordinator = Coordinator::start().await;
    let (mut host, _link) = link(&coordinator.addr, hello()).await;
    let mut attach = coordinator.attach().await;
    attach.welcome(1, vec![]).await;
    let grant =
        v1::SessionGrant { session_id: "s".into(), fence: fence(1, 1), ..v1::SessionGrant::default() };
    attach.tell(down::Message::SessionCreate(grant.clone())).await;
    assert_eq!(host.next().await, to_host::Message::SessionCreate(grant));
    let (session_id, state) = ("s".to_owned(), "ready".to_owned());
    let update = v1::SessionUpdate { session_id, state, fence: fence(1, 1), ..v1::SessionUpdate::default() };
    host.say(to_link::Message::Session(update.clone()), &[]).await;
    assert_eq!(attach.next().await, up::Message::Session(update));
    let end = v1::SessionEnd { session_id: "s".into(), fence: fence(1, 1) };
    attach.tell(down::Message::SessionDestroy(end.clone())).await;
    assert_eq!(host.next().await, to_host::Message::SessionDestroy(end));
}

#[tokio::test]
async fn health_says_whether_it_is_attached() {
    let mut coordinator = Coordinator::start().await;
    // Free a moment ago is as good as it gets without being told the port.
    let listen = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (_host, _link) = link_with(&coordinator.addr, hello(), Some(listen.clone())).await;
    let mut attach = coordinator.attach().await;
    assert!(get(&listen, "/health").await.contains(r#""status":"degraded""#));
    attach.welcome(3, vec![]).await;
    attach.hear().await.unwrap();
    let health = get(&listen, "/health").await;
    for part in [r#""status":"healthy""#, r#""service":"cooper-worker""#, r#""coordinator_epoch":3"#] {
        assert!(health.contains(part), "{health}");
    }
    assert!(get(&listen, "/metrics").await.contains("\ncooper_worker_attached 1\n"));
    drop(attach);
    let _again = coordinator.attach().await;
    assert!(get(&listen, "/health").await.contains(r#""status":"degraded""#));
}

async fn get(addr: &str, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    answer
}
