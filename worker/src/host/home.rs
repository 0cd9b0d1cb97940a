//! What a session has on disk: `<base>/<session id>/{session.json, workspace/, workspace/.venv/, tmp/}`.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use cooper_common::limits::exec;
use cooper_common::network::{Policy, Reach};
use cooper_proto::v1;
use serde::{Deserialize, Serialize};

use super::python::{self, Python};
use crate::confine::{SECRETS, TRUST, cgroup, uids};

/// Variables by which programs find the certificates that they trust.
const TRUSTING: [&str; 7] = [
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "PIP_CERT",
    "GIT_SSL_CAINFO",
    "NODE_EXTRA_CA_CERTS",
    "AWS_CA_BUNDLE",
];

/// Places of one session.
#[derive(Debug, Clone)]
pub struct Home {
    pub dir: PathBuf,
}

impl Home {
    pub fn new(base: &Path, session_id: &str) -> Self {
        Self { dir: base.join(session_id) }
    }
    pub fn workspace(&self) -> PathBuf {
        self.dir.join("workspace")
    }
    pub fn venv(&self) -> PathBuf {
        self.dir.join("workspace/.venv")
    }
    pub fn tmp(&self) -> PathBuf {
        self.dir.join("tmp")
    }
    pub fn cache(&self) -> PathBuf {
        self.dir.join("cache")
    }

    /// Files with the values of its secrets: it may read them, nobody else may, and nothing that is saved holds them.
    pub fn secrets(&self) -> PathBuf {
        self.dir.join(SECRETS)
    }

    /// Certificates that its programs trust, where they are not the machine's alone.
    pub fn trusted(&self) -> PathBuf {
        self.dir.join(TRUST).join("certificates.pem")
    }

    /// Has its programs trust these, as PEM. They read them, and change nothing there.
    pub fn put_trusted(&self, certificates: &str, uid: Option<u32>) -> io::Result<()> {
        self.make_shown_dir(TRUST, uid)?;
        let (file, fresh) = (self.trusted(), self.dir.join(TRUST).join(".certificates.pem"));
        if fresh.exists() {
            fs::remove_file(&fresh)?;
        }
        let mut opened = fs::OpenOptions::new().write(true).create_new(true).mode(0o440).open(&fresh)?;
        io::Write::write_all(&mut opened, certificates.as_bytes())?;
        std::os::unix::fs::fchown(&opened, None, uid)?;
        fs::rename(fresh, file)
    }

    /// Puts these secrets, and no others, where the session finds them.
    pub fn put_secrets(&self, secrets: &[v1::GrantedSecret], uid: Option<u32>) -> io::Result<()> {
        let dir = self.secrets();
        self.make_shown_dir(SECRETS, uid)?;
        for entry in fs::read_dir(&dir)? {
            let name = entry?.file_name();
            if !secrets.iter().any(|secret| *secret.name == *name) {
                fs::remove_file(dir.join(name))?;
            }
        }
        for secret in secrets {
            // It comes from the coordinator, and is a path now.
            let fine = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if secret.name.is_empty() || !secret.name.chars().all(fine) {
                return Err(io::Error::other("the name of a secret is none"));
            }
            // Whoever reads it meanwhile gets the old value or the new one.
            let (file, fresh) = (dir.join(&secret.name), dir.join(format!(".{}", secret.name)));
            if fresh.exists() {
                fs::remove_file(&fresh)?;
            }
            let mut options = fs::OpenOptions::new();
            let mut opened = options.write(true).create_new(true).mode(0o400).open(&fresh)?;
            io::Write::write_all(&mut opened, &secret.value)?;
            std::os::unix::fs::fchown(&opened, uid, uid)?;
            fs::rename(fresh, file)?;
        }
        Ok(())
    }

