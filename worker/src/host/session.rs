//! Sessions on this worker: made, listed, advanced, destroyed; and the interpreter of each.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use cooper_common::{
    clock,
    error::{Code, Error},
    ids::SessionId,
    limits::exec,
    network::Policy,
};
use cooper_proto::{host::to_link, v1};
use rustix::process::{Resource, Signal};

use super::{
    Due, Host, Source,
    artifacts::Known,
    globals,
    home::{Home, Injected, Record},
    interpreter::{Answer, Running, Seat, Start},
    outcome::{self, Why},
    python::Python,
    reaper::Exit,
    to_wire,
    tree::{self, Which},
    trees::Owner,
    watchdog,
    zygote::{Forked, Settled},
};
use crate::{
    confine::{Confinement, Confiner, cgroup},
    egress::inject::Injection,
    frame,
};

/// How long an interpreter may take to say hello.
const HELLO_MS: u64 = 30_000;

pub struct Session {
    pub record: Record,
    pub home: Home,
    pub state: State,
    interpreter: Option<u64>,
    /// A zygote was asked for its interpreter.
    forking: bool,
    /// Python executions that wait for the interpreter.
    pub queue: VecDeque<u64>,
    /// Variables were lost since the last execution that was told so.
    pub restarted: bool,
    /// Packages were installed since the last execution.
    pub installed: bool,
    /// Modules that its interpreter has imported, without the standard library's.
    pub imported: BTreeSet<String>,
    /// It was granted again while it is being removed.
    next: Option<v1::SessionGrant>,
    /// What became of the variables that came with its files.
    pub globals: Option<v1::GlobalsSummary>,
    /// Process trees that are not gone yet.
    pub trees: BTreeSet<u64>,
    /// Its control group, where there are any.
    pub group: Option<cgroup::Group>,
    pub disk: super::watchdog::Disk,
    /// Which artifacts were collected.
    pub artifacts: Known,
    /// A process collects artifacts; attempts that have ended and wait until it is done.
    pub collecting: Option<VecDeque<u64>>,
    /// Value of the header and the secret in it, by host, port and header: what its requests are given. Here and in the proxy,
    /// and nowhere else on this machine.
    inject: BTreeMap<(String, u16, String), (String, String)>,
    pub used: Used,
    /// What it listens on, or did.
    pub ports: super::ports::Ports,
}

/// What its connections carried while this host held it.
pub struct Used {
    /// Tells this count from those of other hosts, and of another time here.
    pub id: u64,
    pub usage: v1::NetworkUsage,
}

