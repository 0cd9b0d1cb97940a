//! Attempts: one execution, install or step under one fence, from its start to the acknowledged result.

use std::{fs::File, io, os::fd::OwnedFd, path::PathBuf};

use cooper_common::{
    clock,
    error::{Code, Error},
    failpoint,
    limits::{exec, run},
};
use cooper_proto::{
    host::{self as wire, to_link},
    v1::{self, TaskState, task_spec},
};

use prost::Message as _;
use rustix::process::Signal;

use crate::frame;

use super::{
    Due, Host, LEFTOVERS_MAX, Source, artifacts, install,
    interpreter::Answer,
    outcome::{self, End, Kind, Why},
    spool::{self, Stream},
    stdin::Stdin,
    terminal,
    timers::Timer,
    tree,
    watchdog::Over,
};
use crate::confine::{Part, cgroup::Group};

/// Task, epoch, attempt.
pub type Key = (String, u64, u32);

pub struct Attempt {
    pub key: Key,
    pub session: Option<String>,
    pub kind: Kind,
    /// Taken when it starts.
    pub spec: Option<v1::TaskSpec>,
    pub timeout_ms: u64,
    output_limit: u64,
    pub streams: Option<[Stream; 2]>,
    pub state: State,
    /// Why it is being ended, when it does not end by itself.
    pub why: Option<Why>,
    pub timer: Option<Timer>,
    started_ms: u64,
    /// On the kernel's clock of process starts.
    pub started_ticks: u64,
    pub interpreter_restarted: bool,
    /// Processes of its session that the kernel had killed for want of memory when it started.
    oom_kills: u64,
    /// Where the fork of a fresh execution answers.
    pub branch: Option<OwnedFd>,
    /// Where Python code runs, if that was said.
    pub cwd: Option<PathBuf>,
    /// A step's or an install's report is written here.
    pub report: Option<File>,
    /// Where calls write its standard input, and the other end, until it starts. Of a terminal that is all of its streams.
    pub stdin: Option<Stdin>,
    pub stdin_read: Option<OwnedFd>,
    /// The user's side of its terminal.
    pub terminal: Option<OwnedFd>,
    /// Sent before its process was there.
    pub signals: Vec<Signal>,
    /// What it made, once it has ended.
    pub artifacts: Option<artifacts::Collected>,
    /// The result is not wanted any more.
    forgotten: bool,
}

pub enum State {
    /// For its session's interpreter.
    Waiting,
    /// In a tree of its own.
    Tree(u64),
    /// In this interpreter.
    Interpreter(u64),
    /// It ended, so: what it left behind is being killed first.
    Ending(End, Option<u64>),
    /// It ended, so: what it made is being collected.
    Collecting(End),
    /// Kept until it is forgotten.
    Ended(wire::Ended),
}

impl Attempt {
    fn fence(&self) -> v1::Fence {
        v1::Fence { epoch: self.key.1, attempt: self.key.2 }
    }
    pub fn has_ended(&self) -> bool {
        matches!(self.state, State::Collecting(_) | State::Ended(_))
    }

    /// Opens what its standard input is written to, or its terminal.
    fn open_stdin(&mut self) -> io::Result<()> {
        let Some(spec) = &mut self.spec else { return Ok(()) };
        if let Some(size) = spec.terminal {
            let (user, theirs) = terminal::open(size)?;
            self.stdin = Some(Stdin::terminal(user.try_clone()?));
            (self.stdin_read, self.terminal) = (Some(theirs), Some(user));
            spec.env.entry("TERM".to_owned()).or_insert_with(|| "xterm-256color".to_owned());
        } else if spec.stdin_open {
            let (stdin, theirs) = Stdin::pipe()?;
            (self.stdin, self.stdin_read) = (Some(stdin), Some(theirs));
        }
        Ok(())
    }

    /// The process group that its terminal would give a Ctrl-C to.
    pub fn foreground(&self) -> Option<i32> {
        let group = rustix::termios::tcgetpgrp(self.terminal.as_ref()?).ok()?;
        Some(group.as_raw_nonzero().get())
    }

