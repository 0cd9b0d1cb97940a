//! From evidence to a plan that is recorded: asks the planner, the model where there is one, and what was learned.

use cooper_common::{
    clock,
    error::{Code, Error, Result},
    ids::RunId,
};
use cooper_core::{
    change::{Aggregate, Change, Row},
    run::{Origin, Run, State, StepKind},
};
use cooper_repair::{Evidence, Past, Policy, RepairPlan, proposal::Question, step::StackRef};

use super::{
    super::{automatic, memory, planner},
    Driver, Input, stack_of,
};
use crate::{cluster::now, store::Durability};

/// What a model answered, or why it did not.
type Said = std::result::Result<String, String>;

impl Driver {
    /// `said`: what a model answered, or why it did not.
    pub(super) async fn plan(&mut self, id: RunId, said: Option<Said>) {
        let planned = match self.make_plan(id, said).await {
            Ok(planner::Answer::Refused { code, mut message, cause, ask: Some(question) }) => {
                match self.ask_model(id, *question).await {
                    Ok(true) => return,
                    Ok(false) => {}
                    Err(why) => message = format!("{message}; {why}"),
                }
                Ok(planner::Answer::Refused { code, message, cause, ask: None })
            }
            other => other,
        };
        let Some(run) = self.runs.get_mut(&id) else { return };
        match planned {
            Ok(planner::Answer::Plan { plan, max_attempts }) => {
                let planned = planner::planned(&plan, max_attempts, &stack_of(run), &self.settings);
                run.planned(now(), planned);
            }
            Ok(planner::Answer::Refused { code, message, cause, .. }) => {
                if let Some((rule, cause)) = cause {
                    (run.body.rule_id, run.body.cause) = (rule, cause);
                }
                run.refuse(code, message);
            }
            Err(error) => run.fail(error.code.as_str(), error.message),
        }
        self.save_logged(id).await;
        self.advance_boxed().await;
    }

    /// Asks the model, if there is one. What it may cost is recorded before it is asked.
    async fn ask_model(&mut self, id: RunId, question: Question) -> std::result::Result<bool, String> {
        let Some(model) = self.model.clone() else { return Ok(false) };
        let call = model.reserve(&question)?;
        let Some(run) = self.runs.get_mut(&id) else { return Ok(false) };
        run.asks(call.clone());
        if let Err(error) = self.save(id).await {
            return Err(format!("the model was not asked: {error}"));
        }
        self.asking.insert(id);
        let inputs = self.inputs.clone();
        tokio::spawn(async move {
            let answered = model.ask(&question, call).await;
            if let Some(inputs) = inputs.upgrade() {
                let _ = inputs.send(Input::Answered { run: id, answered }).await;
            }
        });
        Ok(true)
    }

