//! Standard input of executions that run: a pipe or a terminal that calls of the link write to.
//!
//! The kernel's buffer is the buffer. At most one write waits here for room in it, and its caller with it: whoever writes
//! faster than the execution reads has to wait, and the event loop never does.

use std::{io, os::fd::OwnedFd};

use cooper_common::{
    clock,
    error::{Code, Error, Result},
    limits::exec::{STDIN_WAIT_MS, STDIN_WRITE_BYTES_MAX},
};
use cooper_proto::{
    host::to_link,
    v1::{self, call::Op, call_result::Result as Reply},
};
use rustix::{event::epoll, io::Errno};

use super::{
    Due, Host, Source,
    attempt::{Attempt, State},
    timers::Timer,
    to_wire,
};

/// Ctrl-D: what ends the input of a terminal.
const END_OF_FILE: u8 = 4;

/// The host's end of an execution's standard input.
pub struct Stdin {
    /// Non-blocking; None once it has ended.
    fd: Option<OwnedFd>,
    terminal: bool,
    /// Bytes the kernel has taken.
    given: u64,
    waiting: Option<Waiting>,
}

/// A write that did not fit.
struct Waiting {
    call_id: u64,
    rest: Vec<u8>,
    eof: bool,
    timer: Timer,
}

/// What became of writing.
enum Wrote {
    All,
    Some,
    /// Nobody reads any more.
    Closed,
}

impl Stdin {
    /// A pipe: what the host writes to, and what the execution reads from.
    pub fn pipe() -> io::Result<(Self, OwnedFd)> {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&write, true)?;
        Ok((Self { fd: Some(write), terminal: false, given: 0, waiting: None }, read))
    }

    /// The side of a terminal that its user has, which does not block.
    pub fn terminal(user: OwnedFd) -> Self {
        Self { fd: Some(user), terminal: true, given: 0, waiting: None }
    }

    /// Writes as much of `rest` as fits.
    fn push(&mut self, rest: &mut Vec<u8>) -> Wrote {
        let mut done = 0;
        let wrote = loop {
            let Some(fd) = &self.fd else { break Wrote::Closed };
            if done == rest.len() {
                break Wrote::All;
            }
            match rustix::io::write(fd, &rest[done..]) {
                Ok(0) | Err(Errno::AGAIN) => break Wrote::Some,
                Ok(written) => done += written,
                Err(Errno::INTR) => {}
                Err(_) => break Wrote::Closed,
            }
        };
        rest.drain(..done);
        self.given += done as u64;
        wrote
    }
}

fn written(given: u64) -> Reply {
    Reply::StdinWritten(v1::WriteStdinResponse { offset_bytes: given, ..v1::WriteStdinResponse::default() })
}

impl Host {
    /// A call to an execution that runs.
    pub(super) fn execution_call(&mut self, call: v1::Call) {
        let call_id = call.call_id;
        let done = match call.op {
            Some(Op::WriteStdin(write)) => self.write_stdin(call_id, write),
            Some(Op::Signal(signal)) => self
                .signal_execution(&signal)
                .map(|()| Some(Reply::Signalled(v1::SignalExecutionResponse {}))),
            Some(Op::Resize(resize)) => {
                self.resize_terminal(&resize).map(|()| Some(Reply::Resized(v1::ResizeTerminalResponse {})))
            }
            _ => Err(Error::new(Code::NotSupported, "this worker does not know that call")),
        };
        match done {
            Ok(None) => {}
            Ok(Some(reply)) => self.answer_execution_call(call_id, reply),
            Err(error) => self.answer_execution_call(call_id, Reply::Error(to_wire(&error))),
        }
    }

    fn answer_execution_call(&mut self, call_id: u64, reply: Reply) {
        let answer = v1::CallResult { call_id, result: Some(reply) };
        self.link.tell(to_link::Message::ExecutionAnswer(answer), Vec::new());
    }

    /// The attempt that a call names, if it has not ended.
    pub(super) fn running(&mut self, task: &str, fence: Option<v1::Fence>) -> Result<(u64, &mut Attempt)> {
        let fence = fence.unwrap_or_default();
        let gone = || Error::new(Code::NotRunning, format!("task {task} does not run here"));
        let key = (task.to_owned(), fence.epoch, fence.attempt);
        let id = *self.by_key.get(&key).ok_or_else(gone)?;
        let attempt = self.attempts.get_mut(&id).ok_or_else(gone)?;
        match attempt.state {
            State::Ending(..) | State::Collecting(_) | State::Ended(_) => Err(gone()),
            State::Waiting | State::Tree(_) | State::Interpreter(_) => Ok((id, attempt)),
        }
    }

