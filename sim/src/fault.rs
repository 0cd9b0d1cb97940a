//! What breaks, and when: drawn from the seed, over when the time for faults is over.

use rand::{Rng, rngs::StdRng};

/// Something that is broken from one moment to another.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// Nothing passes between the machine and the coordinator.
    Cut(String),
    /// Nothing passes from the first to the second.
    CutOneWay(String, String),
    /// What is said waits, and arrives when it is over.
    Hold(String),
    /// Messages take up to this long.
    Slow(u64),
    /// Some messages between the machine and the coordinator are lost, and connections hang.
    Lossy(String),
    /// The machine is off. In between nobody answers for it.
    Crash(String),
    /// As if its power was cut: nobody on the other side is told that connections ended.
    Vanish(String),
    /// The coordinator ends in order and is started again.
    Restart,
    /// The link of a worker is killed; its host starts another.
    KillLink(usize),
}

#[derive(Debug, Clone)]
pub struct Planned {
    pub from_ms: u64,
    pub to_ms: u64,
    pub fault: Fault,
}

impl Fault {
    /// Who notices.
    pub fn machines(&self) -> Vec<String> {
        match self {
            Fault::Cut(name) | Fault::Hold(name) | Fault::Lossy(name) => vec![name.clone()],
            Fault::Crash(name) | Fault::Vanish(name) => vec![name.clone()],
            Fault::CutOneWay(from, to) => vec![from.clone(), to.clone()],
            Fault::Slow(_) | Fault::Restart => vec![crate::net::COORDINATOR.to_owned()],
            Fault::KillLink(number) => vec![format!("worker-{number}")],
        }
    }
}

/// Faults between `from_ms` and `to_ms`, in the order of their beginning.
pub fn plan(rng: &mut StdRng, workers: usize, clients: usize, from_ms: u64, to_ms: u64) -> Vec<Planned> {
    let coordinator = || crate::net::COORDINATOR.to_owned();
    let mut plan = Vec::new();
    let mut at = from_ms;
    loop {
        at += rng.random_range(100..4_500);
        if at >= to_ms {
            return plan;
        }
        let worker = rng.random_range(0..workers);
        let machine = match rng.random_bool(0.7) {
            true => format!("worker-{worker}"),
            false => format!("client-{}", rng.random_range(0..clients)),
        };
        // Some outlast what a worker is waited for.
        let long = rng.random_bool(0.12);
        let lasts = rng.random_range(if long { 13_000..25_000 } else { 200..6_000 });
        let (fault, lasts) = match rng.random_range(0..100) {
            0..18 => (Fault::Cut(machine), lasts),
            18..28 => (Fault::CutOneWay(machine, coordinator()), lasts),
            28..38 => (Fault::CutOneWay(coordinator(), machine), lasts),
            38..46 => (Fault::Hold(machine), lasts.min(5_000)),
            46..52 => (Fault::Slow(rng.random_range(100..600)), lasts),
            52..60 => (Fault::Lossy(machine), lasts),
            60..70 => (Fault::Crash(coordinator()), lasts.min(4_000)),
            70..74 => (Fault::Vanish(coordinator()), lasts.min(4_000)),
            74..80 => (Fault::Restart, rng.random_range(50..2_000)),
            80..87 => (Fault::Crash(format!("worker-{worker}")), lasts),
            87..90 => (Fault::Vanish(format!("worker-{worker}")), lasts),
            _ => (Fault::KillLink(worker), 0),
        };
        plan.push(Planned { from_ms: at, to_ms: (at + lasts).min(to_ms), fault });
    }
}
