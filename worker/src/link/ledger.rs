//! What the link knows and what it has to say next, without any I/O: the bookkeeping between host and coordinator.
//!
//! The shell (`attached.rs`) feeds it what arrives and asks it, by the `poll_` functions, what to send. Times are
//! monotonic milliseconds. Nothing here is durable: the host has all of it and tells it again to a new link.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs::File,
    sync::Arc,
};

use cooper_common::{
    error::Code,
    limits::{
        artifact,
        exec::INTERRUPT_GRACE_MS,
        link::{ATTEMPT_WINDOW_BYTES, CHUNK_BYTES_MAX, WORKER_WINDOW_BYTES},
    },
};
use cooper_proto::{
    host::{ArtifactPart, Ended, Forget, Grew, HostHello, open_file, to_host},
    v1::{self, up},
};

use attempt::{Artifacts, Attempt, End, Sending};
pub use attempt::{Fence, Key};

mod attempt;
mod inputs;
#[cfg(test)]
mod tests;

/// An execution shorter than this needs no Started: its Result says it all.
pub const STARTED_DELAY_MS: u64 = 25;
/// A byte of a running attempt waits at most this long for more bytes, or for the end, to travel with.
pub const OUTPUT_AGE_MS: u64 = 20;
/// Results that wait for their ack; from here on the link gives no credit.
pub const RESULTS_UNACKED_MAX: usize = 8192;

/// Part of a spool file to be read and sent.
#[derive(Debug, Clone)]
pub struct Piece {
    pub key: Key,
    pub stream: v1::Stream,
    pub offset: u64,
    pub len: usize,
    pub file: Arc<File>,
}

/// Artifacts to be sent before their attempt's result.
#[derive(Debug, Clone)]
pub struct Upload {
    pub key: Key,
    pub parts: Vec<ArtifactPart>,
    pub file: Arc<File>,
}

/// What became of an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sent {
    Kept,
    /// Why it is not to be kept.
    Refused(String),
}

/// Something for the control stream.
#[derive(Debug)]
pub enum Control {
    Message(up::Message),
    /// A result whose tails the shell reads from the spools.
    Result {
        result: Box<v1::Result>,
        stdout_tail: Option<Piece>,
        stderr_tail: Option<Piece>,
    },
}

/// What the coordinator or the host asks of the shell itself.
#[derive(Debug)]
pub enum Order {
    Call(v1::Call),
    /// Attach again: asked for, or the lease ran out.
    Reattach(&'static str),
    Opened(cooper_proto::host::FileOpened, Vec<std::os::fd::OwnedFd>),
    Closed(cooper_proto::host::FileClosed),
    Answered(v1::CallResult),
    Drain(cooper_proto::host::Drain),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Started(Key),
    Output(Key),
    /// Artifacts whose sending was cut.
    Upload(Key),
}

/// Times and terms of the current attach.
#[derive(Debug, Clone, Copy)]
struct Terms {
    heartbeat_ms: u64,
    heartbeat_due: u64,
    heartbeat_seq: u64,
    lease_until: u64,
    assigns_seen: u64,
    credit_told: Option<(u32, u64)>,
    /// Version of the link protocol of this attach.
    protocol: u32,
    /// The coordinator takes artifacts.
    artifacts: bool,
}

#[derive(Debug)]
struct Session {
    item: v1::SessionItem,
    /// The host's last word, to be repeated at each attach.
    update: Option<v1::SessionUpdate>,
}

/// Counters for /metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    pub assigns: u64,
    pub noops: u64,
    pub results_acked: u64,
    pub output_bytes: u64,
    pub stale: u64,
}

