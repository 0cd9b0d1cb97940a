//! The doors: each translates its protocol and authorises; none decides.

pub mod auth;
pub mod error;
pub mod grpc;
pub mod http;
pub mod link;

use std::pin::Pin;

use tokio_stream::Stream;
use tonic::{Request, Status};

pub use error::status;

use crate::caller::Caller;

/// What a streaming call answers with.
pub type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Who asks; put there by the authentication layer, which lets nobody else through.
pub fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    request.extensions().get::<Caller>().cloned().ok_or_else(|| Status::unauthenticated("no token was given"))
}
