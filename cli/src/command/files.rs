//! `cooper files`: into the workspace and out of it. Streams, so any size passes; a local file appears whole or not at all.

mod archive;
mod change;
mod directory;
mod find;

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use cooper_common::{error::Code, limits::link::CHUNK_BYTES_MAX};
use cooper_proto::v1::{
    FileStat, ReadFileRequest, StatFileRequest, WriteFileHeader, WriteFileRequest, read_file_response,
    write_file_request::Part,
};
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::{mpsc, oneshot},
};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    args::Files,
    connect::{Client, idempotency_key},
    context::Context,
    failure::{Failure, Result},
    output::json,
};

/// Tries in a row that bring nothing, and the pause between two.
const TRIES: u32 = 5;
const BETWEEN_TRIES: Duration = Duration::from_millis(500);

pub async fn run(context: &Context, args: Files) -> Result<u8> {
    match args {
        Files::Put { session, local, remote, overwrite, if_match } => {
            put(context, session, &local, remote, overwrite, if_match).await
        }
        Files::Get { session, remote, local, overwrite } => {
            get(context, session, remote, local, overwrite).await
        }
        Files::Cat { session, path, offset, length } => cat(context, session, path, offset, length).await,
        Files::Ls { session, path, which, recursive } => {
            find::ls(context, session, path.unwrap_or_default(), which, recursive).await
        }
        Files::Find { session, glob, path, hidden } => {
            find::find(context, session, path.unwrap_or_default(), glob, hidden).await
        }
        grep @ Files::Grep { .. } => find::grep(context, grep).await,
        Files::Stat { session, path, sha256, follow } => {
            find::stat(context, session, path, sha256, follow).await
        }
        edit @ Files::Edit { .. } => change::edit(context, edit).await,
        Files::Mv(names) => change::mv(context, names).await,
        Files::Cp(names) => change::cp(context, names).await,
        Files::Rm { session, path, recursive, force } => {
            change::rm(context, session, path, recursive, force).await
        }
        Files::Mkdir { session, path, mode } => change::mkdir(context, session, path, mode).await,
        Files::Tar { session, path, hidden, format, output } => {
            archive::tar(context, session, path.unwrap_or_default(), hidden, format, output).await
        }
        Files::Untar { session, path, format, input } => {
            archive::untar(context, session, path.unwrap_or_default(), format, input).await
        }
        Files::Chmod { session, mode, path } => change::chmod(context, session, path, mode).await,
    }
}

fn local_failure(what: &str, path: &Path, error: &io::Error) -> Failure {
    let code = match error.kind() {
        io::ErrorKind::NotFound => Code::FileNotFound,
        _ => Code::NotAFile,
    };
    Failure::new(code, format!("cannot {what} {} here: {error}", path.display())).hint("")
}

async fn put(
    context: &Context,
    session: String,
    local: &Path,
    remote: Option<String>,
    overwrite: bool,
    if_match: String,
) -> Result<u8> {
    let stdin = local == Path::new("-");
    let directory = !stdin && local.is_dir();
    // `.` and `..` have names too.
    let whole = if directory { fs::canonicalize(local).ok() } else { None };
    let name = whole.as_deref().unwrap_or(local).file_name().map(|name| name.to_string_lossy().into_owned());
    let path = match (remote, name) {
        (Some(path), Some(name)) if !stdin && path.ends_with('/') => format!("{path}{name}"),
        (Some(path), _) => path,
        (None, Some(name)) if !stdin => name,
        (None, _) => {
            return Err(
                Failure::new(Code::InvalidArgument, "give a path in the workspace to put it at").exit(2)
            );
        }
    };
    if directory {
        if !if_match.is_empty() {
            let what = format!("{} is a directory: --if-match is about a file", local.display());
            return Err(Failure::new(Code::InvalidArgument, what).exit(2));
        }
        return directory::put(context, session, local, path, overwrite).await;
    }
    let (source, mode): (Box<dyn AsyncRead + Unpin + Send>, u32) = if stdin {
        (Box::new(tokio::io::stdin()), 0)
    } else {
        let file = fs::File::open(local).map_err(|error| local_failure("read", local, &error))?;
        let meta = file.metadata().map_err(|error| local_failure("read", local, &error))?;
        (Box::new(tokio::fs::File::from_std(file)), meta.permissions().mode() & 0o777)
    };
    let client = context.cluster()?.connect().await?;
    let header = WriteFileHeader {
        session_id: session.clone(),
        path,
        mode,
        create_dirs: true,
        idempotency_key: idempotency_key(),
        if_match,
    };
    let stat = send(&client, header, source, local).await?;
    if context.out.json {
        let mut document = stat.as_ref().map_or_else(|| json!({}), json::file);
        document["session_id"] = session.into();
        context.out.document(&document)?;
    }
    Ok(0)
}

