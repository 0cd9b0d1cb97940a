//! `make chaos`: runs a cluster of real processes, does everything to it that a seed says, has clients work on it
//! meanwhile, and lets the checker say what came of it.

mod client;
mod cluster;
mod export;
mod machine;
mod proxy;
mod schedule;
mod supervised;

use std::{
    cell::Cell,
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    rc::Rc,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use clap::Parser;
use cooper_chaos::journal::Journal;
use cooper_common::clock;
use tokio::{sync::watch, task::LocalSet};

use client::{Client, Common, Habit};
use cluster::Cluster;
use schedule::{Fault, Planned};

/// Cooper under faults, with real processes.
#[derive(Debug, Parser)]
struct Args {
    /// Processes to kill by the schedule; those that die at failpoints come on top
    #[arg(long, default_value_t = 100)]
    kills: usize,
    /// Tasks to submit at least
    #[arg(long, default_value_t = 1_000)]
    tasks: u64,
    /// The schedule follows from it; chosen and printed when absent
    #[arg(long)]
    seed: Option<u64>,
    /// Settings of every process
    #[arg(long)]
    config: PathBuf,
    /// Binary under test; without it `cooper` beside this one
    #[arg(long)]
    cooper: Option<PathBuf>,
    /// Keep the directory of the run, whatever came of it
    #[arg(long)]
    keep: bool,
    /// Print the schedule and do nothing
    #[arg(long)]
    schedule: bool,
}

/// Faults that are planted into what the checker sees, to show that it sees them (`CHAOS_CHEAT`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cheat {
    /// The end of an acknowledged task is missing.
    Drop,
    /// An effect is there twice.
    Dup,
    /// One byte of output is another.
    Flip,
}

/// For what is on its way when the faults are over.
const FINISH: Duration = Duration::from_secs(90);
const CLIENTS: [Habit; 10] = [
    Habit::Batches,
    Habit::Batches,
    Habit::Single,
    Habit::Single,
    Habit::Python,
    Habit::Python,
    Habit::Python,
    Habit::Shell,
    Habit::Shell,
    Habit::Shell,
];

fn main() -> ExitCode {
    let args = Args::parse();
    let run = || -> Result<bool> {
        if args.schedule {
            for planned in schedule::plan(args.seed.unwrap_or_default(), args.kills) {
                println!("{planned}");
            }
            return Ok(true);
        }
        machine::go_apart()?;
        // One thread: what it starts shall die with it, and nothing here is heavy.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        LocalSet::new().block_on(&runtime, chaos(&args))
    };
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("chaos: {error:#}");
            ExitCode::from(2)
        }
    }
}

async fn chaos(args: &Args) -> Result<bool> {
    let cheat = match std::env::var("CHAOS_CHEAT").as_deref() {
        Ok("drop") => Some(Cheat::Drop),
        Ok("dup") => Some(Cheat::Dup),
        Ok("flip") => Some(Cheat::Flip),
        Ok("") | Err(_) => None,
        Ok(other) => bail!("CHAOS_CHEAT={other}: drop, dup or flip"),
    };
    let own = std::env::current_exe()?;
    let beside = |name: &str| own.with_file_name(name);
    let cooper = args.cooper.clone().unwrap_or_else(|| beside("cooper"));
    let version = Command::new(&cooper).arg("--version").output();
    let version = version.with_context(|| format!("{} --version", cooper.display()))?;
    let has_failpoints = String::from_utf8_lossy(&version.stdout).contains("(failpoints)");

    let seed = args.seed.unwrap_or_else(|| rand::random::<u32>().into());
    let plan = schedule::plan(seed, args.kills);
    let takes = schedule::takes(&plan);
    println!(
        "chaos: SEED={seed} KILLS={} TASKS={}: {} faults in {} s",
        args.kills,
        args.tasks,
        plan.len(),
        takes.as_secs()
    );

    let dir = tempfile::Builder::new().prefix("cooper-chaos-").tempdir()?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    let config = fs::canonicalize(&args.config).with_context(|| args.config.display().to_string())?;
    let cluster = Rc::new(Cluster::start(dir.path(), &cooper, &config).await?);
    for (what, why) in &cluster.left_out {
        println!("chaos: left out: {what}: {why}");
    }
    if !has_failpoints {
        println!(
            "chaos: left out: failpoints: {} was built without the feature `failpoints`",
            cooper.display()
        );
    }

    let worked = tokio::select! {
        worked = work(args, &plan, &cluster, dir.path(), seed, cheat) => worked,
        _ = tokio::signal::ctrl_c() => Err(anyhow!("interrupted")),
        _ = terminated() => Err(anyhow!("terminated")),
    };
    cluster.heal();
    let stubborn = cluster.stop().await;
    if !stubborn.is_empty() {
        println!("chaos: had to be killed in the end: {}", stubborn.join(", "));
    }
    let mut fine = stubborn.is_empty();
    let finished = worked.and_then(|finished| {
        if let Some(cheat) = cheat {
            plant(cheat, dir.path())?;
        }
        let mut checker = Command::new(beside("cooper-chaos-check"));
        checker.arg("--dir").arg(dir.path()).args(["--kills", &cluster.kills().to_string()]);
        fine &= checker.status().context("cooper-chaos-check")?.success();
        Ok(finished)
    });
    fine &= matches!(finished, Ok(true));
    let keep = args.keep || (!fine && cheat.is_none());
    cluster.clear(keep)?;
    if keep {
        eprintln!("kept for a look: {}", dir.keep().display());
    }
    finished.map(|_| fine)
}

