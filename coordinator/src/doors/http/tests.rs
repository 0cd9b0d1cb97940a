//! The port as a stranger meets it: health, refusals, and what is not there.

use axum::{
    body::Body,
    http::{Request as Plain, Response as Answer},
};
use cooper_common::{error::Code, token::Scope};
use tonic::service::Routes;
use tower::{Layer as _, Service, ServiceExt};

use super::*;
use crate::{
    audit::Audit,
    bus::Bus,
    caller::Caller,
    doors::{
        auth::{Authenticated, Layer, Rules},
        error::from_status,
        hosts::Hosts,
    },
    output::OutputLog,
    store::{Store, sqlite::Sqlite},
    tokens::{ADMIN_FILE, Allowance, Tokens},
};

struct Port {
    door: Authenticated<Routes>,
    store: Arc<dyn Store>,
    secret: String,
    _data: tempfile::TempDir,
}

async fn port() -> Port {
    let data = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(Sqlite::memory(Bus::default()).unwrap());
    let tokens = Tokens::open(Arc::clone(&store), data.path(), Allowance::default()).await.unwrap();
    let output = OutputLog::open(data.path()).unwrap();
    let secrets = crate::secrets::Secrets::open(Arc::clone(&store), data.path()).await.unwrap();
    let (timing, quota, defaults) = Default::default();
    let cluster = Cluster::load(Arc::clone(&store), output, timing, quota, defaults, secrets).await.unwrap();
    // Stands for a gRPC service behind the layer.
    let whoami = get(|request: Request| async move {
        let caller = request.extensions().get::<Caller>().cloned();
        caller.map_or("nobody".to_owned(), |caller| format!("{} {:?}", caller.tenant, caller.scope))
    });
    let audit = Audit::new(Arc::clone(&store));
    let routes = Routes::from(router(cluster, Arc::clone(&audit)).route("/whoami", whoami));
    let rules = Rules { certified: false, hosts: Hosts::parse(""), audit };
    let secret = std::fs::read_to_string(data.path().join(ADMIN_FILE)).unwrap().trim().to_owned();
    Port { door: Layer::new(tokens, rules).layer(routes), store, secret, _data: data }
}

impl Port {
    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer<tonic::body::Body> {
        let mut request = Plain::builder().uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut door = self.door.clone();
        let door: &mut Authenticated<Routes> = ServiceExt::<Plain<Body>>::ready(&mut door).await.unwrap();
        door.call(request.body(Body::empty()).unwrap()).await.unwrap()
    }

    async fn get_as_admin(&self, path: &str) -> Answer<tonic::body::Body> {
        self.get(path, &[("authorization", &format!("Bearer {}", self.secret))]).await
    }
}

async fn text(response: Answer<tonic::body::Body>) -> String {
    let bytes = axum::body::to_bytes(Body::new(response.into_body()), 1 << 20).await.unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

async fn json_of(response: Answer<tonic::body::Body>) -> serde_json::Value {
    serde_json::from_str(&text(response).await).unwrap()
}

const GRPC: (&str, &str) = ("content-type", "application/grpc");

#[tokio::test]
async fn health_needs_no_token_and_says_what_runs() {
    let response = port().await.get("/health", &[]).await;
    assert_eq!(response.status(), 200);
    let body = json_of(response).await;
    assert_eq!((&body["status"], &body["service"]), (&json!("healthy"), &json!("cooper")));
    assert_eq!((&body["version"], &body["epoch"], &body["workers"]), (&json!(VERSION), &json!(1), &json!(0)));
    assert!(body["uptime_s"].is_u64());
}

#[tokio::test]
async fn ready_fails_with_the_store_and_health_does_not() {
    let port = port().await;
    assert_eq!(port.get("/ready", &[]).await.status(), 200);
    port.store.close().await.unwrap();
    let response = port.get("/ready", &[]).await;
    assert_eq!(response.status(), 503);
    assert_eq!(json_of(response).await["code"], "unavailable");
    assert_eq!(port.get("/health", &[]).await.status(), 200);
}

#[tokio::test]
async fn nobody_comes_in_without_a_known_token() {
    let port = port().await;
    for headers in [
        vec![],
        vec![("authorization", "Bearer cpr_0000")],
        vec![("authorization", "Basic dXNlcjpwdw==")],
        vec![("authorization", "Bearer")],
    ] {
        for path in ["/metrics", "/whoami", "/absent", "/health/", "/grpc.health.v1.Healthy"] {
            let response = port.get(path, &headers).await;
            assert_eq!(response.status(), 401, "{path} {headers:?}");
            assert_eq!(response.headers()[header::WWW_AUTHENTICATE], "Bearer realm=\"cooper\"");
            assert_eq!(json_of(response).await["code"], "unauthenticated");
            let response = port.get(path, &[&headers[..], &[GRPC]].concat()).await;
            let status = Status::from_header_map(response.headers()).unwrap();
            assert_eq!(status.code(), tonic::Code::Unauthenticated);
            assert_eq!(from_status(&status).code, Code::Unauthenticated);
        }
    }
}

#[tokio::test]
async fn a_known_token_says_who_asks() {
    let port = port().await;
    let answer = text(port.get_as_admin("/whoami").await).await;
    assert_eq!(answer, format!("default {:?}", Scope::Admin));
}

#[tokio::test]
async fn what_is_not_there_is_told_in_the_askers_protocol() {
    let port = port().await;
    let response = port.get_as_admin("/absent").await;
    assert_eq!(response.status(), 404);
    assert_eq!(json_of(response).await["code"], "not_found");
    // The contract of health and reflection is open: the answer comes from behind the layer.
    let response = port.get("/grpc.reflection.v2.New/Call", &[GRPC]).await;
    let status = Status::from_header_map(response.headers()).unwrap();
    assert_eq!(status.code(), tonic::Code::Unimplemented);
}

#[tokio::test]
async fn metrics_are_histograms_with_buckets() {
    let port = port().await;
    metrics::histogram!("cooper_claim_seconds").record(0.003);
    let body = text(port.get_as_admin("/metrics").await).await;
    assert!(body.contains("cooper_claim_seconds_bucket{le=\"0.005\"} 1"), "{body}");
}
