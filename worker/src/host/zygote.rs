//! A zygote: one single-threaded Python process that has imported what sessions need, and the interpreters it forked
//! before they are wanted. `zygote.py` is its other side; `pool.rs` decides when it forks.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::OpenOptions,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use base64::Engine as _;
use cooper_common::limits::zygote::{FORK_MS_MAX, FORKS_MAX};
use rustix::process::{Pid, Resource, Signal};
use serde::{Deserialize, Serialize};

use super::{
    berth::Berth,
    interpreter::{self, Running, Seat, Start},
    launch::{Launch, Program},
    python::{self, Python},
    reaper::Reaper,
    sys, tree,
};
use crate::{
    confine::{Inside, seccomp},
    frame,
};

const SOURCE: &str = include_str!("zygote.py");
const BOOTSTRAP: &str = "\
import json, os, sys
told = json.loads(os.pread(3, 1 << 22, 0))
os.close(3)
for name in ('runner', 'zygote'):
    module = sys.modules['cooper.' + name] = type(sys)('cooper.' + name)
    exec(compile(told[name], '<cooper>', 'exec'), module.__dict__)
del sys.modules['cooper.zygote']
module.serve(told['settings'])
";

/// Standard modules that code often uses and that take a while to import. None of them starts a thread or remembers
/// where it was imported.
const STDLIB: &[&str] = &[
    "argparse",
    "ast",
    "asyncio",
    "base64",
    "bisect",
    "calendar",
    "collections",
    "contextlib",
    "copy",
    "csv",
    "dataclasses",
    "datetime",
    "decimal",
    "difflib",
    "email",
    "enum",
    "fractions",
    "functools",
    "getpass",
    "glob",
    "gzip",
    "hashlib",
    "heapq",
    "hmac",
    "html",
    "http.client",
    "importlib.util",
    "inspect",
    "io",
    "ipaddress",
    "itertools",
    "json",
    "linecache",
    "locale",
    "logging",
    "math",
    "mimetypes",
    "operator",
    "os",
    "pathlib",
    "pickle",
    "platform",
    "pprint",
    "queue",
    "random",
    "re",
    "secrets",
    "shlex",
    "shutil",
    "signal",
    "socket",
    "sqlite3",
    "ssl",
    "stat",
    "statistics",
    "string",
    "struct",
    "subprocess",
    "tarfile",
    "tempfile",
    "textwrap",
    "threading",
    "time",
    "timeit",
    "tokenize",
    "traceback",
    "types",
    "typing",
    "unicodedata",
    "unittest",
    "urllib.parse",
    "urllib.request",
    "uuid",
    "warnings",
    "weakref",
    "xml.etree.ElementTree",
    "zipfile",
    "zlib",
];
const SCIENCE: &[&str] = &["numpy", "numpy.random", "pandas", "matplotlib.pyplot"];

/// What a zygote has imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// What the runner itself needs.
    Bare,
    Stdlib,
    /// numpy, pandas and matplotlib as well, as far as the layer has them.
    Science,
}

impl Tier {
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "bare" => Some(Self::Bare),
            "stdlib" => Some(Self::Stdlib),
            "science" => Some(Self::Science),
            _ => None,
        }
    }
    pub fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Stdlib => "stdlib",
            Self::Science => "science",
        }
    }
    fn modules(self) -> Vec<&'static str> {
        match self {
            Self::Bare => Vec::new(),
            Self::Stdlib => STDLIB.to_vec(),
            Self::Science => STDLIB.iter().chain(SCIENCE).copied().collect(),
        }
    }
}

/// An interpreter beneath its subreaper that is nobody's and nowhere yet.
pub struct Forked {
    pub reaper: Reaper,
    control: OwnedFd,
}

/// One that is confined to a home, and waits for the session that it belongs to.
pub struct Settled(Running);

pub struct Zygote {
    pub python: Python,
    pub tier: Tier,
    /// A session wanted its Python.
    pub wanted: bool,
    /// Packages that every session finds.
    layer: Option<PathBuf>,
    process: Option<Process>,
    pub pool: VecDeque<Berth>,
    /// Sessions that wait for a fork, in order.
    pub waiting: VecDeque<String>,
    /// Forks it was asked for and has not answered: control and reports of each, and when it has to be there.
    asked: BTreeMap<u64, (OwnedFd, OwnedFd, u64)>,
    last_asked: u64,
    failures: u32,
}

struct Process {
    pid: Pid,
    socket: OwnedFd,
    ready: bool,
    /// It was told to end.
    ending: bool,
    forks: u32,
    started_ms: u64,
}

/// What reading from a zygote gave.
pub enum Heard {
    Ready,
    Forked(Forked),
    /// It could not fork: whoever waits gets an interpreter another way.
    Failed,
    Nothing,
    /// It ended or broke the protocol.
    Gone(String),
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Answer {
    threads: Option<u32>,
    forked: Option<u64>,
    pid: i32,
    failed: Option<u64>,
}

#[derive(Serialize)]
struct Settle<'a> {
    cwd: &'a Path,
    confinement: Confinement<'a>,
}

