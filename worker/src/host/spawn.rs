//! How each kind of attempt gets going: an execution in the interpreter, a command, an install, a step.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use cooper_common::{
    error::{Code, Error, Result},
    limits::request,
    network::Reach,
};
use cooper_proto::v1::{self, task_spec};
use prost::Message as _;
use rustix::fs::MemfdFlags;

use super::{
    Host, INSTALL_ARGV, STEP_ARGV, Source,
    attempt::State,
    files,
    install::{self, Order},
    interpreter,
    launch::{Launch, Program},
    link::inherited,
    outcome, reaper,
    session::Session,
    trees::Owner,
};
use crate::{
    confine::{Interception, Part},
    egress::dial::Place,
    frame,
};

impl Host {
    /// Hands an execution to its interpreter; a fresh one to be forked off it.
    pub(super) fn execute(
        &mut self,
        id: u64,
        control: &OwnedFd,
        interpreter: u64,
        (installed, restarted, fresh): (bool, bool, bool),
    ) -> io::Result<()> {
        let (out, err) = self.open_streams(id)?;
        let branch = if fresh { Some(self.plant_branch_of(id)?) } else { None };
        let attempt = self.attempts.get_mut(&id).ok_or(io::ErrorKind::NotFound)?;
        if !fresh {
            attempt.state = State::Interpreter(interpreter);
        }
        attempt.interpreter_restarted = restarted;
        let spec = attempt.spec.take().unwrap_or_default();
        let Some(task_spec::Kind::Python(python)) = &spec.kind else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let stdin = match attempt.stdin_read.take() {
            Some(opened) => Some(opened),
            None if python.stdin.is_empty() => None,
            None => Some(memfd("cooper-stdin", &python.stdin)?),
        };
        let env: BTreeMap<&str, &str> = spec.env.iter().map(|(name, value)| (&**name, &**value)).collect();
        let request = interpreter::Request {
            id,
            code: &python.code,
            filename: &python.filename,
            args: &python.args,
            env: &env,
            installed,
            fresh,
            stdin: stdin.is_some(),
            terminal: spec.terminal.is_some(),
            cwd: attempt.cwd.as_deref(),
        };
        let fds: Vec<&OwnedFd> =
            [&out, &err].into_iter().chain(branch.iter().flatten()).chain(&stdin).collect();
        request.send(control, &fds)
    }

    /// Where Python code is to run, unless where the code before went.
    pub(super) fn execution_directory(&self, id: u64) -> Result<Option<PathBuf>> {
        let Some(attempt) = self.attempts.get(&id) else { return Ok(None) };
        let cwd = attempt.spec.as_ref().map_or("", |spec| &spec.cwd);
        let session = attempt.session.as_ref().and_then(|session| self.sessions.get(session));
        match session.filter(|_| !cwd.is_empty()) {
            Some(session) => files::directory(&session.home.workspace(), cwd).map(Some),
            None => Ok(None),
        }
    }

    /// Where the fork of an execution will speak: its control socket and its subreaper's reports, their ends.
    fn plant_branch_of(&mut self, id: u64) -> io::Result<[OwnedFd; 2]> {
        let (control, their_control) = frame::pair()?;
        let (reports, their_reports) = frame::pair()?;
        rustix::io::ioctl_fionbio(&control, true)?;
        rustix::io::ioctl_fionbio(&reports, true)?;
        self.watch(&control, Source::Branch(id))?;
        let session = self.attempts.get(&id).and_then(|attempt| attempt.session.clone()).unwrap_or_default();
        let tree = self.plant_branch(reports, session, Owner::Attempt(id))?;
        if let Some(attempt) = self.attempts.get_mut(&id) {
            attempt.state = State::Tree(tree);
            attempt.branch = Some(control);
        }
        Ok([their_control, their_reports])
    }

