//! The whole link between a fake host and a fake coordinator, over real sockets.

use std::{
    fs::File,
    io::{Read, Seek},
    os::fd::AsFd,
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use cooper_common::limits::link::{ATTEMPT_WINDOW_BYTES, CHUNK_BYTES_MAX};
use cooper_proto::{
    host::{self, HostHello, to_host, to_link},
    v1::{self, Verdict, down, task_spec::Kind, transfer_down, transfer_up::Part, up},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use tonic::Status;

use super::End;
use fakes::{Coordinator, Host, Wire, fence, link, link_with, soon, spool};

mod fakes;

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
    let ended = host::Ended { task_id: task.into(), fence: fence(1, 1), state, outcome };
    let file = spool(stdout);
    let fds = if stdout.is_empty() { vec![] } else { vec![file.as_fd()] };
    host.say(to_link::Message::Ended(ended), &fds).await;
}

fn grew(task: &str, bytes: u64) -> to_link::Message {
    let stream = v1::Stream::Stdout.into();
    to_link::Message::Grew(host::Grew { task_id: task.into(), fence: fence(1, 1), stream, bytes })
}

#[tokio::test]
async fn it_registers_with_what_the_host_told_and_its_token() {
    let mut coordinator = Coordinator::start().await;
    let sessions =
        vec![v1::SessionItem { session_id: "s".into(), state: "ready".into(), ..v1::SessionItem::default() }];
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
    assert_eq!(beat, up::Message::Heartbeat(v1::Heartbeat { seq: 1, sessions: 1, running: 0 }));
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
async fn without_acks_no_more_than_the_window_is_sent() {
    let mut coordinator = Coordinator::start().await;
    let (mut host, _link) = link(&coordinator.addr, hello()).await;
    let mut attach = coordinator.attach().await;
    attach.welcome(1, vec![]).await;
    attach.assign("t", fence(1, 1), python()).await;
    started_task(&mut host).await;
    let content: Vec<u8> = (0..1 << 20).map(|i: u32| (i / 7) as u8).collect();
    let file = spool(&content);
    host.say(grew("t", content.len() as u64), &[file.as_fd()]).await;

    let mut output = coordinator.output().await;
    assert_eq!(output.metadata.get("cooper-worker-id").unwrap(), "wrk-test");
    assert_eq!(output.metadata.get("cooper-attach-epoch").unwrap(), "1");
    let mut held = 0;
    while held < ATTEMPT_WINDOW_BYTES {
        let piece = output.hear().await.unwrap().output.unwrap();
        assert_eq!(piece.offset, held);
        assert!(piece.data.len() <= CHUNK_BYTES_MAX);
        held += piece.data.len() as u64;
    }
    assert_eq!(held, ATTEMPT_WINDOW_BYTES);
    assert!(timeout(Duration::from_millis(200), output.up.message()).await.is_err());
    let (task_id, fence) = ("t".to_owned(), fence(1, 1));
    output.say(v1::OutputAck { task_id, fence, stdout_offset: 1000, stderr_offset: 0 }).await;
    let piece = output.hear().await.unwrap().output.unwrap();
    assert_eq!((piece.offset, piece.data.len()), (held, 1000));
}

/// What a coordinator holds of an attempt's stdout, through all its streams.
#[derive(Default)]
struct Held {
    bytes: Vec<u8>,
}

impl Held {
    fn take(&mut self, output: &v1::Output) {
        let offset = output.offset as usize;
        assert!(offset <= self.bytes.len(), "a gap: {offset} after {}", self.bytes.len());
        let known = (self.bytes.len() - offset).min(output.data.len());
        assert_eq!(
            &self.bytes[offset..offset + known],
            &output.data[..known],
            "the same offset, other bytes"
        );
        self.bytes.extend_from_slice(&output.data[known..]);
    }
}

async fn keep_output(mut output: fakes::Output, held: Arc<Mutex<Held>>) {
    while let Ok(Some(message)) = output.up.message().await {
        let stdout_offset = {
            let mut held = held.lock().unwrap();
            held.take(message.output.as_ref().unwrap());
            held.bytes.len() as u64
        };
        let (task_id, fence) = (message.task_id, message.fence);
        output.say(v1::OutputAck { task_id, fence, stdout_offset, stderr_offset: 0 }).await;
    }
}

/// Runs one attempt whose output grows step by step, with the wire cut after so many bytes of each step. Answers with
/// what the coordinator has in the end, and how often the wire was cut.
async fn output_across_cuts(content: &[u8], cuts_after: &[i64]) -> (Vec<u8>, i64) {
    let mut coordinator = Coordinator::start().await;
    let wire = Wire::to(&coordinator.addr).await;
    let (mut host, _link) = link(&wire.addr, hello()).await;
    let mut first = coordinator.attach().await;
    first.welcome(1, vec![]).await;
    first.assign("t", fence(1, 1), python()).await;
    started_task(&mut host).await;

    let file = spool(content);
    let growing = async {
        host.say(grew("t", 0), &[file.as_fd()]).await;
        for (step, cut_after) in cuts_after.iter().enumerate() {
            wire.cut_after(*cut_after);
            let bytes = content.len() * (step + 1) / (cuts_after.len() + 1);
            host.say(grew("t", bytes as u64), &[]).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let outcome = Some(v1::Outcome { stdout_bytes: content.len() as u64, ..v1::Outcome::default() });
        let state = v1::TaskState::Succeeded.into();
        let ended = host::Ended { task_id: "t".into(), fence: fence(1, 1), state, outcome };
        host.say(to_link::Message::Ended(ended), &[]).await;
    };

    let held = Arc::new(Mutex::new(Held::default()));
    let coordinating = async {
        let mut streams = tokio::task::JoinSet::new();
        let mut attach = Some(first);
        loop {
            tokio::select! {
                Some(output) = coordinator.outputs.recv() => {
                    streams.spawn(keep_output(output, held.clone()));
                }
                Some(again) = coordinator.attaches.recv() => {
                    // Only the newest attach may write.
                    streams.shutdown().await;
                    let acked = held.lock().unwrap().bytes.len() as u64;
                    attach = Some(again);
                    keep(attach.as_mut().unwrap(), acked).await;
                }
                result = result_of(&mut attach) => match result {
                    Some(result) => break result,
                    None => attach = None,
                },
            }
        }
    };
    let (result, ()) = soon("the result", async { tokio::join!(coordinating, growing) }).await;
    let mut held = held.lock().unwrap();
    if let Some(tail) = &result.stdout_tail {
        assert_eq!(tail.offset as usize, held.bytes.len(), "the tail begins where the stream ended");
        held.take(tail);
    }
    (std::mem::take(&mut held.bytes), wire.cuts.load(Ordering::SeqCst))
}

/// Welcomes with the verdict to go on from an offset.
async fn keep(attach: &mut fakes::Attach, stdout_offset: u64) {
    // A wire that is cut in the middle of Hello is the next attach's matter.
    let Ok(Some(_)) = attach.up.message().await else { return };
    let (task_id, fence) = ("t".to_owned(), fence(1, 1));
    let verdict = Verdict::Keep.into();
    let verdict = v1::AttemptVerdict { task_id, fence, verdict, stdout_offset, stderr_offset: 0 };
    let (protocol, coordinator_epoch, attempts) = (1, 1, vec![verdict]);
    let welcome = v1::Welcome { protocol, coordinator_epoch, attempts, ..v1::Welcome::default() };
    attach.tell(down::Message::Welcome(welcome)).await;
}

/// The result, or `None` when the attach broke.
async fn result_of(attach: &mut Option<fakes::Attach>) -> Option<v1::Result> {
    let Some(attach) = attach else { return std::future::pending().await };
    while let Ok(Some(message)) = attach.up.message().await {
        if let Some(up::Message::Result(result)) = message.message {
            return Some(result);
        }
    }
    None
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_arrives_byte_for_byte_wherever_the_wire_is_cut() {
    let content: Vec<u8> = (0..700_000u32).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect();
    let mut cuts_in_all = 0;
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..12 {
        let cuts_after: Vec<i64> = (0..2)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                // Small ones fall into the handshake of the second connection, large ones into the middle of output.
                (seed >> 33) as i64 % if round % 3 == 0 { 500 } else { 200_000 }
            })
            .collect();
        let (received, cuts) = output_across_cuts(&content, &cuts_after).await;
        assert!(
            received == content,
            "{} of {} bytes, cut after {cuts_after:?}",
            received.len(),
            content.len()
        );
        cuts_in_all += cuts;
    }
    assert!(cuts_in_all >= 12, "only {cuts_in_all} cuts: this test showed little");
}

#[tokio::test]
async fn an_output_stream_cut_alone_goes_on_from_what_was_acked() {
    let mut coordinator = Coordinator::start().await;
    let (mut host, _link) = link(&coordinator.addr, hello()).await;
    let mut attach = coordinator.attach().await;
    attach.welcome(1, vec![]).await;
    attach.assign("t", fence(1, 1), python()).await;
    started_task(&mut host).await;
    let file = spool(&[b'x'; 200_000]);
    host.say(grew("t", 200_000), &[file.as_fd()]).await;
    let mut output = coordinator.output().await;
    output.hear().await.unwrap();
    let (task_id, fence) = ("t".to_owned(), fence(1, 1));
    output.say(v1::OutputAck { task_id, fence, stdout_offset: 5_000, stderr_offset: 0 }).await;
    output.hear().await.unwrap();
    output.refuse(Status::unavailable("no more")).await;
    let mut output = coordinator.output().await;
    assert_eq!(output.hear().await.unwrap().output.unwrap().offset, 5_000);
    // The attach did not notice.
    attach.assign("n", self::fence(1, 1), noop()).await;
    assert_eq!(attach.result().await.task_id, "n");
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
async fn drained_it_says_goodbye_after_the_last_result_and_ends() {
    let mut coordinator = Coordinator::start().await;
    let (mut host, link) = link(&coordinator.addr, hello()).await;
    let mut attach = coordinator.attach().await;
    attach.welcome(1, vec![]).await;
    attach.assign("t", fence(1, 1), python()).await;
    started_task(&mut host).await;
    end_task(&host, "t", b"").await;
    let drain = host::Drain { reason: "SIGTERM".into() };
    host.say(to_link::Message::Drain(drain), &[]).await;
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

async fn call(attach: &fakes::Attach, call_id: u64, op: v1::call::Op) {
    attach.tell(down::Message::Call(v1::Call { call_id, session_id: "s".into(), op: Some(op) })).await;
}

async fn opened(host: &mut Host, mode: host::open_file::Mode) -> host::OpenFile {
    match host.next().await {
        to_host::Message::OpenFile(open) if open.mode() == mode => open,
        other => panic!("not OpenFile {mode:?}: {other:?}"),
    }
}

#[tokio::test]
async fn a_directory_is_listed_and_a_refusal_is_passed_on() {
    let mut coordinator = Coordinator::start().await;
    let (mut host, _link) = link(&coordinator.addr, hello()).await;
    let mut attach = coordinator.attach().await;
    attach.welcome(1, vec![]).await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("b"), "12").unwrap();
    std::fs::create_dir(dir.path().join("a")).unwrap();
    let list = v1::ListFilesRequest { session_id: "s".into(), path: "sub".into() };
    call(&attach, 9, v1::call::Op::List(list.clone())).await;
    let open = opened(&mut host, host::open_file::Mode::List).await;
    assert_eq!((open.session_id.as_str(), open.path.as_str()), ("s", "sub"));
    let answer = host::FileOpened { call_id: open.call_id, ..host::FileOpened::default() };
    let directory = File::open(dir.path()).unwrap();
    host.say(to_link::Message::FileOpened(answer), &[directory.as_fd()]).await;
    let up::Message::CallResult(result) = attach.next().await else { panic!("no result") };
    let Some(v1::call_result::Result::List(files)) = result.result else { panic!("{result:?}") };
    let names: Vec<_> = files.files.iter().map(|file| (file.path.as_str(), file.kind.as_str())).collect();
    assert_eq!((result.call_id, names), (9, vec![("sub/a", "dir"), ("sub/b", "file")]));

    call(&attach, 10, v1::call::Op::List(list)).await;
    let open = opened(&mut host, host::open_file::Mode::List).await;
    let error = Some(v1::Error { code: "file_not_found".into(), ..v1::Error::default() });
    let refused = host::FileOpened { call_id: open.call_id, error: error.clone(), stat: None };
    host.say(to_link::Message::FileOpened(refused), &[]).await;
    let up::Message::CallResult(result) = attach.next().await else { panic!("no result") };
    assert_eq!(result.result, error.map(v1::call_result::Result::Error));
}

#[tokio::test]
async fn a_file_is_read_over_the_second_connection() {
    let mut coordinator = Coordinator::start().await;
    let (mut host, _link) = link(&coordinator.addr, hello()).await;
    let mut attach = coordinator.attach().await;
    attach.welcome(1, vec![]).await;
    let content: Vec<u8> = (0..300_000u32).map(|i| (i / 3) as u8).collect();
    for (offset_bytes, length_bytes) in [(0, 0), (100, 150_000), (299_999, 50), (400_000, 0)] {
        let read = v1::ReadFileRequest { path: "f".into(), offset_bytes, length_bytes, ..Default::default() };
        call(&attach, 3, v1::call::Op::Read(read)).await;
        let open = opened(&mut host, host::open_file::Mode::Read).await;
        let answer = host::FileOpened { call_id: open.call_id, ..host::FileOpened::default() };
        host.say(to_link::Message::FileOpened(answer), &[spool(&content).as_fd()]).await;
        let mut transfer = coordinator.transfer().await;
        assert_eq!(transfer.hear().await.unwrap().part, Some(Part::CallId(3)));
        let Some(Part::Stat(stat)) = transfer.hear().await.unwrap().part else { panic!("no stat") };
        assert_eq!(stat.size_bytes, 300_000);
        let mut body = Vec::new();
        loop {
            match transfer.hear().await.unwrap().part {
                Some(Part::Data(data)) => body.extend(data),
                Some(Part::Done(_)) => break,
                other => panic!("{other:?}"),
            }
        }
        let start = (offset_bytes as usize).min(content.len());
        let length = if length_bytes == 0 { usize::MAX } else { length_bytes as usize };
        assert!(body == content[start..content.len().min(start.saturating_add(length))]);
    }
}

#[tokio::test]
async fn a_file_is_written_whole_or_not_at_all() {
    let mut coordinator = Coordinator::start().await;
    let (mut host, _link) = link(&coordinator.addr, hello()).await;
    let mut attach = coordinator.attach().await;
    attach.welcome(1, vec![]).await;
    for whole in [true, false] {
        let header =
            v1::WriteFileHeader { path: "f".into(), mode: 0o600, create_dirs: true, ..Default::default() };
        call(&attach, 4, v1::call::Op::Write(header)).await;
        let open = opened(&mut host, host::open_file::Mode::Write).await;
        assert_eq!((open.permissions, open.create_dirs), (0o600, true));
        let mut target = tempfile::tempfile().unwrap();
        let answer = host::FileOpened { call_id: open.call_id, ..host::FileOpened::default() };
        host.say(to_link::Message::FileOpened(answer), &[target.as_fd()]).await;
        let mut transfer = coordinator.transfer().await;
        assert_eq!(transfer.hear().await.unwrap().part, Some(Part::CallId(4)));
        for _ in 0..10 {
            let data = transfer_down::Part::Data(vec![b'y'; 64 << 10]);
            transfer.say(v1::TransferDown { part: Some(data) }).await;
        }
        if whole {
            transfer.say(v1::TransferDown { part: Some(transfer_down::Part::Done(true)) }).await;
        } else {
            transfer.refuse(Status::cancelled("the client went away")).await;
        }
        let close = host::CloseFile { call_id: open.call_id, commit: whole };
        assert_eq!(host.next().await, to_host::Message::CloseFile(close));
        let stat = Some(v1::FileStat { size_bytes: 10 << 16, ..v1::FileStat::default() });
        let closed = host::FileClosed { call_id: open.call_id, error: None, stat: stat.clone() };
        host.say(to_link::Message::FileClosed(closed), &[]).await;
        if whole {
            assert_eq!(transfer.hear().await.unwrap().part, stat.map(Part::Stat));
            assert_eq!(transfer.hear().await.unwrap().part, Some(Part::Done(true)));
            let mut written = Vec::new();
            target.rewind().unwrap();
            target.read_to_end(&mut written).unwrap();
            assert!(written == vec![b'y'; 10 << 16]);
        }
    }
}

#[tokio::test]
async fn a_write_dies_with_its_attach() {
    let mut coordinator = Coordinator::start().await;
    let (mut host, _link) = link(&coordinator.addr, hello()).await;
    let mut attach = coordinator.attach().await;
    attach.welcome(1, vec![]).await;
    call(&attach, 4, v1::call::Op::Write(v1::WriteFileHeader { path: "f".into(), ..Default::default() }))
        .await;
    let open = opened(&mut host, host::open_file::Mode::Write).await;
    drop(attach);
    let close = host::CloseFile { call_id: open.call_id, commit: false };
    assert_eq!(host.next().await, to_host::Message::CloseFile(close));
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
