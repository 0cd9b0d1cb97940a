//! `cooper diagnose`: what a log or a failing service means, and the edits that would mend it. Decides as a coordinator
//! does, by the same rules and the stack's own policy, and asks nobody.

use cooper_common::error::Code;
use cooper_coordinator::runs::Rules;
use cooper_repair::diagnosis::Remedy;
use cooper_repair::{Class, Decision, Diagnosis, RepairPlan, diagnose};
use cooper_worker::stack::{Asked, offline_evidence};
use serde_json::json;

use super::repair::read_log;
use crate::{
    args::Diagnose,
    context::Context,
    failure::{Failure, Result},
};

/// As a run that is refused ends.
const EXIT_NOT_MENDED: u8 = 5;

pub async fn run(context: &Context, args: Diagnose) -> Result<u8> {
    let rules = args.rules.as_deref().map_or(Ok(Rules::default()), Rules::with)?;
    let log = match &args.log {
        None => None,
        Some(path) => Some(String::from_utf8_lossy(&read_log(path)?).into_owned()),
    };
    let asked = Asked {
        stack: args.stack.as_deref(),
        service: args.service.as_deref(),
        log,
        instruction: args.instruction,
    };
    let evidence = offline_evidence(asked).await?;
    let found = diagnose(rules.set(), &evidence).map_err(|none| {
        Failure::new(Code::NoDiagnosis, format!("{none}; looked at: {}", none.looked_at.join(", ")))
            .hint("give the whole log, that of the build for instance; what rules know is in docs/repair.md")
            .exit(EXIT_NOT_MENDED)
    })?;
    // Who may do it is asked of the stack, if there is one.
    let decision = match args.stack {
        Some(_) => RepairPlan::new(&evidence.model.name, &evidence.model, &evidence.service, 1, &found)
            .map(|plan| plan.decision)
            .ok(),
        None => None,
    };
    let document = || json!({ "service": evidence.service, "diagnosis": found, "decision": decision });
    let known = args.stack.is_some();
    context.out.answer(document, || text(&found, decision.as_ref(), known))?;
    Ok(if found.remedy == Remedy::Escalate { EXIT_NOT_MENDED } else { 0 })
}

fn text(found: &Diagnosis, decision: Option<&Decision>, stack_known: bool) -> String {
    let mut lines = vec![
        format!("cause     {}", found.cause),
        format!("line      {}", found.evidence_line),
        format!("rule      {}, {} % sure", found.rule_id, found.confidence),
        format!("remedy    {}", remedy(found, stack_known)),
    ];
    match decision {
        Some(Decision::NeedsApproval { reasons, .. }) => {
            lines.push(format!("policy    needs an approval: {}", reasons.join("; ")));
        }
        Some(Decision::Refused { reasons }) => {
            lines.push(format!("policy    refuses it: {}", reasons.join("; ")));
        }
        _ => {}
    }
    for edit in &found.edits {
        lines.push(String::new());
        lines.push(format!("{}:", edit.description));
        lines.push(edit.diff.trim_end().to_owned());
    }
    lines.join("\n")
}

fn remedy(found: &Diagnosis, stack_known: bool) -> &'static str {
    match (found.remedy, found.class) {
        (Remedy::Patch, Class::Auto) => "the edits below; a rule may make them without asking",
        (Remedy::Patch, _) => "the edits below, after an approval",
        (Remedy::Rebuild, _) => "build again as it is",
        (Remedy::Restart, _) => "restart as it is",
        (Remedy::Escalate, _) if !stack_known => {
            "none without the stack's files (--stack DIR), or a person has to act"
        }
        (Remedy::Escalate, _) => "a person has to act",
    }
}
