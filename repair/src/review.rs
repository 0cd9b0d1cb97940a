//! A plan as a person reviews it: why, what changes, what is run, who is asked and why, what shows that it worked, and
//! what happens if it does not.

use serde::Serialize;

use crate::command;
use crate::edit::{FileChange, Root};
use crate::plan::{RepairPlan, Step, StepKind, Verify};
use crate::policy::{Decision, Publish};
use crate::rules::Class;

/// Everything that a decision about a plan needs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Review {
    pub plan_hash: String,
    pub stack: String,
    pub project: String,
    pub service: String,
    pub attempt: u32,
    pub cause: String,
    pub rule_id: String,
    /// Percent.
    pub confidence: u8,
    /// The log line or the instruction it rests on.
    pub evidence_line: String,
    pub class: Class,
    /// What the class means, in a sentence.
    pub risk: &'static str,
    pub decision: Decision,
    pub files: Vec<File>,
    /// Files of the build context that are not committed as they are, and are built too.
    pub uncommitted: Vec<String>,
    pub steps: Vec<Act>,
    /// What has to be seen before it counts as repaired.
    pub verification: Vec<String>,
    /// What is done if a step fails.
    pub on_failure: Vec<Act>,
}

/// A file that changes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct File {
    /// Relative to the stack's directory.
    pub path: String,
    pub description: String,
    pub lines_added: usize,
    pub lines_removed: usize,
    /// New permission bits, if they change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// Unified, with the path above.
    pub diff: String,
}

/// A step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Act {
    pub step: StepKind,
    /// What it does, in a sentence.
    pub does: String,
    /// What is run, as argument vectors.
    pub commands: Vec<Vec<String>>,
    pub timeout_ms: u64,
}

impl Review {
    /// Of a plan for the stack in `dir`.
    pub fn of(plan: &RepairPlan, dir: &str) -> Self {
        let finding = &plan.diagnosis;
        let act = |step: &Step| act(plan, dir, step);
        Self {
            plan_hash: plan.hash(),
            stack: plan.stack.clone(),
            project: plan.project.clone(),
            service: plan.service.clone(),
            attempt: plan.attempt,
            cause: finding.cause.clone(),
            rule_id: finding.rule_id.clone(),
            confidence: finding.confidence,
            evidence_line: finding.evidence_line.clone(),
            class: finding.class,
            risk: risk(finding.class),
            decision: plan.decision.clone(),
            files: plan.edits.iter().map(|change| file(plan, change, dir)).collect(),
            uncommitted: plan.uncommitted.clone(),
            steps: plan.steps.iter().map(act).collect(),
            verification: verification(plan.build.is_some(), &plan.verify),
            on_failure: plan.on_failure.iter().map(act).collect(),
        }
    }
}

/// The path of a change as people know it: relative to the stack's directory.
pub fn shown(plan: &RepairPlan, change: &FileChange, dir: &str) -> String {
    let context = plan.build.as_ref().map(|build| build.context.as_str()).unwrap_or_default();
    let inside = context.strip_prefix(dir.trim_end_matches('/')).map(|rest| rest.trim_matches('/'));
    match (change.root, inside) {
        (Root::Context, Some(inside)) if !inside.is_empty() => format!("{inside}/{}", change.path),
        (Root::Context | Root::Stack, _) => change.path.clone(),
    }
}

fn file(plan: &RepairPlan, change: &FileChange, dir: &str) -> File {
    let path = shown(plan, change, dir);
    let mut in_hunk = false;
    let (mut lines_added, mut lines_removed) = (0, 0);
    let lines = change.diff.split_inclusive('\n').map(|line| {
        in_hunk |= line.starts_with("@@");
        match line.as_bytes().first() {
            Some(b'+') if in_hunk => lines_added += 1,
            Some(b'-') if in_hunk => lines_removed += 1,
            _ => {}
        }
        match (in_hunk, line.get(..6)) {
            (false, Some("--- a/")) => format!("--- a/{path}\n"),
            (false, Some("+++ b/")) => format!("+++ b/{path}\n"),
            _ => line.to_owned(),
        }
    });
    let diff = lines.collect();
    let (description, mode) = (change.description.clone(), change.mode);
    File { path, description, lines_added, lines_removed, mode, diff }
}

