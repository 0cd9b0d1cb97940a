//! The workers' door: translates the link protocol (DESIGN §5) into inputs of the cluster and back. Decides nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, OnceLock, atomic::AtomicU64},
    time::Duration,
};

use cooper_common::{
    VERSION,
    error::{Code, Error, Result},
    failpoint,
    ids::{SessionId, TaskId},
    limits::{
        link as limits,
        network::{NAME_BYTES_MAX, REFUSALS_TOLD_MAX, USED_TOLD_MAX},
    },
    token::Scope,
    tunnel::{self, Piece},
};
use cooper_core::{
    change::InlineOutput,
    cluster::{AttemptItem, Hello, Said, SessionItem, Update, Verdict, Welcome},
    lease::Fence,
    session::{Carried, Reason},
    task::End,
    worker::{Body, State, WorkerId},
};
use cooper_proto::v1::{self, worker_link_server::WorkerLink};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::{BoxStream, caller, status};
use crate::{
    artifacts::Artifacts,
    caller::Caller,
    cluster::{Cluster, durable},
    fleet::{Reply, Transfer},
    output::Stream,
    ports,
    runs::Runs,
};

/// A worker says hello at once.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Messages of a worker that become one decision, at most: what other workers say waits no longer than that.
const TOGETHER_MAX: usize = 256;
/// Acks on their way to one worker's output stream.
const ACKS_MAX: usize = 256;
const WORKER_ID_BYTES_MAX: usize = 128;
/// A word of ours; a worker may be newer.
const REASON_BYTES_MAX: usize = 32;

pub struct Door {
    pub cluster: Arc<Cluster>,
    pub runs: Arc<Runs>,
    pub artifacts: Arc<Artifacts>,
}

fn fence(fence: Option<v1::Fence>) -> Fence {
    let fence = fence.unwrap_or_default();
    Fence { epoch: fence.epoch, attempt: fence.attempt }
}

fn wire(fence: Fence) -> Option<v1::Fence> {
    Some(v1::Fence { epoch: fence.epoch, attempt: fence.attempt })
}

#[tonic::async_trait]
impl WorkerLink for Door {
    type AttachStream = BoxStream<v1::Down>;
    type StreamOutputStream = BoxStream<v1::OutputAck>;
    type TransferStream = BoxStream<v1::TransferDown>;

