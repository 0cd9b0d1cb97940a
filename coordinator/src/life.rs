//! A coordinator's life: it serves while its store works, and waits, alive but not ready, while it does not.
//!
//! Whatever serves has a runtime of its own. When the store refuses, that runtime goes with all that ran on it, as if the
//! process had died: nothing that was decided and not recorded survives (I2), and connections end, so that workers attach
//! and clients ask again. What comes next loads what is recorded, under a new epoch. The port stays the same throughout.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use cooper_common::{
    backoff, clock, data_dir,
    error::{Code, Error, Result},
    limits::{link, store as limits},
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    net::{TcpListener, TcpSocket},
    runtime::{Builder, Runtime},
    sync::watch,
    task::JoinHandle,
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

use crate::{
    blobs::Blobs,
    bus::Bus,
    doors::{self, tls::Tls},
    output::OutputLog,
    serve::{Config, Coordinator},
    store::{Store, sqlite::Sqlite},
};

/// A start that takes longer answers `/health` meanwhile.
const QUICK_START: Duration = Duration::from_millis(500);
/// Tasks of a runtime that ends have this long to be dropped.
const RUNTIME_END: Duration = Duration::from_secs(1);
/// The same reason is said again only after this time.
const SAID_EVERY_MS: u64 = 60_000;
/// Who served this long and then fails is tried again at once.
const STEADY_MS: u64 = 10_000;

/// Serves until `shutdown` resolves, and does not end before: while the store cannot be used, it waits and tries again.
/// `ready` is told the address once `/health` is answered.
///
/// # Errors
/// Settings that make no sense: `port_taken`, `config_invalid`, and `data_unusable` when the data path is a file.
pub async fn serve(
    config: Config,
    ready: impl FnOnce(SocketAddr) + Send,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<()> {
    if config.data.exists() && !config.data.is_dir() {
        let message = format!("{} is not a directory", config.data.display());
        return Err(Error::new(Code::DataUnusable, message));
    }
    let tls = config.tls.clone().map(Tls::load).transpose()?;
    if tls.is_none() && !config.listen.ip().is_loopback() && !config.insecure_listen {
        let message = format!("{} is reached from other machines, and there is no TLS", config.listen);
        return Err(Error::new(Code::ConfigInvalid, message).with_hint(
            "set tls_cert and tls_key (`cooper certs init` makes them), or insecure_listen = \"on\" where something \
             else protects what is sent",
        ));
    }
    let internal = |error: io::Error| Error::internal(format!("the port cannot be shared: {error}"));
    let listener = listen(config.listen)?.into_std().map_err(internal)?;
    let address = listener.local_addr().map_err(internal)?;
    ready(address);
    let _following = tls.clone().map(|tls| AbortOnDrop(tokio::spawn(tls.follow())));
    let place = Arc::new(Place { config, listener, tls, address, epoch: AtomicU64::new(0) });
    let mut shutdown = pin!(shutdown);
    let (stop, stopped) = watch::channel(false);
    let mut room: Option<Room> = None;
    let mut said = Said::default();
    let mut attempt = 0;
    loop {
        let started_ms = clock::mono_ms();
        let (serving, mut is_serving) = watch::channel(false);
        let mut served = false;
        let mut era = Era::begin(serve_once(place.clone(), serving, stopped.clone()))?;
        let failure = loop {
            tokio::select! {
                end = &mut era.work => break end.unwrap_or_else(|error| Err(Error::internal(error.to_string()))),
                Ok(_) = is_serving.wait_for(|serving| *serving), if !served => {
                    served = true;
                    said = Said::default();
                    if let Some(room) = room.take() {
                        room.close().await;
                    }
                }
                () = tokio::time::sleep(QUICK_START), if !served && room.is_none() => {
                    let error = Error::new(Code::StoreUnavailable, "the store is being opened")
                        .with_hint("wait; nothing is wrong yet");
                    room = Some(Room::open(&place, error)?);
                }
                () = &mut shutdown, if !*stop.borrow() => {
                    stop.send_replace(true);
                }
            }
        };
        era.end().await;
        let Err(error) = failure else { break };
        if *stop.borrow() {
            break;
        }
        if served && clock::mono_ms() - started_ms >= STEADY_MS {
            attempt = 0;
        }
        said.say(&error);
        match &room {
            Some(room) => drop(room.why.send_replace(error)),
            None => room = Some(Room::open(&place, error)?),
        }
        let pause =
            backoff::full_jitter(limits::RETRY_BASE_MS, limits::RETRY_CAP_MS, attempt, rand::random());
        attempt = attempt.saturating_add(1);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = &mut shutdown => break,
        }
    }
    if let Some(room) = room {
        room.close().await;
    }
    tracing::info!("stopped");
    Ok(())
}

/// What stays the same while what serves comes and goes.
struct Place {
    config: Config,
    listener: std::net::TcpListener,
    tls: Option<Arc<Tls>>,
    address: SocketAddr,
    /// The last epoch that was served under; 0 before the first.
    epoch: AtomicU64,
}

impl Place {
    /// Where commands on this machine find us. Without it they need `--url`; nobody else misses it.
    fn write_endpoint(&self) {
        let (data, address) = (&self.config.data, self.address);
        // A wildcard is no address to dial.
        let ip = if address.ip().is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { address.ip() };
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}\n", SocketAddr::new(ip, address.port()));
        let temporary = data.join("endpoint.new");
        let written = fs::write(&temporary, url).and_then(|()| fs::rename(temporary, data.join("endpoint")));
        if let Err(error) = written {
            tracing::warn!(%error, "commands on this machine are not told where this coordinator is");
        }
    }
}

