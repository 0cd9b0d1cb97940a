//! The link's end of what connects it with its host: `ToLink` in, `ToHost` out, never blocking.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use cooper_proto::host::{ToHost, ToLink, to_host, to_link};
use prost::Message as _;
use tokio::{io::Interest, net::UnixDatagram};

use crate::frame::{self, Buffer};

/// A host as its link reaches it. Messages arrive in order, whole, and with their descriptors.
pub trait Host {
    /// The next message and its descriptors; `None`: the host is gone. Messages this link does not know are skipped.
    /// Cancelling loses nothing. `buffer` is room for one packet.
    fn recv(
        &self,
        buffer: &mut Buffer,
    ) -> impl Future<Output = io::Result<Option<(to_link::Message, Vec<OwnedFd>)>>> + Send;

    /// Sends a message; gives it back when there is no room just now.
    fn try_send(&self, message: to_host::Message) -> io::Result<Result<(), to_host::Message>>;

    /// Room to send, probably.
    fn writable(&self) -> impl Future<Output = io::Result<()>> + Send;
}

/// tokio has no type for SOCK_SEQPACKET. Its datagram socket serves: readiness is the same, and nothing is read or
/// written by it, only by `frame`.
pub struct HostSocket(UnixDatagram);

impl HostSocket {
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Self(UnixDatagram::from_std(socket.into())?))
    }
}

impl Host for HostSocket {
    async fn recv(&self, buffer: &mut Buffer) -> io::Result<Option<(to_link::Message, Vec<OwnedFd>)>> {
        loop {
            let packet = self.0.async_io(Interest::READABLE, || {
                let Some((body, fds)) = frame::recv(self.0.as_fd(), buffer)? else { return Ok(None) };
                let decoded =
                    ToLink::decode(&*body).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
                Ok(Some((decoded.message, fds)))
            });
            match packet.await? {
                Some((Some(message), fds)) => return Ok(Some((message, fds))),
                Some((None, _)) => {}
                None => return Ok(None),
            }
        }
    }

    fn try_send(&self, message: to_host::Message) -> io::Result<Result<(), to_host::Message>> {
        let message = ToHost { message: Some(message) };
        match self.0.try_io(Interest::WRITABLE, || frame::send(self.0.as_fd(), &message, &[])) {
            Ok(()) => Ok(Ok(())),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => message.message.map(Err).ok_or(e),
            Err(e) => Err(e),
        }
    }

    async fn writable(&self) -> io::Result<()> {
        self.0.writable().await
    }
}
