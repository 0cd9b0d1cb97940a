//! The streams of attached workers, and the calls that are on their way through them.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use cooper_common::{
    error::{Code, Error, Result},
    ids::SessionId,
    limits::{checkpoint, files, ports},
};
use cooper_proto::v1;
use prost::Message as _;
use tokio::{
    io::DuplexStream,
    sync::{mpsc, oneshot},
};

use cooper_core::{cluster::Message, worker::WorkerId};

use crate::secrets::Granted;

/// A worker answers a call within this time, or it failed.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The same for one that may take the worker time, whose own limit it is above.
const WORK_TIMEOUT: Duration = Duration::from_millis(files::WORK_MS + 30_000);
const PACK_TIMEOUT: Duration = Duration::from_millis(checkpoint::WORK_MS + 30_000);
/// Calls beyond the first three, and more fields of those.
const FILE_CALLS_PROTOCOL: u32 = 3;
/// Until the worker has a connection to a port of a session, or says why not.
const DIAL_TIMEOUT: Duration = Duration::from_millis(ports::CONNECT_MS_MAX + 5_000);
/// Bytes of such a connection between door and link.
const CONNECTION_BYTES: usize = 64 << 10;
/// Pieces of a file on their way between door and link.
const TRANSFER_PIECES_MAX: usize = 8;

/// The control stream of one attach, as its sender.
#[derive(Debug, Clone)]
struct Stream {
    attach: u64,
    /// Version of the link protocol that is spoken.
    protocol: u32,
    down: mpsc::Sender<v1::Down>,
}

#[derive(Debug, Default)]
pub struct Fleet {
    streams: Mutex<HashMap<WorkerId, Stream>>,
    calls: Mutex<HashMap<u64, Pending>>,
    next_call: AtomicU64,
}

/// A call that waits for its answer.
#[derive(Debug)]
struct Pending {
    worker: WorkerId,
    attach: u64,
    answer: Option<oneshot::Sender<Result<Answer>>>,
    /// Read: where the body goes. Write: where it comes from.
    body: Option<Body>,
}

#[derive(Debug)]
enum Body {
    Out(mpsc::Sender<Result<Bytes>>),
    In(mpsc::Receiver<Bytes>),
    /// A connection to a port of the session.
    Both(DuplexStream, SessionId),
}

/// What a call is answered with; never its variant `Error`.
pub type Reply = v1::call_result::Result;

#[derive(Debug)]
enum Answer {
    Reply(Reply),
    /// Of a session that is packed.
    Summary(v1::WorkspaceSummary),
    /// The other end of a connection is there.
    Connected,
}

impl Answer {
    fn reply(self) -> Result<Reply> {
        match self {
            Self::Reply(reply) => Ok(reply),
            Self::Summary(_) => Err(Error::internal("the worker answered with the summary of a session")),
            Self::Connected => Err(Error::internal("the worker answered with a connection")),
        }
    }
}

/// What a transfer stream moves.
#[derive(Debug)]
pub enum Transfer {
    /// From the worker.
    Read(mpsc::Sender<Result<Bytes>>),
    /// To the worker. A channel that closes without an empty piece was cut.
    Write(mpsc::Receiver<Bytes>),
    /// Both ways, for a session.
    Connection(DuplexStream, SessionId),
}

/// A body on its way from a worker.
pub type Reading = mpsc::Receiver<Result<Bytes>>;
/// A body on its way to a worker; an empty piece says that it is complete.
pub type Writing = mpsc::Sender<Bytes>;

