//! The coordinator's disk: survives its crashes, and takes its time. What was queued when the coordinator died is gone;
//! what was written is there, whether or not anybody was told.

use std::{
    collections::VecDeque,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cooper_common::{audit, limits};
use cooper_coordinator::{
    bus::Bus,
    store::{
        Answer, Batch, Done, Durability, Error, EventPage, Filter, Keep, Page, Record, Removed, Result,
        Store, sqlite::Sqlite,
    },
};
use cooper_core::change::Aggregate;
use futures::FutureExt;
use tokio::sync::Notify;

use crate::cheat::Cheat;

/// A commit takes up to this, and so does the way back to who waits for it.
const LATENCY_MS_MAX: u64 = 8;

/// What the machine of the coordinator has on its disk.
pub struct Disk {
    pub sqlite: Sqlite,
    pub bus: Bus,
    pub cheat: Option<Cheat>,
}

impl Disk {
    pub fn new(cheat: Option<Cheat>) -> Result<Self> {
        let bus = Bus::default();
        Ok(Self { sqlite: Sqlite::memory(bus.clone())?, bus, cheat })
    }

    /// The store of one coordinator. Its writer is a task of that coordinator and dies with it.
    pub fn mount(&self) -> Arc<Mounted> {
        let mounted = Arc::new(Mounted {
            disk: self.sqlite.clone(),
            queue: Arc::default(),
            closed: AtomicBool::new(false),
            cheat: self.cheat,
        });
        tokio::spawn(write(mounted.disk.clone(), Arc::clone(&mounted.queue)));
        mounted
    }
}

#[derive(Default)]
struct Queue {
    batches: Mutex<VecDeque<Batch>>,
    filled: Notify,
    /// Batches that were taken off and not told yet.
    writing: AtomicBool,
}

impl Queue {
    fn batches(&self) -> std::sync::MutexGuard<'_, VecDeque<Batch>> {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub struct Mounted {
    disk: Sqlite,
    queue: Arc<Queue>,
    closed: AtomicBool,
    cheat: Option<Cheat>,
}

async fn latency() {
    tokio::time::sleep(Duration::from_millis(rand::random_range(0..=LATENCY_MS_MAX))).await;
}

/// Group commit: takes what waits, writes it, tells everybody, takes what waits by then.
async fn write(disk: Sqlite, queue: Arc<Queue>) {
    loop {
        queue.filled.notified().await;
        while !queue.batches().is_empty() {
            queue.writing.store(true, Ordering::Relaxed);
            latency().await;
            let group: Vec<Batch> = queue.batches().drain(..).collect();
            let mut told: Vec<(Done, Result<()>)> = Vec::with_capacity(group.len());
            for batch in group {
                let result = Arc::new(Mutex::new(Err(Error::Closed)));
                let answer = Arc::clone(&result);
                let done: Done =
                    Box::new(move |done| *answer.lock().unwrap_or_else(PoisonError::into_inner) = done);
                disk.commit(Batch { done, ..batch_without_done(&batch) });
                let result = result.lock().unwrap_or_else(PoisonError::into_inner).clone();
                told.push((batch.done, result));
            }
            // Written, and nobody knows yet: the moment in which a crash is most interesting.
            latency().await;
            for (done, result) in told {
                done(result);
            }
            queue.writing.store(false, Ordering::Relaxed);
        }
    }
}

fn batch_without_done(batch: &Batch) -> Batch {
    Batch { changes: batch.changes.clone(), durability: batch.durability, done: Box::new(|_| ()) }
}

impl Store for Mounted {
    fn commit(&self, batch: Batch) {
        if self.closed.load(Ordering::Relaxed) {
            return (batch.done)(Err(Error::Closed));
        }
        if self.room() == 0 {
            return (batch.done)(Err(Error::Overloaded));
        }
        let batch = match self.cheat {
            Some(Cheat::LoseEvents) => {
                let mut batch = batch;
                let events = batch.changes.iter_mut().map(|change| &mut change.events);
                events.for_each(|events| events.retain(|_| !rand::random_bool(0.01)));
                batch
            }
            Some(Cheat::AckBeforeCommit) => {
                (batch.done)(Ok(()));
                Batch { done: Box::new(|_| ()), ..batch }
            }
            _ => batch,
        };
        self.queue.batches().push_back(batch);
        self.queue.filled.notify_one();
    }

    fn room(&self) -> usize {
        limits::store::WRITER_QUEUE_MAX.saturating_sub(self.queue.batches().len())
    }

    fn get(&self, aggregate: Aggregate, id: &str) -> Answer<Option<Record>> {
        self.disk.get(aggregate, id)
    }
    fn by_key(&self, aggregate: Aggregate, tenant: Option<&str>, key: &str) -> Answer<Option<Record>> {
        self.disk.by_key(aggregate, tenant, key)
    }
    fn live(&self, aggregate: Aggregate) -> Answer<Vec<Record>> {
        self.disk.live(aggregate)
    }
    fn list(&self, aggregate: Aggregate, filter: Filter) -> Answer<Page> {
        self.disk.list(aggregate, filter)
    }
    fn last_seq(&self) -> Answer<u64> {
        self.disk.last_seq()
    }
    fn events(&self, tenant: Option<&str>, from_seq: u64, limit: usize) -> Answer<EventPage> {
        self.disk.events(tenant, from_seq, limit)
    }
    fn inline_output(&self, task: &str, stream: u8) -> Answer<Option<Vec<u8>>> {
        self.disk.inline_output(task, stream)
    }
    fn audit_append(&self, entries: Vec<audit::Entry>, durability: Durability) -> Answer<()> {
        self.disk.audit_append(entries, durability)
    }
    fn audit_ends(&self) -> Answer<(audit::Link, audit::Link)> {
        self.disk.audit_ends()
    }
    fn audit_from(&self, tenant: Option<String>, seq: u64, limit: usize) -> Answer<Vec<audit::Row>> {
        self.disk.audit_from(tenant, seq, limit)
    }
    fn audit_before(&self, tenant: Option<String>, seq: u64, limit: usize) -> Answer<Vec<audit::Row>> {
        self.disk.audit_before(tenant, seq, limit)
    }
    fn meta_get(&self, key: &str) -> Answer<Option<String>> {
        self.disk.meta_get(key)
    }
    fn meta_put(&self, key: &str, value: &str) -> Answer<()> {
        self.disk.meta_put(key, value)
    }
    fn next_epoch(&self) -> Answer<u64> {
        self.disk.next_epoch()
    }
    fn retain(&self, keep: Keep) -> Answer<Removed> {
        self.disk.retain(keep)
    }
    fn remove_ended(&self, aggregate: Aggregate, ids: Vec<String>) -> Answer<Vec<String>> {
        self.disk.remove_ended(aggregate, ids)
    }
    fn known(&self, aggregate: Aggregate, ids: Vec<String>) -> Answer<Vec<String>> {
        self.disk.known(aggregate, ids)
    }
    fn probe(&self) -> Answer<()> {
        self.disk.probe()
    }
    fn check(&self) -> Answer<Vec<String>> {
        self.disk.check()
    }
    fn backup(&self, path: &Path) -> Answer<()> {
        self.disk.backup(path)
    }

    fn close(&self) -> Answer<()> {
        self.closed.store(true, Ordering::Relaxed);
        let queue = Arc::clone(&self.queue);
        async move {
            while !queue.batches().is_empty() || queue.writing.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Ok(())
        }
        .boxed()
    }
}
