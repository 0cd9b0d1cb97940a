//! The plan of a repair: immutable, hashed, and complete enough to be reviewed and carried out from its bytes alone.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::compose;
use crate::diagnosis::{Diagnosis, Remedy, Repair};
use crate::edit::{FileChange, Root};
use crate::limits;
use crate::policy::{self, Decision, Health, Policy, Publish};
use crate::rules::Class;

/// Version of the plan's shape. Readers refuse a newer one.
pub const SCHEMA_VERSION: u32 = 1;

/// Why no plan could be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The service is not in the model.
    #[error(transparent)]
    Model(#[from] compose::Error),
    /// The stack's policy is not valid.
    #[error(transparent)]
    Policy(#[from] policy::Error),
    /// The diagnosis names a cause but nothing that Cooper may do about it.
    #[error("no repair is known for this: {cause}; a person has to act")]
    NoRemedy {
        /// The diagnosis' sentence.
        cause: String,
    },
    /// The stored bytes are not a plan this version reads.
    #[error("the stored plan cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    /// The plan was written by a newer version.
    #[error("the plan has schema version {0}, this program reads up to {SCHEMA_VERSION}; use a newer one")]
    Version(u32),
}

/// An immutable list of what will be done to one service, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepairPlan {
    /// [`SCHEMA_VERSION`] of the writer.
    pub schema_version: u32,
    /// Registered name of the stack.
    pub stack: String,
    /// Compose project.
    pub project: String,
    /// The service that is repaired; no other is touched.
    pub service: String,
    /// Attempt of the run, from 1. Each attempt is a plan of its own.
    pub attempt: u32,
    /// The attempt whose edits are in this plan too, since the failure that it was about is gone.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub builds_on: Option<u32>,
    /// The run that it takes back.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub undoes: Option<String>,
    /// What was found.
    pub diagnosis: Finding,
    /// What is changed; empty for a mere restart or rebuild.
    pub edits: Vec<FileChange>,
    /// What is done, in an order that `needs` allows.
    pub steps: Vec<Step>,
    /// What is done if one of `steps` fails.
    pub on_failure: Vec<Step>,
    /// What is built, if something is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub build: Option<Build>,
    /// The new image is tried in a container beside the running service before that is touched.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub preflight: bool,
    /// Files of the build context that are not committed as they are: they are built too.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub uncommitted: Vec<String>,
    /// What becomes of it in the stack's git repository.
    #[serde(skip_serializing_if = "Publish::is_none", default)]
    pub publish: Publish,
    /// When the service counts as repaired.
    pub verify: Verify,
    /// What policy said when the plan was made. The worker asks again before it acts.
    pub decision: Decision,
}

/// The part of a diagnosis that a plan keeps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    /// Rule that matched.
    pub rule_id: String,
    /// The cause, in a sentence.
    pub cause: String,
    /// How sure, in percent.
    pub confidence: u8,
    /// Class of the rule, as the diagnosis tightened it.
    pub class: Class,
    /// The log line or the instruction it rests on.
    pub evidence_line: String,
    /// Names the failure across runs.
    pub fingerprint: String,
    /// The instruction of the Dockerfile that failed.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub at: String,
    /// What is done about this cause alone.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub repair: Option<Repair>,
    /// The run that has verified this repair of this failure before.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub verified_by: Option<String>,
    /// Digest of what the failure was found in.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub sources: String,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// What the step does.
    pub kind: StepKind,
    /// Steps that must have succeeded.
    pub needs: Vec<StepKind>,
    /// Time limit in milliseconds.
    pub timeout_ms: u64,
}

/// Kinds of steps in a repair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// Finds the cause; it makes the plan and is therefore not in it.
    Analyze,
    /// Writes `edits` into the staged copy.
    Patch,
    /// Builds the service's image from the stage.
    Build,
    /// Recreates the service's container, and no other.
    Restart,
    /// Watches it as `verify` says.
    Verify,
    /// Writes `edits` into the checkout.
    Promote,
    /// Puts back what was there.
    Rollback,
}

/// What is built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Build {
    /// Context directory, as in the compose model (absolute).
    pub context: String,
    /// Dockerfile relative to the context.
    pub dockerfile: String,
    /// Stage to build; the last one if absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub target: Option<String>,
}

