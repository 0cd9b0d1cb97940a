//! Errors at the doors: one code, message and hint, as a gRPC status or as an HTTP problem.

use std::{collections::HashMap, time::Duration};

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use cooper_common::error::{Code, Error, Kind};
use serde_json::json;
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt};

/// `ErrorInfo.domain` of every error of ours.
pub const DOMAIN: &str = "cooper";
const HINT: &str = "hint";

/// As gRPC tells it: `google.rpc.ErrorInfo` with the code as its reason and the hint in its metadata.
pub fn status(error: Error) -> Status {
    let details = details(&error);
    Status::with_error_details(grpc_code(error.code.kind()), error.message, details)
}

/// The same, with the time after which asking again makes sense.
pub fn status_after(error: Error, after: Duration) -> Status {
    let mut details = details(&error);
    details.set_retry_info(Some(after));
    Status::with_error_details(grpc_code(error.code.kind()), error.message, details)
}

pub(super) fn details(error: &Error) -> ErrorDetails {
    let metadata = HashMap::from([(HINT.to_owned(), error.hint().to_owned())]);
    ErrorDetails::with_error_info(error.code.as_str(), DOMAIN, metadata)
}

/// What a status of Cooper's said. One that is not of Cooper's becomes the nearest code.
pub fn from_status(status: &Status) -> Error {
    if let Some(info) = status.get_details_error_info()
        && info.domain == DOMAIN
        && let Some(code) = Code::parse(&info.reason)
    {
        let hint = info.metadata.get(HINT).filter(|hint| *hint != code.hint());
        return Error::new(code, status.message()).with_hint(hint.cloned().unwrap_or_default());
    }
    let code = match status.code() {
        tonic::Code::InvalidArgument | tonic::Code::OutOfRange => Code::InvalidArgument,
        tonic::Code::Unauthenticated => Code::Unauthenticated,
        tonic::Code::PermissionDenied => Code::Forbidden,
        tonic::Code::ResourceExhausted => Code::Overloaded,
        tonic::Code::Unavailable => Code::Unavailable,
        tonic::Code::DeadlineExceeded => Code::TimedOut,
        tonic::Code::Cancelled => Code::Cancelled,
        tonic::Code::Unimplemented => Code::ProtocolVersion,
        _ => Code::Internal,
    };
    Error::new(code, status.message())
}

/// As HTTP tells it: RFC 9457, with our code and hint beside the standard's members.
pub fn problem(error: &Error) -> Response {
    problem_as(http_status(error.code.kind()), error)
}

/// The same under a status that says more than the code's kind.
pub fn problem_as(status: StatusCode, error: &Error) -> Response {
    let body = Json(json!({
        "type": "about:blank",
        "title": status.canonical_reason().unwrap_or_default(),
        "status": status.as_u16(),
        "code": error.code.as_str(),
        "detail": error.message,
        "message": error.message,
        "hint": error.hint(),
    }));
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"cooper\""));
    }
    response
}

const fn grpc_code(kind: Kind) -> tonic::Code {
    match kind {
        Kind::Invalid => tonic::Code::InvalidArgument,
        Kind::NotFound => tonic::Code::NotFound,
        Kind::Conflict => tonic::Code::FailedPrecondition,
        Kind::Unauthenticated => tonic::Code::Unauthenticated,
        Kind::Forbidden => tonic::Code::PermissionDenied,
        Kind::Exhausted => tonic::Code::ResourceExhausted,
        Kind::Unavailable => tonic::Code::Unavailable,
        Kind::Timeout => tonic::Code::DeadlineExceeded,
        Kind::Internal => tonic::Code::Internal,
    }
}

const fn http_status(kind: Kind) -> StatusCode {
    match kind {
        Kind::Invalid => StatusCode::BAD_REQUEST,
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::Conflict => StatusCode::CONFLICT,
        Kind::Unauthenticated => StatusCode::UNAUTHORIZED,
        Kind::Forbidden => StatusCode::FORBIDDEN,
        Kind::Exhausted => StatusCode::TOO_MANY_REQUESTS,
        Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Kind::Timeout => StatusCode::GATEWAY_TIMEOUT,
        Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_comes_back_from_a_status_as_it_went() {
        for code in Code::ALL {
            for error in [Error::new(*code, "what"), Error::new(*code, "what").with_hint("do this")] {
                assert_eq!(from_status(&status(error.clone())), error);
            }
        }
    }

    #[test]
    fn a_foreign_status_becomes_the_nearest_code() {
        assert_eq!(from_status(&Status::unavailable("gone")).code, Code::Unavailable);
        assert_eq!(from_status(&Status::data_loss("?")).code, Code::Internal);
    }

    #[tokio::test]
    async fn a_problem_says_code_message_and_hint() {
        let response = problem(&Error::new(Code::Unauthenticated, "no token was given"));
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert!(response.headers().contains_key(header::WWW_AUTHENTICATE));
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 16).await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!((&body["code"], &body["status"]), (&json!("unauthenticated"), &json!(401)));
        assert!(body["hint"].as_str().unwrap().contains("COOPER_TOKEN"));
    }
}
