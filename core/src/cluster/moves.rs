//! Checkpoints of sessions, and what is made of them: a session that is saved and goes on, one that is moved off a worker
//! that is being emptied, one that begins from a checkpoint.
//!
//! What is wanted is in the session's row, so it outlives everybody: `saving` while its files are to be packed, `restore`
//! while a worker is to unpack them. Who carries the bytes asks [`Cluster::due_transfers`] what is to be done and says what
//! came of it; a transfer that is cut is asked for again. Between the two, from the commit that makes a checkpoint durable
//! to the worker that has unpacked it, the checkpoint is the session (I1): the fence has one owner at any time.

use cooper_common::{
    error::{Code, Error, Result},
    ids::{CheckpointId, SessionId},
    limits::checkpoint as limits,
};

use super::{Cluster, Effect, Message, Out};
use crate::{
    Now,
    lease::Fence,
    session::{Purpose, Reason, Restore, Saving, Session, State},
    worker::{self, Worker, WorkerId},
};

/// Bytes to carry. Under the number `job`; what comes of it is said with that number, and of an older one it is ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    pub job: u64,
    pub session: SessionId,
    pub worker: WorkerId,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Fetch the session's files and record the checkpoint.
    Pack { saving: Saving, python_version: String },
    /// Bring the checkpoint to the worker.
    Restore { checkpoint: CheckpointId },
}

impl Worker {
    /// Its sessions are to be saved and to go on elsewhere.
    pub fn sends_sessions_away(&self) -> bool {
        self.body.drain.as_ref().is_some_and(|drain| drain.checkpoint) || (self.stopping && self.saves)
    }

    /// Whether it may be granted what it had, though it may still be removing that.
    fn takes_back(&self) -> bool {
        self.body.capabilities.contains(crate::worker::HIBERNATE)
    }

    fn can_checkpoint(&self) -> bool {
        self.attached.is_some() && self.body.capabilities.contains(crate::worker::CHECKPOINT)
    }
}

impl Session {
    /// Its checkpoint is durable, and no worker has it.
    pub fn is_saved(&self) -> bool {
        self.body.state == State::Checkpointing && self.body.restore.is_some()
    }
}

impl Cluster {
    /// Begins a checkpoint: nothing is started in the session from now on, what runs may end until `give_up_at_ms`, then
    /// it is packed, and goes on or is destroyed.
    ///
    /// # Errors
    /// `session_not_found`, `session_not_ready`, `session_ended`, `no_worker`, `not_supported` (a worker of before).
    pub fn checkpoint(&mut self, now: Now, id: SessionId, saving: Saving) -> Result<Out> {
        let mut out = Out { full: true, ..Out::default() };
        let Some(session) = self.sessions.get(&id) else {
            return Err(Error::new(Code::SessionNotFound, format!("there is no session {id}")));
        };
        match session.body.state {
            State::Ready => {}
            State::Initializing | State::Checkpointing => {
                let state = session.body.state.as_str();
                return Err(Error::new(Code::SessionNotReady, format!("session {id} is {state}")));
            }
            State::Draining | State::Destroyed | State::Failed => {
                let state = session.body.state.as_str();
                return Err(Error::new(Code::SessionEnded, format!("session {id} is {state}")));
            }
        }
        let name_of = &session.body.worker;
        let worker = self.workers.get(name_of.as_str()).filter(|worker| worker.attached.is_some());
        let worker = worker
            .ok_or_else(|| Error::new(Code::NoWorker, format!("worker {name_of}, which has it, is away")))?;
        if !worker.can_checkpoint() {
            return Err(Error::new(
                Code::NotSupported,
                format!("worker {name_of} is of a version that makes no checkpoints"),
            ));
        }
        self.begin_saving(id, saving, &mut out);
        self.finish(now, &mut out);
        Ok(out)
    }

    pub(super) fn begin_saving(&mut self, id: SessionId, saving: Saving, out: &mut Out) {
        if let Some(session) = self.sessions.get_mut(&id)
            && session.to(State::Checkpointing)
        {
            session.body.saving = Some(saving);
            (session.transfer, session.transfer_after_mono_ms) = (None, 0);
            out.sessions.insert(id);
            out.effects.push(Effect::TransfersDue);
        }
    }