    async fn make_plan(&mut self, id: RunId, said: Option<Said>) -> Result<planner::Answer> {
        let run = self.runs.get(&id).ok_or_else(|| Error::internal("the run is gone"))?;
        let attempt = run.body.attempt;
        let task = run.step(StepKind::Analyze).and_then(|step| step.task);
        let task = task.ok_or_else(|| Error::internal("the analyze step has no task"))?;
        let stack = stack_of(run);
        let report = self.report(task).await?;
        if let Origin::Retry { of, from: Some(from) } = run.body.origin {
            let plan = self.adopted(of, from).await?;
            return self.keep_plan(id, plan, None).await;
        }
        let evidence =
            report.evidence.ok_or_else(|| Error::internal("the analyze step brought no evidence"))?;
        if let Origin::Undo { of } = run.body.origin {
            let (of, service) = (of.to_string(), &run.body.service);
            let plan = RepairPlan::undo(&stack.name, &evidence.model, service, &of, report.changes)
                .map_err(|error| Error::new(Code::PolicyRefused, error.to_string()))?;
            let patch: String = plan.edits.iter().map(|change| change.diff.as_str()).collect();
            let own = Policy::of(&evidence.model, &evidence.service).ok();
            return self.keep_plan(id, self.tightened(plan, &stack, own.as_ref()), Some(patch)).await;
        }
        let past = self.past(run, &evidence).await?;
        let trusted = self.model.as_ref().is_some_and(|model| model.trusted());
        let rules = self.settings.rules.set();
        let case = planner::Case { rules, stack: &stack, evidence: &evidence, attempt, past: &past };
        let mut answer = match said {
            None => planner::plan(&case),
            Some(said) => planner::proposed(&case, said, trusted),
        };
        match &mut answer {
            // How the service is comes first: that it is healthy explains why nothing explains a failure.
            planner::Answer::Refused { message, .. } if attempt == 1 => {
                *message = format!("{}: {message}", report.message);
            }
            planner::Answer::Refused { .. } => {}
            planner::Answer::Plan { plan, max_attempts } => {
                let own = Policy::of(&evidence.model, &evidence.service).ok();
                let plan = self.tightened((**plan).clone(), &stack, own.as_ref());
                if let Some(run) = self.runs.get(&id).filter(|run| run.body.automatic)
                    && let Some(own) = &own
                    && let Some(error) = automatic::against(
                        &self.cluster,
                        &run.tenant,
                        &stack.name,
                        &evidence.service,
                        own,
                        &self.settings.policy,
                    )
                {
                    let Error { code, message, .. } = error;
                    return Ok(planner::Answer::Refused { code, message, cause: None, ask: None });
                }
                if let Some(refused) = self.not_recurring(id, &plan).await? {
                    return Ok(refused);
                }
                let patch = planner::patch(&plan, &evidence, &stack);
                let max_attempts = *max_attempts;
                return match self.keep_plan(id, plan, Some(patch)).await? {
                    planner::Answer::Plan { plan, .. } => Ok(planner::Answer::Plan { plan, max_attempts }),
                    refused @ planner::Answer::Refused { .. } => Ok(refused),
                };
            }
        }
        Ok(answer)
    }

    /// A failure that is to be repaired when it was posted often enough, and was not yet.
    async fn not_recurring(&mut self, id: RunId, plan: &RepairPlan) -> Result<Option<planner::Answer>> {
        let Some(run) = self.runs.get_mut(&id) else { return Ok(None) };
        run.body.fingerprint.clone_from(&plan.diagnosis.fingerprint);
        let (wanted, attempt) = (run.body.recurring, run.body.attempt);
        if wanted < 2 || attempt > 1 {
            return Ok(None);
        }
        let run = &*run;
        let posted = automatic::posted(&*self.cluster.store, run, &run.body.fingerprint).await?;
        let cause = Some((plan.diagnosis.rule_id.clone(), plan.diagnosis.cause.clone()));
        let message = format!("this failure was posted {posted} of {wanted} times");
        Ok((posted < wanted).then_some(planner::Answer::Refused {
            code: Code::NotRecurring,
            message,
            cause,
            ask: None,
        }))
    }

    fn tightened(&self, mut plan: RepairPlan, stack: &StackRef, own: Option<&Policy>) -> RepairPlan {
        if let Some(own) = own {
            self.settings.policy.tighten(&mut plan, &stack.dir, own);
        }
        plan
    }

    /// Records a plan, and keeps what people read of it. For one attempt, unless it is told otherwise.
    async fn keep_plan(
        &mut self,
        id: RunId,
        plan: RepairPlan,
        patch: Option<String>,
    ) -> Result<planner::Answer> {
        let plan = self.record_plan(id, &plan).await?;
        self.keep_text(id, "plan.json", plan.to_json()).await?;
        if let Some(patch) = patch.filter(|patch| !patch.is_empty()) {
            self.keep_text(id, "patch.diff", patch).await?;
        }
        Ok(planner::Answer::Plan { plan: Box::new(plan), max_attempts: 1 })
    }

    /// The plan that a run ended with, from a step on.
    async fn adopted(&self, of: RunId, from: StepKind) -> Result<RepairPlan> {
        let gone = || Error::new(Code::RunNotFound, format!("run {of} and its plan are not kept any more"));
        let run = self.recorded(of).await?.ok_or_else(gone)?;
        let plan = self.plan_row(of, run.body.attempt).await?.ok_or_else(gone)?;
        Ok(plan.from_step(match from {
            StepKind::Verify => cooper_repair::plan::StepKind::Verify,
            _ => cooper_repair::plan::StepKind::Promote,
        }))
    }

