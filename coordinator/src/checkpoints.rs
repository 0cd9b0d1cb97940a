//! Checkpoints: kept, listed, deleted by their tenants. A checkpoint is a row with a signed manifest, and an archive among
//! the artifacts that the manifest names; `carry` brings archives from and to workers.

mod carry;

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use base64::Engine as _;
use cooper_common::{
    error::{Code, Error, Result},
    ids::{CheckpointId, SessionId},
    limits::checkpoint as limits,
};
use cooper_core::{
    change::{Aggregate, Change, NewEvent, Row},
    session::{Purpose, Saving},
};
use cooper_proto::v1;
use prost::Message as _;
use serde::{Deserialize, Serialize};

use crate::{
    blobs::Blobs,
    caller::Caller,
    check,
    cluster::{Cluster, durable, now},
    key_file, sessions,
    store::{Filter, Page, Record},
    templates,
};

/// In the data directory; what it signed is ours.
pub const KEY_FILE: &str = "checkpoint.key";
/// Between looks for what is to be carried, beside those that are asked for.
const LOOK: Duration = Duration::from_millis(500);

/// What a tenant may keep; 0 = nothing.
#[derive(Debug, Clone, Copy)]
pub struct Quota {
    pub checkpoints: u64,
    pub bytes: u64,
    /// Older ones go; 0 = however old.
    pub days: u64,
}

impl Default for Quota {
    fn default() -> Self {
        Self { checkpoints: limits::PER_TENANT_MAX, bytes: limits::MIB_PER_TENANT_MAX << 20, days: 0 }
    }
}

/// What a checkpoint is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub id: CheckpointId,
    pub tenant: String,
    pub session: SessionId,
    pub purpose: Purpose,
    #[serde(default)]
    pub name: String,
    pub python_version: String,
    /// Of the archive.
    pub digest: String,
    pub archive_bytes: u64,
    pub files: u64,
    pub directories: u64,
    pub symlinks: u64,
    pub hard_links: u64,
    pub content_bytes: u64,
    #[serde(default)]
    pub skipped: Vec<String>,
    pub skipped_count: u64,
    /// Variables: an encoded cooper.v1.GlobalsSummary in base64; empty = none were asked for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub globals: String,
    /// BLAKE3 of the session's spec, which is in the row.
    pub spec: String,
}

/// A checkpoint that somebody asks for.
struct Wanted<'a> {
    purpose: Purpose,
    name: &'a str,
    key: &'a str,
    /// 0 = as long as one that does not say.
    wait_ms: u64,
    /// Also the interpreter's variables.
    globals: bool,
}

/// A message as text of a row: what the core and the store need not read.
pub fn opaque(message: &impl prost::Message) -> String {
    base64::engine::general_purpose::STANDARD.encode(message.encode_to_vec())
}

pub fn read_opaque<T: prost::Message + Default>(text: &str) -> Option<T> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).ok().filter(|_| !text.is_empty())?;
    T::decode(&*bytes).ok()
}

/// The row's body.
#[derive(Serialize, Deserialize)]
struct Body {
    manifest: Manifest,
    /// Keyed BLAKE3 of the manifest as JSON.
    signature: String,
}

/// The manifest of a row, whoever signed it.
pub fn manifest(record: &Record) -> Result<Manifest> {
    let body: Body = serde_json::from_str(&record.row.body)
        .map_err(|_| Error::internal(format!("the stored checkpoint {} cannot be read", record.id)))?;
    Ok(body.manifest)
}

pub struct Checkpoints {
    cluster: Arc<Cluster>,
    blobs: Arc<Blobs>,
    key: [u8; key_file::BYTES],
    quota: Quota,
    /// Why a checkpoint that somebody waits for did not come to be.
    failures: Mutex<HashMap<CheckpointId, Error>>,
}

impl Checkpoints {
    /// # Errors
    /// `data_unusable`.
    pub fn open(cluster: Arc<Cluster>, blobs: Arc<Blobs>, data: &Path, quota: Quota) -> Result<Arc<Self>> {
        let path = data.join(KEY_FILE);
        let key = key_file::read(&path).map_err(|cause| {
            Error::new(Code::DataUnusable, format!("{} cannot be used: {cause}", path.display())).with_hint(
                "put it back from a backup; without it the checkpoints there are cannot be restored",
            )
        })?;
        Ok(Arc::new(Self { cluster, blobs, key, quota, failures: Mutex::default() }))
    }

    fn sign(&self, manifest: &Manifest) -> Result<String> {
        let text = serde_json::to_vec(manifest).map_err(|error| Error::internal(error.to_string()))?;
        Ok(blake3::keyed_hash(&self.key, &text).to_hex().to_string())
    }

