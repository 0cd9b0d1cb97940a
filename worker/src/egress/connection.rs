//! One connection of a session: what it wants, whether it may, and then bytes both ways until somebody ends it.

use std::{cell::Cell, net::TcpStream as StdStream, rc::Rc, time::Duration};

use cooper_common::{
    limits::network::{CONNECT_MS_MAX, HEAD_BYTES_MAX, HEAD_MS_MAX, IDLE_MS_MAX},
    network::{Policy, Reach},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    time::timeout,
};

use super::{
    Proxy, Reason, Session,
    dial::Reached,
    head::{self, Head, Kind, Parsed},
    index, inject, pip,
};

const COPY_BYTES: usize = 16 << 10;
/// How often an idle connection is looked for.
const IDLE_LOOKS: u64 = 4;
/// TLS: fatal, access denied.
pub(super) const ALERT: &[u8] = &[0x15, 3, 3, 0, 2, 2, 49];
pub(super) const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

pub(super) async fn serve(proxy: Rc<Proxy>, session: &Rc<Session>, stream: StdStream) {
    let Ok(mut client) = TcpStream::from_std(stream) else { return };
    // Before anything is decided by it: a change meanwhile must not be missed.
    let mut policy = session.policy.subscribe();
    let mut begun = Vec::new();
    let read = timeout(Duration::from_millis(HEAD_MS_MAX), beginning(&mut client, &mut begun)).await;
    let head = match read {
        Ok(Some(head)) => head,
        // A connection that is opened and says nothing is no attempt at anything.
        _ if begun.is_empty() => return,
        _ => return proxy.refuse(session, "", 0, Reason::Unreadable),
    };
    if head.host == pip::HOST {
        return pip::serve(&proxy, session, client, begun).await;
    }
    if let Some(number) = index::number(&head.host) {
        return index::serve(&proxy, session, client, &begun, number).await;
    }
    let now = policy.borrow_and_update().clone();
    let judged = proxy.judge(&now, &head.host, head.port);
    let refused = |policy: &Policy| proxy.judge(policy, &head.host, head.port).is_err();
    if judged.is_ok()
        && let Some(plain) = inject::wanted(session, &head)
    {
        add(&session.used.connects, 1);
        let moved = Rc::new(Cell::new(0));
        let served = inject::serve(&proxy, session, client, &head, begun, plain, &moved);
        return watched(served, || moved.get(), &mut policy, refused).await;
    }
    let reached = match judged {
        Err(reason) => Err(reason),
        Ok(()) => {
            let plain = matches!(head.kind, Kind::Absolute { .. });
            let reach = proxy.rules.reach(&head.host, head.port, plain);
            timeout(Duration::from_millis(CONNECT_MS_MAX), reach).await.unwrap_or(Err(Reason::Unreachable))
        }
    };
    let Reached { stream: mut server, via_proxy } = match reached {
        Ok(reached) => reached,
        Err(reason) => {
            if reason != Reason::Unreachable {
                proxy.refuse(session, &head.host, head.port, reason);
            }
            return say_no(&mut client, &head, reason).await;
        }
    };
    add(&session.used.connects, 1);
    let begin = async {
        let request = match &head.kind {
            Kind::Connect => {
                client.write_all(ESTABLISHED).await?;
                Vec::new()
            }
            Kind::Absolute { request } => match &via_proxy {
                Some(authorization) => request.to_proxy(authorization),
                None => request.to_server(),
            },
            Kind::Plain | Kind::Tls => Vec::new(),
        };
        server.write_all(&request).await?;
        add(&session.used.sent, request.len() + begun.len() - head.consumed);
        server.write_all(&begun[head.consumed..]).await
    };
    if begin.await.is_ok() {
        drop(begun);
        tunnel(client, server, session, &mut policy, refused).await;
    }
}

impl Proxy {
    /// Whether a policy allows a host, whatever its address turns out to be.
    fn judge(&self, policy: &Policy, host: &str, port: u16) -> Result<(), Reason> {
        if self.index.iter().any(|place| place.is(host, port)) {
            return Ok(());
        }
        match policy.reach {
            Reach::None => Err(Reason::None),
            _ if !policy.has_host(host) => Err(Reason::Domain),
            _ if !policy.has_port(port) => Err(Reason::Port),
            Reach::Public | Reach::Hosts(_) => Ok(()),
        }
    }
}

