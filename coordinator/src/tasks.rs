//! Tasks: submit, follow to the end, cancel, look up.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use cooper_common::{
    error::{Code, Error, Result},
    ids::TaskId,
    limits,
};
use cooper_core::{
    change::Aggregate,
    cluster::{Ended, Why},
    task::{self, Task},
};
use cooper_proto::v1;
use prost::Message as _;

use crate::{
    caller::Caller,
    check,
    cluster::{Cluster, durable},
    hub::Follower,
    output::Stream,
    sessions,
    store::{Filter, Page, Record},
};

/// What became of a submit.
pub enum Submitted {
    /// A new task; its end can be followed from before its beginning.
    New(TaskId),
    /// The idempotency key was used before, for the same request.
    Known(TaskId),
}

impl Submitted {
    pub fn id(&self) -> TaskId {
        match self {
            Submitted::New(id) | Submitted::Known(id) => *id,
        }
    }
}

/// Turns a request into what the core takes. Answers with the known task when the key was used before. The caller has
/// the turn of the key.
async fn prepare(
    cluster: &Arc<Cluster>,
    caller: &Caller,
    mut request: v1::SubmitTaskRequest,
) -> Result<std::result::Result<task::Submit, TaskId>> {
    use v1::task_spec::Kind;
    check::idempotency_key(&request.idempotency_key)?;
    let mut spec = request.spec.take().ok_or_else(|| Error::invalid("spec is missing"))?;
    check::spec(&spec)?;
    let (priority, scheduling) = check::scheduling(&request, &spec)?;
    // Before the session is looked for: it may have ended since, and the task is known all the same.
    if let Some(known) = known(cluster, caller, &request.idempotency_key, &spec).await? {
        return Ok(Err(known));
    }
    let mut timeout_ms = spec.timeout_ms;
    let mut output_limit_bytes = limits::exec::OUTPUT_BYTES;
    let mut session = None;
    if !spec.session_id.is_empty() {
        let id = sessions::resolve(cluster, caller, &spec.session_id)?;
        // The live session in memory answers without a read; whatever is not there, the store explains.
        let live = cluster.look(|core| {
            core.session(id)
                .filter(|session| session.tenant == caller.tenant)
                .map(|session| session.body.clone())
        });
        let body = match live {
            Some(body) => body,
            None => {
                let record = sessions::get(cluster, caller, &spec.session_id).await?;
                let state = record.row.state;
                return Err(Error::new(Code::SessionEnded, format!("session {id} is {state}")));
            }
        };
        crate::executions::supported(cluster, &body.worker, &spec)?;
        if timeout_ms == 0 {
            timeout_ms = body.exec_timeout_ms;
        }
        knows_install(cluster, &body.worker, &spec)?;
        output_limit_bytes = body.output_limit_bytes;
        spec.session_id = id.to_string();
        session = Some(id);
    }
    if timeout_ms == 0 {
        timeout_ms = limits::exec::TIMEOUT_MS;
    }
    let kind = match &spec.kind {
        Some(Kind::Python(_)) => task::Kind::Python,
        Some(Kind::Shell(_)) => task::Kind::Shell,
        Some(Kind::Install(_) | Kind::Uninstall(_)) => task::Kind::Install,
        Some(Kind::Noop(_)) => task::Kind::Noop,
        Some(Kind::Step(_)) | None => return Err(Error::invalid("spec.kind cannot be submitted")),
    };
    Ok(Ok(task::Submit {
        id: TaskId::new(),
        tenant: caller.tenant.clone(),
        key: request.idempotency_key,
        kind,
        session,
        worker: None,
        timeout_ms,
        output_limit_bytes,
        priority,
        scheduling,
        spec: spec.encode_to_vec().into(),
    }))
}

/// A worker of before the newer fields of an install would take no notice of them.
fn knows_install(cluster: &Cluster, worker: &str, spec: &v1::TaskSpec) -> Result<()> {
    let newer = match &spec.kind {
        Some(v1::task_spec::Kind::Install(it)) => {
            !it.requirements.is_empty() || it.upgrade || !it.index_url.is_empty()
        }
        Some(v1::task_spec::Kind::Uninstall(_)) => true,
        _ => false,
    };
    let known = |core: &cooper_core::cluster::Cluster| {
        let worker = core.worker(worker);
        worker.is_none_or(|worker| worker.body.capabilities.contains(cooper_core::worker::PACKAGES))
    };
    match newer && !cluster.look(known) {
        true => Err(Error::new(Code::NotSupported, format!("worker {worker} is older than this request"))),
        false => Ok(()),
    }
}

