//! Executions beyond being tasks: calls to one that runs, its output from an offset on, and what has run in a session.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use cooper_common::{
    error::{Code, Error, Result},
    ids::TaskId,
    limits::exec,
};
use cooper_core::{change::Aggregate, task, worker::INTERACTIVE};
use cooper_proto::v1::{self, call::Op};
use tokio::time::Instant;

use crate::{
    caller::Caller,
    check,
    cluster::Cluster,
    files::unexpected,
    fleet::Reply,
    output::Stream,
    sessions,
    store::{Filter, Record},
    tasks,
};

/// Rows looked at in one read.
const PAGE: usize = 500;

/// Whether the worker of a session does what a spec asks of standard input, terminals and directories.
pub fn supported(cluster: &Cluster, worker: &str, spec: &v1::TaskSpec) -> Result<()> {
    let python = match &spec.kind {
        Some(v1::task_spec::Kind::Python(python)) => !python.stdin.is_empty() || !spec.cwd.is_empty(),
        _ => false,
    };
    if (python || spec.stdin_open || spec.terminal.is_some()) && !interactive(cluster, worker) {
        let what = format!("worker {worker}, which holds the session, is of an older version");
        return Err(Error::new(Code::NotSupported, what));
    }
    Ok(())
}

fn interactive(cluster: &Cluster, worker: &str) -> bool {
    cluster
        .look(|core| core.worker(worker).is_some_and(|worker| worker.body.capabilities.contains(INTERACTIVE)))
}

/// Where an execution is.
enum Place {
    Waits,
    Held { worker: String, fence: v1::Fence, session: String },
}

pub async fn write_stdin(
    cluster: &Cluster,
    caller: &Caller,
    request: v1::WriteStdinRequest,
) -> Result<v1::WriteStdinResponse> {
    check::size("data", request.data.len(), exec::STDIN_WRITE_BYTES_MAX)?;
    let op = |task_id, fence| {
        let v1::WriteStdinRequest { offset_bytes, data, eof, .. } = request.clone();
        Op::WriteStdin(v1::StdinWrite { task_id, fence: Some(fence), offset_bytes, data, eof })
    };
    match call(cluster, caller, &request.task_id, op).await? {
        Reply::StdinWritten(written) => Ok(written),
        _ => Err(unexpected()),
    }
}

pub async fn signal(cluster: &Cluster, caller: &Caller, request: &v1::SignalExecutionRequest) -> Result<()> {
    let known = v1::Signal::try_from(request.signal).ok().filter(|signal| *signal != v1::Signal::Unspecified);
    let signal = known.ok_or_else(|| Error::invalid("signal is not one that this version knows"))?;
    let op = |task_id, fence| {
        Op::Signal(v1::ExecutionSignal { task_id, fence: Some(fence), signal: signal.into() })
    };
    let reply = call(cluster, caller, &request.task_id, op).await;
    let outcome = reply.as_ref().err().map_or("done", |error| error.code.as_str());
    let (tenant, task) = (&caller.tenant, &request.task_id);
    tracing::info!(target: "audit", %tenant, task, signal = signal.as_str_name(), outcome, "signal");
    reply.map(|_| ())
}

pub async fn resize(cluster: &Cluster, caller: &Caller, request: &v1::ResizeTerminalRequest) -> Result<()> {
    let size = request.size.unwrap_or_default();
    check::terminal(&size)?;
    let op = |task_id, fence| Op::Resize(v1::TerminalSize { task_id, fence: Some(fence), size: Some(size) });
    call(cluster, caller, &request.task_id, op).await.map(|_| ())
}

/// Calls an execution where it runs; waits a while for its start.
async fn call(
    cluster: &Cluster,
    caller: &Caller,
    id: &str,
    op: impl Fn(String, v1::Fence) -> Op,
) -> Result<Reply> {
    let not_found = || Error::new(Code::TaskNotFound, format!("there is no task {id:?}"));
    let task: TaskId = id.parse().map_err(|_| not_found())?;
    // From before the first look: whatever comes after that look wakes us.
    let mut follower = cluster.hub.follow(task);
    let deadline = Instant::now() + Duration::from_millis(exec::START_WAIT_MS);
    loop {
        follower.now();
        let mut waits = Error::new(Code::NotRunning, format!("task {id} has not started"));
        if let Place::Held { worker, fence, session } = place(cluster, caller, task).await? {
            if !interactive(cluster, &worker) {
                let what = format!("worker {worker}, which holds the session, is of an older version");
                return Err(Error::new(Code::NotSupported, what));
            }
            let worker = worker.as_str().into();
            match cluster.fleet.call(&worker, session, op(task.to_string(), fence)).await {
                // Its worker has yet to hear of it, or it is ending.
                Err(error) if error.code == Code::NotRunning => waits = error,
                answered => return answered,
            }
        }
        if tokio::time::timeout_at(deadline, follower.changed()).await.is_err() {
            return Err(waits);
        }
    }
}

