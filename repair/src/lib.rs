//! What repairs a service of a compose stack, decided without touching anything: this crate reads text it is given and
//! returns plans. It opens no file, no socket and no clock, so that the coordinator (planning), the worker (enforcing
//! and applying) and the command line (diagnosing offline) all decide alike.
//!
//! The way through it: an [`Evidence`] goes with a [`RuleSet`] into [`diagnose`], the [`Diagnosis`] with the
//! [`compose::Model`] into [`RepairPlan::new`], which asks the service's [`Policy`] for a [`Decision`].
//! Before it acts the worker asks [`Policy::check_change`] again, with the bytes it really staged.
#![forbid(unsafe_code)]

pub mod check;
pub mod command;
pub mod compose;
pub mod diagnosis;
pub mod diff;
pub mod dockerfile;
pub mod edit;
pub mod limits;
pub mod log;
pub mod names;
pub mod plan;
pub mod policy;
pub mod proposal;
pub mod review;
pub mod rules;
pub mod step;

pub use diagnosis::{Diagnosis, Evidence, Learned, NoDiagnosis, Past, diagnose, diagnose_after};
pub use edit::{Edit, FileChange};
pub use plan::RepairPlan;
pub use policy::{Decision, OperatorPolicy, Policy};
pub use review::Review;
pub use rules::{Class, RuleSet};
