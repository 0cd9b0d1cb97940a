//! Step `verify`: watches the service until it is well, then that it stays well. Trusts nothing: `up -d` and even
//! `--wait` call a service good that dies a second later.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::sleep;

use cooper_common::clock;
use cooper_common::error::{Code, Error, Result};
use cooper_repair::RepairPlan;
use cooper_repair::plan::StepKind;
use cooper_repair::step::Report;

use super::build::image_tag;
use super::observe::Seen;
use super::project::Project;
use super::{Step, done, observe, probe, run_dir};

/// Between two looks while it becomes well: doubled from the first to the last.
const BACKOFF_FIRST_MS: u64 = 100;
const BACKOFF_LAST_MS: u64 = 2_000;
/// Between two looks, and two requests, in the stability window.
const LOOK: Duration = Duration::from_millis(250);
const REQUEST_EVERY_MS: u64 = 1_000;

/// What a look at the service came to.
enum Look {
    /// Everything asked is well: what was asked.
    Well(Vec<String>),
    /// Not yet, and why.
    NotYet(String),
    /// It will not become well by waiting.
    Failed(String),
}

/// Whom to watch.
#[derive(Clone, Copy)]
pub(super) enum Watched<'n> {
    /// All containers of the service.
    Service,
    /// One container, by its name.
    Container(&'n str),
}

/// What is asked of the service.
struct Watch<'p> {
    plan: &'p RepairPlan,
    of: Watched<'p>,
    /// It is meant to end, with success.
    one_shot: bool,
    /// Ports that must accept where neither a healthcheck nor a request tells more: of the compose file all, of the
    /// image one.
    ports: BTreeSet<u16>,
    /// The image it must run from.
    image_id: Option<String>,
}

