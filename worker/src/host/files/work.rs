//! Calls that take time are served by a process of the session's own uid, forked for the call: the host never waits, and
//! what a call may reach, use and take is what that process may.

use std::{
    collections::{HashMap, VecDeque},
    fs::File,
    io::{self, Seek, Write},
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

use cooper_common::{
    clock,
    error::{Code, Error, Result},
    limits::files::{
        WORK_CPU_SECONDS, WORK_MAX, WORK_MEMORY_BYTES, WORK_MS, WORK_PER_SESSION_MAX, WORK_WAITING_MAX,
    },
};
use cooper_proto::{
    host::{self as wire, to_link},
    v1::{self, call::Op, call_result},
};
use prost::Message as _;
use rustix::{
    fs::{AtFlags, MemfdFlags, Mode, OFlags, SealFlags},
    process::{Pid, Resource, Rlimit, Signal},
};

use super::{change, copy, edit, find, pack};
use crate::host::{Due, Host, beneath, install::listing, sys, to_wire, unknown_session};

/// Calls that wait for a process, and those that have one.
#[derive(Default)]
pub struct Work {
    waiting: VecDeque<wire::FileWork>,
    running: HashMap<Pid, Running>,
}

struct Running {
    call_id: u64,
    session: String,
    /// The process writes its answer here.
    answer: OwnedFd,
    /// And here the archive that was asked for.
    archive: Option<OwnedFd>,
    timed_out: bool,
}

impl Work {
    fn of(&self, session: &str) -> usize {
        self.running.values().filter(|running| running.session == session).count()
    }

    /// Whether that process serves a call.
    pub fn has(&self, pid: Pid) -> bool {
        self.running.contains_key(&pid)
    }

    /// Whether processes still work on the session's files.
    pub fn is_on(&self, session: &str) -> bool {
        self.of(session) > 0
    }

    /// The link that asked is gone. What runs comes to its end, nobody hears of it.
    pub fn abandon(&mut self) {
        self.waiting.clear();
    }
}

impl Host {
    pub(in crate::host) fn file_work(&mut self, work: wire::FileWork) {
        if let Some(v1::Call { op: Some(Op::DialPort(_) | Op::ListPorts(_)), .. }) = &work.call {
            return self.port_call(work);
        }
        let known = match &work.call {
            Some(call) if self.sessions.contains_key(&call.session_id) => Ok(()),
            Some(call) => Err(unknown_session(&call.session_id)),
            None => Err(Error::invalid("file work without a call")),
        };
        let room = known.and_then(|()| match self.work.waiting.len() < WORK_WAITING_MAX {
            true => Ok(()),
            false => Err(Error::new(Code::Overloaded, format!("{WORK_WAITING_MAX} file requests wait"))),
        });
        match room {
            Ok(()) => {
                self.work.waiting.push_back(work);
                self.start_file_work();
            }
            Err(error) => self.refuse_file_work(work.call_id, &error),
        }
    }

    fn refuse_file_work(&mut self, call_id: u64, error: &Error) {
        let answer = wire::FileOpened { call_id, error: Some(to_wire(error)), ..wire::FileOpened::default() };
        self.link.tell(to_link::Message::FileOpened(answer), Vec::new());
    }

    /// Starts what may start now, in the order of asking; a session that has its share lets others pass.
    fn start_file_work(&mut self) {
        let mut at = 0;
        while self.work.running.len() < WORK_MAX && at < self.work.waiting.len() {
            let session = |work: &wire::FileWork| {
                work.call.as_ref().map_or(String::new(), |call| call.session_id.clone())
            };
            if self.work.of(&session(&self.work.waiting[at])) >= WORK_PER_SESSION_MAX {
                at += 1;
                continue;
            }
            let Some(work) = self.work.waiting.remove(at) else { return };
            let call_id = work.call_id;
            if let Err(error) = self.fork_file_work(work) {
                self.refuse_file_work(call_id, &error);
            }
        }
    }

    fn fork_file_work(&mut self, work: wire::FileWork) -> Result<()> {
        let call = work.call.unwrap_or_default();
        let session = self.sessions.get(&call.session_id).ok_or_else(|| unknown_session(&call.session_id))?;
        session.accepts()?;
        let root = rustix::fs::open(session.home.workspace(), beneath::DIRECTORY, Mode::empty())
            .map_err(|e| beneath::failed("", e))?;
        let internal =
            |error: io::Error| Error::internal(format!("a file request cannot be served: {error}"));
        let answer =
            rustix::fs::memfd_create("cooper-answer", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
                .map_err(|e| internal(e.into()))?;
        // A file without a name, for an archive that is made.
        let archive = match &call.op {
            Some(Op::ReadArchive(_)) => Some(nameless(&root, super::acting(session))?),
            _ => None,
        };
        let (largest, uid) = (super::largest_file(session), super::acting(session));
        let quota = session.record.disk_limit();
        match sys::fork().map_err(internal)? {
            sys::Fork::Parent(pid) => {
                let (call_id, session) = (work.call_id, call.session_id);
                let running = Running { call_id, session, answer, archive, timed_out: false };
                self.work.running.insert(pid, running);
                self.timers.add(clock::mono_ms() + WORK_MS, Due::FileWork(pid));
                Ok(())
            }
            sys::Fork::Child => {
                // A panic must not unwind into the host's loop, of which this is a copy.
                let served = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    let fds = [Some(&root), Some(&answer), archive.as_ref()];
                    let keep: Vec<RawFd> = fds.into_iter().flatten().map(AsRawFd::as_raw_fd).collect();
                    confine(&keep, largest, uid)?;
                    let mut answer = File::from(answer);
                    let served = match call.op {
                        Some(Op::Packages(_)) => self.packages(&root, &call),
                        _ => serve(&root, call, archive.as_ref(), &work.archive_path, quota),
                    };
                    answer.write_all(&served.encode_to_vec())
                }));
                sys::exit_now(i32::from(!matches!(served, Ok(Ok(())))))
            }
        }
    }

    /// In the process that serves the call.
    fn packages(&self, root: &OwnedFd, call: &v1::Call) -> v1::CallResult {
        use call_result::Result as Answer;
        let session = self.sessions.get(&call.session_id);
        let site = session.and_then(|session| Some((session, self.python_of(session)?)));
        let site = site.map(|(session, python)| {
            let venv = session.home.venv();
            let site = python.site_packages(&venv);
            let within = site.strip_prefix(session.home.workspace()).unwrap_or(&site).to_owned();
            (within, session.imported.clone(), self.layer_of(python))
        });
        let result = match site {
            None => Answer::Error(to_wire(&unknown_session(&call.session_id))),
            Some((site, imported, layer)) => {
                let site = beneath::open(
                    root,
                    site.as_os_str().as_encoded_bytes(),
                    beneath::LISTABLE,
                    Mode::empty(),
                );
                Answer::Packages(listing::list(site.ok().as_ref(), layer, &imported))
            }
        };
        v1::CallResult { call_id: call.call_id, result: Some(result) }
    }

    pub(in crate::host) fn on_late_file_work(&mut self, pid: Pid) {
        if let Some(running) = self.work.running.get_mut(&pid) {
            running.timed_out = true;
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }

    /// Ends what works on a session's files; its end is noticed like that of any child.
    pub(in crate::host) fn end_file_work(&mut self, session: &str) {
        let of = |running: &Running| running.session == session;
        for (pid, _) in self.work.running.iter().filter(|(_, running)| of(running)) {
            let _ = rustix::process::kill_process(*pid, Signal::KILL);
        }
        let ended = |work: &wire::FileWork| work.call.as_ref().is_some_and(|call| call.session_id == session);
        let waiting = std::mem::take(&mut self.work.waiting);
        let (ended, waiting): (Vec<_>, Vec<_>) = waiting.into_iter().partition(ended);
        self.work.waiting = waiting.into();
        for work in ended {
            self.refuse_file_work(work.call_id, &unknown_session(session));
        }
    }

    pub(in crate::host) fn file_work_done(&mut self, pid: Pid, status: i32) {
        let Some(running) = self.work.running.remove(&pid) else { return };
        let mut answer = wire::FileOpened { call_id: running.call_id, ..wire::FileOpened::default() };
        let mut fds = Vec::new();
        match sealed(running.answer).map_err(|e| Error::internal(e.to_string())) {
            Ok(fd) if status == 0 => {
                fds.push(fd);
                fds.extend(running.archive);
            }
            Err(error) if status == 0 => answer.error = Some(to_wire(&error)),
            _ => answer.error = Some(to_wire(&killed(status, running.timed_out))),
        }
        self.link.tell(to_link::Message::FileOpened(answer), fds);
        self.start_file_work();
        self.advance(&running.session);
    }
}

