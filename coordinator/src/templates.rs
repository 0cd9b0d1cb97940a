//! Templates: a recipe is built once into a checkpoint, and sessions begin with that.

mod build;
pub mod spares;

use std::{collections::BTreeSet, sync::Arc};

use cooper_common::{
    error::{Code, Error, Result},
    ids::{CheckpointId, SessionId, TemplateId},
    limits::request,
};
use cooper_core::change::Aggregate;
use cooper_proto::v1;
use prost::Message as _;
use serde::{Deserialize, Serialize};

pub use build::{Progress, build};

use crate::{
    caller::Caller,
    check,
    checkpoints::Checkpoints,
    cluster::Cluster,
    sessions::{self, Ran},
    store::{Filter, Page, Record},
};

/// What a version is; the row's body. Its recipe is the row's spec, `name@version` its key, the name its parent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Body {
    pub name: String,
    pub version: u32,
    pub checkpoint: CheckpointId,
    pub python_version: String,
}

pub struct Template {
    pub id: TemplateId,
    pub tenant: String,
    pub created_ms: i64,
    pub body: Body,
    pub recipe: v1::Recipe,
}

impl Template {
    fn read(record: Record) -> Result<Self> {
        let unreadable = || Error::internal(format!("the stored template {} cannot be read", record.id));
        Ok(Self {
            id: record.id.parse().map_err(|_| unreadable())?,
            body: serde_json::from_str(&record.row.body).map_err(|_| unreadable())?,
            recipe: v1::Recipe::decode(record.row.spec.as_deref().unwrap_or_default())
                .map_err(|_| unreadable())?,
            created_ms: record.row.created_ms,
            tenant: record.row.tenant,
        })
    }

    /// `name@version`
    pub fn label(&self) -> String {
        label(&self.body.name, self.body.version)
    }
}

fn label(name: &str, version: u32) -> String {
    format!("{name}@{version}")
}

fn not_found(template: &str) -> Error {
    Error::new(Code::TemplateNotFound, format!("there is no template {template:?}"))
}

/// The version that `name` or `name@version` stands for; another tenant's is absent (I10).
pub async fn get(cluster: &Cluster, tenant: &str, template: &str) -> Result<Template> {
    let record = match template.contains('@') {
        true => cluster.store.by_key(Aggregate::Template, Some(tenant), template).await?,
        false => versions(cluster, tenant, template, false, 1).await?.records.pop(),
    };
    Template::read(record.filter(|record| !record.row.ended).ok_or_else(|| not_found(template))?)
}

/// Newest first; with `deleted` also those that are no more, as far as their rows are kept.
async fn versions(cluster: &Cluster, tenant: &str, name: &str, deleted: bool, limit: usize) -> Result<Page> {
    let filter = Filter {
        tenant: Some(tenant.to_owned()),
        parent: Some(name.to_owned()),
        ended: (!deleted).then_some(false),
        limit,
        ..Filter::default()
    };
    Ok(cluster.store.list(Aggregate::Template, filter).await?)
}

pub async fn list(
    cluster: &Cluster,
    caller: &Caller,
    page: Option<v1::Page>,
    name: String,
) -> Result<(Vec<Template>, String)> {
    let filter = Filter {
        tenant: Some(caller.tenant.to_string()),
        parent: Some(name).filter(|name| !name.is_empty()),
        ended: Some(false),
        ..check::page(page)?
    };
    let page = cluster.store.list(Aggregate::Template, filter).await?;
    let next = page.next.map(|cursor| cursor.to_string()).unwrap_or_default();
    Ok((page.records.into_iter().map(Template::read).collect::<Result<_>>()?, next))
}

/// What versions of templates begin with: nobody else may take it away.
pub async fn checkpoints(cluster: &Cluster) -> Result<BTreeSet<CheckpointId>> {
    let live = cluster.store.live(Aggregate::Template).await?;
    live.into_iter().map(|record| Ok(Template::read(record)?.body.checkpoint)).collect()
}

