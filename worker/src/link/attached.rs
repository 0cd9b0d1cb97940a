//! The life of one attach: what arrives goes into the ledger, what the ledger has to say goes out.

use std::{fs::File, os::unix::fs::FileExt, pin::pin, time::Duration};

use bytes::Bytes;
use cooper_common::{clock, limits::link::OUTBOUND_MESSAGES_MAX};
use cooper_proto::{
    host::to_host,
    v1::{self, up},
};
use futures::{FutureExt, StreamExt};
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    time::{Instant, sleep_until, timeout},
};
use tonic::Streaming;
use tracing::warn;

use super::{
    End, Host, Link,
    artifacts::Artifacts,
    attach::Left,
    calls::Calls,
    dial::{Bulk, Failure},
    ledger::{Control, Order, Piece},
    output::Output,
};
use crate::config::Timing;

/// Messages taken at once before the ledger is asked what to say: one Credit then stands for all of them.
const BATCH: usize = 256;
/// On drain: how long the coordinator may take to see Goodbye.
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(500);

pub struct Attached {
    up: mpsc::Sender<v1::Up>,
    down: Streaming<v1::Down>,
    output: Output,
    calls: Calls,
    artifacts: Artifacts,
}

impl Attached {
    pub fn new(
        up: mpsc::Sender<v1::Up>,
        down: Streaming<v1::Down>,
        bulk: Bulk,
        timing: Timing,
        host_version: u32,
    ) -> Self {
        let calls = Calls::new(bulk.clone(), host_version);
        let artifacts = Artifacts::new(bulk.clone());
        Self { up, down, output: Output::new(bulk, timing), calls, artifacts }
    }
    /// What the host has to be told now that nobody waits for the calls any more.
    pub fn abandon(self) -> Vec<to_host::Message> {
        self.calls.abandon()
    }
}

impl<H: Host> Link<H> {
    pub async fn attached(&mut self, at: &mut Attached) -> Result<Left, End> {
        let mut alarm = pin!(sleep_until(Instant::now()));
        loop {
            let now = clock::mono_ms();
            if let Some(Order::Reattach(why)) = self.ledger.tick(now) {
                return Ok(Failure::passing(why).into());
            }
            self.flush_host()?;
            if let Err(failure) = self.flush_control(at) {
                return Ok(failure.into());
            }
            self.flush_output(now, &mut at.output);
            at.artifacts.begin(&mut self.ledger);
            self.show_status(true);
            if self.may_end(now, true) {
                return Err(self.say_goodbye(at).await);
            }

            let retry_at = at.output.retry_at().filter(|_| self.ledger.wants_output());
            let wake_at =
                [self.ledger.next_deadline(), retry_at, self.stopping.as_ref().map(|it| it.deadline)];
            let wake_in = wake_at.into_iter().flatten().min().map_or(1_000, |due| due.saturating_sub(now));
            alarm.as_mut().reset(Instant::now() + Duration::from_millis(wake_in));
            // Whoever sends faster than what comes of it can be sent on has to wait: nothing piles up here.
            let ready_for_more = self.ledger.control_backlog() < OUTBOUND_MESSAGES_MAX
                && self.ledger.host_backlog() < OUTBOUND_MESSAGES_MAX;
            let stuck_on_host = self.ledger.host_backlog() > 0;
            let stuck_on_control = self.ledger.wants_control();

            tokio::select! {
                packet = self.host.recv(&mut self.buffer) => {
                    let mut next = Some(packet);
                    let mut taken = 0;
                    while let Some(packet) = next {
                        if let Some(order) = self.take_packet(packet)? {
                            self.obey(order, at);
                        }
                        taken += 1;
                        // What is taken out must be dealt with, so the last of a batch takes nothing more.
                        next = if taken < BATCH { self.host.recv(&mut self.buffer).now_or_never() } else { None };
                    }
                }
                message = at.down.next(), if ready_for_more => {
                    let now = clock::mono_ms();
                    let mut next = Some(message);
                    let mut taken = 0;
                    while let Some(message) = next {
                        match self.take_down(now, message) {
                            Ok(Some(Order::Reattach(why))) => return Ok(Left::Asked(why)),
                            Ok(Some(order)) => self.obey(order, at),
                            Ok(None) => {}
                            Err(failure) => return Ok(failure.into()),
                        }
                        taken += 1;
                        next = if taken < BATCH { at.down.next().now_or_never() } else { None };
                    }
                }
                room = self.host.writable(), if stuck_on_host => {
                    room.map_err(|e| End::Broken(e.to_string()))?;
                }
                room = at.up.reserve().map(|room| room.is_ok()), if stuck_on_control => {
                    if !room {
                        return Ok(Failure::passing("the stream to the coordinator broke").into());
                    }
                }
                event = at.output.event() => at.output.take(event, clock::mono_ms(), &mut self.ledger),
                done = at.artifacts.done() => at.artifacts.take(done, &mut self.ledger),
                request = at.calls.request() => at.calls.take(request, &mut self.ledger),
                () = alarm.as_mut() => {}
            }
        }
    }

