//! The command line, as clap reads it. What each command does is in `command/`.

mod certs;
mod execution;
mod files;
mod repair;
mod session;
#[cfg(test)]
mod tests;

pub use self::{
    certs::{Certs, CertsInit, CertsIssue},
    execution::{Attach, DetachKeys, Exec, Packages, PackagesRun, Schedule, Sh, Streams},
    files::{Files, FromTo, ListWhich},
    repair::{
        Approvals, Decide, Diagnose, Pause, Repair, Resume, RunRef, Runs, Stacks, StacksCheck, StacksCommand,
    },
    session::{
        Artifacts, Checkpoint, LimitName, Port, Secret, Session, SessionCreate, SessionLimits, SessionList,
        Template,
    },
};

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use cooper_proto::v1::TaskState;

use crate::{
    flags::{CoordinatorFlags, UpFlags, WorkerFlags},
    units, version,
};

const AFTER: &str = "\
Exit status: 0 done; 1 error; 2 wrong usage.
  exec, sh     the code's own status; 124 timed out, 125 Cooper's own error, 130 cancelled, 137 killed
  repair, runs watch, approve/reject --follow
               0 succeeded, 1 failed, 3 awaits approval, 4 rolled back, 5 refused, 6 rollback failed,
               7 rejected, expired or cancelled
Commands find the cluster by COOPER_URL and COOPER_TOKEN or COOPER_TOKEN_FILE, else by the context in use (`cooper context`),
else in the data directory.";

const COMPLETIONS: &str = "\
  bash  source <(cooper completions bash)      in ~/.bashrc
  zsh   source <(cooper completions zsh)       in ~/.zshrc, after compinit
  fish  cooper completions fish | source       in ~/.config/fish/config.fish";

