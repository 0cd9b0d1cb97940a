//! What a core asks the store to record: the core decides, the store arbitrates by version (DESIGN §9).

use serde::{Deserialize, Serialize};

/// Grows by one with every change of an aggregate; 0 = does not exist yet.
pub type Version = u64;

/// The kinds of rows. One table each, all of one shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Aggregate {
    Session,
    Task,
    Run,
    Step,
    Plan,
    Approval,
    Artifact,
    Token,
    Worker,
    Stack,
    Checkpoint,
    Template,
    Secret,
    /// What runs have learned about repairs of failures.
    Fix,
}

impl Aggregate {
    pub const ALL: [Aggregate; 14] = [
        Aggregate::Session,
        Aggregate::Task,
        Aggregate::Run,
        Aggregate::Step,
        Aggregate::Plan,
        Aggregate::Approval,
        Aggregate::Artifact,
        Aggregate::Token,
        Aggregate::Worker,
        Aggregate::Stack,
        Aggregate::Checkpoint,
        Aggregate::Template,
        Aggregate::Secret,
        Aggregate::Fix,
    ];
    /// Table name, and the prefix of the aggregate's event kinds.
    pub const fn name(self) -> &'static str {
        match self {
            Aggregate::Session => "session",
            Aggregate::Task => "task",
            Aggregate::Run => "run",
            Aggregate::Step => "step",
            Aggregate::Plan => "plan",
            Aggregate::Approval => "approval",
            Aggregate::Artifact => "artifact",
            Aggregate::Token => "token",
            Aggregate::Worker => "worker",
            Aggregate::Stack => "stack",
            Aggregate::Checkpoint => "checkpoint",
            Aggregate::Template => "template",
            Aggregate::Secret => "secret",
            Aggregate::Fix => "fix",
        }
    }
}

/// One row, whatever the aggregate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Row {
    /// Owner (I10). Every row has one; what belongs to the installation has `""`.
    pub tenant: String,
    pub state: String,
    /// No further change of state will come: such rows are not loaded at start and fall to retention.
    pub ended: bool,
    /// What it belongs to: a task's session, a step's run, an artifact's session.
    pub parent: String,
    /// Unique per aggregate and tenant where not empty: idempotency key, session name, token hash.
    pub key: String,
    /// Unix milliseconds.
    pub created_ms: i64,
    pub updated_ms: i64,
    /// What the core decides on, as JSON.
    pub body: String,
    /// What was asked, opaque to the store and to the cores (an encoded cooper.v1 message). `None` in an update keeps
    /// what is stored.
    pub spec: Option<Vec<u8>>,
    /// What came of it, opaque likewise.
    pub result: Option<Vec<u8>>,
}

/// A fact to record with a change. Tenant, time and subject are the row's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewEvent {
    /// e.g. `task.succeeded`.
    pub kind: String,
    /// JSON.
    pub body: String,
}

/// A whole stream that rode inside a result, kept with it (at most `INLINE_OUTPUT_BYTES_MAX`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InlineOutput {
    /// 1 = stdout, 2 = stderr.
    pub stream: u8,
    pub bytes: Vec<u8>,
}

/// One aggregate's next version. `expected` is the version the decision was made on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub aggregate: Aggregate,
    pub id: String,
    pub expected: Version,
    pub row: Row,
    pub events: Vec<NewEvent>,
    /// Tasks only.
    pub output: Vec<InlineOutput>,
}
