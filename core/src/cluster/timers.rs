//! What is due: deadlines that are over, and retries whose time has come.

use std::collections::BTreeSet;

use cooper_common::{error::Code, ids::TaskId, limits::schedule};

use super::{Cluster, Message, Out};
use crate::{
    Now,
    lease::Silence,
    task::{End, State},
    worker::WorkerId,
};

impl Cluster {
    /// Whether something is due that no tick has done yet: a tick does a bounded number.
    pub fn is_due(&self, now: Now) -> bool {
        let task = self.timers.first().map(|(due, _)| *due);
        let session = self.session_timers.first().map(|(due, _)| *due);
        task.into_iter().chain(session).any(|due| due <= now.mono_ms)
    }

    /// Keeps `timers` true after anything that changes what is due of a task.
    pub(super) fn rearm(&mut self, now: Now, id: TaskId) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let due = task.next_due(now);
        if due == task.due_mono_ms {
            return;
        }
        if let Some(before) = std::mem::replace(&mut task.due_mono_ms, due) {
            self.timers.remove(&(before, id));
        }
        if let Some(due) = due {
            self.timers.insert((due, id));
        }
    }

    /// Does what is due.
    pub(super) fn expire(&mut self, now: Now, out: &mut Out) {
        self.expire_sessions(now, out);
        // Handed out when all of them are in line, so that the order among them is the order of the line.
        let mut woken = Vec::new();
        for _ in 0..schedule::EXPIRED_AT_ONCE_MAX {
            let Some(id) = take_due(&mut self.timers, now) else { break };
            let Some(task) = self.tasks.get_mut(&id) else { continue };
            task.due_mono_ms = None;
            let over = task.over(now);
            match (task.body.state, over) {
                (State::Queued, Some(deadline)) => {
                    let overdue = task.overdue(deadline);
                    self.dequeue(id);
                    self.end_by_us(now, id, End::TimedOut, Code::TimedOut, &overdue, out);
                }
                (State::Queued, None) => {
                    self.dequeue(id);
                    if let Some(task) = self.tasks.get_mut(&id) {
                        task.not_before_mono_ms = None;
                    }
                    self.enqueue(id);
                    self.rearm(now, id);
                    woken.push(id);
                }
                (State::Assigned | State::Running, _) => self.expire_held(now, id, out),
                (State::Ended(_), _) => {}
            }
        }
        for id in woken {
            self.pump_task(now, id, out);
        }
        if !self.budgets.is_empty() {
            self.budgets.retain(|_, budget| !budget.is_full(now.mono_ms));
        }
    }

    /// A deadline passed while a worker holds the task: the worker ends it, and says so. One that says nothing keeps it
    /// no longer than its lease.
    fn expire_held(&mut self, now: Now, id: TaskId, out: &mut Out) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let fence = task.body.fence;
        let Some((worker, _)) = self.workers.get_key_value(task.body.worker.as_deref().unwrap_or_default())
        else {
            return;
        };
        let worker = worker.clone();
        if task.body.passed().is_none()
            && let Some(deadline) = task.over(now)
        {
            task.pass(deadline);
            out.tasks.insert(id);
            self.send(&worker, Message::Cancel { task: id, fence }, out);
        }
        let overdue = self.tasks.get(&id).and_then(|task| Some(task.overdue(task.body.passed()?)));
        if let Some(overdue) = overdue
            && self.lease_is_over(now, &worker)
        {
            let session = self.tasks.get(&id).and_then(|task| task.body.session);
            self.end_by_us(now, id, End::TimedOut, Code::TimedOut, &overdue, out);
            if let Some(session) = session {
                self.pump_session(now, session, out);
            }
        }
        self.rearm(now, id);
    }

    /// After this a worker that is out of reach has stopped believing that it is ours.
    fn lease_is_over(&self, now: Now, worker: &WorkerId) -> bool {
        let Some(known) = self.workers.get(worker) else { return true };
        let silent_ms = now.mono_ms.saturating_sub(known.last_seen_mono_ms);
        let silence = self.timing.silence(silent_ms, self.timing.heartbeat_ms(self.workers.len()));
        now.mono_ms >= self.grace_until_mono_ms
            && silent_ms >= self.timing.lease_ms
            && silence != Silence::Fresh
    }
}

/// The first of `timers` that is due, taken out.
pub(super) fn take_due<Id: Copy + Ord>(timers: &mut BTreeSet<(u64, Id)>, now: Now) -> Option<Id> {
    let (due, id) = *timers.first()?;
    (due <= now.mono_ms).then(|| {
        timers.remove(&(due, id));
        id
    })
}
