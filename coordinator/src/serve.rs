//! Starts a coordinator: store, cluster, runs, doors on one port; and ends it in order.

use std::{fs, net::SocketAddr, os::unix::fs::DirBuilderExt, path::PathBuf, sync::Arc, time::Duration};

use cooper_common::{
    error::{Code, Error, Result},
    limits,
};
use cooper_core::{change::Aggregate, lease::Timing};
use cooper_proto::v1::{
    admin_server::AdminServer, runs_server::RunsServer, sessions_server::SessionsServer,
    tasks_server::TasksServer, worker_link_server::WorkerLinkServer,
};
use tokio::net::{TcpListener, TcpSocket};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{service::Routes, transport::Server};

use crate::{
    blobs::Blobs,
    bus::Bus,
    cluster::Cluster,
    doors,
    output::OutputLog,
    runs::Runs,
    store::{Keep, Store, sqlite::Sqlite},
    tokens::Tokens,
};

/// What a coordinator needs to know. The table of settings is in `cooper_common::config`.
#[derive(Debug, Clone)]
pub struct Config {
    pub listen: SocketAddr,
    /// Everything durable is below.
    pub data: PathBuf,
    pub log_level: String,
    pub timing: Timing,
    /// Between pings of an idle connection, and until one that is not answered ends it.
    pub keepalive: Duration,
}

/// Output and transfers share a connection of 8 MiB, so that one slow stream leaves room for the others.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// Serves until `shutdown` resolves. `ready` is told the address once requests are answered.
///
/// # Errors
/// `data_unusable`, `data_busy`, `port_taken`, `store_unavailable`.
pub async fn serve(
    config: Config,
    ready: impl FnOnce(SocketAddr) + Send,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&config.data).map_err(|error| {
        Error::new(Code::DataUnusable, format!("{} cannot be created: {error}", config.data.display()))
    })?;
    let bus = Bus::default();
    let store: Arc<dyn Store> = Arc::new(Sqlite::open(&config.data, bus.clone())?);
    let unusable = |error: std::io::Error| {
        Error::new(Code::DataUnusable, format!("{} cannot be used: {error}", config.data.display()))
    };
    let output = OutputLog::open(&config.data).map_err(unusable)?;
    let blobs = Arc::new(Blobs::open(&config.data).map_err(unusable)?);
    // Before anything is loaded, so that a taken port costs nothing.
    let listener = listen(config.listen)?;
    let address = listener.local_addr().map_err(unusable)?;
    let tokens = Tokens::open(store.clone(), &config.data).await?;
    let cluster = Cluster::load(store.clone(), output, config.timing).await?;
    let runs = Runs::start(cluster.clone(), blobs.clone()).await?;

    let clock = tokio::spawn(tick(cluster.clone()));
    let retention = tokio::spawn(retain(cluster.clone()));
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let server = Server::builder()
        .accept_http1(true)
        .http2_keepalive_interval(Some(config.keepalive))
        .http2_keepalive_timeout(Some(config.keepalive))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(1024)
        .layer(doors::auth::Layer::new(tokens.clone()))
        .add_routes(routes(&cluster, &runs, &tokens, &bus).await)
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), async move {
            let mut stopped = stopped;
            let _ = stopped.wait_for(|stop| *stop).await;
        });
    let server = tokio::spawn(server);
    write_endpoint(&config, address).map_err(unusable)?;
    tracing::info!(%address, epoch = cluster.look(|core| core.epoch()), "serving");
    ready(address);

    let failure = tokio::select! {
        () = shutdown => None,
        error = cluster.broken() => Some(error),
    };
    // Workers come back to whoever serves next; nothing of theirs ends with us.
    cluster.fleet.reattach_all();
    stop.send_replace(true);
    clock.abort();
    retention.abort();
    cluster.fleet.close_all();
    // Streams of clients do not end by themselves: what is left after this is cut, and they resume elsewhere.
    let _ = tokio::time::timeout(Duration::from_millis(limits::stop::COORDINATOR_MS / 2), server).await;
    let _ = store.close().await;
    tracing::info!("stopped");
    failure.map_or(Ok(()), Err)
}

