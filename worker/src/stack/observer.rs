//! Sees what goes wrong in stacks without anybody asking: the process `cooper worker-observe`, a child of the host.
//!
//! It hears the engine's events on one connection and follows the logs of services that may be repaired by themselves;
//! between events it does nothing. What is not well it says to its host, once, and then not before it is told that it
//! should. It decides nothing about repairs and touches nothing: whether one begins is the coordinator's decision.

mod ends;
mod follow;
mod troubles;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use prost::Message as _;
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use cooper_common::limits::observer::{FOLLOWED_MAX, KNOWN_MS, LOG_BYTES_MAX, LOOK_BACK_MS};
use cooper_common::{clock, telemetry};
use cooper_proto::host::{ToObserver, Watch, to_observer};
use cooper_proto::v1;
use cooper_repair::{Policy, RuleSet};

use super::engine::{Container, Engine, Event};
use super::observe;
use super::project::Project;
use super::{Log, failed};
use crate::frame;
use ends::Ends;
use troubles::{Due, Key, Kind, Seen, Troubles};

/// Hidden first argument of the process.
pub const ARGV: &str = "worker-observe";
/// Events that wait while compose is asked what a stack is; more wait at the engine.
const EVENTS_MAX: usize = 1_024;
/// Between two tries to reach an engine that is not there.
const RECONNECT: Duration = Duration::from_secs(1);
const RECONNECT_MAX: Duration = Duration::from_secs(30);
/// Of a line that is told, in characters.
const QUOTED_MAX: usize = 300;

/// What happens outside.
enum Happened {
    /// The engine is there (again).
    Connected(Engine),
    Event(Event),
    /// A container printed what a rule of class `auto` knows.
    Printed {
        container: String,
        key: Key,
        rule: String,
        line: String,
    },
    /// A container's log came to its end.
    Unfollowed(String),
}

/// Entry of `cooper worker-observe LOG_LEVEL`.
pub fn main() -> ExitCode {
    telemetry::init(&std::env::args().nth(2).unwrap_or_default());
    let observed = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .and_then(|runtime| runtime.block_on(async { work(Host::new()?).await }));
    match observed {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the observer of the stacks ends");
            ExitCode::FAILURE
        }
    }
}

/// The socket to the host, which tells what to watch.
struct Host(UnixDatagram);

impl Host {
    /// Standard input is a SOCK_SEQPACKET to it.
    fn new() -> std::io::Result<Self> {
        let socket = std::io::stdin().as_fd().try_clone_to_owned()?;
        rustix::io::ioctl_fionbio(&socket, true)?;
        // As in the link: readiness is the same for SOCK_SEQPACKET, and only `frame` reads.
        Ok(Self(UnixDatagram::from_std(socket.into())?))
    }

    /// None: the host is gone.
    async fn hear(&self, buffer: &mut frame::Buffer) -> std::io::Result<Option<to_observer::Message>> {
        loop {
            let heard = self.0.async_io(Interest::READABLE, || {
                let Some((body, _)) = frame::recv(self.0.as_fd(), buffer)? else { return Ok(None) };
                let said = ToObserver::decode(&*body);
                Ok(Some(said.map_err(|e| std::io::Error::new(std::io::ErrorKind::InvalidData, e))?))
            });
            match heard.await? {
                Some(ToObserver { message: Some(message) }) => return Ok(Some(message)),
                Some(ToObserver { message: None }) => {}
                None => return Ok(None),
            }
        }
    }

    async fn tell(&self, trouble: &v1::Trouble) -> std::io::Result<()> {
        self.0.async_io(Interest::WRITABLE, || frame::send(self.0.as_fd(), trouble, &[])).await
    }
}

