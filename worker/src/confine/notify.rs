//! Seccomp's user notification: every connect(2) and bind(2) of a session (where it has the worker's uid, also every change of
//! a file's attributes, see [`super::attributes`]) stops in the kernel until somebody outside of it answers,
//! with a socket of their own in the place of the caller's.
//!
//! Where a connect wanted to go is not looked at. Of a bind the address is read, once: it lies in memory that the caller may
//! change meanwhile, and what was read is what is done. Neither call ever goes on, so nothing else has to keep it from
//! reaching anybody.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::attributes::CALLS;
use crate::frame;

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
const ALLOW: u32 = 0x7fff_0000;
const NOTIFY: u32 = 0x7fc0_0000;
const ERRNO: u32 = 0x0005_0000;
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

const NEW_LISTENER: libc::c_ulong = 1 << 3;
/// A signal that does not kill does not end the wait: a connect is answered once. Since Linux 5.19.
const WAIT_KILLABLE: libc::c_ulong = 1 << 5;
const RECEIVE: libc::c_ulong = 0xc050_2100;
const SEND: libc::c_ulong = 0xc018_2101;
const ADD_DESCRIPTOR: libc::c_ulong = 0x4018_2103;
const IS_WAITING: libc::c_ulong = 0x4008_2102;
const ADD_IN_PLACE: u32 = 1;

/// The filter as the kernel takes it: struct sock_filter, one after the other. `attributes`: those of files are asked for too.
pub fn program(attributes: bool) -> Vec<u8> {
    let refuse = ERRNO | libc::EOPNOTSUPP as u32;
    // The lower half of an argument; these machines are little-endian.
    let argument = |number: u32| 16 + 8 * number;
    let mut code = vec![
        (LOAD, 0, 0, ARCHITECTURE_AT),
        (IF_EQUAL, 1, 0, ARCHITECTURE),
        // The session's own filter kills these.
        (RETURN, 0, 0, ALLOW),
        (LOAD, 0, 0, NUMBER_AT),
        (IF_EQUAL, 0, 1, libc::SYS_connect as u32),
        (RETURN, 0, 0, NOTIFY),
        (IF_EQUAL, 0, 1, libc::SYS_bind as u32),
        (RETURN, 0, 0, NOTIFY),
    ];
    for (number, ..) in CALLS.iter().filter(|_| attributes) {
        code.extend([(IF_EQUAL, 0, 1, *number as u32), (RETURN, 0, 0, NOTIFY)]);
    }
    // Data in the first packet: a connection without a connect.
    for (number, flags) in [(libc::SYS_sendto, 3), (libc::SYS_sendmsg, 2), (libc::SYS_sendmmsg, 3)] {
        code.extend([
            (IF_EQUAL, 0, 5, number as u32),
            (LOAD, 0, 0, argument(flags)),
            (AND, 0, 0, libc::MSG_FASTOPEN as u32),
            (IF_EQUAL, 1, 0, 0),
            (RETURN, 0, 0, refuse),
            (RETURN, 0, 0, ALLOW),
        ]);
    }
    code.push((RETURN, 0, 0, ALLOW));
    let mut bytes = Vec::with_capacity(code.len() * 8);
    for (op, then, otherwise, value) in code {
        bytes.extend(u16::to_ne_bytes(op));
        bytes.extend([then, otherwise]);
        bytes.extend(u32::to_ne_bytes(value));
    }
    bytes
}

/// Sets the filter for the calling thread, which must have given up new privileges, and all that it starts; whoever has
/// the other side of `socket` gets the descriptor that answers.
pub fn intercept(socket: &OwnedFd, attributes: bool) -> io::Result<()> {
    let listener = listen(attributes)?;
    frame::send_bytes(socket, b"", &[listener.as_fd()])
}

