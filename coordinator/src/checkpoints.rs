//! Checkpoints: kept, listed, deleted by their tenants; and the transfers between workers and the blob store that the core
//! asks for. A checkpoint is a row with a signed manifest, and an archive among the artifacts that the manifest names.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use cooper_common::{
    error::{Code, Error, Result},
    ids::{CheckpointId, SessionId},
    limits::checkpoint as limits,
};
use cooper_core::{
    change::{Aggregate, Change, NewEvent, Row},
    cluster::{Transfer, What},
    session::{Purpose, Reason, Saving},
};
use cooper_proto::v1;
use futures::StreamExt;
use prost::Message as _;
use serde::{Deserialize, Serialize};

use crate::{
    blobs::{Blobs, Digest},
    caller::Caller,
    check,
    cluster::{Cluster, durable, now},
    sessions,
    store::{Filter, Page, Record},
    templates,
    upkeep::blocking,
};

/// In the data directory; what it signed is ours.
pub const KEY_FILE: &str = "checkpoint.key";
const KEY_BYTES: usize = 32;
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
    /// BLAKE3 of the session's spec, which is in the row.
    pub spec: String,
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
    key: [u8; KEY_BYTES],
    quota: Quota,
    /// Why a checkpoint that somebody waits for did not come to be.
    failures: Mutex<HashMap<CheckpointId, Error>>,
}

