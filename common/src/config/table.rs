//! The table of settings: data, not code. A new setting is a row here and nothing else.

use crate::limits::{artifact, audit, checkpoint, exec, link, model, request, run, store, token, zygote};

/// What a process is. Each role has its own settings; all roles may share one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A user's command.
    Client,
    /// `cooper up`.
    Up,
    Coordinator,
    Worker,
}

impl Role {
    pub const ALL: [Role; 4] = [Role::Client, Role::Up, Role::Coordinator, Role::Worker];
    pub const fn as_str(self) -> &'static str {
        match self {
            Role::Client => "client",
            Role::Up => "up",
            Role::Coordinator => "coordinator",
            Role::Worker => "worker",
        }
    }
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == text)
    }
}

/// What texts a setting takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    /// `[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}`
    Name,
    /// Made absolute: against the working directory, or against the file that sets it.
    Path,
    /// Commands looked up in PATH, or paths, with commas between them.
    Programs,
    /// `IP:PORT`, or `localhost:PORT`.
    Address,
    /// `host:port` or an `http(s)://` URL.
    Url,
    /// An `http(s)://` URL with a path.
    WebUrl,
    Integer {
        min: u64,
        max: u64,
    },
    /// `error warn info debug trace off`, or a tracing filter.
    LogLevel,
    Choice(&'static [&'static str]),
    /// `name=value,…`; a table in the file.
    Pairs,
    /// `name=directory,…`; a table in the file. Directories are made absolute.
    Dirs,
    /// From the environment only, never printed.
    Secret,
}

/// The value when nobody gives one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Default {
    Text(&'static str),
    /// For integers.
    Number(u64),
    /// A path inside the data directory.
    InData(&'static str),
    /// From cores and memory of this machine.
    SessionsOfThisMachine,
    None,
}

/// One row.
#[derive(Debug, PartialEq, Eq)]
pub struct Setting {
    /// Key in the file; with `-` for `_` the flag.
    pub key: &'static str,
    /// Environment variables, the first one set wins.
    pub env: &'static [&'static str],
    /// A variable that replaces only the port of this address.
    pub port_env: Option<&'static str>,
    pub roles: &'static [Role],
    pub kind: Kind,
    pub default: Default,
    /// One sentence.
    pub doc: &'static str,
}

impl Setting {
    pub fn belongs_to(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }
}

const EVERY: &[Role] = &Role::ALL;
const SERVERS: &[Role] = &[Role::Up, Role::Coordinator, Role::Worker];
const COORDINATORS: &[Role] = &[Role::Up, Role::Coordinator];
const WORKERS: &[Role] = &[Role::Up, Role::Worker];
const WORKER: &[Role] = &[Role::Worker];
const CLIENT: &[Role] = &[Role::Client];

const BLANK: Setting = Setting {
    key: "",
    env: &[],
    port_env: None,
    roles: EVERY,
    kind: Kind::Text,
    default: Default::None,
    doc: "",
};

