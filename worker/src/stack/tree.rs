//! Directory trees of the user's: listed and copied, no symlink followed, nothing of the original written to.

use std::ffi::{CStr, OsStr};
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, Timespec, Timestamps};

use cooper_common::error::Result;

use super::{While, failed};

/// Directories deeper than this are refused.
const DEPTH_MAX: usize = 64;
/// Files and directories one copy may have.
const COPIED_MAX: usize = 1_000_000;
/// Larger files are linked where the file system can: a copy of them takes long, and nothing is edited in them.
const COPY_BYTES_MAX: u64 = 16 << 20;

/// A directory that is left out: the worker's own, which may lie inside a stack.
#[derive(Clone, Copy)]
pub(super) struct LeftOut {
    device: u64,
    inode: u64,
}

impl LeftOut {
    pub(super) fn new(dir: &Path) -> Result<Self> {
        let stat = rustix::fs::stat(dir).while_doing(format_args!("looking at {}", dir.display()))?;
        Ok(Self { device: stat.st_dev, inode: stat.st_ino })
    }

    /// Leaves nothing out. No file has this number.
    pub(super) fn nothing() -> Self {
        Self { device: u64::MAX, inode: u64::MAX }
    }

    fn is(self, stat: &Stat) -> bool {
        self.device == stat.st_dev && self.inode == stat.st_ino
    }
}

/// A regular file of a tree.
#[derive(Debug)]
pub(super) struct Entry {
    /// Relative to the tree's root.
    pub(super) path: PathBuf,
    pub(super) len: u64,
    pub(super) executable: bool,
}

/// The regular files of a tree, in order of path.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) files: Vec<Entry>,
    /// Latest change of anything in it, Unix milliseconds.
    pub(super) changed_ms: i64,
    /// There is more than was listed.
    pub(super) cut: bool,
}

/// Lists a tree up to `max` files, without the directories of these names.
pub(super) fn list(root: &Path, without: &[&str], left_out: LeftOut, max: usize) -> Result<Listing> {
    let mut listing = Listing::default();
    let dir = open_root(root)?;
    list_dir(dir, Path::new(""), without, left_out, max, &mut listing)
        .while_doing(format_args!("listing {}", root.display()))?;
    listing.files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(listing)
}

fn list_dir(
    dir: OwnedFd,
    at: &Path,
    without: &[&str],
    left_out: LeftOut,
    max: usize,
    listing: &mut Listing,
) -> rustix::io::Result<()> {
    let mut subdirectories = Vec::new();
    for (name, stat) in entries(&dir)? {
        let path = at.join(OsStr::from_bytes(name.to_bytes()));
        let changed = |seconds: i64, nanos| seconds * 1000 + i64::try_from(nanos / 1_000_000).unwrap_or(0);
        let kind = FileType::from_raw_mode(stat.st_mode);
        let skipped = without.iter().any(|skip| skip.as_bytes() == name.to_bytes()) || left_out.is(&stat);
        if kind == FileType::Directory && skipped {
            continue;
        }
        let modified = changed(stat.st_mtime, stat.st_mtime_nsec);
        listing.changed_ms = listing.changed_ms.max(modified).max(changed(stat.st_ctime, stat.st_ctime_nsec));
        match kind {
            FileType::Directory => subdirectories.push((name, path)),
            FileType::RegularFile if listing.files.len() < max => listing.files.push(Entry {
                path,
                len: u64::try_from(stat.st_size).unwrap_or(0),
                executable: stat.st_mode & 0o111 != 0,
            }),
            FileType::RegularFile => listing.cut = true,
            _ => {}
        }
    }
    for (name, path) in subdirectories {
        if path.components().count() > DEPTH_MAX || listing.cut {
            listing.cut = true;
            continue;
        }
        // Gone meanwhile, or not readable: not listed.
        if let Ok(subdirectory) = open_dir(dir.as_fd(), &name) {
            list_dir(subdirectory, &path, without, left_out, max, listing)?;
        }
    }
    Ok(())
}

/// Copies a tree to a directory that does not exist yet: bytes, permissions and times of files, symlinks as symlinks.
/// Sockets, pipes and devices are left out. Small files are copied (by reflink where the file system can), so that the
/// copy does not change with the original; large ones may be hard links and must not be written to.
pub(super) fn copy(root: &Path, to: &Path, left_out: LeftOut) -> Result<usize> {
    let mut copied = 0;
    copy_dir(open_root(root)?, to, left_out, 0, &mut copied)?;
    Ok(copied)
}

