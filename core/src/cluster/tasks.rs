//! Submitting, handing out, cancelling and ending tasks.

use cooper_common::{
    error::{Code, Error, Result},
    ids::{SessionId, TaskId},
    limits,
};

use super::{Cluster, Effect, Message, Out};
use crate::{
    Now,
    change::InlineOutput,
    lease::Fence,
    session::{self, PARALLEL_MAX, Reason},
    task::{End, State, Submit, Task},
    worker::{self, WorkerId},
};

impl Cluster {
    /// Takes a task in, and hands it out in the same change when its worker has room.
    ///
    /// # Errors
    /// `session_not_found`, `session_ended`, `session_busy`, `no_worker` (its session's or stack's worker is lost),
    /// `overloaded`.
    pub fn submit(&mut self, now: Now, submit: Submit, full: bool) -> Result<Out> {
        let mut out = Out { full, ..Out::default() };
        self.submit_into(now, submit, &mut out)?;
        self.finish(now, &mut out);
        Ok(out)
    }

    /// Like [`Self::submit`], many at once; each is judged on its own.
    pub fn submit_all(&mut self, now: Now, submits: Vec<Submit>) -> (Out, Vec<Result<()>>) {
        let mut out = Out { full: true, ..Out::default() };
        let results = submits.into_iter().map(|submit| self.submit_into(now, submit, &mut out)).collect();
        self.finish(now, &mut out);
        (out, results)
    }

    fn submit_into(&mut self, now: Now, submit: Submit, out: &mut Out) -> Result<()> {
        if self.tasks.len() >= limits::store::LIVE_TASKS_MAX {
            return Err(Error::new(
                Code::Overloaded,
                format!("{} tasks wait or run already", limits::store::LIVE_TASKS_MAX),
            ));
        }
        if let Some(id) = submit.session {
            self.check_session(id)?;
        } else if let Some(id) = &submit.worker {
            self.check_worker(id)?;
        }
        let id = submit.id;
        self.tasks.insert(id, Task::new(now, submit));
        out.tasks.insert(id);
        self.enqueue(id);
        self.pump_task(now, id, out);
        Ok(())
    }

    fn check_session(&self, id: SessionId) -> Result<()> {
        let Some(session) = self.sessions.get(&id) else {
            return Err(Error::new(Code::SessionNotFound, format!("there is no session {id}")));
        };
        match session.body.state {
            session::State::Initializing | session::State::Ready | session::State::Checkpointing => {}
            session::State::Draining | session::State::Destroyed | session::State::Failed => {
                return Err(Error::new(
                    Code::SessionEnded,
                    format!("session {id} is {}", session.body.state.as_str()),
                ));
            }
        }
        if session.queue.len() + session.running.len() >= limits::exec::QUEUED_PER_SESSION_MAX {
            return Err(Error::new(
                Code::SessionBusy,
                format!("{} executions of session {id} wait or run", limits::exec::QUEUED_PER_SESSION_MAX),
            ));
        }
        self.check_worker(&session.body.worker)
    }

    fn check_worker(&self, id: &str) -> Result<()> {
        match self.workers.get(id) {
            Some(worker) if !matches!(worker.body.state, worker::State::Lost | worker::State::Gone) => Ok(()),
            _ => Err(Error::new(Code::NoWorker, format!("worker {id}, which this needs, is away"))),
        }
    }

    /// Puts a queued task where it waits.
    pub(super) fn enqueue(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get(&id) else { return };
        if let Some(session) = task.body.session {
            if let Some(session) = self.sessions.get_mut(&session) {
                session.queue.push_back(id);
                if let Some(worker) = self.workers.get_mut(session.body.worker.as_str()) {
                    worker.waiting.insert(session.id);
                }
            }
        } else if task.body.kind == crate::task::Kind::Step {
            if let Some(worker) = task.body.worker.as_deref().and_then(|w| self.workers.get_mut(w)) {
                worker.pinned.push_back(id);
            }
        } else {
            self.ready.push_back(id);
        }
    }

    fn pump_task(&mut self, now: Now, id: TaskId, out: &mut Out) {
        let Some(task) = self.tasks.get(&id) else { return };
        match (task.body.session, task.body.kind, task.body.worker.as_deref()) {
            (Some(session), ..) => self.pump_session(now, session, out),
            (None, crate::task::Kind::Step, Some(worker)) => {
                let worker: WorkerId = worker.into();
                self.pump_pinned(now, &worker, out);
            }
            (None, ..) => self.pump_ready(now, out),
        }
    }