/// Ends with whom it is for.
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// From opening the store to its end; an error when it cannot be used, now or any more.
async fn serve_once(
    place: Arc<Place>,
    serving: watch::Sender<bool>,
    mut stopped: watch::Receiver<bool>,
) -> Result<()> {
    let data = &place.config.data;
    let unusable = |error: io::Error| match error.kind() {
        io::ErrorKind::StorageFull => Error::new(Code::StoreFull, format!("{}: {error}", data.display())),
        _ => Error::new(Code::DataUnusable, format!("{} cannot be used: {error}", data.display())),
    };
    let bus = Bus::default();
    let seen = place.epoch.load(Ordering::Relaxed);
    let opening = (data.clone(), bus.clone());
    let opened = tokio::task::spawn_blocking(move || match (opening, seen) {
        ((data, bus), 0) => {
            data_dir::create(&data)?;
            Sqlite::open(&data, bus)
        }
        // What was there and is not now has not begun anew: its disk may be away.
        ((data, bus), seen) => Sqlite::open_known(&data, bus, seen),
    });
    let store = opened.await.map_err(|error| Error::internal(error.to_string()))??;
    let store: Arc<dyn Store> = Arc::new(store);
    let output = OutputLog::open(data).map_err(unusable)?;
    let blobs = Arc::new(Blobs::open(data).map_err(unusable)?);
    let loaded = Coordinator::load(store.clone(), bus, output, blobs, place.config.clone()).await;
    let coordinator = match loaded {
        Ok(coordinator) => coordinator,
        Err(error) => {
            // Whoever mends it must be able to.
            let _ = store.close().await;
            return Err(error);
        }
    };
    let epoch = coordinator.cluster.look(|core| core.epoch());
    place.epoch.store(epoch, Ordering::Relaxed);
    let incoming = place.listener.try_clone().and_then(TcpListener::from_std).map_err(unusable)?;
    let started = || {
        place.write_endpoint();
        tracing::info!(address = %place.address, epoch, "serving");
        serving.send_replace(true);
        Ok(())
    };
    let shutdown = async move {
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    coordinator.serve(TcpListenerStream::new(incoming), place.tls.clone(), started, shutdown).await
}

/// Work on a runtime of its own, so that nothing of it is left when it ends.
struct Era {
    runtime: Option<Runtime>,
    work: JoinHandle<Result<()>>,
}

impl Era {
    fn begin(work: impl Future<Output = Result<()>> + Send + 'static) -> Result<Self> {
        let runtime = Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(|error| Error::internal(format!("cannot start the async runtime: {error}")))?;
        let work = runtime.spawn(work);
        Ok(Self { runtime: Some(runtime), work })
    }

    /// Every task is gone when this returns.
    async fn end(mut self) {
        if let Some(runtime) = self.runtime.take() {
            let _ = tokio::task::spawn_blocking(move || runtime.shutdown_timeout(RUNTIME_END)).await;
        }
    }
}

impl Drop for Era {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Answers on the port while nothing serves.
struct Room {
    era: Era,
    why: watch::Sender<Error>,
}

impl Room {
    fn open(place: &Arc<Place>, error: Error) -> Result<Self> {
        // Where to ask for the reason; but who has the data directory says himself where he is.
        if error.code != Code::DataBusy {
            place.write_endpoint();
        }
        let (why, reason) = watch::channel(error);
        let place = place.clone();
        let era = Era::begin(async move {
            let fail = |error: io::Error| Error::internal(format!("nobody can be told why: {error}"));
            let incoming = place.listener.try_clone().and_then(TcpListener::from_std).map_err(fail)?;
            let routes = doors::waiting::routes(reason).await;
            // Ends with its runtime.
            let (_never, stopped) = watch::channel(false);
            let incoming = TcpListenerStream::new(incoming);
            let plain = routes.clone().prepare();
            Server::builder()
                .add_routes(routes)
                .serve_with_incoming(doors::plain::sort(incoming, place.tls.clone(), plain, stopped))
                .await
                .map_err(|error| Error::internal(error.to_string()))
        })?;
        Ok(Self { era, why })
    }

    async fn close(self) {
        self.era.end().await;
    }
}

/// Says a reason when it is new, and now and then while it lasts.
#[derive(Default)]
struct Said {
    last: Option<(Error, u64)>,
}

impl Said {
    fn say(&mut self, error: &Error) {
        let now = clock::mono_ms();
        if let Some((last, at)) = &self.last
            && last.code == error.code
            && now.saturating_sub(*at) < SAID_EVERY_MS
        {
            return;
        }
        tracing::error!("not ready: {error}; {}. Trying again until it works", error.hint());
        self.last = Some((error.clone(), now));
    }
}

/// A descriptor each is what connections cost: what this process may have is the system's hard limit, not the soft one of
/// whatever shell it came from, which is often 1024.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).is_err() {
        tracing::warn!(open_files = limit.current, "the limit of open files could not be raised");
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener> {
    raise_open_files();
    let attempt = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.set_nodelay(true)?;
        socket.bind(address)?;
        socket.listen(link::ACCEPT_BACKLOG)
    };
    attempt().map_err(|error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => {
            Error::new(Code::PortTaken, format!("something already listens on {address}"))
        }
        _ => Error::new(Code::ConfigInvalid, format!("cannot listen on {address}: {error}")),
    })
}
