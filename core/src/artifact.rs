//! Artifacts of sessions: rows of their own, made with the result of the execution that made the file.

use cooper_common::ids::{ArtifactId, SessionId, TaskId};
use serde::{Deserialize, Serialize};

use crate::{
    Now,
    change::{Aggregate, Change, NewEvent, Row},
};

/// The row's body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    pub id: ArtifactId,
    /// Path beneath `artifacts/`.
    pub name: String,
    pub size_bytes: u64,
    /// BLAKE3, hex: the name of the stored file.
    pub digest: String,
    pub sha256: String,
    pub media_type: String,
    /// The execution that made it.
    pub task: TaskId,
}

impl Artifact {
    /// Its first version.
    pub fn made(&self, now: Now, tenant: &str, session: SessionId) -> Change {
        let event = serde_json::json!({
            "session": session.to_string(),
            "task": self.task.to_string(),
            "name": self.name,
            "size_bytes": self.size_bytes,
        });
        Change {
            aggregate: Aggregate::Artifact,
            id: self.id.to_string(),
            expected: 0,
            row: Row {
                tenant: tenant.to_owned(),
                state: "kept".to_owned(),
                parent: session.to_string(),
                created_ms: now.wall_ms,
                updated_ms: now.wall_ms,
                // Strings and numbers: there is nothing in it that could fail.
                body: serde_json::to_string(self).unwrap_or_default(),
                ..Row::default()
            },
            events: vec![NewEvent { kind: "artifact.made".to_owned(), body: event.to_string() }],
            output: Vec::new(),
        }
    }

    /// The version after the last: the file may go. `version` and `row` are the stored ones.
    pub fn ended(&self, now: Now, version: u64, row: Row, event: &str) -> Change {
        Change {
            aggregate: Aggregate::Artifact,
            id: self.id.to_string(),
            expected: version,
            row: Row { state: "deleted".to_owned(), ended: true, updated_ms: now.wall_ms, spec: None, ..row },
            events: vec![NewEvent { kind: event.to_owned(), body: "{}".to_owned() }],
            output: Vec::new(),
        }
    }
}
