//! The ledger alone: fences, credit, verdicts, windows, and that every byte of output is told once.

use std::{collections::HashMap, io::Write, os::fd::OwnedFd};

use cooper_proto::{
    host::{OpenFile, to_link},
    v1::{Verdict, Welcome, down, task_spec},
};
use proptest::prelude::*;
use prost::Message as _;

use super::*;

const TASKS_MAX: u32 = 4;

pub(crate) fn host_hello() -> HostHello {
    HostHello {
        version: 1,
        incarnation: 7,
        worker_id: "wrk-test".into(),
        capacity: Some(v1::Capacity { sessions_max: 4, tasks_max: TASKS_MAX }),
        ..HostHello::default()
    }
}

fn fence(epoch: u64, attempt: u32) -> Option<v1::Fence> {
    Some(v1::Fence { epoch, attempt })
}

fn welcome_with(attempts: Vec<v1::AttemptVerdict>) -> Welcome {
    let (heartbeat_ms, lease_ms) = (2_000, 30_000);
    Welcome { protocol: 1, coordinator_epoch: 1, heartbeat_ms, lease_ms, attempts, ..Welcome::default() }
}

fn attached() -> Ledger {
    let mut ledger = Ledger::new(host_hello());
    ledger.inventory();
    ledger.welcome(0, &welcome_with(vec![]));
    ledger
}

fn assign(ledger: &mut Ledger, task: &str, fence: Option<v1::Fence>, kind: task_spec::Kind) {
    let spec = v1::TaskSpec { kind: Some(kind), ..v1::TaskSpec::default() }.encode_to_vec().into();
    let assign = v1::Assign { task_id: task.into(), fence, spec, ..v1::Assign::default() };
    ledger.coordinator_says(0, down::Message::Assign(assign));
}
fn python(ledger: &mut Ledger, task: &str, fence: Option<v1::Fence>) {
    assign(ledger, task, fence, task_spec::Kind::Python(v1::PythonSpec::default()));
}
fn noop(ledger: &mut Ledger, task: &str) {
    assign(ledger, task, fence(1, 1), task_spec::Kind::Noop(v1::NoopSpec {}));
}

fn ack(ledger: &mut Ledger, task: &str, fence: Option<v1::Fence>) {
    let ack = v1::ResultAck { task_id: task.into(), fence, stale: false };
    ledger.coordinator_says(0, down::Message::ResultAck(ack));
}

fn ended(ledger: &mut Ledger, now: u64, task: &str, stdout_bytes: u64, fds: Vec<OwnedFd>) {
    let outcome = Some(v1::Outcome { stdout_bytes, ..v1::Outcome::default() });
    let state = v1::TaskState::Succeeded.into();
    let ended = Ended { task_id: task.into(), fence: fence(1, 1), state, outcome, artifacts: vec![] };
    ledger.host_says(now, to_link::Message::Ended(ended), fds);
}

fn grew(ledger: &mut Ledger, now: u64, task: &str, bytes: u64, fds: Vec<OwnedFd>) {
    let stream = v1::Stream::Stdout.into();
    let grew = Grew { task_id: task.into(), fence: fence(1, 1), stream, bytes };
    ledger.host_says(now, to_link::Message::Grew(grew), fds);
}

fn output_ack(ledger: &mut Ledger, task: &str, stdout_offset: u64) {
    let ack = v1::OutputAck { task_id: task.into(), fence: fence(1, 1), stdout_offset, stderr_offset: 0 };
    ledger.output_acked(0, &ack);
}

fn spool(content: &[u8]) -> Vec<OwnedFd> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    vec![file.into()]
}

/// What is said up, by name.
fn said(ledger: &mut Ledger) -> Vec<String> {
    let mut said = Vec::new();
    while let Some(control) = ledger.poll_control() {
        said.push(match control {
            Control::Result { result, stdout_tail, .. } => {
                let tail = stdout_tail.map_or(String::new(), |tail| format!("@{}+{}", tail.offset, tail.len));
                format!("result {}{tail}", result.task_id)
            }
            Control::Message(up::Message::Credit(credit)) => {
                format!("credit {} of {}", credit.tasks, credit.assigns_seen)
            }
            Control::Message(up::Message::Started(started)) => format!("started {}", started.task_id),
            Control::Message(up::Message::Heartbeat(beat)) => format!("heartbeat {}", beat.seq),
            Control::Message(up::Message::Session(update)) => {
                format!("{} {}", update.session_id, update.state)
            }
            Control::Message(other) => format!("{other:?}"),
        });
    }
    said
}

