//! The command line, as clap reads it. What each command does is in `command/`.

mod execution;
#[cfg(test)]
mod tests;

pub use execution::{Attach, DetachKeys, Streams};

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use cooper_proto::v1::{
    NetworkMode, NetworkPolicy, RetryPolicy, RetryWhen, SubmitTaskRequest, TaskSpec, TaskState,
};

use crate::{
    connect::idempotency_key,
    flags::{CoordinatorFlags, UpFlags, WorkerFlags},
    units,
};

const AFTER: &str = "\
Exit status: 0 done; 1 error; 2 wrong usage.
  exec, sh     the code's own status; 124 timed out, 125 Cooper's own error, 130 cancelled, 137 killed
  repair, runs watch, approve/reject --follow
               0 succeeded, 1 failed, 3 awaits approval, 4 rolled back, 5 refused, 6 rollback failed,
               7 rejected, expired or cancelled
Commands find the cluster by COOPER_URL and COOPER_TOKEN or COOPER_TOKEN_FILE, else in the data directory.";

/// A binary that can be told to kill itself says so.
fn version() -> String {
    let failpoints = if cooper_common::failpoint::COMPILED_IN { " (failpoints)" } else { "" };
    format!("{}{failpoints}", cooper_common::VERSION)
}

/// Isolated Python sessions, and repairs of docker compose services.
#[derive(Debug, Parser)]
#[command(name = "cooper", version = version(), after_help = AFTER, max_term_width = 110)]
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
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a coordinator and a worker here; Ctrl-C stops both
    Up(Up),
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
    /// Approve the plan a run waits with
    Approve(Decide),
    /// Reject the plan a run waits with
    Reject(Decide),
    /// End a run; what it touched is restored
    Cancel(RunRef),
    /// List, show and watch runs; read their artifacts
    #[command(subcommand)]
    Runs(Runs),
    /// List the stacks that workers serve
    Stacks,
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
    /// Create, list and revoke tokens
    #[command(subcommand)]
    Token(Token),
    /// Back up, restore, check and migrate the store in the data directory
    #[command(subcommand)]
    Store(Store),
    /// What happened, in order
    Events(Events),
    /// The cluster at a glance
    Status,
    /// Ask a coordinator or worker whether it is healthy; needs no token
    Health,
    /// What would confine sessions on this machine, and what would not; needs no cluster
    Doctor(Doctor),
    /// Settings: what holds, and why
    #[command(subcommand)]
    Config(Config),
    /// Version of this binary
    Version,
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
    #[command(flatten)]
    pub settings: WorkerFlags,
}