#[derive(Serialize)]
struct Claim<'a> {
    env: BTreeMap<&'a str, &'a str>,
    prefix: &'a Path,
    site: &'a Path,
    limits: Vec<(u32, u64)>,
}

/// A confinement as `zygote.py` takes it on; its descriptors go beside it.
#[derive(Serialize)]
struct Confinement<'a> {
    uid: Option<u32>,
    entrances: usize,
    namespaces: bool,
    /// Directories and where they are mounted.
    own: &'a [(PathBuf, PathBuf)],
    landlock: bool,
    /// The filter by which its connects are intercepted.
    notify: Option<String>,
    filter: Option<String>,
}

impl<'a> Confinement<'a> {
    fn of(confinement: &'a crate::confine::Confinement) -> Self {
        let encode =
            |program: &seccomp::Program| base64::engine::general_purpose::STANDARD.encode(&program.0);
        Self {
            uid: confinement.uid,
            entrances: confinement.entrances.len(),
            namespaces: confinement.namespaces.is_some(),
            own: confinement.namespaces.as_ref().map_or(&[], Inside::own),
            landlock: confinement.landlock.is_some(),
            notify: confinement
                .interception
                .as_ref()
                .map(|interception| crate::confine::notify::program(interception.attributes))
                .map(|program| base64::engine::general_purpose::STANDARD.encode(program)),
            filter: confinement.filter.as_deref().map(encode),
        }
    }
}

impl Zygote {
    pub fn new(python: Python, tier: Tier, layer: Option<PathBuf>) -> Self {
        Self {
            python,
            tier,
            wanted: false,
            layer,
            process: None,
            pool: VecDeque::new(),
            waiting: VecDeque::new(),
            asked: BTreeMap::new(),
            last_asked: 0,
            failures: 0,
        }
    }

    /// Starts the process; it says when it is ready. Returns its socket for the event loop.
    pub fn start(&mut self, host_dir: &Path, now_ms: u64) -> io::Result<&OwnedFd> {
        let (major, minor, micro) = self.python.version;
        let dir = host_dir.join("zygote").join(format!("{major}.{minor}.{micro}"));
        let venv = dir.join("venv");
        if venv.exists() {
            std::fs::remove_dir_all(&venv)?;
        }
        // In a venv, so that it differs in nothing from an interpreter that is started in the session's.
        python::make_venv(&self.python, &venv, None)?;
        let told = serde_json::json!({
            "runner": interpreter::RUNNER,
            "zygote": SOURCE,
            "settings": {
                "tier": self.tier.name(),
                "preload": self.tier.modules(),
                "path": self.layer.iter().collect::<Vec<_>>(),
            },
        });
        let told = frame::sealed_memfd("cooper-zygote", told.to_string().as_bytes())?;
        let (ours, theirs) = frame::pair()?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        let null = || -> io::Result<OwnedFd> {
            Ok(OpenOptions::new().read(true).write(true).open("/dev/null")?.into())
        };
        let python = venv.join("bin/python");
        let launch = Launch {
            argv: vec![python.to_string_lossy().into_owned(), "-c".to_owned(), BOOTSTRAP.to_owned()],
            program: Program::Path(python),
            env: environment(host_dir, &dir),
            cwd: dir,
            fds: vec![null()?, null()?, null()?, told, theirs],
            limits: vec![(Resource::Core, 0)],
            uid: None,
            powerless: false,
            terminal: false,
            confinement: None,
        };
        let me = rustix::process::getpid();
        let pid = match sys::fork()? {
            sys::Fork::Parent(pid) => pid,
            sys::Fork::Child => {
                let _ = launch.exec(me);
                sys::exit_now(127)
            }
        };
        let process =
            Process { pid, socket: ours, ready: false, ending: false, forks: 0, started_ms: now_ms };
        Ok(&self.process.insert(process).socket)
    }

    pub fn pid(&self) -> Option<Pid> {
        self.process.as_ref().map(|process| process.pid)
    }

