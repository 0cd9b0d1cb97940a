//! The contract of a step: what the coordinator asks of the worker that owns the stack, and what it hears back. Both
//! travel as JSON inside the task (`StepSpec.input_json`, `Outcome.step_json`).
//!
//! The worker keeps what a step leaves for later ones (stage, pre-images, start record, journal) under its own data
//! directory, by run id; every step may therefore be repeated after a crash without double effect.

use serde::{Deserialize, Serialize};

use crate::check::Survey;
use crate::diagnosis::{Evidence, Phase, State};
use crate::edit::FileChange;
use crate::plan::RepairPlan;

/// What to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Input {
    /// Records how everything is at the start and collects evidence. Touches nothing: a build it needs goes to a tag of
    /// its own.
    Analyze {
        stack: StackRef,
        service: String,
        /// A log to diagnose instead of what would be collected.
        #[serde(default)]
        log: Option<String>,
        #[serde(default)]
        instruction: Option<String>,
        /// What is looked at.
        #[serde(default)]
        mode: Analysis,
        /// Rules that the coordinator has beside Cooper's own, as file name and text: what they explain needs no build.
        /// Absent: they are not known here.
        #[serde(default)]
        rules: Option<Vec<(String, String)>>,
    },
    /// Copies the build context into the stage and applies the plan's edits there.
    Patch { stack: StackRef, plan: RepairPlan },
    /// Builds the stage into a candidate tag; the service's own tag is not moved.
    Build { stack: StackRef, plan: RepairPlan },
    /// Moves the service's tag to the candidate and recreates the service's container.
    Restart { stack: StackRef, plan: RepairPlan },
    /// Watches the service as the plan says.
    Verify { stack: StackRef, plan: RepairPlan },
    /// Writes the edits into the checkout, under their base hashes.
    Promote { stack: StackRef, plan: RepairPlan },
    /// Tells what the stack is, for whoever asks what could be done to it. Touches nothing, and belongs to no run.
    Check { stack: StackRef },
    /// Puts back bytes, image and container, and compares with the start record (I7).
    Rollback { stack: StackRef, plan: RepairPlan },
}

/// What an analysis is for.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Analysis {
    /// To find out what is wrong with the service.
    #[default]
    Service,
    /// For a later attempt: by what showed the failure of the one before, since that was rolled back.
    After(Failure),
    /// To record how everything is: what is to be done is known.
    Start,
    /// To find out what it takes to take a run back.
    Undo {
        /// The run.
        of: String,
    },
}

/// A stack as registered on the worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StackRef {
    pub name: String,
    /// Absolute directory on the worker's machine; the worker refuses one that is not registered on it.
    pub dir: String,
}

/// What came of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    pub ok: bool,
    /// Stable error code when not ok, e.g. `verify_failed`, `policy_refused`, `promotion_conflict`.
    pub code: String,
    /// One sentence: what was done, or what failed and what to do.
    pub message: String,
    /// Analyze: what was found.
    pub evidence: Option<Evidence>,
    /// Analyze: how everything was.
    pub start: Option<StartRecord>,
    /// Small text artifacts, already redacted, e.g. `patch.diff`. The step's log is the task's output.
    pub artifacts: Vec<Artifact>,
    /// Promote: `promoted` or `conflict`.
    pub promotion: String,
    /// Build, restart, verify: what shows why it failed, taken before anything is put back.
    pub failure: Option<Failure>,
    /// Analyze of an undo: the changes that take the run back.
    pub changes: Vec<FileChange>,
    /// Check: what there is.
    pub survey: Option<Survey>,
    /// Rollback: true when bytes, image and container configuration equal the start record and the health class is no
    /// worse. False makes the run `rollback_failed`.
    pub restored: bool,
    /// Rollback: whether the service runs from the very image of before. False where that was gone and was built again
    /// from the restored bytes; absent where nothing of it was looked at.
    pub image_equal: Option<bool>,
    /// Analyze, verify, rollback: the service's containers then, in numbers.
    pub measured: Vec<Measured>,
}

/// A container in numbers, as the engine tells them; 0 where it does not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Measured {
    /// Its name.
    pub container: String,
    pub image_id: String,
    pub status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<String>,
    pub restart_count: u64,
    pub exit_code: i64,
    pub oom_killed: bool,
    pub memory_bytes: u64,
    pub memory_limit_bytes: u64,
    /// Since it was started.
    pub cpu_ms: u64,
    pub processes: u64,
}

/// What shows the failure of what was built or started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Where it showed.
    pub phase: Phase,
    /// What the build or the container printed, redacted.
    pub log: String,
    /// The container's state, if there was one.
    #[serde(default)]
    pub state: Option<State>,
}

/// A named text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    pub name: String,
    pub content: String,
}

/// How a service was before a run touched anything (I7).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StartRecord {
    /// Tag compose runs the service from.
    pub image_ref: String,
    /// Image id behind the tag; empty = there was none.
    pub image_id: String,
    /// Image id the container ran from; empty = there was no container. May differ from `image_id` after a build that was
    /// never deployed.
    pub container_image_id: String,
    pub container_id: String,
    /// Label `com.docker.compose.config-hash`.
    pub config_hash: String,
    pub health: HealthClass,
    /// Container ids of the project's other services, which must be the same at the end.
    pub neighbours: std::collections::BTreeMap<String, String>,
}

/// How well a service is, from worst to best.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthClass {
    /// No container.
    #[default]
    Absent,
    /// Exited, dead, created but never started, or restarting.
    Down,
    /// Runs, and its healthcheck or probe fails.
    Unhealthy,
    /// Runs; no healthcheck or probe says more.
    Running,
    /// Runs and its healthcheck or probe is green.
    Healthy,
}
