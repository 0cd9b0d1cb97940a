//! Artifacts of sessions: taken from workers before the result that names them, kept as rows with that result's commit,
//! listed and read when the session is long gone, until they are deleted or too old. The bytes are `blobs`.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use cooper_common::{
    error::{Code, Error, Result},
    ids::{ArtifactId, SessionId, TaskId},
    limits::{artifact as limits, request::PAGE_MAX},
};
use cooper_core::{artifact::Artifact, change::Aggregate, cluster::Out, lease::Fence};
use cooper_proto::v1;

use crate::{
    blobs::{Blobs, Digest, Draft},
    caller::Caller,
    check,
    cluster::{Cluster, durable, now},
    sessions,
    store::{Cursor, Filter, Record},
    upkeep::{blocking, files},
};

/// What a tenant may keep; 0 = nothing.
#[derive(Debug, Clone, Copy)]
pub struct Quota {
    pub artifacts: u64,
    pub bytes: u64,
    /// Older ones go; 0 = however old.
    pub days: u64,
}

impl Default for Quota {
    fn default() -> Self {
        Self {
            artifacts: limits::PER_TENANT_MAX,
            bytes: limits::MIB_PER_TENANT_MAX << 20,
            days: limits::DAYS,
        }
    }
}

/// What is kept of a tenant's, and what is on its way to be.
#[derive(Debug, Clone, Copy, Default)]
struct Used {
    artifacts: u64,
    bytes: u64,
}

/// Files that are on the disk and whose attempt's result is not recorded yet, with the tenant.
type Taken = BTreeMap<(TaskId, Fence), (String, Vec<Artifact>)>;

#[derive(Default)]
struct Books {
    used: HashMap<String, Used>,
    taken: Taken,
}

impl Books {
    fn give_back(&mut self, tenant: &str, artifacts: &[Artifact]) {
        if let Some(used) = self.used.get_mut(tenant) {
            used.artifacts = used.artifacts.saturating_sub(artifacts.len() as u64);
            let bytes: u64 = artifacts.iter().map(|it| it.size_bytes).sum();
            used.bytes = used.bytes.saturating_sub(bytes);
        }
    }
}

pub struct Artifacts {
    cluster: Arc<Cluster>,
    blobs: Arc<Blobs>,
    quota: Quota,
    books: Mutex<Books>,
}

/// A file on its way in.
pub struct Incoming {
    tenant: String,
    task: TaskId,
    fence: Fence,
    name: String,
    size_bytes: u64,
    sha256: String,
    draft: Draft,
    hasher: ring::digest::Context,
}

impl Incoming {
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        Ok(self.draft.write(bytes)?)
    }
}

/// The artifact that a row is.
pub fn body(record: &Record) -> Result<Artifact> {
    serde_json::from_str(&record.row.body)
        .map_err(|_| Error::internal(format!("the stored artifact {} cannot be read", record.id)))
}

fn not_found(what: &str) -> Error {
    Error::new(Code::ArtifactNotFound, format!("there is no artifact {what}"))
}

