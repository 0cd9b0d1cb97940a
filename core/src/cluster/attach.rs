//! A worker attaches: its inventory is the truth of what runs there, our rows are the truth of what should. One verdict
//! per item makes the two equal again (DESIGN §5).

use std::collections::{BTreeMap, BTreeSet};

use cooper_common::{
    error::{Code, Error, Result},
    ids::{SessionId, TaskId},
};

use super::{Cluster, Effect, Message, Out};
use crate::{
    Now,
    credit::Credit,
    lease::Fence,
    session,
    task::State,
    worker::{self, Attached, Body, Worker, WorkerId},
};

/// What a worker says of itself when it attaches.
#[derive(Debug, Clone)]
pub struct Hello {
    pub worker: WorkerId,
    /// The join token's.
    pub tenant: std::sync::Arc<str>,
    /// Version of the link protocol both sides speak.
    pub protocol: u32,
    /// `state`, `drain` and `refused` are ours to decide and ignored.
    pub body: Body,
    pub sessions: Vec<SessionItem>,
    pub attempts: Vec<AttemptItem>,
}

#[derive(Debug, Clone)]
pub struct SessionItem {
    pub session: SessionId,
    pub fence: Fence,
    pub interpreter_restarted: bool,
    /// It takes nothing until it is granted again.
    pub sealed: bool,
}

#[derive(Debug, Clone)]
pub struct AttemptItem {
    pub task: TaskId,
    pub fence: Fence,
    pub result_pending: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Keep,
    ResendResult,
    Cancel,
    Forget,
}

#[derive(Debug, Clone)]
pub struct AttemptVerdict {
    pub task: TaskId,
    pub fence: Fence,
    pub verdict: Verdict,
}

#[derive(Debug, Clone)]
pub struct SessionVerdict {
    pub session: SessionId,
    pub verdict: Verdict,
}

/// The answer, valid once the changes are durable.
#[derive(Debug)]
pub struct Welcome {
    pub attach: u64,
    pub heartbeat_ms: u64,
    pub lease_ms: u64,
    pub attempts: Vec<AttemptVerdict>,
    pub sessions: Vec<SessionVerdict>,
}

impl Cluster {
    /// # Errors
    /// `worker_id_taken` when another worker of this id is attached and alive, or was started later than this one.
    pub fn attach(&mut self, now: Now, hello: Hello) -> Result<(Welcome, Out)> {
        let mut out = Out { full: true, ..Out::default() };
        let id = hello.worker.clone();
        self.check_identity(now, &hello)?;
        self.attaches += 1;
        // Epoch in the high half: strictly increasing over restarts without being stored.
        let attach = (self.epoch << 32) | self.attaches;
        let known = self.workers.entry(id.clone()).or_insert_with(|| {
            Worker::new(now, id.clone(), Body { state: worker::State::Joining, ..hello.body.clone() })
        });
        let same_host = known.body.incarnation == hello.body.incarnation;
        let before = known.body.clone();
        let drain = known.body.drain.take();
        known.body = Body { state: known.body.state, drain, refused: None, ..hello.body.clone() };
        let protocol = hello.protocol;
        known.attached = Some(Attached { epoch: attach, protocol, credit: Credit::default() });
        (known.stopping, known.saves, known.spared) = (false, false, false);
        known.tenant = hello.tenant.clone();
        known.last_seen_mono_ms = now.mono_ms;
        known.last_seen_ms = now.wall_ms;
        // 0: all that is known of it is that it was refused.
        if known.version > 0 && before.incarnation > 0 && !same_host {
            known.restarted();
        }
        let moved = known.to(known.heard());
        if moved || known.version == 0 || known.body != before {
            out.workers.insert(id.clone());
        }
        self.reindex(&id);
        self.tell_drain(now, &id, &mut out);
        let sessions = self.reconcile_sessions(now, &id, &hello.sessions, &mut out);
        let attempts = self.reconcile_attempts(now, &id, &hello.attempts, same_host, &mut out);
        out.effects.push(Effect::CapacityChanged);
        out.effects.push(Effect::TransfersDue);
        self.finish(now, &mut out);
        let welcome = Welcome {
            attach,
            heartbeat_ms: self.timing.heartbeat_ms(self.workers.len()),
            lease_ms: self.timing.lease_ms,
            attempts,
            sessions,
        };
        Ok((welcome, out))
    }

