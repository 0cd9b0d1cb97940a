//! The few system calls that have no safe wrapper: fork, exec, signal masks, identity.
//!
//! Everything here assumes a single-threaded caller; `host::run` refuses to start otherwise. That is what makes it
//! sound to run ordinary code between fork and exec.
#![allow(unsafe_code)]

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    ptr,
};

use rustix::process::Pid;

/// A millisecond each.
const KILL_ROUNDS: u32 = 2_000;

pub enum Fork {
    Child,
    Parent(Pid),
}

/// Forks the calling, single-threaded process.
pub fn fork() -> io::Result<Fork> {
    // SAFETY: the process has one thread, so the child inherits no lock that nobody will release.
    match unsafe { libc::fork() } {
        0 => Ok(Fork::Child),
        pid => match Pid::from_raw(pid) {
            Some(pid) if pid.as_raw_nonzero().get() > 0 => Ok(Fork::Parent(pid)),
            _ => Err(io::Error::last_os_error()),
        },
    }
}

/// Ends this process at once: no destructors, no buffered output of the parent's written a second time.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Blocks `signals` and returns a non-blocking descriptor that reads them.
pub fn signal_fd(signals: &[i32]) -> io::Result<OwnedFd> {
    // SAFETY: `set` is initialised by sigemptyset before use; the descriptor returned is owned by nobody else.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut set);
        for signal in signals {
            libc::sigaddset(&mut set, *signal);
        }
        if libc::sigprocmask(libc::SIG_SETMASK, &set, ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        match libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// Takes one signal from a [`signal_fd`].
pub fn next_signal(fd: &OwnedFd) -> Option<i32> {
    let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
    match rustix::io::read(fd, &mut info) {
        // ssi_signo is the first field.
        Ok(n) if n == info.len() => Some(i32::from_ne_bytes([info[0], info[1], info[2], info[3]])),
        _ => None,
    }
}

/// Every signal as a fresh program expects it: not blocked, default action.
pub fn reset_signals() {
    // SAFETY: changes only this process's own signal state; failures for SIGKILL, SIGSTOP and unused numbers are
    // expected and harmless.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());
    }
}

/// Becomes `uid`, with the group of the same number and no other group, for good.
pub fn become_user(uid: u32) -> io::Result<()> {
    // SAFETY: plain system calls on this process; single-threaded, so no thread keeps the old identity.
    unsafe {
        if libc::setgroups(0, ptr::null()) != 0
            || libc::setresgid(uid, uid, uid) != 0
            || libc::setresuid(uid, uid, uid) != 0
        {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Kills every process of `uid`, from within that uid, so that none can escape by forking. False: some remain.
pub fn kill_all_of(uid: u32) -> bool {
    let child = match fork() {
        Ok(Fork::Parent(pid)) => pid,
        Ok(Fork::Child) => {
            if become_user(uid).is_err() {
                exit_now(2);
            }
            for _ in 0..KILL_ROUNDS {
                // What it returns says nothing: it is success also where no process was the caller's to kill.
                // SAFETY: no memory is passed. Of -1 the caller itself is exempt.
                unsafe { libc::kill(-1, libc::SIGKILL) };
                if is_alone() {
                    exit_now(0);
                }
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            exit_now(1)
        }
        Err(_) => return false,
    };
    ended_well(child)
}

/// Whether no other process, dead ones that nobody has waited for among them, has the uid of this one, which must have
/// no capabilities. The kernel counts them: with a limit of two, one may be made exactly if this one is the only one.
fn is_alone() -> bool {
    let two = rustix::process::Rlimit { current: Some(2), maximum: Some(2) };
    if rustix::process::setrlimit(rustix::process::Resource::Nproc, two).is_err() {
        return false;
    }
    match fork() {
        Ok(Fork::Parent(pid)) => ended_well(pid),
        Ok(Fork::Child) => exit_now(0),
        Err(_) => false,
    }
}

fn ended_well(child: rustix::process::Pid) -> bool {
    let mut status = 0;
    // SAFETY: the out parameter is valid for writing; the child is this process's own.
    let ended = unsafe { libc::waitpid(child.as_raw_nonzero().get(), &mut status, 0) };
    ended == child.as_raw_nonzero().get() && status == 0
}

/// Does `work` as if this process were `uid` to the file system, and only to that: what the kernel lets that user open,
/// make and rename is what `work` can. `None` changes nothing.
pub fn as_user<T>(uid: Option<u32>, work: impl FnOnce() -> T) -> io::Result<T> {
    /// Puts the identity back, also when `work` panics.
    struct Back {
        uid: libc::c_int,
        gid: libc::c_int,
    }
    impl Drop for Back {
        fn drop(&mut self) {
            // SAFETY: plain system calls on this thread, which is the process's only one.
            unsafe {
                libc::setfsuid(self.uid as u32);
                libc::setfsgid(self.gid as u32);
            }
        }
    }
    let Some(uid) = uid else { return Ok(work()) };
    // SAFETY: plain system calls on this thread. They report nothing but the identity of before, so it is asked for
    // again by naming one that cannot be.
    let (back, now) = unsafe {
        let gid = libc::setfsgid(uid);
        let back = Back { uid: libc::setfsuid(uid), gid };
        (back, (libc::setfsuid(u32::MAX), libc::setfsgid(u32::MAX)))
    };
    let done = match now == (uid as libc::c_int, uid as libc::c_int) {
        true => Ok(work()),
        false => Err(io::ErrorKind::PermissionDenied.into()),
    };
    drop(back);
    done
}

/// Makes `fds` the descriptors 0, 1, 2, …; marks every other one close-on-exec. Returns what became of `program`.
pub fn place_descriptors(fds: &[OwnedFd], program: Option<&OwnedFd>) -> io::Result<Option<RawFd>> {
    // First all of them out of the way of the targets, then each to its place.
    let above = |fd: RawFd| {
        // SAFETY: duplicates a descriptor that is open.
        match unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 64) } {
            -1 => Err(io::Error::last_os_error()),
            high => Ok(high),
        }
    };
    let high = fds.iter().map(|fd| above(fd.as_raw_fd())).collect::<io::Result<Vec<_>>>()?;
    let program = program.map(|fd| above(fd.as_raw_fd())).transpose()?;
    for (target, fd) in high.iter().enumerate() {
        // SAFETY: overwrites descriptors of a process that is about to exec and uses none of them by their old number.
        if unsafe { libc::dup2(*fd, target as RawFd) } == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    close_on_exec_from(fds.len() as u32)?;
    Ok(program)
}

/// Marks every descriptor from `first` on close-on-exec.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    close_range(first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

/// Closes every descriptor except `keep`. For a forked child that will never use the parent's.
pub fn close_all_except(keep: &[RawFd]) -> io::Result<()> {
    let mut keep: Vec<u32> = keep.iter().map(|fd| *fd as u32).collect();
    keep.sort_unstable();
    let mut first = 0;
    for fd in keep {
        if fd > first {
            close_range(first, fd - 1, 0)?;
        }
        first = fd + 1;
    }
    close_range(first, u32::MAX, 0)
}

fn close_range(first: u32, last: u32, flags: u32) -> io::Result<()> {
    // SAFETY: called only in forked children, which never touch the owners of these descriptors again.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Replaces this process. Returns only when that failed.
pub fn exec_path(program: &CString, argv: &[CString], env: &[CString]) -> io::Error {
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both arrays are NULL-terminated and their strings outlive the call.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Like [`exec_path`] for a program that is open: works when its path was replaced or removed.
pub fn exec_fd(program: RawFd, argv: &[CString], env: &[CString]) -> io::Error {
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: as above; the empty path with AT_EMPTY_PATH names the descriptor itself.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program,
            c"".as_ptr(),
            argv.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
}

/// A child that ended, with what it and its waited-for descendants used.
pub struct Reaped {
    pub pid: Pid,
    /// As wait(2) encodes it.
    pub status: i32,
    pub cpu_ms: u64,
    pub peak_memory_bytes: u64,
}

/// Collects one ended child without waiting. `Ok(None)`: none has ended. `Err(ECHILD)`: there are none.
pub fn reap() -> io::Result<Option<Reaped>> {
    let mut status = 0;
    // SAFETY: both out parameters are valid for writing.
    let (pid, usage) = unsafe {
        let mut usage = std::mem::zeroed::<libc::rusage>();
        (libc::wait4(-1, &mut status, libc::WNOHANG, &mut usage), usage)
    };
    match pid {
        0 => Ok(None),
        -1 => Err(io::Error::last_os_error()),
        pid => {
            let ms = |t: libc::timeval| t.tv_sec as u64 * 1000 + t.tv_usec as u64 / 1000;
            Ok(Pid::from_raw(pid).map(|pid| Reaped {
                pid,
                status,
                cpu_ms: ms(usage.ru_utime) + ms(usage.ru_stime),
                peak_memory_bytes: usage.ru_maxrss as u64 * 1024,
            }))
        }
    }
}
