//! The roles of a cluster: each runs here as a call into its crate, and nowhere else.

use std::{ffi::OsStr, process::ExitCode};

use cooper_common::config::Role;
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use crate::{
    args,
    context::Context,
    failure::{Failure, Result},
};

/// Processes that a worker's host starts: no command line, no settings, no runtime of ours.
pub fn internal(name: &OsStr) -> Option<ExitCode> {
    match name.to_str()? {
        "worker-link" => Some(cooper_worker::link::main()),
        _ => None,
    }
}

pub fn coordinator(context: &Context, args: args::Coordinator) -> Result<u8> {
    tie_to(args.supervisor)?;
    let config = context.config(Role::Coordinator, args.settings.given)?;
    cooper_common::telemetry::init(&config.log_level());
    Err(Failure::new(cooper_common::error::Code::Internal, "this build has no coordinator yet"))
}

pub fn worker(context: &Context, args: args::Worker) -> Result<u8> {
    tie_to(args.supervisor)?;
    let config = context.config(Role::Worker, args.settings.given)?;
    cooper_common::telemetry::init(&config.log_level());
    config.join_token()?;
    Err(Failure::new(cooper_common::error::Code::Internal, "this build has no worker yet"))
}

/// SIGTERM for this process when its supervisor dies. A supervisor that is dead already ends it at once.
fn tie_to(supervisor: Option<u32>) -> Result<()> {
    let Some(supervisor) = supervisor else { return Ok(()) };
    let _ = set_parent_process_death_signal(Some(Signal::TERM));
    let parent = getppid().map(Pid::as_raw_pid);
    if parent == i32::try_from(supervisor).ok() { Ok(()) } else { Err(Failure::Exit(1)) }
}