fn killed(status: i32, timed_out: bool) -> Error {
    match (libc::WIFSIGNALED(status), libc::WTERMSIG(status)) {
        (true, libc::SIGXCPU) => {
            Error::new(Code::TimedOut, format!("the request used more than {WORK_CPU_SECONDS} s of CPU time"))
        }
        (true, libc::SIGXFSZ) => Error::new(Code::TooLarge, "a file would be larger than the session allows"),
        (true, libc::SIGKILL) if timed_out => {
            Error::new(Code::TimedOut, format!("the request took longer than {} s", WORK_MS / 1000))
                .with_hint("do it in parts; what was begun may be there as .cooper-….part or .cooper-….gone")
        }
        (true, libc::SIGKILL) => Error::new(Code::SessionEnded, "the request was ended with its session"),
        _ => Error::internal(format!("the process that served the request failed ({status:#x})")),
    }
}

/// Nothing may change an answer that is handed on.
fn sealed(answer: OwnedFd) -> io::Result<OwnedFd> {
    let mut file = File::from(answer);
    file.rewind()?;
    let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

/// Becomes what may serve a call: without the host's descriptors, and with limits.
fn confine(keep: &[RawFd], largest: u64, uid: Option<u32>) -> io::Result<()> {
    sys::reset_signals();
    rustix::process::setsid()?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let mut kept = keep.to_vec();
    kept.push(2);
    sys::close_all_except(&kept)?;
    let limits = [
        (Resource::Core, 0),
        (Resource::Cpu, WORK_CPU_SECONDS),
        (Resource::As, WORK_MEMORY_BYTES),
        (Resource::Fsize, largest),
    ];
    for (resource, limit) in limits {
        let hard = rustix::process::getrlimit(resource).maximum;
        let limit = Some(hard.map_or(limit, |hard| hard.min(limit)));
        rustix::process::setrlimit(resource, Rlimit { current: limit, maximum: limit })?;
    }
    // Behind what runs in sessions: those wait for the processor more dearly than a listing does.
    let _ = rustix::process::nice(5);
    if let Some(uid) = uid {
        sys::become_user(uid)?;
    }
    // After the change of uid, which decides about both anew.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    Ok(())
}

fn serve(
    root: &OwnedFd,
    call: v1::Call,
    archive: Option<&OwnedFd>,
    archive_path: &str,
    quota: u64,
) -> v1::CallResult {
    use call_result::Result as Answer;
    let done = match (call.op, archive) {
        (Some(Op::ReadArchive(request)), Some(archive)) => {
            pack::pack(root, &request, archive).map(Answer::Stat)
        }
        (op, _) => other(root, op, archive_path, quota),
    };
    let result = done.unwrap_or_else(|error| Answer::Error(to_wire(&error)));
    v1::CallResult { call_id: call.call_id, result: Some(result) }
}

fn other(root: &OwnedFd, op: Option<Op>, archive_path: &str, quota: u64) -> Result<call_result::Result> {
    use call_result::Result as Answer;
    match op {
        Some(Op::List(request)) => find::list(root, &request).map(Answer::List),
        Some(Op::Stat(request)) => find::stat(root, &request).map(Answer::Stat),
        Some(Op::Search(request)) => find::search(root, &request).map(Answer::Found),
        Some(Op::Move(request)) => change::rename(root, &request).map(Answer::Stat),
        Some(Op::MakeDir(request)) => change::make_dir(root, &request).map(Answer::Stat),
        Some(Op::ChangeMode(request)) => change::change_mode(root, &request).map(Answer::Stat),
        Some(Op::Delete(request)) => change::delete(root, &request).map(Answer::Deleted),
        Some(Op::Copy(request)) => copy::copy(root, &request).map(Answer::Copied),
        Some(Op::Edit(request)) => edit::edit(root, &request).map(Answer::Edited),
        Some(Op::WriteArchive(request)) => {
            pack::unpack(root, &request, archive_path, quota).map(Answer::Unpacked)
        }
        Some(
            Op::Read(_) | Op::Write(_) | Op::ReadArchive(_) | Op::Pack(_) | Op::Unpack(_) | Op::Packages(_),
        )
        | Some(Op::WriteStdin(_) | Op::Signal(_) | Op::Resize(_) | Op::DialPort(_) | Op::ListPorts(_))
        | None => Err(Error::new(Code::NotSupported, "this worker does not know that call")),
    }
}

/// A new file in the workspace that has no name any more, and goes with its last descriptor.
fn nameless(root: &OwnedFd, uid: Option<u32>) -> Result<OwnedFd> {
    let name = format!(".cooper-{:016x}.part", rand::random::<u64>());
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = sys::as_user(uid, || {
        let file = rustix::fs::openat(root, &*name, flags, Mode::from_raw_mode(0o600))?;
        rustix::fs::unlinkat(root, &*name, AtFlags::empty())?;
        Ok(file)
    });
    made.map_err(|e| Error::internal(e.to_string()))?.map_err(|e| beneath::failed("", e))
}
