//! A task: the durable unit streamed to a worker. Which transitions there are, and what a lost attempt means.

use std::{collections::BTreeMap, sync::Arc};

use cooper_common::{
    ids::{SessionId, TaskId},
    limits,
};
use serde::{Deserialize, Serialize};

use crate::{
    Now,
    change::{Aggregate, Change, InlineOutput, NewEvent, Row, Version},
    lease::Fence,
    queue::Place,
    retry::When,
    session::Reason,
    worker::WorkerId,
};

/// What a task does, as far as it matters to decisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Noop,
    Python,
    Shell,
    Install,
    Step,
}

impl Kind {
    /// May an attempt that possibly ran be started again? Steps are idempotent; code of users is never silently rerun.
    pub const fn rerunnable(self) -> bool {
        matches!(self, Kind::Noop | Kind::Step)
    }
    /// Which ends of an attempt another may follow unless the submit says otherwise.
    pub const fn retried(self) -> When {
        if self.rerunnable() { When::Lost } else { When::IfNotStarted }
    }
    /// Runs in the session's one interpreter: one at a time.
    pub const fn exclusive(self) -> bool {
        matches!(self, Kind::Python)
    }
}

/// How a task ended. Absorbing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    Succeeded,
    Failed,
    TimedOut,
    Cancelled,
    Lost,
    DeadLetter,
}

impl End {
    pub const ALL: [End; 6] =
        [End::Succeeded, End::Failed, End::TimedOut, End::Cancelled, End::Lost, End::DeadLetter];
    /// The end with this name: a task's state, and what its event is called after `task.`.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|end| State::Ended(*end).as_str() == name)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Queued,
    Assigned,
    Running,
    #[serde(untagged)]
    Ended(End),
}

impl State {
    pub const fn as_str(self) -> &'static str {
        match self {
            State::Queued => "queued",
            State::Assigned => "assigned",
            State::Running => "running",
            State::Ended(End::Succeeded) => "succeeded",
            State::Ended(End::Failed) => "failed",
            State::Ended(End::TimedOut) => "timed_out",
            State::Ended(End::Cancelled) => "cancelled",
            State::Ended(End::Lost) => "lost",
            State::Ended(End::DeadLetter) => "dead_letter",
        }
    }
}

/// How long a task may take, counted from its submit or requeue (start-to-close: from the start of the attempt).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Deadline {
    /// To its first start; while it waits.
    ScheduleToStart,
    /// The time limit of an attempt. Its worker enforces it; the coordinator only when the worker does not.
    StartToClose,
    /// To its end, all attempts together.
    ScheduleToClose,
}

