//! Taking a run back that has succeeded: a run of its own, with the records that the other has left. Its files come
//! first, all or none, and only over what that run has written; then the image and the container of before it.

use cooper_common::error::{Code, Error, Result};
use cooper_common::ids::RunId;
use cooper_repair::diagnosis::Phase;
use cooper_repair::plan::StepKind;
use cooper_repair::step::Report;
use cooper_repair::{Evidence, RepairPlan};

use super::analyze::Start;
use super::build::limit;
use super::patch::Placed;
use super::project::without_secrets;
use super::run_dir::RunDir;
use super::{Step, done, failed, promote, run_dir};

/// What the run that is taken back has left.
struct Undone {
    dir: RunDir,
    start: Start,
}

impl Step<'_> {
    pub(super) async fn analyze_undo(&self, of: &str) -> Result<Report> {
        let started = self.only_start().await?;
        let undone = self.undone(of).await?;
        let changes =
            promote::reversed(&undone.dir, &self.project.dir, of).map_err(|error| match error.code {
                Code::PlanChanged => Error::new(
                    Code::PromotionConflict,
                    format!(
                        "{}; nothing was touched: take the patch of that run back by hand",
                        error.message
                    ),
                ),
                _ => error,
            })?;
        if changes.is_empty() && undone.dir.read::<serde_json::Value>(run_dir::RESTART)?.is_none() {
            return Err(failed(format!("run {of} has changed nothing")));
        }
        let model = without_secrets(&self.project.model, &self.log.redactor())?;
        let evidence = Evidence::new(&self.service, model, Phase::Health);
        Ok(Report { evidence: Some(evidence), changes, ..started })
    }

    async fn undone(&self, of: &str) -> Result<Undone> {
        let gone = || failed(format!("what run {of} has changed is not known on this worker any more"));
        let id: RunId = of.parse().map_err(|_| gone())?;
        if !RunDir::exists(self.worker_dir, id) {
            return Err(gone());
        }
        let dir = RunDir::open(self.worker_dir, id).await?;
        let start = dir.read(run_dir::START)?.ok_or_else(gone)?;
        Ok(Undone { dir, start })
    }

    /// The plan's changes with their files, if they are still what takes the run back.
    pub(super) async fn reversed<'p>(&self, plan: &'p RepairPlan, of: &str) -> Result<Vec<Placed<'p>>> {
        let undone = self.undone(of).await?;
        if promote::reversed(&undone.dir, &self.project.dir, of)? != plan.edits {
            let what = format!("what takes run {of} back is not what was planned");
            return Err(Error::new(Code::PlanChanged, what));
        }
        let checkout = super::checkout::Checkout::open(&self.project.dir)?;
        let place = |change| -> Result<Placed<'p>> {
            let change: &'p cooper_repair::FileChange = change;
            Ok(Placed { change, path: change.path.clone(), old: checkout.read(&change.path)? })
        };
        plan.edits.iter().map(place).collect()
    }

    /// Image and container as before the run.
    pub(super) async fn restart_undone(&self, plan: &RepairPlan, of: &str) -> Result<Report> {
        let start = self.start()?;
        let before = self.undone(of).await?.start;
        let _lock = run_dir::lock_project(self.worker_dir, &self.project.model.name).await?;
        let restart = self.about_to_restart(plan).await?;
        self.keep_old(&start).await?;
        // What the tag names now, and what it will: none of that is somebody else's.
        let ids = [&start.record.image_id, &before.record.image_id, &before.record.container_image_id];
        let ids: Vec<&String> = ids.into_iter().filter(|id| !id.is_empty()).collect();
        self.dir.write(run_dir::CANDIDATES, &ids)?;
        let neighbours = self.neighbours().await?;
        let left = self.bring_back(&before, limit(plan, StepKind::Restart)).await?;
        if !left.is_empty() {
            let left: Vec<&str> = left.iter().map(|left| left.what.as_str()).collect();
            return Err(failed(left.join("; ")));
        }
        self.check_neighbours(&neighbours, &restart).await?;
        Ok(done(format!("{} is what it was before run {of}", self.service)))
    }

    /// As well as before the run, and in every other way as it was.
    pub(super) async fn verify_undone(&self, plan: &RepairPlan, of: &str) -> Result<Report> {
        let before = self.undone(of).await?.start;
        let (differences, image_equal) = self.differences(plan, &before).await?;
        if !differences.is_empty() {
            let differences: Vec<&str> =
                differences.iter().map(|difference| difference.what.as_str()).collect();
            return Err(Error::new(Code::VerifyFailed, differences.join("; ")));
        }
        self.clean_up(true).await;
        let message = format!("{} is as it was before run {of}", self.service);
        Ok(Report { image_equal: Some(image_equal), ..done(message) })
    }
}
