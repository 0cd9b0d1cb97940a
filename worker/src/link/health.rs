//! The worker's own listener: `/health` and `/metrics`, on loopback unless told otherwise.

use std::fmt::Write as _;

use axum::{Json, Router, extract::State, http::header, response::IntoResponse, routing::get};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch};
use tracing::{debug, warn};

use super::ledger::Counters;

/// What is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Status {
    pub attached: bool,
    pub coordinator_epoch: u64,
    pub attaches: u64,
    pub sessions: usize,
    pub running: usize,
    pub results_unacked: usize,
    /// It stops, or an operator empties it.
    pub draining: bool,
    pub counters: Counters,
}

#[derive(Clone)]
struct Shown {
    worker_id: String,
    status: watch::Receiver<Status>,
}

/// Starts the listener, if there is to be one. A worker whose health cannot be asked still works: a port that is
/// taken is said and no more.
pub async fn serve(listen: Option<&str>, worker_id: &str) -> watch::Sender<Status> {
    let (sender, status) = watch::channel(Status::default());
    let Some(listen) = listen else { return sender };
    match TcpListener::bind(listen).await {
        Ok(listener) => {
            let shown = Shown { worker_id: worker_id.to_owned(), status };
            let app =
                Router::new().route("/health", get(health)).route("/metrics", get(metrics)).with_state(shown);
            tokio::spawn(async move {
                if let Err(e) = axum::serve(listener, app).await {
                    debug!("health listener: {e}");
                }
            });
        }
        Err(e) => warn!("no health listener on {listen}: {e}; choose another with GRPC_PORT"),
    }
    sender
}

/// Always 200: the process answers. Whether it reaches its coordinator is in the body.
async fn health(State(shown): State<Shown>) -> Json<Value> {
    let status = *shown.status.borrow();
    Json(json!({
        "status": if status.attached { "healthy" } else { "degraded" },
        "service": "cooper-worker",
        "version": cooper_common::VERSION,
        "worker_id": shown.worker_id,
        "attached": status.attached,
        "coordinator_epoch": status.coordinator_epoch,
        "sessions": status.sessions,
        "running": status.running,
        "draining": status.draining,
    }))
}

async fn metrics(State(shown): State<Shown>) -> impl IntoResponse {
    let status = *shown.status.borrow();
    let text = exposition(&status);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}

fn exposition(status: &Status) -> String {
    let Counters { assigns, noops, results_acked, output_bytes, stale } = status.counters;
    let rows = [
        ("attached", "gauge", "1 while the coordinator is attached", u64::from(status.attached)),
        ("coordinator_epoch", "gauge", "Highest coordinator epoch seen", status.coordinator_epoch),
        ("attaches_total", "counter", "Attaches welcomed", status.attaches),
        ("sessions", "gauge", "Sessions on this worker", status.sessions as u64),
        ("attempts_running", "gauge", "Attempts that have not ended", status.running as u64),
        ("results_unacked", "gauge", "Results that wait for their ack", status.results_unacked as u64),
        ("draining", "gauge", "1 while it stops or an operator empties it", u64::from(status.draining)),
        ("assigns_total", "counter", "Assignments received", assigns),
        ("noops_total", "counter", "No-op tasks answered", noops),
        ("results_acked_total", "counter", "Results acked", results_acked),
        ("output_sent_bytes_total", "counter", "Output streamed, repeats included", output_bytes),
        ("stale_messages_total", "counter", "Messages with an older fence or of no use", stale),
    ];
    let mut text = String::new();
    for (name, kind, help, value) in rows {
        let name = format!("cooper_worker_{name}");
        let _ = writeln!(text, "# HELP {name} {help}.\n# TYPE {name} {kind}\n{name} {value}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_a_type_and_a_value() {
        let text = exposition(&Status { attached: true, sessions: 3, ..Status::default() });
        assert!(
            text.contains("\ncooper_worker_sessions 3\n") && text.contains("\ncooper_worker_attached 1\n")
        );
        assert_eq!(text.matches("# TYPE").count() * 3, text.lines().count());
    }
}
