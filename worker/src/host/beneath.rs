//! Paths beneath a session's workspace. The kernel resolves them (openat2 BENEATH), so nothing a session does to its
//! directories meanwhile leads out; no path is judged by its text.

use std::{
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use cooper_common::{
    error::{Code, Error, Result},
    limits::request::PATH_BYTES_MAX,
    path_text,
};
use cooper_proto::v1::FileStat;
use rustix::{
    fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};

use crate::etag;

pub const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// To read what is in a directory.
pub const LISTABLE: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// Not blocking: a session may have put a FIFO there.
pub const READABLE: OFlags =
    OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// The bytes of a path in a request; empty = the workspace.
pub fn checked(text: &str) -> Result<Vec<u8>> {
    let path = path_text::decode(text);
    if path.len() > PATH_BYTES_MAX || path.contains(&0) {
        return Err(Error::invalid("the path is too long or contains NUL"));
    }
    if path.first() == Some(&b'/') {
        return Err(Error::new(Code::PathEscapes, format!("{text:?} is absolute")));
    }
    Ok(if path.is_empty() { b".".to_vec() } else { path })
}

/// Opens what is at `path`. Symbolic links that stay beneath `root` are followed.
pub fn open(root: impl AsFd, path: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    resolve(root, path, flags, mode, ResolveFlags::empty())
}

/// The same without following any link.
pub fn open_plain(root: impl AsFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    resolve(root, path, flags | OFlags::NOFOLLOW, Mode::empty(), ResolveFlags::NO_SYMLINKS)
}

fn resolve(
    root: impl AsFd,
    path: &[u8],
    flags: OFlags,
    mode: Mode,
    more: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | more;
    // AGAIN: something was renamed while the kernel looked; a few tries tell a busy session from a hostile one.
    let mut last = Errno::AGAIN;
    for _ in 0..16 {
        match fs::openat2(&root, Path::new(OsStr::from_bytes(path)), flags, mode, how) {
            Err(error @ (Errno::AGAIN | Errno::INTR)) => last = error,
            other => return other,
        }
    }
    Err(last)
}

/// A place: a directory that is open, and a name in it.
pub struct Place {
    pub dir: OwnedFd,
    pub name: Vec<u8>,
}

impl Place {
    /// Where `path` is, or would be. The name is not looked at.
    pub fn find(root: &OwnedFd, text: &str, create_dirs: bool) -> Result<Self> {
        let path = checked(text)?;
        let trimmed = path.trim_ascii_end_of(b'/');
        let (parent, name) = match trimmed.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (&trimmed[..at], &trimmed[at + 1..]),
            None => (&b"."[..], trimmed),
        };
        if matches!(name, b"" | b"." | b"..") {
            return Err(Error::invalid(format!("{text:?} names no file in a directory")));
        }
        let parent = if parent.is_empty() { &b"."[..] } else { parent };
        let dir = directory(root, parent, create_dirs).map_err(|e| failed(text, e))?;
        Ok(Self { dir, name: name.to_owned() })
    }

    pub fn name(&self) -> &OsStr {
        OsStr::from_bytes(&self.name)
    }

    /// What is there; a link is not followed.
    pub fn stat(&self) -> Result<fs::Stat, Errno> {
        fs::statat(&self.dir, self.name(), AtFlags::SYMLINK_NOFOLLOW)
    }
}

trait TrimEnd {
    fn trim_ascii_end_of(&self, byte: u8) -> &[u8];
}
impl TrimEnd for Vec<u8> {
    fn trim_ascii_end_of(&self, byte: u8) -> &[u8] {
        let end = self.iter().rposition(|it| *it != byte).map_or(0, |at| at + 1);
        &self[..end]
    }
}

/// A directory beneath `root`, made with those above it when `create`.
pub fn directory(root: &OwnedFd, path: &[u8], create: bool) -> Result<OwnedFd, Errno> {
    match open(root, path, DIRECTORY, Mode::empty()) {
        Err(Errno::NOENT) if create => {}
        other => return other,
    }
    let mut at = open(root, b".", DIRECTORY, Mode::empty())?;
    for (end, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/').chain([(path.len(), &b'/')]) {
        let so_far = &path[..end];
        let name = so_far.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        if name.is_empty() {
            continue;
        }
        at = match open(root, so_far, DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT) => {
                match fs::mkdirat(&at, OsStr::from_bytes(name), Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => open(root, so_far, DIRECTORY, Mode::empty())?,
                    Err(error) => return Err(error),
                }
            }
            other => other?,
        };
    }
    Ok(at)
}