#[derive(Debug)]
pub struct Ledger {
    host: HostHello,
    sessions: BTreeMap<String, Session>,
    attempts: BTreeMap<Key, Attempt>,
    /// Attempts that have not ended.
    running: usize,
    /// Output on its way, of all attempts.
    in_flight: u64,
    said_hello: bool,
    terms: Option<Terms>,
    /// The host wants to end: no more work is taken. When that was to be over, and whether its sessions are to
    /// go on elsewhere.
    stopping: Option<(u64, bool)>,
    /// An operator empties this worker.
    drained: bool,
    timers: BTreeSet<(u64, Timer)>,
    /// Attempts with something to stream, each at most once.
    line: VecDeque<Key>,
    /// Attempts whose result may be ready.
    results: VecDeque<Key>,
    /// Attempts whose artifacts are to be sent.
    uploads: VecDeque<Key>,
    to_host: VecDeque<to_host::Message>,
    updates: VecDeque<up::Message>,
    /// What network policies refused, for the next heartbeat.
    refused: Vec<v1::NetworkRefused>,
    /// What sessions' connections carried, and whether it was said since this attach.
    used: BTreeMap<String, (v1::NetworkUsed, bool)>,
    /// What the observer saw of services, by stack and service, until it was heard.
    troubles: BTreeMap<(String, String), v1::Trouble>,
    /// The coordinator wants to hear of it.
    observes: bool,
    pub counters: Counters,
}

impl Ledger {
    pub fn new(host: HostHello) -> Self {
        // The link before this one may have died with a session's last word unsaid, so that is said again.
        let known = host.sessions.iter().map(|item| {
            let session = Session { item: item.clone(), update: last_word(&host, item) };
            (item.session_id.clone(), session)
        });
        let sessions = known.collect();
        let mut ledger = Self {
            sessions,
            attempts: BTreeMap::new(),
            running: 0,
            in_flight: 0,
            said_hello: false,
            terms: None,
            stopping: None,
            drained: false,
            timers: BTreeSet::new(),
            line: VecDeque::new(),
            results: VecDeque::new(),
            uploads: VecDeque::new(),
            to_host: VecDeque::new(),
            updates: VecDeque::new(),
            refused: Vec::new(),
            used: BTreeMap::new(),
            troubles: BTreeMap::new(),
            observes: false,
            counters: Counters::default(),
            host,
        };
        for item in std::mem::take(&mut ledger.host.attempts) {
            let (started, end_announced) = (item.running, item.result_pending);
            let mut attempt = Attempt { on_host: true, started, end_announced, ..Attempt::default() };
            attempt.stdout.len = item.stdout_bytes;
            attempt.stderr.len = item.stderr_bytes;
            // Also one whose end is announced: how it ended is not known before the host's Ended arrives.
            ledger.running += 1;
            ledger.attempts.insert(Key::new(&item.task_id, item.fence), attempt);
        }
        ledger
    }

