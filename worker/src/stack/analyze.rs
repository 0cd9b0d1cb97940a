//! Step `analyze`: records how everything is at the start, and collects what shows the failure. Touches nothing.

use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use regex::Regex;
use serde::{Deserialize, Serialize};

use cooper_common::error::{Code, Error, Result};
use cooper_repair::diagnosis::Phase;
use cooper_repair::step::{Failure, HealthClass, Report, StartRecord};
use cooper_repair::{Evidence, Policy, RuleSet, limits};

use super::build::image_tag;
use super::configuration::Configuration;
use super::observe::Seen;
use super::project::without_secrets;
use super::tree::{LeftOut, Listing};
use super::{Step, While, done, evidence, git, good, run_dir};

/// `start.json`: how everything was before the run touched anything. Written once.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Start {
    pub(super) record: StartRecord,
    /// The container's state (`running`, `exited`, …); empty if there was none.
    pub(super) status: String,
    /// The container's configuration.
    pub(super) configuration: Configuration,
}

impl Start {
    /// The container had ended, or was never started.
    pub(super) fn was_stopped(&self) -> bool {
        matches!(self.status.as_str(), "exited" | "created" | "dead")
    }
}

/// What a build prints and a container hardly does.
static BUILD_LOG: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"(?m)failed to solve|^#\d+ (?:\[|\d+\.\d|ERROR|DONE|CACHED)|^ERROR: process |^Step \d+/\d+ :|^ > \[",
    )
    .expect("a constant")
});

/// Whether a log that was given looks like one of a build, not of a container.
pub(super) fn is_build_log(log: &str) -> bool {
    BUILD_LOG.is_match(log)
}

