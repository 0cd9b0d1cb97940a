//! What may happen to the ledger: messages of the coordinator and of the host, acks, cuts, time.

use std::os::fd::OwnedFd;

use cooper_common::{
    error::Error,
    limits::{
        link::{CHUNK_BYTES_MAX, HEARTBEAT_MIN_MS, LEASE_MS, MESSAGE_BYTES_MAX},
        network::{REFUSALS_TOLD_MAX, USED_TOLD_MAX},
    },
};
use cooper_proto::{
    host::{Reach, to_link},
    v1::{Assign, Verdict, Welcome, down, task_spec},
};

use prost::Message as _;
use tracing::info;

use super::*;

/// What an outcome may have so that a message holds it, its tails and its names.
const OUTCOME_BYTES_MAX: usize = MESSAGE_BYTES_MAX - 2 * CHUNK_BYTES_MAX;

impl Ledger {
    // The attach.

    /// The coordinator let us in: its verdicts correct whatever either side believed before.
    pub fn welcome(&mut self, now: u64, welcome: &Welcome) {
        let heartbeat_ms = or_default(welcome.heartbeat_ms, HEARTBEAT_MIN_MS);
        self.terms = Some(Terms {
            heartbeat_ms,
            heartbeat_due: now + heartbeat_ms,
            heartbeat_seq: 0,
            lease_until: now + or_default(welcome.lease_ms, LEASE_MS),
            assigns_seen: 0,
            credit_told: None,
            // A coordinator that names none is of the first.
            protocol: welcome.protocol.max(1),
            artifacts: welcome.artifacts,
        });
        self.drained = false;
        self.used.values_mut().for_each(|(_, said)| *said = false);
        self.say_stopping();
        self.say_reach(true, or_default(welcome.lease_ms, LEASE_MS));
        for verdict in &welcome.attempts {
            let key = Key::new(&verdict.task_id, verdict.fence);
            let Some(attempt) = self.attempts.get_mut(&key) else { continue };
            match verdict.verdict() {
                Verdict::Cancel | Verdict::Forget => self.discard(&key, INTERRUPT_GRACE_MS),
                // Which of the two it is depends on whether the attempt has ended by now, and that is known here.
                Verdict::Keep | Verdict::ResendResult | Verdict::Unspecified => {
                    attempt.stdout.rewind_to(verdict.stdout_offset);
                    attempt.stderr.rewind_to(verdict.stderr_offset);
                }
            }
        }
        for verdict in &welcome.sessions {
            if let (Verdict::Forget | Verdict::Cancel, Some(session)) =
                (verdict.verdict(), self.sessions.get(&verdict.session_id))
            {
                let (session_id, fence) = (verdict.session_id.clone(), session.item.fence);
                let end = v1::SessionEnd { session_id, fence };
                self.to_host.push_back(to_host::Message::SessionDestroy(end));
            }
        }
        self.observes = welcome.observe.is_some();
        self.to_host.extend(welcome.observe.clone().map(to_host::Message::Observe));
        if self.observes {
            self.updates.extend(self.troubles.values().cloned().map(up::Message::Trouble));
        }
        // What was said in an attach that broke may not have arrived.
        let words = self.sessions.values().filter_map(|session| session.update.clone());
        self.updates.extend(words.map(up::Message::Session));
        for key in self.attempts.keys().cloned().collect::<Vec<_>>() {
            let started =
                self.attempts.get(&key).is_some_and(|it| it.running() && it.started && !it.discarded);
            if started {
                self.timers.insert((now, Timer::Started(key.clone())));
            }
            self.review(now, &key);
        }
    }

    /// The attach is over: whatever was on its way may be lost.
    pub fn detached(&mut self) {
        self.said_hello = false;
        if self.terms.take().is_some() {
            self.say_reach(false, 0);
        }
        self.timers.clear();
        self.line.clear();
        self.results.clear();
        self.uploads.clear();
        // Ended sessions are told of by their absence in the inventory; all else is told again.
        self.updates.clear();
        self.in_flight = 0;
        for attempt in self.attempts.values_mut() {
            attempt.stdout.forget_in_flight();
            attempt.stderr.forget_in_flight();
            (attempt.aged, attempt.ageing, attempt.in_line) = (false, false, false);
            if let Some(end) = &mut attempt.end {
                end.sent = false;
                if end.artifacts.sending != Sending::Wanted {
                    end.artifacts.sending = Sending::Wanted;
                    end.unsay_artifacts();
                }
            }
        }
    }

