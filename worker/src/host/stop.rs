//! The end of a host: the link says goodbye, then everything beneath is ended, within `limits::stop::HOST_MS`.

use cooper_common::{clock, limits::stop};
use cooper_proto::host::{self as wire, to_link};
use rustix::process::Signal;

use super::{
    Due, Host,
    outcome::Kind,
    tree::{self, Which},
};

const DRAIN_MS: u64 = 1_000;
const STEPS_MS: u64 = 700;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The link was told; what runs, runs.
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
                tracing::info!(signal, "stopping");
                self.stopping = Some(Phase::Draining);
                let now = clock::mono_ms();
                self.timers.add(now + stop::HOST_MS - 300, Due::Stop(Phase::Over));
                if self.link.greeted {
                    self.timers.add(now + DRAIN_MS, Due::Stop(Phase::Ending));
                    self.tell_drain();
                } else {
                    self.enter(Phase::Ending);
                }
            }
            Some(Phase::Draining) => self.enter(Phase::Ending),
            Some(_) => self.enter(Phase::Killing),
        }
    }

    pub(super) fn tell_drain(&mut self) {
        let drain = wire::Drain { reason: "the worker stops".to_owned() };
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
                self.link.end(Signal::TERM);
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
                self.helpers.keys().for_each(|pid| super::helper::end(*pid));
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
            super::trees::Owner::Interpreter(_) => false,
        }
    }

    /// Nothing is left of this host, or its time is over.
    pub(super) fn is_over(&mut self) -> bool {
        match self.stopping {
            None | Some(Phase::Draining) => false,
            Some(Phase::Over) => true,
            Some(Phase::Ending | Phase::Killing) => {
                self.trees.is_empty() && self.link.pid().is_none() && self.helpers.is_empty()
            }
        }
    }
}
