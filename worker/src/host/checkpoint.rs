//! Sessions that are packed, and sessions that are filled from what was packed elsewhere. The work is a process's of the
//! session's own uid: the host goes on meanwhile, and what a session made of its files is its own to stumble over.
//!
//! A packed session is its workspace with what is installed, but not the skeleton of its venv, which every worker makes
//! for itself: scripts that name their interpreter are given the new one's path.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, BufReader, BufWriter, Seek, Write},
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use cooper_common::{
    clock,
    error::{Code, Error, Result},
    failpoint,
    limits::{archive as bounds, checkpoint as limits},
};
use cooper_proto::{
    host::{self as wire, to_link},
    v1,
};
use rustix::{
    fs::{MemfdFlags, Mode, OFlags},
    process::{Pid, Signal},
};
use serde::{Deserialize, Serialize};

use super::{
    Due, Host,
    archive::{self, Bounds, Summary, tar},
    artifacts::Known,
    files::sweep,
    globals,
    helper::{self, Task},
    install::stage,
    layers,
    session::{Session, State},
    sys, to_wire, unknown_session,
};

/// The host protocol that brought it.
pub const VERSION: u32 = 3;
const BOUNDS: Bounds = Bounds { entries: bounds::ENTRIES_MAX, bytes: bounds::CONTENT_BYTES_MAX };
const BUFFER_BYTES: usize = 256 << 10;
const VENV_PYTHON: &[u8] = b"/workspace/.venv/bin/python";
/// Where a script may name its interpreter.
const SCRIPT_HEAD_BYTES: usize = 1024;

/// Archives on their way in, and calls that write.
#[derive(Default)]
pub struct Checkpoints {
    /// By call.
    receiving: BTreeMap<u64, Received>,
    /// Files being written by calls, and whose they are.
    writes: BTreeMap<u64, String>,
    /// Packs that wait for the session's variables.
    saving: BTreeMap<u64, wire::OpenFile>,
}

impl Checkpoints {
    pub fn note_write(&mut self, call: &wire::OpenFile) {
        self.writes.insert(call.call_id, call.session_id.clone());
    }

    pub fn note_saving(&mut self, call: &wire::OpenFile) {
        self.saving.insert(call.call_id, call.clone());
    }

    pub fn saved(&mut self, call_id: u64) -> Option<wire::OpenFile> {
        self.saving.remove(&call_id)
    }
}

/// An archive on its way in.
struct Received {
    session: String,
    archive: OwnedFd,
    /// Its digest, where other sessions begin with it too.
    shared: Option<String>,
}

/// What a process is doing for a call.
pub struct Work {
    call_id: u64,
    session: String,
    archive: OwnedFd,
    /// The process says here what came of it.
    report: OwnedFd,
    packs: bool,
    /// What is unpacked is to be a layer.
    layer: Option<String>,
    /// What came of the variables, where they were asked for.
    globals: Option<globals::Done>,
}

/// What was unpacked for a call becomes the layer of its archive.
pub struct Sharing {
    session: String,
    call_id: u64,
    digest: String,
}

/// What a process is to do.
struct Job<'a> {
    session: &'a str,
    call_id: u64,
    packs: bool,
    archive: OwnedFd,
    layer: Option<String>,
    globals: Option<globals::Done>,
}

#[derive(Serialize, Deserialize)]
enum Report {
    Done(Summary),
    Failed { code: String, message: String },
}

/// How its name begins while it has one. Other workers may have theirs in the same directory.
fn spooled(worker_id: &str) -> String {
    format!(".spool-{worker_id}-")
}

impl Host {
    pub(super) fn pack(&mut self, call: &wire::OpenFile) {
        let sealed = self.seal(call);
        if let Err(error) = sealed {
            return self.answer_pack(call.call_id, Err(error));
        }
        match call.globals.then(|| self.save_globals(call)) {
            // It goes on when they are saved.
            Some(Ok(())) => {}
            Some(Err(none)) => self.pack_with(call, Some(none)),
            None => self.pack_with(call, None),
        }
    }

    pub(super) fn pack_with(&mut self, call: &wire::OpenFile, globals: Option<globals::Done>) {
        if let Err(error) = self.start_packing(call, globals) {
            self.answer_pack(call.call_id, Err(error));
        }
    }

