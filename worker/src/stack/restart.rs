//! Step `restart`: moves the service's tag to the candidate and recreates the service's container, and no other.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use cooper_common::error::{Code, Error, Result};
use cooper_repair::RepairPlan;
use cooper_repair::plan::StepKind;
use cooper_repair::step::Report;

use super::build::{image_tag, limit, no_candidate};
use super::{Step, done, failed, run_dir};

/// `restart.json`: what the run was about to change. Written before it does, so that a rollback knows.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Restart {
    /// The plan it was for: each attempt restarts anew.
    plan: String,
    container_id: String,
    started_at: String,
    /// Other services' containers that were not the same afterwards, by name.
    pub(super) disturbed: Vec<String>,
}

impl Step<'_> {
    pub(super) async fn restart(&self, plan: &RepairPlan) -> Result<Report> {
        if let Some(of) = &plan.undoes {
            return self.restart_undone(plan, of).await;
        }
        let limit = limit(plan, StepKind::Restart);
        let start = self.start()?;
        let _lock = run_dir::lock_project(self.worker_dir, &self.project.model.name).await?;
        if plan.build.is_some() && !self.is_about_to_restart(plan)? {
            let image = image_tag(self.run, &self.service, "candidate");
            self.engine.image_id(&image).await?.ok_or_else(no_candidate)?;
            if let Some(failed) = self.preflight(plan, &start, &image).await? {
                return Ok(failed);
            }
        }
        let restart = self.about_to_restart(plan).await?;

        if plan.build.is_some() {
            let candidate = self.engine.image_id(&image_tag(self.run, &self.service, "candidate")).await?;
            let candidate = candidate.ok_or_else(no_candidate)?;
            let reference = self.project.image_ref(&self.service)?;
            if reference != start.record.image_ref {
                return Err(failed(format!(
                    "the service's image is {reference} now and was {} when the run started",
                    start.record.image_ref
                )));
            }
            if self.engine.image_id(&reference).await?.as_ref() != Some(&candidate) {
                self.engine.tag(&candidate, &reference).await?;
                self.log.say(format_args!("{reference} is now {candidate}"));
            }
        }

        let before = self.neighbours().await?;
        self.project.up(self.log, &self.service, true, limit).await?;
        let same = self.container().await?.filter(|now| {
            now.id == restart.container_id
                && now.started_at == restart.started_at
                && !now.started_at.is_empty()
        });
        if same.is_some() {
            // Neither its file nor its image has changed, so compose left it alone.
            self.project.act(self.log, &["restart", "--no-deps", &self.service], limit).await?;
        }
        self.check_neighbours(&before, &restart).await?;
        let now = self.container().await?.ok_or_else(|| failed("there is no container after the restart"))?;
        Ok(done(format!("{} runs in container {} from {}", self.service, now.name, now.image_id)))
    }

    fn is_about_to_restart(&self, plan: &RepairPlan) -> Result<bool> {
        let recorded: Option<Restart> = self.dir.read(run_dir::RESTART)?;
        Ok(recorded.is_some_and(|recorded| recorded.plan == plan.hash()))
    }

    /// Records what is about to change; a repeated step finds what it has recorded before.
    pub(super) async fn about_to_restart(&self, plan: &RepairPlan) -> Result<Restart> {
        let hash = plan.hash();
        let before: Option<Restart> = self.dir.read(run_dir::RESTART)?;
        if let Some(recorded) = before.as_ref().filter(|recorded| recorded.plan == hash) {
            return Ok(recorded.clone());
        }
        let container = self.container().await?;
        let restart = Restart {
            plan: hash,
            container_id: container.as_ref().map(|seen| seen.id.clone()).unwrap_or_default(),
            started_at: container.map(|seen| seen.started_at).unwrap_or_default(),
            disturbed: before.map(|before| before.disturbed).unwrap_or_default(),
        };
        self.dir.write(run_dir::RESTART, &restart)?;
        Ok(restart)
    }

    pub(super) async fn check_neighbours(
        &self,
        before: &BTreeMap<String, String>,
        restart: &Restart,
    ) -> Result<()> {
        let disturbed = disturbed(before, &self.neighbours().await?);
        if disturbed.is_empty() {
            return Ok(());
        }
        let mut restart = restart.clone();
        restart.disturbed.extend(disturbed.iter().cloned());
        self.dir.write(run_dir::RESTART, &restart)?;
        Err(Error::new(
            Code::NeighbourChanged,
            format!("containers of other services changed: {}", disturbed.join(", ")),
        ))
    }
}

/// The names of containers that are not the same any more.
pub(super) fn disturbed(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> Vec<String> {
    before.iter().filter(|(name, id)| after.get(*name) != Some(*id)).map(|(name, _)| name.clone()).collect()
}
