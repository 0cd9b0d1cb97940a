//! A uid for each session, from a range that nobody else uses.
//!
//! A worker takes one block of the range for good and remembers it in its directory, so that the files of sessions it
//! finds again are still theirs. While its host lives, a socket name in the kernel holds the block: two workers of one
//! machine never share a uid, and nothing has to be cleaned up after one that was killed.

use std::{fs, io, ops::RangeInclusive, os::fd::OwnedFd, path::Path};

use cooper_common::{
    error::{Code, Error, Result},
    limits::confine::{UID_FIRST, UID_LAST, UID_SHORT_FIRST, UID_SHORT_LAST, UIDS_PER_WORKER},
};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Blocks tried at random before the range counts as taken.
const TRIES: u32 = 64;

pub struct Uids {
    block: RangeInclusive<u32>,
    next: u32,
    _claim: OwnedFd,
}

impl Uids {
    /// Takes the block this worker had before, or a free one. `range` is the configured one.
    pub fn open(dir: &Path, range: Option<RangeInclusive<u32>>) -> Result<Self> {
        let file = dir.join("uids");
        let range = range.unwrap_or_else(usual);
        let blocks = ((range.end() - range.start()) / UIDS_PER_WORKER).max(1);
        let block = |number: u32| {
            let first = range.start() + number * UIDS_PER_WORKER;
            first..=first.saturating_add(UIDS_PER_WORKER - 1).min(*range.end())
        };
        let kept = fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok());
        if let Some(first) = kept.filter(|first| range.contains(first)) {
            let block = block((first - range.start()) / UIDS_PER_WORKER);
            let claim = claim(*block.start()).map_err(|_| {
                Error::new(Code::DataBusy, format!("the uids from {first} on are another worker's here"))
                    .with_hint(format!("destroy this worker's sessions and remove {}", file.display()))
            })?;
            return Ok(Self::of(block, claim));
        }
        for _ in 0..TRIES {
            let block = block(rand::random::<u32>() % blocks);
            if let Ok(claim) = claim(*block.start()) {
                fs::write(&file, format!("{}\n", block.start())).map_err(|error| {
                    Error::new(Code::DataUnusable, format!("{}: {error}", file.display()))
                })?;
                return Ok(Self::of(block, claim));
            }
        }
        Err(Error::new(
            Code::DataBusy,
            format!("the uids {range:?} are taken by other workers of this machine"),
        )
        .with_hint("give this worker another range with session_uids"))
    }

    fn of(block: RangeInclusive<u32>, claim: OwnedFd) -> Self {
        // Not from the start again after a restart: the uid of the session that was destroyed last rests longest.
        let next = block.start() + rand::random::<u32>() % (block.end() - block.start() + 1);
        Self { block, next, _claim: claim }
    }

    /// The next uid that is not `used`: none whose session's files or processes may still be there.
    pub fn take(&mut self, used: impl Fn(u32) -> bool) -> Option<u32> {
        for _ in self.block.clone() {
            let uid = self.next;
            self.next = if uid >= *self.block.end() { *self.block.start() } else { uid + 1 };
            if !used(uid) {
                return Some(uid);
            }
        }
        None
    }
}

/// The range where nothing is configured.
pub fn usual() -> RangeInclusive<u32> {
    let (wide, short) = (UID_FIRST..=UID_LAST, UID_SHORT_FIRST..=UID_SHORT_LAST);
    if is_mapped(&wide) { wide } else { short }
}

/// A name in the kernel, gone with its holder.
fn claim(first: u32) -> io::Result<OwnedFd> {
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let name = SocketAddrUnix::new_abstract_name(format!("cooper-uids-{first}").as_bytes())?;
    rustix::net::bind(&socket, &name)?;
    Ok(socket)
}

/// Whether these uids exist here: a container in a user namespace may have few.
fn is_mapped(range: &RangeInclusive<u32>) -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.lines().any(|line| {
        let mut numbers = line.split_ascii_whitespace().map(|number| number.parse::<u64>().unwrap_or(0));
        let (first, _, count) = (numbers.next(), numbers.next(), numbers.next());
        let (first, count) = (first.unwrap_or(0), count.unwrap_or(0));
        first <= u64::from(*range.start()) && u64::from(*range.end()) < first + count
    })
}

/// `FIRST-LAST`, as the setting `session_uids` has it.
pub fn parse(text: &str) -> Result<RangeInclusive<u32>> {
    let range = text
        .split_once('-')
        .and_then(|(first, last)| Some(first.trim().parse::<u32>().ok()?..=last.trim().parse::<u32>().ok()?));
    // 65,534 is nobody, under whom the link runs; the last number means "no uid" to the kernel.
    range
        .filter(|range| *range.start() >= 1_000 && range.start() < range.end() && *range.end() < u32::MAX)
        .filter(|range| !range.contains(&crate::config::NOBODY))
        .ok_or_else(|| {
            Error::new(Code::ConfigInvalid, format!("session_uids: {text:?} is not FIRST-LAST, from 1000 on"))
        })
}

/// Gives a directory and all beneath to `uid`, without following links. For files that nobody is changing.
pub fn own(path: &Path, uid: u32) -> io::Result<()> {
    std::os::unix::fs::lchown(path, Some(uid), Some(uid))?;
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            own(&entry?.path(), uid)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_workers_never_share_a_uid_and_each_keeps_its_own() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        // Room for two blocks only; names in the kernel are per machine, so the range is this test's own.
        let range = Some(4_000_000_000..=4_000_000_000 + 2 * UIDS_PER_WORKER - 1);
        let first = Uids::open(a.path(), range.clone()).unwrap();
        let second = Uids::open(b.path(), range.clone());
        if let Ok(second) = &second {
            assert_ne!(first.block, second.block);
        }
        let block = first.block.clone();
        drop((first, second));
        assert_eq!(Uids::open(a.path(), range).unwrap().block, block);
    }

    #[test]
    fn a_uid_in_use_is_not_given_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut uids = Uids::open(dir.path(), Some(4_100_000_000..=4_100_000_003)).unwrap();
        let first = uids.take(|_| false).unwrap();
        assert!((0..8).all(|_| uids.take(|uid| uid == first).unwrap() != first));
        assert_eq!(uids.take(|_| true), None);
    }

    #[test]
    fn a_range_with_system_uids_is_refused() {
        assert_eq!(parse("20000-30000").unwrap(), 20_000..=30_000);
        for bad in ["", "5", "0-70000", "1000-70000", "30000-20000", "1000-4294967295"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
