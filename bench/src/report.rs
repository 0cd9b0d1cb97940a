//! The run's report: a table to read, and `latest.json` for whoever compares.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use comfy_table::{Cell, CellAlignment, Table, presets};
use cooper_common::clock;
use serde::Serialize;

use crate::{
    budgets::{self, Budget},
    cluster::Cpu,
    figures::{Figures, short},
    peers::Beside,
    rows::Measured,
};

#[derive(Serialize)]
pub struct Report {
    /// Unix milliseconds.
    pub at_ms: i64,
    pub version: &'static str,
    pub cores: usize,
    pub rows: Vec<Row>,
}

/// What was seen around the measurement of a row.
pub struct Around {
    pub cpu: Cpu,
    pub commit: Figures,
}

#[derive(Serialize)]
pub struct Row {
    pub name: String,
    pub what: String,
    pub unit: String,
    pub n: usize,
    /// None where the row is one figure.
    pub p50: Option<f64>,
    pub p99: Option<f64>,
    /// The figure that counts: p50, or the one there is. None when it was not measured; `error` says why.
    pub cooper: Option<f64>,
    pub peer: Option<f64>,
    pub peer_p99: Option<f64>,
    /// With its version; or why it was not measured.
    pub peer_name: Option<String>,
    /// How many times better than the peer: above 1 is better, whatever the unit.
    pub ratio: Option<f64>,
    pub budget: Budget,
    pub met: bool,
    /// Repeats this row.
    pub command: String,
    pub how: Option<String>,
    /// A 4 KiB append and fdatasync on the disk that everything was on, in milliseconds, right before and after.
    pub disk_commit_p50: f64,
    pub disk_commit_p99: f64,
    pub cpu_ms_coordinator: u64,
    pub cpu_ms_worker: u64,
    pub error: Option<String>,
}

impl Report {
    pub fn new() -> Self {
        Self {
            at_ms: clock::wall_ms(),
            version: cooper_common::VERSION,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            rows: Vec::new(),
        }
    }

    pub fn add(
        &mut self,
        row: &budgets::Row,
        measured: Result<Measured>,
        beside: Option<Result<Beside>>,
        around: &Around,
    ) {
        let budget = row.budget(around.commit.p50());
        let (measured, error) = split(measured);
        let figures = measured.as_ref().map(|measured| &measured.figures);
        let spread = |figures: Option<&Figures>| figures.filter(|figures| figures.has_spread()).cloned();
        let (peer, peer_name) = match beside {
            Some(Ok(beside)) => (Some(beside.figures), Some(beside.name)),
            Some(Err(error)) => (None, Some(format!("not measured: {error:#}"))),
            None => (None, None),
        };
        let cooper = figures.map(Figures::p50);
        let ratio = cooper
            .zip(peer.as_ref().map(Figures::p50))
            .map(|(cooper, peer)| if row.is_rate() { cooper / peer } else { peer / cooper });
        self.rows.push(Row {
            name: row.name.clone(),
            what: row.what.clone(),
            unit: row.unit.clone(),
            n: figures.map_or(0, Figures::n),
            p50: spread(figures).map(|figures| figures.p50()),
            p99: spread(figures).map(|figures| figures.p99()),
            cooper,
            peer: peer.as_ref().map(Figures::p50),
            peer_p99: spread(peer.as_ref()).map(|figures| figures.p99()),
            peer_name,
            ratio,
            met: figures.is_some_and(|figures| budget.met(figures)),
            budget,
            command: format!("cargo run --release --locked -p cooper-bench -- --only {}", row.name),
            how: measured.map(|measured| measured.how),
            disk_commit_p50: around.commit.p50(),
            disk_commit_p99: around.commit.p99(),
            cpu_ms_coordinator: around.cpu.coordinator_ms,
            cpu_ms_worker: around.cpu.worker_ms,
            error,
        });
    }

    pub fn complete(&self) -> bool {
        self.rows.iter().all(|row| row.error.is_none())
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        let json = serde_json::to_string_pretty(self)? + "\n";
        fs::write(path, json).with_context(|| path.display().to_string())
    }

    pub fn print(&self) {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header([
            "row",
            "Cooper",
            "p99",
            "unit",
            "peer",
            "ratio",
            "budget",
            "met",
            "commit",
            "cpu ms coord/worker",
        ]);
        for row in &self.rows {
            let number = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), short);
            let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
            table.add_row(vec![
                Cell::new(&row.name),
                right(number(row.cooper)),
                right(number(row.p99)),
                Cell::new(&row.unit),
                right(number(row.peer)),
                right(row.ratio.map_or_else(|| "–".to_owned(), |ratio| format!("{}×", short(ratio)))),
                Cell::new(&row.budget),
                Cell::new(if row.met { "yes" } else { "NO" }),
                right(short(row.disk_commit_p50)),
                right(format!("{}/{}", row.cpu_ms_coordinator, row.cpu_ms_worker)),
            ]);
        }
        println!("{table}");
        for row in &self.rows {
            if let Some(how) = &row.how {
                println!("{}: {}; n = {}; {how}", row.name, row.what, row.n);
            }
            if let Some(error) = &row.error {
                println!("{}: not measured: {error}", row.name);
            }
            if let (None, Some(why)) = (row.peer, &row.peer_name) {
                println!("{}: its peer was {why}", row.name);
            }
        }
        println!("{}", self.summary());
    }

    fn summary(&self) -> String {
        let met = self.rows.iter().filter(|row| row.met).count();
        let ratios = self.rows.iter().filter_map(|row| {
            let peer = row.peer_name.as_deref()?;
            Some(format!("\n  {} {}× {peer}", row.name, short(row.ratio?)))
        });
        format!(
            "{met} of {} budgets met on {} cores. commit: median of one commit of this disk around the row, in ms.{}",
            self.rows.len(),
            self.cores,
            ratios.collect::<String>()
        )
    }
}

fn split(measured: Result<Measured>) -> (Option<Measured>, Option<String>) {
    match measured {
        Ok(measured) => (Some(measured), None),
        Err(error) => (None, Some(format!("{error:#}"))),
    }
}
