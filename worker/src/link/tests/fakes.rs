//! A host and a coordinator that do what a test tells them, and a wire between that can be cut.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use cooper_common::limits::link::PROTOCOL_MAX;
use cooper_proto::{
    host::{HostHello, ToHost, ToLink, to_host, to_link},
    v1::{
        self,
        worker_link_server::{WorkerLink, WorkerLinkServer},
    },
};
use prost::Message as _;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::{TcpListener, TcpStream, UnixDatagram},
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};

use crate::{
    config::LinkConfig,
    frame::{self, Buffer},
    link::{End, run},
};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

pub async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("{what} did not come"))
}

pub fn fence(epoch: u64, attempt: u32) -> Option<v1::Fence> {
    Some(v1::Fence { epoch, attempt })
}

/// The other end of the link's socket.
pub struct Host {
    socket: UnixDatagram,
    buffer: Buffer,
}

impl Host {
    pub async fn next(&mut self) -> to_host::Message {
        soon("a message to the host", self.recv()).await
    }
    /// Nothing is said to the host for a while.
    pub async fn hears_nothing(&mut self) {
        if let Ok(heard) = timeout(Duration::from_millis(150), self.recv()).await {
            panic!("unexpected: {heard:?}");
        }
    }
    async fn recv(&mut self) -> to_host::Message {
        let packet = self.socket.async_io(Interest::READABLE, || {
            let (body, _) = frame::recv(self.socket.as_fd(), &mut self.buffer)?.expect("the link is there");
            Ok(ToHost::decode(&*body).unwrap().message.unwrap())
        });
        packet.await.unwrap()
    }
    /// The next message that does not only say whether a coordinator is reached.
    pub async fn next_order(&mut self) -> to_host::Message {
        loop {
            match self.next().await {
                to_host::Message::Reach(_) => {}
                message => return message,
            }
        }
    }
    pub async fn say(&self, message: to_link::Message, fds: &[BorrowedFd<'_>]) {
        let message = ToLink { message: Some(message) };
        let sent = self
            .socket
            .async_io(Interest::WRITABLE, || frame::send(self.socket.as_fd(), &message, fds))
            .await;
        sent.unwrap();
    }
}

/// A link on a fake host that has said hello.
pub async fn link(addr: &str, hello: HostHello) -> (Host, JoinHandle<End>) {
    link_with(addr, hello, None).await
}

pub async fn link_with(
    addr: &str,
    hello: HostHello,
    health_listen: Option<String>,
) -> (Host, JoinHandle<End>) {
    let (ours, theirs) = frame::pair().unwrap();
    rustix::io::ioctl_fionbio(&ours, true).unwrap();
    let config = LinkConfig {
        tls: Default::default(),
        coordinator_addr: addr.to_owned(),
        join_token: "cpr_test".into(),
        labels: [("zone".to_owned(), "a".to_owned())].into(),
        timing: Default::default(),
        log_level: "debug".into(),
        health_listen,
    };
    let link = tokio::spawn(async move { run(theirs, config).await.unwrap() });
    let mut host = Host { socket: UnixDatagram::from_std(ours.into()).unwrap(), buffer: Buffer::default() };
    assert!(matches!(host.next().await, to_host::Message::Hello(_)));
    host.say(to_link::Message::Hello(hello), &[]).await;
    (host, link)
}

/// One stream of the link's, as the coordinator's test sees it.
pub struct Stream<Up, Down> {
    pub up: Streaming<Up>,
    down: mpsc::Sender<Result<Down, Status>>,
    pub metadata: MetadataMap,
}

impl<Up, Down> Stream<Up, Down> {
    pub async fn say(&self, message: Down) {
        // A link that hung up does not hear it.
        let _ = self.down.send(Ok(message)).await;
    }
    pub async fn hear(&mut self) -> Option<Up> {
        soon("a message up", self.up.message()).await.unwrap_or(None)
    }
    pub async fn refuse(&self, status: Status) {
        let _ = self.down.send(Err(status)).await;
    }
}

pub type Attach = Stream<v1::Up, v1::Down>;
pub type Output = Stream<v1::OutputUp, v1::OutputAck>;
pub type Transfer = Stream<v1::TransferUp, v1::TransferDown>;

impl Attach {
    pub async fn hello(&mut self) -> v1::Hello {
        match self.hear().await.and_then(|up| up.message) {
            Some(v1::up::Message::Hello(hello)) => hello,
            other => panic!("not Hello: {other:?}"),
        }
    }
    pub async fn tell(&self, message: v1::down::Message) {
        self.say(v1::Down { message: Some(message) }).await;
    }
    /// Hello, then Welcome with these verdicts, in the newest version.
    pub async fn welcome(&mut self, epoch: u64, attempts: Vec<v1::AttemptVerdict>) -> v1::Hello {
        self.welcome_in(PROTOCOL_MAX, epoch, attempts).await
    }
    /// As a coordinator does that chose this version.
    pub async fn welcome_in(
        &mut self,
        protocol: u32,
        epoch: u64,
        attempts: Vec<v1::AttemptVerdict>,
    ) -> v1::Hello {
        let hello = self.hello().await;
        let welcome = v1::Welcome {
            protocol,
            coordinator_epoch: epoch,
            attach_epoch: 1,
            heartbeat_ms: 100,
            lease_ms: 30_000,
            attempts,
            ..v1::Welcome::default()
        };
        self.tell(v1::down::Message::Welcome(welcome)).await;
        hello
    }
    /// The next message that is neither a heartbeat nor credit.
    pub async fn next(&mut self) -> v1::up::Message {
        loop {
            match self.hear().await.and_then(|up| up.message).expect("the link is attached") {
                v1::up::Message::Heartbeat(v1::Heartbeat { seq, .. }) => {
                    let ack = v1::HeartbeatAck { seq, lease_ms: 30_000 };
                    self.tell(v1::down::Message::HeartbeatAck(ack)).await;
                }
                v1::up::Message::Credit(_) => {}
                message => return message,
            }
        }
    }
    pub async fn result(&mut self) -> v1::Result {
        match self.next().await {
            v1::up::Message::Result(result) => result,
            other => panic!("not Result: {other:?}"),
        }
    }
    pub async fn assign(&self, task: &str, fence: Option<v1::Fence>, kind: v1::task_spec::Kind) {
        let spec = v1::TaskSpec { kind: Some(kind), ..v1::TaskSpec::default() }.encode_to_vec().into();
        let assign = v1::Assign { task_id: task.into(), fence, spec, ..v1::Assign::default() };
        self.tell(v1::down::Message::Assign(assign)).await;
    }
    pub async fn ack(&self, result: &v1::Result) {
        let (task_id, fence) = (result.task_id.clone(), result.fence);
        self.tell(v1::down::Message::ResultAck(v1::ResultAck { task_id, fence, stale: false })).await;
    }
}

/// A coordinator that hands every stream to its test.
pub struct Coordinator {
    pub addr: String,
    pub attaches: mpsc::Receiver<Attach>,
    pub outputs: mpsc::Receiver<Output>,
    pub transfers: mpsc::Receiver<Transfer>,
}

impl Coordinator {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let (attach, attaches) = mpsc::channel(16);
        let (output, outputs) = mpsc::channel(16);
        let (transfer, transfers) = mpsc::channel(16);
        let door = WorkerLinkServer::new(Door { attach, output, transfer });
        let server = tonic::transport::Server::builder().tcp_nodelay(true).add_service(door);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { addr, attaches, outputs, transfers }
    }
    pub async fn attach(&mut self) -> Attach {
        soon("an attach", self.attaches.recv()).await.unwrap()
    }
    pub async fn output(&mut self) -> Output {
        soon("an output stream", self.outputs.recv()).await.unwrap()
    }
    pub async fn transfer(&mut self) -> Transfer {
        soon("a transfer", self.transfers.recv()).await.unwrap()
    }
}

