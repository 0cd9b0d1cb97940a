//! What a host knows before anything runs: capacity, the sessions on disk, the link and its greeting.

use std::{fs::Permissions, os::unix::fs::PermissionsExt, path::Path};

use cooper_common::{
    clock,
    error::{Code, Error},
    limits::link::HOST_PROTOCOL_MIN,
};
use cooper_proto::{
    host::{self as wire, to_link},
    v1,
};
use rustix::process::{Resource, Rlimit, Signal};

use super::{
    Compose, Due, Host, Source,
    home::{Home, Record},
    install, ports,
    python::{Python, Pythons},
    session::{self, Session},
    stop::Phase,
    to_wire,
};
use crate::{
    config::{Config, Pythons as Named},
    confine::{Confiner, Surroundings, capabilities, facilities, uids::Uids},
};

const MEMORY_PER_SESSION: u64 = 256 << 20;
const SESSIONS_PER_CORE: u64 = 8;
/// Attempts at once, of all kinds. What costs something has limits of its own (sessions, executions of a session, steps);
/// this one only bounds what a worker is told before it is done with it, and is large so that a task seldom waits for a
/// message that says there is room.
const TASKS_MAX: u32 = 1024;

/// How much this worker takes, unless it is told.
pub fn capacity(config: &Config) -> v1::Capacity {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let memory = memory_bytes().unwrap_or(u64::MAX);
    let fitting = (cores * SESSIONS_PER_CORE).min(memory / MEMORY_PER_SESSION).clamp(1, 4096) as u32;
    let sessions_max = config.max_sessions.unwrap_or(fitting);
    v1::Capacity { sessions_max, tasks_max: config.max_tasks.unwrap_or(TASKS_MAX) }
}

/// Memory of the machine, or of the container when that has less.
fn memory_bytes() -> Option<u64> {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
        Some(line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
    });
    let cgroup =
        std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    machine.into_iter().chain(cgroup).min()
}

/// A host holds three descriptors for every execution; what it may hold at all is the system's hard limit.
pub fn raise_open_files() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let _ = rustix::process::setrlimit(
        Resource::Nofile,
        Rlimit { current: limit.maximum, maximum: limit.maximum },
    );
}

impl Host {
    pub(super) fn start_link(&mut self) {
        if self.stopping >= Some(Phase::Ending) || self.link.pid().is_some() {
            return;
        }
        let now = clock::mono_ms();
        let started = self.link.start(&self.exe, &self.exe_path, &self.config, &self.dir.path, now);
        self.link_watched_for_room = false;
        let watched = started.and_then(|()| match self.link.socket() {
            Some(socket) => self.watch(socket, Source::Link),
            None => Ok(()),
        });
        if let Err(error) = watched {
            tracing::error!(%error, "the link cannot be started");
            self.link.end(Signal::KILL);
            if self.link.pid().is_none() {
                let wait = self.link.died(&self.config.timing, now);
                self.timers.add(now + wait, Due::StartLink);
            }
        }
    }

    /// SIGUSR2: the next link is started from what is at the place of this host's program now, as after an upgrade.
    pub(super) fn replace_link(&mut self) {
        tracing::info!("replacing the link");
        self.link.end(Signal::TERM);
    }

    pub(super) fn on_link_death(&mut self) {
        let now = clock::mono_ms();
        let wait = self.link.died(&self.config.timing, now);
        // What it was writing stays half-written for ever otherwise.
        self.writing.abandon();
        self.work.abandon();
        self.abandon_checkpoints();
        for attempt in self.attempts.values_mut() {
            attempt.unname();
        }
        self.out_of_reach();
        if self.stopping < Some(Phase::Ending) {
            tracing::warn!(again_in_ms = wait, "the link ended; starting another");
            self.timers.add(now + wait, Due::StartLink);
        }
    }