/// Reads until it is known what the connection is for. None: it ended before, or never says.
async fn beginning(client: &mut TcpStream, begun: &mut Vec<u8>) -> Option<Head> {
    loop {
        match head::parse(begun) {
            Parsed::Head(head) => return Some(head),
            Parsed::Unreadable => return None,
            Parsed::More => {}
        }
        let room = HEAD_BYTES_MAX - begun.len();
        let read = (&mut *client).take(room as u64).read_buf(begun).await.ok()?;
        if read == 0 {
            return None;
        }
    }
}

async fn say_no(client: &mut TcpStream, head: &Head, reason: Reason) {
    let answer = match head.kind {
        Kind::Tls => ALERT.to_vec(),
        Kind::Connect | Kind::Absolute { .. } | Kind::Plain => {
            let status = if reason == Reason::Unreachable { "502 Bad Gateway" } else { "403 Forbidden" };
            let text = format!(
                "cooper: the session's network policy refuses {} port {} ({})\n",
                head.host,
                head.port,
                reason.as_str()
            );
            let text = match reason {
                Reason::Unreachable => format!("cooper: {} port {} does not answer\n", head.host, head.port),
                _ => text,
            };
            format!(
                "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nX-Cooper-Refused: {}\r\n\
                 Connection: close\r\n\r\n{text}",
                text.len(),
                reason.as_str()
            )
            .into_bytes()
        }
    };
    if client.write_all(&answer).await.is_err() || client.shutdown().await.is_err() {
        return;
    }
    // What it still sends is read: a reset would take the answer away from it.
    let rest = async {
        let mut rest = [0; 1024];
        let mut total = 0;
        while let Ok(read) = client.read(&mut rest).await {
            total += read;
            if read == 0 || total > HEAD_BYTES_MAX {
                break;
            }
        }
    };
    let _ = timeout(Duration::from_secs(1), rest).await;
}

/// Carries bytes both ways, until both are done.
async fn tunnel(
    mut client: TcpStream,
    mut server: TcpStream,
    session: &Session,
    policy: &mut watch::Receiver<Policy>,
    refused: impl Fn(&Policy) -> bool,
) {
    let moved = Cell::new(0);
    let used = &session.used;
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let both = async {
        tokio::join!(
            carry(from_client, to_server, [&moved, &used.sent]),
            carry(from_server, to_client, [&moved, &used.received])
        );
    };
    watched(both, || moved.get(), policy, refused).await;
}

/// Does its work until it is done, nothing moves for too long, or the policy says no.
async fn watched(
    work: impl Future<Output = ()>,
    moved: impl Fn() -> u64,
    policy: &mut watch::Receiver<Policy>,
    refused: impl Fn(&Policy) -> bool,
) {
    tokio::pin!(work);
    let mut looks = tokio::time::interval(Duration::from_millis(IDLE_MS_MAX / IDLE_LOOKS));
    let (mut before, mut still) = (0, 0);
    loop {
        tokio::select! {
            () = &mut work => return,
            changed = policy.changed() => {
                if changed.is_err() || refused(&policy.borrow_and_update()) {
                    return;
                }
            }
            _ = looks.tick() => {
                let now = moved();
                still = if now == before { still + 1 } else { 0 };
                before = now;
                if still > IDLE_LOOKS {
                    return;
                }
            }
        }
    }
}

pub(super) fn add(count: &Cell<u64>, bytes: usize) {
    count.set(count.get().saturating_add(bytes as u64));
}

async fn carry(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, counts: [&Cell<u64>; 2]) {
    let mut piece = vec![0; COPY_BYTES];
    loop {
        match from.read(&mut piece).await {
            Ok(0) | Err(_) => break,
            Ok(read) => {
                counts.iter().for_each(|count| add(count, read));
                if to.write_all(&piece[..read]).await.is_err() {
                    break;
                }
            }
        }
    }
    let _ = to.shutdown().await;
}
