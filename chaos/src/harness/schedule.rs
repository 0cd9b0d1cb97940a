//! What goes wrong, and when: all of it follows from the seed.

use std::{fmt, time::Duration};

use cooper_common::failpoint::name;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};

/// The workers, the last of which is alone in a network namespace.
pub const WORKERS: usize = 3;
/// Between one fault and the next, on average.
const GAP_MS: u64 = 550;
/// Passes of a failpoint until it kills.
const PASSES_MAX: u64 = 40;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Coordinator,
    Host(usize),
    Link(usize),
}

/// Where a proxy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    Worker(usize),
    /// Between some of the clients and the coordinator.
    Clients,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Every connection is reset.
    Cut,
    /// Whatever is sent arrives later.
    Delay,
    /// Connections stay open and nothing arrives: half-open.
    Swallow,
    /// Little is read at a time.
    Slow,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL, and again at the n-th pass of a failpoint once it was started anew.
    Kill {
        role: Role,
        then_at: Option<(&'static str, u64)>,
    },
    /// SIGSTOP, and SIGCONT afterwards.
    Stop {
        role: Role,
        ms: u64,
    },
    Network {
        line: Line,
        trouble: Trouble,
        ms: u64,
    },
    /// The last worker's packets are dropped, in both directions.
    DropPackets {
        ms: u64,
    },
    /// No space where the coordinator keeps its data; `at_start`: it is ended in order, and finds that at its next start.
    DiskFull {
        ms: u64,
        at_start: bool,
    },
    /// SIGTERM for the coordinator.
    Terminate,
    /// The coordinator's wall clock jumps.
    Clock {
        to_s: i64,
    },
}

impl Fault {
    pub fn kind(&self) -> String {
        let role = |role: &Role| match role {
            Role::Coordinator => "coordinator",
            Role::Host(_) => "host",
            Role::Link(_) => "link",
        };
        match self {
            Fault::Kill { role: who, then_at: None } => format!("kill {}", role(who)),
            Fault::Kill { then_at: Some((failpoint, _)), .. } => format!("kill, then at {failpoint}"),
            Fault::Stop { role: who, ms } if *ms > 1_500 => format!("stop {} past its lease", role(who)),
            Fault::Stop { role: who, .. } => format!("stop {}", role(who)),
            Fault::Network { trouble, .. } => format!("{trouble:?}").to_lowercase(),
            Fault::DropPackets { .. } => "drop packets".into(),
            Fault::DiskFull { at_start: false, .. } => "disk full".into(),
            Fault::DiskFull { .. } => "disk full at a start".into(),
            Fault::Terminate => "terminate coordinator".into(),
            Fault::Clock { .. } => "clock jump".into(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    pub at_ms: u64,
    pub fault: Fault,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>8} ms  {:?}", self.at_ms, self.fault)
    }
}

/// Faults with `kills` kills among them. However few, every kind of fault is among the first.
pub fn plan(seed: u64, kills: usize) -> Vec<Planned> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut faults = one_of_each(&mut rng);
    faults.shuffle(&mut rng);
    let mut killed = faults.iter().filter(|fault| matches!(fault, Fault::Kill { .. })).count();
    while killed < kills {
        faults.push(kill(&mut rng));
        killed += 1;
        if rng.random_bool(0.4) {
            faults.push(other(&mut rng));
        }
    }
    if killed > kills {
        let mut left = kills;
        faults.retain(|fault| {
            let is_kill = matches!(fault, Fault::Kill { .. });
            let keep = !is_kill || left > 0;
            left -= usize::from(is_kill && keep);
            keep
        });
    }
    let mut at_ms = 0;
    let mut planned = Vec::with_capacity(faults.len());
    for fault in faults {
        at_ms += rng.random_range(GAP_MS / 4..GAP_MS * 7 / 4);
        planned.push(Planned { at_ms, fault });
    }
    planned
}

/// How long the plan takes, with what its last faults need.
pub fn takes(plan: &[Planned]) -> Duration {
    Duration::from_millis(plan.last().map_or(0, |last| last.at_ms) + 1_000)
}