    /// The host measures how long nobody could be reached: it outlives this link.
    fn say_reach(&mut self, attached: bool, lease_ms: u64) {
        if self.host.version >= 2 {
            self.to_host.push_back(to_host::Message::Reach(Reach { attached, lease_ms }));
        }
    }

    /// Time passed. Says so when the lease ran out: the attach is worth nothing then, and a new one brings verdicts.
    pub fn tick(&mut self, now: u64) -> Option<Order> {
        let terms = self.terms.as_mut()?;
        if now >= terms.lease_until {
            return Some(Order::Reattach("no heartbeat was answered within the lease"));
        }
        if now >= terms.heartbeat_due {
            terms.heartbeat_due = now + terms.heartbeat_ms;
            terms.heartbeat_seq += 1;
            let (sessions, running) = (self.sessions.len() as u32, self.running as u32);
            let refused = self.refused.drain(..).collect();
            let known = &self.sessions;
            self.used.retain(|session, _| known.contains_key(session));
            let unsaid = self.used.values_mut().filter(|(_, said)| !said).take(USED_TOLD_MAX);
            let used = unsaid.map(|(used, said)| {
                *said = true;
                used.clone()
            });
            let heartbeat = v1::Heartbeat {
                seq: terms.heartbeat_seq,
                sessions,
                running,
                network_refused: refused,
                network_used: used.collect(),
            };
            // Ahead of the rest: it tells that we live.
            self.updates.push_front(up::Message::Heartbeat(heartbeat));
        }
        while self.timers.first().is_some_and(|(due, _)| *due <= now) {
            let Some((_, timer)) = self.timers.pop_first() else { break };
            match timer {
                Timer::Started(key) => self.say_started(&key),
                Timer::Upload(key) => self.review(now, &key),
                Timer::Output(key) => {
                    if let Some(attempt) = self.attempts.get_mut(&key) {
                        (attempt.ageing, attempt.aged) = (false, true);
                        self.stand_in_line(&key);
                    }
                }
            }
        }
        None
    }

    fn say_started(&mut self, key: &Key) {
        if self.attempts.get(key).is_some_and(|attempt| attempt.running() && !attempt.discarded) {
            let (task_id, fence) = (key.task.to_string(), key.fence.into());
            self.updates.push_back(up::Message::Started(v1::Started { task_id, fence }));
        }
    }

    // The coordinator.

    pub fn coordinator_says(&mut self, now: u64, message: down::Message) -> Option<Order> {
        let new_work = matches!(message, down::Message::Assign(_) | down::Message::SessionCreate(_));
        if new_work && self.terms.as_ref().is_some_and(|terms| now >= terms.lease_until) {
            // I1: what this worker is sent after its lease may be somebody else's by now.
            return Some(Order::Reattach("work arrived after the lease had run out"));
        }
        match message {
            down::Message::Assign(assign) => self.assign(assign),
            down::Message::ResultAck(ack) => {
                let key = Key::new(&ack.task_id, ack.fence);
                if self.attempts.get(&key).is_some_and(|attempt| !attempt.running()) {
                    self.counters.results_acked += 1;
                    self.forget(&key);
                }
            }
            down::Message::HeartbeatAck(ack) => {
                if let Some(terms) = &mut self.terms {
                    terms.lease_until = now + or_default(ack.lease_ms, LEASE_MS);
                }
            }
            down::Message::Cancel(cancel) => {
                // Of no use to one that has ended: its result is on its way. An unknown one is settled by inventory.
                let key = Key::new(&cancel.task_id, cancel.fence);
                match self.attempts.get(&key) {
                    Some(attempt) if attempt.running() => {
                        self.to_host.push_back(to_host::Message::Stop(cancel));
                    }
                    _ => self.counters.stale += 1,
                }
            }
            down::Message::SessionCreate(grant) => self.grant(grant),
            down::Message::SessionDestroy(end) => {
                let known = self.sessions.get(&end.session_id).map(|session| session.item.fence.into());
                if known.is_some_and(|known: Fence| known > end.fence.into()) {
                    self.counters.stale += 1;
                } else {
                    // Also one that is unknown here: the host answers that it is destroyed.
                    self.to_host.push_back(to_host::Message::SessionDestroy(end));
                }
            }
            down::Message::StackAdd(add) => self.to_host.push_back(to_host::Message::StackAdd(add)),
            down::Message::TroubleHeard(heard) => {
                self.troubles.remove(&(heard.stack.clone(), heard.service.clone()));
                self.to_host.push_back(to_host::Message::TroubleHeard(heard));
            }
            down::Message::Call(call) => return Some(Order::Call(call)),
            down::Message::Reattach(_) => return Some(Order::Reattach("the coordinator asked for it")),
            down::Message::Drain(drain) => {
                if drain.draining != self.drained {
                    let what = if drain.draining { "drains" } else { "no longer drains" };
                    info!(deadline_in_ms = drain.deadline_in_ms, "an operator {what} this worker");
                }
                self.drained = drain.draining;
            }
            // A second Welcome means nothing.
            down::Message::Welcome(_) => {}
        }
        None
    }

