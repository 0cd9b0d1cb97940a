//! Framing of the SOCK_SEQPACKET pairs of a worker: one packet is one message; large bodies travel in a sealed memfd.
//!
//! A packet is a flag byte and a body. Flag bit 0: the body is not in the packet but in the memfd that is the LAST
//! descriptor. The same framing carries protobuf (host and link) and JSON (host and interpreter). Nothing here blocks
//! longer than the socket does: on a non-blocking socket every call may answer `WouldBlock`.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use cooper_common::limits::link::MESSAGE_BYTES_MAX;
use rustix::{
    fs::{MemfdFlags, SealFlags},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
        SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    },
};

/// Larger bodies go into a memfd.
pub const PACKET_BODY_BYTES_MAX: usize = 60 << 10;
/// Descriptors one message carries, the memfd of its body not counted.
pub const DESCRIPTORS_MAX: usize = 8;

const IN_MEMFD: u8 = 1;
/// A memfd may only be believed when its content can no longer change under the reader.
const SEALS: SealFlags = SealFlags::WRITE.union(SealFlags::SHRINK).union(SealFlags::GROW);

/// A fresh socket pair; both ends close on exec, neither is non-blocking.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends one message and duplicates of `fds`. `WouldBlock` means that nothing was sent.
pub fn send(socket: impl AsFd, message: &impl prost::Message, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    send_bytes(socket, &message.encode_to_vec(), fds)
}

/// Like [`send`] for a body that is encoded already.
pub fn send_bytes(socket: impl AsFd, body: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if body.len() > MESSAGE_BYTES_MAX || fds.len() > DESCRIPTORS_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "message too large for the host protocol"));
    }
    if body.len() <= PACKET_BODY_BYTES_MAX {
        return send_packet(socket.as_fd(), &[IoSlice::new(&[0]), IoSlice::new(body)], fds);
    }
    let memfd = sealed_memfd("cooper-message", body)?;
    let mut all = fds.to_vec();
    all.push(memfd.as_fd());
    send_packet(socket.as_fd(), &[IoSlice::new(&[IN_MEMFD])], &all)
}

/// A read-only memfd that holds `content`, its offset at the start.
pub fn sealed_memfd(name: &str, content: &[u8]) -> io::Result<OwnedFd> {
    let memfd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut written = 0;
    while written < content.len() {
        written += rustix::io::pwrite(&memfd, &content[written..], written as u64)?;
    }
    rustix::fs::fcntl_add_seals(&memfd, SEALS)?;
    Ok(memfd)
}

/// Room for one packet; reuse it, so that receiving does not allocate for the packet itself.
pub struct Buffer(Box<[u8]>);

impl Default for Buffer {
    fn default() -> Self {
        Self(vec![0; PACKET_BODY_BYTES_MAX + 1].into_boxed_slice())
    }
}

/// Receives one message: its body and its descriptors (close-on-exec, without the memfd of the body). `None`: the
/// other side closed the socket. `InvalidData`: the other side broke the framing; nothing more should be read.
pub fn recv<'b>(socket: impl AsFd, buffer: &'b mut Buffer) -> io::Result<Option<(Body<'b>, Vec<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX + 1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(
            &socket,
            &mut [IoSliceMut::new(&mut buffer.0)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
    })?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(broken("packet too long or with too many descriptors"));
    }
    if buffer.0[0] & IN_MEMFD == 0 {
        return Ok(Some((Body::Packet(&buffer.0[1..received.bytes]), fds)));
    }
    let memfd = fds.pop().ok_or_else(|| broken("body without its memfd"))?;
    Ok(Some((Body::Memfd(read_sealed(&memfd)?), fds)))
}

/// The bytes of one message.
pub enum Body<'b> {
    Packet(&'b [u8]),
    Memfd(Vec<u8>),
}

impl std::ops::Deref for Body<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Body::Packet(bytes) => bytes,
            Body::Memfd(bytes) => bytes,
        }
    }
}

fn send_packet(socket: BorrowedFd<'_>, parts: &[IoSlice<'_>], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX + 1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    rustix::io::retry_on_intr(|| rustix::net::sendmsg(socket, parts, &mut control, SendFlags::NOSIGNAL))?;
    Ok(())
}

/// What a [`sealed_memfd`] holds. The sender may be hostile: only a sealed memfd of a bearable size is read, because reading anything else could
/// block (a pipe) or change while it is read.
pub fn read_sealed(memfd: &OwnedFd) -> io::Result<Vec<u8>> {
    let seals = rustix::fs::fcntl_get_seals(memfd).map_err(|_| broken("body is not in a memfd"))?;
    let size = rustix::fs::fstat(memfd)?.st_size as usize;
    if !seals.contains(SealFlags::WRITE | SealFlags::SHRINK) || size > MESSAGE_BYTES_MAX {
        return Err(broken("memfd is not sealed or too large"));
    }
    let mut body = vec![0; size];
    let mut read = 0;
    while read < size {
        match rustix::io::pread(memfd, &mut body[read..], read as u64)? {
            0 => return Err(broken("memfd ended early")),
            n => read += n,
        }
    }
    Ok(body)
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(body: &[u8], fds: &[BorrowedFd<'_>]) -> (Vec<u8>, usize) {
        let (a, b) = pair().unwrap();
        send_bytes(&a, body, fds).unwrap();
        let mut buffer = Buffer::default();
        let (got, fds) = recv(&b, &mut buffer).unwrap().unwrap();
        (got.to_vec(), fds.len())
    }

    #[test]
    fn a_message_arrives_whole_whatever_its_size() {
        for size in [0, 1, PACKET_BODY_BYTES_MAX, PACKET_BODY_BYTES_MAX + 1, 3 << 20] {
            let body: Vec<u8> = (0..size).map(|i| i as u8).collect();
            assert_eq!(round_trip(&body, &[]), (body, 0));
        }
    }

    #[test]
    fn descriptors_arrive_with_small_and_large_bodies() {
        let stdin = std::io::stdin();
        let fds = vec![stdin.as_fd(); DESCRIPTORS_MAX];
        assert_eq!(round_trip(b"x", &fds).1, DESCRIPTORS_MAX);
        assert_eq!(round_trip(&vec![7; 1 << 20], &fds).1, DESCRIPTORS_MAX);
    }

    #[test]
    fn a_closed_peer_is_the_end_not_an_error() {
        let (a, b) = pair().unwrap();
        drop(a);
        assert!(recv(&b, &mut Buffer::default()).unwrap().is_none());
    }

    #[test]
    fn a_body_that_could_still_change_is_refused() {
        let (a, b) = pair().unwrap();
        let memfd = rustix::fs::memfd_create("m", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        send_packet(a.as_fd(), &[IoSlice::new(&[IN_MEMFD])], &[memfd.as_fd()]).unwrap();
        assert_eq!(recv(&b, &mut Buffer::default()).err().unwrap().kind(), io::ErrorKind::InvalidData);
    }
}