    async fn attach(
        &self,
        request: Request<Streaming<v1::Up>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let caller = caller(&request)?;
        caller.require(&[Scope::Worker]).map_err(status)?;
        let mut ups = request.into_inner();
        let first = tokio::time::timeout(HELLO_TIMEOUT, ups.next()).await;
        let hello = match first {
            Ok(Some(Ok(v1::Up { message: Some(v1::up::Message::Hello(hello)) }))) => hello,
            Ok(Some(Err(error))) => return Err(error),
            _ => return Err(status(Error::invalid("the first message of an attach is Hello"))),
        };
        let (worker, attach, downs) =
            attach(&self.cluster, &self.runs, &caller, hello).await.map_err(status)?;
        let (cluster, runs, artifacts) = (self.cluster.clone(), self.runs.clone(), self.artifacts.clone());
        tokio::spawn(async move {
            let goodbye = listen(&cluster, &runs, &artifacts, &worker, attach, &mut ups).await;
            cluster.fleet.closed(&worker, attach);
            cluster.tell(|core, now| core.detach(now, &worker, attach, goodbye));
            tracing::info!(%worker, attach, goodbye, "detached");
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(downs).map(Ok))))
    }

    async fn stream_output(
        &self,
        request: Request<Streaming<v1::OutputUp>>,
    ) -> Result<Response<Self::StreamOutputStream>, Status> {
        let (worker, attach) = self.attached(&request)?;
        let cluster = self.cluster.clone();
        let mut ups = request.into_inner();
        let (acks, acked) = mpsc::channel(ACKS_MAX);
        tokio::spawn(async move {
            while let Some(Ok(up)) = ups.next().await {
                if !cluster.look(|core| core.is_current(&worker, attach)) {
                    break;
                }
                let ack = match append(&cluster, &worker, up) {
                    Ok(ack) => Ok(ack),
                    Err(error) => Err(status(error)),
                };
                let failed = ack.is_err();
                if acks.send(ack).await.is_err() || failed {
                    break;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(acked))))
    }

    async fn transfer(
        &self,
        request: Request<Streaming<v1::TransferUp>>,
    ) -> Result<Response<Self::TransferStream>, Status> {
        let (worker, _) = self.attached(&request)?;
        let mut ups = request.into_inner();
        use v1::transfer_up::Part;
        let call = match ups.next().await {
            Some(Ok(v1::TransferUp { part: Some(Part::CallId(call)) })) => call,
            Some(Ok(v1::TransferUp { part: Some(Part::Artifact(up)) })) => {
                return Ok(self.artifact(worker, up, ups));
            }
            _ => return Err(status(Error::invalid("the first message of a transfer names its call"))),
        };
        let transfer = self.cluster.fleet.transfer(&worker, call);
        let transfer =
            transfer.ok_or_else(|| status(Error::invalid("there is no such call, or not any more")))?;
        let cluster = self.cluster.clone();
        match transfer {
            Transfer::Read(body) => {
                // Nothing goes down. That it ends tells the worker, which keeps one of its places for the call until then.
                let (held, nothing) = mpsc::channel(1);
                tokio::spawn(async move {
                    receive(&cluster, &worker, call, &mut ups, body).await;
                    cluster.fleet.transferred(call);
                    drop(held);
                });
                Ok(Response::new(Box::pin(ReceiverStream::new(nothing))))
            }
            Transfer::Connection(connection, session) => {
                let (outgoing, said) = mpsc::channel(tunnel::PIECES);
                let (heard, incoming) = mpsc::channel(tunnel::PIECES);
                tokio::spawn(async move {
                    let last = AtomicU64::new(0);
                    let moved = || ports::moved(&cluster, session, &last);
                    tokio::select! {
                        _ = tunnel::carry(connection, incoming, outgoing, moved) => {}
                        () = hear_port(&mut ups, heard) => {}
                    }
                    cluster.fleet.transferred(call);
                });
                Ok(Response::new(Box::pin(ReceiverStream::new(said).map(|piece| Ok(carried(piece))))))
            }
            Transfer::Write(body) => {
                tokio::spawn(async move {
                    let reply = written(&mut ups).await;
                    cluster.fleet.answered(&worker, call, reply.map(Reply::Stat));
                });
                Ok(Response::new(Box::pin(pieces(body))))
            }
        }
    }
}

impl Door {
    /// Takes an artifact in, and says what became of it. What breaks on the way ends the transfer without a word: the
    /// worker sends it again.
    fn artifact(
        &self,
        worker: WorkerId,
        up: v1::ArtifactUp,
        mut ups: Streaming<v1::TransferUp>,
    ) -> Response<BoxStream<v1::TransferDown>> {
        use v1::transfer_up::Part;
        let (answer, answered) = mpsc::channel(1);
        let artifacts = self.artifacts.clone();
        tokio::spawn(async move {
            let done = async {
                let mut incoming = artifacts.begin(&worker, up)?;
                loop {
                    match ups.next().await {
                        Some(Ok(v1::TransferUp { part: Some(Part::Data(data)) })) => incoming.write(&data)?,
                        Some(Ok(v1::TransferUp { part: Some(Part::Done(_)) })) => break,
                        _ => return Err(Error::new(Code::Unavailable, "the transfer was cut")),
                    }
                }
                artifacts.take(incoming).await
            };
            let said = match done.await {
                Ok(()) => {
                    failpoint::pass(failpoint::name::ARTIFACT_BEFORE_KEPT);
                    Ok(v1::transfer_down::Part::Kept(true))
                }
                Err(error) if matches!(error.code, Code::QuotaExceeded | Code::StoreFull) => {
                    Ok(v1::transfer_down::Part::Refused(v1::Error {
                        code: error.code.as_str().to_owned(),
                        hint: error.hint().to_owned(),
                        message: error.message,
                    }))
                }
                Err(error) => Err(status(error)),
            };
            let _ = answer.send(said.map(|part| v1::TransferDown { part: Some(part) })).await;
        });
        Response::new(Box::pin(ReceiverStream::new(answered)))
    }

