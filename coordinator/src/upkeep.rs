//! What keeps the store in order while the coordinator serves: retention, files that nothing refers to, space on the disk.

pub mod backup;
pub mod check;
pub mod files;
mod hold;
pub mod migrate;

use std::{path::PathBuf, sync::Arc, time::Duration};

use cooper_common::{
    clock,
    error::{Code, Error, Result},
    limits::store as limits,
};
use cooper_core::change::Aggregate;
use tokio::time::{MissedTickBehavior, interval};

pub use self::hold::Hold;
use crate::{artifacts::Artifacts, blobs::Blobs, checkpoints::Checkpoints, cluster::Cluster, store};

/// How much stays of what has ended (`keep_…` in docs/configuration.md). What is older than the newest so many goes.
#[derive(Debug, Clone, Copy)]
pub struct Keep {
    pub tasks: u64,
    pub runs: u64,
    pub events: u64,
    pub audit: u64,
    pub output_bytes: u64,
    /// 0 = however old.
    pub days: u64,
    /// With less space on the disk nothing new is taken in; 0 = until it is full.
    pub free_bytes: u64,
}

impl Default for Keep {
    fn default() -> Self {
        Self {
            tasks: limits::ENDED_TASKS_KEPT_MAX,
            runs: limits::ENDED_RUNS_KEPT_MAX,
            events: limits::EVENTS_KEPT_MAX,
            audit: cooper_common::limits::audit::ROWS_KEPT_MAX,
            output_bytes: limits::OUTPUT_KEPT_MIB << 20,
            days: 0,
            free_bytes: limits::FREE_MIB_MIN << 20,
        }
    }
}

impl Keep {
    fn now(&self) -> store::Keep {
        const DAY_MS: i64 = 86_400_000;
        let age_ms = i64::try_from(self.days).unwrap_or(i64::MAX).saturating_mul(DAY_MS);
        store::Keep {
            ended_tasks: self.tasks,
            ended_runs: self.runs,
            ended_rows: limits::ENDED_RUNS_KEPT_MAX,
            events: self.events,
            audit: self.audit,
            since_ms: (self.days > 0).then(|| clock::wall_ms().saturating_sub(age_ms)),
        }
    }
}

/// Tasks that one step of a sweep takes away.
const STEP_TASKS: usize = 256;

/// Runs until it is dropped.
pub async fn run(
    cluster: Arc<Cluster>,
    blobs: Arc<Blobs>,
    checkpoints: Arc<Checkpoints>,
    artifacts: Arc<Artifacts>,
    data: PathBuf,
    keep: Keep,
) {
    let upkeep = Upkeep { cluster, blobs, checkpoints, artifacts, data, keep };
    let every = |ms| {
        let mut interval = interval(Duration::from_millis(ms));
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        interval
    };
    let looks = async {
        let mut look = every(limits::DISK_LOOK_MS);
        loop {
            look.tick().await;
            upkeep.look_at_disk().await;
        }
    };
    let tidying = async {
        let mut turn = every(limits::RETENTION_EVERY_MS);
        let mut swept_ms = None;
        loop {
            turn.tick().await;
            // Whoever makes a backup needs the files of the rows that it has copied.
            let Ok(Some(_hold)) = Hold::alone(&upkeep.data) else { continue };
            if let Err(error) = upkeep.retain().await {
                tracing::warn!(%error, "retention did not finish");
            }
            if swept_ms.is_none_or(|at| clock::mono_ms() - at >= limits::SWEEP_EVERY_MS) {
                swept_ms = Some(clock::mono_ms());
                if let Err(error) = upkeep.sweep().await {
                    tracing::warn!(%error, "the sweep of unneeded files did not finish");
                }
            }
        }
    };
    tokio::join!(looks, tidying);
}

struct Upkeep {
    cluster: Arc<Cluster>,
    blobs: Arc<Blobs>,
    checkpoints: Arc<Checkpoints>,
    artifacts: Arc<Artifacts>,
    data: PathBuf,
    keep: Keep,
}

impl Upkeep {
    /// Is there space, and is the database still where it was?
    async fn look_at_disk(&self) {
        match rustix::fs::statvfs(&self.data) {
            Ok(disk) => {
                self.cluster.space.seen(disk.f_bavail.saturating_mul(disk.f_frsize), self.keep.free_bytes)
            }
            Err(error) => tracing::warn!(%error, "the disk does not say how much is free"),
        }
        if let Err(error @ store::Error::Unusable { .. }) = self.cluster.store.probe().await {
            self.cluster.break_down(&error.into());
        }
    }

