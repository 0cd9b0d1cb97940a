//! Says what came of a run. It reads the event log, the journals of the clients and the file of effects, and looks at
//! what is left on the machine; of the harness it knows nothing.

mod leaked;
mod verdict;

use std::{
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::Parser;
use cooper_chaos::journal;

use verdict::{Event, Findings, Seen};

/// Findings that are told in words; all are counted.
const TOLD_MAX: usize = 40;

/// Checks a run of cooper-chaos.
#[derive(Debug, Parser)]
struct Args {
    /// The run's directory: events.jsonl, effects, journals/, and data directories
    #[arg(long)]
    dir: PathBuf,
    /// How many processes were killed, for the report
    #[arg(long, default_value_t = 0)]
    kills: u64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match check(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("chaos-check: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn check(args: &Args) -> Result<bool> {
    let dir = &args.dir;
    let mut seen =
        Seen { effects: fs::read_to_string(dir.join("effects")).context("effects")?, ..Seen::default() };
    let events = fs::File::open(dir.join("events.jsonl")).context("events.jsonl")?;
    for line in BufReader::new(events).lines() {
        seen.events.push(serde_json::from_str::<Event>(&line?).context("an event")?);
    }
    let mut journals: Vec<PathBuf> =
        fs::read_dir(dir.join("journals"))?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    journals.sort();
    for journal in journals {
        seen.entries.extend(journal::read(&journal).with_context(|| journal.display().to_string())?);
    }
    let mut findings = Findings::default();
    let tasks = verdict::judge(&seen, &mut findings);
    leaked::look(dir, &mut findings)?;
    for told in findings.told.iter().take(TOLD_MAX) {
        eprintln!("chaos-check: {told}");
    }
    println!("{}", findings.report(args.kills, tasks));
    Ok(findings.none())
}
