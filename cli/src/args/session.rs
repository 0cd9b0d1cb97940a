//! Arguments about sessions, and what they are made of and leave behind.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use cooper_proto::v1::{NetworkMode, NetworkPolicy};

use crate::units;

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

/// A limit, named as its flag is.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum LimitName {
    ExecTimeout,
    Memory,
    Processes,
    Cpu,
    Disk,
    Inodes,
}

impl LimitName {
    /// The field of cooper.v1.Limits.
    pub fn field(self) -> String {
        let field = match self {
            Self::ExecTimeout => "exec_timeout_ms",
            Self::Memory => "memory_bytes",
            Self::Processes => "processes_max",
            Self::Cpu => "cpu_millis",
            Self::Disk => "disk_bytes",
            Self::Inodes => "inodes_max",
        };
        field.to_owned()
    }
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
    /// When nothing happened in it for this long, save it and free its place; the next use brings it back; or
    /// never [default: as the coordinator's setting hibernate_after_ms says]
    #[arg(long, value_name = "DURATION", value_parser = units::lifetime_ms)]
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
    /// Limit that gets its default back; repeatable
    #[arg(long, value_name = "LIMIT", value_enum)]
    pub reset: Vec<LimitName>,
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
