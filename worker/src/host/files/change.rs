//! What changes names: move, delete, make a directory, permission bits.

use std::{ffi::OsStr, os::fd::OwnedFd, os::unix::ffi::OsStrExt};

use cooper_common::{
    error::{Code, Error, Result},
    limits::files::OPEN_DIRECTORIES_MAX,
};
use cooper_proto::v1::{
    ChangeModeRequest, DeleteFileRequest, DeleteFileResponse, FileStat, MakeDirRequest, MoveFileRequest,
};
use rustix::{
    fs::{self, AtFlags, FileType, Mode, OFlags, RenameFlags},
    io::Errno,
};

use crate::host::beneath::{self, DIRECTORY, LISTABLE, Place, checked, failed};

pub fn rename(root: &OwnedFd, request: &MoveFileRequest) -> Result<FileStat> {
    let from = Place::find(root, &request.from, false)?;
    from.stat().map_err(|e| failed(&request.from, e))?;
    let to = Place::find(root, &request.to, request.create_dirs)?;
    put(&from, &to, request.overwrite).map_err(|error| match error {
        Errno::INVAL => Error::invalid(format!("{:?} cannot be moved into itself", request.from)),
        error => failed(&request.to, error),
    })?;
    let stat = to.stat().map_err(|e| failed(&request.to, e))?;
    Ok(beneath::describe(&request.to, &stat))
}

/// Renames; without `overwrite` nothing may be there.
pub fn put(from: &Place, to: &Place, overwrite: bool) -> Result<(), Errno> {
    let flags = if overwrite { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
    fs::renameat_with(&from.dir, from.name(), &to.dir, to.name(), flags)
}

pub fn make_dir(root: &OwnedFd, request: &MakeDirRequest) -> Result<FileStat> {
    let path = &request.path;
    let place = Place::find(root, path, true)?;
    let mode = if request.mode == 0 { 0o755 } else { request.mode & 0o777 };
    match fs::mkdirat(&place.dir, place.name(), Mode::from_raw_mode(mode)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(failed(path, error)),
    }
    let made = beneath::open(root, &checked(path)?, DIRECTORY, Mode::empty());
    let made = made.map_err(|error| match error {
        Errno::NOTDIR => failed(path, Errno::EXIST),
        error => failed(path, error),
    })?;
    Ok(beneath::describe(path, &fs::fstat(&made).map_err(|e| failed(path, e))?))
}

pub fn change_mode(root: &OwnedFd, request: &ChangeModeRequest) -> Result<FileStat> {
    let path = &request.path;
    if request.mode > 0o777 {
        return Err(Error::invalid(format!("mode is {:o}; it goes from 0 to 777", request.mode)));
    }
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let file = beneath::open(root, &checked(path)?, flags, Mode::empty()).map_err(|e| failed(path, e))?;
    let done = beneath::change_mode(&file, request.mode).and_then(|()| fs::fstat(&file));
    Ok(beneath::describe(path, &done.map_err(|e| failed(path, e))?))
}

pub fn delete(root: &OwnedFd, request: &DeleteFileRequest) -> Result<DeleteFileResponse> {
    let path = &request.path;
    let missing = Errno::NOENT;
    let place = match Place::find(root, path, false) {
        Err(error) if error.code == Code::FileNotFound && request.missing_ok => {
            return Ok(DeleteFileResponse::default());
        }
        other => other?,
    };
    let stat = match place.stat() {
        Err(error) if error == missing && request.missing_ok => return Ok(DeleteFileResponse::default()),
        other => other.map_err(|e| failed(path, e))?,
    };
    let directory = beneath::kind(&stat) == FileType::Directory;
    if directory && request.recursive {
        return Ok(DeleteFileResponse { entries: remove_all(root, &place).map_err(|e| failed(path, e))? });
    }
    let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
    fs::unlinkat(&place.dir, place.name(), flags).map_err(|e| failed(path, e))?;
    Ok(DeleteFileResponse { entries: 1 })
}

/// Removes a directory however deep and large it is: it is moved into a directory of its own, and so is each directory
/// that is found in one; there is neither recursion nor a path that grows, and nothing to remember but a number.
/// Answers how many entries went.
pub fn remove_all(root: &OwnedFd, place: &Place) -> Result<u64, Errno> {
    let bin = Place {
        dir: beneath::open_plain(root, b".", DIRECTORY)?,
        name: format!(".cooper-{:016x}.gone", rand::random::<u64>()).into_bytes(),
    };
    fs::mkdirat(&bin.dir, bin.name(), Mode::RWXU)?;
    let inside = beneath::open_plain(&bin.dir, &bin.name, DIRECTORY)?;
    let moved = fs::renameat(&place.dir, place.name(), &inside, "0");
    let mut removed = 0;
    if moved.is_ok() {
        // Numbers of directories: found up to `found`, emptied up to `next`.
        let (mut next, mut found) = (0u64, 1u64);
        while next < found {
            removed += empty(&inside, next, &mut found)?;
            next += 1;
        }
    }
    fs::unlinkat(&bin.dir, bin.name(), AtFlags::REMOVEDIR)?;
    moved.map(|()| removed)
}

/// Empties one directory of the bin and removes it.
fn empty(bin: &OwnedFd, number: u64, found: &mut u64) -> Result<u64, Errno> {
    let current = number.to_string();
    let name = OsStr::new(&current);
    let mut removed = 0;
    // A session may go on putting files there.
    for _ in 0..OPEN_DIRECTORIES_MAX {
        let directory = owned(bin, name.as_bytes())?;
        for entry in fs::Dir::read_from(&directory)? {
            let entry = entry?;
            if matches!(entry.file_name().to_bytes(), b"." | b"..") {
                continue;
            }
            match fs::unlinkat(&directory, entry.file_name(), AtFlags::empty()) {
                Ok(()) => removed += 1,
                Err(Errno::NOENT) => {}
                Err(Errno::ISDIR | Errno::PERM) => {
                    move_out(&directory, entry.file_name().to_bytes(), bin, found)?;
                }
                Err(error) => return Err(error),
            }
        }
        match fs::unlinkat(bin, name, AtFlags::REMOVEDIR) {
            Ok(()) => return Ok(removed + 1),
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
    }
    Err(Errno::NOTEMPTY)
}

fn move_out(directory: &OwnedFd, name: &[u8], bin: &OwnedFd, found: &mut u64) -> Result<(), Errno> {
    let to = found.to_string();
    let moved = match fs::renameat(directory, OsStr::from_bytes(name), bin, &*to) {
        // A directory is moved only by who may write in it.
        Err(Errno::ACCESS | Errno::PERM) => {
            owned(directory, name)?;
            fs::renameat(directory, OsStr::from_bytes(name), bin, &*to)
        }
        other => other,
    };
    match moved {
        Ok(()) => *found += 1,
        Err(Errno::NOENT) => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Opens a directory whose owner may have taken its own rights away.
fn owned(at: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let place = beneath::open_plain(at, name, DIRECTORY)?;
    if fs::fstat(&place)?.st_mode & 0o700 != 0o700 {
        beneath::change_mode(&place, 0o700)?;
    }
    beneath::open_plain(at, name, LISTABLE)
}
