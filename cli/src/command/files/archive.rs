//! `cooper files` tar, untar: directories as archives, in files or on standard output and input.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use cooper_common::{error::Code, limits::link::CHUNK_BYTES_MAX};
use cooper_proto::v1::{
    ArchiveFormat, ReadArchiveRequest, WriteArchiveHeader, WriteArchiveRequest, WriteArchiveResponse,
    read_file_response, write_archive_request::Part,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::{mpsc, oneshot},
};
use tokio_stream::wrappers::ReceiverStream;

use super::{Receiving, local_failure};
use crate::{
    connect::Client,
    context::Context,
    failure::{Failure, Result},
};

/// Pieces that wait to be sent.
pub const PIECES: usize = 4;

/// As it is named, or as a file's name ends.
fn format_of(named: Option<&str>, file: Option<&Path>) -> ArchiveFormat {
    let name = file.and_then(Path::file_name).map(|name| name.to_string_lossy().to_lowercase());
    let ends = |end: &str| name.as_ref().is_some_and(|name| name.ends_with(end));
    match named {
        Some("tar") => ArchiveFormat::Tar,
        Some("tar.gz") => ArchiveFormat::TarGz,
        Some("zip") => ArchiveFormat::Zip,
        _ if ends(".zip") => ArchiveFormat::Zip,
        _ if ends(".tar.gz") || ends(".tgz") => ArchiveFormat::TarGz,
        _ => ArchiveFormat::Unspecified,
    }
}

pub async fn tar(
    context: &Context,
    session: String,
    path: String,
    hidden: bool,
    format: Option<String>,
    output: Option<PathBuf>,
) -> Result<u8> {
    let client = context.cluster()?.connect().await?;
    let format = format_of(format.as_deref(), output.as_deref()).into();
    let request = ReadArchiveRequest { session_id: session, path, hidden, format };
    let mut parts = client.sessions().read_archive(request).await?.into_inner();
    let mut out = match &output {
        Some(path) => Receiving::file(path)?,
        None => Receiving::Stdout,
    };
    while let Some(message) = parts.message().await? {
        if let Some(read_file_response::Part::Data(data)) = message.part {
            out.write(&data)?;
        }
    }
    out.finish(0)?;
    Ok(0)
}

pub async fn untar(
    context: &Context,
    session: String,
    path: String,
    format: Option<String>,
    from: Option<PathBuf>,
) -> Result<u8> {
    let mut source: Box<dyn AsyncRead + Unpin + Send> = match &from {
        Some(path) => {
            let file = fs::File::open(path).map_err(|error| local_failure("read", path, &error))?;
            Box::new(tokio::fs::File::from_std(file))
        }
        None => Box::new(tokio::io::stdin()),
    };
    let client = context.cluster()?.connect().await?;
    // Of a file that is read the first bytes say it better than its name.
    let format = format_of(format.as_deref(), None).into();
    let header = WriteArchiveHeader { session_id: session.clone(), path, format, new_directory: false };
    let (pieces, receiver) = mpsc::channel(PIECES);
    tokio::spawn(async move {
        loop {
            let mut buffer = vec![0; CHUNK_BYTES_MAX];
            let read = source.read(&mut buffer).await;
            let last = !matches!(read, Ok(n) if n > 0);
            let piece = match read {
                Ok(0) => return,
                Ok(n) => {
                    buffer.truncate(n);
                    Ok(buffer)
                }
                Err(error) => Err(error),
            };
            if pieces.send(piece).await.is_err() || last {
                return;
            }
        }
    });
    let source = from.as_deref().unwrap_or(Path::new("standard input"));
    let done = send(&client, header, receiver, source).await?;
    if context.out.json {
        context.out.document(&summary(&session, &done))?;
    } else if done.skipped > 0 {
        context.out.note(&format!("note: {} left out: neither files, directories nor links", done.skipped));
    }
    Ok(0)
}

pub fn summary(session: &str, done: &WriteArchiveResponse) -> Value {
    json!({
        "session_id": session,
        "files": done.files,
        "directories": done.directories,
        "links": done.links,
        "size_bytes": done.size_bytes,
        "skipped": done.skipped,
    })
}

/// Streams a header and an archive's pieces. When their source fails, the request is dropped, never ended: an archive
/// that is cut is not unpacked.
pub async fn send(
    client: &Client,
    header: WriteArchiveHeader,
    mut pieces: mpsc::Receiver<io::Result<Vec<u8>>>,
    source: &Path,
) -> Result<WriteArchiveResponse> {
    let (parts, receiver) = mpsc::channel(PIECES);
    let (failed, failure) = oneshot::channel();
    let _ = parts.send(WriteArchiveRequest { part: Some(Part::Header(header)) }).await;
    tokio::spawn(async move {
        while let Some(piece) = pieces.recv().await {
            match piece {
                Ok(data) => {
                    // The coordinator refused: its answer says why.
                    if parts.send(WriteArchiveRequest { part: Some(Part::Data(data)) }).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    let _ = failed.send(error);
                    // Holds the stream open until the call is dropped.
                    return parts.closed().await;
                }
            }
        }
    });
    let mut sessions = client.sessions();
    let call = sessions.write_archive(ReceiverStream::new(receiver));
    tokio::pin!(call);
    tokio::select! {
        answer = &mut call => Ok(answer?.into_inner()),
        Ok(error) = failure => Err(local_failure("read", source, &error)),
        else => Err(Failure::new(Code::Internal, "the upload ended without an answer")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_is_what_is_named_or_what_a_file_is_called() {
        let of = |named, file: &str| format_of(named, Some(Path::new(file)));
        assert_eq!(of(None, "a.zip"), ArchiveFormat::Zip);
        assert_eq!(
            (of(None, "d.zip/a.tar.gz"), of(None, "A.TGZ")),
            (ArchiveFormat::TarGz, ArchiveFormat::TarGz)
        );
        assert_eq!(
            (of(None, "a.tar"), of(None, "zip")),
            (ArchiveFormat::Unspecified, ArchiveFormat::Unspecified)
        );
        assert_eq!(of(Some("tar"), "a.zip"), ArchiveFormat::Tar);
        assert_eq!(format_of(Some("zip"), None), ArchiveFormat::Zip);
    }
}
