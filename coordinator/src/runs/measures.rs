//! `metrics.json`: a run in numbers, kept with it when it ends.

use cooper_core::run::{Run, StepKind};
use cooper_repair::step::Measured;
use serde_json::{Value, json};

pub(super) const NAME: &str = "metrics.json";

/// `measured`: of the steps that looked, by attempt.
pub(super) fn of(run: &Run, measured: &[(u32, StepKind, Vec<Measured>)], now_ms: i64) -> Value {
    let body = &run.body;
    let steps: Vec<Value> = run
        .steps
        .iter()
        .filter(|step| step.started_ms > 0)
        .map(|step| {
            let ended_ms = if step.ended_ms > 0 { step.ended_ms } else { now_ms };
            let containers = measured
                .iter()
                .find(|(attempt, kind, _)| (*attempt, *kind) == (step.attempt, step.kind))
                .map(|(.., measured)| measured);
            json!({
                "attempt": step.attempt,
                "step": step.kind.as_str(),
                "state": step.state.as_str(),
                "started_at_ms": step.started_ms,
                "duration_ms": ended_ms - step.started_ms,
                "observed": step.message,
                "containers": containers,
            })
        })
        .collect();
    let looked = |wanted: StepKind| {
        measured.iter().rev().find(|(_, kind, _)| *kind == wanted).map(|(.., measured)| measured)
    };
    json!({
        "run": run.id,
        "stack": body.stack,
        "service": body.service,
        "state": body.state.as_str(),
        "automatic": body.automatic,
        "trigger": body.trigger,
        "rule": body.rule_id,
        "attempts": body.attempt,
        "files": body.files.len(),
        "approvals": run.approvals.len(),
        "model_calls": body.model_calls.len(),
        "model_tokens": body.model_calls.iter().map(|call| call.tokens).sum::<u64>(),
        "created_at_ms": run.created_ms,
        "ended_at_ms": now_ms,
        "duration_ms": now_ms - run.created_ms,
        "steps": steps,
        "containers_before": measured.iter().find(|(_, kind, _)| *kind == StepKind::Analyze).map(|(.., it)| it),
        "containers_after": looked(StepKind::Rollback).or_else(|| looked(StepKind::Verify)),
    })
}