/// The task that was submitted with this key, for the same thing.
async fn known(cluster: &Cluster, caller: &Caller, key: &str, spec: &v1::TaskSpec) -> Result<Option<TaskId>> {
    if key.is_empty() {
        return Ok(None);
    }
    let Some(record) = cluster.store.by_key(Aggregate::Task, Some(&caller.tenant), key).await? else {
        return Ok(None);
    };
    // Maps have no order: bytes of the same request may differ.
    let stored = v1::TaskSpec::decode(record.row.spec.as_deref().unwrap_or_default());
    let same = match stored {
        Ok(stored) => {
            let session = stored.session_id.clone();
            let named = v1::TaskSpec { session_id: spec.session_id.clone(), ..stored };
            named == *spec && same_session(cluster, caller, &spec.session_id, &session).await?
        }
        Err(_) => false,
    };
    if same { parse(&record.id).map(Some) } else { Err(check::other_request(key)) }
}

/// Whether what a request calls a session, by id or name, is the one with this id: now, or when it lived.
async fn same_session(cluster: &Cluster, caller: &Caller, named: &str, id: &str) -> Result<bool> {
    if named == id {
        return Ok(true);
    }
    if named.is_empty() || id.is_empty() {
        return Ok(false);
    }
    if let Ok(resolved) = sessions::resolve(cluster, caller, named) {
        return Ok(resolved.to_string() == id);
    }
    let record = cluster.store.get(Aggregate::Session, id).await?;
    Ok(match record {
        Some(record) => sessions::body(&record)?.name == named,
        None => false,
    })
}

fn parse(id: &str) -> Result<TaskId> {
    id.parse().map_err(|_| Error::internal(format!("{id:?} was stored as a task id")))
}

/// Submits a task; it is durable when this returns.
pub async fn submit(
    cluster: &Arc<Cluster>,
    caller: &Caller,
    request: v1::SubmitTaskRequest,
) -> Result<Submitted> {
    let _turn = cluster.keys.turn(Aggregate::Task, &caller.tenant, &request.idempotency_key).await;
    let submit = match prepare(cluster, caller, request).await? {
        Ok(submit) => submit,
        Err(known) => return Ok(Submitted::Known(known)),
    };
    let id = submit.id;
    cluster.space.admit()?;
    let ((), recorded) = cluster.decide(|core, now| core.submit(now, submit, true).map(|out| ((), out)))?;
    durable(recorded).await?;
    Ok(Submitted::New(id))
}

/// Submits a task whose client is answered by its result: the result's commit carries the submit to the disk (DESIGN §9).
/// Follow it before anything can happen to it.
pub async fn execute(
    cluster: &Arc<Cluster>,
    caller: &Caller,
    request: v1::SubmitTaskRequest,
) -> Result<(Submitted, Follower)> {
    let _turn = cluster.keys.turn(Aggregate::Task, &caller.tenant, &request.idempotency_key).await;
    let submit = match prepare(cluster, caller, request).await? {
        Ok(submit) => submit,
        Err(known) => {
            let follower = cluster.hub.follow(known);
            return Ok((Submitted::Known(known), follower));
        }
    };
    let id = submit.id;
    cluster.space.admit()?;
    let follower = cluster.hub.follow(id);
    cluster.output.begin(id);
    let ((), recorded) = cluster.decide(|core, now| core.submit(now, submit, false).map(|out| ((), out)))?;
    durable(recorded).await?;
    Ok((Submitted::New(id), follower))
}

/// Submits many in one commit; each is judged on its own. Durable when this returns.
pub async fn submit_all(
    cluster: &Arc<Cluster>,
    caller: &Caller,
    requests: Vec<v1::SubmitTaskRequest>,
) -> Result<Vec<Result<TaskId>>> {
    check::at_most("tasks", requests.len() as u64, limits::request::SUBMIT_BATCH_MAX as u64)?;
    let mut results: Vec<Result<TaskId>> = Vec::with_capacity(requests.len());
    let mut submits = Vec::with_capacity(requests.len());
    let mut places = Vec::with_capacity(requests.len());
    let keys = requests.iter().map(|request| request.idempotency_key.as_str());
    let _turns = cluster.keys.turns(Aggregate::Task, &caller.tenant, keys).await;
    // Where a key of this batch came first, and who else in it has the same.
    let mut firsts = HashMap::new();
    let mut seconds = Vec::new();
    for request in requests {
        let key = &request.idempotency_key;
        if let Some((first, spec)) = firsts.get(key) {
            if *spec == request.spec {
                seconds.push((results.len(), *first));
            }
            results.push(Err(check::other_request(key)));
            continue;
        }
        if !key.is_empty() {
            firsts.insert(key.clone(), (results.len(), request.spec.clone()));
        }
        match prepare(cluster, caller, request).await {
            Ok(Ok(submit)) => {
                places.push(results.len());
                results.push(Ok(submit.id));
                submits.push(submit);
            }
            Ok(Err(known)) => results.push(Ok(known)),
            Err(error) => results.push(Err(error)),
        }
    }
    if !submits.is_empty() {
        cluster.space.admit()?;
        let (judged, recorded) = cluster.decide(|core, now| {
            let (out, judged) = core.submit_all(now, submits);
            Ok((judged, out))
        })?;
        durable(recorded).await?;
        for (place, judged) in places.into_iter().zip(judged) {
            if let Err(error) = judged {
                results[place] = Err(error);
            }
        }
    }
    for (second, first) in seconds {
        results[second] = results[first].clone();
    }
    Ok(results)
}

