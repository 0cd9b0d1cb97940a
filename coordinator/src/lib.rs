//! The coordinator: owns sessions, plans, runs, approvals and tasks, and serves every door on one port.

pub mod bus;
pub mod store;
