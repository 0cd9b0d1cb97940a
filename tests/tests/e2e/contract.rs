//! The one port: gRPC with reflection and health, plain HTTP, and refusals that programs can read.

use std::{future::poll_fn, pin::pin};

use cooper_proto::v1::{GetInfoRequest, GetSessionRequest, ListSessionsRequest, TaskState};
use cooper_tests::{
    grpc::{Client, channel, refusal},
    http, shared,
};
use serde_json::Value;
use tonic::{Code, client::Grpc, codegen::http as h, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_prost::ProstCodec;
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

const SERVICES: [&str; 6] = [
    "cooper.v1.Admin",
    "cooper.v1.Executions",
    "cooper.v1.Runs",
    "cooper.v1.Sessions",
    "cooper.v1.Tasks",
    "cooper.v1.WorkerLink",
];

async fn reflect(channel: Channel, ask: MessageRequest) -> MessageResponse {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(ask) };
    let mut client = ServerReflectionClient::new(channel);
    let answers = client.server_reflection_info(tokio_stream::once(request)).await.expect("reflection");
    let answer = answers.into_inner().message().await.expect("an answer").expect("one message");
    answer.message_response.expect("a response")
}

#[tokio::test]
async fn reflection_lists_the_services_and_describes_them() {
    let cluster = shared();
    let channel = channel(&cluster.url).await;
    let list = reflect(channel.clone(), MessageRequest::ListServices(String::new())).await;
    let MessageResponse::ListServicesResponse(list) = list else { panic!("{list:?}") };
    let names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    for service in SERVICES.iter().chain(&["grpc.health.v1.Health"]) {
        assert!(names.iter().any(|name| name == service), "{service} in {names:?}");
    }
    for service in SERVICES {
        let file = reflect(channel.clone(), MessageRequest::FileContainingSymbol(service.to_owned())).await;
        assert!(matches!(file, MessageResponse::FileDescriptorResponse(_)), "{service}: {file:?}");
    }
}

#[tokio::test]
async fn grpc_health_says_serving_without_a_token() {
    let cluster = shared();
    let mut health = HealthClient::new(channel(&cluster.url).await);
    for service in ["", "cooper.v1.Sessions"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let answer = health.check(request).await.unwrap_or_else(|status| panic!("{service:?}: {status}"));
        assert_eq!(answer.into_inner().status(), ServingStatus::Serving, "{service:?}");
    }
}

/// GET over HTTP/2 without TLS and upgrade, as a gRPC port is probed.
async fn get_h2c(url: &str, path: &str, token: &str) -> (u16, Value) {
    let mut channel = channel(url).await;
    let request = h::Request::get(path)
        .header("authorization", format!("Bearer {token}"))
        .body(tonic::body::Body::empty())
        .expect("a request");
    poll_fn(|cx| tonic::codegen::Service::poll_ready(&mut channel, cx)).await.expect("ready");
    let (head, body) =
        tonic::codegen::Service::call(&mut channel, request).await.expect("an answer").into_parts();
    let mut body = pin!(body);
    let mut bytes = Vec::new();
    while let Some(frame) = poll_fn(|cx| tonic::codegen::Body::poll_frame(body.as_mut(), cx)).await {
        bytes.extend_from_slice(&frame.expect("a frame").into_data().unwrap_or_default());
    }
    let json =
        serde_json::from_slice(&bytes).unwrap_or_else(|_| panic!("{:?}", String::from_utf8_lossy(&bytes)));
    (head.status.as_u16(), json)
}

#[tokio::test]
async fn health_is_json_without_a_token_over_http_1_and_h2c() {
    let cluster = shared();
    let plain = http::get(&cluster.url, "/health");
    assert!(plain.head.to_lowercase().contains("content-type: application/json"), "{}", plain.head);
    for (status, body) in [(plain.status, plain.json()), get_h2c(&cluster.url, "/health", "").await] {
        assert_eq!(status, 200);
        assert_eq!((&body["status"], &body["service"]), (&"healthy".into(), &"cooper".into()), "{body}");
        assert_eq!(body["version"], cooper_common::VERSION);
    }
}

#[test]
fn metrics_are_in_the_text_format_of_prometheus() {
    let cluster = shared();
    assert_eq!(http::get(&cluster.url, "/metrics").status, 401, "numbers tell things, too");
    let metrics = http::get_as(&cluster.admin_token(), &cluster.url, "/metrics");
    assert_eq!(metrics.status, 200);
    assert!(metrics.head.to_lowercase().contains("content-type: text/plain"), "{}", metrics.head);
    let samples = metrics.body.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let names: Vec<&str> = samples.map(|line| line.split(['{', ' ']).next().unwrap_or_default()).collect();
    assert!(names.iter().any(|name| name.starts_with("cooper_")), "{}", metrics.body);
}

#[tokio::test]
async fn a_path_that_is_not_there_is_404_with_a_json_error() {
    let cluster = shared();
    let (token, path) = (cluster.admin_token(), "/no/such/page");
    let plain = http::get_as(&token, &cluster.url, path);
    for (status, body) in [(plain.status, plain.json()), get_h2c(&cluster.url, path, &token).await] {
        assert_eq!((status, &body["code"]), (404, &"not_found".into()), "{body}");
        assert!(body["message"].as_str().is_some_and(|message| message.contains(path)), "{body}");
    }
    // Who has no token learns nothing of what there is.
    let stranger = http::get(&cluster.url, path);
    assert_eq!((stranger.status, &stranger.json()["code"]), (401, &"unauthenticated".into()));
}

