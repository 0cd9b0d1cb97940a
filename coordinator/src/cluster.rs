//! Performs what the core decides: under one lock ask the core and queue its changes, then, once they are durable, let
//! the effects happen in that same order (I2).

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use cooper_common::{
    clock,
    error::{Code, Error, Result},
    ids::SessionId,
    limits,
};
use cooper_core::{
    Now, cluster,
    cluster::{Effect, Out},
    lease::Timing,
    session::Session,
    task::{self, Task},
    worker::Worker,
};
use tokio::sync::{Notify, broadcast, oneshot};

use crate::{
    fleet::Fleet,
    hub::Hub,
    keys::Keys,
    output::OutputLog,
    secrets::{Granted, Secrets},
    sessions,
    store::{Batch, Durability, RESTORED_EPOCH, Store},
    upkeep::Space,
};

/// Session changes that a waiter may lag behind; it asks the core again then (I12).
const SESSIONS_BUFFERED_MAX: usize = 4096;

/// Places in the store's queue that requests of clients leave free.
const ROOM_FOR_WORKERS: usize = limits::store::WRITER_QUEUE_MAX / 4;
/// The writer frees thousands of places in this time.
const ROOM_POLL: Duration = Duration::from_millis(2);

/// The cluster and everything its decisions reach.
pub struct Cluster {
    core: Mutex<cluster::Cluster>,
    pub store: Arc<dyn Store>,
    pub fleet: Arc<Fleet>,
    pub ports: Arc<crate::ports::Open>,
    pub hub: Hub,
    pub keys: Keys,
    pub output: OutputLog,
    pub timing: Timing,
    pub space: Space,
    /// Whose work does not start by itself.
    pub pauses: crate::runs::Pauses,
    pub secrets: Arc<Secrets>,
    /// What sessions have that do not say so.
    pub defaults: sessions::Defaults,
    session_changes: broadcast::Sender<SessionId>,
    /// Room for a session may have appeared.
    pub capacity: Notify,
    /// Something changed that the stock of spares has to follow.
    pub stock: Notify,
    /// Sessions may have to be packed or restored.
    pub transfers: Notify,
    /// The store refused: what memory holds was never recorded, and all of it has to be loaded anew.
    broken: tokio::sync::watch::Sender<Option<Error>>,
}

/// Durable once awaited.
pub type Recorded = oneshot::Receiver<Result<()>>;

impl Cluster {
    /// Loads what the store remembers, under a new epoch.
    pub async fn load(
        store: Arc<dyn Store>,
        output: OutputLog,
        timing: Timing,
        quota: cluster::Quota,
        defaults: sessions::Defaults,
        secrets: Arc<Secrets>,
    ) -> Result<Arc<Self>> {
        use cooper_core::change::Aggregate;
        let epoch = store.next_epoch().await?;
        let restored = store.meta_get(RESTORED_EPOCH).await?.and_then(|text| text.parse().ok()).unwrap_or(0);
        let now = now();
        let unreadable = |what: &str, id: &str| {
            Error::new(Code::DataUnusable, format!("the stored {what} {id} cannot be read"))
                .with_hint("see `cooper store check`; restore a backup, or use the version that wrote it")
        };
        let mut workers = Vec::new();
        for record in store.live(Aggregate::Worker).await? {
            let worker = Worker::restore(now, &record.id, record.version, record.row);
            workers.push(worker.map_err(|_| unreadable("worker", &record.id))?);
        }
        let mut sessions = Vec::new();
        for record in store.live(Aggregate::Session).await? {
            let id = record.id.parse().map_err(|_| unreadable("session", &record.id))?;
            let session = Session::restore(now, id, record.version, record.row);
            sessions.push(session.map_err(|_| unreadable("session", &record.id))?);
        }
        let mut tasks = Vec::new();
        for record in store.live(Aggregate::Task).await? {
            let id = record.id.parse().map_err(|_| unreadable("task", &record.id))?;
            let task = Task::restore(now, id, record.version, record.row);
            let mut task = task.map_err(|_| unreadable("task", &record.id))?;
            // Before a restore "assigned" was the last that this copy heard of it: it may have started, and even ended.
            if task.body.state == task::State::Assigned && task.body.fence.epoch < restored {
                task.body.state = task::State::Running;
            }
            tasks.push(task);
        }
        tracing::info!(
            epoch,
            workers = workers.len(),
            sessions = sessions.len(),
            tasks = tasks.len(),
            "loaded"
        );
        let core = cluster::Cluster::restore(now, epoch, timing, workers, sessions, tasks).with_quota(quota);
        Ok(Arc::new(Self {
            core: Mutex::new(core),
            store,
            fleet: Arc::default(),
            ports: Arc::default(),
            hub: Hub::default(),
            keys: Keys::default(),
            output,
            timing,
            space: Space::default(),
            pauses: Default::default(),
            secrets,
            defaults,
            session_changes: broadcast::Sender::new(SESSIONS_BUFFERED_MAX),
            capacity: Notify::new(),
            stock: Notify::new(),
            transfers: Notify::new(),
            broken: tokio::sync::watch::Sender::new(None),
        }))
    }