fn not_found(id: &str) -> Error {
    Error::new(Code::TaskNotFound, format!("there is no task {id:?}"))
}

/// The tenant's task; another tenant's is absent (I10).
pub async fn get(cluster: &Cluster, caller: &Caller, id: &str) -> Result<Record> {
    let parsed: TaskId = id.parse().map_err(|_| not_found(id))?;
    let record = cluster.store.get(Aggregate::Task, &parsed.to_string()).await?;
    record.filter(|record| record.row.tenant == *caller.tenant).ok_or_else(|| not_found(id))
}

pub async fn list(
    cluster: &Cluster,
    caller: &Caller,
    page: Option<v1::Page>,
    session: &str,
    states: Vec<task::State>,
) -> Result<Page> {
    let states = states.into_iter().map(|state| state.as_str().to_owned()).collect();
    let mut filter = Filter { tenant: Some(caller.tenant.to_string()), states, ..check::page(page)? };
    if !session.is_empty() {
        filter.parent = Some(sessions::get(cluster, caller, session).await?.id);
    }
    Ok(cluster.store.list(Aggregate::Task, filter).await?)
}

pub async fn cancel(cluster: &Arc<Cluster>, caller: &Caller, id: &str) -> Result<Record> {
    let record = get(cluster, caller, id).await?;
    if record.row.ended {
        return Ok(record);
    }
    let task = parse(&record.id)?;
    match cluster.decide(|core, now| core.cancel(now, task).map(|out| ((), out))) {
        Ok(((), recorded)) => durable(recorded).await?,
        // It ended between the two looks at it.
        Err(error) if error.code == Code::TaskNotFound => {}
        Err(error) => return Err(error),
    }
    get(cluster, caller, id).await
}

/// What a task waits for; `None` = it ended, as its record says.
pub async fn explain(cluster: &Cluster, caller: &Caller, id: &str) -> Result<(Record, Option<Why>)> {
    let record = get(cluster, caller, id).await?;
    let task = parse(&record.id)?;
    match cluster.look(|core| core.explain(crate::cluster::now(), task)) {
        Some(why) => Ok((record, Some(why))),
        // It ended between the two looks at it.
        None => Ok((get(cluster, caller, id).await?, None)),
    }
}

/// Puts a task that is a dead letter back into the queue.
pub async fn requeue(cluster: &Arc<Cluster>, caller: &Caller, id: &str, key: &str) -> Result<Record> {
    check::idempotency_key(key)?;
    let record = get(cluster, caller, id).await?;
    let parsed = parse(&record.id)?;
    // One at a time, so that two requeues do not decide on the same version.
    let _turn = cluster.keys.turn(Aggregate::Task, &caller.tenant, &record.id).await;
    let record = get(cluster, caller, id).await?;
    let now = crate::cluster::now();
    if body(&record)?.requeued_with(key) {
        return Ok(record);
    }
    let task = Task::restore(now, parsed, record.version, record.row)
        .map_err(|_| Error::internal(format!("the stored task {parsed} cannot be read")))?;
    cluster.space.admit()?;
    let ((), recorded) = cluster.decide(|core, now| core.requeue(now, task, key).map(|out| ((), out)))?;
    durable(recorded).await?;
    get(cluster, caller, id).await
}

/// Output and end of one task, from given offsets on.
pub struct Following {
    cluster: Arc<Cluster>,
    task: TaskId,
    follower: Follower,
    /// Next offset wanted of each stream, stdout first.
    offsets: [u64; 2],
    /// Restarts seen, and whose output the offsets count.
    restarts: u64,
    attempts_used: u32,
    over: bool,
}

/// What a follower sees.
pub enum Seen {
    /// Output begins at 0 again.
    Restarted {
        attempts_used: u32,
    },
    Output {
        stream: Stream,
        offset: u64,
        data: Bytes,
    },
    Ended(Arc<Ended>),
}

