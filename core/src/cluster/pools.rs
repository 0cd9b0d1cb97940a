//! Tasks without a session, and who can take them: one pool for those that any worker can do, one for each label selector
//! that others name.

use std::collections::{BTreeMap, BTreeSet};

use cooper_common::{ids::TaskId, limits};

use crate::{
    queue::{Place, Queue},
    worker::{Worker, WorkerId},
};

pub(super) type Labels = BTreeMap<String, String>;

#[derive(Debug, Default)]
pub(super) struct Pool {
    pub queue: Queue,
    /// Workers with free credit and the pool's labels, most credit last.
    pub free: BTreeSet<(u32, WorkerId)>,
}

impl Pool {
    fn set(&mut self, worker: &WorkerId, before: u32, available: u32) {
        if before > 0 {
            self.free.remove(&(before, worker.clone()));
        }
        if available > 0 {
            self.free.insert((available, worker.clone()));
        }
    }

    /// The place that is served next, if some worker has room for it.
    fn ready(&self) -> Option<Place> {
        if self.free.is_empty() { None } else { self.queue.first() }
    }

    fn take(&mut self) -> Option<(TaskId, WorkerId)> {
        let (_, worker) = self.free.last()?.clone();
        Some((self.queue.pop()?, worker))
    }
}

#[derive(Debug, Default)]
pub(super) struct Pools {
    any: Pool,
    /// At most `SELECTORS_MAX`, unless more were stored.
    labelled: BTreeMap<Labels, Pool>,
    /// What the pools hold of each worker.
    free_of: BTreeMap<WorkerId, u32>,
}

impl Pools {
    /// Keeps the pools true after anything that changes a worker's credit, state or labels.
    pub fn reindex(&mut self, id: &WorkerId, worker: Option<&Worker>) {
        let available = worker.map_or(0, Worker::available);
        let before = self.free_of.get(id).copied().unwrap_or(0);
        if before == available {
            return;
        }
        self.any.set(id, before, available);
        for (labels, pool) in &mut self.labelled {
            let has = worker.is_some_and(|worker| worker.has(labels));
            pool.set(id, before, if has { available } else { 0 });
        }
        if available > 0 {
            self.free_of.insert(id.clone(), available);
        } else {
            self.free_of.remove(id);
        }
    }

    pub fn free_of(&self, id: &WorkerId) -> u32 {
        self.free_of.get(id).copied().unwrap_or(0)
    }

    /// Whether a task with these labels may wait here.
    pub fn admits(&self, labels: &Labels) -> bool {
        labels.is_empty()
            || self.labelled.contains_key(labels)
            || self.labelled.values().filter(|pool| !pool.queue.is_empty()).count()
                < limits::schedule::SELECTORS_MAX
    }

    pub fn insert(
        &mut self,
        labels: &Labels,
        place: Place,
        task: TaskId,
        workers: &BTreeMap<WorkerId, Worker>,
    ) {
        if labels.is_empty() {
            self.any.queue.insert(place, task);
            return;
        }
        if !self.labelled.contains_key(labels) {
            if self.labelled.len() >= limits::schedule::SELECTORS_MAX {
                self.labelled.retain(|_, pool| !pool.queue.is_empty());
            }
            let free = self.free_of.iter().filter(|(id, _)| workers.get(*id).is_some_and(|w| w.has(labels)));
            let free = free.map(|(id, available)| (*available, id.clone())).collect();
            self.labelled.insert(labels.clone(), Pool { queue: Queue::default(), free });
        }
        if let Some(pool) = self.labelled.get_mut(labels) {
            pool.queue.insert(place, task);
        }
    }

    pub fn remove(&mut self, labels: &Labels, place: Place) {
        if let Some(pool) = self.get_mut(labels) {
            pool.queue.remove(place);
        }
    }

    pub fn get(&self, labels: &Labels) -> Option<&Pool> {
        if labels.is_empty() { Some(&self.any) } else { self.labelled.get(labels) }
    }

    fn get_mut(&mut self, labels: &Labels) -> Option<&mut Pool> {
        if labels.is_empty() { Some(&mut self.any) } else { self.labelled.get_mut(labels) }
    }

    /// The next task that some worker has room for, and the worker with the most room for it. Among the pools, too, the
    /// higher priority goes first, then who came first.
    pub fn take(&mut self) -> Option<(TaskId, WorkerId)> {
        if self.labelled.is_empty() {
            return self.any.take();
        }
        let labelled = self.labelled.values_mut();
        std::iter::once(&mut self.any)
            .chain(labelled)
            .filter_map(|pool| pool.ready().map(|place| (place, pool)))
            .min_by_key(|(place, _)| *place)
            .and_then(|(_, pool)| pool.take())
    }

    /// Work conservation: nobody waits in a pool that has room.
    pub fn violation(&self) -> Option<String> {
        let waits = |pool: &Pool| pool.ready().map(|_| pool.queue.len());
        let any = waits(&self.any).map(|n| format!("{n} tasks wait and there is room"));
        any.or_else(|| {
            self.labelled.iter().find_map(|(labels, pool)| {
                waits(pool).map(|n| format!("{n} tasks for {} wait and there is room", super::named(labels)))
            })
        })
    }
}
