//! `cooper approvals`: what waits for a person, and what people decided.

use cooper_common::clock;
use cooper_proto::v1::{ListApprovalsRequest, ListedApproval, Page};
use serde_json::{Value, json};

use crate::{
    args::Approvals,
    connect::Client,
    context::Context,
    failure::Result,
    output::{clean, json},
    units,
};

/// Enough of a plan's hash to tell plans apart; `cooper approve --plan` takes the whole of it.
const HASH_SHOWN: usize = 12;

pub async fn run(context: &Context, args: Approvals) -> Result<u8> {
    let Approvals::List { pending, limit } = args;
    let client = context.cluster()?.connect().await?;
    let waiting = list(&client, limit, &["pending"]).await?;
    let decided = match pending {
        true => Vec::new(),
        false => list(&client, limit, &["approved", "rejected", "expired", "cancelled"]).await?,
    };
    if context.out.json {
        let all: Vec<_> = waiting.iter().chain(&decided).map(document).collect();
        context.out.document(&json!({ "approvals": all }))?;
        return Ok(0);
    }
    let rows = waiting.iter().chain(&decided).map(row).collect();
    context.out.table(&["run", "stack", "service", "decision", "plan", "who", "when", "why"], rows)?;
    if let Some(first) = waiting.iter().find(|listed| listed.may_decide) {
        context.out.note(&format!(
            "read one with `cooper runs plan {0}`; decide with `cooper approve {0}` or `cooper reject {0}`",
            first.run_id
        ));
    }
    Ok(0)
}

async fn list(client: &Client, limit: u32, decisions: &[&str]) -> Result<Vec<ListedApproval>> {
    let request = ListApprovalsRequest {
        page: Some(Page { limit, cursor: String::new() }),
        decisions: decisions.iter().map(|&decision| decision.to_owned()).collect(),
    };
    Ok(client.runs().list_approvals(request).await?.into_inner().approvals)
}

fn document(listed: &ListedApproval) -> Value {
    let mut document = json::approval(&listed.approval.clone().unwrap_or_default());
    document["run_id"] = listed.run_id.clone().into();
    document["stack"] = listed.stack.clone().into();
    document["service"] = listed.service.clone().into();
    document["cause"] = listed.cause.clone().into();
    document["files"] = listed.files.clone().into();
    document["may_decide"] = listed.may_decide.into();
    document
}

fn row(listed: &ListedApproval) -> Vec<String> {
    let approval = listed.approval.clone().unwrap_or_default();
    let (who, when) = match approval.decision.as_str() {
        "pending" => {
            let left = u64::try_from(approval.expires_at_ms - clock::wall_ms()).unwrap_or(0);
            let who = match approval.approvers.is_empty() {
                true => "any operator".to_owned(),
                false => approval.approvers.join(" or "),
            };
            (who, format!("expires in {}", units::human_ms(left)))
        }
        "expired" => ("nobody".to_owned(), units::ago(approval.expires_at_ms)),
        _ => (approval.decided_by.clone(), units::ago(approval.decided_at_ms)),
    };
    vec![
        listed.run_id.clone(),
        listed.stack.clone(),
        listed.service.clone(),
        approval.decision.clone(),
        approval.plan_hash.chars().take(HASH_SHOWN).collect(),
        clean(&who),
        when,
        clean(&approval.reasons.join("; ")),
    ]
}
