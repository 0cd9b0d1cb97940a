//! A directory tree as an archive, and back. For processes that a session's files are left to: both sides are hostile.
//!
//! Packing opens nothing but regular files and directories, one name at a time beneath an open directory, and follows no
//! link. Unpacking puts nothing anywhere but beneath its root: a path through a symbolic link, `..` or an absolute path is
//! refused, whatever the archive made before it. Pipes, sockets and devices are left out and listed; set-user-ID bits are
//! dropped. The formats are POSIX (pax) tar (of other tars the GNU long names are understood), the same packed by gzip, and zip.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use cooper_common::{
    error::{Code, Error, Result},
    limits::{archive as limits, request::PATH_BYTES_MAX},
};
use rustix::{
    fs::{self, AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps},
    io::Errno,
};
use serde::{Deserialize, Serialize};

mod format;
pub mod gzip;
pub mod tar;
pub mod zip;

use format::exactly;
pub use format::{Entry, Kind, Sink, Source};

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// Not blocking: between a look and the opening a session may have put a FIFO there.
const READABLE: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);
const PIECE_BYTES: usize = 256 << 10;
/// Of deflate, where more takes much longer for little.
const LEVEL: u32 = 5;

/// How much one archive may hold.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub entries: u64,
    /// Content of all files together.
    pub bytes: u64,
}

/// What was packed or unpacked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    pub files: u64,
    pub directories: u64,
    pub symlinks: u64,
    pub hard_links: u64,
    pub content_bytes: u64,
    /// Left out: pipes, sockets, devices, what may not be read or is nested too deeply. The first of them by name.
    pub skipped: Vec<String>,
    pub skipped_count: u64,
}

impl Summary {
    fn entries(&self) -> u64 {
        self.files + self.directories + self.symlinks + self.hard_links
    }

    fn skip(&mut self, path: &[u8]) {
        self.skipped_count += 1;
        if self.skipped.len() < limits::SKIPPED_NAMED_MAX {
            self.skipped.push(String::from_utf8_lossy(path).into_owned());
        }
    }

    /// One entry more, if the bounds allow it.
    fn admit(&self, bounds: Bounds, bytes: u64) -> Result<()> {
        if self.entries() >= bounds.entries {
            return Err(Error::new(Code::TooLarge, format!("more than {} entries", bounds.entries)));
        }
        match self.content_bytes.checked_add(bytes) {
            Some(sum) if sum <= bounds.bytes => Ok(()),
            _ => Err(Error::new(Code::TooLarge, format!("more than {} bytes of content", bounds.bytes))),
        }
    }
}

pub fn failed(path: &[u8], error: impl Into<io::Error>) -> Error {
    let error = error.into();
    let code = match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => Code::StoreFull,
        Some(libc::EFBIG) => Code::TooLarge,
        // ENOTDIR: what should be a directory is a link, or a file.
        Some(libc::EXDEV | libc::ELOOP | libc::ENOTDIR) => Code::PathEscapes,
        Some(_) => Code::Internal,
        None => match error.kind() {
            // Of what reads an archive.
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
                Code::InvalidArgument
            }
            io::ErrorKind::FileTooLarge => Code::TooLarge,
            _ => Code::Internal,
        },
    };
    Error::new(code, format!("{:?}: {error}", String::from_utf8_lossy(path)))
}