    /// Hands out everything that this worker's room allows.
    pub(super) fn pump_worker(&mut self, now: Now, worker: &WorkerId, out: &mut Out) {
        self.pump_pinned(now, worker, out);
        let waiting: Vec<SessionId> =
            self.workers.get(worker).map(|w| w.waiting.iter().copied().collect()).unwrap_or_default();
        for session in waiting {
            self.pump_session(now, session, out);
        }
        self.pump_ready(now, out);
    }

    fn pump_pinned(&mut self, now: Now, worker: &WorkerId, out: &mut Out) {
        while let Some(w) = self.workers.get_mut(worker)
            && w.available() > 0
            && let Some(task) = w.pinned.pop_front()
        {
            self.assign(now, task, worker, out);
        }
    }

    /// Tasks of a session start in order; one that needs the interpreter waits for it and lets commands pass.
    pub(super) fn pump_session(&mut self, now: Now, id: SessionId, out: &mut Out) {
        let mut at = 0;
        loop {
            let Some(session) = self.sessions.get_mut(&id) else { return };
            let Some((worker, _)) = self.workers.get_key_value(session.body.worker.as_str()) else { return };
            let worker = worker.clone();
            if session.body.state != session::State::Ready
                || session.running.len() >= PARALLEL_MAX
                || self.workers.get(&worker).is_none_or(|w| w.available() == 0)
            {
                return;
            }
            let Some(task) = session.queue.get(at).copied() else {
                if session.queue.is_empty()
                    && let Some(worker) = self.workers.get_mut(&worker)
                {
                    worker.waiting.remove(&id);
                }
                return;
            };
            let exclusive = self.tasks.get(&task).is_some_and(|task| task.body.kind.exclusive());
            if exclusive && session.interpreter.is_some() {
                at += 1;
                continue;
            }
            session.queue.remove(at);
            self.assign(now, task, &worker, out);
        }
    }

    fn pump_ready(&mut self, now: Now, out: &mut Out) {
        while !self.ready.is_empty() {
            let Some((_, worker)) = self.free.last().cloned() else { return };
            let Some(task) = self.ready.pop_front() else { return };
            self.assign(now, task, &worker, out);
        }
    }

    fn assign(&mut self, _now: Now, id: TaskId, worker: &WorkerId, out: &mut Out) {
        let epoch = self.epoch;
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let Ok(fence) = task.assign(epoch, worker) else { return };
        let message = Message::Assign {
            task: id,
            fence,
            spec: task.spec.clone(),
            timeout_ms: task.body.timeout_ms,
            output_limit_bytes: task.body.output_limit_bytes,
        };
        if let Some(attached) = self.workers.get_mut(worker).and_then(|w| w.attached.as_mut()) {
            let spent = attached.credit.spend();
            debug_assert!(spent, "assigned against credit that is not there");
        }
        self.hold(id);
        self.reindex(worker);
        out.tasks.insert(id);
        self.send(worker, message, out);
    }

    /// The worker can take `granted` attempts more, having seen `seen` of ours.
    pub fn credit(&mut self, now: Now, worker: &str, attach: u64, granted: u32, seen: u64) -> Out {
        let mut out = Out::default();
        if !self.is_current(worker, attach) {
            return out;
        }
        self.seen(now, worker);
        let Some((id, _)) = self.workers.get_key_value(worker) else { return out };
        let id = id.clone();
        if let Some(attached) = self.workers.get_mut(&id).and_then(|w| w.attached.as_mut()) {
            attached.credit.grant(granted, seen);
        }
        self.reindex(&id);
        self.pump_worker(now, &id, &mut out);
        self.finish(now, &mut out);
        out
    }

    /// The worker started an attempt.
    pub fn started(&mut self, now: Now, worker: &str, attach: u64, id: TaskId, fence: Fence) -> Out {
        let mut out = Out::default();
        if self.is_current(worker, attach)
            && let Some(task) = self.tasks.get_mut(&id)
            && task.body.fence == fence
            && task.start(now).is_ok()
        {
            out.tasks.insert(id);
            self.finish(now, &mut out);
        }
        out
    }

