//! File calls: opens files beneath a session's workspace and hands the descriptors to the link.
//!
//! The kernel resolves the path (openat2 BENEATH), so nothing a session does to its directories meanwhile leads out of
//! its workspace; symbolic links that stay inside are followed.

use std::{collections::BTreeMap, os::fd::OwnedFd, os::unix::ffi::OsStrExt, path::Path};

use cooper_common::{
    error::{Code, Error, Result},
    limits::exec::FILE_SIZE_BYTES,
};
use cooper_proto::{
    host::{OpenFile, open_file::Mode},
    v1::FileStat,
};
use prost::Message as _;
use rustix::{
    fs::{self, AtFlags, FileType, Mode as Permissions, OFlags, RenameFlags},
    io::Errno,
};

use super::{
    beneath::{self, DIRECTORY, LISTABLE, Place, READABLE, checked, describe, failed},
    listing,
    session::Session,
    sys,
};
use crate::{etag, frame};

mod change;
mod copy;
mod edit;
mod find;
mod pack;
pub mod sweep;
pub mod walk;
pub mod work;

/// Files being written: temporary files beside the file they will become.
#[derive(Default)]
pub struct Writing(BTreeMap<u64, Pending>);

struct Pending {
    place: Place,
    temporary: String,
    path: String,
    file: OwnedFd,
    /// Etag that what is there must have, or `none`.
    if_match: String,
    uid: Option<u32>,
}

pub struct Opened {
    pub fd: OwnedFd,
    pub stat: Option<FileStat>,
}

/// As whom calls act on the files of a session: as its code does, or neither could change what the other made.
pub fn acting(session: &Session) -> Option<u32> {
    session.uid()
}

/// The largest file that a process of the session may write.
pub fn largest_file(session: &Session) -> u64 {
    match session.record.file_size_bytes {
        0 => FILE_SIZE_BYTES,
        bytes => bytes,
    }
}

impl Writing {
    /// Serves one OpenFile as `uid`. What is opened for writing stays pending until [`Writing::close`].
    pub fn open(&mut self, workspace: &Path, uid: Option<u32>, call: &OpenFile) -> Result<Opened> {
        let root = fs::open(workspace, DIRECTORY, Permissions::empty()).map_err(|e| failed(&call.path, e))?;
        let opened = sys::as_user(uid, || match call.mode() {
            Mode::List => list(&root, &call.path),
            Mode::Read => read(&root, &call.path),
            Mode::Write => self.write(&root, uid, call),
            Mode::Pack | Mode::Unpack | Mode::Unspecified => {
                Err(Error::invalid("a file call without a mode"))
            }
        });
        opened.map_err(|e| Error::internal(format!("the session's uid cannot be taken: {e}")))?
    }

