//! Evidence without a cluster and without a run: a log that is given, or what the engine of this machine tells of a service,
//! and the files of its build context. Nothing is built, nothing is written.

use std::path::Path;

use cooper_common::error::{Code, Error, Result};
use cooper_repair::Evidence;
use cooper_repair::compose::Model;
use cooper_repair::diagnosis::Phase;

use super::analyze::is_build_log;
use super::engine::Engine;
use super::project::{Project, without_secrets};
use super::tree::LeftOut;
use super::{Log, While, evidence, git, observe};

/// What shall be looked at.
#[derive(Debug, Default)]
pub struct Asked<'a> {
    /// The stack's directory. It takes the `docker compose` command, and its engine only where no log is given.
    pub stack: Option<&'a Path>,
    /// The service; may be left out where only one is built.
    pub service: Option<&'a str>,
    /// The log to diagnose, in place of what the engine tells.
    pub log: Option<String>,
    /// What a person asks for.
    pub instruction: Option<String>,
}

/// Collects it, without secrets.
///
/// # Errors
/// `stack_not_found`, `service_not_found`, `engine_unavailable` and `invalid_argument`, each with what to do.
pub async fn evidence(asked: Asked<'_>) -> Result<Evidence> {
    let log = Log::new(std::io::sink());
    let project = match asked.stack {
        Some(dir) if !dir.is_dir() => {
            return Err(Error::new(Code::StackNotFound, format!("there is no directory {}", dir.display())));
        }
        Some(dir) => Some(Project::load(dir, &log).await?),
        None => None,
    };
    let service = match (asked.service, &project) {
        (Some(service), _) => service.to_owned(),
        (None, Some(project)) => only_built(&project.model)?,
        (None, None) => "service".to_owned(),
    };
    let model = match &project {
        Some(project) => {
            project.service(&service).map_err(|error| Error::new(Code::ServiceNotFound, error.message))?;
            without_secrets(&project.model, &log.redactor())?
        }
        None => nowhere(&service)?,
    };
    let mut found = Evidence {
        instruction: asked.instruction.map(|text| log.redact(&text)),
        ..Evidence::new(service, model, Phase::Runtime)
    };
    if let Some(project) = &project {
        found.stack_files = project.stack_files(&log.redactor())?;
    }
    if let Some(project) = &project
        && let Some(build) = &project.service(&found.service)?.build
        && Path::new(&build.context).is_dir()
    {
        let context = Path::new(&build.context);
        let listing = evidence::list(context, LeftOut::nothing())?;
        found.uncommitted = git::uncommitted(context).await?;
        found.files = evidence::files(context, build.dockerfile(), &listing, &log.redactor())?;
    }
    match (asked.log, &project) {
        (Some(text), _) => {
            let text = log.redact(&text);
            if is_build_log(&text) {
                (found.phase, found.build_log) = (Phase::Build, text);
            } else {
                found.container_log = text;
            }
        }
        (None, Some(project)) => of_container(&mut found, project, &log).await?,
        (None, None) if found.instruction.is_none() => {
            return Err(Error::new(
                Code::InvalidArgument,
                "there is nothing to look at: give a log or a stack",
            ));
        }
        (None, None) => {}
    }
    Ok(found)
}

/// What the engine tells of the service's container.
async fn of_container(found: &mut Evidence, project: &Project, log: &Log) -> Result<()> {
    let engine = Engine::connect().await?;
    let containers = engine.containers(&project.model.name).await?;
    let Some(container) = containers.into_iter().find(|container| container.service == found.service) else {
        return Ok(());
    };
    let text = engine.logs(&container.id).await?;
    found.container_log = log.redact(&String::from_utf8_lossy(&text));
    if let Some(seen) = observe::look(&engine, &container.id).await? {
        if seen.is_running() {
            found.phase = Phase::Health;
        }
        let mut state = seen.state;
        state.health_output = log.redact(&state.health_output);
        state.error = log.redact(&state.error);
        found.state = Some(state);
    }
    Ok(())
}

fn only_built(model: &Model) -> Result<String> {
    let built: Vec<&String> =
        model.services.iter().filter(|(_, service)| service.build.is_some()).map(|(name, _)| name).collect();
    match built[..] {
        [only] => Ok(only.clone()),
        _ => {
            let all: Vec<&str> = model.services.keys().map(String::as_str).collect();
            let what = format!("which service is it? The stack has {}", all.join(", "));
            Err(Error::new(Code::InvalidArgument, what))
        }
    }
}

/// A model for a log of which nothing else is known: the cause can be told, an edit cannot.
fn nowhere(service: &str) -> Result<Model> {
    let model = serde_json::json!({ "name": "unknown", "services": { service: {} } });
    Model::from_json(&model.to_string()).while_doing("making a model of nothing but a service")
}
