//! Holds what the coordinator recorded against what was seen from outside, once all is over.

use std::collections::BTreeMap;

use cooper_coordinator::store::{Event, Filter, Record, Store, sqlite::Sqlite};
use cooper_core::{
    change::Aggregate,
    task::{Body, End, State},
};
use cooper_proto::v1::TaskState;
use futures::FutureExt;

use crate::{
    witness::{Start, Witness},
    world::TIMING,
};

/// Pages of the store are read with this many rows.
const PAGE: usize = 1_000;
/// Events that name no state.
const OF_NO_STATE: [&str; 4] = ["interpreter_restarted", "restarted", "requeued", "deadline_passed"];
/// A worker that was silent may have been in trouble this long before it was given up, beside the silence itself: it has to
/// notice that its connection is dead, and to find its way back.
const TROUBLE_MARGIN_MS: u64 = 15_000;

/// Everything. Returns how many tasks there were.
pub fn all(store: &Sqlite, witness: &Witness) -> usize {
    let events = events(store);
    let rows = rows(store, Aggregate::Task);
    let tasks = rows.len();
    sequence(&events, witness);
    histories(&events, &rows, witness);
    for aggregate in [Aggregate::Session, Aggregate::Worker] {
        last_words(aggregate, store, &events, witness);
    }
    promises(&rows, witness);
    for row in &rows {
        match serde_json::from_str::<Body>(&row.row.body) {
            Ok(body) => ends(row, &body, &events, witness),
            Err(error) => witness.violated(format!("the row of {} cannot be read: {error}", row.id)),
        }
    }
    for event in &events {
        witness.say(format!("event {} {} {} {}", event.seq, event.kind, event.subject, event.body));
    }
    tasks
}

/// Answers of a store in memory are there at once.
fn now<T>(answer: cooper_coordinator::store::Answer<T>) -> T {
    let answer = answer.now_or_never().expect("a store in memory does not wait");
    answer.expect("a store in memory does not fail")
}

fn events(store: &Sqlite) -> Vec<Event> {
    let mut events = Vec::new();
    let mut from = 1;
    loop {
        let page = now(store.events(None, from, PAGE));
        events.extend(page.events);
        from = page.next_seq;
        if page.at_end {
            return events;
        }
    }
}

fn rows(store: &Sqlite, aggregate: Aggregate) -> Vec<Record> {
    let mut rows = Vec::new();
    let mut filter = Filter { limit: PAGE, ..Filter::default() };
    loop {
        let page = now(store.list(aggregate, filter.clone()));
        rows.extend(page.records);
        match page.next {
            Some(next) => filter.before = Some(next),
            None => return rows,
        }
    }
}

/// Events are numbered from 1 without gaps.
fn sequence(events: &[Event], witness: &Witness) {
    if let Some((due, event)) = (1..).zip(events).find(|(due, event)| *due != event.seq) {
        witness.violated(format!("events: {} came where {due} was due", event.seq));
    }
}

/// Replaying the events of a task gives its state, by steps that exist, with one end.
fn histories(events: &[Event], rows: &[Record], witness: &Witness) {
    let mut states: BTreeMap<&str, &str> = BTreeMap::new();
    for event in events {
        let Some(to) = event.kind.strip_prefix("task.").filter(|to| !OF_NO_STATE.contains(to)) else {
            continue;
        };
        let from = states.insert(&event.subject, to);
        let allowed = match (from, to) {
            (None, "queued") | (Some("queued"), "assigned") | (Some("assigned"), "running") => true,
            (Some("assigned" | "running"), "queued") => true,
            (Some("queued" | "assigned" | "running"), end) => {
                !["queued", "assigned", "running"].contains(&end)
            }
            _ => false,
        };
        if !allowed {
            witness
                .violated(format!("I3: event {}: {} went from {from:?} to {to}", event.seq, event.subject));
        }
    }
    for row in rows {
        let replayed = states.remove(row.id.as_str());
        if replayed != Some(row.row.state.as_str()) {
            let state = &row.row.state;
            witness.violated(format!("events: {} is {state}, its events say {replayed:?}", row.id));
        }
        if !row.row.ended {
            witness.violated(format!("stuck: {} is {}", row.id, row.row.state));
        }
    }
    if let Some((task, _)) = states.first_key_value() {
        witness.violated(format!("events: {task} has events and no row"));
    }
}

/// The last event of a session or worker that names a state names that of its row.
fn last_words(aggregate: Aggregate, store: &Sqlite, events: &[Event], witness: &Witness) {
    let prefix = format!("{}.", aggregate.name());
    for row in rows(store, aggregate) {
        let of_it = events.iter().rev().filter(|event| event.subject == row.id);
        let mut states = of_it.filter_map(|event| event.kind.strip_prefix(&prefix));
        let last = states.find(|state| !OF_NO_STATE.contains(state));
        if last != Some(row.row.state.as_str()) {
            witness.violated(format!("events: {} is {}, its events say {last:?}", row.id, row.row.state));
        }
    }
}

