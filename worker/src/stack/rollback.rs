//! Step `rollback`: puts back bytes, image and container, and compares with the start record (I7).

use std::time::Duration;

use tokio::time::sleep;

use cooper_common::clock;
use cooper_common::error::{Code, Result};
use cooper_repair::plan::StepKind;
use cooper_repair::step::{HealthClass, Report};
use cooper_repair::{Policy, RepairPlan};

use super::analyze::Start;
use super::build::{image_tag, limit};
use super::observe::Seen;
use super::patch::touches_stack;
use super::project::Project;
use super::restart::{Restart, disturbed};
use super::{Step, configuration, done, run_dir};

const LOOK: Duration = Duration::from_millis(500);
/// How often a container is brought back before that is left to a person, and what is waited between: what a step that
/// was killed had asked of the engine may still be going on there, and whatever comes meanwhile is refused.
const TRIES: u32 = 4;
const BETWEEN_TRIES: Duration = Duration::from_secs(3);

impl Step<'_> {
    pub(super) async fn rollback(&mut self, plan: &RepairPlan) -> Result<Report> {
        let Some(start) = self.dir.read::<Start>(run_dir::START)? else {
            self.clean_up(false).await;
            return Ok(Report { restored: true, ..done("nothing was recorded, so nothing was touched") });
        };
        let _lock = run_dir::lock_project(self.worker_dir, &self.project.model.name).await?;
        let limit = limit(plan, StepKind::Rollback);
        // Each part is tried, whatever became of the others: what is left to do by hand is then as little as can be.
        let mut differences = Vec::new();
        note(&mut differences, "files", self.undo_promotion());
        if touches_stack(plan) {
            // Its compose file may just have become that of before.
            self.project = Project::load(&self.project.dir, self.log).await?;
        }
        if let Some(restart) = self.dir.read::<Restart>(run_dir::RESTART)? {
            let before = self.neighbours().await?;
            note(&mut differences, "container", self.bring_back_at_last(&start, limit).await);
            let named = restart.disturbed.into_iter().chain(disturbed(&before, &self.neighbours().await?));
            differences.extend(named.map(|name| {
                Difference::new(format!("container {name} of another service is not the same"))
                    .by_hand(format!("docker logs {name}"))
            }));
        } else {
            self.log.say("the service was not touched yet");
        }
        let images = self.images_to_be(&start).await?;
        differences.extend(self.compare(plan, &start, &images).await?);
        for (name, id) in &start.record.neighbours {
            if self.neighbours().await?.get(name) != Some(id) {
                self.log.say(format_args!(
                    "note: container {name} of another service changed since the start of the run"
                ));
            }
        }

        if differences.is_empty() {
            self.clean_up(false).await;
            let mut message =
                format!("{} is as it was before the run ({})", self.service, words(start.record.health));
            if !images.equal {
                message.push_str(
                    ", but for its image: that was gone and was built again from the restored files",
                );
            }
            return Ok(Report { restored: true, image_equal: Some(images.equal), ..done(message) });
        }
        for difference in &differences {
            self.log.say(format_args!("differs: {}", difference.what));
        }
        let what: Vec<&str> = differences.iter().map(|difference| difference.what.as_str()).collect();
        let mut by_hand: Vec<String> = differences.iter().flat_map(|one| one.by_hand.clone()).collect();
        // The container comes last: it is made from what the other commands put back.
        by_hand.push(self.up_by_hand());
        for command in &by_hand {
            self.log.say(format_args!("by hand: {command}"));
        }
        Ok(Report {
            code: Code::RollbackFailed.as_str().to_owned(),
            message: format!(
                "{} is not as it was before the run: {}. By hand: {}",
                self.service,
                what.join("; "),
                by_hand.join(" && ")
            ),
            image_equal: Some(images.equal),
            ..Report::default()
        })
    }

    fn up_by_hand(&self) -> String {
        format!(
            "docker compose --project-directory {} up -d --no-deps --no-build --pull never {}",
            self.project.dir.display(),
            self.service
        )
    }

    async fn bring_back_at_last(&self, start: &Start, limit: Duration) -> Result<Vec<Difference>> {
        for _ in 1..TRIES {
            match self.bring_back(start, limit).await {
                Err(error) => self.log.say(format_args!("{}: trying again", error.message)),
                done => return done,
            }
            sleep(BETWEEN_TRIES).await;
        }
        self.bring_back(start, limit).await
    }

    /// The service's tag and container as recorded. Names what could not be brought back.
    pub(super) async fn bring_back(&self, start: &Start, limit: Duration) -> Result<Vec<Difference>> {
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
            let image = match self.still_there(&record.container_image_id, limit).await? {
                Ok(image) => image,
                Err(gone) => return Ok(vec![gone]),
            };
            let runs = !start.was_stopped();
            if !self.is_back(start, &image).await? {
                // Compose takes the container's image from the tag, which at the start may have named another one.
                self.name(&record.image_ref, &image).await?;
                self.project.up(self.log, &self.service, runs, limit).await?;
            }
            if !runs && self.container().await?.is_some_and(|seen| !seen.is_stopped()) {
                self.project.act(self.log, &["stop", &self.service], limit).await?;
            }
        }
        if record.image_id.is_empty() {
            self.engine.untag(&record.image_ref).await?;
        } else {
            match self.still_there(&record.image_id, limit).await? {
                Ok(image) => self.name(&record.image_ref, &image).await?,
                Err(gone) => return Ok(vec![gone]),
            }
        }
        Ok(vec![])
    }

    /// An image of the start; where somebody has removed it, one that is built from the restored bytes. Once: a repeated
    /// rollback takes the same.
    async fn still_there(
        &self,
        id: &str,
        limit: Duration,
    ) -> Result<std::result::Result<String, Difference>> {
        if self.engine.image_id(id).await?.is_some() {
            return Ok(Ok(id.to_owned()));
        }
        if let Some(rebuilt) = self.dir.read::<String>(run_dir::REBUILT)?
            && self.engine.image_id(&rebuilt).await?.is_some()
        {
            return Ok(Ok(rebuilt));
        }
        if self.project.service(&self.service)?.build.is_none() {
            let pull = format!(
                "docker compose --project-directory {} pull {}",
                self.project.dir.display(),
                self.service
            );
            return Ok(Err(Difference::new(format!("the image {id} is gone")).by_hand(pull)));
        }
        self.log.say(format_args!("the image {id} is gone: building it again from the restored files"));
        let tag = image_tag(self.run, &self.service, "restored");
        let built = self.project.build(self.log, &self.service, None, &tag, limit).await?;
        let rebuilt = self.engine.image_id(&tag).await?.filter(|_| built.status.success());
        let Some(rebuilt) = rebuilt else {
            let build = format!(
                "docker compose --project-directory {} build {}",
                self.project.dir.display(),
                self.service
            );
            let what = format!(
                "the image {id} is gone, and the restored files do not build: {}",
                self.log.redact(&built.last_line())
            );
            return Ok(Err(Difference::new(what).by_hand(build)));
        };
        self.dir.write(run_dir::REBUILT, &rebuilt)?;
        Ok(Ok(rebuilt))
    }

    /// The images that tag and container must have in the end.
    async fn images_to_be(&self, start: &Start) -> Result<Images> {
        let rebuilt: Option<String> = self.dir.read(run_dir::REBUILT)?;
        let mut images = Images {
            tag: start.record.image_id.clone(),
            container: start.record.container_image_id.clone(),
            equal: true,
        };
        for id in [&mut images.tag, &mut images.container] {
            if let Some(rebuilt) = &rebuilt
                && !id.is_empty()
                && self.engine.image_id(id).await?.is_none()
            {
                id.clone_from(rebuilt);
                images.equal = false;
            }
        }
        Ok(images)
    }

    async fn name(&self, reference: &str, id: &str) -> Result<()> {
        if self.engine.image_id(reference).await?.as_deref() != Some(id) {
            self.engine.tag(id, reference).await?;
            self.log.say(format_args!("{reference} is again {id}"));
        }
        Ok(())
    }

    /// A tag that names neither an image of the run nor one of the start was moved by somebody else, and is theirs.
    async fn tag_moved_by_others(&self, start: &Start) -> Result<Option<Difference>> {
        let record = &start.record;
        let now = self.engine.image_id(&record.image_ref).await?.unwrap_or_default();
        let candidates: Vec<String> = self.dir.read(run_dir::CANDIDATES)?.unwrap_or_default();
        let ours = now.is_empty()
            || now == record.image_id
            || now == record.container_image_id
            || candidates.contains(&now)
            || self.dir.read::<String>(run_dir::REBUILT)?.as_ref() == Some(&now);
        Ok((!ours).then(|| {
            Difference::new(format!("{} was moved to {now} by somebody else", record.image_ref))
                .by_hand(format!("docker tag {} {}", record.container_image_id, record.image_ref))
        }))
    }

    /// True if the container needs nothing any more: same image, same configuration, in the same state.
    async fn is_back(&self, start: &Start, image: &str) -> Result<bool> {
        let replicas = self.replicas().await?;
        let is = |seen: &Seen| {
            seen.image_id == image
                && seen.configuration == start.configuration
                && seen.is_stopped() == start.was_stopped()
        };
        Ok(!replicas.is_empty() && replicas.iter().all(is))
    }

    /// What differs from how it was, and whether the images are the very same.
    pub(super) async fn differences(
        &self,
        plan: &RepairPlan,
        start: &Start,
    ) -> Result<(Vec<Difference>, bool)> {
        let images = self.images_to_be(start).await?;
        Ok((self.compare(plan, start, &images).await?, images.equal))
    }

    /// What differs from the start record. Waits, within bounds, for the service to be as well as it was.
    async fn compare(&self, plan: &RepairPlan, start: &Start, images: &Images) -> Result<Vec<Difference>> {
        let record = &start.record;
        let mut differences = Vec::new();
        let image = self.engine.image_id(&record.image_ref).await?.unwrap_or_default();
        if image != images.tag {
            let (now, was) = (or_none(&image), or_none(&images.tag));
            let tag = match images.tag.as_str() {
                "" => format!("docker rmi {}", record.image_ref),
                id => format!("docker tag {id} {}", record.image_ref),
            };
            let what = format!("{} is {now}, it was {was}", record.image_ref);
            differences.push(Difference::new(what).by_hand(tag));
        }
        let seen = self.container().await?;
        let image = seen.as_ref().map(|seen| seen.image_id.as_str()).unwrap_or_default();
        if image != images.container {
            let (now, was) = (or_none(image), or_none(&images.container));
            differences.push(Difference::new(format!("the container's image is {now}, it was {was}")));
        }
        if let Some(seen) = seen.filter(|_| !record.container_id.is_empty()) {
            let parts = configuration::differences(&seen.configuration, &start.configuration);
            if !parts.is_empty() {
                differences.push(Difference::new(format!(
                    "the container's {} differ: the compose file had changed since it was deployed",
                    parts.join("; ")
                )));
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
                let logs = format!(
                    "docker compose --project-directory {} logs --tail 100 {}",
                    self.project.dir.display(),
                    self.service
                );
                let what = format!("it is {now}; it was {}", words(record.health));
                differences.push(Difference::new(what).by_hand(logs));
                return Ok(differences);
            }
            sleep(LOOK).await;
        }
    }
}

/// Images that a rollback ends with.
struct Images {
    /// Behind the service's tag; empty for none.
    tag: String,
    /// Of its container; empty for none.
    container: String,
    /// They are those of the start.
    equal: bool,
}

/// What is not as it was, and the command that a person needs for it.
pub(super) struct Difference {
    pub(super) what: String,
    by_hand: Option<String>,
}

impl Difference {
    pub(super) fn new(what: String) -> Self {
        Self { what, by_hand: None }
    }

    pub(super) fn by_hand(self, command: String) -> Self {
        Self { by_hand: Some(command), ..self }
    }
}

/// Adds what differs; an error is a difference too.
fn note(differences: &mut Vec<Difference>, what: &str, result: Result<Vec<Difference>>) {
    match result {
        Ok(found) => differences.extend(found),
        Err(error) => differences.push(Difference::new(format!("{what}: {}", error.message))),
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