impl Artifacts {
    pub async fn load(cluster: Arc<Cluster>, blobs: Arc<Blobs>, quota: Quota) -> Result<Arc<Self>> {
        let mut books = Books::default();
        for record in cluster.store.live(Aggregate::Artifact).await? {
            let used = books.used.entry(record.row.tenant.clone()).or_default();
            used.artifacts += 1;
            used.bytes += body(&record)?.size_bytes;
        }
        Ok(Arc::new(Self { cluster, blobs, quota, books: Mutex::new(books) }))
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens what a worker announces.
    ///
    /// # Errors
    /// `quota_exceeded`, `store_full`: it is not to be kept. `stale_lease`: the attempt is not the worker's any more.
    pub fn begin(&self, worker: &str, up: v1::ArtifactUp) -> Result<Incoming> {
        let task: TaskId = up.task_id.parse().map_err(|_| Error::invalid("task_id is malformed"))?;
        let fence = up.fence.unwrap_or_default();
        let fence = Fence { epoch: fence.epoch, attempt: fence.attempt };
        let tenant = self.cluster.look(|core| {
            let held = core.is_held(worker, task, fence);
            core.task(task)
                .filter(|task| held && task.body.session.is_some())
                .map(|task| task.tenant.to_string())
        });
        let tenant = tenant.ok_or_else(|| {
            Error::new(Code::StaleLease, format!("task {task} is not, or not any more, this worker's"))
        })?;
        check::size("the artifact's name", up.name.len(), limits::NAME_BYTES_MAX)?;
        check::at_most("the artifact's size", up.size_bytes, limits::FILE_BYTES_MAX)?;
        self.cluster.space.admit()?;
        self.forget_stale();
        let mut books = self.books();
        let used = *books.used.entry(tenant.clone()).or_default();
        let known = books.taken.get(&(task, fence)).map_or(&[][..], |(_, taken)| &taken[..]);
        if known.len() >= limits::PER_EXECUTION_MAX && !known.iter().any(|it| it.name == up.name) {
            return Err(Error::invalid(format!(
                "an execution makes {} artifacts",
                limits::PER_EXECUTION_MAX
            )));
        }
        // Sent before, in an attach that broke: it counts once.
        let again: u64 = known.iter().filter(|it| it.name == up.name).map(|it| it.size_bytes).sum();
        let Quota { artifacts, bytes, .. } = self.quota;
        let fresh = u64::from(!known.iter().any(|it| it.name == up.name));
        if used.artifacts + fresh > artifacts || used.bytes - again.min(used.bytes) + up.size_bytes > bytes {
            return Err(Error::new(
                Code::QuotaExceeded,
                format!(
                    "{} of {artifacts} artifacts and {} of {bytes} bytes are kept; {:?} has {} bytes",
                    used.artifacts, used.bytes, up.name, up.size_bytes
                ),
            )
            .with_hint("delete some: `cooper artifacts rm`"));
        }
        let draft = self.blobs.draft_of(up.size_bytes)?;
        let hasher = ring::digest::Context::new(&ring::digest::SHA256);
        let v1::ArtifactUp { name, size_bytes, sha256, .. } = up;
        Ok(Incoming { tenant, task, fence, name, size_bytes, sha256, draft, hasher })
    }

    /// All of it came: on the disk when this returns, and a row's with the result of its attempt.
    ///
    /// # Errors
    /// `invalid_argument`: what came is not what was announced.
    pub async fn take(&self, incoming: Incoming) -> Result<()> {
        let Incoming { tenant, task, fence, name, size_bytes, sha256, draft, hasher } = incoming;
        let read: String = hasher.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        if draft.bytes_written() != size_bytes || read != sha256 {
            return Err(Error::invalid(format!("artifact {name:?} did not arrive as it was announced")));
        }
        let digest: Digest = blocking(move || Ok(draft.keep()?)).await?;
        let media_type = media_type(&name).to_owned();
        let id = ArtifactId::new();
        let artifact =
            Artifact { id, name, size_bytes, digest: digest.to_string(), sha256, media_type, task };
        let mut books = self.books();
        let (_, taken) = books.taken.entry((task, fence)).or_insert_with(|| (tenant.clone(), Vec::new()));
        let before: Vec<Artifact> = taken.extract_if(.., |it| it.name == artifact.name).collect();
        taken.push(artifact);
        books.give_back(&tenant, &before);
        let used = books.used.entry(tenant).or_default();
        used.artifacts += 1;
        used.bytes += size_bytes;
        Ok(())
    }

    /// What was taken of an attempt that has ended, and fills in what its outcome says of it.
    ///
    /// # Errors
    /// The outcome names one that is not here (any more): the worker has to send it again.
    pub fn of_result(&self, task: TaskId, fence: Fence, outcome: &mut v1::Outcome) -> Result<Vec<Artifact>> {
        let books = self.books();
        let taken = books.taken.get(&(task, fence)).map_or(&[][..], |(_, taken)| &taken[..]);
        let mut made = Vec::with_capacity(outcome.artifacts.len());
        for named in &mut outcome.artifacts {
            let artifact = taken.iter().find(|it| it.name == named.name && it.sha256 == named.sha256);
            let artifact = artifact.ok_or_else(|| {
                Error::new(Code::StaleLease, format!("artifact {:?} of task {task} is not here", named.name))
            })?;
            named.id = artifact.id.to_string();
            named.size_bytes = artifact.size_bytes;
            named.media_type.clone_from(&artifact.media_type);
            made.push(artifact.clone());
        }
        Ok(made)
    }

    /// The result of an attempt is decided: what it names are rows, the rest is nobody's.
    pub fn decided(&self, task: TaskId, fence: Fence, made: &[Artifact]) {
        let mut books = self.books();
        if let Some((tenant, taken)) = books.taken.remove(&(task, fence)) {
            let rest: Vec<_> = taken.into_iter().filter(|it| !made.contains(it)).collect();
            books.give_back(&tenant, &rest);
        }
    }

    /// Attempts that were given up take what they sent along.
    fn forget_stale(&self) {
        // Not held while the core is asked: whoever decides about a result comes here with the core in hand.
        let mut keys: Vec<(TaskId, Fence)> = self.books().taken.keys().copied().collect();
        self.cluster.look(|core| {
            keys.retain(|(task, fence)| {
                core.task(*task).is_none_or(|task| !task.held() || task.body.fence != *fence)
            });
        });
        for (task, fence) in keys {
            self.decided(task, fence, &[]);
        }
    }

    /// The tenant's artifact; another tenant's is absent (I10), and so is one that was deleted.
    pub async fn get(&self, caller: &Caller, id: &str) -> Result<Record> {
        let parsed: ArtifactId = id.parse().map_err(|_| not_found(&format!("{id:?}")))?;
        let record = self.cluster.store.get(Aggregate::Artifact, &parsed.to_string()).await?;
        record
            .filter(|record| record.row.tenant == *caller.tenant && !record.row.ended)
            .ok_or_else(|| not_found(id))
    }

    /// The newest of this name.
    pub async fn named(&self, caller: &Caller, session: &str, name: &str) -> Result<Record> {
        let id = sessions::resolve(&self.cluster, caller, session)?;
        let mut filter = self.of_session(caller, id, PAGE_MAX as usize);
        loop {
            let page = self.cluster.store.list(Aggregate::Artifact, filter.clone()).await?;
            for record in page.records {
                if body(&record)?.name == name {
                    return Ok(record);
                }
            }
            match page.next {
                Some(next) => filter.before = Some(next),
                None => return Err(not_found(&format!("{name:?} of session {session}"))),
            }
        }
    }

    fn of_session(&self, caller: &Caller, session: SessionId, limit: usize) -> Filter {
        Filter {
            tenant: Some(caller.tenant.to_string()),
            parent: Some(session.to_string()),
            ended: Some(false),
            limit,
            ..Filter::default()
        }
    }

    /// Of a session, newest first; of one of its executions all at once.
    pub async fn list(
        &self,
        caller: &Caller,
        request: v1::ListArtifactsRequest,
    ) -> Result<(Vec<Record>, Option<Cursor>)> {
        let id = sessions::resolve(&self.cluster, caller, &request.session_id)?;
        let asked = check::page(request.page)?;
        let store = &self.cluster.store;
        if request.task_id.is_empty() {
            let filter = Filter { before: asked.before, ..self.of_session(caller, id, asked.limit) };
            let page = store.list(Aggregate::Artifact, filter).await?;
            if page.records.is_empty() {
                // Whoever asks for a session that never was learns that. One that was deleted may have left some.
                sessions::get(&self.cluster, caller, &request.session_id).await?;
            }
            return Ok((page.records, page.next));
        }
        let task: TaskId = request
            .task_id
            .parse()
            .map_err(|_| Error::new(Code::TaskNotFound, format!("there is no task {:?}", request.task_id)))?;
        let mut filter = self.of_session(caller, id, PAGE_MAX as usize);
        let mut all = Vec::new();
        loop {
            let page = store.list(Aggregate::Artifact, filter.clone()).await?;
            for record in page.records {
                if body(&record)?.task == task {
                    all.push(record);
                }
            }
            match page.next {
                Some(next) => filter.before = Some(next),
                None => return Ok((all, None)),
            }
        }
    }

    /// A part of it, from `offset` on; all of it is checked against its digest on the way.
    pub fn read(
        &self,
        artifact: &Artifact,
        offset: u64,
        length: u64,
    ) -> Result<impl futures::Stream<Item = Result<bytes::Bytes>> + Send + use<>> {
        use futures::TryStreamExt as _;
        let length = if length == 0 { u64::MAX } else { length };
        let digest = artifact.digest.parse()?;
        Ok(self.blobs.stream_range(digest, offset, length)?.map_err(Error::from))
    }

    pub async fn delete(&self, caller: &Caller, id: &str) -> Result<Record> {
        let record = self.get(caller, id).await?;
        self.end(record.clone(), "artifact.deleted").await?;
        Ok(record)
    }

    async fn end(&self, record: Record, event: &str) -> Result<()> {
        let artifact = body(&record)?;
        let tenant = record.row.tenant.clone();
        let change = artifact.ended(now(), record.version, record.row, event);
        let decided = self.cluster.decide(|_, _| {
            let mut out = Out::default();
            out.full = true;
            out.changes.push(change);
            Ok(((), out))
        });
        durable(decided?.1).await?;
        self.books().give_back(&tenant, &[artifact]);
        Ok(())
    }

    /// Ends those that are too old.
    pub async fn retain(&self) -> Result<()> {
        self.forget_stale();
        let days = match self.quota.days {
            0 => return Ok(()),
            days => i64::try_from(days).unwrap_or(i64::MAX),
        };
        let oldest = now().wall_ms.saturating_sub(days.saturating_mul(86_400_000));
        let mut old = Vec::new();
        files::each(&*self.cluster.store, Aggregate::Artifact, |record| {
            if !record.row.ended && record.row.created_ms < oldest {
                old.push(record);
            }
            Ok(())
        })
        .await?;
        for record in old {
            self.end(record, "artifact.expired").await?;
        }
        Ok(())
    }
}

/// By the ending of the name. Nothing looks at the bytes.
fn media_type(name: &str) -> &'static str {
    let ending = name.rsplit_once('.').map_or(String::new(), |(_, ending)| ending.to_ascii_lowercase());
    match ending.as_str() {
        "txt" | "log" | "py" | "toml" | "ini" | "sh" | "sql" => "text/plain",
        "md" => "text/markdown",
        "csv" => "text/csv",
        "tsv" => "text/tab-separated-values",
        "html" | "htm" => "text/html",
        "css" => "text/css",
        "js" => "text/javascript",
        "json" | "ipynb" => "application/json",
        "jsonl" => "application/jsonl",
        "xml" => "application/xml",
        "yaml" | "yml" => "application/yaml",
        "pdf" => "application/pdf",
        "zip" | "whl" => "application/zip",
        "gz" | "tgz" => "application/gzip",
        "tar" => "application/x-tar",
        "parquet" => "application/vnd.apache.parquet",
        "xlsx" => "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
        "docx" => "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
        "pptx" => "application/vnd.openxmlformats-officedocument.presentationml.presentation",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "svg" => "image/svg+xml",
        "mp3" => "audio/mpeg",
        "wav" => "audio/wav",
        "mp4" => "video/mp4",
        "webm" => "video/webm",
        _ => "application/octet-stream",
    }
}
