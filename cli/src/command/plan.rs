//! `cooper runs plan`, and the end of `cooper repair --dry-run`: a plan as a person reviews it.

use cooper_common::clock;
use cooper_proto::v1::{GetPlanRequest, GetPlanResponse, GetRunRequest, Run};
use serde_json::{Value, json};

use super::watch;
use crate::{
    connect::Client,
    context::Context,
    failure::Result,
    output::{clean, json},
    units,
};

pub async fn run(context: &Context, client: &Client, run_id: String, attempt: u32) -> Result<()> {
    let run = client.runs().get_run(GetRunRequest { run_id: run_id.clone() }).await?.into_inner();
    let plan = get(client, run_id, attempt).await?;
    let approval = run.approval.as_ref().filter(|approval| approval.plan_hash == plan.plan_hash);
    context.out.answer(
        || {
            let mut document = document(&plan);
            document["approval"] = approval.map_or(Value::Null, json::approval);
            document
        },
        || {
            let mut lines = vec![format!("{} {} {}", run.id, run.service, json::run_state(run.state()))];
            lines.push(text(&plan));
            if let Some(approval) = approval.filter(|approval| approval.decision == "pending") {
                let left = u64::try_from(approval.expires_at_ms - clock::wall_ms()).unwrap_or(0);
                lines.push(format!("  expires   in {}", units::human_ms(left)));
                lines.push(format!("  approve   cooper approve {} --plan {}", run.id, plan.plan_hash));
                lines.push(format!("  reject    cooper reject {} --plan {}", run.id, plan.plan_hash));
            }
            lines.join("\n")
        },
    )
}

/// What came of a dry run.
pub fn show_dry_run(context: &Context, run: &Run, plan: &GetPlanResponse) -> Result<()> {
    context.out.answer(
        || {
            let mut document_of_run = json::run(run);
            document_of_run["plan"] = document(plan);
            document_of_run
        },
        || {
            let mut lines = vec![watch::summary(run), text(plan)];
            lines.push("  dry run   this is the plan; nothing was touched".to_owned());
            lines.join("\n")
        },
    )
}

pub async fn get(client: &Client, run_id: String, attempt: u32) -> Result<GetPlanResponse> {
    Ok(client.runs().get_plan(GetPlanRequest { run_id, attempt }).await?.into_inner())
}

fn document(plan: &GetPlanResponse) -> Value {
    let read = |text: &str| serde_json::from_str(text).unwrap_or(Value::Null);
    json!({
        "run_id": plan.run_id,
        "attempt": plan.attempt,
        "plan_hash": plan.plan_hash,
        "plan": read(&plan.plan_json),
        "review": read(&plan.review_json),
    })
}

fn text(plan: &GetPlanResponse) -> String {
    let review: Value = serde_json::from_str(&plan.review_json).unwrap_or(Value::Null);
    let word = |value: &Value| clean(value.as_str().unwrap_or_default());
    let each = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut lines = vec![
        format!("  plan      {} of attempt {}", plan.plan_hash, plan.attempt),
        format!("  cause     {}", word(&review["cause"])),
        format!(
            "  evidence  {} (rule {}, {} % sure)",
            word(&review["evidence_line"]),
            word(&review["rule_id"]),
            review["confidence"]
        ),
        format!("  risk      {}: {}", word(&review["class"]), word(&review["risk"])),
    ];
    let decision = &review["decision"];
    let reasons: Vec<String> = each(&decision["reasons"]).iter().map(word).collect();
    let said = match decision["decision"].as_str().unwrap_or_default() {
        "needs_approval" => "needs an approval",
        "refused" => "refuses it",
        _ => "allows it",
    };
    let why = if reasons.is_empty() { String::new() } else { format!(": {}", reasons.join("; ")) };
    lines.push(format!("  policy    {said}{why}"));
    if said == "needs an approval" {
        let approvers: Vec<String> = each(&decision["approvers"]).iter().map(word).collect();
        let who = match approvers.is_empty() {
            true => "anybody with scope operator or admin".to_owned(),
            false => approvers.join(" or "),
        };
        lines.push(format!("  approvers {who}"));
    }
    for file in each(&review["files"]) {
        let (added, removed) = (&file["lines_added"], &file["lines_removed"]);
        let about = format!("{} (+{added} -{removed})", word(&file["description"]));
        lines.push(format!("  changes   {}: {about}", word(&file["path"])));
    }
    let uncommitted: Vec<String> = each(&review["uncommitted"]).iter().map(word).collect();
    if !uncommitted.is_empty() {
        lines.push(format!("  built too, and not committed: {}", uncommitted.join(", ")));
    }
    for file in each(&review["files"]) {
        lines.push(String::new());
        lines.extend(file["diff"].as_str().unwrap_or_default().lines().map(clean));
    }
    lines.push(String::new());
    for act in each(&review["steps"]) {
        push_act(&mut lines, &word(&act["step"]), &act);
    }
    for what in each(&review["verification"]) {
        lines.push(format!("  well when {}", word(&what)));
    }
    lines.push("  if a step fails:".to_owned());
    for act in each(&review["on_failure"]) {
        push_act(&mut lines, &word(&act["step"]), &act);
    }
    lines.join("\n")
}

fn push_act(lines: &mut Vec<String>, step: &str, act: &Value) {
    lines.push(format!("  {step:<9} {}", clean(act["does"].as_str().unwrap_or_default())));
    for command in act["commands"].as_array().into_iter().flatten() {
        let words = command.as_array().into_iter().flatten().filter_map(Value::as_str).map(quoted);
        lines.push(format!("            $ {}", clean(&words.collect::<Vec<_>>().join(" "))));
    }
}

/// A word of a command, so that it can be read as one.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@,+".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}
