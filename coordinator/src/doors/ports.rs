//! `/sessions/SESSION/ports/PORT/…`: HTTP and websockets to what a session listens on.
//!
//! A request is let in by the token in its `Authorization` header and by nothing else: no cookie and no URL ever stands for
//! a token, so that a page of a session that a browser shows has nothing that it could act with. The header is taken off
//! before the session sees the request.

use std::{net::IpAddr, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header,
        uri::{PathAndQuery, Uri},
    },
    response::{IntoResponse, Response},
    routing::any,
};
use cooper_common::error::{Code, Error, Result};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use super::{
    error::{problem, problem_as},
    wire::Peer,
};
use crate::{audit::Audit, caller::Caller, cluster::Cluster, ports};

/// What is behind these paths.
#[derive(Clone)]
struct Door {
    cluster: Arc<Cluster>,
    audit: Arc<Audit>,
}

pub fn router(cluster: Arc<Cluster>, audit: Arc<Audit>) -> Router {
    let port = "/sessions/{session}/ports/{port}";
    Router::new()
        .route(port, any(serve))
        .route(&format!("{port}/"), any(serve))
        .route(&format!("{port}/{{*rest}}"), any(serve))
        .with_state(Door { cluster, audit })
}

/// What the audit trail calls a request here: as the call that leads to a port.
const ACTION: &str = "Sessions/ForwardPort";
/// Headers of one connection, which go no further.
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
const KEEP_ALIVE: &str = "keep-alive";
/// What a server says about its host as a whole: the host is the coordinator.
const OF_THE_HOST: [&str; 5] =
    ["strict-transport-security", "clear-site-data", "alt-svc", "service-worker-allowed", "public-key-pins"];
/// A page has an origin of its own, whatever else came from this host: it reads nothing of the coordinator's.
const SANDBOX: HeaderValue =
    HeaderValue::from_static("sandbox allow-downloads allow-forms allow-modals allow-popups allow-scripts");
const SHOWN_BYTES: usize = 200;

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
struct Target<'a> {
    session: &'a str,
    port: &'a str,
    /// From the slash behind the port on; empty where there is none.
    rest: &'a str,
}

impl<'a> Target<'a> {
    fn of(path: &'a str) -> Option<Self> {
        let (session, path) = path.strip_prefix("/sessions/")?.split_once('/')?;
        let path = path.strip_prefix("ports/")?;
        let (port, rest) = path.split_at(path.find('/').unwrap_or(path.len()));
        (!session.is_empty() && !port.is_empty()).then_some(Self { session, port, rest })
    }
}

async fn serve(State(door): State<Door>, request: Request) -> Response {
    let caller = request.extensions().get::<Caller>().cloned();
    let session = Target::of(request.uri().path()).map(|target| target.session.to_owned());
    passed_on(&door.cluster, request).await.unwrap_or_else(|error| {
        if let Some(caller) = caller {
            let session = session.unwrap_or_default();
            super::audit::failed(&door.audit, &caller, ACTION, &session, &error);
        }
        match error.code {
            Code::PortNotOpen | Code::PortFailed => problem_as(StatusCode::BAD_GATEWAY, &error),
            _ => problem(&error),
        }
    })
}

async fn passed_on(cluster: &Arc<Cluster>, mut request: Request) -> Result<Response> {
    let nobody = || Error::new(Code::Unauthenticated, "no token was given");
    let caller = request.extensions().get::<Caller>().cloned().ok_or_else(nobody)?;
    caller.require_client()?;
    let path = request.uri().path().to_owned();
    let Some(target) = Target::of(&path) else {
        let shown: String = path.chars().take(SHOWN_BYTES).collect();
        let what = format!("there is nothing at {shown}");
        return Err(Error::invalid(what).with_hint("a port of a session is at /sessions/SESSION/ports/PORT/"));
    };
    let port = target.port.parse().map_err(|_| Error::invalid(format!("{:?} is no port", target.port)))?;
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    if target.rest.is_empty() && matches!(*request.method(), Method::GET | Method::HEAD) {
        // What is relative in a page would otherwise lead elsewhere.
        return Ok(
            (StatusCode::PERMANENT_REDIRECT, [(header::LOCATION, format!("{path}/{query}"))]).into_response()
        );
    }
    let (connection, place) = ports::connect(cluster, &caller, target.session, port).await?;
    let place = Arc::new(place);
    let failed = |error: hyper::Error| {
        let what = format!("port {port} of session {} gave no answer in HTTP: {error}", target.session);
        Error::new(Code::PortFailed, what)
    };
    let (mut sender, driven) = http1::handshake(TokioIo::new(connection)).await.map_err(failed)?;
    let held = place.clone();
    tokio::spawn(async move {
        let _held = held;
        // Whoever waits for the answer is told.
        let _ = driven.with_upgrades().await;
    });

    let upgrade = wanted_upgrade(&request);
    let theirs = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    let rest = if target.rest.is_empty() { "/" } else { target.rest };
    let at = PathAndQuery::try_from(format!("{rest}{query}"))
        .map_err(|_| Error::invalid("the path is none of HTTP"))?;
    let prefix = format!("/sessions/{}/ports/{port}", target.session);
    let request = towards(request, Uri::from(at), &prefix, port, upgrade.as_ref());
    let mut response = sender.send_request(request).await.map_err(failed)?;

    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let (Some(theirs), Some(protocol)) = (theirs, upgrade) else {
            let what = "the session's server changed to another protocol, which nobody asked for";
            return Err(Error::new(Code::PortFailed, what));
        };
        let ours = hyper::upgrade::on(&mut response);
        tokio::spawn(async move {
            let _place = place;
            if let Ok((theirs, ours)) = tokio::try_join!(theirs, ours) {
                // Until both are done, or one is gone.
                let both = (&mut TokioIo::new(theirs), &mut TokioIo::new(ours));
                let _ = tokio::io::copy_bidirectional(both.0, both.1).await;
            }
        });
        let mut switched = back(response.map(|_| Body::empty()));
        switched.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        switched.headers_mut().insert(header::UPGRADE, protocol);
        return Ok(switched);
    }
    Ok(back(response.map(Body::new)))
}