    fn take_down(
        &mut self,
        now: u64,
        message: Option<Result<v1::Down, tonic::Status>>,
    ) -> Result<Option<Order>, Failure> {
        match message {
            Some(Ok(v1::Down { message: Some(message) })) => Ok(self.ledger.coordinator_says(now, message)),
            // From a newer coordinator.
            Some(Ok(v1::Down { message: None })) => Ok(None),
            Some(Err(status)) => Err(status.into()),
            // Only our own Goodbye ends an attach in order.
            None => Err(Failure::passing("the coordinator's stream ended")),
        }
    }

    fn obey(&mut self, order: Order, at: &mut Attached) {
        match order {
            Order::Call(call) => at.calls.begin(call, &mut self.ledger),
            Order::Opened(opened, fds) => at.calls.opened(opened, fds),
            Order::Closed(closed) => at.calls.closed(closed),
            Order::Answered(answer) => at.calls.answered(answer, &mut self.ledger),
            Order::Drain(drain) => self.stop(drain),
            // Decided where it is met.
            Order::Reattach(_) => {}
        }
    }

    fn flush_control(&mut self, at: &Attached) -> Result<(), Failure> {
        while self.ledger.wants_control() {
            let room = match at.up.try_reserve() {
                Ok(room) => room,
                Err(TrySendError::Full(())) => break,
                Err(TrySendError::Closed(())) => {
                    return Err(Failure::passing("the stream to the coordinator broke"));
                }
            };
            let Some(control) = self.ledger.poll_control() else { break };
            room.send(v1::Up { message: Some(self.with_tails(control)) });
        }
        Ok(())
    }

    /// Completes a result with the ends of its streams.
    fn with_tails(&mut self, control: Control) -> up::Message {
        match control {
            Control::Message(message) => message,
            Control::Result { mut result, stdout_tail, stderr_tail } => {
                let mut cut = [false, false];
                result.stdout_tail = stdout_tail.map(|piece| read(&piece, &mut cut[0]));
                result.stderr_tail = stderr_tail.map(|piece| read(&piece, &mut cut[1]));
                if let Some(outcome) = &mut result.outcome {
                    outcome.stdout_truncated |= cut[0];
                    outcome.stderr_truncated |= cut[1];
                }
                up::Message::Result(*result)
            }
        }
    }

    fn flush_output(&mut self, now: u64, output: &mut Output) {
        if !self.ledger.wants_output() || !output.ready(now) {
            return;
        }
        while let Some(room) = output.room() {
            let Some(piece) = self.ledger.poll_output() else { break };
            let mut cut = false;
            let data = read(&piece, &mut cut);
            if cut {
                self.ledger.spool_ends_at(&piece, data.offset + data.data.len() as u64);
            }
            if !data.data.is_empty() {
                let (task_id, fence) = (piece.key.task.to_string(), piece.key.fence.into());
                room.send(v1::OutputUp { task_id, fence, output: Some(data) });
            }
        }
    }

    /// The end of the last attach.
    async fn say_goodbye(&mut self, at: &mut Attached) -> End {
        let reason = self.stopping.as_ref().map(|stopping| stopping.reason.clone()).unwrap_or_default();
        let goodbye = v1::Goodbye { reason };
        let goodbye = v1::Up { message: Some(up::Message::Goodbye(goodbye)) };
        let said = timeout(GOODBYE_TIMEOUT, async {
            at.up.send(goodbye).await.ok()?;
            // The coordinator ends its stream once it has read the Goodbye.
            while let Some(Ok(_)) = at.down.next().await {}
            Some(())
        });
        if !matches!(said.await, Ok(Some(()))) {
            warn!("the coordinator did not answer the goodbye");
        }
        self.drained().await
    }
}

/// Reads part of a spool: page cache, at most 64 KiB. `cut` is set if the file has less than the host had said.
fn read(piece: &Piece, cut: &mut bool) -> v1::Output {
    let mut data = vec![0; piece.len];
    let read = read_at(&piece.file, &mut data, piece.offset);
    if read < data.len() {
        warn!(task = %piece.key.task, "spool of {:?} ends at {}", piece.stream, piece.offset + read as u64);
        data.truncate(read);
        *cut = true;
    }
    v1::Output { stream: piece.stream.into(), offset: piece.offset, data: Bytes::from(data) }
}

fn read_at(file: &File, data: &mut [u8], offset: u64) -> usize {
    let mut read = 0;
    while read < data.len() {
        match file.read_at(&mut data[read..], offset + read as u64) {
            Ok(0) => break,
            Ok(n) => read += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    read
}