    /// A run as it was recorded, whether it has ended or not.
    async fn recorded(&self, id: RunId) -> Result<Option<Run>> {
        let store = &*self.cluster.store;
        match store.get(Aggregate::Run, &id.to_string()).await? {
            Some(record) => Ok(Some(super::super::load(store, record).await?.run)),
            None => Ok(None),
        }
    }

    /// What this run has tried, and what others have learned.
    async fn past(&self, run: &Run, evidence: &Evidence) -> Result<Past> {
        let (store, rules) = (&*self.cluster.store, self.settings.rules.set());
        let learned = memory::recall(store, rules, run, evidence).await?;
        Ok(Past { tried: self.plans(run, run.body.attempt - 1).await?, learned })
    }

    /// The plans of a run's first attempts.
    async fn plans(&self, run: &Run, attempts: u32) -> Result<Vec<RepairPlan>> {
        let mut plans = Vec::new();
        for attempt in 1..=attempts {
            plans.extend(self.plan_row(run.id, attempt).await?);
        }
        Ok(plans)
    }

    /// Keeps what a run that ends has learned. Before its end is recorded: what comes between repeats both.
    pub(super) async fn learn(&self, run: &Run) -> Result<()> {
        let store = &*self.cluster.store;
        if let Origin::Undo { of } = run.body.origin {
            let undone = self.recorded(of).await?.filter(|_| run.body.state == State::Succeeded);
            let Some(undone) = undone else { return Ok(()) };
            let plans = self.plans(&undone, undone.body.attempt).await?;
            return memory::unlearn(store, &undone, run, &plans).await;
        }
        memory::learn(store, run, &self.plans(run, run.body.attempt).await?).await
    }

    /// The plan is a row of its own, before anything is done by it. One that was recorded before a restart stays.
    async fn record_plan(&self, id: RunId, plan: &RepairPlan) -> Result<RepairPlan> {
        let run = self.runs.get(&id).ok_or_else(|| Error::internal("the run is gone"))?;
        if let Some(recorded) = self.plan_row(id, run.body.attempt).await? {
            return Ok(recorded);
        }
        let mut plan = plan.clone();
        if run.body.needs_approval {
            let approvers = run.approval().map(|approval| approval.approvers.as_slice());
            plan.require_approval("what came before it needed an approval", approvers.unwrap_or_default());
        }
        let change = Change {
            aggregate: Aggregate::Plan,
            id: plan_id(id, run.body.attempt),
            expected: 0,
            row: Row {
                tenant: run.tenant.to_string(),
                state: plan.hash(),
                ended: true,
                parent: id.to_string(),
                created_ms: clock::wall_ms(),
                updated_ms: clock::wall_ms(),
                body: plan.to_json(),
                ..Row::default()
            },
            events: Vec::new(),
            output: Vec::new(),
        };
        self.cluster.store.commit_wait(vec![change], Durability::Full).await?;
        Ok(plan)
    }

    async fn plan_row(&self, id: RunId, attempt: u32) -> Result<Option<RepairPlan>> {
        let record = self.cluster.store.get(Aggregate::Plan, &plan_id(id, attempt)).await?;
        let plan = record.map(|record| RepairPlan::from_json(&record.row.body)).transpose();
        plan.map_err(|error| Error::internal(error.to_string()))
    }

    /// The plan of the attempt that goes on.
    pub(super) async fn stored_plan(&self, run: &Run) -> Result<RepairPlan> {
        let id = run.id;
        let plan = self.plan_row(id, run.body.attempt).await?;
        let plan = plan.ok_or_else(|| Error::internal(format!("the plan of run {id} is gone")))?;
        if plan.hash() != run.body.plan_hash {
            return Err(Error::internal(format!(
                "the stored plan of run {id} is not the one that was decided on"
            )));
        }
        Ok(plan)
    }
}

fn plan_id(run: RunId, attempt: u32) -> String {
    format!("{run}/{attempt}")
}