    /// The manifest of a row, if it is as it was signed.
    fn verified(&self, record: &Record) -> Result<Manifest> {
        let damaged = |what: &str| {
            Error::new(
                Code::CheckpointDamaged,
                format!("checkpoint {} is not as it was made: {what}", record.id),
            )
        };
        let body: Body =
            serde_json::from_str(&record.row.body).map_err(|_| damaged("its manifest cannot be read"))?;
        let Body { manifest, signature } = body;
        // Compared in constant time.
        let (signed, made) = (blake3::Hash::from_hex(signature), self.sign(&manifest)?);
        if signed.ok() != blake3::Hash::from_hex(made).ok() {
            return Err(damaged("its manifest was changed"));
        }
        let spec = record.row.spec.as_deref().unwrap_or_default();
        if manifest.id.to_string() != record.id
            || manifest.tenant != record.row.tenant
            || blake3::hash(spec).to_hex().as_str() != manifest.spec
        {
            return Err(damaged("its row was changed"));
        }
        Ok(manifest)
    }

    /// Saves a session, and answers once that is durable.
    pub async fn create(&self, caller: &Caller, request: v1::CreateCheckpointRequest) -> Result<Record> {
        let key = request.idempotency_key.as_str();
        check::idempotency_key(key)?;
        check::name(&request.name)?;
        check::at_most("wait_ms", request.wait_ms, limits::WAIT_MS_MAX)?;
        let _turn = self.cluster.keys.turn(Aggregate::Checkpoint, &caller.tenant, key).await;
        let store = &self.cluster.store;
        let session = sessions::get(&self.cluster, caller, &request.session_id).await?;
        let session: SessionId =
            session.id.parse().map_err(|_| Error::internal("a session was stored under another id"))?;
        if !key.is_empty()
            && let Some(known) = store.by_key(Aggregate::Checkpoint, Some(&caller.tenant), key).await?
        {
            return match known.row.parent == session.to_string() {
                true => Ok(known),
                false => Err(check::other_request(key)),
            };
        }
        let wanted = Wanted {
            purpose: Purpose::Keep,
            name: &request.name,
            key,
            wait_ms: request.wait_ms,
            globals: request.globals,
        };
        self.save(caller, session, wanted).await
    }

    /// Saves a session and destroys it; when it cannot be saved, it stays.
    pub async fn destroy(&self, caller: &Caller, request: &v1::DestroySessionRequest) -> Result<Record> {
        check::idempotency_key(&request.idempotency_key)?;
        check::name(&request.checkpoint_name)?;
        check::at_most("wait_ms", request.wait_ms, limits::WAIT_MS_MAX)?;
        let record = sessions::get(&self.cluster, caller, &request.session_id).await?;
        let session = sessions::parse(&record.id)?;
        let state = self.cluster.look(|core| {
            let it = core.session(session)?;
            Some(it.body.saving.as_ref().filter(|it| it.purpose == Purpose::Destroy).map(|it| it.checkpoint))
        });
        match state {
            // It has ended: there is nothing left to save, and nothing to destroy.
            None => return Ok(record),
            // The same was asked for already.
            Some(Some(checkpoint)) => self.saved(session, checkpoint, request.wait_ms).await?,
            Some(None) => {
                let name = &request.checkpoint_name;
                let v1::DestroySessionRequest { wait_ms, globals, .. } = *request;
                let wanted = Wanted { purpose: Purpose::Destroy, name, key: "", wait_ms, globals };
                self.save(caller, session, wanted).await?
            }
        };
        sessions::destroyed(&self.cluster, session).await
    }

    async fn save(&self, caller: &Caller, session: SessionId, wanted: Wanted<'_>) -> Result<Record> {
        self.cluster.space.admit()?;
        self.within_quota(&caller.tenant, 0).await?;
        sessions::awake(&self.cluster, session).await?;
        let Wanted { purpose, name, key, wait_ms, globals } = wanted;
        let checkpoint = CheckpointId::new();
        let patience = if wait_ms == 0 { limits::WAIT_MS } else { wait_ms };
        let begun = self.cluster.decide(|core, now| {
            let saving = Saving {
                checkpoint,
                purpose,
                name: name.to_owned(),
                key: key.to_owned(),
                give_up_at_ms: now.wall_ms.saturating_add_unsigned(patience),
                globals,
            };
            Ok(((), core.checkpoint(now, session, saving)?))
        });
        durable(begun?.1).await?;
        self.saved(session, checkpoint, wait_ms).await
    }

