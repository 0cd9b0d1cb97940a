//! The promises, held against what was recorded and what clients were told.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use cooper_chaos::{
    journal::{Entry, digest},
    work::Work,
};
use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Clone, Deserialize)]
pub struct Event {
    pub seq: u64,
    pub kind: String,
    pub subject: String,
    pub body: Value,
}

/// Everything there is to judge by.
#[derive(Debug, Default)]
pub struct Seen {
    /// In the log's order.
    pub events: Vec<Event>,
    /// Of all clients; of each in its order.
    pub entries: Vec<Entry>,
    /// One token a line.
    pub effects: String,
}

#[derive(Debug, Default)]
pub struct Findings {
    /// Acknowledged, and without an end that a fault explains.
    pub lost: u64,
    /// Two ends, two effects, or two tasks for one key.
    pub doubled: u64,
    /// A change under an older fence, or after the end.
    pub stale_applied: u64,
    /// Output that is not what the work prints.
    pub bytes_wrong: u64,
    /// Processes, files or sessions that are left.
    pub leaked: u64,
    pub told: Vec<String>,
}

impl Findings {
    fn lost(&mut self, what: String) {
        self.lost += 1;
        self.told.push(format!("lost: {what}"));
    }
    fn doubled(&mut self, what: String) {
        self.doubled += 1;
        self.told.push(format!("doubled: {what}"));
    }
    fn stale_applied(&mut self, what: String) {
        self.stale_applied += 1;
        self.told.push(format!("stale applied: {what}"));
    }
    fn bytes_wrong(&mut self, what: String) {
        self.bytes_wrong += 1;
        self.told.push(format!("bytes wrong: {what}"));
    }
    pub fn leaked(&mut self, what: String) {
        self.leaked += 1;
        self.told.push(format!("leaked: {what}"));
    }

    pub fn none(&self) -> bool {
        self.lost + self.doubled + self.stale_applied + self.bytes_wrong + self.leaked == 0
    }

    /// One line of JSON.
    pub fn report(&self, kills: u64, tasks: usize) -> String {
        let Self { lost, doubled, stale_applied, bytes_wrong, leaked, .. } = self;
        format!(
            r#"{{"kills": {kills}, "tasks": {tasks}, "lost": {lost}, "doubled": {doubled}, "stale_applied": {stale_applied}, "bytes_wrong": {bytes_wrong}, "leaked": {leaked}}}"#
        )
    }
}

/// What clients know of a task.
#[derive(Debug, Default)]
struct Known<'a> {
    work: Option<&'a Work>,
    /// Of each attempt offset, length and digest of the pieces of standard output, as they came.
    attempts: Vec<Vec<(u64, u64, &'a str)>>,
    /// State, length of the output, and whether it was cut.
    ended: Option<(&'a str, u64, bool)>,
}

/// Judges everything; answers how many tasks were acknowledged.
pub fn judge(seen: &Seen, findings: &mut Findings) -> usize {
    let (known, abandoned) = acknowledged(&seen.entries, findings);
    let mut of_task: HashMap<&str, Vec<&Event>> = HashMap::new();
    let mut restarts: HashMap<&str, Vec<u64>> = HashMap::new();
    for event in &seen.events {
        if event.kind.starts_with("task.") {
            of_task.entry(&event.subject).or_default().push(event);
        } else if event.kind == "worker.restarted" {
            restarts.entry(&event.subject).or_default().push(event.seq);
        }
    }
    let mut effects: HashMap<&str, u64> = HashMap::new();
    for token in seen.effects.lines() {
        *effects.entry(token).or_default() += 1;
    }
    for (task, known) in &known {
        let events = of_task.get(task).map(Vec::as_slice).unwrap_or_default();
        let state = end(task, known, events, &restarts, findings);
        output(task, known, state, findings);
        if let Some(token) = known.work.and_then(Work::token)
            && state == Some("succeeded")
            && !effects.contains_key(token)
        {
            findings.lost(format!("{task} succeeded, and its effect is not there"));
        }
    }
    for (token, times) in effects.into_iter().filter(|(_, times)| *times > 1) {
        findings.doubled(format!("the effect {token} is there {times} times"));
    }
    // A request whose answer was lost is repeated with its key, so that nobody makes a task that nobody knows.
    let unknown: BTreeSet<&str> = of_task.keys().copied().filter(|task| !known.contains_key(task)).collect();
    for task in unknown.into_iter().skip(abandoned) {
        findings.doubled(format!("{task} was recorded, and no client knows it"));
    }
    epochs(&seen.events, findings);
    sessions(&seen.events, findings);
    known.len()
}

/// The tasks that clients were told of, and how many keys were given up.
fn acknowledged<'a>(entries: &'a [Entry], findings: &mut Findings) -> (BTreeMap<&'a str, Known<'a>>, usize) {
    let mut works: HashMap<&str, &Work> = HashMap::new();
    let mut of_key: HashMap<&str, &str> = HashMap::new();
    let mut known: BTreeMap<&str, Known> = BTreeMap::new();
    let mut abandoned = 0;
    for entry in entries {
        match entry {
            Entry::Asked { key, work } => drop(works.insert(key, work)),
            Entry::Accepted { key, task } => {
                known.entry(task).or_default().work = works.get(key.as_str()).copied();
                match of_key.insert(key, task) {
                    Some(before) if before != task => {
                        findings.doubled(format!("key {key} was answered with {before} and with {task}"));
                    }
                    _ => {}
                }
            }
            // 1 is standard output; none of the work writes to the other.
            Entry::Received { task, stream: 1, offset, len, sha256 } => {
                let attempts = &mut known.entry(task).or_default().attempts;
                match attempts.last_mut() {
                    Some(pieces) => pieces.push((*offset, *len, sha256)),
                    None => attempts.push(vec![(*offset, *len, sha256)]),
                }
            }
            Entry::Received { task, .. } => findings.bytes_wrong(format!("{task} wrote to standard error")),
            Entry::Restarted { task } => known.entry(task).or_default().attempts.push(Vec::new()),
            Entry::Ended { task, state, stdout_bytes, truncated } => {
                known.entry(task).or_default().ended = Some((state, *stdout_bytes, *truncated));
            }
            Entry::Abandoned { .. } => abandoned += 1,
        }
    }
    (known, abandoned)
}

