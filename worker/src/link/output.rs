//! Output on the second connection: opened when there is something to send, opened again when it breaks.
//!
//! Which bytes go, and again, is the ledger's; here is only the stream. Its loss does not end the attach: the
//! control stream has a connection of its own exactly so that neither has to wait for the other.

use cooper_proto::v1::{OutputAck, OutputUp};
use tokio::sync::mpsc::{self, Permit};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

use super::{
    dial::{Bulk, Failure},
    ledger::Ledger,
};
use crate::config::Timing;

/// Pieces and acks on their way between the loop and the stream; the ledger's windows bound their bytes.
const QUEUE: usize = 128;

pub struct Output {
    bulk: Bulk,
    timing: Timing,
    open: Option<Open>,
    retry_at: Option<u64>,
    failures: u32,
}

struct Open {
    pieces: mpsc::Sender<OutputUp>,
    events: mpsc::Receiver<Event>,
    /// Ends with the stream it serves.
    _task: AbortOnDropHandle<()>,
}

pub enum Event {
    Acked(OutputAck),
    Cut(Failure),
}

impl Output {
    pub fn new(bulk: Bulk, timing: Timing) -> Self {
        Self { bulk, timing, open: None, retry_at: None, failures: 0 }
    }

    /// There is something to send: opens the stream, unless it broke a moment ago.
    pub fn ready(&mut self, now: u64) -> bool {
        if self.open.is_none() && self.retry_at.is_none_or(|at| now >= at) {
            self.retry_at = None;
            let (pieces, outbound) = mpsc::channel(QUEUE);
            let (report, events) = mpsc::channel(QUEUE);
            let task = tokio::spawn(serve(self.bulk.clone(), outbound, report));
            self.open = Some(Open { pieces, events, _task: AbortOnDropHandle::new(task) });
        }
        self.open.is_some()
    }

    /// Room for one piece. Without room there are pieces on their way, and an ack will come.
    pub fn room(&self) -> Option<Permit<'_, OutputUp>> {
        self.open.as_ref()?.pieces.try_reserve().ok()
    }

    /// When a broken stream may be opened again.
    pub fn retry_at(&self) -> Option<u64> {
        self.retry_at
    }

    pub async fn event(&mut self) -> Event {
        match &mut self.open {
            Some(open) => open.events.recv().await.unwrap_or(Event::Cut(Failure::passing("it ended"))),
            None => std::future::pending().await,
        }
    }

    pub fn take(&mut self, event: Event, now: u64, ledger: &mut Ledger) {
        match event {
            Event::Acked(ack) => {
                self.failures = 0;
                ledger.output_acked(now, &ack);
            }
            Event::Cut(failure) => {
                let pause = self.timing.reconnect(self.failures, rand::random());
                if self.failures == 0 {
                    warn!("output stream cut, going on from what was acked: {}", failure.what);
                } else {
                    debug!("output stream cut again: {}", failure.what);
                }
                self.failures = self.failures.saturating_add(1);
                self.open = None;
                self.retry_at = Some(now + pause.as_millis() as u64);
                ledger.output_cut(now);
            }
        }
    }
}

async fn serve(mut bulk: Bulk, outbound: mpsc::Receiver<OutputUp>, report: mpsc::Sender<Event>) {
    let request = bulk.request(ReceiverStream::new(outbound));
    let failure = match bulk.client.stream_output(request).await {
        Err(status) => status.into(),
        Ok(response) => {
            let mut acks = response.into_inner();
            loop {
                match acks.message().await {
                    Ok(Some(ack)) => {
                        if report.send(Event::Acked(ack)).await.is_err() {
                            return;
                        }
                    }
                    Ok(None) => break Failure::passing("the coordinator ended it"),
                    Err(status) => break status.into(),
                }
            }
        }
    };
    let _ = report.send(Event::Cut(failure)).await;
}
