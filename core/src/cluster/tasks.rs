//! Submitting, handing out, cancelling and ending tasks.

use std::sync::Arc;

use cooper_common::{
    error::{Code, Error, Result},
    ids::{SessionId, TaskId},
    limits,
};

use super::{Cluster, Effect, Message, Out};
use crate::{
    Now,
    artifact::Artifact,
    change::InlineOutput,
    lease::Fence,
    retry::{self, Budget, When},
    session::{self, Reason},
    task::{End, Kind, State, Submit, Task},
    worker::{self, WorkerId},
};

/// What a worker says about attempts.
#[derive(Debug, Clone)]
pub enum Said {
    /// It can take this many more, having seen that many assigns of this attach.
    Credit {
        granted: u32,
        seen: u64,
    },
    Started {
        task: TaskId,
        fence: Fence,
    },
    /// An attempt ended. `result` is the encoded cooper.v1.Outcome.
    Result {
        task: TaskId,
        fence: Fence,
        end: End,
        result: Vec<u8>,
        output: Vec<InlineOutput>,
        /// Of its session: on the disk already.
        artifacts: Vec<Artifact>,
    },
}

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

    fn check_room(&self) -> Result<()> {
        if self.tasks.len() >= limits::store::LIVE_TASKS_MAX {
            return Err(Error::new(
                Code::Overloaded,
                format!("{} tasks wait or run already", limits::store::LIVE_TASKS_MAX),
            ));
        }
        Ok(())
    }

    fn submit_into(&mut self, now: Now, submit: Submit, out: &mut Out) -> Result<()> {
        self.check_room()?;
        if submit.spec.len() > limits::link::SPEC_BYTES_MAX {
            return Err(Error::new(
                Code::TooLarge,
                format!("the task has {} bytes, no message to a worker holds that", submit.spec.len()),
            ));
        }
        if let Some(id) = submit.session {
            self.check_session(id)?;
            self.wake_into(now, id, out)?;
        } else if let Some(id) = &submit.worker {
            self.check_worker(id)?;
        } else if let Some(scheduling) = &submit.scheduling
            && !self.pools.admits(&scheduling.worker_labels)
        {
            return Err(Error::new(
                Code::Overloaded,
                format!("tasks with {} different labels wait already", limits::schedule::SELECTORS_MAX),
            ));
        }
        let id = submit.id;
        let place = self.next_place(submit.priority);
        let mut task = Task::new(now, submit);
        task.place = place;
        self.tasks.insert(id, task);
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
        if session.active() >= limits::exec::QUEUED_PER_SESSION_MAX {
            return Err(Error::new(
                Code::SessionBusy,
                format!("{} executions of session {id} wait or run", limits::exec::QUEUED_PER_SESSION_MAX),
            ));
        }
        if session.body.restore.is_some() || session.body.saving.is_some() {
            // It goes on wherever it will be.
            return Ok(());
        }
        self.check_worker(&session.body.worker)?;
        match self.workers.get(session.body.worker.as_str()).filter(|worker| worker.closed()) {
            Some(worker) => Err(Error::new(
                Code::WorkerDraining,
                format!(
                    "worker {}, which holds session {id}, is being drained and starts nothing",
                    worker.id
                ),
            )),
            None => Ok(()),
        }
    }

    fn check_worker(&self, id: &str) -> Result<()> {
        match self.workers.get(id) {
            Some(worker) if !matches!(worker.body.state, worker::State::Lost | worker::State::Gone) => Ok(()),
            _ => Err(Error::new(Code::NoWorker, format!("worker {id}, which this needs, is away"))),
        }
    }

    /// Puts a queued task where it waits: for its time, or for its turn.
    pub(super) fn enqueue(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get(&id) else { return };
        let delayed = task.not_before_mono_ms.is_some();
        if let Some(session) = task.body.session {
            let Some(session) = self.sessions.get_mut(&session) else { return };
            if delayed {
                session.delayed.insert(id);
                return;
            }
            session.queue.insert(task.place, id);
            if let Some(worker) = self.workers.get_mut(session.body.worker.as_str()) {
                worker.waiting.insert(session.id);
            }
        } else if delayed {
            // Its timer knows it.
        } else if task.body.kind == Kind::Step {
            if let Some(worker) = task.body.worker.as_deref().and_then(|w| self.workers.get_mut(w)) {
                worker.pinned.insert(task.place, id);
            }
        } else {
            self.pools.insert(task.worker_labels(), task.place, id, &self.workers);
        }
    }

    pub(super) fn pump_task(&mut self, now: Now, id: TaskId, out: &mut Out) {
        let Some(task) = self.tasks.get(&id) else { return };
        match (task.body.session, task.body.kind, task.body.worker.as_deref()) {
            (Some(session), ..) => self.pump_session(now, session, out),
            (None, Kind::Step, Some(worker)) => {
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
            && w.available_bound() > 0
            && let Some(task) = w.pinned.pop()
        {
            self.assign(now, task, worker, out);
        }
    }

    /// Tasks of a session start in order of priority and submission.
    pub(super) fn pump_session(&mut self, now: Now, id: SessionId, out: &mut Out) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.active_mono_ms = now.mono_ms;
        }
        loop {
            let Some(session) = self.sessions.get(&id) else { return };
            let Some((worker, w)) = self.workers.get_key_value(session.body.worker.as_str()) else { return };
            if session.queue.is_empty() {
                let worker = worker.clone();
                if let Some(worker) = self.workers.get_mut(&worker) {
                    worker.waiting.remove(&id);
                }
                return;
            }
            if w.available_bound() == 0 {
                return;
            }
            let Some((place, task)) = self.startable(session) else { return };
            let worker = worker.clone();
            if let Some(session) = self.sessions.get_mut(&id) {
                session.queue.remove(place);
            }
            self.assign(now, task, &worker, out);
        }
    }

    pub(super) fn pump_ready(&mut self, now: Now, out: &mut Out) {
        while let Some((task, worker)) = self.pools.take() {
            self.assign(now, task, &worker, out);
        }
    }

    fn assign(&mut self, now: Now, id: TaskId, worker: &WorkerId, out: &mut Out) {
        let epoch = self.epoch;
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let Ok(fence) = task.assign(now, epoch, worker) else { return };
        if !self.budgets.is_empty()
            && task.body.attempts_used() == 0
            && let Some(budget) = self.budgets.get_mut(&task.tenant)
        {
            budget.earn();
        }
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

    /// What a worker says about its attempts, in the order it said it: one decision, so that one commit holds it.
    pub fn hear(&mut self, now: Now, worker: &str, attach: u64, said: Vec<Said>) -> Out {
        let mut out = Out::default();
        if !self.is_current(worker, attach) {
            return out;
        }
        self.seen(now, worker);
        let Some((worker, _)) = self.workers.get_key_value(worker) else { return out };
        let worker = worker.clone();
        let mut room = false;
        for said in said {
            match said {
                Said::Credit { granted, seen } => {
                    if let Some(attached) = self.workers.get_mut(&worker).and_then(|w| w.attached.as_mut()) {
                        attached.credit.grant(granted, seen);
                    }
                    room = true;
                }
                Said::Started { task, fence } => self.started(now, task, fence, &mut out),
                Said::Result { task, fence, end, result, output, artifacts } => {
                    if self.is_held(&worker, task, fence) {
                        self.artifacts_made(now, task, &artifacts, &mut out);
                    }
                    room |= self.result(now, &worker, task, fence, end, result, output, &mut out);
                }
            }
        }
        if room {
            self.reindex(&worker);
            self.pump_worker(now, &worker, &mut out);
        }
        self.finish(now, &mut out);
        out
    }

    /// The worker started an attempt.
    fn started(&mut self, now: Now, id: TaskId, fence: Fence, out: &mut Out) {
        if let Some(task) = self.tasks.get_mut(&id)
            && task.body.fence == fence
            && task.start(now).is_ok()
        {
            out.tasks.insert(id);
        }
    }

    /// The worker reports the end of an attempt. Recorded once; always acked, so that the worker can forget it. True = a
    /// place became free.
    #[allow(clippy::too_many_arguments)]
    fn result(
        &mut self,
        now: Now,
        worker: &WorkerId,
        id: TaskId,
        fence: Fence,
        end: End,
        result: Vec<u8>,
        output: Vec<InlineOutput>,
        out: &mut Out,
    ) -> bool {
        out.full = true;
        let current = self.is_held(worker, id, fence);
        self.send(worker, Message::ResultAck { task: id, fence, stale: !current }, out);
        if !current {
            return false;
        }
        let task = self.tasks.get(&id);
        let session = task.and_then(|task| task.body.session);
        let exclusive = task.is_some_and(|task| task.body.kind.exclusive());
        self.attempt_ended(now, id, end, result, output, out);
        // Its client has just been told.
        if let Some(id) = session.filter(|_| exclusive)
            && let Some(session) = self.sessions.get_mut(&id)
            && session.interpreter_restarted(false)
        {
            out.sessions.insert(id);
        }
        // Whoever waited for exactly this place goes first.
        if let Some(session) = session {
            self.pump_session(now, session, out);
        }
        true
    }

    /// Whether this attempt is the one whose word counts.
    pub fn is_held(&self, worker: &str, id: TaskId, fence: Fence) -> bool {
        self.tasks.get(&id).is_some_and(|task| {
            task.held() && task.body.fence == fence && task.body.worker.as_deref() == Some(worker)
        })
    }

    /// In the commit of the result that names them, whatever becomes of the task.
    fn artifacts_made(&self, now: Now, id: TaskId, artifacts: &[Artifact], out: &mut Out) {
        let Some(task) = self.tasks.get(&id) else { return };
        let Some(session) = task.body.session else { return };
        out.changes.extend(artifacts.iter().map(|artifact| artifact.made(now, &task.tenant, session)));
    }

    /// What the end of a held attempt means to its task.
    fn attempt_ended(
        &mut self,
        now: Now,
        id: TaskId,
        end: End,
        result: Vec<u8>,
        output: Vec<InlineOutput>,
        out: &mut Out,
    ) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        if end != End::Cancelled {
            // It ended by itself before a drain's deadline could end it.
            task.body.reason = None;
        }
        let mut state = end;
        if let Some(passed) = task.body.passed() {
            // What it did in spite of the deadline, it did.
            if end != End::Succeeded {
                state = End::TimedOut;
                task.body.reason = Some(reason(Code::TimedOut, &task.overdue(passed)));
            }
        } else if task.body.cancel_requested {
            // As when its worker is given up: nobody wants it any more.
            if end == End::Lost {
                state = End::Cancelled;
            }
        } else {
            let allowed = match end {
                End::Failed => task.body.retried() >= When::Always,
                End::Lost => task.body.retried() >= When::Lost,
                End::Succeeded | End::TimedOut | End::Cancelled | End::DeadLetter => false,
            };
            if allowed {
                if task.body.attempts_used() + 1 < task.body.max_attempts() {
                    self.retry(now, id, out);
                    return;
                }
                state = End::DeadLetter;
                let how = if end == End::Lost { "was lost" } else { "failed" };
                task.body.reason = Some(exhausted(task, how));
                task.use_up();
            }
        }
        self.release(id);
        if let Some(task) = self.tasks.get_mut(&id)
            && task.end(now, state, Some(result), output).is_ok()
        {
            out.tasks.insert(id);
        }
    }

    /// Another attempt, later.
    fn retry(&mut self, now: Now, id: TaskId, out: &mut Out) {
        self.release(id);
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let tenant = task.tenant.clone();
        let pause = retry::pause_ms(id, task.body.attempts_used() + 1) + self.budget_wait(now, &tenant);
        if let Some(task) = self.tasks.get_mut(&id)
            && task.retry(now, pause).is_ok()
        {
            out.tasks.insert(id);
            out.effects.push(Effect::Restarted { task: id, attempts_used: task.body.attempts_used() });
            self.enqueue(id);
        }
    }

    /// Takes one retry from the tenant's budget; how long it waits beyond its pause.
    pub(super) fn budget_wait(&mut self, now: Now, tenant: &Arc<str>) -> u64 {
        let budget = self.budgets.entry(tenant.clone()).or_insert_with(|| Budget::full(now.mono_ms));
        budget.take(now.mono_ms)
    }

    /// Takes a task out of `dead_letter`: as if it had just been submitted, with all its attempts before it.
    ///
    /// # Errors
    /// `not_dead_letter`; as [`Self::submit`].
    pub fn requeue(&mut self, now: Now, mut task: Task, key: &str) -> Result<Out> {
        let mut out = Out { full: true, ..Out::default() };
        let id = task.id;
        let live = self.tasks.get(&id).map(|live| live.body.state);
        if live.is_some() || task.body.state != State::Ended(End::DeadLetter) {
            let state = live.unwrap_or(task.body.state).as_str();
            return Err(Error::new(Code::NotDeadLetter, format!("task {id} is {state}")));
        }
        self.check_room()?;
        if let Some(session) = task.body.session {
            self.check_session(session)?;
            self.wake_into(now, session, &mut out)?;
        } else if task.body.kind == Kind::Step {
            // Its run went on without it.
            return Err(Error::new(Code::NotDeadLetter, format!("task {id} is a step of a run that ended"))
                .with_hint("start another repair"));
        }
        if task.requeue(now, key).is_err() {
            return Ok(out);
        }
        task.place = self.next_place(task.body.priority);
        self.tasks.insert(id, task);
        out.tasks.insert(id);
        out.effects.push(Effect::Restarted { task: id, attempts_used: 0 });
        self.enqueue(id);
        self.pump_task(now, id, &mut out);
        self.finish(now, &mut out);
        Ok(out)
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

    pub(super) fn dequeue(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get(&id) else { return };
        if let Some(session) = task.body.session.and_then(|s| self.sessions.get_mut(&s)) {
            session.queue.remove(task.place);
            session.delayed.remove(&id);
        } else if task.body.kind == Kind::Step {
            if let Some(worker) = task.body.worker.as_deref().and_then(|w| self.workers.get_mut(w)) {
                worker.pinned.remove(task.place);
            }
        } else {
            self.pools.remove(task.worker_labels(), task.place);
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
            task.body.reason = Some(reason(code, message));
            if task.end(now, end, None, Vec::new()).is_ok() {
                out.tasks.insert(id);
                out.effects.push(Effect::CapacityChanged);
            }
        }
    }

    /// An attempt that its worker will not finish: again where that is safe, else lost. What is queued again may find room
    /// elsewhere: the caller pumps when it has given up all it gives up.
    pub(super) fn give_up(&mut self, now: Now, id: TaskId, never_started: bool, why: &str, out: &mut Out) {
        let Some(task) = self.tasks.get(&id) else { return };
        if task.body.cancel_requested {
            // A drain's deadline says why; a client knows why.
            let why = task.body.reason.clone();
            let code = why.as_ref().and_then(|why| Code::parse(&why.code)).unwrap_or(Code::Cancelled);
            let message = why.map_or_else(|| "cancelled".to_owned(), |why| why.message);
            self.end_by_us(now, id, End::Cancelled, code, &message, out);
        } else if let Some(passed) = task.body.passed() {
            let overdue = task.overdue(passed);
            self.end_by_us(now, id, End::TimedOut, Code::TimedOut, &overdue, out);
        } else if never_started {
            self.release(id);
            if let Some(task) = self.tasks.get_mut(&id)
                && task.take_back().is_ok()
            {
                out.tasks.insert(id);
                out.effects.push(Effect::Restarted { task: id, attempts_used: task.body.attempts_used() });
                self.enqueue(id);
            }
        } else if task.body.retried() == When::IfNotStarted {
            self.end_by_us(now, id, End::Lost, Code::WorkerLost, why, out);
        } else if task.body.attempts_used() + 1 < task.body.max_attempts() {
            self.retry(now, id, out);
        } else {
            let reason = exhausted(task, &format!("was lost: {why}"));
            if let Some(task) = self.tasks.get_mut(&id) {
                task.use_up();
            }
            self.end_by_us(now, id, End::DeadLetter, Code::AttemptsExhausted, &reason.message, out);
        }
    }
}

fn reason(code: Code, message: &str) -> Reason {
    Reason { code: code.as_str().to_owned(), message: message.to_owned() }
}

fn exhausted(task: &Task, how: &str) -> Reason {
    let attempts = task.body.max_attempts();
    reason(Code::AttemptsExhausted, &format!("all {attempts} attempts are used up; the last {how}"))
}
