//! Rules: what a log line means and what to do about it, as data in `rules/*.toml`.

use serde::{Deserialize, Serialize};

/// What may be done about a cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Patch, within the allow-list.
    Auto,
    /// Try again as it is: a passing fault.
    Retry,
    /// Patch only after an approval.
    Approve,
    /// Never patch: a person has to act.
    Escalate,
}

/// Rules could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {}

/// Rules and name maps, validated and compiled.
#[derive(Debug)]
pub struct RuleSet {}

impl RuleSet {
    /// The rules that come with Cooper.
    pub fn builtin() -> Result<Self, Error> {
        Ok(Self {})
    }
}
