//! One simulated cluster from its seed: machines, network, faults, and what is looked at while time passes.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::{Arc, Weak},
    time::Duration,
};

use cooper_common::{clock, token::Secret};
use cooper_coordinator::{
    Allowance, Config, Coordinator, Hosts,
    blobs::Blobs,
    cluster::Cluster,
    output::OutputLog,
    store::Store,
    tokens::{ADMIN_FILE, WORKER_FILE},
    upkeep::Keep,
};
use cooper_core::{cluster::Quota, lease::Timing};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::sync::Notify;
use turmoil::Sim;

use crate::{
    cheat::Cheat,
    check,
    client::Client,
    disk::Disk,
    fault::{self, Fault, Planned},
    machine::Machine,
    net::{self, COORDINATOR},
    witness::Witness,
};

/// How long a turn of one machine is, and the grain of the network.
const TICK: Duration = Duration::from_millis(20);
const LOOK_EVERY_MS: u128 = 200;
const FAULTS_FROM_MS: u64 = 1_500;
const FAULTS_TO_MS: u64 = 28_000;
/// From the end of the faults until all has to be well.
const SETTLE_MS: u64 = 90_000;
/// Shorter than in life, so that all of them matter within a minute.
pub const TIMING: Timing = Timing {
    heartbeat_min_ms: 1_000,
    suspect_beats: 3,
    lease_ms: 6_000,
    lost_ms: 12_000,
    reattach_grace_ms: 10_000,
    tick_ms: 1_000,
};

/// What came of a seed.
#[derive(Debug)]
pub struct Report {
    pub trace: Vec<String>,
    /// Of the trace, and of every recorded event.
    pub hash: u64,
    pub violations: Vec<String>,
    pub tasks: usize,
    pub simulated_ms: u64,
}

thread_local! {
    static ELAPSED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Simulated time. Between the turns of machines, it is where the last turn ended.
fn elapsed() -> Duration {
    if tokio::runtime::Handle::try_current().is_ok()
        && let Some(now) = turmoil::sim_elapsed()
    {
        ELAPSED.set(now.max(ELAPSED.get()));
    }
    ELAPSED.get()
}

/// What the coordinator's machine is made of when it starts.
#[derive(Clone)]
struct Control {
    disk: Rc<Disk>,
    data: Rc<tempfile::TempDir>,
    cluster: Rc<RefCell<Weak<Cluster>>>,
    stop: Rc<Cell<bool>>,
    witness: Witness,
}

impl Control {
    async fn run(self) -> turmoil::Result {
        self.stop.set(false);
        let data = self.data.path();
        let store: Arc<dyn Store> = self.disk.mount();
        let (output, blobs) = (OutputLog::open(data)?, Arc::new(Blobs::open(data)?));
        let bus = self.disk.bus.clone();
        let config = Config {
            tls: None,
            insecure_listen: true,
            hosts: Hosts::Any,
            allowance: Allowance { requests_per_s: 0, concurrent: 0 },
            listen: ([0, 0, 0, 0], net::PORT).into(),
            data: data.to_owned(),
            log_level: String::new(),
            timing: TIMING,
            keepalive: Duration::from_secs(5),
            mcp_earlier: false,
            // How full the disk of this machine is must not matter.
            keep: Keep { free_bytes: 0, ..Keep::default() },
            checkpoints: cooper_coordinator::checkpoints::Quota::default(),
            artifacts: cooper_coordinator::artifacts::Quota::default(),
            quota: Quota::default(),
            defaults: Default::default(),
            repairs: Default::default(),
        };
        let coordinator = Coordinator::load(store, bus, output, blobs, config).await?;
        *self.cluster.borrow_mut() = Arc::downgrade(&coordinator.cluster);
        let incoming = net::incoming().await?;
        self.witness.say("coordinator is up");
        // A flag that is looked at: waiting for a signal has to be `Send`, and nothing here needs to be.
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let flag = self.stop.clone();
        tokio::task::spawn_local(async move {
            while !flag.get() {
                tokio::time::sleep(TICK).await;
            }
            let _ = stop.send(());
        });
        let shutdown = async {
            let _ = stopped.await;
        };
        coordinator.serve(incoming, None, || Ok(()), shutdown).await?;
        self.witness.say("coordinator stopped in order");
        Ok(())
    }
}

/// A cluster and the world around it.
struct World<'a> {
    sim: Sim<'a>,
    witness: Witness,
    control: Control,
    machines: Vec<Machine>,
    clients: usize,
    rng: StdRng,
    /// Faults to come, the next one last.
    plan: Vec<Planned>,
    /// Faults that last.
    broken: Vec<Planned>,
}