    /// The worker's directory: the session's group may look into it and change nothing there.
    fn make_shown_dir(&self, name: &str, uid: Option<u32>) -> io::Result<()> {
        let dir = self.dir.join(name);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        if uid.is_some() {
            std::os::unix::fs::chown(&dir, None, uid)?;
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o750))?;
        }
        Ok(())
    }

    /// The directories that its code may change.
    pub fn own(&self) -> [PathBuf; 4] {
        ["workspace", "tmp", "cache", "shm"].map(|name| self.dir.join(name))
    }

    /// Makes the directories, the venv and the record. What a half-made attempt left is removed first.
    pub fn create(&self, record: &Record, python: &Python, layer: Option<&Path>) -> io::Result<()> {
        self.furnish(record.uid, python, layer)?;
        record.write(&self.dir).inspect_err(|_| self.clear())
    }

    /// Makes the directories and the venv.
    pub fn furnish(&self, uid: Option<u32>, python: &Python, layer: Option<&Path>) -> io::Result<()> {
        if self.dir.exists() {
            fs::remove_dir_all(&self.dir)?;
        }
        let mut private = fs::DirBuilder::new();
        private.recursive(true).mode(0o700);
        let own = self.own();
        let made = [&self.dir]
            .into_iter()
            .chain(&own)
            .try_for_each(|dir| private.create(dir))
            .and_then(|()| python::make_venv(python, &self.venv(), layer))
            .and_then(|()| uid.map_or(Ok(()), |uid| self.give_to(uid)))
            // There before it is wanted: whoever waits here is confined already.
            .and_then(|()| [SECRETS, TRUST].iter().try_for_each(|name| self.make_shown_dir(name, uid)));
        made.inspect_err(|_| self.clear())
    }

    pub fn clear(&self) {
        let _ = fs::remove_dir_all(&self.dir);
    }

    /// Makes what was furnished before it was anybody's the home of a session.
    pub fn move_in(&self, furnished: &Self, record: &Record) -> io::Result<()> {
        if self.dir.exists() {
            fs::remove_dir_all(&self.dir)?;
        }
        fs::rename(&furnished.dir, &self.dir)?;
        record.write(&self.dir).inspect_err(|_| self.clear())
    }

    /// Makes what the session works in its own. The directory around it stays the worker's: its group may pass through it
    /// and no more.
    pub fn give_to(&self, uid: u32) -> io::Result<()> {
        for dir in self.own() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
            uids::own(&dir, uid)?;
        }
        std::os::unix::fs::chown(&self.dir, None, Some(uid))?;
        fs::set_permissions(&self.dir, fs::Permissions::from_mode(0o710))
    }

    /// Everything of the environment that is not the session's own: nothing is inherited from the worker. `reach` is how
    /// programs find the proxy and the package index.
    pub fn environment(
        &self,
        record: &Record,
        extra: impl IntoIterator<Item = (String, String)>,
        host_dir: &Path,
        reach: &[(String, String)],
    ) -> Vec<(String, String)> {
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let mut env = BTreeMap::from([
            ("PATH".to_owned(), format!("{}/bin:/usr/local/bin:/usr/bin:/bin", self.venv().display())),
            ("HOME".to_owned(), text(self.workspace())),
            ("TMPDIR".to_owned(), text(self.tmp())),
            ("LANG".to_owned(), "C.UTF-8".to_owned()),
            ("VIRTUAL_ENV".to_owned(), text(self.venv())),
            ("PYTHONUNBUFFERED".to_owned(), "1".to_owned()),
            // There is no screen: figures become results.
            ("MPLBACKEND".to_owned(), "Agg".to_owned()),
        ]);
        env.extend(reach.iter().cloned());
        if !record.inject.is_empty() {
            env.extend(TRUSTING.map(|name| (name.to_owned(), text(self.trusted()))));
        }
        env.extend(record.env.clone());
        env.extend(extra);
        // By these a later host finds what this one left; they cannot be overridden.
        env.insert("COOPER_SESSION".to_owned(), record.session_id.clone());
        if record.has_secrets {
            env.insert("COOPER_SECRETS".to_owned(), text(self.secrets()));
        }
        env.insert(super::dir::MARK.to_owned(), text(host_dir.to_owned()));
        env.into_iter().collect()
    }
}

fn or(value: u64, default: u64) -> u64 {
    if value == 0 { default } else { value }
}

/// A place that secrets go to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Injected {
    pub host: String,
    pub port: u16,
    pub plain: bool,
    pub header: String,
}

/// `session.json`: what a host started later needs to go on with the session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub session_id: String,
    /// Several workers may share a base directory.
    pub worker_id: String,
    pub epoch: u64,
    pub generation: u32,
    pub env: BTreeMap<String, String>,
    pub exec_timeout_ms: u64,
    pub memory_bytes: u64,
    pub file_size_bytes: u64,
    pub open_files: u32,
    pub output_bytes: u64,
    /// 0 in what an older host left, as in the grant of an older coordinator: the default.
    #[serde(default)]
    pub processes_max: u32,
    #[serde(default)]
    pub cpu_millis: u32,
    #[serde(default)]
    pub disk_bytes: u64,
    #[serde(default)]
    pub inodes_max: u64,
    /// Its own, which nothing else on the machine has; None where the host may not give uids.
    #[serde(default)]
    pub uid: Option<u32>,
    /// What it reaches.
    #[serde(default)]
    pub network: Policy,
    /// Its files are not unpacked yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub restoring: bool,
    /// Packed to go on elsewhere: until it is granted again nothing is written or started here, whoever is its host.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sealed: bool,
    /// Variables came with its files and are not loaded yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub globals: bool,
    /// It was given some; which, and what they are, is not recorded.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub has_secrets: bool,
    /// Where secrets are put into its requests; what they are is not recorded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inject: Vec<Injected>,
    /// Version of its Python; empty in what an older host left: the first.
    #[serde(default)]
    pub python: String,
}

