//! Step `build`: builds the stage into a candidate tag; nothing that runs or is named by the user moves.

use std::time::Duration;

use cooper_common::error::{Code, Error, Result};
use cooper_common::ids::RunId;
use cooper_repair::plan::StepKind;
use cooper_repair::step::Report;
use cooper_repair::{RepairPlan, limits};

use super::analyze::Start;
use super::{Step, done, failed, run_dir};

/// Runs of a service whose images before the repair are kept.
const KEPT_RUNS: usize = 3;

/// A tag for an image of a run that is in the making.
pub(super) fn image_tag(run: RunId, service: &str, tag: &str) -> String {
    format!("cooper-run/{}/{}:{tag}", part(&run.to_string()), part(service))
}

/// Names of services may hold what a repository's name may not.
fn part(name: &str) -> String {
    let plain: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
    let plain = plain.trim_matches('-');
    if plain.is_empty() { "service".to_owned() } else { plain.to_owned() }
}

impl Step<'_> {
    pub(super) async fn build(&self, plan: &RepairPlan) -> Result<Report> {
        if plan.build.is_none() {
            return Err(failed("the plan builds nothing"));
        }
        let start = self.start()?;
        self.keep_old(&start).await?;
        let stage = self.stage(plan);
        let patched = !plan.edits.is_empty();
        if patched && !stage.is_dir() {
            return Err(failed("there is no stage of this plan; patch comes first"));
        }
        let tag = image_tag(self.run, &self.service, "candidate");
        let context = patched.then_some(stage.as_path());
        let finished =
            self.project.build(self.log, &self.service, context, &tag, limit(plan, StepKind::Build)).await?;
        if !finished.status.success() {
            let message = format!(
                "{} does not build{}: {}",
                self.service,
                if patched { " with the patch" } else { "" },
                finished.last_line()
            );
            return Ok(self.not_built(&message, &finished.output));
        }
        let candidate =
            self.engine.image_id(&tag).await?.ok_or_else(|| failed(format!("the build left no {tag}")))?;
        // What did not build at all may well become what it last was.
        let unbuilt: bool = self.dir.read(run_dir::UNBUILT)?.unwrap_or_default();
        let known = [&start.record.container_image_id, &start.record.image_id].contains(&&candidate);
        if patched && known && !unbuilt {
            return Err(Error::new(
                Code::PatchNoEffect,
                format!("patch had no effect: the image is the same as before ({candidate})"),
            ));
        }
        let printed = self.log.redact(&String::from_utf8_lossy(&finished.output));
        self.dir.write(run_dir::BUILD_LOG, &printed)?;
        let mut candidates: Vec<String> = self.dir.read(run_dir::CANDIDATES)?.unwrap_or_default();
        if !candidates.contains(&candidate) {
            candidates.push(candidate.clone());
            self.dir.write(run_dir::CANDIDATES, &candidates)?;
        }
        Ok(done(format!("built {} as {candidate}", self.service)))
    }

    /// How everything was at the run's start.
    pub(super) fn start(&self) -> Result<Start> {
        self.dir
            .read(run_dir::START)?
            .ok_or_else(|| failed("the run's start was not recorded; analyze comes first"))
    }

    /// Names the images from before the run, so that nothing removes them.
    pub(super) async fn keep_old(&self, start: &Start) -> Result<()> {
        let repository = self.kept_repository();
        let record = &start.record;
        let kept = [(&record.image_id, "tag"), (&record.container_image_id, "container")];
        for (id, of) in kept.iter().filter(|(id, _)| !id.is_empty()) {
            if self.engine.image_id(id).await?.is_none() {
                return Err(failed(format!("the {of}'s image {id} is gone: there would be no way back")));
            }
        }
        if !record.image_id.is_empty() {
            self.engine.tag(&record.image_id, &format!("{repository}:{}", self.run)).await?;
        }
        if !record.container_image_id.is_empty() && record.container_image_id != record.image_id {
            self.engine
                .tag(&record.container_image_id, &format!("{repository}:{}.container", self.run))
                .await?;
        }
        Ok(())
    }

    fn kept_repository(&self) -> String {
        format!("cooper-prev/{}-{}", part(&self.project.model.name), part(&self.service))
    }

    /// Removes what only the run needed: the stage, its images' tags, and old images of all but the last runs. What
    /// cannot be removed is said and does not fail the run.
    pub(super) async fn clean_up(&self, keep_old: bool) {
        let cleaned = async {
            self.remove_preflight().await?;
            self.dir.remove("stage")?;
            for tag in ["analyze", "candidate", "restored"] {
                self.engine.untag(&image_tag(self.run, &self.service, tag)).await?;
            }
            let candidates: Vec<String> = self.dir.read(run_dir::CANDIDATES)?.unwrap_or_default();
            for candidate in candidates {
                self.engine.remove_unnamed(&candidate).await?;
            }
            // Run ids sort by time.
            let repository = self.kept_repository();
            let tags = self.engine.tags(&repository).await?;
            let mut runs: Vec<&str> = tags.iter().map(|tag| run_of(tag)).collect();
            runs.dedup();
            let own = self.run.to_string();
            let old: Vec<&str> = runs.iter().rev().skip(KEPT_RUNS).copied().collect();
            for tag in &tags {
                if old.contains(&run_of(tag)) || (!keep_old && run_of(tag) == own) {
                    self.engine.untag(&format!("{repository}:{tag}")).await?;
                }
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = cleaned.await {
            self.log.say(format_args!("not everything could be cleaned up: {}", error.message));
        }
    }
}

fn run_of(tag: &str) -> &str {
    tag.split_once('.').map_or(tag, |(run, _)| run)
}

/// The time limit of a step in the plan, less what it takes to end tidily before the host's own limit.
pub(super) fn limit(plan: &RepairPlan, kind: StepKind) -> Duration {
    let steps = plan.steps.iter().chain(&plan.on_failure);
    let planned = steps.filter(|step| step.kind == kind).map(|step| step.timeout_ms).next();
    Duration::from_millis(planned.unwrap_or(limits::STEP_TIMEOUT_MS).saturating_sub(5_000).max(10_000))
}

/// A step of a plan whose candidate was never built.
pub(super) fn no_candidate() -> Error {
    Error::new(Code::StepFailed, "there is no candidate image of this run; build comes first")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_valid_whatever_the_service_is_called() {
        let run = RunId::from_u128(7);
        let tag = image_tag(run, "My_Service.1", "candidate");
        assert_eq!(tag, "cooper-run/run-00000000000000000000000007/my-service-1:candidate");
        assert_eq!(run_of("run_1.container"), "run_1");
    }
}
