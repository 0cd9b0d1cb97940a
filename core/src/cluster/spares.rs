//! Spares: sessions that were made of a template before anybody asked for one, warm-up and all. Whoever creates a session
//! of that template gets one as it is. A spare belongs to its template's tenant from the beginning and is never given back.

use cooper_common::{
    error::{Code, Error, Result},
    ids::{SessionId, TemplateId},
};

use super::{Cluster, Out, sessions::unknown};
use crate::{
    Now,
    session::{Create, Session, Spare, State},
};

impl Cluster {
    /// The sessions that are spares of any template, with how far they are.
    pub fn spares(&self) -> impl Iterator<Item = (&Session, &Spare)> {
        self.sessions.values().filter_map(|session| Some((session, session.body.spare.as_ref()?)))
    }

    /// A spare has its template's warm-up behind it and may be taken.
    pub fn spare_is_warm(&mut self, now: Now, id: SessionId) -> Result<Out> {
        let mut out = Out { full: true, ..Out::default() };
        let session = self.sessions.get_mut(&id).ok_or_else(|| unknown(id))?;
        if let Some(spare) = &mut session.body.spare {
            spare.warm = true;
            out.sessions.insert(id);
        }
        self.finish(now, &mut out);
        Ok(out)
    }

    /// Makes a warm spare the session that is wanted; `None` when there is none. Its id is its own, not the one asked for.
    ///
    /// # Errors
    /// `name_taken`; `quota_exceeded`.
    pub fn take_spare(
        &mut self,
        now: Now,
        template: TemplateId,
        create: Create,
    ) -> Result<Option<(SessionId, Out)>> {
        let warm = |session: &&Session| {
            session.body.state == State::Ready
                && session.tenant == create.tenant
                && session.body.spare == Some(Spare { template, warm: true })
                && session.active() == 0
                && self.workers.get(session.body.worker.as_str()).is_some_and(|w| w.accepts())
        };
        let Some(id) = self.sessions.values().find(warm).map(|session| session.id) else { return Ok(None) };
        let name = (create.tenant.clone(), create.name.clone());
        if !create.name.is_empty() && self.names.contains_key(&name) {
            return Err(Error::new(
                Code::NameTaken,
                format!("a live session is already named {:?}", create.name),
            ));
        }
        self.within_quota_but(&create.tenant, create.share, Some(id))?;
        let Some(session) = self.sessions.get_mut(&id) else { return Err(unknown(id)) };
        session.take(now, create);
        if !name.1.is_empty() {
            self.names.insert(name, id);
        }
        let mut out = Out { full: true, ..Out::default() };
        out.sessions.insert(id);
        self.finish(now, &mut out);
        Ok(Some((id, out)))
    }
}
