//! Calls into the files of sessions: checked, sent to the worker that holds the session, audited. What a path leads to
//! is for the worker's host to say.

use std::sync::Arc;

use cooper_common::{
    error::{Code, Error, Result},
    limits::{files, request::PATH_BYTES_MAX},
};
use cooper_core::worker::ARCHIVES;
use cooper_proto::v1::{self, ArchiveFormat, call::Op};

use crate::{
    caller::Caller,
    check,
    cluster::Cluster,
    fleet::{Reading, Reply, Writing},
    sessions::holder,
};

/// A call that one message answers.
pub async fn call(cluster: &Arc<Cluster>, caller: &Caller, mut op: Op) -> Result<Reply> {
    let (session, paths) = parts(&mut op)?;
    for (path, may_be_empty) in paths {
        check::path(path, may_be_empty)?;
    }
    let (id, worker) = holder(cluster, caller, session).await?;
    *session = id.to_string();
    let session = session.clone();
    limits(&op)?;
    let audited = audited(&op);
    let reply = cluster.fleet.call(&worker, session.clone(), op).await;
    if let Some((verb, path)) = audited {
        audit(caller, &session, verb, &path, reply.as_ref().err());
    }
    reply
}

/// The session, and the paths with whether they may name the workspace itself.
fn parts(op: &mut Op) -> Result<(&mut String, Vec<(&str, bool)>)> {
    Ok(match op {
        Op::List(it) => (&mut it.session_id, vec![(&it.path, true)]),
        Op::Stat(it) => (&mut it.session_id, vec![(&it.path, true)]),
        Op::Search(it) => (&mut it.session_id, vec![(&it.path, true)]),
        Op::Move(it) => (&mut it.session_id, vec![(&it.from, false), (&it.to, false)]),
        Op::Copy(it) => (&mut it.session_id, vec![(&it.from, false), (&it.to, false)]),
        Op::Delete(it) => (&mut it.session_id, vec![(&it.path, false)]),
        Op::MakeDir(it) => (&mut it.session_id, vec![(&it.path, false)]),
        Op::ChangeMode(it) => (&mut it.session_id, vec![(&it.path, false)]),
        Op::Edit(it) => (&mut it.session_id, vec![(&it.path, false)]),
        Op::Packages(it) => (&mut it.session_id, Vec::new()),
        Op::Read(_)
        | Op::Write(_)
        | Op::ReadArchive(_)
        | Op::WriteArchive(_)
        | Op::Pack(_)
        | Op::Unpack(_)
        | Op::WriteStdin(_)
        | Op::Signal(_)
        | Op::Resize(_)
        | Op::DialPort(_)
        | Op::ListPorts(_) => {
            return Err(Error::internal(
                "a call with a body, to an execution or to a port has a way of its own",
            ));
        }
    })
}

fn limits(op: &Op) -> Result<()> {
    match op {
        Op::List(it) => {
            check::size("glob", it.glob.len(), files::GLOB_BYTES_MAX)?;
            // A character for each byte.
            check::size("cursor", it.cursor.len(), 4 * PATH_BYTES_MAX)
        }
        Op::Search(it) => {
            check::size("glob", it.glob.len(), files::GLOB_BYTES_MAX)?;
            check::size("pattern", it.pattern.len(), files::PATTERN_BYTES_MAX)?;
            check::at_most("limit", it.limit.into(), files::MATCHES_MAX.into())
        }
        Op::Edit(it) => {
            check::at_most("edits", it.edits.len() as u64, files::EDITS_MAX as u64)?;
            let bytes = it.edits.iter().map(|edit| edit.old.len() + edit.new.len()).sum();
            check::size("edits", bytes, files::EDITS_BYTES_MAX)
        }
        _ => Ok(()),
    }
}

/// What a call changes, for the audit.
fn audited(op: &Op) -> Option<(&'static str, String)> {
    Some(match op {
        Op::Move(it) => ("moved", format!("{} to {}", it.from, it.to)),
        Op::Copy(it) => ("copied", format!("{} to {}", it.from, it.to)),
        Op::Delete(it) => ("deleted", it.path.clone()),
        Op::MakeDir(it) => ("directory made", it.path.clone()),
        Op::ChangeMode(it) => ("mode changed", it.path.clone()),
        Op::Edit(it) => ("edited", it.path.clone()),
        _ => return None,
    })
}

/// A line of the coordinator's log: calls come by the thousand and leave no row, or the events of everything else would
/// fall to retention because of them.
fn audit(caller: &Caller, session: &str, verb: &str, path: &str, error: Option<&Error>) {
    let outcome = error.map_or("done", |error| error.code.as_str());
    tracing::info!(target: "audit", tenant = %caller.tenant, session, verb, path, outcome, "file call");
}

/// What comes piece by piece: a file, or a directory as an archive.
pub async fn read(cluster: &Arc<Cluster>, caller: &Caller, mut op: Op) -> Result<(v1::FileStat, Reading)> {
    let session = match &mut op {
        Op::Read(it) => {
            check::path(&it.path, false)?;
            &mut it.session_id
        }
        Op::ReadArchive(it) => {
            check::path(&it.path, true)?;
            &mut it.session_id
        }
        _ => return Err(unexpected()),
    };
    let (id, worker) = holder(cluster, caller, session).await?;
    *session = id.to_string();
    knows_archive(cluster, &worker, &op)?;
    cluster.fleet.read(&worker, id.to_string(), op).await
}

/// What goes piece by piece: a file, or an archive to unpack.
pub async fn write(
    cluster: &Arc<Cluster>,
    caller: &Caller,
    mut op: Op,
) -> Result<(Writing, impl Future<Output = Result<Reply>> + Send + use<>)> {
    let (session, verb, path) = match &mut op {
        Op::Write(it) => {
            check::path(&it.path, false)?;
            check::idempotency_key(&it.idempotency_key)?;
            (&mut it.session_id, "written", it.path.clone())
        }
        Op::WriteArchive(it) => {
            check::path(&it.path, true)?;
            (&mut it.session_id, "unpacked", it.path.clone())
        }
        _ => return Err(unexpected()),
    };
    let (id, worker) = holder(cluster, caller, session).await?;
    *session = id.to_string();
    knows_archive(cluster, &worker, &op)?;
    let caller = caller.clone();
    let (body, done) = cluster.fleet.write(&worker, id.to_string(), op)?;
    let done = async move {
        let written = done.await;
        audit(&caller, &id.to_string(), verb, &path, written.as_ref().err());
        written
    };
    Ok((body, done))
}

/// A worker of before the formats would make a tar whatever is asked for, and unpack into what is there.
fn knows_archive(cluster: &Cluster, worker: &str, op: &Op) -> Result<()> {
    let (format, newer) = match op {
        Op::ReadArchive(it) => (it.format, false),
        Op::WriteArchive(it) => (it.format, it.new_directory),
        _ => return Ok(()),
    };
    let format = ArchiveFormat::try_from(format)
        .map_err(|_| Error::invalid(format!("format {format} is none of archives")))?;
    let newer = newer || !matches!(format, ArchiveFormat::Unspecified | ArchiveFormat::Tar);
    let known = |core: &cooper_core::cluster::Cluster| {
        core.worker(worker).is_none_or(|worker| worker.body.capabilities.contains(ARCHIVES))
    };
    match newer && !cluster.look(known) {
        true => Err(Error::new(Code::NotSupported, format!("worker {worker} is older than this request"))),
        false => Ok(()),
    }
}

/// The reply that belongs to a request; a worker that answers with another is broken.
pub fn unexpected() -> Error {
    Error::new(Code::Internal, "the worker answered with something else than was asked for")
}