    /// What is to be carried now; each is given out once until its end is said, or its worker attaches again.
    pub fn due_transfers(&mut self, now: Now) -> Vec<Transfer> {
        let mut due = Vec::new();
        let mut at_once: std::collections::BTreeMap<&str, usize> = std::collections::BTreeMap::new();
        for session in self.sessions.values().filter(|session| session.transfer.is_some()) {
            *at_once.entry(session.body.worker.as_str()).or_default() += 1;
        }
        let mut given = Vec::new();
        for session in self.sessions.values() {
            let Some(worker) = self.workers.get(session.body.worker.as_str()) else { continue };
            if session.transfer.is_some()
                || worker.attached.is_none()
                || now.mono_ms < session.transfer_after_mono_ms
            {
                continue;
            }
            let what = match (session.body.state, &session.body.saving, &session.body.restore) {
                (State::Checkpointing, Some(saving), None) if session.running.is_empty() => {
                    What::Pack { saving: saving.clone(), python_version: session.body.python_version.clone() }
                }
                (State::Initializing, None, Some(restore)) => {
                    What::Restore { checkpoint: restore.checkpoint }
                }
                _ => continue,
            };
            let busy = at_once.entry(session.body.worker.as_str()).or_default();
            if *busy >= limits::TRANSFERS_PER_WORKER_MAX {
                continue;
            }
            *busy += 1;
            self.transfers += 1;
            given.push((session.id, self.transfers));
            due.push(Transfer { job: self.transfers, session: session.id, worker: worker.id.clone(), what });
        }
        for (id, job) in given {
            if let Some(session) = self.sessions.get_mut(&id) {
                session.transfer = Some(job);
            }
        }
        due
    }

    /// Whether a transfer is still wanted: what it brought may be recorded.
    pub fn wants_transfer(&self, id: SessionId, job: u64) -> bool {
        self.sessions.get(&id).is_some_and(|session| session.transfer == Some(job))
    }

    /// The files are packed; the caller adds the checkpoint's row to the changes, so that both are durable or none.
    pub fn packed(&mut self, now: Now, id: SessionId, job: u64) -> Out {
        let mut out = Out { full: true, ..Out::default() };
        if !self.wants_transfer(id, job) {
            return out;
        }
        let Some(session) = self.sessions.get_mut(&id) else { return out };
        session.transfer = None;
        let Some(saving) = session.body.saving.take() else { return out };
        out.sessions.insert(id);
        match saving.purpose {
            Purpose::Keep => self.end_saving(now, id, &mut out),
            Purpose::Hibernate => self.fall_asleep(now, id, saving.checkpoint, &mut out),
            Purpose::Destroy => {
                session.body.last_checkpoint = Some(saving.checkpoint);
                self.end_session(now, id, Code::Cancelled, "the session was saved and destroyed", &mut out);
            }
            Purpose::Move => {
                session.body.restore = Some(Restore { checkpoint: saving.checkpoint, moved: true });
                session.note("session.saved");
                self.place_saved(now, &mut out);
            }
        }
        self.finish(now, &mut out);
        out
    }

    /// No checkpoint came of it: for now, or (`lasting`) not of this session as it is.
    pub fn pack_failed(&mut self, now: Now, id: SessionId, job: u64, lasting: Option<Reason>) -> Out {
        let mut out = Out { full: true, ..Out::default() };
        if !self.wants_transfer(id, job) {
            return out;
        }
        let Some(session) = self.sessions.get_mut(&id) else { return out };
        session.transfer = None;
        session.transfer_after_mono_ms = now.mono_ms + limits::RETRY_MS;
        let hibernates = session.body.saving.as_ref().is_some_and(|it| it.purpose == Purpose::Hibernate);
        if hibernates || lasting.is_some() {
            session.stays = lasting;
            session.awake_until_mono_ms = now.mono_ms.saturating_add(limits::HIBERNATE_AGAIN_MS);
            self.end_saving(now, id, &mut out);
        }
        self.finish(now, &mut out);
        out
    }