    fn assign(&mut self, assign: Assign) {
        let Some(terms) = self.terms.as_mut() else { return };
        terms.assigns_seen += 1;
        self.counters.assigns += 1;
        let key = Key::new(&assign.task_id, assign.fence);
        match self.newest(&key.task) {
            Some(known) if known >= key.fence => {
                self.counters.stale += 1;
                return;
            }
            Some(fence) => self.discard(&Key { task: key.task.clone(), fence }, INTERRUPT_GRACE_MS),
            None => {}
        }
        // Not taken, and not in what Draining lists: the coordinator gives it to another worker.
        if self.stopping.is_some() {
            return;
        }
        // What cannot be read is the host's to refuse.
        let noop = v1::TaskSpec::decode(assign.spec.clone())
            .is_ok_and(|spec| matches!(spec.kind, Some(task_spec::Kind::Noop(_))));
        if noop {
            // Answered here and at once: what it measures is the road, not the host.
            self.counters.noops += 1;
            let end = End { state: v1::TaskState::Succeeded.into(), ..End::default() };
            self.attempts.insert(key.clone(), Attempt { end: Some(Box::new(end)), ..Attempt::default() });
            self.results.push_back(key);
        } else {
            self.running += 1;
            self.attempts.insert(key, Attempt { on_host: true, ..Attempt::default() });
            self.to_host.push_back(to_host::Message::Start(assign));
        }
    }

    fn grant(&mut self, grant: v1::SessionGrant) {
        match self.sessions.get_mut(&grant.session_id) {
            Some(known) if Fence::from(known.item.fence) > Fence::from(grant.fence) => {
                self.counters.stale += 1;
                return;
            }
            Some(known) if known.item.fence == grant.fence => known.item.sealed = false,
            Some(_) | None => {
                let item = v1::SessionItem {
                    session_id: grant.session_id.clone(),
                    fence: grant.fence,
                    state: "initializing".to_owned(),
                    ..v1::SessionItem::default()
                };
                self.sessions.insert(grant.session_id.clone(), Session { item, update: None });
            }
        }
        self.to_host.push_back(to_host::Message::SessionCreate(grant));
    }

    /// The coordinator holds an attempt's output up to these offsets.
    pub fn output_acked(&mut self, now: u64, ack: &v1::OutputAck) {
        let key = Key::new(&ack.task_id, ack.fence);
        let Some(attempt) = self.attempts.get_mut(&key) else { return };
        let before = attempt.in_flight();
        attempt.stdout.ack(ack.stdout_offset);
        attempt.stderr.ack(ack.stderr_offset);
        self.in_flight -= before - attempt.in_flight();
        self.review(now, &key);
    }

    /// The second connection broke while the first lives: go on from what was acked.
    pub fn output_cut(&mut self, now: u64) {
        self.in_flight = 0;
        for key in self.attempts.keys().cloned().collect::<Vec<_>>() {
            let Some(attempt) = self.attempts.get_mut(&key) else { continue };
            if attempt.in_flight() > 0 {
                attempt.stdout.forget_in_flight();
                attempt.stderr.forget_in_flight();
                self.review(now, &key);
            }
        }
    }

    // The host.

    pub fn host_says(&mut self, now: u64, message: to_link::Message, fds: Vec<OwnedFd>) -> Option<Order> {
        match message {
            to_link::Message::Started(started) => {
                let key = Key::new(&started.task_id, started.fence);
                if let Some(attempt) = self.attempts.get_mut(&key) {
                    attempt.started = true;
                    if self.terms.is_some() {
                        self.timers.insert((now + STARTED_DELAY_MS, Timer::Started(key)));
                    }
                }
            }
            to_link::Message::Grew(grew) => self.grew(now, &grew, fds),
            to_link::Message::Ended(ended) => self.ended(now, ended, fds),
            to_link::Message::Session(update) => self.session_changed(update),
            to_link::Message::Stacks(update) => {
                self.host.stacks.clone_from(&update.stacks);
                if self.said_hello {
                    self.updates.push_back(up::Message::Stacks(update));
                }
            }
            to_link::Message::FileOpened(opened) => return Some(Order::Opened(opened, fds)),
            to_link::Message::FileClosed(closed) => return Some(Order::Closed(closed)),
            to_link::Message::ExecutionAnswer(answer) => return Some(Order::Answered(answer)),
            to_link::Message::Drain(drain) => return Some(Order::Drain(drain)),
            // One more than a heartbeat holds is a flood: the session's count of the next one is what remains of it.
            to_link::Message::NetworkRefused(refused) if self.refused.len() < REFUSALS_TOLD_MAX => {
                self.refused.push(refused);
            }
            to_link::Message::Trouble(trouble) => {
                if self.terms.is_some() && self.observes {
                    self.updates.push_back(up::Message::Trouble(trouble.clone()));
                }
                self.troubles.insert((trouble.stack.clone(), trouble.service.clone()), trouble);
            }
            to_link::Message::NetworkUsed(used) => {
                self.used.insert(used.session_id.clone(), (used, false));
            }
            to_link::Message::NetworkRefused(_) | to_link::Message::Hello(_) => {}
        }
        None
    }