/// Streams a header and the source's bytes. When the source fails, the request is dropped, never ended: the
/// coordinator takes a cut stream as "leave the old file as it was".
async fn send(
    client: &Client,
    header: WriteFileHeader,
    mut source: impl AsyncRead + Unpin + Send + 'static,
    local: &Path,
) -> Result<Option<cooper_proto::v1::FileStat>> {
    let (parts, receiver) = mpsc::channel(4);
    let (failed, failure) = oneshot::channel::<io::Error>();
    let _ = parts.send(WriteFileRequest { part: Some(Part::Header(header)) }).await;
    let pump = async move {
        let mut buffer = vec![0; CHUNK_BYTES_MAX];
        loop {
            match source.read(&mut buffer).await {
                Ok(0) => return,
                Ok(n) => {
                    let part = WriteFileRequest { part: Some(Part::Data(buffer[..n].to_vec())) };
                    // The coordinator refused: its answer says why.
                    if parts.send(part).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    let _ = failed.send(error);
                    // Holds the stream open until the call is dropped.
                    parts.closed().await;
                    return;
                }
            }
        }
    };
    tokio::spawn(pump);
    let mut sessions = client.sessions();
    let call = sessions.write_file(ReceiverStream::new(receiver));
    tokio::pin!(call);
    let answer = tokio::select! {
        answer = &mut call => answer?,
        Ok(error) = failure => return Err(local_failure("read", local, &error)),
        else => return Err(Failure::new(Code::Internal, "the upload ended without an answer")),
    };
    Ok(answer.into_inner().stat)
}

async fn get(
    context: &Context,
    session: String,
    remote: String,
    local: Option<PathBuf>,
    overwrite: bool,
) -> Result<u8> {
    let base = Path::new(&remote).file_name().map(PathBuf::from);
    let target = match (local, base) {
        (Some(local), _) if local == Path::new("-") => None,
        (Some(local), Some(base)) if local.is_dir() => Some(local.join(base)),
        (Some(local), _) => Some(local),
        (None, Some(base)) => Some(base),
        (None, None) => {
            return Err(Failure::new(Code::InvalidArgument, format!("{remote:?} names no file")).exit(2));
        }
    };
    let client = context.cluster()?.connect().await?;
    let request = ReadFileRequest { session_id: session.clone(), path: remote, ..ReadFileRequest::default() };
    let mut sink = match &target {
        Some(path) => Receiving::file(path)?,
        None => Receiving::Stdout,
    };
    let (stat, received) = match (receive(&client, request.clone(), &mut sink).await, &target) {
        (Err(Failure::Error(report)), Some(target)) if report.code == Code::NotAFile.as_str() => {
            drop(sink);
            let what = StatFileRequest {
                session_id: session.clone(),
                path: request.path,
                follow: true,
                sha256: false,
            };
            let stat = client.sessions().stat_file(what).await?.into_inner();
            if stat.kind != "dir" {
                return Err(Failure::Error(report));
            }
            return directory::get(context, &client, session, stat, target, overwrite).await;
        }
        (received, _) => received?,
    };
    sink.finish(stat.as_ref().map_or(0, |stat| stat.mode))?;
    // On `-` standard output is the file's; a document would spoil it.
    if let (true, Some(path)) = (context.out.json, &target) {
        let mut document = stat.as_ref().map_or_else(|| json!({}), json::file);
        document["session_id"] = session.into();
        document["size_bytes"] = received.into();
        document["local"] = path.to_string_lossy().into_owned().into();
        context.out.document(&document)?;
    }
    Ok(0)
}

async fn cat(context: &Context, session: String, path: String, offset: u64, length: u64) -> Result<u8> {
    let client = context.cluster()?.connect().await?;
    let request = ReadFileRequest {
        session_id: session,
        path,
        offset_bytes: offset,
        length_bytes: length,
        ..ReadFileRequest::default()
    };
    receive(&client, request, &mut Receiving::Stdout).await?;
    Receiving::Stdout.finish(0)?;
    Ok(0)
}

