//! Approvals: which there are, and when the next of them expires.

use std::{collections::BTreeMap, time::Duration};

use cooper_common::{
    error::{Error, Result},
    ids::RunId,
};
use cooper_core::{
    change::Aggregate,
    run::{Approval, Body, Decision, Run},
};
use cooper_proto::v1;

use super::Runs;
use crate::{
    caller::Caller,
    check,
    cluster::now,
    store::{Filter, Record},
};

/// A machine that slept, or whose clock was set, notices within this time what has become due.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// An approval with the run it is of.
pub struct Waiting {
    pub run_id: String,
    pub run: Body,
    pub approval: Approval,
}

/// Resolves when the first of the approvals that these runs wait for has expired; never, while none waits for one.
pub(super) fn due(runs: &BTreeMap<RunId, Run>) -> impl Future<Output = ()> + use<> + Send {
    let left = runs.values().filter_map(Run::expires_ms).min().map(|at| {
        let left = Duration::from_millis(u64::try_from(at - now().wall_ms).unwrap_or(0));
        left.min(LOOK_AGAIN)
    });
    async move {
        match left {
            Some(left) => tokio::time::sleep(left).await,
            None => std::future::pending().await,
        }
    }
}

impl Runs {
    /// Approvals of the tenant's runs, newest first.
    pub async fn approvals(
        &self,
        caller: &Caller,
        request: v1::ListApprovalsRequest,
    ) -> Result<(Vec<Waiting>, String)> {
        let unknown =
            |name: &&String| !Decision::ALL.iter().any(|decision| decision.as_str() == name.as_str());
        if let Some(unknown) = request.decisions.iter().find(unknown) {
            let all: Vec<_> = Decision::ALL.iter().map(|decision| decision.as_str()).collect();
            return Err(Error::invalid(format!("{unknown:?} is no decision; there are {}", all.join(", "))));
        }
        let tenant = Some(caller.tenant.to_string());
        let filter = Filter { tenant, states: request.decisions, ..check::page(request.page)? };
        let page = self.cluster.store.list(Aggregate::Approval, filter).await?;
        let mut approvals = Vec::with_capacity(page.records.len());
        for record in page.records {
            let run = self.cluster.store.get(Aggregate::Run, &record.row.parent).await?;
            // Retention may have taken the run, and the approval with it, since the list was read.
            let Some(run) = run else { continue };
            approvals.push(waiting(&record, &run)?);
        }
        Ok((approvals, page.next.map(|cursor| cursor.to_string()).unwrap_or_default()))
    }
}

fn waiting(record: &Record, run: &Record) -> Result<Waiting> {
    let unreadable = |_| Error::internal(format!("the stored approval {} cannot be read", record.id));
    Ok(Waiting {
        run_id: run.id.clone(),
        run: serde_json::from_str(&run.row.body).map_err(unreadable)?,
        approval: serde_json::from_str(&record.row.body).map_err(unreadable)?,
    })
}

/// Whether this caller may decide about it.
pub fn may_decide(caller: &Caller, approval: &Approval) -> bool {
    use cooper_common::token::Scope;
    let named = approval.approvers.is_empty() || approval.approvers.contains(&caller.name);
    named && matches!(caller.scope, Scope::Admin | Scope::Operator)
}
