//! `cooper files` tar, untar: directories as archives on standard output and input.

use cooper_common::{error::Code, limits::link::CHUNK_BYTES_MAX};
use cooper_proto::v1::{
    ReadArchiveRequest, WriteArchiveHeader, WriteArchiveRequest, read_file_response,
    write_archive_request::Part,
};
use serde_json::json;
use tokio::{
    io::AsyncReadExt,
    sync::{mpsc, oneshot},
};
use tokio_stream::wrappers::ReceiverStream;

use super::Receiving;
use crate::{
    context::Context,
    failure::{Failure, Result},
};

pub async fn tar(context: &Context, session: String, path: String, hidden: bool) -> Result<u8> {
    let client = context.cluster()?.connect().await?;
    let request = ReadArchiveRequest { session_id: session, path, hidden };
    let mut parts = client.sessions().read_archive(request).await?.into_inner();
    let mut out = Receiving::Stdout;
    while let Some(message) = parts.message().await? {
        if let Some(read_file_response::Part::Data(data)) = message.part {
            out.write(&data)?;
        }
    }
    out.finish(0)?;
    Ok(0)
}

pub async fn untar(context: &Context, session: String, path: String) -> Result<u8> {
    let client = context.cluster()?.connect().await?;
    let (parts, receiver) = mpsc::channel(4);
    let (failed, failure) = oneshot::channel();
    let header = WriteArchiveHeader { session_id: session.clone(), path };
    let _ = parts.send(WriteArchiveRequest { part: Some(Part::Header(header)) }).await;
    tokio::spawn(async move {
        let mut buffer = vec![0; CHUNK_BYTES_MAX];
        loop {
            match tokio::io::stdin().read(&mut buffer).await {
                Ok(0) => return,
                Ok(n) => {
                    let part = WriteArchiveRequest { part: Some(Part::Data(buffer[..n].to_vec())) };
                    // The coordinator refused: its answer says why.
                    if parts.send(part).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    let _ = failed.send(error);
                    // Holds the stream open until the call is dropped: a cut archive is not unpacked.
                    parts.closed().await;
                    return;
                }
            }
        }
    });
    let mut sessions = client.sessions();
    let call = sessions.write_archive(ReceiverStream::new(receiver));
    tokio::pin!(call);
    let answer = tokio::select! {
        answer = &mut call => answer?.into_inner(),
        Ok(error) = failure => {
            return Err(Failure::new(Code::NotAFile, format!("cannot read standard input: {error}")).hint(""));
        }
        else => return Err(Failure::new(Code::Internal, "the upload ended without an answer")),
    };
    if context.out.json {
        context.out.document(&json!({
            "session_id": session,
            "files": answer.files,
            "directories": answer.directories,
            "links": answer.links,
            "size_bytes": answer.size_bytes,
            "skipped": answer.skipped,
        }))?;
    } else if answer.skipped > 0 {
        context.out.note(&format!("note: {} left out: neither files, directories nor links", answer.skipped));
    }
    Ok(0)
}
