//! What a tenant may hold at once.

use cooper_common::{
    error::{Code, Error, Result},
    ids::SessionId,
};

use super::Cluster;
use crate::session::Share;

/// Of each tenant, over its live sessions; 0 = without limit. With a limit on memory or disk, sessions have to name theirs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quota {
    pub sessions: u64,
    pub memory_bytes: u64,
    pub disk_bytes: u64,
}

impl Cluster {
    #[must_use]
    pub fn with_quota(mut self, quota: Quota) -> Self {
        self.quota = quota;
        self
    }

    /// Whether one session more fits into its tenant's quota.
    pub(super) fn within_quota(&self, tenant: &str, share: Share) -> Result<()> {
        self.within_quota_but(tenant, share, None)
    }

    /// The same with `but` counted as not there yet.
    pub(super) fn within_quota_but(&self, tenant: &str, share: Share, but: Option<SessionId>) -> Result<()> {
        let quota = self.quota;
        if quota == Quota::default() {
            return Ok(());
        }
        let (mut sessions, mut memory_bytes, mut disk_bytes) = (1, share.memory_bytes, share.disk_bytes);
        for session in self.sessions.values().filter(|s| *s.tenant == *tenant && Some(s.id) != but) {
            // One that hibernates takes disk and nothing else.
            if !session.body.hibernated {
                sessions += 1;
                memory_bytes = memory_bytes.saturating_add(session.body.share.memory_bytes);
            }
            disk_bytes = disk_bytes.saturating_add(session.body.share.disk_bytes);
        }
        within("sessions", sessions, quota.sessions)?;
        named("memory", share.memory_bytes, quota.memory_bytes)?;
        within("bytes of memory", memory_bytes, quota.memory_bytes)?;
        named("disk", share.disk_bytes, quota.disk_bytes)?;
        within("bytes of disk", disk_bytes, quota.disk_bytes)
    }
}

fn within(what: &str, wanted: u64, max: u64) -> Result<()> {
    if max == 0 || wanted <= max {
        return Ok(());
    }
    Err(Error::new(Code::QuotaExceeded, format!("the tenant would hold {wanted} {what}; its quota is {max}")))
}

fn named(what: &str, limit: u64, quota: u64) -> Result<()> {
    if quota == 0 || limit != 0 {
        return Ok(());
    }
    Err(Error::new(
        Code::QuotaExceeded,
        format!("tenants have a quota of {what}, and the session has no limit of it"),
    )
    .with_hint(format!("give the session a limit of {what}")))
}