fn name(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

/// Opens beneath `dir` without following any link.
fn beneath(dir: impl AsFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    // AGAIN: something was renamed while the kernel looked; a few tries tell a busy session from a hostile one.
    let mut last = Errno::AGAIN;
    for _ in 0..16 {
        match fs::openat2(&dir, Path::new(name(path)), flags | OFlags::NOFOLLOW, Mode::empty(), resolve) {
            Err(error @ (Errno::AGAIN | Errno::INTR)) => last = error,
            other => return other,
        }
    }
    Err(last)
}

fn kind(stat: &fs::Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Opens to read what is ours, also when its owner took its own right to read away for now.
fn open_own(dir: &OwnedFd, entry: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    match beneath(dir, entry, flags) {
        Err(Errno::ACCESS) => {}
        other => return other,
    }
    let place = beneath(dir, entry, OFlags::PATH | OFlags::CLOEXEC)?;
    let mode = fs::fstat(&place)?.st_mode & 0o7777;
    let path = format!("/proc/self/fd/{}", place.as_raw_fd());
    fs::chmod(&path, Mode::from_raw_mode(mode | 0o700))?;
    let opened = beneath(dir, entry, flags);
    fs::chmod(&path, Mode::from_raw_mode(mode))?;
    opened
}

struct Level {
    dir: OwnedFd,
    path: Vec<u8>,
    names: std::vec::IntoIter<Vec<u8>>,
}

impl Level {
    fn new(dir: OwnedFd, path: Vec<u8>, entries_max: u64) -> Result<Self> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&dir).map_err(|e| failed(&path, e))? {
            let entry = entry.map_err(|e| failed(&path, e))?;
            let bytes = entry.file_name().to_bytes();
            if !matches!(bytes, b"." | b"..") {
                names.push(bytes.to_owned());
            }
            if names.len() as u64 > entries_max {
                return Err(Error::new(Code::TooLarge, format!("more than {entries_max} entries")));
            }
        }
        names.sort();
        Ok(Self { dir, path, names: names.into_iter() })
    }
}

/// Writes everything beneath `root` that `takes` wants (a path and whether it is a directory); a directory that is not
/// wanted goes with all beneath it.
///
/// # Errors
/// `too_large` beyond the bounds; what writing gives.
pub fn pack<S: Sink>(
    root: &OwnedFd,
    out: &mut S,
    bounds: Bounds,
    takes: impl Fn(&[u8], bool) -> bool,
) -> Result<Summary> {
    let mut summary = Summary::default();
    let mut links: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
    let top = beneath(root, b".", DIRECTORY).map_err(|e| failed(b".", e))?;
    let mut levels = vec![Level::new(top, Vec::new(), bounds.entries)?];
    loop {
        let depth = levels.len();
        let Some(level) = levels.last_mut() else { break };
        let Some(entry) = level.names.next() else {
            levels.pop();
            continue;
        };
        let mut path = level.path.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&entry);
        // Gone in the meantime: then it is not there.
        let Ok(stat) = fs::statat(&level.dir, name(&entry), AtFlags::SYMLINK_NOFOLLOW) else { continue };
        let kind = kind(&stat);
        if !takes(&path, kind == FileType::Directory) {
            continue;
        }
        if path.len() > PATH_BYTES_MAX {
            summary.skip(&path);
            continue;
        }
        match kind {
            FileType::Directory => {
                summary.admit(bounds, 0)?;
                if depth >= limits::DEPTH_MAX {
                    summary.skip(&path);
                    continue;
                }
                let Ok(dir) = open_own(&level.dir, &entry, DIRECTORY) else {
                    summary.skip(&path);
                    continue;
                };
                out.directory(&path, &stat).map_err(|e| failed(&path, e))?;
                summary.directories += 1;
                levels.push(Level::new(dir, path, bounds.entries)?);
            }
            FileType::Symlink => {
                let Ok(target) = fs::readlinkat(&level.dir, name(&entry), Vec::new()) else { continue };
                summary.admit(bounds, 0)?;
                out.symlink(&path, target.as_bytes(), &stat).map_err(|e| failed(&path, e))?;
                summary.symlinks += 1;
            }
            FileType::RegularFile => {
                if S::HARD_LINKS
                    && stat.st_nlink > 1
                    && let Some(first) = links.get(&(stat.st_dev, stat.st_ino))
                {
                    summary.admit(bounds, 0)?;
                    out.hard_link(&path, first, &stat).map_err(|e| failed(&path, e))?;
                    summary.hard_links += 1;
                    continue;
                }
                let opened = open_own(&level.dir, &entry, READABLE).and_then(|fd| Ok((fs::fstat(&fd)?, fd)));
                let (stat, mut file) = match opened {
                    Ok((stat, fd)) if self::kind(&stat) == FileType::RegularFile => (stat, File::from(fd)),
                    Err(Errno::NOENT) => continue,
                    _ => {
                        summary.skip(&path);
                        continue;
                    }
                };
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                summary.admit(bounds, size)?;
                out.file(&path, &stat, size, &mut file).map_err(|e| failed(&path, e))?;
                summary.files += 1;
                summary.content_bytes += size;
                if stat.st_nlink > 1 {
                    links.insert((stat.st_dev, stat.st_ino), path);
                }
            }
            _ => summary.skip(&path),
        }
    }
    out.finish().map_err(|e| failed(b"", e))?;
    Ok(summary)
}

