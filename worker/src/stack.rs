//! Performs one step of a run on a registered stack: the process `cooper worker-step`.
//!
//! Compose itself (build, up) is driven by its command line, because compose semantics are not in the engine's API;
//! everything that is looked at, tagged or probed goes by the API. What a step leaves for later ones lies in the run's
//! directory ([`run_dir`]). Every step may be repeated after a crash at any point: it looks at what is there and does
//! only what is missing.

mod analyze;
mod build;
mod checkout;
mod configuration;
mod engine;
mod evidence;
mod failure;
mod git;
mod good;
mod log;
mod main;
mod measure;
mod observe;
mod observer;
mod offline;
mod patch;
mod place;
mod preflight;
mod probe;
mod process;
mod project;
mod promote;
mod publish;
mod restart;
mod rollback;
mod run_dir;
mod survey;
mod tree;
mod undo;
mod verify;
mod versions;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::PathBuf;

use cooper_common::error::{Code, Error, Result};
use cooper_common::ids::RunId;
use cooper_repair::RepairPlan;
use cooper_repair::step::{Analysis, Input, Report, StackRef};

use engine::Engine;
use project::Project;
use run_dir::RunDir;

pub use log::Log;
pub use main::main;
pub use observer::{ARGV as OBSERVER_ARGV, main as observe};
pub use offline::{Asked, evidence as offline_evidence};
pub use survey::offline as offline_survey;

/// What a step works with.
pub struct Context {
    /// The run the step belongs to.
    pub run: RunId,
    /// The worker's data directory: `runs/<run>/` and `locks/` are in it.
    pub worker_dir: PathBuf,
    /// The stacks registered on this worker, by name. Others are refused.
    pub stacks: BTreeMap<String, PathBuf>,
    /// Where the step says what it does.
    pub log: Log,
}

/// A step about to be performed: everything it needs is there and fits together.
struct Step<'c> {
    log: &'c Log,
    run: RunId,
    worker_dir: &'c std::path::Path,
    dir: RunDir,
    engine: Engine,
    project: Project,
    /// The service the run is about.
    service: String,
}

/// Performs one step. Never fails but by its report: `ok == false`, with a code and a sentence.
pub async fn perform(input: &Input, context: &Context) -> Report {
    let done = match input {
        Input::Check { stack } => check(stack, context).await,
        _ => match prepare(input, context).await {
            Ok(step) => step.perform(input).await,
            Err(error) => Err(error),
        },
    };
    let report = done.unwrap_or_else(|error| Report {
        code: error.code.as_str().to_owned(),
        message: context.log.redact(&error.message),
        // A rollback that could not even look cannot claim that everything is as it was.
        ..Report::default()
    });
    match (report.ok, report.code.as_str()) {
        (true, "") => context.log.say(&report.message),
        (_, code) => context.log.say(format_args!("{code}: {}", report.message)),
    }
    report
}

async fn check(stack: &StackRef, context: &Context) -> Result<Report> {
    let dir = registered(stack, context)?;
    let survey = survey::survey(dir, &context.log, tree::LeftOut::new(&context.worker_dir)?).await?;
    let message = format!("{} services", survey.model.services.len());
    Ok(Report { survey: Some(survey), ..done(message) })
}

/// The directory of a stack, which has to be registered here.
fn registered<'c>(stack: &StackRef, context: &'c Context) -> Result<&'c std::path::Path> {
    let registered = context.stacks.get(&stack.name).ok_or_else(|| {
        let known: Vec<_> = context.stacks.keys().map(String::as_str).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        Error::new(
            Code::StackNotFound,
            format!("no stack {:?} is registered here; registered: {known}", stack.name),
        )
    })?;
    if *registered != std::path::Path::new(&stack.dir) {
        return Err(Error::new(
            Code::StackNotFound,
            format!("stack {} is registered with another directory than {}", stack.name, stack.dir),
        ));
    }
    Ok(registered)
}

