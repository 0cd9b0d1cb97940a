//! Archives: a directory out as one, one in beneath a directory.

use std::{
    fs::File,
    io::{BufReader, BufWriter, Write},
    os::{fd::OwnedFd, unix::fs::FileExt},
};

use cooper_common::{
    error::{Error, Result},
    limits::archive::{CONTENT_BYTES_MAX, ENTRIES_MAX},
};
use cooper_proto::v1::{
    ArchiveFormat, FileStat, ReadArchiveRequest, WriteArchiveHeader, WriteArchiveResponse,
};
use rustix::{
    fs::{self, AtFlags, Mode},
    io::Errno,
};

use super::find;
use crate::host::{
    archive::{self, Bounds, Summary, gzip, tar, zip},
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
    match request.format() {
        ArchiveFormat::Unspecified | ArchiveFormat::Tar => {
            archive::pack(&directory, &mut tar::Writer::new(&mut out), BOUNDS, takes)?;
        }
        ArchiveFormat::TarGz => {
            let mut packed = tar::Writer::new(gzip::packer(&mut out));
            archive::pack(&directory, &mut packed, BOUNDS, takes)?;
            packed.into_inner().finish().map_err(|e| failed_io(path, &e))?;
        }
        ArchiveFormat::Zip => {
            archive::pack(&directory, &mut zip::Writer::new(&mut out), BOUNDS, takes)?;
        }
    }
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

/// What a file is by its first bytes; what is neither of the others may be a tar.
fn format_of(archive: &File) -> Result<ArchiveFormat> {
    let mut head = [0; 4];
    let read = archive.read_at(&mut head, 0).map_err(|e| failed_io("the archive", &e))?;
    Ok(match &head[..read] {
        [0x1f, 0x8b, ..] => ArchiveFormat::TarGz,
        // The second is the end of one without entries.
        b"PK\x03\x04" | b"PK\x05\x06" => ArchiveFormat::Zip,
        _ => ArchiveFormat::Tar,
    })
}

fn unpack_as(format: ArchiveFormat, archive: File, directory: &OwnedFd, bounds: Bounds) -> Result<Summary> {
    let buffered = |file: File| BufReader::with_capacity(BUFFER_BYTES, file);
    match format {
        ArchiveFormat::Unspecified => unpack_as(format_of(&archive)?, archive, directory, bounds),
        ArchiveFormat::Tar => {
            archive::unpack_plain(directory, &mut tar::Reader::new(buffered(archive)), bounds)
        }
        ArchiveFormat::TarGz => {
            let mut packed = tar::Reader::new(gzip::Unpacker::new(buffered(archive)));
            let done = archive::unpack_plain(directory, &mut packed, bounds)?;
            packed.into_inner().finish().map_err(|e| archive::failed(b"the archive", e))?;
            Ok(done)
        }
        ArchiveFormat::Zip => archive::unpack_plain(directory, &mut zip::Reader::new(archive)?, bounds),
    }
}

/// Unpacks the file at `archive_path`, which goes whatever becomes of it. `quota_bytes` is all that the session may hold.
pub fn unpack(
    root: &OwnedFd,
    request: &WriteArchiveHeader,
    archive_path: &str,
    quota_bytes: u64,
) -> Result<WriteArchiveResponse> {
    let place = Place::find(root, archive_path, false)?;
    let opened = find::open_regular(root, archive_path, &checked(archive_path)?);
    let _ = fs::unlinkat(&place.dir, place.name(), AtFlags::empty());
    let archive = File::from(opened?);
    let path = &request.path;
    let bytes = checked(path)?;
    if request.new_directory {
        let place = Place::find(root, path, true)?;
        fs::mkdirat(&place.dir, place.name(), Mode::from_raw_mode(0o755)).map_err(|e| failed(path, e))?;
    } else {
        beneath::directory(root, &bytes, true).map_err(|e| not_directory(path, e))?;
    }
    let directory =
        beneath::open(root, &bytes, LISTABLE, Mode::empty()).map_err(|e| not_directory(path, e))?;
    // What is packed may become a thousand times as large: it ends before the session's disk is full.
    let bounds = Bounds { bytes: CONTENT_BYTES_MAX.min(quota_bytes), ..BOUNDS };
    let done = unpack_as(request.format(), archive, &directory, bounds)?;
    Ok(WriteArchiveResponse {
        files: done.files,
        directories: done.directories,
        links: done.symlinks + done.hard_links,
        size_bytes: done.content_bytes,
        skipped: done.skipped_count,
    })
}
