//! The coordinator: owns sessions, plans, runs, approvals and tasks, and serves every door on one port.

pub mod blobs;
pub mod bus;
pub mod output;
pub mod store;
