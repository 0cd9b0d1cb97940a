//! Sessions that idle: saved as when they move, but held by nobody until something is wanted of them. A hibernated session
//! is `checkpointing` with its checkpoint durable and no worker in its row; waking is being placed, as after a move.

use cooper_common::{
    error::Result,
    ids::{CheckpointId, SessionId},
    limits::checkpoint as limits,
};

use super::{Cluster, Effect, Message, Out, sessions::unknown};
use crate::{
    Now,
    session::{Purpose, Restore, Saving, State},
    worker::{HIBERNATE, WorkerId},
};

impl Cluster {
    /// Begins to save a session that idles; where its worker cannot, another look is taken later.
    pub(super) fn hibernate(&mut self, now: Now, id: SessionId, out: &mut Out) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let can = self
            .workers
            .get(session.body.worker.as_str())
            .is_some_and(|worker| worker.attached.is_some() && worker.body.capabilities.contains(HIBERNATE));
        if !can || session.stays.is_some() {
            session.awake_until_mono_ms = now.mono_ms.saturating_add(limits::HIBERNATE_AGAIN_MS);
            return self.rearm_session(id);
        }
        let saving = Saving {
            checkpoint: CheckpointId::new(),
            purpose: Purpose::Hibernate,
            name: String::new(),
            key: String::new(),
            give_up_at_ms: i64::MAX,
            globals: true,
        };
        self.begin_saving(id, saving, out);
    }

    /// Its checkpoint is durable with this change: its worker may forget it, unless something was wanted meanwhile.
    pub(super) fn fall_asleep(&mut self, now: Now, id: SessionId, checkpoint: CheckpointId, out: &mut Out) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if !session.slept_through(now) {
            return self.end_saving(now, id, out);
        }
        session.body.restore = Some(Restore { checkpoint, moved: true });
        session.body.hibernated = true;
        session.note("session.hibernated");
        let (worker, fence) = (WorkerId::from(session.body.worker.as_str()), session.body.fence);
        session.body.worker.clear();
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.sessions.remove(&id);
            worker.waiting.remove(&id);
        }
        self.send(&worker, Message::SessionEnd { session: id, fence }, out);
        out.effects.push(Effect::CapacityChanged);
    }

    /// Something is wanted of a session: one that hibernates is placed, one that is about to stays where it is.
    ///
    /// # Errors
    /// `session_not_found`; `quota_exceeded` when its tenant holds as much as it may without it.
    pub fn wake(&mut self, now: Now, id: SessionId) -> Result<Out> {
        let mut out = Out { full: true, ..Out::default() };
        self.wake_into(now, id, &mut out)?;
        self.finish(now, &mut out);
        Ok(out)
    }

    pub(super) fn wake_into(&mut self, now: Now, id: SessionId, out: &mut Out) -> Result<()> {
        let Some(session) = self.sessions.get(&id) else { return Err(unknown(id)) };
        if session.body.hibernated {
            self.within_quota_but(&session.tenant, session.body.share, Some(id))?;
        }
        let Some(session) = self.sessions.get_mut(&id) else { return Err(unknown(id)) };
        session.active_mono_ms = now.mono_ms;
        let hibernates = session.body.saving.as_ref().is_some_and(|it| it.purpose == Purpose::Hibernate);
        if std::mem::take(&mut session.body.hibernated) {
            session.note("session.waking");
            (session.homeless, session.transfer_after_mono_ms) = (true, 0);
            out.sessions.insert(id);
            self.place_saved(now, out);
        } else if hibernates && session.transfer.is_none() && session.body.state == State::Checkpointing {
            self.end_saving(now, id, out);
        }
        Ok(())
    }
}
