//! Sessions: create, find, destroy.

mod defaults;
mod first;
pub(crate) mod network;
mod update;

use std::{sync::Arc, time::Duration};

use cooper_common::{
    clock,
    error::{Code, Error, Result},
    ids::{SessionId, TemplateId},
    limits,
};
use cooper_core::{change::Aggregate, python, session, worker::WorkerId};
use cooper_proto::v1;
use prost::Message as _;
use tokio::sync::broadcast;

use crate::{
    caller::Caller,
    check,
    checkpoints::Checkpoints,
    cluster::{Cluster, durable},
    secrets::checked_injections,
    store::{Filter, Page, Record},
    templates,
};

pub use defaults::Defaults;
pub use first::{Ran, run_first};
pub use update::{merged, update};

/// A worker makes a session ready within this time, or the create fails.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
const DESTROY_TIMEOUT: Duration = Duration::from_secs(30);

pub async fn create(
    cluster: &Arc<Cluster>,
    checkpoints: &Checkpoints,
    caller: &Caller,
    asked: v1::CreateSessionRequest,
) -> Result<Record> {
    checked(&asked)?;
    let template = match asked.template.as_str() {
        "" => None,
        template => Some(templates::get(cluster, &caller.tenant, template).await?),
    };
    let mut request = match &template {
        None => asked.clone(),
        Some(template) => templates::applied(template, asked.clone()),
    };
    cluster.defaults.fill(&mut request)?;
    cluster.secrets.usable(&caller.tenant, &request.secrets)?;
    request.inject = checked_injections(request.inject, request.network.as_ref())?;
    cluster.secrets.injectable(&caller.tenant, &request.inject)?;
    let _turn = cluster.keys.turn(Aggregate::Session, &caller.tenant, &request.idempotency_key).await;
    let known = known(cluster, caller, &request).await?;
    let spare = match &template {
        Some(template) if known.is_none() && templates::fits_spare(template, &asked) => {
            take_spare(cluster, caller, template.id, &request).await?
        }
        _ => None,
    };
    let id = match known.or(spare) {
        Some(id) => id,
        None => placed(cluster, checkpoints, caller, &request, None).await?,
    };
    let record = ready(cluster, id).await?;
    let mut first = Ok(());
    if !request.packages.is_empty() {
        first = first::install(cluster, caller, id, request.packages).await;
    }
    if let Some(template) = template.filter(|_| spare.is_none() && first.is_ok()) {
        first = template.warm_up(cluster, caller, id).await;
    }
    if let Err(error) = first {
        if matches!(error.code, Code::InstallFailed | Code::TemplateFailed) {
            destroy(cluster, caller, &id.to_string()).await?;
        }
        return Err(error);
    }
    Ok(record)
}

/// Makes a session that is a template's and nobody's yet.
pub async fn create_spare(
    cluster: &Arc<Cluster>,
    checkpoints: &Checkpoints,
    caller: &Caller,
    mut request: v1::CreateSessionRequest,
    spare: session::Spare,
) -> Result<SessionId> {
    cluster.defaults.fill(&mut request)?;
    let id = placed(cluster, checkpoints, caller, &request, Some(spare)).await?;
    ready(cluster, id).await.map(|_| id)
}

fn checked(request: &v1::CreateSessionRequest) -> Result<()> {
    check::idempotency_key(&request.idempotency_key)?;
    check::name(&request.name)?;
    check::env(&request.env)?;
    check::labels(&request.labels)?;
    check::labels(&request.worker_labels)?;
    check::metadata(&request.metadata)?;
    update::times(Some(request.ttl_ms), Some(request.idle_timeout_ms), request.hibernate_after_ms)?;
    check::python_version(&request.python_version)?;
    first::check_packages(&request.packages)?;
    if !request.template.is_empty() && !request.checkpoint_id.is_empty() {
        return Err(Error::invalid("a session begins with a template or with a checkpoint, not with both"));
    }
    Ok(())
}