fn copy_dir(from: OwnedFd, to: &Path, left_out: LeftOut, depth: usize, copied: &mut usize) -> Result<()> {
    let here = || format!("copying the build context to {}", to.display());
    if depth > DEPTH_MAX {
        return Err(failed(format!("the build context is deeper than {DEPTH_MAX} directories")));
    }
    fs::create_dir(to).while_doing(here())?;
    for (name, stat) in entries(&from).while_doing(here())? {
        *copied += 1;
        if *copied > COPIED_MAX {
            return Err(failed(format!("the build context has more than {COPIED_MAX} files")));
        }
        let target = to.join(OsStr::from_bytes(name.to_bytes()));
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory if left_out.is(&stat) => {}
            FileType::Directory => {
                let subdirectory = open_dir(from.as_fd(), &name).while_doing(here())?;
                copy_dir(subdirectory, &target, left_out, depth + 1, copied)?;
            }
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(&from, &*name, Vec::new()).while_doing(here())?;
                std::os::unix::fs::symlink(OsStr::from_bytes(link.to_bytes()), &target).while_doing(here())?;
            }
            FileType::RegularFile => copy_file(from.as_fd(), &name, &stat, &target)
                .while_doing(format_args!("copying {}", target.display()))?,
            _ => {}
        }
    }
    // Last, since a directory may not let its owner write; but ours to remove it stays.
    let mode = rustix::fs::fstat(&from).while_doing(here())?.st_mode;
    fs::set_permissions(to, std::os::unix::fs::PermissionsExt::from_mode(mode & 0o7777 | 0o700))
        .while_doing(here())
}

fn copy_file(from: BorrowedFd<'_>, name: &CStr, stat: &Stat, to: &Path) -> std::io::Result<()> {
    if u64::try_from(stat.st_size).unwrap_or(0) > COPY_BYTES_MAX
        && rustix::fs::linkat(from, name, rustix::fs::CWD, to, AtFlags::empty()).is_ok()
    {
        return Ok(());
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut original = File::from(rustix::fs::openat(from, name, flags, Mode::empty())?);
    let mut copy = fs::OpenOptions::new().write(true).create_new(true).open(to)?;
    // Uses copy_file_range, which shares the blocks on file systems that can.
    std::io::copy(&mut original, &mut copy)?;
    rustix::fs::fchmod(&copy, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    let time = |seconds, nanos: u64| Timespec { tv_sec: seconds, tv_nsec: i64::try_from(nanos).unwrap_or(0) };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    Ok(rustix::fs::futimens(&copy, &times)?)
}

/// Replaces a file of a copy by a fresh one: what may be a hard link to the original is never written to.
pub(super) fn replace(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(bytes)?;
    Ok(rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o7777))?)
}

fn open_root(root: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(root, flags, Mode::empty())
        .while_doing(format_args!("opening directory {}", root.display()))
}

fn open_dir(parent: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// Names and what they are, without `.` and `..`; what vanishes meanwhile is left out.
fn entries(dir: &OwnedFd) -> rustix::io::Result<Vec<(std::ffi::CString, Stat)>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(dir)? {
        let name = entry?.file_name().to_owned();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        match rustix::fs::statat(dir, &*name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => found.push((name, stat)),
            Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_copy_is_faithful_and_follows_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let own = from.join("own");
        fs::create_dir_all(from.join("a")).expect("made");
        fs::create_dir_all(own.join("runs")).expect("made");
        fs::write(from.join("a/run.sh"), "#!/bin/sh\n").expect("written");
        fs::set_permissions(from.join("a/run.sh"), fs::Permissions::from_mode(0o750)).expect("set");
        symlink("/etc", from.join("outside")).expect("linked");
        let _socket = std::os::unix::net::UnixListener::bind(from.join("socket")).expect("bound");
        let big = File::create(from.join("big")).expect("made");
        big.set_len(COPY_BYTES_MAX + 1).expect("grown");

        let left_out = LeftOut::new(&own).expect("it is there");
        copy(&from, &to, left_out).expect("copied");
        let meta = fs::metadata(to.join("a/run.sh")).expect("copied");
        assert_eq!(meta.permissions().mode() & 0o777, 0o750);
        let original = fs::metadata(from.join("a/run.sh")).expect("there");
        assert_eq!(meta.modified().expect("a time"), original.modified().expect("a time"));
        assert_ne!(meta.ino(), original.ino());
        assert_eq!(fs::read_link(to.join("outside")).expect("a link"), Path::new("/etc"));
        assert!(!to.join("socket").exists() && !to.join("own").exists());

        // Replacing a linked file leaves the original alone.
        replace(&to.join("big"), b"small", 0o644).expect("replaced");
        assert_eq!(fs::metadata(from.join("big")).expect("there").len(), COPY_BYTES_MAX + 1);

        let listing = list(&from, &["a"], left_out, 10).expect("listed");
        let paths: Vec<_> = listing.files.iter().map(|entry| entry.path.as_path()).collect();
        assert_eq!(paths, [Path::new("big")]);
    }
}