fn one_of_each(rng: &mut StdRng) -> Vec<Fault> {
    let w = |rng: &mut StdRng| rng.random_range(0..WORKERS);
    let mut all = vec![
        Fault::Kill { role: Role::Coordinator, then_at: None },
        Fault::Kill { role: Role::Link(w(rng)), then_at: None },
        Fault::Kill { role: Role::Host(w(rng)), then_at: None },
        Fault::Stop { role: Role::Coordinator, ms: 2_200 },
        Fault::Stop { role: Role::Link(w(rng)), ms: 2_200 },
        Fault::Stop { role: Role::Host(w(rng)), ms: 2_200 },
        Fault::Stop { role: Role::Link(w(rng)), ms: 300 },
        Fault::DropPackets { ms: 2_500 },
        Fault::DiskFull { ms: 1_500, at_start: false },
        Fault::DiskFull { ms: 1_000, at_start: true },
        Fault::Terminate,
        Fault::Clock { to_s: 7_200 },
        Fault::Clock { to_s: -7_200 },
    ];
    for trouble in [Trouble::Cut, Trouble::Delay, Trouble::Swallow, Trouble::Slow] {
        all.push(Fault::Network { line: Line::Clients, trouble, ms: 1_000 });
        all.push(Fault::Network { line: Line::Worker(w(rng)), trouble, ms: 1_000 });
    }
    for failpoint in OF_COORDINATOR {
        let then_at = Some((failpoint, rng.random_range(1..=PASSES_MAX)));
        all.push(Fault::Kill { role: Role::Coordinator, then_at });
    }
    for failpoint in OF_WORKER {
        // A host passes few in its short life.
        let then_at = Some((failpoint, rng.random_range(1..=6)));
        all.push(Fault::Kill { role: Role::Host(w(rng)), then_at });
    }
    all
}

const OF_COORDINATOR: [&str; 4] = [
    name::COMMIT_BEFORE_REPLY,
    name::MID_GROUP_COMMIT,
    name::DISPATCH_BEFORE_ACK,
    name::OUTPUT_BEFORE_RESULT,
];
/// A link's are armed by the start of its host.
const OF_WORKER: [&str; 3] = [name::SPOOLED_BEFORE_SENT, name::ASSIGN_BEFORE_HOST, name::ACK_BEFORE_HOST];

fn kill(rng: &mut StdRng) -> Fault {
    let worker = rng.random_range(0..WORKERS);
    match rng.random_range(0..100) {
        0..25 => Fault::Kill { role: Role::Coordinator, then_at: None },
        25..45 => {
            let failpoint = OF_COORDINATOR[rng.random_range(0..OF_COORDINATOR.len())];
            let then_at = Some((failpoint, rng.random_range(1..=PASSES_MAX)));
            Fault::Kill { role: Role::Coordinator, then_at }
        }
        45..80 => Fault::Kill { role: Role::Link(worker), then_at: None },
        80..90 => Fault::Kill { role: Role::Host(worker), then_at: None },
        _ => {
            let failpoint = OF_WORKER[rng.random_range(0..OF_WORKER.len())];
            let then_at = Some((failpoint, rng.random_range(1..=12)));
            Fault::Kill { role: Role::Host(worker), then_at }
        }
    }
}

fn other(rng: &mut StdRng) -> Fault {
    let worker = rng.random_range(0..WORKERS);
    match rng.random_range(0..100) {
        0..30 => {
            let role = match rng.random_range(0..4) {
                0 => Role::Coordinator,
                1 => Role::Host(worker),
                _ => Role::Link(worker),
            };
            // One in four is longer than the lease.
            let ms = if rng.random_ratio(1, 4) {
                rng.random_range(1_800..2_800)
            } else {
                rng.random_range(50..500)
            };
            Fault::Stop { role, ms }
        }
        30..80 => {
            let line = if rng.random_ratio(1, 4) { Line::Clients } else { Line::Worker(worker) };
            let all = [Trouble::Cut, Trouble::Delay, Trouble::Swallow, Trouble::Slow];
            let trouble = all[rng.random_range(0..all.len())];
            Fault::Network { line, trouble, ms: rng.random_range(200..2_000) }
        }
        80..88 => Fault::DropPackets { ms: rng.random_range(300..3_000) },
        88..93 => Fault::DiskFull { ms: rng.random_range(500..2_500), at_start: rng.random() },
        93..96 => Fault::Terminate,
        _ => Fault::Clock { to_s: rng.random_range(-86_400..86_400) },
    }
}