async fn prepare<'c>(input: &Input, context: &'c Context) -> Result<Step<'c>> {
    let (stack, service, plan) = parts(input);
    let registered = registered(stack, context)?;
    let dir = RunDir::open(&context.worker_dir, context.run).await?;
    let engine = Engine::connect().await?;
    let project = Project::load(registered, &context.log).await?;
    place::check(&engine, registered, &project.model).await?;
    if !project.model.services.contains_key(service) {
        let known: Vec<_> = project.model.services.keys().map(String::as_str).collect();
        return Err(Error::new(
            Code::ServiceNotFound,
            format!(
                "stack {} has no service {service:?} (or only in a profile that is not active); its services are: {}",
                stack.name,
                known.join(", ")
            ),
        ));
    }
    if let Some(plan) = plan
        && plan.project != project.model.name
    {
        return Err(Error::new(
            Code::PlanChanged,
            format!(
                "the plan is for project {}, the stack is now project {}",
                plan.project, project.model.name
            ),
        ));
    }
    let mut step = Step {
        log: &context.log,
        run: context.run,
        worker_dir: &context.worker_dir,
        dir,
        engine,
        project,
        service: service.to_owned(),
    };
    // From the patch to the promotion the service is what the staged compose files say.
    if let Input::Build { plan, .. } | Input::Restart { plan, .. } | Input::Verify { plan, .. } = input
        && patch::touches_stack(plan)
        && plan.undoes.is_none()
    {
        step.project = step.project.with_files(step.staged_files(plan), &context.log).await?;
    }
    Ok(step)
}

fn parts(input: &Input) -> (&StackRef, &str, Option<&RepairPlan>) {
    match input {
        Input::Analyze { stack, service, .. } => (stack, service, None),
        Input::Patch { stack, plan }
        | Input::Build { stack, plan }
        | Input::Restart { stack, plan }
        | Input::Verify { stack, plan }
        | Input::Promote { stack, plan }
        | Input::Rollback { stack, plan } => (stack, &plan.service, Some(plan)),
        Input::Check { stack } => (stack, "", None),
    }
}

impl Step<'_> {
    async fn perform(mut self, input: &Input) -> Result<Report> {
        let report = self.act(input).await?;
        let looks = match input {
            Input::Analyze { mode, .. } => !matches!(mode, Analysis::After(_)),
            Input::Verify { .. } | Input::Rollback { .. } => true,
            _ => false,
        };
        Ok(if looks { Report { measured: self.measure().await, ..report } } else { report })
    }

    async fn act(&mut self, input: &Input) -> Result<Report> {
        match input {
            Input::Analyze { log, instruction, mode, rules, .. } => match mode {
                Analysis::Service => {
                    self.analyze(log.as_deref(), instruction.as_deref(), rules.as_deref()).await
                }
                Analysis::After(failure) => self.analyze_after(failure).await,
                Analysis::Start => self.only_start().await,
                Analysis::Undo { of } => self.analyze_undo(of).await,
            },
            Input::Patch { plan, .. } => self.patch(plan).await,
            Input::Build { plan, .. } => self.build(plan).await,
            Input::Restart { plan, .. } => self.shown(self.restart(plan).await).await,
            Input::Verify { plan, .. } => self.shown(self.verify(plan).await).await,
            Input::Promote { plan, .. } => self.promote(plan).await,
            Input::Rollback { plan, .. } => self.rollback(plan).await,
            Input::Check { .. } => Err(failed("a check is of a stack, not of a service")),
        }
    }
}

/// A report of success.
fn done(message: impl Into<String>) -> Report {
    Report { ok: true, message: message.into(), ..Report::default() }
}

/// A step that failed: what happened.
fn failed(message: impl Into<String>) -> Error {
    Error::new(Code::StepFailed, message)
}

/// Says what was being done when something outside failed.
trait While<T> {
    fn while_doing(self, what: impl Display) -> Result<T>;
}

impl<T, E: Display> While<T> for std::result::Result<T, E> {
    fn while_doing(self, what: impl Display) -> Result<T> {
        self.map_err(|error| failed(format!("{what}: {error}")))
    }
}