    fn seal(&mut self, call: &wire::OpenFile) -> Result<()> {
        let id = &call.session_id;
        let session = self.sessions.get_mut(id).ok_or_else(|| unknown_session(id))?;
        if session.state != State::Ready {
            return Err(Error::new(Code::SessionNotReady, format!("session {id} is not ready")));
        }
        // On disk before anything is packed: what a host of later would take here is not in the archive.
        if std::mem::replace(&mut session.record.sealed, call.last) != call.last {
            session.record.write(&session.home.dir).map_err(internal)?;
        }
        if call.last {
            failpoint::pass(failpoint::name::SEALED_BEFORE_PACKED);
        }
        Ok(())
    }

    fn start_packing(&mut self, call: &wire::OpenFile, globals: Option<globals::Done>) -> Result<()> {
        self.seal(call)?;
        let id = &call.session_id;
        let session = self.sessions.get(id).ok_or_else(|| unknown_session(id))?;
        if call.last && self.work.is_on(id) {
            // Sealed, so that there is an end to it; the coordinator asks again.
            return Err(Error::new(
                Code::SessionNotReady,
                format!("session {id}: file requests go on in it"),
            ));
        }
        let (workspace, uid) = (session.home.workspace(), session.uid());
        let archive = self.spool()?;
        let out = archive.as_raw_fd();
        let file = archive.try_clone().map_err(internal)?;
        let keep = file.as_raw_fd();
        // Opened here: the way there is the worker's, and not for the session's uid.
        let root = open_workspace(&workspace)?;
        let keep = [out, keep, root.as_raw_fd()];
        let with = globals.as_ref().is_some_and(globals::Done::is_there);
        let work = Job { session: id, call_id: call.call_id, packs: true, archive, layer: None, globals };
        self.start_work(
            work,
            &keep,
            uid,
            || (),
            move |()| {
                let out = BufWriter::with_capacity(BUFFER_BYTES, File::from(file));
                let takes = |path: &[u8], is_dir: bool| match path == globals::FILE.as_bytes() {
                    true => with && !is_dir,
                    false => takes(path),
                };
                let packed = archive::pack(&root, &mut tar::Writer::new(out), BOUNDS, takes);
                let _ = rustix::fs::unlinkat(&root, globals::FILE, rustix::fs::AtFlags::empty());
                packed
            },
        )
    }

    pub(super) fn unpack(&mut self, call: &wire::OpenFile) {
        let id = &call.session_id;
        let opened = match self.sessions.get(id) {
            Some(session) if session.record.restoring && session.state == State::Initializing => self.spool(),
            Some(_) => Err(Error::new(Code::SessionNotReady, format!("session {id} waits for no archive"))),
            None => Err(unknown_session(id)),
        };
        let mut answer = wire::FileOpened { call_id: call.call_id, ..wire::FileOpened::default() };
        let mut fds = Vec::new();
        match opened.and_then(|fd| Ok((fd.try_clone().map_err(internal)?, fd))) {
            Ok((fd, kept)) => {
                let shared = Some(call.shared_digest.clone()).filter(|digest| self.shares(digest));
                let received = Received { session: id.clone(), archive: kept, shared };
                self.checkpoints.receiving.insert(call.call_id, received);
                fds.push(fd);
            }
            Err(error) => answer.error = Some(to_wire(&error)),
        }
        self.link.tell(to_link::Message::FileOpened(answer), fds);
    }

    /// The end of an archive's way in; false = the call is about something else.
    pub(super) fn unpack_received(&mut self, call: &wire::CloseFile) -> bool {
        let Some(received) = self.checkpoints.receiving.remove(&call.call_id) else { return false };
        let started = match call.commit {
            true => self.start_unpacking(received, call.call_id),
            false => Err(Error::new(Code::Cancelled, "thrown away")),
        };
        if let Err(error) = started {
            self.answer_unpack(call.call_id, Some(&error));
        }
        true
    }

    fn start_unpacking(&mut self, received: Received, call_id: u64) -> Result<()> {
        let Received { session: id, archive, shared } = received;
        let busy = |task: &Task| match task {
            Task::Checkpoint(work) => work.session == id,
            Task::Layer(work) => work.session == id,
            _ => false,
        };
        if self.helpers.values().any(busy) {
            return Err(Error::new(Code::SessionNotReady, format!("session {id} is being unpacked already")));
        }
        // What is shared already is given, not unpacked; what is not yet will be.
        let layer = shared.as_ref().and_then(|digest| self.use_layer(digest));
        let to_share = shared.filter(|_| layer.is_none());
        let session = self.sessions.get(&id).ok_or_else(|| unknown_session(&id))?;
        let (workspace, venv, uid) = (session.home.workspace(), session.home.venv(), session.uid());
        let site = self.site_of(session);
        let mut file = File::from(archive.try_clone().map_err(internal)?);
        let root = open_workspace(&workspace)?;
        let keep = [archive.as_raw_fd(), file.as_raw_fd(), root.as_raw_fd()];
        let work = Job { session: &id, call_id, packs: false, archive, layer: to_share, globals: None };
        let given = || match (layer, site, uid) {
            (Some(layer), Some(site), Some(uid)) => layers::give(&layer, &root, &site, uid),
            _ => BTreeSet::new(),
        };
        self.start_work(work, &keep, uid, given, |given| {
            file.rewind().map_err(internal)?;
            let mut from = tar::Reader::new(BufReader::with_capacity(BUFFER_BYTES, file));
            let there = |path: &[u8]| given.contains(path);
            archive::unpack(&root, &mut from, BOUNDS, there, is_script, &|_, content| moved(&venv, content))
        })
    }

