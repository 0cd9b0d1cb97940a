//! The host's part in what sessions reach: it starts the egress proxy, tells it of sessions and their policies, and hands
//! on every connect that the kernel stopped. Binds stop there too: what is bound is made here (`ports.rs`) and given by the
//! proxy; and changes of files' attributes, which are made here.
//!
//! Whoever answers a connect waits for the caller's thread; the host never does, so the proxy answers. A proxy that dies
//! breaks the connections there are; the host keeps every listener and hands them to the next.

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io,
    os::fd::{AsFd, OwnedFd},
};

use cooper_common::{clock, limits::network::CONNECTS_UNANSWERED_MAX};
use cooper_proto::{host::to_link, v1};
use rustix::{
    io::Errno,
    process::{Pid, Signal},
};

use super::{
    Due, Host, Source, attributes,
    home::Home,
    launch::{Launch, Program},
    link::inherited,
    ports,
    stop::Phase,
    sys, tree,
};
use crate::{
    confine::{
        notify::{self, Next},
        own_places,
    },
    egress::{self, FromEgress, Refused, ToEgress, authority::Authority, dial},
    frame,
};

/// Messages that wait for a proxy that does not read.
const OUTBOX_MAX: usize = 16_384;
/// Calls of one tree, or words of the proxy, taken in one round.
const ROUND_MAX: usize = 16;

/// The proxy as its host sees it.
#[derive(Default)]
pub struct Egress {
    child: Option<Pid>,
    socket: Option<OwnedFd>,
    outbox: VecDeque<(ToEgress, Option<OwnedFd>)>,
    watched_for_room: bool,
    buffer: frame::Buffer,
    failures: u32,
    started_ms: u64,
}

/// What a process tree's connects come by.
pub enum Connects {
    /// Its first process has not sent the listener yet.
    Awaited(OwnedFd),
    Heard {
        listener: OwnedFd,
        /// Calls handed on last: should the proxy die, they are answered here.
        handed: VecDeque<u64>,
    },
}

impl Egress {
    pub fn pid(&self) -> Option<Pid> {
        self.child
    }

    pub fn end(&mut self) {
        self.socket = None;
        self.outbox.clear();
        if let Some(pid) = self.child {
            tree::signal(pid.as_raw_nonzero().get(), Signal::KILL);
        }
    }

    pub fn tell(&mut self, message: ToEgress, listener: Option<OwnedFd>) {
        if self.socket.is_some() {
            self.outbox.push_back((message, listener));
            self.flush();
        }
    }

    fn flush(&mut self) {
        while let (Some(socket), Some((message, listener))) = (&self.socket, self.outbox.front()) {
            match egress::send(socket, message, listener.as_ref()) {
                Ok(()) => {
                    self.outbox.pop_front();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return self.end(),
            }
        }
        if self.outbox.len() > OUTBOX_MAX {
            tracing::warn!("the egress proxy does not read; starting another");
            self.end();
        }
    }
}

/// Where programs of sessions believe the proxy to be; nothing listens there, and every connect gets to it.
const PROXY: &str = "http://127.0.0.1:3128";

impl Host {
    /// Where packages come from, what programs of sessions are told of the way out, and the proxy itself.
    pub(super) fn prepare_network(&mut self) {
        let Some(python) = self.pythons.first().filter(|_| self.confiner.facilities.network) else { return };
        let mut index = super::install::index(&python.executable);
        if let Some(more) = &self.config.egress_index {
            index.hosts.extend(more.iter().cloned());
            self.reach_env = index.told.clone();
            self.index = index;
        }
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
            for name in [name.to_owned(), name.to_ascii_lowercase()] {
                self.reach_env.push((name, PROXY.to_owned()));
            }
        }
        match Authority::make() {
            Ok(authority) => self.authority = Some(authority),
            Err(error) => {
                tracing::warn!(%error, "no secrets are put into requests here: no authority could be made")
            }
        }
        self.start_egress();
    }

