//! How repairs went: counted as they end for `/metrics`, and looked up in what is recorded for people.

use std::collections::{BTreeMap, HashSet};

use cooper_common::{error::Result, limits};
use cooper_core::{
    change::Aggregate,
    run::{Run, State, Step, StepState},
};
use cooper_proto::v1;
use serde::Deserialize;

use super::Runs;
use crate::{
    caller::Caller,
    store::{Cursor, Filter, Record},
};

/// Of a run's body: what counting needs.
#[derive(Deserialize)]
struct Counted {
    #[serde(default)]
    dry_run: bool,
    #[serde(default = "first")]
    attempt: u32,
}

fn first() -> u32 {
    1
}

/// Counts a run that has ended.
pub(super) fn count(run: &Run, now_ms: i64) {
    let seconds = |from: i64, to: i64| (to - from).max(0) as f64 / 1000.0;
    let state = run.body.state.as_str();
    metrics::counter!("cooper_runs_total", "state" => state).increment(1);
    metrics::histogram!("cooper_run_seconds", "state" => state).record(seconds(run.created_ms, now_ms));
    for step in run.steps.iter().filter(|step| step.started_ms > 0 && step.ended_ms > 0) {
        let end = if step.state == StepState::Succeeded { "succeeded" } else { "failed" };
        metrics::histogram!("cooper_run_step_seconds", "step" => step.kind.as_str(), "end" => end)
            .record(seconds(step.started_ms, step.ended_ms));
    }
}

/// Times of one step in many runs.
#[derive(Default)]
struct Times {
    failed: u64,
    took_ms: Vec<u64>,
}

impl Runs {
    /// How the tenant's runs went that were created since then.
    pub async fn stats(&self, caller: &Caller, request: &v1::GetRunStatsRequest) -> Result<v1::RunStats> {
        let mut stats = v1::RunStats { since_ms: request.since_ms, ..v1::RunStats::default() };
        let mut states: BTreeMap<String, u64> = BTreeMap::new();
        let (mut carried_out, mut at_once, mut mended_ms) = (0u64, 0u64, 0u64);
        let mut counted = HashSet::new();
        let mut before = None;
        'pages: loop {
            let (records, next) = self.page(caller, Aggregate::Run, before).await?;
            for record in records {
                if record.row.created_ms < request.since_ms {
                    break 'pages;
                }
                if !request.stack.is_empty() && record.row.parent != request.stack {
                    continue;
                }
                if counted.len() >= limits::run::STATS_RUNS_MAX {
                    stats.cut = true;
                    break 'pages;
                }
                let body: Counted = serde_json::from_str(&record.row.body)
                    .map_err(|error| cooper_common::error::Error::internal(error.to_string()))?;
                if body.dry_run {
                    continue;
                }
                counted.insert(record.id);
                let state = record.row.state.as_str();
                *states.entry(state.to_owned()).or_default() += 1;
                let tried = [State::Succeeded, State::RolledBack, State::RollbackFailed, State::Failed];
                carried_out += u64::from(tried.iter().any(|tried| tried.as_str() == state));
                if state == State::Succeeded.as_str() {
                    stats.succeeded += 1;
                    at_once += u64::from(body.attempt == 1);
                    mended_ms += u64::try_from(record.row.updated_ms - record.row.created_ms).unwrap_or(0);
                }
            }
            before = next;
            if before.is_none() {
                break;
            }
        }
        let rate = |part: u64| if carried_out == 0 { 0.0 } else { part as f64 / carried_out as f64 };
        stats.runs = counted.len() as u64;
        stats.carried_out = carried_out;
        stats.success_rate = rate(stats.succeeded);
        stats.first_attempt_rate = rate(at_once);
        stats.mean_time_to_repair_ms = mended_ms.checked_div(stats.succeeded).unwrap_or(0);
        stats.states = states.into_iter().map(|(state, runs)| v1::StateCount { state, runs }).collect();
        stats.steps = self.step_times(caller, &counted, request.since_ms).await?;
        Ok(stats)
    }

    async fn step_times(
        &self,
        caller: &Caller,
        runs: &HashSet<String>,
        since_ms: i64,
    ) -> Result<Vec<v1::StepStats>> {
        let mut times: BTreeMap<_, Times> = BTreeMap::new();
        let mut before = None;
        'pages: loop {
            let (records, next) = self.page(caller, Aggregate::Step, before).await?;
            for record in records {
                // Steps are created with their run or after it.
                if record.row.created_ms < since_ms || runs.is_empty() {
                    break 'pages;
                }
                if !runs.contains(&record.row.parent) {
                    continue;
                }
                let Ok(step) = serde_json::from_str::<Step>(&record.row.body) else { continue };
                if step.started_ms == 0 || step.ended_ms == 0 {
                    continue;
                }
                let of_kind = times.entry(step.kind).or_default();
                of_kind.failed += u64::from(step.state == StepState::Failed);
                of_kind.took_ms.push(u64::try_from(step.ended_ms - step.started_ms).unwrap_or(0));
            }
            before = next;
            if before.is_none() {
                break;
            }
        }
        let stats = times.into_iter().map(|(kind, mut times)| {
            times.took_ms.sort_unstable();
            let count = times.took_ms.len();
            v1::StepStats {
                step: kind.as_str().to_owned(),
                count: count as u64,
                failed: times.failed,
                mean_ms: times.took_ms.iter().sum::<u64>() / count.max(1) as u64,
                p95_ms: times.took_ms[(count * 95 / 100).min(count - 1)],
                max_ms: times.took_ms[count - 1],
            }
        });
        Ok(stats.collect())
    }

    /// A page of the tenant's rows, newest first.
    async fn page(
        &self,
        caller: &Caller,
        aggregate: Aggregate,
        before: Option<Cursor>,
    ) -> Result<(Vec<Record>, Option<Cursor>)> {
        let tenant = Some(caller.tenant.to_string());
        let limit = limits::request::PAGE_MAX as usize;
        let page = self.cluster.store.list(aggregate, Filter { tenant, before, limit, ..Filter::default() });
        let page = page.await?;
        Ok((page.records, page.next))
    }
}