/// Deletes a version, or all of a name, with their checkpoints and spares.
pub async fn delete(
    cluster: &Arc<Cluster>,
    checkpoints: &Checkpoints,
    caller: &Caller,
    template: &str,
) -> Result<Vec<Template>> {
    let records = match template.contains('@') {
        true => {
            let record = cluster.store.by_key(Aggregate::Template, Some(&caller.tenant), template).await?;
            record.into_iter().filter(|record| !record.row.ended).collect()
        }
        false => {
            versions(cluster, &caller.tenant, template, false, request::PAGE_MAX as usize).await?.records
        }
    };
    if records.is_empty() {
        return Err(not_found(template));
    }
    let mut deleted = Vec::new();
    for record in records {
        build::end(cluster, &record).await?;
        let template = Template::read(record)?;
        match checkpoints.delete(caller, &template.body.checkpoint.to_string()).await {
            // A session is being made from it, or somebody was faster: what is left shows among the checkpoints.
            Err(error) if !matches!(error.code, Code::SessionNotReady | Code::CheckpointNotFound) => {
                return Err(error);
            }
            _ => {}
        }
        deleted.push(template);
    }
    cluster.stock.notify_one();
    Ok(deleted)
}

/// What a create of a session becomes when it names a template: what the request says comes on top of the recipe.
pub fn applied(template: &Template, mut request: v1::CreateSessionRequest) -> v1::CreateSessionRequest {
    let recipe = &template.recipe;
    let under = |over: &mut std::collections::HashMap<String, String>,
                 under: &std::collections::HashMap<_, _>| {
        for (name, value) in under {
            over.entry(String::clone(name)).or_insert_with(|| String::clone(value));
        }
    };
    under(&mut request.env, &recipe.env);
    under(&mut request.labels, &recipe.labels);
    if request.worker_labels.is_empty() {
        request.worker_labels.clone_from(&recipe.worker_labels);
    }
    if request.python_version.is_empty() {
        request.python_version.clone_from(&recipe.python_version);
    }
    request.limits =
        Some(sessions::merged(recipe.limits.unwrap_or_default(), request.limits.unwrap_or_default()));
    request.checkpoint_id = template.body.checkpoint.to_string();
    request.template = template.label();
    request
}

/// Whether a spare is as good as a session made for this request.
pub fn fits_spare(template: &Template, asked: &v1::CreateSessionRequest) -> bool {
    let plain = v1::CreateSessionRequest {
        idempotency_key: asked.idempotency_key.clone(),
        name: asked.name.clone(),
        labels: asked.labels.clone(),
        metadata: asked.metadata.clone(),
        ttl_ms: asked.ttl_ms,
        idle_timeout_ms: asked.idle_timeout_ms,
        hibernate_after_ms: asked.hibernate_after_ms,
        wait_ms: asked.wait_ms,
        template: asked.template.clone(),
        limits: asked.limits,
        ..v1::CreateSessionRequest::default()
    };
    let limits = asked.limits.unwrap_or_default();
    plain == *asked
        && sessions::merged(template.recipe.limits.unwrap_or_default(), limits) == template.limits()
}

impl Template {
    fn limits(&self) -> v1::Limits {
        self.recipe.limits.unwrap_or_default()
    }

    /// Runs the warm-up in a session that begins with this template; whoever asks again waits for the same run.
    pub async fn warm_up(&self, cluster: &Arc<Cluster>, caller: &Caller, session: SessionId) -> Result<()> {
        if self.recipe.warm_up.is_empty() {
            return Ok(());
        }
        let kind = v1::task_spec::Kind::Python(v1::PythonSpec {
            code: self.recipe.warm_up.clone(),
            filename: "<warm-up>".to_owned(),
            ..v1::PythonSpec::default()
        });
        match sessions::run_first(cluster, caller, session, "warm-up-of", kind, &mut |_| {}).await? {
            Ran::Well => Ok(()),
            Ran::Badly(task) => Err(Error::new(
                Code::TemplateFailed,
                format!("the warm-up of template {} failed in session {session}", self.label()),
            )
            .with_hint(format!("read what it printed: `cooper tasks follow {task}`"))),
        }
    }
}