    fn grew(&mut self, now: u64, grew: &Grew, fds: Vec<OwnedFd>) {
        let key = Key::new(&grew.task_id, grew.fence);
        let Some(attempt) = self.attempts.get_mut(&key) else { return };
        let spool = attempt.spool(grew.stream());
        spool.len = spool.len.max(grew.bytes);
        if let Some(fd) = fds.into_iter().next() {
            spool.file = Some(Arc::new(File::from(fd)));
        }
        self.review(now, &key);
    }

    fn ended(&mut self, now: u64, ended: Ended, fds: Vec<OwnedFd>) {
        let state = ended.state;
        let key = Key::new(&ended.task_id, ended.fence);
        let Some(attempt) = self.attempts.get_mut(&key) else {
            // Nobody waits for it; without a word the host would keep it for ever.
            return self.tell_host_to_forget(&key);
        };
        let mut outcome = ended.outcome.unwrap_or_default();
        shorten(&mut outcome);
        let mut fds = fds.into_iter();
        let bytes = [outcome.stdout_bytes, outcome.stderr_bytes];
        for ((_, spool), bytes) in attempt.spools().into_iter().zip(bytes) {
            spool.len = spool.len.max(bytes);
            if spool.file.is_none() && spool.len > 0 {
                spool.file = fds.next().map(|fd| Arc::new(File::from(fd)));
            }
            if spool.file.is_none() && spool.len > 0 {
                // The host broke its word. A result that says so is better than none.
                spool.cut_at(0);
            }
        }
        self.running -= usize::from(attempt.running());
        match &mut attempt.end {
            // Said again: what came of it so far stays.
            Some(end) => end.state = state,
            None => {
                let file = fds.next().filter(|_| !ended.artifacts.is_empty());
                let file = file.map(|fd| Arc::new(File::from(fd)));
                let artifacts = Artifacts { parts: ended.artifacts, file, sending: Sending::Wanted };
                let said = (outcome.artifacts_skipped.clone(), outcome.artifacts_skipped_count);
                attempt.end = Some(Box::new(End { state, outcome, sent: false, artifacts, said }));
            }
        }
        if attempt.discarded {
            self.forget(&key);
        } else {
            self.review(now, &key);
        }
    }

    fn session_changed(&mut self, update: v1::SessionUpdate) {
        if update.state == "destroyed" {
            // Not what it was granted anew meanwhile.
            let told = Fence::from(update.fence);
            let known = self.sessions.get(&update.session_id).map(|it| Fence::from(it.item.fence));
            if known.is_some_and(|known| known <= told) {
                self.sessions.remove(&update.session_id);
            }
        } else if let Some(session) = self.sessions.get_mut(&update.session_id) {
            session.item.state.clone_from(&update.state);
            session.update = Some(update.clone());
        }
        if self.said_hello {
            self.updates.push_back(up::Message::Session(update));
        }
    }
}

/// A result that does not fit into a message would break every attach it is said in.
fn shorten(outcome: &mut v1::Outcome) {
    let bytes = outcome.encoded_len();
    if bytes > OUTCOME_BYTES_MAX {
        outcome.result = None;
        outcome.displays.clear();
        outcome.step_json.clear();
        let message = format!("the result has {bytes} bytes; its values were dropped");
        let error = Error::new(Code::TooLarge, message);
        outcome.error.get_or_insert(v1::Error {
            code: error.code.as_str().to_owned(),
            hint: error.hint().to_owned(),
            message: error.message,
        });
    }
}

/// 0 on the wire means the default.
fn or_default(value: u64, default: u64) -> u64 {
    if value == 0 { default } else { value }
}
