//! File calls: opens files beneath a session's workspace and hands the descriptors to the link.
//!
//! The kernel resolves the path (openat2 BENEATH), so nothing a session does to its directories meanwhile leads out of
//! its workspace; symbolic links that stay inside are followed.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Component, Path},
};

use cooper_common::{
    error::{Code, Error, Result},
    limits::request::PATH_BYTES_MAX,
};
use cooper_proto::{
    host::{OpenFile, open_file::Mode},
    v1::FileStat,
};
use prost::Message as _;
use rustix::{
    fs::{self, AtFlags, FileType, Mode as Permissions, OFlags, ResolveFlags},
    io::Errno,
};

use super::listing;
use crate::frame;

/// Files being written: temporary files beside the file they will become.
#[derive(Default)]
pub struct Writing(BTreeMap<u64, Pending>);

struct Pending {
    directory: OwnedFd,
    temporary: String,
    name: String,
    path: String,
    file: OwnedFd,
}

pub struct Opened {
    pub fd: OwnedFd,
    pub stat: Option<FileStat>,
}

impl Writing {
    /// Serves one OpenFile. What is opened for writing stays pending until [`Writing::close`].
    pub fn open(&mut self, workspace: &Path, call: &OpenFile) -> Result<Opened> {
        check(&call.path)?;
        let root =
            fs::open(workspace, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Permissions::empty())
                .map_err(|e| failed(&call.path, e))?;
        match call.mode() {
            Mode::List => list(&root, &call.path),
            Mode::Read => read(&root, &call.path),
            Mode::Write => self.write(&root, call),
            Mode::Unspecified => Err(Error::invalid("a file call without a mode")),
        }
    }

    fn write(&mut self, root: &OwnedFd, call: &OpenFile) -> Result<Opened> {
        let path = Path::new(&call.path);
        let name = path
            .file_name()
            .and_then(OsStr::to_str)
            .filter(|_| {
                !call.path.ends_with('/')
                    && !matches!(path.components().next_back(), Some(Component::ParentDir))
            })
            .ok_or_else(|| Error::invalid(format!("{:?} does not name a file", call.path)))?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let directory = open_parent(root, parent, call.create_dirs).map_err(|e| failed(&call.path, e))?;
        let temporary = format!(".cooper-{:016x}.part", rand::random::<u64>());
        let mode = if call.permissions == 0 { 0o644 } else { call.permissions & 0o777 };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = beneath(&directory, Path::new(&temporary), flags, Permissions::from_raw_mode(0o600))
            .and_then(|file| fs::fchmod(&file, Permissions::from_raw_mode(mode)).map(|()| file))
            .map_err(|e| failed(&call.path, e))?;
        let fd = file.try_clone().map_err(|e| Error::internal(e.to_string()))?;
        let pending = Pending { directory, temporary, name: name.to_owned(), path: call.path.clone(), file };
        if let Some(before) = self.0.insert(call.call_id, pending) {
            before.remove();
        }
        Ok(Opened { fd, stat: None })
    }

    /// Makes the written file the file, or removes it.
    pub fn close(&mut self, call_id: u64, commit: bool) -> Result<Option<FileStat>> {
        let Some(pending) = self.0.remove(&call_id) else {
            return if commit { Err(Error::invalid("no file is open for this call")) } else { Ok(None) };
        };
        if !commit {
            pending.remove();
            return Ok(None);
        }
        let renamed = fs::renameat(&pending.directory, &pending.temporary, &pending.directory, &pending.name);
        match renamed.and_then(|()| fs::fstat(&pending.file)) {
            Ok(stat) => Ok(Some(describe(&pending.path, &stat))),
            Err(error) => {
                let error = failed(&pending.path, error);
                pending.remove();
                Err(error)
            }
        }
    }

    /// The link that wrote is gone: nothing half-written stays.
    pub fn abandon(&mut self) {
        std::mem::take(&mut self.0).into_values().for_each(Pending::remove);
    }
}

impl Pending {
    fn remove(self) {
        let _ = fs::unlinkat(&self.directory, &self.temporary, AtFlags::empty());
    }
}

