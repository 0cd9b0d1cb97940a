//! The gRPC door: translates and authorises; decides nothing.

pub mod convert;
mod runs;
mod sessions;
mod tasks;

pub use self::{runs::Runs, sessions::Sessions, tasks::Tasks};
