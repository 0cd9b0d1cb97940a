//! The attach loop: connect, say Hello, be welcomed, work; whatever ends it, try again for ever.
//!
//! Nothing here needs the coordinator to be there: while the link dials, waits or is refused, it goes on listening
//! to its host, and what it hears becomes part of the next Hello's inventory. An attach carries no state of its own
//! over to the next one; the inventory and the verdicts on it are all that links them.

use std::{collections::HashMap, fs, future::Future, pin::pin, time::Duration};

use cooper_common::{
    backoff::full_jitter,
    clock,
    limits::link::{OUTBOUND_MESSAGES_MAX, PROTOCOL_MAX, PROTOCOL_MIN},
};
use cooper_proto::{
    host::{Drained, to_host},
    v1::{self, down, up},
};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tracing::{info, warn};

use super::{
    End, Host, Link,
    attached::Attached,
    dial::{Bulk, Failure},
    ledger::Order,
};
use crate::config::Timing;

/// From Hello to Welcome.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
/// Workers that are asked to attach again at the same moment come back spread over this.
const REATTACH_JITTER_MS: u64 = 1_000;
/// While attaching keeps failing for the same reason, it is said again this often.
const REMIND_MS: u64 = 60_000;

/// How an attach ended.
pub enum Left {
    /// The coordinator asked for another attach.
    Asked(&'static str),
    Failed(Failure),
}

impl From<Failure> for Left {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl<H: Host> Link<H> {
    /// Runs until the host ends or wants the link to end.
    pub async fn run(mut self) -> End {
        let mut failures = Failures::new(self.timing);
        loop {
            let (attaches, began) = (self.attaches, clock::mono_ms());
            let left = match self.attach().await {
                Ok(left) => left,
                Err(end) => return end,
            };
            self.ledger.detached();
            self.show_status(false);
            // A coordinator that welcomes and breaks at once is no better than one that does not answer.
            if self.attaches > attaches && clock::mono_ms() - began > self.timing.reconnect_cap_ms {
                failures = Failures::new(self.timing);
            }
            let pause = match left {
                Left::Asked(why) => {
                    info!("attaching again: {why}");
                    full_jitter(REATTACH_JITTER_MS, REATTACH_JITTER_MS, 0, rand::random())
                }
                Left::Failed(failure) => failures.note(failure, clock::mono_ms()),
            };
            if let Err(end) = self.serving_host(sleep(pause)).await {
                return end;
            }
        }
    }

    /// One attach from the dial to its end.
    async fn attach(&mut self) -> Result<Left, End> {
        let dial = self.dial.clone();
        let mut client = match self.serving_host(async { dial.control().await }).await? {
            Ok(client) => client,
            Err(failure) => return Ok(failure.into()),
        };

        // Hello goes into the channel before the call is made: it is the first message up, and the server may wait
        // for it before it answers the call at all.
        let (up, outbound) = mpsc::channel(OUTBOUND_MESSAGES_MAX);
        let hello = v1::Up { message: Some(up::Message::Hello(self.hello())) };
        if up.try_send(hello).is_err() {
            return Ok(Failure::passing("no room for Hello").into());
        }
        let request = self.dial.request(ReceiverStream::new(outbound));
        let handshake = async move {
            let mut down = client.attach(request).await?.into_inner();
            let first = down.message().await?;
            Ok::<_, tonic::Status>((down, first.and_then(|first| first.message)))
        };
        let (down, first) = match self.serving_host(timeout(WELCOME_TIMEOUT, handshake)).await? {
            Ok(Ok(answer)) => answer,
            Ok(Err(status)) => return Ok(Failure::from(status).into()),
            Err(_) => return Ok(Failure::passing("no Welcome in time").into()),
        };
        let welcome = match first {
            Some(down::Message::Welcome(welcome)) => welcome,
            Some(_) => return Ok(Failure::passing("the first message was not Welcome").into()),
            None => return Ok(Failure::passing("the stream ended before Welcome").into()),
        };
        if let Err(failure) = self.accept(&welcome) {
            return Ok(failure.into());
        }

        let bulk = match Bulk::new(&self.dial, self.ledger.worker_id(), welcome.attach_epoch) {
            Ok(bulk) => bulk,
            Err(failure) => return Ok(failure.into()),
        };
        self.ledger.welcome(clock::mono_ms(), &welcome);
        self.attaches += 1;
        info!(
            worker_id = self.ledger.worker_id(),
            coordinator_epoch = welcome.coordinator_epoch,
            attach_epoch = welcome.attach_epoch,
            "registered"
        );
        self.show_status(true);
        let host_version = self.ledger.host().version;
        let mut attached = Attached::new(up, down, bulk, self.timing, host_version);
        let left = self.attached(&mut attached).await;
        // Files half written for calls of this attach.
        for close in attached.abandon() {
            self.ledger.tell_host(close);
        }
        left
    }

    /// A coordinator with an older epoch than one seen before has been replaced and does not know it (I1).
    fn accept(&mut self, welcome: &v1::Welcome) -> Result<(), Failure> {
        if !(PROTOCOL_MIN..=PROTOCOL_MAX).contains(&welcome.protocol) {
            let what = format!("protocol_version: the coordinator chose link protocol {}", welcome.protocol);
            return Err(Failure::permanent(what, "upgrade the older side"));
        }
        if welcome.coordinator_epoch < self.coordinator_epoch {
            let (seen, now) = (self.coordinator_epoch, welcome.coordinator_epoch);
            let what = format!("the coordinator's epoch went back from {seen} to {now}");
            let hint = "an old coordinator answers at this address, or its store was put back; restart the worker if \
                        that is wanted";
            return Err(Failure::permanent(what, hint));
        }
        self.coordinator_epoch = welcome.coordinator_epoch;
        Ok(())
    }

