//! Calls: short file requests into a session. The host opens, the link reads or writes, the coordinator hears.
//!
//! Each call is a task of its own; the loop only passes messages between the tasks and the host. What a call needs is
//! all in its attach: when that ends, its calls end with it, and files half written are thrown away.

use std::{
    collections::{HashMap, HashSet},
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use cooper_common::{
    error::{Code, Error, Result},
    limits::{
        exec::FILE_SIZE_BYTES,
        link::{CHUNK_BYTES_MAX, MESSAGE_BYTES_MAX},
        ports::CONNECTIONS_PER_WORKER_MAX,
    },
};
use cooper_proto::{
    host::{CloseFile, FileClosed, FileOpened, FileWork, OpenFile, open_file::Mode, to_host},
    v1::{self, FileStat, call, call_result, up},
};
use prost::Message as _;
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    task::JoinSet,
};
use tonic::transport::Channel;

use super::{checkpoint, dial::Bulk, ledger::Ledger, ports, transfer};
use crate::frame;

/// Calls at work at once.
const CALLS_MAX: usize = 32;
/// One directory's list; what is left of a message is for what it is wrapped in.
const LIST_BYTES_MAX: usize = MESSAGE_BYTES_MAX - CHUNK_BYTES_MAX;
/// Calls that wait for their turn; more are refused (`overloaded`).
const CALLS_WAITING_MAX: usize = 1024;

/// Calls to executions that wait for the host; more are refused (`overloaded`).
const EXECUTING_MAX: usize = 1024;
/// The capability of a host that takes calls to executions.
const INTERACTIVE: &str = "interactive";

/// Since this version of the host protocol the host serves calls by processes.
const FILE_WORK_VERSION: u32 = 3;

/// Ids of files at the host. They start somewhere else in every link, so that a late answer to the link before this
/// one cannot be taken for an answer to this one.
static NEXT_ID: std::sync::LazyLock<AtomicU64> =
    std::sync::LazyLock::new(|| AtomicU64::new(u64::from(rand::random::<u32>()) << 32));

pub struct Calls {
    desk: Desk,
    requests: mpsc::Receiver<Request>,
    opening: HashMap<u64, oneshot::Sender<Opened>>,
    closing: HashMap<u64, oneshot::Sender<FileClosed>>,
    /// Calls to executions that the host has yet to answer: its id, and the coordinator's.
    executing: HashMap<u64, u64>,
    /// Files open for writing at the host.
    writing: HashSet<u64>,
    tasks: JoinSet<()>,
    /// Connections to ports of sessions.
    connections: JoinSet<()>,
}

type Opened = (FileOpened, Vec<OwnedFd>);

/// What a task asks of the loop.
pub enum Request {
    Open(OpenFile, oneshot::Sender<Opened>),
    Work(FileWork, oneshot::Sender<Opened>),
    Close(CloseFile, oneshot::Sender<FileClosed>),
    Answer(v1::CallResult),
}

impl Calls {
    pub fn new(bulk: Bulk, host_version: u32) -> Self {
        let (sender, requests) = mpsc::channel(CALLS_MAX);
        let slots = Arc::new(Semaphore::new(CALLS_MAX));
        let desk = Desk { bulk, host_version, requests: sender, slots };
        Self {
            desk,
            requests,
            opening: HashMap::new(),
            closing: HashMap::new(),
            executing: HashMap::new(),
            writing: HashSet::new(),
            tasks: JoinSet::new(),
            connections: JoinSet::new(),
        }
    }

    pub fn begin(&mut self, call: v1::Call, ledger: &mut Ledger) {
        if let Some(call::Op::WriteStdin(_) | call::Op::Signal(_) | call::Op::Resize(_)) = call.op {
            return self.pass_on(call, ledger);
        }
        if let Some(call::Op::DialPort(_)) = call.op {
            return self.dial(call, ledger);
        }
        while self.tasks.try_join_next().is_some() {}
        if self.tasks.len() >= CALLS_MAX + CALLS_WAITING_MAX {
            let error =
                Error::new(Code::Overloaded, format!("{CALLS_WAITING_MAX} file requests wait already"));
            ledger.tell(up::Message::CallResult(refusal(call.call_id, error.into_wire())));
            return;
        }
        self.tasks.spawn(serve(self.desk.clone(), call));
    }

