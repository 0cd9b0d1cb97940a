//! From evidence to a diagnosis: which rule explains the failure, and which edits remove its cause.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::compose::Model;
use crate::edit::FileChange;
use crate::rules::{Class, RuleSet};

/// Where a failure showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The image does not build.
    Build,
    /// The container does not start or does not stay.
    Runtime,
    /// The container runs but is not well.
    Health,
}

/// What is known about a failing service. Text fields hold what was printed, raw or normalised; an empty string is
/// "nothing there".
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Evidence {
    /// Name of the service in `model`.
    pub service: String,
    /// The resolved compose model.
    pub model: Model,
    /// Where the failure showed.
    pub phase: Phase,
    /// Output of the build, lossily decoded.
    #[serde(default)]
    pub build_log: String,
    /// Output of the container, lossily decoded.
    #[serde(default)]
    pub container_log: String,
    /// The container's state as the engine tells, if there is a container.
    #[serde(default)]
    pub state: Option<State>,
    /// Files of the build context that matter, by path relative to it: the Dockerfile, dependency files, scripts.
    /// Files that are only known to exist may be given with empty text.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// What a person asked for.
    #[serde(default)]
    pub instruction: Option<String>,
}

/// A container's state, from `docker inspect`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// `created running restarting exited dead paused`.
    pub status: String,
    /// Exit code of the last end.
    pub exit_code: i64,
    /// Restarts by the engine.
    pub restart_count: u64,
    /// The kernel killed it for its memory.
    pub oom_killed: bool,
    /// `healthy unhealthy starting`, if there is a healthcheck.
    pub health: Option<String>,
    /// Last output of the healthcheck.
    pub health_output: String,
    /// The engine's own error (a container that could not be started has no log but this).
    pub error: String,
}

/// A failure with its cause.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// Rule that explains it.
    pub rule_id: String,
    /// The cause, in a sentence.
    pub cause: String,
    /// How sure, in percent.
    pub confidence: u8,
    /// Class of the fix: the rule's, or a stricter one where the fix rests on a guess.
    pub class: Class,
    /// The log line or the instruction it rests on.
    pub evidence_line: String,
    /// What Cooper can do about it.
    pub remedy: Remedy,
    /// The changes, for [`Remedy::Patch`]; else empty.
    pub edits: Vec<FileChange>,
    /// Names this failure across runs and services: 64 hex digits.
    pub fingerprint: String,
}

/// What can be done about a cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Remedy {
    /// Change files, then build, restart, verify, promote.
    Patch,
    /// Build again as it is (a passing fault of a network or mirror), restart, verify.
    Rebuild,
    /// Restart as it is, verify.
    Restart,
    /// Nothing that Cooper may do: a person has to act.
    Escalate,
}

/// Nothing explains the failure, or nothing that could be repaired. Also an instruction that is not understood.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("no diagnosis: {}", reasons.join("; "))]
pub struct NoDiagnosis {
    /// Why each candidate was put aside, or that there was none; each with what to do.
    pub reasons: Vec<String>,
    /// What was looked at: which logs with how many lines, which files.
    pub looked_at: Vec<String>,
}

/// Finds the cause of a failure and the edits that remove it.
///
/// # Errors
/// [`NoDiagnosis`] if no rule explains it, no fix could be worked out, or the instruction is not understood.
pub fn diagnose(rules: &RuleSet, evidence: &Evidence) -> Result<Diagnosis, NoDiagnosis> {
    let _ = rules;
    Err(NoDiagnosis { reasons: vec![], looked_at: vec![evidence.service.clone()] })
}
