//! What an execution leaves beneath `artifacts/` of its session's workspace. When it ends, a process of the session's own
//! uid looks for files that are new or changed and copies them into one file without a name; the link sends the parts of
//! that before it says the result. The next execution of the session runs meanwhile.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, File},
    io::{self, Read, Seek, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    sync::Arc,
};

use cooper_common::{clock, limits::artifact as limits};
use cooper_proto::{host as wire, v1};
use rustix::{
    fs::{FileType, MemfdFlags, Mode, Stat},
    io::Errno,
    process::Signal,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    Due, Host,
    attempt::State as Doing,
    beneath,
    files::walk::Walk,
    helper::Task,
    outcome::Kind,
    session::{Session, State},
    sys,
};
use crate::etag;

const DIRECTORY: &[u8] = b"artifacts";
/// Beside the session's record.
const KNOWN: &str = "artifacts.json";

/// What was there when the session's files were looked at last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// The state of each file, by its path beneath the directory.
    files: BTreeMap<String, String>,
    /// Files that were not touched since then came with a checkpoint, and were made elsewhere. Unix nanoseconds.
    #[serde(default)]
    since_ns: i128,
}

impl Known {
    /// Of a session that a host before this one had. What cannot be read is not known: those files are sent once more.
    pub fn read(home: &Path) -> Self {
        fs::read(home.join(KNOWN))
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default()
    }

    /// Of a session whose files were just unpacked.
    pub fn unpacked(home: &Path) -> io::Result<Self> {
        let known = Self { files: BTreeMap::new(), since_ns: i128::from(clock::wall_ms()) * 1_000_000 };
        known.write(home)?;
        Ok(known)
    }

    fn write(&self, home: &Path) -> io::Result<()> {
        let fresh = home.join(".artifacts.json");
        fs::write(&fresh, serde_json::to_vec(self)?)?;
        fs::rename(fresh, home.join(KNOWN))
    }

    fn has(&self, name: &str, stat: &Stat, etag: &str) -> bool {
        let changed_ns = i128::from(stat.st_ctime) * 1_000_000_000 + i128::from(stat.st_ctime_nsec);
        changed_ns < self.since_ns || self.files.get(name).is_some_and(|known| known == etag)
    }

    /// Whether a short look finds nothing that is not known. False when it would be a long one.
    fn is_all(&self, directory: &OwnedFd) -> bool {
        let Ok(mut walk) = directory.try_clone().map_err(Errno::from_io).and_then(whole) else {
            return false;
        };
        for _ in 0..limits::GLANCE_MAX {
            let Some(entry) = walk.step() else { return walk.skipped == 0 && !walk.too_deep };
            let name = String::from_utf8_lossy(&entry.path);
            if entry.kind() != FileType::Directory
                && !self.has(&name, &entry.stat, &etag::of_stat(&entry.stat))
            {
                return false;
            }
        }
        false
    }
}

/// What a process found. It is a session's uid that wrote it, in code of ours.
#[derive(Default, Serialize, Deserialize)]
struct Report {
    known: Known,
    parts: Vec<Part>,
    skipped: Vec<(String, String)>,
    skipped_count: u64,
}

#[derive(Serialize, Deserialize)]
struct Part {
    name: String,
    offset: u64,
    size_bytes: u64,
    sha256: String,
}

impl Report {
    fn skip(&mut self, name: &str, reason: &str) {
        self.skipped_count += 1;
        if self.skipped.len() < limits::SKIPPED_NAMED_MAX {
            self.skipped.push((name.chars().take(limits::NAME_BYTES_MAX).collect(), reason.to_owned()));
        }
    }
}

/// Files of an attempt, until it is forgotten.
pub struct Collected {
    pub parts: Vec<wire::ArtifactPart>,
    pub file: Arc<OwnedFd>,
    pub bytes: u64,
    /// This link has the file.
    pub named: bool,
}

/// What a process is collecting.
pub struct Work {
    attempt: u64,
    session: String,
    file: OwnedFd,
    report: OwnedFd,
}