struct Door {
    attach: mpsc::Sender<Attach>,
    output: mpsc::Sender<Output>,
    transfer: mpsc::Sender<Transfer>,
}

async fn open<Up, Down>(
    request: Request<Streaming<Up>>,
    test: &mpsc::Sender<Stream<Up, Down>>,
) -> Result<Response<ReceiverStream<Result<Down, Status>>>, Status> {
    let (metadata, _, up) = request.into_parts();
    let (down, messages) = mpsc::channel(1024);
    let stream = Stream { up, down, metadata };
    test.send(stream).await.map_err(|_| Status::unavailable("the test is over"))?;
    Ok(Response::new(ReceiverStream::new(messages)))
}

#[tonic::async_trait]
impl WorkerLink for Door {
    type AttachStream = ReceiverStream<Result<v1::Down, Status>>;
    type StreamOutputStream = ReceiverStream<Result<v1::OutputAck, Status>>;
    type TransferStream = ReceiverStream<Result<v1::TransferDown, Status>>;

    async fn attach(
        &self,
        request: Request<Streaming<v1::Up>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        open(request, &self.attach).await
    }
    async fn stream_output(
        &self,
        request: Request<Streaming<v1::OutputUp>>,
    ) -> Result<Response<Self::StreamOutputStream>, Status> {
        open(request, &self.output).await
    }
    async fn transfer(
        &self,
        request: Request<Streaming<v1::TransferUp>>,
    ) -> Result<Response<Self::TransferStream>, Status> {
        open(request, &self.transfer).await
    }
}

