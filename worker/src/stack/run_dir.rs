//! The directory of a run, `<worker dir>/runs/<run id>/`: what a step leaves for later ones.
//!
//! `start.json` how everything was · `unbuilt.json` whether the context did not build · `stage/<plan>/` the patched copy
//! of the build context · `candidates.json` images built · `restart.json` that the service's tag is about to move ·
//! `preimages/` and `journal.json` of the promotion.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;
use serde::{Serialize, de::DeserializeOwned};

use cooper_common::clock;
use cooper_common::error::{Code, Error, Result};
use cooper_common::ids::RunId;

use super::While;

/// Directories of runs are removed at this age; no run lives as long.
const KEPT_MS: u128 = 14 * 24 * 3_600_000;
/// How long another step is waited for that works on the same run or project: a repeated step meets one that is ending.
const LOCK_WAIT_MS: u64 = 30_000;

/// Records in the directory.
pub(super) const START: &str = "start.json";
pub(super) const UNBUILT: &str = "unbuilt.json";
pub(super) const CANDIDATES: &str = "candidates.json";
/// The image that was built again because the one of the start was gone.
pub(super) const REBUILT: &str = "rebuilt.json";
/// What the last build printed, without secrets.
pub(super) const BUILD_LOG: &str = "build.json";
pub(super) const PREFLIGHT: &str = "preflight.json";
pub(super) const RESTART: &str = "restart.json";
pub(super) const JOURNAL: &str = "journal.json";

/// A run's directory, held by this process alone.
pub(super) struct RunDir {
    path: PathBuf,
    _lock: File,
}

impl RunDir {
    /// Makes the directory if need be and locks it.
    pub(super) async fn open(worker_dir: &Path, run: RunId) -> Result<Self> {
        let path = worker_dir.join("runs").join(run.to_string());
        make_dir(&path)?;
        let lock = lock(&path.join("lock")).await?;
        Ok(Self { path, _lock: lock })
    }

    /// True if the run has been on this worker, and not too long ago.
    pub(super) fn exists(worker_dir: &Path, run: RunId) -> bool {
        worker_dir.join("runs").join(run.to_string()).is_dir()
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The record of that name, if it was written.
    pub(super) fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        match fs::read(self.path(name)) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map(Some).while_doing(format_args!("reading the run's {name}"))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).while_doing(format_args!("reading the run's {name}")),
        }
    }

    /// Writes a record whole and durably, or not at all.
    pub(super) fn write<T: Serialize>(&self, name: &str, record: &T) -> Result<()> {
        let bytes =
            serde_json::to_vec_pretty(record).while_doing(format_args!("writing the run's {name}"))?;
        self.write_bytes(name, &bytes)
    }

    /// Like [`Self::write`], for bytes; `name` may be `directory/file` of a directory that exists.
    pub(super) fn write_bytes(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path(name);
        let new = path.with_extension("new");
        let write = || {
            let mut file =
                fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(path.parent().unwrap_or(&self.path))?.sync_all()
        };
        write().while_doing(format_args!("writing the run's {name}"))
    }

    /// Makes a directory in it.
    pub(super) fn make(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        make_dir(&path)?;
        Ok(path)
    }

    /// Removes a directory in it, if it is there.
    pub(super) fn remove(&self, name: &str) -> Result<()> {
        match fs::remove_dir_all(self.path(name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).while_doing(format_args!("removing the run's {name}"))
            }
            _ => Ok(()),
        }
    }
}

/// Holds what may change a project, but for builds, against other runs until it is dropped.
pub(super) async fn lock_project(worker_dir: &Path, project: &str) -> Result<File> {
    let dir = worker_dir.join("locks");
    make_dir(&dir)?;
    // Project names hold only letters, digits, `-` and `_`.
    lock(&dir.join(format!("{project}.lock"))).await
}

/// Removes what runs of long ago have left.
pub(super) fn prune(worker_dir: &Path) {
    let now = u128::from(clock::wall_ms().unsigned_abs());
    let old = |entry: &fs::DirEntry| {
        let changed = entry.metadata().and_then(|meta| meta.modified()).ok()?;
        let changed = changed.duration_since(std::time::UNIX_EPOCH).ok()?.as_millis();
        Some(now.saturating_sub(changed) > KEPT_MS)
    };
    let Ok(entries) = fs::read_dir(worker_dir.join("runs")) else { return };
    for entry in entries.flatten().filter(|entry| old(entry) == Some(true)) {
        let _ = fs::remove_dir_all(entry.path());
    }
}

pub(super) fn make_dir(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .while_doing(format_args!("making {}", path.display()))
}

async fn lock(path: &Path) -> Result<File> {
    let file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .while_doing(format_args!("opening {}", path.display()))?;
    let start = clock::mono_ms();
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if clock::mono_ms() - start < LOCK_WAIT_MS => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(Error::new(
                    Code::ServiceLocked,
                    format!("another step holds {} for {} s", path.display(), LOCK_WAIT_MS / 1000),
                ));
            }
            Err(error) => return Err(error).while_doing(format_args!("locking {}", path.display())),
        }
    }
}
