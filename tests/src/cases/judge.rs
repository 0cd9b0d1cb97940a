//! Whether a repair ended as the oracle says, by what is there afterwards and not by what the run says of itself alone.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{
    docker::{Container, Stack},
    http, seconds,
    tree::{self, Tree},
    wait,
};

use super::{Case, Probe, Wanted, work::Outcome};

/// How a case came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Fixed,
    RefusedRightly,
    WaitsRightly,
    RolledBackExactly,
    /// It failed by an error, and said so, before anything was touched.
    Untouched,
    /// Otherwise than the oracle says.
    Wrong,
}

impl End {
    pub const fn as_str(self) -> &'static str {
        match self {
            End::Fixed => "fixed",
            End::RefusedRightly => "refused rightly",
            End::Untouched => "untouched",
            End::WaitsRightly => "waits rightly",
            End::RolledBackExactly => "rolled back exactly",
            End::Wrong => "WRONG",
        }
    }
}

/// What is said about a case.
#[derive(Debug, Clone)]
pub struct Verdict {
    pub end: End,
    /// What is not as the oracle says, a sentence each.
    pub problems: Vec<String>,
    /// Changed files that the oracle does not allow.
    pub outside: Vec<String>,
    pub rule: String,
    pub attempts: u64,
    pub lines: usize,
    pub ms: u64,
}

/// Everything that a repair could touch.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Before {
    pub(super) tree: Tree,
    pub(super) services: BTreeMap<String, Service>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Service {
    pub(super) container: Option<Container>,
    /// Image behind the tag.
    pub(super) image: String,
}

impl Before {
    pub(super) fn of(stack: &Stack) -> Self {
        // A compose file that compose refuses has no services to tell of.
        let names = stack.compose(&["config", "--services"]).out();
        let service =
            |name: &str| Service { container: stack.find_container(name), image: stack.image(name) };
        let services = names.lines().map(|name| (name.to_owned(), service(name))).collect();
        Self { tree: stack.tree(), services }
    }
}

pub(super) fn judge(case: &Case, stack: &Stack, before: &Before, outcome: &Outcome) -> Verdict {
    let now = Before::of(stack);
    let changed = tree::changed(&before.tree, &now.tree);
    let mut judge = Judge { case, stack, before, now: &now, outcome, problems: Vec::new() };
    judge.run();
    judge.neighbours();
    match case.expect.end {
        Wanted::Fixed => judge.fixed(&changed),
        Wanted::Refused | Wanted::Waits => {
            judge.check(now == *before, || format!("a refused run changed something: {changed:?}"))
        }
        Wanted::RolledBack => judge.rolled_back(&changed),
    }
    let problems = judge.problems;
    let end = match case.expect.end {
        _ if !problems.is_empty() => End::Wrong,
        Wanted::Fixed => End::Fixed,
        Wanted::Refused => End::RefusedRightly,
        Wanted::Waits => End::WaitsRightly,
        Wanted::RolledBack => End::RolledBackExactly,
    };
    let outside = changed.into_iter().filter(|path| !case.expect.files.contains(path)).collect();
    Verdict {
        end,
        problems,
        outside,
        rule: outcome.run["rule_id"].as_str().unwrap_or_default().to_owned(),
        attempts: attempts(&outcome.run),
        lines: changed_lines(&outcome.patch).count(),
        ms: outcome.ms,
    }
}

/// The same for a run that ended by an error: it has to be true that nothing was touched.
pub(super) fn untouched(stack: &Stack, before: &Before, outcome: &Outcome) -> Verdict {
    let changed = tree::changed(&before.tree, &Before::of(stack).tree);
    let mut problems = Vec::new();
    if outcome.run["state"] == "rollback_failed" || Before::of(stack) != *before {
        let (state, why) = (&outcome.run["state"], &outcome.run["reason"]["message"]);
        problems.push(format!("it ended {state} ({why}), and not as it was: {changed:?}"));
    }
    Verdict {
        end: if problems.is_empty() { End::Untouched } else { End::Wrong },
        problems,
        outside: changed,
        rule: outcome.run["rule_id"].as_str().unwrap_or_default().to_owned(),
        attempts: attempts(&outcome.run),
        lines: 0,
        ms: outcome.ms,
    }
}

/// Attempts that a run took.
fn attempts(run: &Value) -> u64 {
    run["attempt"].as_u64().unwrap_or(1).max(1)
}

/// Lines that a patch adds and removes, with their signs.
fn changed_lines(patch: &str) -> impl Iterator<Item = &str> {
    let changed = |line: &&str| {
        (line.starts_with('+') && !line.starts_with("+++ "))
            || (line.starts_with('-') && !line.starts_with("--- "))
    };
    patch.lines().filter(changed)
}

struct Judge<'a> {
    case: &'a Case,
    stack: &'a Stack,
    before: &'a Before,
    now: &'a Before,
    outcome: &'a Outcome,
    problems: Vec<String>,
}

