//! Emptying workers. An operator drains one: no new sessions go there, and no tasks that any worker can do. What is bound
//! to it goes on, executions in its sessions and steps on its stacks, until nothing runs and nothing waits, or until the
//! deadline: then its executions are cancelled, a step that runs may finish, and nothing more is started. Sessions stay on
//! its disk and go on when it is undrained.
//!
//! A worker that stops says so itself ([`Cluster::stopping`]) and from then on takes nothing.

use std::collections::BTreeSet;

use cooper_common::{
    error::{Code, Error, Result},
    ids::{SessionId, TaskId},
    limits,
};

use super::{Cluster, Message, Out};
use crate::{
    Now,
    lease::Fence,
    session::{self, Reason},
    task::{End, Kind},
    worker::{Drain, State, WorkerId},
};

impl Cluster {
    /// Begins to empty a worker, or gives the drain that goes on another deadline. One that is away is draining when it
    /// comes back.
    ///
    /// # Errors
    /// `worker_not_found`.
    pub fn drain(
        &mut self,
        now: Now,
        worker: &str,
        deadline_in_ms: u64,
        checkpoint: bool,
        by: &str,
    ) -> Result<Out> {
        let mut out = Out { full: true, ..Out::default() };
        let id = self.known(worker)?;
        let deadline_in_ms = deadline_in_ms.min(limits::link::DRAIN_MS_MAX);
        let deadline_ms = now.wall_ms.saturating_add_unsigned(deadline_in_ms);
        if let Some(worker) = self.workers.get_mut(&id) {
            if worker
                .body
                .drain
                .as_ref()
                .is_some_and(|drain| drain.drained_ms != 0 && drain.checkpoint == checkpoint)
            {
                return Ok(out);
            }
            let since_ms = worker.body.drain.as_ref().map_or(now.wall_ms, |drain| drain.since_ms);
            worker.body.drain =
                Some(Drain { since_ms, deadline_ms, drained_ms: 0, by: by.to_owned(), checkpoint });
            worker.drain_due_mono_ms = now.mono_ms + deadline_in_ms;
            (worker.drain_cut_mono_ms, worker.drain_idle) = (None, false);
            let by = serde_json::Value::from(by);
            worker.note_with(
                "worker.drain",
                format!(r#","deadline_at_ms":{deadline_ms},"by":{by},"checkpoint":{checkpoint}"#),
            );
            if worker.body.state == State::Ready {
                worker.to(State::Draining);
            }
            out.workers.insert(id.clone());
        }
        self.reindex(&id);
        self.tell_drain(now, &id, &mut out);
        self.tick_moves(now, &mut out);
        self.finish(now, &mut out);
        Ok(out)
    }

    /// Lets a worker take work again.
    ///
    /// # Errors
    /// `worker_not_found`.
    pub fn undrain(&mut self, now: Now, worker: &str) -> Result<Out> {
        let mut out = Out { full: true, ..Out::default() };
        let id = self.known(worker)?;
        if let Some(worker) = self.workers.get_mut(&id) {
            if worker.body.drain.take().is_none() {
                return Ok(out);
            }
            (worker.drain_cut_mono_ms, worker.drain_idle) = (None, false);
            worker.note("worker.undrained");
            if worker.body.state == State::Draining {
                worker.to(worker.heard());
            }
            out.workers.insert(id.clone());
            if let Some(attached) = worker.attached
                && attached.protocol >= 2
            {
                self.send(&id, Message::Drain { draining: false, deadline_in_ms: 0 }, &mut out);
            }
        }
        self.reindex(&id);
        self.tick_moves(now, &mut out);
        self.pump_worker(now, &id, &mut out);
        out.effects.push(super::Effect::CapacityChanged);
        self.finish(now, &mut out);
        Ok(out)
    }

    fn known(&self, worker: &str) -> Result<WorkerId> {
        match self.workers.get_key_value(worker) {
            Some((id, _)) => Ok(id.clone()),
            None => Err(Error::new(Code::WorkerNotFound, format!("there is no worker {worker:?}"))),
        }
    }

    /// Tells a worker that is being drained so.
    pub(super) fn tell_drain(&self, now: Now, id: &WorkerId, out: &mut Out) {
        let Some(worker) = self.workers.get(id).filter(|worker| worker.body.drain.is_some()) else { return };
        if worker.attached.is_some_and(|attached| attached.protocol >= 2) {
            let deadline_in_ms = worker.drain_due_mono_ms.saturating_sub(now.mono_ms);
            self.send(id, Message::Drain { draining: true, deadline_in_ms }, out);
        }
    }

    /// The worker stops: it takes nothing from now on, and what it has is `taken`. What was sent to it and is not there
    /// never starts, so it goes back to where it waits.
    pub fn stopping(
        &mut self,
        now: Now,
        worker: &str,
        attach: u64,
        taken: &BTreeSet<(TaskId, Fence)>,
        saves: bool,
    ) -> Out {
        let mut out = Out { full: true, ..Out::default() };
        if !self.is_current(worker, attach) {
            return out;
        }
        self.seen(now, worker);
        let Some((id, _)) = self.workers.get_key_value(worker) else { return out };
        let id = id.clone();
        let mut held = Vec::new();
        if let Some(worker) = self.workers.get_mut(&id) {
            (worker.stopping, worker.saves) = (true, saves);
            if worker.to(State::Draining) {
                out.workers.insert(id.clone());
            }
            held.extend(worker.running.iter().copied());
        }
        self.reindex(&id);
        for task in held {
            if self.tasks.get(&task).is_some_and(|held| !taken.contains(&(task, held.body.fence))) {
                self.give_up(now, task, true, "the worker stops and did not start it", &mut out);
            }
        }
        self.pump_ready(now, &mut out);
        self.tick_moves(now, &mut out);
        self.finish(now, &mut out);
        out
    }

    /// Carries drains forward; with each tick.
    pub(super) fn tick_drains(&mut self, now: Now, out: &mut Out) {
        let draining: Vec<WorkerId> = self
            .workers
            .values()
            .filter(|worker| worker.body.drain.as_ref().is_some_and(|drain| drain.drained_ms == 0))
            .map(|worker| worker.id.clone())
            .collect();
        for id in draining {
            let Some(worker) = self.workers.get(&id) else { continue };
            match worker.drain_cut_mono_ms {
                None if now.mono_ms >= worker.drain_due_mono_ms => self.cut_drain(now, &id, out),
                Some(cut) if now.mono_ms >= cut + limits::link::DRAIN_CONFIRM_MS => {
                    self.give_up_all(now, &id, false, out);
                }
                None | Some(_) => {}
            }
            self.note_drained(now, &id, out);
        }
    }

    /// The deadline: executions end, those that wait in its sessions too, unless the session is moved, and they with it. A step may finish: it is bounded by its own
    /// limit, and half a restart is worse than a late one.
    fn cut_drain(&mut self, now: Now, id: &WorkerId, out: &mut Out) {
        let Some(worker) = self.workers.get_mut(id) else { return };
        worker.drain_cut_mono_ms = Some(now.mono_ms);
        let away = worker.attached.is_none();
        let sessions: Vec<SessionId> = worker.sessions.iter().copied().collect();
        let running: Vec<TaskId> = worker.running.iter().copied().collect();
        let why = format!("worker {id} was drained and its deadline passed");
        for session in sessions {
            let Some(session) = self.sessions.get_mut(&session) else { continue };
            if session.body.state == session::State::Checkpointing {
                continue;
            }
            let (queued, delayed) =
                (std::mem::take(&mut session.queue), std::mem::take(&mut session.delayed));
            for task in queued.iter().map(|(_, task)| task).chain(delayed).collect::<Vec<_>>() {
                self.end_by_us(now, task, End::Cancelled, Code::WorkerDraining, &why, out);
            }
        }
        if away {
            return self.give_up_all(now, id, true, out);
        }
        for task in running {
            let Some(held) = self.tasks.get_mut(&task).filter(|held| held.body.kind != Kind::Step) else {
                continue;
            };
            if !std::mem::replace(&mut held.body.cancel_requested, true) {
                held.body.reason =
                    Some(Reason { code: Code::WorkerDraining.as_str().to_owned(), message: why.clone() });
                out.tasks.insert(task);
            }
            let fence = held.body.fence;
            self.send(id, Message::Cancel { task, fence }, out);
        }
    }

    /// What a worker did not end in time, or cannot be told to end.
    fn give_up_all(&mut self, now: Now, id: &WorkerId, away: bool, out: &mut Out) {
        let held: Vec<TaskId> =
            self.workers.get(id).map(|worker| worker.running.iter().copied().collect()).unwrap_or_default();
        for task in held {
            if away || self.tasks.get(&task).is_some_and(|held| held.body.kind != Kind::Step) {
                self.give_up(
                    now,
                    task,
                    false,
                    "its worker was drained and did not answer by the deadline",
                    out,
                );
            }
        }
    }

    /// Two looks in a row, because between two steps of a run nothing runs for a moment.
    fn note_drained(&mut self, now: Now, id: &WorkerId, out: &mut Out) {
        let Some(worker) = self.workers.get(id) else { return };
        let waits = |session: &SessionId| self.sessions.get(session).is_some_and(|s| s.active() > 0);
        let over = worker.drain_cut_mono_ms.is_some();
        let idle = worker.running.is_empty()
            && (over || (worker.pinned.is_empty() && !worker.sessions.iter().any(waits)));
        let idle = idle
            && (!worker.sends_sessions_away()
                || worker.sessions.iter().all(|session| self.is_left_behind(*session)));
        let Some(worker) = self.workers.get_mut(id) else { return };
        let before = std::mem::replace(&mut worker.drain_idle, idle);
        if idle
            && (before || over)
            && let Some(drain) = &mut worker.body.drain
        {
            drain.drained_ms = now.wall_ms;
            worker.note("worker.drained");
            out.workers.insert(id.clone());
        }
    }
}