async fn work(host: Host) -> std::io::Result<()> {
    let (happens, mut happened) = mpsc::channel(EVENTS_MAX);
    tokio::spawn(listen(happens.clone()));
    let mut observer = Observer::new(happens);
    let mut buffer = frame::Buffer::default();
    loop {
        let due = observer.troubles.next();
        let wait = async {
            match due {
                Some(due) => tokio::time::sleep(Duration::from_millis(due.saturating_sub(now()))).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            said = host.hear(&mut buffer) => match said? {
                Some(to_observer::Message::Watch(watch)) => observer.watch(watch).await,
                Some(to_observer::Message::Heard(heard)) => {
                    observer.troubles.heard(now(), &(heard.stack, heard.service), heard.quiet_ms, heard.again);
                }
                None => return Ok(()),
            },
            Some(happened) = happened.recv() => observer.happened(happened).await,
            () = wait => {
                while let Some(due) = observer.troubles.poll(now()) {
                    if let Some(trouble) = observer.told(due).await {
                        host.tell(&trouble).await?;
                    }
                }
            }
        }
    }
}

/// From when on the log of a container counts that was there before: what starts together with this worker is seen too.
fn recently() -> i64 {
    (clock::wall_ms() - LOOK_BACK_MS) / 1_000
}

fn now() -> u64 {
    clock::mono_ms()
}

/// Hears the engine's events, whenever it is there. What happened while the connection was broken comes with the next.
async fn listen(happens: mpsc::Sender<Happened>) {
    let mut wait = RECONNECT;
    let mut since = None;
    loop {
        match Engine::connect().await {
            Ok(engine) => {
                wait = RECONNECT;
                let mut events = std::pin::pin!(engine.events(since));
                if happens.send(Happened::Connected(engine)).await.is_err() {
                    return;
                }
                while let Some(Ok(event)) = events.next().await {
                    since = Some(event.at_ns);
                    if happens.send(Happened::Event(event)).await.is_err() {
                        return;
                    }
                }
                tracing::info!("the engine's events ended; listening again");
            }
            Err(error) => tracing::debug!(%error, "the engine is not there"),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(RECONNECT_MAX);
    }
}

/// What compose said of a stack.
struct Known {
    asked_ms: u64,
    /// Services that may be repaired by themselves.
    auto: BTreeSet<String>,
    /// Knows the stack's secrets.
    log: Log,
}

struct Observer {
    happens: mpsc::Sender<Happened>,
    engine: Option<Engine>,
    /// Stacks by their real directories.
    stacks: BTreeMap<PathBuf, String>,
    /// Known with the first word of the host.
    rules: Option<Arc<RuleSet>>,
    known: BTreeMap<String, Known>,
    ends: Ends,
    troubles: Troubles,
    /// Containers whose logs are read.
    followed: HashMap<String, AbortHandle>,
}

impl Observer {
    fn new(happens: mpsc::Sender<Happened>) -> Self {
        Self {
            happens,
            engine: None,
            stacks: BTreeMap::new(),
            rules: None,
            known: BTreeMap::new(),
            ends: Ends::default(),
            troubles: Troubles::default(),
            followed: HashMap::new(),
        }
    }

    async fn watch(&mut self, watch: Watch) {
        let real = |dir: &str| std::fs::canonicalize(dir).unwrap_or_else(|_| PathBuf::from(dir));
        self.stacks = watch.stacks.iter().map(|stack| (real(&stack.dir), stack.name.clone())).collect();
        let further = watch.observe.unwrap_or_default().rules;
        let further: Vec<(&str, &str)> =
            further.iter().map(|file| (file.name.as_str(), file.text.as_str())).collect();
        match RuleSet::with(&further) {
            Ok(rules) => self.rules = Some(Arc::new(rules)),
            Err(error) => tracing::warn!(%error, "the coordinator's rules cannot be read here"),
        }
        for (_, follows) in self.followed.drain() {
            follows.abort();
        }
        self.known.clear();
        self.look_around().await;
    }

    async fn happened(&mut self, happened: Happened) {
        match happened {
            Happened::Connected(engine) => {
                self.engine = Some(engine);
                self.look_around().await;
            }
            Happened::Event(event) => self.event(event).await,
            Happened::Printed { container, key, rule, line } => {
                let what = format!("it printed what rule {rule} knows: {}", self.quoted(&key.0, &line));
                self.troubles.saw(now(), key, Seen { kind: Kind::Log, what, container });
            }
            Happened::Unfollowed(container) => drop(self.followed.remove(&container)),
        }
    }

    /// What is there already: troubles that began while nobody watched, and logs to follow.
    async fn look_around(&mut self) {
        let Some(engine) = &self.engine else { return };
        let containers = match engine.composed().await {
            Ok(containers) => containers,
            Err(error) => return tracing::warn!(%error, "the stacks' containers cannot be looked at"),
        };
        for container in containers {
            let Some(key) = self.watched(&container).await else { continue };
            match self.look(&container.id).await {
                Some(Look::Well) => self.follow(&container.id, key, recently()),
                // When nobody watched, somebody may have stopped it.
                Some(Look::Sick(Kind::Died)) => {}
                Some(Look::Sick(kind)) => {
                    let what = what(kind, &container.name, None);
                    self.troubles.saw(
                        now(),
                        key.clone(),
                        Seen { kind, what, container: container.id.clone() },
                    );
                    self.follow(&container.id, key, recently());
                }
                None => {}
            }
        }
    }

    async fn event(&mut self, event: Event) {
        let id = &event.container.id;
        let seen = match event.action.as_str() {
            "kill" => return self.ends.signalled(now(), id, &event.signal),
            "destroy" => return self.ends.forget(id),
            "die" => self.ends.ended(now(), id, event.exit_code),
            "oom" => Some(Kind::Oom),
            "health_status: unhealthy" => Some(Kind::Unhealthy),
            "start" => None,
            _ => return,
        };
        if seen.is_none() && event.action != "start" {
            return;
        }
        let Some(key) = self.watched(&event.container).await else { return };
        let Some(kind) = seen else { return self.follow(id, key, event.at_ns / 1_000_000_000) };
        let what = what(kind, &event.container.name, Some(event.exit_code));
        tracing::debug!(stack = key.0, service = key.1, "{what}");
        self.troubles.saw(now(), key, Seen { kind, what, container: id.clone() });
    }

    /// The service of a container that may be repaired by itself.
    async fn watched(&mut self, container: &Container) -> Option<Key> {
        let dir = Path::new(&container.working_dir);
        let dir = std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_path_buf());
        let stack = self.stacks.get(&dir)?.clone();
        if self.known.get(&stack).is_none_or(|known| now() - known.asked_ms > KNOWN_MS) {
            let known = ask(&dir).await;
            self.known.insert(stack.clone(), known);
        }
        let auto = self.known.get(&stack)?.auto.contains(&container.service);
        auto.then(|| (stack, container.service.clone()))
    }

    /// What to say now of what is due; nothing if the service is well again.
    async fn told(&mut self, due: Due) -> Option<v1::Trouble> {
        let (key, seen) = match due {
            Due::Tell(key, seen) => (key, seen),
            Due::Look(key, seen) => {
                let sick = match seen.kind {
                    Kind::Log => true,
                    _ => self.is_sick(&key).await,
                };
                if !sick {
                    self.troubles.forget(&key);
                    return None;
                }
                (key, seen)
            }
        };
        let log = if seen.kind == Kind::Log { self.log_of(&key, &seen.container).await } else { Vec::new() };
        Some(troubles::trouble(key, &seen, log))
    }

    /// Whether a container of a service is not well now.
    async fn is_sick(&self, (stack, service): &Key) -> bool {
        let Some(engine) = &self.engine else { return true };
        let Ok(containers) = engine.composed().await else { return true };
        for container in containers.into_iter().filter(|container| container.service == *service) {
            let dir = std::fs::canonicalize(&container.working_dir).unwrap_or_default();
            if self.stacks.get(&dir) == Some(stack)
                && !matches!(self.look(&container.id).await, Some(Look::Well) | None)
            {
                return true;
            }
        }
        false
    }

    /// How a container is; none: it is gone, or somebody has stopped it.
    async fn look(&self, id: &str) -> Option<Look> {
        let seen = observe::look(self.engine.as_ref()?, id).await.ok().flatten()?;
        let state = &seen.state;
        Some(match (state.status.as_str(), state.health.as_deref()) {
            _ if state.oom_killed => Look::Sick(Kind::Oom),
            ("restarting", _) => Look::Sick(Kind::Looping),
            (_, Some("unhealthy")) => Look::Sick(Kind::Unhealthy),
            ("running", _) => Look::Well,
            // What was stopped ends so too: only an error of its own is one.
            ("exited" | "dead", _) if !matches!(state.exit_code, 0 | 130 | 137 | 143) => {
                Look::Sick(Kind::Died)
            }
            _ => return None,
        })
    }

    /// Reads what a container prints from a time (Unix seconds) on.
    fn follow(&mut self, id: &str, key: Key, since: i64) {
        let (Some(engine), Some(rules)) = (&self.engine, &self.rules) else { return };
        if self.followed.contains_key(id) || self.followed.len() >= FOLLOWED_MAX {
            return;
        }
        let (pieces, rules, happens) = (engine.follow(id, since), rules.clone(), self.happens.clone());
        let container = id.to_owned();
        let reading = tokio::spawn(async move {
            follow::lines(pieces, &rules, |rule, line| {
                // A flood of what rules know is one trouble: what finds no room says nothing new.
                let (container, key) = (container.clone(), key.clone());
                let _ = happens.try_send(Happened::Printed { container, key, rule, line });
            })
            .await;
            let _ = happens.send(Happened::Unfollowed(container.clone())).await;
        });
        self.followed.insert(id.to_owned(), reading.abort_handle());
    }

    /// The end of what a container has printed, without secrets.
    async fn log_of(&self, key: &Key, id: &str) -> Vec<u8> {
        let Some(engine) = &self.engine else { return Vec::new() };
        let text = engine.logs(id).await.unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let text = &text[text.ceil_char_boundary(text.len().saturating_sub(LOG_BYTES_MAX))..];
        let mut text = self.without_secrets(&key.0, text);
        text.truncate(text.floor_char_boundary(LOG_BYTES_MAX));
        text.into_bytes()
    }

    fn quoted(&self, stack: &str, line: &str) -> String {
        let line = self.without_secrets(stack, line);
        line.trim().chars().filter(|c| !c.is_control()).take(QUOTED_MAX).collect()
    }

    fn without_secrets(&self, stack: &str, text: &str) -> String {
        self.known.get(stack).map_or_else(String::new, |known| known.log.redact(text))
    }
}

/// What is said of a container.
fn what(kind: Kind, name: &str, exit_code: Option<i64>) -> String {
    let with = exit_code.map_or_else(String::new, |code| format!(", with exit code {code}"));
    match kind {
        Kind::Died => format!("{name} ended{with}"),
        Kind::Looping => format!("{name} ends again and again{with}"),
        Kind::Oom => format!("{name} ran out of memory"),
        Kind::Unhealthy | Kind::Log => format!("the healthcheck of {name} fails"),
    }
}

/// How a container is.
enum Look {
    Well,
    Sick(Kind),
}

/// Asks compose which services of a stack may be repaired by themselves. None, where it or the policy cannot be read.
async fn ask(dir: &Path) -> Known {
    let log = Log::new(std::io::sink());
    let asked = async {
        let model = Project::load(dir, &log).await?.model;
        let mut auto = BTreeSet::new();
        for service in model.services.keys() {
            let policy = Policy::of(&model, service).map_err(|error| failed(error.to_string()))?;
            if policy.auto_repair {
                auto.insert(service.clone());
            }
        }
        Ok::<_, cooper_common::error::Error>(auto)
    };
    let auto = asked.await.unwrap_or_else(|error| {
        tracing::warn!(dir = %dir.display(), %error, "nothing of this stack is repaired by itself");
        BTreeSet::new()
    });
    Known { asked_ms: now(), auto, log }
}