    pub fn worker_id(&self) -> &str {
        &self.host.worker_id
    }
    pub fn host(&self) -> &HostHello {
        &self.host
    }
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }
    pub fn running(&self) -> usize {
        self.running
    }
    /// Results that wait for their ack.
    pub fn unacked(&self) -> usize {
        self.attempts.len() - self.running
    }

    /// The inventory for Hello: all that the host was ever told to have and was not told to drop. What changes from
    /// now on is told after the Welcome.
    pub fn inventory(&mut self) -> (Vec<v1::SessionItem>, Vec<v1::AttemptItem>) {
        self.said_hello = true;
        let sessions = self.sessions.values().map(|session| session.item.clone()).collect();
        (sessions, self.attempt_items())
    }

    fn attempt_items(&self) -> Vec<v1::AttemptItem> {
        let items = self.attempts.iter().map(|(key, attempt)| v1::AttemptItem {
            task_id: key.task.to_string(),
            fence: key.fence.into(),
            running: attempt.running() && !attempt.end_announced,
            stdout_bytes: attempt.stdout.len,
            stderr_bytes: attempt.stderr.len,
            result_pending: !attempt.running() || attempt.end_announced,
        });
        items.collect()
    }

    /// Stops taking work, and says so; what runs keeps running.
    pub fn stop(&mut self, deadline_in_ms: u64, checkpoint: bool) {
        self.stopping = Some((deadline_in_ms, checkpoint));
        self.say_stopping();
    }
    fn say_stopping(&mut self) {
        if let (Some((deadline_in_ms, checkpoint)), Some(_)) =
            (self.stopping, self.terms.filter(|terms| terms.protocol >= 2))
        {
            let (remaining, attempts) = (self.attempts.len() as u32, self.attempt_items());
            let draining = v1::Draining { remaining, deadline_in_ms, attempts, checkpoint };
            self.updates.push_back(up::Message::Draining(draining));
        }
    }
    /// It stops, or an operator empties it.
    pub fn draining(&self) -> bool {
        self.stopping.is_some() || self.drained
    }
    /// Nothing is left to say: every result is acked and every message handed out.
    pub fn settled(&self) -> bool {
        self.unacked() == 0 && !self.wants_control() && self.to_host.is_empty()
    }

    /// Something of the shell's own for the coordinator, for the host.
    pub fn tell(&mut self, message: up::Message) {
        self.updates.push_back(message);
    }
    pub fn tell_host(&mut self, message: to_host::Message) {
        // Packed for the last time, it takes nothing until it is granted again: a coordinator that was away when this
        // came to nothing learns of it by the inventory.
        if let to_host::Message::OpenFile(open) = &message
            && open.mode() == open_file::Mode::Pack
            && open.last
            && let Some(session) = self.sessions.get_mut(&open.session_id)
        {
            session.item.sealed = true;
        }
        self.to_host.push_back(message);
    }

    // What to send next.

    pub fn poll_host(&mut self) -> Option<to_host::Message> {
        self.to_host.pop_front()
    }
    pub fn host_backlog(&self) -> usize {
        self.to_host.len()
    }
    /// Puts back what the host's socket had no room for.
    pub fn unpoll_host(&mut self, message: to_host::Message) {
        self.to_host.push_front(message);
    }

    pub fn wants_control(&self) -> bool {
        let Some(terms) = &self.terms else { return false };
        !self.updates.is_empty() || !self.results.is_empty() || terms.credit_told != Some(self.credit())
    }
    pub fn control_backlog(&self) -> usize {
        self.updates.len() + self.results.len()
    }

    /// The next message up. Credit comes last, so that one tells of all before it.
    pub fn poll_control(&mut self) -> Option<Control> {
        self.terms.as_ref()?;
        if let Some(message) = self.updates.pop_front() {
            return Some(Control::Message(message));
        }
        while let Some(key) = self.results.pop_front() {
            if let Some(result) = self.take_result(&key) {
                return Some(result);
            }
        }
        let credit @ (tasks, assigns_seen) = self.credit();
        let terms = self.terms.as_mut()?;
        (terms.credit_told != Some(credit)).then(|| {
            terms.credit_told = Some(credit);
            Control::Message(up::Message::Credit(v1::Credit { tasks, assigns_seen }))
        })
    }

    fn take_result(&mut self, key: &Key) -> Option<Control> {
        let attempt = self.attempts.get_mut(key)?;
        if !attempt.result_ready() {
            return None;
        }
        let tail = |stream, spool: &attempt::Spool| {
            let len = spool.unsent() as usize;
            let file = spool.file.clone().filter(|_| len > 0)?;
            Some(Piece { key: key.clone(), stream, offset: spool.acked, len, file })
        };
        let stdout_tail = tail(v1::Stream::Stdout, &attempt.stdout);
        let stderr_tail = tail(v1::Stream::Stderr, &attempt.stderr);
        let end = attempt.end.as_mut()?;
        end.sent = true;
        end.outcome.stdout_bytes = attempt.stdout.len;
        end.outcome.stderr_bytes = attempt.stderr.len;
        end.outcome.stdout_truncated |= attempt.stdout.cut;
        end.outcome.stderr_truncated |= attempt.stderr.cut;
        let result = Box::new(v1::Result {
            task_id: key.task.to_string(),
            fence: key.fence.into(),
            state: end.state,
            outcome: Some(end.outcome.clone()),
            stdout_tail: None,
            stderr_tail: None,
        });
        Some(Control::Result { result, stdout_tail, stderr_tail })
    }

    /// "I can take this many attempts more", and how many assignments that counts.
    fn credit(&self) -> (u32, u64) {
        let seen = self.terms.as_ref().map_or(0, |terms| terms.assigns_seen);
        if self.stopping.is_some() || self.unacked() >= RESULTS_UNACKED_MAX {
            return (0, seen);
        }
        let tasks_max = self.host.capacity.as_ref().map_or(0, |capacity| capacity.tasks_max);
        (tasks_max.saturating_sub(u32::try_from(self.running).unwrap_or(u32::MAX)), seen)
    }

    pub fn wants_output(&self) -> bool {
        !self.line.is_empty() && self.in_flight < WORKER_WINDOW_BYTES
    }

    /// The next piece of output for the second connection, within the windows, attempts taking turns.
    pub fn poll_output(&mut self) -> Option<Piece> {
        self.terms.as_ref()?;
        while self.in_flight < WORKER_WINDOW_BYTES {
            let key = self.line.pop_front()?;
            let Some(attempt) = self.attempts.get_mut(&key) else { continue };
            attempt.in_line = false;
            let window = ATTEMPT_WINDOW_BYTES.saturating_sub(attempt.in_flight());
            let Some(stream) = attempt.streams_now().filter(|_| window > 0) else { continue };
            let spool = attempt.spool(stream);
            let Some(file) = spool.file.clone() else { continue };
            let room = window.min(WORKER_WINDOW_BYTES - self.in_flight).min(CHUNK_BYTES_MAX as u64);
            let len = spool.unsent().min(room);
            let offset = spool.sent;
            spool.sent += len;
            self.in_flight += len;
            self.counters.output_bytes += len;
            if attempt.stdout.unsent() + attempt.stderr.unsent() == 0 {
                attempt.aged = false;
            }
            self.stand_in_line(&key);
            return Some(Piece { key, stream, offset, len: len as usize, file });
        }
        None
    }

    /// A spool turned out shorter than the host had said (its disk failed): what there is, is all there will be.
    pub fn spool_ends_at(&mut self, piece: &Piece, len: u64) {
        let Some(attempt) = self.attempts.get_mut(&piece.key) else { return };
        let before = attempt.in_flight();
        attempt.spool(piece.stream).cut_at(len);
        self.in_flight -= before - attempt.in_flight();
        self.results.push_back(piece.key.clone());
    }

    /// The next attempt whose artifacts are to be sent.
    pub fn poll_upload(&mut self) -> Option<Upload> {
        while let Some(key) = self.uploads.pop_front() {
            let end = self.attempts.get_mut(&key).filter(|it| !it.discarded).and_then(|it| it.end.as_mut());
            let Some(artifacts) = end.map(|end| &mut end.artifacts) else { continue };
            if artifacts.sending != Sending::Wanted {
                continue;
            }
            if let Some(file) = artifacts.file.clone() {
                artifacts.sending = Sending::UnderWay;
                return Some(Upload { key, parts: artifacts.parts.clone(), file });
            }
        }
        None
    }

    /// The coordinator has them, or said what it does not keep.
    pub fn uploaded(&mut self, now: u64, key: &Key, sent: &[Sent]) {
        let Some(end) = self.attempts.get_mut(key).and_then(|attempt| attempt.end.as_mut()) else { return };
        end.artifacts.sending = Sending::Done;
        for (part, sent) in end.artifacts.parts.iter().zip(sent) {
            match sent {
                Sent::Kept => end.outcome.artifacts.push(v1::ArtifactRef {
                    name: part.name.clone(),
                    size_bytes: part.size_bytes,
                    sha256: part.sha256.clone(),
                    ..v1::ArtifactRef::default()
                }),
                Sent::Refused(reason) => skip(&mut end.outcome, &part.name, reason),
            }
        }
        self.review(now, key);
    }

    /// Sending broke while the attach lives: again, in a while.
    pub fn upload_cut(&mut self, now: u64, key: &Key) {
        if let Some(end) = self.attempts.get_mut(key).and_then(|attempt| attempt.end.as_mut()) {
            end.artifacts.sending = Sending::Wanted;
            self.timers.insert((now + artifact::RETRY_MS, Timer::Upload(key.clone())));
        }
    }

    /// When `tick` has something to do.
    pub fn next_deadline(&self) -> Option<u64> {
        let terms = self.terms.as_ref()?;
        let timer = self.timers.first().map_or(u64::MAX, |(due, _)| *due);
        Some(timer.min(terms.heartbeat_due).min(terms.lease_until))
    }

    // Helpers of the inputs.

    fn stand_in_line(&mut self, key: &Key) {
        let Some(attempt) = self.attempts.get_mut(key) else { return };
        if !attempt.in_line && attempt.streams_now().is_some() {
            attempt.in_line = true;
            self.line.push_back(key.clone());
        }
    }

    /// Looks at an attempt whose output, end or acks changed, and puts it where it has to be.
    fn review(&mut self, now: u64, key: &Key) {
        let Some(attempt) = self.attempts.get_mut(key) else { return };
        if self.terms.is_none() {
            return;
        }
        if attempt.has_young_output() && !attempt.ageing {
            attempt.ageing = true;
            self.timers.insert((now + OUTPUT_AGE_MS, Timer::Output(key.clone())));
        }
        let takes = self.terms.as_ref().is_some_and(|terms| terms.artifacts);
        if let Some(end) = attempt.end.as_mut().filter(|_| !attempt.discarded)
            && !end.artifacts.parts.is_empty()
            && end.artifacts.sending == Sending::Wanted
        {
            let why = match (takes, &end.artifacts.file) {
                (true, Some(_)) => None,
                // The host broke its word.
                (true, None) => Some("unreadable"),
                (false, _) => Some("not_supported"),
            };
            match why {
                None => self.uploads.push_back(key.clone()),
                Some(reason) => {
                    end.artifacts.sending = Sending::Done;
                    for part in &end.artifacts.parts {
                        skip(&mut end.outcome, &part.name, reason);
                    }
                }
            }
        }
        if attempt.result_ready() {
            self.results.push_back(key.clone());
        } else {
            self.stand_in_line(key);
        }
    }

    /// The newest fence known of a task.
    fn newest(&self, task: &Arc<str>) -> Option<Fence> {
        let oldest = Key { task: task.clone(), fence: Fence::default() };
        let of_task = self.attempts.range(oldest..).take_while(|(key, _)| key.task == *task);
        of_task.map(|(key, _)| key.fence).last()
    }

    /// Wants nothing more of an attempt: stops it if it runs, forgets it once it has ended.
    fn discard(&mut self, key: &Key, grace_ms: u64) {
        let Some(attempt) = self.attempts.get_mut(key) else { return };
        if attempt.running() {
            attempt.discarded = true;
            self.in_flight -= attempt.in_flight();
            attempt.stdout.forget_in_flight();
            attempt.stderr.forget_in_flight();
            let (task_id, fence) = (key.task.to_string(), key.fence.into());
            self.to_host.push_back(to_host::Message::Stop(v1::Cancel { task_id, fence, grace_ms }));
        } else {
            self.forget(key);
        }
    }

    /// Drops an ended attempt, here and at the host.
    fn forget(&mut self, key: &Key) {
        let Some(attempt) = self.attempts.remove(key) else { return };
        self.in_flight -= attempt.in_flight();
        self.running -= usize::from(attempt.running());
        if attempt.on_host {
            self.tell_host_to_forget(key);
        }
    }

    fn tell_host_to_forget(&mut self, key: &Key) {
        let (task_id, fence) = (key.task.to_string(), key.fence.into());
        self.to_host.push_back(to_host::Message::Forget(Forget { task_id, fence }));
    }
}

fn skip(outcome: &mut v1::Outcome, name: &str, reason: &str) {
    outcome.artifacts_skipped_count += 1;
    if outcome.artifacts_skipped.len() < artifact::SKIPPED_NAMED_MAX {
        let skipped = v1::ArtifactSkipped { name: name.to_owned(), reason: reason.to_owned() };
        outcome.artifacts_skipped.push(skipped);
    }
}

/// What the host must have said of a session that is in this state; nothing while it is being made.
fn last_word(host: &HostHello, item: &v1::SessionItem) -> Option<v1::SessionUpdate> {
    let error = match item.state.as_str() {
        "ready" => None,
        "failed" => Some(v1::Error {
            code: Code::Internal.as_str().to_owned(),
            message: "the session failed on its worker; the worker's log says why".to_owned(),
            hint: String::new(),
        }),
        _ => return None,
    };
    Some(v1::SessionUpdate {
        session_id: item.session_id.clone(),
        fence: item.fence,
        state: item.state.clone(),
        error,
        python_version: match item.python_version.as_str() {
            "" => host.python_version.clone(),
            version => version.to_owned(),
        },
        facilities: host.facilities.clone(),
        globals: item.globals.clone(),
    })
}
