//! A subreaper between the host and each child it starts.
//!
//! It adopts everything the child leaves behind, so that "every descendant" is a question with an answer; it reports
//! how the child ended; and it is the child's end when the host dies: it notices that its report socket has no other
//! side any more and kills all it holds.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType},
    process::{Pid, Signal},
};

use super::{launch::Launch, sys, tree};

/// What a subreaper tells the host, in this order: Started or NotStarted first, Exited once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    Started {
        pid: i32,
    },
    /// With the part of starting it that failed: an index into `Part::ALL`.
    NotStarted {
        errno: i32,
        part: u8,
    },
    Exited(Exit),
    /// Of one that is not the host's own child: its pid, as it says itself.
    Adopts {
        pid: i32,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// As wait(2) encodes it.
    pub status: i32,
    pub cpu_ms: u64,
    pub peak_memory_bytes: u64,
}

impl Exit {
    /// As a shell counts: the exit status, or 128 + the signal.
    pub fn code(&self) -> i32 {
        if libc::WIFSIGNALED(self.status) {
            128 + libc::WTERMSIG(self.status)
        } else {
            libc::WEXITSTATUS(self.status)
        }
    }
    pub fn signal(&self) -> Option<i32> {
        libc::WIFSIGNALED(self.status).then(|| libc::WTERMSIG(self.status))
    }
}

/// A running subreaper as the host holds it.
pub struct Reaper {
    pub pid: Pid,
    /// Reports come here, non-blocking. Closing it kills everything beneath.
    pub reports: OwnedFd,
    /// By which the listener of its connects comes, non-blocking.
    pub connects: Option<OwnedFd>,
}

/// Starts `launch` beneath a subreaper. Whether it could be executed comes as a report.
pub fn start(mut launch: Launch) -> io::Result<Reaper> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    let interception = launch.confinement.as_mut().and_then(|confinement| confinement.interception.as_mut());
    let connects = interception.and_then(|interception| interception.ours.take());
    match sys::fork()? {
        sys::Fork::Parent(pid) => Ok(Reaper { pid, reports: ours, connects }),
        sys::Fork::Child => {
            drop(ours);
            let code = run(launch, &theirs).map_or(1, |()| 0);
            sys::exit_now(code)
        }
    }
}

/// The next report, if one is there. An error or `UnexpectedEof` means the subreaper is gone.
pub fn next_report(reports: &OwnedFd) -> io::Result<Option<Report>> {
    let mut packet = [0u8; 32];
    match rustix::io::retry_on_intr(|| rustix::net::recv(reports, &mut packet, RecvFlags::empty())) {
        Ok((32, _)) => decode(&packet).map(Some),
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(rustix::io::Errno::AGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn run(launch: Launch, reports: &OwnedFd) -> io::Result<()> {
    let _ = rustix::process::setsid();
    let _ = rustix::thread::set_name(c"cooper-reaper");
    // Descriptors of other sessions must not live on in here.
    let mut keep = launch.descriptors();
    keep.push(reports.as_raw_fd());
    sys::close_all_except(&keep)?;
    let me = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(me))?;
    let signals = sys::signal_fd(&[libc::SIGCHLD])?;

    // Until the child runs, the host's death is this process's too; afterwards it has somebody to end first.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let (failed_read, low) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // Out of the way of the child's own descriptors.
    let failed_write = rustix::io::fcntl_dupfd_cloexec(&low, 64)?;
    drop(low);
    let child = match sys::fork()? {
        sys::Fork::Parent(pid) => pid,
        sys::Fork::Child => {
            let (part, error) = launch.exec(me);
            let errno = error.raw_os_error().unwrap_or(libc::EINVAL) as u64;
            let _ = rustix::io::write(&failed_write, &(errno | (part as u64) << 32).to_ne_bytes());
            sys::exit_now(127)
        }
    };
    drop(failed_write);
    drop(launch);
    let mut failed = [0u8; 8];
    // A successful exec closes the pipe.
    if matches!(rustix::io::retry_on_intr(|| rustix::io::read(&failed_read, &mut failed)), Ok(8)) {
        let failed = u64::from_ne_bytes(failed);
        return tell(reports, Report::NotStarted { errno: failed as i32, part: (failed >> 32) as u8 });
    }
    drop(failed_read);
    rustix::process::set_parent_process_death_signal(None)?;
    tell(reports, Report::Started { pid: child.as_raw_nonzero().get() })?;
    watch(child, reports, &signals)
}

/// Until nothing is left beneath, or the host is gone.
fn watch(child: Pid, reports: &OwnedFd, signals: &OwnedFd) -> io::Result<()> {
    loop {
        loop {
            match sys::reap() {
                Ok(Some(dead)) if dead.pid == child => {
                    let exit = Exit {
                        status: dead.status,
                        cpu_ms: dead.cpu_ms,
                        peak_memory_bytes: dead.peak_memory_bytes,
                    };
                    let _ = tell(reports, Report::Exited(exit));
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return Ok(()),
            }
        }
        let mut events = [PollFd::new(signals, PollFlags::IN), PollFd::new(reports, PollFlags::IN)];
        if poll(&mut events, None).is_err() {
            continue;
        }
        let host_is_gone = !events[1].revents().is_empty();
        while sys::next_signal(signals).is_some() {}
        if host_is_gone {
            kill_all();
        }
    }
}

fn kill_all() {
    let me = rustix::process::getpid().as_raw_nonzero().get();
    while tree::kill_round(me, tree::Which::default()) > 0 {
        // Waiting for the dead, not for a while: a child that ends ends the wait.
        while matches!(sys::reap(), Ok(Some(_))) {}
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

fn tell(reports: &OwnedFd, report: Report) -> io::Result<()> {
    rustix::net::send(reports, &encode(report), SendFlags::NOSIGNAL)?;
    Ok(())
}

fn encode(report: Report) -> [u8; 32] {
    let words: [u64; 4] = match report {
        Report::Started { pid } => [1, pid as u64, 0, 0],
        Report::NotStarted { errno, part } => [2, errno as u64, part.into(), 0],
        Report::Exited(exit) => [3, exit.status as u64, exit.cpu_ms, exit.peak_memory_bytes],
        Report::Adopts { pid } => [4, pid as u64, 0, 0],
    };
    let mut packet = [0; 32];
    for (bytes, word) in packet.chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    packet
}

fn decode(packet: &[u8; 32]) -> io::Result<Report> {
    let mut words = packet.chunks_exact(8).map(|bytes| {
        let mut word = [0; 8];
        word.copy_from_slice(bytes);
        u64::from_ne_bytes(word)
    });
    let mut next = || words.next().unwrap_or_default();
    match (next(), next(), next(), next()) {
        (1, pid, ..) => Ok(Report::Started { pid: pid as i32 }),
        (2, errno, part, _) => Ok(Report::NotStarted { errno: errno as i32, part: part as u8 }),
        (3, status, cpu_ms, peak_memory_bytes) => {
            Ok(Report::Exited(Exit { status: status as i32, cpu_ms, peak_memory_bytes }))
        }
        (4, pid, ..) => Ok(Report::Adopts { pid: pid as i32 }),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_reads_back_as_itself() {
        let exit = Exit { status: 0x8b, cpu_ms: 7, peak_memory_bytes: u64::MAX };
        for report in [
            Report::Adopts { pid: 8 },
            Report::Started { pid: 9 },
            Report::NotStarted { errno: 2, part: 7 },
            Report::Exited(exit),
        ] {
            assert_eq!(decode(&encode(report)).unwrap(), report);
        }
    }
}
