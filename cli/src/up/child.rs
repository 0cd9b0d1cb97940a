//! A child of `cooper up`: this executable in another role, its output in a log file.

use std::{
    env, fmt,
    process::{Command, Stdio},
};

use cooper_common::{clock, config::Config, config::Role, error::Code};
use rustix::process::{Pid, WaitStatus};

use super::{log::Log, passed_on, preflight::Data};
use crate::failure::{Failure, Result};
use std::os::unix::process::CommandExt;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    Coordinator,
    Worker,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Name::Coordinator => "coordinator",
            Name::Worker => "worker",
        })
    }
}

pub(super) struct Child {
    pub(super) name: Name,
    /// None once it ended.
    pub(super) pid: Option<Pid>,
    pub(super) log: Log,
    pub(super) started_at_ms: u64,
    /// Restarts since it last ran steadily.
    pub(super) attempt: u32,
    pub(super) restart_at_ms: Option<u64>,
}

/// What children are told.
pub(super) struct Plan<'a> {
    pub(super) config: &'a Config,
    pub(super) data: &'a Data,
    pub(super) listen: &'a str,
    pub(super) url: &'a str,
}

/// Starts a child from the calling thread, which must live as long as the child shall: its death signal hangs on it.
pub(super) fn start(name: Name, plan: &Plan<'_>, forward: bool) -> Result<Child> {
    let fail =
        |error: std::io::Error| Failure::new(Code::Internal, format!("cannot start the {name}: {error}"));
    let mut command = Command::new(env::current_exe().map_err(fail)?);
    command.arg(name.to_string()).arg("--data").arg(&plan.data.dir);
    if let Some(file) = &plan.config.file {
        command.arg("--config").arg(file);
    }
    command.args(["--supervisor", &std::process::id().to_string()]);
    match name {
        Name::Coordinator => {
            command.args(["--listen", plan.listen]).args(passed_on(plan.config, Role::Coordinator));
        }
        Name::Worker => {
            command.args(["--coordinator-addr", plan.url]).args(passed_on(plan.config, Role::Worker));
            command.arg("--join-token-file").arg(plan.data.dir.join("worker.token"));
            // Here it is the coordinator's port; and the token is the one in the data directory.
            command.env_remove("GRPC_PORT").env_remove("COOPER_JOIN_TOKEN");
        }
    }
    for secret in ["COOPER_TOKEN", "COOPER_TOKEN_FILE", "COOPER_URL"] {
        command.env_remove(secret);
    }
    // A process group of its own: Ctrl-C in the terminal reaches us alone, and we stop things in order.
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(fail)?;
    let log = match child.stderr.take() {
        Some(pipe) => Log::start(name, plan.data.log(name), pipe, forward)?,
        None => return Err(Failure::new(Code::Internal, format!("the {name} has no log pipe"))),
    };
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    Ok(Child { name, pid, log, started_at_ms: clock::mono_ms(), attempt: 0, restart_at_ms: None })
}

/// `exit status 1`, `signal 9`.
pub(super) fn how(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown end".to_owned(),
    }
}