    /// None: the answer comes when there is room.
    fn write_stdin(&mut self, call_id: u64, write: v1::StdinWrite) -> Result<Option<Reply>> {
        let (id, attempt) = self.running(&write.task_id, write.fence)?;
        let closed = |what: &str| Error::new(Code::StdinNotOpen, format!("standard input {what}"));
        let stdin = attempt.stdin.as_mut().ok_or_else(|| closed("was not opened for this execution"))?;
        if write.data.len() > STDIN_WRITE_BYTES_MAX {
            return Err(Error::new(
                Code::TooLarge,
                format!("a write has at most {STDIN_WRITE_BYTES_MAX} bytes"),
            ));
        }
        if stdin.waiting.is_some() && write.offset_bytes.is_none() {
            return Err(Error::new(Code::StdinBusy, "another write waits for the execution to read"));
        }
        let (mut rest, mut eof) = (write.data, write.eof);
        if let Some(offset) = write.offset_bytes {
            // Given already: the write is a repetition.
            let known = stdin.given.checked_sub(offset).ok_or_else(|| {
                Error::invalid(format!(
                    "offset_bytes is {offset}, and only {} were given before",
                    stdin.given
                ))
            })?;
            // A terminal's end of file is a byte of its own.
            eof &= !(stdin.terminal && known > rest.len() as u64);
            rest.drain(..rest.len().min(usize::try_from(known).unwrap_or(usize::MAX)));
        }
        if stdin.fd.is_none() {
            // It was said before that it ends here.
            let repeated = rest.is_empty() && eof && write.offset_bytes.is_some();
            let reply = written(stdin.given);
            return if repeated { Ok(Some(reply)) } else { Err(closed("has ended")) };
        }
        // Whoever knows the offset takes the place of the one who waits: it is the same client, come back.
        self.stop_waiting(id, None);
        self.give(id, call_id, rest, eof).map_or_else(|| Err(closed("was closed by the execution")), Ok)
    }

    /// Gives what fits and lets the rest wait. None: nobody reads any more.
    fn give(&mut self, id: u64, call_id: u64, mut rest: Vec<u8>, eof: bool) -> Option<Option<Reply>> {
        let stdin = self.attempts.get_mut(&id)?.stdin.as_mut()?;
        if eof && stdin.terminal && !rest.ends_with(&[END_OF_FILE]) {
            rest.push(END_OF_FILE);
        }
        let wrote = stdin.push(&mut rest);
        let given = stdin.given;
        match wrote {
            Wrote::Closed => {
                stdin.fd = None;
                None
            }
            Wrote::All => {
                if eof && !stdin.terminal {
                    stdin.fd = None;
                }
                Some(Some(written(given)))
            }
            Wrote::Some => {
                let timer = self.timers.add(clock::mono_ms() + STDIN_WAIT_MS, Due::Stdin(id));
                stdin.waiting = Some(Waiting { call_id, rest, eof, timer });
                if let Some(fd) = &stdin.fd {
                    let source = Source::Stdin(id).pack();
                    // Without it the time limit answers.
                    let _ = epoll::add(&self.epoll, fd, source, epoll::EventFlags::OUT);
                }
                Some(None)
            }
        }
    }

    /// There is room, or nobody reads any more.
    pub(super) fn on_stdin(&mut self, id: u64) {
        let Some(stdin) = self.attempts.get_mut(&id).and_then(|attempt| attempt.stdin.as_mut()) else {
            return;
        };
        let Some(mut waiting) = stdin.waiting.take() else { return };
        let wrote = stdin.push(&mut waiting.rest);
        if let Wrote::Some = wrote {
            stdin.waiting = Some(waiting);
            return;
        }
        let given = stdin.given;
        if let Some(fd) = &stdin.fd {
            let _ = epoll::delete(&self.epoll, fd);
        }
        self.timers.cancel(waiting.timer);
        let reply = match wrote {
            Wrote::Closed => {
                stdin.fd = None;
                let error = Error::new(Code::StdinNotOpen, "standard input was closed by the execution");
                Reply::Error(to_wire(&error))
            }
            _ => {
                if waiting.eof && !stdin.terminal {
                    stdin.fd = None;
                }
                written(given)
            }
        };
        self.answer_execution_call(waiting.call_id, reply);
    }

    /// Answers a write that waits: with what it took so far, or with an error.
    pub(super) fn stop_waiting(&mut self, id: u64, error: Option<Error>) {
        let Some(stdin) = self.attempts.get_mut(&id).and_then(|attempt| attempt.stdin.as_mut()) else {
            return;
        };
        let Some(waiting) = stdin.waiting.take() else { return };
        if let Some(fd) = &stdin.fd {
            let _ = epoll::delete(&self.epoll, fd);
        }
        self.timers.cancel(waiting.timer);
        let reply = match error {
            Some(error) => Reply::Error(to_wire(&error)),
            None => {
                let ends = usize::from(waiting.eof && stdin.terminal);
                Reply::StdinWritten(v1::WriteStdinResponse {
                    offset_bytes: stdin.given,
                    incomplete: true,
                    remaining_bytes: waiting.rest.len().saturating_sub(ends) as u32,
                })
            }
        };
        self.answer_execution_call(waiting.call_id, reply);
    }

    /// The execution has ended: what it did not read is nobody's.
    pub(super) fn end_stdin(&mut self, id: u64) {
        self.stop_waiting(id, Some(Error::new(Code::NotRunning, "the execution ended before it read that")));
        if let Some(attempt) = self.attempts.get_mut(&id) {
            (attempt.stdin, attempt.stdin_read) = (None, None);
        }
    }
}