/// What becomes of a file's content on its way: `Some` for those that are changed, whole and in memory.
pub type Change<'a> = &'a dyn Fn(&[u8], Vec<u8>) -> Vec<u8>;

/// Puts an archive beneath `root`. What is there under the same name is replaced; a directory that is there stays and
/// takes the new one's mode. Files belong to who runs this.
///
/// Files that are `there` already stay; `changes` says which of the others are passed through `change`; such a file may have
/// at most `CHANGED_FILE_BYTES_MAX`.
///
/// # Errors
/// `path_escapes` for what would be elsewhere; `too_large` beyond the bounds; `invalid_argument` for what is no archive.
pub fn unpack(
    root: &OwnedFd,
    archive: &mut impl Source,
    bounds: Bounds,
    there: impl Fn(&[u8]) -> bool,
    changes: impl Fn(&[u8]) -> bool,
    change: Change<'_>,
) -> Result<Summary> {
    let mut summary = Summary::default();
    let mut tree = Tree { root, last: None };
    // Their modes and times come last: what is put into them changes both, or may not be put there at all.
    let mut directories: Vec<(Vec<u8>, u32, Timespec)> = Vec::new();
    while let Some(mut entry) = archive.next()? {
        if matches!(entry.kind, Kind::Other) {
            summary.skip(&entry.path);
            continue;
        }
        let Some(path) = plain(&entry.path)? else { continue };
        match entry.kind {
            Kind::Directory => {
                summary.admit(bounds, 0)?;
                tree.directory(&path)?;
                directories.push((path, entry.mode, entry.modified));
                summary.directories += 1;
            }
            Kind::Symlink => {
                summary.admit(bounds, 0)?;
                let (dir, at) = tree.place(&path)?;
                fs::symlinkat(name(&entry.link), dir, name(&at)).map_err(|e| failed(&path, e))?;
                let _ = fs::utimensat(dir, name(&at), &times(entry.modified), AtFlags::SYMLINK_NOFOLLOW);
                summary.symlinks += 1;
            }
            Kind::HardLink => {
                summary.admit(bounds, 0)?;
                let target = plain(&entry.link)?.unwrap_or_default();
                tree.link(&target, &path)?;
                summary.hard_links += 1;
            }
            Kind::File => {
                summary.admit(bounds, entry.size)?;
                summary.files += 1;
                summary.content_bytes += entry.size;
                if there(&path) {
                    continue;
                }
                let (dir, at) = tree.place(&path)?;
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = fs::openat(dir, name(&at), flags, Mode::RUSR | Mode::WUSR)
                    .map_err(|e| failed(&path, e))?;
                let mut file = File::from(file);
                if entry.size <= limits::CHANGED_FILE_BYTES_MAX && changes(&path) {
                    let mut content = Vec::new();
                    entry.body.read_to_end(&mut content).map_err(|e| failed(&path, e))?;
                    file.write_all(&change(&path, content)).map_err(|e| failed(&path, e))?;
                } else {
                    copy(&mut entry.body, &mut file).map_err(|e| failed(&path, e))?;
                }
                fs::fchmod(&file, Mode::from_raw_mode(entry.mode & 0o777)).map_err(|e| failed(&path, e))?;
                fs::futimens(&file, &times(entry.modified)).map_err(|e| failed(&path, e))?;
            }
            Kind::Other => {}
        }
    }
    // What is deeper first: a directory that may not be entered hides those in it.
    for (path, mode, modified) in directories.into_iter().rev() {
        let dir = beneath(root, &path, DIRECTORY).map_err(|e| failed(&path, e))?;
        fs::fchmod(&dir, Mode::from_raw_mode(mode & 0o777)).map_err(|e| failed(&path, e))?;
        fs::futimens(&dir, &times(modified)).map_err(|e| failed(&path, e))?;
    }
    Ok(summary)
}