/// What was acknowledged is there, once for each key, and as clients were told.
fn promises(rows: &[Record], witness: &Witness) {
    let by_id: BTreeMap<&str, &Record> = rows.iter().map(|row| (row.id.as_str(), row)).collect();
    let mut keys = BTreeMap::new();
    for row in rows.iter().filter(|row| !row.row.key.is_empty()) {
        if let Some(other) = keys.insert(&row.row.key, &row.id) {
            witness.violated(format!("I3: {other} and {} have the same key", row.id));
        }
    }
    let (acked, told) = witness.look(|seen| (seen.acked.clone(), seen.told.clone()));
    for task in acked.keys() {
        if !by_id.contains_key(task.as_str()) {
            witness.violated(format!("I2: {task} was acknowledged and is not there"));
        }
        if !told.contains_key(task) {
            witness.violated(format!("nobody was told how {task} ended"));
        }
    }
    for (task, state) in told {
        let recorded = by_id.get(task.as_str()).map(|row| row.row.state.clone()).unwrap_or_default();
        let state = TaskState::try_from(state).map_or("", |state| state.as_str_name());
        if state != format!("TASK_STATE_{}", recorded.to_uppercase()) {
            witness.violated(format!("I2: a client was told {state} of {task}, recorded is {recorded}"));
        }
    }
}

/// Whether a task may have ended as it did.
fn ends(row: &Record, body: &Body, events: &[Event], witness: &Witness) {
    let task = &row.id;
    let starts = witness.look(|seen| seen.starts.get(task).cloned().unwrap_or_default());
    let code = body.session.is_some();
    let State::Ended(end) = body.state else { return };
    match end {
        End::Succeeded if code => match starts.as_slice() {
            [.., Start { worker, fence }] => {
                let recorded = (body.fence.epoch, body.fence.attempt);
                if *fence != recorded || body.worker.as_deref() != Some(worker) {
                    witness.violated(format!(
                        "I1: {task} ran on {worker} under {fence:?}, recorded are {:?} and {recorded:?}",
                        body.worker
                    ));
                }
            }
            [] => witness.violated(format!("I1: {task} succeeded and was never started")),
        },
        End::Cancelled => {
            let asked = witness.look(|seen| seen.cancelled.contains(task));
            // The end of a session takes its executions along.
            if !asked && !code {
                witness.violated(format!("{task} was cancelled and nobody had asked for it"));
            }
        }
        End::Lost => lost(task, body, events, witness),
        // All attempts of a minute's work cannot be used up by what breaks in it.
        End::DeadLetter => witness.violated(format!("{task} is a dead letter")),
        End::Succeeded | End::Failed | End::TimedOut => {}
    }
}

/// Work is lost only with its host, or when its worker could not be heard for too long.
fn lost(task: &str, body: &Body, events: &[Event], witness: &Witness) {
    let last = |kind: &str| events.iter().rev().find(|event| event.subject == *task && event.kind == kind);
    let (Some(assigned), Some(lost)) = (last("task.assigned"), last("task.lost")) else {
        return witness.violated(format!("events: {task} was lost without being assigned"));
    };
    let worker = body.worker.clone().unwrap_or_default();
    let why = body.reason.as_ref().map(|reason| reason.message.clone()).unwrap_or_default();
    let lost_ms = simulated_ms(lost.at_ms);
    // Deaths that the coordinator had learned of before it gave the task to this worker do not count.
    let known = events.iter().filter(|event| {
        event.seq < assigned.seq && event.subject == worker && event.kind == "worker.restarted"
    });
    let known = known.count();
    let allowed = witness.look(|seen| {
        let deaths = seen.deaths.iter().filter(|(name, at)| *name == worker && *at <= lost_ms).count();
        let since = lost_ms.saturating_sub(TIMING.lost_ms + TROUBLE_MARGIN_MS);
        let troubled = seen.troubles.iter().any(|trouble| {
            (trouble.machine == worker || trouble.machine == crate::net::COORDINATOR)
                && trouble.from_ms <= lost_ms
                && trouble.to_ms >= since
        });
        if why.contains("silent") { troubled } else { deaths > known }
    });
    if !allowed {
        witness.violated(format!("{task} is lost ({why}), and {worker} lived all the time"));
    }
}

/// When it was, in the time of the trace.
fn simulated_ms(at_ms: i64) -> u64 {
    let start = cooper_common::clock::wall_ms() - cooper_common::clock::mono_ms() as i64;
    u64::try_from(at_ms - start).unwrap_or(0)
}