/// What is said to the host, by name.
fn told(ledger: &mut Ledger) -> Vec<String> {
    let mut told = Vec::new();
    while let Some(message) = ledger.poll_host() {
        told.push(match message {
            to_host::Message::Start(it) => format!("start {}", it.task_id),
            to_host::Message::Stop(it) => format!("stop {}", it.task_id),
            to_host::Message::Forget(it) => format!("forget {}", it.task_id),
            to_host::Message::SessionCreate(it) => format!("create {}", it.session_id),
            to_host::Message::SessionDestroy(it) => format!("destroy {}", it.session_id),
            other => format!("{other:?}"),
        });
    }
    told
}

#[test]
fn credit_follows_every_batch_and_counts_what_runs() {
    let mut ledger = attached();
    assert_eq!(said(&mut ledger), ["credit 4 of 0"]);
    python(&mut ledger, "a", fence(1, 1));
    python(&mut ledger, "b", fence(1, 1));
    noop(&mut ledger, "n");
    assert_eq!(said(&mut ledger), ["result n", "credit 2 of 3"]);
    assert_eq!(said(&mut ledger), Vec::<String>::new());
    ended(&mut ledger, 0, "a", 0, vec![]);
    assert_eq!(said(&mut ledger), ["result a", "credit 3 of 3"]);
}

#[test]
fn an_older_fence_changes_nothing() {
    let mut ledger = attached();
    python(&mut ledger, "a", fence(2, 2));
    told(&mut ledger);
    for old in [fence(1, 9), fence(2, 1), fence(2, 2), None] {
        python(&mut ledger, "a", old);
    }
    for old in [fence(1, 9), fence(2, 1)] {
        let cancel = v1::Cancel { task_id: "a".into(), fence: old, grace_ms: 1 };
        ledger.coordinator_says(0, down::Message::Cancel(cancel));
        ack(&mut ledger, "a", old);
    }
    assert_eq!(told(&mut ledger), Vec::<String>::new());
    assert_eq!(ledger.running(), 1);

    let grant = |fence| v1::SessionGrant { session_id: "s".into(), fence, ..v1::SessionGrant::default() };
    let end = |fence| v1::SessionEnd { session_id: "s".into(), fence };
    ledger.coordinator_says(0, down::Message::SessionCreate(grant(fence(2, 2))));
    assert_eq!(told(&mut ledger), ["create s"]);
    ledger.coordinator_says(0, down::Message::SessionCreate(grant(fence(2, 1))));
    ledger.coordinator_says(0, down::Message::SessionDestroy(end(fence(1, 5))));
    assert_eq!(told(&mut ledger), Vec::<String>::new());
    ledger.coordinator_says(0, down::Message::SessionDestroy(end(fence(2, 2))));
    assert_eq!(told(&mut ledger), ["destroy s"]);
}

#[test]
fn a_newer_attempt_ends_the_older_one() {
    let mut ledger = attached();
    python(&mut ledger, "a", fence(1, 1));
    python(&mut ledger, "a", fence(2, 2));
    assert_eq!(told(&mut ledger), ["start a", "stop a", "start a"]);
    said(&mut ledger);
    ended(&mut ledger, 0, "a", 0, vec![]);
    assert_eq!(told(&mut ledger), ["forget a"]);
    assert_eq!(said(&mut ledger), ["credit 3 of 2"]);
    assert_eq!(ledger.running(), 1);
}

#[test]
fn a_result_is_said_once_an_attach_until_it_is_acked_and_then_forgotten() {
    let mut ledger = attached();
    python(&mut ledger, "a", fence(1, 1));
    noop(&mut ledger, "n");
    ended(&mut ledger, 0, "a", 0, vec![]);
    assert_eq!(said(&mut ledger), ["result n", "result a", "credit 4 of 2"]);
    assert_eq!(said(&mut ledger), Vec::<String>::new());
    ledger.detached();
    let (_, attempts) = ledger.inventory();
    assert!(attempts.len() == 2 && attempts.iter().all(|item| item.result_pending && !item.running));
    assert_eq!(said(&mut ledger), Vec::<String>::new());
    ledger.welcome(0, &welcome_with(vec![]));
    assert_eq!(said(&mut ledger), ["result a", "result n", "credit 4 of 0"]);
    told(&mut ledger);
    ack(&mut ledger, "a", fence(1, 1));
    ack(&mut ledger, "n", fence(1, 1));
    assert_eq!(told(&mut ledger), ["forget a"]);
    assert_eq!(ledger.inventory().1, vec![]);
}