/// To which protocol the client wants to change on its connection.
fn wanted_upgrade(request: &Request) -> Option<HeaderValue> {
    let asked = request.headers().get_all(header::CONNECTION).iter().any(|value| {
        value.to_str().is_ok_and(|text| text.split(',').any(|it| it.trim().eq_ignore_ascii_case("upgrade")))
    });
    let protocol = request.headers().get(header::UPGRADE).cloned();
    protocol.filter(|_| asked && request.version() == Version::HTTP_11)
}

/// The request as the session gets it.
fn towards(
    request: Request,
    uri: Uri,
    prefix: &str,
    port: u32,
    upgrade: Option<&HeaderValue>,
) -> hyper::Request<Body> {
    let (mut parts, body) = request.into_parts();
    let peer = parts.extensions.get::<Peer>().copied().unwrap_or_default();
    let host = parts.headers.get(header::HOST).cloned().or_else(|| {
        let authority = parts.uri.authority()?;
        HeaderValue::from_str(authority.as_str()).ok()
    });
    strip(&mut parts.headers);
    let headers = &mut parts.headers;
    headers.remove(header::AUTHORIZATION);
    headers.remove(header::FORWARDED);
    // The body goes as it comes; nobody has to be asked for it first.
    headers.remove(header::EXPECT);
    let tls = peer.encrypted || headers.get("x-forwarded-proto").is_some_and(|it| it == "https");
    let forwarded: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("x-forwarded-")).cloned().collect();
    for name in forwarded {
        headers.remove(name);
    }
    let mut tell = |name: &'static str, value: String| {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    tell("x-forwarded-prefix", prefix.to_owned());
    tell("x-forwarded-proto", if tls { "https" } else { "http" }.to_owned());
    if let Some(from) = peer.address {
        let ip: IpAddr = from.ip();
        tell("x-forwarded-for", ip.to_canonical().to_string());
    }
    match host {
        Some(host) => {
            headers.insert("x-forwarded-host", host.clone());
            headers.insert(header::HOST, host);
        }
        None => tell("host", format!("localhost:{port}")),
    }
    if let Some(protocol) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol.clone());
    }
    let mut towards = hyper::Request::new(body);
    (*towards.method_mut(), *towards.uri_mut(), *towards.headers_mut()) = (parts.method, uri, parts.headers);
    towards
}

/// The answer as the client gets it.
fn back(mut response: Response) -> Response {
    let headers = response.headers_mut();
    strip(headers);
    for name in OF_THE_HOST {
        headers.remove(name);
    }
    headers.append(header::CONTENT_SECURITY_POLICY, SANDBOX);
    // Of the session's connection; the client's own decides.
    *response.version_mut() = Version::HTTP_11;
    response
}

/// Takes off what belongs to one connection, also what the message itself says does.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
    headers.remove(KEEP_ALIVE);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_a_session_a_port_and_what_is_asked_of_it() {
        let target = |session, port, rest| Some(Target { session, port, rest });
        assert_eq!(Target::of("/sessions/s/ports/80/a%2F/b"), target("s", "80", "/a%2F/b"));
        assert_eq!(Target::of("/sessions/s/ports/80"), target("s", "80", ""));
        assert_eq!(Target::of("/sessions/s/ports/80//"), target("s", "80", "//"));
        for none in ["/sessions/s", "/sessions/s/port/80", "/sessions//ports/80", "/sessions/s/ports/"] {
            assert_eq!(Target::of(none), None, "{none}");
        }
    }

    #[test]
    fn neither_the_token_nor_what_is_of_one_connection_gets_to_the_session() {
        let request = Request::builder()
            .uri("http://here/sessions/s/ports/80/x?y=1")
            .header("authorization", "Bearer secret")
            .header("proxy-authorization", "Bearer secret")
            .header("connection", "keep-alive, x-mine")
            .header("x-mine", "1")
            .header("te", "trailers")
            .header("transfer-encoding", "chunked")
            .header("x-forwarded-for", "6.6.6.6")
            .header("x-forwarded-user", "root")
            .header("forwarded", "for=6.6.6.6")
            .header("accept", "text/html")
            .body(Body::empty())
            .unwrap();
        let sent = towards(request, Uri::from_static("/x?y=1"), "/sessions/s/ports/80", 80, None);
        let mut names: Vec<_> = sent.headers().keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        let expected = ["accept", "host", "x-forwarded-host", "x-forwarded-prefix", "x-forwarded-proto"];
        assert_eq!(names, expected);
        assert!(!format!("{sent:?}").contains("secret"));
        assert_eq!(
            (sent.uri(), sent.headers()["host"].as_bytes()),
            (&Uri::from_static("/x?y=1"), &b"here"[..])
        );
    }

    #[test]
    fn an_answer_says_nothing_of_the_host_as_a_whole() {
        let answer = Response::builder()
            .header("strict-transport-security", "max-age=1")
            .header("connection", "close")
            .header("content-security-policy", "default-src 'self'")
            .body(Body::empty())
            .unwrap();
        let answer = back(answer);
        let policies: Vec<_> = answer.headers().get_all("content-security-policy").iter().collect();
        assert_eq!((answer.headers().len(), policies.len()), (2, 2));
        assert!(policies[1].to_str().unwrap().starts_with("sandbox"));
    }
}