    /// A connection lives for as long as it likes: it takes no place of a file request.
    fn dial(&mut self, call: v1::Call, ledger: &mut Ledger) {
        while self.connections.try_join_next().is_some() {}
        if self.connections.len() >= CONNECTIONS_PER_WORKER_MAX {
            let what = format!(
                "{CONNECTIONS_PER_WORKER_MAX} connections to ports of this worker's sessions are open"
            );
            let refused = refusal(call.call_id, Error::new(Code::Overloaded, what).into_wire());
            return ledger.tell(up::Message::CallResult(refused));
        }
        self.connections.spawn(ports::serve(self.desk.clone(), call));
    }

    /// To an execution: at once and in order, as there is nothing to do here.
    fn pass_on(&mut self, mut call: v1::Call, ledger: &mut Ledger) {
        let refused = if !ledger.host().capabilities.iter().any(|name| name == INTERACTIVE) {
            Some(Error::new(Code::NotSupported, "the worker's host is of an older version"))
        } else if self.executing.len() >= EXECUTING_MAX {
            Some(Error::new(Code::Overloaded, format!("{EXECUTING_MAX} calls to executions wait already")))
        } else {
            None
        };
        if let Some(error) = refused {
            return ledger.tell(up::Message::CallResult(refusal(call.call_id, error.into_wire())));
        }
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        self.executing.insert(id, std::mem::replace(&mut call.call_id, id));
        ledger.tell_host(to_host::Message::ExecutionCall(call));
    }

    /// The host answers a call to an execution.
    pub fn answered(&mut self, mut answer: v1::CallResult, ledger: &mut Ledger) {
        if let Some(call_id) = self.executing.remove(&answer.call_id) {
            answer.call_id = call_id;
            ledger.tell(up::Message::CallResult(answer));
        }
    }

    pub async fn request(&mut self) -> Request {
        match self.requests.recv().await {
            Some(request) => request,
            // Cannot be: the desk here holds a sender.
            None => std::future::pending().await,
        }
    }

    pub fn take(&mut self, request: Request, ledger: &mut Ledger) {
        match request {
            Request::Open(open, reply) => {
                self.opening.insert(open.call_id, reply);
                if matches!(open.mode(), Mode::Write | Mode::Unpack) {
                    self.writing.insert(open.call_id);
                }
                ledger.tell_host(to_host::Message::OpenFile(open));
            }
            Request::Work(work, reply) => {
                self.opening.insert(work.call_id, reply);
                ledger.tell_host(to_host::Message::FileWork(work));
            }
            Request::Close(close, reply) => {
                self.writing.remove(&close.call_id);
                self.closing.insert(close.call_id, reply);
                ledger.tell_host(to_host::Message::CloseFile(close));
            }
            Request::Answer(result) => ledger.tell(up::Message::CallResult(result)),
        }
    }

    pub fn opened(&mut self, opened: FileOpened, fds: Vec<OwnedFd>) {
        if opened.error.is_some() {
            self.writing.remove(&opened.call_id);
        }
        if let Some(reply) = self.opening.remove(&opened.call_id) {
            let _ = reply.send((opened, fds));
        }
    }

    pub fn closed(&mut self, closed: FileClosed) {
        if let Some(reply) = self.closing.remove(&closed.call_id) {
            let _ = reply.send(closed);
        }
    }

    /// Ends every call. What the host has to be told: files that were being written are thrown away.
    pub fn abandon(self) -> Vec<to_host::Message> {
        let close = |call_id| to_host::Message::CloseFile(CloseFile { call_id, commit: false });
        self.writing.into_iter().map(close).collect()
    }
}

async fn serve(desk: Desk, call: v1::Call) {
    let Ok(_slot) = desk.slots.clone().acquire_owned().await else { return };
    let v1::Call { call_id, session_id, op } = call;
    let done = match op {
        Some(call::Op::Read(read)) => transfer::read(&desk, call_id, session_id, read).await,
        Some(call::Op::Write(write)) => transfer::write(&desk, call_id, session_id, write).await,
        Some(call::Op::Pack(pack)) => checkpoint::pack(&desk, call_id, session_id, pack).await,
        Some(call::Op::Unpack(unpack)) => checkpoint::unpack(&desk, call_id, session_id, unpack).await,
        Some(call::Op::ReadArchive(read)) => transfer::read_archive(&desk, call_id, session_id, read).await,
        Some(call::Op::WriteArchive(header)) => {
            transfer::write_archive(&desk, call_id, session_id, header).await
        }
        Some(op) => match answer_to(&desk, session_id, op).await {
            Ok(result) => {
                desk.answer(v1::CallResult { call_id, result: Some(result) }).await;
                Ok(())
            }
            Err(error) => Err(error),
        },
        None => Err(Error::new(Code::NotSupported, "this worker does not know that call").into_wire()),
    };
    if let Err(error) = done {
        desk.answer(refusal(call_id, error)).await;
    }
}

