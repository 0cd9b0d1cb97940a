//! HTTP/1 on the one port, beside gRPC: a connection that does not begin as HTTP/2 does is served here, because what serves
//! gRPC lets none change its protocol, as websockets do.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::http::{Request, Response};
use futures::{Stream, StreamExt};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{body::Body, transport::server::Connected};
use tower::Service;

/// What HTTP/2 begins with, as far as no request of HTTP/1 does.
const PREFACE: [u8; 4] = *b"PRI ";
/// Until a connection, or the next request on it, has begun.
const HEAD_WITHIN: Duration = Duration::from_secs(30);
/// Connections that wait to be served as HTTP/2.
const SORTED_MAX: usize = 64;
/// After a connection could not be accepted: what lacks then (descriptors) does not come back at once.
const ACCEPT_AGAIN: Duration = Duration::from_millis(20);

/// A connection, and what was read of it.
pub struct Begun<IO> {
    io: IO,
    head: [u8; PREFACE.len()],
    given: usize,
    read: usize,
}

/// Serves what speaks HTTP/1 with `service`, until `stopped`; gives the rest.
pub fn sort<IO, S>(
    incoming: impl Stream<Item = io::Result<IO>> + Send + 'static,
    service: S,
    stopped: watch::Receiver<bool>,
) -> impl Stream<Item = io::Result<Begun<IO>>> + Send + 'static
where
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<Body>> + Clone + Send + Sync + 'static,
    S::Future: Send,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
{
    let (sorted, http2) = mpsc::channel(SORTED_MAX);
    tokio::spawn(async move {
        let mut incoming = std::pin::pin!(incoming);
        let mut stop = std::pin::pin!(told(stopped.clone()));
        loop {
            let next = tokio::select! {
                next = incoming.next() => next,
                () = &mut stop => break,
            };
            match next {
                None => break,
                Some(Err(error)) => {
                    tracing::debug!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
                Some(Ok(io)) => {
                    let (sorted, service, stopped) = (sorted.clone(), service.clone(), stopped.clone());
                    tokio::spawn(async move {
                        let Ok(Some((begun, http2))) = timeout(HEAD_WITHIN, begin(io)).await else { return };
                        match http2 {
                            // Nobody to take it: all of this ends.
                            true => drop(sorted.send(Ok(begun)).await),
                            false => serve(begun, service, stopped).await,
                        }
                    });
                }
            }
        }
    });
    ReceiverStream::new(http2)
}

/// Reads until it is known what the connection speaks. None: it ended before.
async fn begin<IO: AsyncRead + Unpin>(io: IO) -> Option<(Begun<IO>, bool)> {
    let mut begun = Begun { io, head: [0; PREFACE.len()], given: 0, read: 0 };
    while begun.read < PREFACE.len() {
        let read = begun.io.read(&mut begun.head[begun.read..]).await.ok()?;
        begun.read += read;
        if read == 0 {
            return None;
        }
        if begun.head[..begun.read] != PREFACE[..begun.read] {
            return Some((begun, false));
        }
    }
    Some((begun, true))
}

/// Until it is time to stop.
async fn told(mut stopped: watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stop| *stop).await;
}

async fn serve<IO, S>(begun: Begun<IO>, service: S, stopped: watch::Receiver<bool>)
where
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<Body>> + Clone + Send + Sync + 'static,
    S::Future: Send,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
{
    let from = begun.io.connect_info();
    let answer = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(from.clone());
        // Routes are always ready.
        service.clone().call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .serve_connection(TokioIo::new(begun), answer)
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

impl<IO: Connected> Connected for Begun<IO> {
    type ConnectInfo = IO::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.io.connect_info()
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Begun<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.given < this.read {
            let some = (this.read - this.given).min(buffer.remaining());
            buffer.put_slice(&this.head[this.given..this.given + some]);
            this.given += some;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.io).poll_read(context, buffer)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Begun<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
