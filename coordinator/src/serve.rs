//! A coordinator that has its store: cluster, runs, doors on one port; and its end in order. `life.rs` says when.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use axum::Router;
use cooper_common::{error::Result, limits};
use cooper_core::{cluster::Quota, lease::Timing};
use cooper_proto::v1::{
    admin_server::AdminServer, checkpoints_server::CheckpointsServer, executions_server::ExecutionsServer,
    runs_server::RunsServer, secrets_server::SecretsServer, sessions_server::SessionsServer,
    tasks_server::TasksServer, templates_server::TemplatesServer, worker_link_server::WorkerLinkServer,
};
use futures::Stream;
use tonic::{service::Routes, transport::Server};
use tonic_health::ServingStatus;

use crate::{
    artifacts::{self, Artifacts},
    audit::Audit,
    blobs::Blobs,
    bus::Bus,
    checkpoints::{self, Checkpoints},
    cluster::Cluster,
    doors::{self, tls::Tls, wire::Source},
    output::OutputLog,
    runs::{self, Runs},
    secrets::Secrets,
    sessions,
    store::Store,
    templates,
    tokens::{Allowance, Tokens},
    upkeep::{self, Keep},
};

/// What a coordinator needs to know. The table of settings is in `cooper_common::config`.
#[derive(Debug, Clone)]
pub struct Config {
    pub listen: SocketAddr,
    /// None: what is sent can be read on its way.
    pub tls: Option<doors::tls::Settings>,
    /// Without TLS, and not on this machine alone.
    pub insecure_listen: bool,
    /// By which names it is asked.
    pub hosts: doors::hosts::Hosts,
    /// What one token may ask for.
    pub allowance: Allowance,
    /// Everything durable is below.
    pub data: PathBuf,
    pub log_level: String,
    pub timing: Timing,
    /// Between pings of an idle connection, and until one that is not answered ends it.
    pub keepalive: Duration,
    /// How much stays of what has ended.
    pub keep: Keep,
    /// What tenants may keep of checkpoints.
    pub checkpoints: checkpoints::Quota,
    /// What tenants may keep of artifacts.
    pub artifacts: artifacts::Quota,
    /// What one tenant may hold.
    pub quota: Quota,
    /// What sessions have that do not say so.
    pub defaults: sessions::Defaults,
    /// Whether MCP has the tools of the server that came before, too.
    pub mcp_earlier: bool,
    /// What repairs go by.
    pub repairs: runs::Settings,
}

/// Output and transfers share a connection of 8 MiB, so that one slow stream leaves room for the others.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// A coordinator on a store and files that are open. What it listens on comes with [`serve`](Coordinator::serve).
pub struct Coordinator {
    pub cluster: Arc<Cluster>,
    config: Config,
    runs: Arc<Runs>,
    blobs: Arc<Blobs>,
    checkpoints: Arc<Checkpoints>,
    artifacts: Arc<Artifacts>,
    tokens: Arc<Tokens>,
    audit: Arc<Audit>,
    bus: Bus,
}

impl Coordinator {
    /// Takes up what the store remembers, under a new epoch.
    pub async fn load(
        store: Arc<dyn Store>,
        bus: Bus,
        output: OutputLog,
        blobs: Arc<Blobs>,
        config: Config,
    ) -> Result<Self> {
        let tokens = Tokens::open(store.clone(), &config.data, config.allowance).await?;
        let audit = Audit::new(store.clone());
        let secrets = Secrets::open(store.clone(), &config.data).await?;
        let cluster =
            Cluster::load(store, output, config.timing, config.quota, config.defaults.clone(), secrets)
                .await?;
        let runs = Runs::start(cluster.clone(), blobs.clone(), config.repairs.clone()).await?;
        let checkpoints =
            Checkpoints::open(cluster.clone(), blobs.clone(), &config.data, config.checkpoints)?;
        let artifacts = Artifacts::load(cluster.clone(), blobs.clone(), config.artifacts).await?;
        Ok(Self { cluster, config, runs, blobs, checkpoints, artifacts, tokens, audit, bus })
    }