    /// Which attach a data stream belongs to.
    fn attached<T>(&self, request: &Request<T>) -> Result<(WorkerId, u64), Status> {
        caller(request)?.require(&[Scope::Worker]).map_err(status)?;
        let text = |name: &str| request.metadata().get(name).and_then(|value| value.to_str().ok());
        let worker: WorkerId = text("cooper-worker-id").unwrap_or_default().into();
        let attach = text("cooper-attach-epoch").and_then(|text| text.parse().ok()).unwrap_or(0);
        if !self.cluster.look(|core| core.is_current(&worker, attach)) {
            return Err(status(Error::new(Code::StaleLease, "this is not the worker's current attach")));
        }
        Ok((worker, attach))
    }
}

/// Reconciles, and opens the worker's stream with Welcome as its first message.
async fn attach(
    cluster: &Arc<Cluster>,
    runs: &Runs,
    caller: &Caller,
    hello: v1::Hello,
) -> Result<(WorkerId, u64, mpsc::Receiver<v1::Down>)> {
    let protocol = limits::PROTOCOL_MAX.min(hello.protocol_max);
    if protocol < limits::PROTOCOL_MIN || protocol < hello.protocol_min {
        return Err(refused(cluster, caller, &hello));
    }
    let worker: WorkerId = hello.worker_id.as_str().into();
    if worker.is_empty() || worker.len() > WORKER_ID_BYTES_MAX {
        return Err(Error::invalid("worker_id has 1 to 128 bytes"));
    }
    let observe = hello.capabilities.iter().any(|has| has == "compose").then(|| runs.observe());
    let hello = understood(worker.clone(), caller, protocol, hello)?;
    let (downs, stream) = mpsc::channel(limits::OUTBOUND_MESSAGES_MAX);
    // Decided under the lock, sent when durable: Welcome opens the stream, the effects of this attach come behind it.
    let welcome: Arc<OnceLock<(u64, v1::Welcome)>> = Arc::default();
    let opening = (welcome.clone(), cluster.clone(), worker.clone(), downs);
    let (attach, recorded) = cluster.decide_then(
        |core, now| {
            let (answer, out) = core.attach(now, hello)?;
            let attach = answer.attach;
            let message = v1::Welcome { observe, ..welcomed(cluster, answer, protocol, core.epoch())? };
            // Set once, here.
            let _ = welcome.set((attach, message));
            Ok((attach, out))
        },
        move |recorded| {
            let (welcome, cluster, worker, downs) = opening;
            if let (Ok(()), Some((attach, welcome))) = (recorded, welcome.get()) {
                let message = Some(v1::down::Message::Welcome(welcome.clone()));
                // The channel is empty.
                let _ = downs.try_send(v1::Down { message });
                cluster.fleet.opened(&worker, *attach, protocol, downs);
            }
        },
    )?;
    durable(recorded).await?;
    Ok((worker, attach, stream))
}