    /// Runs in a fork of its session's interpreter.
    pub fn is_fresh(&self) -> bool {
        match self.spec.as_ref().and_then(|spec| spec.kind.as_ref()) {
            Some(task_spec::Kind::Python(python)) => python.mode() == v1::ExecutionMode::Fresh,
            _ => false,
        }
    }

    /// As the inventory lists it.
    pub fn item(&self) -> v1::AttemptItem {
        let bytes = |stream: usize| self.streams.as_ref().map_or(0, |streams| streams[stream].bytes);
        v1::AttemptItem {
            task_id: self.key.0.clone(),
            fence: Some(self.fence()),
            running: !self.has_ended(),
            stdout_bytes: bytes(0),
            stderr_bytes: bytes(1),
            result_pending: self.has_ended(),
        }
    }

    /// A new link knows none of the spools.
    pub fn unname(&mut self) {
        for stream in self.streams.iter_mut().flatten() {
            (stream.named, stream.announced) = (false, 0);
        }
        if let Some(artifacts) = &mut self.artifacts {
            artifacts.named = false;
        }
    }
}

impl Host {
    pub(super) fn start_attempt(&mut self, assign: v1::Assign) {
        if self.stopping >= Some(super::stop::Phase::Ending) {
            return;
        }
        let fence = assign.fence.unwrap_or_default();
        let key = (assign.task_id.clone(), fence.epoch, fence.attempt);
        if let Some(id) = self.by_key.get(&key).copied() {
            // Assigned again: it is said again how it stands.
            if !self.tell_ended(id) {
                self.tell_started(id);
            }
            return;
        }
        // One that cannot be read has no kind, and is refused for that.
        let spec = v1::TaskSpec::decode(assign.spec).unwrap_or_default();
        let kind = match &spec.kind {
            Some(task_spec::Kind::Python(_)) => Kind::Python,
            Some(task_spec::Kind::Shell(_)) => Kind::Shell,
            Some(task_spec::Kind::Install(_) | task_spec::Kind::Uninstall(_)) => Kind::Install,
            Some(task_spec::Kind::Step(_)) => Kind::Step,
            Some(task_spec::Kind::Noop(_)) => Kind::Noop,
            None => Kind::Unknown,
        };
        let session = (!spec.session_id.is_empty()).then(|| spec.session_id.clone());
        let record = session.as_ref().and_then(|id| self.sessions.get(id)).map(|session| &session.record);
        let first = |values: [u64; 3]| values.into_iter().find(|value| *value > 0).unwrap_or_default();
        let (timeout, output) = match kind {
            Kind::Step => (exec::STEP_TIMEOUT_MS, run::STEP_LOG_BYTES_MAX),
            _ => (exec::TIMEOUT_MS, exec::OUTPUT_BYTES),
        };
        let timeout_ms = first([assign.timeout_ms, spec.timeout_ms, record.map_or(0, |r| r.exec_timeout_ms)]);
        let output_limit = first([assign.output_limit_bytes, record.map_or(0, |r| r.output_bytes), output]);
        let attempt = Attempt {
            key: key.clone(),
            session,
            kind,
            spec: Some(spec),
            timeout_ms: if timeout_ms == 0 { timeout } else { timeout_ms.min(exec::TIMEOUT_MS_MAX) },
            output_limit: output_limit.min(exec::OUTPUT_BYTES_MAX),
            streams: None,
            state: State::Waiting,
            why: None,
            timer: None,
            started_ms: clock::mono_ms(),
            started_ticks: 0,
            interpreter_restarted: false,
            oom_kills: 0,
            branch: None,
            report: None,
            cwd: None,
            stdin: None,
            stdin_read: None,
            terminal: None,
            signals: Vec::new(),
            artifacts: None,
            forgotten: false,
        };
        let id = self.new_id();
        self.attempts.insert(id, attempt);
        self.by_key.insert(key, id);
        if let Err(error) = self.begin(id, kind) {
            self.finish(id, outcome::failed(&error));
        }
    }