    /// Waits for a checkpoint that is being made.
    async fn saved(&self, session: SessionId, id: CheckpointId, wait_ms: u64) -> Result<Record> {
        let wait_ms = if wait_ms == 0 { limits::WAIT_MS } else { wait_ms };
        let store = &self.cluster.store;
        let mut changes = self.cluster.session_changes();
        let patience = Duration::from_millis(wait_ms + 2 * limits::WORK_MS);
        let wait = async {
            loop {
                if let Some(made) = store.get(Aggregate::Checkpoint, &id.to_string()).await? {
                    return Ok(made);
                }
                let goes_on = self.cluster.look(|core| {
                    core.session(session)
                        .is_some_and(|it| it.body.saving.as_ref().is_some_and(|it| it.checkpoint == id))
                });
                if !goes_on {
                    // What was decided before is recorded behind this.
                    self.cluster.recorded().await?;
                    if let Some(made) = store.get(Aggregate::Checkpoint, &id.to_string()).await? {
                        return Ok(made);
                    }
                    return Err(self.failure(id).unwrap_or_else(|| {
                        Error::new(
                            Code::SessionBusy,
                            format!("session {session} was not idle within {wait_ms} ms, or has ended"),
                        )
                    }));
                }
                let _ = tokio::time::timeout(LOOK, changes.recv()).await;
            }
        };
        let made = tokio::time::timeout(patience, wait).await.unwrap_or_else(|_| {
            Err(Error::new(Code::TimedOut, format!("the checkpoint of session {session} takes too long")))
        });
        self.failure(id);
        made
    }