impl Step<'_> {
    pub(super) async fn analyze(
        &self,
        log: Option<&str>,
        instruction: Option<&str>,
        rules: Option<&[(String, String)]>,
    ) -> Result<Report> {
        run_dir::prune(self.worker_dir);
        self.check_ownership().await?;
        let policy = Policy::of(&self.project.model, &self.service)
            .map_err(|error| Error::new(Code::PolicyRefused, error.to_string()))?;
        let (seen, class) = self.settled(policy.health.as_ref()).await?;
        let start = self.record_start(seen.as_ref(), class).await?;
        self.log.say(match &seen {
            Some(seen) => format!("{}: {} ({})", self.service, seen.describe(), seen.name),
            None => format!("{}: no container", self.service),
        });

        let listing = self.listing()?;
        let redactor = self.log.redactor();
        let phase = if class >= HealthClass::Unhealthy { Phase::Health } else { Phase::Runtime };
        let mut found = Evidence {
            state: seen.as_ref().map(|seen| self.redacted(seen)),
            files: self.files(listing.as_ref())?,
            stack_files: self.project.stack_files(&redactor)?,
            instruction: instruction.map(|text| self.log.redact(text)),
            ..Evidence::new(&self.service, without_secrets(&self.project.model, &redactor)?, phase)
        };
        if let Some(build) = self.project.service(&self.service)?.build.as_ref().filter(|_| listing.is_some())
        {
            found.uncommitted = git::uncommitted(Path::new(&build.context)).await?;
            if !found.uncommitted.is_empty() {
                self.log.say(format_args!("not committed, and built too: {}", found.uncommitted.join(", ")));
            }
        }
        let mut built = None;
        if let Some(log) = log {
            self.log.say(format_args!("a log of {} bytes was given: nothing else is looked at", log.len()));
            let log = self.log.redact(log);
            if is_build_log(&log) {
                (found.phase, found.build_log) = (Phase::Build, log);
            } else {
                found.container_log = log;
            }
        } else {
            let well = class >= HealthClass::Running;
            if let Some(seen) = seen.as_ref().filter(|_| !well) {
                let text = self.engine.logs(&seen.id).await?;
                found.container_log = self.log.redact(&String::from_utf8_lossy(&text));
                self.log.say(format_args!("read {} bytes of its log", text.len()));
            }
            if let Some(why) = self.why_build(&start, listing.as_ref(), &found, well, rules).await? {
                self.log.say(format_args!("building its context as it is, to a tag of Cooper's own: {why}"));
                built = Some(self.trial_build(&mut found).await?);
            }
        }
        self.dir.write(run_dir::UNBUILT, &(found.phase == Phase::Build))?;
        found.good_log = good::read(self.worker_dir, &self.project.model.name, &self.service, found.phase)?;
        if class == HealthClass::Healthy && log.is_none() {
            self.keep_good(seen.as_ref(), None).await;
        }
        if let Some(rules) = known(rules)? {
            self.resolve_versions(&mut found, &rules, &start.record.container_image_id).await;
        }
        let is = match (&seen, found.phase) {
            _ if log.is_some() => "the given log was taken".to_owned(),
            (_, Phase::Build) => format!("{} does not build", self.service),
            (Some(seen), _) => format!("{} is {}", self.service, seen.describe()),
            (None, _) => format!("{} has no container", self.service),
        };
        let builds = if built == Some(true) { "; its context builds" } else { "" };
        Ok(Report { evidence: Some(found), start: Some(start.record), ..done(format!("{is}{builds}")) })
    }

    /// The evidence of a later attempt: the newest failure, with the files as they are.
    pub(super) async fn analyze_after(&self, failure: &Failure) -> Result<Report> {
        let start = self.start()?;
        let redactor = self.log.redactor();
        let model = without_secrets(&self.project.model, &redactor)?;
        let mut found = Evidence {
            state: failure.state.clone(),
            files: self.files(self.listing()?.as_ref())?,
            stack_files: self.project.stack_files(&redactor)?,
            ..Evidence::new(&self.service, model, failure.phase)
        };
        let (what, log) = match failure.phase {
            Phase::Build => ("build", &mut found.build_log),
            Phase::Runtime | Phase::Health => ("container", &mut found.container_log),
        };
        log.clone_from(&failure.log);
        found.good_log = good::read(self.worker_dir, &self.project.model.name, &self.service, failure.phase)?;
        self.resolve_versions(&mut found, RuleSet::builtin(), &start.record.container_image_id).await;
        let message = format!("the {what} log of the attempt before was taken: {} bytes", failure.log.len());
        Ok(Report { evidence: Some(found), ..done(message) })
    }

    /// How everything is, and nothing else.
    pub(super) async fn only_start(&self) -> Result<Report> {
        run_dir::prune(self.worker_dir);
        self.check_ownership().await?;
        let policy = Policy::of(&self.project.model, &self.service)
            .map_err(|error| Error::new(Code::PolicyRefused, error.to_string()))?;
        let (seen, class) = self.settled(policy.health.as_ref()).await?;
        let start = self.record_start(seen.as_ref(), class).await?;
        let is = seen.map_or_else(|| "absent".to_owned(), |seen| seen.describe());
        Ok(Report { start: Some(start.record), ..done(format!("{} is {is}", self.service)) })
    }

    /// Refuses a project whose containers were made from another directory: it only has the same name.
    async fn check_ownership(&self) -> Result<()> {
        let real = |dir: &Path| std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_path_buf());
        let ours = real(&self.project.dir);
        let containers = self.engine.containers(&self.project.model.name).await?;
        let foreign = |dir: &String| !dir.is_empty() && real(Path::new(dir)) != ours;
        match containers.into_iter().map(|container| container.working_dir).find(foreign) {
            Some(dir) => Err(Error::new(
                Code::PolicyRefused,
                format!(
                    "the containers of project {} belong to {dir}, not to {}; register that directory (for a worker in a container: mounted at the same path as on the host), or give the projects different names",
                    self.project.model.name,
                    ours.display()
                ),
            )),
            None => Ok(()),
        }
    }

    /// Records how everything is, unless the run has done so before: a repeated step, or a later attempt.
    async fn record_start(&self, seen: Option<&Seen>, class: HealthClass) -> Result<Start> {
        if let Some(start) = self.dir.read::<Start>(run_dir::START)? {
            return Ok(start);
        }
        let image_ref = self.project.image_ref(&self.service)?;
        let start = Start {
            record: StartRecord {
                image_id: self.engine.image_id(&image_ref).await?.unwrap_or_default(),
                image_ref,
                container_image_id: seen.map(|seen| seen.image_id.clone()).unwrap_or_default(),
                container_id: seen.map(|seen| seen.id.clone()).unwrap_or_default(),
                config_hash: seen.map(|seen| seen.config_hash.clone()).unwrap_or_default(),
                health: class,
                neighbours: self.neighbours().await?,
            },
            status: seen.map(|seen| seen.state.status.clone()).unwrap_or_default(),
            configuration: seen.map(|seen| seen.configuration.clone()).unwrap_or_default(),
        };
        self.dir.write(run_dir::START, &start)?;
        Ok(start)
    }

    /// The files of the build context, `None` if there is no local one.
    fn listing(&self) -> Result<Option<Listing>> {
        let build = self.project.service(&self.service)?.build.as_ref();
        let context = build.map(|build| Path::new(&build.context)).filter(|context| context.is_dir());
        context.map(|context| evidence::list(context, LeftOut::new(self.worker_dir)?)).transpose()
    }

    fn files(&self, listing: Option<&Listing>) -> Result<std::collections::BTreeMap<String, String>> {
        let build = self.project.service(&self.service)?.build.as_ref();
        let (Some(build), Some(listing)) = (build, listing) else {
            return Ok(std::collections::BTreeMap::new());
        };
        evidence::files(Path::new(&build.context), build.dockerfile(), listing, &self.log.redactor())
    }

    pub(super) fn redacted(&self, seen: &Seen) -> cooper_repair::diagnosis::State {
        let mut state = seen.state.clone();
        state.health_output = self.log.redact(&state.health_output);
        state.error = self.log.redact(&state.error);
        state
    }

    /// Why the context has to be built to know more, `None` if it has not.
    async fn why_build(
        &self,
        start: &Start,
        listing: Option<&Listing>,
        found: &Evidence,
        well: bool,
        rules: Option<&[(String, String)]>,
    ) -> Result<Option<&'static str>> {
        let Some(listing) = listing else { return Ok(None) };
        if start.record.container_id.is_empty() {
            return Ok(Some("there is no container"));
        }
        let created = self.engine.image_created_ms(&start.record.container_image_id).await?;
        if created.is_none_or(|created| created < listing.changed_ms) {
            return Ok(Some("it has changed since the image was made"));
        }
        Ok((!well && !explained(found, rules)?).then_some("what the container says does not explain it"))
    }

    /// Builds the context as it is. True if it builds.
    async fn trial_build(&self, found: &mut Evidence) -> Result<bool> {
        let tag = image_tag(self.run, &self.service, "analyze");
        let limit = Duration::from_millis(limits::BUILD_TIMEOUT_MS);
        let finished = self.project.build(self.log, &self.service, None, &tag, limit).await?;
        found.build_log = self.log.redact(&String::from_utf8_lossy(&finished.output));
        if finished.status.success() {
            self.log.say("it builds");
            // That it builds is all that was asked; the layers stay in the engine's cache.
            self.engine.untag(&tag).await?;
            return Ok(true);
        }
        self.log.say("it does not build");
        found.phase = Phase::Build;
        Ok(false)
    }
}