/// What the host answers a call that needs no transfer with.
async fn answer_to(desk: &Desk, session_id: String, op: call::Op) -> Result<call_result::Result, v1::Error> {
    match op {
        // As every host serves it.
        call::Op::List(list) if desk.host_version < FILE_WORK_VERSION && is_plain(&list) => {
            list_files(desk, session_id, list.path).await.map(call_result::Result::List)
        }
        op => desk.work(session_id, op).await,
    }
}

/// Asks for no more than a list could in the first version.
fn is_plain(list: &v1::ListFilesRequest) -> bool {
    let plain = v1::ListFilesRequest {
        session_id: list.session_id.clone(),
        path: list.path.clone(),
        ..v1::ListFilesRequest::default()
    };
    *list == plain
}

async fn list_files(
    desk: &Desk,
    session_id: String,
    path: String,
) -> Result<v1::ListFilesResponse, v1::Error> {
    let open = OpenFile { session_id, path, mode: Mode::List.into(), ..OpenFile::default() };
    let opened = desk.open(open).await?;
    // The host made the list: this process, of another uid, may not stat in a session's directory.
    blocking(move || {
        frame::read_sealed(&opened.fd)
            .and_then(|list| Ok(v1::ListFilesResponse::decode(&*list)?))
            .map(fitting)
            .map_err(|e| Error::internal(format!("the worker's host handed over an unreadable listing: {e}")))
    })
    .await
    .map_err(IntoWire::into_wire)
}

/// As much of a list as a message holds: one too long for the control stream would break it, and all calls with it.
fn fitting(mut list: v1::ListFilesResponse) -> v1::ListFilesResponse {
    let mut bytes = 0;
    let fit = list.files.iter().take_while(|file| {
        // Its tag and length come on top.
        bytes += file.encoded_len() + 8;
        bytes <= LIST_BYTES_MAX
    });
    let fit = fit.count();
    list.truncated |= fit < list.files.len();
    list.files.truncate(fit);
    list
}

pub fn refusal(call_id: u64, error: v1::Error) -> v1::CallResult {
    v1::CallResult { call_id, result: Some(call_result::Result::Error(error)) }
}

/// What a call's task works with.
#[derive(Clone)]
pub struct Desk {
    pub bulk: Bulk,
    /// Version of the host protocol that is spoken.
    pub host_version: u32,
    requests: mpsc::Sender<Request>,
    slots: Arc<Semaphore>,
}

/// A file the host opened for a call.
pub struct OpenedFile {
    pub id: u64,
    pub fd: OwnedFd,
    pub stat: Option<FileStat>,
    /// Write: the longest it may become.
    pub size_bytes_max: u64,
    /// Of a session that was packed.
    pub summary: Option<v1::WorkspaceSummary>,
}

impl Desk {
    /// Has the host open a file; `call_id` is filled in here.
    pub async fn open(&self, mut open: OpenFile) -> Result<OpenedFile, v1::Error> {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        open.call_id = id;
        let (reply, answer) = oneshot::channel();
        let gone = || Error::new(Code::Unavailable, "the worker's host did not answer").into_wire();
        self.requests.send(Request::Open(open, reply)).await.map_err(|_| gone())?;
        let (opened, fds) = answer.await.map_err(|_| gone())?;
        let fd = fds.into_iter().next();
        let size_bytes_max = match opened.size_bytes_max {
            0 => FILE_SIZE_BYTES,
            bytes => bytes,
        };
        match (opened.error, fd) {
            (Some(error), _) => Err(error),
            (None, Some(fd)) => {
                Ok(OpenedFile { id, fd, stat: opened.stat, summary: opened.summary, size_bytes_max })
            }
            (None, None) => {
                Err(Error::internal("the worker's host opened a file and did not hand it over").into_wire())
            }
        }
    }

    /// Has a process of the session's own uid serve a call.
    pub async fn work(&self, session_id: String, op: call::Op) -> Result<call_result::Result, v1::Error> {
        Ok(self.work_with(session_id, op, String::new()).await?.0)
    }

