//! Repairs that nobody asked for: where the stack and the operator allow them, not while they are paused, and not too
//! often. What was started before is looked up in what is recorded, so that a restart forgets nothing (I13).

use cooper_common::{
    clock,
    error::{Code, Error, Result},
    limits::run as limits,
};
use cooper_core::{
    change::Aggregate,
    run::{Body, Run, State},
};
use cooper_repair::{OperatorPolicy, Policy};

use super::{Runs, Stack, pause};
use crate::{
    caller::Caller,
    cluster::Cluster,
    store::{Cursor, Filter, Record, Store},
};

const DAY_MS: i64 = 86_400_000;
/// Runs that are looked through at once.
const PAGE: usize = 1_000;

/// How often repairs start by themselves: settings of the coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AutoRepair {
    /// Between two of a service; doubles with each that came to nothing.
    pub cooldown_ms: u64,
    /// Of a stack, within 24 hours.
    pub per_day: u64,
}

impl Default for AutoRepair {
    fn default() -> Self {
        Self { cooldown_ms: limits::AUTOMATIC_COOLDOWN_MS, per_day: limits::AUTOMATIC_PER_DAY }
    }
}

/// Why nothing may start by itself now, and for how long.
pub(super) struct Wait {
    pub(super) error: Error,
    pub(super) left_ms: u64,
}

impl Runs {
    /// # Errors
    /// `paused`, and `cooldown` when this service was repaired by itself a moment ago, or its stack too often today.
    pub(super) async fn admit_automatic(
        &self,
        caller: &Caller,
        stack: &Stack,
        service: &str,
        trigger: &str,
    ) -> Result<()> {
        if let Some(pause) = self.cluster.pauses.of(&caller.tenant, &stack.name) {
            return Err(pause::refusal(&pause));
        }
        match self.wait(caller, stack, service, !trigger.is_empty()).await? {
            Some(wait) => Err(wait.error),
            None => Ok(()),
        }
    }

    /// Whether the service was repaired a moment ago, or its stack too often today. `seen`: what would start it was seen in
    /// the engine, so it may be what any run has left, and not only one that began by itself.
    pub(super) async fn wait(
        &self,
        caller: &Caller,
        stack: &Stack,
        service: &str,
        seen: bool,
    ) -> Result<Option<Wait>> {
        let AutoRepair { cooldown_ms, per_day } = self.settings.auto_repair;
        let now_ms = clock::wall_ms();
        let mut today = 0;
        let mut of_service = None;
        let mut in_vain = 0;
        let mut counting = true;
        let mut before = None;
        'read: loop {
            let (records, next) = page(&*self.cluster.store, &caller.tenant, &stack.name, before).await?;
            for (record, body) in records {
                let ago_ms = now_ms - record.row.created_ms;
                if ago_ms >= DAY_MS {
                    break 'read;
                }
                // What was only counted has not repaired anything.
                if body.reason.as_ref().is_some_and(|reason| reason.code == Code::NotRecurring.as_str()) {
                    continue;
                }
                if body.automatic {
                    today += 1;
                    if today >= per_day {
                        let what =
                            format!("stack {} was repaired {today} times by itself within a day", stack.name);
                        let left_ms = DAY_MS.saturating_sub(ago_ms).unsigned_abs();
                        return Ok(Some(Wait { error: Error::new(Code::Cooldown, what), left_ms }));
                    }
                }
                if body.service != service || !(body.automatic || seen) {
                    continue;
                }
                if body.automatic && counting {
                    counting = body.state != State::Succeeded;
                    in_vain += u32::from(counting);
                }
                if of_service.is_none() {
                    let ended_ms = if record.row.ended { record.row.updated_ms } else { now_ms };
                    of_service = Some((record.id, body.automatic, now_ms - ended_ms));
                }
            }
            before = next;
            if before.is_none() {
                break;
            }
        }
        let Some((run, automatic, ago_ms)) = of_service else { return Ok(None) };
        let cooldown_ms = cooldown_ms.saturating_mul(1 << in_vain.saturating_sub(1).min(16));
        let left_ms = cooldown_ms.min(DAY_MS.unsigned_abs()).saturating_sub(ago_ms.max(0).unsigned_abs());
        Ok((left_ms > 0).then(|| {
            let by = if automatic { " by itself" } else { "" };
            let what = format!("{service} was repaired{by} a moment ago, as run {run}");
            let hint = format!("automatically again in {} s; a person may at any time", left_ms / 1_000 + 1);
            Wait { error: Error::new(Code::Cooldown, what).with_hint(hint), left_ms }
        }))
    }
}

/// The tenant's runs of a stack, newest first.
async fn page(
    store: &dyn Store,
    tenant: &str,
    stack: &str,
    before: Option<Cursor>,
) -> Result<(Vec<(Record, Body)>, Option<Cursor>)> {
    let filter = Filter {
        tenant: Some(tenant.to_owned()),
        parent: Some(stack.to_owned()),
        before,
        limit: PAGE,
        ..Filter::default()
    };
    let page = store.list(Aggregate::Run, filter).await?;
    let read = |record: Record| match serde_json::from_str(&record.row.body) {
        Ok(body) => Ok((record, body)),
        Err(error) => Err(Error::internal(format!("the stored run {}: {error}", record.id))),
    };
    Ok((page.records.into_iter().map(read).collect::<Result<_>>()?, page.next))
}

/// How often the failure of a run was posted for its service lately, this time included.
pub(super) async fn posted(store: &dyn Store, run: &Run, fingerprint: &str) -> Result<u32> {
    let now_ms = clock::wall_ms();
    let mut count = 1;
    let mut before = None;
    loop {
        let (records, next) = page(store, &run.tenant, &run.body.stack, before).await?;
        for (record, body) in records {
            if now_ms - record.row.created_ms >= limits::RECURRING_MS {
                return Ok(count);
            }
            let same = body.service == run.body.service && body.fingerprint == fingerprint;
            count += u32::from(same && body.recurring > 0 && record.id != run.id.to_string());
        }
        before = next;
        if before.is_none() {
            return Ok(count);
        }
    }
}

/// Why a run that nobody asked for goes no further than its evidence, if it does not.
pub(super) fn against(
    cluster: &Cluster,
    tenant: &str,
    stack: &str,
    service: &str,
    own: &Policy,
    operator: &OperatorPolicy,
) -> Option<Error> {
    if let Some(pause) = cluster.pauses.of(tenant, stack) {
        return Some(pause::refusal(&pause));
    }
    if !own.auto_repair {
        let what =
            format!("{service} is repaired when a person asks for it: x-cooper.auto_repair is not set");
        return Some(Error::new(Code::PolicyRefused, what));
    }
    operator.against_automatic(stack, service).map(|why| Error::new(Code::PolicyRefused, why))
}