    fn failure(&self, id: CheckpointId) -> Option<Error> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(&id)
    }

    async fn within_quota(&self, tenant: &str, more: u64) -> Result<()> {
        let (mut count, mut bytes) = (0, more);
        let filter = Filter { tenant: Some(tenant.to_owned()), ended: Some(false), ..Filter::default() };
        let mut filter = Filter { limit: cooper_common::limits::request::PAGE_MAX as usize, ..filter };
        loop {
            let page = self.cluster.store.list(Aggregate::Checkpoint, filter.clone()).await?;
            for manifest in page.records.iter().filter_map(|record| manifest(record).ok()) {
                if manifest.purpose == Purpose::Keep {
                    count += 1;
                    bytes += manifest.archive_bytes;
                }
            }
            match page.next {
                Some(next) => filter.before = Some(next),
                None => break,
            }
        }
        let Quota { checkpoints, bytes: bytes_max, .. } = self.quota;
        if count >= checkpoints {
            return Err(Error::new(
                Code::QuotaExceeded,
                format!("{count} of {checkpoints} checkpoints are kept"),
            )
            .with_hint("delete one: `cooper checkpoint list`"));
        }
        if bytes > bytes_max {
            return Err(Error::new(
                Code::QuotaExceeded,
                format!("checkpoints would take {bytes} of {bytes_max} bytes"),
            )
            .with_hint("delete one: `cooper checkpoint list`"));
        }
        Ok(())
    }

    /// The tenant's checkpoint; another tenant's is absent (I10), and so is what is not somebody's to have.
    pub async fn get(&self, caller: &Caller, id: &str) -> Result<Record> {
        let not_found = || Error::new(Code::CheckpointNotFound, format!("there is no checkpoint {id:?}"));
        let parsed: CheckpointId = id.parse().map_err(|_| not_found())?;
        let record = self.cluster.store.get(Aggregate::Checkpoint, &parsed.to_string()).await?;
        record.filter(|record| record.row.tenant == *caller.tenant && !record.row.ended).ok_or_else(not_found)
    }

    pub async fn list(&self, caller: &Caller, request: v1::ListCheckpointsRequest) -> Result<Page> {
        let parent = match request.session_id.as_str() {
            "" => None,
            id => Some(sessions::resolve(&self.cluster, caller, id)?.to_string()),
        };
        let filter = Filter {
            tenant: Some(caller.tenant.to_string()),
            parent,
            ended: Some(false),
            ..check::page(request.page)?
        };
        Ok(self.cluster.store.list(Aggregate::Checkpoint, filter).await?)
    }

    pub async fn delete(&self, caller: &Caller, id: &str) -> Result<Record> {
        let record = self.get(caller, id).await?;
        if templates::checkpoints(&self.cluster).await?.contains(&manifest(&record)?.id) {
            return Err(Error::new(Code::CheckpointInUse, format!("checkpoint {id} belongs to a template"))
                .with_hint("delete the template: `cooper template rm`"));
        }
        if self.is_needed(&manifest(&record)?) {
            return Err(Error::new(
                Code::SessionNotReady,
                format!("a session is being made from checkpoint {id}"),
            )
            .with_hint("wait until the session is ready"));
        }
        self.end(record.clone(), "checkpoint.deleted").await?;
        Ok(record)
    }

    /// A session is, or is to be, made from it.
    fn is_needed(&self, manifest: &Manifest) -> bool {
        self.cluster.look(|core| {
            let mut sessions = core.sessions();
            sessions.any(|it| it.body.restore.as_ref().is_some_and(|it| it.checkpoint == manifest.id))
        })
    }

    async fn end(&self, record: Record, event: &str) -> Result<()> {
        let change = Change {
            aggregate: Aggregate::Checkpoint,
            id: record.id,
            expected: record.version,
            row: Row {
                state: "deleted".to_owned(),
                ended: true,
                updated_ms: now().wall_ms,
                // The name is free again for whoever repeats a request.
                key: String::new(),
                spec: None,
                ..record.row
            },
            events: vec![NewEvent { kind: event.to_owned(), body: "{}".to_owned() }],
            output: Vec::new(),
        };
        let decided = self.cluster.decide(|_, _| {
            let mut out = cooper_core::cluster::Out::default();
            out.full = true;
            out.changes.push(change);
            Ok(((), out))
        });
        durable(decided?.1).await
    }

    /// What a session that begins from a checkpoint is created with: what was asked for, over what was saved.
    pub async fn session_of(
        &self,
        caller: &Caller,
        request: v1::RestoreCheckpointRequest,
    ) -> Result<v1::CreateSessionRequest> {
        let record = self.get(caller, &request.checkpoint_id).await?;
        self.verified(&record)?;
        let saved = v1::CreateSessionRequest::decode(record.row.spec.as_deref().unwrap_or_default())
            .map_err(|_| Error::internal("the spec of a saved session cannot be read"))?;
        let asked = request.session.unwrap_or_default();
        let (mut env, mut labels, mut metadata) = (saved.env, saved.labels, saved.metadata);
        env.extend(asked.env);
        labels.extend(asked.labels);
        metadata.extend(asked.metadata);
        let or = |asked: u64, saved: u64| if asked == 0 { saved } else { asked };
        let python_version =
            if asked.python_version.is_empty() { saved.python_version } else { asked.python_version };
        let worker_labels =
            if asked.worker_labels.is_empty() { saved.worker_labels } else { asked.worker_labels };
        Ok(v1::CreateSessionRequest {
            env,
            labels,
            metadata,
            limits: Some(sessions::merged(
                saved.limits.unwrap_or_default(),
                asked.limits.unwrap_or_default(),
            )),
            worker_labels,
            python_version,
            ttl_ms: or(asked.ttl_ms, saved.ttl_ms),
            idle_timeout_ms: or(asked.idle_timeout_ms, saved.idle_timeout_ms),
            hibernate_after_ms: asked.hibernate_after_ms.or(saved.hibernate_after_ms),
            network: asked.network.or(saved.network),
            // Those that are there still.
            secrets: match asked.secrets.is_empty() {
                true => self.cluster.secrets.known(&caller.tenant, saved.secrets),
                false => asked.secrets,
            },
            inject: match asked.inject.is_empty() {
                true => self.cluster.secrets.known_injections(&caller.tenant, saved.inject),
                false => asked.inject,
            },
            checkpoint_id: record.id,
            // They are in it.
            packages: Vec::new(),
            ..asked
        })
    }

    /// The Python that a checkpoint needs.
    pub async fn python_of(&self, caller: &Caller, id: &str) -> Result<(CheckpointId, String)> {
        let manifest = self.verified(&self.get(caller, id).await?)?;
        Ok((manifest.id, manifest.python_version))
    }

    /// Ends checkpoints that sessions were moved by and that none needs any more, and those that are too old.
    pub async fn retain(&self) -> Result<()> {
        let oldest = match self.quota.days {
            0 => i64::MIN,
            days => now()
                .wall_ms
                .saturating_sub(i64::try_from(days).unwrap_or(i64::MAX).saturating_mul(86_400_000)),
        };
        let of_templates = templates::checkpoints(&self.cluster).await?;
        for record in self.cluster.store.live(Aggregate::Checkpoint).await? {
            let Ok(manifest) = manifest(&record) else { continue };
            let over = manifest.purpose != Purpose::Keep || record.row.created_ms < oldest;
            if over && !self.is_needed(&manifest) && !of_templates.contains(&manifest.id) {
                let event =
                    if manifest.purpose == Purpose::Keep { "checkpoint.expired" } else { "checkpoint.used" };
                self.end(record, event).await?;
            }
        }
        Ok(())
    }
}