#[derive(Debug, Subcommand)]
pub enum Artifacts {
    /// List the artifacts of a session, newest first; also of one that was destroyed
    List {
        /// Id, or name while it lives
        session: String,
        /// Only what this execution made
        #[arg(long)]
        task: Option<String>,
    },
    /// Copy an artifact to this machine; - writes to standard output
    Get {
        /// Session and name (the newest of that name), or the id of an artifact
        session: String,
        /// Path beneath artifacts/
        name: Option<String>,
        /// File or directory here [default: the last part of the name]
        #[arg(short = 'o', long = "to", value_name = "PATH")]
        to: Option<PathBuf>,
        /// First byte wanted
        #[arg(long, default_value_t = 0)]
        offset: u64,
        /// How many bytes; 0: to the end
        #[arg(long, default_value_t = 0)]
        length: u64,
    },
    /// Delete artifacts
    Rm {
        #[arg(required = true)]
        artifacts: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub enum Checkpoint {
    /// Save a session: its files and packages, with --globals also its variables
    Create {
        /// Id or name
        session: String,
        /// A name for people
        #[arg(long)]
        name: Option<String>,
        /// How long to wait for executions that run, e.g. 30s [default: 1m]
        #[arg(long, value_name = "DURATION", value_parser = units::duration_ms)]
        wait: Option<u64>,
        /// Also the interpreter's variables, as far as they can be pickled; `show` lists what was left out
        #[arg(long)]
        globals: bool,
    },
    /// List checkpoints, newest first
    List {
        /// Only those of this session
        #[arg(long)]
        session: Option<String>,
    },
    /// Show one checkpoint
    Show { checkpoint: String },
    /// Create a session from a checkpoint, on any worker with the same Python
    Restore {
        checkpoint: String,
        /// A name to use in place of the id
        #[arg(long)]
        name: Option<String>,
        /// Environment beside that of the saved session; repeatable
        #[arg(long, value_name = "NAME=VALUE", value_parser = units::pair)]
        env: Vec<(String, String)>,
        /// Label beside those of the saved session; repeatable
        #[arg(long, value_name = "NAME=VALUE", value_parser = units::pair)]
        label: Vec<(String, String)>,
        /// Label that its worker must have, in place of those of the saved session; repeatable
        #[arg(long, value_name = "NAME=VALUE", value_parser = units::pair)]
        on: Vec<(String, String)>,
        /// Which Python it runs on, of the minor version that it was saved with: 3.12, 3.12.1
        /// [default: the saved session's]
        #[arg(long, value_name = "VERSION")]
        python: Option<String>,
        /// How long to wait for a worker with room, e.g. 30s
        #[arg(long, value_name = "DURATION", value_parser = units::duration_ms)]
        wait: Option<u64>,
    },
    /// Delete checkpoints
    Delete {
        #[arg(required = true)]
        checkpoints: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub enum Session {
    /// Create a session and wait until it is ready
    Create(SessionCreate),
    /// List live sessions, newest first
    List(SessionList),
    /// Change labels, limits, times and the network of a live session
    Update(SessionUpdate),
    /// Let a session live this long from now
    Extend {
        /// Id or name
        session: String,
        /// e.g. 30m, 2h, or never: until it is destroyed
        #[arg(value_name = "DURATION", value_parser = units::lifetime_ms)]
        ttl: u64,
    },
    /// Show one session
    Show {
        /// Id or name
        session: String,
    },
    /// What has run in a session, in order of submission; also of one that was destroyed
    History {
        /// Id or name
        session: String,
        /// Write it as a Jupyter notebook instead, with what was printed and shown; - is standard output
        #[arg(long, value_name = "FILE")]
        ipynb: Option<PathBuf>,
    },
    /// Destroy sessions: end what runs, remove their files
    Destroy {
        /// Ids or names
        #[arg(required = true)]
        sessions: Vec<String>,
        /// Save each first and print the checkpoint's id; one that cannot be saved stays
        #[arg(long)]
        checkpoint: bool,
        /// With --checkpoint: how long to wait for executions that run, e.g. 30s [default: 1m]
        #[arg(long, value_name = "DURATION", value_parser = units::duration_ms, requires = "checkpoint")]
        wait: Option<u64>,
        /// With --checkpoint: also the interpreter's variables
        #[arg(long, requires = "checkpoint")]
        globals: bool,
    },
}

/// Of a session as a whole.
#[derive(Debug, Args)]
pub struct SessionLimits {
    /// Memory of the session, e.g. 512M [default: 2G]
    #[arg(long, value_name = "SIZE", value_parser = units::size_bytes)]
    pub memory: Option<u64>,
    /// Processes and threads at once [default: 512]
    #[arg(long, value_name = "N")]
    pub processes: Option<u32>,
    /// Processor time in thousandths of a processor, e.g. 1500 [default: no limit]
    #[arg(long, value_name = "MILLIS")]
    pub cpu: Option<u32>,
    /// Disk space, packages included [default: 4G]
    #[arg(long, value_name = "SIZE", value_parser = units::size_bytes)]
    pub disk: Option<u64>,
    /// Files, directories and links [default: 200000]
    #[arg(long, value_name = "N")]
    pub inodes: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub enum Template {
    /// Build the next version of a template from a recipe
    ///
    /// A recipe is TOML: name, packages = ["pandas"], warm_up = "import pandas", spares = 2, and the tables [env], [labels],
    /// [on] (labels of workers), [limits] (memory = "2G", exec_timeout = "10m") and [files]
    /// ("data/seed.csv" = { from = "seed.csv" } or { content = "…", mode = 0o755 }).
    Build {
        /// The recipe
        file: PathBuf,
        /// Name of the template [default: the recipe's]
        #[arg(long)]
        name: Option<String>,
    },
    /// List versions of templates, newest first
    List {
        /// Only of this name
        name: Option<String>,
    },
    /// Show a template
    Show {
        /// name, or name@version
        template: String,
    },
    /// Remove a version, or every version of a name; sessions made of it go on
    Rm {
        /// name@version, or name
        template: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum Secret {
    /// Set a secret, or give it another value
    ///
    /// The value is what the file or standard input holds, byte for byte; on a terminal it is asked for and not shown. It is
    /// never given on the command line, where others see it. At most 32 KiB.
    Set {
        /// Letters, digits and '_', e.g. API_KEY
        name: String,
        /// Where the value is; - = standard input
        #[arg(long, value_name = "FILE")]
        from_file: Option<PathBuf>,
    },
    /// List secrets: names and when they were set
    List,
    /// Remove secrets; sessions that have one have it no more
    Rm {
        #[arg(required = true)]
        names: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub struct SessionCreate {
    /// Begin with a template: name, or name@version
    #[arg(long, value_name = "TEMPLATE")]
    pub template: Option<String>,
    /// A name to use in place of the id
    #[arg(long)]
    pub name: Option<String>,
    /// Python it runs on, e.g. 3.12 (its worker's newest 3.12) or 3.12.1; `cooper workers` lists what there is [default:
    /// its worker's first, or the template's]
    #[arg(long, value_name = "VERSION")]
    pub python: Option<String>,
    /// Environment of every execution; repeatable
    #[arg(long, value_name = "NAME=VALUE", value_parser = units::pair)]
    pub env: Vec<(String, String)>,
    /// Label; repeatable
    #[arg(long, value_name = "NAME=VALUE", value_parser = units::pair)]
    pub label: Vec<(String, String)>,
    /// Label that its worker must have; repeatable
    #[arg(long, value_name = "NAME=VALUE", value_parser = units::pair)]
    pub on: Vec<(String, String)>,
    /// Time limit of one execution, e.g. 30s, 5m [default: 5m]
    #[arg(long, value_name = "DURATION", value_parser = units::duration_ms)]
    pub exec_timeout: Option<u64>,
    #[command(flatten)]
    pub limits: SessionLimits,
    /// Wait this long for a worker with room
    #[arg(long, value_name = "DURATION", value_parser = units::duration_ms)]
    pub wait: Option<u64>,
    /// Destroy it this long after its creation, e.g. 30m, 2h [default: never]
    #[arg(long, value_name = "DURATION", value_parser = units::duration_ms)]
    pub ttl: Option<u64>,
    /// Destroy it when nothing happened in it for this long [default: never]
    #[arg(long, value_name = "DURATION", value_parser = units::duration_ms)]
    pub idle_timeout: Option<u64>,
    /// When nothing happened in it for this long, save it and free its place; the next use brings it back [default: never]
    #[arg(long, value_name = "DURATION", value_parser = units::duration_ms)]
    pub hibernate_after: Option<u64>,
    /// Package to install before it is ready, e.g. "requests>=2"; repeatable
    #[arg(long, value_name = "REQUIREMENT")]
    pub package: Vec<String>,
    /// A note of your own; repeatable
    #[arg(long, value_name = "NAME=VALUE", value_parser = units::pair)]
    pub metadata: Vec<(String, String)>,
    /// Secret of the tenant to give it; repeatable. NAME alone: as the file $COOPER_SECRETS/NAME. NAME=host:HOST[:PORT]: put
    /// into its requests to that host on the way, without it ever holding the secret. Then also ,http for a host without TLS,
    /// and at the end ,header=HEADER, in which {} stands for the secret [default: "Authorization: Bearer {}"]
    #[arg(long, value_name = "NAME[=host:HOST]", value_parser = units::secret)]
    pub secret: Vec<units::Secret>,
    #[command(flatten)]
    pub network: Network,
}

/// What a session reaches.
#[derive(Debug, Clone, Args)]
pub struct Network {
    /// none, public, or hosts with commas between them: api.example.com, *.example.com
    /// [default: the coordinator's setting]
    #[arg(long = "network", value_name = "POLICY", value_parser = cooper_common::network::Policy::parse)]
    pub policy: Option<cooper_common::network::Policy>,
    /// A port besides 80 and 443; repeatable
    #[arg(long = "network-port", value_name = "PORT", requires = "policy",
        value_parser = clap::value_parser!(u16).range(1..))]
    pub ports: Vec<u16>,
}

impl Network {
    pub fn request(self) -> Option<NetworkPolicy> {
        use cooper_common::network::Reach;
        let (mode, domains) = match self.policy?.reach {
            Reach::None => (NetworkMode::None, Vec::new()),
            Reach::Public => (NetworkMode::Proxy, Vec::new()),
            Reach::Hosts(hosts) => (NetworkMode::Proxy, hosts.iter().map(ToString::to_string).collect()),
        };
        let ports = self.ports.into_iter().map(u32::from).collect();
        Some(NetworkPolicy { mode: mode.into(), domains, ports })
    }
}

#[derive(Debug, Args)]
pub struct SessionList {
    /// Destroyed and failed ones too
    #[arg(long)]
    pub all: bool,
    /// Only those with this label; repeatable
    #[arg(long, value_name = "NAME=VALUE", value_parser = units::pair)]
    pub label: Vec<(String, String)>,
    /// Only those in this state; repeatable
    #[arg(long, value_name = "STATE",
        value_parser = ["initializing", "ready", "checkpointing", "draining", "destroyed", "failed"])]
    pub state: Vec<String>,
    /// Only those of this worker
    #[arg(long, value_name = "WORKER")]
    pub worker: Option<String>,
}

#[derive(Debug, Args)]
pub struct SessionUpdate {
    /// Id or name
    pub session: String,
    /// Label to add or to give another value; repeatable
    #[arg(long, value_name = "NAME=VALUE", value_parser = units::pair)]
    pub label: Vec<(String, String)>,
    /// Label to remove; repeatable
    #[arg(long, value_name = "NAME")]
    pub remove_label: Vec<String>,
    /// Note to add or to replace; repeatable
    #[arg(long, value_name = "NAME=VALUE", value_parser = units::pair)]
    pub metadata: Vec<(String, String)>,
    /// Note to remove; repeatable
    #[arg(long, value_name = "NAME")]
    pub remove_metadata: Vec<String>,
    /// Time limit of executions that are submitted from now on
    #[arg(long, value_name = "DURATION", value_parser = units::duration_ms)]
    pub exec_timeout: Option<u64>,
    #[command(flatten)]
    pub limits: SessionLimits,
    /// Destroy it this long from now, or never
    #[arg(long, value_name = "DURATION", value_parser = units::lifetime_ms)]
    pub ttl: Option<u64>,
    /// Destroy it when nothing happened in it for this long, or never
    #[arg(long, value_name = "DURATION", value_parser = units::lifetime_ms)]
    pub idle_timeout: Option<u64>,
    /// Save it and free its place when nothing happened in it for this long, or never
    #[arg(long, value_name = "DURATION", value_parser = units::lifetime_ms)]
    pub hibernate_after: Option<u64>,
    #[command(flatten)]
    pub network: Network,
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
pub enum Port {
    /// Ports that the session listens on
    #[command(visible_alias = "ls")]
    List {
        /// Id or name of the session
        session: String,
    },
    /// Listen on 127.0.0.1 and carry what connects to a port of the session, until Ctrl-C
    Forward {
        /// Id or name of the session
        session: String,
        /// Port in the session, and the port here if it is another; 0 = any that is free
        #[arg(value_name = "PORT[:LOCAL]", value_parser = units::ports)]
        ports: (u16, u16),
    },
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

#[derive(Debug, Subcommand)]
pub enum Files {
    /// Copy a local file, or a directory with all beneath it, into the session's workspace
    Put {
        session: String,
        /// Local file or directory; - for standard input
        local: PathBuf,
        /// Path in the workspace; ending in / it is a directory to put it in [default: the local name]
        remote: Option<String>,
        /// Of a directory: into one that is there, where files of the same name are replaced
        #[arg(long)]
        overwrite: bool,
        /// Only if the file there has this etag or sha256 (`files stat`); "none": only if there is none
        #[arg(long, value_name = "ETAG|SHA256|none", default_value = "", hide_default_value = true)]
        if_match: String,
    },
    /// Copy a file of the session's workspace here, or a directory with all beneath it; a file's connection that breaks
    /// is made again and gone on with
    Get {
        session: String,
        remote: String,
        /// Local file or directory; - for standard output [default: its name, here]
        local: Option<PathBuf>,
        /// Of a directory: into one that is there, where files of the same name are replaced
        #[arg(long)]
        overwrite: bool,
    },
    /// Write a file of the session's workspace, or a part of it, to standard output
    Cat {
        session: String,
        path: String,
        /// First byte wanted
        #[arg(long, value_name = "BYTES", default_value_t = 0)]
        offset: u64,
        /// So many bytes [default: to the end]
        #[arg(long, value_name = "BYTES", default_value_t = 0, hide_default_value = true)]
        length: u64,
    },
    /// List a directory of the session's workspace
    Ls {
        session: String,
        path: Option<String>,
        #[command(flatten)]
        which: ListWhich,
        /// All beneath it
        #[arg(short, long)]
        recursive: bool,
    },
    /// List what matches a pattern, in a directory and all beneath it
    Find {
        session: String,
        /// `*.py`, `src/**/*.{c,h}`; without a / the name alone is matched
        glob: String,
        /// Directory to look in [default: the workspace]
        path: Option<String>,
        /// Also in directories whose name begins with a dot
        #[arg(long)]
        hidden: bool,
    },
    /// Search files for a text
    Grep {
        session: String,
        /// A regular expression (Rust's syntax)
        pattern: String,
        /// Directory or file [default: the workspace]
        path: Option<String>,
        /// The pattern is a plain text
        #[arg(short = 'F', long)]
        fixed: bool,
        #[arg(short, long)]
        ignore_case: bool,
        /// Only in files that match
        #[arg(long, default_value = "", hide_default_value = true)]
        glob: String,
        /// Also in directories whose name begins with a dot
        #[arg(long)]
        hidden: bool,
        /// Stop after so many lines
        #[arg(long, default_value_t = 1000)]
        limit: u32,
    },
    /// Replace an exact text in a file
    Edit {
        session: String,
        path: String,
        /// The text as it is there
        #[arg(long, allow_hyphen_values = true)]
        old: String,
        /// What is to be there instead
        #[arg(long, allow_hyphen_values = true)]
        new: String,
        /// How often the text must be there; all are replaced
        #[arg(long, default_value_t = 1, conflicts_with = "all")]
        count: u32,
        /// Replace it wherever it is
        #[arg(long)]
        all: bool,
        /// Only if the file has this etag or sha256
        #[arg(long, value_name = "ETAG|SHA256", default_value = "", hide_default_value = true)]
        if_match: String,
    },
    /// Show what is at a path
    Stat {
        session: String,
        path: String,
        /// Also the sha256 of a file's content
        #[arg(long)]
        sha256: bool,
        /// Follow a symbolic link
        #[arg(short = 'L', long)]
        follow: bool,
    },
    /// Move or rename a file or directory
    Mv(FromTo),
    /// Copy a file, or a directory with all beneath it, within the workspace
    Cp(FromTo),
    /// Remove a file or an empty directory
    Rm {
        session: String,
        path: String,
        /// A directory with all beneath it
        #[arg(short, long)]
        recursive: bool,
        /// It is no error when nothing is there
        #[arg(short, long)]
        force: bool,
    },
    /// Make a directory, and those above it
    Mkdir {
        session: String,
        path: String,
        /// Permission bits [default: 755]
        #[arg(long, value_parser = octal, default_value = "755", hide_default_value = true)]
        mode: u32,
    },
    /// Write a directory with all beneath it to standard output or a file, as an archive
    Tar {
        session: String,
        /// Directory to pack [default: the workspace]
        path: Option<String>,
        /// Also what is in directories whose name begins with a dot
        #[arg(long)]
        hidden: bool,
        /// [default: what the name of the file ends in, or tar]
        #[arg(long, value_parser = ["tar", "tar.gz", "zip"])]
        format: Option<String>,
        /// Write it there; it is there whole or not at all
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Unpack a tar, tar.gz or zip from standard input or a file beneath a directory
    Untar {
        session: String,
        /// Directory to unpack in; made when it is not there [default: the workspace]
        path: Option<String>,
        /// [default: what it is by its first bytes]
        #[arg(long, value_parser = ["tar", "tar.gz", "zip"])]
        format: Option<String>,
        /// Read it from there
        #[arg(short = 'i', long = "input", value_name = "FILE")]
        input: Option<PathBuf>,
    },
    /// Set the permission bits of a file or directory
    Chmod {
        session: String,
        /// e.g. 755
        #[arg(value_parser = octal)]
        mode: u32,
        path: String,
    },
}

#[derive(Debug, Args)]
pub struct ListWhich {
    /// Only what matches, e.g. `*.py`
    #[arg(long, default_value = "", hide_default_value = true)]
    pub glob: String,
    /// With --recursive: also what is in directories whose name begins with a dot
    #[arg(long)]
    pub hidden: bool,
    /// At most this many
    #[arg(long, default_value_t = 10_000)]
    pub limit: u32,
    /// Go on behind this: `next_cursor` of the list before
    #[arg(long, default_value = "", hide_default_value = true)]
    pub cursor: String,
}

#[derive(Debug, Args)]
pub struct FromTo {
    pub session: String,
    pub from: String,
    /// The path afterwards; ending in / it is a directory to put it in
    pub to: String,
    /// Replace the file that is there
    #[arg(long)]
    pub overwrite: bool,
}

fn octal(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("permission bits are octal, from 0 to 777".to_owned()),
    }
}

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
    /// Follow a run to its end
    Watch(RunRef),
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
    /// Revoke a token
    Revoke { token: String },
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