    /// Where a session's packages are in its workspace.
    fn site_of(&self, session: &Session) -> Option<PathBuf> {
        let site = self.python_of(session)?.site_packages(&session.home.venv());
        Some(site.strip_prefix(session.home.workspace()).ok()?.to_owned())
    }

    /// What was unpacked becomes a layer, before anything runs in the session.
    fn share(&mut self, archive: OwnedFd, sharing: Sharing) -> Result<()> {
        let id = &sharing.session;
        let session = self.sessions.get(id).ok_or_else(|| unknown_session(id))?;
        let (Some(uid), Some(site)) = (session.uid(), self.site_of(session)) else {
            return Err(Error::internal("a session without a uid has nothing to share"));
        };
        let root = open_workspace(&session.home.workspace())?;
        let mut archive = File::from(archive);
        let (layer, digest) = (self.layer_dir(&sharing.digest), sharing.digest.clone());
        let keep = [archive.as_raw_fd(), root.as_raw_fd()];
        let made = self.help(Task::Layer(sharing), &keep, move || {
            let archive = archive.rewind().map(|()| BufReader::with_capacity(BUFFER_BYTES, archive));
            let made = archive.and_then(|archive| layers::make(&layer, &digest, archive, &root, &site, uid));
            made.inspect_err(|error| tracing::warn!(%error, digest, "packages are not shared")).is_ok()
        });
        let pid = made.map_err(internal)?;
        self.timers.add(clock::mono_ms() + limits::WORK_MS, Due::Helper(pid));
        Ok(())
    }

    /// Whatever came of the layer: the session has its files.
    pub(super) fn sharing_done(&mut self, sharing: &Sharing) {
        self.layer_made(&sharing.digest);
        let filled = self.filled(&sharing.session);
        self.answer_unpack(sharing.call_id, filled.err().as_ref());
    }