impl Judge<'_> {
    fn check(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.problems.push(otherwise());
        }
    }

    /// What the run says of itself.
    fn run(&mut self) {
        let (expect, run) = (&self.case.expect, &self.outcome.run);
        let (state, status) = match expect.end {
            Wanted::Fixed => ("succeeded", 0),
            Wanted::Refused => ("refused", 5),
            Wanted::Waits => ("rejected", 7),
            Wanted::RolledBack => ("rolled_back", 4),
        };
        let statuses = &self.outcome.statuses;
        let waited = statuses.iter().filter(|status| **status == 3).count();
        let why = || format!("{} {}", run["cause"], run["error"]);
        self.check(run["state"] == state, || format!("it ended {}, not {state}: {}", run["state"], why()));
        self.check(statuses.last() == Some(&status), || format!("exit statuses {statuses:?}, not {status}"));
        self.check((waited > 0) == (expect.approval || expect.end == Wanted::Waits), || {
            format!("exit statuses {statuses:?}: approvals")
        });
        self.check(!self.outcome.touched_early, || "it touched something before the approval".to_owned());
        let rule = run["rule_id"].as_str().unwrap_or_default();
        let known = if expect.rules.is_empty() {
            rule.is_empty()
        } else {
            expect.rules.iter().any(|wanted| wanted == rule)
        };
        self.check(known, || format!("the rule is {rule:?}, not one of {:?}", expect.rules));
        let attempts = attempts(run);
        self.check(attempts <= expect.max_attempts, || format!("{attempts} attempts"));
        for text in &expect.never {
            let changed = changed_lines(&self.outcome.patch).any(|line| line.contains(text.as_str()));
            self.check(!changed, || format!("{text:?} is in the patch:\n{}", self.outcome.patch));
        }
    }

    /// Nobody else noticed: not even another container from the same image.
    fn neighbours(&mut self) {
        for (name, service) in &self.before.services {
            if *name != self.case.service {
                let same = self.now.services.get(name) == Some(service);
                self.check(same, || format!("its neighbour {name} is not as it was"));
            }
        }
    }

    fn fixed(&mut self, changed: &[String]) {
        let (expect, outcome) = (&self.case.expect, self.outcome);
        let outside: Vec<_> = changed.iter().filter(|path| !expect.files.contains(path)).collect();
        self.check(outside.is_empty(), || format!("{outside:?} changed, which may not"));
        self.check(outcome.run["files"] == serde_json::json!(changed), || {
            format!("{changed:?} changed, the run says {}", outcome.run["files"])
        });
        let lines = changed_lines(&outcome.patch).count();
        self.check(lines <= expect.max_lines, || format!("{lines} lines:\n{}", outcome.patch));
        for text in &expect.patch {
            let there = outcome.patch.contains(text.as_str());
            self.check(there, || format!("{text:?} is not in the patch:\n{}", outcome.patch));
        }
        if !self.problems.is_empty() {
            return;
        }
        if !changed.is_empty() {
            // Byte for byte what the patch says, and nothing about a file but its content.
            let patched = self.stack.patched(&self.before.tree, outcome.patch.as_bytes());
            let exact = changed.iter().all(|path| self.now.tree.get(path) == patched.get(path));
            self.check(exact, || format!("{changed:?} are not what the patch makes of them"));
        }
        self.runs_from_its_tag();
        self.probe();
        // What was promoted is what a user builds from now on.
        let built = self.stack.compose(&["up", "-d", "--build", "--wait", "--no-deps", &self.case.service]);
        self.check(built.status == 0, || format!("it cannot be deployed again: {built}"));
        self.probe();
    }

    fn runs_from_its_tag(&mut self) {
        let service = self.now.services.get(&self.case.service);
        let runs = service.and_then(|service| service.container.as_ref().map(|container| &container.image));
        let tag = service.map(|service| &service.image).filter(|image| !image.is_empty());
        self.check(tag.is_none() || runs == tag, || "its container is not from its image".to_owned());
    }

    fn probe(&mut self) {
        let (stack, service) = (self.stack, &self.case.service);
        let Some(probe) = &self.case.expect.probe else { return };
        let health = stack.health(service);
        self.check(["healthy", "running"].contains(&&*health), || format!("it is {health}"));
        if let Err(why) = holds(stack, service, probe) {
            self.problems.push(format!("the probe: {why}"));
        }
    }

    fn rolled_back(&mut self, changed: &[String]) {
        self.check(changed.is_empty(), || format!("{changed:?} are not restored"));
        let service = |all: &Before| all.services.get(&self.case.service).cloned();
        if let (Some(was), Some(is)) = (service(self.before), service(self.now)) {
            self.check(was.image == is.image, || "the image behind its tag is another".to_owned());
            // The container is another one of the same making.
            let made = |service: &Service| {
                service
                    .container
                    .as_ref()
                    .map(|container| (container.image.clone(), container.configuration.clone()))
            };
            self.check(made(&was) == made(&is), || "its container is made in another way".to_owned());
        }
        let health = || self.stack.health(&self.case.service);
        let ended = wait::until_within(seconds(30), || (health() == self.case.seen).then_some(()));
        self.check(ended.is_some(), || format!("it is {}, and was {}", health(), self.case.seen));
    }
}

/// Whether a probe holds, or why not.
pub(super) fn holds(stack: &Stack, service: &str, probe: &Probe) -> Result<(), String> {
    if !probe.exec.is_empty() {
        let exec: Vec<&str> = probe.exec.iter().map(String::as_str).collect();
        let done = stack.compose(&[&["exec", "-T", service], exec.as_slice()].concat());
        return if done.status == 0 { Ok(()) } else { Err(done.to_string()) };
    }
    let address = stack.address(service).ok_or("it has no address")?;
    let url = format!("http://{address}:{}", probe.port);
    let answer = http::try_get(&url, &probe.path, None).map_err(|error| format!("{url}: {error}"))?;
    if answer.status == 200 && answer.body.contains(&probe.contains) {
        Ok(())
    } else {
        Err(format!("{url}{} answers {} {:?}", probe.path, answer.status, answer.body))
    }
}
