//! The process trees of the host: one for each interpreter, command, install and step, beneath its subreaper.

use cooper_common::clock;
use rustix::process::{Pid, Signal};

use super::{
    Due, Host, Source,
    reaper::{self, Exit, Reaper, Report},
    tree::{self, Which},
};

/// A tree that will not die any other way loses its subreaper after this time; the host adopts and kills the rest.
const STUBBORN_MS: u64 = 1_000;

pub struct Tree {
    pub reaper: Reaper,
    /// The child itself, while it lives.
    pub main: Option<i32>,
    pub session: Option<String>,
    pub owner: Owner,
    doom: Option<Doom>,
    exited: bool,
}

#[derive(Debug, Clone, Copy)]
pub enum Owner {
    Interpreter(u64),
    Attempt(u64),
}

/// What of a tree has to die, until it is dead.
struct Doom {
    which: Which,
    rounds: u32,
    since_ms: u64,
    /// The attempt that ends when it is done.
    then: Option<u64>,
}

impl Doom {
    fn is_whole(&self) -> bool {
        self.which == Which::default()
    }
}

impl Tree {
    /// Its child ended, or was never started.
    pub fn has_exited(&self) -> bool {
        self.exited
    }
}

impl Host {
    /// Takes a started subreaper over.
    pub(super) fn plant(
        &mut self,
        reaper: Reaper,
        session: Option<String>,
        owner: Owner,
    ) -> std::io::Result<u64> {
        let id = self.new_id();
        // When this fails, dropping the reaper's socket ends it.
        self.watch(&reaper.reports, Source::Reports(id))?;
        if let Some(session) = session.as_ref().and_then(|session| self.sessions.get_mut(session)) {
            session.trees.insert(id);
        }
        self.by_reaper.insert(reaper.pid, id);
        let tree = Tree { reaper, main: None, session, owner, doom: None, exited: false };
        self.trees.insert(id, tree);
        Ok(id)
    }

    pub(super) fn on_reports(&mut self, id: u64) {
        while let Some(tree) = self.trees.get_mut(&id) {
            match reaper::next_report(&tree.reaper.reports) {
                Ok(Some(Report::Started { pid })) => tree.main = Some(pid),
                Ok(Some(Report::NotStarted { errno })) => {
                    tree.exited = true;
                    self.main_not_started(id, errno);
                }
                Ok(Some(Report::Exited(exit))) => {
                    tree.main = None;
                    tree.exited = true;
                    self.main_exited(id, exit);
                }
                Ok(None) => return,
                Err(_) => {
                    // It is gone or going; its death comes as a signal.
                    let _ = rustix::event::epoll::delete(&self.epoll, &tree.reaper.reports);
                    return;
                }
            }
        }
    }

    fn main_exited(&mut self, id: u64, exit: Exit) {
        match self.trees.get(&id).map(|tree| tree.owner) {
            Some(Owner::Attempt(attempt)) => self.attempt_exited(attempt, id, exit),
            Some(Owner::Interpreter(interpreter)) => self.interpreter_exited(interpreter, id, Ok(exit)),
            None => {}
        }
    }

    fn main_not_started(&mut self, id: u64, errno: i32) {
        match self.trees.get(&id).map(|tree| tree.owner) {
            Some(Owner::Attempt(attempt)) => self.attempt_not_started(attempt, errno),
            Some(Owner::Interpreter(interpreter)) => {
                let error = std::io::Error::from_raw_os_error(errno);
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
        let reaper = tree.reaper.pid.as_raw_nonzero().get();
        let alive = tree::kill_round(reaper, doom.which);
        if alive == 0 && !doom.is_whole() {
            let then = doom.then;
            tree.doom = None;
            return then.map_or((), |attempt| self.complete(attempt));
        }
        if now - doom.since_ms > STUBBORN_MS {
            tree::signal(reaper, Signal::KILL);
        }
        doom.rounds += 1;
        // 1, 2, 4, … 16 ms.
        let wait = 1 << doom.rounds.min(4);
        self.timers.add(now + wait, Due::KillRound(id));
    }

    pub(super) fn on_reaper_death(&mut self, id: u64, orderly: bool) {
        self.on_reports(id);
        if let Some(tree) = self.trees.get_mut(&id)
            && !tree.exited
        {
            // Killed from inside, or failed before it could say anything: its child went with it.
            tree.exited = true;
            self.main_exited(id, Exit { status: libc::SIGKILL, cpu_ms: 0, peak_memory_bytes: 0 });
        }
        let Some(tree) = self.trees.remove(&id) else { return };
        self.by_reaper.remove(&tree.reaper.pid);
        if !orderly {
            self.kill_strays();
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
        known.extend(self.link.pid());
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
