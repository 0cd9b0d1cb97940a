//! From the evidence of the analyze step to a plan the core can decide on: `cooper-repair` does the thinking.

use cooper_common::{error::Code, ids::ApprovalId};
use cooper_core::run::{Planned, StepKind, Verdict};
use cooper_repair::{Decision, Evidence, RepairPlan, RuleSet, plan, step::StackRef};

/// What the planner says.
pub enum Answer {
    Plan(Box<RepairPlan>),
    /// Nothing that Cooper may or can do, and why.
    Refused {
        code: Code,
        message: String,
        cause: Option<(String, String)>,
    },
}

pub fn plan(rules: &RuleSet, stack: &StackRef, evidence: &Evidence) -> Answer {
    let diagnosis = match cooper_repair::diagnose(rules, evidence) {
        Ok(diagnosis) => diagnosis,
        Err(none) => {
            return Answer::Refused { code: Code::NoDiagnosis, message: none.to_string(), cause: None };
        }
    };
    let cause = Some((diagnosis.rule_id.clone(), diagnosis.cause.clone()));
    match RepairPlan::new(&stack.name, &evidence.model, &evidence.service, 1, &diagnosis) {
        Ok(plan) => Answer::Plan(Box::new(plan)),
        Err(error @ plan::Error::NoRemedy { .. }) => {
            Answer::Refused { code: Code::NoDiagnosis, message: error.to_string(), cause }
        }
        Err(error) => Answer::Refused { code: Code::PolicyRefused, message: error.to_string(), cause },
    }
}

/// What the core has to know of a plan.
pub fn planned(plan: &RepairPlan) -> Planned {
    Planned {
        hash: plan.hash(),
        cause: plan.diagnosis.cause.clone(),
        rule_id: plan.diagnosis.rule_id.clone(),
        files: plan.edits.iter().map(|edit| edit.path.clone()).collect(),
        steps: plan.steps.iter().map(|step| (kind(step.kind), step.timeout_ms)).collect(),
        verdict: match &plan.decision {
            Decision::Allowed => Verdict::Allowed,
            Decision::NeedsApproval { reasons, approvers } => Verdict::NeedsApproval {
                id: ApprovalId::new(),
                reasons: reasons.clone(),
                approvers: approvers.clone(),
            },
            Decision::Refused { reasons } => Verdict::Refused(reasons.clone()),
        },
    }
}

fn kind(kind: plan::StepKind) -> StepKind {
    match kind {
        plan::StepKind::Analyze => StepKind::Analyze,
        plan::StepKind::Patch => StepKind::Patch,
        plan::StepKind::Build => StepKind::Build,
        plan::StepKind::Restart => StepKind::Restart,
        plan::StepKind::Verify => StepKind::Verify,
        plan::StepKind::Promote => StepKind::Promote,
        plan::StepKind::Rollback => StepKind::Rollback,
    }
}
