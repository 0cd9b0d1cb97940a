//! What a task waits for, in a word for programs and a sentence for people.

use std::collections::BTreeMap;

use cooper_common::ids::{SessionId, TaskId};

use super::Cluster;
use crate::{
    Now,
    queue::{Place, Queue},
    session::{self, PARALLEL_MAX, Session},
    task::{Kind, State, Task},
    worker::{self, Worker, WorkerId},
};

/// Stable words; new ones may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// No worker is attached.
    NoWorker,
    /// No attached worker has the labels.
    NoWorkerWithLabels,
    /// The one worker that can do it, or every one, is not attached.
    WorkerAway,
    WorkerSuspect,
    WorkerDraining,
    /// Every place is in use.
    NoCredit,
    SessionInitializing,
    SessionCheckpointing,
    /// As many tasks of the session run as may run side by side.
    SessionFull,
    InterpreterBusy,
    /// A retry waits for its time.
    NotBefore,
    /// Handed to a worker that has not said that it started.
    Assigned,
    Running,
    /// It was cancelled, and its worker ends it.
    Cancelling,
    /// A deadline is over, and its worker ends it.
    DeadlinePassed,
}

impl Cause {
    pub const fn as_str(self) -> &'static str {
        match self {
            Cause::NoWorker => "no_worker",
            Cause::NoWorkerWithLabels => "no_worker_with_labels",
            Cause::WorkerAway => "worker_away",
            Cause::WorkerSuspect => "worker_suspect",
            Cause::WorkerDraining => "worker_draining",
            Cause::NoCredit => "no_credit",
            Cause::SessionInitializing => "session_initializing",
            Cause::SessionCheckpointing => "session_checkpointing",
            Cause::SessionFull => "session_full",
            Cause::InterpreterBusy => "interpreter_busy",
            Cause::NotBefore => "not_before",
            Cause::Assigned => "assigned",
            Cause::Running => "running",
            Cause::Cancelling => "cancelling",
            Cause::DeadlinePassed => "deadline_passed",
        }
    }
}

/// Why a task that has not ended is where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Why {
    pub cause: Cause,
    pub sentence: String,
    /// Who holds it, or the one worker that it waits for.
    pub worker: Option<WorkerId>,
    /// The task it waits for.
    pub blocking: Option<TaskId>,
    /// Tasks that wait in the same place and come before it.
    pub ahead: usize,
}

impl Why {
    fn new(cause: Cause, sentence: impl Into<String>) -> Self {
        Self { cause, sentence: sentence.into(), worker: None, blocking: None, ahead: 0 }
    }
    fn at(mut self, worker: &WorkerId) -> Self {
        self.worker = Some(worker.clone());
        self
    }
    fn behind(mut self, queue: Option<&Queue>, place: Place) -> Self {
        self.ahead = queue.map_or(0, |queue| queue.before(place));
        if self.ahead > 0 {
            let (s, verb) = if self.ahead == 1 { ("", "is") } else { ("s", "are") };
            self.sentence.push_str(&format!("; {} task{s} {verb} before it", self.ahead));
        }
        self
    }
}

impl Cluster {
    /// `None` when it is not live. Linear in what waits in the same place, so that whoever asks pays for it.
    pub fn explain(&self, now: Now, id: TaskId) -> Option<Why> {
        let task = self.tasks.get(&id)?;
        Some(match task.body.state {
            State::Queued => self.waits(now, task),
            State::Assigned | State::Running | State::Ended(_) => self.held_by(now, task),
        })
    }

    fn held_by(&self, now: Now, task: &Task) -> Why {
        let name = task.body.worker.clone().unwrap_or_default();
        let since = since(now, task.held_mono_ms);
        let away = match self.workers.get(name.as_str()) {
            Some(worker) if worker.attached.is_some() => "",
            _ => "; it is not attached now",
        };
        let why = if let Some(passed) = task.body.passed() {
            let passed = passed.as_str();
            Why::new(Cause::DeadlinePassed, format!("deadline {passed} is over; worker {name} ends it{away}"))
        } else if task.body.cancel_requested {
            Why::new(Cause::Cancelling, format!("cancelled; worker {name} ends it{away}"))
        } else if task.body.state == State::Assigned {
            Why::new(Cause::Assigned, format!("handed to worker {name} {since} ago, not started yet{away}"))
        } else {
            Why::new(Cause::Running, format!("runs on worker {name} since {since}{away}"))
        };
        why.at(&name.into())
    }

    fn waits(&self, now: Now, task: &Task) -> Why {
        if let Some(at) = task.not_before_mono_ms {
            let left = human(at.saturating_sub(now.mono_ms));
            let (used, max) = (task.body.attempts_used(), task.body.max_attempts());
            let text = format!("attempt {used} of {max} did not succeed; the next one starts in {left}");
            return Why::new(Cause::NotBefore, text);
        }
        if let Some(id) = task.body.session {
            return self.waits_in_session(now, task, id);
        }
        let pinned = task.body.worker.as_deref().filter(|_| task.body.kind == Kind::Step);
        match pinned {
            Some(id) => match self.workers.get(id) {
                Some(worker) => self.waits_for(worker, true).behind(Some(&worker.pinned), task.place),
                None => {
                    Why::new(Cause::WorkerAway, format!("worker {id}, which has the stack, is not known"))
                }
            },
            None => {
                let queue = self.pools.get(task.worker_labels()).map(|pool| &pool.queue);
                self.waits_for_any(task.worker_labels()).behind(queue, task.place)
            }
        }
    }

