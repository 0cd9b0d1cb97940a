//! Drives runs: performs what `core::run` says is next, and tells it how steps ended.

mod planning;
mod steps;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use cooper_common::{
    error::{Code, Error, Result},
    ids::{RunId, TaskId},
    token::Scope,
};
use cooper_core::{
    change::Aggregate,
    run::{Approver, Create, Next, Run, State},
};
use cooper_proto::v1;
use cooper_repair::step::StackRef;
use tokio::sync::{broadcast, mpsc, oneshot};

pub(super) use self::steps::report_of;
use super::{
    Settings, approvals, artifacts, measures,
    model::{Answered, Model},
    stats,
};
use crate::{
    blobs::Blobs,
    caller::Caller,
    cluster::{Cluster, now},
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
        let numbers = format!("{:#}\n", measures::of(run, &measured, now().wall_ms));
        match artifacts::store(&self.blobs, measures::NAME, numbers.into_bytes()).await {
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
}

fn stack_of(run: &Run) -> StackRef {
    StackRef { name: run.body.stack.clone(), dir: run.body.dir.clone() }
}
