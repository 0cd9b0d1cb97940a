//! The egress proxy: the one way out of a session, a process of its own beside the host and its link.
//!
//! The host hands it the listener of each process tree of a session (`confine::notify`). A connect(2) in there is answered
//! with one end of a TCP connection whose other end is here; what comes over it names a host, as a client of a proxy does
//! it or as a server would be told, and the session's policy decides about that name. Nothing listens anywhere.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::{AsFd, FromRawFd, OwnedFd},
    process::ExitCode,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use cooper_common::{
    limits::network::{CONNECTIONS_MAX, CONNECTIONS_PER_SESSION_MAX},
    network::Policy,
    telemetry,
};
use serde::{Deserialize, Serialize};
use tokio::{io::Interest, net::UnixDatagram, sync::watch};
use tokio_rustls::{TlsConnector, rustls::ServerConfig};

use crate::{confine::notify, frame};
use dial::{Place, Rules};
use refusals::Refusals;

pub mod address;
pub mod authority;
mod connection;
pub mod dial;
pub mod head;
pub mod index;
pub mod inject;
mod mask;
pub mod pip;
mod refusals;

/// Hidden first argument of this process.
pub const ARGV: &str = "worker-egress";
/// Between looks at refusals that were counted and not told yet.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// What it is told at start, as JSON in its descriptor 4.
#[derive(Debug, Serialize, Deserialize)]
pub struct Config {
    pub log_level: String,
    pub rules: Rules,
    /// Reached by every session: where packages come from.
    pub index: Vec<Place>,
    /// Those of them that take a password.
    pub passwords: Vec<index::Index>,
    /// Certificates that are trusted besides the public ones, as PEM.
    pub authorities: String,
    /// By which it is the hosts that secrets are put in for; none where that could not be made.
    pub authority: Option<authority::Authority>,
    /// Certificates that programs of this machine trust, as PEM: by which those hosts are verified.
    pub roots: String,
}

/// host -> egress, JSON in the framing of `frame`.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToEgress {
    /// A session is there, or has another policy from now on.
    Session {
        session: String,
        policy: Policy,
        inject: Vec<inject::Injection>,
    },
    End {
        session: String,
    },
    /// Descriptor: the tree's listener.
    Tree {
        tree: u64,
        session: String,
    },
    TreeEnd {
        tree: u64,
    },
    /// A connect that waits for its answer.
    Connect {
        tree: u64,
        wanted: Wanted,
    },
    /// A bind that waits for its answer. Descriptor: the socket that takes the place of the caller's.
    Bound {
        tree: u64,
        wanted: Wanted,
    },
    /// What a `pip` asked for has ended, or was refused.
    PipEnded {
        id: u64,
        ended: pip::Ended,
    },
}

/// egress -> host, JSON in the framing of `frame`.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromEgress {
    Refused(Refused),
    /// Since it was said last.
    Used {
        session: String,
        used: Used,
    },
    /// `pip` was typed in a session. Descriptors: where its output and its errors go.
    Pip {
        id: u64,
        session: String,
        /// JSON, as the session says it.
        order: String,
    },
    /// Nobody waits for it any more.
    PipGone {
        id: u64,
    },
}

/// What was carried for a session.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    pub sent: Cell<u64>,
    pub received: Cell<u64>,
    pub connects: Cell<u64>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    pub session: String,
    pub host: String,
    pub port: u16,
    pub reason: String,
    pub count: u64,
}

/// Why somebody is not reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The session has no network.
    None,
    /// Not among its hosts.
    Domain,
    Port,
    /// An address that nobody reaches.
    Address,
    Unresolvable,
    /// The connection named nobody.
    Unreadable,
    /// Where a secret is put in: a name that is not the connection's.
    Mismatch,
    /// The secret for it is no more.
    Secret,
    TooMany,
    /// Several kinds of refusals, of which there were too many to tell of each.
    Others,
    /// Allowed, and did not answer.
    Unreachable,
}

impl Reason {
    pub const fn as_str(self) -> &'static str {
        match self {
            Reason::None => "none",
            Reason::Domain => "domain",
            Reason::Port => "port",
            Reason::Address => "address",
            Reason::Unresolvable => "unresolvable",
            Reason::Unreadable => "unreadable",
            Reason::Mismatch => "mismatch",
            Reason::Secret => "secret",
            Reason::TooMany => "too_many",
            Reason::Others => "others",
            Reason::Unreachable => "unreachable",
        }
    }
}