/// What a grant says that a session reaches; nobody, when it cannot be read.
fn policy(wire: &v1::NetworkPolicy) -> Policy {
    if wire.mode() != v1::NetworkMode::Proxy {
        return Policy::default();
    }
    let hosts = wire.domains.iter().map(|host| host.parse()).collect::<Result<Vec<_>, _>>();
    let ports = wire.ports.iter().map(|port| u16::try_from(*port).unwrap_or(0)).collect();
    let reach = match hosts {
        Ok(hosts) if hosts.is_empty() => Reach::Public,
        Ok(hosts) => Reach::Hosts(hosts),
        Err(_) => Reach::None,
    };
    Policy::new(reach, ports).unwrap_or_default()
}

impl Record {
    pub fn of(grant: v1::SessionGrant, worker_id: &str) -> Self {
        let limits = grant.limits.unwrap_or_default();
        let network = grant.network.as_ref().map(policy).unwrap_or_default();
        let fence = grant.fence.unwrap_or_default();
        let inject = grant.inject.iter().map(|it| Injected {
            host: it.host.clone(),
            port: u16::try_from(it.port).unwrap_or(0),
            plain: it.plain_http,
            header: it.header.clone(),
        });
        let inject = inject.collect();
        Self {
            session_id: grant.session_id,
            worker_id: worker_id.to_owned(),
            epoch: fence.epoch,
            generation: fence.attempt,
            env: grant.env.into_iter().collect(),
            exec_timeout_ms: limits.exec_timeout_ms,
            memory_bytes: limits.memory_bytes,
            file_size_bytes: limits.file_size_bytes,
            open_files: limits.open_files,
            output_bytes: limits.output_bytes,
            processes_max: limits.processes_max,
            cpu_millis: limits.cpu_millis,
            disk_bytes: limits.disk_bytes,
            inodes_max: limits.inodes_max,
            uid: None,
            network,
            restoring: grant.restore,
            sealed: false,
            globals: false,
            has_secrets: !grant.secrets.is_empty(),
            inject,
            python: grant.python_version,
        }
    }

    /// Whether a grant is this one or a newer one.
    pub fn is_renewed_by(&self, grant: &v1::SessionGrant) -> bool {
        let fence = grant.fence.unwrap_or_default();
        (fence.epoch, fence.attempt) >= (self.epoch, self.generation)
    }

    /// The record after another grant of the same session, which keeps its uid. An older one changes nothing.
    pub fn renewed(&self, grant: v1::SessionGrant, worker_id: &str) -> Self {
        match self.is_renewed_by(&grant) {
            // Whose its files are, whether they are there and what they were made with, no grant changes.
            true => {
                let Self { uid, restoring, globals, .. } = *self;
                let python = self.python.clone();
                Self { uid, restoring, globals, python, ..Self::of(grant, worker_id) }
            }
            false => self.clone(),
        }
    }

    /// Of the session as a whole.
    pub fn memory_limit(&self) -> u64 {
        or(self.memory_bytes, exec::MEMORY_BYTES)
    }
    pub fn processes_limit(&self) -> u64 {
        or(self.processes_max.into(), exec::PROCESSES.into())
    }
    pub fn disk_limit(&self) -> u64 {
        or(self.disk_bytes, exec::DISK_BYTES)
    }
    pub fn inodes_limit(&self) -> u64 {
        or(self.inodes_max, exec::INODES)
    }

    pub fn group_limits(&self) -> cgroup::Limits {
        cgroup::Limits {
            memory_bytes: self.memory_limit(),
            processes: self.processes_limit(),
            cpu_millis: self.cpu_millis.into(),
        }
    }

    pub fn fence(&self) -> v1::Fence {
        v1::Fence { epoch: self.epoch, attempt: self.generation }
    }

    /// The records of all sessions of this worker beneath `base`; what cannot be read is skipped, and said.
    pub fn read_all(base: &Path, worker_id: &str) -> Vec<Self> {
        let Ok(entries) = fs::read_dir(base) else { return Vec::new() };
        let mut found = Vec::new();
        for entry in entries.flatten() {
            let file = entry.path().join("session.json");
            let Ok(json) = fs::read(&file) else { continue };
            match serde_json::from_slice::<Self>(&json) {
                Ok(record) if Some(record.session_id.as_str()) != entry.file_name().to_str() => {}
                Ok(record) if record.worker_id != worker_id => {}
                Ok(record) => found.push(record),
                Err(error) => tracing::warn!(%error, file = %file.display(), "session record ignored"),
            }
        }
        found
    }

    pub fn write(&self, dir: &Path) -> io::Result<()> {
        let (file, fresh) = (dir.join("session.json"), dir.join("session.json.new"));
        let json = serde_json::to_vec_pretty(self)?;
        let mut options = fs::OpenOptions::new();
        io::Write::write_all(
            &mut options.write(true).create(true).truncate(true).mode(0o600).open(&fresh)?,
            &json,
        )?;
        fs::rename(fresh, file)
    }
}
