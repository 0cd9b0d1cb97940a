//! Arguments of what runs in a session and is spoken with.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use cooper_proto::v1::{RetryPolicy, RetryWhen, SubmitTaskRequest, TaskSpec};

use crate::{connect::idempotency_key, units};

/// What an execution's standard streams are.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct Streams {
    /// Pass standard input on as it comes; with --background: keep it open for `cooper tasks write`
    #[arg(short, long)]
    pub interactive: bool,
    /// Run it on a terminal of its own, which this one's keys and size go to (code: with --fresh)
    #[arg(short, long)]
    pub tty: bool,
    /// Print the task's id and leave it running
    #[arg(long)]
    pub background: bool,
}

#[derive(Debug, Args)]
pub struct Attach {
    /// Id or name of a session; or the id of a task that was started with --tty or --interactive
    pub target: String,
    /// Python instead of a shell: it sees the session's variables and leaves none
    #[arg(long, conflicts_with = "command")]
    pub python: bool,
    /// Working directory, relative to the workspace
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,
    /// Extra environment; repeatable
    #[arg(long, value_name = "NAME=VALUE", value_parser = units::pair)]
    pub env: Vec<(String, String)>,
    /// Time limit, e.g. 2h
    #[arg(long, value_name = "DURATION", value_parser = units::duration_ms, default_value = "24h")]
    pub timeout: u64,
    /// Of a task: first byte of output wanted
    #[arg(long, value_name = "BYTES", default_value_t = 0, hide_default_value = true)]
    pub offset: u64,
    /// Keys that leave it running: ctrl-LETTER with commas between them, or none
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q", value_parser = keys)]
    pub detach_keys: DetachKeys,
    /// Command in place of a shell
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<String>,
}

/// Bytes that a terminal sends for the keys that detach; empty = none do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetachKeys(pub Vec<u8>);

impl Default for DetachKeys {
    fn default() -> Self {
        Self(vec![b'p' & 0x1f, b'q' & 0x1f])
    }
}

fn keys(text: &str) -> Result<DetachKeys, String> {
    if text == "none" {
        return Ok(DetachKeys(Vec::new()));
    }
    let key = |key: &str| match key.strip_prefix("ctrl-").map(str::as_bytes) {
        Some([letter]) if letter.is_ascii_alphabetic() => Ok(letter & 0x1f),
        _ => Err(format!("{key:?} is no key: use ctrl-LETTER, with commas between them, or none")),
    };
    text.split(',').map(key).collect::<Result<_, _>>().map(DetachKeys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_what_a_terminal_sends() {
        assert_eq!(keys("ctrl-p,ctrl-q"), Ok(DetachKeys::default()));
        assert_eq!(keys("ctrl-A"), Ok(DetachKeys(vec![1])));
        assert_eq!(keys("none"), Ok(DetachKeys(Vec::new())));
        for bad in ["", "p", "ctrl-", "ctrl-pq", "ctrl-1"] {
            assert!(keys(bad).is_err(), "{bad}");
        }
    }
}

/// When a task runs, and what becomes of an attempt that does not succeed.
#[derive(Debug, Clone, Default, Args)]
pub struct Schedule {
    /// Starts before what waits in the session with a lower one, from -10 to 10 [default: 0]
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "Scheduling",
        value_parser = clap::value_parser!(i32).range(-10..=10))]
    pub priority: Option<i32>,
    /// Run again what may have run: after a loss of its worker, or always when it did not succeed
    /// [default: only what surely never started]
    #[arg(long, value_name = "WHEN", value_parser = ["if-not-started", "lost", "always"], help_heading = "Scheduling")]
    pub retry: Option<String>,
    /// Attempts in all before it is a dead letter [default: 3 with --retry]
    #[arg(long, value_name = "N", requires = "retry", help_heading = "Scheduling",
        value_parser = clap::value_parser!(u32).range(1..=100))]
    pub max_attempts: Option<u32>,
    /// Time out when it was not handed to its worker by then, e.g. 30s, 5m
    #[arg(long, value_name = "DURATION", value_parser = units::duration_ms, help_heading = "Scheduling")]
    pub schedule_to_start: Option<u64>,
    /// Time out when it did not end by then, all attempts together
    #[arg(long, value_name = "DURATION", value_parser = units::duration_ms, help_heading = "Scheduling")]
    pub schedule_to_close: Option<u64>,
}