    /// The same for calls about an archive: the one at a path, or one that comes with the answer.
    pub async fn work_with(
        &self,
        session_id: String,
        op: call::Op,
        archive_path: String,
    ) -> Result<(call_result::Result, Option<OwnedFd>), v1::Error> {
        self.can_work()?;
        let call_id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let call = v1::Call { call_id, session_id, op: Some(op) };
        let (reply, answer) = oneshot::channel();
        let gone = || Error::new(Code::Unavailable, "the worker's host did not answer").into_wire();
        let work = FileWork { call_id, call: Some(call), archive_path };
        self.requests.send(Request::Work(work, reply)).await.map_err(|_| gone())?;
        let (opened, fds) = answer.await.map_err(|_| gone())?;
        if let Some(error) = opened.error {
            return Err(error);
        }
        let mut fds = fds.into_iter();
        let nothing = || Error::internal("the worker's host answered nothing").into_wire();
        let fd = fds.next().ok_or_else(nothing)?;
        let answer = blocking(move || {
            frame::read_sealed(&fd)
                .and_then(|answer| Ok(v1::CallResult::decode(&*answer)?))
                .map_err(|e| Error::internal(format!("the worker's host gave an unreadable answer: {e}")))
        });
        match answer.await.map_err(IntoWire::into_wire)?.result {
            Some(call_result::Result::Error(error)) => Err(error),
            Some(result) => Ok((result, fds.next())),
            None => Err(nothing()),
        }
    }

    /// Has the host connect to a port of a session.
    pub async fn connect(&self, call: v1::Call) -> Result<OwnedFd, v1::Error> {
        self.can_work()?;
        let call_id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        let gone = || Error::new(Code::Unavailable, "the worker's host did not answer").into_wire();
        let work = FileWork { call_id, call: Some(call), archive_path: String::new() };
        self.requests.send(Request::Work(work, reply)).await.map_err(|_| gone())?;
        let (opened, fds) = answer.await.map_err(|_| gone())?;
        match (opened.error, fds.into_iter().next()) {
            (Some(error), _) => Err(error),
            (None, Some(fd)) => Ok(fd),
            (None, None) => {
                Err(Error::internal("the worker's host connected and handed nothing over").into_wire())
            }
        }
    }

    /// Whether the host serves calls by processes.
    pub fn can_work(&self) -> Result<(), v1::Error> {
        if self.host_version < FILE_WORK_VERSION {
            let what = "the worker's host is of an older version, which does not know that request";
            return Err(Error::new(Code::NotSupported, what).into_wire());
        }
        Ok(())
    }

    /// Ends the writing of a file: into place, or away.
    pub async fn close(&self, id: u64, commit: bool) -> Result<FileStat, v1::Error> {
        let (reply, answer) = oneshot::channel();
        let gone = || Error::new(Code::Unavailable, "the worker's host did not answer").into_wire();
        let close = CloseFile { call_id: id, commit };
        self.requests.send(Request::Close(close, reply)).await.map_err(|_| gone())?;
        let closed = answer.await.map_err(|_| gone())?;
        match closed.error {
            Some(error) => Err(error),
            None => Ok(closed.stat.unwrap_or_default()),
        }
    }

    pub async fn answer(&self, result: v1::CallResult) {
        // Without the loop there is no attach, and nobody waits for the answer.
        let _ = self.requests.send(Request::Answer(result)).await;
    }

    pub fn client(&self) -> v1::worker_link_client::WorkerLinkClient<Channel> {
        self.bulk.client.clone()
    }
}

/// Runs file work where it may block.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(_) => Err(Error::internal("a file operation of the worker ended without an answer")),
    }
}

/// [`Error`] as it travels.
pub trait IntoWire {
    fn into_wire(self) -> v1::Error;
}
impl IntoWire for Error {
    fn into_wire(self) -> v1::Error {
        v1::Error { code: self.code.as_str().to_owned(), hint: self.hint().to_owned(), message: self.message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_no_message_holds_is_cut_and_says_so() {
        let file = FileStat { path: "p".repeat(1_000), ..FileStat::default() };
        let list =
            |files: usize| v1::ListFilesResponse { files: vec![file.clone(); files], ..Default::default() };
        assert_eq!(fitting(list(1_000)), list(1_000));
        let cut = fitting(list(10_000));
        assert!(cut.truncated && cut.files.len() > 8_000 && cut.encoded_len() < MESSAGE_BYTES_MAX);
    }
}