async fn placed(
    cluster: &Arc<Cluster>,
    checkpoints: &Checkpoints,
    caller: &Caller,
    request: &v1::CreateSessionRequest,
    spare: Option<session::Spare>,
) -> Result<SessionId> {
    let restore = match request.checkpoint_id.as_str() {
        "" => None,
        checkpoint => Some(checkpoints.python_of(caller, checkpoint).await?),
    };
    if let Some((_, made)) = &restore {
        made_with(made, &request.python_version)?;
    }
    let create = session::Create { restore, spare, ..wanted(caller, SessionId::new(), request) };
    let id = create.id;
    place(cluster, create, request.wait_ms.min(limits::request::SESSION_WAIT_MS_MAX)).await?;
    metrics::counter!("cooper_sessions_created_total").increment(1);
    Ok(id)
}

/// Its packages are good for this minor version only.
fn made_with(made: &str, wanted: &str) -> Result<()> {
    if wanted.is_empty() || python::minor(wanted) == python::minor(made) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "python_version is {wanted}; what the session begins with was made with {made}"
    )))
}

fn wanted(caller: &Caller, id: SessionId, request: &v1::CreateSessionRequest) -> session::Create {
    let limits = request.limits.unwrap_or_default();
    session::Create {
        id,
        tenant: caller.tenant.clone(),
        key: request.idempotency_key.clone(),
        name: request.name.clone(),
        exec_timeout_ms: limits.exec_timeout_ms,
        output_limit_bytes: limits.output_bytes,
        worker_labels: request.worker_labels.clone().into_iter().collect(),
        ttl_ms: request.ttl_ms,
        idle_timeout_ms: request.idle_timeout_ms,
        hibernate_after_ms: request.hibernate_after_ms.unwrap_or_default(),
        share: share(&limits),
        restore: None,
        python: request.python_version.clone(),
        spare: None,
        secrets: !request.secrets.is_empty(),
        injects: !request.inject.is_empty(),
        spec: request.encode_to_vec().into(),
    }
}

/// A warm spare of the template, which is the session that is wanted from now on.
async fn take_spare(
    cluster: &Arc<Cluster>,
    caller: &Caller,
    template: TemplateId,
    request: &v1::CreateSessionRequest,
) -> Result<Option<SessionId>> {
    let create = wanted(caller, SessionId::new(), request);
    let (taken, recorded) = cluster.decide(|core, now| match core.take_spare(now, template, create)? {
        Some((id, out)) => Ok((Some(id), out)),
        None => Ok((None, cooper_core::cluster::Out::default())),
    })?;
    if taken.is_some() {
        durable(recorded).await?;
        cluster.stock.notify_one();
    }
    Ok(taken)
}

/// What these limits count against the tenant's quota.
fn share(limits: &v1::Limits) -> session::Share {
    session::Share { memory_bytes: limits.memory_bytes, disk_bytes: limits.disk_bytes }
}

/// The session that was made for the same request.
async fn known(
    cluster: &Cluster,
    caller: &Caller,
    request: &v1::CreateSessionRequest,
) -> Result<Option<SessionId>> {
    let key = &request.idempotency_key;
    if key.is_empty() {
        return Ok(None);
    }
    let Some(record) = cluster.store.by_key(Aggregate::Session, Some(&caller.tenant), key).await? else {
        return Ok(None);
    };
    let stored = v1::CreateSessionRequest::decode(record.row.spec.as_deref().unwrap_or_default());
    if body(&record)?.updated || stored.as_ref().is_ok_and(|stored| !stored.template.is_empty()) {
        // What it was created by is not there any more, or the name stands for another version by now: the key alone
        // has to do.
        return parse(&record.id).map(Some);
    }
    // Another patience is not another request.
    if !stored.is_ok_and(|stored| v1::CreateSessionRequest { wait_ms: request.wait_ms, ..stored } == *request)
    {
        return Err(check::other_request(key));
    }
    parse(&record.id).map(Some)
}

pub fn parse(id: &str) -> Result<SessionId> {
    id.parse().map_err(|_| Error::internal(format!("{id:?} was stored as a session id")))
}