/// When a service counts as repaired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verify {
    /// Request to the application, if the policy names one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub health: Option<Health>,
    /// Milliseconds the service may take to become well.
    pub become_well_ms: u64,
    /// Milliseconds it must then stay well without a restart.
    pub stable_for_ms: u64,
}

impl RepairPlan {
    /// Makes the plan for a diagnosis. `attempt` counts from 1. A refused plan is a plan too: its `decision` says why.
    ///
    /// # Errors
    /// [`Error::NoRemedy`] if the diagnosis only names a cause; [`Error::Model`] and [`Error::Policy`] as they say.
    pub fn new(
        stack: &str,
        model: &compose::Model,
        service: &str,
        attempt: u32,
        diagnosis: &Diagnosis,
    ) -> Result<Self, Error> {
        let described = model.service(service)?;
        let policy = Policy::of(model, service)?;
        if diagnosis.remedy == Remedy::Escalate {
            return Err(Error::NoRemedy { cause: diagnosis.cause.clone() });
        }
        let verify = Verify {
            health: policy.health.clone(),
            become_well_ms: limits::BECOME_WELL_DEFAULT_MS,
            stable_for_ms: policy.stable_for_ms,
        };
        // A change of the compose file alone needs no build.
        let wired =
            !diagnosis.edits.is_empty() && diagnosis.edits.iter().all(|edit| edit.root == Root::Stack);
        let build = match diagnosis.remedy {
            Remedy::Patch if wired => None,
            Remedy::Patch | Remedy::Rebuild => described.build.as_ref().map(|build| Build {
                context: build.context.clone(),
                dockerfile: build.dockerfile().to_owned(),
                target: build.target.clone(),
            }),
            Remedy::Restart | Remedy::Escalate => None,
        };
        let preflight = build.is_some() && model.can_run_beside(service);
        Ok(Self {
            schema_version: SCHEMA_VERSION,
            stack: stack.to_owned(),
            project: model.name.clone(),
            service: service.to_owned(),
            attempt,
            diagnosis: Finding {
                rule_id: diagnosis.rule_id.clone(),
                cause: diagnosis.cause.clone(),
                confidence: diagnosis.confidence,
                class: diagnosis.class,
                evidence_line: diagnosis.evidence_line.clone(),
                fingerprint: diagnosis.fingerprint.clone(),
                at: diagnosis.at.clone(),
                repair: Some(diagnosis.repair.clone()),
                verified_by: diagnosis.verified_by.clone(),
                sources: String::new(),
            },
            builds_on: diagnosis.builds_on,
            undoes: None,
            steps: steps(diagnosis.remedy, build.is_some(), preflight, &verify),
            on_failure: vec![Step {
                kind: StepKind::Rollback,
                needs: vec![],
                timeout_ms: limits::STEP_TIMEOUT_MS + verify.become_well_ms + verify.stable_for_ms,
            }],
            edits: diagnosis.edits.clone(),
            preflight,
            publish: policy.publish,
            uncommitted: Vec::new(),
            decision: policy.decide(diagnosis.class, &diagnosis.edits),
            build,
            verify,
        })
    }

    /// Makes the plan that takes a run back: its files first, since a file that has changed meanwhile stops it with
    /// nothing touched; then its image. A service that needs approval for a repair needs it for this too.
    ///
    /// # Errors
    /// As [`RepairPlan::new`].
    pub fn undo(
        stack: &str,
        model: &compose::Model,
        service: &str,
        of: &str,
        changes: Vec<FileChange>,
    ) -> Result<Self, Error> {
        let repair = Repair::new(Remedy::Restart, &changes);
        let diagnosis = Diagnosis {
            rule_id: "undo".to_owned(),
            cause: format!("Run {of} is taken back."),
            confidence: 100,
            class: Class::Auto,
            evidence_line: String::new(),
            remedy: Remedy::Restart,
            fingerprint: repair.name(),
            repair,
            edits: vec![],
            at: String::new(),
            verified_by: None,
            builds_on: None,
        };
        let mut plan = Self::new(stack, model, service, 1, &diagnosis)?;
        plan.undoes = Some(of.to_owned());
        if !changes.is_empty() {
            let needs = vec![StepKind::Promote];
            let first = Step { kind: StepKind::Promote, needs: vec![], timeout_ms: limits::STEP_TIMEOUT_MS };
            plan.steps[0].needs = needs;
            plan.steps.insert(0, first);
            plan.edits = changes;
        }
        Ok(plan)
    }

