//! Step `patch`: copies the build context into the stage and applies the plan's edits there.

use std::path::{Path, PathBuf};

use cooper_common::error::{Code, Error, Result};
use cooper_repair::edit::{FileChange, Root};
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
    pub(super) async fn patch(&self, plan: &RepairPlan) -> Result<Report> {
        let placed = self.checked(plan)?;
        let patch: String = placed.iter().map(Placed::diff).collect::<Result<_>>()?;
        let of = |root: Root| placed.iter().filter(move |placed| placed.change.root == root);
        if of(Root::Context).next().is_some() {
            let (context, _) = self.context_dir()?;
            self.staged(&self.stage(plan), |unfinished| {
                let copied = tree::copy(&context, unfinished, LeftOut::new(self.worker_dir)?)?;
                self.log.say(format_args!("staged {copied} files and directories of {}", context.display()));
                of(Root::Context).try_for_each(|placed| self.apply(placed, unfinished))
            })?;
        }
        if touches_stack(plan) {
            self.staged(&self.stack_stage(plan), |unfinished| {
                std::fs::create_dir(unfinished).while_doing("staging")?;
                for placed in of(Root::Stack) {
                    let path = unfinished.join(&placed.path);
                    std::fs::create_dir_all(path.parent().unwrap_or(unfinished)).while_doing("staging")?;
                    let old = placed.old.as_ref().map(|old| old.bytes.as_slice()).unwrap_or_default();
                    tree::replace(&path, old, 0o600).while_doing(format_args!("staging {}", placed.path))?;
                    self.apply(placed, unfinished)?;
                }
                Ok(())
            })?;
            self.check_model(plan).await?;
        }
        self.log.raw(patch.as_bytes());
        let content = self.log.redact(&patch);
        let artifacts = vec![Artifact { name: "patch.diff".to_owned(), content }];
        Ok(Report {
            artifacts,
            ..done(format!("{} staged with {} changed", self.service, count(placed.len(), "file")))
        })
    }

    /// Makes a stage whole or not at all: it gets its name when everything is in it.
    fn staged(&self, stage: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        if stage.is_dir() {
            self.log.say("the stage is already there");
            return Ok(());
        }
        let unfinished = self.dir.make("stage")?.join("unfinished");
        if unfinished.exists() {
            std::fs::remove_dir_all(&unfinished).while_doing("removing an unfinished stage")?;
        }
        fill(&unfinished)?;
        std::fs::rename(&unfinished, stage).while_doing("naming the stage")
    }

    fn apply(&self, placed: &Placed<'_>, stage: &Path) -> Result<()> {
        placed.apply(stage)?;
        self.log.say(format_args!("changed {}: {}", placed.path, placed.change.description));
        Ok(())
    }

    /// Refuses compose files of which compose makes more than an edit may change.
    async fn check_model(&self, plan: &RepairPlan) -> Result<()> {
        let staged = self.project.with_files(self.staged_files(plan), self.log).await?;
        let mut against = self.project.against(&staged, &self.service);
        if staged.service(&self.service)?.build.is_some() {
            // A context that an edit names must lie where any other does.
            against.extend(self.context_inside(&staged).err().map(|error| error.message));
        }
        if against.is_empty() {
            return Ok(());
        }
        Err(Error::new(Code::PolicyRefused, against.join("; ")))
    }

    /// Where the changed compose files of a plan are.
    fn stack_stage(&self, plan: &RepairPlan) -> PathBuf {
        self.stage(plan).with_extension("stack")
    }

    /// The project's compose files, those that the plan changes as it changes them.
    pub(super) fn staged_files(&self, plan: &RepairPlan) -> Vec<PathBuf> {
        let stage = self.stack_stage(plan);
        let staged = |file: &PathBuf| {
            let inside = file.strip_prefix(&self.project.dir).ok()?;
            Some(stage.join(inside)).filter(|staged| staged.is_file())
        };
        self.project.files.iter().map(|file| staged(file).unwrap_or_else(|| file.clone())).collect()
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
        let checkout = Checkout::open(&self.project.dir)?;
        let mut against = Vec::new();
        let mut placed = Vec::new();
        for change in &plan.edits {
            let path = self.place(change)?;
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

/// True if the plan changes files of the stack itself.
pub(super) fn touches_stack(plan: &RepairPlan) -> bool {
    plan.edits.iter().any(|change| change.root == Root::Stack)
}

/// `1 file`, `2 files`.
pub(super) fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}