impl Host {
    /// Looks for what an attempt that has ended made. False: there is nothing to wait for.
    pub(super) fn collect(&mut self, id: u64) -> bool {
        let Some(attempt) = self.attempts.get(&id) else { return false };
        if !matches!(attempt.kind, Kind::Python | Kind::Shell) {
            return false;
        }
        let Some(name) = attempt.session.clone() else { return false };
        let Some(session) = self.sessions.get_mut(&name).filter(|session| session.state == State::Ready)
        else {
            return false;
        };
        if let Some(waiting) = &mut session.collecting {
            waiting.push_back(id);
            return true;
        }
        let Some(directory) = directory_of(session) else { return false };
        if session.artifacts.is_all(&directory) {
            return false;
        }
        match self.start_collecting(id, &name, &directory) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(session = name, %error, "artifacts cannot be looked for");
                self.note_uncollected(id);
                false
            }
        }
    }

    fn start_collecting(&mut self, id: u64, name: &str, directory: &OwnedFd) -> io::Result<()> {
        let held: u64 =
            self.attempts.values().filter_map(|it| it.artifacts.as_ref()).map(|it| it.bytes).sum();
        let room = limits::WORKER_BYTES_MAX.saturating_sub(held);
        let file = self.spool().map_err(|error| io::Error::other(error.message))?;
        let report = rustix::fs::memfd_create("cooper-artifacts", MemfdFlags::CLOEXEC)?;
        let Some(session) = self.sessions.get(name) else { return Err(io::ErrorKind::NotFound.into()) };
        let (uid, known) = (session.uid(), session.artifacts.clone());
        let (mut copy, told) = (File::from(file.try_clone()?), File::from(report.try_clone()?));
        let directory = directory.try_clone()?;
        let keep = [copy.as_raw_fd(), told.as_raw_fd(), directory.as_raw_fd()];
        let work = Work { attempt: id, session: name.to_owned(), file, report };
        let pid = self.help(Task::Artifacts(work), &keep, move || {
            // A panic must not unwind into the host's loop, of which this is a copy.
            let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                uid.map_or(Ok(()), sys::become_user)?;
                // Anew: a change of uid takes it back.
                rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
                look(directory, &known, &mut copy, room)
            }));
            let Ok(Ok(report)) = found else { return false };
            serde_json::to_vec(&report).is_ok_and(|report| { &told }.write_all(&report).is_ok())
        })?;
        if let Some(session) = self.sessions.get_mut(name) {
            session.collecting = Some(VecDeque::new());
        }
        self.timers.add(clock::mono_ms() + limits::LOOK_MS, Due::Helper(pid));
        Ok(())
    }

    fn note_uncollected(&mut self, id: u64) {
        if let Some(attempt) = self.attempts.get_mut(&id)
            && let Doing::Collecting((_, outcome)) = &mut attempt.state
        {
            outcome.artifacts_skipped =
                vec![v1::ArtifactSkipped { name: String::new(), reason: "unreadable".to_owned() }];
            outcome.artifacts_skipped_count = 1;
        }
    }

    pub(super) fn collecting_done(&mut self, work: Work, well: bool) {
        let Work { attempt: id, session: name, file, report } = work;
        let report = if well { read(report) } else { Err(io::Error::other("it ended without an answer")) };
        let waiting = match self.sessions.get_mut(&name) {
            Some(session) => {
                if let Ok(report) = &report {
                    session.artifacts = report.known.clone();
                    if let Err(error) = session.artifacts.write(&session.home.dir) {
                        tracing::warn!(session = name, %error, "which artifacts are known is not on the disk");
                    }
                }
                session.collecting.take().unwrap_or_default()
            }
            None => VecDeque::new(),
        };
        match report {
            Ok(report) => self.note_collected(id, file, report),
            Err(error) => {
                tracing::warn!(session = name, %error, "artifacts were not collected");
                self.note_uncollected(id);
            }
        }
        self.say_end(id);
        for next in waiting {
            if !self.collect(next) {
                self.say_end(next);
            }
        }
        self.advance(&name);
    }

    fn note_collected(&mut self, id: u64, file: OwnedFd, report: Report) {
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        let Doing::Collecting((_, outcome)) = &mut attempt.state else { return };
        outcome.artifacts_skipped_count = report.skipped_count;
        outcome.artifacts_skipped =
            report.skipped.into_iter().map(|(name, reason)| v1::ArtifactSkipped { name, reason }).collect();
        if report.parts.is_empty() {
            return;
        }
        let bytes = report.parts.iter().map(|part| part.size_bytes).sum();
        let parts = report.parts.into_iter().map(|Part { name, offset, size_bytes, sha256 }| {
            wire::ArtifactPart { name, offset, size_bytes, sha256 }
        });
        attempt.artifacts =
            Some(Collected { parts: parts.collect(), file: Arc::new(file), bytes, named: false });
    }
}

