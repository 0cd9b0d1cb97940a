//! The worker's directory: one live host at a time, a stable id, and a number that grows with every start.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use cooper_common::{
    clock,
    error::{Code, Error, Result},
    limits,
};
use rustix::{
    fs::FlockOperation,
    process::{Pid, Signal},
};

use super::tree;

/// Environment variable of everything a host starts; its value is the host's directory.
pub const MARK: &str = "COOPER_HOST_DIR";

/// How long a live host of the same directory may take to end.
const TAKEOVER_MS: u64 = limits::stop::HOST_MS;

pub struct Dir {
    /// Absolute.
    pub path: PathBuf,
    pub worker_id: String,
    pub incarnation: u64,
    /// Where sessions live. Absolute.
    pub base: PathBuf,
    /// Held while the host lives.
    _lock: File,
}

impl Dir {
    /// Takes the directory over: ends the host that holds it, and everything a dead one left.
    pub fn open(path: &Path, base: Option<&Path>, worker_id: Option<&str>) -> Result<Self> {
        let unusable = |what: &Path, error: io::Error| {
            Error::new(Code::DataUnusable, format!("{}: {error}", what.display()))
        };
        let private = |dir: &Path| {
            // What is missing above may have to be passed by sessions, to their own homes.
            let parent = dir.parent().unwrap_or(Path::new("/"));
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o711)
                .create(parent)
                .map_err(|e| unusable(parent, e))?;
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .and_then(|()| fs::canonicalize(dir))
                .map_err(|e| unusable(dir, e))
        };
        let path = private(path)?;
        let lock = take_lock(&path.join("host.lock"))?;
        sweep(&path);
        let base = private(base.unwrap_or(&path.join("sessions")))?;
        let spool = path.join("spool");
        if spool.exists() {
            fs::remove_dir_all(&spool).map_err(|e| unusable(&spool, e))?;
        }
        private(&spool)?;
        let worker_id = keep_worker_id(&path, worker_id).map_err(|e| unusable(&path, e))?;
        let incarnation = next_incarnation(&path).map_err(|e| unusable(&path, e))?;
        Ok(Self { path, worker_id, incarnation, base, _lock: lock })
    }

    pub fn spool(&self) -> PathBuf {
        self.path.join("spool")
    }
}

fn take_lock(path: &Path) -> Result<File> {
    let busy = |what: String| Error::new(Code::DataBusy, format!("{}: {what}", path.display()));
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|e| Error::new(Code::DataUnusable, format!("{}: {e}", path.display())))?;
    let try_lock = || rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
    if !try_lock() {
        let mut text = String::new();
        (&file).read_to_string(&mut text).map_err(|e| busy(e.to_string()))?;
        let holder = text
            .trim()
            .parse()
            .ok()
            // A negative one would name a process group.
            .filter(|pid| *pid > 0)
            .and_then(Pid::from_raw)
            .ok_or_else(|| busy("held by an unknown process".to_owned()))?;
        tracing::info!(pid = holder.as_raw_nonzero().get(), "another host holds this directory; ending it");
        let _ = rustix::process::kill_process(holder, Signal::TERM);
        if !within(TAKEOVER_MS, try_lock) {
            let _ = rustix::process::kill_process(holder, Signal::KILL);
            if !within(1_000, try_lock) {
                return Err(busy("another host holds it and does not end".to_owned()));
            }
        }
    }
    let written =
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    written.map_err(|e| busy(e.to_string()))?;
    Ok(file)
}

fn within(ms: u64, mut done: impl FnMut() -> bool) -> bool {
    let deadline = clock::mono_ms() + ms;
    loop {
        if done() {
            return true;
        }
        if clock::mono_ms() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Kills what a dead host of this directory left. Its subreapers do that themselves; this is for when they were
/// killed too.
fn sweep(dir: &Path) {
    let mark = format!("{MARK}={}", dir.display());
    let me = std::process::id() as i32;
    let gone = within(2_000, || {
        let left = marked(mark.as_bytes(), me);
        left.iter().for_each(|pid| tree::signal(*pid, Signal::KILL));
        left.is_empty()
    });
    if !gone {
        tracing::warn!("processes of an earlier host of this directory do not end");
    }
}

fn marked(mark: &[u8], except: i32) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != except)
        .filter(|pid| {
            fs::read(format!("/proc/{pid}/environ"))
                .is_ok_and(|environ| environ.split(|byte| *byte == 0).any(|entry| entry == mark))
        })
        .collect()
}

/// The configured id, else the one kept on disk, else a new one; kept from now on.
fn keep_worker_id(dir: &Path, configured: Option<&str>) -> io::Result<String> {
    let file = dir.join("worker_id");
    let kept = fs::read_to_string(&file).ok().map(|id| id.trim().to_owned()).filter(|id| !id.is_empty());
    let id = match (configured, &kept) {
        (Some(id), _) => id.to_owned(),
        (None, Some(id)) => return Ok(id.clone()),
        (None, None) => format!("wrk_{:032x}", rand::random::<u128>()),
    };
    if kept.as_ref() != Some(&id) {
        write_durably(&file, &format!("{id}\n"))?;
    }
    Ok(id)
}

fn next_incarnation(dir: &Path) -> io::Result<u64> {
    let file = dir.join("incarnation");
    let last: u64 = fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    write_durably(&file, &format!("{}\n", last + 1))?;
    Ok(last + 1)
}

/// Replaces a file so that after a power loss it holds the old or the new content, whole.
pub fn write_durably(path: &Path, content: &str) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_stays_and_the_incarnation_grows() {
        let dir = tempfile::tempdir().unwrap();
        let first = Dir::open(dir.path(), None, None).unwrap();
        let (id, incarnation) = (first.worker_id.clone(), first.incarnation);
        drop(first);
        let second = Dir::open(dir.path(), None, None).unwrap();
        assert_eq!((second.worker_id, second.incarnation), (id, incarnation + 1));
    }

    #[test]
    fn what_carries_the_mark_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let path = fs::canonicalize(dir.path()).unwrap();
        let mut left = std::process::Command::new("sleep").arg("60").env(MARK, &path).spawn().unwrap();
        // A program's environment can be read a moment after its start.
        while fs::read(format!("/proc/{}/environ", left.id())).unwrap().is_empty() {
            std::thread::yield_now();
        }
        // The child of a test has to be waited for, or it stays a zombie whose environment is empty: not marked.
        sweep(&path);
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&left.wait().unwrap()), Some(9));
    }
}
