//! The link process of a worker: dials the coordinator and carries messages between it and the host.
//!
//! It owns nothing that matters. Sessions, executions, spools and results are the host's; a link that dies is started
//! again, gets the inventory and goes on. `attach.rs` is the loop, `ledger.rs` decides what is said next,
//! `attached.rs` says it.
//!
//! One thread runs everything: a message then never waits for another thread to wake up, and there is nothing to
//! lock. Only file bodies and directories of sessions are read on threads of their own.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
    process::ExitCode,
};

use cooper_common::{
    clock,
    error::Error,
    failpoint,
    limits::link::{HOST_PROTOCOL_MAX, HOST_PROTOCOL_MIN},
    telemetry,
};
use cooper_proto::host::{LinkHello, to_host, to_link};
use tracing::error;

use crate::{
    config::{LinkConfig, Timing},
    frame::Buffer,
};
use health::Status;
use host_socket::HostSocket;
use ledger::{Ledger, Order};

mod artifacts;
mod attach;
mod attached;
mod calls;
mod checkpoint;
mod dial;
mod health;
mod host_socket;
mod ledger;
mod output;
mod ports;
#[cfg(test)]
mod tests;
mod transfer;

pub use dial::{Connect, Dial, Wire};
pub use host_socket::Host;

/// Hidden first argument of a process that is a link.
pub const ARGV: &str = "worker-link";
/// SOCK_SEQPACKET to the host.
pub const HOST_FD: RawFd = 3;
/// memfd with [`LinkConfig`] as JSON.
pub const CONFIG_FD: RawFd = 4;
/// Threads that read and write files of sessions, at most.
const BLOCKING_THREADS_MAX: usize = 32;

/// Why the process ends.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// An orderly end: goodbye is said.
    Drained,
    /// The host is gone, and with it everything the link was for.
    HostGone,
    /// Something that a new link may do better.
    Broken(String),
}

/// What a process with [`ARGV`] does, on the descriptors [`HOST_FD`] and [`CONFIG_FD`].
pub fn main() -> ExitCode {
    // SAFETY: the host starts this process with exactly these two descriptors open, and nothing here took them yet.
    #[allow(unsafe_code)]
    let (host, config) = unsafe { (OwnedFd::from_raw_fd(HOST_FD), OwnedFd::from_raw_fd(CONFIG_FD)) };
    // What the link starts (nothing, today) must not inherit them.
    let _ = rustix::io::fcntl_setfd(&host, rustix::io::FdFlags::CLOEXEC);
    let config = match LinkConfig::read(config) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("cooper worker-link: {error}; {}", error.hint());
            return ExitCode::FAILURE;
        }
    };
    telemetry::init(&config.log_level);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(e) => {
            error!("no runtime: {e}");
            return ExitCode::FAILURE;
        }
    };
    let end = runtime.block_on(run(host, config));
    // A file operation that hangs must not keep the process.
    runtime.shutdown_background();
    match end {
        Ok(End::Drained | End::HostGone) => ExitCode::SUCCESS,
        Ok(End::Broken(why)) => {
            error!("the link ends: {why}");
            ExitCode::FAILURE
        }
        Err(e) => {
            error!("{e}; {}", e.hint());
            ExitCode::FAILURE
        }
    }
}

/// The link on an open socket to its host, to its end.
pub async fn run(host: OwnedFd, config: LinkConfig) -> Result<End, Error> {
    let dial = Dial::new(&config)?;
    let host = HostSocket::new(host).map_err(broken)?;
    run_over(host, dial, config).await
}

fn broken(e: io::Error) -> Error {
    Error::internal(format!("the socket to the host: {e}"))
}

/// Like [`run`], over any host and any way to reach the coordinator.
pub async fn run_over(host: impl Host, dial: Dial, config: LinkConfig) -> Result<End, Error> {
    let mut buffer = Buffer::default();

    // The host speaks first of what it has; without that there is nothing to say to a coordinator.
    let versions = LinkHello {
        version_min: HOST_PROTOCOL_MIN,
        version_max: HOST_PROTOCOL_MAX,
        secrets: true,
        inject: true,
    };
    let hello = to_host::Message::Hello(versions);
    host.writable().await.map_err(broken)?;
    if host.try_send(hello).map_err(broken)?.is_err() {
        return Err(Error::internal("the socket to the host is full from the start"));
    }
    let hello = loop {
        match host.recv(&mut buffer).await.map_err(broken)? {
            Some((to_link::Message::Hello(hello), _)) => break hello,
            Some(_) => {}
            None => return Ok(End::HostGone),
        }
    };

    if !(HOST_PROTOCOL_MIN..=HOST_PROTOCOL_MAX).contains(&hello.version) {
        return Ok(End::Broken(format!("the host chose version {} of its protocol", hello.version)));
    }
    let status = health::serve(config.health_listen.as_deref(), &hello.worker_id).await;
    let link = Link {
        host,
        buffer,
        ledger: Ledger::new(hello),
        dial,
        labels: config.labels,
        timing: config.timing,
        coordinator_epoch: 0,
        attaches: 0,
        stopping: None,
        status,
    };
    Ok(link.run().await)
}

