//! Runs: asks the core what comes next, gives steps to the worker that owns the stack, plans between analyze and patch.
//!
//! One task drives all runs, one input at a time: repairs are few and long, and this way a run is never in two hands.

mod again;
mod approvals;
mod artifacts;
mod automatic;
mod driver;
mod measures;
mod memory;
pub mod model;
pub mod notify;
mod pause;
mod planner;
mod plans;
mod policy_file;
mod rules;
mod stacks;
mod stats;
mod survey;
mod trouble;

use std::sync::Arc;

use cooper_common::{
    error::{Code, Error, Result},
    ids::RunId,
    limits,
};
use cooper_core::{
    change::Aggregate,
    run::{self, Run},
};
use cooper_proto::v1;
use cooper_repair::OperatorPolicy;
use prost::Message as _;
use tokio::sync::{broadcast, mpsc, oneshot};

pub use self::{
    approvals::{Waiting, may_decide},
    automatic::AutoRepair,
    memory::readable as lesson_readable,
    pause::{Pause, Pauses},
    policy_file::policy_file,
    rules::Rules,
    stacks::{Registering, Stack},
};
use crate::{
    blobs::Blobs,
    caller::Caller,
    check,
    cluster::Cluster,
    store::{Filter, Record, Store},
};

/// Requests that wait for the driver; more wait at their door.
const INPUTS_MAX: usize = 256;
/// Run changes a watcher may lag behind; it reads the run again anyway.
const CHANGES_BUFFERED_MAX: usize = 1024;

/// What repairs go by: settings of the coordinator.
#[derive(Debug, Clone)]
pub struct Settings {
    pub rules: Rules,
    /// How long an approval is waited for; a stack may say less.
    pub approval_ttl_ms: u64,
    /// How often repairs start by themselves.
    pub auto_repair: AutoRepair,
    /// What the operator forbids, or wants to be asked about.
    pub policy: Arc<OperatorPolicy>,
    /// Who is told what a person has to act on.
    pub notify: Option<notify::Settings>,
    /// What is asked where no rule explains a failure.
    pub model: Option<model::Settings>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            rules: Rules::default(),
            approval_ttl_ms: limits::run::APPROVAL_TTL_MS,
            auto_repair: AutoRepair::default(),
            policy: Arc::default(),
            notify: None,
            model: None,
        }
    }
}
/// Steps of one run: of each attempt at most as many as there are kinds.
const PARTS_MAX: usize = 100;

/// A run as recorded.
pub struct Loaded {
    pub run: Run,
    pub updated_ms: i64,
}

/// What a run begins with, beside its request.
#[derive(Debug, Default)]
struct Beginning {
    origin: run::Origin,
    needs_approval: bool,
    /// What a worker saw, if nobody asked.
    trigger: String,
}

/// Where requests about runs go.
pub struct Runs {
    cluster: Arc<Cluster>,
    blobs: Arc<Blobs>,
    settings: Settings,
    inputs: mpsc::Sender<driver::Input>,
    changes: broadcast::Sender<RunId>,
    pub(crate) registering: Registering,
    /// What starts by itself is looked up and recorded before the next is.
    starting: tokio::sync::Mutex<()>,
}

impl Runs {
    /// Starts the driver and takes up the runs that had not ended.
    pub async fn start(cluster: Arc<Cluster>, blobs: Arc<Blobs>, settings: Settings) -> Result<Arc<Self>> {
        cluster.pauses.load(&*cluster.store).await?;
        let (inputs, queue) = mpsc::channel(INPUTS_MAX);
        let changes = broadcast::Sender::new(CHANGES_BUFFERED_MAX);
        let (to_driver, told) = (inputs.downgrade(), changes.clone());
        let (cluster_of, blobs_of, settings_of) = (cluster.clone(), blobs.clone(), settings.clone());
        let driver = driver::Driver::load(cluster_of, blobs_of, settings_of, to_driver, told).await?;
        tokio::spawn(driver.drive(queue));
        let (registering, starting) = (Registering::default(), tokio::sync::Mutex::default());
        Ok(Arc::new(Self { cluster, blobs, settings, inputs, changes, registering, starting }))
    }

    async fn ask<T>(&self, input: impl FnOnce(oneshot::Sender<Result<T>>) -> driver::Input) -> Result<T> {
        let stopping = || Error::new(Code::Unavailable, "the coordinator is stopping");
        let (answer, answered) = oneshot::channel();
        self.inputs.send(input(answer)).await.map_err(|_| stopping())?;
        answered.await.unwrap_or_else(|_| Err(stopping()))
    }

    pub async fn create(&self, caller: &Caller, request: v1::CreateRunRequest) -> Result<Loaded> {
        check::idempotency_key(&request.idempotency_key)?;
        check::size("log", request.log.len(), limits::request::LOG_BYTES_MAX)?;
        check::size("instruction", request.instruction.len(), limits::request::INSTRUCTION_BYTES_MAX)?;
        if request.service.is_empty() {
            return Err(Error::invalid("service is missing"));
        }
        if request.recurring > limits::run::RECURRING_MAX {
            return Err(Error::invalid(format!("recurring is at most {}", limits::run::RECURRING_MAX)));
        }
        if request.recurring > 0 && (!request.automatic || request.log.is_empty()) {
            return Err(Error::invalid("recurring goes with automatic and a log"));
        }
        match self.undo_asked(&request) {
            Some(undo) => self.undo(caller, undo).await,
            None => self.begin(caller, request, Beginning::default()).await,
        }
    }

