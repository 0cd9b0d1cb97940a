//! Steps as tasks: given to the worker that owns the stack, and taken back with what they brought.

use cooper_common::{
    error::{Code, Error, Result},
    ids::{RunId, TaskId},
    limits,
};
use cooper_core::{
    change::Aggregate,
    cluster::Ended,
    run::{Origin, Run, StepEnd, StepKind},
    task,
};
use cooper_proto::v1;
use cooper_repair::step::{Analysis, Input as StepInput, Report, StackRef};
use prost::Message as _;

use super::{super::artifacts, Driver, stack_of};
use crate::cluster::{durable, now};

impl Driver {
    /// Gives a step to the worker that owns the stack.
    pub(super) async fn start(&mut self, id: RunId, kind: StepKind) {
        let Err(error) = self.try_start(id, kind).await else { return };
        tracing::error!(run = %id, step = kind.as_str(), %error, "a step could not be started");
        let Some(run) = self.runs.get_mut(&id) else { return };
        run.step_started(now(), kind, TaskId::new());
        let end =
            StepEnd { code: error.code.as_str().to_owned(), message: error.message, ..StepEnd::default() };
        run.step_ended(now(), kind, end);
        self.save_logged(id).await;
        Box::pin(self.advance(id)).await;
    }

    async fn try_start(&mut self, id: RunId, kind: StepKind) -> Result<()> {
        let input = self.step_input(id, kind).await?;
        let Some(run) = self.runs.get_mut(&id) else { return Ok(()) };
        let timeout_ms = run.step(kind).map_or(limits::exec::STEP_TIMEOUT_MS, |step| step.timeout_ms);
        let spec = v1::TaskSpec {
            kind: Some(v1::task_spec::Kind::Step(v1::StepSpec {
                run_id: id.to_string(),
                step: kind.as_str().to_owned(),
                input_json: serde_json::to_vec(&input).map_err(|error| Error::internal(error.to_string()))?,
            })),
            timeout_ms,
            ..v1::TaskSpec::default()
        };
        let task = TaskId::new();
        let submit = task::Submit {
            id: task,
            tenant: run.tenant.clone(),
            key: String::new(),
            kind: task::Kind::Step,
            session: None,
            worker: Some(run.body.worker.as_str().into()),
            timeout_ms,
            output_limit_bytes: limits::run::STEP_LOG_BYTES_MAX,
            priority: 0,
            scheduling: None,
            spec: spec.encode_to_vec().into(),
        };
        // First the row that says which task it is, then the task: a crash between the two leaves a step whose task does
        // not exist, and catch_up submits it again.
        run.step_started(now(), kind, task);
        self.save(id).await?;
        self.tasks.insert(task, id);
        let ((), recorded) =
            self.cluster.decide(|core, now| core.submit(now, submit, true).map(|out| ((), out)))?;
        durable(recorded).await
    }

    async fn step_input(&self, id: RunId, kind: StepKind) -> Result<StepInput> {
        let run = self.runs.get(&id).ok_or_else(|| Error::internal("the run is gone"))?;
        let stack = stack_of(run);
        if kind == StepKind::Analyze {
            return self.analysis(run, stack).await;
        }
        let plan = self.stored_plan(run).await?;
        // The operator may have thought again while the plan waited. What was touched is put back in any case.
        let against = self.settings.policy.against(&plan, &stack.dir);
        if kind != StepKind::Rollback && !against.is_empty() {
            return Err(Error::new(Code::PolicyRefused, against.join("; ")));
        }
        Ok(match kind {
            StepKind::Analyze | StepKind::Patch => StepInput::Patch { stack, plan },
            StepKind::Build => StepInput::Build { stack, plan },
            StepKind::Restart => StepInput::Restart { stack, plan },
            StepKind::Verify => StepInput::Verify { stack, plan },
            StepKind::Promote => StepInput::Promote { stack, plan },
            StepKind::Rollback => StepInput::Rollback { stack, plan },
        })
    }

    async fn analysis(&self, run: &Run, stack: StackRef) -> Result<StepInput> {
        let service = run.body.service.clone();
        if let Some(failed) = run.body.attempt.checked_sub(1).and_then(|before| run.failed_step(before)) {
            let task = failed.task.ok_or_else(|| Error::internal("the failed step has no task"))?;
            let failure = self.report(task).await?.failure;
            let failure = failure.ok_or_else(|| Error::internal("what showed the failure is gone"))?;
            let mode = Analysis::After(failure);
            return Ok(StepInput::Analyze {
                stack,
                service,
                log: None,
                instruction: None,
                mode,
                rules: None,
            });
        }
        let mode = match run.body.origin {
            Origin::Retry { from: Some(_), .. } => Some(Analysis::Start),
            Origin::Undo { of } => Some(Analysis::Undo { of: of.to_string() }),
            Origin::Repair | Origin::Retry { from: None, .. } => None,
        };
        if let Some(mode) = mode {
            return Ok(StepInput::Analyze {
                stack,
                service,
                log: None,
                instruction: None,
                mode,
                rules: None,
            });
        }
        let record = self.cluster.store.get(Aggregate::Run, &run.id.to_string()).await?;
        let spec = record.and_then(|record| record.row.spec).unwrap_or_default();
        let request = v1::CreateRunRequest::decode(&*spec).unwrap_or_default();
        let log = (!request.log.is_empty()).then(|| String::from_utf8_lossy(&request.log).into_owned());
        let instruction = (!request.instruction.is_empty()).then_some(request.instruction);
        let rules = Some(self.settings.rules.set().further().to_vec());
        Ok(StepInput::Analyze { stack, service, log, instruction, mode: Analysis::Service, rules })
    }

