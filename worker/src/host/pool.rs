//! When zygotes fork: the pool of berths that are there before they are wanted, and what happens when it is empty.

use std::path::Path;

use cooper_common::{
    clock,
    limits::zygote::{OTHERS_HIGH, OTHERS_LOW, QUIET_MS, REFILL_MS},
};

use super::{
    Due, Host, Source,
    berth::Berth,
    home::Record,
    python::{LAYER_FILE, PIP_FILE},
    session::Doing,
    zygote::{Forked, Heard, Tier, Zygote},
};

/// Variables that Python, its C library or a numeric library read once, at start.
const READ_AT_START: &[&str] =
    &["PYTHON", "LD_", "LC_", "GLIBC_", "MALLOC_", "OPENBLAS_", "OMP_", "MKL_", "NUMEXPR_"];

/// After a berth could not be made.
const REST_MS: u64 = 5_000;

/// How many berths wait for sessions.
#[derive(Debug, Clone, Copy)]
pub struct Water {
    /// Below it the pool is filled at once, above it only while no session is being made.
    pub low: usize,
    pub high: usize,
}

impl Water {
    /// For the zygote of the worker's n-th Python. Most sessions run on the first.
    fn of(self, n: usize) -> Self {
        match n {
            0 => self,
            _ => Self { low: self.low.min(OTHERS_LOW), high: self.high.min(OTHERS_HIGH) },
        }
    }
}

pub struct Pool {
    zygotes: Vec<Zygote>,
    water: Water,
    refill_due: bool,
    /// When a session last asked for an interpreter.
    asked_ms: u64,
    /// A berth could not be made: until then none is tried.
    resting_until_ms: u64,
}

impl Pool {
    pub fn new(config: &crate::config::Config) -> Self {
        let high = config.pool_high as usize;
        Self {
            zygotes: Vec::new(),
            water: Water { low: (config.pool_low as usize).min(high), high },
            refill_due: false,
            asked_ms: 0,
            resting_until_ms: 0,
        }
    }

    /// Its processes, without those that serve a session.
    pub fn pids(&self) -> impl Iterator<Item = rustix::process::Pid> {
        let waiting = self.zygotes.iter().flat_map(|zygote| zygote.pool.iter().map(Berth::pid));
        self.zygotes.iter().filter_map(Zygote::pid).chain(waiting)
    }

    /// Whether a berth has this uid.
    pub fn has_uid(&self, uid: u32) -> bool {
        self.zygotes.iter().any(|zygote| zygote.pool.iter().any(|berth| berth.uid() == Some(uid)))
    }

    /// A zygote was asked for children that the host does not know yet.
    pub fn is_forking(&self) -> bool {
        self.zygotes.iter().any(|zygote| zygote.asked() > 0)
    }
}

impl Host {
    pub(super) fn start_zygotes(&mut self) {
        let Some(tier) = self.config.preload.as_deref().and_then(Tier::named) else { return };
        for python in self.pythons.iter() {
            let layer = self.layer_of(python).map(Path::to_owned);
            self.pool.zygotes.push(Zygote::new(python.clone(), tier, layer));
        }
        // The others when a session wants them.
        self.want_zygote(0);
    }

    fn want_zygote(&mut self, n: usize) {
        if let Some(zygote) = self.pool.zygotes.get_mut(n).filter(|zygote| !zygote.wanted) {
            zygote.wanted = true;
            self.start_zygote(n);
        }
    }

    pub(super) fn start_zygote(&mut self, n: usize) {
        if self.stopping.is_some() {
            return;
        }
        let Some(zygote) = self.pool.zygotes.get_mut(n).filter(|zygote| zygote.pid().is_none()) else {
            return;
        };
        let now = clock::mono_ms();
        let started = match zygote.start(&self.dir.path, now) {
            Ok(socket) => rustix::event::epoll::add(
                &self.epoll,
                socket,
                Source::Zygote(n as u64).pack(),
                rustix::event::epoll::EventFlags::IN,
            )
            .map_err(std::io::Error::from),
            Err(error) => Err(error),
        };
        if let Err(error) = started {
            tracing::warn!(%error, "no zygote: interpreters are started one by one");
            zygote.end();
            let wait = zygote.died(now);
            self.timers.add(now + wait, Due::StartZygote(n));
        }
    }

    /// A place for a new session that waits for it with all it needs.
    pub(super) fn take_berth(&mut self, record: &Record) -> Option<Berth> {
        // Files that are still to come may be packages that its interpreter finds when it starts.
        let n = (!record.restoring).then(|| self.zygote_for(record)).flatten()?;
        self.want_zygote(n);
        self.pool.asked_ms = clock::mono_ms();
        self.refill_soon();
        self.pool.zygotes[n].pool.pop_front()
    }

    /// Has an interpreter forked for a session that has a home. False: it has to be started.
    pub(super) fn take_from_zygote(&mut self, id: &str) -> bool {
        let Some(session) = self.sessions.get(id) else { return false };
        let Some(n) = self.zygote_for(&session.record) else { return false };
        let zygote = &self.pool.zygotes[n];
        // Packages of the session's own may be others than those imported already.
        let site = zygote.python.site_packages(&session.home.venv());
        if zygote.tier == Tier::Science && !is_as_made(&site) {
            return false;
        }
        let now = clock::mono_ms();
        self.pool.asked_ms = now;
        let zygote = &mut self.pool.zygotes[n];
        if zygote.can_fork() && zygote.ask(now).is_ok() {
            zygote.waiting.push_back(id.to_owned());
            self.refill_soon();
            return true;
        }
        false
    }

