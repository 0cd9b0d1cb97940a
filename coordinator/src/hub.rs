//! Who follows which task: one slot per followed task, nothing for the others.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use cooper_common::ids::TaskId;
use cooper_core::{cluster::Ended, task};
use tokio::sync::{broadcast, watch};

/// Ended tasks that a watcher of all may lag behind before it is told so (I12).
const ENDED_BUFFERED_MAX: usize = 65_536;
/// Result and output that a buffered one carries with it; larger ones are the store's to tell. So the buffer is bounded in
/// bytes too.
const ENDED_BYTES_CARRIED_MAX: usize = 1 << 10;

/// How far a task is.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// Grows when output was appended.
    pub output: u64,
    /// Set when the end is durable.
    pub ended: Option<Arc<Ended>>,
    /// Grows when it was sent to its worker.
    pub assigned: u64,
    /// Grows when another attempt follows; its output begins at 0.
    pub restarts: u64,
    pub attempts_used: u32,
}

/// Passes progress from the writer and the link to followers.
#[derive(Debug, Clone)]
pub struct Hub {
    followed: Arc<Mutex<HashMap<TaskId, watch::Sender<Progress>>>>,
    ended: broadcast::Sender<Told>,
}

/// An end, as watchers of all are told.
#[derive(Debug, Clone)]
pub struct Told {
    pub ended: Arc<Ended>,
    /// False when its result and output were too large to be carried.
    pub whole: bool,
}

impl Told {
    fn of(ended: Arc<Ended>) -> Self {
        let output: usize = ended.output.iter().map(|output| output.bytes.len()).sum();
        let bytes = output + ended.result.as_ref().map_or(0, Vec::len);
        // Steps are few, and whoever drives their runs needs the result.
        if bytes <= ENDED_BYTES_CARRIED_MAX || ended.body.kind == task::Kind::Step {
            return Self { ended, whole: true };
        }
        Self { ended: Arc::new(without_payload(&ended)), whole: false }
    }
}

fn without_payload(ended: &Ended) -> Ended {
    Ended {
        task: ended.task,
        end: ended.end,
        tenant: ended.tenant.clone(),
        created_ms: ended.created_ms,
        body: ended.body.clone(),
        result: None,
        output: Vec::new(),
    }
}

impl Default for Hub {
    fn default() -> Self {
        Self { followed: Arc::default(), ended: broadcast::Sender::new(ENDED_BUFFERED_MAX) }
    }
}

/// A place at a task's side; given up when dropped.
#[derive(Debug)]
pub struct Follower {
    task: TaskId,
    hub: Hub,
    /// Option, so that it can go before the sender is asked for its receivers.
    receiver: Option<watch::Receiver<Progress>>,
}

impl Hub {
    /// Follows a task from now on. Ask the store about its state only after this, so that no end falls in between.
    pub fn follow(&self, task: TaskId) -> Follower {
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        let sender = followed.entry(task).or_insert_with(|| watch::Sender::new(Progress::default()));
        Follower { task, hub: self.clone(), receiver: Some(sender.subscribe()) }
    }

    /// Every task that ends from now on.
    pub fn watch_ended(&self) -> broadcast::Receiver<Told> {
        self.ended.subscribe()
    }

    pub fn output_appended(&self, task: TaskId) {
        let followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = followed.get(&task) {
            sender.send_modify(|progress| progress.output += 1);
        }
    }

    /// It was sent to its worker.
    pub fn task_assigned(&self, task: TaskId) {
        let followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = followed.get(&task) {
            sender.send_modify(|progress| progress.assigned += 1);
        }
    }

    /// Another attempt follows, or the task was taken out of `dead_letter`.
    pub fn task_restarted(&self, task: TaskId, attempts_used: u32) {
        let followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = followed.get(&task) {
            sender.send_modify(|progress| {
                progress.restarts += 1;
                progress.attempts_used = attempts_used;
                progress.ended = None;
            });
        }
    }

    pub fn task_ended(&self, ended: Arc<Ended>) {
        let followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = followed.get(&ended.task) {
            sender.send_modify(|progress| progress.ended = Some(ended.clone()));
        }
        drop(followed);
        // Nobody watching is fine.
        let _ = self.ended.send(Told::of(ended));
    }
}

impl Follower {
    /// How far it is now; marks that as seen.
    pub fn now(&mut self) -> Progress {
        self.receiver.as_mut().map(|receiver| receiver.borrow_and_update().clone()).unwrap_or_default()
    }

    /// Waits for anything newer than the last [`Self::now`].
    pub async fn changed(&mut self) {
        if let Some(receiver) = &mut self.receiver {
            // The sender lives as long as a follower does.
            let _ = receiver.changed().await;
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.receiver = None;
        let mut followed = self.hub.followed.lock().unwrap_or_else(PoisonError::into_inner);
        if followed.get(&self.task).is_some_and(|sender| sender.receiver_count() == 0) {
            followed.remove(&self.task);
        }
    }
}