/// Every setting of Cooper.
pub const SETTINGS: &[Setting] = &[
    Setting {
        key: "data",
        env: &["COOPER_DATA"],
        kind: Kind::Path,
        default: Default::Text(".cooper"),
        doc: "Directory for everything that Cooper keeps.",
        ..BLANK
    },
    Setting {
        key: "listen",
        env: &["COOPER_LISTEN"],
        port_env: Some("GRPC_PORT"),
        roles: COORDINATORS,
        kind: Kind::Address,
        default: Default::Text("127.0.0.1:50051"),
        doc: "Address the coordinator listens on; GRPC_PORT replaces its port.",
    },
    Setting {
        key: "insecure_listen",
        env: &["COOPER_INSECURE_LISTEN"],
        roles: COORDINATORS,
        kind: Kind::Choice(&["on", "off"]),
        default: Default::Text("off"),
        doc: "on: listen beyond this machine without TLS, where something else protects what is sent, tokens included.",
        ..BLANK
    },
    Setting {
        key: "tls_cert",
        env: &["COOPER_TLS_CERT"],
        roles: COORDINATORS,
        kind: Kind::Path,
        doc: "Certificate of the coordinator, with its chain, as PEM: the port then speaks TLS only.",
        ..BLANK
    },
    Setting {
        key: "tls_key",
        env: &["COOPER_TLS_KEY"],
        roles: COORDINATORS,
        kind: Kind::Path,
        doc: "Key of that certificate, as PEM.",
        ..BLANK
    },
    Setting {
        key: "tls_client_ca",
        env: &["COOPER_TLS_CLIENT_CA"],
        roles: COORDINATORS,
        kind: Kind::Path,
        doc: "Authorities, as PEM, of which each worker has to show a certificate; without it a token is enough.",
        ..BLANK
    },
    Setting {
        key: "tls_worker_name",
        env: &["COOPER_TLS_WORKER_NAME"],
        roles: SERVERS,
        kind: Kind::Name,
        default: Default::Text("cooper-worker"),
        doc: "Server name that workers with a certificate ask for, and under which alone one is demanded; the \
              coordinator's certificate has to be good for it.",
        ..BLANK
    },
    Setting {
        key: "tls_ca",
        env: &["COOPER_TLS_CA"],
        kind: Kind::Path,
        doc: "Authorities, as PEM, by which an https:// coordinator is recognised; without it those of the system.",
        ..BLANK
    },
    Setting {
        key: "tls_client_cert",
        env: &["COOPER_TLS_CLIENT_CERT"],
        roles: WORKERS,
        kind: Kind::Path,
        doc: "Certificate that the worker shows to the coordinator, as PEM.",
        ..BLANK
    },
    Setting {
        key: "tls_client_key",
        env: &["COOPER_TLS_CLIENT_KEY"],
        roles: WORKERS,
        kind: Kind::Path,
        doc: "Key of that certificate, as PEM.",
        ..BLANK
    },
    Setting {
        key: "allowed_hosts",
        env: &["COOPER_ALLOWED_HOSTS"],
        roles: COORDINATORS,
        kind: Kind::Text,
        doc: "Hosts that requests may name besides localhost and addresses, with commas between them; *: any. Without it \
              any, but none where the port is this machine's alone and without TLS: a page in a browser could come that way.",
        ..BLANK
    },
    Setting {
        key: "token_requests",
        env: &["COOPER_TOKEN_REQUESTS"],
        roles: COORDINATORS,
        kind: Kind::Integer { min: 0, max: 10_000_000 },
        default: Default::Number(token::REQUESTS_PER_S),
        doc: "Requests of one token in a second, workers' not counted; 0: as many as come.",
        ..BLANK
    },
    Setting {
        key: "token_concurrent",
        env: &["COOPER_TOKEN_CONCURRENT"],
        roles: COORDINATORS,
        kind: Kind::Integer { min: 0, max: 10_000_000 },
        default: Default::Number(token::CONCURRENT),
        doc: "Requests and streams of one token at once, workers' not counted; 0: as many as come.",
        ..BLANK
    },
    Setting {
        key: "log_level",
        env: &["LOG_LEVEL"],
        roles: SERVERS,
        kind: Kind::LogLevel,
        default: Default::Text("info"),
        doc: "How much is logged: error, warn, info, debug, trace, off or a tracing filter.",
        ..BLANK
    },
    Setting {
        key: "url",
        env: &["COOPER_URL"],
        roles: CLIENT,
        kind: Kind::Url,
        doc: "Coordinator that commands talk to; without it the data directory's `endpoint` says so.",
        ..BLANK
    },
    Setting {
        key: "token",
        env: &["COOPER_TOKEN"],
        roles: CLIENT,
        kind: Kind::Secret,
        doc: "Token that commands use.",
        ..BLANK
    },
    Setting {
        key: "token_file",
        env: &["COOPER_TOKEN_FILE"],
        roles: CLIENT,
        kind: Kind::Path,
        doc: "File with the token that commands use; without it the data directory's `admin.token`.",
        ..BLANK
    },
    Setting {
        key: "coordinator_addr",
        env: &["COORDINATOR_ADDR"],
        roles: WORKER,
        kind: Kind::Url,
        default: Default::Text("127.0.0.1:50051"),
        doc: "Coordinator that the worker dials: host:port or URL.",
        ..BLANK
    },
    Setting {
        key: "join_token",
        env: &["COOPER_JOIN_TOKEN"],
        roles: WORKER,
        kind: Kind::Secret,
        doc: "Token that the worker joins with.",
        ..BLANK
    },
    Setting {
        key: "join_token_file",
        env: &["COOPER_JOIN_TOKEN_FILE"],
        roles: WORKER,
        kind: Kind::Path,
        default: Default::InData("worker.token"),
        doc: "File with the token that the worker joins with.",
        ..BLANK
    },
    Setting {
        key: "worker_id",
        env: &["WORKER_ID"],
        roles: WORKERS,
        kind: Kind::Name,
        doc: "Stable id of the worker; without it one is made at the first start and kept in the data directory.",
        ..BLANK
    },
    Setting {
        key: "slots",
        env: &["COOPER_SLOTS"],
        roles: WORKER,
        kind: Kind::Path,
        doc: "Directory that replicas of this worker share: each takes the first of worker-1, worker-2, … in it that no other \
              holds, for everything it keeps; its id is then worker_id-NUMBER, its workspaces lie in base_workspace/worker-NUMBER.",
        ..BLANK
    },
    Setting {
        key: "max_sessions",
        env: &["MAX_SESSIONS"],
        roles: WORKERS,
        kind: Kind::Integer { min: 0, max: 10_000 },
        default: Default::SessionsOfThisMachine,
        doc: "Sessions the worker holds at most.",
        ..BLANK
    },
    Setting {
        key: "base_workspace",
        env: &["BASE_WORKSPACE"],
        roles: WORKERS,
        kind: Kind::Path,
        default: Default::InData("worker/sessions"),
        doc: "Directory for the workspaces of sessions.",
        ..BLANK
    },
    Setting {
        key: "python",
        env: &["COOPER_PYTHON"],
        roles: WORKERS,
        kind: Kind::Programs,
        doc: "Pythons that sessions can run on, with commas between them; the first is for sessions that name none. \
              Without it python3 from PATH; auto: that, and every python3.N of PATH that works.",
        ..BLANK
    },
    Setting {
        key: "session_uids",
        env: &["COOPER_SESSION_UIDS"],
        roles: WORKERS,
        kind: Kind::Text,
        doc: "Uids for the sessions of a worker that runs as root, FIRST-LAST; without it a range that nobody else uses.",
        ..BLANK
    },
    Setting {
        key: "preload",
        env: &["COOPER_PRELOAD"],
        roles: WORKERS,
        kind: Kind::Choice(&["bare", "stdlib", "science", "off"]),
        default: Default::Text("stdlib"),
        doc: "What interpreters have imported before a session gets them: nothing, common standard modules, also numpy, \
              pandas and matplotlib of the layer; off: every interpreter is started anew.",
        ..BLANK
    },
    Setting {
        key: "layer",
        env: &["COOPER_LAYER"],
        roles: WORKERS,
        kind: Kind::Path,
        doc: "Directory of packages (as made by pip install --target) that every session finds; sessions must not be \
              able to write there.",
        ..BLANK
    },
    Setting {
        key: "pool_low",
        env: &["COOPER_POOL_LOW"],
        roles: WORKERS,
        kind: Kind::Integer { min: 0, max: zygote::POOL_MAX as u64 },
        default: Default::Number(zygote::POOL_LOW as u64),
        doc: "Places with an interpreter that wait for sessions: below this number they are made at once.",
        ..BLANK
    },
    Setting {
        key: "pool_high",
        env: &["COOPER_POOL_HIGH"],
        roles: WORKERS,
        kind: Kind::Integer { min: 0, max: zygote::POOL_MAX as u64 },
        default: Default::Number(zygote::POOL_HIGH as u64),
        doc: "Up to this number they are made while no session is being made.",
        ..BLANK
    },
    Setting {
        key: "min_tier",
        env: &["COOPER_MIN_TIER"],
        roles: WORKERS,
        kind: Kind::Choice(&["unconfined", "T0", "T1", "T2", "T3"]),
        default: Default::Text("T0"),
        doc: "Lowest isolation tier at which the worker takes sessions; unconfined takes them wherever it runs.",
        ..BLANK
    },
    Setting {
        key: "mask_facilities",
        env: &["COOPER_MASK_FACILITIES"],
        roles: WORKERS,
        kind: Kind::Text,
        doc: "Isolation facilities to do without, for tests: some of uid, namespaces, cgroup, seccomp, network, filter, landlock, landlock:N.",
        ..BLANK
    },
    Setting {
        key: "ports",
        env: &["COOPER_PORTS"],
        roles: WORKERS,
        kind: Kind::Choice(&["auto", "on", "off"]),
        default: Default::Text("auto"),
        doc: "auto: sessions may listen where nobody else gets to what they listen on (facility filter); on: also where every process in the worker's network namespace does, meant for a worker alone in its container; off: never.",
        ..BLANK
    },
    Setting {
        key: "stacks",
        env: &["COOPER_STACKS"],
        roles: WORKERS,
        kind: Kind::Dirs,
        doc: "Compose stacks the worker may repair, name=directory,…; the first is the default.",
        ..BLANK
    },
    Setting {
        key: "compose",
        env: &["COOPER_COMPOSE"],
        roles: WORKERS,
        kind: Kind::Choice(&["auto", "off"]),
        default: Default::Text("auto"),
        doc: "auto: offer compose when Docker answers; off: never.",
        ..BLANK
    },
    Setting {
        key: "labels",
        env: &["COOPER_LABELS"],
        roles: WORKERS,
        kind: Kind::Pairs,
        doc: "Labels of the worker, name=value,….",
        ..BLANK
    },
    Setting {
        key: "health_port",
        env: &["COOPER_HEALTH_PORT", "GRPC_PORT"],
        roles: WORKER,
        kind: Kind::Integer { min: 1, max: 65_535 },
        doc: "Loopback port where the worker answers /health and /metrics; without it there is none.",
        ..BLANK
    },
    // Times of the link. What has to hold among them: `timing.rs`.
    Setting {
        roles: COORDINATORS,
        default: Default::Number(link::HEARTBEAT_MIN_MS),
        doc: "Milliseconds between heartbeats of a worker; half of it + 5 for each worker when that is more, but at most a third of the lease.",
        ..time("heartbeat_ms", &["COOPER_HEARTBEAT_MS"])
    },
    Setting {
        key: "suspect_beats",
        env: &["COOPER_SUSPECT_BEATS"],
        roles: COORDINATORS,
        kind: Kind::Integer { min: 1, max: 1000 },
        default: Default::Number(link::SUSPECT_BEATS),
        doc: "Heartbeats missed after which a worker gets no new work.",
        ..BLANK
    },
    Setting {
        roles: COORDINATORS,
        default: Default::Number(link::LEASE_MS),
        doc: "Milliseconds without an answer to a heartbeat after which a worker attaches again.",
        ..time("lease_ms", &["COOPER_LEASE_MS"])
    },
    Setting {
        roles: COORDINATORS,
        default: Default::Number(link::LOST_MS),
        doc: "Milliseconds of silence after which a worker is lost and its attempts are given up.",
        ..time("lost_ms", &["COOPER_LOST_MS"])
    },
    Setting {
        roles: COORDINATORS,
        default: Default::Number(link::REATTACH_GRACE_MS),
        doc: "Milliseconds after a coordinator's start during which no worker is judged.",
        ..time("reattach_grace_ms", &["COOPER_REATTACH_GRACE_MS"])
    },
    Setting {
        roles: COORDINATORS,
        default: Default::Number(link::TICK_MS),
        doc: "Milliseconds between looks at the clock: silence, leases, approvals.",
        ..time("tick_ms", &["COOPER_TICK_MS"])
    },
    Setting {
        roles: SERVERS,
        default: Default::Number(link::KEEPALIVE_MS),
        doc: "Milliseconds between pings of an idle connection, and until one unanswered ends it.",
        ..time("keepalive_ms", &["COOPER_KEEPALIVE_MS"])
    },
    Setting {
        roles: WORKERS,
        default: Default::Number(link::RECONNECT_BASE_MS),
        doc: "First wait of a worker before it dials again, doubled each time, with full jitter, in milliseconds.",
        ..time("reconnect_base_ms", &["COOPER_RECONNECT_BASE_MS"])
    },
    Setting {
        roles: WORKERS,
        default: Default::Number(link::RECONNECT_CAP_MS),
        doc: "Longest wait of a worker before it dials again, in milliseconds.",
        ..time("reconnect_cap_ms", &["COOPER_RECONNECT_CAP_MS"])
    },
    Setting {
        roles: WORKER,
        default: Default::Number(link::DRAIN_MS),
        doc: "Milliseconds that executions may go on after SIGTERM or Ctrl-C; the second signal ends them at once.",
        ..time("drain_ms", &["COOPER_DRAIN_MS"])
    },
    Setting {
        key: "drain_checkpoint",
        env: &["COOPER_DRAIN_CHECKPOINT"],
        roles: WORKER,
        kind: Kind::Choice(&["on", "off"]),
        default: Default::Text("off"),
        doc: "on: after SIGTERM or Ctrl-C sessions are saved and go on on other workers, within drain_ms.",
        ..BLANK
    },
    Setting {
        roles: WORKERS,
        default: Default::Number(link::DETACH_MAX_MS),
        doc: "Milliseconds beyond its lease after which a worker without a coordinator ends steps that run.",
        ..time("detach_max_ms", &["COOPER_DETACH_MAX_MS"])
    },
    // What stays of what has ended, and the space left for what goes on.
    Setting {
        key: "keep_tasks",
        env: &["COOPER_KEEP_TASKS"],
        roles: COORDINATORS,
        kind: Kind::Integer { min: 1, max: 100_000_000 },
        default: Default::Number(store::ENDED_TASKS_KEPT_MAX),
        doc: "Ended tasks kept, with their output; the oldest go.",
        ..BLANK
    },
    Setting {
        key: "keep_runs",
        env: &["COOPER_KEEP_RUNS"],
        roles: COORDINATORS,
        kind: Kind::Integer { min: 1, max: 10_000_000 },
        default: Default::Number(store::ENDED_RUNS_KEPT_MAX),
        doc: "Ended runs kept, with their artifacts; the oldest go.",
        ..BLANK
    },
    Setting {
        key: "keep_events",
        env: &["COOPER_KEEP_EVENTS"],
        roles: COORDINATORS,
        kind: Kind::Integer { min: 1, max: 1_000_000_000 },
        default: Default::Number(store::EVENTS_KEPT_MAX),
        doc: "Events kept; the oldest go.",
        ..BLANK
    },
    Setting {
        key: "keep_audit",
        env: &["COOPER_KEEP_AUDIT"],
        roles: COORDINATORS,
        kind: Kind::Integer { min: 1_000, max: 1_000_000_000 },
        default: Default::Number(audit::ROWS_KEPT_MAX),
        doc: "Rows of the audit trail kept; the oldest go.",
        ..BLANK
    },
    Setting {
        key: "keep_output_mib",
        env: &["COOPER_KEEP_OUTPUT_MIB"],
        roles: COORDINATORS,
        kind: Kind::Integer { min: 1, max: 1_073_741_824 },
        default: Default::Number(store::OUTPUT_KEPT_MIB),
        doc: "Output of tasks kept, in MiB; beyond that the oldest ended tasks go.",
        ..BLANK
    },
    Setting {
        key: "keep_days",
        env: &["COOPER_KEEP_DAYS"],
        roles: COORDINATORS,
        kind: Kind::Integer { min: 0, max: 36_500 },
        default: Default::Number(0),
        doc: "Days that ended tasks, runs and events are kept at most; 0: however old.",
        ..BLANK
    },
    Setting {
        key: "keep_free_mib",
        env: &["COOPER_KEEP_FREE_MIB"],
        roles: COORDINATORS,
        kind: Kind::Integer { min: 0, max: 1_073_741_824 },
        default: Default::Number(store::FREE_MIB_MIN),
        doc: "Free space on the data directory's disk, in MiB, below which nothing new is taken in; 0: none.",
        ..BLANK
    },
    Setting {
        key: "quota_sessions",
        env: &["COOPER_QUOTA_SESSIONS"],
        roles: COORDINATORS,
        kind: Kind::Integer { min: 0, max: 1_000_000 },
        default: Default::Number(0),
        doc: "Live sessions of one tenant at most; 0: as many as there is room for.",
        ..BLANK
    },
    Setting {
        key: "quota_memory_mib",
        env: &["COOPER_QUOTA_MEMORY_MIB"],
        roles: COORDINATORS,
        kind: Kind::Integer { min: 0, max: 1_073_741_824 },
        default: Default::Number(0),
        doc: "Sum of the memory limits of one tenant's live sessions, in MiB; one that names no limit counts with the default's 2048. 0: no quota.",
        ..BLANK
    },
    Setting {
        key: "quota_disk_mib",
        env: &["COOPER_QUOTA_DISK_MIB"],
        roles: COORDINATORS,
        kind: Kind::Integer { min: 0, max: 1_073_741_824 },
        default: Default::Number(0),
        doc: "Sum of the disk limits of one tenant's live sessions, in MiB; one that names no limit counts with the default's 4096. 0: no quota.",
        ..BLANK
    },
    Setting {
        key: "network",
        env: &["COOPER_NETWORK"],
        roles: COORDINATORS,
        kind: Kind::Text,
        default: Default::Text("none"),
        doc: "What sessions reach that do not say so: none, public, or hosts with commas between them.",
        ..BLANK
    },
    Setting {
        key: "session_memory_mib",
        env: &["COOPER_SESSION_MEMORY_MIB"],
        roles: COORDINATORS,
        kind: Kind::Integer { min: exec::MEMORY_BYTES_MIN >> 20, max: 1 << 20 },
        default: Default::Number(exec::MEMORY_BYTES >> 20),
        doc: "Memory in MiB of sessions that do not say how much they may have.",
        ..BLANK
    },
    Setting {
        key: "hibernate_after_ms",
        env: &["COOPER_HIBERNATE_AFTER_MS"],
        roles: COORDINATORS,
        kind: Kind::Integer { min: 0, max: request::SESSION_TTL_MS_MAX },
        default: Default::Number(0),
        doc: "Milliseconds without work after which sessions that do not say so hibernate; 0 = never.",
        ..BLANK
    },
    Setting {
        key: "egress_allow",
        env: &["COOPER_EGRESS_ALLOW"],
        roles: WORKERS,
        kind: Kind::Text,
        doc: "Private hosts that policies may reach all the same, host or host:port with commas between them.",
        ..BLANK
    },
    Setting {
        key: "egress_index",
        env: &["COOPER_EGRESS_INDEX"],
        roles: WORKERS,
        kind: Kind::Text,
        default: Default::Text("auto"),
        doc: "Hosts of packages, for every session: auto for those of the worker's pip and uv settings, off for none, or host:port with commas between them besides those.",
        ..BLANK
    },
    Setting {
        key: "egress_hosts",
        env: &["COOPER_EGRESS_HOSTS"],
        roles: WORKERS,
        kind: Kind::Pairs,
        doc: "Addresses of names that the egress proxy does not ask the DNS for, name=address,….",
        ..BLANK
    },
    Setting {
        key: "quota_checkpoints",
        env: &["COOPER_QUOTA_CHECKPOINTS"],
        roles: COORDINATORS,
        kind: Kind::Integer { min: 0, max: 1_000_000 },
        default: Default::Number(checkpoint::PER_TENANT_MAX),
        doc: "Checkpoints that one tenant keeps at most.",
        ..BLANK
    },
    Setting {
        key: "quota_checkpoint_mib",
        env: &["COOPER_QUOTA_CHECKPOINT_MIB"],
        roles: COORDINATORS,
        kind: Kind::Integer { min: 0, max: 1 << 30 },
        default: Default::Number(checkpoint::MIB_PER_TENANT_MAX),
        doc: "Archives of one tenant's checkpoints together, in MiB.",
        ..BLANK
    },
    Setting {
        key: "keep_checkpoint_days",
        env: &["COOPER_KEEP_CHECKPOINT_DAYS"],
        roles: COORDINATORS,
        kind: Kind::Integer { min: 0, max: 36_500 },
        default: Default::Number(0),
        doc: "Days that checkpoints are kept at most; 0: until they are deleted.",
        ..BLANK
    },
    Setting {
        key: "quota_artifacts",
        env: &["COOPER_QUOTA_ARTIFACTS"],
        roles: COORDINATORS,
        kind: Kind::Integer { min: 0, max: 1_000_000 },
        default: Default::Number(artifact::PER_TENANT_MAX),
        doc: "Artifacts of sessions that one tenant keeps at most.",
        ..BLANK
    },
    Setting {
        key: "rules_dir",
        env: &["COOPER_RULES_DIR"],
        roles: COORDINATORS,
        kind: Kind::Path,
        doc: "Directory with rules of your own (*.toml) for diagnosing services, beside those that come with Cooper.",
        ..BLANK
    },
    Setting {
        key: "policy_file",
        env: &["COOPER_POLICY_FILE"],
        roles: COORDINATORS,
        kind: Kind::Path,
        doc: "File (TOML) that forbids repairs, or asks for approvals, whatever stacks say themselves; it can only tighten.",
        ..BLANK
    },
    Setting {
        key: "approval_ttl_ms",
        env: &["COOPER_APPROVAL_TTL_MS"],
        roles: COORDINATORS,
        kind: Kind::Integer { min: 1_000, max: run::APPROVAL_TTL_MS_MAX },
        default: Default::Number(run::APPROVAL_TTL_MS),
        doc: "Milliseconds that a run waits for its approval; x-cooper.approval_ttl of a stack may say less.",
        ..BLANK
    },
    Setting {
        key: "auto_repair_cooldown_ms",
        env: &["COOPER_AUTO_REPAIR_COOLDOWN_MS"],
        roles: COORDINATORS,
        kind: Kind::Integer { min: 1_000, max: run::AUTOMATIC_COOLDOWN_MS_MAX },
        default: Default::Number(run::AUTOMATIC_COOLDOWN_MS),
        doc: "Milliseconds after a repair that started by itself until the same service may be repaired by itself again; doubles with each that came to nothing.",
        ..BLANK
    },
    Setting {
        key: "auto_repair_per_day",
        env: &["COOPER_AUTO_REPAIR_PER_DAY"],
        roles: COORDINATORS,
        kind: Kind::Integer { min: 1, max: run::AUTOMATIC_PER_DAY_MAX },
        default: Default::Number(run::AUTOMATIC_PER_DAY),
        doc: "Repairs of one stack that may start by themselves within 24 hours.",
        ..BLANK
    },
    Setting {
        key: "notify_url",
        env: &["COOPER_NOTIFY_URL"],
        roles: COORDINATORS,
        kind: Kind::WebUrl,
        doc: "URL that is told (POST, signed) when a plan waits for an approval, when nobody decided in time, and when a rollback failed.",
        ..BLANK
    },
    Setting {
        key: "notify_secret",
        env: &["COOPER_NOTIFY_SECRET"],
        roles: COORDINATORS,
        kind: Kind::Secret,
        doc: "Secret that notifications are signed with.",
        ..BLANK
    },
    Setting {
        key: "notify_secret_file",
        env: &["COOPER_NOTIFY_SECRET_FILE"],
        roles: COORDINATORS,
        kind: Kind::Path,
        doc: "File with the secret that notifications are signed with.",
        ..BLANK
    },
    Setting {
        key: "llm_url",
        env: &["COOPER_LLM_URL"],
        roles: COORDINATORS,
        kind: Kind::WebUrl,
        doc: "Base URL of a server that speaks the OpenAI chat protocol (`…/v1`): a language model is then asked where no rule explains a failing service. Redacted logs and build files go there.",
        ..BLANK
    },
    Setting {
        key: "llm_model",
        env: &["COOPER_LLM_MODEL"],
        roles: COORDINATORS,
        default: Default::Text("default"),
        doc: "Name of the model, as its server knows it.",
        ..BLANK
    },
    Setting {
        key: "llm_api_key",
        env: &["COOPER_LLM_API_KEY"],
        roles: COORDINATORS,
        kind: Kind::Secret,
        doc: "Key for the model's server.",
        ..BLANK
    },
    Setting {
        key: "llm_api_key_file",
        env: &["COOPER_LLM_API_KEY_FILE"],
        roles: COORDINATORS,
        kind: Kind::Path,
        doc: "File with the key for the model's server.",
        ..BLANK
    },
    Setting {
        key: "llm_timeout_ms",
        env: &["COOPER_LLM_TIMEOUT_MS"],
        roles: COORDINATORS,
        kind: Kind::Integer { min: 100, max: 600_000 },
        default: Default::Number(model::TIMEOUT_MS),
        doc: "Time in milliseconds that a model has for its answer.",
        ..BLANK
    },
    Setting {
        key: "llm_tokens_per_day",
        env: &["COOPER_LLM_TOKENS_PER_DAY"],
        roles: COORDINATORS,
        kind: Kind::Integer { min: 0, max: 1_000_000_000 },
        default: Default::Number(model::TOKENS_PER_DAY),
        doc: "Tokens that questions and answers may take in one day (UTC); beyond that no model is asked.",
        ..BLANK
    },
    Setting {
        key: "llm_approval",
        env: &["COOPER_LLM_APPROVAL"],
        roles: COORDINATORS,
        kind: Kind::Choice(&["always", "policy"]),
        default: Default::Text("always"),
        doc: "Whether a model's proposal always waits for an approval, or only where policy asks for one.",
        ..BLANK
    },
    Setting {
        key: "mcp_compat",
        env: &["COOPER_MCP_COMPAT"],
        roles: COORDINATORS,
        kind: Kind::Choice(&["none", "codegen"]),
        default: Default::Text("none"),
        doc: "codegen: MCP also has the tools of CodeGen-MCP by their names, such as fs.read and run.python.",
        ..BLANK
    },
    Setting {
        key: "quota_artifact_mib",
        env: &["COOPER_QUOTA_ARTIFACT_MIB"],
        roles: COORDINATORS,
        kind: Kind::Integer { min: 0, max: 1 << 30 },
        default: Default::Number(artifact::MIB_PER_TENANT_MAX),
        doc: "Artifacts of one tenant's sessions together, in MiB.",
        ..BLANK
    },
    Setting {
        key: "keep_artifact_days",
        env: &["COOPER_KEEP_ARTIFACT_DAYS"],
        roles: COORDINATORS,
        kind: Kind::Integer { min: 0, max: 36_500 },
        default: Default::Number(artifact::DAYS),
        doc: "Days that artifacts of sessions are kept at most; 0: until they are deleted.",
        ..BLANK
    },
];

/// A time in milliseconds, up to a day.
const fn time(key: &'static str, env: &'static [&'static str]) -> Setting {
    Setting { key, env, kind: Kind::Integer { min: 1, max: 86_400_000 }, ..BLANK }
}

/// The row of a key that is known to exist.
pub fn setting(key: &str) -> &'static Setting {
    SETTINGS.iter().find(|setting| setting.key == key).unwrap_or(&SETTINGS[0])
}