    /// A file without a name, beside the sessions: an archive may be as large as they are.
    pub(super) fn spool(&self) -> Result<OwnedFd> {
        let path =
            self.dir.base.join(format!("{}{:016x}", spooled(&self.dir.worker_id), rand::random::<u64>()));
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).map_err(|e| internal(e.into()))?;
        std::fs::remove_file(&path).map_err(internal)?;
        Ok(fd)
    }

    /// Removes those that still have a name, of hosts that died in between.
    pub(super) fn sweep_spools(&self) {
        let own = spooled(&self.dir.worker_id);
        for entry in std::fs::read_dir(&self.dir.base).into_iter().flatten().flatten() {
            let is_own =
                entry.file_name().to_str().and_then(|name| name.strip_prefix(&own)).is_some_and(|rest| {
                    rest.len() == 16 && rest.bytes().all(|byte| byte.is_ascii_hexdigit())
                });
            if is_own && let Err(error) = std::fs::remove_file(entry.path()) {
                tracing::warn!(%error, file = %entry.path().display(), "what an earlier host left cannot be removed");
            }
        }
    }

    /// `first` is done as the host, `work` as the session.
    fn start_work<T>(
        &mut self,
        job: Job<'_>,
        keep: &[i32],
        uid: Option<u32>,
        first: impl FnOnce() -> T,
        work: impl FnOnce(T) -> Result<Summary>,
    ) -> Result<()> {
        let report =
            rustix::fs::memfd_create("cooper-report", MemfdFlags::CLOEXEC).map_err(|e| internal(e.into()))?;
        let told = File::from(report.try_clone().map_err(internal)?);
        let keep = [keep, &[told.as_raw_fd()]].concat();
        let Job { session, call_id, packs, archive, layer, globals } = job;
        let session = session.to_owned();
        let task = Task::Checkpoint(Work { call_id, session, archive, report, packs, layer, globals });
        let run = move || {
            // A panic must not unwind into the host's loop, of which this is a copy.
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                // New files are what the archive says, whatever the host's own mask.
                rustix::process::umask(Mode::empty());
                let done = first();
                uid.map_or(Ok(()), sys::become_user).map_err(internal)?;
                // Anew: a change of uid takes it back.
                rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
                    .map_err(|e| internal(e.into()))?;
                work(done)
            }));
            let report = match done {
                Ok(Ok(summary)) => Report::Done(summary),
                Ok(Err(error)) => {
                    Report::Failed { code: error.code.as_str().to_owned(), message: error.message }
                }
                Err(_) => return false,
            };
            serde_json::to_vec(&report).is_ok_and(|report| { &told }.write_all(&report).is_ok())
        };
        let pid = self.help(task, &keep, run).map_err(internal)?;
        self.timers.add(clock::mono_ms() + limits::WORK_MS, Due::Helper(pid));
        Ok(())
    }

    pub(super) fn checkpoint_work_done(&mut self, work: Work, well: bool) {
        let died = || Error::internal("the process that packs or unpacks ended without an answer");
        let report = if well { read_report(work.report).map_err(internal) } else { Err(died()) };
        let done = match report {
            Ok(Report::Done(summary)) => Ok(summary),
            Ok(Report::Failed { code, message }) => {
                Err(Error::new(Code::parse(&code).unwrap_or(Code::Internal), message))
            }
            Err(error) => Err(error),
        };
        if let Err(error) = &done {
            tracing::warn!(session = work.session, packs = work.packs, %error, "checkpoint");
        }
        if work.packs {
            let globals = work.globals.map(globals::Done::into_wire);
            return self.answer_pack(work.call_id, done.map(|summary| (summary, work.archive, globals)));
        }
        if let (Ok(_), Some(digest)) = (&done, work.layer) {
            let sharing = Sharing { session: work.session.clone(), call_id: work.call_id, digest };
            match self.share(work.archive, sharing) {
                // The session begins when it is done.
                Ok(()) => return,
                Err(error) => tracing::warn!(%error, "packages are not shared"),
            }
        }
        let filled = done.and_then(|_| self.filled(&work.session));
        self.answer_unpack(work.call_id, filled.err().as_ref());
    }

    /// The files are there: the session begins.
    fn filled(&mut self, id: &str) -> Result<()> {
        let session = self.sessions.get_mut(id).ok_or_else(|| unknown_session(id))?;
        if session.state != State::Initializing || !session.record.restoring {
            return Err(Error::new(Code::SessionEnded, format!("session {id} has ended meanwhile")));
        }
        session.artifacts = Known::unpacked(&session.home.dir).map_err(internal)?;
        session.record.restoring = false;
        let globals = session.home.workspace().join(globals::FILE);
        session.record.globals = std::fs::symlink_metadata(globals).is_ok_and(|found| found.is_file());
        if let Err(error) = session.record.write(&session.home.dir) {
            session.record.restoring = true;
            return Err(internal(error));
        }
        failpoint::pass(failpoint::name::UNPACKED_BEFORE_READY);
        self.start_interpreter(id);
        Ok(())
    }

    fn answer_pack(&mut self, call_id: u64, packed: Result<(Summary, OwnedFd, Option<v1::GlobalsSummary>)>) {
        let mut answer = wire::FileOpened { call_id, ..wire::FileOpened::default() };
        let mut fds = Vec::new();
        match packed {
            Ok((summary, archive, globals)) => {
                answer.summary = Some(v1::WorkspaceSummary {
                    files: summary.files,
                    directories: summary.directories,
                    symlinks: summary.symlinks,
                    hard_links: summary.hard_links,
                    content_bytes: summary.content_bytes,
                    skipped: summary.skipped,
                    skipped_count: summary.skipped_count,
                    globals,
                });
                fds.push(archive);
            }
            Err(error) => answer.error = Some(to_wire(&error)),
        }
        self.link.tell(to_link::Message::FileOpened(answer), fds);
    }

    fn answer_unpack(&mut self, call_id: u64, error: Option<&Error>) {
        let mut answer = wire::FileClosed { call_id, ..wire::FileClosed::default() };
        match error {
            Some(error) => answer.error = Some(to_wire(error)),
            None => answer.stat = Some(v1::FileStat::default()),
        }
        self.link.tell(to_link::Message::FileClosed(answer), Vec::new());
    }

    /// Why a file that was being written must not take its place: the session was packed meanwhile, and it would be lost.
    pub(super) fn write_refused(&mut self, call: &wire::CloseFile) -> Option<Error> {
        let session = self.checkpoints.writes.remove(&call.call_id)?;
        self.sessions.get(&session)?.accepts().err().filter(|_| call.commit)
    }

    /// The link that asked is gone, and what was being done for it is of no use to the next.
    pub(super) fn abandon_checkpoints(&mut self) {
        self.checkpoints = Checkpoints::default();
        let pids: Vec<Pid> = self
            .helpers
            .iter()
            .filter(|(_, task)| matches!(task, Task::Checkpoint(_)))
            .map(|(pid, _)| *pid)
            .collect();
        pids.into_iter().for_each(helper::end);
    }
}