impl Used {
    pub fn add(&mut self, more: &crate::egress::Used) {
        let usage = &mut self.usage;
        usage.sent_bytes = usage.sent_bytes.saturating_add(more.sent.get());
        usage.received_bytes = usage.received_bytes.saturating_add(more.received.get());
        usage.connects = usage.connects.saturating_add(more.connects.get());
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum State {
    Initializing,
    Ready,
    Failed(Error),
    /// Its processes are being killed, then its files removed.
    Destroying,
    Removing,
}

pub struct Interpreter {
    session: String,
    tree: u64,
    control: std::os::fd::OwnedFd,
    pub state: Doing,
    /// It came out of a zygote.
    forked: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    Starting,
    Idle,
    /// An attempt.
    Executing(u64),
    /// It forks for an attempt.
    Branching(u64),
    /// Its variables are saved, for a call.
    Saving(u64),
    /// Variables are brought into it.
    Loading,
}

impl Session {
    pub fn found(record: Record, home: Home) -> Self {
        let state = if record.restoring { State::Initializing } else { State::Ready };
        let globals = record.globals.then(globals::lost);
        let artifacts = Known::read(&home.dir);
        Self { restarted: true, state, globals, artifacts, ..Self::new(record, home) }
    }

    fn new(record: Record, home: Home) -> Self {
        Self {
            record,
            home,
            state: State::Initializing,
            interpreter: None,
            forking: false,
            queue: VecDeque::new(),
            restarted: false,
            installed: false,
            imported: BTreeSet::new(),
            next: None,
            globals: None,
            trees: BTreeSet::new(),
            group: None,
            disk: super::watchdog::Disk::default(),
            artifacts: Known::default(),
            collecting: None,
            inject: BTreeMap::new(),
            used: Used { id: rand::random(), usage: v1::NetworkUsage::default() },
            ports: super::ports::Ports::default(),
        }
    }

    /// What its requests are given, as far as that is known: a host that was started anew learns it with the next grant.
    pub fn injections(&self) -> Vec<Injection> {
        let injection = |it: &Injected| {
            let place = (it.host.clone(), it.port, it.header.clone());
            let (value, secret) = self.inject.get(&place).cloned().unwrap_or_default();
            let Injected { host, port, plain, header } = it.clone();
            Injection { host, port, plain, header, value, secret }
        };
        self.record.inject.iter().map(injection).collect()
    }

    /// Whether anything of it changed.
    fn give_injections(&mut self, given: &[v1::GrantedInjection]) -> bool {
        let given = given.iter().map(|it| {
            let place = (it.host.clone(), u16::try_from(it.port).unwrap_or(0), it.header.clone());
            (place, (it.value.clone(), it.secret.clone()))
        });
        let before = std::mem::replace(&mut self.inject, given.collect());
        before != self.inject
    }

    /// As the inventory lists it; a session that is being destroyed is not there any more.
    pub fn item(&self) -> Option<v1::SessionItem> {
        let state = match self.state {
            State::Initializing => "initializing",
            State::Ready => "ready",
            State::Failed(_) => "failed",
            State::Destroying | State::Removing => return None,
        };
        Some(v1::SessionItem {
            session_id: self.record.session_id.clone(),
            fence: Some(self.record.fence()),
            state: state.to_owned(),
            interpreter_restarted: self.restarted,
            globals: self.globals.clone(),
            sealed: self.record.sealed,
            python_version: self.record.python.clone(),
        })
    }

    pub fn interpreter(&self) -> Option<u64> {
        self.interpreter
    }

    /// Whether it still wants the interpreter that a zygote was asked for.
    pub fn waits_for_fork(&self) -> bool {
        self.forking && matches!(self.state, State::Initializing | State::Ready)
    }

    /// Whether work may start or wait here.
    pub fn accepts(&self) -> Result<(), Error> {
        let id = &self.record.session_id;
        match &self.state {
            State::Initializing | State::Ready if self.record.sealed => {
                Err(Error::new(Code::SessionNotReady, format!("session {id} is being moved")))
            }
            State::Initializing | State::Ready => Ok(()),
            State::Failed(error) => {
                Err(Error::new(Code::SessionNotReady, format!("session {id} failed: {error}")))
            }
            State::Destroying | State::Removing => {
                Err(Error::new(Code::SessionEnded, format!("session {id} is being destroyed")))
            }
        }
    }

    /// Under which its code runs and to whom its files belong; None where the host may not give uids.
    pub fn uid(&self) -> Option<u32> {
        self.record.uid
    }

    /// Makes its control group, with its limits.
    pub fn join_group(&mut self, confiner: &Confiner) -> Result<(), Error> {
        self.group = new_group(confiner, &self.record)?;
        Ok(())
    }

    /// For one process tree of it.
    pub fn confinement(&self, confiner: &Confiner) -> std::io::Result<Confinement> {
        confiner.confinement(self.uid(), &self.home.dir, self.group.as_ref())
    }

    /// Only what makes a process count as the session's: for an installer before it is confined.
    pub fn membership(&self) -> std::io::Result<Confinement> {
        Confinement::member(self.group.as_ref())
    }

    /// Which limit keeps an interpreter from starting, as far as that can be told.
    fn lacks(&self) -> Option<String> {
        let killed = self.group.as_ref().is_some_and(|group| group.oom_kills() > 0);
        let memory = self.record.memory_limit();
        (killed || memory < 2 * exec::MEMORY_BYTES_MIN)
            .then(|| format!("its memory limit of {memory} bytes is too small (`limits.memory_bytes`)"))
    }

    pub fn limits(&self) -> Vec<(Resource, u64)> {
        let or = |value: u64, default: u64| if value == 0 { default } else { value };
        let mut limits = vec![
            (Resource::Core, 0),
            (Resource::Nofile, or(self.record.open_files.into(), exec::OPEN_FILES.into())),
            (Resource::Fsize, or(self.record.file_size_bytes, exec::FILE_SIZE_BYTES)),
        ];
        let groups = self.group.as_ref().map(cgroup::Group::controllers).unwrap_or_default();
        if !groups.memory {
            limits.push((Resource::As, self.record.memory_limit()));
        }
        if !groups.pids {
            // The kernel counts by uid. With a shared one it counts others' too: that keeps a bomb from taking every number
            // there is, and says nothing of one session, which the watch looks after.
            let own = self.uid().map(|_| self.record.processes_limit());
            limits.push((Resource::Nproc, own.unwrap_or_else(|| *watchdog::SHARED_PROCESSES_MAX)));
        }
        limits
    }
}

fn new_group(confiner: &Confiner, record: &Record) -> Result<Option<cgroup::Group>, Error> {
    confiner
        .group(&record.session_id, record.group_limits())
        .map_err(|error| Error::new(Code::SpawnFailed, format!("the session's control group: {error}")))
}

impl Host {
    pub(super) fn create_session(&mut self, mut grant: v1::SessionGrant) {
        let id = grant.session_id.clone();
        if let Some(session) = self.sessions.get_mut(&id) {
            if matches!(session.state, State::Destroying | State::Removing) {
                // The end of what is here was meant for an older grant. It begins when that is gone.
                let (fence, held) = (grant.fence.unwrap_or_default(), session.record.fence());
                if (fence.epoch, fence.attempt) > (held.epoch, held.attempt) {
                    session.next = Some(grant);
                }
                return;
            }
            // Granted again: under the newest grant, with its limits and secrets; and it is said again how it stands.
            let mut injects_others = false;
            if session.record.is_renewed_by(&grant) {
                if let Err(error) = session.home.put_secrets(&grant.secrets, session.uid()) {
                    tracing::warn!(session = %id, %error, "secrets of the session could not be renewed");
                }
                injects_others = session.give_injections(&grant.inject);
            }
            let renewed = session.record.renewed(grant, &self.dir.worker_id);
            if renewed != session.record {
                session.record = renewed;
                if let Err(error) = session.record.write(&session.home.dir) {
                    tracing::warn!(session = %id, %error, "the session's record could not be renewed");
                }
                if let Some(group) = &session.group
                    && let Err(error) = group.limit(session.record.group_limits())
                {
                    tracing::warn!(session = %id, %error, "a limit of the session could not be changed");
                }
                injects_others = true;
            }
            if injects_others {
                self.tell_policy(&id);
            }
            return self.tell_session(&id);
        }
        let secrets = std::mem::take(&mut grant.secrets);
        let inject = grant.inject.clone();
        let mut record =
            Record { has_secrets: !secrets.is_empty(), ..Record::of(grant, &self.dir.worker_id) };
        let home = Home::new(&self.dir.base, &id);
        let made = self.make_place(&home, &mut record).and_then(|made| {
            let put = if secrets.is_empty() { Ok(()) } else { home.put_secrets(&secrets, record.uid) };
            put.map(|()| made).map_err(|error| {
                home.clear();
                Error::new(
                    Code::DataUnusable,
                    format!("the secrets of session {id} could not be put in place: {error}"),
                )
            })
        });
        if made.is_ok() && !inject.is_empty() {
            self.put_trust(&home, record.uid);
        }
        let mut session = Session::new(record, home);
        session.give_injections(&inject);
        match made {
            Ok((group, interpreter)) => {
                session.group = group;
                let restoring = session.record.restoring;
                self.sessions.insert(id.clone(), session);
                self.tell_policy(&id);
                match interpreter {
                    Some(interpreter) => self.seat(&id, interpreter),
                    None if restoring => {}
                    None => self.start_interpreter(&id),
                }
            }
            Err(error) => {
                tracing::warn!(session = %id, %error, "session refused");
                let update = self.update(&session, "failed", Some(&error), String::new());
                self.link.tell(to_link::Message::Session(update), Vec::new());
            }
        }
    }

    /// What a new session has on this machine, and an interpreter if one waits there already.
    fn make_place(
        &mut self,
        home: &Home,
        record: &mut Record,
    ) -> Result<(Option<cgroup::Group>, Option<Settled>), Error> {
        let id = record.session_id.clone();
        let python = self.room_for_session(record)?;
        record.python = python.version_text();
        if record.network != Policy::default() && !self.confiner.facilities.network {
            return Err(Error::new(Code::NetworkUnavailable, "this worker cannot give a session a network"));
        }
        if let Some(berth) = self.take_berth(record) {
            match berth.take(home, record) {
                Ok((group, interpreter)) => return Ok((group, Some(interpreter))),
                Err(error) => tracing::warn!(session = %id, %error, "a berth could not be taken"),
            }
        }
        record.uid = self.next_uid()?;
        home.create(record, &python, self.layer_of(&python))
            .map_err(|e| Error::new(Code::DataUnusable, format!("session {id}: {e}")))?;
        Ok((new_group(&self.confiner, record)?, None))
    }

    fn room_for_session(&self, record: &Record) -> Result<Python, Error> {
        let id = &record.session_id;
        // It becomes a directory name.
        id.parse::<SessionId>().map_err(|e| Error::invalid(e.to_string()))?;
        if self.sessions.len() >= self.capacity.sessions_max as usize {
            return Err(Error::new(
                Code::NoCapacity,
                format!("this worker has {} sessions", self.sessions.len()),
            ));
        }
        self.confiner.admit()?;
        let python = match record.restoring {
            true => self.pythons.like(&record.python),
            false => self.pythons.wanted(&record.python),
        };
        python.cloned().ok_or_else(|| self.pythons.lack(&record.python))
    }

    /// What a session runs on. None: the worker offers it no more.
    pub(super) fn python_of(&self, session: &Session) -> Option<&Python> {
        self.pythons.like(&session.record.python)
    }

    /// The packages that every session finds are good for the first Python, and for others of its minor version.
    pub(super) fn layer_of(&self, python: &Python) -> Option<&std::path::Path> {
        let fits = self.pythons.first().is_some_and(|first| first.minor() == python.minor());
        self.config.layer.as_deref().filter(|_| fits)
    }

    /// A uid that no session has or had until lately; None where the host gives none.
    pub(super) fn next_uid(&mut self) -> Result<Option<u32>, Error> {
        let Some(uids) = &mut self.uids else { return Ok(None) };
        let used =
            |uid| self.sessions.values().any(|session| session.uid() == Some(uid)) || self.pool.has_uid(uid);
        let none = || Error::new(Code::NoCapacity, "every uid of this worker is a session's");
        uids.take(used).map(Some).ok_or_else(none)
    }

    pub(super) fn destroy_session(&mut self, end: v1::SessionEnd) {
        let id = end.session_id;
        let Some(session) = self.sessions.get_mut(&id) else {
            let record = Record::of(
                v1::SessionGrant { session_id: id, fence: end.fence, ..v1::SessionGrant::default() },
                &self.dir.worker_id,
            );
            let home = Home::new(&self.dir.base, &record.session_id);
            let mut session = Session::new(record, home);
            let id = session.record.session_id.clone();
            if id.parse::<SessionId>().is_ok() && session.home.dir.exists() {
                // Half made, or of a worker without Python: its files go all the same.
                session.state = State::Destroying;
                self.sessions.insert(id.clone(), session);
                return self.advance(&id);
            }
            let update = self.update(&session, "destroyed", None, String::new());
            return self.link.tell(to_link::Message::Session(update), Vec::new());
        };
        if let Some(fence) = end.fence {
            let held = session.record.fence();
            if (fence.epoch, fence.attempt) < (held.epoch, held.attempt) {
                return tracing::warn!(session = %id, "an older grant's end changes nothing");
            }
            (session.record.epoch, session.record.generation) = (fence.epoch, fence.attempt);
        }
        if matches!(session.state, State::Destroying | State::Removing) {
            session.next = None;
            return;
        }
        session.state = State::Destroying;
        session.queue.clear();
        if let Some(group) = &session.group {
            group.kill();
        }
        self.end_attempts_of(&id, Why::SessionEnded);
        self.end_file_work(&id);
        self.leftovers.retain(|_, (_, session)| *session != id);
        let trees: Vec<u64> =
            self.sessions.get(&id).into_iter().flat_map(|s| s.trees.iter().copied()).collect();
        for tree in trees {
            self.doom(tree, Which::default(), None);
        }
        self.advance(&id);
    }

    /// Does what the state of a session now allows.
    pub(super) fn advance(&mut self, id: &str) {
        let Some(session) = self.sessions.get_mut(id) else { return };
        match session.state {
            State::Destroying
                if session.trees.is_empty() && session.collecting.is_none() && !self.work.is_on(id) =>
            {
                session.state = State::Removing;
                let dir = session.home.dir.clone();
                if let Err(error) = self.remove_session_files(id, &dir) {
                    tracing::warn!(session = id, %error, "files could not be removed");
                    self.session_destroyed(id);
                }
            }
            State::Ready if !session.queue.is_empty() && self.stopping.is_none() => match session.interpreter
            {
                None if session.forking => {}
                None => self.start_interpreter(id),
                Some(interpreter) => self.execute_next(id, interpreter),
            },
            _ => {}
        }
    }

    fn execute_next(&mut self, id: &str, interpreter_id: u64) {
        if self.interpreters.get(&interpreter_id).is_none_or(|interpreter| interpreter.state != Doing::Idle) {
            return;
        }
        let Some(session) = self.sessions.get_mut(id) else { return };
        let Some(attempt) = session.queue.pop_front() else { return };
        let fresh = self.attempts.get(&attempt).is_some_and(super::Attempt::is_fresh);
        let seen = (session.installed, session.restarted, fresh);
        if !fresh {
            (session.installed, session.restarted) = (false, false);
        }
        let Some(mut interpreter) = self.interpreters.remove(&interpreter_id) else { return };
        interpreter.state = if fresh { Doing::Branching(attempt) } else { Doing::Executing(attempt) };
        let sent = self.execute(attempt, &interpreter.control, interpreter_id, seen);
        self.interpreters.insert(interpreter_id, interpreter);
        if let Err(error) = sent {
            // It cannot be spoken to: its end takes the attempt along.
            tracing::warn!(session = id, %error, "the interpreter does not listen");
            self.end_interpreter(interpreter_id);
        }
    }

    pub(super) fn session_destroyed(&mut self, id: &str) {
        if let Some(session) = self.sessions.remove(id) {
            self.forget_policy(id);
            let update = self.update(&session, "destroyed", None, String::new());
            self.link.tell(to_link::Message::Session(update), Vec::new());
            if let Some(grant) = session.next {
                self.create_session(grant);
            }
        }
    }

    pub(super) fn start_interpreter(&mut self, id: &str) {
        if let Some(session) = self.sessions.get_mut(id) {
            session.forking = true;
            if !self.take_from_zygote(id) {
                self.start_plain(id);
            }
        }
    }

    /// Makes the interpreter that waited in a session's place the session's.
    fn seat(&mut self, id: &str, interpreter: Settled) {
        let Some(session) = self.sessions.get_mut(id) else { return };
        session.forking = true;
        let seat = self.sessions.get(id).and_then(|session| self.seat_of(session));
        match seat.map(|seat| interpreter.claim(&seat)) {
            Some(Ok(running)) => {
                self.adopt_interpreter(id, Ok(running), true);
                // It is there and confined. What is left of becoming this session's is in front of the first execution, and
                // should it end over that, another follows as for any session that is ready.
                if let Some(session) = self.sessions.get_mut(id).filter(|s| s.interpreter.is_some()) {
                    session.state = State::Ready;
                    self.tell_session(id);
                }
            }
            Some(Err(_)) | None => self.start_plain(id),
        }
    }

    fn seat_of(&self, session: &Session) -> Option<Seat> {
        let venv = session.home.venv();
        Some(Seat {
            site: self.python_of(session)?.site_packages(&venv),
            env: session.home.environment(&session.record, [], &self.dir.path, &self.reach_env),
            limits: session.limits(),
            venv,
        })
    }

    /// Makes a forked interpreter that of a session. False: it is not there any more.
    pub(super) fn claim(&mut self, id: &str, forked: Forked) -> bool {
        let mut start = match self.start_of(id) {
            Some(Ok(start)) => start,
            Some(Err(error)) => {
                self.adopt_interpreter(id, Err(error), false);
                return true;
            }
            None => return true,
        };
        match forked.claim(&mut start) {
            Ok(running) => {
                self.adopt_interpreter(id, Ok(running), true);
                true
            }
            Err(_) => false,
        }
    }

    /// Starts an interpreter of a session from scratch.
    pub(super) fn start_plain(&mut self, id: &str) {
        let Some(start) = self.start_of(id) else { return };
        let started = start.and_then(|start| self.plain.start(start));
        self.adopt_interpreter(id, started, false);
    }

    fn start_of(&self, id: &str) -> Option<std::io::Result<Start>> {
        let session = self.sessions.get(id).filter(|session| session.waits_for_fork())?;
        let seat = self.seat_of(session)?;
        let start = |confinement| Start {
            python: session.home.venv().join("bin/python"),
            workspace: session.home.workspace(),
            seat,
            confinement,
        };
        Some(session.confinement(&self.confiner).map(start))
    }

    fn adopt_interpreter(&mut self, id: &str, started: std::io::Result<Running>, forked: bool) {
        let interpreter = self.new_id();
        let started = started.and_then(|Running { reaper, control }| {
            let tree = self.plant(reaper, Some(id.to_owned()), Owner::Interpreter(interpreter))?;
            self.watch(&control, Source::Control(interpreter))?;
            Ok(Interpreter { session: id.to_owned(), tree, control, state: Doing::Starting, forked })
        });
        if let Some(session) = self.sessions.get_mut(id) {
            session.forking = false;
        }
        match started {
            Ok(started) => {
                self.interpreters.insert(interpreter, started);
                self.timers.add(clock::mono_ms() + HELLO_MS, Due::Hello(interpreter));
                if let Some(session) = self.sessions.get_mut(id) {
                    session.interpreter = Some(interpreter);
                }
            }
            Err(error) => self.interpreter_unavailable(id, &error.to_string()),
        }
    }

    /// No interpreter came up: the session fails, or, when it had been ready, the execution that asked for one.
    fn interpreter_unavailable(&mut self, id: &str, why: &str) {
        let error = Error::new(Code::InterpreterDied, format!("the interpreter could not be started: {why}"));
        let Some(session) = self.sessions.get_mut(id) else { return };
        match session.state {
            State::Initializing => {
                session.state = State::Failed(error);
                self.tell_session(id);
                self.end_attempts_of(id, Why::SessionEnded);
            }
            State::Ready => {
                if let Some(attempt) = session.queue.pop_front() {
                    self.finish(attempt, outcome::failed(&error));
                }
                self.advance(id);
            }
            _ => {}
        }
    }

    pub(super) fn on_late_hello(&mut self, id: u64) {
        if self.interpreters.get(&id).is_some_and(|interpreter| interpreter.state == Doing::Starting) {
            self.end_interpreter(id);
        }
    }

    /// Kills an interpreter and everything beneath it; the rest follows from its exit.
    pub(super) fn end_interpreter(&mut self, id: u64) {
        if let Some(interpreter) = self.interpreters.get(&id) {
            self.doom(interpreter.tree, Which::default(), None);
        }
    }

    pub(super) fn doing(&self, interpreter: u64) -> Option<Doing> {
        self.interpreters.get(&interpreter).map(|interpreter| interpreter.state)
    }

    pub(super) fn set_doing(&mut self, interpreter: u64, doing: Doing) {
        if let Some(interpreter) = self.interpreters.get_mut(&interpreter) {
            interpreter.state = doing;
        }
    }

    pub(super) fn control_of(&self, interpreter: u64) -> Option<&std::os::fd::OwnedFd> {
        self.interpreters.get(&interpreter).map(|interpreter| &interpreter.control)
    }

    pub(super) fn interpreter_of(&self, id: u64) -> Option<(u64, Option<i32>)> {
        let tree = self.interpreters.get(&id)?.tree;
        Some((tree, self.trees.get(&tree).and_then(|tree| tree.main)))
    }

    pub(super) fn on_control(&mut self, id: u64) {
        let Some(interpreter) = self.interpreters.get(&id) else { return };
        let heard = match frame::recv(&interpreter.control, &mut self.control_buffer) {
            Ok(Some((body, _))) => Answer::parse(&body),
            Ok(None) => Err(std::io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
            Err(error) => Err(error),
        };
        match (heard, interpreter.state) {
            (Ok(mut answer), Doing::Starting) if answer.hello == Some(1) => {
                self.note_imports(id, &mut answer);
                self.interpreter_ready(id);
            }
            (Ok(mut answer), Doing::Executing(attempt)) if answer.id == Some(attempt) => {
                self.note_imports(id, &mut answer);
                self.execution_answered(attempt, answer.into_outcome());
            }
            (Ok(answer), Doing::Branching(attempt)) if answer.branched == Some(attempt) => {
                self.interpreter_free(id);
            }
            (Ok(Answer { id: Some(call), done: Some(done), .. }), Doing::Saving(saving))
                if call == saving =>
            {
                self.globals_saved(call, done);
                self.interpreter_free(id);
            }
            (Ok(Answer { id: Some(call), done: Some(done), .. }), Doing::Loading) if call == id => {
                let session = interpreter.session.clone();
                self.globals_loaded(&session, done);
                self.interpreter_ready(id);
            }
            // It ended, or is not the runner any more. Only the interpreter itself is killed: what it started goes on.
            _ => {
                let _ = rustix::event::epoll::delete(&self.epoll, &interpreter.control);
                match self.trees.get(&interpreter.tree).map(|tree| (tree.main, tree.has_exited())) {
                    Some((Some(pid), _)) => tree::signal(pid, Signal::KILL),
                    Some((None, false)) => self.end_interpreter(id),
                    Some((None, true)) | None => {}
                }
            }
        }
    }

    pub(super) fn end_interpreter_of(&mut self, session: &str) {
        if let Some(interpreter) = self.sessions.get(session).and_then(|session| session.interpreter) {
            self.end_interpreter(interpreter);
        }
    }

    fn note_imports(&mut self, id: u64, answer: &mut Answer) {
        let Some(interpreter) = self.interpreters.get(&id) else { return };
        if let Some(session) = self.sessions.get_mut(&interpreter.session) {
            let room = exec::IMPORTS_KEPT_MAX.saturating_sub(session.imported.len());
            let fitting = answer.imported.drain(..).filter(|name| name.len() <= exec::IMPORT_BYTES_MAX);
            session.imported.extend(fitting.take(room));
        }
    }

    fn interpreter_ready(&mut self, id: u64) {
        let Some(interpreter) = self.interpreters.get(&id) else { return };
        let session_id = interpreter.session.clone();
        if self.load_globals(id, &session_id) {
            return self.set_doing(id, Doing::Loading);
        }
        self.set_doing(id, Doing::Idle);
        if let Some(session) = self.sessions.get_mut(&session_id)
            && session.state == State::Initializing
        {
            session.state = State::Ready;
            self.tell_session(&session_id);
        }
        self.advance(&session_id);
    }

    /// An execution is over and its leftovers are dead: the interpreter is free for the next.
    pub(super) fn interpreter_free(&mut self, id: u64) {
        let Some(interpreter) = self.interpreters.get_mut(&id) else { return };
        interpreter.state = Doing::Idle;
        let session = interpreter.session.clone();
        self.advance(&session);
    }

    pub(super) fn interpreter_exited(&mut self, id: u64, tree: u64, how: std::io::Result<Exit>) {
        let Some(interpreter) = self.interpreters.remove(&id) else { return };
        if let Some(session) = self.sessions.get_mut(&interpreter.session) {
            session.interpreter = None;
            session.imported.clear();
            session.restarted = true;
        }
        match (interpreter.state, how) {
            (Doing::Saving(call), _) => {
                self.globals_saved(call, globals::Done::failed("its interpreter ended meanwhile"));
            }
            // Without them it begins again.
            (Doing::Loading, how) => {
                let why = how.map_or_else(|e| e.to_string(), |exit| format!("status {}", exit.code()));
                let done =
                    globals::Done::failed(format!("the interpreter ended while they were loaded: {why}"));
                self.globals_loaded(&interpreter.session, done);
                if self.sessions.get(&interpreter.session).is_some_and(|it| it.state == State::Initializing) {
                    self.start_interpreter(&interpreter.session);
                }
            }
            (Doing::Starting, how) if interpreter.forked => {
                tracing::warn!(session = %interpreter.session, ?how, "a forked interpreter ended before it was ready");
                if let Some(session) = self.sessions.get_mut(&interpreter.session) {
                    session.forking = true;
                    self.start_plain(&interpreter.session);
                }
            }
            (Doing::Starting, how) => {
                let why = how
                    .map_or_else(|e| e.to_string(), |exit| format!("it ended with status {}", exit.code()));
                let session = self.sessions.get(&interpreter.session);
                let why =
                    session.and_then(Session::lacks).map_or(why.clone(), |lack| format!("{why}; {lack}"));
                self.interpreter_unavailable(&interpreter.session, &why);
            }
            (Doing::Executing(attempt), Ok(exit)) => self.execution_died(attempt, tree, exit),
            (Doing::Executing(_), Err(_)) | (Doing::Idle | Doing::Branching(_), _) => {}
        }
        self.advance(&interpreter.session);
    }

    fn tell_session(&mut self, id: &str) {
        let Some(session) = self.sessions.get(id) else { return };
        let version = self.python_of(session).map(Python::version_text).unwrap_or_default();
        let update = match &session.state {
            State::Ready => self.update(session, "ready", None, version),
            State::Failed(error) => self.update(session, "failed", Some(error), version),
            State::Initializing | State::Destroying | State::Removing => return,
        };
        self.link.tell(to_link::Message::Session(update), Vec::new());
    }

    fn update(
        &self,
        session: &Session,
        state: &str,
        error: Option<&Error>,
        python_version: String,
    ) -> v1::SessionUpdate {
        v1::SessionUpdate {
            session_id: session.record.session_id.clone(),
            fence: Some(session.record.fence()),
            state: state.to_owned(),
            error: error.map(to_wire),
            python_version,
            facilities: self.confiner.facilities.names(),
            globals: session.globals.clone(),
        }
    }
}
