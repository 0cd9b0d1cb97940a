//! How an attempt that ended is told: the state and outcome that follow from what happened to it.

use cooper_common::{
    error::{Code, Error},
    limits::link::MESSAGE_BYTES_MAX,
};
use cooper_proto::v1::{self, TaskState};

use super::{reaper::Exit, to_wire, watchdog::Over};
use crate::confine::Part;

/// Why Cooper ended an attempt that did not end by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    TimedOut,
    Cancelled,
    /// Its session is being destroyed, or the worker stops.
    SessionEnded,
    /// No coordinator was reached for so long that it may have been started elsewhere.
    Unreached,
    /// A user sent it SIGKILL.
    Killed,
    /// Its session used too much.
    Over(Over),
}

/// What ran. Decides what an exit code means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Python,
    Shell,
    Install,
    Step,
    Noop,
    /// Of a newer coordinator.
    Unknown,
}

/// An outcome before lengths and times are filled in.
pub type End = (TaskState, v1::Outcome);

/// The interpreter answered.
pub fn answered(outcome: v1::Outcome, why: Option<Why>, timeout_ms: u64) -> End {
    let well = outcome.exit_code == 0 && outcome.exception.is_none();
    ended(outcome, well, why, timeout_ms)
}

/// A command, install or step ended.
pub fn exited(kind: Kind, exit: Exit, why: Option<Why>, timeout_ms: u64) -> End {
    let mut outcome = of_exit(exit);
    if kind == Kind::Python && why.is_none() {
        outcome.error = Some(to_wire(&died(exit)));
    }
    if kind == Kind::Install && exit.code() != 0 && why.is_none() {
        let what = format!("the installer ended with status {}", exit.code());
        outcome.error = Some(to_wire(&Error::new(Code::InstallFailed, what)));
    }
    // The fork of a fresh execution answers before it ends well.
    ended(outcome, exit.code() == 0 && kind != Kind::Python, why, timeout_ms)
}

fn died(exit: Exit) -> Error {
    let how = match exit.signal() {
        Some(signal) => format!("was killed by signal {signal}"),
        None => format!("exited with status {}", exit.code()),
    };
    Error::new(Code::InterpreterDied, format!("the interpreter {how} during the execution"))
}

/// The interpreter ended during an execution.
pub fn interpreter_died(exit: Exit, why: Option<Why>, timeout_ms: u64) -> End {
    let mut outcome = of_exit(exit);
    outcome.interpreter_restarted = true;
    if why.is_none() {
        outcome.error = Some(to_wire(&died(exit)));
    }
    ended(outcome, false, why, timeout_ms)
}

/// A command that could not be executed, with the exit code a shell would give.
pub fn not_executed(program: &str, errno: i32, part: Part) -> End {
    if part != Part::Program {
        let why = std::io::Error::from_raw_os_error(errno);
        let what = format!("{program:?} was not started: {}: {why}", part.as_str());
        return failed(&Error::new(Code::SpawnFailed, what));
    }
    let exit_code = if errno == libc::ENOENT { 127 } else { 126 };
    let why = match errno {
        libc::ENOENT => "not found".to_owned(),
        errno => std::io::Error::from_raw_os_error(errno).to_string(),
    };
    let error = Error::new(Code::SpawnFailed, format!("{program:?}: {why}"));
    let (state, outcome) = failed(&error);
    (state, v1::Outcome { exit_code, ..outcome })
}

/// It did not run at all: not the code's status, but Cooper's own.
pub fn failed(error: &Error) -> End {
    (TaskState::Failed, v1::Outcome { exit_code: 125, error: Some(to_wire(error)), ..v1::Outcome::default() })
}

/// It was ended while it waited.
pub fn never_started(why: Why) -> End {
    ended(v1::Outcome { exit_code: 130, ..v1::Outcome::default() }, false, Some(why), 0)
}

fn of_exit(exit: Exit) -> v1::Outcome {
    v1::Outcome {
        exit_code: exit.code(),
        usage: Some(v1::Usage {
            cpu_ms: exit.cpu_ms,
            peak_memory_bytes: exit.peak_memory_bytes,
            ..v1::Usage::default()
        }),
        ..v1::Outcome::default()
    }
}

fn ended(mut outcome: v1::Outcome, well: bool, why: Option<Why>, timeout_ms: u64) -> End {
    let (state, error) = match why {
        None if well => (TaskState::Succeeded, None),
        None => (TaskState::Failed, None),
        Some(Why::TimedOut) => (
            TaskState::TimedOut,
            Some(Error::new(Code::TimedOut, format!("it ran longer than its limit of {timeout_ms} ms"))),
        ),
        Some(Why::Over(over)) => {
            outcome.oom = matches!(over, Over::Memory(_));
            (TaskState::Failed, Some(over.error()))
        }
        Some(Why::Cancelled) => (TaskState::Cancelled, Some(Error::new(Code::Cancelled, "it was cancelled"))),
        Some(Why::Killed) => {
            (TaskState::Failed, Some(Error::new(Code::Killed, "it was killed by a signal of a user")))
        }
        Some(Why::Unreached) => (
            TaskState::Lost,
            Some(Error::new(Code::WorkerLost, "its worker was cut off for too long and ended it")),
        ),
        Some(Why::SessionEnded) => {
            (TaskState::Cancelled, Some(Error::new(Code::SessionEnded, "its session ended while it ran")))
        }
    };
    if let Some(error) = error {
        outcome.error = Some(to_wire(&error));
    }
    (state, outcome)
}

/// Adds what a step reported. A step that ended well without a report did not end well.
pub fn with_report((state, outcome): &mut End, report: Option<std::fs::File>) {
    use std::os::unix::fs::FileExt;
    let mut json = Vec::new();
    if let Some(file) = report {
        let size = file.metadata().map_or(0, |meta| meta.len()).min(MESSAGE_BYTES_MAX as u64 / 2);
        json.resize(size as usize, 0);
        if file.read_exact_at(&mut json, 0).is_err() {
            json.clear();
        }
    }
    if json.is_empty() && *state == TaskState::Succeeded {
        *state = TaskState::Failed;
        outcome.error = Some(to_wire(&Error::new(Code::StepFailed, "the step ended without a report")));
    }
    outcome.step_json = json;
}
