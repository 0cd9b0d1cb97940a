//! Drives runs: performs what `core::run` says is next, and tells it how steps ended.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use cooper_common::{
    clock,
    error::{Code, Error, Result},
    ids::{RunId, TaskId},
    limits,
    token::Scope,
};
use cooper_core::{
    change::{Aggregate, Change, Row},
    cluster::Ended,
    run::{Approver, Create, Next, Origin, Run, State, StepEnd, StepKind},
    task,
};
use cooper_proto::v1;
use cooper_repair::{
    Evidence, Past, Policy, RepairPlan,
    proposal::Question,
    step::{Analysis, Input as StepInput, Report, StackRef},
};
use prost::Message as _;
use tokio::sync::{broadcast, mpsc, oneshot};

use super::{
    Settings, approvals, artifacts, automatic, memory, metrics,
    model::{Answered, Model},
    planner, stats,
};
use crate::{
    blobs::Blobs,
    caller::Caller,
    cluster::{Cluster, durable, now},
    hub::Told,
    store::Durability,
};

pub enum Input {
    Create {
        create: Create,
        answer: oneshot::Sender<Result<()>>,
    },
    Decide {
        run: RunId,
        caller: Caller,
        request: v1::DecideRunRequest,
        answer: oneshot::Sender<Result<()>>,
    },
    Cancel {
        run: RunId,
        answer: oneshot::Sender<Result<()>>,
    },
    /// A language model was asked about a run.
    Answered {
        run: RunId,
        answered: Answered,
    },
}

pub struct Driver {
    cluster: Arc<Cluster>,
    blobs: Arc<Blobs>,
    settings: Settings,
    model: Option<Arc<Model>>,
    /// Runs whose question to the model is on its way.
    asking: BTreeSet<RunId>,
    /// To this driver, from what works beside it.
    inputs: mpsc::WeakSender<Input>,
    changes: broadcast::Sender<RunId>,
    /// Runs that have not ended, oldest first: they get their service's lock in this order.
    runs: BTreeMap<RunId, Run>,
    /// Step tasks on their way.
    tasks: BTreeMap<TaskId, RunId>,
}

impl Driver {
    /// Takes up what had not ended.
    pub async fn load(
        cluster: Arc<Cluster>,
        blobs: Arc<Blobs>,
        settings: Settings,
        inputs: mpsc::WeakSender<Input>,
        changes: broadcast::Sender<RunId>,
    ) -> Result<Self> {
        let model = match settings.model.clone() {
            Some(settings) => Some(Arc::new(Model::load(settings, &*cluster.store).await?)),
            None => None,
        };
        let mut driver = Self {
            cluster,
            blobs,
            settings,
            model,
            asking: BTreeSet::new(),
            inputs,
            changes,
            runs: BTreeMap::new(),
            tasks: BTreeMap::new(),
        };
        for record in driver.cluster.store.live(Aggregate::Run).await? {
            let run = super::load(&*driver.cluster.store, record).await?.run;
            if let Some(task) = run.running_step().and_then(|step| step.task) {
                driver.tasks.insert(task, run.id);
            }
            driver.runs.insert(run.id, run);
        }
        Ok(driver)
    }