/// The directory, if there is one. What else has its name is the session's business.
fn directory_of(session: &Session) -> Option<OwnedFd> {
    let root = rustix::fs::open(session.home.workspace(), beneath::DIRECTORY, Mode::empty()).ok()?;
    beneath::open_plain(&root, DIRECTORY, beneath::LISTABLE).ok()
}

fn read(report: OwnedFd) -> io::Result<Report> {
    let mut report = File::from(report);
    report.rewind()?;
    Ok(serde_json::from_reader(io::BufReader::new(report))?)
}

fn whole(directory: OwnedFd) -> Result<Walk, Errno> {
    Walk::new(directory, true, true, b"")
}

trait FromIo {
    fn from_io(error: io::Error) -> Errno;
}
impl FromIo for Errno {
    fn from_io(error: io::Error) -> Errno {
        Errno::from_io_error(&error).unwrap_or(Errno::IO)
    }
}

/// Copies what is not known into `out`. At most `room` bytes.
fn look(directory: OwnedFd, known: &Known, out: &mut File, room: u64) -> io::Result<Report> {
    let mut report =
        Report { known: Known { since_ns: known.since_ns, ..Known::default() }, ..Report::default() };
    let mut walk = whole(directory)?;
    let (mut looked_at, mut bytes) = (0, 0);
    while let Some(entry) = walk.step() {
        if entry.kind() == FileType::Directory {
            continue;
        }
        looked_at += 1;
        if looked_at > limits::LOOKED_AT_MAX {
            report.skip("", "too_many");
            break;
        }
        let name = String::from_utf8_lossy(&entry.path).into_owned();
        let mut etag = etag::of_stat(&entry.stat);
        if known.has(&name, &entry.stat, &etag) {
            report.known.files.insert(name, etag);
            continue;
        }
        let size = u64::try_from(entry.stat.st_size).unwrap_or(0);
        // What may go with a later execution is not known until then.
        let later = if report.parts.len() >= limits::PER_EXECUTION_MAX {
            Some("too_many")
        } else if bytes + size.min(limits::FILE_BYTES_MAX) > limits::EXECUTION_BYTES_MAX {
            Some("too_much")
        } else if bytes + size.min(limits::FILE_BYTES_MAX) > room {
            Some("worker_full")
        } else {
            None
        };
        let reason = match entry.kind() {
            FileType::Symlink => Some("symlink"),
            FileType::RegularFile if std::str::from_utf8(&entry.path).is_err() => Some("name"),
            FileType::RegularFile if name.len() > limits::NAME_BYTES_MAX => Some("name"),
            FileType::RegularFile if size > limits::FILE_BYTES_MAX => Some("too_large"),
            FileType::RegularFile => None,
            _ => Some("special"),
        };
        if let (Some(reason), None) = (later, reason) {
            report.skip(&name, reason);
            continue;
        }
        let reason = match reason {
            Some(reason) => Some(reason),
            None => match copy(walk.directory(), &entry.name, out, bytes) {
                // The state that was read: one that came while it was read is another, for the next execution.
                Ok(Copied::Whole { size_bytes, sha256, etag: read }) => {
                    report.parts.push(Part { name: name.clone(), offset: bytes, size_bytes, sha256 });
                    (bytes, etag) = (bytes + size_bytes, read);
                    None
                }
                Ok(Copied::TooLarge) => Some("too_large"),
                Ok(Copied::Special) => Some("special"),
                Err(Fault::Theirs(Errno::NOENT)) => continue,
                Err(Fault::Theirs(_)) => Some("unreadable"),
                Err(Fault::Ours(error)) => return Err(error),
            },
        };
        if let Some(reason) = reason {
            report.skip(&name, reason);
        }
        report.known.files.insert(name, etag);
    }
    if walk.skipped > 0 || walk.too_deep {
        report.skip("", "unreadable");
    }
    Ok(report)
}

enum Copied {
    Whole { size_bytes: u64, sha256: String, etag: String },
    TooLarge,
    Special,
}

/// Whose fault it is that a file could not be copied.
enum Fault {
    Theirs(Errno),
    Ours(io::Error),
}

