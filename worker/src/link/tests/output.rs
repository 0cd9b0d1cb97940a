//! Output: windows, cuts, and that it arrives byte for byte.

use std::{
    os::fd::AsFd,
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use cooper_common::limits::link::{ATTEMPT_WINDOW_BYTES, CHUNK_BYTES_MAX};
use cooper_proto::{
    host::{self, to_link},
    v1::{self, Verdict, down, up},
};
use tokio::time::timeout;
use tonic::Status;

use super::{
    fakes::{self, Coordinator, Wire, fence, link, soon, spool},
    hello, noop, python, started_task,
};

fn grew(task: &str, bytes: u64) -> to_link::Message {
    let stream = v1::Stream::Stdout.into();
    to_link::Message::Grew(host::Grew { task_id: task.into(), fence: fence(1, 1), stream, bytes })
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
        let ended =
            host::Ended { task_id: "t".into(), fence: fence(1, 1), state, outcome, artifacts: vec![] };
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
    attach.assign("n", fakes::fence(1, 1), noop()).await;
    assert_eq!(attach.result().await.task_id, "n");
}
