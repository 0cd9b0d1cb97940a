//! Archives: a directory out as a tar, a tar in beneath a directory.

use std::{
    fs::File,
    io::{BufReader, BufWriter, Write},
    os::fd::OwnedFd,
};

use cooper_common::{
    error::{Error, Result},
    limits::archive::{CONTENT_BYTES_MAX, ENTRIES_MAX},
};
use cooper_proto::v1::{FileStat, ReadArchiveRequest, WriteArchiveHeader, WriteArchiveResponse};
use rustix::{
    fs::{self, AtFlags, Mode},
    io::Errno,
};

use super::find;
use crate::host::{
    archive::{self, Bounds},
    beneath::{self, LISTABLE, Place, checked, failed, failed_io},
};

const BOUNDS: Bounds = Bounds { entries: ENTRIES_MAX, bytes: CONTENT_BYTES_MAX };
const BUFFER_BYTES: usize = 256 << 10;

/// Packs into `archive`; answers its size.
pub fn pack(root: &OwnedFd, request: &ReadArchiveRequest, archive: &OwnedFd) -> Result<FileStat> {
    let path = &request.path;
    let directory =
        beneath::open(root, &checked(path)?, LISTABLE, Mode::empty()).map_err(|e| not_directory(path, e))?;
    let file = File::from(archive.try_clone().map_err(|e| failed_io(path, &e))?);
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, &file);
    let takes = |found: &[u8], is_directory: bool| {
        let name = found.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        // The drafts of calls that are at work have names like this.
        !name.starts_with(b".cooper-") && (request.hidden || !is_directory || !name.starts_with(b"."))
    };
    archive::pack(&directory, &mut out, BOUNDS, takes)?;
    out.flush().map_err(|e| failed_io(path, &e))?;
    let stat = fs::fstat(archive).map_err(|e| failed(path, e))?;
    Ok(FileStat { etag: String::new(), ..beneath::describe(path, &stat) })
}

fn not_directory(path: &str, error: Errno) -> Error {
    match error {
        Errno::NOTDIR => Error::invalid(format!("{path:?} is not a directory")),
        error => failed(path, error),
    }
}

/// Unpacks the file at `archive_path`, which goes whatever becomes of it.
pub fn unpack(
    root: &OwnedFd,
    request: &WriteArchiveHeader,
    archive_path: &str,
) -> Result<WriteArchiveResponse> {
    let place = Place::find(root, archive_path, false)?;
    let opened = find::open_regular(root, archive_path, &checked(archive_path)?);
    let _ = fs::unlinkat(&place.dir, place.name(), AtFlags::empty());
    let archive = BufReader::with_capacity(BUFFER_BYTES, File::from(opened?));
    let path = &request.path;
    let bytes = checked(path)?;
    beneath::directory(root, &bytes, true).map_err(|e| not_directory(path, e))?;
    let directory =
        beneath::open(root, &bytes, LISTABLE, Mode::empty()).map_err(|e| not_directory(path, e))?;
    let done = archive::unpack(&directory, archive, BOUNDS, |_| false, &|_, content| content)?;
    Ok(WriteArchiveResponse {
        files: done.files,
        directories: done.directories,
        links: done.symlinks + done.hard_links,
        size_bytes: done.content_bytes,
        skipped: done.skipped_count,
    })
}
