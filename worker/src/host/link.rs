//! The link process as its parent holds it: started, restarted with back-off, written to without ever waiting.

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use cooper_proto::host::{ToHost, ToLink, to_host, to_link};
use prost::Message as _;
use rustix::process::{Pid, Signal};

use super::{
    launch::{Launch, Program},
    sys, tree,
};
use crate::{
    config::{Config, LinkConfig, Timing},
    frame,
};

/// Messages that wait for a link that does not read. One that lets them pile up is ended; the next gets the inventory.
const OUTBOX_MAX: usize = 4096;

#[derive(Default)]
pub struct Link {
    child: Option<Pid>,
    socket: Option<OwnedFd>,
    /// It said hello.
    pub hello: bool,
    /// Version of the host protocol spoken with it, or with the one before while it said nothing.
    pub version: u32,
    /// It passes on secrets of grants.
    pub secrets: bool,
    /// It passes on injections of grants.
    pub inject: bool,
    /// The program that an upgrade put there gave no working link: take this host's own.
    distrusts_upgrade: bool,
    /// It was greeted at some time.
    worked: bool,
    /// Its hello was answered: it knows the inventory, and from then on every change.
    pub greeted: bool,
    outbox: VecDeque<(ToLink, Vec<OwnedFd>)>,
    buffer: frame::Buffer,
    failures: u32,
    started_ms: u64,
}

/// What reading from the link gave.
pub enum Heard {
    Message(to_host::Message),
    Nothing,
    /// It closed its end or broke the framing.
    Gone,
}

impl Link {
    /// Starts the process. Returns its socket for the event loop.
    pub fn start(
        &mut self,
        own: &OwnedFd,
        upgrade: &Path,
        config: &Config,
        dir: &Path,
        now_ms: u64,
    ) -> io::Result<()> {
        // Only the link may be newer than this host: the protocol between the two is made for it.
        let upgraded = if self.distrusts_upgrade { None } else { File::open(upgrade).ok() };
        let program = upgraded.map_or_else(|| own.try_clone(), |file| Ok(file.into()))?;
        let (ours, theirs) = frame::pair()?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        let told = LinkConfig::of(config).map_err(|error| io::Error::other(error.to_string()))?;
        let told = frame::sealed_memfd("cooper-link", &serde_json::to_vec(&told)?)?;
        let null = || OpenOptions::new().read(true).write(true).open("/dev/null").map(File::into);
        let stderr = || std::io::stderr().as_fd().try_clone_to_owned();
        let launch = Launch {
            program: Program::Open(program),
            argv: vec!["cooper".to_owned(), crate::link::ARGV.to_owned()],
            env: inherited(dir),
            cwd: "/".into(),
            fds: vec![null()?, stderr()?, stderr()?, theirs, told],
            limits: Vec::new(),
            uid: rustix::process::geteuid().is_root().then_some(config.link_uid),
            powerless: true,
            terminal: false,
            confinement: None,
        };
        let me = rustix::process::getpid();
        match sys::fork()? {
            sys::Fork::Parent(pid) => {
                *self = Self {
                    child: Some(pid),
                    socket: Some(ours),
                    version: self.version,
                    distrusts_upgrade: self.distrusts_upgrade,
                    failures: self.failures,
                    started_ms: now_ms,
                    ..Self::default()
                };
                Ok(())
            }
            sys::Fork::Child => {
                let uid = launch.uid;
                let (_, error) = launch.exec(me);
                let hint =
                    uid.map_or(String::new(), |uid| format!(" (as uid {uid}; may it execute the program?)"));
                eprintln!("cooper: the link cannot be started: {error}{hint}");
                sys::exit_now(127)
            }
        }
    }

    pub fn pid(&self) -> Option<Pid> {
        self.child
    }

    pub fn socket(&self) -> Option<&OwnedFd> {
        self.socket.as_ref()
    }

    /// Its process is gone. Answers how long to wait before the next start.
    pub fn died(&mut self, timing: &Timing, now_ms: u64) -> u64 {
        // One that worked for a while is not held against the next.
        self.failures = if now_ms.saturating_sub(self.started_ms) > 10_000 { 0 } else { self.failures + 1 };
        self.child = None;
        self.distrusts_upgrade = !self.worked;
        self.hang_up();
        timing.reconnect(self.failures, rand::random()).as_millis() as u64
    }

    /// Ends the process; its death is noticed like any other.
    pub fn end(&mut self, signal: Signal) {
        self.hang_up();
        if let Some(pid) = self.child {
            tree::signal(pid.as_raw_nonzero().get(), signal);
        }
    }

    fn hang_up(&mut self) {
        self.socket = None;
        (self.hello, self.greeted) = (false, false);
        self.outbox.clear();
    }

    /// Its hello is answered: from now on it is told everything.
    pub fn greet(&mut self, hello: to_link::Message) {
        (self.greeted, self.worked) = (true, true);
        self.tell(hello, Vec::new());
    }

    /// The next message it sent.
    pub fn hear(&mut self) -> Heard {
        let Some(socket) = &self.socket else { return Heard::Nothing };
        match frame::recv(socket, &mut self.buffer) {
            Ok(Some((body, _))) => match ToHost::decode(&*body) {
                Ok(ToHost { message: Some(message) }) => Heard::Message(message),
                // Of a newer link: ignored by contract.
                Ok(ToHost { message: None }) => self.hear(),
                Err(error) => {
                    tracing::warn!(%error, "the link sent something unreadable");
                    Heard::Gone
                }
            },
            Ok(None) => Heard::Gone,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Heard::Nothing,
            Err(_) => Heard::Gone,
        }
    }

    /// Says something, now or when the socket has room. To a link that was not greeted nothing is said: the inventory
    /// will tell it.
    pub fn tell(&mut self, message: to_link::Message, fds: Vec<OwnedFd>) {
        if self.greeted {
            self.outbox.push_back((ToLink { message: Some(message) }, fds));
            self.flush();
        }
    }

    /// Sends what waits.
    pub fn flush(&mut self) {
        while let (Some(socket), Some((message, fds))) = (&self.socket, self.outbox.front()) {
            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            match frame::send(socket, message, &fds) {
                Ok(()) => {
                    self.outbox.pop_front();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    tracing::warn!(%error, "the link cannot be told");
                    return self.end(Signal::KILL);
                }
            }
        }
        if self.outbox.len() > OUTBOX_MAX {
            tracing::warn!("the link does not read; starting another");
            self.end(Signal::KILL);
        }
    }

    /// Something waits for room in the socket.
    pub fn is_behind(&self) -> bool {
        !self.outbox.is_empty()
    }
}

/// The worker's own environment for processes that are Cooper's, without what is secret, and marked.
pub fn inherited(dir: &Path) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| {
            !(name.starts_with("COOPER_") && name.contains("TOKEN")) && name != super::dir::MARK
        })
        .collect();
    env.push((super::dir::MARK.to_owned(), dir.to_string_lossy().into_owned()));
    env
}
