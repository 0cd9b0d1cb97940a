//! What a worker is told: the host gets [`Config`] from the command line's crate, the link gets [`LinkConfig`] from
//! the host.

use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, File},
    io::Read,
    net::IpAddr,
    ops::RangeInclusive,
    os::fd::OwnedFd,
    path::PathBuf,
    time::Duration,
};

use cooper_common::{
    backoff::full_jitter,
    error::{Code, Error, Result},
    limits::{link, zygote},
    token::Secret,
};
use serde::{Deserialize, Serialize};

use crate::{
    confine::facilities::{Mask, Tier},
    egress::dial::Place,
};

/// Everything the host of a worker needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// The worker's own directory; one live host at a time. It holds the lock, the spool, `stacks.json`, `tools/`.
    pub dir: PathBuf,
    /// Sessions live in `<base_workspace>/<session id>`. None = `<dir>/sessions`.
    pub base_workspace: Option<PathBuf>,
    /// None = made once and kept in `<dir>/worker_id`.
    pub worker_id: Option<String>,
    /// `host:port` or URL of the coordinator.
    pub coordinator_addr: String,
    /// Token of scope `worker`.
    pub join_token: Secret,
    pub tls: Tls,
    /// None = from cores and memory.
    pub max_sessions: Option<u32>,
    /// Attempts at once, of all kinds. None = max_sessions + 8.
    pub max_tasks: Option<u32>,
    /// Base interpreters of the sessions; without one the worker has no capability `python`.
    pub python: Pythons,
    /// What interpreters have imported before a session gets them: `bare`, `stdlib` or `science`. None = every
    /// interpreter is started anew.
    pub preload: Option<String>,
    /// A directory of packages that every session of this worker finds.
    pub layer: Option<PathBuf>,
    /// Berths that are kept: below `pool_low` they are made at once, up to `pool_high` when nothing waits.
    pub pool_low: u32,
    pub pool_high: u32,
    /// Name and directory of each stack; the first is the default.
    pub stacks: Vec<(String, PathBuf)>,
    /// Offer compose when Docker answers; false = never.
    pub compose: bool,
    pub labels: BTreeMap<String, String>,
    pub timing: Timing,
    /// SIGTERM: how long what runs may go on before it is ended. The second signal does not wait.
    pub drain_ms: u64,
    /// SIGTERM: sessions go on on other workers, from checkpoints.
    pub drain_checkpoint: bool,
    /// Cut off for this long beyond its lease, the worker ends steps that run: they may be started elsewhere.
    pub detach_max_ms: u64,
    /// Newest version of the host protocol to speak; for tests of older ones.
    pub host_protocol_max: u32,
    /// A tracing filter.
    pub log_level: String,
    /// Where the link serves health and metrics, e.g. `127.0.0.1:50052`. None = nowhere.
    pub health_listen: Option<String>,
    /// The link runs as this uid and gid when the host is root.
    pub link_uid: u32,
    /// Where the uids of sessions come from when the host may give them. None = a range that nobody else uses.
    pub session_uids: Option<RangeInclusive<u32>>,
    /// Sessions are refused where they could be confined less than this.
    pub tier_min: Tier,
    /// Facilities to do without; `Config::mask` says what that makes with the rest.
    pub mask: Mask,
    pub ports: Ports,
    /// Hosts that are reached although they are not public.
    pub egress_allow: Vec<Place>,
    /// Hosts of packages, for every session; None: not even those of the worker's pip and uv settings.
    pub egress_index: Option<Vec<Place>>,
    /// Names that the DNS is not asked for.
    pub egress_hosts: BTreeMap<String, IpAddr>,
    /// The egress proxy runs as this uid and gid when the host is root.
    pub egress_uid: u32,
}

/// How the coordinator is recognised, and what it is shown. Files, as PEM, which the host reads for each link that it
/// starts: the link may not be able to.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// None = the authorities of the system.
    pub ca: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    /// The server name that is asked for with a certificate.
    pub name: String,
}

impl Tls {
    /// # Errors
    /// `config_invalid` with the file that cannot be read, or that is missing.
    pub fn read(&self) -> Result<LinkTls> {
        let text = |path: &PathBuf| {
            fs::read_to_string(path).map_err(|error| {
                Error::new(Code::ConfigInvalid, format!("{} cannot be read: {error}", path.display()))
            })
        };
        let (cert, key) = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => (text(cert)?, text(key)?),
            (None, None) => Default::default(),
            _ => {
                let message = "tls_client_cert and tls_client_key go together";
                return Err(Error::new(Code::ConfigInvalid, message).with_hint("set both, or none"));
            }
        };
        let ca = self.ca.as_ref().map(text).transpose()?.unwrap_or_default();
        Ok(LinkTls { ca, cert, key, name: self.name.clone() })
    }
}

/// The same as the link is told it. Empty: none.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct LinkTls {
    pub ca: String,
    pub cert: String,
    pub key: String,
    pub name: String,
}