/// No version in common: the worker is told what to do, and so is whoever asks where it is.
fn refused(cluster: &Arc<Cluster>, caller: &Caller, hello: &v1::Hello) -> Error {
    let (ours, theirs) =
        ((limits::PROTOCOL_MIN, limits::PROTOCOL_MAX), (hello.protocol_min, hello.protocol_max));
    let error = Error::new(
        Code::ProtocolVersion,
        format!(
            "worker {:?} ({}) speaks link protocol {} to {}, this coordinator ({VERSION}) {} to {}",
            hello.worker_id, hello.version, theirs.0, theirs.1, ours.0, ours.1
        ),
    );
    let error = error.with_hint(if theirs.0 > ours.1 {
        "upgrade the coordinator; workers are upgraded after it"
    } else {
        "upgrade the worker"
    });
    tracing::warn!(%error, hint = error.hint(), "a worker is not let in");
    metrics::counter!("cooper_workers_refused_total").increment(1);
    if (1..=WORKER_ID_BYTES_MAX).contains(&hello.worker_id.len()) {
        let reason = Reason {
            code: error.code.as_str().to_owned(),
            message: format!("{}; {}", error.message, error.hint()),
        };
        cluster.tell(|core, now| {
            core.refused(
                now,
                &hello.worker_id,
                caller.tenant.clone(),
                &hello.version,
                &hello.hostname,
                reason,
            )
        });
    }
    error
}

fn understood(worker: WorkerId, caller: &Caller, protocol: u32, hello: v1::Hello) -> Result<Hello> {
    let capacity = hello.capacity.unwrap_or_default();
    let mut sessions = Vec::new();
    for item in hello.sessions {
        // An id that is not one cannot be ours to keep: leave it out and the worker will be asked about it never again.
        let Ok(session) = item.session_id.parse::<SessionId>() else { continue };
        sessions.push(SessionItem {
            session,
            fence: fence(item.fence),
            interpreter_restarted: item.interpreter_restarted,
            sealed: item.sealed,
        });
    }
    let mut attempts = Vec::new();
    for item in hello.attempts {
        let Ok(task) = item.task_id.parse::<TaskId>() else { continue };
        attempts.push(AttemptItem { task, fence: fence(item.fence), result_pending: item.result_pending });
    }
    Ok(Hello {
        worker,
        tenant: caller.tenant.clone(),
        protocol,
        body: Body {
            state: State::Ready,
            incarnation: hello.incarnation,
            version: hello.version,
            capabilities: hello.capabilities.into_iter().collect::<BTreeSet<_>>(),
            labels: hello.labels.into_iter().collect::<BTreeMap<_, _>>(),
            sessions_max: capacity.sessions_max,
            tasks_max: capacity.tasks_max,
            stacks: hello.stacks.into_iter().map(|stack| (stack.name, stack.dir)).collect(),
            hostname: hello.hostname,
            boot_id: hello.boot_id,
            python_version: hello.python_version,
            python_versions: hello.python_versions,
            tier: hello.tier,
            sessions_refused: hello
                .sessions_refused
                .map(|error| Reason { code: error.code, message: error.message }),
            drain: None,
            refused: None,
        },
        sessions,
        attempts,
    })
}

fn welcomed(cluster: &Cluster, welcome: Welcome, protocol: u32, epoch: u64) -> Result<v1::Welcome> {
    let verdict = |verdict| {
        match verdict {
            Verdict::Keep => v1::Verdict::Keep,
            Verdict::ResendResult => v1::Verdict::ResendResult,
            Verdict::Cancel => v1::Verdict::Cancel,
            Verdict::Forget => v1::Verdict::Forget,
        }
        .into()
    };
    let mut attempts = Vec::with_capacity(welcome.attempts.len());
    for item in welcome.attempts {
        attempts.push(v1::AttemptVerdict {
            task_id: item.task.to_string(),
            fence: wire(item.fence),
            verdict: verdict(item.verdict),
            stdout_offset: cluster.output.len(item.task, Stream::Stdout)?,
            stderr_offset: cluster.output.len(item.task, Stream::Stderr)?,
        });
    }
    Ok(v1::Welcome {
        protocol,
        coordinator_epoch: epoch,
        attach_epoch: welcome.attach,
        heartbeat_ms: welcome.heartbeat_ms,
        lease_ms: welcome.lease_ms,
        attempts,
        sessions: welcome
            .sessions
            .into_iter()
            .map(|item| v1::SessionVerdict {
                session_id: item.session.to_string(),
                verdict: verdict(item.verdict),
            })
            .collect(),
        coordinator_version: VERSION.to_owned(),
        artifacts: true,
        observe: None,
    })
}

