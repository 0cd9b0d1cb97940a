//! Secrets that are put into a session's requests. The session trusts this worker's authority, so that TLS to such a host ends
//! here; the host itself is verified as any client would. Every other host's TLS passes through untouched.
//!
//! A connection is for one host, and every request on it says so: in TLS, in its target and in its `Host`. Requests are read by
//! hyper and written anew, so that both sides agree where each ends. Nothing is followed: an answer that leads elsewhere goes to
//! the session, whose next connection is judged by its own name.

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use cooper_common::{
    limits::network::{CONNECT_MS_MAX, HEAD_BYTES_MAX, HEAD_MS_MAX, KEPT_MS_MAX},
    network,
};
use http_body_util::{Either, Full};
use hyper::{
    Method, Request, Response, StatusCode, Version,
    body::{Body as _, Incoming},
    client::conn::http1 as client,
    header::{self, HeaderMap, HeaderName, HeaderValue},
    server::conn::http1 as server,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{
    LazyConfigAcceptor,
    rustls::{pki_types::ServerName, server::Acceptor},
    server::TlsStream,
};

use super::{
    Proxy, Reason, Session,
    connection::{ALERT, ESTABLISHED, add},
    head::{Head, Kind},
    mask::{Mask, Masked},
};

/// Between the two ends of one connection, and of no concern to who is behind.
const OF_THE_CONNECTION: [HeaderName; 7] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
/// The same, without a name of their own there.
const OF_THE_CONNECTION_TOO: [&str; 2] = ["keep-alive", "proxy-connection"];

/// A header of a session's requests to one host.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Injection {
    pub host: String,
    pub port: u16,
    /// Not over TLS.
    pub plain: bool,
    pub header: String,
    /// Empty: there is none, and nothing goes to the host.
    pub value: String,
    pub secret: String,
}

impl std::fmt::Debug for Injection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Injection({}:{} {})", self.host, self.port, self.header)
    }
}

impl Injection {
    fn is_for(&self, host: &str, port: u16) -> bool {
        self.host == host && self.port == port
    }
}

/// Whether something is put into the requests of a connection; `Some(true)`: without TLS.
pub(super) fn wanted(session: &Session, head: &Head) -> Option<bool> {
    let inject = session.inject.borrow();
    let plain = inject.iter().find(|it| it.is_for(&head.host, head.port))?.plain;
    let fits = match head.kind {
        Kind::Connect => true,
        Kind::Tls => !plain,
        // What is not encrypted goes on without it, unless that was asked for.
        Kind::Absolute { .. } | Kind::Plain => plain,
    };
    fits.then_some(plain)
}

/// A connection to a host for which the session has secrets. `moved`: how much was carried, so that one on which nothing
/// moves is found.
pub(super) async fn serve(
    proxy: &Rc<Proxy>,
    session: &Rc<Session>,
    mut stream: TcpStream,
    head: &Head,
    mut begun: Vec<u8>,
    plain: bool,
    moved: &Rc<Cell<u64>>,
) {
    if head.kind == Kind::Connect {
        begun.drain(..head.consumed);
        if stream.write_all(ESTABLISHED).await.is_err() {
            return;
        }
    }
    let (read, write) = stream.into_split();
    let io = tokio::io::join(io::Cursor::new(begun).chain(read), write);
    let io = Counted { io, moved: Rc::clone(moved), session: Rc::clone(session) };
    let relay = Rc::new(Relay {
        proxy: Rc::clone(proxy),
        session: Rc::clone(session),
        host: head.host.clone(),
        port: head.port,
        plain,
        upstream: RefCell::default(),
    });
    // The next request of such a connection may be for anybody; one here is for one host.
    let keep = !matches!(head.kind, Kind::Absolute { .. });
    if plain {
        return relay.serve(io, keep).await;
    }
    let handshake = timeout(Duration::from_millis(HEAD_MS_MAX), relay.accept(io)).await;
    if let Ok(Some(io)) = handshake {
        relay.serve(io, keep).await;
    }
}

/// What lies between a client and one host.
struct Relay {
    proxy: Rc<Proxy>,
    session: Rc<Session>,
    host: String,
    port: u16,
    plain: bool,
    /// Requests follow one another: who sends one has it.
    upstream: RefCell<Option<Upstream>>,
}

struct Upstream {
    sender: client::SendRequest<Incoming>,
    driven: tokio::task::AbortHandle,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.driven.abort();
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

type Answer = Response<Either<Masked, Full<Bytes>>>;

impl Relay {
    /// Is the host to a client that speaks TLS and means this host.
    async fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, io: S) -> Option<TlsStream<S>> {
        let mut start = LazyConfigAcceptor::new(Acceptor::default(), io).await.ok()?;
        let named = start.client_hello().server_name().and_then(network::host);
        if named.as_deref() != Some(&self.host) {
            self.refuse(named.as_deref().unwrap_or_default(), Reason::Mismatch);
            let _ = start.io.write_all(ALERT).await;
            let _ = start.io.shutdown().await;
            return None;
        }
        let config = match self.proxy.server_for(&self.session, &self.host) {
            Ok(config) => config,
            Err(error) => {
                tracing::warn!(session = %self.session.id, host = %self.host, %error, "no certificate for a host");
                return None;
            }
        };
        start.into_stream(config).await.ok()
    }

