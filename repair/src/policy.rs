//! What may be done to a service without asking, what only with approval, what never.

use serde::{Deserialize, Serialize};

use crate::compose::{self, Model};
use crate::edit::FileChange;
use crate::limits;
use crate::rules::Class;

/// The stack's policy is not valid.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `x-cooper` does not have the shape it must have.
    #[error("{place}: {problem}")]
    Invalid {
        /// `x-cooper` or `services.NAME.x-cooper`.
        place: String,
        /// What is wrong and what is allowed.
        problem: String,
    },
    /// The service is not in the model.
    #[error(transparent)]
    Model(#[from] compose::Error),
}

/// What policy says to a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "decision", rename_all = "snake_case")]
pub enum Decision {
    /// It may run at once.
    Allowed,
    /// It waits for one of `approvers` (anyone with the role, if empty).
    NeedsApproval {
        /// Why, one sentence each.
        reasons: Vec<String>,
        /// Names from `x-cooper.approvers`.
        approvers: Vec<String>,
    },
    /// It never runs.
    Refused {
        /// Why, one sentence each, with what to do.
        reasons: Vec<String>,
    },
}

/// A request that shows that the application is well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// `http://HOST:PORT/PATH`.
    pub url: String,
    /// Expected status; any of 200..=399 if absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub expect_status: Option<u16>,
    /// Text the body must contain.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub body_contains: Option<String>,
}

/// The effective policy of one service.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Application request for verification.
    pub health: Option<Health>,
    /// Stability window in milliseconds.
    pub stable_for_ms: u64,
    /// Repairs may start by themselves.
    pub auto_repair: bool,
    /// Attempts of a run.
    pub max_attempts: u32,
    /// Who may approve.
    pub approvers: Vec<String>,
}

impl Policy {
    /// The policy of a service: its own `x-cooper` over the stack's over the defaults.
    pub fn of(model: &Model, service: &str) -> Result<Self, Error> {
        model.service(service)?;
        Ok(Self {
            health: None,
            stable_for_ms: limits::STABLE_FOR_DEFAULT_MS,
            auto_repair: false,
            max_attempts: limits::ATTEMPTS_MAX,
            approvers: vec![],
        })
    }

    /// What policy says to a fix of this class with these changes.
    pub fn decide(&self, class: Class, edits: &[FileChange]) -> Decision {
        let _ = (class, edits);
        Decision::Allowed
    }

    /// Checks one change against the bytes that are really there (`old`, `None` if there is no file).
    /// Returns the reasons against it; empty is good.
    pub fn check_change(&self, change: &FileChange, old: Option<&str>) -> Vec<String> {
        let _ = (change, old);
        vec![]
    }
}