    /// The report of an ended step.
    pub(super) async fn report(&self, task: TaskId) -> Result<Report> {
        let record = self.cluster.store.get(Aggregate::Task, &task.to_string()).await?;
        let result = record.and_then(|record| record.row.result);
        report_of(result.as_deref().unwrap_or_default())
    }

    pub(super) async fn step_ended(&mut self, id: RunId, ended: &Ended) {
        let Some(kind) = self.runs.get(&id).and_then(Run::running_step).map(|step| step.kind) else { return };
        let report = match (&ended.body.reason, ended.end) {
            (Some(reason), _) => failed(&reason.code, &reason.message),
            (None, task::End::TimedOut) => {
                failed(Code::TimedOut.as_str(), "the step took too long and was stopped")
            }
            (None, task::End::Cancelled) => failed(Code::Cancelled.as_str(), "the step was cancelled"),
            (None, _) => report_of(ended.result.as_deref().unwrap_or_default())
                .unwrap_or_else(|error| failed(Code::StepFailed.as_str(), &error.message)),
        };
        if let Err(error) = self.keep(id, kind, ended.task, &report).await {
            // The run goes on to its true end; what it leaves behind is less.
            tracing::error!(run = %id, %error, "artifacts of a step could not be kept");
        }
        let Some(run) = self.runs.get_mut(&id) else { return };
        let end = StepEnd {
            ok: report.ok,
            code: report.code,
            message: report.message,
            shown: report.failure.is_some(),
            restored: report.restored,
            image_equal: report.image_equal,
            promotion: report.promotion,
        };
        run.step_ended(now(), kind, end);
        self.save_logged(id).await;
        self.advance(id).await;
        self.advance_boxed().await;
    }

    /// Keeps a step's log and what else it brought.
    async fn keep(&mut self, id: RunId, kind: StepKind, task: TaskId, report: &Report) -> Result<()> {
        let log = artifacts::log_of(&self.cluster, task).await?;
        self.keep_file(id, &format!("{}.log", kind.as_str()), log).await?;
        for artifact in &report.artifacts {
            self.keep_text(id, &artifact.name, artifact.content.clone()).await?;
        }
        Ok(())
    }

    pub(super) async fn keep_text(&mut self, id: RunId, name: &str, text: String) -> Result<()> {
        self.keep_file(id, name, text.into_bytes()).await
    }

    /// Under the name that it has in this attempt.
    async fn keep_file(&mut self, id: RunId, name: &str, content: Vec<u8>) -> Result<()> {
        if let Some(run) = self.runs.get_mut(&id) {
            let artifact = artifacts::store(&self.blobs, &run.artifact_name(name), content).await?;
            run.artifact(artifact);
        }
        Ok(())
    }

    /// Steps whose tasks ended unseen, or were never submitted: a restart came between.
    pub(super) async fn catch_up(&mut self) {
        let open: Vec<(RunId, StepKind, TaskId)> = self
            .runs
            .values()
            .filter_map(|run| run.running_step().and_then(|step| Some((run.id, step.kind, step.task?))))
            .collect();
        for (id, kind, task) in open {
            let record = match self.cluster.store.get(Aggregate::Task, &task.to_string()).await {
                Ok(record) => record,
                Err(error) => {
                    tracing::error!(run = %id, %error, "the store cannot say how a step is");
                    continue;
                }
            };
            match record {
                None => {
                    self.tasks.remove(&task);
                    self.start(id, kind).await;
                }
                Some(record) if record.row.ended => {
                    self.tasks.remove(&task);
                    let ended = crate::tasks::ended_of(task, &record);
                    match ended {
                        Ok(ended) => self.step_ended(id, &ended).await,
                        Err(error) => tracing::error!(run = %id, %error, "the end of a step cannot be read"),
                    }
                }
                Some(_) => {}
            }
        }
    }
}

fn failed(code: &str, message: &str) -> Report {
    Report { code: code.to_owned(), message: message.to_owned(), ..Report::default() }
}

pub(in crate::runs) fn report_of(result: &[u8]) -> Result<Report> {
    let outcome =
        v1::Outcome::decode(result).map_err(|_| Error::internal("a step's outcome cannot be read"))?;
    if let Some(error) = outcome.error
        && outcome.step_json.is_empty()
    {
        return Ok(failed(&error.code, &error.message));
    }
    serde_json::from_slice(&outcome.step_json).map_err(|error| {
        Error::new(
            Code::StepFailed,
            format!("the step ended with {} and no report that can be read: {error}", outcome.exit_code),
        )
    })
}