    /// The session goes on where it is, as if nothing had been wanted of it.
    pub(super) fn end_saving(&mut self, now: Now, id: SessionId, out: &mut Out) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.body.saving = None;
        session.body.restore = None;
        (session.transfer, session.homeless) = (None, false);
        if session.to(State::Ready) {
            let worker = session.body.worker.as_str().into();
            let grant = session.grant(false);
            // To the host it was as good as gone: granted again, it takes work again.
            self.send(&worker, grant, out);
            out.sessions.insert(id);
            self.pump_session(now, id, out);
        }
    }

    /// The worker did not get the checkpoint: for now, or (`lasting`) nobody can.
    pub fn restore_failed(&mut self, now: Now, id: SessionId, job: u64, lasting: Option<Reason>) -> Out {
        let mut out = Out { full: true, ..Out::default() };
        if !self.wants_transfer(id, job) {
            return out;
        }
        let Some(session) = self.sessions.get_mut(&id) else { return out };
        session.transfer = None;
        session.transfer_after_mono_ms = now.mono_ms + limits::RETRY_MS;
        let (fence, worker) = (session.body.fence, WorkerId::from(session.body.worker.as_str()));
        let grant = session.grant(true);
        if session.body.state != State::Initializing {
            return out;
        }
        match lasting {
            Some(reason) => {
                let code = Code::parse(&reason.code).unwrap_or(Code::Internal);
                self.fail_session(now, id, code, &reason.message, &mut out);
                self.send(&worker, Message::SessionEnd { session: id, fence }, &mut out);
            }
            // The grant may be what was missed.
            None => self.send(&worker, grant, &mut out),
        }
        self.finish(now, &mut out);
        out
    }

    /// The bytes are there; that the session is ready, its worker says.
    pub fn restored(&mut self, id: SessionId, job: u64) {
        if self.wants_transfer(id, job)
            && let Some(session) = self.sessions.get_mut(&id)
        {
            // Not given out again unless the worker attaches anew and still has it in the making.
            session.transfer_after_mono_ms = u64::MAX;
            session.transfer = None;
        }
    }

    /// A worker took a moved session and could not make it: the checkpoint waits for another.
    pub(super) fn unplace(&mut self, now: Now, id: SessionId, out: &mut Out) {
        if let Some(session) = self.sessions.get_mut(&id)
            && session.to(State::Checkpointing)
        {
            session.transfer = None;
            session.homeless = true;
            session.transfer_after_mono_ms = now.mono_ms + limits::RETRY_MS;
            out.sessions.insert(id);
        }
    }

    /// With each tick: begins what emptied workers ask for, ends what waited too long, places what is saved.
    pub(super) fn tick_moves(&mut self, now: Now, out: &mut Out) {
        let leaving: Vec<SessionId> = self
            .workers
            .values()
            .filter(|worker| worker.sends_sessions_away() && worker.can_checkpoint())
            .flat_map(|worker| worker.sessions.iter().copied())
            .collect();
        for id in leaving {
            let wanted = self
                .sessions
                .get(&id)
                .is_some_and(|session| session.body.state == State::Ready && session.stays.is_none());
            if wanted {
                let saving = Saving {
                    checkpoint: CheckpointId::new(),
                    purpose: Purpose::Move,
                    name: String::new(),
                    key: String::new(),
                    give_up_at_ms: i64::MAX,
                    globals: true,
                };
                self.begin_saving(id, saving, out);
            }
        }
        let late: Vec<SessionId> = self
            .sessions
            .values()
            .filter(|session| {
                let saving = session.body.saving.as_ref();
                session.body.state == State::Checkpointing
                    && saving.is_some_and(|saving| now.wall_ms >= saving.give_up_at_ms)
                    && !session.running.is_empty()
            })
            .map(|session| session.id)
            .collect();
        for id in late {
            self.end_saving(now, id, out);
        }
        // Nobody empties its worker any more, and what was to be moved is still there.
        let stay: Vec<SessionId> = self
            .sessions
            .values()
            .filter(|session| {
                let moving = session.body.restore.is_some()
                    || session.body.saving.as_ref().is_some_and(|saving| saving.purpose == Purpose::Move);
                let worker = self.workers.get(session.body.worker.as_str());
                session.body.state == State::Checkpointing
                    && moving
                    && !session.homeless
                    && worker.is_some_and(|worker| worker.accepts() && !worker.sends_sessions_away())
            })
            .map(|session| session.id)
            .collect();
        for id in stay {
            self.end_saving(now, id, out);
        }
        self.place_saved(now, out);
    }

    /// Finds workers for sessions whose checkpoint is durable and that no worker has, or whose worker is gone for good.
    pub(super) fn place_saved(&mut self, now: Now, out: &mut Out) {
        let homeless: Vec<SessionId> = self
            .sessions
            .values()
            .filter(|session| {
                let gone = || {
                    let worker = self.workers.get(session.body.worker.as_str());
                    worker.is_none_or(|worker| {
                        matches!(worker.body.state, worker::State::Lost | worker::State::Gone)
                    })
                };
                let moved = session.body.restore.as_ref().is_some_and(|restore| restore.moved);
                let waits = session.homeless && now.mono_ms < session.transfer_after_mono_ms;
                (session.is_saved() && !waits && !session.body.hibernated)
                    || (moved && session.body.state == State::Initializing && gone())
            })
            .map(|session| session.id)
            .collect();
        for id in homeless {
            match self.sessions.get(&id).and_then(|session| self.room_for(session)) {
                Some(to) => self.grant_anew(id, &to, out),
                None => self.leave(id, out),
            }
        }
    }

    /// A worker that stops need not wait until another has room: what it had is safe without it, and is anybody's then,
    /// also its own when it comes back.
    fn leave(&mut self, id: SessionId, out: &mut Out) {
        let Some(session) = self.sessions.get_mut(&id).filter(|session| session.is_saved()) else { return };
        let id_of_worker = WorkerId::from(session.body.worker.as_str());
        let Some(worker) = self.workers.get_mut(&id_of_worker) else { return };
        if !(worker.stopping && worker.saves && worker.takes_back()) {
            return;
        }
        session.body.worker.clear();
        session.homeless = true;
        worker.sessions.remove(&id);
        worker.waiting.remove(&id);
        let fence = session.body.fence;
        out.sessions.insert(id);
        self.send(&id_of_worker, Message::SessionEnd { session: id, fence }, out);
    }

    /// The worker with the most room among those that can restore there.
    fn room_for(&self, session: &Session) -> Option<WorkerId> {
        let (python, labels) = (session.python_needed(), &session.body.worker_labels);
        self.workers
            .values()
            .filter(|worker| worker.free_sessions() > 0 && worker.has(labels))
            .filter(|worker| *worker.id != *session.body.worker || (session.homeless && worker.takes_back()))
            .filter(|worker| !self.is_anothers(worker, &session.tenant))
            .filter(|worker| worker.can_checkpoint() && worker.body.offers(python))
            .filter(|worker| {
                super::sessions::gives_secrets(worker, session.body.secrets, session.body.injects)
            })
            .max_by_key(|worker| {
                let other = *worker.id != *session.body.worker;
                (other, worker.free_sessions(), std::cmp::Reverse(worker.id.clone()))
            })
            .map(|worker| worker.id.clone())
    }

    /// The session is another worker's from now on, under a new fence; the one that had it is told to remove it.
    fn grant_anew(&mut self, id: SessionId, to: &WorkerId, out: &mut Out) {
        let epoch = self.epoch;
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let (before, old) = (WorkerId::from(session.body.worker.as_str()), session.body.fence);
        let fence = Fence { epoch, attempt: old.attempt + 1 };
        session.body.fence = fence;
        to.as_ref().clone_into(&mut session.body.worker);
        if session.body.state == State::Checkpointing {
            session.to(State::Initializing);
        }
        session.note("session.moved");
        (session.transfer, session.transfer_after_mono_ms) = (None, 0);
        (session.homeless, session.stays) = (false, None);
        let (grant, waits) = (session.grant(true), !session.queue.is_empty());
        if let Some(worker) = self.workers.get_mut(&before) {
            worker.sessions.remove(&id);
            worker.waiting.remove(&id);
        }
        if let Some(worker) = self.workers.get_mut(to) {
            worker.sessions.insert(id);
            if waits {
                worker.waiting.insert(id);
            }
        }
        out.sessions.insert(id);
        self.send(&before, Message::SessionEnd { session: id, fence: old }, out);
        self.send(to, grant, out);
        out.effects.push(Effect::TransfersDue);
        out.effects.push(Effect::CapacityChanged);
    }

    /// What keeps a worker that sends its sessions away from being empty; `None` when nothing does.
    pub fn sends_away_waits_for(&self, worker: &Worker) -> Option<String> {
        if !worker.sends_sessions_away() || worker.sessions.is_empty() {
            return None;
        }
        let of = || worker.sessions.iter().filter_map(|id| self.sessions.get(id));
        let saved = of().filter(|session| session.is_saved()).count();
        if saved > 0 {
            return Some(format!(
                "{saved} session(s) are saved and wait for another worker with room, their labels and their Python"
            ));
        }
        if let Some((session, reason)) = of().find_map(|session| Some((session.id, session.stays.as_ref()?)))
        {
            return Some(format!("session {session} cannot be saved and stays: {}", reason.message));
        }
        if !worker.can_checkpoint() {
            return Some("it is away, or of a version that makes no checkpoints".to_owned());
        }
        Some(format!("{} session(s) are being saved, or their executions run", worker.sessions.len()))
    }

    /// Whether a drain need not wait for this session any more: it is safe without its worker, or it stays there.
    pub(super) fn is_left_behind(&self, id: SessionId) -> bool {
        self.sessions.get(&id).is_none_or(|session| session.is_saved() || session.stays.is_some())
    }
}