    pub(super) fn on_link_hello(&mut self, hello: &wire::LinkHello) {
        let version = self.config.host_protocol_max.min(hello.version_max);
        if version < HOST_PROTOCOL_MIN.max(hello.version_min) {
            tracing::error!(
                min = hello.version_min,
                max = hello.version_max,
                host = self.config.host_protocol_max,
                "the link does not speak this host's protocol; the next one is started from the host's own program"
            );
            return self.link.end(Signal::KILL);
        }
        (self.link.hello, self.link.version) = (true, version);
        (self.link.secrets, self.link.inject) = (hello.secrets, hello.inject);
        self.greet_waiting_link();
    }

    /// Tells a link that said hello everything, once it is known whether Compose works.
    pub(super) fn greet_waiting_link(&mut self) {
        if !self.link.hello || self.link.greeted || self.compose == Compose::Unknown {
            return;
        }
        let hello = to_link::Message::Hello(self.inventory());
        self.link.greet(hello);
        for attempt in self.attempts.values_mut() {
            attempt.unname();
        }
        let ids: Vec<u64> = self.attempts.keys().copied().collect();
        for id in ids {
            if !self.tell_ended(id) {
                self.grown.insert(id);
            }
        }
        let sessions: Vec<String> = self.sessions.keys().cloned().collect();
        for session in sessions {
            self.tell_used(&session);
        }
        self.tell_troubles();
        if self.stopping.is_some() {
            self.tell_drain();
        }
    }

    fn inventory(&self) -> wire::HostHello {
        let mut capabilities = Vec::new();
        if !self.pythons.is_empty() {
            capabilities.push("python".to_owned());
            capabilities.push("packages".to_owned());
            capabilities.push("interactive".to_owned());
            capabilities.push("ports".to_owned());
            // The link must know of it too: one of before would leave out what a grant says of it.
            if self.link.version >= super::checkpoint::VERSION {
                capabilities.push("checkpoint".to_owned());
                capabilities.push("archives".to_owned());
                capabilities.push("hibernate".to_owned());
            }
        }
        if !self.pythons.is_empty() && self.link.secrets {
            capabilities.push("secrets".to_owned());
        }
        if !self.pythons.is_empty() && self.link.inject && self.authority.is_some() {
            capabilities.push("inject".to_owned());
        }
        if self.compose == Compose::Works {
            capabilities.push("compose".to_owned());
        }
        wire::HostHello {
            version: self.link.version,
            incarnation: self.dir.incarnation,
            worker_id: self.dir.worker_id.clone(),
            python_version: self.pythons.first().map(Python::version_text).unwrap_or_default(),
            python_versions: self.pythons.versions(),
            capabilities,
            facilities: self.confiner.facilities.names(),
            tier: self.confiner.facilities.tier().to_string(),
            sessions_refused: self.confiner.admit().err().as_ref().map(to_wire),
            capacity: Some(self.capacity),
            sessions: self.sessions.values().filter_map(Session::item).collect(),
            attempts: self.attempts.values().map(|attempt| attempt.item()).collect(),
            stacks: self.stacks.list(),
        }
    }

    /// Finds out what sessions can run on.
    pub(super) fn find_pythons(&mut self) -> Result<(), Error> {
        match Pythons::find(&self.config.python) {
            Ok((pythons, notes)) => {
                self.pythons = pythons;
                notes.iter().for_each(|note| tracing::info!("{note}"));
                Ok(())
            }
            Err(error) if matches!(self.config.python, Named::These(_)) => Err(error),
            Err(error) => {
                tracing::warn!("{error}: this worker takes no sessions");
                Ok(())
            }
        }
    }

