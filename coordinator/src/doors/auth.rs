//! Nobody comes in without a token: one layer over the whole port puts the caller into each request, or answers it.

use std::{
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use axum::http::{HeaderMap, Request, Response, header};
use cooper_common::{
    error::{Code, Error, Result},
    token::Secret,
};
use futures::future::Either;
use tonic::body::Body;
use tower::Service;

use super::{
    error::{problem, status},
    wire::Peer,
};
use crate::{caller::Caller, tokens::Tokens};

/// What anybody may ask: whether it lives, and what the contract is.
const OPEN: [&str; 6] =
    ["/health", "/ready", "/openapi.json", "/docs", "/grpc.health.v1.Health/", "/grpc.reflection."];

/// Where workers come in.
const LINK: &str = "/cooper.v1.WorkerLink/";

/// Puts the [`Caller`] into the extensions of each request.
#[derive(Clone)]
pub struct Layer {
    tokens: Arc<Tokens>,
    /// Workers come by connections that showed a certificate.
    certified: bool,
}

impl Layer {
    pub fn new(tokens: Arc<Tokens>, certified: bool) -> Self {
        Self { tokens, certified }
    }
}

impl<S> tower::Layer<S> for Layer {
    type Service = Authenticated<S>;

    fn layer(&self, inner: S) -> Authenticated<S> {
        Authenticated { inner, door: self.clone() }
    }
}

/// What is behind the layer.
#[derive(Clone)]
pub struct Authenticated<S> {
    inner: S,
    door: Layer,
}

impl<S, B> Service<Request<B>> for Authenticated<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    // No box: this is on the way of every request.
    type Future = Either<S::Future, Ready<Result<Response<Body>, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        match self.door.admit(&request) {
            Ok(caller) => {
                request.extensions_mut().insert(caller);
            }
            Err(_) if is_open(request.uri().path()) => {}
            Err(error) => {
                metrics::counter!("cooper_auth_refused_total").increment(1);
                return Either::Right(ready(Ok(refuse(request.headers(), error))));
            }
        }
        Either::Left(self.inner.call(request))
    }
}

impl Layer {
    fn admit<B>(&self, request: &Request<B>) -> Result<Caller> {
        let caller = caller_of(&self.tokens, request.headers())?;
        let peer = request.extensions().get::<Peer>().copied().unwrap_or_default();
        if self.certified && !peer.certified && request.uri().path().starts_with(LINK) {
            let message = "workers of this coordinator come with a client certificate";
            return Err(Error::new(Code::Forbidden, message).with_hint(
                "set tls_client_cert and tls_client_key of the worker; `cooper certs issue` makes them",
            ));
        }
        Ok(caller)
    }
}

/// True when the other side speaks gRPC and would not read an HTTP error.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).map(|value| value.as_bytes());
    content_type.is_some_and(|value| value.starts_with(b"application/grpc"))
}

fn is_open(path: &str) -> bool {
    // A name that ends in a separator stands for everything below it.
    OPEN.iter().any(|open| if open.ends_with(['/', '.']) { path.starts_with(open) } else { path == *open })
}

fn caller_of(tokens: &Tokens, headers: &HeaderMap) -> Result<Caller> {
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return Err(Error::new(Code::Unauthenticated, "no token was given"));
    };
    let bearer = value.to_str().ok().and_then(|text| text.split_once(' '));
    match bearer {
        Some((scheme, secret)) if scheme.eq_ignore_ascii_case("bearer") => {
            tokens.authenticate(&Secret::from_text(secret))
        }
        _ => Err(Error::new(Code::Unauthenticated, "the authorization header is not \"Bearer TOKEN\"")),
    }
}

fn refuse(headers: &HeaderMap, error: Error) -> Response<Body> {
    match is_grpc(headers) {
        true => status(error).into_http(),
        false => problem(&error).map(Body::new),
    }
}
