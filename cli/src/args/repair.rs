//! Arguments about repairs.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use cooper_common::limits::run::RECURRING_MAX;

use crate::units;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  docker compose build web 2>&1 | cooper diagnose --log - --stack . --service web\n  \
                  cooper diagnose --stack . --service web\n  cooper diagnose --log ci.log\n\n\
                  Exit status: 0 there is an edit, or building again or restarting helps; 5 nothing explains it, or a \
                  person has to act; 1 it could not be looked at."
)]
pub struct Diagnose {
    /// Diagnose this log; - for standard input [default: what the engine tells of the service's container]
    #[arg(long, value_name = "FILE", required_unless_present_any = ["stack", "instruction"])]
    pub log: Option<PathBuf>,
    /// Directory of the compose stack: its files are read, so that edits can be proposed
    #[arg(long, value_name = "DIR")]
    pub stack: Option<PathBuf>,
    /// Compose service [default: the only one that is built]
    #[arg(long, requires = "stack")]
    pub service: Option<String>,
    /// Directory with rules of your own (*.toml), as a coordinator's `rules_dir`
    #[arg(long, value_name = "DIR")]
    pub rules: Option<PathBuf>,
    /// What to do, e.g. "add package requests", in place of what a log tells
    #[arg(long, value_name = "TEXT", requires = "stack")]
    pub instruction: Option<String>,
}

#[derive(Debug, Args)]
pub struct Repair {
    /// Compose service to repair
    pub service: String,
    /// Name of a registered stack, or a directory of this machine [default: the workers' first stack]
    #[arg(long, value_name = "NAME|DIR")]
    pub stack: Option<String>,
    /// Diagnose this log instead of what Cooper would collect; - for standard input
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// What to do, e.g. "add package requests"
    #[arg(long, value_name = "TEXT")]
    pub instruction: Option<String>,
    /// Stop after the plan; touch nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Before others that wait for the service, -100 to 100
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        hide_default_value = true,
        allow_negative_numbers = true
    )]
    pub priority: i32,
    /// No person asks for it: only where the stack has auto_repair, not while paused, not too often; for CI and monitors
    #[arg(long)]
    pub automatic: bool,
    /// Repair only when the same failure was posted N times within 7 days, this time included; before that it is counted
    #[arg(long, value_name = "N", requires = "automatic", requires = "log", value_parser = clap::value_parser!(u32).range(1..=i64::from(RECURRING_MAX)))]
    pub recurring: Option<u32>,
    /// Start the run and leave it
    #[arg(long)]
    pub detach: bool,
}

#[derive(Debug, Args)]
pub struct Decide {
    /// Id of the run
    pub run: String,
    /// Recorded with the decision
    #[arg(long, value_name = "TEXT")]
    pub comment: Option<String>,
    /// Decide only about the plan with this hash [default: the plan the run waits with now]
    #[arg(long, value_name = "HASH")]
    pub plan: Option<String>,
    /// Follow the run to its end
    #[arg(long)]
    pub follow: bool,
}

#[derive(Debug, Subcommand)]
pub enum Approvals {
    /// List approvals: those that are waited for first, then what was decided, newest first
    List {
        /// Only those that are waited for
        #[arg(long)]
        pending: bool,
        /// At most this many of either
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
}

#[derive(Debug, Args)]
pub struct RunRef {
    /// Id of the run
    pub run: String,
}

#[derive(Debug, Subcommand)]
pub enum Runs {
    /// List runs, newest first
    List {
        /// At most this many
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
    /// Show one run
    Show(RunRef),
    /// Show the plan of a run for review: why, what changes, what is run, who has to approve it
    Plan {
        run: String,
        /// That of this attempt [default: the newest]
        #[arg(long, default_value_t = 0, hide_default_value = true)]
        attempt: u32,
    },
    /// How runs went: ends, success, time to repair, times of steps
    Stats {
        /// Only runs of this time, e.g. 24h, 7d [default: all that are kept]
        #[arg(long, value_name = "DURATION", value_parser = units::duration_ms)]
        since: Option<u64>,
        /// Only runs of this stack
        #[arg(long, value_name = "NAME")]
        stack: Option<String>,
    },
    /// Follow a run to its end
    Watch(RunRef),
    /// Begin a run that has ended over again, as a run of its own
    Retry {
        /// Id of the run
        run: String,
        /// Go on from this step by the same plan: verify or promote, after a promotion conflict
        #[arg(long, value_name = "STEP")]
        from: Option<String>,
        /// Start the run and leave it
        #[arg(long)]
        detach: bool,
    },
    /// Take a run back that has succeeded: its files, as long as nobody has changed them, and the image of before
    Undo {
        /// Id of the run
        run: String,
        /// Start the run and leave it
        #[arg(long)]
        detach: bool,
    },
    /// List the artifacts of a run, or copy them
    Artifacts {
        run: String,
        /// Copy all of them into this directory
        #[arg(long, value_name = "DIR")]
        to: Option<PathBuf>,
    },
    /// Write one artifact to standard output
    Artifact { run: String, name: String },
}

#[derive(Debug, Args)]
pub struct Stacks {
    #[command(subcommand)]
    pub command: Option<StacksCommand>,
}

#[derive(Debug, Subcommand)]
pub enum StacksCommand {
    /// List the stacks that workers serve
    List,
    /// Let the worker on this machine serve a directory with a compose file
    Add {
        dir: PathBuf,
        /// [default: the directory's name]
        #[arg(long)]
        name: Option<String>,
    },
    /// What Cooper could do to each service, who approves, how it would be verified; and what is wrong with the policy
    Check(StacksCheck),
}

#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 nothing is wrong, or only warnings; 1 nothing is repaired before an error is corrected."
)]
pub struct StacksCheck {
    /// Name of the stack [default: the workers' first stack]
    pub stack: Option<String>,
    /// Check this directory without a cluster
    #[arg(long = "stack", id = "dir", value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// The operator's file (the coordinator's `policy_file`) to check the directory against
    #[arg(long, value_name = "FILE", requires = "dir")]
    pub policy: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Pause {
    /// Only work on this stack [default: on every stack]
    #[arg(long, value_name = "NAME")]
    pub stack: Option<String>,
    /// Shown while it lasts
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
}

#[derive(Debug, Args)]
pub struct Resume {
    /// End the pause of this stack [default: that of every stack]
    #[arg(long, value_name = "NAME")]
    pub stack: Option<String>,
}