/// Entry of the process.
pub fn main() -> ExitCode {
    let (socket, config) = (descriptor(3), descriptor(4));
    let _ = rustix::thread::set_name(c"cooper-egress");
    let mut json = Vec::new();
    let config = File::from(config)
        .read_to_end(&mut json)
        .and_then(|_| serde_json::from_slice::<Config>(&json).map_err(io::Error::from));
    let config = match config {
        Ok(config) => config,
        Err(error) => {
            eprintln!("cooper: the egress proxy's configuration cannot be read: {error}");
            return ExitCode::FAILURE;
        }
    };
    telemetry::init(&config.log_level);
    // It holds what sessions must not: nobody looks into it, and it leaves nothing behind.
    if let Err(error) = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
    {
        tracing::warn!(%error, "the egress proxy can be looked into by processes of its uid");
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().thread_stack_size(128 << 10).build();
    let served = runtime.and_then(|runtime| {
        tokio::task::LocalSet::new()
            .block_on(&runtime, async { Rc::new(Proxy::new(socket, config)?).serve().await })
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the egress proxy ends");
            ExitCode::FAILURE
        }
    }
}

#[allow(unsafe_code)]
fn descriptor(number: i32) -> OwnedFd {
    // SAFETY: the host started this process with this descriptor open, for nobody but one caller.
    unsafe { OwnedFd::from_raw_fd(number) }
}

struct Proxy {
    /// For its readiness only, as the link's (`link::host_socket`).
    host: UnixDatagram,
    rules: Rules,
    index: Vec<Place>,
    sessions: RefCell<BTreeMap<String, Rc<Session>>>,
    trees: RefCell<BTreeMap<u64, Tree>>,
    /// Connections of all sessions.
    open: Cell<usize>,
    pips: RefCell<pip::Waiting>,
    passwords: Vec<index::Index>,
    /// Where an index wants it.
    tls: Option<TlsConnector>,
    authority: Option<authority::Authority>,
    roots: RefCell<Roots>,
}

/// Read when they are wanted first: few sessions have secrets.
enum Roots {
    Unread(String),
    Read(TlsConnector),
}

/// A process tree whose connects are answered.
#[derive(Clone)]
struct Tree {
    listener: Arc<OwnedFd>,
    session: Rc<Session>,
}

/// A session as the proxy knows it.
struct Session {
    id: String,
    policy: watch::Sender<Policy>,
    inject: RefCell<Vec<inject::Injection>>,
    /// By the host that it is.
    servers: RefCell<BTreeMap<String, Arc<ServerConfig>>>,
    open: Cell<usize>,
    refusals: RefCell<Refusals>,
    /// Not told yet.
    used: Used,
}

impl Proxy {
    fn new(socket: OwnedFd, config: Config) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        let tls = config.passwords.iter().any(|index| index.tls);
        let tls = tls.then(|| index::connector(&config.authorities)).transpose()?;
        Ok(Self {
            tls,
            authority: config.authority,
            roots: RefCell::new(Roots::Unread(config.roots)),
            passwords: config.passwords,
            host: UnixDatagram::from_std(socket.into())?,
            rules: config.rules,
            index: config.index,
            sessions: RefCell::default(),
            trees: RefCell::default(),
            open: Cell::new(0),
            pips: RefCell::default(),
        })
    }

    async fn serve(self: Rc<Self>) -> io::Result<()> {
        let mut buffer = frame::Buffer::default();
        let mut tell = tokio::time::interval(TELL_EVERY);
        loop {
            tokio::select! {
                heard = self.hear(&mut buffer) => match heard? {
                    Some((message, fds)) => self.take(message, fds),
                    // The host is gone.
                    None => return Ok(()),
                },
                _ = tell.tick() => self.tell_counted(),
            }
        }
    }

    async fn hear(&self, buffer: &mut frame::Buffer) -> io::Result<Option<(ToEgress, Vec<OwnedFd>)>> {
        self.host
            .async_io(Interest::READABLE, || {
                let Some((body, fds)) = frame::recv(&self.host, buffer)? else { return Ok(None) };
                Ok(Some((serde_json::from_slice(&body)?, fds)))
            })
            .await
    }

    fn take(self: &Rc<Self>, message: ToEgress, fds: Vec<OwnedFd>) {
        match message {
            ToEgress::Session { session, policy, inject } => {
                let session = self.session(&session);
                session.servers.borrow_mut().retain(|host, _| inject.iter().any(|it| it.host == *host));
                *session.inject.borrow_mut() = inject;
                session.policy.send_if_modified(|known| {
                    let changed = *known != policy;
                    *known = policy;
                    changed
                });
            }
            ToEgress::End { session } => {
                // Connections hold the other side of its policy, and end with it.
                if let Some(session) = self.sessions.borrow_mut().remove(&session) {
                    self.trees.borrow_mut().retain(|_, tree| tree.session.id != session.id);
                }
            }
            ToEgress::Tree { tree, session } => {
                if let Some(listener) = fds.into_iter().next() {
                    let session = self.session(&session);
                    self.trees.borrow_mut().insert(tree, Tree { listener: Arc::new(listener), session });
                }
            }
            ToEgress::TreeEnd { tree } => {
                self.trees.borrow_mut().remove(&tree);
            }
            ToEgress::Connect { tree, wanted } => {
                let found = self.trees.borrow().get(&tree).cloned();
                if let Some(Tree { listener, session }) = found {
                    self.connect(listener, session, wanted);
                }
            }
            ToEgress::Bound { tree, wanted } => {
                let found = self.trees.borrow().get(&tree).cloned();
                if let (Some(Tree { listener, session }), Some(socket)) = (found, fds.into_iter().next()) {
                    self.bound(listener, &session, wanted, socket);
                }
            }
            ToEgress::PipEnded { id, ended } => self.pips.borrow_mut().ended(id, ended),
        }
    }

    fn session(&self, id: &str) -> Rc<Session> {
        let fresh = || {
            Rc::new(Session {
                id: id.to_owned(),
                policy: watch::Sender::new(Policy::default()),
                inject: RefCell::default(),
                servers: RefCell::default(),
                open: Cell::new(0),
                refusals: RefCell::default(),
                used: Used::default(),
            })
        };
        Rc::clone(self.sessions.borrow_mut().entry(id.to_owned()).or_insert_with(fresh))
    }

    /// By which it is a host to a session.
    fn server_for(&self, session: &Session, host: &str) -> io::Result<Arc<ServerConfig>> {
        if let Some(known) = session.servers.borrow().get(host) {
            return Ok(Arc::clone(known));
        }
        let authority =
            self.authority.as_ref().ok_or_else(|| io::Error::other("this worker has no authority"))?;
        let made = authority.server(host)?;
        session.servers.borrow_mut().insert(host.to_owned(), Arc::clone(&made));
        Ok(made)
    }

    /// By which hosts are verified that secrets go to.
    fn verifying(&self) -> io::Result<TlsConnector> {
        let mut roots = self.roots.borrow_mut();
        if let Roots::Unread(pem) = &*roots {
            *roots = Roots::Read(index::connector(pem)?);
        }
        match &*roots {
            Roots::Read(connector) => Ok(connector.clone()),
            Roots::Unread(_) => Err(io::Error::other("the trusted certificates cannot be read")),
        }
    }

    /// Gives a caller its connection, and listens to what it says over it.
    fn connect(self: &Rc<Self>, listener: Arc<OwnedFd>, session: Rc<Session>, wanted: Wanted) {
        if self.open.get() >= CONNECTIONS_MAX || session.open.get() >= CONNECTIONS_PER_SESSION_MAX {
            notify::answer(&listener, wanted.id, libc::ECONNREFUSED);
            return self.refuse(&session, "", 0, Reason::TooMany);
        }
        let open = Open::new(self, &session);
        let proxy = Rc::clone(self);
        tokio::task::spawn_local(async move {
            let open = open;
            // The caller's own thread has to do its part of it, whenever that gets to run.
            let given = tokio::task::spawn_blocking(move || give(&listener, &wanted)).await;
            if let Ok(Ok(stream)) = given {
                connection::serve(proxy, &open.session, stream).await;
            }
        });
    }

    /// Gives a caller what its socket is bound to.
    fn bound(
        self: &Rc<Self>,
        listener: Arc<OwnedFd>,
        session: &Rc<Session>,
        wanted: Wanted,
        socket: OwnedFd,
    ) {
        if self.open.get() >= CONNECTIONS_MAX || session.open.get() >= CONNECTIONS_PER_SESSION_MAX {
            return notify::answer(&listener, wanted.id, libc::ENOBUFS);
        }
        let open = Open::new(self, session);
        tokio::task::spawn_local(async move {
            let _open = open;
            let give = move || {
                let given = put(&listener, &wanted, &socket);
                notify::answer(&listener, wanted.id, if given.is_ok() { 0 } else { libc::ENOBUFS });
            };
            let _ = tokio::task::spawn_blocking(give).await;
        });
    }

    fn refuse(&self, session: &Session, host: &str, port: u16, reason: Reason) {
        let now = cooper_common::clock::mono_ms();
        let told = session.refusals.borrow_mut().count(now, host, port, reason);
        if let Some(count) = told {
            self.tell(session, host.to_owned(), port, reason, count);
        }
    }

    fn tell_counted(&self) {
        let now = cooper_common::clock::mono_ms();
        let sessions: Vec<_> = self.sessions.borrow().values().cloned().collect();
        for session in sessions {
            let counted = session.refusals.borrow_mut().counted(now);
            for (host, port, reason, count) in counted {
                self.tell(&session, host, port, reason, count);
            }
            self.tell_used(&session);
        }
    }

    fn tell_used(&self, session: &Session) {
        let used = session.used.clone();
        if used == Used::default() {
            return;
        }
        // A host that does not read now is told the next time.
        if self.tell_host(&FromEgress::Used { session: session.id.clone(), used }, &[]).is_ok() {
            for count in [&session.used.sent, &session.used.received, &session.used.connects] {
                count.set(0);
            }
        }
    }

    fn tell(&self, session: &Session, host: String, port: u16, reason: Reason, count: u64) {
        let refused =
            Refused { session: session.id.clone(), host, port, reason: reason.as_str().to_owned(), count };
        // A host that does not read loses what it is told of: nothing depends on it.
        let _ = self.tell_host(&FromEgress::Refused(refused), &[]);
    }

    fn tell_host(&self, message: &FromEgress, fds: &[&OwnedFd]) -> io::Result<()> {
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        frame::send_bytes(&self.host, &serde_json::to_vec(message)?, &fds)
    }
}