    async fn serve(self: Rc<Self>, io: impl AsyncRead + AsyncWrite + Unpin, keep: bool) {
        let answer = service_fn(|request| {
            let relay = Rc::clone(&self);
            async move { Ok::<_, Infallible>(relay.answer(request).await) }
        });
        let served = server::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(Duration::from_millis(KEPT_MS_MAX))
            .max_buf_size(HEAD_BYTES_MAX)
            .half_close(true)
            .keep_alive(keep)
            .serve_connection(TokioIo::new(io), answer)
            .await;
        if let Err(error) = served {
            tracing::debug!(session = %self.session.id, host = %self.host, %error, "a connection with a secret ended");
        }
    }

    fn refuse(&self, host: &str, reason: Reason) {
        self.proxy.refuse(&self.session, host, self.port, reason);
    }

    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let (request, mask) = match self.filled(request) {
            Ok(filled) => filled,
            Err(refused) => return refused.answer(),
        };
        let is_head = request.method() == Method::HEAD;
        match self.ask(request).await {
            Some(answer) => passed_on(answer, mask, is_head),
            None => {
                let why = format!("{} port {} does not answer", self.host, self.port);
                Refusal { status: StatusCode::BAD_GATEWAY, why, reason: Reason::Unreachable }.answer()
            }
        }
    }

    /// The request as the host gets it, and what its answer must not say.
    fn filled(&self, request: Request<Incoming>) -> Result<(Request<Incoming>, Mask), Refusal> {
        let (head, body) = request.into_parts();
        let no = |status, why: &str, reason| Refusal { status, why: why.to_owned(), reason };
        let headers = &head.headers;
        let framed = |name| headers.get_all(name).iter().count();
        // Of the two the first wins, and is what is written; said several times it is not clear what was meant.
        let ways = framed(header::TRANSFER_ENCODING) + framed(header::CONTENT_LENGTH);
        if ways > 1 || head.method == Method::CONNECT {
            return Err(no(StatusCode::BAD_REQUEST, "that request has no clear end", Reason::Unreadable));
        }
        let usual = if self.plain { 80 } else { 443 };
        let is_here = |named: &str| {
            network::authority(named, Some(usual))
                .is_some_and(|(host, port)| host == self.host && port == self.port)
        };
        let mut named: Vec<&str> =
            headers.get_all(header::HOST).iter().map(|value| value.to_str().unwrap_or_default()).collect();
        let once = named.len() == 1;
        named.extend(head.uri.authority().map(|authority| authority.as_str()));
        if let Some(other) = named.iter().find(|named| !is_here(named)).copied().or((!once).then_some("")) {
            let other = network::authority(other, Some(usual)).map(|(host, _)| host).unwrap_or_default();
            self.refuse(&other, Reason::Mismatch);
            let why = "the request is for another host than its connection";
            return Err(no(StatusCode::MISDIRECTED_REQUEST, why, Reason::Mismatch));
        }
        // As it is now: the next request has the next value.
        let inject = self.session.inject.borrow();
        let inject: Vec<&Injection> = inject.iter().filter(|it| it.is_for(&self.host, self.port)).collect();
        let lacking = || {
            self.refuse(&self.host, Reason::Secret);
            no(StatusCode::FORBIDDEN, "the secret for this host is no more", Reason::Secret)
        };
        let mut own = HeaderMap::new();
        for it in &inject {
            let name = HeaderName::try_from(&*it.header).map_err(|_| lacking())?;
            let mut value = HeaderValue::try_from(&*it.value).map_err(|_| lacking())?;
            if value.is_empty() {
                return Err(lacking());
            }
            value.set_sensitive(true);
            own.insert(name, value);
        }
        if own.is_empty() {
            return Err(lacking());
        }
        let mut kept = without_the_connections(&head.headers);
        kept.remove(header::CONTENT_LENGTH);
        kept.remove(header::EXPECT);
        let shown =
            if self.port == usual { self.host.clone() } else { format!("{}:{}", self.host, self.port) };
        own.insert(header::HOST, HeaderValue::try_from(shown).map_err(|_| lacking())?);
        // What comes as it is can be looked through.
        own.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        for (name, value) in own {
            if let Some(name) = name {
                kept.insert(name, value);
            }
        }
        let target = match head.uri.path_and_query() {
            Some(target) if head.uri.path() != "*" => target.as_str(),
            _ if head.method == Method::OPTIONS => "*",
            _ => "/",
        };
        let mut request = Request::new(body);
        *request.uri_mut() = target
            .parse()
            .map_err(|_| no(StatusCode::BAD_REQUEST, "that request has no target", Reason::Unreadable))?;
        (*request.method_mut(), *request.headers_mut()) = (head.method, kept);
        Ok((request, Mask::new(inject.iter().map(|it| &*it.secret))))
    }

    /// Sends a request, once: only one that did not get away goes over another connection.
    async fn ask(&self, mut request: Request<Incoming>) -> Option<Response<Incoming>> {
        let kept = self.upstream.borrow_mut().take();
        if let Some(mut kept) = kept
            && kept.sender.ready().await.is_ok()
        {
            match kept.sender.try_send_request(request).await {
                Ok(answer) => {
                    *self.upstream.borrow_mut() = Some(kept);
                    return Some(answer);
                }
                Err(mut failed) => request = failed.take_message()?,
            }
        }
        let reached = timeout(Duration::from_millis(CONNECT_MS_MAX), self.reach()).await.ok().flatten();
        let mut fresh = reached?;
        let answer = fresh.sender.send_request(request).await.ok()?;
        *self.upstream.borrow_mut() = Some(fresh);
        Some(answer)
    }

    async fn reach(&self) -> Option<Upstream> {
        let reached = match self.proxy.rules.reach(&self.host, self.port, false).await {
            Ok(reached) => reached,
            Err(reason) => {
                if reason != Reason::Unreachable {
                    self.refuse(&self.host, reason);
                }
                return None;
            }
        };
        let stream: Box<dyn Stream> = match self.plain {
            true => Box::new(reached.stream),
            false => {
                let name = ServerName::try_from(self.host.clone()).ok()?;
                let tls = self.proxy.verifying().ok()?;
                let secured = tls.connect(name, reached.stream).await.inspect_err(|error| {
                    tracing::info!(session = %self.session.id, host = %self.host, %error, "TLS to a host failed");
                });
                Box::new(secured.ok()?)
            }
        };
        let (sender, driven) =
            client::Builder::new().max_buf_size(64 << 10).handshake(TokioIo::new(stream)).await.ok()?;
        let driven = tokio::task::spawn_local(async move {
            let _ = driven.await;
        });
        Some(Upstream { sender, driven: driven.abort_handle() })
    }
}