    fn waits_in_session(&self, now: Now, task: &Task, id: SessionId) -> Why {
        let Some(session) = self.sessions.get(&id) else {
            return Why::new(Cause::WorkerAway, format!("session {id} is gone"));
        };
        if session.is_saved() {
            return Why::new(
                Cause::SessionCheckpointing,
                format!(
                    "session {id} is saved and waits for another worker with room, its labels and its Python"
                ),
            );
        }
        let Some(worker) = self.workers.get(session.body.worker.as_str()) else {
            let worker = &session.body.worker;
            return Why::new(
                Cause::WorkerAway,
                format!("worker {worker}, which has session {id}, is not known"),
            );
        };
        let why = match session.body.state {
            session::State::Checkpointing if worker.attached.is_some() => {
                Why::new(Cause::SessionCheckpointing, format!("session {id} is being saved"))
            }
            // What is wrong with its worker explains more than what it waits for there.
            _ if !worker.goes_on() => self.waits_for(worker, true),
            session::State::Initializing => {
                Why::new(Cause::SessionInitializing, format!("session {id} is being made on {}", worker.id))
            }
            _ if session.running.len() >= PARALLEL_MAX => {
                Why::new(Cause::SessionFull, format!("{PARALLEL_MAX} tasks of session {id} run"))
            }
            _ => match self.interpreter_of(session).filter(|_| task.body.kind.exclusive()) {
                Some(busy) => {
                    let for_ = since(now, busy.held_mono_ms);
                    let text = format!("the interpreter of {id} is busy with {} since {for_}", busy.id);
                    Why { blocking: Some(busy.id), ..Why::new(Cause::InterpreterBusy, text) }
                }
                None => self.waits_for(worker, true),
            },
        };
        why.at(&worker.id).behind(Some(&session.queue), task.place)
    }

    fn interpreter_of(&self, session: &Session) -> Option<&Task> {
        session.interpreter.and_then(|id| self.tasks.get(&id))
    }

    /// What is in the way of one worker taking more, of tasks that are bound to it or of others.
    fn waits_for(&self, worker: &Worker, bound: bool) -> Why {
        let id = &worker.id;
        let why = match (worker.body.state, worker.attached) {
            (worker::State::Suspect, _) => {
                Why::new(Cause::WorkerSuspect, format!("worker {id} is suspect: it has been silent"))
            }
            (worker::State::Draining, _) if !(bound && worker.goes_on()) => {
                Why::new(Cause::WorkerDraining, format!("worker {id} is draining and takes no new work"))
            }
            (state, None) => {
                Why::new(Cause::WorkerAway, format!("worker {id} is not attached (it is {})", state.as_str()))
            }
            (_, Some(_)) => Why::new(
                Cause::NoCredit,
                format!(
                    "no credit: {} of {} places of worker {id} are in use",
                    worker.running.len(),
                    worker.body.tasks_max
                ),
            ),
        };
        why.at(id)
    }

    fn waits_for_any(&self, labels: &BTreeMap<String, String>) -> Why {
        let attached: Vec<&Worker> = self.workers.values().filter(|w| w.attached.is_some()).collect();
        if attached.is_empty() {
            return Why::new(Cause::NoWorker, "no worker is attached");
        }
        let able: Vec<&Worker> = attached.into_iter().filter(|worker| worker.has(labels)).collect();
        match able.as_slice() {
            [] => {
                let labels = super::named(labels);
                return Why::new(
                    Cause::NoWorkerWithLabels,
                    format!("no attached worker has the labels {labels}"),
                );
            }
            [one] => return self.waits_for(one, false),
            _ => {}
        }
        let accepting: Vec<_> = able.iter().filter(|worker| worker.accepts()).collect();
        if accepting.is_empty() {
            let draining = able.iter().any(|worker| worker.body.state == worker::State::Draining);
            let cause = if draining { Cause::WorkerDraining } else { Cause::WorkerSuspect };
            return Why::new(cause, format!("all {} attached workers are draining or suspect", able.len()));
        }
        let (used, places) = accepting
            .iter()
            .fold((0, 0), |(used, places), w| (used + w.running.len(), places + u64::from(w.body.tasks_max)));
        Why::new(
            Cause::NoCredit,
            format!("no credit: {used} of {places} places of {} workers are in use", accepting.len()),
        )
    }
}

fn since(now: Now, mono_ms: i64) -> String {
    let now = i64::try_from(now.mono_ms).unwrap_or(i64::MAX);
    human(u64::try_from(now.saturating_sub(mono_ms)).unwrap_or(0))
}

fn human(ms: u64) -> String {
    match ms {
        0..120_000 => format!("{:.1} s", ms as f64 / 1_000.0),
        _ => format!("{} min", ms / 60_000),
    }
}