#[test]
fn an_execution_that_ends_at_once_has_no_started() {
    let mut ledger = attached();
    for task in ["short", "long"] {
        python(&mut ledger, task, fence(1, 1));
        let started = v1::Started { task_id: task.into(), fence: fence(1, 1) };
        ledger.host_says(10, to_link::Message::Started(started), vec![]);
    }
    ended(&mut ledger, 20, "short", 0, vec![]);
    assert_eq!(ledger.next_deadline(), Some(10 + STARTED_DELAY_MS));
    ledger.tick(10 + STARTED_DELAY_MS);
    assert_eq!(said(&mut ledger), ["started long", "result short", "credit 3 of 2"]);
}

#[test]
fn heartbeats_go_at_their_interval_and_a_silent_coordinator_ends_the_attach() {
    let mut ledger = attached();
    said(&mut ledger);
    assert_eq!(ledger.next_deadline(), Some(2_000));
    assert!(ledger.tick(2_000).is_none());
    assert_eq!(said(&mut ledger), ["heartbeat 1"]);
    ledger
        .coordinator_says(2_001, down::Message::HeartbeatAck(v1::HeartbeatAck { seq: 1, lease_ms: 30_000 }));
    assert!(ledger.tick(30_000).is_none());
    assert!(matches!(ledger.tick(32_001), Some(Order::Reattach(_))));
    // Work that comes too late is not taken: the inventory of the next attach does not have it.
    let late = v1::Assign { task_id: "late".into(), fence: fence(1, 1), ..v1::Assign::default() };
    let order = ledger.coordinator_says(32_001, down::Message::Assign(late));
    assert!(matches!(order, Some(Order::Reattach(_))));
    assert_eq!((ledger.inventory().1, told(&mut ledger)), (vec![], vec![]));
}

#[test]
fn verdicts_keep_resend_stop_and_forget() {
    let mut ledger = attached();
    for task in ["keep", "resend", "cancel", "forget"] {
        python(&mut ledger, task, fence(1, 1));
    }
    ended(&mut ledger, 0, "resend", 0, vec![]);
    ended(&mut ledger, 0, "forget", 0, vec![]);
    said(&mut ledger);
    told(&mut ledger);
    ledger.detached();
    ledger.inventory();
    let verdict = |task: &str, verdict: Verdict| v1::AttemptVerdict {
        task_id: task.into(),
        fence: fence(1, 1),
        verdict: verdict.into(),
        ..v1::AttemptVerdict::default()
    };
    ledger.welcome(
        0,
        &welcome_with(vec![
            verdict("keep", Verdict::Keep),
            verdict("resend", Verdict::ResendResult),
            verdict("cancel", Verdict::Cancel),
            verdict("forget", Verdict::Forget),
        ]),
    );
    assert_eq!(told(&mut ledger), ["stop cancel", "forget forget"]);
    assert_eq!(said(&mut ledger), ["result resend", "credit 2 of 0"]);
    // Stopped, and nobody wants to know how it ended.
    ended(&mut ledger, 0, "cancel", 0, vec![]);
    assert_eq!(told(&mut ledger), ["forget cancel"]);
    assert_eq!(said(&mut ledger), ["credit 3 of 0"]);
}

#[test]
fn sessions_are_in_the_inventory_from_their_grant_to_their_end() {
    let mut ledger = attached();
    let grant =
        v1::SessionGrant { session_id: "s".into(), fence: fence(1, 1), ..v1::SessionGrant::default() };
    ledger.coordinator_says(0, down::Message::SessionCreate(grant));
    assert_eq!(ledger.inventory().0[0].state, "initializing");
    let update = |state: &str| {
        let (session_id, fence) = ("s".to_owned(), fence(1, 1));
        to_link::Message::Session(v1::SessionUpdate {
            session_id,
            fence,
            state: state.into(),
            ..Default::default()
        })
    };
    ledger.host_says(0, update("ready"), vec![]);
    assert_eq!(said(&mut ledger)[0], "s ready");
    assert_eq!(ledger.inventory().0[0].state, "ready");
    // The word may have been lost with the attach: it is said again.
    ledger.detached();
    ledger.inventory();
    ledger.welcome(0, &welcome_with(vec![]));
    assert_eq!(said(&mut ledger)[0], "s ready");
    // Between Hello and Welcome nothing is lost either.
    ledger.detached();
    ledger.inventory();
    ledger.host_says(0, update("destroyed"), vec![]);
    ledger.welcome(0, &welcome_with(vec![]));
    assert_eq!(said(&mut ledger)[0], "s destroyed");
    assert_eq!(ledger.inventory().0, vec![]);
}