fn listen(address: SocketAddr) -> Result<TcpListener> {
    let attempt = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.set_nodelay(true)?;
        socket.bind(address)?;
        socket.listen(limits::link::ACCEPT_BACKLOG)
    };
    attempt().map_err(|error: std::io::Error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            Error::new(Code::PortTaken, format!("something already listens on {address}"))
        }
        _ => Error::new(Code::ConfigInvalid, format!("cannot listen on {address}: {error}")),
    })
}

/// Every door, on one port.
async fn routes(cluster: &Arc<Cluster>, runs: &Arc<Runs>, tokens: &Arc<Tokens>, bus: &Bus) -> Routes {
    use doors::grpc;
    let max = limits::link::MESSAGE_BYTES_MAX;
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<SessionsServer<grpc::Sessions>>().await;
    health.set_serving::<TasksServer<grpc::Tasks>>().await;
    health.set_serving::<RunsServer<grpc::Runs>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(cooper_proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1();
    let sessions = SessionsServer::new(grpc::Sessions { cluster: cluster.clone() })
        .max_decoding_message_size(max)
        .max_encoding_message_size(max);
    let tasks = TasksServer::new(grpc::Tasks { cluster: cluster.clone() })
        .max_decoding_message_size(max)
        .max_encoding_message_size(max);
    let runs_service = RunsServer::new(grpc::Runs { runs: runs.clone(), cluster: cluster.clone() })
        .max_decoding_message_size(max)
        .max_encoding_message_size(max);
    let admin =
        AdminServer::new(grpc::Admin { cluster: cluster.clone(), tokens: tokens.clone(), bus: bus.clone() });
    let link = WorkerLinkServer::new(doors::link::Door { cluster: cluster.clone(), runs: runs.clone() })
        .max_decoding_message_size(max)
        .max_encoding_message_size(max);
    let mut routes = Routes::from(doors::http::router(cluster.clone()));
    routes = routes.add_service(sessions).add_service(tasks).add_service(runs_service).add_service(admin);
    routes = routes.add_service(link).add_service(health_service);
    match reflection {
        Ok(reflection) => routes = routes.add_service(reflection),
        Err(error) => tracing::error!(%error, "no reflection: the descriptors cannot be read"),
    }
    routes
}

/// Where commands on this machine find us.
fn write_endpoint(config: &Config, address: SocketAddr) -> std::io::Result<()> {
    // A wildcard is no address to dial.
    let ip = if address.ip().is_unspecified() { std::net::Ipv4Addr::LOCALHOST.into() } else { address.ip() };
    let url = format!("http://{}\n", SocketAddr::new(ip, address.port()));
    let temporary = config.data.join("endpoint.new");
    fs::write(&temporary, url)?;
    fs::rename(temporary, config.data.join("endpoint"))
}

/// The clock of the cluster: silence, approvals.
async fn tick(cluster: Arc<Cluster>) {
    let mut interval = tokio::time::interval(Duration::from_millis(cluster.timing.tick_ms));
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        cluster.tell(|core, now| core.tick(now));
        let counts = cluster.look(|core| core.counts());
        metrics::gauge!("cooper_workers_attached").set(counts.workers_attached as f64);
        metrics::gauge!("cooper_sessions_live").set(counts.sessions_live as f64);
        metrics::gauge!("cooper_tasks_queued").set(counts.tasks_queued as f64);
        metrics::gauge!("cooper_tasks_held").set(counts.tasks_held as f64);
    }
}

/// Takes away what ended long ago: rows, events, and the output of tasks.
async fn retain(cluster: Arc<Cluster>) {
    use limits::store;
    let keep = Keep { ended_rows: store::ENDED_TASKS_KEPT_MAX, events: store::EVENTS_KEPT_MAX };
    let mut interval = tokio::time::interval(Duration::from_millis(store::RETENTION_EVERY_MS));
    loop {
        interval.tick().await;
        match cluster.store.retain(keep).await {
            Ok(removed) => {
                for (aggregate, id) in removed.rows {
                    if aggregate == Aggregate::Task
                        && let Ok(task) = id.parse()
                        && let Err(error) = cluster.output.remove(task)
                    {
                        tracing::warn!(%id, %error, "old output could not be removed");
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "retention did not finish"),
        }
    }
}
