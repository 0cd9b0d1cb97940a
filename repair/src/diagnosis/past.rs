//! What came before a diagnosis: attempts of the same run, and what other runs have learned about the same failures.

use serde::{Deserialize, Serialize};

use crate::edit::{self, Edit, FileChange, Root};
use crate::plan::{RepairPlan, canonical};
use crate::rules::Class;
use crate::{compose, diff};

use super::fix::{self, Resolved};
use super::{Diagnosis, Evidence, Remedy};

/// Nothing, for the first attempt of a run on a failure that nobody has seen.
#[derive(Debug, Clone, Default)]
pub struct Past {
    /// Plans of the run that were rolled back, oldest first.
    pub tried: Vec<RepairPlan>,
    /// What other runs have learned, of these failures.
    pub learned: Vec<Learned>,
}

/// What a run has learned about a repair of a failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Learned {
    /// Of the failure.
    pub fingerprint: String,
    /// What was done.
    pub repair: Repair,
    /// Class it was done with; it is never done with a milder one.
    pub class: Class,
    /// The run.
    pub run: String,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a repair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Outcome {
    /// The service was well with it.
    Verified,
    /// It was not, and everything was put back.
    RolledBack {
        /// Why.
        reason: String,
    },
}

/// What is done about a cause, without what differs from one checkout to the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Repair {
    /// What is done.
    pub remedy: Remedy,
    /// Typed edits, for [`Remedy::Patch`].
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub edits: Vec<FileEdits>,
}

/// Edits of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEdits {
    /// As in [`FileChange`].
    #[serde(default)]
    pub root: Root,
    /// As in [`FileChange`].
    pub path: String,
    /// In their order; of a file that was written as a whole, none.
    pub edits: Vec<Edit>,
    /// Of a file that was written as a whole: what of.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub whole_sha256: Option<String>,
    /// What they do, for people.
    pub description: String,
}

impl Repair {
    pub(super) fn of(resolved: &Resolved) -> Self {
        Self::new(resolved.remedy, &resolved.edits)
    }

    /// What these changes do.
    pub fn new(remedy: Remedy, changes: &[FileChange]) -> Self {
        let edits = changes.iter().map(|change| FileEdits {
            root: change.root,
            path: change.path.clone(),
            edits: change.edits.clone(),
            whole_sha256: change.edits.is_empty().then(|| edit::sha256(change.new_content.as_bytes())),
            description: change.description.clone(),
        });
        Self { remedy, edits: edits.collect() }
    }

    /// Names the repair: 64 hex digits, the same for whatever does the same.
    pub fn name(&self) -> String {
        let edits = self.edits.iter().map(|file| (file.root, &file.path, &file.edits, &file.whole_sha256));
        edit::sha256(canonical(&(self.remedy, edits.collect::<Vec<_>>())).as_bytes())
    }

    /// The same in another checkout; `None` where it does not fit, or where a line of another file would be meant, or a
    /// directory which there is no matter of the image.
    fn again(&self, evidence: &Evidence) -> Option<Resolved> {
        if self.remedy != Remedy::Patch {
            return None;
        }
        let mut changes = Vec::new();
        for file in &self.edits {
            let names_line = |edit: &Edit| {
                let json = serde_json::to_value(edit).unwrap_or_default();
                ["line", "before_line"].iter().any(|name| !json[*name].is_null())
            };
            let elsewhere = |edit: &Edit| match edit {
                Edit::OwnDirectory { path, .. } => fix::mounted(evidence, path) != Ok(None),
                _ => false,
            };
            let unfit = |edit: &Edit| names_line(edit) || elsewhere(edit);
            if file.root != Root::Context || file.edits.is_empty() || file.edits.iter().any(unfit) {
                return None;
            }
            let old = evidence.files.get(&file.path).filter(|text| !text.is_empty())?;
            let mut change: Option<FileChange> = None;
            for edit in &file.edits {
                let text = change.as_ref().map_or(old, |change| &change.new_content);
                let next = FileChange::edit(&file.path, text, edit.clone(), file.description.clone()).ok()?;
                change = Some(match change {
                    Some(before) => before.then(next, old),
                    None => next,
                });
            }
            changes.extend(change);
        }
        Some(Resolved { edits: changes, ..Resolved::nothing(Remedy::Patch) })
    }
}

impl Past {
    /// Why a repair is not proposed, if it is not.
    pub fn against(&self, fingerprint: &str, repair: &Repair) -> Option<String> {
        let name = repair.name();
        let same =
            |plan: &&RepairPlan| plan.diagnosis.repair.as_ref().is_some_and(|tried| tried.name() == name);
        if let Some(plan) = self.tried.iter().find(same) {
            return Some(format!("it was repaired that way in attempt {} already", plan.attempt));
        }
        self.of(fingerprint).find_map(|learned| match &learned.outcome {
            Outcome::RolledBack { reason } if learned.repair.name() == name => Some(format!(
                "run {run} has repaired it that way and was rolled back ({reason}); `cooper runs retry {run}` \
                 tries it once more, and so does a repair after the service's files have changed",
                run = learned.run
            )),
            Outcome::RolledBack { .. } | Outcome::Verified => None,
        })
    }

    /// The newest repair of this failure that was verified.
    pub(super) fn verified(&self, fingerprint: &str) -> Option<&Learned> {
        self.of(fingerprint).find(|learned| learned.outcome == Outcome::Verified)
    }