fn stopping(cluster: &Arc<Cluster>, worker: &WorkerId, attach: u64, draining: v1::Draining) {
    tracing::info!(%worker, remaining = draining.remaining, deadline_in_ms = draining.deadline_in_ms, "the worker stops");
    let taken = draining
        .attempts
        .into_iter()
        .filter_map(|item| Some((item.task_id.parse().ok()?, fence(item.fence))))
        .collect();
    cluster.tell(|core, now| core.stopping(now, worker, attach, &taken, draining.checkpoint));
}

/// Reads the worker's stream until it ends; true = it said goodbye. What has arrived is taken together: one decision, and
/// one commit, for all that is said of attempts.
async fn listen(
    cluster: &Arc<Cluster>,
    runs: &Arc<Runs>,
    artifacts: &Artifacts,
    worker: &WorkerId,
    attach: u64,
    ups: &mut Streaming<v1::Up>,
) -> bool {
    use v1::up::Message;
    let mut arrived = futures::StreamExt::ready_chunks(ups, TOGETHER_MAX);
    while let Some(ups) = arrived.next().await {
        cluster.room().await;
        let mut said = Vec::new();
        let mut end = None;
        for up in ups {
            let Ok(up) = up else {
                end = Some(false);
                break;
            };
            match up.message {
                Some(Message::Credit(credit)) => {
                    said.push(Said::Credit { granted: credit.tasks, seen: credit.assigns_seen });
                }
                Some(Message::Started(started)) => {
                    if let Ok(task) = started.task_id.parse() {
                        said.push(Said::Started { task, fence: fence(started.fence) });
                    }
                }
                Some(Message::Result(result)) => match ended(cluster, artifacts, result).await {
                    Ok(result) => said.push(result),
                    Err(error) => {
                        // Not acked, so it is sent again at the next attach; the cut makes that now.
                        tracing::error!(%worker, %error, "a result could not be taken");
                        end = Some(false);
                        break;
                    }
                },
                Some(Message::Heartbeat(beat)) => {
                    if !heartbeat(cluster, worker, attach, beat) {
                        end = Some(false);
                        break;
                    }
                }
                Some(Message::Session(update)) => {
                    // A session's end decides about its tasks: what was said of them before comes first.
                    hear(cluster, artifacts, worker, attach, &mut said);
                    session(cluster, worker, attach, update);
                }
                Some(Message::Draining(draining)) => {
                    // What is missing in its list was not taken, unless it has ended: that comes first.
                    hear(cluster, artifacts, worker, attach, &mut said);
                    stopping(cluster, worker, attach, draining);
                }
                Some(Message::CallResult(result)) => call_result(cluster, worker, result),
                Some(Message::Stacks(update)) => {
                    let stacks = update.stacks.into_iter().map(|stack| (stack.name, stack.dir)).collect();
                    cluster.tell(|core, now| core.stacks(now, worker, attach, stacks));
                    runs.registering.answered(worker, update.error);
                }
                Some(Message::Trouble(trouble)) => {
                    // It reads and writes rows: nothing else that the worker says waits for that.
                    let (runs, cluster, worker) = (runs.clone(), cluster.clone(), worker.clone());
                    tokio::spawn(async move {
                        if let Some(heard) = runs.trouble(&worker, trouble).await {
                            cluster.fleet.send(&worker, attach, v1::down::Message::TroubleHeard(heard));
                        }
                    });
                }
                Some(Message::Goodbye(goodbye)) => {
                    tracing::info!(%worker, reason = goodbye.reason, "goodbye");
                    end = Some(true);
                    break;
                }
                Some(Message::Hello(_)) | None => {}
            }
        }
        hear(cluster, artifacts, worker, attach, &mut said);
        if let Some(goodbye) = end {
            return goodbye;
        }
    }
    false
}

