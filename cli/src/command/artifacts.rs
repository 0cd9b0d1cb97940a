//! `cooper artifacts`: list, get, rm of what sessions made.

use std::path::{Path, PathBuf};

use cooper_common::{error::Code, ids::ArtifactId};
use cooper_proto::v1::{Artifact, DeleteArtifactRequest, ListArtifactsRequest, Page, ReadArtifactRequest};
use serde_json::json;

use super::files::Receiving;
use crate::{
    args,
    connect::Client,
    context::Context,
    failure::{Failure, Result},
    output::json,
    units,
};

const PAGE: u32 = 500;

pub async fn run(context: &Context, args: args::Artifacts) -> Result<u8> {
    let client = context.cluster()?.connect().await?;
    match args {
        args::Artifacts::List { session, task } => {
            list(context, &client, session, task.unwrap_or_default()).await?;
        }
        args::Artifacts::Get { session, name, to, offset, length } => {
            let request = ReadArtifactRequest {
                offset_bytes: offset,
                length_bytes: length,
                ..ReadArtifactRequest::default()
            };
            let request = match name {
                Some(name) => ReadArtifactRequest { session_id: session, name, ..request },
                None if session.parse::<ArtifactId>().is_ok() => {
                    ReadArtifactRequest { artifact_id: session, ..request }
                }
                None => {
                    let what = format!("{session:?} is no artifact's id; name one of the session's");
                    return Err(Failure::new(Code::InvalidArgument, what).exit(2));
                }
            };
            get(context, &client, request, to).await?;
        }
        args::Artifacts::Rm { artifacts } => {
            let mut removed = Vec::new();
            for artifact_id in artifacts {
                let request = DeleteArtifactRequest { artifact_id };
                removed
                    .push(json::made_artifact(&client.runs().delete_artifact(request).await?.into_inner()));
            }
            if context.out.json {
                context.out.document(&json!({"removed": removed}))?;
            }
        }
    }
    Ok(0)
}

async fn list(context: &Context, client: &Client, session_id: String, task_id: String) -> Result<()> {
    let mut all = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = Some(Page { limit: PAGE, cursor });
        let request = ListArtifactsRequest {
            session_id: session_id.clone(),
            task_id: task_id.clone(),
            page,
            ..ListArtifactsRequest::default()
        };
        let answer = client.runs().list_artifacts(request).await?.into_inner();
        all.extend(answer.artifacts);
        cursor = answer.next_cursor;
        if cursor.is_empty() {
            break;
        }
    }
    if context.out.json {
        let list: Vec<_> = all.iter().map(json::made_artifact).collect();
        return context.out.document(&json!({"artifacts": list}));
    }
    let row = |it: &Artifact| {
        vec![
            it.id.clone(),
            it.name.clone(),
            units::human_bytes(it.size_bytes),
            it.media_type.clone(),
            it.task_id.clone(),
            units::ago(it.created_at_ms),
        ]
    };
    context.out.table(&["artifact", "name", "size", "type", "task", "created"], all.iter().map(row).collect())
}

async fn get(
    context: &Context,
    client: &Client,
    request: ReadArtifactRequest,
    to: Option<PathBuf>,
) -> Result<()> {
    let mut parts = client.runs().read_artifact(request).await?.into_inner();
    let first = parts.message().await?.and_then(|first| first.artifact);
    let artifact = first.ok_or_else(|| Failure::new(Code::Internal, "the answer does not say what it is"))?;
    // A name is a path beneath `artifacts/`; here its last part says where it goes, never a way out.
    let base = Path::new(&artifact.name).file_name().map(PathBuf::from);
    let target = match (to, base) {
        (Some(to), _) if to == Path::new("-") => None,
        (Some(to), Some(base)) if to.is_dir() => Some(to.join(base)),
        (Some(to), _) => Some(to),
        (None, Some(base)) => Some(base),
        (None, None) => {
            return Err(Failure::new(Code::PathEscapes, format!("{:?} names no file", artifact.name)));
        }
    };
    let mut sink = match &target {
        Some(path) => Receiving::file(path)?,
        None => Receiving::Stdout,
    };
    while let Some(part) = parts.message().await? {
        sink.write(&part.data)?;
    }
    sink.finish(0)?;
    // On `-` standard output is the file's; a document would spoil it.
    if let (true, Some(path)) = (context.out.json, &target) {
        let mut document = json::made_artifact(&artifact);
        document["local"] = path.to_string_lossy().into_owned().into();
        context.out.document(&document)?;
    }
    Ok(())
}