    /// Finds out what sessions can be confined with.
    pub(super) fn confine(&mut self) -> Result<(), Error> {
        let tools = self.dir.path.join("tools");
        let first = self.pythons.first();
        let around = Surroundings {
            dir: &self.dir.path,
            base: &self.dir.base,
            pythons: self.pythons.prefixes(),
            readable: first.map(|python| install::places(&python.executable, &tools)).unwrap_or_default(),
            layer: self.config.layer.as_deref(),
            worker_id: &self.dir.worker_id,
        };
        let unusable =
            |dir: &Path, e: std::io::Error| Error::new(Code::DataUnusable, format!("{}: {e}", dir.display()));
        std::fs::create_dir_all(&tools).map_err(|e| unusable(&tools, e))?;
        if facilities::has_uids() {
            // To be passed by those whose home lies beneath, and listed by nobody but the worker.
            let mut passed = vec![self.dir.base.as_path()];
            // Inside namespaces every directory on the way may be passed.
            let bare = self.config.mask.namespaces || !facilities::may_make_namespaces();
            passed.extend(bare.then_some(self.dir.path.as_path()));
            for dir in passed {
                std::fs::set_permissions(dir, Permissions::from_mode(0o711)).map_err(|e| unusable(dir, e))?;
            }
        }
        self.confiner = Confiner::new(self.config.mask(), self.config.tier_min, &around);
        self.confiner.notes.extend(self.pythons.keep_reachable(&self.confiner.facilities));
        let facilities = &self.confiner.facilities;
        let kept = capabilities::needed(facilities);
        capabilities::keep(kept)
            .map_err(|e| Error::internal(format!("capabilities cannot be given up: {e}")))?;
        if facilities.uid {
            self.uids = Some(Uids::open(&self.dir.path, self.config.session_uids.clone())?);
        }
        tracing::info!(tier = %facilities.tier(), facilities = ?facilities.names(), capabilities = ?capabilities::names(kept), "isolation");
        self.confiner.notes.iter().for_each(|note| tracing::warn!("{note}"));
        match ports::filtered(self.config.ports, facilities) {
            Ok(true) => {}
            Ok(false) => {
                tracing::warn!("what sessions listen on is open to every process in this network namespace")
            }
            Err(refused) => tracing::info!("{refused}"),
        }
        if let Err(refused) = self.confiner.admit() {
            tracing::warn!("{refused}: sessions are refused");
        }
        Ok(())
    }

    /// A session of a host without uids gets one now; one with a uid cannot go on under a host that may not use it.
    fn own_found(&mut self, record: &mut Record, home: &Home) -> Result<(), Error> {
        match (record.uid, self.uids.is_some()) {
            (Some(uid), false) => Err(Error::new(
                Code::DataUnusable,
                format!("its files belong to uid {uid}, which this worker may not become"),
            )
            .with_hint("run the worker as root again, or destroy the session")),
            (None, true) => {
                record.uid = self.next_uid()?;
                let given = record.uid.map_or(Ok(()), |uid| home.give_to(uid));
                given
                    .and_then(|()| record.write(&home.dir))
                    .map_err(|e| Error::new(Code::DataUnusable, format!("its files: {e}")))
            }
            _ => Ok(()),
        }
    }

    /// Sessions that an earlier host left on disk: their files and packages are there, their variables are not.
    pub(super) fn find_sessions(&mut self) {
        if self.pythons.is_empty() {
            return;
        }
        self.sweep_spools();
        self.find_layers();
        for mut record in Record::read_all(&self.dir.base, &self.dir.worker_id) {
            let home = Home::new(&self.dir.base, &record.session_id);
            let owned = self.own_found(&mut record, &home);
            if !record.inject.is_empty() {
                self.put_trust(&home, record.uid);
            }
            let mut session = Session::found(record, home);
            let python =
                self.python_of(&session).map(drop).ok_or_else(|| self.pythons.lack(&session.record.python));
            if let Err(error) = owned.and(python).and_then(|()| session.join_group(&self.confiner)) {
                tracing::warn!(session = session.record.session_id, %error, "session cannot go on");
                session.state = session::State::Failed(error);
            }
            self.sessions.insert(session.record.session_id.clone(), session);
        }
    }
}
