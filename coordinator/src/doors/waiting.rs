//! The doors while there is no store: alive, not ready, and everything else is told why and to come back.

use std::time::Duration;

use axum::{
    Json, Router,
    extract::{Request, State},
    http::StatusCode,
    response::Response,
    routing::get,
};
use cooper_common::{
    VERSION, clock,
    error::{Code, Error},
    limits,
};
use serde_json::json;
use tokio::sync::watch;
use tonic::{Status, service::Routes};
use tonic_health::ServingStatus;
use tonic_types::{ErrorDetails, StatusExt};

use super::{
    auth::is_grpc,
    error::{details, problem},
};

type Why = State<watch::Receiver<Error>>;

/// The routes of a port whose coordinator has no store, for the reason given last.
pub async fn routes(why: watch::Receiver<Error>) -> Routes {
    let (health, service) = tonic_health::server::health_reporter();
    for name in super::SERVICES.iter().copied().chain([""]) {
        health.set_service_status(name, ServingStatus::NotServing).await;
    }
    let router = Router::new()
        .route("/health", get(healthy))
        .route("/ready", get(not_ready))
        .fallback(refused)
        .with_state(why);
    let routes = Routes::from(router).add_service(service);
    match super::reflection() {
        Some(reflection) => routes.add_service(reflection),
        None => routes,
    }
}

/// The members are those of a coordinator that serves; an epoch begins with 1.
async fn healthy() -> Json<serde_json::Value> {
    Json(json!({
        "status": "healthy",
        "service": "cooper",
        "version": VERSION,
        "epoch": 0,
        "uptime_s": clock::since_start().as_secs(),
        "workers": 0,
        "sessions": 0,
        "tasks_queued": 0,
        "tasks_running": 0,
    }))
}

async fn not_ready(State(why): Why) -> Response {
    let error = why.borrow().clone();
    let mut response = problem(&error);
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response
}

async fn refused(State(why): Why, request: Request) -> Response {
    let why = why.borrow().clone();
    let said = if why.code == Code::StoreUnavailable { why.message.clone() } else { why.to_string() };
    let error = Error::new(Code::StoreUnavailable, said).with_hint(why.hint());
    match is_grpc(request.headers()) {
        true => status(&error).into_http(),
        false => problem(&error),
    }
}

/// With the time after which asking again makes sense.
fn status(error: &Error) -> Status {
    let mut details: ErrorDetails = details(error);
    details.set_retry_info(Some(Duration::from_millis(limits::store::RETRY_CAP_MS)));
    Status::with_error_details(tonic::Code::Unavailable, error.message.clone(), details)
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request as Plain};
    use tower::ServiceExt;

    use super::*;
    use crate::doors::error::from_status;

    async fn ask(path: &str, grpc: bool) -> axum::http::Response<tonic::body::Body> {
        let error = Error::new(Code::StoreFull, "the disk of the data directory is full");
        let (_why, reason) = watch::channel(error);
        let mut request = Plain::builder().uri(path);
        if grpc {
            request = request.header("content-type", "application/grpc");
        }
        routes(reason).await.oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
    }

    #[tokio::test]
    async fn without_a_store_it_is_alive_and_says_why_it_is_not_ready() {
        assert_eq!(ask("/health", false).await.status(), StatusCode::OK);
        let ready = ask("/ready", false).await;
        assert_eq!(ready.status(), StatusCode::SERVICE_UNAVAILABLE);
        let body = axum::body::to_bytes(Body::new(ready.into_body()), 1 << 16).await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((&body["code"], &body["status"]), (&json!("store_full"), &json!(503)));
        assert_eq!(ask("/metrics", false).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    }

    #[tokio::test]
    async fn without_a_store_every_call_is_told_to_come_back() {
        let response = ask("/cooper.v1.Tasks/SubmitTask", true).await;
        let status = Status::from_header_map(response.headers()).unwrap();
        assert_eq!(status.code(), tonic::Code::Unavailable);
        let error = from_status(&status);
        assert_eq!(error.code, Code::StoreUnavailable);
        assert!(error.message.contains("store_full") && error.hint().contains("free space"), "{error:?}");
        let retry = status.get_details_retry_info().unwrap();
        assert_eq!(retry.retry_delay, Some(Duration::from_millis(limits::store::RETRY_CAP_MS)));
    }
}