fn listen(attributes: bool) -> io::Result<OwnedFd> {
    // u64 keeps the alignment of struct sock_filter.
    let words: Vec<u64> = program(attributes)
        .chunks_exact(8)
        .map(|bytes| bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)))
        .collect();
    let filter =
        libc::sock_fprog { len: words.len() as u16, filter: words.as_ptr() as *mut libc::sock_filter };
    let mut last = io::Error::from_raw_os_error(libc::EINVAL);
    for flags in [NEW_LISTENER | WAIT_KILLABLE, NEW_LISTENER] {
        // SAFETY: `filter` points at `len` instructions that outlive the call, which copies them.
        match unsafe {
            libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const filter)
        } {
            -1 => last = io::Error::last_os_error(),
            // SAFETY: the kernel made this descriptor for this call.
            fd => return Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) }),
        }
    }
    Err(last)
}

/// A call that waits for its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    pub id: u64,
    /// The thread.
    pub pid: u32,
    pub number: libc::c_long,
    pub arguments: [u64; 6],
}

impl Call {
    pub fn is_connect(&self) -> bool {
        self.number == libc::SYS_connect
    }
    pub fn is_bind(&self) -> bool {
        self.number == libc::SYS_bind
    }
    /// What it would connect or bind.
    pub fn fd(&self) -> u32 {
        self.arguments[0] as u32
    }
}

#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    Call(Call),
    Nothing,
    /// No process with the filter is left.
    Over,
}

/// The next call of a listener, without waiting for one.
pub fn next(listener: &OwnedFd) -> io::Result<Next> {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut events = [PollFd::new(listener, PollFlags::IN)];
    poll(&mut events, Some(&now))?;
    let events = events[0].revents();
    if !events.contains(PollFlags::IN) {
        return Ok(if events.intersects(PollFlags::HUP | PollFlags::ERR) {
            Next::Over
        } else {
            Next::Nothing
        });
    }
    // struct seccomp_notif: id, pid and flags, then seccomp_data: number and architecture, address, six arguments.
    let mut call = [0u64; 10];
    // SAFETY: the kernel writes 80 bytes, which is what is there; they have to be zero before.
    match unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE, call.as_mut_ptr()) } {
        0 => Ok(Next::Call(Call {
            id: call[0],
            pid: call[1] as u32,
            number: libc::c_long::from(call[2] as u32),
            arguments: [call[4], call[5], call[6], call[7], call[8], call[9]],
        })),
        _ => match io::Error::last_os_error() {
            // Its thread ended before anybody looked.
            error if error.raw_os_error() == Some(libc::ENOENT) => Ok(Next::Nothing),
            error => Err(error),
        },
    }
}

/// Puts a duplicate of `with` in the place of the caller's descriptor `fd`. Waits until the caller's thread has done so.
pub fn replace(listener: &OwnedFd, id: u64, fd: u32, with: &OwnedFd, close_on_exec: bool) -> io::Result<()> {
    let flags = if close_on_exec { libc::O_CLOEXEC as u32 } else { 0 };
    // struct seccomp_notif_addfd: id; flags and srcfd; newfd and newfd_flags.
    let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let request = [id, pair(ADD_IN_PLACE, with.as_raw_fd() as u32), pair(fd, flags)];
    // SAFETY: the structure is as the kernel reads it and outlives the call.
    match unsafe { libc::ioctl(listener.as_raw_fd(), ADD_DESCRIPTOR, request.as_ptr()) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Whether the thread that made the call still waits: then no other has its number, and what was read of it was its own.
pub fn is_waiting(listener: &OwnedFd, id: u64) -> bool {
    // SAFETY: the kernel reads the number, which outlives the call.
    unsafe { libc::ioctl(listener.as_raw_fd(), IS_WAITING, &raw const id) == 0 }
}

/// What the call gives: 0, or an error. One that is not there any more is not answered.
pub fn answer(listener: &OwnedFd, id: u64, errno: i32) {
    // struct seccomp_notif_resp: id; value; error and flags.
    let response = [id, 0, u64::from((-errno) as u32)];
    // SAFETY: as above.
    unsafe { libc::ioctl(listener.as_raw_fd(), SEND, response.as_ptr()) };
}

/// How a descriptor of another process was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flags {
    pub nonblocking: bool,
    pub close_on_exec: bool,
}

/// Reads them under the identity of the process, which is what it takes without any privilege over others. What cannot be
/// read is as most programs have it.
pub fn flags(call: Call, uid: Option<u32>) -> Flags {
    let read = || -> Option<Flags> {
        let text = std::fs::read_to_string(format!("/proc/{}/fdinfo/{}", call.pid, call.fd())).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("flags:"))?;
        let flags = i32::from_str_radix(line.trim(), 8).ok()?;
        Some(Flags {
            nonblocking: flags & libc::O_NONBLOCK != 0,
            close_on_exec: flags & libc::O_CLOEXEC != 0,
        })
    };
    acting_as(uid, read).unwrap_or(Flags { nonblocking: false, close_on_exec: true })
}