/// Whether a worker of before [`FILE_CALLS_PROTOCOL`] would not know the call, or take it for another.
fn is_newer(op: &v1::call::Op) -> bool {
    use v1::call::Op;
    match op {
        Op::List(list) => {
            list.recursive
                || list.hidden
                || list.limit != 0
                || !list.glob.is_empty()
                || !list.cursor.is_empty()
        }
        Op::Read(read) => !read.if_match.is_empty(),
        Op::Write(write) => !write.if_match.is_empty(),
        _ => true,
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fleet {
    /// Makes a stream the one of its worker. An older one of the same worker ends, its calls fail.
    pub fn opened(&self, worker: &WorkerId, attach: u64, protocol: u32, down: mpsc::Sender<v1::Down>) {
        let before = locked(&self.streams).insert(worker.clone(), Stream { attach, protocol, down });
        if let Some(before) = before {
            self.fail_calls(worker, before.attach);
        }
    }

    pub fn closed(&self, worker: &WorkerId, attach: u64) {
        let mut streams = locked(&self.streams);
        if streams.get(worker).is_some_and(|stream| stream.attach == attach) {
            streams.remove(worker);
        }
        drop(streams);
        self.fail_calls(worker, attach);
    }

    fn fail_calls(&self, worker: &WorkerId, attach: u64) {
        locked(&self.calls).retain(|_, call| {
            let gone = call.worker == *worker && call.attach == attach;
            if gone && let Some(answer) = call.answer.take() {
                let _ = answer.send(Err(Error::new(Code::Unavailable, "the worker's link was cut")));
            }
            !gone
        });
    }

    /// Sends to the stream of exactly this attach. A stream that is full belongs to a worker that does not read: it is
    /// closed, and the inventory at the next attach puts right what was not sent.
    pub fn send(&self, worker: &WorkerId, attach: u64, message: v1::down::Message) {
        let mut streams = locked(&self.streams);
        let Some(stream) = streams.get(worker).filter(|stream| stream.attach == attach) else { return };
        if let Err(mpsc::error::TrySendError::Full(_)) =
            stream.down.try_send(v1::Down { message: Some(message) })
        {
            tracing::warn!(%worker, "the worker does not read its stream; closing it");
            streams.remove(worker);
        }
    }

    /// `secrets` are a grant's.
    pub fn send_core(&self, worker: &WorkerId, attach: u64, message: Message, secrets: Granted) {
        match down(message, secrets) {
            Ok(message) => self.send(worker, attach, message),
            Err(error) => tracing::error!(%worker, %error, "a stored spec cannot be read; not sent"),
        }
    }

    /// Asks every attached worker to attach again: this coordinator goes away.
    pub fn reattach_all(&self) {
        for stream in locked(&self.streams).values() {
            let _ = stream
                .down
                .try_send(v1::Down { message: Some(v1::down::Message::Reattach(v1::Reattach {})) });
        }
    }

    /// Ends every stream.
    pub fn close_all(&self) {
        locked(&self.streams).clear();
    }

    fn start_call(
        &self,
        worker: &WorkerId,
        session: String,
        op: v1::call::Op,
        body: Option<Body>,
    ) -> Result<(u64, oneshot::Receiver<Result<Answer>>)> {
        let Some(stream) = locked(&self.streams).get(worker).cloned() else {
            return Err(Error::new(
                Code::NoWorker,
                format!("worker {worker}, which holds the session, is away"),
            ));
        };
        if stream.protocol < FILE_CALLS_PROTOCOL && is_newer(&op) {
            return Err(Error::new(
                Code::NotSupported,
                format!(
                    "worker {worker}, which holds the session, is of an older version and does not know that request"
                ),
            ));
        }
        let call_id = self.next_call.fetch_add(1, Ordering::Relaxed) + 1;
        let (answer, answered) = oneshot::channel();
        locked(&self.calls).insert(
            call_id,
            Pending { worker: worker.clone(), attach: stream.attach, answer: Some(answer), body },
        );
        let call = v1::Call { call_id, session_id: session, op: Some(op) };
        self.send(worker, stream.attach, v1::down::Message::Call(call));
        Ok((call_id, answered))
    }

    async fn answer(
        &self,
        call_id: u64,
        answered: oneshot::Receiver<Result<Answer>>,
        within: Duration,
    ) -> Result<Answer> {
        let answer = tokio::time::timeout(within, answered).await;
        let answer = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Error::new(Code::Unavailable, "the worker's link was cut")),
            Err(_) => Err(Error::new(Code::TimedOut, "the worker did not answer in time")),
        };
        if answer.is_err() {
            locked(&self.calls).remove(&call_id);
        }
        answer
    }

    /// A call without a body.
    pub async fn call(&self, worker: &WorkerId, session: String, op: v1::call::Op) -> Result<Reply> {
        let (id, answered) = self.start_call(worker, session, op, None)?;
        let reply = self.answer(id, answered, WORK_TIMEOUT).await;
        locked(&self.calls).remove(&id);
        reply?.reply()
    }

    /// Starts a call whose answer has a body, which follows piece by piece.
    pub async fn read(
        &self,
        worker: &WorkerId,
        session: String,
        op: v1::call::Op,
    ) -> Result<(v1::FileStat, Reading)> {
        let (sender, body) = mpsc::channel(TRANSFER_PIECES_MAX);
        let within = if matches!(op, v1::call::Op::Read(_)) { CALL_TIMEOUT } else { WORK_TIMEOUT };
        let (id, answered) = self.start_call(worker, session, op, Some(Body::Out(sender)))?;
        match self.answer(id, answered, within).await?.reply()? {
            Reply::Stat(stat) => Ok((stat, body)),
            _ => Err(Error::internal("the worker answered a read with something else")),
        }
    }

    /// Starts packing a session; its archive follows piece by piece.
    pub async fn pack(
        &self,
        worker: &WorkerId,
        session: String,
        last: bool,
        globals: bool,
    ) -> Result<(v1::WorkspaceSummary, Reading)> {
        let (sender, body) = mpsc::channel(TRANSFER_PIECES_MAX);
        let op = v1::call::Op::Pack(v1::PackSession { last, globals });
        let (id, answered) = self.start_call(worker, session, op, Some(Body::Out(sender)))?;
        match self.answer(id, answered, PACK_TIMEOUT).await? {
            Answer::Summary(summary) => Ok((summary, body)),
            _ => Err(Error::internal("the worker answered a pack with something else")),
        }
    }

    /// Connects to a port that a session listens on.
    pub async fn connect(&self, worker: &WorkerId, session: SessionId, port: u32) -> Result<DuplexStream> {
        let (ours, theirs) = tokio::io::duplex(CONNECTION_BYTES);
        let op = v1::call::Op::DialPort(v1::DialPort { port });
        let body = Some(Body::Both(theirs, session));
        let (id, answered) = self.start_call(worker, session.to_string(), op, body)?;
        match self.answer(id, answered, DIAL_TIMEOUT).await? {
            Answer::Connected => Ok(ours),
            _ => Err(Error::internal("the worker answered a connection with something else")),
        }
    }

    /// Starts a call that takes a body: give it to the sender, then await the second value.
    pub fn write(
        self: &Arc<Self>,
        worker: &WorkerId,
        session: String,
        op: v1::call::Op,
    ) -> Result<(Writing, impl Future<Output = Result<Reply>> + Send + use<>)> {
        let (sender, body) = mpsc::channel(TRANSFER_PIECES_MAX);
        let (id, answered) = self.start_call(worker, session, op, Some(Body::In(body)))?;
        let fleet = self.clone();
        let done = async move {
            // As long as the client takes to send: the stream's own end is the limit, not a clock.
            let answer = answered.await.unwrap_or_else(|_| {
                Err(Error::new(Code::Unavailable, "the worker's link was cut; nothing was written"))
            });
            locked(&fleet.calls).remove(&id);
            answer?.reply()
        };
        Ok((sender, done))
    }

    /// A worker answers a call.
    pub fn answered(&self, worker: &WorkerId, call_id: u64, reply: Result<Reply>) {
        self.pass_on(worker, call_id, reply.map(Answer::Reply));
    }

    /// A worker has packed a session; the archive follows.
    pub fn packed(&self, worker: &WorkerId, call_id: u64, summary: v1::WorkspaceSummary) {
        self.pass_on(worker, call_id, Ok(Answer::Summary(summary)));
    }

    fn pass_on(&self, worker: &WorkerId, call_id: u64, reply: Result<Answer>) {
        let mut calls = locked(&self.calls);
        let Some(call) = calls.get_mut(&call_id).filter(|call| call.worker == *worker) else { return };
        if let Some(answer) = call.answer.take() {
            let _ = answer.send(reply);
        }
        if call.body.is_none() {
            calls.remove(&call_id);
        }
    }

    /// A worker opens the transfer of a call's body.
    pub fn transfer(&self, worker: &WorkerId, call_id: u64) -> Option<Transfer> {
        let mut calls = locked(&self.calls);
        let call = calls.get_mut(&call_id).filter(|call| call.worker == *worker)?;
        Some(match call.body.take()? {
            Body::Out(sender) => Transfer::Read(sender),
            Body::In(receiver) => Transfer::Write(receiver),
            Body::Both(connection, session) => {
                if let Some(answer) = call.answer.take() {
                    let _ = answer.send(Ok(Answer::Connected));
                }
                Transfer::Connection(connection, session)
            }
        })
    }

    /// The transfer of a call is over.
    pub fn transferred(&self, call_id: u64) {
        locked(&self.calls).remove(&call_id);
    }
}