    fn begin(&mut self, id: u64, kind: Kind) -> Result<(), Error> {
        if let Some(attempt) = self.attempts.get_mut(&id) {
            let unopened = |e: io::Error| Error::new(Code::SpawnFailed, format!("standard input: {e}"));
            attempt.open_stdin().map_err(unopened)?;
        }
        match kind {
            Kind::Noop => {
                self.finish(id, (TaskState::Succeeded, v1::Outcome::default()));
                Ok(())
            }
            Kind::Unknown => Err(Error::invalid("this worker does not know that kind of task")),
            Kind::Step => self.start_step(id),
            Kind::Python | Kind::Shell | Kind::Install => {
                let session_id = self.attempts.get(&id).and_then(|a| a.session.clone()).unwrap_or_default();
                let session =
                    self.sessions.get_mut(&session_id).ok_or_else(|| super::unknown_session(&session_id))?;
                session.accepts()?;
                match kind {
                    Kind::Python if session.queue.len() >= exec::QUEUED_PER_SESSION_MAX => {
                        let what = format!("{} executions wait in session {session_id}", session.queue.len());
                        Err(Error::new(Code::SessionBusy, what))
                    }
                    Kind::Python => {
                        let cwd = self.execution_directory(id)?;
                        self.attempts.entry(id).and_modify(|attempt| attempt.cwd = cwd);
                        let session = self.sessions.get_mut(&session_id);
                        let session = session.ok_or_else(|| super::unknown_session(&session_id))?;
                        session.queue.push_back(id);
                        self.advance(&session_id);
                        Ok(())
                    }
                    Kind::Shell => self.start_shell(id, &session_id),
                    _ => self.start_install(id, &session_id),
                }
            }
        }
    }

    /// Opens the streams, sets the deadline, says that it started. The write ends go to whatever runs.
    pub(super) fn open_streams(&mut self, id: u64) -> io::Result<(OwnedFd, OwnedFd)> {
        let spool = self.dir.spool();
        let oom_kills = self.oom_kills_of(id);
        self.watch_sessions();
        let attempt = self.attempts.get_mut(&id).ok_or(io::ErrorKind::NotFound)?;
        attempt.oom_kills = oom_kills;
        let (task, epoch, number) = &attempt.key;
        let path = |end: &str| spool.join(format!("{task}-{epoch}-{number}.{end}"));
        let limit = attempt.output_limit;
        let ((out, out_write), (err, err_write)) = match (&attempt.terminal, &attempt.stdin_read) {
            (Some(user), Some(theirs)) => (
                (Stream::terminal(path("out"), limit, user.try_clone()?), theirs.try_clone()?),
                (Stream::closed(path("err"), limit), theirs.try_clone()?),
            ),
            _ => (Stream::new(path("out"), limit)?, Stream::new(path("err"), limit)?),
        };
        attempt.started_ms = clock::mono_ms();
        attempt.started_ticks = tree::now_ticks();
        attempt.timer = Some(self.timers.add(attempt.started_ms + attempt.timeout_ms, Due::TimeOut(id)));
        let streams = attempt.streams.insert([out, err]);
        for (n, stream) in streams.iter().enumerate() {
            if let Some(pipe) = stream.pipe() {
                rustix::event::epoll::add(
                    &self.epoll,
                    pipe,
                    Source::Output(id, n).pack(),
                    rustix::event::epoll::EventFlags::IN,
                )?;
            }
        }
        self.tell_started(id);
        Ok((out_write, err_write))
    }

    /// How many processes of an attempt's session the kernel killed for want of memory.
    fn oom_kills_of(&self, id: u64) -> u64 {
        let session = self.attempts.get(&id).and_then(|attempt| attempt.session.as_ref());
        let group = session.and_then(|id| self.sessions.get(id)).and_then(|session| session.group.as_ref());
        group.map_or(0, Group::oom_kills)
    }

    /// One that was killed while its session had no memory left was killed for that.
    fn explain_kill(&mut self, id: u64, exit: super::reaper::Exit) {
        if exit.code() != 128 + libc::SIGKILL {
            return;
        }
        let kills = self.oom_kills_of(id);
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        let session = attempt.session.as_ref().and_then(|session| self.sessions.get(session));
        if let Some(session) = session.filter(|_| kills > attempt.oom_kills) {
            attempt.why.get_or_insert(Why::Over(Over::Memory(session.record.memory_limit())));
        }
    }

