//! Replaces exact texts in a file: all edits of a request, or none.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
};

use cooper_common::{
    error::{Code, Error, Result},
    limits::files::{EDITED_FILE_BYTES_MAX, EDITS_MAX},
};
use cooper_proto::v1::{Edit, EditFileRequest, EditFileResponse};
use memchr::memmem;
use rustix::{
    fs::{self, AtFlags, FileType, Mode, OFlags},
    io::Errno,
};
use sha2::{Digest, Sha256};

use crate::{
    etag,
    host::beneath::{self, Place, READABLE, failed, failed_io},
};

pub fn edit(root: &OwnedFd, request: &EditFileRequest) -> Result<EditFileResponse> {
    let path = &request.path;
    if request.edits.is_empty() || request.edits.len() > EDITS_MAX {
        return Err(Error::invalid(format!("a request has 1 to {EDITS_MAX} edits")));
    }
    let place = Place::find(root, path, false)?;
    let file = beneath::open_plain(&place.dir, &place.name, READABLE).map_err(|error| match error {
        Errno::LOOP => Error::new(Code::NotAFile, format!("{path:?} is a symbolic link"))
            .with_hint("edit what it leads to: `cooper files stat` shows where that is"),
        error => failed(path, error),
    })?;
    let before = fs::fstat(&file).map_err(|e| failed(path, e))?;
    if beneath::kind(&before) != FileType::RegularFile {
        return Err(Error::new(Code::NotAFile, format!("{path:?} is not a regular file")));
    }
    let mut content = Vec::new();
    let read = File::from(file).take(EDITED_FILE_BYTES_MAX + 1).read_to_end(&mut content);
    read.map_err(|e| failed_io(path, &e))?;
    fits(path, &content)?;
    let known = etag::of_stat(&before);
    let sha256 = || Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    if !request.if_match.is_empty() && request.if_match != known && request.if_match != sha256() {
        return Err(changed(path));
    }
    let mut replaced = 0;
    for (number, edit) in request.edits.iter().enumerate() {
        let (edited, count) = apply(path, number + 1, edit, &content)?;
        fits(path, &edited)?;
        content = edited;
        replaced += count;
    }
    let stat = replace(&place, path, &content, before.st_mode, &known)?;
    Ok(EditFileResponse { stat: Some(stat), replaced })
}

fn fits(path: &str, content: &[u8]) -> Result<()> {
    if content.len() as u64 > EDITED_FILE_BYTES_MAX {
        let what = format!("{path:?} is longer than the {EDITED_FILE_BYTES_MAX} bytes that an edit may have");
        return Err(Error::new(Code::TooLarge, what));
    }
    Ok(())
}

fn changed(path: &str) -> Error {
    Error::new(Code::FileChanged, format!("{path:?} is not the file it was"))
}

fn apply(path: &str, number: usize, edit: &Edit, content: &[u8]) -> Result<(Vec<u8>, u32)> {
    if edit.old.is_empty() {
        return Err(Error::invalid(format!("edit {number}: old is empty")));
    }
    let found: Vec<usize> = memmem::find_iter(content, &edit.old).collect();
    let expected = if edit.count == 0 { 1 } else { edit.count as usize };
    let start = String::from_utf8_lossy(&edit.old[..edit.old.len().min(60)]).into_owned();
    if found.is_empty() {
        return Err(Error::new(Code::EditNoMatch, format!("edit {number}: {start:?} is not in {path:?}")));
    }
    if !edit.all && found.len() != expected {
        let what = format!(
            "edit {number}: {start:?} is {} times in {path:?}, expected {expected}; first in lines {}",
            found.len(),
            lines(content, &found)
        );
        return Err(Error::new(Code::EditAmbiguous, what));
    }
    let mut edited = Vec::with_capacity(content.len());
    let mut from = 0;
    for at in &found {
        edited.extend_from_slice(&content[from..*at]);
        edited.extend_from_slice(&edit.new);
        from = at + edit.old.len();
        fits(path, &edited)?;
    }
    edited.extend_from_slice(&content[from..]);
    Ok((edited, u32::try_from(found.len()).unwrap_or(u32::MAX)))
}

/// The numbers of the first lines that hold a match.
fn lines(content: &[u8], found: &[usize]) -> String {
    let of = |at: &usize| (memchr::memchr_iter(b'\n', &content[..*at]).count() + 1).to_string();
    found.iter().take(5).map(of).collect::<Vec<_>>().join(", ")
}

/// Puts the new content in place of the file, unless that is another by now.
fn replace(
    place: &Place,
    path: &str,
    content: &[u8],
    mode: u32,
    known: &str,
) -> Result<cooper_proto::v1::FileStat> {
    let temporary = format!(".cooper-{:016x}.part", rand::random::<u64>());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = fs::openat(&place.dir, &*temporary, flags, Mode::from_raw_mode(0o600));
    let mut file = File::from(made.map_err(|e| failed(path, e))?);
    let written = file
        .write_all(content)
        .map_err(|e| failed_io(path, &e))
        .and_then(|()| fs::fchmod(&file, Mode::from_raw_mode(mode & 0o777)).map_err(|e| failed(path, e)))
        .and_then(|()| match place.stat() {
            Ok(now) if etag::of_stat(&now) == known => Ok(()),
            _ => Err(changed(path)),
        })
        .and_then(|()| {
            fs::renameat(&place.dir, &*temporary, &place.dir, place.name()).map_err(|e| failed(path, e))
        })
        .and_then(|()| fs::fstat(&file).map_err(|e| failed(path, e)));
    match written {
        Ok(stat) => Ok(beneath::describe(path, &stat)),
        Err(error) => {
            let _ = fs::unlinkat(&place.dir, &*temporary, AtFlags::empty());
            Err(error)
        }
    }
}