/// Whether the coordinator will know what it means: by the rules it goes by. Where they are not known, nothing is.
fn explained(found: &Evidence, rules: Option<&[(String, String)]>) -> Result<bool> {
    Ok(known(rules)?.is_some_and(|rules| cooper_repair::diagnose(&rules, found).is_ok()))
}

/// The rules that the coordinator goes by, where it said so.
fn known(rules: Option<&[(String, String)]>) -> Result<Option<Known>> {
    Ok(match rules {
        None => None,
        Some([]) => Some(Known::Builtin),
        Some(further) => {
            let texts: Vec<(&str, &str)> =
                further.iter().map(|(file, text)| (file.as_str(), text.as_str())).collect();
            let own = RuleSet::with(&texts).while_doing("reading the coordinator's rules")?;
            Some(Known::Own(Box::new(own)))
        }
    })
}

enum Known {
    Builtin,
    Own(Box<RuleSet>),
}

impl std::ops::Deref for Known {
    type Target = RuleSet;

    fn deref(&self) -> &RuleSet {
        match self {
            Self::Builtin => RuleSet::builtin(),
            Self::Own(own) => own,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_given_log_of_a_build_is_known_by_its_looks() {
        for log in [
            "#8 1.204 E: Unable to locate package jq",
            "x\nfailed to solve: process \"/bin/sh -c make\" did not complete successfully: exit code: 2",
            "Step 3/7 : RUN make",
        ] {
            assert!(is_build_log(log), "{log}");
        }
        for log in
            ["Traceback (most recent call last):", "# comment", "ModuleNotFoundError: No module named 'yaml'"]
        {
            assert!(!is_build_log(log), "{log}");
        }
    }
}
