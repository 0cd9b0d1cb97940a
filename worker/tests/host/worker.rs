//! A worker for a test: a host process, and the test as its link.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Write},
    os::{
        fd::{AsFd, FromRawFd, OwnedFd},
        linux::net::SocketAddrExt,
        unix::{
            fs::{FileExt, PermissionsExt},
            net::{SocketAddr, UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode},
    time::Duration,
};

use cooper_common::{
    clock,
    ids::{SessionId, TaskId},
    limits::link::{HOST_PROTOCOL_MAX, HOST_PROTOCOL_MIN},
    token::Secret,
};
use cooper_proto::{
    host::{self as wire, ToHost, ToLink, to_host, to_link},
    v1::{self, TaskState, task_spec},
};
use cooper_worker::{
    config::{Config, LinkConfig, Ports, Pythons},
    confine::facilities::Mask,
    egress::dial::Place,
    frame,
};
use prost::Message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const PATIENCE_MS: u64 = 60_000;
pub const CANARY: &str = "cooper-canary-4711";

/// The process `host DIR ADDRESS`.
pub fn host(arguments: &[String]) -> ExitCode {
    let [dir, address] = arguments else { return ExitCode::from(2) };
    let mut config = Config::new(dir, address, Secret::from_text("cpr_test"));
    config.log_level = std::env::var("TEST_LOG").unwrap_or("error".to_owned());
    config.max_sessions = Some(8);
    let text = |name| std::env::var(name).unwrap_or_default();
    config.mask = Mask::parse(&text("TEST_MASK")).expect("facilities");
    config.ports = Ports::parse(&text("TEST_PORTS"));
    config.python = Pythons::parse(&text("TEST_PYTHON"));
    let places = std::env::var("TEST_EGRESS_ALLOW").unwrap_or_default();
    config.egress_allow = places.split(',').filter_map(Place::parse).collect();
    let hosts = std::env::var("TEST_EGRESS_HOSTS").unwrap_or_default();
    let hosts = hosts.split(',').filter_map(|entry| entry.split_once('='));
    config.egress_hosts =
        hosts.map(|(name, address)| (name.to_owned(), address.parse().expect("an address"))).collect();
    config.preload = match std::env::var("TEST_PRELOAD").ok().as_deref() {
        Some("off") => None,
        Some(tier) => Some(tier.to_owned()),
        None => config.preload,
    };
    config.layer = std::env::var_os("TEST_LAYER").map(PathBuf::from);
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    config.pool_high = number("TEST_POOL_HIGH").unwrap_or(4) as u32;
    config.drain_ms = number("TEST_DRAIN_MS").unwrap_or(500);
    config.detach_max_ms = number("TEST_DETACH_MAX_MS").unwrap_or(config.detach_max_ms);
    config.host_protocol_max =
        number("TEST_HOST_PROTOCOL").map_or(config.host_protocol_max, |version| version as u32);
    match cooper_worker::host::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// The process `worker-link`: hands its socket to the test and stays until it is killed or the test is gone.
#[allow(unsafe_code)]
pub fn link() -> ExitCode {
    // SAFETY: the host opened both for this process.
    let (socket, config) = unsafe { (OwnedFd::from_raw_fd(3), OwnedFd::from_raw_fd(4)) };
    let config = LinkConfig::read(config).expect("the link's configuration");
    assert_eq!(config.join_token, "cpr_test");
    let Ok(mut test) = UnixStream::connect_addr(&address(&config.coordinator_addr)) else {
        return ExitCode::FAILURE;
    };
    let pid = std::process::id().to_string();
    frame::send_bytes(&test, pid.as_bytes(), &[socket.as_fd()]).expect("the test listens");
    let _ = test.read(&mut [0]);
    ExitCode::SUCCESS
}

/// The process `worker-step`: writes its input back as its report; "sleep" sleeps, "silent" reports nothing.
#[allow(unsafe_code)]
pub fn step() -> ExitCode {
    // SAFETY: the host opened both for this process.
    let (input, report) = unsafe { (File::from_raw_fd(3), File::from_raw_fd(4)) };
    let mut spec = Vec::new();
    { &input }.read_to_end(&mut spec).expect("input");
    let spec = v1::StepSpec::decode(&*spec).expect("a step");
    println!("{}", std::env::var("COOPER_STACKS_FILE").expect("stacks"));
    match spec.step.as_str() {
        "sleep" => std::thread::sleep(Duration::from_secs(60)),
        "silent" => {}
        _ => { &report }.write_all(&spec.input_json).expect("report"),
    }
    ExitCode::SUCCESS
}

fn address(name: &str) -> SocketAddr {
    SocketAddr::from_abstract_name(name).expect("a short name")
}

pub struct Worker {
    pub host: Child,
    pub dir: PathBuf,
    name: String,
    listener: UnixListener,
    pub link: Link,
    pub hello: wire::HostHello,
    _temp: tempfile::TempDir,
}

/// One link process, and its socket in the test's hands.
pub struct Link {
    socket: OwnedFd,
    pub pid: i32,
    _process: UnixStream,
    buffer: frame::Buffer,
    /// Descriptors of spools by task and stream.
    spools: BTreeMap<(String, i32), File>,
    lengths: BTreeMap<(String, i32), u64>,
    ended: BTreeMap<String, wire::Ended>,
    pub sessions: Vec<v1::SessionUpdate>,
    pub refused: Vec<v1::NetworkRefused>,
}

/// How an attempt ended, with all its output.
pub struct Done {
    pub state: TaskState,
    pub outcome: v1::Outcome,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Done {
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
    pub fn value(&self) -> String {
        let data = self.outcome.result.as_ref().and_then(|bundle| bundle.data.get("text/plain"));
        data.map(|text| String::from_utf8_lossy(text).into_owned()).unwrap_or_default()
    }
    pub fn error(&self) -> &str {
        self.outcome.error.as_ref().map_or("", |error| &error.code)
    }
}

impl Worker {
    pub fn start() -> Self {
        Self::start_in(&[])
    }

    /// With more in the worker's environment.
    pub fn start_in(environment: &[(&str, &str)]) -> Self {
        Self::start_on(&std::env::temp_dir(), environment)
    }

    /// With its directory beneath this one.
    pub fn start_on(disk: &Path, environment: &[(&str, &str)]) -> Self {
        let temp = tempfile::tempdir_in(disk).expect("a directory");
        // Without namespaces, sessions have to pass it on the way to their homes.
        std::fs::set_permissions(temp.path(), std::fs::Permissions::from_mode(0o711)).expect("its mode");
        let dir = std::fs::canonicalize(temp.path()).expect("it exists").join("worker");
        let name = format!("cooper-test-{:032x}", rand::random::<u128>());
        let listener = UnixListener::bind_addr(&address(&name)).expect("a free name");
        let host = start_host(&dir, &name, environment);
        let mut link = Link::accept(&listener);
        let hello = link.greet();
        Self { host, dir, name, listener, link, hello, _temp: temp }
    }

    pub fn with_session() -> (Self, String) {
        let mut worker = Self::start();
        worker.wait_for_pool(1);
        let session = worker.create_session(v1::Limits::default());
        (worker, session)
    }

    /// Another host on the same directory, after this one's end or beside it.
    pub fn start_again(&mut self) {
        self.start_again_in(&[]);
    }

    pub fn start_again_in(&mut self, environment: &[(&str, &str)]) {
        let fresh = start_host(&self.dir, &self.name, environment);
        self.link = Link::accept(&self.listener);
        self.hello = self.link.greet();
        let _ = std::mem::replace(&mut self.host, fresh).wait();
    }

    /// Takes the next link of the same host over.
    pub fn next_link(&mut self) {
        self.next_silent_link();
        self.hello = self.link.greet();
    }

    /// The same; it has not said hello.
    pub fn next_silent_link(&mut self) {
        self.link = Link::accept(&self.listener);
    }

    pub fn create_session(&mut self, limits: v1::Limits) -> String {
        self.grant(limits, &[])
    }

    pub fn create_session_with(&mut self, env: &[(&str, &str)]) -> String {
        self.grant(v1::Limits::default(), env)
    }

    fn grant(&mut self, limits: v1::Limits, env: &[(&str, &str)]) -> String {
        let id = SessionId::new().to_string();
        let env = env.iter().chain(&[("GREETING", "hello")]);
        let env = env.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let grant = v1::SessionGrant {
            session_id: id.clone(),
            fence: fence(),
            env,
            limits: Some(limits),
            ..v1::SessionGrant::default()
        };
        self.link.send(to_host::Message::SessionCreate(grant));
        let update = self.link.session_update(&id);
        assert_eq!(update.state, "ready", "{update:?}");
        id
    }

    /// On this Python; it may be refused.
    pub fn try_python(&mut self, version: &str) -> v1::SessionUpdate {
        let session_id = SessionId::new().to_string();
        let grant = v1::SessionGrant {
            session_id: session_id.clone(),
            fence: fence(),
            python_version: version.to_owned(),
            ..v1::SessionGrant::default()
        };
        self.link.send(to_host::Message::SessionCreate(grant));
        self.link.session_update(&session_id)
    }

    /// What became of a session that may be refused.
    pub fn try_session(&mut self, limits: v1::Limits) -> v1::SessionUpdate {
        let session_id = SessionId::new().to_string();
        let grant = v1::SessionGrant {
            session_id: session_id.clone(),
            fence: fence(),
            limits: Some(limits),
            ..v1::SessionGrant::default()
        };
        self.link.send(to_host::Message::SessionCreate(grant));
        self.link.session_update(&session_id)
    }

    /// Until so many forked interpreters wait for sessions.
    pub fn wait_for_pool(&self, at_least: usize) {
        eventually("interpreters wait", || (self.pooled().len() >= at_least).then_some(()));
    }

    /// Children of the host of this name.
    pub fn children(&self, name: &str) -> Vec<i32> {
        let host = self.host.id();
        let children =
            std::fs::read_to_string(format!("/proc/{host}/task/{host}/children")).unwrap_or_default();
        let pids = children.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok());
        pids.filter(|pid| comm(*pid) == name).collect()
    }

    /// Forked interpreters in a place that no session has taken yet.
    pub fn pooled(&self) -> Vec<i32> {
        let of_reaper = |reaper: i32| {
            let children = std::fs::read_to_string(format!("/proc/{reaper}/task/{reaper}/children")).ok()?;
            children.split_ascii_whitespace().next()?.parse::<i32>().ok()
        };
        let waits = |pid: &i32| {
            let cwd = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
            cwd.ends_with("workspace") && cwd.to_string_lossy().contains("/.berth-")
        };
        self.children("cooper-reaper").into_iter().filter_map(of_reaper).filter(waits).collect()
    }

    pub fn zygote(&self) -> i32 {
        eventually("a zygote", || self.zygotes().pop())
    }

    /// What it forks has its name at first, but does not lead a session.
    pub fn zygotes(&self) -> Vec<i32> {
        let leads = |pid: &i32| {
            let pid = rustix::process::Pid::from_raw(*pid);
            rustix::process::getsid(pid).ok() == pid
        };
        self.children("cooper-zygote").into_iter().filter(leads).collect()
    }

    /// With a network.
    pub fn create_with(&mut self, network: Option<v1::NetworkPolicy>) -> String {
        let update = self.try_with(network);
        assert_eq!(update.state, "ready", "{:?}", update.error);
        update.session_id
    }

    pub fn try_with(&mut self, network: Option<v1::NetworkPolicy>) -> v1::SessionUpdate {
        let session_id = SessionId::new().to_string();
        self.grant_again(&session_id, network);
        self.link.session_update(&session_id)
    }

    /// The grant of a session, with what it reaches from now on.
    pub fn grant_again(&mut self, session: &str, network: Option<v1::NetworkPolicy>) {
        let grant = v1::SessionGrant {
            session_id: session.to_owned(),
            fence: fence(),
            network,
            ..v1::SessionGrant::default()
        };
        self.link.send(to_host::Message::SessionCreate(grant));
    }

    pub fn workspace(&self, session: &str) -> PathBuf {
        self.dir.join("sessions").join(session).join("workspace")
    }

    pub fn python(&mut self, session: &str, code: &str) -> Done {
        let task = self.start_python(session, code, 0);
        self.link.wait(&task)
    }

    pub fn fresh(&mut self, session: &str, code: &str) -> Done {
        let task = self.start_fresh(session, code, 0);
        self.link.wait(&task)
    }

    pub fn start_fresh(&mut self, session: &str, code: &str, timeout_ms: u64) -> String {
        let mode = v1::ExecutionMode::Fresh.into();
        let python = v1::PythonSpec { code: code.to_owned(), mode, ..v1::PythonSpec::default() };
        self.start_task(session, task_spec::Kind::Python(python), timeout_ms)
    }

    pub fn start_python(&mut self, session: &str, code: &str, timeout_ms: u64) -> String {
        let python = v1::PythonSpec { code: code.to_owned(), ..v1::PythonSpec::default() };
        self.start_task(session, task_spec::Kind::Python(python), timeout_ms)
    }

    pub fn shell(&mut self, session: &str, argv: &[&str], stdin: &[u8]) -> Done {
        let task = self.start_shell(session, argv, stdin, 0);
        self.link.wait(&task)
    }

    pub fn start_shell(&mut self, session: &str, argv: &[&str], stdin: &[u8], timeout_ms: u64) -> String {
        let argv = argv.iter().map(|argument| (*argument).to_owned()).collect();
        let shell = v1::ShellSpec { argv, stdin: stdin.to_vec() };
        self.start_task(session, task_spec::Kind::Shell(shell), timeout_ms)
    }

    pub fn start_task(&mut self, session: &str, kind: task_spec::Kind, timeout_ms: u64) -> String {
        let spec =
            v1::TaskSpec { kind: Some(kind), session_id: session.to_owned(), ..v1::TaskSpec::default() };
        self.assign(spec, timeout_ms, 0)
    }

    pub fn assign(&mut self, spec: v1::TaskSpec, timeout_ms: u64, output_limit_bytes: u64) -> String {
        let task_id = TaskId::new().to_string();
        let assign = v1::Assign {
            task_id: task_id.clone(),
            fence: fence(),
            spec: spec.encode_to_vec().into(),
            timeout_ms,
            output_limit_bytes,
        };
        self.link.send(to_host::Message::Start(assign));
        task_id
    }

    pub fn cancel(&mut self, task: &str, grace_ms: u64) {
        let cancel = v1::Cancel { task_id: task.to_owned(), fence: fence(), grace_ms };
        self.link.send(to_host::Message::Stop(cancel));
    }

    pub fn destroy(&mut self, session: &str) {
        let end = v1::SessionEnd { session_id: session.to_owned(), fence: fence() };
        self.link.send(to_host::Message::SessionDestroy(end));
        assert_eq!(self.link.session_update(session).state, "destroyed");
    }

    /// Processes that carry this worker's mark or stand beneath its host.
    pub fn processes(&self) -> Vec<i32> {
        marked(&format!("COOPER_HOST_DIR={}", self.dir.display()))
    }

    pub fn terminate(&mut self) -> std::process::ExitStatus {
        signal(self.host.id() as i32, rustix::process::Signal::TERM);
        eventually("the host ends", || self.host.try_wait().expect("our child"))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.host.kill();
        let _ = self.host.wait();
    }
}

fn start_host(dir: &Path, name: &str, environment: &[(&str, &str)]) -> Child {
    let exe = std::env::current_exe().expect("this program");
    let mut command = Command::new(exe);
    command.arg("host").arg(dir).arg(name).env("TEST_CANARY", CANARY).env("COOPER_TOKEN", CANARY);
    command.envs(environment.iter().copied()).spawn().expect("a host")
}

impl Link {
    fn accept(listener: &UnixListener) -> Self {
        let (process, _) = {
            listener.set_nonblocking(true).expect("a socket");
            eventually("a link connects", || listener.accept().ok())
        };
        process.set_nonblocking(false).expect("a socket");
        let mut buffer = frame::Buffer::default();
        let (pid, mut fds) = {
            let (body, fds) = frame::recv(&process, &mut buffer).expect("a link").expect("its socket");
            (String::from_utf8_lossy(&body).parse().expect("a pid"), fds)
        };
        Self {
            socket: fds.pop().expect("its socket"),
            pid,
            _process: process,
            buffer,
            spools: BTreeMap::new(),
            lengths: BTreeMap::new(),
            ended: BTreeMap::new(),
            sessions: Vec::new(),
            refused: Vec::new(),
        }
    }

    fn greet(&mut self) -> wire::HostHello {
        let (version_min, version_max) = (HOST_PROTOCOL_MIN, HOST_PROTOCOL_MAX);
        self.greet_in(wire::LinkHello { version_min, version_max, secrets: true, inject: true })
    }

    /// As a link does that speaks these versions.
    pub fn greet_in(&mut self, versions: wire::LinkHello) -> wire::HostHello {
        self.send(to_host::Message::Hello(versions));
        match self.receive(PATIENCE_MS) {
            Some((to_link::Message::Hello(hello), _)) => hello,
            other => panic!("expected a hello, got {other:?}"),
        }
    }

    pub fn send(&self, message: to_host::Message) {
        let message = ToHost { message: Some(message) };
        // The host sets its own end to non-blocking, not this one.
        frame::send(&self.socket, &message, &[]).expect("the host listens");
    }

    pub fn receive(&mut self, within_ms: u64) -> Option<(to_link::Message, Vec<OwnedFd>)> {
        let wait =
            Timespec { tv_sec: (within_ms / 1000) as i64, tv_nsec: (within_ms % 1000) as i64 * 1_000_000 };
        if poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&wait)).expect("a socket") == 0 {
            return None;
        }
        let (body, fds) = frame::recv(&self.socket, &mut self.buffer).expect("framing")?;
        Some((ToLink::decode(&*body).expect("a message").message.expect("known"), fds))
    }

    /// Receives one message and notes what it says.
    pub fn step(&mut self) -> Option<to_link::Message> {
        let (message, mut fds) = self.receive(PATIENCE_MS)?;
        match &message {
            to_link::Message::Grew(grew) => {
                let key = (grew.task_id.clone(), grew.stream);
                fds.pop().map(|fd| self.spools.insert(key.clone(), fd.into()));
                assert!(self.spools.contains_key(&key), "a stream's first mention carries its spool");
                self.lengths.insert(key, grew.bytes);
            }
            to_link::Message::Ended(ended) => {
                let outcome = ended.outcome.clone().unwrap_or_default();
                let lengths = [(1, outcome.stdout_bytes), (2, outcome.stderr_bytes)];
                let mut fds = fds.into_iter();
                for (stream, bytes) in lengths.into_iter().filter(|(_, bytes)| *bytes > 0) {
                    let key = (ended.task_id.clone(), stream);
                    self.lengths.insert(key.clone(), bytes);
                    if let std::collections::btree_map::Entry::Vacant(place) = self.spools.entry(key) {
                        place.insert(fds.next().expect("the spool of a stream not named before").into());
                    }
                }
                self.ended.insert(ended.task_id.clone(), ended.clone());
            }
            to_link::Message::Session(update) => self.sessions.push(update.clone()),
            to_link::Message::NetworkRefused(refused) => self.refused.push(refused.clone()),
            _ => {}
        }
        Some(message)
    }

    /// The first refusal that is like this.
    pub fn refusal(&mut self, like: impl Fn(&v1::NetworkRefused) -> bool) -> v1::NetworkRefused {
        loop {
            if let Some(found) = self.refused.iter().find(|refused| like(refused)) {
                return found.clone();
            }
            self.step().expect("a refusal is told of");
        }
    }

    pub fn wait(&mut self, task: &str) -> Done {
        while !self.ended.contains_key(task) {
            self.step().unwrap_or_else(|| panic!("{task} does not end"));
        }
        let ended = self.ended[task].clone();
        Done {
            state: ended.state(),
            stdout: self.output(task, 1),
            stderr: self.output(task, 2),
            outcome: ended.outcome.unwrap_or_default(),
        }
    }

    pub fn output(&self, task: &str, stream: i32) -> Vec<u8> {
        let key = (task.to_owned(), stream);
        let Some(file) = self.spools.get(&key) else { return Vec::new() };
        let mut content = vec![0; self.lengths[&key] as usize];
        file.read_exact_at(&mut content, 0).expect("the spool holds what was announced");
        content
    }

    pub fn wait_for_output(&mut self, task: &str) {
        while !self.lengths.contains_key(&(task.to_owned(), 1)) {
            self.step().expect("output");
        }
    }

    pub fn session_update(&mut self, session: &str) -> v1::SessionUpdate {
        loop {
            if let Some(at) = self.sessions.iter().position(|update| update.session_id == session) {
                return self.sessions.remove(at);
            }
            self.step().expect("news of the session");
        }
    }
}

pub fn fence() -> Option<v1::Fence> {
    Some(v1::Fence { epoch: 1, attempt: 1 })
}

pub fn signal(pid: i32, signal: rustix::process::Signal) {
    let _ = rustix::process::kill_process(rustix::process::Pid::from_raw(pid).expect("a pid"), signal);
}

/// Processes whose working directory is within a session's workspace.
pub fn in_workspace(dir: &Path, session: &str) -> Vec<i32> {
    let workspace = dir.join("sessions").join(session).join("workspace");
    let entries = std::fs::read_dir("/proc").expect("/proc");
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(&workspace))
    })
    .collect()
}

pub fn comm(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

pub fn is_alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").trim_start().starts_with('Z'))
}

pub fn marked(mark: &str) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").expect("/proc");
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            std::fs::read(format!("/proc/{pid}/environ"))
                .is_ok_and(|environ| environ.split(|b| *b == 0).any(|entry| entry == mark.as_bytes()))
        })
        .collect()
}

/// Asks until there is an answer.
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = clock::mono_ms() + PATIENCE_MS;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(clock::mono_ms() < deadline, "{what}: not within {PATIENCE_MS} ms");
        std::thread::sleep(Duration::from_millis(5));
    }
}
