//! How long sessions live, and what of them changes meanwhile.

use std::sync::Arc;

use cooper_common::{
    error::{Code, Error, Result},
    ids::SessionId,
    limits::schedule,
};

use super::{Cluster, Out, sessions::unknown, timers::take_due};
use crate::{
    Now,
    session::{Share, State},
};

/// What an update leaves of a session. Times that are absent stay.
#[derive(Debug, Clone)]
pub struct Changed {
    pub ttl_ms: Option<u64>,
    pub idle_timeout_ms: Option<u64>,
    pub hibernate_after_ms: Option<u64>,
    pub exec_timeout_ms: u64,
    pub output_limit_bytes: u64,
    pub share: Share,
    /// Encoded cooper.v1.CreateSessionRequest, with everything that changed in it.
    pub spec: Arc<[u8]>,
}

impl Cluster {
    /// Changes a live session. Its worker hears of new limits now, or when it attaches again.
    ///
    /// # Errors
    /// `session_not_found`; `session_ended` while it is being destroyed; `quota_exceeded`.
    pub fn update_session(&mut self, now: Now, id: SessionId, changed: Changed) -> Result<Out> {
        let mut out = Out { full: true, ..Out::default() };
        let session = self.sessions.get(&id).ok_or_else(|| unknown(id))?;
        if session.body.state == State::Draining {
            return Err(Error::new(Code::SessionEnded, format!("session {id} is being destroyed")));
        }
        self.within_quota_but(&session.tenant, changed.share, Some(id))?;
        let Some(session) = self.sessions.get_mut(&id) else { return Err(unknown(id)) };
        if let Some(ttl_ms) = changed.ttl_ms {
            session.live_for(now, ttl_ms);
        }
        if let Some(idle_timeout_ms) = changed.idle_timeout_ms {
            session.body.lifetime.idle_timeout_ms = idle_timeout_ms;
        }
        if let Some(hibernate_after_ms) = changed.hibernate_after_ms {
            session.body.lifetime.hibernate_after_ms = hibernate_after_ms;
        }
        session.active_mono_ms = now.mono_ms;
        session.body.exec_timeout_ms = changed.exec_timeout_ms;
        session.body.output_limit_bytes = changed.output_limit_bytes;
        session.body.share = changed.share;
        session.replace_spec(changed.spec);
        let worker = self.workers.get(session.body.worker.as_str()).map(|worker| worker.id.clone());
        let state = session.body.state;
        let grant = session.grant(state == State::Initializing && session.body.restore.is_some());
        // While it is being saved the worker takes nothing for it; it hears of the change when it goes on.
        if let Some(worker) = worker
            && state != State::Checkpointing
        {
            self.send(&worker, grant, &mut out);
        }
        out.sessions.insert(id);
        self.finish(now, &mut out);
        Ok(out)
    }

    /// A tenant's secret has another value, or none: its sessions that have secrets are granted anew. Those whose worker is
    /// away, or takes nothing for them just now, are when it is there again.
    pub fn secrets_changed(&mut self, now: Now, tenant: &str) -> Out {
        let mut out = Out::default();
        let grants: Vec<_> = self
            .sessions
            .values()
            .filter(|session| *session.tenant == *tenant && session.has_secrets())
            .filter(|session| session.body.state == State::Ready)
            .filter_map(|session| {
                let worker = self.workers.get(session.body.worker.as_str())?.id.clone();
                Some((worker, session.grant(false)))
            })
            .collect();
        for (worker, grant) in grants {
            self.send(&worker, grant, &mut out);
        }
        self.finish(now, &mut out);
        out
    }

    /// Something that is not a task happened in a session: it does not idle.
    pub fn touch_session(&mut self, now: Now, id: SessionId) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.active_mono_ms = now.mono_ms;
        }
    }

    /// Keeps `session_timers` true after anything that brings a session's end nearer. What puts it off is found when the
    /// timer fires: executions need not move timers.
    pub(super) fn rearm_session(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let due = session.next_due();
        if due == session.due_mono_ms {
            return;
        }
        if let Some(before) = std::mem::replace(&mut session.due_mono_ms, due) {
            self.session_timers.remove(&(before, id));
        }
        if let Some(due) = due {
            self.session_timers.insert((due, id));
        }
    }

    /// Ends sessions whose time is over; a bounded number, the next tick does more.
    pub(super) fn expire_sessions(&mut self, now: Now, out: &mut Out) {
        for _ in 0..schedule::EXPIRED_AT_ONCE_MAX {
            let Some(id) = take_due(&mut self.session_timers, now) else { break };
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            session.due_mono_ms = None;
            match session.over(now) {
                Some(reason) => {
                    let code = Code::parse(&reason.code).unwrap_or(Code::SessionExpired);
                    let message = format!("the session ended: {}", reason.message);
                    session.body.reason = Some(reason);
                    self.end_session(now, id, code, &message, out);
                }
                // It works: its idle time begins when that is over.
                None if session.is_sleepy(now) => self.hibernate(now, id, out),
                None => {
                    if session.active() > 0 {
                        session.active_mono_ms = now.mono_ms;
                    }
                    self.rearm_session(id);
                }
            }
        }
    }
}