#[test]
fn an_unwanted_session_is_destroyed() {
    let mut ledger = attached();
    let grant =
        v1::SessionGrant { session_id: "s".into(), fence: fence(1, 1), ..v1::SessionGrant::default() };
    ledger.coordinator_says(0, down::Message::SessionCreate(grant));
    told(&mut ledger);
    ledger.detached();
    let verdict = v1::SessionVerdict { session_id: "s".into(), verdict: Verdict::Forget.into() };
    ledger.welcome(0, &Welcome { sessions: vec![verdict], ..welcome_with(vec![]) });
    assert_eq!(told(&mut ledger), ["destroy s"]);
}

#[test]
fn short_output_rides_in_the_result() {
    let mut ledger = attached();
    python(&mut ledger, "a", fence(1, 1));
    let content = vec![b'x'; 16 << 10];
    ended(&mut ledger, 0, "a", content.len() as u64, spool(&content));
    assert!(ledger.poll_output().is_none());
    assert_eq!(said(&mut ledger)[0], "result a@0+16384");
}

#[test]
fn output_of_a_running_attempt_waits_for_company_but_not_long() {
    let mut ledger = attached();
    python(&mut ledger, "a", fence(1, 1));
    grew(&mut ledger, 100, "a", 10, spool(&[b'x'; 30]));
    assert!(ledger.poll_output().is_none());
    ledger.tick(100 + OUTPUT_AGE_MS - 1);
    assert!(ledger.poll_output().is_none());
    grew(&mut ledger, 119, "a", 20, vec![]);
    ledger.tick(100 + OUTPUT_AGE_MS);
    let piece = ledger.poll_output().unwrap();
    assert_eq!((piece.offset, piece.len), (0, 20));
    // The result waits until the coordinator has all that comes before its tail.
    ended(&mut ledger, 130, "a", 30, vec![]);
    assert!(!said(&mut ledger).iter().any(|it| it.starts_with("result")));
    output_ack(&mut ledger, "a", 20);
    assert_eq!(said(&mut ledger), ["result a@20+10"]);
}

#[test]
fn windows_hold_and_acks_open_them() {
    let mut ledger = attached();
    let tasks = (0..20).map(|i| format!("t{i:02}")).collect::<Vec<_>>();
    let mut on_the_way = HashMap::new();
    for task in &tasks {
        python(&mut ledger, task, fence(1, 1));
        grew(&mut ledger, 0, task, 1 << 20, spool(b"its content is not read here"));
    }
    let mut total = 0;
    while let Some(piece) = ledger.poll_output() {
        assert!(piece.len <= CHUNK_BYTES_MAX);
        *on_the_way.entry(piece.key.task.to_string()).or_insert(0) += piece.len as u64;
        total += piece.len as u64;
    }
    assert_eq!(total, WORKER_WINDOW_BYTES);
    assert!(on_the_way.values().all(|bytes| *bytes <= ATTEMPT_WINDOW_BYTES));
    output_ack(&mut ledger, "t00", 100_000);
    let more: u64 = std::iter::from_fn(|| ledger.poll_output()).map(|piece| piece.len as u64).sum();
    assert_eq!(more, 100_000);
}

#[test]
fn a_spool_that_ends_early_ends_in_a_result_marked_truncated() {
    let mut ledger = attached();
    python(&mut ledger, "a", fence(1, 1));
    grew(&mut ledger, 0, "a", 100_000, spool(b"short"));
    let piece = ledger.poll_output().unwrap();
    ledger.spool_ends_at(&piece, 5);
    assert!(ledger.poll_output().is_none());
    ended(&mut ledger, 0, "a", 5, vec![]);
    output_ack(&mut ledger, "a", 5);
    let result = std::iter::from_fn(|| ledger.poll_control()).find_map(|control| match control {
        Control::Result { result, .. } => result.outcome,
        Control::Message(_) => None,
    });
    let outcome = result.unwrap();
    assert!(outcome.stdout_truncated && outcome.stdout_bytes == 5);
}