/// A directory beneath the workspace, for a command to start in. Empty = the workspace.
pub fn directory(workspace: &Path, path: &str) -> Result<std::path::PathBuf> {
    check(path)?;
    if path.is_empty() {
        return Ok(workspace.to_owned());
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = fs::open(workspace, flags, Permissions::empty()).map_err(|e| failed(path, e))?;
    beneath(&root, Path::new(path), flags, Permissions::empty()).map_err(|e| failed(path, e))?;
    Ok(workspace.join(path))
}

fn check(path: &str) -> Result<()> {
    if path.len() > PATH_BYTES_MAX || path.contains('\0') {
        return Err(Error::invalid("the path is too long or contains NUL"));
    }
    if path.starts_with('/') {
        return Err(Error::new(Code::PathEscapes, format!("{path:?} is absolute")));
    }
    Ok(())
}

fn list(root: &OwnedFd, path: &str) -> Result<Opened> {
    let target = if path.is_empty() { "." } else { path };
    let directory = beneath(
        root,
        Path::new(target),
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Permissions::empty(),
    )
    .map_err(|e| failed(path, e))?;
    let listing = listing::list(directory, path)?.encode_to_vec();
    let fd = frame::sealed_memfd("cooper-listing", &listing).map_err(|e| Error::internal(e.to_string()))?;
    Ok(Opened { fd, stat: None })
}

fn read(root: &OwnedFd, path: &str) -> Result<Opened> {
    // Not blocking: a session may have put a FIFO there.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let fd = beneath(root, Path::new(path), flags, Permissions::empty()).map_err(|e| failed(path, e))?;
    let stat = fs::fstat(&fd).map_err(|e| failed(path, e))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Error::new(Code::NotAFile, format!("{path:?} is not a regular file")));
    }
    Ok(Opened { fd, stat: Some(describe(path, &stat)) })
}

fn beneath(root: impl AsFd, path: &Path, flags: OFlags, mode: Permissions) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    // AGAIN: something was renamed while the kernel looked; a few tries tell a busy session from a hostile one.
    let mut last = Errno::AGAIN;
    for _ in 0..16 {
        match fs::openat2(&root, path, flags, mode, resolve) {
            Err(error @ (Errno::AGAIN | Errno::INTR)) => last = error,
            other => return other,
        }
    }
    Err(last)
}

fn open_parent(root: &OwnedFd, parent: &Path, create: bool) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match beneath(root, parent, flags, Permissions::empty()) {
        Err(Errno::NOENT) if create => {}
        other => return other,
    }
    let mut at = beneath(root, Path::new("."), flags, Permissions::empty())?;
    let mut so_far = std::path::PathBuf::new();
    for component in parent.components() {
        so_far.push(component);
        at = match beneath(root, &so_far, flags, Permissions::empty()) {
            Err(Errno::NOENT) => {
                match fs::mkdirat(&at, component.as_os_str(), Permissions::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => beneath(root, &so_far, flags, Permissions::empty())?,
                    Err(error) => return Err(error),
                }
            }
            other => other?,
        };
    }
    Ok(at)
}

fn describe(path: &str, stat: &fs::Stat) -> FileStat {
    FileStat {
        path: path.to_owned(),
        size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
        mode: stat.st_mode & 0o7777,
        modified_at_ms: stat.st_mtime * 1000 + stat.st_mtime_nsec as i64 / 1_000_000,
        kind: "file".to_owned(),
    }
}

