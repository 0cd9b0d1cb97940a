//! What runs have learned: which repair of which failure was verified, and which was rolled back. Rows of their own, by
//! the failure's fingerprint and within the tenant; retention takes the oldest.

use cooper_common::{clock, error::Result, limits};
use cooper_core::{
    change::{Aggregate, Change, Row},
    run::{Origin, Run, State},
};
use cooper_repair::{
    Evidence, Learned, RepairPlan, RuleSet,
    diagnosis::{self, Outcome, Remedy},
    edit::sha256,
    plan::canonical,
};
use serde::{Deserialize, Serialize};

use crate::store::{Durability, Filter, Record, Store};

/// A row's body.
#[derive(Debug, Serialize, Deserialize)]
struct Lesson {
    learned: Learned,
    /// Worker, directory and service it was learned on.
    place: (String, String, String),
    /// Digest of the service's definition and files then.
    sources: String,
}

/// What was learned about the failures that show. A repair that was rolled back speaks only against doing the same to
/// the same service with the same files, and not where a person asks to try again.
pub(super) async fn recall(
    store: &dyn Store,
    rules: &RuleSet,
    run: &Run,
    evidence: &Evidence,
) -> Result<Vec<Learned>> {
    let mut fingerprints = diagnosis::fingerprints(rules, evidence);
    fingerprints.sort();
    fingerprints.dedup();
    let (place, sources) = (run.lock(), evidence.sources());
    let asked_again = matches!(run.body.origin, Origin::Retry { .. });
    let mut learned = Vec::new();
    for fingerprint in fingerprints {
        let filter = Filter {
            tenant: Some(run.tenant.to_string()),
            parent: Some(fingerprint),
            limit: limits::run::LESSONS_READ_MAX,
            ..Filter::default()
        };
        for record in store.list(Aggregate::Fix, filter).await?.records {
            // One that a newer version has written is not known here.
            let Ok(lesson) = serde_json::from_str::<Lesson>(&record.row.body) else { continue };
            let counts = match lesson.learned.outcome {
                Outcome::Verified => true,
                Outcome::RolledBack { .. } => {
                    !asked_again && lesson.place == place && lesson.sources == sources
                }
            };
            if counts {
                learned.push(lesson.learned);
            }
        }
    }
    Ok(learned)
}

/// Records what a run that ends has learned from the plans of its attempts.
pub(super) async fn learn(store: &dyn Store, run: &Run, plans: &[RepairPlan]) -> Result<()> {
    for (plan, outcome) in outcomes(run, plans) {
        note(store, run, plan, outcome).await?;
    }
    Ok(())
}

/// Records that a person took back what a run had done.
pub(super) async fn unlearn(store: &dyn Store, run: &Run, by: &Run, plans: &[RepairPlan]) -> Result<()> {
    for (plan, outcome) in outcomes(run, plans) {
        if outcome == Outcome::Verified {
            let reason = format!("it was taken back by run {}", by.id);
            note(store, run, plan, Outcome::RolledBack { reason }).await?;
        }
    }
    Ok(())
}

/// What the attempts of a run tell about the repairs in their plans.
fn outcomes<'p>(run: &Run, plans: &'p [RepairPlan]) -> Vec<(&'p RepairPlan, Outcome)> {
    let failed = |plan: &RepairPlan| {
        let tried = run.body.tried.iter().find(|tried| tried.attempt == plan.attempt)?;
        let reason = tried.reason.as_ref()?;
        // Not what ended for another cause than the repair.
        let by_itself = matches!(reason.code.as_str(), "step_failed" | "verify_failed" | "patch_no_effect");
        by_itself.then(|| Outcome::RolledBack { reason: reason.message.clone() })
    };
    let mut good: Vec<u32> = Vec::new();
    if run.body.state == State::Succeeded && !run.body.dry_run {
        let mut next = Some(run.body.attempt);
        while let Some(attempt) = next {
            good.push(attempt);
            next = plans.iter().find(|plan| plan.attempt == attempt).and_then(|plan| plan.builds_on);
        }
    }
    let learns = matches!(run.body.state, State::Succeeded | State::RolledBack)
        && matches!(run.body.origin, Origin::Repair | Origin::Retry { .. });
    let of_logs = plans.iter().filter(|plan| {
        let patches = plan.diagnosis.repair.as_ref().is_some_and(|repair| repair.remedy == Remedy::Patch);
        learns && patches && !plan.diagnosis.rule_id.starts_with("instruction.")
    });
    let outcome =
        |plan: &RepairPlan| if good.contains(&plan.attempt) { Some(Outcome::Verified) } else { failed(plan) };
    of_logs.filter_map(|plan| Some((plan, outcome(plan)?))).collect()
}

async fn note(store: &dyn Store, run: &Run, plan: &RepairPlan, outcome: Outcome) -> Result<()> {
    let Some(repair) = plan.diagnosis.repair.clone() else { return Ok(()) };
    let (place, fingerprint) = (run.lock(), plan.diagnosis.fingerprint.clone());
    let id = sha256(canonical(&(&*run.tenant, &fingerprint, repair.name(), &place)).as_bytes());
    let known: Option<Record> = store.get(Aggregate::Fix, &id).await?;
    let state = if outcome == Outcome::Verified { "verified" } else { "rolled_back" };
    let learned =
        Learned { fingerprint, repair, class: plan.diagnosis.class, run: run.id.to_string(), outcome };
    let lesson = Lesson { place, sources: plan.diagnosis.sources.clone(), learned };
    let change = Change {
        aggregate: Aggregate::Fix,
        id,
        expected: known.as_ref().map_or(0, |known| known.version),
        row: Row {
            tenant: run.tenant.to_string(),
            state: state.to_owned(),
            // It falls to retention, as what has ended does.
            ended: true,
            parent: lesson.learned.fingerprint.clone(),
            created_ms: known.map_or_else(clock::wall_ms, |known| known.row.created_ms),
            updated_ms: clock::wall_ms(),
            body: serde_json::to_string(&lesson).unwrap_or_default(),
            ..Row::default()
        },
        events: Vec::new(),
        output: Vec::new(),
    };
    Ok(store.commit_wait(vec![change], Durability::Full).await?)
}

/// Whether a row can be read.
pub fn readable(body: &str) -> std::result::Result<(), serde_json::Error> {
    serde_json::from_str::<Lesson>(body).map(drop)
}
