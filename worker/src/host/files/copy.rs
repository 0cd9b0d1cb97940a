//! Copies a file, or a directory with all beneath it. The copy appears under its name when it is whole.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
};

use cooper_common::{
    error::{Code, Error, Result},
    limits::files::{COPIED_BYTES_MAX, COPIED_ENTRIES_MAX},
};
use cooper_proto::v1::{CopyFileRequest, CopyFileResponse};
use rustix::{
    fs::{self, AtFlags, FileType, Mode, OFlags, Stat},
    io::Errno,
};

use super::{change, walk::Walk};
use crate::host::beneath::{self, DIRECTORY, LISTABLE, Place, READABLE, failed, failed_io};

pub fn copy(root: &OwnedFd, request: &CopyFileRequest) -> Result<CopyFileResponse> {
    let from = Place::find(root, &request.from, false)?;
    let found = from.stat().map_err(|e| failed(&request.from, e))?;
    let to = Place::find(root, &request.to, request.create_dirs)?;
    if !request.overwrite && to.stat().is_ok() {
        return Err(failed(&request.to, Errno::EXIST));
    }
    let name = format!(".cooper-{:016x}.part", rand::random::<u64>());
    let dir = to.dir.try_clone().map_err(|e| Error::internal(e.to_string()))?;
    let draft = Place { dir, name: name.into_bytes() };
    let mut answer = CopyFileResponse::default();
    let copied = match beneath::kind(&found) {
        FileType::Directory if within(&to.dir, &found) => {
            Err(Error::invalid(format!("{:?} cannot be copied into itself", request.from)))
        }
        FileType::Directory => tree(&from, &draft, &request.from, &mut answer),
        FileType::RegularFile | FileType::Symlink => {
            entry(from.dir.as_fd(), &from.name, &found, draft.dir.as_fd(), &draft.name, &mut answer)
                .map_err(|e| failed_io(&request.from, &e))
        }
        _ => {
            Err(Error::new(Code::NotAFile, format!("{:?} is neither file, directory nor link", request.from)))
        }
    };
    let done = copied.and_then(|()| {
        change::put(&draft, &to, request.overwrite).map_err(|e| failed(&request.to, e))?;
        to.stat().map_err(|e| failed(&request.to, e))
    });
    match done {
        Ok(stat) => {
            answer.stat = Some(beneath::describe(&request.to, &stat));
            Ok(answer)
        }
        Err(error) => {
            let _ = fs::unlinkat(&draft.dir, draft.name(), AtFlags::empty())
                .or_else(|_| change::remove_all(root, &draft).map(drop));
            Err(error)
        }
    }
}

/// Whether `dir` is the directory `of`, or beneath it. It spares a mistake; nothing is safe because of it.
fn within(dir: &OwnedFd, of: &Stat) -> bool {
    let mut at = dir.try_clone().ok();
    let mut last = None;
    while let Some(fd) = at {
        let Ok(stat) = fs::fstat(&fd) else { return false };
        let here = (stat.st_dev, stat.st_ino);
        if here == (of.st_dev, of.st_ino) {
            return true;
        }
        if last == Some(here) {
            return false;
        }
        last = Some(here);
        at = fs::openat(&fd, "..", DIRECTORY, Mode::empty()).ok();
    }
    false
}

fn tree(from: &Place, draft: &Place, path: &str, answer: &mut CopyFileResponse) -> Result<()> {
    let source = beneath::open_plain(&from.dir, &from.name, LISTABLE).map_err(|e| failed(path, e))?;
    let source_stat = fs::fstat(&source).map_err(|e| failed(path, e))?;
    fs::mkdirat(&draft.dir, draft.name(), Mode::RWXU).map_err(|e| failed(path, e))?;
    let target = beneath::open_plain(&draft.dir, &draft.name, DIRECTORY).map_err(|e| failed(path, e))?;
    answer.entries = 1;
    // Directories are open to their owner until all is in them.
    let mut modes = vec![(Vec::new(), source_stat.st_mode)];
    let mut walk = Walk::new(source, true, true, b"").map_err(|e| failed(path, e))?;
    while let Some(found) = walk.step() {
        if answer.entries >= COPIED_ENTRIES_MAX || answer.size_bytes > COPIED_BYTES_MAX {
            return Err(Error::new(
                Code::TooLarge,
                format!("{path:?} has more than {COPIED_ENTRIES_MAX} entries or {COPIED_BYTES_MAX} bytes"),
            ));
        }
        let parent = match found.path.iter().rposition(|byte| *byte == b'/') {
            Some(at) => &found.path[..at],
            None => &b"."[..],
        };
        let failed_here = |error: Errno| failed(&String::from_utf8_lossy(&found.path), error);
        let place = beneath::open_plain(&target, parent, DIRECTORY).map_err(failed_here)?;
        match found.kind() {
            FileType::Directory => {
                fs::mkdirat(&place, OsStr::from_bytes(&found.name), Mode::RWXU).map_err(failed_here)?;
                answer.entries += 1;
                modes.push((found.path, found.stat.st_mode));
            }
            FileType::RegularFile | FileType::Symlink => {
                let done =
                    entry(walk.directory(), &found.name, &found.stat, place.as_fd(), &found.name, answer);
                match done {
                    Ok(()) => {}
                    // Not readable, or another thing by now.
                    Err(error)
                        if matches!(
                            error.raw_os_error(),
                            Some(libc::EACCES | libc::ENOENT | libc::ELOOP | libc::ENXIO | libc::EISDIR)
                        ) =>
                    {
                        answer.skipped += 1;
                    }
                    Err(error) => return Err(failed_io(&String::from_utf8_lossy(&found.path), &error)),
                }
            }
            _ => answer.skipped += 1,
        }
    }
    if walk.too_deep {
        return Err(Error::new(Code::TooLarge, format!("{path:?} is deeper than a path can be long")));
    }
    answer.skipped += walk.skipped;
    for (path, mode) in modes.into_iter().rev().filter(|(_, mode)| mode & 0o777 != 0o700) {
        let at = if path.is_empty() { &b"."[..] } else { &path };
        if let Ok(made) = beneath::open_plain(&target, at, DIRECTORY) {
            let _ = beneath::change_mode(&made, mode);
        }
    }
    Ok(())
}

/// One file or link.
fn entry(
    from: impl AsFd,
    name: &[u8],
    stat: &Stat,
    to: impl AsFd,
    new: &[u8],
    answer: &mut CopyFileResponse,
) -> io::Result<()> {
    if beneath::kind(stat) == FileType::Symlink {
        let target = fs::readlinkat(from, OsStr::from_bytes(name), Vec::new())?;
        fs::symlinkat(&*target, to, OsStr::from_bytes(new))?;
        answer.entries += 1;
        return Ok(());
    }
    let mut source = File::from(beneath::open_plain(from, name, READABLE)?);
    if !source.metadata()?.is_file() {
        return Err(Errno::ISDIR.into());
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut made = File::from(fs::openat(to, OsStr::from_bytes(new), flags, Mode::from_raw_mode(0o600))?);
    answer.size_bytes += io::copy(&mut source, &mut made)?;
    fs::fchmod(&made, Mode::from_raw_mode(stat.st_mode & 0o777))?;
    answer.entries += 1;
    Ok(())
}