#[test]
fn a_result_too_large_for_the_link_goes_without_what_makes_it_large() {
    let mut ledger = attached();
    python(&mut ledger, "a", fence(1, 1));
    let outcome = Some(v1::Outcome { step_json: vec![0; 9 << 20], ..v1::Outcome::default() });
    let end = Ended {
        task_id: "a".into(),
        fence: fence(1, 1),
        state: v1::TaskState::Succeeded.into(),
        outcome,
        artifacts: vec![],
    };
    ledger.host_says(0, to_link::Message::Ended(end), vec![]);
    let Some(Control::Result { result, .. }) = ledger.poll_control() else { panic!("no result") };
    let outcome = result.outcome.unwrap();
    assert!(outcome.step_json.is_empty());
    assert_eq!(outcome.error.unwrap().code, "too_large");
}

#[test]
fn while_draining_nothing_is_taken() {
    let mut ledger = attached();
    ledger.stop(1_000, false);
    python(&mut ledger, "a", fence(1, 1));
    noop(&mut ledger, "n");
    assert_eq!(said(&mut ledger), ["credit 0 of 2"]);
    assert!(told(&mut ledger).is_empty() && ledger.settled());
}

#[test]
fn a_new_link_takes_over_what_the_host_has() {
    let items = vec![
        v1::AttemptItem { task_id: "runs".into(), fence: fence(1, 1), running: true, ..Default::default() },
        v1::AttemptItem {
            task_id: "done".into(),
            fence: fence(1, 1),
            stdout_bytes: 3,
            result_pending: true,
            ..Default::default()
        },
    ];
    let session = |id: &str, state: &str| v1::SessionItem {
        session_id: id.into(),
        fence: fence(1, 1),
        state: state.into(),
        interpreter_restarted: false,
        globals: None,
        sealed: false,
        python_version: String::new(),
    };
    let sessions = vec![session("s", "ready"), session("t", "initializing")];
    let mut ledger = Ledger::new(HostHello { attempts: items.clone(), sessions, ..host_hello() });
    let mut inventory = ledger.inventory().1;
    inventory.sort_by_key(|item| !item.running);
    assert_eq!(inventory, items);
    ledger.welcome(0, &welcome_with(vec![]));
    ledger.tick(0);
    assert_eq!(said(&mut ledger), ["s ready", "started runs", "credit 2 of 0"]);
    ended(&mut ledger, 0, "done", 3, spool(b"abc"));
    assert_eq!(said(&mut ledger), ["result done@0+3", "credit 3 of 0"]);
}

#[test]
fn a_session_that_was_packed_for_the_last_time_is_sealed_until_it_is_granted_again() {
    let session = v1::SessionItem {
        session_id: "s".into(),
        fence: fence(1, 1),
        state: "ready".into(),
        ..Default::default()
    };
    let mut ledger = Ledger::new(HostHello { sessions: vec![session], ..host_hello() });
    let pack = |ledger: &mut Ledger, last: bool| {
        let mode = open_file::Mode::Pack.into();
        let open = OpenFile { session_id: "s".into(), mode, last, ..OpenFile::default() };
        ledger.tell_host(to_host::Message::OpenFile(open));
        ledger.inventory().0[0].sealed
    };
    assert!(!pack(&mut ledger, false));
    assert!(pack(&mut ledger, true));
    let grant =
        v1::SessionGrant { session_id: "s".into(), fence: fence(1, 1), ..v1::SessionGrant::default() };
    ledger.coordinator_says(0, down::Message::SessionCreate(grant));
    assert!(!ledger.inventory().0[0].sealed);
}

#[test]
fn output_goes_on_where_the_coordinator_says_not_where_this_link_had_stopped() {
    let mut ledger = attached();
    python(&mut ledger, "a", fence(1, 1));
    grew(&mut ledger, 0, "a", 100_000, spool(b""));
    while ledger.poll_output().is_some() {}
    output_ack(&mut ledger, "a", 60_000);
    // Less than it had acked: its store was put back. More: another link had sent it.
    for offset in [50_000, 70_000] {
        ledger.detached();
        ledger.inventory();
        ledger.welcome(
            0,
            &welcome_with(vec![v1::AttemptVerdict {
                task_id: "a".into(),
                fence: fence(1, 1),
                verdict: Verdict::Keep.into(),
                stdout_offset: offset,
                stderr_offset: 0,
            }]),
        );
        assert_eq!(ledger.poll_output().map(|piece| piece.offset), Some(offset));
    }
}

