//! Creating and ending sessions.

use std::collections::BTreeSet;

use cooper_common::{
    error::{Code, Error, Result},
    ids::SessionId,
    limits::network,
};

use super::{Cluster, Effect, Message, Out};
use crate::{
    Now,
    lease::Fence,
    python,
    session::{Carried, Create, Reason, Session, State},
    task::End,
    worker::{CHECKPOINT, INJECT, SECRETS, Worker},
};

/// What a worker says about a session it was granted.
#[derive(Debug, Clone)]
pub enum Update {
    Ready {
        python_version: String,
        facilities: Vec<String>,
        /// See [`crate::session::Body::globals`].
        globals: String,
    },
    Failed(Reason),
    Destroyed,
}

/// Whether a worker can do what a session with secrets needs of it.
pub(super) fn gives_secrets(worker: &Worker, files: bool, injects: bool) -> bool {
    let can = |capability| worker.body.capabilities.contains(capability);
    (!files || can(SECRETS)) && (!injects || can(INJECT))
}

impl Session {
    /// Its grants come with secrets.
    pub(super) fn has_secrets(&self) -> bool {
        self.body.secrets || self.body.injects
    }

    /// What tells its worker that it is there.
    pub(super) fn grant(&self, restore: bool) -> Message {
        Message::SessionGrant {
            session: self.id,
            fence: self.body.fence,
            spec: self.spec.clone(),
            restore,
            secrets_of: self.has_secrets().then(|| self.tenant.clone()),
            python: self.python().to_owned(),
        }
    }
}

