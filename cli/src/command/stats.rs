//! `cooper runs stats`: how repairs went.

use cooper_common::clock;
use cooper_proto::v1::{GetRunStatsRequest, RunStats};
use serde_json::json;

use crate::{connect::Client, context::Context, failure::Result, units};

pub async fn run(
    context: &Context,
    client: &Client,
    since: Option<u64>,
    stack: Option<String>,
) -> Result<()> {
    let since_ms = since.map_or(0, |ago| clock::wall_ms() - i64::try_from(ago).unwrap_or(i64::MAX));
    let request = GetRunStatsRequest { since_ms, stack: stack.unwrap_or_default() };
    let stats = client.runs().get_run_stats(request).await?.into_inner();
    if context.out.json {
        let states: serde_json::Map<_, _> =
            stats.states.iter().map(|count| (count.state.clone(), count.runs.into())).collect();
        let steps = stats.steps.iter().map(|step| {
            json!({
                "step": step.step, "count": step.count, "failed": step.failed,
                "mean_ms": step.mean_ms, "p95_ms": step.p95_ms, "max_ms": step.max_ms,
            })
        });
        return context.out.document(&json!({
            "since_ms": stats.since_ms,
            "runs": stats.runs,
            "carried_out": stats.carried_out,
            "succeeded": stats.succeeded,
            "success_rate": stats.success_rate,
            "first_attempt_rate": stats.first_attempt_rate,
            "mean_time_to_repair_ms": stats.mean_time_to_repair_ms,
            "states": states,
            "steps": steps.collect::<Vec<_>>(),
            "cut": stats.cut,
        }));
    }
    context.out.line(&text(&stats))?;
    let rows = stats.steps.iter().map(|step| {
        let time = units::human_ms;
        vec![
            step.step.clone(),
            step.count.to_string(),
            step.failed.to_string(),
            time(step.mean_ms),
            time(step.p95_ms),
            time(step.max_ms),
        ]
    });
    context.out.table(&["step", "count", "failed", "mean", "p95", "max"], rows.collect())
}

fn text(stats: &RunStats) -> String {
    let ends: Vec<_> = stats.states.iter().map(|count| format!("{} {}", count.runs, count.state)).collect();
    let percent = |rate: f64| format!("{:.0} %", rate * 100.0);
    let cut = if stats.cut { " (the newest of more)" } else { "" };
    let mut lines = vec![format!("runs            {}{cut}: {}", stats.runs, ends.join(", "))];
    if stats.carried_out > 0 {
        lines.push(format!("carried out     {}", stats.carried_out));
        lines.push(format!("success         {}", percent(stats.success_rate)));
        lines.push(format!("first attempt   {}", percent(stats.first_attempt_rate)));
    }
    if stats.succeeded > 0 {
        lines.push(format!("time to repair  {} on average", units::human_ms(stats.mean_time_to_repair_ms)));
    }
    lines.join("\n")
}
