//! The cluster that is treated badly: a coordinator and workers as processes of their own, proxies between them.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use cooper_common::clock;
use rustix::process::{Pid, Signal, kill_process};

use super::{
    machine::{Clock, Disk, Namespace},
    proxy::Proxy,
    schedule::{Fault, Line, Role, Trouble, WORKERS},
    supervised::{Recipe, Supervised},
};

const START: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);
const LINK: &str = "worker-link";

pub struct Cluster {
    pub address: SocketAddr,
    /// What the faults between clients and coordinator are done to.
    pub clients_proxy: Rc<Proxy>,
    pub dir: PathBuf,
    coordinator: Supervised,
    workers: Vec<Supervised>,
    proxies: Vec<Rc<Proxy>>,
    disk: Option<Arc<Disk>>,
    namespace: Option<Rc<Namespace>>,
    clock: Option<Clock>,
    /// Faults that this machine does not allow, and why.
    pub left_out: BTreeMap<&'static str, String>,
    links_killed: Rc<Cell<u64>>,
    /// Faults in force on a line; the last one to end heals it.
    troubled: Rc<RefCell<HashMap<String, u64>>>,
}

impl Cluster {
    pub async fn start(dir: &Path, cooper: &Path, config: &Path) -> Result<Self> {
        let data = dir.join("coordinator");
        fs::create_dir_all(&data)?;
        let mut left_out = BTreeMap::new();
        let mut or_said = |what: &'static str, why: anyhow::Error| {
            left_out.insert(what, format!("{why:#}"));
        };
        let disk = Disk::mount(&data).map_err(|why| or_said("disk full", why)).ok().map(Arc::new);
        let namespace = Namespace::make().map_err(|why| or_said("dropped packets", why)).ok().map(Rc::new);
        let clock = Clock::make(dir).map_err(|why| or_said("clock jumps", why)).ok();

        let address = free_address()?;
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let (program, file) = (cooper.to_string_lossy(), config.to_string_lossy());
        let mut argv = words(&[&program, "coordinator", "--config", &file, "--log-level", "info"]);
        argv.extend(words(&["--data", &data.to_string_lossy(), "--listen", &address.to_string()]));
        let env = clock.iter().flat_map(Clock::env).map(|(name, value)| (name.to_owned(), value)).collect();
        let recipe = Recipe { name: "coordinator".into(), argv, env, log: dir.join("coordinator.log") };
        let coordinator = Supervised::start(recipe)?;
        let token = data.join("worker.token");
        until("the coordinator's tokens", || token.exists() && data.join("endpoint").exists()).await?;
        // The link of a worker gives up its rights; the token it is told by its host.
        let own = dir.join("worker.token");
        fs::copy(&token, &own)?;

