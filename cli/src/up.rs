//! `cooper up`: a coordinator and a worker of this machine, started, watched, and stopped together.
//!
//! One thread starts the children (their death signal is bound to it) and waits; each child's log has a thread.

mod banner;
mod child;
mod leftovers;
mod log;
pub(crate) mod preflight;
mod stop;

use std::{
    io::{self, Read},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cooper_common::{
    backoff, clock,
    config::{Config, Origin, Role},
    error::Code,
};
use rustix::process::{WaitOptions, WaitStatus};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};

use crate::{
    args,
    context::Context,
    failure::{Failure, Result},
    role,
    up::child::{Child, Name, Plan},
};

/// From the start of `up` to everything being ready.
const START_MS: u64 = 60_000;
/// Pause between looks at what starts.
const LOOK: Duration = Duration::from_millis(40);
/// The same while the coordinator waits for its store.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
const RESTART_BASE_MS: u64 = 200;
const RESTART_CAP_MS: u64 = 10_000;
/// A child that ran this long starts again as if it never failed.
const STEADY_MS: u64 = 30_000;

pub fn run(context: &Context, args: args::Up) -> Result<u8> {
    role::tie_to(args.supervisor)?;
    let mut flags = args.settings.given;
    if args.no_compose {
        flags.insert("compose", "off".to_owned());
    }
    let config = context.config(Role::Up, flags)?;
    let data = preflight::data(&config)?;
    let python = if args.no_worker { None } else { Some(preflight::python(&config)?) };
    leftovers::end(&data)?;
    preflight::store_is_free(&data)?;
    let listen = preflight::listen(&config)?;

    let signals = Signals::new()?;
    // Whatever outlives its parent down there comes to us, so that nothing is left when we go.
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    let mut up = Up {
        context,
        config: &config,
        data: &data,
        children: Vec::new(),
        signals,
        listen: listen.to_string(),
        url: String::new(),
        with_worker: !args.no_worker,
        python,
    };
    let end = up.start().and_then(|started| if started { up.watch() } else { Ok(()) });
    let stopped = stop::stop(&mut up);
    end?;
    stopped?;
    Ok(0)
}

/// A running `cooper up`.
struct Up<'a> {
    context: &'a Context,
    config: &'a Config,
    data: &'a preflight::Data,
    children: Vec<Child>,
    signals: Signals,
    /// With the real port once that is known, so that a restarted coordinator is where it was.
    listen: String,
    url: String,
    with_worker: bool,
    python: Option<preflight::Python>,
}