    /// Rows and events beyond what is kept, and the output of tasks that went.
    async fn retain(&self) -> Result<()> {
        self.checkpoints.retain().await?;
        self.artifacts.retain().await?;
        let removed = self.cluster.store.retain(self.keep.now()).await?;
        let tasks = removed.rows.into_iter().filter(|(aggregate, _)| *aggregate == Aggregate::Task);
        self.forget_output(tasks.map(|(_, id)| id).collect()).await
    }

    /// Files that a death between two steps left, and the oldest output beyond what is kept.
    async fn sweep(&self) -> Result<()> {
        let mut held = Vec::new();
        for folder in self.cluster.output.folders()? {
            let log = self.cluster.output.clone();
            let sizes = blocking(move || Ok(log.sizes(&folder)?)).await?;
            let ids: Vec<String> = sizes.keys().map(ToString::to_string).collect();
            let known = self.cluster.store.known(Aggregate::Task, ids.clone()).await?;
            self.forget_output(ids.into_iter().filter(|id| !known.contains(id)).collect()).await?;
            held.extend(sizes.into_iter().filter(|(id, _)| known.contains(&id.to_string())));
        }
        // An id begins with its time.
        held.sort_unstable();
        let mut bytes: u64 = held.iter().map(|(_, bytes)| bytes).sum();
        metrics::gauge!("cooper_output_bytes").set(bytes as f64);
        let mut rest = held.as_slice();
        while let surplus @ 1.. = bytes.saturating_sub(self.keep.output_bytes)
            && !rest.is_empty()
        {
            let mut covered = 0;
            let enough = rest.iter().take(STEP_TASKS).position(|(_, size)| {
                covered += size;
                covered >= surplus
            });
            let (step, after) = rest.split_at(enough.map_or(rest.len().min(STEP_TASKS), |last| last + 1));
            rest = after;
            // Those that have not ended stay.
            let oldest = step.iter().map(|(id, _)| id.to_string()).collect();
            let gone = self.cluster.store.remove_ended(Aggregate::Task, oldest).await?;
            let freed = step.iter().filter(|(id, _)| gone.contains(&id.to_string()));
            bytes -= freed.map(|(_, size)| size).sum::<u64>();
            self.forget_output(gone).await?;
        }
        let referenced = files::artifacts(&*self.cluster.store).await?;
        let blobs = self.blobs.clone();
        let gone = blocking(move || Ok(blobs.remove_unreferenced(&referenced)?)).await?;
        if gone > 0 {
            tracing::info!(artifacts = gone, "removed what nothing refers to");
        }
        Ok(())
    }

    async fn forget_output(&self, tasks: Vec<String>) -> Result<()> {
        if tasks.is_empty() {
            return Ok(());
        }
        let log = self.cluster.output.clone();
        blocking(move || {
            for task in tasks.iter().filter_map(|id| id.parse().ok()) {
                log.remove(task)?;
            }
            Ok(())
        })
        .await
    }
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    if clock::simulated().is_some() {
        return work();
    }
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(Error::internal(error.to_string())))
}

/// Whether the data directory's disk has space for anything new. What is under way goes on to its result meanwhile.
#[derive(Debug, Default)]
pub struct Space {
    low: std::sync::atomic::AtomicBool,
}

impl Space {
    /// # Errors
    /// `store_full`.
    pub fn admit(&self) -> Result<()> {
        match self.low.load(std::sync::atomic::Ordering::Relaxed) {
            false => Ok(()),
            true => Err(Error::new(
                Code::StoreFull,
                "the data directory's disk has less free space than keep_free_mib asks for",
            )),
        }
    }

    /// A quarter more than the floor is needed to go on, so that it does not flap.
    fn seen(&self, free_bytes: u64, floor_bytes: u64) {
        use std::sync::atomic::Ordering;
        metrics::gauge!("cooper_disk_free_bytes").set(free_bytes as f64);
        let was = self.low.load(Ordering::Relaxed);
        let low = free_bytes < floor_bytes + if was { floor_bytes / 4 } else { 0 };
        if low != was {
            self.low.store(low, Ordering::Relaxed);
            match low {
                true => tracing::warn!(
                    free_mib = free_bytes >> 20,
                    "the data directory's disk is almost full: nothing new is taken in, results are"
                ),
                false => tracing::info!(free_mib = free_bytes >> 20, "there is space again"),
            }
        }
    }
}

#[cfg(test)]
mod tests;