/// Isolated Python sessions, and repairs of docker compose services.
#[derive(Debug, Parser)]
#[command(name = "cooper", version = version::text(), after_help = AFTER, max_term_width = 110)]
#[command(disable_help_subcommand = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Clone, Default, Args)]
pub struct Global {
    /// One JSON document on standard output instead of text; errors as JSON on standard error
    #[arg(long, global = true, help_heading = "Global options")]
    pub json: bool,
    /// Data directory [env: COOPER_DATA] [default: .cooper]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    pub data: Option<PathBuf>,
    /// Settings file, TOML [env: COOPER_CONFIG] [default: cooper.toml in the data directory, if there]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub config: Option<PathBuf>,
    /// Coordinator to talk to [env: COOPER_URL] [default: the data directory's endpoint]
    #[arg(long, global = true, value_name = "URL", help_heading = "Global options")]
    pub url: Option<String>,
    /// Cluster to talk to, by its name [env: COOPER_CONTEXT] [default: the one in use, see `cooper context`]
    #[arg(long, global = true, value_name = "NAME", conflicts_with_all = ["url", "config"])]
    #[arg(help_heading = "Global options")]
    pub context: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a coordinator and a worker here; Ctrl-C stops both
    Up(Up),
    /// Speak MCP on standard input and output, for hosts of models; starts a cluster where none runs
    Mcp(Mcp),
    /// Run a coordinator
    Coordinator(Coordinator),
    /// Run a worker
    Worker(Worker),
    /// Create, list, show and destroy sessions
    #[command(subcommand, visible_alias = "sessions")]
    Session(Session),
    /// Save sessions, and make new ones from what was saved
    #[command(subcommand, visible_alias = "checkpoints")]
    Checkpoint(Checkpoint),
    /// List, get and remove artifacts: what sessions wrote beneath artifacts/
    #[command(subcommand, visible_alias = "artifact")]
    Artifacts(Artifacts),
    /// Build, list, show and remove templates of sessions
    #[command(subcommand, visible_alias = "templates")]
    Template(Template),
    /// Set, list and remove secrets, which sessions are given by name; no command shows a value
    #[command(subcommand, visible_alias = "secrets")]
    Secret(Secret),
    /// Run Python code in a session
    Exec(Exec),
    /// Run a command in a session
    Sh(Sh),
    /// Install, list and remove Python packages of a session
    #[command(subcommand)]
    Packages(Packages),
    /// What a session listens on: list it, or bring it to a port of this machine
    #[command(subcommand, visible_alias = "ports")]
    Port(Port),
    /// A shell, or Python, in a session on this terminal; or the terminal of an execution that runs
    Attach(Attach),
    /// Read, write, list, search and change files of a session
    #[command(subcommand)]
    Files(Files),
    /// Say what a log or a failing service means, and what would mend it; needs no cluster and changes nothing
    Diagnose(Diagnose),
    /// Repair a service of a compose stack
    Repair(Repair),
    /// What waits for a decision, and what was decided
    #[command(subcommand, visible_alias = "approval")]
    Approvals(Approvals),
    /// Approve the plan a run waits with
    Approve(Decide),
    /// Reject the plan a run waits with
    Reject(Decide),
    /// End a run; what it touched is restored
    Cancel(RunRef),
    /// Let nothing start by itself any more; what people ask for does
    Pause(Pause),
    /// End a pause
    Resume(Resume),
    /// List, show and watch runs; read their artifacts
    #[command(subcommand)]
    Runs(Runs),
    /// List the stacks that workers serve; check what Cooper could do to their services
    Stacks(Stacks),
    /// List workers: what they are, hold and can take
    Workers,
    /// Empty a worker: nothing new goes there, what runs goes on until the deadline
    Drain(Drain),
    /// Let a drained worker take work again
    Undrain {
        /// Id of the worker
        worker: String,
    },
    /// List, show, follow, cancel and requeue tasks; why one waits
    #[command(subcommand)]
    Tasks(Tasks),
    /// List, verify and export the audit trail
    #[command(subcommand)]
    Audit(Audit),
    /// Create, list, rotate and revoke tokens
    #[command(subcommand)]
    Token(Token),
    /// Make certificates: an authority, the coordinator's, and those of workers; needs no cluster
    #[command(subcommand)]
    Certs(Certs),
    /// Back up, restore, check and migrate the store in the data directory
    #[command(subcommand)]
    Store(Store),
    /// What happened, in order
    Events(Events),
    /// The cluster at a glance
    Status,
    /// Ask a coordinator or worker whether it is healthy; needs no token
    Health,
    /// What this machine has for sessions and repairs, and what would confine sessions; or how the coordinator is reached
    Doctor(Doctor),
    /// Settings: what holds, and why
    #[command(subcommand)]
    Config(Config),
    /// Name clusters, and say which one commands talk to
    #[command(subcommand, visible_alias = "contexts")]
    Context(Context),
    /// Print a script that completes commands in a shell
    #[command(after_help = COMPLETIONS)]
    Completions {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Version, commit and features of this binary
    Version,
    /// Write manual pages, one for each command
    #[command(hide = true)]
    Man {
        /// Directory for them, which has to be there
        dir: PathBuf,
    },
    #[command(hide = true, name = "worker-link")]
    WorkerLink,
    #[command(hide = true, name = "worker-step")]
    WorkerStep,
    #[command(hide = true, name = "worker-install")]
    WorkerInstall,
}

#[derive(Debug, Args)]
pub struct Up {
    /// Start no worker
    #[arg(long)]
    pub no_worker: bool,
    /// Do not offer compose, even if Docker answers
    #[arg(long, conflicts_with = "compose")]
    pub no_compose: bool,
    #[command(flatten)]
    pub settings: UpFlags,
    /// Pid of the process that this one must not outlive
    #[arg(long, hide = true)]
    pub supervisor: Option<u32>,
}

#[derive(Debug, Args)]
pub struct Mcp {
    /// Only a cluster that runs: start none
    #[arg(long)]
    pub no_start: bool,
}

#[derive(Debug, Args)]
pub struct Coordinator {
    #[command(flatten)]
    pub settings: CoordinatorFlags,
    /// Pid of the supervisor that this process must not outlive
    #[arg(long, hide = true)]
    pub supervisor: Option<u32>,
}

#[derive(Debug, Args)]
pub struct Worker {
    #[command(flatten)]
    pub settings: WorkerFlags,
    #[arg(long, hide = true)]
    pub supervisor: Option<u32>,
}

#[derive(Debug, Args)]
pub struct Doctor {
    /// Whether the coordinator can be reached and used from here, in place of what this machine has
    #[arg(long)]
    pub coordinator: bool,
    #[command(flatten)]
    pub settings: WorkerFlags,
}

#[derive(Debug, Subcommand)]
pub enum Tasks {
    /// List tasks, newest first
    List {
        /// Only those of this session
        #[arg(long)]
        session: Option<String>,
        /// Only those in this state, e.g. queued, dead_letter; repeatable
        #[arg(long, value_parser = units::task_state)]
        state: Vec<TaskState>,
        /// At most this many
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
        /// `next_cursor` of the page before (--json)
        #[arg(long, default_value = "", hide_default_value = true)]
        cursor: String,
    },
    /// Show one task
    Show { task: String },
    /// What a task has printed so far, from an offset on; waits for nothing
    Output {
        task: String,
        /// Standard error instead of standard output
        #[arg(long)]
        stderr: bool,
        /// First byte wanted; with --json the answer says where to go on
        #[arg(long, value_name = "BYTES", default_value_t = 0, hide_default_value = true)]
        offset: u64,
    },
    /// Write to the standard input of an execution that was started with --interactive or --tty
    Write {
        task: String,
        /// Text, and a line's end after it [default: standard input as it is, to its end]
        text: Option<String>,
        /// Nothing comes after it
        #[arg(long)]
        eof: bool,
    },
    /// Signal an execution that runs
    Signal {
        task: String,
        #[arg(value_parser = ["INT", "TERM", "HUP", "USR1", "USR2", "KILL"], ignore_case = true)]
        signal: String,
    },
    /// Kill executions with all that they started; stateful code takes the session's variables along
    Kill {
        #[arg(required = true)]
        tasks: Vec<String>,
    },
    /// Output of a task from its first byte, then its end; exits like exec
    Follow { task: String },
    /// End a task
    Cancel { task: String },
    /// What a task waits for
    Why { task: String },
    /// Put a dead letter back into the queue, with all its attempts before it
    Requeue { task: String },
}

#[derive(Debug, Args)]
pub struct Drain {
    /// Id of the worker
    pub worker: String,
    /// Executions that still run after this are cancelled, e.g. 30s, 10m; 0s is at once, and gives up a silent worker
    #[arg(long, value_name = "DURATION", value_parser = units::deadline_ms, default_value = "10m")]
    pub deadline: u64,
    /// Wait until nothing runs there any more
    #[arg(long)]
    pub wait: bool,
    /// Save its sessions and let them go on on other workers: files and packages stay, variables do not
    #[arg(long)]
    pub checkpoint: bool,
}

#[derive(Debug, Subcommand)]
pub enum Token {
    /// Create a token; its secret is shown once
    Create(TokenCreate),
    /// List tokens
    List,
    /// Give a token a new secret, shown once; the one of before opens for a while longer
    Rotate(TokenRotate),
    /// Revoke a token
    Revoke { token: String },
}

#[derive(Debug, Args)]
pub struct TokenRotate {
    /// Id of the token
    pub token: String,
    /// For how long the secret of before goes on to open, e.g. 0s, 12h; at most 30d
    #[arg(long, value_name = "DURATION", value_parser = units::deadline_ms, default_value = "24h")]
    pub grace: u64,
    /// Write the secret to this new file (0600) instead of standard output
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Audit {
    /// The newest rows: who did what, to what, from where, and what came of it
    List {
        /// At most this many
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
        /// Only rows before this number
        #[arg(long, value_name = "SEQ", default_value_t = 0, hide_default_value = true)]
        before: u64,
    },
    /// Follow the chain of hashes from the oldest row to the newest; exits 1 when it is broken
    Verify {
        /// A place that an earlier `verify` printed, SEQ:HASH: it has to be on the chain still
        #[arg(long, value_name = "SEQ:HASH", conflicts_with = "file")]
        expect: Option<String>,
        /// Follow the rows of this file, made by `audit export` by an admin of the installation; needs no cluster
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Every row as a line of JSON, the oldest first
    Export {
        /// First row wanted
        #[arg(long, value_name = "SEQ", default_value_t = 1, hide_default_value = true)]
        from: u64,
        /// Write to this new file (0600) instead of standard output
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
pub struct TokenCreate {
    /// Tenant it belongs to [default: yours]
    #[arg(long)]
    pub tenant: Option<String>,
    /// What it may do
    #[arg(long, value_parser = ["admin", "operator", "client", "worker"])]
    pub scope: String,
    /// For people
    #[arg(long)]
    pub name: Option<String>,
    /// Ends after this time, e.g. 12h, 30d [default: never]
    #[arg(long, value_name = "DURATION", value_parser = units::duration_ms)]
    pub ttl: Option<u64>,
    /// Write the secret to this new file (0600) instead of standard output
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Store {
    /// Copy the store, with the files it refers to, into a new directory; the coordinator may go on meanwhile
    Backup {
        /// Directory to make; it must not exist
        #[arg(value_name = "DEST")]
        to: PathBuf,
    },
    /// Bring a backup back; the coordinator must not run
    Restore {
        /// Directory that `cooper store backup` made
        #[arg(value_name = "SRC")]
        from: PathBuf,
        /// Move the store that is there aside
        #[arg(long)]
        replace: bool,
    },
    /// Look for damage: database, rows, events, artifacts, output; exits 1 when there is some
    Check,
    /// Bring the store of an older cooper to this one's schema, after a backup; the coordinator must not run
    Migrate,
}

#[derive(Debug, Args)]
pub struct Events {
    /// First sequence number wanted [default: 1, with --follow only new ones]
    #[arg(long, value_name = "SEQ")]
    pub from: Option<u64>,
    /// Go on with new events as they are recorded (with --json one document a line)
    #[arg(long)]
    pub follow: bool,
}

#[derive(Debug, Subcommand)]
pub enum Context {
    /// Give the cluster at --url a name
    Add {
        name: String,
        /// File with the token that commands use there
        #[arg(long, value_name = "FILE", conflicts_with = "token_stdin")]
        token_file: Option<PathBuf>,
        /// Read the token from standard input, and keep it (0600)
        #[arg(long)]
        token_stdin: bool,
        /// File with the certificate authority that signed the coordinator's certificate [default: the system's]
        #[arg(long, value_name = "FILE")]
        tls_ca: Option<PathBuf>,
        /// Replace the one of that name
        #[arg(long)]
        replace: bool,
    },
    /// List contexts; the one in use is marked
    List,
    /// Talk to this one from now on; `local` is the data directory's cluster
    Use { name: String },
    /// Forget one, with the token that was kept of it
    Remove { name: String },
}

#[derive(Debug, Subcommand)]
pub enum Config {
    /// Print the settings that hold here
    Show {
        /// Where each value comes from
        #[arg(long)]
        origin: bool,
        /// Whose settings
        #[arg(long, default_value = "up", value_parser = ["client", "up", "coordinator", "worker"])]
        role: String,
    },
}
