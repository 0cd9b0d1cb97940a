//! Tools for sessions and their checkpoints.

use std::collections::BTreeMap;

use cooper_common::{error::Result, limits};
use cooper_proto::v1;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    call::{Call, said},
    files::page,
    tool::{ADDS, READS, REPLACES, Reply, SETS, Tool},
};

pub fn tools() -> Vec<Tool> {
    vec![
        Tool::new(
            "session_create",
            ADDS,
            "Create a session of its own: an isolated Python environment with a workspace. Only needed for more than \
             one session, for limits, network access or packages from the start, or where the connection has no session of \
             its own. Give its `id` as `session_id` from then on.",
            create,
        ),
        Tool::new("session_list", READS, "List sessions, newest first.", list),
        Tool::new(
            "session_info",
            READS,
            "How a session is: its state, limits, times and what it may reach. Without `session_id`: the connection's own.",
            info,
        ),
        Tool::new(
            "session_extend",
            SETS,
            "Change when a session ends: how long it lives from now on, or how long it may idle.",
            extend,
        ),
        Tool::new(
            "session_destroy",
            REPLACES,
            "End a session and delete its files and variables. Artifacts and checkpoints are kept. After destroying \
             the connection's own session the next call begins with a new, empty one.",
            destroy,
        ),
        Tool::new(
            "checkpoint_create",
            ADDS,
            "Save a session: its files and packages, and with `variables` its Python variables too. It can be \
             restored later, as often as wanted, also after the session has ended.",
            save,
        ),
        Tool::new("checkpoint_list", READS, "List checkpoints, newest first.", saved),
        Tool::new(
            "checkpoint_restore",
            ADDS,
            "Create a new session from a checkpoint: the files, packages and variables that were saved. Give its `id` \
             as `session_id` from then on.",
            restore,
        ),
        Tool::new(
            "checkpoint_delete",
            REPLACES,
            "Delete a checkpoint. Sessions that were made from it go on.",
            forget,
        ),
    ]
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Create {
    /// A name that can be given as `session_id`: [a-z0-9][a-z0-9-]{0,62}.
    name: Option<String>,
    /// Begin with a template: "name" or "name@2".
    template: Option<String>,
    /// Version of Python, e.g. "3.12".
    python_version: Option<String>,
    /// Requirements to install first, e.g. "pandas>=2".
    packages: Vec<String>,
    /// Environment variables.
    env: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
    /// Names of secrets that it is given as files in the directory COOPER_SECRETS.
    secrets: Vec<String>,
    network: Option<Network>,
    limits: Limits,
    /// It is destroyed so long after its creation; 0 or nothing = never.
    ttl_ms: Option<u64>,
    /// It is destroyed when it was not used for so long; 0 or nothing = never.
    idle_timeout_ms: Option<u64>,
    /// How long to wait for a worker with room; 30000 by default.
    wait_ms: Option<u64>,
    /// Creating again with the same key answers with the same session.
    idempotency_key: Option<String>,
}

/// What it may reach.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Network {
    mode: Mode,
    /// With `proxy`: "api.example.com" or "*.example.com"; none = the public internet.
    #[serde(default)]
    domains: Vec<String>,
    /// Ports besides 80 and 443.
    #[serde(default)]
    ports: Vec<u32>,
}