/// Runs one seed to its end. On a thread that has done nothing else.
pub fn run(seed: u64, cheat: Option<Cheat>) -> Report {
    clock::simulate(elapsed);
    let witness = Witness::default();
    let noticed = witness.clone();
    let mut world = match World::new(seed, cheat, witness) {
        Ok(world) => world,
        Err(error) => {
            noticed.violated(format!("the cluster could not be built: {error}"));
            return report(&noticed, 0);
        }
    };
    world.live();
    let tasks = world.finish();
    report(&noticed, tasks)
}

fn report(witness: &Witness, tasks: usize) -> Report {
    Report {
        hash: witness.hash(),
        tasks,
        simulated_ms: clock::mono_ms(),
        trace: witness.look(|seen| std::mem::take(&mut seen.lines)),
        violations: witness.look(|seen| seen.violations.clone()),
    }
}

impl World<'_> {
    fn new(seed: u64, cheat: Option<Cheat>, witness: Witness) -> turmoil::Result<Self> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut builder = turmoil::Builder::new();
        let mut sim = builder
            .rng_seed(rng.random())
            .tick_duration(TICK)
            .simulation_duration(Duration::from_secs(3_600))
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(rng.random_range(5..60)))
            .tcp_capacity(4_096)
            .enable_random_order()
            .build();

        let memory = std::path::Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let data = tempfile::Builder::new().prefix("cooper-sim-").tempdir_in(place)?;
        let (client_token, worker_token) = (Secret::generate(), Secret::generate());
        client_token.write_new(&data.path().join(ADMIN_FILE))?;
        worker_token.write_new(&data.path().join(WORKER_FILE))?;
        let control = Control {
            disk: Rc::new(Disk::new(cheat)?),
            data: Rc::new(data),
            cluster: Rc::default(),
            stop: Rc::default(),
            witness: witness.clone(),
        };
        let hosted = control.clone();
        sim.host(COORDINATOR, move || hosted.clone().run());

        let machines: Vec<Machine> = (0..3)
            .map(|number| Machine {
                name: format!("worker-{number}"),
                home: Rc::default(),
                token: worker_token.expose().to_owned(),
                witness: witness.clone(),
                cheat,
                kill_link: Rc::new(Notify::new()),
            })
            .collect();
        for machine in &machines {
            let hosted = machine.clone();
            sim.host(machine.name.as_str(), move || hosted.clone().run());
        }

        let clients = rng.random_range(2..=4);
        for number in 0..clients {
            let name = format!("client-{number}");
            let (seed, pieces) = (rng.random(), rng.random_range(12..30));
            let (hosted, token, witness) = (name.clone(), client_token.clone(), witness.clone());
            sim.client(
                name,
                async move { Client::new(hosted, seed, token.expose(), witness)?.run(pieces).await },
            );
        }
        let mut plan = fault::plan(&mut rng, machines.len(), clients, FAULTS_FROM_MS, FAULTS_TO_MS);
        plan.reverse();
        Ok(Self { sim, witness, control, machines, clients, rng, plan, broken: Vec::new() })
    }

    /// Until everybody has what was promised, or something is wrong.
    fn live(&mut self) {
        loop {
            self.break_and_mend();
            let done = match self.sim.step() {
                Ok(done) => done,
                Err(error) => return self.witness.violated(format!("a machine failed: {error}")),
            };
            ELAPSED.set(self.sim.elapsed());
            self.look();
            if self.witness.failed() {
                return;
            }
            let now = clock::mono_ms();
            let cluster = self.control.cluster.borrow().upgrade();
            let open = cluster.map_or(1, |cluster| {
                let counts = cluster.look(|core| core.counts());
                counts.tasks_queued + counts.tasks_held
            });
            if done && open == 0 && now > FAULTS_TO_MS {
                return;
            }
            if now > FAULTS_TO_MS + SETTLE_MS {
                let who = if done { "the coordinator" } else { "a client" };
                return self.witness.violated(format!("stuck: {who} still waits; {open} tasks are open"));
            }
        }
    }

    /// What must hold at any moment.
    fn look(&self) {
        if let Some(panic) = crate::panicked() {
            self.witness.violated(format!("panic: {panic}"));
        }
        // Decisions check themselves in debug builds; this is for what lies between them, and for all builds.
        if !self.sim.elapsed().as_millis().is_multiple_of(LOOK_EVERY_MS) {
            return;
        }
        let Some(cluster) = self.control.cluster.borrow().upgrade() else { return };
        let wrong = cluster.look(|core| core.violation());
        if let Some(wrong) = wrong {
            self.witness.violated(wrong);
        }
    }

    fn finish(&self) -> usize {
        if self.witness.failed() {
            return 0;
        }
        check::all(&self.control.disk.sqlite, &self.witness)
    }

    // Faults.

    fn break_and_mend(&mut self) {
        let now = clock::mono_ms();
        let over: Vec<Planned> = self.broken.extract_if(.., |planned| planned.to_ms <= now).collect();
        for planned in over {
            self.witness.say(format!("mend {:?}", planned.fault));
            self.mend(&planned.fault);
        }
        while self.plan.last().is_some_and(|next| next.from_ms <= now) {
            let Some(planned) = self.plan.pop() else { break };
            // One fault at a time for each machine: what mends one would mend the other.
            let machines = planned.fault.machines();
            let kills_a_link = matches!(planned.fault, Fault::KillLink(_));
            let busy = !kills_a_link
                && self.broken.iter().any(|other| {
                    let others = other.fault.machines();
                    machines.iter().any(|machine| *machine != COORDINATOR && others.contains(machine))
                        || (machines == [COORDINATOR] && others == [COORDINATOR])
                        || matches!(other.fault, Fault::Vanish(ref name) if name == COORDINATOR)
                });
            let vanishes = matches!(&planned.fault, Fault::Vanish(name) if name == COORDINATOR);
            if busy || (vanishes && !self.broken.is_empty()) {
                continue;
            }
            self.witness.say(format!("break {:?} for {} ms", planned.fault, planned.to_ms - planned.from_ms));
            self.witness.look(|seen| {
                seen.troubles.extend(machines.into_iter().map(|machine| crate::witness::Trouble {
                    machine,
                    from_ms: planned.from_ms,
                    to_ms: planned.to_ms,
                }));
            });
            self.breaks(&planned.fault);
            self.broken.push(planned);
        }
    }

    fn others(&self) -> Vec<String> {
        let workers = self.machines.iter().map(|machine| machine.name.clone());
        workers.chain((0..self.clients).map(|number| format!("client-{number}"))).collect()
    }

    fn breaks(&mut self, fault: &Fault) {
        match fault {
            Fault::Cut(name) => self.sim.partition(name.as_str(), COORDINATOR),
            Fault::CutOneWay(from, to) => self.sim.partition_oneway(from.as_str(), to.as_str()),
            Fault::Hold(name) => self.sim.hold(name.as_str(), COORDINATOR),
            Fault::Slow(ms) => self.sim.set_max_message_latency(Duration::from_millis(*ms)),
            Fault::Lossy(name) => {
                let rate = self.rng.random_range(0.01..0.2);
                self.sim.set_link_fail_rate(name.as_str(), COORDINATOR, rate);
            }
            Fault::Crash(name) => self.crash(name),
            Fault::Vanish(name) => {
                for other in self.far_from(name) {
                    self.sim.partition(name.as_str(), other.as_str());
                }
                self.crash(name);
            }
            Fault::Restart => self.control.stop.set(true),
            Fault::KillLink(number) => self.machines[*number].kill_link.notify_one(),
        }
    }

    fn far_from(&self, name: &str) -> Vec<String> {
        if name == COORDINATOR { self.others() } else { vec![COORDINATOR.to_owned()] }
    }

    fn crash(&mut self, name: &str) {
        if name != COORDINATOR {
            let now = clock::mono_ms();
            self.witness.look(|seen| seen.deaths.push((name.to_owned(), now)));
        }
        self.sim.crash(name);
    }

    fn mend(&mut self, fault: &Fault) {
        match fault {
            Fault::Cut(name) => self.sim.repair(name.as_str(), COORDINATOR),
            Fault::CutOneWay(from, to) => self.sim.repair_oneway(from.as_str(), to.as_str()),
            Fault::Hold(name) => self.sim.release(name.as_str(), COORDINATOR),
            Fault::Slow(_) => self.sim.set_max_message_latency(Duration::from_millis(20)),
            Fault::Lossy(name) => {
                self.sim.set_link_fail_rate(name.as_str(), COORDINATOR, 0.0);
                self.sim.repair(name.as_str(), COORDINATOR);
            }
            Fault::Crash(name) => self.sim.bounce(name.as_str()),
            Fault::Vanish(name) => {
                for other in self.far_from(name) {
                    self.sim.repair(name.as_str(), other.as_str());
                }
                self.sim.bounce(name.as_str());
            }
            Fault::Restart => self.sim.bounce(COORDINATOR),
            Fault::KillLink(_) => {}
        }
    }
}