    /// Starts the proxy, where there are connects to answer.
    pub(super) fn start_egress(&mut self) {
        if !self.confiner.facilities.network
            || self.stopping >= Some(Phase::Ending)
            || self.egress.child.is_some()
        {
            return;
        }
        let now = clock::mono_ms();
        self.egress.started_ms = now;
        let started = self.spawn_egress().and_then(|(pid, socket)| {
            self.egress.child = Some(pid);
            self.watch(&socket, Source::Egress)?;
            self.egress.watched_for_room = false;
            self.egress.socket = Some(socket);
            Ok(())
        });
        if let Err(error) = started {
            tracing::error!(%error, "the egress proxy cannot be started: sessions reach nobody");
            self.egress.end();
            if self.egress.child.is_none() {
                self.egress.failures += 1;
                let wait = self.config.timing.reconnect(self.egress.failures, rand::random());
                self.timers.add(now + wait.as_millis() as u64, Due::StartEgress);
            }
            return;
        }
        let sessions: Vec<String> = self.sessions.keys().cloned().collect();
        for session in sessions {
            self.tell_policy(&session);
        }
        for (id, tree) in &self.trees {
            if let (Some(Connects::Heard { listener, .. }), Some(session)) = (&tree.connects, &tree.session)
                && let Ok(listener) = listener.try_clone()
            {
                self.egress.tell(ToEgress::Tree { tree: *id, session: session.clone() }, Some(listener));
            }
        }
    }

    fn spawn_egress(&self) -> io::Result<(Pid, OwnedFd)> {
        let (ours, theirs) = frame::pair()?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        let told = frame::sealed_memfd("cooper-egress", &serde_json::to_vec(&self.egress_config())?)?;
        let null = || OpenOptions::new().read(true).write(true).open("/dev/null").map(File::into);
        let stderr = || std::io::stderr().as_fd().try_clone_to_owned();
        let launch = Launch {
            program: Program::Open(self.exe.try_clone()?),
            argv: vec!["cooper".to_owned(), egress::ARGV.to_owned()],
            env: inherited(&self.dir.path),
            cwd: "/".into(),
            fds: vec![null()?, stderr()?, stderr()?, theirs, told],
            limits: vec![(rustix::process::Resource::Core, 0)],
            uid: rustix::process::geteuid().is_root().then_some(self.config.egress_uid),
            powerless: true,
            terminal: false,
            confinement: None,
        };
        let me = rustix::process::getpid();
        match sys::fork()? {
            sys::Fork::Parent(pid) => Ok((pid, ours)),
            sys::Fork::Child => {
                let (_, error) = launch.exec(me);
                eprintln!("cooper: the egress proxy cannot be started: {error}");
                sys::exit_now(127)
            }
        }
    }

    fn egress_config(&self) -> egress::Config {
        let config = &self.config;
        let coordinator =
            config.coordinator_addr.split_once("://").map_or(&*config.coordinator_addr, |it| it.1);
        let coordinator = coordinator.split('/').next().unwrap_or_default();
        egress::Config {
            log_level: config.log_level.clone(),
            rules: dial::Rules {
                // An index of one's own is seldom on a public address.
                allowed: config.egress_allow.iter().chain(&self.index.hosts).cloned().collect(),
                forbidden: dial::Place::parse(coordinator).into_iter().collect(),
                hosts: config.egress_hosts.clone(),
                upstream: dial::Upstream::of_environment(),
            },
            authority: self.authority.clone(),
            roots: self.index.roots.clone(),
            index: self.index.hosts.clone(),
            passwords: self.index.passwords.clone(),
            authorities: self.index.authorities.clone(),
        }
    }