/// Places the session now, or when room appears within `wait_ms`.
async fn place(cluster: &Arc<Cluster>, create: session::Create, wait_ms: u64) -> Result<()> {
    cluster.space.admit()?;
    let deadline = clock::mono_ms() + wait_ms;
    loop {
        let room = cluster.capacity.notified();
        tokio::pin!(room);
        room.as_mut().enable();
        let create = create.clone();
        match cluster.decide(|core, now| core.create_session(now, create).map(|out| ((), out))) {
            Ok(((), recorded)) => return durable(recorded).await,
            Err(error) if matches!(error.code, Code::NoCapacity | Code::NoWorker) => {
                let left_ms = deadline.saturating_sub(clock::mono_ms());
                if left_ms == 0 || tokio::time::timeout(Duration::from_millis(left_ms), room).await.is_err() {
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// How long a session may take to become ready: longer when its files are carried to it.
fn patience(cluster: &Cluster, id: SessionId) -> Duration {
    match cluster.look(|core| core.session(id).is_some_and(|it| it.body.restore.is_some())) {
        true => READY_TIMEOUT + Duration::from_millis(limits::checkpoint::WORK_MS),
        false => READY_TIMEOUT,
    }
}

/// Waits until the session left `initializing`, and answers with its record; a session that failed is an error.
async fn ready(cluster: &Arc<Cluster>, id: SessionId) -> Result<Record> {
    let record =
        settled(cluster, id, patience(cluster, id), |state| state != session::State::Initializing).await?;
    let body = body(&record)?;
    match (body.state, body.reason) {
        (session::State::Failed, Some(reason)) => Err(Error::new(
            Code::parse(&reason.code).unwrap_or(Code::Internal),
            format!("session {id} failed: {}", reason.message),
        )),
        _ => Ok(record),
    }
}

/// Waits until the recorded state of a session is one that `enough` accepts.
async fn settled(
    cluster: &Arc<Cluster>,
    id: SessionId,
    timeout: Duration,
    enough: impl Fn(session::State) -> bool,
) -> Result<Record> {
    let mut changes = cluster.session_changes();
    let wait = async {
        loop {
            let record = cluster.store.get(Aggregate::Session, &id.to_string()).await?;
            let record = record.ok_or_else(|| not_found(&id.to_string()))?;
            if enough(body(&record)?.state) {
                return Ok(record);
            }
            loop {
                match changes.recv().await {
                    Ok(changed) if changed != id => {}
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => break,
                    Err(broadcast::error::RecvError::Closed) => {
                        return Err(Error::new(Code::Unavailable, "the coordinator is stopping"));
                    }
                }
            }
        }
    };
    tokio::time::timeout(timeout, wait).await.unwrap_or_else(|_| {
        Err(Error::new(Code::TimedOut, format!("session {id} did not settle within {} s", timeout.as_secs())))
    })
}

pub fn body(record: &Record) -> Result<session::Body> {
    serde_json::from_str(&record.row.body)
        .map_err(|_| Error::internal(format!("the stored session {} cannot be read", record.id)))
}

fn not_found(id: &str) -> Error {
    Error::new(Code::SessionNotFound, format!("there is no session {id:?}"))
}

fn ended(id: &str) -> Error {
    Error::new(Code::SessionEnded, format!("session {id} has ended"))
}

/// The id of a session named by id or name.
pub fn resolve(cluster: &Cluster, caller: &Caller, id_or_name: &str) -> Result<SessionId> {
    match id_or_name.parse() {
        Ok(id) => Ok(id),
        Err(_) => cluster
            .look(|core| core.session_named(&caller.tenant, id_or_name))
            .ok_or_else(|| not_found(id_or_name)),
    }
}

/// The tenant's session; another tenant's is absent (I10).
pub async fn get(cluster: &Cluster, caller: &Caller, id_or_name: &str) -> Result<Record> {
    let id = resolve(cluster, caller, id_or_name)?;
    let record = cluster.store.get(Aggregate::Session, &id.to_string()).await?;
    record.filter(|record| record.row.tenant == *caller.tenant).ok_or_else(|| not_found(id_or_name))
}

pub async fn list(cluster: &Cluster, caller: &Caller, request: v1::ListSessionsRequest) -> Result<Page> {
    check::labels(&request.labels)?;
    let states = request.states().map(|state| match state {
        v1::SessionState::Initializing => Ok(session::State::Initializing),
        v1::SessionState::Ready => Ok(session::State::Ready),
        v1::SessionState::Checkpointing => Ok(session::State::Checkpointing),
        v1::SessionState::Draining => Ok(session::State::Draining),
        v1::SessionState::Destroyed => Ok(session::State::Destroyed),
        v1::SessionState::Failed => Ok(session::State::Failed),
        v1::SessionState::Unspecified => Err(Error::invalid("states names one that this version knows not")),
    });
    let states: Vec<session::State> = states.collect::<Result<_>>()?;
    let all = request.all || states.iter().any(|state| state.ended());
    let filter = Filter {
        tenant: Some(caller.tenant.to_string()),
        parent: Some(request.worker_id).filter(|worker| !worker.is_empty()),
        states: states.iter().map(|state| state.as_str().to_owned()).collect(),
        ended: (!all).then_some(false),
        ..check::page(request.page)?
    };
    let mut page = cluster.store.list(Aggregate::Session, filter).await?;
    if !request.all {
        page.records.retain(|record| body(record).map_or(true, |body| body.spare.is_none()));
    }
    if !request.labels.is_empty() {
        page.records.retain(|record| {
            let spec = v1::CreateSessionRequest::decode(record.row.spec.as_deref().unwrap_or_default());
            let labels = spec.map(|spec| spec.labels).unwrap_or_default();
            request.labels.iter().all(|(name, value)| labels.get(name) == Some(value))
        });
    }
    Ok(page)
}

pub async fn destroy(cluster: &Arc<Cluster>, caller: &Caller, id_or_name: &str) -> Result<Record> {
    let record = get(cluster, caller, id_or_name).await?;
    if record.row.ended {
        return Ok(record);
    }
    let id = parse(&record.id)?;
    match cluster.decide(|core, now| core.destroy_session(now, id).map(|out| ((), out))) {
        Ok(((), recorded)) => durable(recorded).await?,
        // It ended between the two looks at it.
        Err(error) if error.code == Code::SessionNotFound => {}
        Err(error) => return Err(error),
    }
    destroyed(cluster, id).await
}

/// Waits for the end of a session that is being destroyed.
pub async fn destroyed(cluster: &Arc<Cluster>, id: SessionId) -> Result<Record> {
    settled(cluster, id, DESTROY_TIMEOUT, session::State::ended).await
}

/// Wakes a session that hibernates or is about to, and waits until it is there; others are as they are.
pub async fn awake(cluster: &Arc<Cluster>, id: SessionId) -> Result<()> {
    let sleeps = |core: &cooper_core::cluster::Cluster| {
        core.session(id).is_some_and(|it| {
            let saving = it.body.saving.as_ref();
            it.body.hibernated || saving.is_some_and(|it| it.purpose == session::Purpose::Hibernate)
        })
    };
    let wakes = |core: &cooper_core::cluster::Cluster| {
        core.session(id).is_some_and(|it| it.body.worker.is_empty() || it.body.restore.is_some())
    };
    if cluster.look(sleeps) {
        let ((), recorded) = cluster.decide(|core, now| core.wake(now, id).map(|out| ((), out)))?;
        durable(recorded).await?;
    } else if !cluster.look(wakes) {
        return Ok(());
    }
    let there = |state| !matches!(state, session::State::Initializing | session::State::Checkpointing);
    settled(cluster, id, READY_TIMEOUT, there).await.map(drop)
}

/// The worker that holds a ready session of the tenant.
pub async fn holder(
    cluster: &Arc<Cluster>,
    caller: &Caller,
    id_or_name: &str,
) -> Result<(SessionId, WorkerId)> {
    awake(cluster, parse(&get(cluster, caller, id_or_name).await?.id)?).await?;
    let record = get(cluster, caller, id_or_name).await?;
    let body = body(&record)?;
    match body.state {
        session::State::Ready => {
            let id = parse(&record.id)?;
            cluster.touch(id);
            Ok((id, body.worker.into()))
        }
        session::State::Destroyed | session::State::Failed | session::State::Draining => {
            Err(Error::new(Code::SessionEnded, format!("session {} is {}", record.id, body.state.as_str())))
        }
        session::State::Initializing | session::State::Checkpointing => Err(Error::new(
            Code::SessionNotReady,
            format!("session {} is {}", record.id, body.state.as_str()),
        )),
    }
}
