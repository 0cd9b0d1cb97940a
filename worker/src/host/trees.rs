//! The process trees of the host: one for each interpreter, command, install and step, beneath its subreaper.

use std::os::fd::OwnedFd;

use cooper_common::clock;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{
    Due, Host, Source,
    network::Connects,
    reaper::{self, Exit, Reaper, Report},
    tree::{self, Which},
};
use crate::confine::Part;

/// How far below its session's subreaper a branch may stand.
const BRANCH_DEPTH_MAX: usize = 16;
/// A tree that will not die any other way loses its subreaper after this time; the host adopts and kills the rest.
const STUBBORN_MS: u64 = 1_000;

pub struct Tree {
    reports: OwnedFd,
    /// The subreaper. Of a branch it is not known at first.
    root: Option<i32>,
    /// The child itself, while it lives.
    pub main: Option<i32>,
    /// The subreaper is a process of the session's, not the host's child: what it says is verified, and it is signalled
    /// by descriptor.
    branch: Option<Branch>,
    pub session: Option<String>,
    pub owner: Owner,
    /// How its processes' connects are heard of.
    pub connects: Option<Connects>,
    doom: Option<Doom>,
    exited: bool,
}

#[derive(Debug, Clone, Copy)]
pub enum Owner {
    Interpreter(u64),
    Attempt(u64),
    /// An installer that a `pip` in the session waits for.
    Pip(u64),
}

/// Descriptors of the processes of a branch, which the host may not have to wait for.
#[derive(Default)]
struct Branch {
    root: Option<OwnedFd>,
    main: Option<OwnedFd>,
    main_pid: Option<i32>,
}

/// What of a tree has to die, until it is dead.
struct Doom {
    which: Which,
    rounds: u32,
    since_ms: u64,
    /// The attempt that ends when it is done.
    then: Option<u64>,
}

impl Branch {
    /// Its subreaper is known and has not ended.
    fn lives(&self) -> bool {
        let Some(root) = &self.root else { return false };
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut [PollFd::new(root, PollFlags::IN)], Some(&now)), Ok(0))
    }
}

fn branch_of(tree: &mut Tree) -> Option<(&mut Option<i32>, &mut Branch)> {
    Some((&mut tree.root, tree.branch.as_mut()?))
}

impl Doom {
    fn is_whole(&self) -> bool {
        self.which == Which::default()
    }
}

impl Tree {
    /// Signals the child itself. False: there is none.
    pub fn signal_main(&self, signal: Signal) -> bool {
        match (&self.branch, self.main) {
            (Some(branch), _) => {
                branch.main.as_ref().is_some_and(|main| pidfd_send_signal(main, signal).is_ok())
            }
            (None, Some(main)) => {
                tree::signal(main, signal);
                true
            }
            (None, None) => false,
        }
    }

    /// The subreaper, and the child beneath it.
    pub fn root_and_main(&self) -> Option<(i32, i32)> {
        let main = self.branch.as_ref().map_or(self.main, |branch| branch.main_pid);
        Some((self.root?, main?))
    }

    /// The subreaper, unless it is a process of the session's.
    pub fn own_root(&self) -> Option<i32> {
        self.root.filter(|_| self.branch.is_none())
    }

    /// Its child ended, or was never started.
    pub fn has_exited(&self) -> bool {
        self.exited
    }
}

impl Host {
    /// Takes a started subreaper over.
    pub(super) fn plant(
        &mut self,
        mut reaper: Reaper,
        session: Option<String>,
        owner: Owner,
    ) -> std::io::Result<u64> {
        let id = self.new_id();
        // When this fails, dropping the reaper's socket ends it.
        self.by_reaper.insert(reaper.pid, id);
        let root = Some(reaper.pid.as_raw_nonzero().get());
        self.plant_at(id, reaper.reports, root, None, session, owner)?;
        if let (Some(socket), Some(tree)) = (reaper.connects.take(), self.trees.get_mut(&id)) {
            let flags = rustix::event::epoll::EventFlags::IN;
            rustix::event::epoll::add(&self.epoll, &socket, Source::Connects(id).pack(), flags)?;
            tree.connects = Some(Connects::Awaited(socket));
        }
        Ok(id)
    }

    /// Takes over what will be beneath a subreaper that an interpreter forks.
    pub(super) fn plant_branch(
        &mut self,
        reports: OwnedFd,
        session: String,
        owner: Owner,
    ) -> std::io::Result<u64> {
        let id = self.new_id();
        self.plant_at(id, reports, None, Some(Branch::default()), Some(session), owner)?;
        Ok(id)
    }

