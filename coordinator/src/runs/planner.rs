//! From the evidence of the analyze step to a plan the core can decide on: `cooper-repair` does the thinking.

use cooper_common::{error::Code, ids::ApprovalId};
use cooper_core::run::{Planned, StepKind, Verdict};
use cooper_repair::{
    Class, Decision, Diagnosis, Evidence, FileChange, RepairPlan, RuleSet,
    edit::Root,
    plan,
    proposal::{self, Question},
    review::shown,
    step::StackRef,
};

use super::Settings;

/// What the planner says.
pub enum Answer {
    Plan(Box<RepairPlan>),
    /// Nothing that Cooper may or can do, and why.
    Refused {
        code: Code,
        message: String,
        cause: Option<(String, String)>,
        /// What a model may be asked, where it could help.
        ask: Option<Box<Question>>,
    },
}

pub fn plan(rules: &RuleSet, stack: &StackRef, evidence: &Evidence) -> Answer {
    let diagnosis = match cooper_repair::diagnose(rules, evidence) {
        Ok(diagnosis) => diagnosis,
        Err(none) => {
            let message = none.to_string();
            let ask = Some(Box::new(Question::about(evidence, &message)));
            return Answer::Refused { code: Code::NoDiagnosis, message, cause: None, ask };
        }
    };
    planned_by(rules, stack, evidence, &diagnosis)
}

/// The plan of what a model said, if it stands: else the refusal as it was, and why the model did not help.
pub fn proposed(
    rules: &RuleSet,
    stack: &StackRef,
    evidence: &Evidence,
    said: Result<String, String>,
    trusted: bool,
) -> Answer {
    let read = said.and_then(|text| {
        proposal::read(&text, evidence, trusted)
            .map_err(|error| format!("the model's proposal was put aside: {error}"))
    });
    let put_aside = match read {
        Ok(diagnosis) => return planned_by(rules, stack, evidence, &diagnosis),
        Err(why) => why,
    };
    let mut answer = plan(rules, stack, evidence);
    if let Answer::Refused { message, ask, .. } = &mut answer {
        *message = format!("{message}; {put_aside}");
        *ask = None;
    }
    answer
}

fn planned_by(rules: &RuleSet, stack: &StackRef, evidence: &Evidence, diagnosis: &Diagnosis) -> Answer {
    let cause = Some((diagnosis.rule_id.clone(), diagnosis.cause.clone()));
    match RepairPlan::new(&stack.name, &evidence.model, &evidence.service, 1, diagnosis) {
        Ok(plan) => Answer::Plan(Box::new(plan)),
        Err(error @ plan::Error::NoRemedy { .. }) => {
            let message = error.to_string();
            // What a rule leaves to people is not asked of a model.
            let rule = rules.rules().find(|rule| rule.id == diagnosis.rule_id);
            let ask = rule.is_some_and(|rule| rule.class != Class::Escalate);
            let ask = ask.then(|| Box::new(Question::about(evidence, &message)));
            Answer::Refused { code: Code::NoDiagnosis, message, cause, ask }
        }
        Err(error) => {
            Answer::Refused { code: Code::PolicyRefused, message: error.to_string(), cause, ask: None }
        }
    }
}

/// `patch.diff` as an approver reads it, before anything is done by it.
pub fn patch(plan: &RepairPlan, evidence: &Evidence, stack: &StackRef) -> String {
    let diff = |change: &FileChange| {
        let files = match change.root {
            Root::Context => &evidence.files,
            Root::Stack => &evidence.stack_files,
        };
        let old = files.get(&change.path).map(String::as_str);
        cooper_repair::diff::unified(&shown(plan, change, &stack.dir), old, &change.new_content)
    };
    plan.edits.iter().map(diff).collect()
}

/// What the core has to know of a plan.
pub fn planned(plan: &RepairPlan, stack: &StackRef, settings: &Settings) -> Planned {
    Planned {
        hash: plan.hash(),
        cause: plan.diagnosis.cause.clone(),
        rule_id: plan.diagnosis.rule_id.clone(),
        files: plan.edits.iter().map(|change| shown(plan, change, &stack.dir)).collect(),
        steps: plan.steps.iter().map(|step| (kind(step.kind), step.timeout_ms)).collect(),
        verdict: match &plan.decision {
            Decision::Allowed => Verdict::Allowed,
            Decision::NeedsApproval { reasons, approvers, ttl_ms } => Verdict::NeedsApproval {
                id: ApprovalId::new(),
                reasons: reasons.clone(),
                approvers: approvers.clone(),
                ttl_ms: settings.approval_ttl_ms.min(ttl_ms.unwrap_or(u64::MAX)),
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
