//! A whole cluster in one process, on simulated time and a simulated network: the real coordinator, its real store, the
//! real link of each worker, over real gRPC; only hosts and clients are made up. A seed decides everything that happens,
//! faults included, and gives the same run again.
//!
//! `cooper-sim --seeds 200` runs many, each in a process of its own; `cooper-sim --seed 7` runs one and, when something was
//! wrong, shows what happened.

mod cheat;
mod check;
mod client;
mod disk;
mod entropy;
mod fault;
mod host;
mod job;
mod machine;
mod net;
mod witness;
mod world;

use std::{
    process::{Command, ExitCode, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use clap::{Parser, ValueEnum};

use crate::{cheat::Cheat, world::Report};

/// Lines of the trace that are shown of a run that went wrong.
const LINES_SHOWN: usize = 60;

/// Runs simulated clusters and checks them.
#[derive(Parser)]
struct Args {
    /// Run this seed.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Run this many seeds.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Runs at once. Default: as many as there are cores.
    #[arg(long)]
    jobs: Option<usize>,
    /// Plant a fault that the checks have to find.
    #[arg(long)]
    cheat: Option<Cheat>,
    /// Show the whole trace.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Show what the cluster logs, by a tracing filter, e.g. `debug` or `cooper_core=trace`.
    #[arg(long, requires = "seed")]
    log: Option<String>,
}

static PANIC: Mutex<Option<String>> = Mutex::new(None);

/// The first panic. Those of tasks would go unseen: the runtime swallows them.
fn panicked() -> Option<String> {
    PANIC.lock().unwrap_or_else(PoisonError::into_inner).take()
}

fn main() -> ExitCode {
    let args = Args::parse();
    match args.seed {
        Some(seed) => one(seed, &args),
        None => many(&args),
    }
}

fn one(seed: u64, args: &Args) -> ExitCode {
    if let Some(filter) = &args.log {
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
    }
    std::panic::set_hook(Box::new(|panic| {
        PANIC.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| panic.to_string());
    }));
    let cheat = args.cheat;
    // A thread that has asked for no randomness yet.
    let run = thread::Builder::new().name("world".into()).stack_size(16 << 20).spawn(move || {
        entropy::seed(seed);
        let report = world::run(seed, cheat);
        (report, panicked())
    });
    let (report, panic) = match run.map(thread::JoinHandle::join) {
        Ok(Ok(ran)) => ran,
        Ok(Err(_)) => {
            println!("seed {seed}: the simulation itself failed: {}", panicked().unwrap_or_default());
            return ExitCode::FAILURE;
        }
        Err(error) => {
            println!("seed {seed}: no thread: {error}");
            return ExitCode::FAILURE;
        }
    };
    show(&report, args.trace);
    let Report { hash, tasks, simulated_ms, violations, .. } = report;
    let verdict = violations.first().cloned().or(panic);
    let said = verdict.as_deref().unwrap_or("ok");
    println!("seed {seed} trace {hash:016x} tasks {tasks} seconds {}: {said}", simulated_ms / 1_000);
    if verdict.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The trace, or of a run that went wrong its end and whatever names the same ids.
fn show(report: &Report, whole: bool) {
    if whole {
        report.trace.iter().for_each(|line| println!("{line}"));
        return;
    }
    let Some(first) = report.violations.first() else { return };
    let ids: Vec<&str> = first
        .split([' ', ':', ','])
        .filter(|word| ["tsk_", "ses_"].iter().any(|id| word.starts_with(id)))
        .collect();
    let from = report.trace.len().saturating_sub(LINES_SHOWN);
    for (number, line) in report.trace.iter().enumerate() {
        let named = ids.iter().any(|id| line.contains(id));
        let broke = line.contains(" break ") || line.contains(" mend ") || line.contains(" is up");
        if named || broke || number >= from {
            println!("{line}");
        }
    }
}

fn many(args: &Args) -> ExitCode {
    let jobs = args.jobs.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
    let next = AtomicU64::new(args.from);
    let end = args.from.saturating_add(args.seeds);
    let failures = Mutex::new(Vec::new());
    let program = std::env::current_exe();
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let ran = program.as_ref().map_err(ToString::to_string).and_then(|program| {
                        let mut command = Command::new(program);
                        command.args(["--seed", &seed.to_string()]).stdin(Stdio::null());
                        if let Some(cheat) = args.cheat.and_then(|cheat| cheat.to_possible_value()) {
                            command.args(["--cheat", cheat.get_name()]);
                        }
                        command.output().map_err(|error| error.to_string())
                    });
                    let mut failures = failures.lock().unwrap_or_else(PoisonError::into_inner);
                    match ran {
                        Ok(output) if output.status.success() => {}
                        Ok(output) => {
                            // Everything of the first; of the others what was wrong.
                            let text = String::from_utf8_lossy(&output.stdout);
                            let last = text.lines().last().unwrap_or_default();
                            println!("{}", if failures.is_empty() { &*text } else { last });
                            failures.push(seed);
                        }
                        Err(error) => {
                            println!("seed {seed}: not run: {error}");
                            failures.push(seed);
                        }
                    }
                }
            });
        }
    });
    let mut failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    failures.sort_unstable();
    println!("{} seeds from {}: {} failed", args.seeds, args.from, failures.len());
    match failures.first() {
        None => ExitCode::SUCCESS,
        Some(seed) => {
            println!("again: cargo run -p cooper-sim -- --seed {seed} --trace");
            ExitCode::FAILURE
        }
    }
}
