//! `budgets.toml`: which rows there are, what each may take, and whether what was measured meets it.

use std::fmt;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::figures::Figures;

const FILE: &str = include_str!("../budgets.toml");

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    row: Vec<Row>,
}

/// One row of the file, documented there.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    pub name: String,
    pub what: String,
    pub unit: String,
    p50_max: Option<f64>,
    p99_max: Option<f64>,
    min: Option<f64>,
    max: Option<f64>,
    #[serde(default)]
    plus_commit: bool,
    pub peer: Option<Peer>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Peer {
    Ipykernel,
    Celery,
    /// `venv`, `python -c` and `pip`.
    Python,
}

/// A budget in figures: what this run's disk adds is added.
#[derive(Debug, Clone, Serialize)]
pub struct Budget {
    #[serde(skip_serializing_if = "Option::is_none")]
    p50_max: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p99_max: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max: Option<f64>,
}

pub fn rows() -> Result<Vec<Row>> {
    let file: File = toml::from_str(FILE).context("bench/budgets.toml")?;
    Ok(file.row)
}

impl Row {
    pub fn budget(&self, commit_ms: f64) -> Budget {
        let more = if self.plus_commit { commit_ms } else { 0.0 };
        Budget {
            p50_max: self.p50_max.map(|max| max + more),
            p99_max: self.p99_max,
            min: self.min,
            max: self.max,
        }
    }

    /// Whether more is better.
    pub fn is_rate(&self) -> bool {
        self.min.is_some()
    }
}

impl Budget {
    pub fn met(&self, figures: &Figures) -> bool {
        let at_most = |max: Option<f64>, value: f64| max.is_none_or(|max| value <= max);
        at_most(self.p50_max, figures.p50())
            && at_most(self.p99_max, figures.p99())
            && at_most(self.max, figures.p50())
            && self.min.is_none_or(|min| figures.p50() >= min)
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limits = [("p50 ≤ ", self.p50_max), ("p99 ≤ ", self.p99_max), ("≤ ", self.max), ("≥ ", self.min)];
        let limits: Vec<String> = limits
            .into_iter()
            .filter_map(|(sign, limit)| Some(format!("{sign}{}", crate::figures::short(limit?))))
            .collect();
        f.write_str(&limits.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str) -> Row {
        rows().unwrap().into_iter().find(|row| row.name == name).unwrap()
    }

    #[test]
    fn every_row_of_the_file_has_a_limit() {
        for row in rows().unwrap() {
            assert!(!row.budget(0.0).to_string().is_empty(), "{} has no limit", row.name);
        }
    }

    #[test]
    fn a_budget_is_met_only_when_every_limit_is() {
        let budget = row("session_create_first_result").budget(0.0);
        assert!(budget.met(&Figures::samples(vec![4.0; 100])));
        assert!(!budget.met(&Figures::samples(vec![6.0; 100])));
        let mut tail = vec![4.0; 100];
        tail[98..].fill(26.0);
        assert!(!budget.met(&Figures::samples(tail)));
    }

    #[test]
    fn a_rate_has_to_reach_its_minimum_and_a_slow_disk_is_allowed_for() {
        assert!(row("noop_unary").budget(0.0).met(&Figures::one(6000.0, 1)));
        assert!(!row("noop_unary").budget(0.0).met(&Figures::one(5999.0, 1)));
        let exec = row("exec_round_trip");
        assert!(!exec.budget(0.1).met(&Figures::samples(vec![0.8])));
        assert!(exec.budget(0.2).met(&Figures::samples(vec![0.8])));
    }
}
