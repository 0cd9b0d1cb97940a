//! End to end: the built binary, real processes, real Docker, real clients.

mod config;
mod contract;
mod durable;
mod executions;
mod files;
mod fleet;
mod idempotency;
mod json;
mod policy;
mod repair;
mod rollback;
mod sessions;
mod tenants;
mod up;
