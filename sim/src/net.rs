//! Connections of the simulated network, as tonic wants them.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use cooper_coordinator::doors::wire::Source;
use cooper_worker::link::{Connect, Wire};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::{Channel, Endpoint, Uri};
use turmoil::net::{TcpListener, TcpStream};

/// Name of the coordinator on the simulated network.
pub const COORDINATOR: &str = "coordinator";
pub const PORT: u16 = 50_051;

/// An accepted connection.
pub struct Connection(TcpStream);

impl Source for Connection {
    fn address(&self) -> Option<SocketAddr> {
        self.0.peer_addr().ok()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// What comes in on the coordinator's port.
pub async fn incoming() -> io::Result<impl futures::Stream<Item = io::Result<Connection>> + Send> {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).await?;
    Ok(futures::stream::unfold(listener, |listener| async {
        let accepted = listener.accept().await;
        Some((accepted.map(|(stream, _)| Connection(stream)), listener))
    }))
}

/// How a worker's link reaches the coordinator.
pub fn connect() -> Connect {
    Arc::new(|_| {
        Box::pin(async {
            let stream = TcpStream::connect((COORDINATOR, PORT)).await?;
            Ok(Box::new(stream) as Box<dyn Wire>)
        })
    })
}

/// How a client reaches the coordinator.
pub fn channel(endpoint: Endpoint) -> Channel {
    endpoint.connect_with_connector_lazy(tower::service_fn(|_: Uri| async {
        TcpStream::connect((COORDINATOR, PORT)).await.map(TokioIo::new)
    }))
}
