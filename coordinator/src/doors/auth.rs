//! Nobody comes in without a token: one layer over the whole port puts the caller into each request, or answers it.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, header},
    middleware::Next,
    response::Response,
};
use cooper_common::{
    error::{Code, Error, Result},
    token::Secret,
};

use super::error::{problem, status};
use crate::{caller::Caller, tokens::Tokens};

/// What anybody may ask: whether it lives, and what the contract is.
const OPEN: [&str; 4] = ["/health", "/ready", "/grpc.health.v1.Health/", "/grpc.reflection."];

/// For `axum::middleware::from_fn_with_state(tokens, authenticate)`.
pub async fn authenticate(State(tokens): State<Arc<Tokens>>, mut request: Request, next: Next) -> Response {
    match caller_of(&tokens, request.headers()) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
        }
        Err(_) if is_open(request.uri().path()) => {}
        Err(error) => {
            metrics::counter!("cooper_auth_refused_total").increment(1);
            return refuse(&request, error);
        }
    }
    next.run(request).await
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

fn refuse(request: &Request, error: Error) -> Response {
    match is_grpc(request.headers()) {
        true => status(error).into_http(),
        false => problem(&error),
    }
}