impl Deadline {
    pub const fn as_str(self) -> &'static str {
        match self {
            Deadline::ScheduleToStart => "schedule_to_start",
            Deadline::StartToClose => "start_to_close",
            Deadline::ScheduleToClose => "schedule_to_close",
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What only some tasks have. A task of which all is the default has none of it, in memory and in its row.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Scheduling {
    /// Labels that its worker must have; tasks without a session only.
    #[serde(skip_serializing_if = "is_default")]
    pub worker_labels: BTreeMap<String, String>,
    /// `None` = as the kind says.
    #[serde(skip_serializing_if = "is_default")]
    pub retry: Option<When>,
    /// 0 = as the kind says.
    #[serde(skip_serializing_if = "is_default")]
    pub max_attempts: u32,
    /// 0 = none.
    #[serde(skip_serializing_if = "is_default")]
    pub schedule_to_start_ms: u64,
    /// 0 = none.
    #[serde(skip_serializing_if = "is_default")]
    pub schedule_to_close_ms: u64,
    /// Attempts that were lost or failed since the submit or the last requeue.
    #[serde(skip_serializing_if = "is_default")]
    pub attempts_used: u32,
    /// Wall clock: not handed out before.
    #[serde(skip_serializing_if = "is_default")]
    pub not_before_ms: i64,
    /// Wall clock: when it was taken out of `dead_letter`.
    #[serde(skip_serializing_if = "is_default")]
    pub requeued_ms: i64,
    /// The request that did.
    #[serde(skip_serializing_if = "is_default")]
    pub requeue_key: String,
    /// Passed while an attempt was held: it is cancelled at its worker.
    #[serde(skip_serializing_if = "is_default")]
    pub passed: Option<Deadline>,
}

/// What is decided on; the row's body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Body {
    pub state: State,
    pub kind: Kind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// Pinned to this worker (steps: the one that owns the stack), or held by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// The current or last grant.
    pub fence: Fence,
    pub timeout_ms: u64,
    pub output_limit_bytes: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancel_requested: bool,
    /// Why Cooper, not the worker, ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    #[serde(default)]
    pub started_ms: i64,
    #[serde(default)]
    pub ended_ms: i64,
    /// The higher goes first.
    #[serde(default, skip_serializing_if = "is_default")]
    pub priority: i8,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduling: Option<Box<Scheduling>>,
}

impl Body {
    pub fn retried(&self) -> When {
        self.scheduling.as_ref().and_then(|s| s.retry).unwrap_or(self.kind.retried())
    }
    /// Attempts that may be used up before `dead_letter`.
    pub fn max_attempts(&self) -> u32 {
        match self.scheduling.as_ref().map_or(0, |s| s.max_attempts) {
            0 if self.kind.rerunnable() => limits::retry::ATTEMPTS_RERUNNABLE,
            0 if self.retried() > When::IfNotStarted => limits::retry::ATTEMPTS_OPTED_IN,
            0 => 1,
            named => named,
        }
    }
    pub fn attempts_used(&self) -> u32 {
        self.scheduling.as_ref().map_or(0, |s| s.attempts_used)
    }
    /// The last requeue was this request's.
    pub fn requeued_with(&self, key: &str) -> bool {
        !key.is_empty() && self.scheduling.as_ref().is_some_and(|s| s.requeue_key == key)
    }
    pub fn passed(&self) -> Option<Deadline> {
        self.scheduling.as_ref().and_then(|s| s.passed)
    }
    /// 0 = at once.
    pub fn not_before_ms(&self) -> i64 {
        self.scheduling.as_ref().map_or(0, |s| s.not_before_ms)
    }
}

/// A task that has not ended, with what is needed to hand it out (again).
#[derive(Debug, Clone)]
pub struct Task {
    pub id: TaskId,
    pub tenant: Arc<str>,
    pub key: String,
    pub created_ms: i64,
    pub version: Version,
    pub body: Body,
    /// Encoded cooper.v1.TaskSpec.
    pub spec: Arc<[u8]>,
    pub(crate) place: Place,
    /// Monotonic times, which decide: of the submit or requeue (before this coordinator's clock began, if negative), of
    /// the grant it is held under, and of `not_before` while that is awaited.
    pub(crate) since_mono_ms: i64,
    pub(crate) held_mono_ms: i64,
    pub(crate) not_before_mono_ms: Option<u64>,
    /// When the cluster looks at it again, unasked.
    pub(crate) due_mono_ms: Option<u64>,
    events: Vec<&'static str>,
    result: Option<Vec<u8>>,
    output: Vec<InlineOutput>,
}

/// A transition that the state does not allow; the message that asked for it changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a task that is {from} cannot become {to}")]
pub struct Rejected {
    from: &'static str,
    to: &'static str,
}

/// How often a task whose deadline passed at its worker is looked at.
const PASSED_LOOK_MS: u64 = 1_000;

fn signed(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}
fn unsigned(ms: i64) -> u64 {
    u64::try_from(ms).unwrap_or(0)
}

/// What to submit.
#[derive(Debug, Clone)]
pub struct Submit {
    pub id: TaskId,
    pub tenant: Arc<str>,
    pub key: String,
    pub kind: Kind,
    pub session: Option<SessionId>,
    /// Steps: the worker that owns the stack.
    pub worker: Option<WorkerId>,
    pub timeout_ms: u64,
    pub output_limit_bytes: u64,
    pub priority: i8,
    pub scheduling: Option<Box<Scheduling>>,
    pub spec: Arc<[u8]>,
}

impl Task {
    pub fn new(now: Now, submit: Submit) -> Self {
        Self {
            id: submit.id,
            tenant: submit.tenant,
            key: submit.key,
            created_ms: now.wall_ms,
            version: 0,
            body: Body {
                state: State::Queued,
                kind: submit.kind,
                session: submit.session,
                worker: submit.worker.map(|w| w.to_string()),
                fence: Fence::default(),
                timeout_ms: submit.timeout_ms,
                output_limit_bytes: submit.output_limit_bytes,
                cancel_requested: false,
                reason: None,
                started_ms: 0,
                ended_ms: 0,
                priority: submit.priority,
                scheduling: submit.scheduling,
            },
            spec: submit.spec,
            place: Place::default(),
            since_mono_ms: signed(now.mono_ms),
            held_mono_ms: 0,
            not_before_mono_ms: None,
            due_mono_ms: None,
            events: vec!["task.queued"],
            result: None,
            output: Vec::new(),
        }
    }

