//! Sans-IO cores: each takes `(now, input)` and returns what to record and what to do; none does I/O, reads a clock or
//! rolls dice. The coordinator performs; simulation and property tests drive the very same code.
#![forbid(unsafe_code)]

pub mod artifact;
pub mod change;
pub mod cluster;
pub mod credit;
pub mod lease;
pub mod python;
pub mod queue;
pub mod retry;
pub mod run;
pub mod session;
pub mod task;
pub mod worker;

/// The time at which a decision is made: monotonic to decide on, wall clock to record (I13).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now {
    pub mono_ms: u64,
    pub wall_ms: i64,
}
