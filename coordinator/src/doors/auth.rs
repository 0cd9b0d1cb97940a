//! Nobody comes in without a token: one layer over the whole port puts the caller into each request, or answers it.

use std::{
    future::{Ready, ready},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::http::{HeaderMap, HeaderValue, Request, Response, header};
use bytes::Bytes;
use cooper_common::{
    error::{Code, Error, Result},
    token::Secret,
};
use futures::future::Either;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use pin_project_lite::pin_project;
use tonic::{Status, body::Body};
use tower::Service;

use super::{
    error::{problem, status, status_after},
    hosts::Hosts,
    wire::Peer,
};
use crate::{
    audit::Audit,
    tokens::{Admitted, COME_BACK_AFTER, Share, Tokens},
};

/// What anybody may ask: whether it lives, and what the contract is.
const OPEN: [&str; 6] =
    ["/health", "/ready", "/openapi.json", "/docs", "/grpc.health.v1.Health/", "/grpc.reflection."];

/// Where workers come in.
const LINK: &str = "/cooper.v1.WorkerLink/";

/// What everybody who comes in has to keep to.
#[derive(Clone)]
pub struct Rules {
    /// Workers come by connections that showed a certificate.
    pub certified: bool,
    pub hosts: Hosts,
    pub audit: Arc<Audit>,
}

/// Puts the [`Caller`] into the extensions of each request.
#[derive(Clone)]
pub struct Layer {
    tokens: Arc<Tokens>,
    rules: Rules,
}

impl Layer {
    pub fn new(tokens: Arc<Tokens>, rules: Rules) -> Self {
        Self { tokens, rules }
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
    // No box: this is on the way of every request.
    type Future = Either<Sharing<S::Future>, Ready<Result<Response<Body>, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let share = match self.door.admit(&request) {
            Ok(Some(Admitted { caller, share })) => {
                request.extensions_mut().insert(caller);
                share
            }
            Ok(None) => None,
            Err(error) => return Either::Right(ready(Ok(refuse(request.headers(), error)))),
        };
        Either::Left(Sharing { inner: self.inner.call(request), share })
    }
}

impl Layer {
    /// None: nobody has to say who they are for this.
    fn admit<B>(&self, request: &Request<B>) -> Result<Option<Admitted>> {
        let peer = request.extensions().get::<Peer>().copied().unwrap_or_default();
        let from = peer.address.map(|address| address.ip().to_canonical());
        let admitted = self.rules.hosts.check(request.uri(), request.headers()).and_then(|()| {
            let mut admitted =
                match secret_of(request.headers()).and_then(|secret| self.tokens.admit(&secret)) {
                    Ok(admitted) => admitted,
                    Err(error) if error.code == Code::Unauthenticated && is_open(request.uri().path()) => {
                        return Ok(None);
                    }
                    Err(error) => return Err(error),
                };
            if self.rules.certified && !peer.certified && request.uri().path().starts_with(LINK) {
                let message = "workers of this coordinator come with a client certificate";
                return Err(Error::new(Code::Forbidden, message).with_hint(
                    "set tls_client_cert and tls_client_key of the worker; `cooper certs issue` makes them",
                ));
            }
            admitted.caller.from = from;
            Ok(Some(admitted))
        });
        admitted.inspect_err(|error| {
            metrics::counter!("cooper_auth_refused_total", "code" => error.code.as_str()).increment(1);
            self.rules.audit.refused(from, error.code);
        })
    }
}

pin_project! {
    /// An answer that takes a share of its token for as long as it lasts.
    pub struct Sharing<F> {
        #[pin]
        inner: F,
        share: Option<Share>,
    }
}

impl<F, E> Future for Sharing<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answered = std::task::ready!(this.inner.poll(context));
        let share = this.share.take();
        Poll::Ready(answered.map(|response| match share {
            Some(share) => response.map(|inner| Body::new(Shared { inner, _share: share })),
            None => response,
        }))
    }
}

/// The body of such an answer.
struct Shared {
    inner: Body,
    _share: Share,
}

impl HttpBody for Shared {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.inner).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
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

fn secret_of(headers: &HeaderMap) -> Result<Secret> {
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return Err(Error::new(Code::Unauthenticated, "no token was given"));
    };
    let bearer = value.to_str().ok().and_then(|text| text.split_once(' '));
    match bearer {
        Some((scheme, secret)) if scheme.eq_ignore_ascii_case("bearer") => Ok(Secret::from_text(secret)),
        _ => Err(Error::new(Code::Unauthenticated, "the authorization header is not \"Bearer TOKEN\"")),
    }
}

fn refuse(headers: &HeaderMap, error: Error) -> Response<Body> {
    let again = (error.code == Code::RateLimited).then_some(COME_BACK_AFTER);
    if is_grpc(headers) {
        return match again {
            Some(after) => status_after(error, after).into_http(),
            None => status(error).into_http(),
        };
    }
    let mut response = problem(&error).map(Body::new);
    if let Some(after) = again {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
    }
    response
}
