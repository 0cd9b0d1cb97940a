//! The doors: each translates its protocol and authorises; none decides.

pub mod grpc;
pub mod link;

use std::pin::Pin;

use tokio_stream::Stream;
use tonic::{Request, Status};

use crate::caller::Caller;

/// What a streaming call answers with.
pub type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Who asks; put there by the authentication layer, which lets nobody else through.
pub fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    request.extensions().get::<Caller>().cloned().ok_or_else(|| Status::unauthenticated("no token was given"))
}

/// An error as a gRPC status with google.rpc.ErrorInfo.
pub fn status(error: cooper_common::error::Error) -> Status {
    Status::internal(error.to_string())
}