    /// Starts a run, or finds the one that was started with this key.
    async fn begin(
        &self,
        caller: &Caller,
        request: v1::CreateRunRequest,
        beginning: Beginning,
    ) -> Result<Loaded> {
        check::idempotency_key(&request.idempotency_key)?;
        let key = &request.idempotency_key;
        let _turn = self.cluster.keys.turn(Aggregate::Run, &caller.tenant, key).await;
        if !key.is_empty()
            && let Some(known) = self.cluster.store.by_key(Aggregate::Run, Some(&caller.tenant), key).await?
        {
            let same = known.row.spec == Some(request.encode_to_vec());
            let known = self.get(caller, &known.id).await?;
            return match same && known.run.body.origin == beginning.origin {
                true => Ok(known),
                false => Err(check::other_request(key)),
            };
        }
        self.cluster.space.admit()?;
        let stack = self.stack(caller, &request.stack)?;
        let drained = |core: &cooper_core::cluster::Cluster| {
            core.worker(&stack.worker).is_some_and(|worker| worker.body.drain.is_some() || worker.stopping)
        };
        if self.cluster.look(drained) {
            return Err(Error::new(
                Code::WorkerDraining,
                format!("worker {}, which has stack {:?}, is being drained", stack.worker, stack.name),
            )
            .with_hint("wait for `cooper undrain`"));
        }
        let priority = check::priority(request.priority)?;
        let mut _alone = None;
        if request.automatic {
            _alone = Some(self.starting.lock().await);
            self.admit_automatic(caller, &stack, &request.service, &beginning.trigger).await?;
        }
        let id = RunId::new();
        let create = run::Create {
            id,
            tenant: caller.tenant.clone(),
            key: key.clone(),
            stack: stack.name,
            dir: stack.dir,
            worker: stack.worker.to_string(),
            service: request.service.clone(),
            instruction: request.instruction.clone(),
            dry_run: request.dry_run,
            automatic: request.automatic,
            trigger: beginning.trigger,
            recurring: request.recurring,
            priority,
            origin: beginning.origin,
            needs_approval: beginning.needs_approval,
            spec: request.encode_to_vec(),
        };
        self.ask(|answer| driver::Input::Create { create, answer }).await?;
        metrics::counter!("cooper_runs_created_total").increment(1);
        self.get(caller, &id.to_string()).await
    }

    /// The tenant's run; another tenant's is absent (I10).
    pub async fn get(&self, caller: &Caller, id: &str) -> Result<Loaded> {
        let missing = || Error::new(Code::RunNotFound, format!("there is no run {id:?}"));
        let parsed: RunId = id.parse().map_err(|_| missing())?;
        let record = self.cluster.store.get(Aggregate::Run, &parsed.to_string()).await?;
        let record = record.filter(|record| record.row.tenant == *caller.tenant).ok_or_else(missing)?;
        load(&*self.cluster.store, record).await
    }

    pub async fn list(
        &self,
        caller: &Caller,
        page: Option<v1::Page>,
        states: Vec<String>,
    ) -> Result<(Vec<Loaded>, String)> {
        let filter = Filter { tenant: Some(caller.tenant.to_string()), states, ..check::page(page)? };
        let page = self.cluster.store.list(Aggregate::Run, filter).await?;
        let mut runs = Vec::with_capacity(page.records.len());
        for record in page.records {
            runs.push(load(&*self.cluster.store, record).await?);
        }
        Ok((runs, page.next.map(|cursor| cursor.to_string()).unwrap_or_default()))
    }

    pub async fn decide(&self, caller: &Caller, request: v1::DecideRunRequest) -> Result<Loaded> {
        check::size("comment", request.comment.len(), limits::request::COMMENT_BYTES_MAX)?;
        let run = self.get(caller, &request.run_id).await?.run.id;
        let (caller_of, id) = (caller.clone(), request.run_id.clone());
        self.ask(|answer| driver::Input::Decide { run, caller: caller_of, request, answer }).await?;
        self.get(caller, &id).await
    }

    pub async fn cancel(&self, caller: &Caller, id: &str) -> Result<Loaded> {
        let run = self.get(caller, id).await?.run.id;
        self.ask(|answer| driver::Input::Cancel { run, answer }).await?;
        self.get(caller, id).await
    }

    /// Runs whose recorded state changed, from now on.
    pub fn changes(&self) -> broadcast::Receiver<RunId> {
        self.changes.subscribe()
    }

    pub async fn read_artifact(&self, caller: &Caller, id: &str, name: &str) -> Result<bytes::Bytes> {
        let loaded = self.get(caller, id).await?;
        let artifact =
            loaded.run.body.artifacts.iter().find(|artifact| artifact.name == name).ok_or_else(|| {
                Error::new(Code::ArtifactNotFound, format!("run {id} has no artifact {name:?}"))
            })?;
        artifacts::read(&self.blobs, &artifact.digest).await
    }
}

/// A run with its steps and approvals.
pub(crate) async fn load(store: &dyn Store, record: Record) -> Result<Loaded> {
    let unreadable = || Error::internal(format!("the stored run {} cannot be read", record.id));
    let of_run = || Filter { parent: Some(record.id.clone()), limit: PARTS_MAX, ..Filter::default() };
    let steps = store.list(Aggregate::Step, of_run()).await?;
    let approvals = store.list(Aggregate::Approval, of_run()).await?;
    let steps = steps.records.into_iter().map(|step| (step.id, step.version, step.row)).collect();
    let approvals = approvals.records.into_iter().map(|approval| (approval.version, approval.row)).collect();
    let id = record.id.parse().map_err(|_| unreadable())?;
    let updated_ms = record.row.updated_ms;
    let run =
        Run::restore(id, record.version, record.row.clone(), steps, approvals).map_err(|_| unreadable())?;
    Ok(Loaded { run, updated_ms })
}
