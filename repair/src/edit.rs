//! Typed edits of single files, and the file changes they amount to.

use serde::{Deserialize, Serialize};

/// Why an edit was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The file already says what the edit would make it say.
    #[error("{0}")]
    NoEffect(String),
    /// The file has no place for the edit.
    #[error("{0}")]
    NoPlace(String),
    /// The file cannot be read as what it should be, before or after the edit.
    #[error("{0}")]
    Parse(String),
    /// A name or version in the edit is not one.
    #[error("{0}")]
    Invalid(String),
}

/// One typed edit of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Edit {
    /// Append a line to a requirements file.
    AppendRequirement {
        /// `name`, or `name==version`.
        requirement: String,
    },
}

/// What a path is relative to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Root {
    /// The service's build context.
    #[default]
    Context,
    /// The stack's directory.
    Stack,
}

/// One file as it shall be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileChange {
    /// What `path` is relative to.
    #[serde(default)]
    pub root: Root,
    /// Relative path, `/` between parts, no `..`.
    pub path: String,
    /// SHA-256 of the bytes it replaces, 64 hex digits; `None` if there is no file yet.
    pub base_sha256: Option<String>,
    /// The whole new text.
    pub new_content: String,
    /// New permission bits, if they change.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mode: Option<u32>,
    /// The edits that lead from the old text to the new.
    pub edits: Vec<Edit>,
    /// What the change does, for people.
    pub description: String,
    /// Unified diff with `a/` and `b/` paths.
    pub diff: String,
}