fn copy(directory: impl AsFd, name: &[u8], out: &mut File, offset: u64) -> Result<Copied, Fault> {
    let file = beneath::open_plain(directory, name, beneath::READABLE).map_err(Fault::Theirs)?;
    let stat = rustix::fs::fstat(&file).map_err(Fault::Theirs)?;
    if beneath::kind(&stat) != FileType::RegularFile {
        return Ok(Copied::Special);
    }
    let etag = etag::of_stat(&stat);
    out.seek(io::SeekFrom::Start(offset)).map_err(Fault::Ours)?;
    // One that grows while it is read ends at the limit.
    let mut file = File::from(file).take(limits::FILE_BYTES_MAX + 1);
    let (mut sha256, mut size_bytes) = (Sha256::new(), 0);
    let mut buffer = vec![0; 256 << 10];
    loop {
        let n = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Fault::Theirs(Errno::from_io(error))),
        };
        size_bytes += n as u64;
        sha256.update(&buffer[..n]);
        out.write_all(&buffer[..n]).map_err(Fault::Ours)?;
    }
    if size_bytes > limits::FILE_BYTES_MAX {
        return Ok(Copied::TooLarge);
    }
    Ok(Copied::Whole { size_bytes, sha256: format!("{:x}", sha256.finalize()), etag })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn looked(dir: &Path, known: &Known) -> (Report, Vec<u8>) {
        let mut out = tempfile::tempfile().unwrap();
        let report = look(File::open(dir).unwrap().into(), known, &mut out, u64::MAX).unwrap();
        let mut bytes = Vec::new();
        out.rewind().unwrap();
        out.read_to_end(&mut bytes).unwrap();
        (report, bytes)
    }

    fn names(report: &Report) -> Vec<&str> {
        report.parts.iter().map(|part| part.name.as_str()).collect()
    }

    #[test]
    fn what_is_new_or_changed_is_copied_once_and_all_else_is_said() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("a.txt"), "one").unwrap();
        fs::write(dir.path().join("sub/.b"), "two").unwrap();
        symlink("/etc/passwd", dir.path().join("link")).unwrap();
        let socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        fs::File::create(dir.path().join("large")).unwrap().set_len(limits::FILE_BYTES_MAX + 1).unwrap();

        let (first, bytes) = looked(dir.path(), &Known::default());
        assert_eq!(names(&first), ["a.txt", "sub/.b"]);
        assert_eq!(bytes, b"onetwo");
        assert_eq!(first.parts[0].sha256, format!("{:x}", Sha256::digest("one")));
        assert_eq!((first.parts[1].offset, first.parts[1].size_bytes), (3, 3));
        let said = [("large", "too_large"), ("link", "symlink"), ("socket", "special")];
        assert_eq!(first.skipped, said.map(|(name, reason)| (name.to_owned(), reason.to_owned())));
        drop(socket);

        let directory: OwnedFd = File::open(dir.path()).unwrap().into();
        assert!(first.known.is_all(&directory));
        let (second, _) = looked(dir.path(), &first.known);
        assert!(second.parts.is_empty() && second.skipped_count == 0);

        fs::write(dir.path().join("a.txt"), "three").unwrap();
        assert!(!first.known.is_all(&directory));
        let (third, bytes) = looked(dir.path(), &first.known);
        assert_eq!((names(&third), &bytes[..]), (vec!["a.txt"], &b"three"[..]));
    }

    #[test]
    fn what_is_too_much_for_one_execution_comes_with_the_next() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..limits::PER_EXECUTION_MAX + 30 {
            fs::write(dir.path().join(format!("{n:03}")), "").unwrap();
        }
        let (first, _) = looked(dir.path(), &Known::default());
        assert_eq!((first.parts.len(), first.skipped_count), (limits::PER_EXECUTION_MAX, 30));
        assert_eq!(first.skipped.len(), limits::SKIPPED_NAMED_MAX);
        assert!(first.skipped.iter().all(|(_, reason)| reason == "too_many"));
        let (second, _) = looked(dir.path(), &first.known);
        assert_eq!((second.parts.len(), second.skipped_count), (30, 0));
    }

    #[test]
    fn files_that_were_unpacked_are_known_until_they_change() {
        let (home, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(dir.path().join("old"), "1").unwrap();
        fs::write(dir.path().join("other"), "1").unwrap();
        // The kernel's clock of files is up to a tick behind.
        std::thread::sleep(std::time::Duration::from_millis(20));
        let known = Known::unpacked(home.path()).unwrap();
        assert_eq!(known, Known::read(home.path()));
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(dir.path().join("old"), "2").unwrap();
        assert_eq!(names(&looked(dir.path(), &known).0), ["old"]);
    }
}