    /// A call goes into a session: it does not idle. Nothing of it is recorded.
    pub fn touch(&self, session: SessionId) {
        self.core.lock().unwrap_or_else(PoisonError::into_inner).touch_session(now(), session);
    }

    /// Looks at the cluster as decided, which may be a moment ahead of what is recorded.
    pub fn look<T>(&self, f: impl FnOnce(&cluster::Cluster) -> T) -> T {
        f(&self.core.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Asks the core. What it decides is queued for the store before anybody else may ask.
    ///
    /// # Errors
    /// The core's; `overloaded` while the store has little room, which is kept for what workers say.
    pub fn decide<T>(
        self: &Arc<Self>,
        f: impl FnOnce(&mut cluster::Cluster, Now) -> Result<(T, Out)>,
    ) -> Result<(T, Recorded)> {
        if self.store.room() < ROOM_FOR_WORKERS {
            return Err(Error::new(Code::Overloaded, "more changes wait for the disk than it takes"));
        }
        self.decide_then(f, |_| ())
    }

    /// Waits until the store has room for what a worker says: the worker's stream is read no faster than that.
    pub async fn room(&self) {
        while self.store.room() < ROOM_FOR_WORKERS / 2 {
            tokio::time::sleep(ROOM_POLL).await;
        }
    }

    /// Like [`Self::decide`]; `first` happens as soon as the changes are durable, before their effects.
    pub fn decide_then<T>(
        self: &Arc<Self>,
        f: impl FnOnce(&mut cluster::Cluster, Now) -> Result<(T, Out)>,
        first: impl FnOnce(&Result<()>) + Send + 'static,
    ) -> Result<(T, Recorded)> {
        if let Some(error) = &*self.broken.borrow() {
            return Err(Error::new(Code::StoreUnavailable, error.message.clone()).with_hint(error.hint()));
        }
        let (recorded, answer) = oneshot::channel();
        let mut core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
        let (value, out) = f(&mut core, now())?;
        if out.changes.is_empty() {
            drop(core);
            first(&Ok(()));
            self.perform(out.effects);
            let _ = recorded.send(Ok(()));
            return Ok((value, answer));
        }
        let this = self.clone();
        let effects = out.effects;
        self.store.commit(Batch {
            changes: out.changes,
            durability: if out.full { Durability::Full } else { Durability::Relaxed },
            done: Box::new(move |result| {
                let result = result.map_err(Error::from);
                first(&result);
                match &result {
                    Ok(()) => this.perform(effects),
                    Err(error) => this.break_down(error),
                }
                let _ = recorded.send(result);
            }),
        });
        Ok((value, answer))
    }

    /// Until everything that was decided so far is recorded.
    pub async fn recorded(&self) -> Result<()> {
        let (recorded, answer) = oneshot::channel();
        self.store.commit(Batch {
            changes: Vec::new(),
            durability: Durability::Relaxed,
            done: Box::new(move |result| drop(recorded.send(result.map_err(Error::from)))),
        });
        durable(answer).await
    }

    /// For inputs that cannot fail and that nobody waits for: messages of workers, the clock.
    pub fn tell(self: &Arc<Self>, f: impl FnOnce(&mut cluster::Cluster, Now) -> Out) {
        // Fails only when the store broke; everything is loaded anew then.
        let _ = self.decide_then(|core, now| Ok(((), f(core, now))), |_| ());
    }

    fn perform(&self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Send { worker, attach, message } => {
                    let assigned = match &message {
                        cluster::Message::Assign { task, .. } => Some(*task),
                        _ => None,
                    };
                    let secrets = self.granted(&message);
                    self.fleet.send_core(&worker, attach, message, secrets);
                    if let Some(task) = assigned {
                        self.hub.task_assigned(task);
                    }
                }
                Effect::TaskEnded(ended) => {
                    metrics::counter!("cooper_tasks_total", "state" => ended.body.state.as_str())
                        .increment(1);
                    self.hub.task_ended(ended);
                }
                Effect::SessionChanged { session } => {
                    let _ = self.session_changes.send(session);
                    self.capacity.notify_waiters();
                }
                Effect::Restarted { task, attempts_used } => {
                    metrics::counter!("cooper_task_restarts_total").increment(1);
                    if let Err(error) = self.output.remove(task) {
                        tracing::error!(%task, %error, "the output of a given-up attempt could not be removed");
                    }
                    self.hub.task_restarted(task, attempts_used);
                }
                Effect::Close { worker, attach } => self.fleet.closed(&worker, attach),
                Effect::CapacityChanged => self.capacity.notify_waiters(),
                Effect::TransfersDue => self.transfers.notify_one(),
                Effect::EvictionsBraked { silent, of } => {
                    metrics::counter!("cooper_evictions_braked_total").increment(1);
                    tracing::error!(
                        silent,
                        of,
                        "nothing is heard of many workers at once; none is given up until the silence is clearly longer. \
                         Look at the network, or give one up with `cooper drain WORKER --deadline 0s`"
                    );
                }
            }
        }
    }

