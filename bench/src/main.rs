//! `make bench`: measures Cooper against `budgets.toml` and beside its peers, on this machine, in one run.
//!
//! Exit status: 0 when every row was measured, whether or not its budget is met (the table says so); 1 when one could
//! not be; with `--strict`, 2 when a budget is missed. A peer that cannot be measured leaves its column empty.

mod budgets;
mod client;
mod cluster;
mod disk;
mod figures;
mod peers;
mod process;
mod report;
mod rows;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result, anyhow, bail};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    cluster::Cpu,
    figures::Figures,
    peers::Peers,
    report::{Around, Report},
    rows::Bench,
};

/// Peers included, what is built or fetched the first time not.
const WHOLE: Duration = Duration::from_secs(1200);
/// A fleet of 10,000 sits still for an interval between heartbeats, which is 51 s.
const ROW: Duration = Duration::from_secs(240);

/// Measures Cooper against its budgets and beside its peers.
#[derive(Parser)]
struct Args {
    /// Only this row; repeatable
    #[arg(long, value_name = "ROW")]
    only: Vec<String>,
    /// Leave the peers out
    #[arg(long)]
    no_peers: bool,
    /// Exit with 2 when a budget is missed
    #[arg(long)]
    strict: bool,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    // Whatever runs below ends with what is dropped here.
    tokio::select! {
        done = bench(args) => done,
        _ = interrupt.recv() => Ok(ExitCode::from(130)),
        _ = terminate.recv() => Ok(ExitCode::from(143)),
    }
}

async fn bench(args: Args) -> Result<ExitCode> {
    let mut rows = budgets::rows()?;
    if let Some(unknown) = args.only.iter().find(|name| rows.iter().all(|row| row.name != **name)) {
        bail!("budgets.toml has no row {unknown:?}");
    }
    rows.retain(|row| args.only.is_empty() || args.only.contains(&row.name));

    let binary = cluster::binary()?;
    let dir = directory()?;
    let peers = if args.no_peers { None } else { Some(Peers::prepare(&dir).await?) };
    let report = tokio::time::timeout(WHOLE, measure(&rows, &binary, &dir, peers))
        .await
        .map_err(|_| anyhow!("not done within {} s", WHOLE.as_secs()))??;

    let path = dir.join(if args.only.is_empty() { "latest.json" } else { "only.json" });
    report.write(&path)?;
    report.print();
    println!("figures: {}", path.display());
    Ok(match () {
        () if !report.complete() => ExitCode::from(1),
        () if args.strict && report.rows.iter().any(|row| !row.met) => ExitCode::from(2),
        () => ExitCode::SUCCESS,
    })
}

async fn measure(
    rows: &[budgets::Row],
    binary: &std::path::Path,
    dir: &std::path::Path,
    peers: Option<Peers>,
) -> Result<Report> {
    let mut report = Report::new();
    let bench = Bench::start(binary, dir).await.context("Cooper does not start")?;
    for row in rows {
        eprintln!("{} …", row.name);
        let beside = match (&peers, row.peer) {
            (Some(peers), Some(peer)) => Some(peers.beside(peer, &row.name).await),
            _ => None,
        };
        let mut commits = disk::commits(dir)?;
        let before = bench.cooper.cpu();
        let measured = tokio::time::timeout(ROW, bench.measure(&row.name))
            .await
            .unwrap_or_else(|_| Err(anyhow!("not done within {} s", ROW.as_secs())));
        let after = bench.cooper.cpu();
        let cpu = Cpu {
            coordinator_ms: after.coordinator_ms.saturating_sub(before.coordinator_ms),
            worker_ms: after.worker_ms.saturating_sub(before.worker_ms),
        };
        commits.extend(disk::commits(dir)?);
        let around = Around { cpu, commit: Figures::samples(commits) };
        let measured = measured.map_err(|error| anyhow!("{error:#}{}", bench.cooper.log()));
        report.add(row, measured, beside, &around);
    }
    bench.cooper.stop().await;
    Ok(report)
}

/// `target/bench`, whichever profile this was built with.
fn directory() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let target = own.parent().and_then(|profile| profile.parent()).context("this program is nowhere")?;
    let dir = target.join("bench");
    std::fs::create_dir_all(&dir)?;
    Ok(dir)
}