    fn hello(&mut self) -> v1::Hello {
        let (sessions, attempts) = self.ledger.inventory();
        let host = self.ledger.host();
        v1::Hello {
            protocol_min: PROTOCOL_MIN,
            protocol_max: PROTOCOL_MAX,
            worker_id: host.worker_id.clone(),
            incarnation: host.incarnation,
            version: cooper_common::VERSION.to_owned(),
            capabilities: host.capabilities.clone(),
            facilities: host.facilities.clone(),
            labels: self.labels.clone().into_iter().collect::<HashMap<_, _>>(),
            capacity: host.capacity,
            stacks: host.stacks.clone(),
            sessions,
            attempts,
            hostname: kernel_fact("hostname"),
            boot_id: kernel_fact("random/boot_id"),
            python_version: host.python_version.clone(),
            python_versions: host.python_versions.clone(),
            tier: host.tier.clone(),
            sessions_refused: host.sessions_refused.clone(),
        }
    }

    /// Waits for something that has nothing to do with the host, and keeps listening to the host meanwhile.
    async fn serving_host<T>(&mut self, work: impl Future<Output = T>) -> Result<T, End> {
        let mut work = pin!(work);
        loop {
            let now = clock::mono_ms();
            if self.may_end(now, false) {
                return Err(self.drained().await);
            }
            self.flush_host()?;
            let backlog = self.ledger.host_backlog() > 0;
            let patience = self.stopping.as_ref().map(|stopping| stopping.deadline.saturating_sub(now));
            tokio::select! {
                done = &mut work => return Ok(done),
                packet = self.host.recv(&mut self.buffer) => {
                    // Files opened for calls of an attach that is over were closed when it ended; of all orders only
                    // the drain is left.
                    if let Some(Order::Drain(drain)) = self.take_packet(packet)? {
                        self.stop(drain);
                    }
                }
                () = sleep(Duration::from_millis(patience.unwrap_or(0))), if patience.is_some() => {}
                room = self.host.writable(), if backlog => room.map_err(|e| End::Broken(e.to_string()))?,
            }
        }
    }

    /// Tells the host that all is said.
    pub async fn drained(&mut self) -> End {
        self.ledger.tell_host(to_host::Message::Drained(Drained {}));
        while self.ledger.host_backlog() > 0 {
            if self.flush_host().is_err() || self.host.writable().await.is_err() {
                break;
            }
        }
        End::Drained
    }
}

/// One of the kernel's own files, without its line end; empty where there is none.
fn kernel_fact(name: &str) -> String {
    fs::read_to_string(format!("/proc/sys/kernel/{name}"))
        .map_or(String::new(), |text| text.trim().to_owned())
}

/// Failures in a row: how long to wait, and whether to speak of it again.
struct Failures {
    timing: Timing,
    count: u32,
    said: Option<(Failure, u64)>,
}

impl Failures {
    fn new(timing: Timing) -> Self {
        Self { timing, count: 0, said: None }
    }

    fn note(&mut self, failure: Failure, now: u64) -> Duration {
        let news = self.said.as_ref().is_none_or(|(said, at)| *said != failure || now >= at + REMIND_MS);
        if news {
            let Failure { what, hint, permanent } = &failure;
            let hint = if hint.is_empty() { String::new() } else { format!("; {hint}") };
            let how = if *permanent { "refused" } else { "not attached" };
            let every_ms = self.timing.reconnect_cap_ms;
            warn!("{how}: {what}{hint} (trying again, at most every {every_ms} ms)");
            self.said = Some((failure.clone(), now));
        }
        let attempt = if failure.permanent { u32::MAX } else { self.count };
        self.count = self.count.saturating_add(1);
        let roll: f64 = rand::random();
        // Asking again at once does not change a refusal, so it gets the upper half of the longest wait.
        let roll = if failure.permanent { 0.5 + roll / 2.0 } else { roll };
        self.timing.reconnect(attempt, roll)
    }
}

#[cfg(test)]
mod tests {
    use cooper_common::limits::link::{RECONNECT_BASE_MS, RECONNECT_CAP_MS};

    use super::*;

    #[test]
    fn waits_grow_to_the_cap_and_a_refusal_waits_long_at_once() {
        let mut failures = Failures::new(Timing::default());
        assert!(failures.note(Failure::passing("away"), 0) < Duration::from_millis(RECONNECT_BASE_MS));
        for _ in 0..50 {
            assert!(failures.note(Failure::passing("away"), 0) < Duration::from_millis(RECONNECT_CAP_MS));
        }
        let refusal = Failures::new(Timing::default()).note(Failure::permanent("no", ""), 0);
        assert!(refusal >= Duration::from_millis(RECONNECT_CAP_MS / 2));
    }

    #[test]
    fn the_same_failure_is_said_once_a_minute_and_a_new_one_at_once() {
        let mut failures = Failures::new(Timing::default());
        let said_at = |failures: &Failures| failures.said.as_ref().map(|(_, at)| *at);
        failures.note(Failure::passing("away"), 1);
        failures.note(Failure::passing("away"), 2);
        assert_eq!(said_at(&failures), Some(1));
        failures.note(Failure::passing("refused"), 3);
        assert_eq!(said_at(&failures), Some(3));
        failures.note(Failure::passing("refused"), 3 + REMIND_MS);
        assert_eq!(said_at(&failures), Some(3 + REMIND_MS));
    }
}
