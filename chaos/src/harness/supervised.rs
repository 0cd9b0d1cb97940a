//! A process of the cluster that is started again whenever it dies.

use std::{
    cell::RefCell,
    fs::{self, File},
    path::PathBuf,
    process::Stdio,
    rc::Rc,
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

const RESTART_PAUSE: Duration = Duration::from_millis(60);
const STOP: Duration = Duration::from_secs(10);

/// How it is started.
pub struct Recipe {
    pub name: String,
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    pub log: PathBuf,
}

#[derive(Default)]
struct State {
    pid: Option<Pid>,
    /// `FAILPOINTS` of the next start.
    arm: Option<String>,
    stopping: bool,
    /// Ends by SIGKILL, ours and those at failpoints.
    killed: u64,
    /// Ends by anything else.
    ended: u64,
}

#[derive(Clone)]
pub struct Supervised {
    state: Rc<RefCell<State>>,
    recipe: Rc<Recipe>,
}

impl Supervised {
    /// Starts it and keeps it running. Only on a thread that lives as long as it shall.
    pub fn start(recipe: Recipe) -> Result<Self> {
        let this = Self { state: Rc::default(), recipe: Rc::new(recipe) };
        let child = this.spawn()?;
        let kept = this.clone();
        tokio::task::spawn_local(async move { kept.keep(child).await });
        Ok(this)
    }

    fn spawn(&self) -> Result<Child> {
        let Recipe { name, argv, env, log } = &*self.recipe;
        let log = File::options().create(true).append(true).open(log)?;
        let mut command = Command::new(&argv[0]);
        command.args(&argv[1..]).args(["--supervisor", &std::process::id().to_string()]);
        command.envs(env.iter().map(|(name, value)| (name, value)));
        if let Some(failpoints) = self.state.borrow_mut().arm.take() {
            let died = self.recipe.log.with_extension("died");
            let _ = fs::remove_file(&died);
            command.env("FAILPOINTS", failpoints).env("FAILPOINTS_ONCE", died);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("{name}: {argv:?}"))?;
        let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        self.state.borrow_mut().pid = pid;
        Ok(child)
    }

    async fn keep(self, mut child: Child) {
        use std::os::unix::process::ExitStatusExt;
        loop {
            let Ok(status) = child.wait().await else { return };
            {
                let mut state = self.state.borrow_mut();
                state.pid = None;
                if state.stopping {
                    return;
                }
                if status.signal() == Some(9) {
                    state.killed += 1;
                } else {
                    state.ended += 1;
                }
            }
            tokio::time::sleep(RESTART_PAUSE).await;
            if self.state.borrow().stopping {
                return;
            }
            match self.spawn() {
                Ok(next) => child = next,
                Err(error) => {
                    return eprintln!("chaos: {} cannot be started again: {error:#}", self.recipe.name);
                }
            }
        }
    }

    pub fn pid(&self) -> Option<Pid> {
        self.state.borrow().pid
    }
    pub fn killed(&self) -> u64 {
        self.state.borrow().killed
    }
    pub fn ended(&self) -> u64 {
        self.state.borrow().ended
    }

    /// Gives `FAILPOINTS` to its next start.
    pub fn arm(&self, failpoints: String) {
        self.state.borrow_mut().arm = Some(failpoints);
    }

    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid() {
            let _ = kill_process(pid, signal);
        }
    }

    /// Its child that runs as `role`, as the worker's link.
    pub fn child(&self, role: &str) -> Option<Pid> {
        let host = self.pid()?.as_raw_nonzero();
        let children = fs::read_to_string(format!("/proc/{host}/task/{host}/children")).ok()?;
        children.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).find(|pid| {
            let args = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
            args.split(|byte| *byte == 0).nth(1) == Some(role.as_bytes())
        })
    }

    /// SIGTERM, and its end. False: it had to be killed.
    pub async fn stop(&self) -> bool {
        self.state.borrow_mut().stopping = true;
        self.signal(Signal::TERM);
        let gone = async {
            while self.pid().is_some() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(STOP, gone).await.is_ok() {
            return true;
        }
        self.signal(Signal::KILL);
        false
    }
}