impl Schedule {
    /// A submit of its own key.
    pub fn request(&self, spec: TaskSpec) -> SubmitTaskRequest {
        let when = match self.retry.as_deref() {
            Some("if-not-started") => RetryWhen::IfNotStarted,
            Some("lost") => RetryWhen::Lost,
            Some(_) => RetryWhen::Always,
            None => RetryWhen::Unspecified,
        };
        let max_attempts = self.max_attempts.unwrap_or(0);
        SubmitTaskRequest {
            idempotency_key: idempotency_key(),
            spec: Some(spec),
            priority: self.priority.unwrap_or(0),
            retry: self.retry.as_ref().map(|_| RetryPolicy { when: when.into(), max_attempts }),
            schedule_to_start_ms: self.schedule_to_start.unwrap_or(0),
            schedule_to_close_ms: self.schedule_to_close.unwrap_or(0),
            ..SubmitTaskRequest::default()
        }
    }
}

#[derive(Debug, Args)]
pub struct Exec {
    /// Id or name of the session
    pub session: String,
    /// File with Python code; - for standard input
    #[arg(required_unless_present = "code", conflicts_with = "code")]
    pub file: Option<PathBuf>,
    /// Python code
    #[arg(short, long, allow_hyphen_values = true)]
    pub code: Option<String>,
    /// Run it in a fork of the interpreter: it sees the session's variables and leaves none
    #[arg(long)]
    pub fresh: bool,
    /// Time limit, e.g. 30s, 5m [default: the session's]
    #[arg(long, value_name = "DURATION", value_parser = units::duration_ms)]
    pub timeout: Option<u64>,
    /// Working directory, relative to the workspace [default: where the code before went]
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,
    #[command(flatten)]
    pub streams: Streams,
    #[command(flatten)]
    pub schedule: Schedule,
    /// Extra environment; repeatable
    #[arg(long, value_name = "NAME=VALUE", value_parser = units::pair)]
    pub env: Vec<(String, String)>,
    /// sys.argv[1:] while the code runs
    #[arg(last = true)]
    pub args: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Sh {
    /// Id or name of the session
    pub session: String,
    /// Working directory, relative to the workspace
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,
    /// Time limit, e.g. 30s, 5m [default: the session's]
    #[arg(long, value_name = "DURATION", value_parser = units::duration_ms)]
    pub timeout: Option<u64>,
    #[command(flatten)]
    pub streams: Streams,
    #[command(flatten)]
    pub schedule: Schedule,
    /// Extra environment; repeatable
    #[arg(long, value_name = "NAME=VALUE", value_parser = units::pair)]
    pub env: Vec<(String, String)>,
    /// Pass no standard input (else it is passed when it is not a terminal)
    #[arg(short = 'n', long)]
    pub no_stdin: bool,
    /// Command and arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    pub argv: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub enum Packages {
    /// Install packages; when that fails the session's packages stay as they were
    Install(PackagesInstall),
    /// What the session's code can import besides the standard library
    #[command(visible_alias = "ls")]
    List {
        /// Id or name of the session
        session: String,
    },
    /// Remove packages, all or none
    #[command(visible_alias = "rm")]
    Uninstall(PackagesUninstall),
}

#[derive(Debug, Args)]
pub struct PackagesInstall {
    /// Id or name of the session
    pub session: String,
    /// Requirement specifiers, e.g. requests, 'requests[socks]' or 'numpy>=2'
    #[arg(required_unless_present = "requirements")]
    pub packages: Vec<String>,
    /// A local file of requirements, a line each, without options; - for standard input
    #[arg(short, long, value_name = "FILE")]
    pub requirements: Option<PathBuf>,
    /// Newer versions of what is named and there already
    #[arg(short = 'U', long)]
    pub upgrade: bool,
    /// An index to use instead of the worker's; the session's network policy has to allow its host
    #[arg(long, value_name = "URL", default_value = "", hide_default_value = true)]
    pub index_url: String,
    #[command(flatten)]
    pub run: PackagesRun,
}

#[derive(Debug, Args)]
pub struct PackagesUninstall {
    /// Id or name of the session
    pub session: String,
    /// Names of packages
    #[arg(required = true)]
    pub packages: Vec<String>,
    #[command(flatten)]
    pub run: PackagesRun,
}

#[derive(Debug, Args)]
pub struct PackagesRun {
    /// Time limit, e.g. 30s, 5m [default: the session's]
    #[arg(long, value_name = "DURATION", value_parser = units::duration_ms)]
    pub timeout: Option<u64>,
    #[command(flatten)]
    pub schedule: Schedule,
}