/// Sets the permission bits of what is open, also when that is only its place (O_PATH).
pub fn change_mode(file: &OwnedFd, mode: u32) -> Result<(), Errno> {
    fs::chmod(format!("/proc/self/fd/{}", file.as_raw_fd()), Mode::from_raw_mode(mode & 0o777))
}

pub fn kind(stat: &fs::Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// `path` is the text it goes by.
pub fn describe(path: &str, stat: &fs::Stat) -> FileStat {
    let kind = kind(stat);
    FileStat {
        path: path.to_owned(),
        size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
        mode: stat.st_mode & 0o7777,
        modified_at_ms: stat.st_mtime * 1000 + stat.st_mtime_nsec as i64 / 1_000_000,
        kind: match kind {
            FileType::RegularFile => "file",
            FileType::Directory => "dir",
            FileType::Symlink => "symlink",
            _ => "other",
        }
        .to_owned(),
        etag: if kind == FileType::RegularFile { etag::of_stat(stat) } else { String::new() },
        ..FileStat::default()
    }
}

pub fn failed(path: &str, error: Errno) -> Error {
    let code = match error {
        Errno::NOENT => Code::FileNotFound,
        Errno::XDEV | Errno::AGAIN => Code::PathEscapes,
        Errno::EXIST => Code::FileExists,
        Errno::NOTEMPTY => Code::DirectoryNotEmpty,
        Errno::FBIG => Code::TooLarge,
        Errno::ISDIR | Errno::NOTDIR | Errno::LOOP | Errno::NXIO | Errno::NODEV => Code::NotAFile,
        Errno::NAMETOOLONG | Errno::INVAL | Errno::ACCESS | Errno::PERM => Code::InvalidArgument,
        Errno::NOSPC | Errno::DQUOT => Code::StoreFull,
        _ => Code::Internal,
    };
    let what = match code {
        Code::PathEscapes => "leads out of the workspace".to_owned(),
        Code::FileNotFound => "does not exist".to_owned(),
        Code::FileExists => "is there already".to_owned(),
        _ => io::Error::from(error).to_string(),
    };
    Error::new(code, format!("{path:?}: {what}"))
}

/// The same for what the standard library reports.
pub fn failed_io(path: &str, error: &io::Error) -> Error {
    match error.raw_os_error() {
        Some(number) => failed(path, Errno::from_raw_os_error(number)),
        None => Error::internal(format!("{path:?}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs as stdfs, os::unix::fs::symlink};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever a path is made of, what it opens is beneath the root or nothing.
        #[test]
        fn no_path_resolves_to_anything_beside_the_root(
            parts in prop::collection::vec(
                prop_oneof![
                    Just(".."), Just("."), Just(""), Just("a"), Just("b"), Just("up"), Just("out"), Just("abs"),
                    Just("loop"), Just("file"), Just("\u{10FEFF}"), Just("proc"),
                ],
                0..12,
            ),
            slash in any::<bool>(),
            create in any::<bool>(),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let top = stdfs::canonicalize(dir.path()).unwrap();
            let root = top.join("root");
            stdfs::create_dir_all(root.join("a/b")).unwrap();
            stdfs::write(root.join("a/file"), "").unwrap();
            stdfs::write(top.join("file"), "secret").unwrap();
            symlink("..", root.join("a/up")).unwrap();
            symlink("../..", root.join("a/out")).unwrap();
            symlink("/", root.join("abs")).unwrap();
            symlink("loop", root.join("loop")).unwrap();
            symlink("/proc/self/cwd", root.join("proc")).unwrap();
            let fd = fs::open(&root, DIRECTORY, Mode::empty()).unwrap();
            let text = format!("{}{}", if slash { "/" } else { "" }, parts.join("/"));
            let inside = |fd: &OwnedFd| {
                stdfs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap().starts_with(&root)
            };
            if let Ok(path) = checked(&text) {
                if let Ok(opened) = open(&fd, &path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
                    prop_assert!(inside(&opened), "{text}");
                }
                if let Ok(opened) = open_plain(&fd, &path, OFlags::PATH | OFlags::CLOEXEC) {
                    prop_assert!(inside(&opened), "{text}");
                }
            }
            if let Ok(place) = Place::find(&fd, &text, create) {
                prop_assert!(inside(&place.dir), "{text}");
            }
            let mut beside: Vec<_> = stdfs::read_dir(&top).unwrap().map(|it| it.unwrap().file_name()).collect();
            beside.sort();
            prop_assert_eq!(beside, ["file", "root"]);
        }
    }
}
