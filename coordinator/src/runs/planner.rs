//! From the evidence of the analyze step to a plan the core can decide on: `cooper-repair` does the thinking.

use cooper_common::{error::Code, ids::ApprovalId};
use cooper_core::run::{Planned, StepKind, Verdict};
use cooper_repair::{
    Class, Decision, Diagnosis, Evidence, FileChange, Past, Policy, RepairPlan, RuleSet, diagnosis, plan,
    proposal::{self, Question},
    review::shown,
    step::StackRef,
};

use super::Settings;

/// What the planner says.
pub enum Answer {
    Plan {
        plan: Box<RepairPlan>,
        max_attempts: u32,
    },
    /// Nothing that Cooper may or can do, and why.
    Refused {
        code: Code,
        message: String,
        cause: Option<(String, String)>,
        /// What a model may be asked, where it could help.
        ask: Option<Box<Question>>,
    },
}

/// What a plan is made of.
pub struct Case<'a> {
    pub rules: &'a RuleSet,
    pub stack: &'a StackRef,
    pub evidence: &'a Evidence,
    /// Attempt of the run.
    pub attempt: u32,
    pub past: &'a Past,
}

impl Case<'_> {
    /// What a model may be asked: about the files as the attempt that is built upon has them.
    fn question(&self, why: &str) -> Option<Box<Question>> {
        let ground = diagnosis::ground(self.rules, self.evidence, self.past).ok()?;
        Some(Box::new(Question::about(&ground.evidence, why)))
    }
}

pub fn plan(case: &Case<'_>) -> Answer {
    let diagnosis = match cooper_repair::diagnose_after(case.rules, case.evidence, case.past) {
        Ok(diagnosis) => diagnosis,
        Err(none) => {
            let message = none.to_string();
            let ask = case.question(&message);
            return Answer::Refused { code: Code::NoDiagnosis, message, cause: None, ask };
        }
    };
    planned_by(case, &diagnosis)
}

/// The plan of what a model said, if it stands: else the refusal as it was, and why the model did not help.
pub fn proposed(case: &Case<'_>, said: Result<String, String>, trusted: bool) -> Answer {
    let read = said.and_then(|text| {
        let put_aside = |why: String| format!("the model's proposal was put aside: {why}");
        let ground = diagnosis::ground(case.rules, case.evidence, case.past).map_err(put_aside)?;
        let diagnosis =
            proposal::read(&text, &ground.evidence, trusted).map_err(|error| put_aside(error.to_string()))?;
        match case.past.against(&diagnosis.fingerprint, &diagnosis.repair) {
            Some(why) => Err(put_aside(why)),
            None => Ok(ground.settle(diagnosis, case.evidence)),
        }
    });
    let put_aside = match read {
        Ok(diagnosis) => return planned_by(case, &diagnosis),
        Err(why) => why,
    };
    let mut answer = plan(case);
    if let Answer::Refused { message, ask, .. } = &mut answer {
        *message = format!("{message}; {put_aside}");
        *ask = None;
    }
    answer
}

fn planned_by(case: &Case<'_>, diagnosis: &Diagnosis) -> Answer {
    let cause = Some((diagnosis.rule_id.clone(), diagnosis.cause.clone()));
    let evidence = case.evidence;
    match RepairPlan::new(&case.stack.name, &evidence.model, &evidence.service, case.attempt, diagnosis) {
        Ok(plan) => {
            let mut plan = plan.shipping(&evidence.uncommitted);
            plan.diagnosis.sources = evidence.sources();
            Answer::Plan { max_attempts: max_attempts(&plan, evidence), plan: Box::new(plan) }
        }
        Err(error @ plan::Error::NoRemedy { .. }) => {
            let message = error.to_string();
            // What a rule leaves to people is not asked of a model.
            let rule = case.rules.rules().find(|rule| rule.id == diagnosis.rule_id);
            let ask = rule.is_some_and(|rule| rule.class != Class::Escalate);
            let ask = ask.then(|| case.question(&message)).flatten();
            Answer::Refused { code: Code::NoDiagnosis, message, cause, ask }
        }
        Err(error) => {
            Answer::Refused { code: Code::PolicyRefused, message: error.to_string(), cause, ask: None }
        }
    }
}

/// How many attempts a run on the service may have. What a person asked for is not followed by what nobody did, where
/// nothing was to be changed.
fn max_attempts(plan: &RepairPlan, evidence: &Evidence) -> u32 {
    let asked = evidence.instruction.is_some() && plan.edits.is_empty();
    match Policy::of(&evidence.model, &evidence.service) {
        Ok(policy) if !asked => policy.max_attempts,
        Ok(_) | Err(_) => 1,
    }
}

/// `patch.diff` as an approver reads it, before anything is done by it.
pub fn patch(plan: &RepairPlan, evidence: &Evidence, stack: &StackRef) -> String {
    let diff = |change: &FileChange| {
        let old = evidence.text(change.root, &change.path);
        cooper_repair::diff::unified(&shown(plan, change, &stack.dir), old, &change.new_content)
    };
    plan.edits.iter().map(diff).collect()
}

/// What the core has to know of a plan.
pub fn planned(plan: &RepairPlan, max_attempts: u32, stack: &StackRef, settings: &Settings) -> Planned {
    let ttl_ms = match &plan.decision {
        Decision::NeedsApproval { ttl_ms, .. } => *ttl_ms,
        Decision::Allowed | Decision::Refused { .. } => None,
    };
    Planned {
        hash: plan.hash(),
        cause: plan.diagnosis.cause.clone(),
        rule_id: plan.diagnosis.rule_id.clone(),
        files: plan.edits.iter().map(|change| shown(plan, change, &stack.dir)).collect(),
        fix: plan.diagnosis.repair.as_ref().map_or_else(|| plan.hash(), |repair| repair.name()),
        max_attempts,
        steps: plan.steps.iter().map(|step| (kind(step.kind), step.timeout_ms)).collect(),
        verdict: match &plan.decision {
            Decision::Allowed => Verdict::Allowed,
            Decision::NeedsApproval { reasons, approvers, .. } => {
                Verdict::NeedsApproval { reasons: reasons.clone(), approvers: approvers.clone() }
            }
            Decision::Refused { reasons } => Verdict::Refused(reasons.clone()),
        },
        approval: ApprovalId::new(),
        approval_ttl_ms: settings.approval_ttl_ms.min(ttl_ms.unwrap_or(u64::MAX)),
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