impl Step<'_> {
    pub(super) async fn verify(&self, plan: &RepairPlan) -> Result<Report> {
        if let Some(of) = &plan.undoes {
            return self.verify_undone(plan, of).await;
        }
        let verified = self.watch(plan, Watched::Service).await?;
        let build = match plan.build {
            Some(_) => self.dir.read(run_dir::BUILD_LOG)?,
            None => None,
        };
        self.keep_good(self.container().await?.as_ref(), build).await;
        if plan.steps.iter().all(|step| step.kind != StepKind::Promote) {
            self.clean_up(true).await;
        }
        Ok(verified)
    }

    /// Waits until what is watched is well, then that it stays so.
    pub(super) async fn watch(&self, plan: &RepairPlan, of: Watched<'_>) -> Result<Report> {
        let watch = self.what_to_watch(plan, of).await?;
        let since = clock::mono_ms();
        let mut pause = BACKOFF_FIRST_MS;
        let mut said = String::new();
        let (first, asked) = loop {
            let replicas = self.watched(&watch).await?;
            let look = self.look(&replicas, &watch, true).await;
            let waited = clock::mono_ms() - since;
            match look {
                Look::Well(asked) => break (replicas, asked),
                Look::Failed(why) => return Err(self.not_verified(&why)),
                Look::NotYet(why) if waited >= plan.verify.become_well_ms => {
                    let why = format!("not well after {} s: {why}", plan.verify.become_well_ms / 1000);
                    return Err(self.not_verified(&why));
                }
                Look::NotYet(why) => {
                    if said != why {
                        self.log.say(format_args!("not yet: {why}"));
                        said = why;
                    }
                }
            }
            sleep(Duration::from_millis(pause)).await;
            pause = (pause * 2).min(BACKOFF_LAST_MS);
        };
        let waited = clock::mono_ms() - since;
        for asked in &asked {
            self.log.say(asked);
        }
        if !watch.one_shot {
            self.log.say(format_args!(
                "well after {}; watching that it stays so for {}",
                seconds(waited),
                seconds(plan.verify.stable_for_ms)
            ));
            self.stays_well(&first, &watch).await?;
        }
        let checked = asked.join("; ");
        let stable = if watch.one_shot {
            String::new()
        } else {
            format!("; unchanged for {}", seconds(plan.verify.stable_for_ms))
        };
        Ok(done(format!("{} is well: {checked}{stable}", self.service)))
    }

    async fn watched(&self, watch: &Watch<'_>) -> Result<Vec<Seen>> {
        match watch.of {
            Watched::Service => self.replicas().await,
            Watched::Container(name) => Ok(observe::look(&self.engine, name).await?.into_iter().collect()),
        }
    }

    async fn what_to_watch<'p>(&self, plan: &'p RepairPlan, of: Watched<'p>) -> Result<Watch<'p>> {
        let model = &self.project.model;
        let described = self.project.service(&self.service)?;
        let expose = described.extra.get("expose").and_then(serde_json::Value::as_array);
        let expose = expose.into_iter().flatten().filter_map(|port| match port {
            serde_json::Value::String(port) => port.trim_end_matches("/tcp").parse().ok(),
            port => port.as_u64()?.try_into().ok(),
        });
        let tcp = described.ports.iter().filter(|port| port.protocol != "udp").map(|port| port.target);
        let waits_for_end = |service: &cooper_repair::compose::Service| {
            let dependency = service.depends_on.get(&self.service);
            dependency.is_some_and(|dependency| dependency.condition == "service_completed_successfully")
        };
        let candidate = image_tag(self.run, &self.service, "candidate");
        Ok(Watch {
            plan,
            of,
            one_shot: model.services.values().any(waits_for_end),
            ports: tcp.chain(expose).collect(),
            image_id: match plan.build {
                Some(_) => self.engine.image_id(&candidate).await?,
                None => None,
            },
        })
    }

    /// One look at all of the service's containers.
    async fn look(&self, replicas: &[Seen], watch: &Watch<'_>, request: bool) -> Look {
        if replicas.is_empty() {
            return Look::Failed("it has no container".to_owned());
        }
        let mut asked = Vec::new();
        for seen in replicas {
            match self.look_at(seen, watch, request).await {
                Look::Well(more) => asked.extend(more),
                other => return other,
            }
        }
        Look::Well(asked)
    }

    async fn look_at(&self, seen: &Seen, watch: &Watch<'_>, request: bool) -> Look {
        let state = &seen.state;
        if watch.image_id.as_ref().is_some_and(|image| *image != seen.image_id) {
            return Look::Failed(format!(
                "{} does not run the image that was built, but {}",
                seen.name, seen.image_id
            ));
        }
        if state.oom_killed
            || state.restart_count > 0
            || matches!(state.status.as_str(), "restarting" | "dead")
        {
            return Look::Failed(format!("{}: {}", seen.name, seen.describe()));
        }
        if state.status == "exited" {
            return match (watch.one_shot, state.exit_code) {
                (true, 0) => {
                    Look::Well(vec![format!("{} ended with exit code 0, as it is meant to", seen.name)])
                }
                _ => Look::Failed(format!("{}: {}", seen.name, seen.describe())),
            };
        }
        if !seen.is_running() || watch.one_shot {
            return Look::NotYet(format!("{}: {}", seen.name, seen.describe()));
        }
        let mut asked = vec![format!("{} runs, not restarted", seen.name)];
        match state.health.as_deref() {
            Some("healthy") => asked.push("its healthcheck is green".to_owned()),
            Some(health) => {
                let output = state.health_output.trim().lines().last().unwrap_or_default();
                return Look::NotYet(
                    self.log.redact(&format!("{}: healthcheck {health} {output}", seen.name)),
                );
            }
            None => {}
        }
        if !request {
            return Look::Well(asked);
        }
        if let Some(health) = &watch.plan.verify.health {
            match probe::ask(self.log, &self.project, &self.service, seen, health).await {
                Ok(answer) => asked.push(answer),
                Err(why) => return Look::NotYet(why),
            }
        } else if state.health.is_none() {
            match ports(&self.project, seen, &watch.ports).await {
                Ok(answer) => asked.push(answer),
                Err(why) => return Look::NotYet(why),
            }
        }
        Look::Well(asked)
    }

    /// The stability window: in it nothing may change.
    async fn stays_well(&self, first: &[Seen], watch: &Watch<'_>) -> Result<()> {
        let since = clock::mono_ms();
        let mut asked_at = since;
        loop {
            let now = clock::mono_ms();
            let last = now - since >= watch.plan.verify.stable_for_ms;
            let request = last || now - asked_at >= REQUEST_EVERY_MS;
            if request {
                asked_at = now;
            }
            let replicas = self.watched(watch).await?;
            let changed = replicas.len() != first.len()
                || replicas
                    .iter()
                    .zip(first)
                    .any(|(now, then)| now.id != then.id || now.started_at != then.started_at);
            let why = match self.look(&replicas, watch, request).await {
                Look::Well(_) if !changed => None,
                Look::Well(_) => Some("its container was started anew or replaced".to_owned()),
                Look::NotYet(why) | Look::Failed(why) => Some(why),
            };
            if let Some(why) = why {
                let after = seconds(clock::mono_ms() - since);
                return Err(self.not_verified(&format!("was well and did not stay so ({after}): {why}")));
            }
            if last {
                self.log.say(format_args!("unchanged for {}", seconds(clock::mono_ms() - since)));
                return Ok(());
            }
            sleep(LOOK).await;
        }
    }

    fn not_verified(&self, why: &str) -> Error {
        Error::new(Code::VerifyFailed, format!("{}: {why}", self.service))
    }
}

/// Whether the ports that are known accept; says so too where there is nothing to ask.
async fn ports(project: &Project, seen: &Seen, of_compose: &BTreeSet<u16>) -> Result<String, String> {
    let ports = if of_compose.is_empty() { &seen.exposed } else { of_compose };
    let (mut open, mut closed, mut unknown) = (vec![], vec![], vec![]);
    for port in ports {
        let from_here = probe::accepts(seen, *port).await;
        let accepts = match from_here {
            None => probe::listens(project, seen, *port).await,
            known => known,
        };
        match accepts {
            Some(true) => open.push(port.to_string()),
            Some(false) => closed.push(port.to_string()),
            None => unknown.push(port.to_string()),
        }
    }
    // An image may expose ports of its base image that nothing serves.
    let refuses =
        if of_compose.is_empty() { open.is_empty() && !closed.is_empty() } else { !closed.is_empty() };
    if refuses {
        return Err(format!("{}: port {} does not accept", seen.name, closed.join(", ")));
    }
    Ok(match (open.is_empty(), unknown.is_empty()) {
        (false, _) => format!("port {} accepts", open.join(", ")),
        (true, false) => {
            format!("port {} cannot be reached from here: only the process was checked", unknown.join(", "))
        }
        (true, true) => {
            "it has neither healthcheck, health request nor port: only the process was checked".to_owned()
        }
    })
}

fn seconds(ms: u64) -> String {
    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
}
