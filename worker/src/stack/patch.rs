//! Step `patch`: copies the build context into the stage and applies the plan's edits there.

use std::path::{Path, PathBuf};

use cooper_common::error::{Code, Error, Result};
use cooper_repair::edit::FileChange;
use cooper_repair::step::{Artifact, Report};
use cooper_repair::{Decision, Policy, RepairPlan, diff};

use super::checkout::{Checkout, Content};
use super::tree::{self, LeftOut};
use super::{Step, While, done};

/// A change with the file it is about, as it is in the checkout.
pub(super) struct Placed<'p> {
    pub(super) change: &'p FileChange,
    /// From the stack's directory.
    pub(super) path: String,
    pub(super) old: Option<Content>,
}

impl Step<'_> {
    pub(super) fn patch(&self, plan: &RepairPlan) -> Result<Report> {
        let (context, _) = self.context_dir()?;
        let placed = self.checked(plan)?;
        let patch: String = placed.iter().map(Placed::diff).collect::<Result<_>>()?;

        // A stage is there whole or not at all: it gets its name when everything is in it.
        let stage = self.stage(plan);
        if stage.is_dir() {
            self.log.say("the stage is already there");
        } else {
            let parent = self.dir.make("stage")?;
            let unfinished = parent.join("unfinished");
            if unfinished.exists() {
                std::fs::remove_dir_all(&unfinished).while_doing("removing an unfinished stage")?;
            }
            let copied = tree::copy(&context, &unfinished, LeftOut::new(self.worker_dir)?)?;
            self.log.say(format_args!("staged {copied} files and directories of {}", context.display()));
            for placed in &placed {
                placed.apply(&unfinished)?;
                self.log.say(format_args!("changed {}: {}", placed.path, placed.change.description));
            }
            std::fs::rename(&unfinished, &stage).while_doing("naming the stage")?;
        }
        self.log.raw(patch.as_bytes());
        let content = self.log.redact(&patch);
        let artifacts = vec![Artifact { name: "patch.diff".to_owned(), content }];
        Ok(Report {
            artifacts,
            ..done(format!("{} staged with {} changed", self.service, count(placed.len(), "file")))
        })
    }

    /// The stage of a plan. Each plan has its own, since each attempt of a run is a plan of its own.
    pub(super) fn stage(&self, plan: &RepairPlan) -> PathBuf {
        self.dir.path("stage").join(&plan.hash()[..16])
    }

    /// The plan's changes with the files they are about, after policy and the base hashes have been asked again with
    /// the bytes that are really there.
    pub(super) fn checked<'p>(&self, plan: &'p RepairPlan) -> Result<Vec<Placed<'p>>> {
        let policy = Policy::of(&self.project.model, &self.service)
            .map_err(|error| Error::new(Code::PolicyRefused, error.to_string()))?;
        let (_, context) = self.context_dir()?;
        let checkout = Checkout::open(&self.project.dir)?;
        let mut against = Vec::new();
        let mut placed = Vec::new();
        for change in &plan.edits {
            let path = self.place(&context, change)?;
            let old = checkout.read(&path)?;
            if !change.is_based_on(old.as_ref().map(|old| old.bytes.as_slice())) {
                return Err(Error::new(
                    Code::PlanChanged,
                    format!("{path} is not what the plan was made for any more; analyze again"),
                ));
            }
            let text = old.as_ref().map(|old| std::str::from_utf8(&old.bytes)).transpose();
            let text = text.map_err(|_| Error::new(Code::PolicyRefused, format!("{path} is not text")))?;
            against.extend(policy.check_change(plan.diagnosis.class, change, text));
            placed.push(Placed { change, path, old });
        }
        match policy.decide(plan.diagnosis.class, &plan.edits) {
            Decision::Refused { reasons } => against.extend(reasons),
            Decision::NeedsApproval { reasons, .. } if plan.decision == Decision::Allowed => {
                against.push(format!(
                    "the plan was made without need of approval, but now {}",
                    reasons.join("; ")
                ));
            }
            Decision::NeedsApproval { .. } | Decision::Allowed => {}
        }
        against.dedup();
        if against.is_empty() {
            return Ok(placed);
        }
        Err(Error::new(Code::PolicyRefused, against.join("; ")))
    }
}

impl Placed<'_> {
    /// The difference from what is really there, with the path from the stack's directory.
    fn diff(&self) -> Result<String> {
        let old = self.old.as_ref().map(|old| std::str::from_utf8(&old.bytes)).transpose();
        let old = old.while_doing(format_args!("reading {}", self.path))?;
        Ok(diff::unified(&self.path, old, &self.change.new_content))
    }

    /// Writes the change into a copy of the context.
    fn apply(&self, stage: &Path) -> Result<()> {
        // The copy is ours, but its links are the user's.
        let staged = Checkout::open(stage)?.read(&self.change.path)?;
        let path = stage.join(&self.change.path);
        if !self.change.is_based_on(staged.as_ref().map(|staged| staged.bytes.as_slice())) {
            let what = format!("{} changed while it was staged; analyze again", self.path);
            return Err(Error::new(Code::PlanChanged, what));
        }
        let mode = self.change.mode.or(staged.map(|staged| staged.mode)).unwrap_or(0o644);
        tree::replace(&path, self.change.new_content.as_bytes(), mode)
            .while_doing(format_args!("changing {}", self.path))
    }
}

/// `1 file`, `2 files`.
pub(super) fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}
