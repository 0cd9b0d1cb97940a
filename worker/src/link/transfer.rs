//! File bodies on the second connection: from the session (read) and into it (write).

use std::{fs::File, io::Write, os::unix::fs::FileExt, os::unix::fs::MetadataExt};

use cooper_common::{
    error::{Code, Error, Result},
    limits::link::CHUNK_BYTES_MAX,
};
use cooper_proto::{
    host::{OpenFile, open_file::Mode},
    v1::{
        self, FileStat, ReadFileRequest, TransferDown, TransferUp, WriteFileHeader, call, call_result,
        transfer_down, transfer_up::Part,
    },
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tracing::debug;

use crate::etag;

use super::{
    calls::{Desk, IntoWire, OpenedFile, blocking},
    dial::Failure,
};

const SHA256_HEX_BYTES: usize = 64;
/// Pieces of one body that wait to be sent or written.
pub const PIECES: usize = 4;

/// Sends a file. An error that is returned is the answer to the call; one that comes later travels in the transfer.
pub async fn read(
    desk: &Desk,
    call_id: u64,
    session_id: String,
    request: ReadFileRequest,
) -> Result<(), v1::Error> {
    let ReadFileRequest { path, offset_bytes, length_bytes, if_match, .. } = request;
    let open = OpenFile { session_id, path: path.clone(), mode: Mode::Read.into(), ..OpenFile::default() };
    let OpenedFile { fd, stat, .. } = desk.open(open).await?;
    let (file, stat) = blocking(move || {
        let file = File::from(fd);
        let found = file.metadata().map_err(|e| failed("read", &path, &e))?;
        if !found.is_file() {
            return Err(Error::new(Code::NotAFile, format!("{path:?} is not a regular file")));
        }
        let etag = etag::of(&found);
        if !if_match.is_empty() && if_match != etag {
            return Err(Error::new(Code::FileChanged, format!("{path:?} is not the file it was")));
        }
        let modified_at_ms = found.mtime() * 1000 + found.mtime_nsec() / 1_000_000;
        let stat = stat.unwrap_or_else(|| FileStat { path, kind: "file".into(), ..FileStat::default() });
        // The file that is open decides, not what was known of it before.
        let mode = found.mode() & 0o7777;
        let stat = FileStat { size_bytes: found.len(), mode, modified_at_ms, etag, ..stat };
        Ok((file, stat))
    })
    .await
    .map_err(IntoWire::into_wire)?;

    // The end is where it was when the file was opened: one that grows while it is read would have none.
    let end = match length_bytes {
        0 => stat.size_bytes,
        length => stat.size_bytes.min(offset_bytes.saturating_add(length)),
    };
    send(desk, call_id, stat, file, offset_bytes, end).await
}

async fn send(
    desk: &Desk,
    call_id: u64,
    stat: FileStat,
    file: File,
    offset: u64,
    end: u64,
) -> Result<(), v1::Error> {
    let (parts, outbound) = mpsc::channel(PIECES);
    let first = [Part::CallId(call_id), Part::Stat(stat)];
    for part in first {
        let _ = parts.try_send(TransferUp { part: Some(part) });
    }
    tokio::task::spawn_blocking(move || send_body(&file, offset, end, &parts));
    let mut down = start(desk, outbound).await?;
    // Until the coordinator has it all.
    while let Ok(Some(_)) = down.message().await {}
    Ok(())
}

/// Sends a directory as an archive, which the host has made in a file without a name.
pub async fn read_archive(
    desk: &Desk,
    call_id: u64,
    session_id: String,
    request: v1::ReadArchiveRequest,
) -> Result<(), v1::Error> {
    let made = desk.work_with(session_id, call::Op::ReadArchive(request), String::new()).await?;
    let (call_result::Result::Stat(stat), Some(fd)) = made else {
        return Err(Error::internal("the worker's host made an archive and did not hand it over").into_wire());
    };
    let end = stat.size_bytes;
    send(desk, call_id, stat, File::from(fd), 0, end).await
}

/// Receives an archive into a file of the workspace, and has it unpacked and removed.
pub async fn write_archive(
    desk: &Desk,
    call_id: u64,
    session_id: String,
    header: v1::WriteArchiveHeader,
) -> Result<(), v1::Error> {
    desk.can_work()?;
    let archive = format!(".cooper-{:016x}.archive", rand::random::<u64>());
    let open = OpenFile {
        session_id: session_id.clone(),
        path: archive.clone(),
        mode: Mode::Write.into(),
        permissions: 0o600,
        ..OpenFile::default()
    };
    let OpenedFile { id, fd, size_bytes_max, .. } = desk.open(open).await?;
    let (parts, outbound) = mpsc::channel(PIECES);
    let _ = parts.try_send(TransferUp { part: Some(Part::CallId(call_id)) });
    let mut down = match start(desk, outbound).await {
        Ok(down) => down,
        Err(error) => {
            let _ = desk.close(id, false).await;
            return Err(error);
        }
    };
    let unpacked = match receive_body(&mut down, File::from(fd), "the archive", size_bytes_max).await {
        Ok(true) => match desk.close(id, true).await {
            Ok(_) => desk.work_with(session_id, call::Op::WriteArchive(header), archive).await,
            Err(error) => Err(error),
        },
        Ok(false) => {
            let _ = desk.close(id, false).await;
            return Ok(());
        }
        Err(error) => {
            let _ = desk.close(id, false).await;
            Err(error.into_wire())
        }
    };
    // The answer goes by the control stream: a transfer has none that could say what was unpacked.
    let result = unpacked.map(|(result, _)| result).unwrap_or_else(call_result::Result::Error);
    desk.answer(v1::CallResult { call_id, result: Some(result) }).await;
    // Only now may the transfer end: its end alone says that the call was cut.
    while let Ok(Some(_)) = down.message().await {}
    drop(parts);
    Ok(())
}

/// Runs on a thread of its own; ends when the body or its receiver does.
pub fn send_body(file: &File, mut offset: u64, end: u64, parts: &mpsc::Sender<TransferUp>) {
    while offset < end {
        let mut data = vec![0; (end - offset).min(CHUNK_BYTES_MAX as u64) as usize];
        let part = match file.read_at(&mut data, offset) {
            // Shorter than it was: that is its end now.
            Ok(0) => break,
            Ok(n) => {
                data.truncate(n);
                offset += n as u64;
                Part::Data(data)
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => {
                let error = Error::internal(format!("reading at {offset}: {e}")).into_wire();
                let _ = parts.blocking_send(TransferUp { part: Some(Part::Error(error)) });
                return;
            }
        };
        if parts.blocking_send(TransferUp { part: Some(part) }).is_err() {
            return;
        }
    }
    let _ = parts.blocking_send(TransferUp { part: Some(Part::Done(true)) });
}

/// Receives a file. Nothing of it is seen before all of it is there.
pub async fn write(
    desk: &Desk,
    call_id: u64,
    session_id: String,
    header: WriteFileHeader,
) -> Result<(), v1::Error> {
    let WriteFileHeader { path, mode: permissions, create_dirs, if_match, .. } = header;
    let if_match = known_etag(desk, &session_id, &path, if_match).await?;
    let mode = Mode::Write.into();
    let open = OpenFile {
        session_id,
        path: path.clone(),
        mode,
        permissions,
        create_dirs,
        if_match,
        ..OpenFile::default()
    };
    let OpenedFile { id, fd, size_bytes_max, .. } = desk.open(open).await?;

    let (parts, outbound) = mpsc::channel(PIECES);
    let _ = parts.try_send(TransferUp { part: Some(Part::CallId(call_id)) });
    let mut down = match start(desk, outbound).await {
        Ok(down) => down,
        Err(error) => {
            let _ = desk.close(id, false).await;
            return Err(error);
        }
    };
    let end = match receive_body(&mut down, File::from(fd), &path, size_bytes_max).await {
        Ok(true) => desk.close(id, true).await,
        Ok(false) => {
            debug!("the body of {path:?} was cut: thrown away");
            let _ = desk.close(id, false).await;
            return Ok(());
        }
        Err(error) => {
            let _ = desk.close(id, false).await;
            Err(error.into_wire())
        }
    };
    let last = match end {
        Ok(stat) => vec![Part::Stat(stat), Part::Done(true)],
        Err(error) => vec![Part::Error(error)],
    };
    for part in last {
        let _ = parts.send(TransferUp { part: Some(part) }).await;
    }
    drop(parts);
    while let Ok(Some(_)) = down.message().await {}
    Ok(())
}

/// The etag that the host is to look for: a content's sha256 is compared here, once, and what was found to have it must
/// still be there when the new file takes its place.
async fn known_etag(
    desk: &Desk,
    session_id: &str,
    path: &str,
    if_match: String,
) -> Result<String, v1::Error> {
    if if_match.is_empty() {
        return Ok(if_match);
    }
    desk.can_work()?;
    if if_match.len() != SHA256_HEX_BYTES || if_match.contains('-') {
        return Ok(if_match);
    }
    let stat = v1::StatFileRequest { path: path.to_owned(), sha256: true, ..v1::StatFileRequest::default() };
    let changed = || Error::new(Code::FileChanged, format!("{path:?} is not the file it was")).into_wire();
    match desk.work(session_id.to_owned(), call::Op::Stat(stat)).await {
        Ok(call_result::Result::Stat(stat)) if stat.sha256.eq_ignore_ascii_case(&if_match) => Ok(stat.etag),
        Ok(_) => Err(changed()),
        Err(error) if error.code == Code::FileNotFound.as_str() => Err(changed()),
        Err(error) => Err(error),
    }
}

/// Whether the body came to its end.
pub async fn receive_body(
    down: &mut Streaming<TransferDown>,
    file: File,
    path: &str,
    size_bytes_max: u64,
) -> Result<bool> {
    let (pieces, mut received) = mpsc::channel::<Vec<u8>>(PIECES);
    let name = path.to_owned();
    let writer = blocking(move || {
        let mut file = file;
        let mut written = 0;
        while let Some(data) = received.blocking_recv() {
            written += data.len() as u64;
            if written > size_bytes_max {
                let limit =
                    format!("{name:?} is longer than the {size_bytes_max} bytes that the session allows");
                return Err(Error::new(Code::TooLarge, limit));
            }
            file.write_all(&data).map_err(|e| failed("write", &name, &e))?;
        }
        Ok(())
    });
    let feeder = async move {
        loop {
            match down.message().await {
                Ok(Some(TransferDown { part: Some(transfer_down::Part::Data(data)) })) => {
                    // The writer gave up, and says why.
                    if pieces.send(data).await.is_err() {
                        return false;
                    }
                }
                Ok(Some(TransferDown { part: Some(transfer_down::Part::Done(_)) })) => return true,
                // Of artifacts and ports, and of a newer coordinator.
                Ok(Some(TransferDown {
                    part:
                        None
                        | Some(
                            transfer_down::Part::Kept(_)
                            | transfer_down::Part::Refused(_)
                            | transfer_down::Part::More(_),
                        ),
                })) => {}
                Ok(None) | Err(_) => return false,
            }
        }
    };
    let (whole, written) = tokio::join!(feeder, writer);
    written.map(|()| whole)
}

pub async fn start(
    desk: &Desk,
    outbound: mpsc::Receiver<TransferUp>,
) -> Result<Streaming<TransferDown>, v1::Error> {
    let request = desk.bulk.request(ReceiverStream::new(outbound));
    match desk.client().transfer(request).await {
        Ok(response) => Ok(response.into_inner()),
        Err(status) => {
            let failure = Failure::from(status);
            let what = format!("the file could not be transferred: {}", failure.what);
            Err(Error::new(Code::Unavailable, what).into_wire())
        }
    }
}

fn failed(verb: &str, path: &str, error: &std::io::Error) -> Error {
    let code = match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Code::StoreFull,
        _ => Code::Internal,
    };
    Error::new(code, format!("cannot {verb} {path:?}: {error}"))
}
