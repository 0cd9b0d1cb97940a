//! `cooper files` put, get of directories: with all beneath them, as archives that nobody sees. Modes and links are kept.

use std::{
    fs,
    io::{self, BufWriter, Read, Write},
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
};

use cooper_common::{
    error::Code,
    limits::{
        archive::{CONTENT_BYTES_MAX, ENTRIES_MAX},
        link::CHUNK_BYTES_MAX,
    },
};
use cooper_proto::v1::{
    ArchiveFormat, ChangeModeRequest, FileStat, ReadArchiveRequest, WriteArchiveHeader, read_file_response,
};
use cooper_worker::host::archive::{Bounds, pack, tar, unpack_plain};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::json;
use tokio::sync::mpsc;

use super::{
    archive::{self, PIECES},
    local_failure,
};
use crate::{
    connect::Client,
    context::Context,
    failure::{Failure, Result},
    progress::Progress,
    units::human_bytes,
};

const BOUNDS: Bounds = Bounds { entries: ENTRIES_MAX, bytes: CONTENT_BYTES_MAX };

fn opened(path: &Path) -> io::Result<OwnedFd> {
    Ok(fs::File::open(path)?.into())
}

/// Where an archive that is made goes.
struct Pieces(mpsc::Sender<io::Result<Vec<u8>>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK_BYTES_MAX);
        let sent = self.0.blocking_send(Ok(bytes[..taken].to_vec()));
        sent.map(|()| taken).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub async fn put(
    context: &Context,
    session: String,
    local: &Path,
    path: String,
    overwrite: bool,
) -> Result<u8> {
    let client = context.cluster()?.connect().await?;
    let unreadable = |error: &io::Error| local_failure("read", local, error);
    let root = opened(local).map_err(|error| unreadable(&error))?;
    let mode = fs::metadata(local).map_err(|error| unreadable(&error))?.permissions().mode() & 0o777;
    let (pieces, mut packed) = mpsc::channel(PIECES);
    let packing = tokio::task::spawn_blocking(move || {
        let mut out = tar::Writer::new(BufWriter::with_capacity(CHUNK_BYTES_MAX, Pieces(pieces.clone())));
        let done = pack(&root, &mut out, BOUNDS, |_, _| true);
        if let Err(error) = &done {
            let _ = pieces.blocking_send(Err(io::Error::other(error.message.clone())));
        }
        done
    });
    let (counted, receiver) = mpsc::channel(PIECES);
    let progress = Progress::new(&context.out);
    let shown = local.display().to_string();
    let counting = async move {
        let mut bytes = 0;
        while let Some(piece) = packed.recv().await {
            bytes += piece.as_ref().map_or(0, |data: &Vec<u8>| data.len() as u64);
            progress.show(&format!("{shown}: {} sent", human_bytes(bytes)));
            if counted.send(piece).await.is_err() {
                return;
            }
        }
    };
    let header = WriteArchiveHeader {
        session_id: session.clone(),
        path: path.clone(),
        format: ArchiveFormat::Tar.into(),
        new_directory: !overwrite,
    };
    let (done, ()) = tokio::join!(archive::send(&client, header, receiver, local), counting);
    let done = done?;
    // Of the directory itself, which an archive of what is in it does not have.
    let change = ChangeModeRequest { session_id: session.clone(), path: path.clone(), mode };
    client.sessions().change_mode(change).await?;
    if let Ok(Ok(packed)) = packing.await
        && packed.skipped_count > 0
    {
        let what = packed.skipped.join(", ");
        context.out.note(&format!("note: {} left out: {what}", packed.skipped_count));
    }
    if context.out.json {
        let mut document = archive::summary(&session, &done);
        document["path"] = path.into();
        context.out.document(&document)?;
    }
    Ok(0)
}

/// An archive as it comes.
struct Incoming {
    pieces: mpsc::Receiver<Vec<u8>>,
    piece: io::Cursor<Vec<u8>>,
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.piece.read(buffer)? {
                0 if !buffer.is_empty() => match self.pieces.blocking_recv() {
                    Some(piece) => self.piece = io::Cursor::new(piece),
                    None => return Ok(0),
                },
                read => return Ok(read),
            }
        }
    }
}

/// A new directory beside its target, renamed when all is in it.
struct Draft(PathBuf);

impl Drop for Draft {
    fn drop(&mut self) {
        // After the rename there is nothing under this name any more.
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub async fn get(
    context: &Context,
    client: &Client,
    session: String,
    stat: FileStat,
    target: &Path,
    overwrite: bool,
) -> Result<u8> {
    let unwritable = |error: io::Error| match error.kind() {
        io::ErrorKind::AlreadyExists => exists(target),
        _ => local_failure("write", target, &error),
    };
    let there = fs::symlink_metadata(target).is_ok();
    if there && !overwrite {
        return Err(exists(target));
    }
    let draft = if there {
        None
    } else {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let draft = target.with_file_name(format!(".{name}.{:016x}.part", rand::random::<u64>()));
        fs::create_dir(&draft).map_err(unwritable)?;
        Some(Draft(draft))
    };
    let into = draft.as_ref().map_or(target, |draft| &draft.0).to_owned();
    let root = opened(&into).map_err(unwritable)?;
    let request = ReadArchiveRequest {
        session_id: session.clone(),
        path: stat.path.clone(),
        hidden: true,
        format: ArchiveFormat::Tar.into(),
    };
    let mut parts = client.sessions().read_archive(request).await?.into_inner();
    let (pieces, receiver) = mpsc::channel(PIECES);
    let unpacking = tokio::task::spawn_blocking(move || {
        let from = Incoming { pieces: receiver, piece: io::Cursor::default() };
        unpack_plain(&root, &mut tar::Reader::new(from), BOUNDS)
    });
    let progress = Progress::new(&context.out);
    let mut bytes = 0;
    while let Some(message) = parts.message().await? {
        if let Some(read_file_response::Part::Data(data)) = message.part {
            bytes += data.len() as u64;
            progress.show(&format!("{}: {} received", stat.path, human_bytes(bytes)));
            // What unpacks gave up, and says why.
            if pieces.send(data).await.is_err() {
                break;
            }
        }
    }
    drop((pieces, progress));
    let failed = |message: String| Failure::new(Code::Internal, message);
    let done = unpacking.await.map_err(|error| failed(error.to_string()))?;
    let done = done.map_err(|error| Failure::new(error.code, error.message))?;
    if let Some(draft) = &draft {
        let mode = fs::Permissions::from_mode(stat.mode & 0o777);
        renameat_with(CWD, &draft.0, CWD, target, RenameFlags::NOREPLACE)
            .map_err(io::Error::from)
            .and_then(|()| fs::set_permissions(target, mode))
            .map_err(unwritable)?;
    }
    if context.out.json {
        context.out.document(&json!({
            "session_id": session,
            "path": stat.path,
            "local": target.to_string_lossy(),
            "files": done.files,
            "directories": done.directories,
            "links": done.symlinks + done.hard_links,
            "size_bytes": done.content_bytes,
        }))?;
    }
    Ok(0)
}

fn exists(target: &Path) -> Failure {
    Failure::new(Code::FileExists, format!("{} is there already", target.display()))
}
