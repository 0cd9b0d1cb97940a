//! A connection of the one port: what it began with, and where it comes from.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
};
use tonic::transport::server::Connected;

/// So much of a connection is looked at to tell what it speaks.
const HEAD_BYTES: usize = 4;

pub trait Io: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Io for T {}

/// What comes in on the port.
pub trait Source: Io {
    /// Who is on the other side, if that is known.
    fn address(&self) -> Option<SocketAddr>;
}

impl Source for TcpStream {
    fn address(&self) -> Option<SocketAddr> {
        self.peer_addr().ok()
    }
}

/// Where a request comes from; in its extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Peer {
    pub address: Option<SocketAddr>,
    pub encrypted: bool,
    /// Showed a client certificate that the operator's authority signed.
    pub certified: bool,
}

/// A connection of which the beginning was looked at.
pub struct Begun<IO> {
    io: IO,
    head: [u8; HEAD_BYTES],
    read: usize,
    given: usize,
    peer: Peer,
    /// One of the connections that there may be.
    _place: Option<OwnedSemaphorePermit>,
}

impl<IO: AsyncRead + Unpin> Begun<IO> {
    pub fn new(io: IO, peer: Peer, place: Option<OwnedSemaphorePermit>) -> Self {
        Self { io, head: [0; HEAD_BYTES], read: 0, given: 0, peer, _place: place }
    }

    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// Reads until it is known whether it begins with this. `None`: it ended before.
    pub async fn begins_with(&mut self, text: &[u8]) -> Option<bool> {
        let wanted = &text[..text.len().min(HEAD_BYTES)];
        loop {
            let known = self.read.min(wanted.len());
            if self.head[..known] != wanted[..known] {
                return Some(false);
            }
            if known == wanted.len() {
                return Some(true);
            }
            match self.io.read(&mut self.head[self.read..wanted.len()]).await {
                Ok(0) | Err(_) => return None,
                Ok(read) => self.read += read,
            }
        }
    }
}

impl<IO> Connected for Begun<IO> {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer
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
