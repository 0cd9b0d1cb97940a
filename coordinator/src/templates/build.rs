//! Building a version: a session is made, filled, tried, saved and destroyed.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use cooper_common::{
    clock,
    error::{Code, Error, Result},
    ids::{SessionId, TemplateId},
    limits::request as limits,
};
use cooper_core::change::{Aggregate, Change, NewEvent, Row};
use cooper_proto::v1::{self, call::Op};
use prost::Message as _;

use super::{Body, Template, label, versions};
use crate::{
    caller::Caller,
    check,
    checkpoints::{self, Checkpoints},
    cluster::Cluster,
    files,
    output::Stream,
    sessions::{self, Ran},
    store::{Durability, Record},
    tasks::Seen,
};

/// A session that builds is destroyed after this, whatever became of the build.
const BUILD_TTL_MS: u64 = 3_600_000;

/// What whoever builds is told meanwhile.
pub enum Progress {
    Step(&'static str),
    Output { stream: Stream, offset: u64, data: Bytes },
}

/// Builds the next version. `say` hears of each step.
pub async fn build(
    cluster: &Arc<Cluster>,
    checkpoints: &Checkpoints,
    caller: &Caller,
    name: &str,
    recipe: v1::Recipe,
    say: &mut (dyn FnMut(Progress) + Send),
) -> Result<Template> {
    checked(name, &recipe)?;
    say(Progress::Step("session"));
    let request = v1::CreateSessionRequest {
        env: recipe.env.clone(),
        labels: HashMap::from([("cooper.template".to_owned(), name.to_owned())]),
        limits: recipe.limits,
        worker_labels: recipe.worker_labels.clone(),
        ttl_ms: BUILD_TTL_MS,
        python_version: recipe.python_version.clone(),
        ..v1::CreateSessionRequest::default()
    };
    let session = sessions::parse(&sessions::create(cluster, checkpoints, caller, request).await?.id)?;
    let built = fill_and_save(cluster, checkpoints, caller, name, recipe, session, say).await;
    if let Err(error) = sessions::destroy(cluster, caller, &session.to_string()).await {
        tracing::warn!(%session, %error, "the session of a build stays until its time is over");
    }
    cluster.stock.notify_one();
    built
}

fn checked(name: &str, recipe: &v1::Recipe) -> Result<()> {
    check::name(name)?;
    if name.is_empty() {
        return Err(Error::invalid("a template needs a name"));
    }
    check::at_most("recipe.files", recipe.files.len() as u64, limits::TEMPLATE_FILES_MAX as u64)?;
    let bytes = recipe.files.iter().map(|file| file.content.len()).sum();
    check::size("recipe.files", bytes, limits::TEMPLATE_BYTES_MAX)?;
    for file in &recipe.files {
        check::path(&file.path, false)?;
    }
    check::size("recipe.warm_up", recipe.warm_up.len(), limits::WARM_UP_BYTES_MAX)?;
    check::at_most("recipe.spares", recipe.spares.into(), limits::SPARES_MAX.into())?;
    check::python_version(&recipe.python_version)?;
    check::env(&recipe.env)?;
    check::labels(&recipe.labels)
}

async fn fill_and_save(
    cluster: &Arc<Cluster>,
    checkpoints: &Checkpoints,
    caller: &Caller,
    name: &str,
    recipe: v1::Recipe,
    session: SessionId,
    say: &mut (dyn FnMut(Progress) + Send),
) -> Result<Template> {
    use v1::task_spec::Kind;
    if !recipe.packages.is_empty() {
        say(Progress::Step("packages"));
        let kind = Kind::Install(v1::InstallSpec {
            packages: recipe.packages.clone(),
            ..v1::InstallSpec::default()
        });
        let ran =
            sessions::run_first(cluster, caller, session, "packages-of", kind, &mut passed_on(say)).await?;
        if let Ran::Badly(_) = ran {
            return Err(Error::new(Code::InstallFailed, "the template's packages could not be installed"));
        }
    }
    if !recipe.files.is_empty() {
        say(Progress::Step("files"));
        for file in &recipe.files {
            write(cluster, caller, session, file).await?;
        }
    }
    if !recipe.warm_up.is_empty() {
        say(Progress::Step("warm_up"));
        let python = v1::PythonSpec {
            code: recipe.warm_up.clone(),
            filename: "<warm-up>".to_owned(),
            ..v1::PythonSpec::default()
        };
        let kind = Kind::Python(python);
        let ran =
            sessions::run_first(cluster, caller, session, "warm-up-of", kind, &mut passed_on(say)).await?;
        if let Ran::Badly(_) = ran {
            return Err(Error::new(Code::TemplateFailed, "the template's warm-up failed"));
        }
    }
    say(Progress::Step("save"));
    let request = v1::CreateCheckpointRequest {
        session_id: session.to_string(),
        name: name.to_owned(),
        ..v1::CreateCheckpointRequest::default()
    };
    let checkpoint = checkpoints::manifest(&checkpoints.create(caller, request).await?)?;
    // One version after the other: its number is the next.
    let _turn = cluster.keys.turn(Aggregate::Template, &caller.tenant, name).await;
    let version = match versions(cluster, &caller.tenant, name, true, 1).await?.records.pop() {
        Some(newest) => Template::read(newest)?.body.version + 1,
        None => 1,
    };
    let body = Body {
        name: name.to_owned(),
        version,
        checkpoint: checkpoint.id,
        python_version: checkpoint.python_version,
    };
    record(cluster, caller, body, recipe).await
}

fn passed_on<'a>(say: &'a mut (dyn FnMut(Progress) + Send)) -> impl FnMut(Seen) + Send + 'a {
    move |seen| {
        if let Seen::Output { stream, offset, data } = seen {
            say(Progress::Output { stream, offset, data });
        }
    }
}