    pub(super) fn start_shell(&mut self, id: u64, session_id: &str) -> Result<()> {
        let spec = self.attempts.get(&id).and_then(|attempt| attempt.spec.clone()).unwrap_or_default();
        let Some(task_spec::Kind::Shell(shell)) = spec.kind else {
            return Err(Error::invalid("not a command"));
        };
        let argv0 = shell.argv.first().ok_or_else(|| Error::invalid("a command without a program"))?;
        if shell.argv.len() > request::ARGV_MAX || shell.argv.iter().any(|argument| argument.contains('\0')) {
            return Err(Error::invalid("too many arguments, or one that contains NUL"));
        }
        let session = self.sessions.get(session_id).ok_or_else(|| super::unknown_session(session_id))?;
        let cwd = files::directory(&session.home.workspace(), &spec.cwd)?;
        let env = session.home.environment(&session.record, spec.env, &self.dir.path, &self.reach_env);
        let path = env.iter().find(|(name, _)| name == "PATH").map_or("", |(_, value)| value);
        let Some(program) = find_program(argv0, path, &cwd) else {
            self.finish(id, outcome::not_executed(argv0, libc::ENOENT, Part::Program));
            return Ok(());
        };
        let opened =
            self.attempts.get_mut(&id).and_then(|attempt| attempt.stdin_read.as_ref()?.try_clone().ok());
        let stdin = match opened {
            Some(opened) => Ok(opened),
            None if shell.stdin.is_empty() => null(),
            // Not sealed: some programs insist on a descriptor they may write to.
            None => memfd("cooper-stdin", &shell.stdin),
        };
        let launch = Launch {
            program: Program::Path(program),
            argv: shell.argv.clone(),
            env,
            cwd,
            fds: vec![stdin.map_err(unspawned)?],
            limits: session.limits(),
            uid: None,
            powerless: false,
            terminal: spec.terminal.is_some(),
            confinement: Some(session.confinement(&self.confiner).map_err(unspawned)?),
        };
        self.start_tree(id, Some(session_id), launch).map_err(unspawned)
    }

    pub(super) fn start_install(&mut self, id: u64, session_id: &str) -> Result<()> {
        let spec = self.attempts.get(&id).and_then(|attempt| attempt.spec.clone()).unwrap_or_default();
        let order = match spec.kind {
            Some(task_spec::Kind::Install(wanted)) => Order::of_install(wanted)?,
            Some(task_spec::Kind::Uninstall(unwanted)) => Order::Uninstall(unwanted.packages).checked()?,
            _ => return Err(Error::invalid("not an install")),
        };
        let report = memfd("cooper-report", &[]).map_err(unspawned)?;
        if let Some(attempt) = self.attempts.get_mut(&id) {
            attempt.report = Some(report.try_clone().map_err(unspawned)?.into());
        }
        let launch = self.installer(session_id, order, spec.env, report)?;
        self.start_tree(id, Some(session_id), launch).map_err(unspawned)
    }

    /// A process that changes the packages of a session. Descriptors 1 and 2 are to be put in.
    pub(super) fn installer(
        &self,
        session_id: &str,
        order: Order,
        env: impl IntoIterator<Item = (String, String)>,
        report: OwnedFd,
    ) -> Result<Launch> {
        let session = self.sessions.get(session_id).ok_or_else(|| super::unknown_session(session_id))?;
        let python = self.python_of(session).ok_or_else(|| self.pythons.lack(&session.record.python))?;
        if let Some(index) = order.index()? {
            self.may_reach_index(session, &index)?;
        }
        let (plan, mounts) = self.confiner.plan(session.uid(), &session.home.dir).map_err(unspawned)?;
        let mut membership = session.membership().map_err(unspawned)?;
        let mut theirs = None;
        if plan.is_intercepted() {
            let mut interception = Interception::new(plan.asks_for_attributes()).map_err(unspawned)?;
            theirs = interception.theirs.take();
            membership.interception = Some(interception);
        }
        let job = install::Job {
            confinement: plan,
            order,
            venv: session.home.venv(),
            workspace: session.home.workspace(),
            cache: session.home.cache(),
            tools: self.dir.path.join("tools"),
            base_python: python.executable.clone(),
            env: session.home.environment(&session.record, env, &self.dir.path, &self.reach_env),
            imported: session.imported.clone(),
        };
        let job = serde_json::to_vec(&job).map_err(|e| Error::internal(e.to_string()))?;
        let mut env = inherited(&self.dir.path);
        env.push(("COOPER_SESSION".to_owned(), session_id.to_owned()));
        let job = frame::sealed_memfd("cooper-install", &job).map_err(unspawned)?;
        let fds = [null().map_err(unspawned)?, job, report].into_iter().chain(mounts).chain(theirs);
        Ok(Launch {
            program: Program::Open(self.exe.try_clone().map_err(unspawned)?),
            argv: vec!["cooper".to_owned(), INSTALL_ARGV.to_owned()],
            env,
            cwd: session.home.workspace(),
            fds: fds.collect(),
            limits: session.limits(),
            uid: None,
            powerless: false,
            terminal: false,
            // Its own, which it takes on when it knows what to run. The control group holds from the start.
            confinement: Some(membership),
        })
    }

