//! The gRPC door: translates and authorises; decides nothing.

mod admin;
mod checkpoints;
pub mod convert;
mod executions;
mod runs;
mod secrets;
mod sessions;
mod tasks;
mod templates;

pub use self::{
    admin::Admin, checkpoints::Checkpoints, executions::Executions, runs::Runs, secrets::Secrets,
    sessions::Sessions, tasks::Tasks, templates::Templates,
};
