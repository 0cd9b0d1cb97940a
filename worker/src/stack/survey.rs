//! What is known of a stack before anything fails: its model and the files of its build contexts. Touches nothing.

use std::path::Path;

use cooper_common::error::{Code, Error, Result};
use cooper_repair::check::Survey;

use super::engine::Engine;
use super::project::{Project, without_secrets};
use super::tree::LeftOut;
use super::{Log, evidence, place};

/// Of a stack in a directory. `left_out` is the worker's own, which may lie inside it.
pub(super) async fn survey(dir: &Path, log: &Log, left_out: LeftOut) -> Result<Survey> {
    let project = Project::load(dir, log).await?;
    let elsewhere = match Engine::connect().await {
        Ok(engine) => place::check(&engine, dir, &project.model).await,
        // What a stack could be is also known where no engine runs.
        Err(_) => Ok(()),
    };
    let elsewhere = match elsewhere {
        Err(error) if error.code == Code::StackElsewhere => Some(error.message),
        _ => None,
    };
    let model = without_secrets(&project.model, &log.redactor())?;
    let mut survey = Survey { model, files: Default::default(), elsewhere };
    for (name, service) in &project.model.services {
        let context = service.build.as_ref().map(|build| Path::new(&build.context));
        let Some(context) = context.filter(|context| context.is_dir()) else { continue };
        let listing = evidence::list(context, left_out)?;
        let paths = listing.files.iter().filter_map(|entry| entry.path.to_str());
        survey.files.insert(name.clone(), paths.map(str::to_owned).collect());
    }
    Ok(survey)
}

/// Without a worker.
///
/// # Errors
/// `stack_not_found`, and what compose says of a stack that it cannot read.
pub async fn offline(dir: &Path) -> Result<Survey> {
    if !dir.is_dir() {
        return Err(Error::new(Code::StackNotFound, format!("there is no directory {}", dir.display())));
    }
    survey(dir, &Log::new(std::io::sink()), LeftOut::nothing()).await
}
