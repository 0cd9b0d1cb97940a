//! Ending an attempt that does not end by itself: first a signal it may handle, then the death of every descendant.

use cooper_common::{clock, limits::exec};
use cooper_proto::v1;
use rustix::process::{Pid, Signal};

use super::{
    Due, Host,
    attempt::State,
    outcome::{self, Kind, Why},
    tree::{self, Which},
};

/// A step may have to put things back first.
pub const STEP_GRACE_MS: u64 = 10_000;

impl Host {
    pub(super) fn cancel(&mut self, cancel: &v1::Cancel) {
        let fence = cancel.fence.unwrap_or_default();
        let key = (cancel.task_id.clone(), fence.epoch, fence.attempt);
        if let Some(id) = self.by_key.get(&key).copied() {
            let grace = if cancel.grace_ms == 0 { exec::INTERRUPT_GRACE_MS } else { cancel.grace_ms };
            self.interrupt(id, Why::Cancelled, grace);
        }
    }

    pub(super) fn on_time_out(&mut self, id: u64) {
        if let Some(attempt) = self.attempts.get_mut(&id) {
            attempt.timer = None;
            self.interrupt(id, Why::TimedOut, exec::INTERRUPT_GRACE_MS);
        }
    }

    /// Everything of a session that runs or waits is ended, without grace.
    pub(super) fn end_attempts_of(&mut self, session: &str, why: Why) {
        let of_session = |attempt: &super::Attempt| attempt.session.as_deref() == Some(session);
        let ids: Vec<u64> = self.attempts.iter().filter(|(_, a)| of_session(a)).map(|(id, _)| *id).collect();
        for id in ids {
            self.interrupt(id, why, 0);
        }
    }

    /// First rung. The first reason counts; repeating it changes nothing.
    pub(super) fn interrupt(&mut self, id: u64, why: Why, grace_ms: u64) {
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        if matches!(attempt.state, State::Ending(..) | State::Collecting(_) | State::Ended(_)) {
            return;
        }
        let first = attempt.why.is_none();
        attempt.why.get_or_insert(why);
        if let State::Waiting = attempt.state {
            let session = attempt.session.clone();
            if let Some(session) = session.and_then(|session| self.sessions.get_mut(&session)) {
                session.queue.retain(|waiting| *waiting != id);
            }
            return self.finish(id, outcome::never_started(why));
        }
        if !first && grace_ms > 0 {
            return;
        }
        let grace_ms = match attempt.kind {
            Kind::Step if grace_ms > 0 => grace_ms.max(STEP_GRACE_MS),
            _ => grace_ms,
        };
        if grace_ms == 0 || !self.signal_main(id) {
            return self.kill(id);
        }
        self.rearm(id, grace_ms);
    }

    /// Signals what runs so that it can end by itself. False: there is nothing to signal yet.
    fn signal_main(&self, id: u64) -> bool {
        let Some(attempt) = self.attempts.get(&id) else { return false };
        let main = match attempt.state {
            State::Tree(tree) => self.trees.get(&tree).and_then(|tree| tree.main),
            State::Interpreter(interpreter) => self.interpreter_of(interpreter).and_then(|(_, main)| main),
            State::Waiting | State::Ending(..) | State::Collecting(_) | State::Ended(_) => None,
        };
        if let (Kind::Python, State::Tree(tree)) = (attempt.kind, &attempt.state) {
            return self.trees.get(tree).is_some_and(|tree| tree.signal_main(Signal::INT));
        }
        let Some(main) = main else { return false };
        match attempt.kind {
            // It ends its own children in order.
            Kind::Step => tree::signal(main, Signal::TERM),
            Kind::Python => tree::signal(main, Signal::INT),
            // As Ctrl-C on a terminal does. It leads its own session, so its pid names the group.
            _ => {
                if let Some(group) = Pid::from_raw(main) {
                    let _ = rustix::process::kill_process_group(group, Signal::INT);
                }
            }
        }
        true
    }

    /// Last rung: every descendant. The attempt ends when they are dead.
    pub(super) fn kill(&mut self, id: u64) {
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        attempt.timer = None;
        match attempt.state {
            State::Tree(tree) => self.doom(tree, Which::default(), None),
            State::Interpreter(interpreter) => self.end_interpreter(interpreter),
            State::Waiting | State::Ending(..) | State::Collecting(_) | State::Ended(_) => {}
        }
    }

    fn rearm(&mut self, id: u64, grace_ms: u64) {
        let timer = self.timers.add(clock::mono_ms() + grace_ms, Due::Grace(id));
        if let Some(attempt) = self.attempts.get_mut(&id)
            && let Some(before) = attempt.timer.replace(timer)
        {
            self.timers.cancel(before);
        }
    }
}