/// Receives a file. One whose way breaks off is asked for again from there, as long as it is the same file and each try
/// brings something.
async fn receive(
    client: &Client,
    mut request: ReadFileRequest,
    sink: &mut Receiving,
) -> Result<(Option<FileStat>, u64)> {
    let wanted = request.length_bytes;
    let (mut stat, mut received) = (None, 0);
    let mut idle = 0;
    loop {
        let before = received;
        let piece = receive_once(client, request.clone(), sink, &mut stat, &mut received).await;
        let Err(failure) = piece else { return Ok((stat, received)) };
        let etag = stat.as_ref().map_or("", |stat: &FileStat| &stat.etag);
        idle = if received > before { 0 } else { idle + 1 };
        let away = [Code::Unavailable, Code::NoWorker].map(Code::as_str);
        let passing = matches!(&failure, Failure::Error(report) if away.contains(&&*report.code));
        if !passing || etag.is_empty() || idle > TRIES {
            return Err(failure);
        }
        tokio::time::sleep(BETWEEN_TRIES).await;
        request.if_match = etag.to_owned();
        request.offset_bytes += received - before;
        if wanted > 0 {
            request.length_bytes = wanted - received;
            if request.length_bytes == 0 {
                return Ok((stat, received));
            }
        }
    }
}

async fn receive_once(
    client: &Client,
    request: ReadFileRequest,
    sink: &mut Receiving,
    stat: &mut Option<FileStat>,
    received: &mut u64,
) -> Result<()> {
    let mut parts = client.sessions().read_file(request).await?.into_inner();
    while let Some(message) = parts.message().await? {
        match message.part {
            Some(read_file_response::Part::Stat(first)) => {
                stat.get_or_insert(first);
            }
            Some(read_file_response::Part::Data(data)) => {
                *received += data.len() as u64;
                sink.write(&data)?;
            }
            None => {}
        }
    }
    Ok(())
}

/// Where a received file goes.
pub enum Receiving {
    Stdout,
    /// A temporary file beside its target, renamed when complete.
    File {
        file: fs::File,
        temporary: PathBuf,
        target: PathBuf,
    },
}

impl Receiving {
    pub fn file(target: &Path) -> Result<Self> {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let temporary = target.with_file_name(format!(".{name}.{:016x}.part", rand::random::<u64>()));
        let file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&temporary)
            .map_err(|error| local_failure("write", target, &error))?;
        Ok(Receiving::File { file, temporary, target: target.to_owned() })
    }
    pub fn write(&mut self, data: &[u8]) -> Result<()> {
        match self {
            Receiving::Stdout => Ok(io::stdout().lock().write_all(data)?),
            Receiving::File { file, target, .. } => {
                file.write_all(data).map_err(|error| local_failure("write", target, &error))
            }
        }
    }
    /// `mode` 0 keeps what the umask gave.
    pub fn finish(mut self, mode: u32) -> Result<()> {
        match &mut self {
            Receiving::Stdout => Ok(io::stdout().lock().flush()?),
            Receiving::File { file, temporary, target } => {
                let done = match mode & 0o777 {
                    0 => Ok(()),
                    mode => file.set_permissions(fs::Permissions::from_mode(mode)),
                };
                done.and_then(|()| file.sync_all())
                    .and_then(|()| fs::rename(&*temporary, &*target))
                    .map_err(|error| local_failure("write", target, &error))
            }
        }
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        if let Receiving::File { temporary, .. } = self {
            // After a finish there is nothing under this name any more.
            let _ = fs::remove_file(temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).expect("a directory");
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn a_received_file_appears_whole_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let target = dir.path().join("a.txt");
        fs::write(&target, "old").expect("written");
        let mut receiving = Receiving::file(&target).expect("opened");
        receiving.write(b"new").expect("written");
        assert_eq!(fs::read(&target).expect("there"), b"old");
        receiving.finish(0o600).expect("finished");
        assert_eq!(fs::read(&target).expect("there"), b"new");
        assert_eq!(fs::metadata(&target).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(listing(dir.path()), ["a.txt"]);
    }

    #[test]
    fn a_cut_file_leaves_the_old_one_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let target = dir.path().join("a.txt");
        fs::write(&target, "old").expect("written");
        let mut receiving = Receiving::file(&target).expect("opened");
        receiving.write(b"ne").expect("written");
        drop(receiving);
        assert_eq!(fs::read(&target).expect("there"), b"old");
        assert_eq!(listing(dir.path()), ["a.txt"]);
    }
}
