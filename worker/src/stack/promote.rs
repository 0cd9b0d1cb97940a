//! Step `promote`: writes the verified edits into the checkout, all or none, under the bytes they were made for (I6).

use std::path::Path;

use serde::{Deserialize, Serialize};

use cooper_common::error::{Code, Error, Result};
use cooper_repair::edit::{FileChange, Root, sha256};
use cooper_repair::step::Report;
use cooper_repair::{RepairPlan, diff};

use super::checkout::{Checkout, Content};
use super::rollback::Difference;
use super::run_dir::RunDir;
use super::{Step, done, failed, run_dir};

/// Where the bytes of before are kept in the run's directory.
const PREIMAGES: &str = "preimages";

/// `journal.json`: what the promotion writes. On disk, with the bytes of before, before the first file changes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Journal {
    plan: String,
    state: State,
    files: Vec<Written>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// Any of the files may be written.
    Writing,
    /// All are.
    Done,
    /// All are as they were.
    Undone,
}

/// A file of the promotion.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Written {
    /// From the stack's directory.
    path: String,
    /// Before; `None` if there was no file.
    base: Option<String>,
    new: String,
    /// Permissions before.
    mode: Option<u32>,
    /// Name of the temporary file beside it.
    temporary: String,
}

/// What a file of the promotion is like now.
#[derive(PartialEq, Eq)]
enum Now {
    Base,
    New,
    Other,
}

impl Step<'_> {
    pub(super) async fn promote(&self, plan: &RepairPlan) -> Result<Report> {
        let _lock = run_dir::lock_project(self.worker_dir, &self.project.model.name).await?;
        let checkout = Checkout::open(&self.project.dir)?;
        let hash = plan.hash();
        let journal: Option<Journal> = self.dir.read(run_dir::JOURNAL)?;
        let journal = match journal {
            Some(journal) if journal.plan != hash && journal.state != State::Undone => {
                return Err(failed("another plan of this run has been promoted before"));
            }
            Some(journal) if journal.plan == hash && journal.state == State::Done => {
                self.log.say("already promoted");
                self.clean_up(true).await;
                return Ok(self.promoted(plan, &journal).await);
            }
            Some(journal) if journal.plan == hash && journal.state == State::Writing => {
                self.log.say("going on with a promotion that was interrupted");
                journal
            }
            _ => match self.begin(plan, &hash, &checkout).await {
                Ok(journal) => journal,
                Err(error) if error.code == Code::PlanChanged => return Ok(self.conflict(&error.message)),
                Err(error) => return Err(error),
            },
        };
        if let Err(conflict) = self.write_all(plan, &journal, &checkout) {
            // Some may be written: all or none.
            self.log.say(format_args!("{}; taking back what was written", conflict.message));
            let left = self.undo(&journal, &checkout)?;
            if !left.is_empty() {
                let left: Vec<&str> = left.iter().map(|left| left.what.as_str()).collect();
                return Err(failed(format!("{}; not taken back: {}", conflict.message, left.join("; "))));
            }
            return Ok(self.conflict(&conflict.message));
        }
        self.dir.write(run_dir::JOURNAL, &Journal { state: State::Done, ..journal.clone() })?;
        for file in &journal.files {
            self.log.say(format_args!("wrote {}", file.path));
        }
        self.clean_up(true).await;
        Ok(self.promoted(plan, &journal).await)
    }

    /// Checks every file, keeps the bytes of before and writes the journal. Nothing of the user's is touched yet.
    async fn begin(&self, plan: &RepairPlan, hash: &str, checkout: &Checkout) -> Result<Journal> {
        let placed = match &plan.undoes {
            // What was there before a repair is the user's: policy has no say in it.
            Some(of) => self.reversed(plan, of).await?,
            None => self.checked(plan)?,
        };
        // The image in use was built from the stage; what is written must be the same.
        self.dir.make(PREIMAGES)?;
        let mut files = Vec::new();
        for (n, placed) in placed.iter().enumerate() {
            if let Some(old) = &placed.old {
                self.dir.write_bytes(&format!("{PREIMAGES}/{n}"), &old.bytes)?;
            }
            let temporary = format!(".cooper-{}-{n}.new", self.run);
            checkout.sweep(&placed.path, &temporary)?;
            files.push(Written {
                path: placed.path.clone(),
                base: placed.change.base_sha256.clone(),
                new: sha256(placed.change.new_content.as_bytes()),
                mode: placed.old.as_ref().map(|old| old.mode),
                temporary,
            });
        }
        let journal = Journal { plan: hash.to_owned(), state: State::Writing, files };
        self.dir.write(run_dir::JOURNAL, &journal)?;
        Ok(journal)
    }

    fn write_all(&self, plan: &RepairPlan, journal: &Journal, checkout: &Checkout) -> Result<()> {
        // All of them first: one that has changed keeps the others from being written.
        for file in &journal.files {
            checkout.sweep(&file.path, &file.temporary)?;
            if file.now(checkout)?.0 == Now::Other {
                return Err(changed(&file.path));
            }
        }
        for (file, change) in journal.files.iter().zip(&plan.edits) {
            match file.now(checkout)? {
                (Now::New, _) => {}
                (Now::Other, _) => return Err(changed(&file.path)),
                (Now::Base, old) => {
                    let bytes = change.new_content.as_bytes();
                    checkout.replace(&file.path, bytes, old.as_ref(), change.mode, &file.temporary)?;
                }
            }
        }
        Ok(())
    }

    /// Puts back the bytes of before, if a promotion has begun. Names what could not be put back: a file that somebody
    /// has changed since is left as it is.
    pub(super) fn undo_promotion(&self) -> Result<Vec<Difference>> {
        let Some(journal) = self.dir.read::<Journal>(run_dir::JOURNAL)? else { return Ok(vec![]) };
        if journal.state == State::Undone {
            return Ok(vec![]);
        }
        self.undo(&journal, &Checkout::open(&self.project.dir)?)
    }

    fn undo(&self, journal: &Journal, checkout: &Checkout) -> Result<Vec<Difference>> {
        let mut left = Vec::new();
        for (n, file) in journal.files.iter().enumerate() {
            checkout.sweep(&file.path, &file.temporary)?;
            match (file.now(checkout)?, &file.base) {
                ((Now::Base, _), _) => {}
                ((Now::Other, _), _) => {
                    let what = format!("{} was changed by somebody else meanwhile", file.path);
                    let difference = Difference::new(what);
                    left.push(match &file.base {
                        Some(_) => difference.by_hand(format!(
                            "diff {} {}",
                            self.dir.path(&format!("{PREIMAGES}/{n}")).display(),
                            self.project.dir.join(&file.path).display()
                        )),
                        None => difference,
                    });
                }
                ((Now::New, _), None) => checkout.remove(&file.path)?,
                ((Now::New, now), Some(_)) => {
                    let bytes =
                        std::fs::read(self.dir.path(&format!("{PREIMAGES}/{n}"))).map_err(|error| {
                            failed(format!("the bytes {} had before are gone: {error}", file.path))
                        })?;
                    checkout.replace(&file.path, &bytes, now.as_ref(), file.mode, &file.temporary)?;
                    self.log.say(format_args!("put back {}", file.path));
                }
            }
        }
        if left.is_empty() {
            self.dir.write(run_dir::JOURNAL, &Journal { state: State::Undone, ..journal.clone() })?;
        }
        Ok(left)
    }

    async fn promoted(&self, plan: &RepairPlan, journal: &Journal) -> Report {
        let paths: Vec<_> = journal.files.iter().map(|file| file.path.as_str()).collect();
        let published = self.publish(plan, &paths).await;
        Report {
            promotion: "promoted".to_owned(),
            ..done(format!("wrote {} into the checkout{published}", paths.join(", ")))
        }
    }

    fn conflict(&self, why: &str) -> Report {
        Report {
            code: Code::PromotionConflict.as_str().to_owned(),
            promotion: "conflict".to_owned(),
            ..done(format!("{why}; nothing was written: apply patch.diff by hand"))
        }
    }
}