impl Up<'_> {
    /// Starts everything and says what runs. False when a signal came first.
    fn start(&mut self) -> Result<bool> {
        let endpoint = self.data.dir.join("endpoint");
        let _ = std::fs::remove_file(&endpoint);
        self.spawn(Name::Coordinator)?;
        let ready = self.until("the coordinator did not answer", |up| {
            let url = std::fs::read_to_string(&endpoint).ok()?.trim().to_owned();
            let healthy = crate::command::healthy(&url, up.config.path("tls_ca").as_deref());
            healthy.then_some(url)
        })?;
        let Some(url) = ready else { return Ok(false) };
        if self.listen.ends_with(":0")
            && let (Some(host), Some(port)) = (self.listen.strip_suffix(":0"), url.rsplit(':').next())
        {
            self.listen = format!("{host}:{port}");
        }
        self.url = url;
        if !self.until_ready()? {
            return Ok(false);
        }
        let mut worker = None;
        if self.with_worker {
            self.spawn(Name::Worker)?;
            worker = self.until("the worker did not register", banner::registered)?;
            if worker.is_none() {
                return Ok(false);
            }
        }
        banner::show(self, worker.as_ref())?;
        Ok(true)
    }

    /// Waits for as long as the coordinator's store cannot be used, and says why. False when a signal says stop.
    fn until_ready(&mut self) -> Result<bool> {
        let mut said = String::new();
        loop {
            if self.signals.stop_wanted() {
                return Ok(false);
            }
            if let Some((name, status)) = self.reap().into_iter().next() {
                return Err(self.ended_early(name, status));
            }
            let Some((message, hint)) =
                crate::command::not_ready(&self.url, self.config.path("tls_ca").as_deref())
            else {
                return Ok(true);
            };
            if message != said {
                self.context.out.note(&format!("note: the coordinator waits: {message}\n  hint: {hint}"));
                said = message;
            }
            self.signals.wait(Some(LOOK_AGAIN));
        }
    }

    /// Looks until there is an answer. None when a signal says stop; an error when a child ends or time is up.
    fn until<T>(&mut self, otherwise: &str, look: impl Fn(&Self) -> Option<T>) -> Result<Option<T>> {
        let deadline = clock::mono_ms() + START_MS;
        loop {
            if self.signals.stop_wanted() {
                return Ok(None);
            }
            if let Some((name, status)) = self.reap().into_iter().next() {
                return Err(self.ended_early(name, status));
            }
            if let Some(found) = look(self) {
                return Ok(Some(found));
            }
            if clock::mono_ms() > deadline {
                let message = format!("{otherwise} within {} s", START_MS / 1_000);
                return Err(Failure::new(Code::Unavailable, message)
                    .hint(format!("read the logs in {}", self.data.logs().display())));
            }
            self.signals.wait(Some(LOOK));
        }
    }

    /// Restarts what ends, until a signal says stop.
    fn watch(&mut self) -> Result<()> {
        while !self.signals.stop_wanted() {
            for (name, status) in self.reap() {
                self.plan_restart(name, status);
            }
            let now = clock::mono_ms();
            for name in [Name::Coordinator, Name::Worker] {
                let due = self.child(name).and_then(|child| child.restart_at_ms).is_some_and(|at| at <= now);
                if due {
                    self.spawn(name)?;
                }
            }
            let next = self.children.iter().filter_map(|child| child.restart_at_ms).min();
            self.signals.wait(next.map(|at| Duration::from_millis(at.saturating_sub(now).max(1))));
        }
        Ok(())
    }

    fn plan_restart(&mut self, name: Name, status: WaitStatus) {
        let now = clock::mono_ms();
        let Some(child) = self.child(name) else { return };
        if now.saturating_sub(child.started_at_ms) > STEADY_MS {
            child.attempt = 0;
        }
        let pause = backoff::full_jitter(RESTART_BASE_MS, RESTART_CAP_MS, child.attempt, rand::random());
        child.attempt = child.attempt.saturating_add(1);
        child.restart_at_ms = Some(now + pause.as_millis() as u64);
        let said = child.log.last_error().map(|error| format!(": {}", error.message)).unwrap_or_default();
        self.context.out.note(&format!(
            "note: the {name} ended ({}){said}; starting it again in {} ms",
            child::how(status),
            pause.as_millis()
        ));
    }

    fn ended_early(&mut self, name: Name, status: WaitStatus) -> Failure {
        let log = self.data.log(name);
        match self.child(name).and_then(|child| child.log.last_error()) {
            Some(report) => Failure::Error(report),
            None => Failure::new(
                Code::Internal,
                format!("the {name} ended ({}) before it was ready", child::how(status)),
            )
            .hint(format!("read {}", log.display())),
        }
    }

    fn child(&mut self, name: Name) -> Option<&mut Child> {
        self.children.iter_mut().find(|child| child.name == name)
    }

    fn spawn(&mut self, name: Name) -> Result<()> {
        let attempt = self.child(name).map_or(0, |child| child.attempt);
        let plan = Plan { config: self.config, data: self.data, listen: &self.listen, url: &self.url };
        let forward = !self.context.out.json;
        let mut child = child::start(name, &plan, forward)?;
        child.attempt = attempt;
        self.children.retain(|other| other.name != name);
        self.children.push(child);
        leftovers::record(self.data, &self.children);
        Ok(())
    }

    /// Takes in every process of ours that ended: children, and orphans that came to us.
    fn reap(&mut self) -> Vec<(Name, WaitStatus)> {
        let mut ended = Vec::new();
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if let Some(child) = self.children.iter_mut().find(|child| child.pid == Some(pid)) {
                child.pid = None;
                // The last lines it wrote are on their way.
                child.log.drain();
                ended.push((child.name, status));
            }
        }
        ended
    }
}

/// SIGINT, SIGTERM and SIGHUP say stop; SIGCHLD wakes.
struct Signals {
    wakes: UnixStream,
    stop: Arc<AtomicBool>,
    stops: usize,
}

impl Signals {
    fn new() -> Result<Self> {
        let fail =
            |error: io::Error| Failure::new(Code::Internal, format!("cannot listen for signals: {error}"));
        let (wakes, bell) = UnixStream::pair().map_err(fail)?;
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&stop)).map_err(fail)?;
        }
        for signal in [SIGINT, SIGTERM, SIGHUP, SIGCHLD] {
            signal_hook::low_level::pipe::register(signal, bell.try_clone().map_err(fail)?).map_err(fail)?;
        }
        Ok(Self { wakes, stop, stops: 0 })
    }

    fn stop_wanted(&mut self) -> bool {
        self.count() > 0
    }

    /// More than one: whoever presses Ctrl-C again will not wait.
    fn stop_at_once(&mut self) -> bool {
        self.count() > 1
    }

    fn count(&mut self) -> usize {
        self.stops += usize::from(self.stop.swap(false, Ordering::SeqCst));
        self.stops
    }

    /// Waits for a signal, at most this long.
    fn wait(&mut self, at_most: Option<Duration>) {
        let _ = self.wakes.set_read_timeout(at_most);
        let mut bells = [0; 64];
        let _ = self.wakes.read(&mut bells);
    }
}

/// Where the flags of `up` go on to: only what came as a flag; environment and file are read by the children.
fn passed_on(config: &Config, role: Role) -> Vec<String> {
    config
        .entries
        .iter()
        .filter(|entry| matches!(entry.origin, Origin::Flag(_)) && entry.setting.belongs_to(role))
        .filter(|entry| !["data", "listen"].contains(&entry.setting.key))
        .flat_map(|entry| [format!("--{}", entry.setting.key.replace('_', "-")), entry.value.to_string()])
        .collect()
}

/// A path as short as it can be said from here.
fn short(path: &std::path::Path) -> String {
    let here = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    path.strip_prefix(&here).unwrap_or(path).display().to_string()
}