    pub(super) fn on_egress(&mut self) {
        self.egress.flush();
        for _ in 0..ROUND_MAX {
            let Some(socket) = &self.egress.socket else { return };
            let (message, fds) = match frame::recv(socket, &mut self.egress.buffer) {
                Ok(Some((body, fds))) => match serde_json::from_slice(&body) {
                    Ok(message) => (message, fds),
                    Err(_) => return self.egress.end(),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Ok(None) | Err(_) => return self.egress.end(),
            };
            match message {
                FromEgress::Refused(refused) => self.tell_refused(refused),
                FromEgress::Used { session, used } => {
                    if let Some(counted) = self.sessions.get_mut(&session) {
                        counted.used.add(&used);
                        self.tell_used(&session);
                    }
                }
                FromEgress::Pip { id, session, order } => self.pip_asked(id, session, &order, fds),
                FromEgress::PipGone { id } => self.end_pip(id),
            }
        }
    }

    fn tell_refused(&mut self, refused: Refused) {
        if self.sessions.contains_key(&refused.session) {
            let refused = v1::NetworkRefused {
                session_id: refused.session,
                host: refused.host,
                port: refused.port.into(),
                reason: refused.reason,
                count: refused.count,
            };
            self.link.tell(to_link::Message::NetworkRefused(refused), Vec::new());
        }
    }

    /// What a session's connections carried, all in all.
    pub(super) fn tell_used(&mut self, id: &str) {
        let Some(session) = self.sessions.get(id).filter(|session| session.used.usage.connects > 0) else {
            return;
        };
        let used = v1::NetworkUsed {
            session_id: id.to_owned(),
            count_id: session.used.id,
            usage: Some(session.used.usage),
        };
        self.link.tell(to_link::Message::NetworkUsed(used), Vec::new());
    }

    pub(super) fn on_egress_death(&mut self) {
        let now = clock::mono_ms();
        self.egress.end();
        self.egress.child = None;
        self.end_pips();
        // What it had not answered would wait for ever.
        for tree in self.trees.values_mut() {
            if let Some(Connects::Heard { listener, handed }) = &mut tree.connects {
                for id in handed.drain(..) {
                    notify::answer(listener, id, libc::ECONNREFUSED);
                }
            }
        }
        if self.stopping >= Some(Phase::Ending) {
            return;
        }
        let lived = now.saturating_sub(self.egress.started_ms) > 10_000;
        self.egress.failures = if lived { 0 } else { self.egress.failures + 1 };
        let wait = self.config.timing.reconnect(self.egress.failures, rand::random()).as_millis() as u64;
        tracing::warn!(again_in_ms = wait, "the egress proxy ended; starting another");
        self.timers.add(now + wait, Due::StartEgress);
    }

    /// Tells the proxy what a session may reach from now on.
    pub(super) fn tell_policy(&mut self, id: &str) {
        if let Some(session) = self.sessions.get(id) {
            let (policy, inject) = (session.record.network.clone(), session.injections());
            self.egress.tell(ToEgress::Session { session: id.to_owned(), policy, inject }, None);
        }
    }

    /// Has the programs of a session believe the proxy where it is a host to them.
    pub(super) fn put_trust(&self, home: &Home, uid: Option<u32>) {
        let Some(authority) = &self.authority else { return };
        let certificates = format!("{}{}", self.index.roots, authority.certificate);
        if let Err(error) = home.put_trusted(&certificates, uid) {
            // They reach the hosts all the same, and do not trust what they find.
            tracing::warn!(dir = %home.dir.display(), %error, "certificates for a session could not be put in place");
        }
    }

    pub(super) fn forget_policy(&mut self, id: &str) {
        self.egress.tell(ToEgress::End { session: id.to_owned() }, None);
    }

    pub(super) fn forget_connects(&mut self, tree: u64) {
        self.egress.tell(ToEgress::TreeEnd { tree }, None);
    }

    /// A tree's listener arrived, or one of its processes connects.
    pub(super) fn on_connects(&mut self, id: u64) {
        let Some(tree) = self.trees.get_mut(&id) else { return };
        match &mut tree.connects {
            None => {}
            Some(Connects::Awaited(socket)) => {
                let heard = frame::recv(&*socket, &mut self.egress.buffer);
                let listener = match heard {
                    Ok(Some((_, fds))) => fds.into_iter().next(),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                    Ok(None) | Err(_) => None,
                };
                let _ = rustix::event::epoll::delete(&self.epoll, socket);
                let (Some(listener), Some(session)) = (listener, tree.session.clone()) else {
                    tree.connects = None;
                    return;
                };
                let theirs = listener.try_clone();
                let handed = VecDeque::new();
                tree.connects = Some(Connects::Heard { listener, handed });
                let watched = self.watch_connects(id);
                if let (Ok(()), Ok(theirs)) = (watched, theirs) {
                    self.egress.tell(ToEgress::Tree { tree: id, session }, Some(theirs));
                }
            }
            Some(Connects::Heard { .. }) => self.hand_on(id),
        }
    }

    fn watch_connects(&self, id: u64) -> io::Result<()> {
        match self.trees.get(&id).and_then(|tree| tree.connects.as_ref()) {
            Some(Connects::Heard { listener, .. }) => self.watch(listener, Source::Connects(id)),
            _ => Ok(()),
        }
    }

    fn hand_on(&mut self, id: u64) {
        for _ in 0..ROUND_MAX {
            let Some(tree) = self.trees.get_mut(&id) else { return };
            let uid = tree.session.as_ref().and_then(|session| self.sessions.get(session)?.uid());
            let Some(Connects::Heard { listener, handed }) = &mut tree.connects else { return };
            match notify::next(listener) {
                Ok(Next::Nothing) => return,
                Ok(Next::Call(call)) if !call.is_connect() && !call.is_bind() => {
                    let session = tree.session.as_ref().and_then(|session| self.sessions.get(session));
                    let own = session.map(|session| own_places(&session.home.dir, false)).unwrap_or_default();
                    let changed = attributes::change(listener, &call, &own);
                    let errno = changed.unwrap_or(Err(Errno::NOSYS)).err().map_or(0, Errno::raw_os_error);
                    notify::answer(listener, call.id, errno);
                }
                Ok(Next::Call(call)) if self.egress.socket.is_some() => {
                    let mut bound = None;
                    if call.is_bind() {
                        let address = notify::address(call, uid);
                        let session = tree.session.as_ref().and_then(|id| self.sessions.get_mut(id));
                        let filtered = ports::filtered(self.config.ports, &self.confiner.facilities);
                        match ports::bind(&mut self.gate, filtered, session, address) {
                            Ok(socket) => bound = Some(socket),
                            Err(errno) => {
                                notify::answer(listener, call.id, errno);
                                continue;
                            }
                        }
                    }
                    let flags = notify::flags(call, uid);
                    if handed.len() >= CONNECTS_UNANSWERED_MAX {
                        handed.pop_front();
                    }
                    handed.push_back(call.id);
                    let wanted = egress::Wanted {
                        id: call.id,
                        fd: call.fd(),
                        nonblocking: flags.nonblocking,
                        close_on_exec: flags.close_on_exec,
                    };
                    let message = match &bound {
                        None => ToEgress::Connect { tree: id, wanted },
                        Some(_) => ToEgress::Bound { tree: id, wanted },
                    };
                    self.egress.tell(message, bound);
                }
                Ok(Next::Call(call)) => notify::answer(listener, call.id, libc::ECONNREFUSED),
                Ok(Next::Over) | Err(_) => {
                    let _ = rustix::event::epoll::delete(&self.epoll, listener);
                    tree.connects = None;
                    return self.forget_connects(id);
                }
            }
        }
    }

    /// The event loop waits for room in the proxy's socket while something waits to be sent.
    pub(super) fn watch_egress_for_room(&mut self) -> io::Result<()> {
        let behind = !self.egress.outbox.is_empty();
        if behind != self.egress.watched_for_room
            && let Some(socket) = &self.egress.socket
        {
            let mut flags = rustix::event::epoll::EventFlags::IN;
            flags.set(rustix::event::epoll::EventFlags::OUT, behind);
            rustix::event::epoll::modify(&self.epoll, socket, Source::Egress.pack(), flags)?;
            self.egress.watched_for_room = behind;
        }
        Ok(())
    }
}