    /// An index other than the worker's is a host like any other.
    fn may_reach_index(&self, session: &Session, index: &Place) -> Result<()> {
        let (host, port) = (index.host.as_str(), index.port.unwrap_or(443));
        let policy = &session.record.network;
        let own = self.index.hosts.iter().any(|place| place.is(host, port));
        if own || (policy.reach != Reach::None && policy.has_host(host) && policy.has_port(port)) {
            return Ok(());
        }
        Err(Error::new(
            Code::NetworkUnavailable,
            format!("the session's network policy does not allow the package index {host} port {port}"),
        )
        .with_hint(format!(
            "allow it: `cooper session update {} --network {host}`",
            session.record.session_id
        )))
    }

    pub(super) fn start_step(&mut self, id: u64) -> Result<()> {
        let spec = self.attempts.get(&id).and_then(|attempt| attempt.spec.clone()).unwrap_or_default();
        let Some(task_spec::Kind::Step(step)) = spec.kind else { return Err(Error::invalid("not a step")) };
        let report = memfd("cooper-report", &[]).map_err(unspawned)?;
        if let Some(attempt) = self.attempts.get_mut(&id) {
            attempt.report = Some(report.try_clone().map_err(unspawned)?.into());
        }
        let mut env = inherited(&self.dir.path);
        env.push(("COOPER_WORKER_DIR".to_owned(), self.dir.path.to_string_lossy().into_owned()));
        env.push(("COOPER_STACKS_FILE".to_owned(), self.stacks.file().to_string_lossy().into_owned()));
        env.extend(spec.env);
        let input = frame::sealed_memfd("cooper-step", &encoded(&step)).map_err(unspawned)?;
        let launch = Launch {
            program: Program::Open(self.exe.try_clone().map_err(unspawned)?),
            argv: vec!["cooper".to_owned(), STEP_ARGV.to_owned()],
            env,
            cwd: self.dir.path.clone(),
            fds: vec![null().map_err(unspawned)?, input, report],
            limits: Vec::new(),
            uid: None,
            powerless: false,
            terminal: false,
            confinement: None,
        };
        self.start_tree(id, None, launch).map_err(unspawned)
    }

    /// Starts an attempt in a tree of its own. stdout and stderr go in as descriptors 1 and 2.
    fn start_tree(&mut self, id: u64, session: Option<&str>, mut launch: Launch) -> io::Result<()> {
        let (out, err) = self.open_streams(id)?;
        launch.fds.splice(1..1, [out, err]);
        if let Some(attempt) = self.attempts.get_mut(&id) {
            attempt.stdin_read = None;
        }
        let reaper = reaper::start(launch)?;
        let tree = self.plant(reaper, session.map(str::to_owned), Owner::Attempt(id))?;
        if let Some(attempt) = self.attempts.get_mut(&id) {
            attempt.state = State::Tree(tree);
        }
        Ok(())
    }
}

fn encoded(step: &v1::StepSpec) -> Vec<u8> {
    step.encode_to_vec()
}

pub(super) fn unspawned(error: io::Error) -> Error {
    Error::new(Code::SpawnFailed, format!("the process could not be started: {error}"))
}

pub(super) fn null() -> io::Result<OwnedFd> {
    Ok(OpenOptions::new().read(true).write(true).open("/dev/null")?.into())
}

pub(super) fn memfd(name: &str, content: &[u8]) -> io::Result<OwnedFd> {
    use std::os::unix::fs::FileExt;
    let file = File::from(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?);
    file.write_all_at(content, 0)?;
    Ok(file.into())
}

/// As execvp(3) finds it, in the session's PATH instead of the worker's.
fn find_program(name: &str, path: &str, cwd: &Path) -> Option<PathBuf> {
    if name.contains('/') {
        return Some(PathBuf::from(name));
    }
    let executable = |file: &PathBuf| {
        use std::os::unix::fs::PermissionsExt;
        file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    path.split(':').filter(|_| !name.is_empty()).map(|dir| cwd.join(dir).join(name)).find(executable)
}