fn failed(path: &str, error: Errno) -> Error {
    let code = match error {
        Errno::NOENT => Code::FileNotFound,
        Errno::XDEV | Errno::AGAIN => Code::PathEscapes,
        Errno::ISDIR | Errno::NOTDIR | Errno::LOOP | Errno::NXIO | Errno::NODEV => Code::NotAFile,
        Errno::NAMETOOLONG | Errno::INVAL | Errno::ACCESS | Errno::PERM => Code::InvalidArgument,
        Errno::NOSPC | Errno::DQUOT => Code::StoreFull,
        _ => Code::Internal,
    };
    let what = match code {
        Code::PathEscapes => "leads out of the workspace".to_owned(),
        Code::FileNotFound => "does not exist".to_owned(),
        _ => io::Error::from(error).to_string(),
    };
    Error::new(code, format!("{path:?}: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs as stdfs,
        io::{Read, Write},
        os::unix::fs::{PermissionsExt, symlink},
    };

    fn call(path: &str, mode: Mode) -> OpenFile {
        OpenFile { call_id: 1, path: path.to_owned(), mode: mode.into(), ..OpenFile::default() }
    }
    fn refused(workspace: &Path, path: &str, mode: Mode) -> Code {
        Writing::default().open(workspace, &call(path, mode)).err().map(|e| e.code).unwrap()
    }

    #[test]
    fn no_path_leads_out_of_the_workspace() {
        let dir = tempfile::tempdir().unwrap();
        let workspace = dir.path().join("w");
        stdfs::create_dir(&workspace).unwrap();
        stdfs::write(dir.path().join("secret"), "s").unwrap();
        symlink("../secret", workspace.join("relative")).unwrap();
        symlink("/etc", workspace.join("absolute")).unwrap();
        for path in ["../secret", "/etc/passwd", "relative", "absolute/passwd", "x/../../secret"] {
            let code = refused(&workspace, path, Mode::Read);
            assert!(matches!(code, Code::PathEscapes | Code::FileNotFound), "{path} {code:?}");
        }
        for path in ["../new", "absolute/new", "/tmp/new"] {
            assert_eq!(refused(&workspace, path, Mode::Write), Code::PathEscapes, "{path}");
        }
        assert_eq!(refused(&workspace, "absolute", Mode::List), Code::PathEscapes);
    }

    #[test]
    fn what_is_not_a_regular_file_is_refused_without_waiting() {
        let dir = tempfile::tempdir().unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, dir.path().join("fifo"), FileType::Fifo, Permissions::RUSR, 0)
            .unwrap();
        assert_eq!(refused(dir.path(), "fifo", Mode::Read), Code::NotAFile);
        assert_eq!(refused(dir.path(), ".", Mode::Read), Code::NotAFile);
        assert_eq!(refused(dir.path(), "..", Mode::Write), Code::InvalidArgument);
    }

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        stdfs::write(dir.path().join("f"), "old").unwrap();
        let mut writing = Writing::default();
        let mut open = call("f", Mode::Write);
        open.permissions = 0o750;
        let opened = writing.open(dir.path(), &open).unwrap();
        stdfs::File::from(opened.fd).write_all(b"new!").unwrap();
        assert_eq!(stdfs::read(dir.path().join("f")).unwrap(), b"old");
        let stat = writing.close(1, true).unwrap().unwrap();
        assert_eq!((stat.size_bytes, stat.mode), (4, 0o750));
        let mode = stdfs::metadata(dir.path().join("f")).unwrap().permissions().mode();
        assert_eq!((stdfs::read(dir.path().join("f")).unwrap(), mode & 0o777), (b"new!".to_vec(), 0o750));

        writing.open(dir.path(), &open).unwrap();
        writing.abandon();
        assert_eq!(stdfs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn directories_are_made_when_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let mut writing = Writing::default();
        let mut open = call("a/b/f", Mode::Write);
        assert_eq!(writing.open(dir.path(), &open).err().map(|e| e.code), Some(Code::FileNotFound));
        open.create_dirs = true;
        writing.open(dir.path(), &open).unwrap();
        writing.close(1, true).unwrap();
        let read = writing.open(dir.path(), &call("a/b/f", Mode::Read)).unwrap();
        let mut content = String::new();
        stdfs::File::from(read.fd).read_to_string(&mut content).unwrap();
        assert_eq!(read.stat.unwrap().path, "a/b/f");
        let listing = writing.open(dir.path(), &call("a", Mode::List)).unwrap();
        let mut encoded = Vec::new();
        stdfs::File::from(listing.fd).read_to_end(&mut encoded).unwrap();
        let listing = cooper_proto::v1::ListFilesResponse::decode(&*encoded).unwrap();
        assert_eq!(listing.files[0].path, "a/b");
    }
}