impl Cluster {
    /// Places a session on the worker with the most free room among those with its labels. Its tasks go there. One that
    /// cannot keep tenants apart is left to the tenant that is there.
    ///
    /// # Errors
    /// `name_taken`; `no_worker` when none with the labels and the Python is attached; `isolation_unavailable` when all of
    /// these refuse sessions; `not_supported` when it is to have secrets and all are of a version that knows none;
    /// `no_capacity` when all are full or another tenant's.
    pub fn create_session(&mut self, now: Now, create: Create) -> Result<Out> {
        let mut out = Out { full: true, ..Out::default() };
        let name = (create.tenant.clone(), create.name.clone());
        if !create.name.is_empty() && self.names.contains_key(&name) {
            return Err(Error::new(
                Code::NameTaken,
                format!("a live session is already named {:?}", create.name),
            ));
        }
        self.within_quota(&create.tenant, create.share)?;
        let worker = self
            .workers
            .values()
            .filter(|worker| worker.free_sessions() > 0 && worker.has(&create.worker_labels))
            .filter(|worker| !self.is_anothers(worker, &create.tenant))
            .filter(|worker| fits(worker, &create))
            .filter(|worker| gives_secrets(worker, create.secrets, create.injects))
            .max_by_key(|worker| (worker.free_sessions(), std::cmp::Reverse(worker.id.clone())))
            .map(|worker| worker.id.clone())
            .ok_or_else(|| self.no_room(&create))?;
        let session = Session::new(now, create, &worker, self.epoch);
        let (id, restore) = (session.id, session.body.restore.is_some());
        let grant = session.grant(restore);
        if !name.1.is_empty() {
            self.names.insert(name, id);
        }
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.sessions.insert(id);
        }
        self.sessions.insert(id, session);
        out.sessions.insert(id);
        self.send(&worker, grant, &mut out);
        if restore {
            out.effects.push(Effect::TransfersDue);
        }
        self.finish(now, &mut out);
        Ok(out)
    }

    /// Nothing keeps its sessions apart, and it has some of another tenant.
    pub(super) fn is_anothers(&self, worker: &Worker, tenant: &str) -> bool {
        let of_another = |id| self.sessions.get(id).is_some_and(|session| *session.tenant != *tenant);
        !worker.keeps_tenants_apart() && worker.sessions.iter().any(of_another)
    }

    fn no_room(&self, create: &Create) -> Error {
        let (labels, tenant) = (&create.worker_labels, &*create.tenant);
        let mut hosts: Vec<_> =
            self.workers.values().filter(|w| w.accepts() && w.body.capabilities.contains("python")).collect();
        if hosts.is_empty() {
            return Error::new(Code::NoWorker, "no worker with Python is attached");
        }
        hosts.retain(|worker| worker.has(labels));
        let (on, labels) = match labels.is_empty() {
            true => (String::new(), String::new()),
            false => (format!(" with {}", super::named(labels)), super::named(labels)),
        };
        if hosts.is_empty() {
            return Error::new(Code::NoWorker, format!("no attached worker has the labels {labels}"))
                .with_hint(format!(
                    "start a worker with `--labels {labels}`; `cooper workers` lists labels"
                ));
        }
        let offered: BTreeSet<&str> =
            hosts.iter().flat_map(|worker| worker.body.pythons()).map(String::as_str).collect();
        let offered: Vec<&str> = offered.into_iter().collect();
        hosts.retain(|worker| fits(worker, create));
        if hosts.is_empty() {
            let (python, why) = match &create.restore {
                Some((_, made)) if create.python.is_empty() => {
                    (python::minor(made), ", which the checkpoint was made with")
                }
                _ => (&*create.python, ""),
            };
            let minor = python::minor(python);
            return Error::new(
                Code::NoWorker,
                format!("no attached worker{on} has Python {python}{why}; there are {}", offered.join(", ")),
            )
            .with_hint(format!("start a worker with COOPER_PYTHON=python3,python{minor}"));
        }
        if create.secrets {
            hosts.retain(|worker| worker.body.capabilities.contains(SECRETS));
            if hosts.is_empty() {
                return Error::new(Code::NotSupported, format!("no attached worker{on} knows secrets"))
                    .with_hint("upgrade the workers, or create the session without secrets");
            }
        }
        if create.injects {
            hosts.retain(|worker| worker.body.capabilities.contains(INJECT));
            if hosts.is_empty() {
                let lack = format!("no attached worker{on} can put secrets into requests");
                return Error::new(Code::NotSupported, lack).with_hint(
                    "that takes a worker of this version with the facility `network` (docs/isolation.md)",
                );
            }
        }
        if let Some(refused) = hosts.iter().find_map(|worker| worker.body.sessions_refused.as_ref())
            && hosts.iter().all(|worker| worker.body.sessions_refused.is_some())
        {
            return Error::new(
                Code::IsolationUnavailable,
                format!("all {} worker(s){on} refuse sessions: {}", hosts.len(), refused.message),
            );
        }
        hosts.retain(|worker| worker.body.sessions_refused.is_none());
        let anothers = |worker: &&&Worker| worker.free_sessions() > 0 && self.is_anothers(worker, tenant);
        let closed = hosts.iter().filter(anothers).count();
        if closed > 0 {
            // Not whose they are: that is no business of this tenant's.
            return Error::new(
                Code::NoCapacity,
                format!(
                    "{closed} of {} worker(s){on} with room cannot keep tenants apart and hold another's sessions, the rest \
                     are full",
                    hosts.len()
                ),
            )
            .with_hint(
                "run the workers as root, so that sessions get uids of their own (docs/isolation.md), or give every \
                 tenant workers of its own",
            );
        }
        let (held, max) =
            hosts.iter().fold((0, 0), |(held, max), w| (held + w.sessions.len(), max + w.body.sessions_max));
        Error::new(
            Code::NoCapacity,
            format!("all {} worker(s){on} are full: {held} of {max} sessions", hosts.len()),
        )
    }

    /// A worker reports on a session. Under an old fence it changes nothing.
    pub fn session_update(
        &mut self,
        now: Now,
        worker: &str,
        attach: u64,
        id: SessionId,
        fence: Fence,
        update: Update,
    ) -> Out {
        let mut out = Out { full: true, ..Out::default() };
        if !self.is_current(worker, attach) {
            return out;
        }
        self.seen(now, worker);
        let tier = self.workers.get(worker).map(|worker| worker.body.tier.clone()).unwrap_or_default();
        let Some(session) = self.sessions.get_mut(&id) else { return out };
        if session.body.fence != fence || session.body.worker != worker {
            return out;
        }
        if matches!(update, Update::Failed(_))
            && session.body.state == State::Initializing
            && session.body.restore.as_ref().is_some_and(|restore| restore.moved)
        {
            self.unplace(now, id, &mut out);
            self.finish(now, &mut out);
            return out;
        }
        if session.is_saved() && !matches!(update, Update::Ready { .. }) {
            // What it was is lost, and what it is going to be is not.
            session.homeless = true;
            self.place_saved(now, &mut out);
            self.finish(now, &mut out);
            return out;
        }
        let moved = match update {
            Update::Ready { python_version, facilities, globals } => {
                // A worker that attaches again says it of one that is being saved too: that goes on.
                let moved = session.body.state == State::Initializing && session.to(State::Ready);
                if moved {
                    session.body.python_version = python_version;
                    session.body.facilities = facilities;
                    session.body.globals = globals;
                    session.body.tier = tier;
                    if session.body.restore.take().is_some_and(|restore| restore.moved) {
                        session.interpreter_restarted(true);
                    }
                }
                moved
            }
            Update::Failed(reason) => {
                session.body.reason = Some(reason);
                session.to(State::Failed)
            }
            Update::Destroyed => session.to(State::Destroyed),
        };
        if moved {
            if session.body.state.ended() {
                self.end_tasks_of(now, id, Code::SessionEnded, "the session ended", &mut out);
            }
            out.sessions.insert(id);
            self.pump_session(now, id, &mut out);
        }
        self.finish(now, &mut out);
        out
    }

    /// What a worker's proxy refused to its sessions, as session, count and the body of an event. Decides nothing.
    pub fn network_refused(
        &mut self,
        now: Now,
        worker: &str,
        attach: u64,
        refused: Vec<(SessionId, u64, String)>,
    ) -> Out {
        let mut out = Out::default();
        if !self.is_current(worker, attach) {
            return out;
        }
        for (id, count, body) in refused {
            if let Some(session) = self.sessions.get_mut(&id).filter(|session| session.body.worker == worker)
            {
                session.refused(count, body);
                out.sessions.insert(id);
            }
        }
        self.finish(now, &mut out);
        out
    }

    /// What connections of a worker's sessions carried, by the count's id. Known at once, recorded now and then.
    pub fn network_used(
        &mut self,
        now: Now,
        worker: &str,
        attach: u64,
        used: Vec<(SessionId, u64, Carried)>,
    ) -> Out {
        let mut out = Out::default();
        if !self.is_current(worker, attach) {
            return out;
        }
        for (id, count_id, counted) in used {
            let Some(session) = self.sessions.get_mut(&id).filter(|session| session.body.worker == worker)
            else {
                continue;
            };
            let before = session.body.traffic;
            session.body.traffic.heard(count_id, counted);
            let due = now.mono_ms >= session.traffic_recorded_mono_ms + network::USED_RECORDED_MS;
            if session.body.traffic != before && due {
                session.traffic_recorded_mono_ms = now.mono_ms;
                out.sessions.insert(id);
            }
        }
        self.finish(now, &mut out);
        out
    }

    /// Ends a session: its tasks are cancelled, its worker removes it. With its worker away it is destroyed at once, and
    /// the worker is told when it comes back.
    pub fn destroy_session(&mut self, now: Now, id: SessionId) -> Result<Out> {
        let mut out = Out { full: true, ..Out::default() };
        if !self.sessions.contains_key(&id) {
            return Err(unknown(id));
        }
        self.end_session(now, id, Code::Cancelled, "the session was destroyed", &mut out);
        self.finish(now, &mut out);
        Ok(out)
    }

    pub(super) fn end_session(&mut self, now: Now, id: SessionId, code: Code, message: &str, out: &mut Out) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if session.body.state == State::Draining {
            return;
        }
        // What is still being carried for it comes to nothing: a session that ends falls asleep or moves no more.
        session.transfer = None;
        let fence = session.body.fence;
        let worker = self.workers.get(session.body.worker.as_str()).filter(|w| w.attached.is_some());
        match worker.map(|w| w.id.clone()) {
            Some(worker) => {
                session.to(State::Draining);
                self.send(&worker, Message::SessionEnd { session: id, fence }, out);
            }
            None => {
                session.to(State::Destroyed);
            }
        }
        self.end_tasks_of(now, id, code, message, out);
        out.sessions.insert(id);
    }

    /// Ends every task of a session that is going away.
    pub(super) fn end_tasks_of(&mut self, now: Now, id: SessionId, code: Code, message: &str, out: &mut Out) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let queued = std::mem::take(&mut session.queue);
        let delayed = std::mem::take(&mut session.delayed);
        let running = session.running.clone();
        let worker = session.body.worker.clone();
        if let Some(worker) = self.workers.get_mut(worker.as_str()) {
            worker.waiting.remove(&id);
        }
        let queued = queued.iter().map(|(_, task)| task);
        for task in queued.chain(delayed).chain(running).collect::<Vec<_>>() {
            self.end_by_us(now, task, End::Cancelled, code, message, out);
        }
    }

    pub(super) fn forget_session(&mut self, id: SessionId) {
        let Some(session) = self.sessions.remove(&id) else { return };
        if let Some(due) = session.due_mono_ms {
            self.session_timers.remove(&(due, id));
        }
        self.names.remove(&(session.tenant, session.body.name));
        if let Some(worker) = self.workers.get_mut(session.body.worker.as_str()) {
            worker.sessions.remove(&id);
            worker.waiting.remove(&id);
        }
    }

    /// A session of a worker that says it does not have it any more.
    pub(super) fn fail_session(&mut self, now: Now, id: SessionId, code: Code, message: &str, out: &mut Out) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let next = if session.body.state == State::Draining { State::Destroyed } else { State::Failed };
        if next == State::Failed {
            session.body.reason =
                Some(Reason { code: code.as_str().to_owned(), message: message.to_owned() });
        }
        if session.to(next) {
            self.end_tasks_of(now, id, code, message, out);
            out.sessions.insert(id);
            out.effects.push(Effect::CapacityChanged);
        }
    }
}

pub(super) fn unknown(id: SessionId) -> Error {
    Error::new(Code::SessionNotFound, format!("there is no session {id}"))
}

/// Whether the worker can make it, as far as its Python goes.
fn fits(worker: &Worker, create: &Create) -> bool {
    let restores = |python: &str| {
        worker.body.capabilities.contains(CHECKPOINT) && worker.body.offers(python::minor(python))
    };
    worker.body.offers(&create.python) && create.restore.as_ref().is_none_or(|(_, python)| restores(python))
}