    pub(super) fn on_output(&mut self, id: u64, stream: usize) {
        let Some(streams) = self.attempts.get_mut(&id).and_then(|attempt| attempt.streams.as_mut()) else {
            return;
        };
        let before = streams[stream].bytes;
        if streams[stream].pump(&self.null) == spool::Pipe::Closed
            && let Some(terminal) = streams[stream].hang_up()
        {
            // Others hold it open: it would be an event for ever.
            let _ = rustix::event::epoll::delete(&self.epoll, &terminal);
        }
        if streams[stream].bytes > before {
            self.grown.insert(id);
        }
    }

    /// Tells the link which spools grew in this round.
    pub(super) fn announce(&mut self) {
        if self.grown.is_empty() || self.link.is_behind() {
            // Whoever is behind is told later, and then only the newest length.
            return;
        }
        for id in std::mem::take(&mut self.grown) {
            let Some(attempt) = self.attempts.get_mut(&id).filter(|attempt| !attempt.has_ended()) else {
                continue;
            };
            let (task_id, fence) = (attempt.key.0.clone(), attempt.fence());
            for (n, stream) in attempt.streams.iter_mut().flatten().enumerate() {
                if stream.bytes == stream.announced || !self.link.greeted {
                    continue;
                }
                let fds = name_to_link(stream);
                stream.announced = stream.bytes;
                let grew = wire::Grew {
                    task_id: task_id.clone(),
                    fence: Some(fence),
                    stream: n as i32 + 1,
                    bytes: stream.bytes,
                };
                self.link.tell(to_link::Message::Grew(grew), fds);
            }
        }
    }

    /// A command, install or step ended; `tree` may still hold what it left.
    pub(super) fn attempt_exited(&mut self, id: u64, tree: u64, exit: super::reaper::Exit) {
        // What it said before it ended is still to be heard.
        self.on_branch(id);
        self.drain(id);
        self.explain_kill(id, exit);
        let Some(attempt) = self.attempts.get_mut(&id).filter(|attempt| !attempt.has_ended()) else { return };
        if matches!(attempt.state, State::Ending(..)) {
            return;
        }
        let mut end = outcome::exited(attempt.kind, exit, attempt.why, attempt.timeout_ms);
        if attempt.kind == Kind::Install {
            let changed = install::Report::read(attempt.report.take()).changed;
            end.1.restart_required = !changed.is_empty();
            end.1.restart_modules = changed.into_iter().take(exec::RESTART_MODULES_MAX).collect();
        }
        if attempt.kind == Kind::Step {
            super::outcome::with_report(&mut end, attempt.report.take());
        }
        // What a command leaves in the background belongs to the session, unless it was to be ended. Installs and steps
        // leave nothing.
        if attempt.kind == Kind::Shell && attempt.why.is_none() {
            return self.finish(id, end);
        }
        attempt.state = State::Ending(end, None);
        self.doom(tree, tree::Which::default(), Some(id));
    }

    pub(super) fn attempt_not_started(&mut self, id: u64, errno: i32, part: Part) {
        let Some(attempt) = self.attempts.get(&id) else { return };
        let program = match attempt.spec.as_ref().and_then(|spec| spec.kind.as_ref()) {
            Some(task_spec::Kind::Shell(shell)) => shell.argv.first().cloned().unwrap_or_default(),
            _ => "cooper".to_owned(),
        };
        self.finish(id, outcome::not_executed(&program, errno, part));
    }

    /// The interpreter answered.
    pub(super) fn execution_answered(&mut self, id: u64, outcome: v1::Outcome) {
        self.drain(id);
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        let State::Interpreter(interpreter) = attempt.state else { return };
        let end = outcome::answered(outcome, attempt.why, attempt.timeout_ms);
        if attempt.why.is_none() {
            self.finish(id, end);
            return self.interpreter_free(interpreter);
        }
        let since = attempt.started_ticks;
        attempt.state = State::Ending(end, Some(interpreter));
        match self.interpreter_of(interpreter) {
            Some((tree, main)) => self.doom(tree, tree::Which { since: Some(since), spare: main }, Some(id)),
            None => self.complete(id),
        }
    }

