//! The gRPC door: translates and authorises; decides nothing.

mod admin;
pub mod convert;
mod runs;
mod sessions;
mod tasks;

pub use self::{admin::Admin, runs::Runs, sessions::Sessions, tasks::Tasks};