fn hear(cluster: &Arc<Cluster>, artifacts: &Artifacts, worker: &WorkerId, attach: u64, said: &mut Vec<Said>) {
    if said.is_empty() {
        return;
    }
    let said = std::mem::take(said);
    let made: Vec<_> = said
        .iter()
        .filter_map(|said| match said {
            Said::Result { task, fence, artifacts, .. } if !artifacts.is_empty() => {
                Some((*task, *fence, artifacts.clone()))
            }
            _ => None,
        })
        .collect();
    cluster.tell(|core, now| {
        for (task, fence, made) in made {
            if core.is_current(worker, attach) && core.is_held(worker, task, fence) {
                artifacts.decided(task, fence, &made);
            }
        }
        core.hear(now, worker, attach, said)
    });
}

/// False = another attach took this one's place, or it was given up: the stream ends.
fn heartbeat(cluster: &Arc<Cluster>, worker: &WorkerId, attach: u64, beat: v1::Heartbeat) -> bool {
    let mut current = false;
    cluster.tell(|core, now| {
        let (yes, out) = core.heartbeat(now, worker, attach);
        current = yes;
        out
    });
    if current {
        refusals(cluster, worker, attach, beat.network_refused);
        used(cluster, worker, attach, beat.network_used);
        let ack = v1::HeartbeatAck { seq: beat.seq, lease_ms: cluster.timing.lease_ms };
        cluster.fleet.send(worker, attach, v1::down::Message::HeartbeatAck(ack));
    }
    current
}

/// What sessions' connections carried, as the worker counts it.
fn used(cluster: &Arc<Cluster>, worker: &WorkerId, attach: u64, used: Vec<v1::NetworkUsed>) {
    if used.is_empty() {
        return;
    }
    let used = used.into_iter().take(USED_TOLD_MAX).filter_map(|used| {
        let usage = used.usage.unwrap_or_default();
        let carried =
            Carried { sent: usage.sent_bytes, received: usage.received_bytes, connects: usage.connects };
        Some((used.session_id.parse().ok()?, used.count_id, carried))
    });
    let used = used.collect();
    cluster.tell(|core, now| core.network_used(now, worker, attach, used));
}

/// What the worker's proxy refused becomes events of the sessions.
fn refusals(cluster: &Arc<Cluster>, worker: &WorkerId, attach: u64, refused: Vec<v1::NetworkRefused>) {
    if refused.is_empty() {
        return;
    }
    let event = |refused: v1::NetworkRefused| {
        let session: SessionId = refused.session_id.parse().ok()?;
        let host: String = refused.host.chars().take(NAME_BYTES_MAX).collect();
        let body = serde_json::json!({
            "worker": &**worker,
            "host": host,
            "port": refused.port,
            "reason": refused.reason.chars().take(REASON_BYTES_MAX).collect::<String>(),
            "count": refused.count,
        });
        Some((session, refused.count, body.to_string()))
    };
    let refused: Vec<_> = refused.into_iter().take(REFUSALS_TOLD_MAX).filter_map(event).collect();
    cluster.tell(|core, now| core.network_refused(now, worker, attach, refused));
}