const TERMINAL: [&str; 6] = ["succeeded", "failed", "timed_out", "cancelled", "lost", "dead_letter"];

fn fence(event: &Event) -> (u64, u64) {
    let number = |name: &str| event.body[name].as_u64().unwrap_or_default();
    (number("epoch"), number("attempt"))
}

/// How it ended by the log, once everything about that was checked.
fn end<'a>(
    task: &str,
    known: &Known,
    events: &[&'a Event],
    restarts: &HashMap<&str, Vec<u64>>,
    findings: &mut Findings,
) -> Option<&'a str> {
    let mut held = (0, 0);
    let mut assigned: Option<&Event> = None;
    let mut ended: Option<(&'a str, &Event)> = None;
    for event in events {
        let kind = event.kind.strip_prefix("task.").unwrap_or_default();
        let terminal = TERMINAL.contains(&kind);
        match ended {
            Some((before, _)) if terminal => {
                findings.doubled(format!("{task} ended as {before} and as {kind}"))
            }
            Some((before, _)) => findings.stale_applied(format!("{task} was {kind} after it had {before}")),
            None => {}
        }
        let fence = fence(event);
        match kind {
            "assigned" if fence <= held => {
                findings.stale_applied(format!("{task} was granted under {fence:?} after {held:?}"));
            }
            "running" if fence != held => {
                findings.stale_applied(format!("{task} ran under {fence:?}, and {held:?} was granted"));
            }
            _ if terminal && assigned.is_some() && fence != held => {
                findings.stale_applied(format!("{task} is {kind} under {fence:?}, and {held:?} was granted"));
            }
            _ => {}
        }
        if kind == "assigned" {
            (held, assigned) = (fence, Some(*event));
        }
        if terminal && ended.is_none() {
            ended = Some((kind, *event));
        }
    }
    let Some((state, event)) = ended else {
        findings.lost(format!("{task} was acknowledged, and the log has no end of it"));
        return None;
    };
    match (state, assigned) {
        ("succeeded", _) => {}
        // Its host was killed while it ran: nobody can know how far it came.
        ("lost", Some(grant)) if !matches!(known.work, Some(Work::Noop)) => {
            let worker = grant.body["worker"].as_str().unwrap_or_default();
            let between = |seq: &u64| (grant.seq..=event.seq).contains(seq);
            if !restarts.get(worker).is_some_and(|restarts| restarts.iter().any(between)) {
                findings.lost(format!("{task} is lost, and the host of {worker} lived all the time"));
            }
        }
        _ => findings.lost(format!("{task} ended as {state}, which nobody asked for")),
    }
    match known.ended {
        Some((told, ..)) if told == state => {}
        Some((told, ..)) => findings.doubled(format!("{task} is {state}, and its client was told {told}")),
        None => findings.lost(format!("{task} is {state}, and its client never heard of that")),
    }
    Some(state)
}

/// Every piece is what belongs at its offset, without gap or overlap; and all is there in the end.
fn output(task: &str, known: &Known, state: Option<&str>, findings: &mut Findings) {
    let Some(work) = known.work else { return };
    let whole = work.stdout();
    let mut at = 0;
    for pieces in &known.attempts {
        at = 0;
        for (offset, len, sha256) in pieces {
            if *offset != at {
                findings.bytes_wrong(format!("{task}: a piece at {offset} came when {at} was next"));
                return;
            }
            at += len;
            let range = usize::try_from(*offset).unwrap_or_default()..usize::try_from(at).unwrap_or_default();
            if whole.get(range).map(digest).as_deref() != Some(*sha256) {
                findings.bytes_wrong(format!("{task}: {len} bytes at {offset} are others than it printed"));
                return;
            }
        }
    }
    if let (Some("succeeded"), Some((_, stdout_bytes, truncated))) = (state, known.ended)
        && !truncated
        && (at, stdout_bytes) != (whole.len() as u64, whole.len() as u64)
    {
        let printed = whole.len();
        findings.bytes_wrong(format!("{task}: {at} bytes came of {stdout_bytes} told and {printed} printed"));
    }
}

/// Whoever grants is the newest coordinator.
fn epochs(events: &[Event], findings: &mut Findings) {
    let mut newest = 0;
    for event in events.iter().filter(|event| event.kind == "task.assigned") {
        let (epoch, _) = fence(event);
        if epoch < newest {
            findings.stale_applied(format!("{} was granted by epoch {epoch} after {newest}", event.subject));
        }
        newest = newest.max(epoch);
    }
}

/// Clients destroy what they made.
fn sessions(events: &[Event], findings: &mut Findings) {
    let mut last: BTreeMap<&str, &str> = BTreeMap::new();
    for event in events.iter().filter(|event| event.kind.starts_with("session.")) {
        last.insert(&event.subject, &event.kind);
    }
    for (session, kind) in last {
        if !matches!(kind, "session.destroyed" | "session.failed") {
            findings.leaked(format!("{session}: its last event is {kind}"));
        }
    }
}