async fn write(
    cluster: &Arc<Cluster>,
    caller: &Caller,
    session: SessionId,
    file: &v1::RecipeFile,
) -> Result<()> {
    let header = v1::WriteFileHeader {
        session_id: session.to_string(),
        path: file.path.clone(),
        mode: file.mode,
        create_dirs: true,
        ..v1::WriteFileHeader::default()
    };
    let (body, written) = files::write(cluster, caller, Op::Write(header)).await?;
    let send = async {
        for piece in file.content.chunks(cooper_common::limits::link::CHUNK_BYTES_MAX) {
            if body.send(Bytes::copy_from_slice(piece)).await.is_err() {
                return;
            }
        }
        let _ = body.send(Bytes::new()).await;
    };
    tokio::join!(send, written).1.map(drop)
}

async fn record(cluster: &Cluster, caller: &Caller, body: Body, recipe: v1::Recipe) -> Result<Template> {
    let (id, created_ms) = (TemplateId::new(), clock::wall_ms());
    let row = Row {
        tenant: caller.tenant.to_string(),
        state: "ready".to_owned(),
        parent: body.name.clone(),
        key: label(&body.name, body.version),
        created_ms,
        updated_ms: created_ms,
        body: serde_json::to_string(&body).unwrap_or_default(),
        spec: Some(recipe.encode_to_vec()),
        ..Row::default()
    };
    commit(cluster, id.to_string(), 0, row, "template.built").await?;
    Ok(Template { id, tenant: caller.tenant.to_string(), created_ms, body, recipe })
}

/// A version is no more. Its row stays, ended, so that its number is not given twice.
pub(super) async fn end(cluster: &Cluster, record: &Record) -> Result<()> {
    let row = Row {
        state: "deleted".to_owned(),
        ended: true,
        updated_ms: clock::wall_ms(),
        spec: None,
        ..record.row.clone()
    };
    commit(cluster, record.id.clone(), record.version, row, "template.deleted").await
}

async fn commit(cluster: &Cluster, id: String, expected: u64, row: Row, kind: &str) -> Result<()> {
    let events = vec![NewEvent { kind: kind.to_owned(), body: format!(r#"{{"template":{:?}}}"#, row.key) }];
    let change = Change { aggregate: Aggregate::Template, id, expected, row, events, output: Vec::new() };
    Ok(cluster.store.commit_wait(vec![change], Durability::Full).await?)
}