/// Whether sessions may listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ports {
    /// Where nobody but the host gets to what they listen on.
    #[default]
    Auto,
    /// Also where every process in the worker's network namespace does.
    On,
    Off,
}

impl Ports {
    pub fn parse(text: &str) -> Self {
        match text {
            "on" => Self::On,
            "off" => Self::Off,
            _ => Self::Auto,
        }
    }
}

/// Which Pythons a worker offers; the first is for sessions that name none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pythons {
    /// The first usable python3 on PATH.
    Usual,
    /// That one, and every usable python3.N on PATH.
    All,
    /// These; one that is not usable is an error.
    These(Vec<PathBuf>),
}

impl Pythons {
    /// Programs with commas between them, `auto` for all, or nothing.
    pub fn parse(text: &str) -> Self {
        let named = text.split(',').map(str::trim).filter(|name| !name.is_empty());
        let named: Vec<PathBuf> = named.map(PathBuf::from).collect();
        match text.trim() {
            "auto" => Self::All,
            _ if named.is_empty() => Self::Usual,
            _ => Self::These(named),
        }
    }
}

/// How the worker dials. All in milliseconds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Timing {
    /// Between pings of an idle connection, and until one that is not answered ends it.
    pub keepalive_ms: u64,
    pub reconnect_base_ms: u64,
    pub reconnect_cap_ms: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            keepalive_ms: link::KEEPALIVE_MS,
            reconnect_base_ms: link::RECONNECT_BASE_MS,
            reconnect_cap_ms: link::RECONNECT_CAP_MS,
        }
    }
}

impl Timing {
    /// How long to wait before the next try after this many that failed.
    pub fn reconnect(&self, failures: u32, roll: f64) -> Duration {
        full_jitter(self.reconnect_base_ms, self.reconnect_cap_ms, failures, roll)
    }
}

/// The uid that owns nothing ("nobody").
pub const NOBODY: u32 = 65_534;

impl Config {
    /// Defaults for everything that has one.
    pub fn new(dir: impl Into<PathBuf>, coordinator_addr: impl Into<String>, join_token: Secret) -> Self {
        Self {
            dir: dir.into(),
            base_workspace: None,
            worker_id: None,
            coordinator_addr: coordinator_addr.into(),
            join_token,
            tls: Tls::default(),
            max_sessions: None,
            max_tasks: None,
            python: Pythons::Usual,
            preload: Some("stdlib".to_owned()),
            layer: None,
            pool_low: zygote::POOL_LOW,
            pool_high: zygote::POOL_HIGH,
            stacks: Vec::new(),
            compose: true,
            labels: BTreeMap::new(),
            timing: Timing::default(),
            drain_ms: link::DRAIN_MS,
            drain_checkpoint: false,
            detach_max_ms: link::DETACH_MAX_MS,
            host_protocol_max: link::HOST_PROTOCOL_MAX,
            log_level: "info".to_owned(),
            health_listen: None,
            link_uid: NOBODY,
            session_uids: None,
            tier_min: Tier::T0,
            mask: Mask::default(),
            ports: Ports::default(),
            egress_allow: Vec::new(),
            egress_index: Some(Vec::new()),
            egress_hosts: BTreeMap::new(),
            egress_uid: NOBODY - 1,
        }
    }

    /// Facilities to do without. Where no session listens nothing is kept for it.
    pub fn mask(&self) -> Mask {
        Mask { filter: self.mask.filter || self.ports == Ports::Off, ..self.mask }
    }
}

/// What the link is told, as JSON in the memfd that is its descriptor 4. Never on a command line: those are readable
/// by everyone on the machine. A link may be newer than the host that tells it this: fields are only added, with defaults.
#[derive(Clone, Serialize, Deserialize)]
pub struct LinkConfig {
    pub coordinator_addr: String,
    pub join_token: String,
    #[serde(default)]
    pub tls: LinkTls,
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub timing: Timing,
    pub log_level: String,
    pub health_listen: Option<String>,
}

impl LinkConfig {
    pub fn of(config: &Config) -> Result<Self> {
        Ok(Self {
            coordinator_addr: config.coordinator_addr.clone(),
            join_token: config.join_token.expose().to_owned(),
            tls: config.tls.read()?,
            labels: config.labels.clone(),
            timing: config.timing,
            log_level: config.log_level.clone(),
            health_listen: config.health_listen.clone(),
        })
    }

    /// Reads the link's descriptor 4.
    pub fn read(memfd: OwnedFd) -> Result<Self> {
        let mut json = String::new();
        File::from(memfd).read_to_string(&mut json).map_err(|e| {
            Error::new(Code::ConfigInvalid, format!("the link's configuration cannot be read: {e}"))
        })?;
        serde_json::from_str(&json).map_err(|e| {
            Error::new(Code::ConfigInvalid, format!("the link's configuration is malformed: {e}"))
        })
    }
}

/// The join token is a secret.
impl fmt::Debug for LinkConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkConfig")
            .field("coordinator_addr", &self.coordinator_addr)
            .field("labels", &self.labels)
            .field("health_listen", &self.health_listen)
            .finish_non_exhaustive()
    }
}
