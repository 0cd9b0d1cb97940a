//! Repairs of which a process is killed at a step: they end in a state that is true, fixed or as it was.

use cooper_common::clock;

use crate::{Answer, Cluster, Cooper, docker, docker::Stack, wait};

use super::{
    Case, Verdict, Wanted,
    judge::{self, Before},
    work::{self, Outcome},
};

/// Whom a repair outlives.
pub const ROLES: [&str; 3] = ["coordinator", "worker-link", "worker"];
/// When they are killed.
pub const STEPS: [&str; 7] = ["analyze", "patch", "build", "restart", "verify", "promote", "rollback"];

/// Kills the process in a role as soon as a step of a repair is seen to run, or to be over. `None` if the run has no such step.
pub fn kill(case: &Case, cluster: &Cluster, role: &str, step: &str) -> Option<Verdict> {
    kill_at(case, cluster, role, step, |cooper, stack| detached(case, cooper, stack))
}

/// The same of a retry: the repair that it begins over again was cancelled.
pub fn kill_retry(case: &Case, cluster: &Cluster, role: &str, step: &str) -> Option<Verdict> {
    kill_at(case, cluster, role, step, |cooper, stack| {
        let id = detached(case, cooper, stack);
        cooper.ok(["cancel", &id]);
        wait::until_true("the end of what is cancelled", work::PATIENCE, || {
            ended(&cooper.json(["runs", "show", &id]))
        });
        let retry = cooper.json(["runs", "retry", &id, "--detach"]);
        retry["run_id"].as_str().expect("an id").to_owned()
    })
}

/// Id of a repair that goes on while nobody watches.
fn detached(case: &Case, cooper: &Cooper, stack: &Stack) -> String {
    let args = work::arguments(case, stack);
    cooper.ok(args.iter().map(String::as_str).chain(["--detach"]))
}

fn kill_at(
    case: &Case,
    cluster: &Cluster,
    role: &str,
    step: &str,
    begin: impl FnOnce(&Cooper, &Stack) -> String,
) -> Option<Verdict> {
    let stack = work::broken(case);
    let before = Before::of(&stack);
    let cooper = cluster.cooper().patience(work::PATIENCE);
    let start = clock::mono_ms();
    let id = begin(&cooper, &stack);
    // What is asked while nobody answers is asked again.
    let ask = || {
        let done = cooper.run(["--json", "runs", "show", &id]);
        (done.status == 0).then(|| done.json())
    };
    let met = wait::until(&format!("{step} of {}", case.name), work::PATIENCE, || {
        let run = ask()?;
        let met = begun(&run, step);
        (met || ended(&run)).then_some(met)
    });
    if !met {
        return None;
    }
    cluster.kill(role);
    let run = wait::until(&format!("the end of {}", case.name), work::PATIENCE, || ask().filter(ended));
    let ms = clock::mono_ms() - start;
    let state = run["state"].as_str().unwrap_or_default().to_owned();
    let outcome = |status: i32| Outcome {
        patch: work::patch(&cooper, &run),
        statuses: vec![status],
        run: run.clone(),
        touched_early: false,
        ms,
    };
    let judged = |end: Wanted, status: i32| {
        let expect = super::Expected { end, ..case.expect.clone() };
        judge::judge(&Case { expect, ..case.clone() }, &stack, &before, &outcome(status))
    };
    let mut verdict = match &*state {
        "succeeded" => judged(Wanted::Fixed, 0),
        "rolled_back" => judged(Wanted::RolledBack, 4),
        _ => judge::untouched(&stack, &before, &outcome(1)),
    };
    if state == "succeeded" && !case.fixable() {
        verdict.problems.push("nothing could make it well, and it is said to be".to_owned());
        verdict.end = judge::End::Wrong;
    }
    forget(&stack, &mut verdict);
    Some(verdict)
}

/// Kills the process in a role while a repair is taken back, as soon as a step of that is seen to run, or to be over. It ends
/// with everything as before the repair, or as after it. `None` if it has no such step.
pub fn kill_undo(case: &Case, cluster: &Cluster, role: &str, step: &str) -> Option<Verdict> {
    let stack = work::broken(case);
    let before = Before::of(&stack);
    let cooper = cluster.cooper().patience(work::PATIENCE);
    let start = clock::mono_ms();
    let args = work::arguments(case, &stack);
    let repaired = cooper.json(args.iter().map(String::as_str));
    let after = Before::of(&stack);
    assert_eq!(repaired["state"], "succeeded", "{repaired:#}");
    let id = repaired["run_id"].as_str().expect("an id");
    let undo = cooper.json(["runs", "undo", id, "--detach"]);
    let id = undo["run_id"].as_str().expect("an id").to_owned();
    let ask = || {
        let done = cooper.run(["--json", "runs", "show", &id]);
        (done.status == 0).then(|| done.json())
    };
    let met = wait::until(&format!("{step} of its undo"), work::PATIENCE, || {
        let run = ask()?;
        let met = begun(&run, step);
        (met || ended(&run)).then_some(met)
    });
    if !met {
        return None;
    }
    cluster.kill(role);
    let run = wait::until("the end of its undo", work::PATIENCE, || ask().filter(ended));
    let now = Before::of(&stack);
    let mut problems = Vec::new();
    let wanted = if run["state"] == "succeeded" { &before } else { &after };
    if run["state"] == "rollback_failed" || now.tree != wanted.tree {
        problems.push(format!("it ended {}, and the files are not what that means: {run:#}", run["state"]));
    }
    let images = |seen: &Before| seen.services.values().map(|it| it.image.clone()).collect::<Vec<_>>();
    if images(&now) != images(wanted) {
        problems.push(format!("it ended {}, with other images than that means", run["state"]));
    }
    let end = match (problems.is_empty(), &run["state"]) {
        (false, _) => judge::End::Wrong,
        (true, state) if state == "succeeded" => judge::End::RolledBackExactly,
        (true, _) => judge::End::Untouched,
    };
    let mut verdict = Verdict {
        end,
        problems,
        outside: vec![],
        rule: repaired["rule_id"].as_str().unwrap_or_default().to_owned(),
        attempts: 1,
        lines: 0,
        ms: clock::mono_ms() - start,
    };
    forget(&stack, &mut verdict);
    Some(verdict)
}

fn begun(run: &Answer, step: &str) -> bool {
    let steps = run["steps"].as_array().into_iter().flatten();
    steps
        .into_iter()
        .any(|known| known["name"] == step && !["pending", "skipped"].iter().any(|s| known["state"] == *s))
}

fn ended(run: &Answer) -> bool {
    let goes_on = ["queued", "planning", "awaiting_approval", "running", "rolling_back"];
    !goes_on.iter().any(|state| run["state"] == *state)
}

/// What a killed step may leave running is a build, which ends by itself; no container may stay.
fn forget(stack: &Stack, verdict: &mut Verdict) {
    let label = format!("label=com.docker.compose.project={}", stack.project);
    let listed = docker::docker(&["ps", "-a", "--filter", &label, "--format", "{{.Names}}"]).expect(0).out();
    let services = stack.compose(&["config", "--services"]).expect(0).out();
    let (containers, services) = (listed.lines().count(), services.lines().count());
    if containers > services {
        verdict.problems.push(format!("containers are left over: {listed}"));
        verdict.end = judge::End::Wrong;
    }
}