/// Under the identity of a session's processes, where they have one of their own.
fn acting_as<T>(uid: Option<u32>, read: impl FnOnce() -> T) -> T {
    let Some(uid) = uid else { return read() };
    // SAFETY: plain system calls about this thread alone, undone below; neither fails for who may do it.
    unsafe {
        libc::setfsgid(uid);
        libc::setfsuid(uid);
    }
    let done = read();
    // SAFETY: as above.
    unsafe {
        libc::setfsuid(libc::geteuid());
        libc::setfsgid(libc::getegid());
    }
    done
}

/// struct sockaddr_in6, the longest that is of use.
const ADDRESS_BYTES_MAX: usize = 28;

/// The address in the memory of a process that binds, read as [`flags`] are. Should the process have ended and its number be
/// another's of the same session, what is read is rubbish and the answer goes to nobody.
pub fn address(call: Call, uid: Option<u32>) -> io::Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let [_, at, length, ..] = call.arguments;
    // A length is an int.
    let mut bytes = vec![0; ADDRESS_BYTES_MAX.min(length as u32 as usize)];
    acting_as(uid, || std::fs::File::open(format!("/proc/{}/mem", call.pid))?.read_exact_at(&mut bytes, at))?;
    Ok(bytes)
}

/// Whether all of this works here: done once, with a child.
pub fn works() -> bool {
    let Ok((ours, theirs)) = frame::pair() else { return false };
    // SAFETY: the host has one thread: the child inherits no lock that nobody will release.
    let child = match unsafe { libc::fork() } {
        -1 => return false,
        0 => {
            let connected = || -> io::Result<()> {
                rustix::thread::set_no_new_privs(true)?;
                let socket = rustix::net::socket(
                    rustix::net::AddressFamily::INET,
                    rustix::net::SocketType::STREAM,
                    None,
                )?;
                intercept(&theirs, false)?;
                let nobody = std::net::SocketAddrV4::new(std::net::Ipv4Addr::UNSPECIFIED, 1);
                Ok(rustix::net::connect(&socket, &nobody)?)
            };
            let code = i32::from(connected().is_err());
            // SAFETY: _exit has no preconditions.
            unsafe { libc::_exit(code) }
        }
        child => child,
    };
    drop(theirs);
    if !matches!(answer_one(&ours), Ok(true)) {
        // SAFETY: our own child, which is not waited for yet.
        unsafe { libc::kill(child, libc::SIGKILL) };
    }
    let mut status = -1;
    // SAFETY: `status` is valid for writing.
    unsafe { libc::waitpid(child, &mut status, 0) };
    libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
}

fn answer_one(socket: &OwnedFd) -> io::Result<bool> {
    let soon = Timespec { tv_sec: 5, tv_nsec: 0 };
    poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&soon))?;
    let mut buffer = frame::Buffer::default();
    let Some((_, fds)) = frame::recv(socket, &mut buffer)? else { return Ok(false) };
    let Some(listener) = fds.into_iter().next() else { return Ok(false) };
    poll(&mut [PollFd::new(&listener, PollFlags::IN)], Some(&soon))?;
    let Next::Call(call) = next(&listener)? else { return Ok(false) };
    let (other, _end) = frame::pair()?;
    replace(&listener, call.id, call.fd(), &other, true)?;
    answer(&listener, call.id, 0);
    Ok(true)
}