/// The changes that put back what a run has promoted, each over what that run has written.
///
/// # Errors
/// `plan_changed`: somebody has changed a file since.
pub(super) fn reversed(dir: &RunDir, stack: &Path, of: &str) -> Result<Vec<FileChange>> {
    let Some(journal) = dir.read::<Journal>(run_dir::JOURNAL)? else { return Ok(vec![]) };
    if journal.state == State::Undone {
        return Ok(vec![]);
    }
    let checkout = Checkout::open(stack)?;
    let mut changes = Vec::new();
    for (n, file) in journal.files.iter().enumerate() {
        let (now, content) = file.now(&checkout)?;
        let (Now::New, Some(content)) = (now, content) else {
            let what = format!("{} was changed since run {of}", file.path);
            return Err(Error::new(Code::PlanChanged, what));
        };
        let made = || failed(format!("run {of} has made {}, which Cooper does not remove", file.path));
        let base = file.base.clone().ok_or_else(made)?;
        let bytes = std::fs::read(dir.path(&format!("{PREIMAGES}/{n}")))
            .map_err(|error| failed(format!("the bytes {} had before are gone: {error}", file.path)))?;
        if sha256(&bytes) != base {
            return Err(failed(format!("the bytes kept of {} are not those of before", file.path)));
        }
        let text = |bytes: Vec<u8>| {
            String::from_utf8(bytes).map_err(|_| failed(format!("{} is not text", file.path)))
        };
        let (old, new_content) = (text(content.bytes)?, text(bytes)?);
        changes.push(FileChange {
            root: Root::Stack,
            diff: diff::unified(&file.path, Some(&old), &new_content),
            path: file.path.clone(),
            base_sha256: Some(file.new.clone()),
            new_content,
            mode: file.mode.filter(|mode| *mode != content.mode),
            edits: vec![],
            description: format!("{} as it was before run {of}", file.path),
        });
    }
    Ok(changes)
}

impl Written {
    fn now(&self, checkout: &Checkout) -> Result<(Now, Option<Content>)> {
        let content = checkout.read(&self.path)?;
        let hash = content.as_ref().map(|content| sha256(&content.bytes));
        let now = if hash == self.base {
            Now::Base
        } else if hash.as_deref() == Some(&self.new) {
            Now::New
        } else {
            Now::Other
        };
        Ok((now, content))
    }
}

fn changed(path: &str) -> Error {
    Error::new(Code::PlanChanged, format!("{path} changed meanwhile"))
}