/// Counts a connection for as long as it lives.
struct Open {
    proxy: Rc<Proxy>,
    session: Rc<Session>,
}

impl Open {
    fn new(proxy: &Rc<Proxy>, session: &Rc<Session>) -> Self {
        proxy.open.set(proxy.open.get() + 1);
        session.open.set(session.open.get() + 1);
        Self { proxy: Rc::clone(proxy), session: Rc::clone(session) }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.proxy.open.set(self.proxy.open.get() - 1);
        self.session.open.set(self.session.open.get() - 1);
    }
}

/// What a call is to be answered with: which of the caller's descriptors, and as it was opened.
#[derive(Debug, Serialize, Deserialize)]
pub struct Wanted {
    pub id: u64,
    pub fd: u32,
    pub nonblocking: bool,
    pub close_on_exec: bool,
}

fn put(listener: &OwnedFd, wanted: &Wanted, socket: &OwnedFd) -> io::Result<()> {
    rustix::io::ioctl_fionbio(socket, wanted.nonblocking)?;
    notify::replace(listener, wanted.id, wanted.fd, socket, wanted.close_on_exec)
}

/// Answers a connect with one end of a TCP connection, and keeps the other.
fn give(listener: &OwnedFd, wanted: &Wanted) -> io::Result<TcpStream> {
    let given = pair().and_then(|(theirs, ours)| {
        put(listener, wanted, &OwnedFd::from(theirs))?;
        Ok(ours)
    });
    notify::answer(listener, wanted.id, if given.is_ok() { 0 } else { libc::ECONNREFUSED });
    given
}

/// Both ends of a TCP connection: clients set options that only TCP has.
fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let theirs = TcpStream::connect(listener.local_addr()?)?;
    let address = theirs.local_addr()?;
    // Somebody else on this machine may have been quicker.
    for _ in 0..16 {
        let (ours, from) = listener.accept()?;
        if from == address {
            ours.set_nonblocking(true)?;
            ours.set_nodelay(true)?;
            return Ok((theirs, ours));
        }
    }
    Err(io::ErrorKind::ConnectionRefused.into())
}

/// How the host speaks to it.
pub fn send(socket: &OwnedFd, message: &ToEgress, listener: Option<&OwnedFd>) -> io::Result<()> {
    let fds: Vec<_> = listener.into_iter().map(AsFd::as_fd).collect();
    frame::send_bytes(socket, &serde_json::to_vec(message)?, &fds)
}