/// The same; every file is as it is in the archive.
pub fn unpack_plain(root: &OwnedFd, archive: &mut impl Source, bounds: Bounds) -> Result<Summary> {
    unpack(root, archive, bounds, |_| false, |_| false, &|_, content| content)
}

fn times(modified: Timespec) -> Timestamps {
    Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: fs::UTIME_NOW }, last_modification: modified }
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(n) => to.write_all(&piece[..n])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A path of an archive without `.` and doubled slashes; `None` = the root itself.
fn plain(path: &[u8]) -> Result<Option<Vec<u8>>> {
    let shown = || String::from_utf8_lossy(&path[..path.len().min(200)]).into_owned();
    if path.first() == Some(&b'/') {
        return Err(Error::new(Code::PathEscapes, format!("{:?} is absolute", shown())));
    }
    if path.len() > PATH_BYTES_MAX || path.contains(&0) {
        return Err(Error::invalid(format!("{:?} is too long or contains NUL", shown())));
    }
    let mut parts = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(Error::new(Code::PathEscapes, format!("{:?} leads upwards", shown()))),
            part => parts.push(part),
        }
    }
    Ok((!parts.is_empty()).then(|| parts.join(&b'/')))
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b".", path),
    }
}

/// The tree that an archive becomes.
struct Tree<'a> {
    root: &'a OwnedFd,
    /// The directory used last: most entries follow others of theirs.
    last: Option<(Vec<u8>, OwnedFd)>,
}

impl Tree<'_> {
    /// A directory, made with those above it where they are not.
    fn directory(&mut self, path: &[u8]) -> Result<&OwnedFd> {
        if self.last.as_ref().is_none_or(|(last, _)| last != path) {
            let dir = self.open(path)?;
            self.last = Some((path.to_owned(), dir));
        }
        match &self.last {
            Some((_, dir)) => Ok(dir),
            None => Err(Error::internal("a directory was opened and is not there")),
        }
    }

    fn open(&self, path: &[u8]) -> Result<OwnedFd> {
        match beneath(self.root, path, DIRECTORY) {
            Err(Errno::NOENT) => {}
            other => return other.map_err(|e| failed(path, e)),
        }
        let mut at = beneath(self.root, b".", DIRECTORY).map_err(|e| failed(path, e))?;
        for part in path.split(|byte| *byte == b'/') {
            match fs::mkdirat(&at, name(part), Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(failed(path, error)),
            }
            at = beneath(&at, part, DIRECTORY).map_err(|e| failed(path, e))?;
        }
        Ok(at)
    }

    /// Where a new entry goes: its directory and its name, under which nothing is any more.
    fn place<'p>(&mut self, path: &'p [u8]) -> Result<(&OwnedFd, std::borrow::Cow<'p, [u8]>)> {
        let (parent, at) = split(path);
        let dir = self.directory(parent)?;
        match fs::unlinkat(dir, name(at), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR | Errno::PERM) => {
                fs::unlinkat(dir, name(at), AtFlags::REMOVEDIR).map_err(|e| failed(path, e))?;
            }
            Err(error) => return Err(failed(path, error)),
        }
        Ok((dir, at.into()))
    }

    fn link(&mut self, target: &[u8], path: &[u8]) -> Result<()> {
        if target == path {
            return Err(Error::invalid(format!("{:?} is a link to itself", String::from_utf8_lossy(path))));
        }
        let (parent, target_name) = split(target);
        let from = beneath(self.root, parent, DIRECTORY).map_err(|e| failed(target, e))?;
        let stat =
            fs::statat(&from, name(target_name), AtFlags::SYMLINK_NOFOLLOW).map_err(|e| failed(target, e))?;
        if kind(&stat) != FileType::RegularFile {
            let shown = String::from_utf8_lossy(target);
            return Err(Error::invalid(format!("a hard link to {shown:?}, which is no file")));
        }
        let (dir, at) = self.place(path)?;
        fs::linkat(&from, name(target_name), dir, name(&at), AtFlags::empty()).map_err(|e| failed(path, e))
    }
}

#[cfg(test)]
mod formats;
#[cfg(test)]
mod tests;
