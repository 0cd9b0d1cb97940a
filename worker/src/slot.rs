//! Slots: numbered directories that the replicas of one worker share.
//!
//! Replicas of a container are told the same things and have the same volume. Each takes the first directory that nobody
//! holds, and becomes the worker whose id, spool and sessions are in there. The kernel's lock goes with its holder: what
//! a replica that was killed had is free at once, for the one that takes its place.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io,
    ops::RangeInclusive,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use cooper_common::{
    error::{Code, Error, Result},
    limits::slot::SLOTS_MAX,
};
use rustix::fs::FlockOperation;

use crate::confine::uids;

/// A directory that no other worker has, for as long as this lives.
#[derive(Debug)]
pub struct Slot {
    /// The first is 1.
    pub number: u32,
    pub name: String,
    pub dir: PathBuf,
    _lock: File,
}

impl Slot {
    /// The first of `dir/worker-1`, `dir/worker-2`, … that nobody holds.
    pub fn claim(dir: &Path) -> Result<Self> {
        let unusable = |what: &Path, error: io::Error| {
            Error::new(Code::DataUnusable, format!("{}: {error}", what.display()))
        };
        for number in 1..=SLOTS_MAX {
            let name = format!("worker-{number}");
            let slot = dir.join(&name);
            // Sessions pass it on the way to their homes, and cannot list it.
            DirBuilder::new().recursive(true).mode(0o711).create(&slot).map_err(|e| unusable(&slot, e))?;
            let path = slot.join("slot.lock");
            let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
            let lock = lock.map_err(|e| unusable(&path, e))?;
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self { number, name, dir: slot, _lock: lock }),
                Err(rustix::io::Errno::WOULDBLOCK) => {}
                Err(error) => return Err(unusable(&path, error.into())),
            }
        }
        Err(Error::new(
            Code::DataBusy,
            format!("{}: all of its {SLOTS_MAX} slots are other workers'", dir.display()),
        )
        .with_hint("give further workers a directory of their own"))
    }

    /// Replicas do not see each other's claims to uids, but they see each other's files: each has a part of the range.
    pub fn uids(&self, range: Option<RangeInclusive<u32>>) -> RangeInclusive<u32> {
        let range = range.unwrap_or_else(uids::usual);
        let part = (range.end() - range.start()) / SLOTS_MAX;
        let first = range.start() + (self.number - 1) * part;
        first..=first + part.max(1) - 1
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn each_worker_has_a_slot_and_one_that_is_given_up_is_the_next_ones() {
        let dir = tempfile::tempdir().unwrap();
        let first = Slot::claim(dir.path()).unwrap();
        let second = Slot::claim(dir.path()).unwrap();
        let third = Slot::claim(dir.path()).unwrap();
        assert_eq!([first.number, second.number, third.number], [1, 2, 3]);
        assert_eq!(second.dir, dir.path().join("worker-2"));
        fs::write(second.dir.join("worker_id"), "kept").unwrap();
        drop(second);
        let again = Slot::claim(dir.path()).unwrap();
        assert_eq!(again.number, 2);
        assert_eq!(fs::read_to_string(again.dir.join("worker_id")).unwrap(), "kept");
    }

    #[test]
    fn slots_share_no_uid() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (Slot::claim(dir.path()).unwrap(), Slot::claim(dir.path()).unwrap());
        for range in [None, Some(20_000..=59_999)] {
            let (a, b) = (first.uids(range.clone()), second.uids(range.clone()));
            assert!(a.end() < b.start(), "{a:?} {b:?}");
            assert!(!a.is_empty() && !b.is_empty());
        }
        assert_eq!(first.uids(None), first.uids(None), "the same slot has the same uids again");
    }
}