    fn plant_at(
        &mut self,
        id: u64,
        reports: OwnedFd,
        root: Option<i32>,
        branch: Option<Branch>,
        session: Option<String>,
        owner: Owner,
    ) -> std::io::Result<()> {
        self.watch(&reports, Source::Reports(id))?;
        if let Some(session) = session.as_ref().and_then(|session| self.sessions.get_mut(session)) {
            session.trees.insert(id);
        }
        let tree = Tree {
            reports,
            root,
            main: None,
            branch,
            session,
            owner,
            connects: None,
            doom: None,
            exited: false,
        };
        self.trees.insert(id, tree);
        Ok(())
    }

    /// A process of the session's says that it is a subreaper, or the child of one. It is believed when it stands where
    /// that would stand: a session can only ever name its own.
    fn verified(&self, id: u64, pid: i32) -> Option<OwnedFd> {
        let tree = self.trees.get(&id)?;
        let fd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        let session = tree.session.as_ref().and_then(|session| self.sessions.get(session))?;
        let roots = session.trees.iter().filter_map(|tree| self.trees.get(tree));
        let roots: Vec<i32> =
            roots.filter(|tree| tree.branch.is_none()).filter_map(|tree| tree.root).collect();
        let within = tree::ancestors(pid).take(BRANCH_DEPTH_MAX).any(|ancestor| roots.contains(&ancestor));
        // Opened first: it still is the process that was looked at.
        (within && tree::is_alive(pid)).then_some(fd)
    }

    pub(super) fn on_reports(&mut self, id: u64) {
        while let Some(tree) = self.trees.get_mut(&id) {
            match reaper::next_report(&tree.reports) {
                Ok(Some(Report::Adopts { pid })) => {
                    let fd = self.verified(id, pid);
                    if let Some((tree, branch)) = self.trees.get_mut(&id).and_then(branch_of)
                        && branch.root.is_none()
                        && fd.is_some()
                    {
                        (*tree, branch.root) = (Some(pid), fd);
                    }
                }
                Ok(Some(Report::Started { pid })) if tree.branch.is_some() => {
                    let fd = self.verified(id, pid);
                    if let Some((_, branch)) = self.trees.get_mut(&id).and_then(branch_of) {
                        branch.main_pid = fd.as_ref().map(|_| pid);
                        branch.main = fd;
                    }
                    self.main_started(id);
                }
                Ok(Some(Report::Started { pid })) => {
                    tree.main = Some(pid);
                    self.main_started(id);
                }
                Ok(Some(Report::NotStarted { errno, part })) => {
                    tree.exited = true;
                    self.main_not_started(id, errno, part);
                }
                Ok(Some(Report::Exited(exit))) => {
                    tree.main = None;
                    tree.exited = true;
                    self.main_exited(id, exit);
                }
                Ok(None) => return,
                Err(_) => {
                    let _ = rustix::event::epoll::delete(&self.epoll, &tree.reports);
                    // It is gone or going; the death of the host's own child comes as a signal.
                    if tree.branch.is_some() {
                        self.tree_is_gone(id);
                    }
                    return;
                }
            }
        }
    }

    fn main_started(&mut self, id: u64) {
        if let Some(Owner::Attempt(attempt)) = self.trees.get(&id).map(|tree| tree.owner) {
            self.signal_started(attempt);
        }
    }

    fn main_exited(&mut self, id: u64, exit: Exit) {
        match self.trees.get(&id).map(|tree| tree.owner) {
            Some(Owner::Attempt(attempt)) => self.attempt_exited(attempt, id, exit),
            Some(Owner::Pip(pip)) => self.pip_exited(pip, id, exit),
            Some(Owner::Interpreter(interpreter)) => self.interpreter_exited(interpreter, id, Ok(exit)),
            None => {}
        }
    }

    fn main_not_started(&mut self, id: u64, errno: i32, part: u8) {
        let part = Part::ALL.get(usize::from(part)).copied().unwrap_or(Part::Program);
        match self.trees.get(&id).map(|tree| tree.owner) {
            Some(Owner::Attempt(attempt)) => self.attempt_not_started(attempt, errno, part),
            Some(Owner::Pip(pip)) => self.pip_not_started(pip, errno, part),
            Some(Owner::Interpreter(interpreter)) => {
                let error = std::io::Error::from_raw_os_error(errno);
                let error = std::io::Error::other(format!("{}: {error}", part.as_str()));
                self.interpreter_exited(interpreter, id, Err(error));
            }
            None => {}
        }
    }