    /// A worker was not let in. That is kept with it, so that `cooper workers` and the events say why it is missing; one
    /// that is attached under the same id is not touched.
    pub fn refused(
        &mut self,
        now: Now,
        worker: &str,
        tenant: std::sync::Arc<str>,
        version: &str,
        hostname: &str,
        reason: session::Reason,
    ) -> Out {
        let mut out = Out { full: true, ..Out::default() };
        let id: WorkerId = worker.into();
        let known = self.workers.entry(id.clone()).or_insert_with(|| {
            let mut known = Worker::new(now, id.clone(), Body::unknown());
            known.tenant = tenant;
            known
        });
        if known.attached.is_some() {
            return out;
        }
        (known.last_seen_mono_ms, known.last_seen_ms) = (now.mono_ms, now.wall_ms);
        if known.body.refused.as_ref() != Some(&reason) {
            let code = serde_json::Value::from(reason.code.as_str());
            let message = serde_json::Value::from(reason.message.as_str());
            (known.body.version, known.body.hostname) = (version.to_owned(), hostname.to_owned());
            known.body.refused = Some(reason);
            known.note_with("worker.refused", format!(r#","code":{code},"message":{message}"#));
            out.workers.insert(id);
        }
        self.finish(now, &mut out);
        out
    }

    fn check_identity(&self, now: Now, hello: &Hello) -> Result<()> {
        let Some(known) = self.workers.get(&hello.worker) else { return Ok(()) };
        let taken = |why: String| Err(Error::new(Code::WorkerIdTaken, why));
        let same_machine =
            known.body.boot_id == hello.body.boot_id && known.body.hostname == hello.body.hostname;
        if hello.body.incarnation < known.body.incarnation && same_machine {
            return taken(format!(
                "worker {} attached with incarnation {} before; this one is {}",
                hello.worker, known.body.incarnation, hello.body.incarnation
            ));
        }
        let silent_ms = now.mono_ms.saturating_sub(known.last_seen_mono_ms);
        if known.attached.is_some() && !same_machine && silent_ms < self.timing.lease_ms {
            return taken(format!("worker {} is attached from {:?} now", hello.worker, known.body.hostname));
        }
        Ok(())
    }

    fn reconcile_sessions(
        &mut self,
        now: Now,
        worker: &WorkerId,
        items: &[SessionItem],
        out: &mut Out,
    ) -> Vec<SessionVerdict> {
        let listed: BTreeMap<SessionId, &SessionItem> =
            items.iter().map(|item| (item.session, item)).collect();
        let mut verdicts = Vec::new();
        for item in items {
            let keep = self.sessions.get(&item.session).is_some_and(|session| {
                session.body.worker == **worker
                    && session.body.fence == item.fence
                    && session.body.state != session::State::Draining
            });
            verdicts.push(SessionVerdict {
                session: item.session,
                verdict: if keep { Verdict::Keep } else { Verdict::Forget },
            });
            if keep
                && item.interpreter_restarted
                && let Some(session) = self.sessions.get_mut(&item.session)
                && session.interpreter_restarted(true)
            {
                out.sessions.insert(item.session);
            }
        }
        let ours: Vec<SessionId> =
            self.workers.get(worker).map(|w| w.sessions.iter().copied().collect()).unwrap_or_default();
        for id in ours {
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            // Whatever was being carried went with the attach before this one.
            (session.transfer, session.transfer_after_mono_ms) = (None, 0);
            let restore = session.body.restore.is_some();
            match (session.body.state, listed.get(&id)) {
                // Being destroyed, and there: the FORGET above destroys it. Not there: it is destroyed.
                (session::State::Draining, _) if session.to(session::State::Destroyed) => {
                    out.sessions.insert(id);
                }
                // A worker that was away during an update, or whose host has no secrets any more.
                (session::State::Ready, Some(item))
                    if session.body.updated || session.has_secrets() || item.sealed =>
                {
                    let grant = session.grant(restore);
                    self.send(worker, grant, out);
                }
                // What is there under an older fence is being removed (FORGET, above).
                (session::State::Initializing, there)
                    if there.is_none_or(|item| item.fence != session.body.fence) =>
                {
                    let grant = session.grant(restore);
                    self.send(worker, grant, out);
                }
                // Its files are not where they were; the checkpoint is.
                (session::State::Checkpointing, None) if restore => session.homeless = true,
                (session::State::Ready | session::State::Checkpointing, None) => {
                    self.fail_session(now, id, Code::WorkerLost, "the worker came back without it", out);
                }
                _ => {}
            }
        }
        verdicts
    }

    fn reconcile_attempts(
        &mut self,
        now: Now,
        worker: &WorkerId,
        items: &[AttemptItem],
        same_host: bool,
        out: &mut Out,
    ) -> Vec<AttemptVerdict> {
        let mut verdicts = Vec::new();
        let mut listed = BTreeSet::new();
        for item in items {
            let ours = self.tasks.get(&item.task).filter(|task| {
                task.held() && task.body.fence == item.fence && task.body.worker.as_deref() == Some(&**worker)
            });
            let verdict = match ours {
                Some(task) => {
                    listed.insert(item.task);
                    if item.result_pending {
                        Verdict::ResendResult
                    } else {
                        if task.body.cancel_requested || task.body.passed().is_some() {
                            let message = Message::Cancel { task: item.task, fence: item.fence };
                            self.send(worker, message, out);
                        }
                        Verdict::Keep
                    }
                }
                None if item.result_pending => Verdict::Forget,
                None => Verdict::Cancel,
            };
            verdicts.push(AttemptVerdict { task: item.task, fence: item.fence, verdict });
        }
        let missing: Vec<TaskId> = self
            .workers
            .get(worker)
            .map(|w| w.running.iter().copied().filter(|id| !listed.contains(id)).collect())
            .unwrap_or_default();
        for id in missing {
            // A host that lives has everything it ever got in its inventory: what is not there never arrived. What a dead
            // host got, nobody knows.
            let never_started =
                same_host && self.tasks.get(&id).is_some_and(|task| task.body.state == State::Assigned);
            self.give_up(now, id, never_started, "the worker's host ended while this ran", out);
        }
        self.pump_ready(now, out);
        verdicts
    }

    /// Is this the attach that may write for the worker?
    pub fn is_current(&self, worker: &str, attach: u64) -> bool {
        self.workers.get(worker).and_then(|w| w.attached).is_some_and(|attached| attached.epoch == attach)
    }

    /// The stream of an attach ended. Nothing is given up: the worker comes back, or silence decides. A goodbye is the
    /// only graceful end: nothing is awaited from it.
    pub fn detach(&mut self, now: Now, worker: &str, attach: u64, goodbye: bool) -> Out {
        let mut out = Out { full: true, ..Out::default() };
        if !self.is_current(worker, attach) {
            return out;
        }
        let Some((id, _)) = self.workers.get_key_value(worker) else { return out };
        let id = id.clone();
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.attached = None;
            if goodbye && worker.to(worker::State::Gone) {
                out.workers.insert(id.clone());
            }
        }
        self.reindex(&id);
        if goodbye {
            let held: Vec<TaskId> =
                self.workers.get(&id).map(|w| w.running.iter().copied().collect()).unwrap_or_default();
            for task in held {
                self.give_up(now, task, false, "the worker ended in an orderly way while this ran", &mut out);
            }
            self.pump_ready(now, &mut out);
        }
        self.finish(now, &mut out);
        out
    }

    /// A heartbeat: the lease of everything the worker holds goes on. False = not the current attach.
    pub fn heartbeat(&mut self, now: Now, worker: &str, attach: u64) -> (bool, Out) {
        let mut out = Out::default();
        if !self.is_current(worker, attach) {
            return (false, out);
        }
        self.seen(now, worker);
        let Some((id, _)) = self.workers.get_key_value(worker) else { return (false, out) };
        let id = id.clone();
        if let Some(worker) = self.workers.get_mut(&id)
            && matches!(worker.body.state, worker::State::Suspect | worker::State::Lost)
            && worker.to(worker.heard())
        {
            worker.spared = false;
            out.workers.insert(id.clone());
            self.reindex(&id);
            self.pump_worker(now, &id, &mut out);
            self.finish(now, &mut out);
        }
        (true, out)
    }

    pub(super) fn seen(&mut self, now: Now, worker: &str) {
        if let Some(worker) = self.workers.get_mut(worker) {
            worker.last_seen_mono_ms = now.mono_ms;
            worker.last_seen_ms = now.wall_ms;
        }
    }

    /// The worker serves these stacks now.
    pub fn stacks(&mut self, now: Now, worker: &str, attach: u64, stacks: Vec<(String, String)>) -> Out {
        let mut out = Out { full: true, ..Out::default() };
        if !self.is_current(worker, attach) {
            return out;
        }
        let Some((id, _)) = self.workers.get_key_value(worker) else { return out };
        let id = id.clone();
        if let Some(worker) = self.workers.get_mut(&id)
            && worker.body.stacks != stacks
        {
            worker.body.stacks = stacks;
            out.workers.insert(id);
        }
        self.finish(now, &mut out);
        out
    }
}
