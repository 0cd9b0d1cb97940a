//! The doors: each translates its protocol and authorises; none decides.

pub mod audit;
pub mod auth;
pub mod error;
pub mod grpc;
pub mod hosts;
pub mod http;
pub mod link;
pub mod mcp;
pub mod plain;
pub mod ports;
pub mod rest;
pub mod tls;
pub mod waiting;
pub mod wire;

use std::pin::Pin;

use cooper_proto::v1::{
    admin_server, checkpoints_server, executions_server, runs_server, secrets_server, sessions_server,
    tasks_server, templates_server, worker_link_server,
};
use tokio_stream::Stream;
use tonic::{Request, Status};
use tonic_reflection::server::v1::{ServerReflection, ServerReflectionServer};

pub use error::status;

use crate::caller::Caller;

/// What a streaming call answers with.
pub type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What is spoken here, by the names that `grpc.health.v1` knows.
pub const SERVICES: [&str; 9] = [
    sessions_server::SERVICE_NAME,
    checkpoints_server::SERVICE_NAME,
    templates_server::SERVICE_NAME,
    secrets_server::SERVICE_NAME,
    tasks_server::SERVICE_NAME,
    executions_server::SERVICE_NAME,
    runs_server::SERVICE_NAME,
    admin_server::SERVICE_NAME,
    worker_link_server::SERVICE_NAME,
];

/// The contract, told by `grpc.reflection.v1`.
pub fn reflection() -> Option<ServerReflectionServer<impl ServerReflection>> {
    let built = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(cooper_proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1();
    built.inspect_err(|error| tracing::error!(%error, "no reflection: the descriptors cannot be read")).ok()
}

/// Who asks; put there by the authentication layer, which lets nobody else through.
pub fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    request.extensions().get::<Caller>().cloned().ok_or_else(|| Status::unauthenticated("no token was given"))
}