/// A result as the core takes it, once the output before it is on the disk.
async fn ended(cluster: &Arc<Cluster>, artifacts: &Artifacts, result: v1::Result) -> Result<Said> {
    failpoint::pass(failpoint::name::DISPATCH_BEFORE_ACK);
    let task: TaskId = result.task_id.parse().map_err(|_| Error::invalid("task_id is malformed"))?;
    let fence = fence(result.fence);
    let end = match result.state() {
        v1::TaskState::Succeeded => End::Succeeded,
        v1::TaskState::TimedOut => End::TimedOut,
        v1::TaskState::Cancelled => End::Cancelled,
        v1::TaskState::Lost => End::Lost,
        _ => End::Failed,
    };
    // Under an old fence nothing may be written, output included.
    let ours =
        cluster.look(|core| core.task(task).is_some_and(|task| task.held() && task.body.fence == fence));
    let mut inline = Vec::new();
    let mut synced = true;
    if ours {
        for tail in [result.stdout_tail, result.stderr_tail].into_iter().flatten() {
            if tail.data.is_empty() {
                continue;
            }
            let stream = stream_of(&tail)?;
            if tail.offset == 0 && cluster.output.len(task, stream)? == 0 {
                inline.push(InlineOutput { stream: tail.stream as u8, bytes: tail.data.to_vec() });
            } else {
                cluster.output.append(task, stream, tail.offset, &tail.data)?;
                synced = false;
            }
        }
        let outcome = result.outcome.as_ref();
        let streamed = outcome.is_some_and(|outcome| {
            let inline: u64 = inline.iter().map(|output| output.bytes.len() as u64).sum();
            outcome.stdout_bytes + outcome.stderr_bytes > inline
        });
        if streamed || !synced {
            cluster.output.sync(task).await?;
        }
    }
    failpoint::pass(failpoint::name::OUTPUT_BEFORE_RESULT);
    let mut outcome = result.outcome.unwrap_or_default();
    let made = if ours { artifacts.of_result(task, fence, &mut outcome)? } else { Vec::new() };
    let result = outcome.encode_to_vec();
    Ok(Said::Result { task, fence, end, result, output: inline, artifacts: made })
}

fn stream_of(output: &v1::Output) -> Result<Stream> {
    let number = u8::try_from(output.stream).unwrap_or_default();
    Stream::from_number(number).ok_or_else(|| Error::invalid("output names no stream"))
}

fn append(cluster: &Cluster, worker: &WorkerId, up: v1::OutputUp) -> Result<v1::OutputAck> {
    let task: TaskId = up.task_id.parse().map_err(|_| Error::invalid("task_id is malformed"))?;
    let fence = fence(up.fence);
    let ours = cluster.look(|core| {
        core.task(task).is_some_and(|task| {
            task.held() && task.body.fence == fence && task.body.worker.as_deref() == Some(&**worker)
        })
    });
    let output = up.output.unwrap_or_default();
    if ours && !output.data.is_empty() {
        cluster.output.append(task, stream_of(&output)?, output.offset, &output.data)?;
        cluster.hub.output_appended(task);
    }
    let end = |stream: Stream| match (ours, output.stream == i32::from(stream.number())) {
        (true, _) => Ok(cluster.output.len(task, stream)?),
        // Nobody wants it any more: let the worker get to its end.
        (false, true) => Ok::<u64, Error>(output.offset + output.data.len() as u64),
        (false, false) => Ok(0),
    };
    Ok(v1::OutputAck {
        stdout_offset: end(Stream::Stdout)?,
        stderr_offset: end(Stream::Stderr)?,
        task_id: up.task_id,
        fence: wire(fence),
    })
}

fn session(cluster: &Arc<Cluster>, worker: &WorkerId, attach: u64, update: v1::SessionUpdate) {
    let Ok(id) = update.session_id.parse() else { return };
    let fence = fence(update.fence);
    let update = match update.state.as_str() {
        "ready" => Update::Ready {
            python_version: update.python_version,
            facilities: update.facilities,
            globals: update.globals.as_ref().map(crate::checkpoints::opaque).unwrap_or_default(),
        },
        "failed" => {
            let error = update.error.unwrap_or_default();
            Update::Failed(Reason { code: error.code, message: error.message })
        }
        "destroyed" => Update::Destroyed,
        other => {
            tracing::warn!(%worker, state = other, "a session state that this coordinator does not know");
            return;
        }
    };
    cluster.tell(|core, now| core.session_update(now, worker, attach, id, fence, update));
}

fn error_of(error: v1::Error) -> Error {
    Error::new(Code::parse(&error.code).unwrap_or(Code::Internal), error.message).with_hint(error.hint)
}

