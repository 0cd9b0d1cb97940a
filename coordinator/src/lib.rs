//! The coordinator: owns sessions, plans, runs, approvals and tasks, and serves every door on one port.

pub mod artifacts;
pub mod audit;
pub mod blobs;
pub mod bus;
pub mod caller;
mod check;
pub mod checkpoints;
pub mod cluster;
pub mod doors;
pub mod executions;
pub mod files;
pub mod fleet;
pub mod hub;
mod key_file;
mod keys;
mod life;
pub mod output;
pub mod ports;
pub mod runs;
mod secrets;
mod serve;
pub mod sessions;
pub mod store;
pub mod tasks;
mod templates;
pub mod tokens;
pub mod upkeep;

pub use cooper_common::network::Policy;
pub use cooper_core::{cluster::Quota, lease::Timing};
pub use doors::{hosts::Hosts, tls::Settings as Tls};
pub use life::serve;
pub use serve::{Config, Coordinator};
pub use tokens::Allowance;