async fn place(cluster: &Cluster, caller: &Caller, task: TaskId) -> Result<Place> {
    let live = cluster.look(|core| {
        let live = core.task(task).filter(|task| task.tenant == caller.tenant)?;
        let fence = v1::Fence { epoch: live.body.fence.epoch, attempt: live.body.fence.attempt };
        let session = live.body.session.map(|session| session.to_string()).unwrap_or_default();
        Some(match (&live.body.worker, live.held()) {
            (Some(worker), true) => Place::Held { worker: worker.clone(), fence, session },
            _ => Place::Waits,
        })
    });
    if let Some(place) = live {
        return Ok(place);
    }
    let record = tasks::get(cluster, caller, &task.to_string()).await?;
    Err(Error::new(Code::NotRunning, format!("task {task} has ended: {}", record.row.state)))
}

/// What is there of a stream from an offset on, and whether that is all there will be.
pub async fn read_output(
    cluster: &Cluster,
    caller: &Caller,
    request: &v1::ReadOutputRequest,
) -> Result<(Record, Vec<u8>, bool)> {
    check::at_most("length_bytes", request.length_bytes.into(), exec::OUTPUT_READ_BYTES_MAX as u64)?;
    let stream = if request.stream() == v1::Stream::Stderr { Stream::Stderr } else { Stream::Stdout };
    let length = match request.length_bytes {
        0 => exec::OUTPUT_READ_BYTES_MAX,
        length => length as usize,
    };
    // The state first: what comes in between is the next read's.
    let record = tasks::get(cluster, caller, &request.task_id).await?;
    let data = output_of(cluster, &record, stream, request.offset_bytes, length).await?;
    let complete = record.row.ended && data.len() < length;
    Ok((record, data, complete))
}

async fn output_of(
    cluster: &Cluster,
    record: &Record,
    stream: Stream,
    offset: u64,
    length: usize,
) -> Result<Vec<u8>> {
    let task: TaskId = record.id.parse().map_err(|_| Error::internal("a stored task id cannot be read"))?;
    if record.row.ended
        && let Some(inline) = cluster.store.inline_output(&record.id, stream.number()).await?
        && !inline.is_empty()
    {
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(inline.len());
        return Ok(inline[from..inline.len().min(from.saturating_add(length))].to_vec());
    }
    let mut data = Vec::new();
    while data.len() < length {
        let piece: Bytes =
            cluster.output.read(task, stream, offset + data.len() as u64, length - data.len())?;
        if piece.is_empty() {
            break;
        }
        data.extend_from_slice(&piece);
    }
    Ok(data)
}

/// Tasks of a session, the oldest first.
pub async fn history(cluster: &Cluster, caller: &Caller, session: &str) -> Result<Vec<String>> {
    let parent = sessions::get(cluster, caller, session).await?.id;
    let (mut ids, mut before) = (Vec::new(), None);
    loop {
        let filter = Filter {
            tenant: Some(caller.tenant.to_string()),
            parent: Some(parent.clone()),
            before,
            limit: PAGE,
            ..Filter::default()
        };
        let page = cluster.store.list(Aggregate::Task, filter).await?;
        ids.extend(page.records.into_iter().map(|record| record.id));
        before = page.next;
        if before.is_none() || ids.len() >= exec::HISTORY_MAX {
            break;
        }
    }
    ids.truncate(exec::HISTORY_MAX);
    ids.reverse();
    Ok(ids)
}

/// One of them, with the beginning of its output. None: retention took it meanwhile.
pub async fn remembered(
    cluster: &Arc<Cluster>,
    caller: &Caller,
    id: &str,
    output_bytes: u32,
) -> Result<Option<(Record, [Vec<u8>; 2])>> {
    let record = match tasks::get(cluster, caller, id).await {
        Err(error) if error.code == Code::TaskNotFound => return Ok(None),
        record => record?,
    };
    let mut output = [Vec::new(), Vec::new()];
    if output_bytes > 0 && tasks::body(&record)?.kind != task::Kind::Noop {
        for (stream, output) in Stream::BOTH.into_iter().zip(&mut output) {
            *output = output_of(cluster, &record, stream, 0, output_bytes as usize).await?;
        }
    }
    Ok(Some((record, output)))
}