    /// A task as it was stored: its times become those of this coordinator's clock.
    pub fn restore(now: Now, id: TaskId, version: Version, row: Row) -> Result<Self, serde_json::Error> {
        let body: Body = serde_json::from_str(&row.body)?;
        let here = |wall_ms: i64| signed(now.mono_ms).saturating_sub(now.wall_ms.saturating_sub(wall_ms));
        let requeued_ms = body.scheduling.as_ref().map_or(0, |s| s.requeued_ms);
        let queued = body.state == State::Queued;
        let not_before = Some(body.not_before_ms()).filter(|at| queued && *at > now.wall_ms);
        Ok(Self {
            id,
            tenant: row.tenant.into(),
            key: row.key,
            created_ms: row.created_ms,
            version,
            since_mono_ms: here(if requeued_ms > 0 { requeued_ms } else { row.created_ms }),
            // Its worker keeps the time limit by a clock that went on; by the wall clock, which may have been set
            // meanwhile, what is well would be cancelled (I13).
            held_mono_ms: signed(now.mono_ms),
            // For the same reason no retry waits longer than any may.
            not_before_mono_ms: not_before
                .map(|at| unsigned(here(at)).min(now.mono_ms + limits::retry::CAP_MS)),
            body,
            spec: row.spec.unwrap_or_default().into(),
            place: Place::default(),
            due_mono_ms: None,
            events: Vec::new(),
            result: None,
            output: Vec::new(),
        })
    }

    /// The deadline that is over, if one is.
    pub(crate) fn over(&self, now: Now) -> Option<Deadline> {
        self.deadlines()
            .into_iter()
            .flatten()
            .filter(|(at, _)| *at <= now.mono_ms)
            .min()
            .map(|(_, which)| which)
    }

    /// When something is due in the state it is in.
    pub(crate) fn next_due(&self, now: Now) -> Option<u64> {
        if matches!(self.body.state, State::Ended(_)) {
            return None;
        }
        if self.body.passed().is_some() {
            // Awaits its worker's word, or the end of its lease.
            return Some(now.mono_ms + PASSED_LOOK_MS);
        }
        let deadline = self.deadlines().into_iter().flatten().map(|(at, _)| at).min();
        match (self.not_before_mono_ms, deadline) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (one, other) => one.or(other),
        }
    }

    fn deadlines(&self) -> [Option<(u64, Deadline)>; 2] {
        let after = |since: i64, ms: u64| unsigned(since.saturating_add(signed(ms)));
        let scheduling = self.body.scheduling.as_deref();
        let from_submit = |which: Deadline, ms: fn(&Scheduling) -> u64| {
            scheduling.map(ms).filter(|ms| *ms > 0).map(|ms| (after(self.since_mono_ms, ms), which))
        };
        let to_close = from_submit(Deadline::ScheduleToClose, |s| s.schedule_to_close_ms);
        let other = match self.body.state {
            State::Queued if self.body.attempts_used() == 0 => {
                from_submit(Deadline::ScheduleToStart, |s| s.schedule_to_start_ms)
            }
            State::Assigned | State::Running => {
                let ms = self.body.timeout_ms.saturating_add(limits::schedule::DEADLINE_MARGIN_MS);
                Some((after(self.held_mono_ms, ms), Deadline::StartToClose))
            }
            State::Queued | State::Ended(_) => None,
        };
        [to_close, other]
    }