/// The headers that are for who is behind.
fn without_the_connections(headers: &HeaderMap) -> HeaderMap {
    let listed: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    let mut kept = headers.clone();
    for name in OF_THE_CONNECTION {
        kept.remove(name);
    }
    for name in OF_THE_CONNECTION_TOO.into_iter().chain(listed.iter().map(String::as_str)) {
        kept.remove(name);
    }
    kept
}

/// An answer as the session gets it.
fn passed_on(answer: Response<Incoming>, mask: Mask, is_head: bool) -> Answer {
    let (head, body) = answer.into_parts();
    let mut headers = without_the_connections(&head.headers);
    // Nothing was asked for that ends in another protocol.
    let status = match head.status {
        StatusCode::SWITCHING_PROTOCOLS => StatusCode::BAD_GATEWAY,
        status => status,
    };
    let has_no_body = is_head || status == StatusCode::NOT_MODIFIED;
    if !has_no_body || body.size_hint().exact().is_some_and(|length| length > 0) {
        headers.remove(header::CONTENT_LENGTH);
    }
    for value in headers.values_mut() {
        let masked = mask.whole(value.as_bytes());
        if masked != value.as_bytes() {
            *value = HeaderValue::from_bytes(&masked).unwrap_or(HeaderValue::from_static(""));
        }
    }
    let mut answer = Response::new(Either::Left(Masked::new(body, mask)));
    (*answer.status_mut(), *answer.headers_mut()) = (status, headers);
    *answer.version_mut() = Version::HTTP_11;
    answer
}

/// Why a request goes nowhere.
struct Refusal {
    status: StatusCode,
    why: String,
    reason: Reason,
}

impl Refusal {
    fn answer(self) -> Answer {
        let text = format!("cooper: {} ({})\n", self.why, self.reason.as_str());
        let mut answer = Response::new(Either::Right(Full::new(Bytes::from(text))));
        *answer.status_mut() = self.status;
        let headers = answer.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        headers.insert("x-cooper-refused", HeaderValue::from_static(self.reason.as_str()));
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        answer
    }
}

/// Counts what is read and written.
struct Counted<S> {
    io: S,
    moved: Rc<Cell<u64>>,
    session: Rc<Session>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buffer);
        let read = buffer.filled().len() - before;
        add(&self.moved, read);
        add(&self.session.used.sent, read);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, bytes);
        if let Poll::Ready(Ok(written)) = polled {
            add(&self.moved, written);
            add(&self.session.used.received, written);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
