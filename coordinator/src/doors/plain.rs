//! What comes in on the one port, sorted: TLS is taken off, and a connection that does not begin as HTTP/2 does is served
//! here, as HTTP/1, because what serves gRPC lets none change its protocol, as websockets do.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::http::{Request, Response};
use cooper_common::limits::door;
use futures::{Stream, StreamExt};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::AsyncWriteExt,
    sync::{Semaphore, mpsc, watch},
    task::AbortHandle,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{body::Body, transport::server::Connected};
use tower::Service;

use super::{
    tls::Tls,
    wire::{Begun, Io, Peer, Source},
};

/// What HTTP/2 begins with, as far as no request of HTTP/1 does.
const PREFACE: &[u8] = b"PRI ";
/// What TLS begins with, as no request does.
const HANDSHAKE: &[u8] = &[0x16];
/// For those who ask without TLS where there is nothing without.
const WANTS_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n\
    This port speaks TLS: ask https://\n";
/// Connections that wait to be served as HTTP/2.
const SORTED_MAX: usize = 64;
/// After a connection could not be accepted: what lacks then (descriptors) does not come back at once.
const ACCEPT_AGAIN: Duration = Duration::from_millis(20);

/// A connection that is served.
pub type Wire = Begun<Box<dyn Io>>;

/// Serves what speaks HTTP/1 with `service`, until `stopped`; gives the rest.
pub fn sort<IO, S>(
    incoming: impl Stream<Item = io::Result<IO>> + Send + 'static,
    tls: Option<Arc<Tls>>,
    service: S,
    stopped: watch::Receiver<bool>,
) -> impl Stream<Item = io::Result<Wire>> + Send + 'static
where
    IO: Source,
    S: Service<Request<Incoming>, Response = Response<Body>> + Clone + Send + Sync + 'static,
    S::Future: Send,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
{
    let (sorted, http2) = mpsc::channel(SORTED_MAX);
    tokio::spawn(async move {
        let mut incoming = std::pin::pin!(incoming);
        let mut stop = std::pin::pin!(told(stopped.clone()));
        let places = Arc::new(Semaphore::new(door::CONNECTIONS_MAX));
        let beginning = Arc::new(Beginning::default());
        loop {
            let next = tokio::select! {
                next = incoming.next() => next,
                () = &mut stop => break,
            };
            let io = match next {
                None => break,
                Some(Err(error)) => {
                    tracing::debug!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                    continue;
                }
                Some(Ok(io)) => io,
            };
            let Ok(place) = places.clone().try_acquire_owned() else {
                metrics::counter!("cooper_connections_refused_total").increment(1);
                continue;
            };
            let peer = Peer { address: io.address(), ..Peer::default() };
            let begun = Begun::new(io, peer, Some(place));
            let (sorted, service, stopped) = (sorted.clone(), service.clone(), stopped.clone());
            let (tls, waits) = (tls.clone(), beginning.clone());
            beginning.enter(|number| {
                let task = async move {
                    let began = timeout(Duration::from_millis(door::BEGIN_MS_MAX), begin(begun, tls)).await;
                    waits.leave(number);
                    match began {
                        // Nobody to take it: all of this ends.
                        Ok(Some((wire, true))) => drop(sorted.send(Ok(wire)).await),
                        Ok(Some((wire, false))) => serve(wire, service, stopped).await,
                        Ok(None) | Err(_) => {}
                    }
                };
                tokio::spawn(task).abort_handle()
            });
        }
    });
    ReceiverStream::new(http2)
}

/// Connections of which nobody knows yet what they speak. When there are too many the oldest goes: whoever means well has
/// said it long before, and whoever says nothing keeps nobody out.
#[derive(Default)]
struct Beginning {
    /// By the order in which they came, with the next number.
    waiting: Mutex<(u64, BTreeMap<u64, AbortHandle>)>,
}

impl Beginning {
    fn enter(&self, start: impl FnOnce(u64) -> AbortHandle) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let (next, connections) = &mut *waiting;
        if connections.len() >= door::BEGINNING_MAX
            && let Some((_, oldest)) = connections.pop_first()
        {
            oldest.abort();
            metrics::counter!("cooper_connections_refused_total").increment(1);
        }
        // The task cannot leave before it is entered: it waits for the lock.
        connections.insert(*next, start(*next));
        *next += 1;
    }

    fn leave(&self, number: u64) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).1.remove(&number);
    }
}

/// Takes TLS off, and reads until it is known what the connection speaks: true for HTTP/2. None: it ended before.
async fn begin<IO: Io>(mut begun: Begun<IO>, tls: Option<Arc<Tls>>) -> Option<(Wire, bool)> {
    let peer = begun.peer();
    let Some(tls) = tls else {
        let http2 = begun.begins_with(PREFACE).await?;
        return Some((Begun::new(Box::new(begun) as Box<dyn Io>, peer, None), http2));
    };
    if !begun.begins_with(HANDSHAKE).await? {
        let _ = begun.write_all(WANTS_TLS).await;
        let _ = begun.shutdown().await;
        return None;
    }
    let secured = tls.accept(begun).await.inspect_err(|error| {
        metrics::counter!("cooper_tls_failed_total").increment(1);
        tracing::debug!(%error, peer = ?peer.address, "no TLS with a connection");
    });
    let secured = secured.ok()?;
    let certified = secured.get_ref().1.peer_certificates().is_some();
    let peer = Peer { encrypted: true, certified, ..peer };
    let mut wire = Begun::new(Box::new(secured) as Box<dyn Io>, peer, None);
    let http2 = wire.begins_with(PREFACE).await?;
    Some((wire, http2))
}

/// Until it is time to stop.
async fn told(mut stopped: watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stop| *stop).await;
}

async fn serve<S>(wire: Wire, service: S, stopped: watch::Receiver<bool>)
where
    S: Service<Request<Incoming>, Response = Response<Body>> + Clone + Send + Sync + 'static,
    S::Future: Send,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
{
    let peer = wire.connect_info();
    let answer = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        // Routes are always ready.
        service.clone().call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(door::HEAD_MS_MAX))
        .max_buf_size(door::HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(wire), answer)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = told(stopped.clone()) => {
            connection.as_mut().graceful_shutdown();
            (&mut connection).await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}
