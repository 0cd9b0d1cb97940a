//! Before the restart in place: the new image in a container beside the running one, watched until it is well, and
//! removed. It has no name in the stack's networks, so that nobody talks to it. If it fails, the service was not touched.

use serde::{Deserialize, Serialize};

use cooper_common::error::{Code, Result};
use cooper_repair::RepairPlan;
use cooper_repair::diagnosis::Phase;
use cooper_repair::plan::StepKind;
use cooper_repair::step::{Failure, HealthClass, Report};

use super::analyze::Start;
use super::build::limit;
use super::observe::{Seen, look};
use super::verify::Watched;
use super::{Step, run_dir};

/// It must stay well for this long at most: the restart in place is watched as long as the plan says.
const STABLE_MS: u64 = 2_000;
/// Of the log of one that failed, this much is said.
const SAID_LINES: usize = 30;

/// `preflight.json`: the plan whose image has passed.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Passed {
    plan: String,
}

impl Step<'_> {
    /// Tries the image that was built, where the plan says so and there is a running service to be spared.
    /// The report of one that failed.
    pub(super) async fn preflight(
        &self,
        plan: &RepairPlan,
        start: &Start,
        image: &str,
    ) -> Result<Option<Report>> {
        let passed: Passed = self.dir.read(run_dir::PREFLIGHT)?.unwrap_or_default();
        if !plan.preflight || passed.plan == plan.hash() {
            return Ok(None);
        }
        if start.record.health <= HealthClass::Down {
            self.log.say("no preflight: the service does not run, so that there is nothing to spare");
            return Ok(None);
        }
        self.remove_preflight().await?;
        let name = self.preflight_name();
        self.log.say(format_args!("preflight: the new image in a container of its own, {name}"));
        let limit = limit(plan, StepKind::Restart);
        let tried = match self.project.run_beside(self.log, &self.service, image, &name, limit).await {
            Ok(()) => self.watch_preflight(plan, &name).await,
            Err(error) => Err(error.message),
        };
        let Err(why) = tried else {
            self.remove_preflight().await?;
            self.dir.write(run_dir::PREFLIGHT, &Passed { plan: plan.hash() })?;
            return Ok(None);
        };
        let failure = self.failure_of(&name, &why).await;
        self.remove_preflight().await?;
        let message =
            format!("the new image was tried beside the running service, which was not touched: {why}");
        Ok(Some(Report {
            code: Code::PreflightFailed.as_str().to_owned(),
            message: self.log.redact(&message),
            failure: Some(failure),
            ..Report::default()
        }))
    }

    async fn watch_preflight(&self, plan: &RepairPlan, name: &str) -> std::result::Result<(), String> {
        let mut short = plan.clone();
        short.verify.stable_for_ms = short.verify.stable_for_ms.min(STABLE_MS);
        let well = self.watch(&short, Watched::Container(name)).await;
        well.map(|report| self.log.say(format_args!("preflight: {}", report.message)))
            .map_err(|error| error.message)
    }

    /// What the next attempt goes by. The end of what the container printed is said, too.
    async fn failure_of(&self, name: &str, why: &str) -> Failure {
        let seen = look(&self.engine, name).await.ok().flatten();
        let said = match &seen {
            Some(seen) => self.engine.logs(&seen.id).await.unwrap_or_default(),
            None => vec![],
        };
        let mut log = self.log.redact(&String::from_utf8_lossy(&said));
        let lines: Vec<&str> = log.lines().collect();
        for line in &lines[lines.len().saturating_sub(SAID_LINES)..] {
            self.log.say(format_args!("  | {line}"));
        }
        if log.is_empty() {
            log = self.log.redact(why);
        }
        let running = seen.as_ref().is_some_and(Seen::is_running);
        let phase = if running { Phase::Health } else { Phase::Runtime };
        Failure { phase, log, state: seen.map(|seen| self.redacted(&seen)) }
    }

    /// Removes the container of a preflight that was interrupted.
    pub(super) async fn remove_preflight(&self) -> Result<()> {
        self.engine.remove_container(&self.preflight_name()).await
    }

    fn preflight_name(&self) -> String {
        format!("cooper-preflight-{}", self.run)
    }
}