    /// What goes with a grant and is recorded nowhere in plain.
    fn granted(&self, message: &cluster::Message) -> Granted {
        match message {
            cluster::Message::SessionGrant { spec, secrets_of: Some(tenant), .. } => {
                self.secrets.of_grant(tenant, spec)
            }
            _ => Granted::default(),
        }
    }

    /// What memory holds may not be what is recorded: from now on nothing is decided, until somebody loads anew.
    pub fn break_down(&self, error: &Error) {
        self.broken.send_if_modified(|broken| {
            let first = broken.is_none();
            if first {
                tracing::error!(%error, "the store refused; everything is loaded anew from what is recorded");
                *broken = Some(error.clone());
            }
            first
        });
    }

    /// Resolves when the store refused a commit and this cluster must not go on.
    pub async fn broken(&self) -> Error {
        let mut broken = self.broken.subscribe();
        let error = broken.wait_for(Option::is_some).await.ok().and_then(|error| error.clone());
        match error {
            Some(error) => error,
            // The sender lives as long as we do.
            None => std::future::pending().await,
        }
    }

    /// Sessions whose recorded state changed, from now on.
    pub fn session_changes(&self) -> broadcast::Receiver<SessionId> {
        self.session_changes.subscribe()
    }
}

/// Awaits durability.
pub async fn durable(recorded: Recorded) -> Result<()> {
    recorded.await.unwrap_or_else(|_| Err(Error::new(Code::StoreUnavailable, "the store went away")))
}

pub fn now() -> Now {
    Now { mono_ms: clock::mono_ms(), wall_ms: clock::wall_ms() }
}
