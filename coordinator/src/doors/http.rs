//! Plain HTTP on the one port: is it alive, is it ready, how does it do; and an answer for whatever is not there.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use cooper_common::{
    VERSION, clock,
    error::{Code, Error},
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde_json::json;
use tonic::Status;

use super::{auth::is_grpc, error::problem};
use crate::{audit::Audit, cluster::Cluster};

/// A store that has not answered by then is not ready.
const READY_WITHIN: Duration = Duration::from_secs(2);
const UPKEEP_EVERY: Duration = Duration::from_secs(5);
/// Upper bounds of what is counted by time: a commit of a fast disk to a step that hangs.
const SECONDS: [f64; 14] =
    [0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0, 300.0];
/// Upper bounds of everything else that is counted by size.
const COUNTS: [f64; 8] = [1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0];

#[derive(Clone)]
struct Door {
    cluster: Arc<Cluster>,
    metrics: PrometheusHandle,
}

/// The routes, with the fallback of the whole port.
pub fn router(cluster: Arc<Cluster>, audit: Arc<Audit>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics_text))
        .fallback(absent)
        .with_state(Door { cluster: cluster.clone(), metrics: recorder() })
        .merge(super::ports::router(cluster, audit))
}

/// Alive: this process answers. Says nothing about the disk, so that nobody restarts a coordinator whose disk is full.
async fn health(State(door): State<Door>) -> Json<serde_json::Value> {
    let (epoch, counts) = door.cluster.look(|core| (core.epoch(), core.counts()));
    Json(json!({
        "status": "healthy",
        "service": "cooper",
        "version": VERSION,
        "epoch": epoch,
        "uptime_s": clock::since_start().as_secs(),
        "workers": counts.workers_attached,
        "sessions": counts.sessions_live,
        "pauses": door.cluster.pauses.count(),
        "tasks_queued": counts.tasks_queued,
        "tasks_running": counts.tasks_held,
    }))
}

/// Ready: what would be asked now would be recorded.
async fn ready(State(door): State<Door>) -> Response {
    if let Err(error) = door.cluster.space.admit() {
        return not_ready(error);
    }
    match tokio::time::timeout(READY_WITHIN, door.cluster.store.probe()).await {
        Ok(Ok(())) => Json(json!({"status": "ready"})).into_response(),
        Ok(Err(error)) => not_ready(error.into()),
        Err(_) => {
            let message = format!("the store has not answered for {} s", READY_WITHIN.as_secs());
            not_ready(Error::new(Code::StoreUnavailable, message))
        }
    }
}

fn not_ready(error: Error) -> Response {
    let mut response = problem(&error);
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response
}

async fn metrics_text(State(door): State<Door>) -> Response {
    let headers = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (headers, door.metrics.render()).into_response()
}

async fn absent(request: Request) -> Response {
    let path = request.uri().path();
    if is_grpc(request.headers()) {
        return Status::unimplemented(format!("this coordinator ({VERSION}) does not know {path}"))
            .into_http();
    }
    let shown: String = path.chars().take(200).collect();
    let body = json!({
        "status": 404,
        "code": "not_found",
        "detail": format!("there is nothing at {shown}"),
        "message": format!("there is nothing at {shown}"),
        "hint": "see /docs for what there is; gRPC is on this same port",
    });
    let headers = [(header::CONTENT_TYPE, "application/problem+json")];
    (StatusCode::NOT_FOUND, headers, Json(body)).into_response()
}

/// The process's recorder, installed by whoever asks first.
fn recorder() -> PrometheusHandle {
    static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();
    RECORDER.get_or_init(install).clone()
}

fn install() -> PrometheusHandle {
    // Without buckets of its own a histogram would be rendered as a summary, which cannot be added up over processes.
    let seconds = Matcher::Suffix("_seconds".to_owned());
    let builder = PrometheusBuilder::new()
        .set_buckets(&COUNTS)
        .and_then(|builder| builder.set_buckets_for_metric(seconds, &SECONDS));
    let recorder = match builder {
        Ok(builder) => builder.build_recorder(),
        // Only an empty list of buckets is refused.
        Err(_) => PrometheusBuilder::new().build_recorder(),
    };
    let handle = recorder.handle();
    // Samples pile up until somebody asks for them or this is called (I12).
    let upkeep = handle.clone();
    let thread = std::thread::Builder::new().name("metrics".into()).spawn(move || {
        loop {
            std::thread::sleep(UPKEEP_EVERY);
            upkeep.run_upkeep();
        }
    });
    if let Err(cause) = thread {
        tracing::warn!(%cause, "metrics pile up until /metrics is read");
    }
    if metrics::set_global_recorder(recorder).is_err() {
        tracing::warn!("metrics were set up elsewhere in this process: /metrics stays empty");
    }
    handle
}

#[cfg(test)]
mod tests;