    fn zygote_for(&self, record: &Record) -> Option<usize> {
        let own = |name: &String| {
            name != "PYTHONUNBUFFERED" && READ_AT_START.iter().any(|prefix| name.starts_with(prefix))
        };
        let version = self.pythons.like(&record.python)?.version;
        let n = self.pool.zygotes.iter().position(|zygote| zygote.python.version == version);
        n.filter(|_| !record.env.keys().any(own))
    }

    pub(super) fn on_zygote(&mut self, n: usize) {
        while let Some(zygote) = self.pool.zygotes.get_mut(n) {
            match zygote.hear(&mut self.control_buffer) {
                Heard::Ready => {
                    tracing::debug!(tier = zygote.tier.name(), "zygote ready");
                    self.refill_soon();
                }
                Heard::Forked(forked) => self.on_forked(n, forked),
                Heard::Failed => {
                    tracing::warn!("a zygote cannot fork");
                    if let Some(session) = zygote.waiting.pop_front() {
                        self.start_plain(&session);
                    }
                }
                Heard::Nothing => return,
                Heard::Gone(why) => {
                    if !zygote.is_ending() {
                        tracing::warn!(tier = zygote.tier.name(), why, "a zygote is replaced");
                    }
                    if let Some(socket) = zygote.socket() {
                        let _ = rustix::event::epoll::delete(&self.epoll, socket);
                    }
                    return zygote.end();
                }
            }
        }
    }

    fn on_forked(&mut self, n: usize, forked: Forked) {
        let mut forked = Some(forked);
        while let Some(zygote) = self.pool.zygotes.get_mut(n) {
            let Some(session) = zygote.waiting.pop_front() else {
                let python = zygote.python.clone();
                return match forked.take().map(|forked| self.berth(&python, forked)) {
                    Some(Ok(berth)) => self.pool.zygotes[n].pool.push_back(berth),
                    Some(Err(error)) => {
                        tracing::warn!(%error, "no place for a session could be made in advance");
                        self.pool.resting_until_ms = clock::mono_ms() + REST_MS;
                    }
                    None => {}
                };
            };
            let wants = self.sessions.get(&session).is_some_and(|session| session.waits_for_fork());
            if let Some(interpreter) = forked.take_if(|_| wants) {
                if !self.claim(&session, interpreter) {
                    self.start_plain(&session);
                }
                return;
            }
        }
    }

    pub(super) fn on_zygote_death(&mut self, pid: rustix::process::Pid) -> bool {
        let pools = self.pool.zygotes.iter_mut().map(|zygote| &mut zygote.pool);
        let dead: Vec<Berth> = pools
            .filter_map(|pool| pool.iter().position(|berth| berth.pid() == pid).and_then(|n| pool.remove(n)))
            .collect();
        if !dead.is_empty() {
            self.give_up(dead);
            self.refill_soon();
        }
        let Some(n) = self.pool.zygotes.iter().position(|zygote| zygote.pid() == Some(pid)) else {
            return false;
        };
        let now = clock::mono_ms();
        let zygote = &mut self.pool.zygotes[n];
        let wait = zygote.died(now);
        let waiting = std::mem::take(&mut zygote.waiting);
        self.timers.add(now + wait, Due::StartZygote(n));
        for session in waiting {
            self.start_plain(&session);
        }
        true
    }

    pub(super) fn refill_soon(&mut self) {
        if !self.pool.refill_due {
            self.pool.refill_due = true;
            self.timers.add(clock::mono_ms() + REFILL_MS, Due::Refill);
        }
    }

    /// One more interpreter for each pool that is not full; a zygote that hangs or has served is replaced.
    pub(super) fn refill(&mut self) {
        self.pool.refill_due = false;
        if self.stopping.is_some() {
            return;
        }
        let now = clock::mono_ms();
        if now < self.pool.resting_until_ms {
            self.pool.refill_due = true;
            self.timers.add(self.pool.resting_until_ms, Due::Refill);
            return;
        }
        let making = now - self.pool.asked_ms < QUIET_MS
            || self.interpreters.values().any(|interpreter| interpreter.state == Doing::Starting);
        let mut again = false;
        for (n, zygote) in self.pool.zygotes.iter_mut().enumerate() {
            if zygote.hangs(now) || zygote.has_served() {
                zygote.end();
            }
            let water = self.pool.water.of(n);
            let room = water.high.saturating_sub(zygote.pool.len());
            if !zygote.can_fork() || (room == 0 && zygote.asked() == 0) {
                continue;
            }
            again = true;
            let urgent = zygote.pool.len() < water.low;
            if room > 0 && zygote.asked() == 0 && (urgent || !making) {
                let _ = zygote.ask(now);
            }
        }
        if again {
            self.refill_soon();
        }
    }

    pub(super) fn end_zygotes(&mut self) {
        let mut berths = Vec::new();
        for zygote in &mut self.pool.zygotes {
            zygote.end();
            berths.extend(zygote.pool.drain(..));
        }
        self.give_up(berths);
    }
}

/// Whether nothing was installed in a venv.
fn is_as_made(site: &Path) -> bool {
    let mut entries = std::fs::read_dir(site).into_iter().flatten().flatten();
    entries.all(|entry| [LAYER_FILE, PIP_FILE, "__pycache__"].iter().any(|name| entry.file_name() == *name))
}