#[tokio::test]
async fn an_unknown_method_is_unimplemented() {
    let cluster = shared();
    let service = Client::connect(&cluster.url, Some(&cluster.admin_token())).await.service;
    for path in ["/cooper.v1.Sessions/Levitate", "/cooper.v9.Nobody/Nothing"] {
        let mut grpc = Grpc::new(service.clone());
        grpc.ready().await.expect("ready");
        let codec: ProstCodec<GetInfoRequest, GetInfoRequest> = ProstCodec::default();
        let request = tonic::Request::new(GetInfoRequest {});
        let status = grpc.unary(request, path.parse().expect("a path"), codec).await.expect_err("unknown");
        assert_eq!(status.code(), Code::Unimplemented, "{path}: {status:?}");
    }
}

#[tokio::test]
async fn a_missing_or_wrong_token_is_unauthenticated_with_a_code_at_every_service() {
    let cluster = shared();
    for token in [None, Some("cpr_nobody"), Some("")] {
        let client = Client::connect(&cluster.url, token).await;
        let refusals = [
            client.admin().get_info(GetInfoRequest {}).await.err(),
            client.sessions().list_sessions(ListSessionsRequest::default()).await.err(),
            client.tasks().list_tasks(cooper_proto::v1::ListTasksRequest::default()).await.err(),
            client.runs().list_runs(cooper_proto::v1::ListRunsRequest::default()).await.err(),
            client.tasks().execute(cooper_proto::v1::SubmitTaskRequest::default()).await.err(),
        ];
        for status in refusals {
            let status = status.expect("refused");
            assert_eq!(status.code(), Code::Unauthenticated, "{token:?}");
            let said = refusal(&status);
            assert_eq!(said.code, "unauthenticated");
            assert!(!said.message.is_empty() && said.hint.contains("COOPER_TOKEN"), "{said:?}");
        }
    }
}

#[tokio::test]
async fn a_refusal_carries_its_stable_code_and_what_to_do_next() {
    let cluster = shared();
    let client = Client::connect(&cluster.url, Some(&cluster.admin_token())).await;
    let absent = GetSessionRequest { session_id: "ses_00000000000000000000000000".to_owned() };
    let status = client.sessions().get_session(absent).await.expect_err("absent");
    assert_eq!(status.code(), Code::NotFound);
    let said = refusal(&status);
    assert_eq!(said.code, "session_not_found");
    assert!(said.message.contains("ses_00000000000000000000000000") && !said.hint.is_empty(), "{said:?}");
}

#[tokio::test]
async fn a_step_cannot_be_submitted_from_outside() {
    use cooper_proto::v1::{StepSpec, SubmitTaskRequest, TaskSpec, task_spec::Kind};
    let cluster = shared();
    let client = Client::connect(&cluster.url, Some(&cluster.admin_token())).await;
    let step = StepSpec { run_id: String::new(), step: "build".to_owned(), input_json: b"{}".to_vec() };
    let spec = TaskSpec { kind: Some(Kind::Step(step)), ..TaskSpec::default() };
    let request = SubmitTaskRequest { spec: Some(spec), ..SubmitTaskRequest::default() };
    let status = client.tasks().submit_task(request).await.expect_err("refused");
    assert_eq!(refusal(&status).code, "forbidden", "{status:?}");
}

#[tokio::test]
async fn a_batch_of_noops_is_durable_and_every_one_ends_once() {
    use cooper_proto::v1::{
        NoopSpec, SubmitTaskRequest, SubmitTasksRequest, TaskSpec, WatchTasksRequest, task_spec::Kind,
    };
    let cluster = shared();
    let client = Client::connect(&cluster.url, Some(&cluster.admin_token())).await;
    let noop = || SubmitTaskRequest {
        spec: Some(TaskSpec { kind: Some(Kind::Noop(NoopSpec {})), ..TaskSpec::default() }),
        ..SubmitTaskRequest::default()
    };
    let batches = (0..4).map(|_| SubmitTasksRequest { tasks: (0..256).map(|_| noop()).collect() });
    let batches: Vec<_> = batches.collect();
    let mut answers =
        client.tasks().submit_tasks(tokio_stream::iter(batches)).await.expect("accepted").into_inner();
    let mut ids = Vec::new();
    while let Some(answer) = answers.message().await.expect("an answer") {
        assert!(answer.errors.is_empty(), "{:?}", answer.errors);
        ids.extend(answer.task_ids);
    }
    assert_eq!(ids.len(), 1_024);
    let request = WatchTasksRequest { task_ids: ids.clone(), from_seq: 0 };
    let mut feed = client.tasks().watch_tasks(request).await.expect("a feed").into_inner();
    let mut ended = Vec::new();
    let all = async {
        while let Some(message) = feed.message().await.expect("a message") {
            for task in message.tasks {
                assert_eq!(task.state(), TaskState::Succeeded, "{task:?}");
                ended.push(task.id);
            }
            if ended.len() >= ids.len() {
                break;
            }
        }
    };
    tokio::time::timeout(cooper_tests::seconds(30), all).await.expect("all of them end within 30 s");
    ended.sort();
    ids.sort();
    assert_eq!(ended, ids);
}
