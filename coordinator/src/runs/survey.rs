//! Checks a stack by what its worker sees of it: a task of its own, beside all runs.

use std::{collections::BTreeSet, time::Duration};

use cooper_common::{
    error::{Code, Error, Result},
    ids::{RunId, TaskId},
    limits,
};
use cooper_core::task;
use cooper_proto::v1;
use cooper_repair::{
    check::{self, Known, Survey},
    step::{Input as StepInput, StackRef},
};
use prost::Message as _;

use super::{Runs, Stack, driver::report_of};
use crate::{
    caller::Caller,
    cluster::durable,
    tasks::{self, Seen},
};

/// Beyond the task's own limit: the worker may have gone.
const PATIENCE: Duration = Duration::from_millis(limits::run::CHECK_MS + 10_000);

impl Runs {
    /// What could be done to each service of a stack, and what is wrong with its policy. `approvers` are the names of
    /// tokens that may approve.
    pub async fn check(
        &self,
        caller: &Caller,
        stack: &str,
        approvers: BTreeSet<String>,
    ) -> Result<v1::CheckStackResponse> {
        let stack = self.stack(caller, stack)?;
        if !stack.online {
            let message =
                format!("worker {}, which has stack {:?}, is not attached", stack.worker, stack.name);
            return Err(Error::new(Code::NoWorker, message));
        }
        let survey = tokio::time::timeout(PATIENCE, self.survey(caller, &stack)).await;
        let survey = survey
            .map_err(|_| Error::new(Code::TimedOut, format!("worker {} did not answer", stack.worker)))??;
        let known = Known {
            stack: &stack.name,
            approvers: Some(approvers),
            operator: Some(&self.settings.policy),
            rules: Some(self.settings.rules.set()),
        };
        let checked = check::check(&survey, &known);
        Ok(v1::CheckStackResponse {
            stack: stack.name,
            errors: checked.problems.iter().filter(|problem| problem.error).count() as u32,
            warnings: checked.problems.iter().filter(|problem| !problem.error).count() as u32,
            check_json: serde_json::to_string(&checked)
                .map_err(|error| Error::internal(error.to_string()))?,
        })
    }

    async fn survey(&self, caller: &Caller, stack: &Stack) -> Result<Survey> {
        let input = StepInput::Check { stack: StackRef { name: stack.name.clone(), dir: stack.dir.clone() } };
        let spec = v1::TaskSpec {
            kind: Some(v1::task_spec::Kind::Step(v1::StepSpec {
                // It belongs to no run, and leaves nothing under this id.
                run_id: RunId::new().to_string(),
                step: "check".to_owned(),
                input_json: serde_json::to_vec(&input).map_err(|error| Error::internal(error.to_string()))?,
            })),
            timeout_ms: limits::run::CHECK_MS,
            ..v1::TaskSpec::default()
        };
        let task = TaskId::new();
        let submit = task::Submit {
            id: task,
            tenant: caller.tenant.clone(),
            key: String::new(),
            kind: task::Kind::Step,
            session: None,
            worker: Some(stack.worker.clone()),
            timeout_ms: limits::run::CHECK_MS,
            output_limit_bytes: limits::run::STEP_LOG_BYTES_MAX,
            priority: 0,
            scheduling: None,
            spec: spec.encode_to_vec().into(),
        };
        let ((), recorded) =
            self.cluster.decide(|core, now| core.submit(now, submit, true).map(|out| ((), out)))?;
        durable(recorded).await?;
        let request = v1::FollowRequest { task_id: task.to_string(), ..v1::FollowRequest::default() };
        let (_, _, mut following) = tasks::follow(&self.cluster, caller, &request).await?;
        while let Some(seen) = following.next().await? {
            let Seen::Ended(ended) = seen else { continue };
            if let Some(reason) = &ended.body.reason {
                let code = Code::parse(&reason.code).unwrap_or(Code::StepFailed);
                return Err(Error::new(code, reason.message.clone()));
            }
            let report = report_of(ended.result.as_deref().unwrap_or_default())?;
            return report.survey.ok_or_else(|| {
                Error::new(Code::parse(&report.code).unwrap_or(Code::StepFailed), report.message)
            });
        }
        Err(Error::new(Code::Unavailable, "the task that looks at the stack was lost sight of"))
    }
}
