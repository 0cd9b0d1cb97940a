//! Repairs that nobody asked for: where the stack and the operator allow them, not while they are paused, and not too
//! often. What was started before is looked up in what is recorded, so that a restart forgets nothing (I13).

use cooper_common::{
    clock,
    error::{Code, Error, Result},
    limits::run as limits,
};
use cooper_core::{change::Aggregate, run::Body};
use cooper_repair::{OperatorPolicy, Policy};

use super::{Runs, Stack, pause};
use crate::{caller::Caller, cluster::Cluster, store::Filter};

const DAY_MS: i64 = 86_400_000;

impl Runs {
    /// # Errors
    /// `paused`, and `cooldown` when this service was repaired by itself a moment ago, or its stack too often today.
    pub(super) async fn admit_automatic(&self, caller: &Caller, stack: &Stack, service: &str) -> Result<()> {
        if let Some(pause) = self.cluster.pauses.of(&caller.tenant, &stack.name) {
            return Err(pause::refusal(&pause));
        }
        let now_ms = clock::wall_ms();
        let mut today = 0;
        let mut before = None;
        loop {
            let filter = Filter {
                tenant: Some(caller.tenant.to_string()),
                parent: Some(stack.name.clone()),
                before,
                limit: 1_000,
                ..Filter::default()
            };
            let page = self.cluster.store.list(Aggregate::Run, filter).await?;
            for record in page.records {
                let ago_ms = now_ms - record.row.created_ms;
                if ago_ms >= DAY_MS {
                    return Ok(());
                }
                let body: Body = serde_json::from_str(&record.row.body)
                    .map_err(|error| Error::internal(format!("the stored run {}: {error}", record.id)))?;
                if !body.automatic {
                    continue;
                }
                today += 1;
                if today >= limits::AUTOMATIC_PER_DAY_MAX {
                    let what =
                        format!("stack {} was repaired {today} times by itself within a day", stack.name);
                    return Err(Error::new(Code::Cooldown, what));
                }
                let left_ms = limits::AUTOMATIC_COOLDOWN_MS - ago_ms;
                if body.service == service && left_ms > 0 {
                    let what = format!("{service} was repaired by itself a moment ago, as run {}", record.id);
                    let hint =
                        format!("automatically again in {} s; a person may at any time", left_ms / 1_000 + 1);
                    return Err(Error::new(Code::Cooldown, what).with_hint(hint));
                }
            }
            before = page.next;
            if before.is_none() {
                return Ok(());
            }
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