async fn terminated() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    signal(SignalKind::terminate())?.recv().await;
    Ok(())
}

/// Clients work while faults happen, until both are done; then the event log is exported. False: some never finished.
async fn work(
    args: &Args,
    plan: &[Planned],
    cluster: &Rc<Cluster>,
    dir: &Path,
    seed: u64,
    cheat: Option<Cheat>,
) -> Result<bool> {
    let (finish, finishing) = watch::channel(false);
    let common = Rc::new(Common {
        asked: Cell::new(0),
        heard: Cell::new(0),
        // Two clients with batches of 32 make most of the tasks, evenly over the time there is.
        batch_pause: schedule::takes(plan)
            .mul_f64(64.0 / args.tasks.max(1) as f64)
            .min(Duration::from_secs(1)),
        effects: effects_file(dir)?,
        flip: Cell::new(cheat == Some(Cheat::Flip)),
        finish: finishing,
    });
    let clients = clients(cluster, &common, dir, seed)?;
    cluster.count_links();

    let performed = perform(cluster, plan).await?;
    while common.asked.get() < args.tasks {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cluster.heal();
    finish.send_replace(true);
    let deadline = tokio::time::Instant::now() + FINISH;
    let mut unfinished = 0;
    for client in clients {
        match tokio::time::timeout_at(deadline, client).await {
            Ok(ended) => ended??,
            Err(_) => unfinished += 1,
        }
    }
    for (kind, times) in &performed {
        println!("chaos: {times:>5} × {kind}");
    }
    let (ends, host_ends) = cluster.ends();
    println!(
        "chaos: {} processes killed; the coordinator ended by itself {ends} times, hosts {host_ends}; {} tasks, {} ends \
         heard, {unfinished} clients did not finish",
        cluster.kills(),
        common.asked.get(),
        common.heard.get()
    );
    let events = export::events(cluster.address, &cluster.admin_token()?, &dir.join("events.jsonl")).await?;
    println!("chaos: {events} events");
    Ok(unfinished == 0)
}

fn effects_file(dir: &Path) -> Result<PathBuf> {
    let effects = dir.join("effects");
    fs::write(&effects, "")?;
    // Sessions may run under any uid.
    fs::set_permissions(&effects, fs::Permissions::from_mode(0o666))?;
    Ok(effects)
}

type Clients = Vec<tokio::task::JoinHandle<Result<()>>>;

fn clients(cluster: &Cluster, common: &Rc<Common>, dir: &Path, seed: u64) -> Result<Clients> {
    let token = cluster.admin_token()?;
    let journals = dir.join("journals");
    fs::create_dir(&journals)?;
    let mut clients = Vec::new();
    for (index, habit) in CLIENTS.into_iter().enumerate() {
        // Every other one comes through the proxy.
        let address = if index % 2 == 0 { cluster.address } else { cluster.clients_proxy.address };
        let service = client::connect(address, &token)?;
        let name = format!("c{index}");
        let journal = Journal::create(&journals.join(format!("{name}.jsonl")))?;
        let seed = seed ^ (index as u64 + 1) << 32;
        let client = Client::new(name, habit, service, journal, seed, Rc::clone(common));
        clients.push(tokio::task::spawn_local(client.run()));
    }
    Ok(clients)
}

/// How often what was done.
async fn perform(cluster: &Cluster, plan: &[Planned]) -> Result<BTreeMap<String, u64>> {
    let mut performed = BTreeMap::new();
    let start = clock::mono_ms();
    for Planned { at_ms, fault } in plan {
        tokio::time::sleep(Duration::from_millis((start + at_ms).saturating_sub(clock::mono_ms()))).await;
        let done = cluster.perform(*fault).with_context(|| format!("{fault:?}"))?;
        let kind = if done { fault.kind() } else { format!("{} (left out)", fault.kind()) };
        *performed.entry(kind).or_default() += 1;
        if let Fault::Kill { .. } = fault {
            tracing(cluster, plan.len(), &performed);
        }
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    Ok(performed)
}

/// A line now and then, for whoever watches.
fn tracing(cluster: &Cluster, planned: usize, performed: &BTreeMap<String, u64>) {
    let done: u64 = performed.values().sum();
    if done.is_multiple_of(50) {
        println!("chaos: {done} of {planned} faults, {} processes killed", cluster.kills());
    }
}

/// Falsifies what the checker will read.
fn plant(cheat: Cheat, dir: &Path) -> Result<()> {
    match cheat {
        Cheat::Drop => {
            let path = dir.join("events.jsonl");
            let text = fs::read_to_string(&path)?;
            let ends = text.lines().enumerate().filter(|(_, line)| line.contains("\"task.succeeded\""));
            let last = ends.map(|(at, _)| at).last();
            let kept = text.lines().enumerate().filter(|(at, _)| Some(*at) != last);
            fs::write(&path, kept.map(|(_, line)| format!("{line}\n")).collect::<String>())?;
        }
        Cheat::Dup => {
            let path = dir.join("effects");
            let text = fs::read_to_string(&path)?;
            let last = text.lines().last().unwrap_or_default().to_owned();
            fs::write(&path, format!("{text}{last}\n"))?;
        }
        // Done by the client that noted it down.
        Cheat::Flip => {}
    }
    Ok(())
}
