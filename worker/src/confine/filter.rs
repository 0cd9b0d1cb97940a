//! A filter of packets on a listening socket, which whoever gets the socket cannot take off again.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// Whether this process may attach one: some kernels want `CAP_NET_ADMIN` for it.
pub fn works() -> bool {
    socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .is_ok_and(|socket| attach(&socket, 1).is_ok())
}

/// Drops what does not come from a port of loopback, for good: also what is accepted has the filter.
pub fn attach(socket: &impl AsFd, port: u16) -> io::Result<()> {
    let op = |code: u16, jf: u8, k: u32| libc::sock_filter { code, jt: 0, jf, k };
    // Of the network's header the source address; the filter itself begins at that of TCP.
    const NETWORK: u32 = 0xfff0_0000;
    const LOAD_WORD: u16 = 0x20;
    const LOAD_HALF: u16 = 0x28;
    const AND: u16 = 0x54;
    const IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let mut code = [
        op(LOAD_WORD, 0, NETWORK + 12),
        op(AND, 0, 0xff00_0000),
        op(IF_EQUAL, 3, 0x7f00_0000),
        op(LOAD_HALF, 0, 0),
        op(IF_EQUAL, 1, port.into()),
        op(RETURN, 0, u32::MAX),
        op(RETURN, 0, 0),
    ];
    let program = libc::sock_fprog { len: code.len() as u16, filter: code.as_mut_ptr() };
    set(socket, libc::SO_ATTACH_FILTER, &program)?;
    set(socket, libc::SO_LOCK_FILTER, &1_i32)
}

fn set<T>(socket: &impl AsFd, option: i32, value: &T) -> io::Result<()> {
    let (value, length) = (std::ptr::from_ref(value).cast(), size_of::<T>() as libc::socklen_t);
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel reads `length` bytes of `value`, and what a program points at; both outlive the call.
    match unsafe { libc::setsockopt(socket, libc::SOL_SOCKET, option, value, length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