/// A TCP relay that drops all its connections once a given number of bytes has passed upward, then starts over.
pub struct Wire {
    pub addr: String,
    left: Arc<AtomicI64>,
    pub cuts: Arc<AtomicI64>,
}

impl Wire {
    pub async fn to(upstream: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let (left, cuts) = (Arc::new(AtomicI64::new(i64::MAX)), Arc::new(AtomicI64::new(0)));
        let (upstream, budget, count) = (upstream.to_owned(), left.clone(), cuts.clone());
        tokio::spawn(async move {
            let (cut, _) = tokio::sync::broadcast::channel::<()>(1);
            loop {
                let (near, _) = listener.accept().await.unwrap();
                let far = TcpStream::connect(&upstream).await.unwrap();
                let (mut ended, cut, budget, count) =
                    (cut.subscribe(), cut.clone(), budget.clone(), count.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = relay(near, far, &budget) => {
                            if budget.swap(i64::MAX, Ordering::SeqCst) <= 0 {
                                count.fetch_add(1, Ordering::SeqCst);
                                let _ = cut.send(());
                            }
                        }
                        _ = ended.recv() => {}
                    }
                });
            }
        });
        Self { addr, left, cuts }
    }
    pub fn cut_after(&self, bytes: i64) {
        self.left.store(bytes, Ordering::SeqCst);
    }
}

async fn relay(near: TcpStream, far: TcpStream, budget: &AtomicI64) {
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let (mut from_near, mut to_near) = near.into_split();
    let (mut from_far, mut to_far) = far.into_split();
    let up = async {
        let mut piece = vec![0; 4096];
        while let Ok(n @ 1..) = from_near.read(&mut piece).await {
            let left = budget.fetch_sub(n as i64, Ordering::SeqCst);
            if left <= n as i64 {
                // Part of what was read still passes: cuts fall inside messages.
                let _ = to_far.write_all(&piece[..left.clamp(0, n as i64) as usize]).await;
                budget.store(0, Ordering::SeqCst);
                return;
            }
            if to_far.write_all(&piece[..n]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = up => {}
        _ = tokio::io::copy(&mut from_far, &mut to_near) => {}
    }
}

pub fn spool(content: &[u8]) -> OwnedFd {
    use std::io::Write as _;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file.into()
}