/// The link between attaches.
struct Link<H> {
    host: H,
    buffer: Buffer,
    ledger: Ledger,
    dial: Dial,
    labels: BTreeMap<String, String>,
    timing: Timing,
    /// Highest seen.
    coordinator_epoch: u64,
    /// Times it was welcomed.
    attaches: u64,
    stopping: Option<Stopping>,
    status: tokio::sync::watch::Sender<Status>,
}

/// The host wants to end.
#[derive(Debug)]
struct Stopping {
    reason: String,
    /// Until then what runs may end.
    deadline: u64,
    /// A host of version 1 waits for no more than the results that are there.
    awaits_running: bool,
    /// Its sessions are to go on elsewhere before it ends.
    awaits_sessions: bool,
}

/// For a host of version 1: how long results that are ready may wait for their acks.
const DRAIN_ACKS_MS: u64 = 1_000;

impl<H: Host> Link<H> {
    /// The host wants to end: no more work from now on.
    fn stop(&mut self, drain: cooper_proto::host::Drain) {
        let awaits_running = drain.deadline_in_ms > 0;
        let wait_ms = if awaits_running { drain.deadline_in_ms } else { DRAIN_ACKS_MS };
        let running = self.ledger.running();
        tracing::info!(running, wait_ms, "draining: {}", drain.reason);
        let deadline = clock::mono_ms() + wait_ms;
        self.stopping = Some(Stopping {
            reason: drain.reason,
            deadline,
            awaits_running,
            awaits_sessions: drain.checkpoint,
        });
        self.ledger.stop(wait_ms, drain.checkpoint);
    }

    /// All that was to be waited for is over, or the time for it. Without a coordinator (not `attached`) nothing can be
    /// delivered, but what runs may end and a coordinator come back.
    fn may_end(&self, now: u64, attached: bool) -> bool {
        let Some(stopping) = &self.stopping else { return false };
        let empty = !stopping.awaits_sessions || self.ledger.sessions() == 0;
        let idle = empty && (!stopping.awaits_running || self.ledger.running() == 0);
        let delivered = match attached {
            true => self.ledger.settled(),
            false => !stopping.awaits_running || self.ledger.unacked() == 0,
        };
        now >= stopping.deadline || (idle && delivered)
    }

    /// Gives what came from the host to the ledger.
    fn take_packet(
        &mut self,
        packet: io::Result<Option<(to_link::Message, Vec<OwnedFd>)>>,
    ) -> Result<Option<Order>, End> {
        match packet {
            Ok(Some((message, fds))) => Ok(self.ledger.host_says(clock::mono_ms(), message, fds)),
            Ok(None) => Err(End::HostGone),
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => Err(End::HostGone),
            Err(e) => Err(End::Broken(format!("the host's message cannot be read: {e}"))),
        }
    }

    /// Sends the host what fits into the socket.
    fn flush_host(&mut self) -> Result<(), End> {
        while let Some(message) = self.ledger.poll_host() {
            match message {
                to_host::Message::Start(_) => failpoint::pass(failpoint::name::ASSIGN_BEFORE_HOST),
                to_host::Message::Forget(_) => failpoint::pass(failpoint::name::ACK_BEFORE_HOST),
                _ => {}
            }
            match self.host.try_send(message) {
                Ok(Ok(())) => {}
                Ok(Err(message)) => {
                    self.ledger.unpoll_host(message);
                    break;
                }
                Err(e) if matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                    return Err(End::HostGone);
                }
                // Losing one message silently would leave an attempt waiting for ever; a new link has the inventory.
                Err(e) => return Err(End::Broken(format!("the host cannot be told: {e}"))),
            }
        }
        Ok(())
    }

    /// What the health listener shows.
    fn show_status(&self, attached: bool) {
        let status = Status {
            attached,
            coordinator_epoch: self.coordinator_epoch,
            attaches: self.attaches,
            sessions: self.ledger.sessions(),
            running: self.ledger.running(),
            results_unacked: self.ledger.unacked(),
            draining: self.ledger.draining(),
            counters: self.ledger.counters,
        };
        self.status.send_if_modified(|shown| {
            let news = *shown != status;
            *shown = status;
            news
        });
    }
}
