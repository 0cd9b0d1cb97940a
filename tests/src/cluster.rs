//! A cluster as a newcomer has it: `cooper up` in a directory of its own.

use std::{
    fs,
    ops::Deref,
    path::PathBuf,
    sync::{Mutex, OnceLock, PoisonError},
    thread,
    time::Duration,
};

use cooper_common::clock;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{
    cooper::Cooper,
    processes::{self, Process},
    program::{Finished, Running},
    scratch::Scratch,
    seconds,
    wait::{until, until_true},
};

const START: Duration = seconds(60);
/// Ctrl-C to nothing left.
pub const STOP: Duration = seconds(5);

/// What `cooper up` is started with.
#[derive(Debug, Clone)]
pub struct Setup {
    args: Vec<String>,
    env: Vec<(String, String)>,
    shared: bool,
    name: &'static str,
}

impl Setup {
    /// Sessions only.
    pub fn python() -> Self {
        Self::new("python").arg("--no-compose")
    }

    /// Sessions and stacks.
    pub fn compose() -> Self {
        Self::new("compose")
    }

    fn new(name: &'static str) -> Self {
        // All tests of a shared cluster together, which leave their sessions to its end.
        let env = vec![("MAX_SESSIONS".to_owned(), "256".to_owned())];
        // A name that tests ask by, as behind a proxy.
        let setup =
            Self { args: Vec::new(), env, shared: false, name }.env("COOPER_ALLOWED_HOSTS", "cooper.test");
        setup.env("CANARY", "a secret of the worker's")
    }

    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// The last one of a name holds.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.retain(|(known, _)| known != name);
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn start(self) -> Cluster {
        let scratch = if self.shared { Scratch::shared(self.name) } else { Scratch::new(self.name) };
        let data = scratch.join("data");
        let mut cluster =
            Cluster { up: None, ready: Value::Null, url: String::new(), data, setup: self, scratch };
        cluster.start_up();
        cluster
    }
}

pub struct Cluster {
    up: Option<Running>,
    /// What `up` said when everything was ready.
    pub ready: Value,
    pub url: String,
    pub data: PathBuf,
    setup: Setup,
    pub scratch: Scratch,
}

impl Cluster {
    pub fn start() -> Self {
        Setup::python().start()
    }

    /// Starts on the same data, as after [`Cluster::stop`] or [`Cluster::kill_up`].
    pub fn start_up(&mut self) {
        assert!(self.up.is_none(), "it runs");
        let data = self.data.to_string_lossy().into_owned();
        let mut args = vec!["up", "--json", "--data", &data, "--listen", "127.0.0.1:0"];
        args.extend(self.setup.args.iter().map(String::as_str));
        let cooper =
            self.setup.env.iter().fold(Cooper::default(), |cooper, (name, value)| cooper.env(name, value));
        let mut up = cooper.dir(self.scratch.path()).start(args, b"");
        if self.setup.shared {
            up = up.cleaning(self.scratch.path());
        }
        let line = up.await_said("what runs", START, |up| {
            up.stdout().split_once('\n').map(|(line, _)| line.to_owned())
        });
        self.ready = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        self.url = self.ready["url"].as_str().expect("a URL").to_owned();
        self.up = Some(up);
    }

    /// The command line, with the admin token in the data directory.
    pub fn cooper(&self) -> Cooper {
        Cooper::at(&self.data)
    }

    pub fn admin_token(&self) -> String {
        fs::read_to_string(self.data.join("admin.token")).expect("admin.token").trim().to_owned()
    }

    /// The secret of a new token.
    pub fn token(&self, tenant: &str, scope: &str) -> String {
        let made = self.cooper().json(["token", "create", "--tenant", tenant, "--scope", scope]);
        made["secret"].as_str().expect("a secret").to_owned()
    }

    pub fn pid(&self) -> Pid {
        self.up.as_ref().expect("it runs").pid()
    }

    /// Everything that has to do with this cluster and is alive.
    pub fn processes(&self) -> Vec<Process> {
        processes::of(&self.data)
    }

    /// The process in a role: `coordinator`, `worker` (its host) or `worker-link`.
    pub fn process(&self, role: &str) -> Process {
        let up = self.pid().as_raw_pid();
        until(&format!("a process in the role {role}"), START, || {
            let mut all = self.processes();
            all.retain(|process| process.pid != up && process.args.get(1).is_some_and(|arg| arg == role));
            all.into_iter().next()
        })
    }

    /// SIGKILL for the process in a role, and only for that.
    pub fn kill(&self, role: &str) -> Process {
        let process = self.process(role);
        kill_process(process.pid(), Signal::KILL).expect("it was alive");
        until_true(&format!("the end of the {role}"), seconds(5), || !processes::is_alive(process.pid));
        process
    }

    /// SIGKILL for the whole tree at once.
    pub fn kill_everything_but(&mut self, spared: impl Fn(&Process) -> bool) {
        let up = self.up.take().expect("it runs");
        let mut all = self.processes();
        assert!(all.len() >= 4, "up, coordinator, host, link: {all:?}");
        all.retain(|process| !spared(process));
        // Nobody shall have the time to tidy up after another.
        for signal in [Signal::STOP, Signal::KILL] {
            for process in &all {
                let _ = kill_process(process.pid(), signal);
            }
        }
        up.finish(seconds(5)).expect(137);
    }

    /// SIGKILL for `cooper up` alone.
    pub fn kill_up(&mut self) {
        let up = self.up.take().expect("it runs");
        up.signal(Signal::KILL);
        up.finish(seconds(5)).expect(137);
    }

    /// SIGINT, and everything is gone within the budget.
    #[track_caller]
    pub fn stop(&mut self) -> Finished {
        let up = self.up.take().expect("it runs");
        let start = clock::since_start();
        up.signal(Signal::INT);
        let finished = up.finish(STOP);
        let left = self.processes();
        assert!(left.is_empty(), "left behind: {left:?}\n{finished}");
        assert!(clock::since_start() - start < STOP);
        finished
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if thread::panicking() {
            if let Some(up) = &self.up {
                let _ = fs::write(self.scratch.join("up.stderr"), up.stderr());
            }
            drop(self.up.take());
            for process in self.processes() {
                let _ = kill_process(process.pid(), Signal::KILL);
            }
        } else if self.up.is_some() {
            self.stop().expect(0);
        }
    }
}

/// A cluster that tests share; whoever fails keeps its directory.
pub struct Shared(&'static Cluster);

impl Deref for Shared {
    type Target = Cluster;
    fn deref(&self) -> &Cluster {
        self.0
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.scratch.keep();
        }
    }
}

/// The one for tests that do not disturb it. It ends with the test's process.
pub fn shared() -> Shared {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    Shared(first(&CLUSTER, || Setup { shared: true, ..Setup::python() }))
}

/// The one with Docker for tests that do not disturb it.
pub fn shared_compose() -> Shared {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    Shared(first(&CLUSTER, || Setup { shared: true, ..Setup::compose() }))
}

/// A start that fails fails each test that wants it, quickly and for the same reason.
fn first(cluster: &'static OnceLock<Cluster>, setup: impl FnOnce() -> Setup) -> &'static Cluster {
    static STARTING: Mutex<()> = Mutex::new(());
    let _one = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    cluster.get_or_init(|| setup().start())
}