fn call_result(cluster: &Cluster, worker: &WorkerId, result: v1::CallResult) {
    let reply = match result.result {
        Some(Reply::Error(error)) => Err(error_of(error)),
        Some(reply) => Ok(reply),
        None => Err(Error::internal("the worker answered a call with nothing")),
    };
    cluster.fleet.answered(worker, result.call_id, reply);
}

/// Takes a file's body from the worker and passes it on to the client.
async fn receive(
    cluster: &Cluster,
    worker: &WorkerId,
    call: u64,
    ups: &mut Streaming<v1::TransferUp>,
    body: mpsc::Sender<Result<bytes::Bytes>>,
) {
    use v1::transfer_up::Part;
    while let Some(Ok(up)) = ups.next().await {
        match up.part {
            Some(Part::Stat(stat)) => cluster.fleet.answered(worker, call, Ok(Reply::Stat(stat))),
            Some(Part::Summary(summary)) => cluster.fleet.packed(worker, call, summary),
            Some(Part::Data(data)) => {
                if body.send(Ok(data.into())).await.is_err() {
                    return;
                }
            }
            Some(Part::Error(error)) => {
                let error = error_of(error);
                cluster.fleet.answered(worker, call, Err(error.clone()));
                let _ = body.send(Err(error)).await;
                return;
            }
            Some(Part::Done(_)) => return,
            Some(Part::CallId(_) | Part::Artifact(_) | Part::More(_)) | None => {}
        }
    }
    let cut = Error::new(Code::Unavailable, "the transfer from the worker was cut");
    cluster.fleet.answered(worker, call, Err(cut.clone()));
    let _ = body.send(Err(cut)).await;
}

/// What comes from a port of a session. Never ends before the connection does.
async fn hear_port(ups: &mut Streaming<v1::TransferUp>, heard: mpsc::Sender<Piece>) {
    use v1::transfer_up::Part;
    while let Some(Ok(up)) = ups.next().await {
        let piece = match up.part {
            Some(Part::Data(data)) => Piece::Data(data),
            Some(Part::Done(_)) => Piece::Done,
            Some(Part::More(bytes)) => Piece::More(bytes),
            _ => continue,
        };
        if heard.send(piece).await.is_err() {
            break;
        }
    }
    drop(heard);
    std::future::pending().await
}

fn carried(piece: Piece) -> v1::TransferDown {
    use v1::transfer_down::Part;
    let part = match piece {
        Piece::Data(data) => Part::Data(data),
        Piece::Done => Part::Done(true),
        Piece::More(bytes) => Part::More(bytes),
    };
    v1::TransferDown { part: Some(part) }
}

/// Waits until the worker says that it wrote the file.
async fn written(ups: &mut Streaming<v1::TransferUp>) -> Result<v1::FileStat> {
    use v1::transfer_up::Part;
    while let Some(Ok(up)) = ups.next().await {
        match up.part {
            Some(Part::Stat(stat)) => return Ok(stat),
            Some(Part::Error(error)) => return Err(error_of(error)),
            Some(
                Part::Data(_)
                | Part::Done(_)
                | Part::CallId(_)
                | Part::Summary(_)
                | Part::Artifact(_)
                | Part::More(_),
            )
            | None => {}
        }
    }
    Err(Error::new(Code::Unavailable, "the transfer to the worker was cut; nothing was written"))
}

/// The body of a file on its way to the worker. An empty piece says that it is complete; a channel that closes without
/// one was cut by the client, and so is the stream.
fn pieces(
    body: mpsc::Receiver<bytes::Bytes>,
) -> impl tokio_stream::Stream<Item = Result<v1::TransferDown, Status>> + Send {
    use v1::transfer_down::Part;
    ReceiverStream::new(body).map(|piece| {
        let part = if piece.is_empty() { Part::Done(true) } else { Part::Data(piece.into()) };
        Ok(v1::TransferDown { part: Some(part) })
    })
}