    fn write(&mut self, root: &OwnedFd, uid: Option<u32>, call: &OpenFile) -> Result<Opened> {
        if call.path.ends_with('/') {
            return Err(Error::invalid(format!("{:?} does not name a file", call.path)));
        }
        let place = Place::find(root, &call.path, call.create_dirs)?;
        matches(&place, &call.path, &call.if_match)?;
        let temporary = format!(".cooper-{:016x}.part", rand::random::<u64>());
        let mode = if call.permissions == 0 { 0o644 } else { call.permissions & 0o777 };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let private = Permissions::from_raw_mode(0o600);
        let file = beneath::open(&place.dir, temporary.as_bytes(), flags, private)
            .and_then(|file| fs::fchmod(&file, Permissions::from_raw_mode(mode)).map(|()| file))
            .map_err(|e| failed(&call.path, e))?;
        let fd = file.try_clone().map_err(|e| Error::internal(e.to_string()))?;
        let (path, if_match) = (call.path.clone(), call.if_match.clone());
        let pending = Pending { place, temporary, path, file, if_match, uid };
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
        let put = sys::as_user(pending.uid, || pending.put());
        match put.unwrap_or_else(|e| Err(Error::internal(e.to_string()))) {
            Ok(stat) => Ok(Some(describe(&pending.path, &stat))),
            Err(error) => {
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
    fn put(&self) -> Result<fs::Stat> {
        matches(&self.place, &self.path, &self.if_match)?;
        let flags = if self.if_match == ABSENT { RenameFlags::NOREPLACE } else { RenameFlags::empty() };
        let dir = &self.place.dir;
        fs::renameat_with(dir, &*self.temporary, dir, self.place.name(), flags)
            .and_then(|()| fs::fstat(&self.file))
            .map_err(|e| failed(&self.path, e))
    }

    fn remove(self) {
        let gone = || fs::unlinkat(&self.place.dir, &*self.temporary, AtFlags::empty());
        let _ = sys::as_user(self.uid, gone);
    }
}

/// `if_match` of a file that must not be there.
const ABSENT: &str = "none";

/// Whether what is there is what the caller knows of.
fn matches(place: &Place, path: &str, if_match: &str) -> Result<()> {
    if if_match.is_empty() {
        return Ok(());
    }
    match place.stat() {
        Err(Errno::NOENT) if if_match == ABSENT => Ok(()),
        Ok(_) if if_match == ABSENT => Err(failed(path, Errno::EXIST)),
        Ok(stat) if etag::of_stat(&stat) == if_match => Ok(()),
        Ok(_) | Err(Errno::NOENT) => {
            Err(Error::new(Code::FileChanged, format!("{path:?} is not the file it was")))
        }
        Err(error) => Err(failed(path, error)),
    }
}

/// A directory beneath the workspace, for a command to start in. Empty = the workspace.
pub fn directory(workspace: &Path, path: &str) -> Result<std::path::PathBuf> {
    let bytes = checked(path)?;
    if path.is_empty() {
        return Ok(workspace.to_owned());
    }
    let root = fs::open(workspace, DIRECTORY, Permissions::empty()).map_err(|e| failed(path, e))?;
    beneath::open(&root, &bytes, DIRECTORY, Permissions::empty()).map_err(|e| failed(path, e))?;
    Ok(workspace.join(std::ffi::OsStr::from_bytes(&bytes)))
}

fn list(root: &OwnedFd, path: &str) -> Result<Opened> {
    let directory =
        beneath::open(root, &checked(path)?, LISTABLE, Permissions::empty()).map_err(|e| failed(path, e))?;
    let listing = listing::list(directory, path)?.encode_to_vec();
    let fd = frame::sealed_memfd("cooper-listing", &listing).map_err(|e| Error::internal(e.to_string()))?;
    Ok(Opened { fd, stat: None })
}

fn read(root: &OwnedFd, path: &str) -> Result<Opened> {
    let fd =
        beneath::open(root, &checked(path)?, READABLE, Permissions::empty()).map_err(|e| failed(path, e))?;
    let stat = fs::fstat(&fd).map_err(|e| failed(path, e))?;
    if beneath::kind(&stat) != FileType::RegularFile {
        return Err(Error::new(Code::NotAFile, format!("{path:?} is not a regular file")));
    }
    Ok(Opened { fd, stat: Some(describe(path, &stat)) })
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
        Writing::default().open(workspace, None, &call(path, mode)).err().map(|e| e.code).unwrap()
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
        let opened = writing.open(dir.path(), None, &open).unwrap();
        stdfs::File::from(opened.fd).write_all(b"new!").unwrap();
        assert_eq!(stdfs::read(dir.path().join("f")).unwrap(), b"old");
        let stat = writing.close(1, true).unwrap().unwrap();
        assert_eq!((stat.size_bytes, stat.mode), (4, 0o750));
        let mode = stdfs::metadata(dir.path().join("f")).unwrap().permissions().mode();
        assert_eq!((stdfs::read(dir.path().join("f")).unwrap(), mode & 0o777), (b"new!".to_vec(), 0o750));

        writing.open(dir.path(), None, &open).unwrap();
        writing.abandon();
        assert_eq!(stdfs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn directories_are_made_when_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let mut writing = Writing::default();
        let mut open = call("a/b/f", Mode::Write);
        assert_eq!(writing.open(dir.path(), None, &open).err().map(|e| e.code), Some(Code::FileNotFound));
        open.create_dirs = true;
        writing.open(dir.path(), None, &open).unwrap();
        writing.close(1, true).unwrap();
        let read = writing.open(dir.path(), None, &call("a/b/f", Mode::Read)).unwrap();
        let mut content = String::new();
        stdfs::File::from(read.fd).read_to_string(&mut content).unwrap();
        assert_eq!(read.stat.unwrap().path, "a/b/f");
        let listing = writing.open(dir.path(), None, &call("a", Mode::List)).unwrap();
        let mut encoded = Vec::new();
        stdfs::File::from(listing.fd).read_to_end(&mut encoded).unwrap();
        let listing = cooper_proto::v1::ListFilesResponse::decode(&*encoded).unwrap();
        assert_eq!(listing.files[0].path, "a/b");
    }
}
