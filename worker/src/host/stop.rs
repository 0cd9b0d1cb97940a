//! The end of a host. First it drains: no new work, what runs may end within `drain_ms`, the link delivers the results
//! and says goodbye. Then everything beneath is ended. A second signal does not wait.

use cooper_common::{clock, limits::stop};
use cooper_proto::host::{self as wire, to_link};
use rustix::process::Signal;

use super::{
    Due, Host,
    outcome::Kind,
    tree::{self, Which},
};

/// For the link to say goodbye, after what runs had its time.
const GOODBYE_MS: u64 = 600;
const STEPS_MS: u64 = 700;
/// From the end of the drain to nothing left.
const ENDING_MS: u64 = stop::HOST_MS - stop::UP_DRAIN_MS - GOODBYE_MS - 200;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The link was told; what runs may end.
    Draining,
    /// Sessions are being killed, steps were asked to end.
    Ending,
    /// Steps are being killed too.
    Killing,
    /// Out of time.
    Over,
}

impl Host {
    /// SIGTERM or SIGINT: the first drains, the second does not wait for the link.
    pub(super) fn stop(&mut self, signal: i32) {
        match self.stopping {
            None => {
                let running = self.attempts.values().filter(|attempt| !attempt.has_ended()).count();
                let drain_ms = self.config.drain_ms;
                tracing::info!(
                    signal,
                    running,
                    drain_ms,
                    "stopping; a second signal does not wait for what runs"
                );
                self.stopping = Some(Phase::Draining);
                self.drain_until_ms = clock::mono_ms() + drain_ms;
                self.timers.add(self.drain_until_ms + GOODBYE_MS, Due::Stop(Phase::Ending));
                if self.link.greeted {
                    self.tell_drain();
                } else if self.attempts.is_empty() && !self.config.drain_checkpoint {
                    // Nobody to tell, and nothing to tell of.
                    self.enter(Phase::Ending);
                }
            }
            Some(Phase::Draining) => self.enter(Phase::Ending),
            Some(_) => self.enter(Phase::Killing),
        }
    }

    pub(super) fn tell_drain(&mut self) {
        // 0 would mean that what runs is not waited for, which is all that version 1 knows.
        let left_ms = self.drain_until_ms.saturating_sub(clock::mono_ms()).max(1);
        let deadline_in_ms = if self.link.version >= 2 { left_ms } else { 0 };
        let drain = wire::Drain {
            reason: "the worker stops".to_owned(),
            deadline_in_ms,
            checkpoint: self.config.drain_checkpoint,
        };
        self.link.tell(to_link::Message::Drain(drain), Vec::new());
    }

    pub(super) fn on_drained(&mut self) {
        if self.stopping.is_some() {
            self.enter(Phase::Ending);
        }
    }

    pub(super) fn on_stop_due(&mut self, phase: Phase) {
        self.enter(phase);
    }

    fn enter(&mut self, phase: Phase) {
        if self.stopping >= Some(phase) {
            return;
        }
        self.stopping = Some(phase);
        let trees: Vec<(u64, bool, Option<i32>)> =
            self.trees.iter().map(|(id, tree)| (*id, self.is_step(tree), tree.main)).collect();
        match phase {
            Phase::Draining => {}
            Phase::Ending => {
                self.timers.add(clock::mono_ms() + ENDING_MS, Due::Stop(Phase::Over));
                self.link.end(Signal::TERM);
                self.egress.end();
                self.observer.end();
                self.end_zygotes();
                for (id, is_step, main) in trees {
                    match main {
                        Some(pid) if is_step => tree::signal(pid, Signal::TERM),
                        _ => self.doom(id, Which::default(), None),
                    }
                }
                self.timers.add(clock::mono_ms() + STEPS_MS, Due::Stop(Phase::Killing));
            }
            Phase::Killing => {
                self.link.end(Signal::KILL);
                for (id, ..) in trees {
                    self.doom(id, Which::default(), None);
                }
                // What removes files is let come to its end: left half done, it would be in the way of nobody but for ever.
                let others = self.helpers.iter().filter(|(_, task)| !task.removes());
                others.for_each(|(pid, _)| super::helper::end(*pid));
            }
            Phase::Over => {
                let me = std::process::id() as i32;
                tree::kill_round(me, Which::default());
                tracing::warn!("not everything ended in time; it was killed");
            }
        }
    }

    fn is_step(&self, tree: &super::Tree) -> bool {
        match tree.owner {
            super::trees::Owner::Attempt(id) => self.attempts.get(&id).is_some_and(|a| a.kind == Kind::Step),
            super::trees::Owner::Interpreter(_) | super::trees::Owner::Pip(_) => false,
        }
    }

    /// Nothing is left of this host, or its time is over.
    pub(super) fn is_over(&mut self) -> bool {
        match self.stopping {
            None | Some(Phase::Draining) => false,
            Some(Phase::Over) => true,
            Some(Phase::Ending | Phase::Killing) => {
                self.trees.is_empty()
                    && self.link.pid().is_none()
                    && self.egress.pid().is_none()
                    && self.observer.pid().is_none()
                    && self.helpers.is_empty()
                    && self.ending.is_empty()
                    && self.pool.pids().next().is_none()
            }
        }
    }
}