/// The wire form of what the core wants sent.
fn down(message: Message, secrets: Granted) -> std::result::Result<v1::down::Message, prost::DecodeError> {
    let fence =
        |fence: cooper_core::lease::Fence| Some(v1::Fence { epoch: fence.epoch, attempt: fence.attempt });
    Ok(match message {
        Message::Assign { task, fence: f, spec, timeout_ms, output_limit_bytes } => {
            v1::down::Message::Assign(v1::Assign {
                task_id: task.to_string(),
                fence: fence(f),
                spec: Bytes::from_owner(spec),
                timeout_ms,
                output_limit_bytes,
            })
        }
        Message::Cancel { task, fence: f } => v1::down::Message::Cancel(v1::Cancel {
            task_id: task.to_string(),
            fence: fence(f),
            grace_ms: cooper_common::limits::exec::INTERRUPT_GRACE_MS,
        }),
        Message::ResultAck { task, fence: f, stale } => {
            v1::down::Message::ResultAck(v1::ResultAck { task_id: task.to_string(), fence: fence(f), stale })
        }
        Message::SessionGrant { session, fence: f, spec, restore, secrets_of: _, python } => {
            let spec = v1::CreateSessionRequest::decode(&*spec)?;
            v1::down::Message::SessionCreate(v1::SessionGrant {
                session_id: session.to_string(),
                fence: fence(f),
                env: spec.env,
                limits: spec.limits,
                network: spec.network,
                restore,
                secrets: secrets.files,
                inject: secrets.inject,
                python_version: python,
            })
        }
        Message::Drain { draining, deadline_in_ms } => {
            v1::down::Message::Drain(v1::Drain { draining, deadline_in_ms })
        }
        Message::SessionEnd { session, fence: f } => v1::down::Message::SessionDestroy(v1::SessionEnd {
            session_id: session.to_string(),
            fence: fence(f),
        }),
    })
}