impl Checkpoints {
    /// # Errors
    /// `data_unusable`.
    pub fn open(cluster: Arc<Cluster>, blobs: Arc<Blobs>, data: &Path, quota: Quota) -> Result<Arc<Self>> {
        let path = data.join(KEY_FILE);
        let key = read_key(&path).map_err(|cause| {
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
        let wait_ms = if request.wait_ms == 0 { limits::WAIT_MS } else { request.wait_ms };
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
        self.cluster.space.admit()?;
        self.within_quota(&caller.tenant, 0).await?;
        let id = CheckpointId::new();
        let mut changes = self.cluster.session_changes();
        let begun = self
            .cluster
            .decide(|core, now| Ok(((), core.checkpoint(now, session, id, &request.name, key, wait_ms)?)));
        durable(begun?.1).await?;
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
                    // Recorded between the two looks?
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
            ttl_ms: or(asked.ttl_ms, saved.ttl_ms),
            idle_timeout_ms: or(asked.idle_timeout_ms, saved.idle_timeout_ms),
            network: asked.network.or(saved.network),
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

    /// Carries what the core asks for, as long as it is not dropped.
    pub async fn run(self: Arc<Self>) {
        loop {
            let _ = tokio::time::timeout(LOOK, self.cluster.transfers.notified()).await;
            // What is handed out here is already decided; what it leads to is recorded when it is there.
            let due = self.cluster.decide(|core, now| Ok((core.due_transfers(now), Default::default())));
            for transfer in due.map(|(due, _)| due).unwrap_or_default() {
                let this = self.clone();
                tokio::spawn(async move { this.carry(transfer).await });
            }
        }
    }

    async fn carry(&self, transfer: Transfer) {
        let Transfer { job, session, .. } = transfer;
        let brought = match &transfer.what {
            What::Pack { saving, python_version } => self.pack(&transfer, saving, python_version).await,
            What::Restore { checkpoint } => self.restore(&transfer, *checkpoint).await,
        };
        let Err(error) = brought else { return };
        tracing::warn!(%session, worker = %transfer.worker, %error, "a session was not carried");
        let hopeless = match &transfer.what {
            What::Pack { .. } => !is_passing(error.code),
            What::Restore { .. } => is_lasting(error.code),
        };
        let lasting =
            hopeless.then(|| Reason { code: error.code.as_str().to_owned(), message: error.message.clone() });
        if let What::Pack { saving, .. } = &transfer.what
            && saving.purpose == Purpose::Keep
            && lasting.is_some()
        {
            let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
            failures.insert(saving.checkpoint, error);
        }
        self.cluster.tell(|core, now| match transfer.what {
            What::Pack { .. } => core.pack_failed(now, session, job, lasting),
            What::Restore { .. } => core.restore_failed(now, session, job, lasting),
        });
    }

    async fn pack(&self, transfer: &Transfer, saving: &Saving, python_version: &str) -> Result<()> {
        let session = transfer.session;
        let record = self.cluster.store.get(Aggregate::Session, &session.to_string()).await?;
        let record = record.ok_or_else(|| Error::internal("a session that is saved has no row"))?;
        let last = saving.purpose == Purpose::Move;
        let (summary, mut body) =
            self.cluster.fleet.pack(&transfer.worker, session.to_string(), last).await?;
        let mut draft = self.blobs.draft_of(limits::ARCHIVE_BYTES_MAX)?;
        while let Some(piece) = body.recv().await {
            let piece = piece?;
            draft = blocking(move || {
                draft.write(&piece)?;
                Ok(draft)
            })
            .await?;
        }
        let archive_bytes = draft.bytes_written();
        if saving.purpose == Purpose::Keep {
            self.within_quota(&record.row.tenant, archive_bytes).await?;
        }
        cooper_common::failpoint::pass(cooper_common::failpoint::name::PACKED_BEFORE_KEPT);
        let digest = blocking(move || Ok(draft.keep()?)).await?;
        let spec = record.row.spec.unwrap_or_default();
        let manifest = Manifest {
            id: saving.checkpoint,
            tenant: record.row.tenant.clone(),
            session,
            purpose: saving.purpose,
            name: saving.name.clone(),
            python_version: python_version.to_owned(),
            digest: digest.to_string(),
            archive_bytes,
            files: summary.files,
            directories: summary.directories,
            symlinks: summary.symlinks,
            hard_links: summary.hard_links,
            content_bytes: summary.content_bytes,
            skipped: summary.skipped,
            skipped_count: summary.skipped_count,
            spec: blake3::hash(&spec).to_hex().to_string(),
        };
        let signature = self.sign(&manifest)?;
        let event = serde_json::json!({"session": session, "archive_bytes": archive_bytes});
        let body = serde_json::to_string(&Body { manifest, signature })
            .map_err(|error| Error::internal(error.to_string()))?;
        let decided = self.cluster.decide(|core, now| {
            let wanted = core.wants_transfer(session, transfer.job);
            let mut out = core.packed(now, session, transfer.job);
            if wanted {
                out.changes.push(Change {
                    aggregate: Aggregate::Checkpoint,
                    id: saving.checkpoint.to_string(),
                    expected: 0,
                    row: Row {
                        tenant: record.row.tenant,
                        state: "ready".to_owned(),
                        ended: false,
                        parent: session.to_string(),
                        key: saving.key.clone(),
                        created_ms: now.wall_ms,
                        updated_ms: now.wall_ms,
                        body,
                        spec: Some(spec),
                        result: None,
                    },
                    events: vec![NewEvent { kind: "checkpoint.created".to_owned(), body: event.to_string() }],
                    output: Vec::new(),
                });
            }
            Ok(((), out))
        });
        durable(decided?.1).await
    }

    async fn restore(&self, transfer: &Transfer, checkpoint: CheckpointId) -> Result<()> {
        let record = self.cluster.store.get(Aggregate::Checkpoint, &checkpoint.to_string()).await?;
        let gone = || Error::new(Code::CheckpointDamaged, format!("checkpoint {checkpoint} is gone"));
        let manifest = self.verified(&record.filter(|record| !record.row.ended).ok_or_else(gone)?)?;
        let tenant = self.cluster.look(|core| core.session(transfer.session).map(|it| it.tenant.to_string()));
        if tenant.is_some_and(|tenant| tenant != manifest.tenant) {
            return Err(gone());
        }
        let damaged = |error: crate::blobs::Error| match error {
            crate::blobs::Error::NotFound(_) | crate::blobs::Error::Damaged(_) => Error::new(
                Code::CheckpointDamaged,
                format!("the archive of checkpoint {checkpoint} is not what it was: {error}"),
            ),
            other => other.into(),
        };
        let digest: Digest = manifest.digest.parse().map_err(damaged)?;
        let mut pieces = Box::pin(self.blobs.stream(digest).map_err(damaged)?);
        let op = v1::call::Op::Unpack(v1::UnpackSession {});
        let (body, unpacked) =
            self.cluster.fleet.write(&transfer.worker, transfer.session.to_string(), op)?;
        let send = async {
            while let Some(piece) = pieces.next().await {
                if body.send(piece.map_err(damaged)?).await.is_err() {
                    // The worker gave up; its answer says why.
                    return Ok(());
                }
            }
            cooper_common::failpoint::pass(cooper_common::failpoint::name::RESTORE_BEFORE_UNPACKED);
            // Complete. What was damaged fails above, and the body is dropped without this.
            let _ = body.send(Bytes::new()).await;
            Ok::<(), Error>(())
        };
        tokio::pin!(send, unpacked);
        let mut sent = false;
        loop {
            tokio::select! {
                result = &mut send, if !sent => {
                    result?;
                    sent = true;
                }
                done = &mut unpacked => {
                    done?;
                    break;
                }
            }
        }
        let _ = self.cluster.decide(|core, _| {
            core.restored(transfer.session, transfer.job);
            Ok(((), Default::default()))
        });
        Ok(())
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
            let over = manifest.purpose == Purpose::Move || record.row.created_ms < oldest;
            if over && !self.is_needed(&manifest) && !of_templates.contains(&manifest.id) {
                let event =
                    if manifest.purpose == Purpose::Move { "checkpoint.used" } else { "checkpoint.expired" };
                self.end(record, event).await?;
            }
        }
        Ok(())
    }
}

/// Packing is tried again after this; what else is wrong with a session's files stays wrong.
fn is_passing(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable
            | Code::NoWorker
            | Code::Overloaded
            | Code::StaleLease
            | Code::TimedOut
            | Code::StoreUnavailable
            | Code::SessionNotReady
    )
}

/// Whether restoring again would not help.
fn is_lasting(code: Code) -> bool {
    matches!(
        code,
        Code::TooLarge
            | Code::QuotaExceeded
            | Code::PathEscapes
            | Code::InvalidArgument
            | Code::CheckpointDamaged
            | Code::NotSupported
    )
}

fn read_key(path: &Path) -> io::Result<[u8; KEY_BYTES]> {
    match fs::read(path) {
        Ok(bytes) => bytes.try_into().map_err(|_| io::Error::other("it is no key")),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
            let key: [u8; KEY_BYTES] = rand::random();
            // Whole or not at all: a start that dies in between leaves no half of a key.
            let draft = path.with_extension("new");
            let mut options = fs::OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
            io::Write::write_all(&mut file, &key)?;
            file.sync_all()?;
            fs::rename(draft, path)?;
            Ok(key)
        }
        Err(cause) => Err(cause),
    }
}