impl Following {
    /// From the first byte.
    pub fn new(cluster: Arc<Cluster>, task: TaskId, mut follower: Follower) -> Self {
        let restarts = follower.now().restarts;
        Self { cluster, task, follower, offsets: [0, 0], restarts, attempts_used: 0, over: false }
    }

    /// The next thing; `None` after the end.
    pub async fn next(&mut self) -> Result<Option<Seen>> {
        while !self.over {
            // Progress first, then what is there: what comes in between wakes us again.
            let progress = self.follower.now();
            if progress.restarts != self.restarts {
                self.restarts = progress.restarts;
                if let Some(restarted) = self.restarted(progress.attempts_used) {
                    return Ok(Some(restarted));
                }
            }
            let ended = match progress.ended {
                Some(ended) => Some(ended),
                None => self.ended_before().await?,
            };
            if let Some(output) = self.output(ended.as_deref()).await? {
                return Ok(Some(output));
            }
            if let Some(ended) = ended {
                self.over = true;
                return Ok(Some(Seen::Ended(ended)));
            }
            self.follower.changed().await;
        }
        Ok(None)
    }

    /// Whoever has output of an attempt before hears that it counts no more.
    fn restarted(&mut self, attempts_used: u32) -> Option<Seen> {
        let had = std::mem::take(&mut self.offsets) != [0, 0];
        let news = std::mem::replace(&mut self.attempts_used, attempts_used) != attempts_used;
        (had || news).then_some(Seen::Restarted { attempts_used })
    }

    /// A task that is not live any more ended before we followed it: the store knows how.
    async fn ended_before(&self) -> Result<Option<Arc<Ended>>> {
        if self.cluster.look(|core| core.task(self.task).is_some()) {
            return Ok(None);
        }
        let record = self.cluster.store.get(Aggregate::Task, &self.task.to_string()).await?;
        let Some(record) = record.filter(|record| record.row.ended) else { return Ok(None) };
        let mut ended = ended_of(self.task, &record)?;
        for stream in Stream::BOTH {
            let stream = stream.number();
            let inline = self.cluster.store.inline_output(&record.id, stream).await?;
            // A requeue leaves empty ones of the attempts before.
            if let Some(bytes) = inline.filter(|bytes| !bytes.is_empty()) {
                ended.output.push(cooper_core::change::InlineOutput { stream, bytes });
            }
        }
        Ok(Some(Arc::new(ended)))
    }

    async fn output(&mut self, ended: Option<&Ended>) -> Result<Option<Seen>> {
        let max = limits::link::CHUNK_BYTES_MAX;
        for (index, stream) in Stream::BOTH.into_iter().enumerate() {
            let offset = self.offsets[index];
            let inline =
                ended.and_then(|ended| ended.output.iter().find(|output| output.stream == stream.number()));
            let data = match inline {
                Some(output) => {
                    let from = usize::try_from(offset).unwrap_or(usize::MAX).min(output.bytes.len());
                    Bytes::copy_from_slice(&output.bytes[from..output.bytes.len().min(from + max)])
                }
                None => self.cluster.output.read(self.task, stream, offset, max)?,
            };
            if !data.is_empty() {
                self.offsets[index] += data.len() as u64;
                return Ok(Some(Seen::Output { stream, offset, data }));
            }
        }
        Ok(None)
    }
}

pub(crate) fn ended_of(task: TaskId, record: &Record) -> Result<Ended> {
    let body: task::Body = body(record)?;
    let task::State::Ended(end) = body.state else {
        return Err(Error::internal(format!("task {task} was stored as ended and is not")));
    };
    Ok(Ended {
        task,
        end,
        tenant: record.row.tenant.as_str().into(),
        created_ms: record.row.created_ms,
        body,
        result: record.row.result.clone(),
        output: Vec::new(),
    })
}

pub fn body(record: &Record) -> Result<task::Body> {
    serde_json::from_str(&record.row.body)
        .map_err(|_| Error::internal(format!("the stored task {} cannot be read", record.id)))
}

/// Follows a task of the tenant. When the offsets count another attempt's output, that is said first.
pub async fn follow(
    cluster: &Arc<Cluster>,
    caller: &Caller,
    request: &v1::FollowRequest,
) -> Result<(Record, Option<Seen>, Following)> {
    let task: TaskId = request.task_id.parse().map_err(|_| not_found(&request.task_id))?;
    let follower = cluster.hub.follow(task);
    let record = get(cluster, caller, &request.task_id).await?;
    let mut following = Following::new(cluster.clone(), task, follower);
    following.offsets = [request.stdout_offset, request.stderr_offset];
    following.attempts_used = request.attempts_used;
    let attempts_used = body(&record)?.attempts_used();
    let before =
        if following.attempts_used == attempts_used { None } else { following.restarted(attempts_used) };
    Ok((record, before, following))
}
