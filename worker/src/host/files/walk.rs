//! Goes through a directory and all beneath it, in the order of names, whatever its size and shape.
//!
//! No recursion, a bounded number of open directories and of names held. Links are entries, never followed; a directory
//! that was closed meanwhile is opened again beneath the root, without following links either, so what a session
//! renames while this goes on changes what is found, never where.

use std::{
    collections::BinaryHeap,
    ffi::OsStr,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
};

use cooper_common::limits::{
    files::{NAMES_HELD_MAX, OPEN_DIRECTORIES_MAX},
    request::PATH_BYTES_MAX,
};
use rustix::{
    fs::{AtFlags, Dir, FileType, Stat, statat},
    io::Errno,
};

use crate::host::beneath::{self, LISTABLE};

pub struct Walk {
    root: OwnedFd,
    levels: Vec<Level>,
    /// Directories are entered.
    recursive: bool,
    /// Also those whose name begins with a dot.
    hidden: bool,
    /// The directory found last, to be entered next.
    ahead: Option<(Vec<u8>, Vec<u8>)>,
    /// What could not be read.
    pub skipped: u64,
    /// A directory was not entered because its path is longer than any request could name.
    pub too_deep: bool,
    held_max: usize,
}

struct Level {
    /// `None`: closed meanwhile.
    dir: Option<OwnedFd>,
    /// Relative to the root; empty = the root.
    path: Vec<u8>,
    names: std::vec::IntoIter<Vec<u8>>,
    /// Name read last.
    last: Vec<u8>,
    more: bool,
}

pub struct Entry {
    /// Relative to where the walk began.
    pub path: Vec<u8>,
    pub name: Vec<u8>,
    pub stat: Stat,
}

impl Entry {
    pub fn kind(&self) -> FileType {
        beneath::kind(&self.stat)
    }
}

impl Walk {
    /// Beneath `root`, which is open for reading; behind `after` in the order of the walk.
    pub fn new(root: OwnedFd, recursive: bool, hidden: bool, after: &[u8]) -> Result<Self, Errno> {
        Self::holding(root, recursive, hidden, after, NAMES_HELD_MAX)
    }

    fn holding(
        root: OwnedFd,
        recursive: bool,
        hidden: bool,
        after: &[u8],
        held_max: usize,
    ) -> Result<Self, Errno> {
        let mut walk = Self {
            levels: Vec::new(),
            recursive,
            hidden,
            ahead: None,
            skipped: 0,
            too_deep: false,
            held_max,
            root,
        };
        let mut parts = after.split(|byte| *byte == b'/');
        let mut path = Vec::new();
        let first = parts.next().unwrap_or_default();
        walk.push(Vec::new(), first)?;
        let mut before = first;
        // Into the directories on the way to where the page before ended, as far as they are still there.
        while recursive && !before.is_empty() && walk.enters(before) {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(before);
            before = parts.next().unwrap_or_default();
            if walk.push(path.clone(), before).is_err() {
                break;
            }
        }
        Ok(walk)
    }

    fn enters(&self, name: &[u8]) -> bool {
        self.hidden || !name.starts_with(b".")
    }

    fn push(&mut self, path: Vec<u8>, after: &[u8]) -> Result<(), Errno> {
        let dir = self.open(&path)?;
        let mut level =
            Level { dir: Some(dir), path, names: Vec::new().into_iter(), last: after.to_vec(), more: true };
        level.load(self.held_max)?;
        self.levels.push(level);
        if let Some(far) = self.levels.len().checked_sub(OPEN_DIRECTORIES_MAX + 1) {
            self.levels[far].dir = None;
        }
        Ok(())
    }

    fn open(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        beneath::open_plain(&self.root, if path.is_empty() { b"." } else { path }, LISTABLE)
    }