    /// The fork of a fresh execution answered.
    pub(super) fn on_branch(&mut self, id: u64) {
        let Some(control) = self.attempts.get(&id).and_then(|attempt| attempt.branch.as_ref()) else {
            return;
        };
        let heard = match frame::recv(control, &mut self.control_buffer) {
            Ok(Some((body, _))) => Answer::parse(&body).ok().filter(|answer| answer.id == Some(id)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Ok(None) | Err(_) => None,
        };
        // It says one thing. Without it, its exit says the rest.
        self.drain(id);
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        attempt.branch = None;
        let (Some(answer), State::Tree(tree)) = (heard, &attempt.state) else { return };
        let tree = *tree;
        let end = outcome::answered(answer.into_outcome(), attempt.why, attempt.timeout_ms);
        if attempt.why.is_none() {
            return self.finish(id, end);
        }
        attempt.state = State::Ending(end, None);
        self.doom(tree, tree::Which::default(), Some(id));
    }

    /// The interpreter ended under an execution.
    pub(super) fn execution_died(&mut self, id: u64, tree: u64, exit: super::reaper::Exit) {
        self.drain(id);
        self.explain_kill(id, exit);
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        let (end, interpreter) = match std::mem::replace(&mut attempt.state, State::Waiting) {
            // It had answered before it was killed.
            State::Ending(end, interpreter) => (end, interpreter),
            _ => (outcome::interpreter_died(exit, attempt.why, attempt.timeout_ms), None),
        };
        if attempt.why.is_none() {
            return self.finish(id, end);
        }
        attempt.state = State::Ending(end, interpreter);
        self.doom(tree, tree::Which::default(), Some(id));
    }

    /// What an attempt left behind is dead: now it has ended.
    pub(super) fn complete(&mut self, id: u64) {
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        match std::mem::replace(&mut attempt.state, State::Waiting) {
            State::Ending(end, interpreter) => {
                self.drain(id);
                self.finish(id, end);
                if let Some(interpreter) = interpreter {
                    self.interpreter_free(interpreter);
                }
            }
            other => attempt.state = other,
        }
    }

    fn drain(&mut self, id: u64) {
        for stream in
            self.attempts.get_mut(&id).and_then(|attempt| attempt.streams.as_mut()).into_iter().flatten()
        {
            stream.drain(&self.null);
        }
    }

    /// Records the end of an attempt and says it.
    pub(super) fn finish(&mut self, id: u64, (state, mut outcome): End) {
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        if attempt.has_ended() {
            return;
        }
        if let Some(timer) = attempt.timer.take() {
            self.timers.cancel(timer);
        }
        let session = attempt.session.as_ref().and_then(|session| self.sessions.get(session));
        let usage = outcome.usage.get_or_insert_default();
        usage.wall_ms = clock::mono_ms() - attempt.started_ms;
        usage.disk_bytes = session.map_or(0, |session| session.disk.bytes());
        outcome.interpreter_restarted |= attempt.interpreter_restarted;
        let mut left = Vec::new();
        if let Some([out, err]) = &mut attempt.streams {
            (outcome.stdout_bytes, outcome.stderr_bytes) = (out.bytes, err.bytes);
            (outcome.stdout_truncated, outcome.stderr_truncated) = (out.truncated, err.truncated);
            left.extend([out.take_pipe(), err.take_pipe()].into_iter().flatten());
        }
        attempt.spec = None;
        attempt.branch = None;
        attempt.terminal = None;
        attempt.state = State::Collecting((state, outcome));
        if attempt.kind == Kind::Install
            && let Some(session) = attempt.session.as_ref().and_then(|id| self.sessions.get_mut(id))
        {
            session.installed = true;
        }
        let (session, forgotten) = (attempt.session.clone(), attempt.forgotten);
        self.end_stdin(id);
        for pipe in left {
            self.keep_leftover(pipe, session.clone());
        }
        if forgotten {
            return self.drop_attempt(id);
        }
        if !self.collect(id) {
            self.say_end(id);
        }
    }

    /// What it made is collected: its result can be said.
    pub(super) fn say_end(&mut self, id: u64) {
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        match std::mem::replace(&mut attempt.state, State::Waiting) {
            State::Collecting((state, outcome)) => {
                attempt.state = State::Ended(wire::Ended {
                    task_id: attempt.key.0.clone(),
                    fence: Some(attempt.fence()),
                    state: state.into(),
                    outcome: Some(outcome),
                    artifacts: attempt.artifacts.as_ref().map_or(Vec::new(), |it| it.parts.clone()),
                });
                self.tell_ended(id);
            }
            other => attempt.state = other,
        }
    }

    /// A child that outlives its execution may go on writing: it is read and dropped, so that it does not stop.
    fn keep_leftover(&mut self, pipe: OwnedFd, session: Option<String>) {
        let Some(session) = session.filter(|id| self.sessions.contains_key(id)) else { return };
        if spool::is_closed(&pipe) {
            return;
        }
        let id = self.new_id();
        let source = Source::Leftover(id).pack();
        if rustix::event::epoll::modify(&self.epoll, &pipe, source, rustix::event::epoll::EventFlags::IN)
            .is_ok()
        {
            self.leftovers.insert(id, (pipe, session));
            if self.leftovers.len() > LEFTOVERS_MAX {
                self.leftovers.pop_first();
            }
        }
    }

    pub(super) fn on_leftover(&mut self, id: u64) {
        let Some((pipe, _)) = self.leftovers.get(&id) else { return };
        let flags = rustix::pipe::SpliceFlags::NONBLOCK;
        if matches!(rustix::pipe::splice(pipe, None, &self.null, None, 1 << 20, flags), Ok(0)) {
            self.leftovers.remove(&id);
        }
    }

    fn tell_started(&mut self, id: u64) {
        if let Some(attempt) = self.attempts.get(&id) {
            let started = v1::Started { task_id: attempt.key.0.clone(), fence: Some(attempt.fence()) };
            self.link.tell(to_link::Message::Started(started), Vec::new());
        }
    }

    /// Says the result, with the spools this link does not have. False: it has not ended.
    pub(super) fn tell_ended(&mut self, id: u64) -> bool {
        let Some(attempt) = self.attempts.get_mut(&id) else { return false };
        let State::Ended(ended) = &attempt.state else { return false };
        failpoint::pass(failpoint::name::SPOOLED_BEFORE_SENT);
        if self.link.greeted {
            let ended = ended.clone();
            let mut fds: Vec<OwnedFd> = attempt.streams.iter_mut().flatten().flat_map(name_to_link).collect();
            if let Some(artifacts) = attempt.artifacts.as_mut().filter(|artifacts| !artifacts.named) {
                match artifacts.file.try_clone() {
                    Ok(file) => fds.push(file),
                    Err(error) => tracing::error!(%error, "artifacts cannot be handed over"),
                }
                artifacts.named = true;
            }
            self.link.tell(to_link::Message::Ended(ended), fds);
        }
        true
    }

    pub(super) fn forget(&mut self, forget: &wire::Forget) {
        let fence = forget.fence.unwrap_or_default();
        let Some(id) = self.by_key.get(&(forget.task_id.clone(), fence.epoch, fence.attempt)).copied() else {
            return;
        };
        match self.attempts.get_mut(&id) {
            Some(attempt) if !attempt.has_ended() => attempt.forgotten = true,
            _ => self.drop_attempt(id),
        }
    }

    fn drop_attempt(&mut self, id: u64) {
        if let Some(attempt) = self.attempts.remove(&id) {
            self.by_key.remove(&attempt.key);
        }
    }
}

/// The stream's spool for a link that does not have it yet.
fn name_to_link(stream: &mut Stream) -> Vec<OwnedFd> {
    if stream.named || stream.bytes == 0 {
        return Vec::new();
    }
    match stream.open_for_reading() {
        Ok(Some(fd)) => {
            stream.named = true;
            vec![fd]
        }
        Ok(None) => Vec::new(),
        Err(error) => {
            tracing::error!(%error, "a spool cannot be handed over");
            Vec::new()
        }
    }
}