    /// The worker reports the end of an attempt. Recorded once; always acked, so that the worker can forget it.
    #[allow(clippy::too_many_arguments)]
    pub fn result(
        &mut self,
        now: Now,
        worker: &str,
        attach: u64,
        id: TaskId,
        fence: Fence,
        end: End,
        result: Vec<u8>,
        output: Vec<InlineOutput>,
    ) -> Out {
        let mut out = Out { full: true, ..Out::default() };
        if !self.is_current(worker, attach) {
            return out;
        }
        self.seen(now, worker);
        let Some((worker, _)) = self.workers.get_key_value(worker) else { return out };
        let worker = worker.clone();
        let current = self.tasks.get(&id).is_some_and(|task| {
            task.held() && task.body.fence == fence && task.body.worker.as_deref() == Some(&*worker)
        });
        self.send(&worker, Message::ResultAck { task: id, fence, stale: !current }, &mut out);
        if current {
            self.release(id);
            let mut session = None;
            if let Some(task) = self.tasks.get_mut(&id) {
                session = task.body.session.filter(|_| task.body.kind.exclusive());
                // The state was checked above.
                let _ = task.end(now, end, Some(result), output);
                out.tasks.insert(id);
            }
            // Its client has just been told.
            if let Some(id) = session
                && let Some(session) = self.sessions.get_mut(&id)
                && session.interpreter_restarted(false)
            {
                out.sessions.insert(id);
            }
            self.pump_after(now, id, &worker, &mut out);
        }
        self.finish(now, &mut out);
        out
    }

    /// A place became free: whoever waited for exactly this goes first.
    fn pump_after(&mut self, now: Now, ended: TaskId, worker: &WorkerId, out: &mut Out) {
        if let Some(session) = self.tasks.get(&ended).and_then(|task| task.body.session) {
            self.pump_session(now, session, out);
        }
        self.pump_worker(now, worker, out);
    }

    /// Asks for the end of a task. A queued one ends at once; a held one when its worker says so.
    ///
    /// # Errors
    /// `task_not_found` when it is not live.
    pub fn cancel(&mut self, now: Now, id: TaskId) -> Result<Out> {
        let mut out = Out { full: true, ..Out::default() };
        let Some(task) = self.tasks.get_mut(&id) else {
            return Err(Error::new(Code::TaskNotFound, format!("there is no live task {id}")));
        };
        match task.body.state {
            State::Queued => {
                self.dequeue(id);
                self.end_by_us(
                    now,
                    id,
                    End::Cancelled,
                    Code::Cancelled,
                    "cancelled before it started",
                    &mut out,
                );
            }
            State::Assigned | State::Running => {
                let fence = task.body.fence;
                let first = !std::mem::replace(&mut task.body.cancel_requested, true);
                let worker: Option<WorkerId> = task.body.worker.as_deref().map(Into::into);
                if first {
                    out.tasks.insert(id);
                }
                if let Some(worker) = worker {
                    self.send(&worker, Message::Cancel { task: id, fence }, &mut out);
                }
            }
            State::Ended(_) => {}
        }
        self.finish(now, &mut out);
        Ok(out)
    }

    fn dequeue(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get(&id) else { return };
        if let Some(session) = task.body.session.and_then(|s| self.sessions.get_mut(&s)) {
            session.queue.retain(|queued| *queued != id);
        } else if let Some(worker) = task.body.worker.as_deref().and_then(|w| self.workers.get_mut(w)) {
            worker.pinned.retain(|queued| *queued != id);
        } else {
            self.ready.retain(|queued| *queued != id);
        }
    }

    /// Ends a task on Cooper's own authority, with a code and a message instead of a worker's outcome.
    pub(super) fn end_by_us(
        &mut self,
        now: Now,
        id: TaskId,
        end: End,
        code: Code,
        message: &str,
        out: &mut Out,
    ) {
        self.release(id);
        if let Some(task) = self.tasks.get_mut(&id) {
            task.body.reason = Some(Reason { code: code.as_str().to_owned(), message: message.to_owned() });
            if task.end(now, end, None, Vec::new()).is_ok() {
                out.tasks.insert(id);
                out.effects.push(Effect::CapacityChanged);
            }
        }
    }

    /// An attempt that its worker will not finish: again where that is safe, else lost.
    pub(super) fn give_up(&mut self, now: Now, id: TaskId, never_started: bool, why: &str, out: &mut Out) {
        let Some(task) = self.tasks.get(&id) else { return };
        if task.body.cancel_requested {
            self.end_by_us(now, id, End::Cancelled, Code::Cancelled, "cancelled", out);
        } else if never_started || task.body.kind.rerunnable() {
            self.release(id);
            if let Some(task) = self.tasks.get_mut(&id)
                && task.requeue().is_ok()
            {
                out.tasks.insert(id);
                out.effects.push(Effect::Restarted { task: id });
                self.enqueue(id);
            }
        } else {
            self.end_by_us(now, id, End::Lost, Code::WorkerLost, why, out);
        }
    }
}