    /// What was verified before, in place of what a rule proposes: with the rule's own words where they are the same.
    pub(super) fn preferred(
        &self,
        fingerprint: &str,
        resolved: Result<Resolved, String>,
        evidence: &Evidence,
    ) -> (Result<Resolved, String>, Option<&Learned>) {
        let Some(learned) = self.verified(fingerprint) else { return (resolved, None) };
        match resolved {
            Ok(resolved) if Repair::of(&resolved).name() == learned.repair.name() => {
                (Ok(resolved), Some(learned))
            }
            resolved => match learned.repair.again(evidence) {
                Some(again) => (Ok(Resolved { class: learned.class, ..again }), Some(learned)),
                None => (resolved, None),
            },
        }
    }

    fn of(&self, fingerprint: &str) -> impl Iterator<Item = &Learned> {
        self.learned.iter().filter(move |learned| learned.fingerprint == fingerprint)
    }

    /// What the next attempt builds upon, by what fails now: the last attempt if the failure that it was about is gone,
    /// else what that one was built upon.
    pub(super) fn base(&self, still_fails: impl Fn(&RepairPlan) -> bool) -> Option<&RepairPlan> {
        let last = self.tried.last()?;
        if still_fails(last) {
            self.tried.iter().find(|plan| Some(plan.attempt) == last.builds_on)
        } else if last.edits.is_empty() {
            None
        } else {
            Some(last)
        }
    }
}

/// The evidence with the files as a plan would have them.
///
/// # Errors
/// A file is not what the plan was made for any more.
fn with_edits(evidence: &Evidence, plan: &RepairPlan) -> Result<Evidence, String> {
    let mut evidence = evidence.clone();
    for change in &plan.edits {
        let files = match change.root {
            Root::Context => &mut evidence.files,
            Root::Stack => &mut evidence.stack_files,
        };
        let old = files.get(&change.path);
        if !change.is_based_on(old.map(String::as_bytes)) {
            return Err(format!("{} was changed while it was repaired", change.path));
        }
        files.insert(change.path.clone(), change.new_content.clone());
    }
    Ok(evidence)
}

/// What an attempt is worked out for: the files as they are, or as the attempt that it builds upon has them.
pub struct Ground<'p> {
    /// That attempt.
    base: Option<&'p RepairPlan>,
    /// The evidence with its files.
    pub evidence: Evidence,
}

impl<'p> Ground<'p> {
    pub(super) fn upon(base: Option<&'p RepairPlan>, evidence: &Evidence) -> Result<Self, String> {
        let evidence = match base {
            Some(plan) => with_edits(evidence, plan)?,
            None => evidence.clone(),
        };
        Ok(Self { base, evidence })
    }

    /// A diagnosis of this ground as one of the files as they are.
    #[must_use]
    pub fn settle(&self, mut diagnosis: Diagnosis, evidence: &Evidence) -> Diagnosis {
        if let Some(plan) = self.base
            && diagnosis.remedy != Remedy::Escalate
        {
            // Also what needs no edit of its own needs those that are kept.
            diagnosis.remedy = Remedy::Patch;
            diagnosis.edits = on_top_of(plan, diagnosis.edits, evidence);
            diagnosis.builds_on = Some(plan.attempt);
            diagnosis.class = diagnosis.class.max(plan.diagnosis.class);
        }
        diagnosis
    }
}

/// Changes of files as a plan would have them, as changes of the files as they are, the plan's own included.
fn on_top_of(plan: &RepairPlan, changes: Vec<FileChange>, evidence: &Evidence) -> Vec<FileChange> {
    let mut all = plan.edits.clone();
    for change in changes {
        let place = |known: &&mut FileChange| known.root == change.root && known.path == change.path;
        match all.iter_mut().find(place) {
            None => all.push(change),
            Some(known) => {
                let old = evidence.text(change.root, &change.path).unwrap_or_default();
                *known = known.clone().then(change, old);
            }
        }
    }
    all
}

impl Evidence {
    /// Digest of what the failure was found in: the service's definition and the files that are known.
    pub fn sources(&self) -> String {
        let service: Option<&compose::Service> = self.model.service(&self.service).ok();
        edit::sha256(canonical(&(service, &self.files, &self.stack_files)).as_bytes())
    }

    /// Text of a file, if it is known.
    pub fn text(&self, root: Root, path: &str) -> Option<&str> {
        let files = match root {
            Root::Context => &self.files,
            Root::Stack => &self.stack_files,
        };
        files.get(path).map(String::as_str)
    }
}

impl FileChange {
    /// This change and then another one, as one change of `old`.
    #[must_use]
    pub fn then(self, next: Self, old: &str) -> Self {
        let old = self.base_sha256.as_ref().map(|_| old);
        // Of a file that is written as a whole there is no list of edits that leads to it.
        let typed = !self.edits.is_empty() && !next.edits.is_empty();
        Self {
            root: self.root,
            diff: diff::unified(&self.path, old, &next.new_content),
            path: self.path,
            base_sha256: self.base_sha256,
            new_content: next.new_content,
            mode: next.mode.or(self.mode),
            edits: if typed { [self.edits, next.edits].concat() } else { vec![] },
            description: if self.description == next.description {
                next.description
            } else {
                format!("{}; {}", self.description, next.description)
            },
        }
    }
}
