//! `cooper runs`: list, show, watch, retry, undo, artifacts.

use std::{
    fs,
    path::{Component, Path},
};

use cooper_common::error::Code;
use cooper_proto::v1::{
    Artifact, GetRunRequest, ListArtifactsRequest, ListRunsRequest, Page, ReadArtifactRequest,
    RetryRunRequest, Run, UndoRunRequest,
};
use serde_json::json;

use super::{files::Receiving, pause, plan, stats, watch};
use crate::{
    args::Runs,
    connect::{Client, Cluster, idempotency_key},
    context::Context,
    failure::{Failure, Result},
    output::json,
    units,
};

pub async fn run(context: &Context, args: Runs) -> Result<u8> {
    let cluster = context.cluster()?;
    let client = cluster.connect().await?;
    match args {
        Runs::List { limit } => {
            let page = Some(Page { limit, cursor: String::new() });
            let answer =
                client.runs().list_runs(ListRunsRequest { page, states: Vec::new() }).await?.into_inner();
            if context.out.json {
                let runs: Vec<_> = answer.runs.iter().map(json::run).collect();
                let pauses = pause::documents(&pause::held(&client).await?);
                let document = json!({"runs": runs, "next_cursor": answer.next_cursor, "pauses": pauses});
                context.out.document(&document)?;
            } else {
                let rows = answer.runs.iter().map(row).collect();
                context.out.table(&["run", "stack", "service", "state", "created", "cause"], rows)?;
                for pause in pause::held(&client).await? {
                    context.out.note(&pause::sentence(&pause));
                }
            }
        }
        Runs::Show(args) => {
            let run = client.runs().get_run(GetRunRequest { run_id: args.run }).await?.into_inner();
            context.out.answer(|| json::run(&run), || text(&run))?;
        }
        Runs::Plan { run, attempt } => plan::run(context, &client, run, attempt).await?,
        Runs::Stats { since, stack } => stats::run(context, &client, since, stack).await?,
        Runs::Watch(args) => return watch::to_the_end(context, &cluster, client, &args.run).await,
        Runs::Retry { run, from, detach } => {
            let from_step = from.unwrap_or_default();
            let request = RetryRunRequest { run_id: run, from_step, idempotency_key: idempotency_key() };
            let run = client.runs().retry_run(request).await?.into_inner();
            return begun(context, &cluster, client, &run, detach).await;
        }
        Runs::Undo { run, detach } => {
            let request = UndoRunRequest { run_id: run, idempotency_key: idempotency_key() };
            let run = client.runs().undo_run(request).await?.into_inner();
            return begun(context, &cluster, client, &run, detach).await;
        }
        Runs::Artifacts { run, to } => artifacts(context, &client, run, to.as_deref()).await?,
        Runs::Artifact { run, name } => artifact(context, &client, run, name).await?,
    }
    Ok(0)
}

/// A run that was started: left, or followed to its end.
async fn begun(context: &Context, cluster: &Cluster, client: Client, run: &Run, detach: bool) -> Result<u8> {
    if detach {
        context.out.answer(|| json::run(run), || run.id.clone())?;
        return Ok(0);
    }
    watch::to_the_end(context, cluster, client, &run.id).await
}

fn row(run: &Run) -> Vec<String> {
    let mut cause: String = run.cause.lines().next().unwrap_or_default().chars().take(60).collect();
    if cause.len() < run.cause.len() {
        cause.push('…');
    }
    vec![
        run.id.clone(),
        run.stack.clone(),
        run.service.clone(),
        state(run),
        units::ago(run.created_at_ms),
        cause,
    ]
}

/// The state, and the place of one that waits.
fn state(run: &Run) -> String {
    match run.queue_position {
        0 => json::run_state(run.state()),
        position => format!("{} ({position} before it)", json::run_state(run.state())),
    }
}

fn text(run: &Run) -> String {
    let mut lines: Vec<String> = run.steps.iter().map(watch::step_line).collect();
    lines.push(watch::summary(run));
    if let Some(approval) = run.approval.as_ref().filter(|approval| !approval.decided_by.is_empty()) {
        let comment =
            if approval.comment.is_empty() { String::new() } else { format!(": {}", approval.comment) };
        lines.push(format!("  decision  {} by {}{comment}", approval.decision, approval.decided_by));
    }
    if let Some(error) = &run.error {
        lines.push(format!("  error     [{}] {}", error.code, error.message));
    }
    lines.push(format!("  created   {}", units::utc(run.created_at_ms)));
    lines.join("\n")
}

async fn artifacts(context: &Context, client: &Client, run_id: String, to: Option<&Path>) -> Result<()> {
    let request = ListArtifactsRequest { run_id: run_id.clone(), ..ListArtifactsRequest::default() };
    let list = client.runs().list_artifacts(request).await?.into_inner().artifacts;
    if let Some(dir) = to {
        fs::create_dir_all(dir).map_err(|error| {
            Failure::new(Code::NotAFile, format!("cannot create {}: {error}", dir.display())).hint("")
        })?;
        for artifact in &list {
            copy(client, &run_id, artifact, dir).await?;
        }
    }
    if context.out.json {
        let artifacts: Vec<_> = list.iter().map(json::artifact).collect();
        let dir = to.map(|dir| dir.to_string_lossy().into_owned());
        return context.out.document(&json!({"run_id": run_id, "artifacts": artifacts, "to": dir}));
    }
    if to.is_some() {
        return Ok(());
    }
    let rows = list
        .iter()
        .map(|a| vec![a.name.clone(), units::human_bytes(a.size_bytes), units::ago(a.created_at_ms)])
        .collect();
    context.out.table(&["name", "size", "created"], rows)
}

async fn copy(client: &Client, run_id: &str, artifact: &Artifact, dir: &Path) -> Result<()> {
    // Names of later attempts are `attempt-2/NAME`; none is a way out of the directory.
    let name = Path::new(&artifact.name);
    if !name.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(Failure::new(Code::PathEscapes, format!("artifact name {name:?} leads elsewhere")));
    }
    let path = dir.join(name);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|error| {
            Failure::new(Code::NotAFile, format!("cannot create {}: {error}", parent.display())).hint("")
        })?;
    }
    let mut file = Receiving::file(&path)?;
    read(client, run_id, &artifact.name, &mut file).await?;
    file.finish(0)
}

async fn artifact(context: &Context, client: &Client, run_id: String, name: String) -> Result<()> {
    if !context.out.json {
        let mut stdout = Receiving::Stdout;
        read(client, &run_id, &name, &mut stdout).await?;
        return stdout.finish(0);
    }
    let request =
        ReadArtifactRequest { run_id: run_id.clone(), name: name.clone(), ..ReadArtifactRequest::default() };
    let mut parts = client.runs().read_artifact(request).await?.into_inner();
    let mut content = Vec::new();
    while let Some(part) = parts.message().await? {
        content.extend(part.data);
    }
    let mut document = json!({"run_id": run_id, "name": name});
    json::add_stream(&mut document, "content", &content);
    context.out.document(&document)
}

async fn read(client: &Client, run_id: &str, name: &str, to: &mut Receiving) -> Result<()> {
    let request = ReadArtifactRequest {
        run_id: run_id.to_owned(),
        name: name.to_owned(),
        ..ReadArtifactRequest::default()
    };
    let mut parts = client.runs().read_artifact(request).await?.into_inner();
    while let Some(part) = parts.message().await? {
        to.write(&part.data)?;
    }
    Ok(())
}
