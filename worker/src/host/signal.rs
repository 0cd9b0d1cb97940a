//! Signals that users send to an execution. They reach processes of that execution and nobody else's.

use cooper_common::{
    error::{Code, Error, Result},
    limits::exec::SIGNALS_WAITING_MAX,
};
use cooper_proto::v1;
use rustix::process::Signal;

use super::{
    Host,
    attempt::State,
    outcome::{Kind, Why},
    tree,
};

impl Host {
    pub(super) fn signal_execution(&mut self, wanted: &v1::ExecutionSignal) -> Result<()> {
        let (id, attempt) = self.running(&wanted.task_id, wanted.fence)?;
        let signal = match wanted.signal() {
            v1::Signal::Int => Signal::INT,
            v1::Signal::Term => Signal::TERM,
            v1::Signal::Hup => Signal::HUP,
            v1::Signal::Usr1 => Signal::USR1,
            v1::Signal::Usr2 => Signal::USR2,
            v1::Signal::Kill => Signal::KILL,
            v1::Signal::Unspecified => {
                return Err(Error::invalid("signal is not one that this version knows"));
            }
        };
        if attempt.kind != Kind::Python && attempt.kind != Kind::Shell {
            return Err(Error::new(Code::NotSupported, "only executions are signalled")
                .with_hint("end it with `cooper tasks cancel TASK`"));
        }
        if matches!(attempt.state, State::Waiting) {
            let what = format!("task {} waits for its session's interpreter", wanted.task_id);
            return Err(Error::new(Code::NotRunning, what));
        }
        if signal == Signal::KILL {
            self.interrupt(id, Why::Killed, 0);
            return Ok(());
        }
        if !self.pass_signal(id, signal) {
            // Its process is being started.
            if let Some(attempt) = self.attempts.get_mut(&id)
                && attempt.signals.len() < SIGNALS_WAITING_MAX
            {
                attempt.signals.push(signal);
            }
        }
        Ok(())
    }

    /// False: there is nobody to signal yet.
    fn pass_signal(&self, id: u64, signal: Signal) -> bool {
        let Some(attempt) = self.attempts.get(&id) else { return true };
        let tree = match attempt.state {
            State::Tree(tree) => tree,
            State::Interpreter(interpreter) => {
                let main = self.interpreter_of(interpreter).and_then(|(_, main)| main);
                if let Some(main) = main {
                    tree::signal(main, signal);
                }
                return true;
            }
            State::Waiting | State::Ending(..) | State::Collecting(_) | State::Ended(_) => return true,
        };
        let Some((root, main)) = self.trees.get(&tree).and_then(super::trees::Tree::root_and_main) else {
            return self.trees.get(&tree).is_none_or(super::trees::Tree::has_exited);
        };
        tree::signal_group(root, attempt.foreground().unwrap_or(main), signal);
        true
    }

    /// The process of an attempt has started.
    pub(super) fn signal_started(&mut self, id: u64) {
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        for signal in std::mem::take(&mut attempt.signals) {
            self.pass_signal(id, signal);
        }
    }
}