    pub async fn drive(mut self, mut inputs: mpsc::Receiver<Input>) {
        let mut ended = self.cluster.hub.watch_ended();
        // Steps that ended while nobody drove.
        self.catch_up().await;
        self.advance_all().await;
        loop {
            tokio::select! {
                input = inputs.recv() => match input {
                    Some(input) => self.input(input).await,
                    None => return,
                },
                received = ended.recv() => match received {
                    Ok(Told { ended, .. }) => {
                        if let Some(run) = self.tasks.remove(&ended.task) {
                            self.step_ended(run, &ended).await;
                        }
                    }
                    Err(broadcast::error::RecvError::Lagged(_)) => self.catch_up().await,
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                () = approvals::due(&self.runs) => self.expire().await,
            }
        }
    }

    async fn input(&mut self, input: Input) {
        match input {
            Input::Create { create, answer } => {
                let run = Run::new(now(), create);
                let id = run.id;
                self.runs.insert(id, run);
                let saved = self.save(id).await;
                if saved.is_err() {
                    self.runs.remove(&id);
                }
                let _ = answer.send(saved);
                self.advance_all().await;
            }
            Input::Decide { run, caller, request, answer } => {
                let decided = self.decide(run, &caller, &request).await;
                let _ = answer.send(decided);
                self.advance(run).await;
                self.advance_all().await;
            }
            Input::Cancel { run, answer } => {
                let task = self.runs.get_mut(&run).and_then(Run::cancel);
                let saved = self.save(run).await;
                if let Some(task) = task {
                    let _ = self.cluster.decide(|core, now| core.cancel(now, task).map(|out| ((), out)));
                }
                let _ = answer.send(saved);
                self.advance(run).await;
                self.advance_all().await;
            }
            Input::Answered { run: id, answered } => {
                self.asking.remove(&id);
                if let Some(run) = self.runs.get_mut(&id) {
                    run.asked(answered.call);
                    self.plan(id, Some(answered.answer)).await;
                    self.advance(id).await;
                }
                self.advance_all().await;
            }
        }
    }

    async fn decide(&mut self, id: RunId, caller: &Caller, request: &v1::DecideRunRequest) -> Result<()> {
        let Some(run) = self.runs.get_mut(&id) else {
            return Err(Error::new(Code::NotAwaitingApproval, format!("run {id} has ended")));
        };
        let approver = Approver {
            name: &caller.name,
            may_approve: matches!(caller.scope, Scope::Admin | Scope::Operator),
        };
        run.decide(now(), request.approve, approver, &request.comment, &request.plan_hash)?;
        self.save(id).await
    }

    async fn expire(&mut self) {
        let due: Vec<RunId> =
            self.runs.values_mut().filter_map(|run| run.expire(now()).then_some(run.id)).collect();
        for id in due {
            self.save_logged(id).await;
        }
        self.advance_boxed().await;
    }

    /// Records a run; ended ones are dropped from memory.
    async fn save(&mut self, id: RunId) -> Result<()> {
        if let Some(run) = self.runs.get(&id).filter(|run| run.body.state.ended())
            && let Err(error) = self.learn(run).await
        {
            // The run's end does not depend on it.
            tracing::warn!(run = %id, %error, "what a run has learned could not be kept");
        }
        self.keep_metrics(id).await;
        let Some(run) = self.runs.get_mut(&id) else { return Ok(()) };
        let changes = run.take_changes(now());
        let ended = run.body.state.ended();
        if let Err(error) = self.cluster.store.commit_wait(changes, Durability::Full).await {
            // The run in memory is ahead of its row, for good.
            let error = Error::from(error);
            self.cluster.break_down(&error);
            return Err(error);
        }
        if ended && let Some(run) = self.runs.remove(&id) {
            stats::count(&run, now().wall_ms);
        }
        let _ = self.changes.send(id);
        Ok(())
    }

    /// Of a run that ends, in numbers. Its end does not depend on them.
    async fn keep_metrics(&mut self, id: RunId) {
        let Some(run) = self.runs.get(&id).filter(|run| run.body.state.ended()) else { return };
        let mut measured = Vec::new();
        for step in &run.steps {
            let Some(task) = step.task else { continue };
            if let Ok(report) = self.report(task).await
                && !report.measured.is_empty()
            {
                measured.push((step.attempt, step.kind, report.measured));
            }
        }
        let numbers = format!("{:#}\n", metrics::of(run, &measured, now().wall_ms));
        match artifacts::store(&self.blobs, metrics::NAME, numbers.into_bytes()).await {
            Ok(artifact) => {
                if let Some(run) = self.runs.get_mut(&id) {
                    run.artifact(artifact);
                }
            }
            Err(error) => tracing::warn!(run = %id, %error, "the numbers of a run could not be kept"),
        }
    }

    async fn save_logged(&mut self, id: RunId) {
        if let Err(error) = self.save(id).await {
            // What is loaded anew goes on from what is recorded.
            tracing::error!(run = %id, %error, "a run could not be recorded");
        }
    }

    async fn advance_all(&mut self) {
        let ids: Vec<RunId> = self.runs.keys().copied().collect();
        for id in ids {
            self.advance(id).await;
        }
    }

    /// Does what is next for a run, until it has to wait.
    async fn advance(&mut self, id: RunId) {
        while let Some(run) = self.runs.get(&id) {
            if run.body.state == State::Queued {
                if let Some((holder, position)) = self.holder(run) {
                    if self.runs.get_mut(&id).is_some_and(|run| run.wait_for(holder, position)) {
                        self.save_logged(id).await;
                    }
                    return;
                }
                if let Some(run) = self.runs.get_mut(&id) {
                    run.begin();
                }
                self.save_logged(id).await;
                continue;
            }
            match run.next() {
                Next::Wait | Next::Done => return,
                Next::Plan if self.asking.contains(&id) => return,
                Next::Plan => self.plan(id, None).await,
                Next::Start(kind) => {
                    self.start(id, kind).await;
                    return;
                }
            }
        }
    }

    /// One run at a time works on a service: who has begun, then by priority, then by age. Whom a run waits for, and how many
    /// come before it.
    fn holder(&self, run: &Run) -> Option<(RunId, u32)> {
        let lock = run.lock();
        let mut queue: Vec<&Run> = self.runs.values().filter(|other| other.lock() == lock).collect();
        queue.sort_by_key(|run| (run.body.state == State::Queued, Reverse(run.body.priority), run.id));
        let position = queue.iter().position(|other| other.id == run.id).filter(|position| *position > 0)?;
        Some((queue[0].id, u32::try_from(position).unwrap_or(u32::MAX)))
    }

    /// `said`: what a model answered, or why it did not.
    async fn plan(&mut self, id: RunId, said: Option<Said>) {
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

    /// A run that ended in planning gives its lock to the next.
    fn advance_boxed(&mut self) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            let queued: Vec<RunId> =
                self.runs.values().filter(|run| run.body.state == State::Queued).map(|run| run.id).collect();
            for id in queued {
                self.advance(id).await;
            }
        })
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
            Some(record) => Ok(Some(super::load(store, record).await?.run)),
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
    async fn learn(&self, run: &Run) -> Result<()> {
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
    async fn stored_plan(&self, run: &Run) -> Result<RepairPlan> {
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

    /// Gives a step to the worker that owns the stack.
    async fn start(&mut self, id: RunId, kind: StepKind) {
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
    async fn report(&self, task: TaskId) -> Result<Report> {
        let record = self.cluster.store.get(Aggregate::Task, &task.to_string()).await?;
        let result = record.and_then(|record| record.row.result);
        report_of(result.as_deref().unwrap_or_default())
    }

    async fn step_ended(&mut self, id: RunId, ended: &Ended) {
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

    async fn keep_text(&mut self, id: RunId, name: &str, text: String) -> Result<()> {
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
    async fn catch_up(&mut self) {
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

/// What a model answered, or why it did not.
type Said = std::result::Result<String, String>;

fn plan_id(run: RunId, attempt: u32) -> String {
    format!("{run}/{attempt}")
}

fn stack_of(run: &Run) -> StackRef {
    StackRef { name: run.body.stack.clone(), dir: run.body.dir.clone() }
}

fn failed(code: &str, message: &str) -> Report {
    Report { code: code.to_owned(), message: message.to_owned(), ..Report::default() }
}

pub(super) fn report_of(result: &[u8]) -> Result<Report> {
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
