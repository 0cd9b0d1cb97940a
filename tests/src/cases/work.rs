//! One case from its healthy version to a judged end.

use std::{fs, path::Path, time::Duration};

use cooper_common::clock;

use crate::{
    Answer, Cooper,
    docker::Stack,
    program::{Running, command},
    seconds,
    wait::until_true,
};

use super::{
    Case, Wanted,
    judge::{self, Before, Verdict},
};

/// Decisions that one run may ask for: one for each attempt.
const DECISIONS_MAX: usize = 3;

/// Longer than a build takes that waits for a slow mirror, several times over.
pub(super) const PATIENCE: Duration = seconds(900);
/// For a fault to show.
const SHOWS: Duration = seconds(120);

/// What came of a repair, as the command line says it.
pub(super) struct Outcome {
    /// Exit statuses of the commands, in order: 3 for each time it waited for a decision.
    pub(super) statuses: Vec<i32>,
    pub(super) run: Answer,
    pub(super) patch: String,
    /// Something changed while it waited for a decision.
    pub(super) touched_early: bool,
    pub(super) ms: u64,
}

/// Deploys, breaks, repairs and judges a case.
///
/// # Panics
/// If the case itself is not as it says: the first version is not well, or the fault does not show.
pub fn work(case: &Case, cooper: &Cooper) -> Verdict {
    let stack = broken(case);
    let before = Before::of(&stack);
    let outcome = repair(case, cooper, &stack, &before);
    judge::judge(case, &stack, &before, &outcome)
}

/// A copy of a case with its fault deployed and seen.
pub(super) fn broken(case: &Case) -> Stack {
    let layers = case.layers();
    let layers: Vec<&Path> = layers.iter().map(AsRef::as_ref).collect();
    let stack = Stack::of(&case.name, &layers);
    if !case.never_well {
        stack.compose(&["up", "-d", "--build", "--wait"]).expect(0);
    }
    if case.git {
        git(&stack, "git init -q && git add -A && git commit -q -m first");
    }
    for path in &case.remove {
        fs::remove_file(stack.dir.join(path)).expect("what is removed was there");
    }
    for part in ["fault", "dirty"] {
        if let Some(part) = case.part(part) {
            stack.lay(&part);
        }
    }
    if case.git {
        // Half of somebody's work is staged, half is not.
        git(&stack, "git add -- $(git ls-files --others --exclude-standard | sort | awk 'NR % 2')");
    }
    // As a user does who has not noticed yet: it may fail.
    stack.compose(&["up", "-d", "--build"]);
    let what = format!("{} of {} as {}", case.service, case.name, case.seen);
    until_true(&what, SHOWS, || stack.health(&case.service) == case.seen);
    stack
}

fn git(stack: &Stack, script: &str) {
    let mut shell = command("sh");
    let who = ["GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"];
    shell.args(["-ec", script]).current_dir(&stack.dir).envs(who.map(|name| (name, "someone@example.com")));
    Running::start(shell, b"").finish(seconds(20)).expect(0);
}

/// Arguments of the repair of a case.
pub(super) fn arguments<'a>(case: &'a Case, stack: &'a Stack) -> Vec<String> {
    let mut args = vec!["repair", &case.service, "--stack", stack.arg()];
    let log = case.log.as_ref().map(|log| case.dir.join(log).to_string_lossy().into_owned());
    if let Some(log) = &log {
        args.extend(["--log", log]);
    }
    if let Some(instruction) = &case.instruction {
        args.extend(["--instruction", instruction]);
    }
    args.into_iter().map(str::to_owned).collect()
}

fn repair(case: &Case, cooper: &Cooper, stack: &Stack, before: &Before) -> Outcome {
    let cooper = cooper.clone().patience(PATIENCE);
    let start = clock::mono_ms();
    let args = arguments(case, stack);
    let (status, mut run) = cooper.run_json(args.iter().map(String::as_str));
    let mut statuses = vec![status];
    let mut touched_early = false;
    if case.expect.end == Wanted::Waits && status == 3 {
        touched_early = Before::of(stack) != *before;
        let id = run["run_id"].as_str().expect("an id").to_owned();
        let (status, rejected) = cooper.run_json(["reject", &id, "--follow"]);
        statuses.push(status);
        run = rejected;
    }
    while case.expect.approval && statuses.last() == Some(&3) && statuses.len() <= DECISIONS_MAX {
        touched_early |= statuses.len() == 1 && Before::of(stack) != *before;
        let id = run["run_id"].as_str().expect("an id").to_owned();
        let (status, next) = cooper.run_json(["approve", &id, "--follow"]);
        statuses.push(status);
        run = next;
    }
    let ms = clock::mono_ms() - start;
    Outcome { patch: patch(&cooper, &run), statuses, run, touched_early, ms }
}

/// The patch of a run's last attempt; empty if it has none.
pub(super) fn patch(cooper: &Cooper, run: &Answer) -> String {
    let id = run["run_id"].as_str().unwrap_or_default();
    let name = match run["attempt"].as_u64() {
        Some(attempt @ 2..) => format!("attempt-{attempt}/patch.diff"),
        _ => "patch.diff".to_owned(),
    };
    if run["artifacts"].as_array().is_some_and(|names| names.iter().any(|known| *known == name.as_str())) {
        cooper.run(["runs", "artifact", id, &name]).expect(0).out()
    } else {
        String::new()
    }
}