fn risk(class: Class) -> &'static str {
    match class {
        Class::Auto => "a fix of a kind that may be made without asking",
        Class::Approve => "a fix of a kind that a person has to look at",
        Class::Retry => "nothing changes; it is done again as it is",
        Class::Escalate => "a person has to act",
    }
}

fn act(plan: &RepairPlan, dir: &str, step: &Step) -> Act {
    let service = plan.service.as_str();
    let patched = !plan.edits.is_empty();
    let does = match step.kind {
        StepKind::Analyze => format!("looks at {service}; nothing is touched"),
        StepKind::Patch if plan.build.is_none() => {
            "edits copies of the stack's compose files; the checkout stays as it is".to_owned()
        }
        StepKind::Patch => {
            let context = plan.build.as_ref().map_or(dir, |build| build.context.as_str());
            format!("copies {context} into a stage and edits the copy; the checkout stays as it is")
        }
        StepKind::Build => {
            let what = if patched { "the stage" } else { "the context as it is" };
            format!("builds {what} into a tag of Cooper's own; keeps a name for the image of before")
        }
        StepKind::Restart if plan.preflight => format!(
            "tries the new image in a container beside {service}, if that runs now (preflight); then moves \
             {service}'s tag to it and recreates its container, no other"
        ),
        StepKind::Restart if plan.build.is_some() => {
            format!("moves {service}'s tag to the new image and recreates its container, no other")
        }
        StepKind::Restart => format!("recreates or restarts {service}'s container, no other"),
        StepKind::Verify => format!("watches {service} as said below"),
        StepKind::Promote => {
            let git = match plan.publish {
                Publish::None => "",
                Publish::Branch => "; commits it on a branch of its own",
                Publish::Push => "; commits it on a branch of its own and pushes that",
                Publish::PullRequest => {
                    "; commits it on a branch of its own, pushes that and opens a pull request"
                }
            };
            format!("writes the diff into the checkout, only over the bytes it was made for{git}")
        }
        StepKind::Rollback => format!(
            "undoes what the steps before it did: files written back, {service}'s tag and container from the \
             image of before, compared with the record of the start; volumes are not restored"
        ),
    };
    let commands = match step.kind {
        StepKind::Build => {
            vec![argv(dir, &[&command::FROM_STDIN[..], &command::build(service)].concat())]
        }
        StepKind::Restart | StepKind::Rollback => {
            vec![argv(dir, &command::up(service, true))]
        }
        StepKind::Analyze | StepKind::Patch | StepKind::Verify | StepKind::Promote => Vec::new(),
    };
    Act { step: step.kind, does, commands, timeout_ms: step.timeout_ms }
}

fn argv(dir: &str, args: &[&str]) -> Vec<String> {
    let all = [&["docker"], &command::COMPOSE[..], &[dir], &command::PLAIN, args].concat();
    all.into_iter().map(str::to_owned).collect()
}

/// What has to be seen before a service counts as repaired.
pub(crate) fn verification(built: bool, verify: &Verify) -> Vec<String> {
    let seconds = |ms: u64| format!("{} s", ms as f64 / 1000.0);
    let mut said = vec![format!(
        "its container runs{}, was not restarted and not ended for want of memory, within {}",
        if built { " from the image that was built" } else { "" },
        seconds(verify.become_well_ms)
    )];
    match &verify.health {
        Some(health) if !health.exec.is_empty() => {
            let output = health.body_contains.as_ref().map(|text| format!(" and prints {text:?}"));
            let output = output.unwrap_or_default();
            said.push("its healthcheck is green, if it has one".to_owned());
            said.push(format!("`{}` in the container ends with 0{output}", health.exec.join(" ")));
        }
        Some(health) => {
            let status = health.expect_status.map_or("200 to 399".to_owned(), |status| status.to_string());
            let body = health.body_contains.as_ref().map(|text| format!(" and a body with {text:?}"));
            let body = body.unwrap_or_default();
            said.push("its healthcheck is green, if it has one".to_owned());
            said.push(format!("GET {} answers with status {status}{body}", health.url));
        }
        None => said.push("its healthcheck is green, or its ports accept if it has none".to_owned()),
    }
    said.push(format!("nothing of that changes for {}", seconds(verify.stable_for_ms)));
    said
}