    /// Kills what `which` means beneath a tree, until none is left; then ends the attempt `then`. The whole of a tree
    /// is dead when its subreaper, having nothing left to wait for, is gone too.
    pub(super) fn doom(&mut self, id: u64, which: Which, then: Option<u64>) {
        let Some(tree) = self.trees.get_mut(&id) else {
            return then.map_or((), |attempt| self.complete(attempt));
        };
        let before = tree.doom.take();
        let then = then.or(before.as_ref().and_then(|doom| doom.then));
        let which = if before.is_some_and(|doom| doom.is_whole()) { Which::default() } else { which };
        tree.doom = Some(Doom { which, rounds: 0, since_ms: clock::mono_ms(), then });
        self.kill_round(id);
    }

    pub(super) fn kill_round(&mut self, id: u64) {
        let Some(tree) = self.trees.get_mut(&id) else { return };
        let Some(doom) = &mut tree.doom else { return };
        let now = clock::mono_ms();
        if tree.branch.is_some() && now - doom.since_ms > 2 * STUBBORN_MS {
            // It never said who it is, or pretends to live: the session plays, and loses its interpreter for it.
            let session = tree.session.clone();
            self.tree_is_gone(id);
            return session.map_or((), |session| self.end_interpreter_of(&session));
        }
        let root = tree.root.filter(|_| tree.branch.as_ref().is_none_or(Branch::lives));
        let alive = root.map_or(1, |root| tree::kill_round(root, doom.which));
        if alive == 0 && !doom.is_whole() {
            let then = doom.then;
            tree.doom = None;
            return then.map_or((), |attempt| self.complete(attempt));
        }
        if now - doom.since_ms > STUBBORN_MS {
            match &tree.branch {
                None => root.map_or((), |root| tree::signal(root, Signal::KILL)),
                Some(branch) => {
                    branch.root.as_ref().map(|root| pidfd_send_signal(root, Signal::KILL));
                }
            }
        }
        doom.rounds += 1;
        // 1, 2, 4, … 16 ms.
        let wait = 1 << doom.rounds.min(4);
        self.timers.add(now + wait, Due::KillRound(id));
    }

    pub(super) fn on_reaper_death(&mut self, id: u64, orderly: bool) {
        self.on_reports(id);
        if let Some(root) = self.trees.get(&id).and_then(|tree| tree.root).and_then(Pid::from_raw) {
            self.by_reaper.remove(&root);
        }
        if !orderly {
            self.kill_strays();
        }
        self.tree_is_gone(id);
    }

    fn tree_is_gone(&mut self, id: u64) {
        if let Some(tree) = self.trees.get_mut(&id)
            && !tree.exited
        {
            // Killed from inside, or failed before it could say anything: its child went with it.
            tree.exited = true;
            self.main_exited(id, Exit { status: libc::SIGKILL, cpu_ms: 0, peak_memory_bytes: 0 });
        }
        let Some(tree) = self.trees.remove(&id) else { return };
        if tree.connects.is_some() {
            self.forget_connects(id);
        }
        if let Some(attempt) = tree.doom.and_then(|doom| doom.then) {
            self.complete(attempt);
        }
        if let Some(session_id) = tree.session {
            if let Some(session) = self.sessions.get_mut(&session_id) {
                session.trees.remove(&id);
            }
            self.advance(&session_id);
        }
    }

    /// Kills what the host adopted because its subreaper was killed.
    pub(super) fn kill_strays(&mut self) {
        if self.pool.is_forking() {
            // What it forks is this host's child before it is known.
            self.timers.add(clock::mono_ms() + 2, Due::Strays);
            return;
        }
        let me = std::process::id() as i32;
        let mut known: Vec<Pid> = self.by_reaper.keys().chain(self.helpers.keys()).copied().collect();
        known.extend(self.pool.pids().chain(self.ending.iter().copied()));
        known.extend(self.link.pid().into_iter().chain(self.egress.pid()));
        let known: Vec<i32> = known.into_iter().map(|pid| pid.as_raw_nonzero().get()).collect();
        let mut strays = 0;
        for child in tree::living_children(me) {
            if !known.contains(&child) {
                strays += 1 + tree::kill_round(child, Which::default());
                tree::signal(child, Signal::KILL);
            }
        }
        if strays > 0 {
            self.timers.add(clock::mono_ms() + 5, Due::Strays);
        }
    }
}