        let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
        let (mut proxies, mut workers) = (Vec::new(), Vec::new());
        for index in 0..WORKERS {
            let alone = namespace.as_ref().filter(|_| index == WORKERS - 1);
            let proxy = Rc::new(Proxy::start(alone.map_or(loopback, |alone| alone.ours), address).await?);
            let name = format!("w{index}");
            let mut argv = alone.map(|alone| alone.prefix()).unwrap_or_default();
            argv.extend(words(&[&program, "worker", "--config", &file, "--log-level", "info"]));
            argv.extend(words(&["--data", &dir.join(&name).to_string_lossy(), "--worker-id", &name]));
            argv.extend(words(&["--coordinator-addr", &proxy.address.to_string(), "--compose", "off"]));
            argv.extend(words(&["--join-token-file", &own.to_string_lossy(), "--max-sessions", "16"]));
            // Effects are written beside all workspaces, where code that is confined reaches nothing.
            argv.extend(words(&["--min-tier", "unconfined", "--mask-facilities", "uid,namespaces,landlock"]));
            let log = dir.join(format!("{name}.log"));
            workers.push(Supervised::start(Recipe { name, argv, env: Vec::new(), log })?);
            proxies.push(proxy);
        }
        Ok(Self {
            address,
            clients_proxy: Rc::new(Proxy::start(loopback, address).await?),
            dir: dir.to_owned(),
            coordinator,
            workers,
            proxies,
            disk,
            namespace,
            clock,
            left_out,
            links_killed: Rc::default(),
            troubled: Rc::default(),
        })
    }

    pub fn admin_token(&self) -> Result<String> {
        let text = fs::read_to_string(self.dir.join("coordinator/admin.token"));
        Ok(text.context("admin.token")?.trim().to_owned())
    }

    /// Processes that SIGKILL ended so far.
    pub fn kills(&self) -> u64 {
        let hosts: u64 = self.workers.iter().map(Supervised::killed).sum();
        self.coordinator.killed() + hosts + self.links_killed.get()
    }

    /// Times that the coordinator, and the workers' hosts, ended by themselves.
    pub fn ends(&self) -> (u64, u64) {
        (self.coordinator.ended(), self.workers.iter().map(Supervised::ended).sum())
    }

    fn pid(&self, role: Role) -> Option<Pid> {
        match role {
            Role::Coordinator => self.coordinator.pid(),
            Role::Host(index) => self.workers[index].pid(),
            Role::Link(index) => self.workers[index].child(LINK),
        }
    }

    /// Does it. What lasts goes on by itself and ends by itself. False: this machine does not allow it.
    pub fn perform(&self, fault: Fault) -> Result<bool> {
        match fault {
            Fault::Kill { role, then_at } => {
                let supervised = match role {
                    Role::Coordinator => &self.coordinator,
                    Role::Host(index) | Role::Link(index) => &self.workers[index],
                };
                if let Some((failpoint, pass)) = then_at {
                    supervised.arm(format!("{failpoint}={pass}"));
                }
                if let Some(pid) = self.pid(role) {
                    let _ = kill_process(pid, Signal::KILL);
                    if let Role::Link(_) = role {
                        self.links_killed.set(self.links_killed.get() + 1);
                    }
                }
            }
            Fault::Stop { role, ms } => {
                let Some(pid) = self.pid(role) else { return Ok(true) };
                let _ = kill_process(pid, Signal::STOP);
                tokio::task::spawn_local(async move {
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                    // A pid that is gone meanwhile is not taken again so soon.
                    let _ = kill_process(pid, Signal::CONT);
                });
            }
            Fault::Network { line, trouble, ms } => {
                let proxy = match line {
                    Line::Worker(index) => self.proxies[index].clone(),
                    Line::Clients => self.clients_proxy.clone(),
                };
                proxy.set(Some(trouble));
                if trouble != Trouble::Cut {
                    self.lasts(format!("{line:?}"), ms, move || proxy.set(None));
                }
            }
            Fault::DropPackets { ms } => {
                let Some(namespace) = self.namespace.clone() else { return Ok(false) };
                namespace.drop_packets(true)?;
                tokio::task::spawn_local(async move {
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                    let _ = namespace.drop_packets(false);
                });
            }
            Fault::DiskFull { ms, at_start } => {
                let Some(disk) = self.disk.clone() else { return Ok(false) };
                let coordinator = self.coordinator.clone();
                tokio::task::spawn_local(async move {
                    if at_start {
                        coordinator.signal(Signal::TERM);
                    }
                    // A moment in which the clients go on.
                    let filling = Arc::clone(&disk);
                    let _ = tokio::task::spawn_blocking(move || filling.fill()).await;
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                    disk.free();
                });
            }
            Fault::Terminate => self.coordinator.signal(Signal::TERM),
            Fault::Clock { to_s } => match &self.clock {
                Some(clock) => clock.set(to_s)?,
                None => return Ok(false),
            },
        }
        Ok(true)
    }

    /// Heals after this time, unless another trouble at the same place lasts longer.
    fn lasts(&self, place: String, ms: u64, heal: impl Fn() + 'static) {
        let until = clock::mono_ms() + ms;
        let last = self.troubled.borrow().get(&place).copied().unwrap_or(0).max(until);
        self.troubled.borrow_mut().insert(place.clone(), last);
        let troubled = self.troubled.clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            if troubled.borrow().get(&place).is_some_and(|last| *last <= clock::mono_ms()) {
                heal();
            }
        });
    }

    /// Counts links that die at failpoints, which nobody supervises but their hosts.
    pub fn count_links(self: &Rc<Self>) {
        let this = Rc::clone(self);
        tokio::task::spawn_local(async move {
            let mut before: Vec<(Option<Pid>, Option<Pid>)> = vec![(None, None); WORKERS];
            let mut ours = 0;
            loop {
                for (index, worker) in this.workers.iter().enumerate() {
                    let now = (worker.pid(), worker.child(LINK));
                    let (host, link) = before[index];
                    let vanished = link.is_some() && now.1 != link && host == now.0;
                    // A kill of ours is counted already.
                    if vanished && this.links_killed.get() == ours {
                        this.links_killed.set(ours + 1);
                    }
                    ours = this.links_killed.get();
                    before[index] = now;
                }
                tokio::time::sleep(LOOK).await;
            }
        });
    }

    /// Everything that lasts ends.
    pub fn heal(&self) {
        for proxy in self.proxies.iter().chain([&self.clients_proxy]) {
            proxy.set(None);
        }
        if let Some(disk) = &self.disk {
            disk.free();
        }
        if let Some(clock) = &self.clock {
            let _ = clock.set(0);
        }
        for index in 0..WORKERS {
            for role in [Role::Host(index), Role::Link(index), Role::Coordinator] {
                if let Some(pid) = self.pid(role) {
                    let _ = kill_process(pid, Signal::CONT);
                }
            }
        }
    }

    /// SIGTERM for all, workers first. What had to be killed.
    pub async fn stop(&self) -> Vec<String> {
        let mut stubborn = Vec::new();
        for (index, worker) in self.workers.iter().enumerate() {
            if !worker.stop().await {
                stubborn.push(format!("w{index}"));
            }
        }
        if !self.coordinator.stop().await {
            stubborn.push("coordinator".to_owned());
        }
        stubborn
    }

    /// Gives back what was taken of the machine.
    pub fn clear(&self, keep: bool) -> Result<()> {
        if let Some(namespace) = &self.namespace {
            namespace.remove();
        }
        self.disk.as_ref().map_or(Ok(()), |disk| disk.unmount(keep))
    }
}

/// An address nobody listens on.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

async fn until(what: &str, look: impl Fn() -> bool) -> Result<()> {
    let deadline = clock::since_start() + START;
    while !look() {
        if clock::since_start() > deadline {
            bail!("waited {} s for {what}", START.as_secs());
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}