    /// What is left of the plan from a step on, for another run.
    #[must_use]
    pub fn from_step(mut self, kind: StepKind) -> Self {
        self.steps.retain(|step| step.kind >= kind);
        if let Some(first) = self.steps.first_mut() {
            first.needs.clear();
        }
        Self { attempt: 1, builds_on: None, ..self }
    }

    /// Asks for an approval whatever policy says of this plan alone: what came before it needed one (I8).
    pub fn require_approval(&mut self, reason: &str, approvers: &[String]) {
        if self.decision == Decision::Allowed {
            let approvers = approvers.to_vec();
            self.decision =
                Decision::NeedsApproval { reasons: vec![reason.to_owned()], approvers, ttl_ms: None };
        }
    }

    /// The same plan, which says what else of the checkout goes into the image.
    pub fn shipping(self, uncommitted: &[String]) -> Self {
        let uncommitted = if self.build.is_some() { uncommitted.to_vec() } else { vec![] };
        Self { uncommitted, ..self }
    }

    /// SHA-256 of the plan as canonical JSON (keys sorted, no spaces), as 64 lower-case hex digits.
    /// An approval is bound to it.
    pub fn hash(&self) -> String {
        hex(&Sha256::digest(canonical(self).as_bytes()))
    }

    /// The plan as `plan.json` shows it: pretty JSON with a final newline.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("a plan holds only what JSON can");
        text.push('\n');
        text
    }

    /// Reads a stored plan.
    pub fn from_json(text: &str) -> Result<Self, Error> {
        /// Read first, so that a newer plan is called newer and not malformed.
        #[derive(Deserialize)]
        struct Versioned {
            schema_version: u32,
        }
        let Versioned { schema_version } = serde_json::from_str(text)?;
        if schema_version > SCHEMA_VERSION {
            return Err(Error::Version(schema_version));
        }
        Ok(serde_json::from_str(text)?)
    }
}

/// The steps a remedy takes, each needing the one before.
fn steps(remedy: Remedy, builds: bool, preflight: bool, verify: &Verify) -> Vec<Step> {
    use StepKind::{Build, Patch, Promote, Restart, Verify as Watch};
    let kinds: &[StepKind] = match remedy {
        Remedy::Patch if builds => &[Patch, Build, Restart, Watch, Promote],
        Remedy::Patch => &[Patch, Restart, Watch, Promote],
        Remedy::Rebuild => &[Build, Restart, Watch],
        Remedy::Restart => &[Restart, Watch],
        Remedy::Escalate => &[],
    };
    let before = std::iter::once(None).chain(kinds.iter().copied().map(Some));
    kinds
        .iter()
        .zip(before)
        .map(|(&kind, before)| Step {
            kind,
            needs: before.into_iter().collect(),
            timeout_ms: match kind {
                Build => limits::BUILD_TIMEOUT_MS,
                Restart if !preflight => limits::STEP_TIMEOUT_MS,
                Watch | Restart => limits::STEP_TIMEOUT_MS + verify.become_well_ms + verify.stable_for_ms,
                _ => limits::STEP_TIMEOUT_MS,
            },
        })
        .collect()
}

/// JSON with sorted keys and no spaces: the same value has the same bytes, whatever the order of its fields.
pub fn canonical<T: Serialize>(value: &T) -> String {
    // A `serde_json::Value` keeps keys in the order they came if some crate of the build asks for it: sort explicitly.
    fn sorted(value: serde_json::Value) -> serde_json::Value {
        use serde_json::Value;
        match value {
            Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
            Value::Object(fields) => {
                let fields: std::collections::BTreeMap<_, _> = fields.into_iter().collect();
                Value::Object(fields.into_iter().map(|(key, value)| (key, sorted(value))).collect())
            }
            plain => plain,
        }
    }
    let value = serde_json::to_value(value).expect("plans hold only what JSON can");
    sorted(value).to_string()
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