    /// Answers every door on the connections that come in until `shutdown` resolves or the store breaks. `started` is
    /// called once requests are answered.
    pub async fn serve<IO: Source>(
        self,
        incoming: impl Stream<Item = io::Result<IO>> + Send + 'static,
        tls: Option<Arc<Tls>>,
        started: impl FnOnce() -> Result<()>,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<()> {
        let cluster = self.cluster;
        let clock = tokio::spawn(tick(cluster.clone()));
        let Config { data, keep, keepalive, .. } = self.config;
        let (checkpoints, artifacts) = (self.checkpoints.clone(), self.artifacts.clone());
        let upkeep =
            tokio::spawn(upkeep::run(cluster.clone(), self.blobs, checkpoints, artifacts, data, keep));
        let carrying = tokio::spawn(self.checkpoints.clone().run());
        let stocking = tokio::spawn(templates::spares::run(cluster.clone(), self.checkpoints.clone()));
        let notifying = self
            .config
            .repairs
            .notify
            .map(|settings| tokio::spawn(runs::notify::run(cluster.clone(), self.bus.clone(), settings)));
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let (saved, artifacts) = (&self.checkpoints, &self.artifacts);
        let auditing = tokio::spawn(self.audit.clone().run(self.bus.clone()));
        let noting = tokio::spawn(self.tokens.clone().note_use());
        let audited = doors::audit::Layer::new(self.audit.clone())?;
        let grpc = |base| {
            let (tokens, audit) = (&self.tokens, &self.audit);
            let routes = services(base, &cluster, saved, artifacts, &self.runs, tokens, audit, &self.bus);
            Routes::from(routes.into_axum_router().layer(audited.clone()))
        };
        let behind = grpc(Routes::from(Router::new()));
        let rest = doors::rest::router(behind.clone())?;
        let mcp = doors::mcp::router(behind, self.config.mcp_earlier, stopped.clone());
        let (health, health_service) = tonic_health::server::health_reporter();
        for name in doors::SERVICES {
            health.set_service_status(name, ServingStatus::Serving).await;
        }
        let plain = doors::http::router(cluster.clone(), self.audit.clone()).merge(rest).merge(mcp);
        let routes = grpc(Routes::from(plain)).add_service(health_service);
        let rules = doors::auth::Rules {
            certified: tls.as_ref().is_some_and(|tls| tls.demands_certificates()),
            hosts: self.config.hosts,
            audit: self.audit.clone(),
        };
        let authenticated = doors::auth::Layer::new(self.tokens.clone(), rules);
        let plain = tower::Layer::layer(&authenticated, routes.clone().prepare());
        let incoming = doors::plain::sort(incoming, tls, plain, stopped.clone());
        let server = Server::builder()
            .http2_keepalive_interval(Some(keepalive))
            .http2_keepalive_timeout(Some(keepalive))
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_concurrent_streams(1024)
            .layer(authenticated)
            .add_routes(routes)
            .serve_with_incoming_shutdown(incoming, async move {
                let mut stopped = stopped;
                let _ = stopped.wait_for(|stop| *stop).await;
            });
        let server = tokio::spawn(server);
        started()?;

        let failure = tokio::select! {
            () = shutdown => None,
            error = cluster.broken() => Some(error),
        };
        // Workers come back to whoever serves next; nothing of theirs ends with us.
        cluster.fleet.reattach_all();
        stop.send_replace(true);
        clock.abort();
        upkeep.abort();
        carrying.abort();
        stocking.abort();
        noting.abort();
        if let Some(notifying) = notifying {
            notifying.abort();
        }
        cluster.fleet.close_all();
        // Streams of clients do not end by themselves: what is left after this is cut, and they resume elsewhere.
        let patience = match failure {
            None => limits::stop::COORDINATOR_MS / 2,
            // Only the answers that say so: everybody comes back to what is loaded next.
            Some(_) => limits::stop::BROKEN_MS,
        };
        let served = async {
            let _ = server.await;
            // And so do connections of HTTP/1.
            stop.closed().await;
        };
        let _ = tokio::time::timeout(Duration::from_millis(patience), served).await;
        auditing.abort();
        let _ = cluster.store.close().await;
        failure.map_or(Ok(()), Err)
    }
}

/// The services of the contract, beside what answers there already.
#[allow(clippy::too_many_arguments)] // Each part of the domain once.
fn services(
    routes: Routes,
    cluster: &Arc<Cluster>,
    checkpoints: &Arc<Checkpoints>,
    artifacts: &Arc<Artifacts>,
    runs: &Arc<Runs>,
    tokens: &Arc<Tokens>,
    audit: &Arc<Audit>,
    bus: &Bus,
) -> Routes {
    use doors::grpc;
    let max = limits::link::MESSAGE_BYTES_MAX;
    let sessions =
        SessionsServer::new(grpc::Sessions { cluster: cluster.clone(), checkpoints: checkpoints.clone() })
            .max_decoding_message_size(max)
            .max_encoding_message_size(max);
    let saved = grpc::Checkpoints { cluster: cluster.clone(), checkpoints: checkpoints.clone() };
    let saved = CheckpointsServer::new(saved).max_decoding_message_size(max).max_encoding_message_size(max);
    let tasks = TasksServer::new(grpc::Tasks { cluster: cluster.clone(), bus: bus.clone() })
        .max_decoding_message_size(max)
        .max_encoding_message_size(max);
    let executions = ExecutionsServer::new(grpc::Executions { cluster: cluster.clone() })
        .max_decoding_message_size(max)
        .max_encoding_message_size(max);
    let runs_service = grpc::Runs {
        runs: runs.clone(),
        cluster: cluster.clone(),
        artifacts: artifacts.clone(),
        tokens: tokens.clone(),
    };
    let runs_service =
        RunsServer::new(runs_service).max_decoding_message_size(max).max_encoding_message_size(max);
    let admin = AdminServer::new(grpc::Admin {
        cluster: cluster.clone(),
        tokens: tokens.clone(),
        audit: audit.clone(),
        bus: bus.clone(),
    });
    let link =
        doors::link::Door { cluster: cluster.clone(), runs: runs.clone(), artifacts: artifacts.clone() };
    let link = WorkerLinkServer::new(link).max_decoding_message_size(max).max_encoding_message_size(max);
    let routes = routes.add_service(sessions).add_service(tasks).add_service(runs_service).add_service(admin);
    let templates = grpc::Templates { cluster: cluster.clone(), checkpoints: checkpoints.clone() };
    let templates = TemplatesServer::new(templates).max_decoding_message_size(max);
    let secrets = SecretsServer::new(grpc::Secrets { cluster: cluster.clone() });
    let routes = routes.add_service(executions).add_service(secrets);
    let routes = routes.add_service(saved).add_service(templates);
    let routes = routes.add_service(link);
    match doors::reflection() {
        Some(reflection) => routes.add_service(reflection),
        None => routes,
    }
}

/// The clock of the cluster: silence, approvals.
async fn tick(cluster: Arc<Cluster>) {
    let mut interval = tokio::time::interval(Duration::from_millis(cluster.timing.tick_ms));
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        cluster.tell(|core, now| core.tick(now));
        while cluster.look(|core| core.is_due(crate::cluster::now())) {
            cluster.room().await;
            cluster.tell(|core, now| core.tick(now));
        }
        let counts = cluster.look(|core| core.counts());
        metrics::gauge!("cooper_workers_attached").set(counts.workers_attached as f64);
        metrics::gauge!("cooper_sessions_live").set(counts.sessions_live as f64);
        metrics::gauge!("cooper_tasks_queued").set(counts.tasks_queued as f64);
        metrics::gauge!("cooper_tasks_held").set(counts.tasks_held as f64);
    }
}