/// What may happen to one attempt and its output stream.
#[derive(Debug, Clone)]
enum Step {
    Grow(u16),
    Send,
    /// Acks this share of what was received, in 1/256.
    Ack(u8),
    Wait(u8),
    CutOutput,
    CutAttach,
    End,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => any::<u16>().prop_map(Step::Grow),
        4 => Just(Step::Send),
        3 => any::<u8>().prop_map(Step::Ack),
        2 => (0u8..60).prop_map(Step::Wait),
        1 => Just(Step::CutOutput),
        1 => Just(Step::CutAttach),
        1 => Just(Step::End),
    ]
}

/// A coordinator that keeps what it receives, byte for byte, and refuses gaps.
#[derive(Default)]
struct Receiver {
    held: u64,
    durable: u64,
}
impl Receiver {
    fn take(&mut self, offset: u64, len: u64) -> Result<(), TestCaseError> {
        prop_assert!(offset <= self.held, "a gap: {offset} after {}", self.held);
        self.held = self.held.max(offset + len);
        Ok(())
    }
}

proptest! {
    /// Whatever is cut, and wherever, the stream arrives whole and without a gap, and the windows hold.
    #[test]
    fn output_arrives_whole_across_cuts(steps in prop::collection::vec(step(), 1..120)) {
        let mut ledger = attached();
        let mut receiver = Receiver::default();
        let (mut now, mut len, mut done) = (0u64, 0u64, false);
        python(&mut ledger, "a", fence(1, 1));
        grew(&mut ledger, now, "a", 0, spool(b""));
        let last = [Step::End, Step::Send, Step::Ack(255)].into_iter();
        let settle = std::iter::repeat_n([Step::Send, Step::Ack(255)], 40).flatten();
        for step in steps.into_iter().chain(last).chain(settle) {
            match step {
                Step::Grow(bytes) if !done => {
                    len += u64::from(bytes);
                    grew(&mut ledger, now, "a", len, vec![]);
                }
                Step::End if !done => {
                    done = true;
                    ended(&mut ledger, now, "a", len, vec![]);
                }
                Step::Grow(_) | Step::End => {}
                Step::Send => while let Some(piece) = ledger.poll_output() {
                    prop_assert!(piece.offset + piece.len as u64 <= len);
                    receiver.take(piece.offset, piece.len as u64)?;
                    prop_assert!(ledger.in_flight <= ATTEMPT_WINDOW_BYTES);
                },
                Step::Ack(share) => {
                    let more = (receiver.held - receiver.durable) * (u64::from(share) + 1) / 256;
                    receiver.durable += more;
                    output_ack(&mut ledger, "a", receiver.durable);
                }
                Step::Wait(ms) => {
                    now += u64::from(ms);
                    // The coordinator answers heartbeats, else the lease would end.
                    let beat = v1::HeartbeatAck { seq: 0, lease_ms: 30_000 };
                    ledger.coordinator_says(now, down::Message::HeartbeatAck(beat));
                    prop_assert!(ledger.tick(now).is_none());
                }
                Step::CutOutput => {
                    receiver.held = receiver.durable;
                    ledger.output_cut(now);
                }
                Step::CutAttach => {
                    receiver.held = receiver.durable;
                    ledger.detached();
                    ledger.inventory();
                    ledger.welcome(now, &welcome_with(vec![v1::AttemptVerdict {
                        task_id: "a".into(),
                        fence: fence(1, 1),
                        verdict: Verdict::Keep.into(),
                        stdout_offset: receiver.durable,
                        stderr_offset: 0,
                    }]));
                }
            }
            let attempt = ledger.attempts.values().next().unwrap();
            prop_assert_eq!(ledger.in_flight, attempt.in_flight());
            prop_assert!(attempt.stdout.acked <= attempt.stdout.sent && attempt.stdout.sent <= attempt.stdout.len);
        }
        // All of it is settled: the result is there and its tail begins where the coordinator's bytes end.
        let result = std::iter::from_fn(|| ledger.poll_control()).find_map(|control| match control {
            Control::Result { stdout_tail, .. } => Some(stdout_tail),
            Control::Message(_) => None,
        });
        let tail = result.expect("a result in the end");
        let tail = tail.map_or((receiver.durable, 0), |tail| (tail.offset, tail.len as u64));
        prop_assert_eq!(tail.0, receiver.durable);
        prop_assert_eq!(tail.0 + tail.1, len);
        prop_assert!(tail.1 <= 16 << 10);
    }
}
