//! Step `rollback`: puts back bytes, image and container, and compares with the start record (I7).

use std::time::Duration;

use tokio::time::sleep;

use cooper_common::clock;
use cooper_common::error::{Code, Result};
use cooper_repair::plan::StepKind;
use cooper_repair::step::{HealthClass, Report};
use cooper_repair::{Policy, RepairPlan};

use super::analyze::Start;
use super::build::limit;
use super::observe::Seen;
use super::restart::{Restart, disturbed};
use super::{Step, configuration, done, run_dir};

const LOOK: Duration = Duration::from_millis(500);

impl Step<'_> {
    pub(super) async fn rollback(&self, plan: &RepairPlan) -> Result<Report> {
        let Some(start) = self.dir.read::<Start>(run_dir::START)? else {
            self.clean_up(false).await;
            return Ok(Report { restored: true, ..done("nothing was recorded, so nothing was touched") });
        };
        let _lock = run_dir::lock_project(self.worker_dir, &self.project.model.name).await?;
        let limit = limit(plan, StepKind::Rollback);
        // Each part is tried, whatever became of the others: what is left to do by hand is then as little as can be.
        let mut differences = Vec::new();
        note(&mut differences, "files", self.undo_promotion());
        if let Some(restart) = self.dir.read::<Restart>(run_dir::RESTART)? {
            let before = self.neighbours().await?;
            note(&mut differences, "container", self.bring_back(&start, limit).await);
            let named = restart.disturbed.into_iter().chain(disturbed(&before, &self.neighbours().await?));
            differences
                .extend(named.map(|name| format!("container {name} of another service is not the same")));
        } else {
            self.log.say("the service was not touched yet");
        }
        differences.extend(self.compare(plan, &start).await?);
        for (name, id) in &start.record.neighbours {
            if self.neighbours().await?.get(name) != Some(id) {
                self.log.say(format_args!(
                    "note: container {name} of another service changed since the start of the run"
                ));
            }
        }

        if differences.is_empty() {
            self.clean_up(false).await;
            let message =
                format!("{} is as it was before the run ({})", self.service, words(start.record.health));
            return Ok(Report { restored: true, ..done(message) });
        }
        for difference in &differences {
            self.log.say(format_args!("differs: {difference}"));
        }
        Ok(Report {
            code: Code::RollbackFailed.as_str().to_owned(),
            message: format!("{} is not as it was before the run: {}", self.service, differences.join("; ")),
            ..Report::default()
        })
    }

    /// The service's tag and container as recorded. Names what could not be brought back.
    async fn bring_back(&self, start: &Start, limit: Duration) -> Result<Vec<String>> {
        let record = &start.record;
        if let Some(moved) = self.tag_moved_by_others(start).await? {
            return Ok(vec![moved]);
        }
        if record.container_id.is_empty() {
            if self.container().await?.is_some() {
                // The run made it, and with it its anonymous volumes.
                self.project
                    .act(self.log, &["rm", "--stop", "--force", "--volumes", &self.service], limit)
                    .await?;
            }
        } else {
            if self.engine.image_id(&record.container_image_id).await?.is_none() {
                return Ok(vec![format!("the image {} it ran from is gone", record.container_image_id)]);
            }
            let runs = !start.was_stopped();
            if !self.is_back(start).await? {
                // Compose takes the container's image from the tag, which at the start may have named another one.
                self.name(&record.image_ref, &record.container_image_id).await?;
                self.project.up(self.log, &self.service, runs, limit).await?;
            }
            if !runs && self.container().await?.is_some_and(|seen| !seen.is_stopped()) {
                self.project.act(self.log, &["stop", &self.service], limit).await?;
            }
        }
        if record.image_id.is_empty() {
            self.engine.untag(&record.image_ref).await?;
        } else {
            self.name(&record.image_ref, &record.image_id).await?;
        }
        Ok(vec![])
    }

    async fn name(&self, reference: &str, id: &str) -> Result<()> {
        if self.engine.image_id(reference).await?.as_deref() != Some(id) {
            self.engine.tag(id, reference).await?;
            self.log.say(format_args!("{reference} is again {id}"));
        }
        Ok(())
    }

    /// A tag that names neither an image of the run nor one of the start was moved by somebody else, and is theirs.
    async fn tag_moved_by_others(&self, start: &Start) -> Result<Option<String>> {
        let record = &start.record;
        let now = self.engine.image_id(&record.image_ref).await?.unwrap_or_default();
        let candidates: Vec<String> = self.dir.read(run_dir::CANDIDATES)?.unwrap_or_default();
        let ours = now.is_empty()
            || now == record.image_id
            || now == record.container_image_id
            || candidates.contains(&now);
        Ok((!ours).then(|| format!("{} was moved to {now} by somebody else", record.image_ref)))
    }

    /// True if the container needs nothing any more: same image, same configuration, in the same state.
    async fn is_back(&self, start: &Start) -> Result<bool> {
        let (record, replicas) = (&start.record, self.replicas().await?);
        let is = |seen: &Seen| {
            seen.image_id == record.container_image_id
                && seen.configuration == start.configuration
                && seen.is_stopped() == start.was_stopped()
        };
        Ok(!replicas.is_empty() && replicas.iter().all(is))
    }

    /// What differs from the start record. Waits, within bounds, for the service to be as well as it was.
    async fn compare(&self, plan: &RepairPlan, start: &Start) -> Result<Vec<String>> {
        let record = &start.record;
        let mut differences = Vec::new();
        let image = self.engine.image_id(&record.image_ref).await?.unwrap_or_default();
        if image != record.image_id {
            differences.push(format!(
                "{} is {}, it was {}",
                record.image_ref,
                or_none(&image),
                or_none(&record.image_id)
            ));
        }
        let seen = self.container().await?;
        let image = seen.as_ref().map(|seen| seen.image_id.as_str()).unwrap_or_default();
        if image != record.container_image_id {
            let (now, was) = (or_none(image), or_none(&record.container_image_id));
            differences.push(format!("the container's image is {now}, it was {was}"));
        }
        if let Some(seen) = seen.filter(|_| !record.container_id.is_empty()) {
            let parts = configuration::differences(&seen.configuration, &start.configuration);
            if !parts.is_empty() {
                differences.push(format!(
                    "the container's {} differ: the compose file had changed since it was deployed",
                    parts.join("; ")
                ));
            } else if seen.config_hash != record.config_hash {
                self.log.say("note: the configuration is the same, but this version of compose labels it with another hash");
            }
        }
        let policy = Policy::of(&self.project.model, &self.service).ok().and_then(|policy| policy.health);
        let since = clock::mono_ms();
        loop {
            if record.health <= HealthClass::Down {
                return Ok(differences);
            }
            let (seen, class) = self.settled(policy.as_ref()).await?;
            if class >= record.health {
                return Ok(differences);
            }
            if clock::mono_ms() - since > plan.verify.become_well_ms {
                let now = seen.map_or_else(|| "absent".to_owned(), |seen| seen.describe());
                differences.push(format!("it is {now}; it was {}", words(record.health)));
                return Ok(differences);
            }
            sleep(LOOK).await;
        }
    }
}

/// Adds what differs; an error is a difference too.
fn note(differences: &mut Vec<String>, what: &str, result: Result<Vec<String>>) {
    match result {
        Ok(found) => differences.extend(found),
        Err(error) => differences.push(format!("{what}: {}", error.message)),
    }
}

fn or_none(id: &str) -> &str {
    if id.is_empty() { "none" } else { id }
}

fn words(class: HealthClass) -> &'static str {
    match class {
        HealthClass::Absent => "absent",
        HealthClass::Down => "down",
        HealthClass::Unhealthy => "unhealthy",
        HealthClass::Running => "running",
        HealthClass::Healthy => "healthy",
    }
}