    /// Why it timed out, for people.
    pub(crate) fn overdue(&self, which: Deadline) -> String {
        let scheduling = self.body.scheduling.as_deref();
        let (ms, what) = match which {
            Deadline::ScheduleToStart => {
                (scheduling.map_or(0, |s| s.schedule_to_start_ms), "it was not handed to a worker within")
            }
            Deadline::StartToClose => (self.body.timeout_ms, "its worker did not end it within"),
            Deadline::ScheduleToClose => {
                (scheduling.map_or(0, |s| s.schedule_to_close_ms), "it did not end within")
            }
        };
        format!("deadline {}: {what} {} s", which.as_str(), ms as f64 / 1_000.0)
    }

    /// Labels that its worker must have.
    pub fn worker_labels(&self) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        self.body.scheduling.as_ref().map_or(&NONE, |s| &s.worker_labels)
    }

    pub fn held(&self) -> bool {
        matches!(self.body.state, State::Assigned | State::Running)
    }

    fn to(&mut self, state: State, allowed: bool) -> Result<(), Rejected> {
        if !allowed {
            return Err(Rejected { from: self.body.state.as_str(), to: state.as_str() });
        }
        self.body.state = state;
        self.events.push(match state {
            State::Queued => "task.queued",
            State::Assigned => "task.assigned",
            State::Running => "task.running",
            State::Ended(End::Succeeded) => "task.succeeded",
            State::Ended(End::Failed) => "task.failed",
            State::Ended(End::TimedOut) => "task.timed_out",
            State::Ended(End::Cancelled) => "task.cancelled",
            State::Ended(End::Lost) => "task.lost",
            State::Ended(End::DeadLetter) => "task.dead_letter",
        });
        Ok(())
    }

    /// Grants the next attempt to a worker.
    pub fn assign(&mut self, now: Now, epoch: u64, worker: &str) -> Result<Fence, Rejected> {
        self.to(State::Assigned, self.body.state == State::Queued)?;
        self.body.fence = Fence { epoch, attempt: self.body.fence.attempt + 1 };
        self.body.worker = Some(worker.to_owned());
        self.held_mono_ms = signed(now.mono_ms);
        self.not_before_mono_ms = None;
        if let Some(scheduling) = &mut self.body.scheduling {
            scheduling.not_before_ms = 0;
        }
        Ok(self.body.fence)
    }

    pub fn start(&mut self, now: Now) -> Result<(), Rejected> {
        self.to(State::Running, self.body.state == State::Assigned)?;
        self.body.started_ms = now.wall_ms;
        self.held_mono_ms = signed(now.mono_ms);
        Ok(())
    }

    /// Takes the attempt back: its worker surely never started it.
    pub fn take_back(&mut self) -> Result<(), Rejected> {
        self.to(State::Queued, self.held())?;
        self.body.started_ms = 0;
        Ok(())
    }

    /// Lets another attempt follow a lost or failed one, after a pause.
    pub fn retry(&mut self, now: Now, pause_ms: u64) -> Result<(), Rejected> {
        self.take_back()?;
        let scheduling = self.body.scheduling.get_or_insert_default();
        scheduling.attempts_used += 1;
        scheduling.not_before_ms = now.wall_ms.saturating_add(signed(pause_ms));
        self.not_before_mono_ms = Some(now.mono_ms.saturating_add(pause_ms));
        Ok(())
    }

    /// Takes it out of `dead_letter`, as if it had just been submitted.
    pub fn requeue(&mut self, now: Now, key: &str) -> Result<(), Rejected> {
        let allowed = self.body.state == State::Ended(End::DeadLetter);
        if !allowed {
            return Err(Rejected { from: self.body.state.as_str(), to: State::Queued.as_str() });
        }
        self.body.state = State::Queued;
        self.events.push("task.requeued");
        self.body.reason = None;
        (self.body.started_ms, self.body.ended_ms) = (0, 0);
        let scheduling = self.body.scheduling.get_or_insert_default();
        scheduling.attempts_used = 0;
        scheduling.not_before_ms = 0;
        scheduling.requeued_ms = now.wall_ms;
        key.clone_into(&mut scheduling.requeue_key);
        scheduling.passed = None;
        self.since_mono_ms = signed(now.mono_ms);
        self.not_before_mono_ms = None;
        // The last attempt's output is not the next one's.
        self.output = [1, 2].map(|stream| InlineOutput { stream, bytes: Vec::new() }).into();
        Ok(())
    }

    /// The last attempt that there was did not succeed either.
    pub(crate) fn use_up(&mut self) {
        self.body.scheduling.get_or_insert_default().attempts_used += 1;
    }

    /// A deadline passed while an attempt is held.
    pub(crate) fn pass(&mut self, which: Deadline) {
        self.body.scheduling.get_or_insert_default().passed = Some(which);
        self.events.push("task.deadline_passed");
    }

    /// Ends the task. `result` is the worker's encoded cooper.v1.Outcome, absent where `body.reason` says why.
    pub fn end(
        &mut self,
        now: Now,
        end: End,
        result: Option<Vec<u8>>,
        output: Vec<InlineOutput>,
    ) -> Result<(), Rejected> {
        self.to(State::Ended(end), !matches!(self.body.state, State::Ended(_)))?;
        self.body.ended_ms = now.wall_ms;
        if self.body.started_ms == 0 && self.body.fence.attempt > 0 {
            self.body.started_ms = now.wall_ms;
        }
        self.result = result;
        self.output = output;
        Ok(())
    }

    /// What an event of it says beside the row's facts.
    fn event_body(&self) -> String {
        use std::fmt::Write;
        let Fence { epoch, attempt } = self.body.fence;
        let mut body = match &self.body.worker {
            // A name of a worker needs no escapes.
            Some(worker) => format!(r#"{{"attempt":{attempt},"epoch":{epoch},"worker":"{worker}""#),
            None => format!(r#"{{"attempt":{attempt}"#),
        };
        // Writing to a String cannot fail.
        if let Some(scheduling) = &self.body.scheduling {
            if scheduling.attempts_used > 0 {
                let _ = write!(body, r#","attempts_used":{}"#, scheduling.attempts_used);
            }
            if scheduling.not_before_ms > 0 {
                let _ = write!(body, r#","not_before_ms":{}"#, scheduling.not_before_ms);
            }
            if let Some(passed) = scheduling.passed {
                let _ = write!(body, r#","deadline":"{}""#, passed.as_str());
            }
        }
        if let Some(reason) = &self.body.reason {
            let _ = write!(body, r#","code":{:?}"#, reason.code);
        }
        body.push('}');
        body
    }

    /// Everything since the last call as one row write, however many transitions it was.
    pub fn take_change(&mut self, now: Now) -> Change {
        let expected = self.version;
        self.version += 1;
        let ended = matches!(self.body.state, State::Ended(_));
        let body = self.event_body();
        Change {
            aggregate: Aggregate::Task,
            id: self.id.to_string(),
            expected,
            row: Row {
                tenant: self.tenant.to_string(),
                state: self.body.state.as_str().to_owned(),
                ended,
                parent: self.body.session.map(|s| s.to_string()).unwrap_or_default(),
                key: self.key.clone(),
                created_ms: self.created_ms,
                updated_ms: now.wall_ms,
                body: serde_json::to_string(&self.body).unwrap_or_default(),
                spec: (expected == 0).then(|| self.spec.to_vec()),
                result: self.result.take(),
            },
            events: self
                .events
                .drain(..)
                .map(|kind| NewEvent { kind: kind.to_owned(), body: body.clone() })
                .collect(),
            output: std::mem::take(&mut self.output),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// I13.
    #[test]
    fn a_wall_clock_that_went_back_before_a_restart_holds_back_no_retry() {
        const DAY_MS: i64 = 86_400_000;
        let submit = Submit {
            id: TaskId::from_u128(1),
            tenant: "t".into(),
            key: String::new(),
            kind: Kind::Noop,
            session: None,
            worker: None,
            timeout_ms: 1_000,
            output_limit_bytes: 0,
            priority: 0,
            scheduling: None,
            spec: Vec::new().into(),
        };
        let then = Now { mono_ms: 5_000, wall_ms: 10 * DAY_MS };
        let mut task = Task::new(then, submit);
        task.assign(then, 1, "w0").expect("it is queued");
        task.retry(then, 700).expect("it is held");
        let row = task.take_change(then).row;

        let later = Now { mono_ms: 40, wall_ms: 9 * DAY_MS };
        let task = Task::restore(later, task.id, 1, row).expect("as it was stored");
        assert_eq!(task.next_due(later), Some(40 + limits::retry::CAP_MS));
    }
}