fn internal(error: io::Error) -> Error {
    let code = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Code::StoreFull,
        _ => Code::Internal,
    };
    Error::new(code, format!("a session cannot be packed or unpacked: {error}"))
}

fn read_report(report: OwnedFd) -> io::Result<Report> {
    let mut report = File::from(report);
    report.rewind()?;
    Ok(serde_json::from_reader(report)?)
}

fn open_workspace(workspace: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(workspace, flags, Mode::empty()).map_err(|e| internal(e.into()))
}

/// Everything but the skeleton of the venv, and what calls are writing.
fn takes(path: &[u8]) -> bool {
    let python = |name: &[u8]| {
        name.strip_prefix(b"python")
            .is_some_and(|version| version.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.'))
    };
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    // What an installer was at work on is nobody's.
    let stage = stage::STAGE.as_bytes();
    if path.strip_prefix(stage).is_some_and(|rest| rest.is_empty() || rest[0] == b'/') {
        return false;
    }
    match path.strip_prefix(b".venv/") {
        Some(b"pyvenv.cfg" | b"lib64") => false,
        Some(rest) if rest.strip_prefix(b"bin/").is_some_and(python) => false,
        _ => !sweep::is_draft(name),
    }
}

fn is_script(path: &[u8]) -> bool {
    path.strip_prefix(b".venv/bin/").is_some_and(|name| !name.contains(&b'/'))
}

/// A script with the path of its interpreter in this venv instead of where it was: `#!/…/.venv/bin/python`, or the
/// `exec` that installers write where that is too long for the kernel.
fn moved(venv: &Path, content: Vec<u8>) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    let head = &content[..content.len().min(SCRIPT_HEAD_BYTES)];
    let found = head.windows(VENV_PYTHON.len()).position(|part| part == VENV_PYTHON);
    let (true, Some(at)) = (head.starts_with(b"#!"), found) else { return content };
    let begins =
        head[..at].iter().rposition(|byte| matches!(byte, b'!' | b'"' | b'\'')).map_or(0, |at| at + 1);
    let python = at + b"/workspace/.venv".len();
    [&content[..begins], venv.as_os_str().as_bytes(), &content[python..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_name_the_interpreter_of_where_they_are() {
        let here = |text: &str| {
            String::from_utf8(moved(Path::new("/new/ses_2/workspace/.venv"), text.into())).unwrap()
        };
        assert_eq!(
            here("#!/old/ses_1/workspace/.venv/bin/python3\nimport x\n"),
            "#!/new/ses_2/workspace/.venv/bin/python3\nimport x\n"
        );
        assert_eq!(
            here("#!/bin/sh\n'''exec' \"/o l d/ses_1/workspace/.venv/bin/python\" \"$0\" \"$@\"\n' '''\n"),
            "#!/bin/sh\n'''exec' \"/new/ses_2/workspace/.venv/bin/python\" \"$0\" \"$@\"\n' '''\n"
        );
        for other in ["#!/usr/bin/python3\n", "\x7fELF /x/workspace/.venv/bin/python", ""] {
            assert_eq!(here(other), other);
        }
    }

    #[test]
    fn the_skeleton_of_the_venv_is_left_out_and_what_is_installed_is_not() {
        for path in [
            ".venv/pyvenv.cfg",
            ".venv/lib64",
            ".venv/bin/python",
            ".venv/bin/python3.11",
            "a/.cooper-0123456789abcdef.part",
            ".cooper-0123456789abcdef.gone",
            ".cooper-0123456789abcdef.archive",
        ] {
            assert!(!takes(path.as_bytes()), "{path}");
        }
        for path in
            [".venv/bin/pip", ".venv/bin/python-config", ".venv/lib/python3.11/site-packages/x.py", "python3"]
        {
            assert!(takes(path.as_bytes()), "{path}");
        }
    }
}