    pub fn can_fork(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.ready && !process.ending)
    }

    pub fn is_ending(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.ending)
    }

    pub fn socket(&self) -> Option<&OwnedFd> {
        self.process.as_ref().map(|process| &process.socket)
    }

    /// How many forks it has not answered.
    pub fn asked(&self) -> usize {
        self.asked.len()
    }

    /// Asks for one more interpreter.
    pub fn ask(&mut self, now_ms: u64) -> io::Result<()> {
        let process = self.process.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        let (control, theirs) = frame::pair()?;
        let (reports, told) = frame::pair()?;
        rustix::io::ioctl_fionbio(&control, true)?;
        rustix::io::ioctl_fionbio(&reports, true)?;
        self.last_asked += 1;
        let request = format!(r#"{{"fork":{}}}"#, self.last_asked);
        frame::send_bytes(&process.socket, request.as_bytes(), &[theirs.as_fd(), told.as_fd()])?;
        process.forks += 1;
        self.asked.insert(self.last_asked, (control, reports, now_ms + FORK_MS_MAX));
        Ok(())
    }

    /// A fork is overdue: it hangs.
    pub fn hangs(&self, now_ms: u64) -> bool {
        self.asked.first_key_value().is_some_and(|(_, (_, _, due_ms))| *due_ms < now_ms)
    }

    /// Its children share its hash seed and its memory layout, and so it serves only so many.
    pub fn has_served(&self) -> bool {
        self.asked.is_empty() && self.process.as_ref().is_some_and(|process| process.forks >= FORKS_MAX)
    }

    pub fn hear(&mut self, buffer: &mut frame::Buffer) -> Heard {
        let Some(process) = &mut self.process else { return Heard::Nothing };
        let answer: Answer = match frame::recv(&process.socket, buffer) {
            Ok(Some((body, _))) => match serde_json::from_slice(&body) {
                Ok(answer) => answer,
                Err(error) => return Heard::Gone(error.to_string()),
            },
            Ok(None) => return Heard::Gone("it ended".to_owned()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Heard::Nothing,
            Err(error) => return Heard::Gone(error.to_string()),
        };
        if let Some(threads) = answer.threads {
            let tasks = format!("/proc/{}/task", process.pid.as_raw_nonzero());
            if threads != 1 || std::fs::read_dir(tasks).map_or(0, Iterator::count) != 1 {
                // A fork of it would hold locks that nobody releases.
                return Heard::Gone(format!("it has {threads} threads"));
            }
            process.ready = true;
            return Heard::Ready;
        }
        if let Some((..)) = answer.failed.and_then(|number| self.asked.remove(&number)) {
            return Heard::Failed;
        }
        let forked = answer.forked.and_then(|number| self.asked.remove(&number));
        match (forked, Pid::from_raw(answer.pid)) {
            (Some((control, reports, _)), Some(pid)) => {
                self.failures = 0;
                Heard::Forked(Forked { reaper: Reaper { pid, reports, connects: None }, control })
            }
            _ => Heard::Gone("it answered what was not asked".to_owned()),
        }
    }

    /// Ends the process; its death is noticed like any other. What it forked is not touched.
    pub fn end(&mut self) {
        if let Some(process) = &mut self.process {
            process.ending = true;
            tree::signal(process.pid.as_raw_nonzero().get(), Signal::KILL);
        }
    }

    /// Its process is gone. Answers how long to wait before the next start.
    pub fn died(&mut self, now_ms: u64) -> u64 {
        let served = self
            .process
            .take()
            .is_some_and(|process| process.forks >= FORKS_MAX || now_ms - process.started_ms > 60_000);
        self.asked.clear();
        self.failures = if served { 0 } else { self.failures + 1 };
        if served { 0 } else { (100 << self.failures.min(10)).min(60_000) }
    }
}

impl Forked {
    /// Confines it, with `workspace` for its working directory.
    pub fn settle(
        self,
        workspace: &Path,
        confinement: &mut crate::confine::Confinement,
    ) -> io::Result<Settled> {
        let settle = Settle { cwd: workspace, confinement: Confinement::of(confinement) };
        // In the order in which `confine` takes them.
        let namespaces = confinement.namespaces.iter().flat_map(Inside::both);
        let fds = confinement.entrances.iter().chain(namespaces).chain(&confinement.landlock);
        let fds: Vec<_> = fds.chain(confinement.theirs()).map(AsFd::as_fd).collect();
        frame::send_bytes(&self.control, &serde_json::to_vec(&settle)?, &fds)?;
        let connects = confinement.interception.as_mut().and_then(|interception| interception.ours.take());
        Ok(Settled(Running { reaper: Reaper { connects, ..self.reaper }, control: self.control }))
    }

    /// Makes it the interpreter of a session that has a home.
    pub fn claim(self, start: &mut Start) -> io::Result<Running> {
        self.settle(&start.workspace, &mut start.confinement)?.claim(&start.seat)
    }
}

impl Settled {
    pub fn reaper(&self) -> &Reaper {
        &self.0.reaper
    }

    /// Makes it the interpreter of a session. It says hello when it is.
    pub fn claim(self, seat: &Seat) -> io::Result<Running> {
        let claim = Claim {
            env: seat.env.iter().map(|(name, value)| (&**name, &**value)).collect(),
            prefix: &seat.venv,
            site: &seat.site,
            limits: seat.limits.iter().map(|(resource, value)| (*resource as u32, *value)).collect(),
        };
        frame::send_bytes(&self.0.control, &serde_json::to_vec(&claim)?, &[])?;
        Ok(self.0)
    }
}

/// Nothing of the worker's. The mark is for a later host, which finds by it what this one left behind.
fn environment(host_dir: &Path, dir: &Path) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> =
        ["OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"]
            .map(|name| (name.to_owned(), "1".to_owned()))
            .into();
    let text = |path: &Path| path.to_string_lossy().into_owned();
    env.push(("LANG".to_owned(), "C.UTF-8".to_owned()));
    env.push(("MPLBACKEND".to_owned(), "Agg".to_owned()));
    env.push(("MPLCONFIGDIR".to_owned(), text(&dir.join("matplotlib"))));
    env.push((super::dir::MARK.to_owned(), text(host_dir)));
    env
}