#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Mode {
    None,
    Proxy,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Limits {
    /// Of the session as a whole.
    memory_mib: Option<u64>,
    /// In thousandths of one processor.
    cpu_millis: Option<u32>,
    /// Of its files, packages included.
    disk_mib: Option<u64>,
    processes_max: Option<u32>,
    /// Of one execution.
    exec_timeout_ms: Option<u64>,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct List {
    /// Only sessions that have all of these labels.
    labels: BTreeMap<String, String>,
    /// Also those that have ended.
    all: bool,
    /// At most so many; 50 by default, at most 1000.
    limit: Option<u32>,
    /// `next_cursor` of the answer before.
    cursor: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Named {
    /// Id or name of a session; without it, the connection's own.
    session_id: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Extend {
    /// Id or name of a session; without it, the connection's own.
    session_id: Option<String>,
    /// It is destroyed so long from now; 0 = never.
    ttl_ms: Option<u64>,
    /// It is destroyed when it was not used for so long; 0 = never.
    idle_timeout_ms: Option<u64>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Save {
    /// Id or name of a session; without it, the connection's own.
    session_id: Option<String>,
    /// For people: [a-z0-9][a-z0-9-]{0,62}.
    name: Option<String>,
    /// Also Python's variables, as far as they can be pickled.
    #[serde(default)]
    variables: bool,
    /// How long to wait for what runs; 50000 by default.
    wait_ms: Option<u64>,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Saved {
    /// Only those of this session, which may have ended.
    session_id: Option<String>,
    /// At most so many; 50 by default, at most 1000.
    limit: Option<u32>,
    /// `next_cursor` of the answer before.
    cursor: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Restore {
    checkpoint_id: String,
    /// A name for the new session.
    name: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Forget {
    checkpoint_id: String,
}

#[derive(Serialize, JsonSchema)]
pub struct Session {
    pub id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// initializing, ready, checkpointing, draining, destroyed or failed.
    pub state: String,
    /// It is saved and wakes with the next call.
    pub hibernated: bool,
    pub python_version: String,
    /// Executions that run or wait.
    pub active_executions: u32,
    pub labels: BTreeMap<String, String>,
    pub memory_mib: u64,
    pub exec_timeout_ms: u64,
    /// none or proxy.
    pub network: String,
    /// With `proxy`; none = the public internet.
    pub domains: Vec<String>,
    pub created_at_ms: i64,
    /// 0 = it does not expire.
    pub expires_at_ms: i64,
    /// 0 = it may idle for ever.
    pub idle_timeout_ms: u64,
    /// How strongly it is isolated: T3, T2, T1, T0 or unconfined.
    pub tier: String,
    /// Why it failed or was destroyed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
impl Reply for Session {}

impl From<v1::Session> for Session {
    fn from(session: v1::Session) -> Self {
        let state = word(session.state().as_str_name(), "SESSION_STATE_");
        let network = session.network.unwrap_or_default();
        let limits = session.limits.unwrap_or_default();
        Self {
            id: session.id,
            name: session.name,
            state,
            hibernated: session.hibernated,
            python_version: session.python_version,
            active_executions: session.active_executions,
            labels: session.labels.into_iter().collect(),
            memory_mib: limits.memory_bytes >> 20,
            exec_timeout_ms: limits.exec_timeout_ms,
            network: word(network.mode().as_str_name(), "NETWORK_MODE_"),
            domains: network.domains,
            created_at_ms: session.created_at_ms,
            expires_at_ms: session.expires_at_ms,
            idle_timeout_ms: session.idle_timeout_ms,
            tier: session.tier,
            error: session.error.map(|error| format!("{}: {}", error.code, error.message)),
        }
    }
}

/// `SESSION_STATE_READY` is "ready".
pub fn word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_ascii_lowercase()
}

#[derive(Serialize, JsonSchema)]
struct Sessions {
    sessions: Vec<Session>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}
impl Reply for Sessions {}

#[derive(Serialize, JsonSchema)]
struct Checkpoint {
    id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    /// The session that was saved.
    session_id: String,
    python_version: String,
    archive_bytes: u64,
    files: u64,
    /// Python variables that were saved; nothing where they were not asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    variables: Option<u64>,
    /// Names of those that could not be saved.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    dropped: Vec<String>,
    created_at_ms: i64,
}
impl Reply for Checkpoint {}

impl From<v1::Checkpoint> for Checkpoint {
    fn from(checkpoint: v1::Checkpoint) -> Self {
        let summary = checkpoint.summary.unwrap_or_default();
        let dropped = summary.globals.as_ref().map(|globals| {
            globals.dropped.iter().map(|dropped| format!("{}: {}", dropped.name, dropped.reason)).collect()
        });
        Self {
            id: checkpoint.id,
            name: checkpoint.name,
            session_id: checkpoint.session_id,
            python_version: checkpoint.python_version,
            archive_bytes: checkpoint.archive_bytes,
            files: summary.files,
            variables: summary.globals.map(|globals| globals.count),
            dropped: dropped.unwrap_or_default(),
            created_at_ms: checkpoint.created_at_ms,
        }
    }
}

#[derive(Serialize, JsonSchema)]
struct Checkpoints {
    checkpoints: Vec<Checkpoint>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}
impl Reply for Checkpoints {}

async fn create(call: Call, asked: Create) -> Result<Session> {
    let network = asked.network.map(|network| v1::NetworkPolicy {
        mode: match network.mode {
            Mode::None => v1::NetworkMode::None.into(),
            Mode::Proxy => v1::NetworkMode::Proxy.into(),
        },
        domains: network.domains,
        ports: network.ports,
    });
    let limits = v1::Limits {
        memory_bytes: asked.limits.memory_mib.unwrap_or_default() << 20,
        cpu_millis: asked.limits.cpu_millis.unwrap_or_default(),
        disk_bytes: asked.limits.disk_mib.unwrap_or_default() << 20,
        processes_max: asked.limits.processes_max.unwrap_or_default(),
        exec_timeout_ms: asked.limits.exec_timeout_ms.unwrap_or_default(),
        ..Default::default()
    };
    let request = v1::CreateSessionRequest {
        idempotency_key: asked.idempotency_key.unwrap_or_default(),
        name: asked.name.unwrap_or_default(),
        template: asked.template.unwrap_or_default(),
        python_version: asked.python_version.unwrap_or_default(),
        packages: asked.packages,
        env: asked.env.into_iter().collect(),
        labels: asked.labels.into_iter().collect(),
        secrets: asked.secrets,
        network,
        limits: Some(limits),
        ttl_ms: asked.ttl_ms.unwrap_or_default(),
        idle_timeout_ms: asked.idle_timeout_ms.unwrap_or_default(),
        wait_ms: asked.wait_ms.unwrap_or(limits::mcp::SESSION_WAIT_MS),
        ..Default::default()
    };
    Ok(call.sessions().create_session(call.by(request)).await.map_err(said)?.into_inner().into())
}

async fn list(call: Call, asked: List) -> Result<Sessions> {
    let limit = page(asked.limit, 50, limits::mcp::LISTED_MAX)?;
    let request = v1::ListSessionsRequest {
        page: Some(v1::Page { limit, cursor: asked.cursor.unwrap_or_default() }),
        all: asked.all,
        labels: asked.labels.into_iter().collect(),
        ..Default::default()
    };
    let listed = call.sessions().list_sessions(call.by(request)).await.map_err(said)?.into_inner();
    let next_cursor = Some(listed.next_cursor).filter(|cursor| !cursor.is_empty());
    Ok(Sessions { sessions: listed.sessions.into_iter().map(Session::from).collect(), next_cursor })
}

async fn info(call: Call, asked: Named) -> Result<Session> {
    let session_id = call.place(asked.session_id).await?.session_id;
    let request = v1::GetSessionRequest { session_id };
    Ok(call.sessions().get_session(call.by(request)).await.map_err(said)?.into_inner().into())
}

async fn extend(call: Call, asked: Extend) -> Result<Session> {
    let session_id = call.place(asked.session_id).await?.session_id;
    let request = v1::UpdateSessionRequest {
        session_id,
        ttl_ms: asked.ttl_ms,
        idle_timeout_ms: asked.idle_timeout_ms,
        ..Default::default()
    };
    Ok(call.sessions().update_session(call.by(request)).await.map_err(said)?.into_inner().into())
}

async fn destroy(call: Call, asked: Named) -> Result<Session> {
    let session_id = call.meant(asked.session_id).await?;
    let request = v1::DestroySessionRequest { session_id, ..Default::default() };
    Ok(call.sessions().destroy_session(call.by(request)).await.map_err(said)?.into_inner().into())
}

async fn save(call: Call, asked: Save) -> Result<Checkpoint> {
    let session_id = call.meant(asked.session_id).await?;
    let request = v1::CreateCheckpointRequest {
        session_id,
        name: asked.name.unwrap_or_default(),
        wait_ms: asked.wait_ms.unwrap_or(limits::mcp::WAIT_MS),
        globals: asked.variables,
        ..Default::default()
    };
    Ok(call.checkpoints().create_checkpoint(call.by(request)).await.map_err(said)?.into_inner().into())
}

async fn saved(call: Call, asked: Saved) -> Result<Checkpoints> {
    let limit = page(asked.limit, 50, limits::mcp::LISTED_MAX)?;
    let request = v1::ListCheckpointsRequest {
        page: Some(v1::Page { limit, cursor: asked.cursor.unwrap_or_default() }),
        session_id: asked.session_id.unwrap_or_default(),
    };
    let listed = call.checkpoints().list_checkpoints(call.by(request)).await.map_err(said)?.into_inner();
    let next_cursor = Some(listed.next_cursor).filter(|cursor| !cursor.is_empty());
    let checkpoints = listed.checkpoints.into_iter().map(Checkpoint::from).collect();
    Ok(Checkpoints { checkpoints, next_cursor })
}

async fn restore(call: Call, asked: Restore) -> Result<Session> {
    let session = v1::CreateSessionRequest {
        name: asked.name.unwrap_or_default(),
        wait_ms: limits::mcp::SESSION_WAIT_MS,
        ..Default::default()
    };
    let request = v1::RestoreCheckpointRequest { checkpoint_id: asked.checkpoint_id, session: Some(session) };
    Ok(call.checkpoints().restore_checkpoint(call.by(request)).await.map_err(said)?.into_inner().into())
}

async fn forget(call: Call, asked: Forget) -> Result<Checkpoint> {
    let request = v1::DeleteCheckpointRequest { checkpoint_id: asked.checkpoint_id };
    Ok(call.checkpoints().delete_checkpoint(call.by(request)).await.map_err(said)?.into_inner().into())
}
