//! The host's part in seeing what goes wrong in its stacks: it starts the observer, a process that asks the engine, and keeps
//! what that saw until the coordinator has heard it. It runs while a coordinator wants to know and there are stacks.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, OwnedFd},
};

use cooper_common::{clock, limits::observer::SERVICES_MAX};
use cooper_proto::{
    host::{ToObserver, Watch, to_link, to_observer},
    v1,
};
use prost::Message as _;
use rustix::process::{Pid, Signal};

use super::{
    Compose, Due, Host, Source,
    launch::{Launch, Program},
    link::inherited,
    stop::Phase,
    sys, tree,
};
use crate::{frame, stack::OBSERVER_ARGV};

/// Words of the observer taken in one round.
const ROUND_MAX: usize = 16;

/// The observer as its host sees it.
#[derive(Default)]
pub struct Observer {
    child: Option<Pid>,
    socket: Option<OwnedFd>,
    buffer: frame::Buffer,
    failures: u32,
    started_ms: u64,
    /// By what it watches; none: no coordinator wants to know.
    observe: Option<v1::Observe>,
    /// What it saw and nobody has heard yet, by stack and service.
    troubles: BTreeMap<(String, String), v1::Trouble>,
}

impl Observer {
    pub fn pid(&self) -> Option<Pid> {
        self.child
    }

    pub fn end(&mut self) {
        self.socket = None;
        if let Some(pid) = self.child {
            tree::signal(pid.as_raw_nonzero().get(), Signal::KILL);
        }
    }

    /// It reads at once what it is told; one that does not is started anew.
    fn tell(&mut self, message: to_observer::Message) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = frame::send(socket, &ToObserver { message: Some(message) }, &[]) {
            tracing::warn!(%error, "the observer of the stacks cannot be told; starting another");
            self.end();
        }
    }
}

impl Host {
    pub(super) fn observe(&mut self, observe: v1::Observe) {
        if self.observer.observe.as_ref() != Some(&observe) {
            self.observer.observe = Some(observe);
            self.watch_stacks();
        }
    }

    /// The stacks, or what is to be looked for in them, are others than before.
    pub(super) fn watch_stacks(&mut self) {
        if self.observer.child.is_none() {
            return self.start_observer();
        }
        if let Some(observe) = self.observer.observe.clone() {
            let watch = Watch { stacks: self.stacks.list(), observe: Some(observe) };
            self.observer.tell(to_observer::Message::Watch(watch));
        }
    }

    /// Starts it, where there is something to observe and somebody to tell.
    pub(super) fn start_observer(&mut self) {
        if self.observer.child.is_some()
            || self.observer.observe.is_none()
            || self.compose != Compose::Works
            || self.stacks.list().is_empty()
            || self.stopping >= Some(Phase::Ending)
        {
            return;
        }
        let now = clock::mono_ms();
        self.observer.started_ms = now;
        let started = self.spawn_observer().and_then(|(pid, socket)| {
            self.observer.child = Some(pid);
            self.watch(&socket, Source::Observer)?;
            self.observer.socket = Some(socket);
            Ok(())
        });
        match started {
            Ok(()) => self.watch_stacks(),
            Err(error) => {
                tracing::error!(%error, "the observer of the stacks cannot be started: nothing is repaired by itself");
                self.observer.end();
                if self.observer.child.is_none() {
                    self.start_observer_later(now);
                }
            }
        }
    }

    fn spawn_observer(&self) -> io::Result<(Pid, OwnedFd)> {
        let (ours, theirs) = frame::pair()?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        let stderr = || std::io::stderr().as_fd().try_clone_to_owned();
        let launch = Launch {
            program: Program::Open(self.exe.try_clone()?),
            argv: vec!["cooper".to_owned(), OBSERVER_ARGV.to_owned(), self.config.log_level.clone()],
            env: inherited(&self.dir.path),
            cwd: self.dir.path.clone(),
            fds: vec![theirs, stderr()?, stderr()?],
            limits: Vec::new(),
            uid: None,
            powerless: false,
            terminal: false,
            confinement: None,
        };
        let me = rustix::process::getpid();
        match sys::fork()? {
            sys::Fork::Parent(pid) => Ok((pid, ours)),
            sys::Fork::Child => {
                let (_, error) = launch.exec(me);
                eprintln!("cooper: the observer of the stacks cannot be started: {error}");
                sys::exit_now(127)
            }
        }
    }

    pub(super) fn on_observer(&mut self) {
        for _ in 0..ROUND_MAX {
            let Some(socket) = &self.observer.socket else { return };
            let trouble = match frame::recv(socket, &mut self.observer.buffer) {
                Ok(Some((body, _))) => match v1::Trouble::decode(&*body) {
                    Ok(trouble) => trouble,
                    Err(_) => return self.observer.end(),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Ok(None) | Err(_) => return self.observer.end(),
            };
            let key = (trouble.stack.clone(), trouble.service.clone());
            if self.observer.troubles.len() < SERVICES_MAX || self.observer.troubles.contains_key(&key) {
                self.observer.troubles.insert(key, trouble.clone());
                self.link.tell(to_link::Message::Trouble(trouble), Vec::new());
            }
        }
    }

    /// Says to a new link what nobody has heard.
    pub(super) fn tell_troubles(&mut self) {
        for trouble in self.observer.troubles.values() {
            self.link.tell(to_link::Message::Trouble(trouble.clone()), Vec::new());
        }
    }

    pub(super) fn trouble_heard(&mut self, heard: v1::TroubleHeard) {
        self.observer.troubles.remove(&(heard.stack.clone(), heard.service.clone()));
        self.observer.tell(to_observer::Message::Heard(heard));
    }

    pub(super) fn on_observer_death(&mut self) {
        self.observer.end();
        self.observer.child = None;
        if self.stopping >= Some(Phase::Ending) {
            return;
        }
        let now = clock::mono_ms();
        let lived = now.saturating_sub(self.observer.started_ms) > 10_000;
        self.observer.failures = if lived { 0 } else { self.observer.failures };
        tracing::warn!("the observer of the stacks ended; starting another");
        self.start_observer_later(now);
    }

    fn start_observer_later(&mut self, now: u64) {
        self.observer.failures += 1;
        let wait = self.config.timing.reconnect(self.observer.failures, rand::random());
        self.timers.add(now + wait.as_millis() as u64, Due::StartObserver);
    }
}