    /// The directory that holds the entry found last.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.levels.last().and_then(|level| level.dir.as_ref()).unwrap_or(&self.root).as_fd()
    }

    pub fn step(&mut self) -> Option<Entry> {
        if let Some((path, name)) = self.ahead.take() {
            if path.len() >= PATH_BYTES_MAX {
                self.too_deep = true;
            } else if self.enters(&name) && self.push(path, b"").is_err() {
                self.skipped += 1;
            }
        }
        loop {
            let level = self.levels.last_mut()?;
            if level.dir.is_none() {
                let path = level.path.clone();
                match (self.open(&path), self.levels.last_mut()) {
                    (Ok(dir), Some(level)) => level.dir = Some(dir),
                    // Gone meanwhile.
                    _ => {
                        self.levels.pop();
                        continue;
                    }
                }
            }
            let held_max = self.held_max;
            let level = self.levels.last_mut()?;
            let Some(name) = level.names.next() else {
                if !level.more || level.load(held_max).is_err() {
                    self.levels.pop();
                }
                continue;
            };
            let Some(dir) = &level.dir else { continue };
            // Gone in the meantime: then it is not there.
            let Ok(stat) = statat(dir, OsStr::from_bytes(&name), AtFlags::SYMLINK_NOFOLLOW) else { continue };
            let mut path = level.path.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            if self.recursive && beneath::kind(&stat) == FileType::Directory {
                self.ahead = Some((path.clone(), name.clone()));
            }
            return Some(Entry { path, name, stat });
        }
    }
}

impl Level {
    /// The next names behind the last one: the smallest of them win a place, the largest leave first.
    fn load(&mut self, held_max: usize) -> Result<(), Errno> {
        let dir = self.dir.as_ref().ok_or(Errno::BADF)?;
        let mut names = BinaryHeap::new();
        self.more = false;
        for entry in Dir::read_from(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") || name <= &self.last[..] {
                continue;
            }
            if names.len() == held_max {
                self.more = true;
                if names.peek().is_some_and(|largest: &Vec<u8>| largest[..] <= *name) {
                    continue;
                }
                names.pop();
            }
            names.push(name.to_owned());
        }
        let names = names.into_sorted_vec();
        if let Some(last) = names.last() {
            self.last.clone_from(last);
        }
        self.names = names.into_iter();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::{Mode, mkdirat, openat};

    use super::*;

    fn walked(dir: &std::path::Path, after: &str, held: usize) -> Vec<String> {
        let root = fs::File::open(dir).unwrap().into();
        let mut walk = Walk::holding(root, true, false, after.as_bytes(), held).unwrap();
        std::iter::from_fn(|| walk.step()).map(|e| String::from_utf8_lossy(&e.path).into_owned()).collect()
    }

    #[test]
    fn a_walk_goes_on_behind_any_of_its_entries() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["a/b/c", "a/b.d", "a-b", "b", ".git/config", "a/z/.hidden/x", "c/1/2/3"] {
            fs::create_dir_all(dir.path().join(path).parent().unwrap()).unwrap();
            fs::write(dir.path().join(path), "").unwrap();
        }
        for n in 0..20 {
            fs::write(dir.path().join(format!("c/1/f{n:02}")), "").unwrap();
        }
        std::os::unix::fs::symlink("..", dir.path().join("a/up")).unwrap();
        let all = walked(dir.path(), "", usize::MAX);
        assert_eq!(all[..8], [".git", "a", "a/b", "a/b/c", "a/b.d", "a/up", "a/z", "a/z/.hidden"]);
        assert_eq!(all.len(), 34);
        for held in [1, 3, 1000] {
            for (at, path) in all.iter().enumerate() {
                assert_eq!(walked(dir.path(), path, held), all[at + 1..], "{path} {held}");
            }
        }
    }

    #[test]
    fn a_tree_deeper_than_any_path_is_walked_as_far_as_a_path_goes() {
        let dir = tempfile::tempdir().unwrap();
        let mut at: OwnedFd = fs::File::open(dir.path()).unwrap().into();
        for _ in 0..5_000 {
            mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = openat(&at, "d", LISTABLE, Mode::empty()).unwrap();
        }
        let mut walk = Walk::new(fs::File::open(dir.path()).unwrap().into(), true, false, b"").unwrap();
        let mut seen = 0;
        while walk.step().is_some() {
            seen += 1;
            assert!(walk.levels.iter().filter(|level| level.dir.is_some()).count() <= OPEN_DIRECTORIES_MAX);
        }
        assert!(walk.too_deep && seen == PATH_BYTES_MAX / 2 + 1, "{seen}");
        super::super::super::helper::remove(&dir.keep()).unwrap();
    }
}
