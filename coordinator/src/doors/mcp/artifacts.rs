//! Tools for files that are kept: those that executions leave beneath `artifacts/`.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use cooper_common::{
    error::{Error, Result},
    limits,
};
use cooper_proto::v1;
use rmcp::model::ContentBlock;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    call::{Call, said},
    files::page,
    resources::artifact_uri,
    tool::{READS, Reply, Tool},
};

pub fn tools() -> Vec<Tool> {
    vec![
        Tool::new(
            "artifact_list",
            READS,
            "List the artifacts of a session: files that its executions saved beneath `artifacts/`. They are kept \
             also after the session has ended. Newest first.",
            list,
        ),
        Tool::new(
            "artifact_get",
            READS,
            "Read an artifact, by its `artifact_id`, or by the session and its name (then the newest of that name). \
             Text comes as text, images as images, other bytes as base64, at most 262144 bytes at once.",
            get,
        ),
    ]
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct List {
    /// Id of a session, which may have ended; without it, the connection's own.
    session_id: Option<String>,
    /// Only those that this execution made.
    exec_id: Option<String>,
    /// At most so many; 100 by default, at most 1000.
    limit: Option<u32>,
    /// `next_cursor` of the answer before.
    cursor: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Get {
    /// As artifact_list says it.
    artifact_id: Option<String>,
    /// Instead of the id: its path beneath `artifacts/`.
    name: Option<String>,
    /// With `name`: id of a session, which may have ended; without it, the connection's own.
    session_id: Option<String>,
    /// First byte to read.
    #[serde(default)]
    offset_bytes: u64,
}

#[derive(Serialize, JsonSchema)]
struct Artifacts {
    artifacts: Vec<Artifact>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}
impl Reply for Artifacts {}

#[derive(Serialize, JsonSchema)]
pub struct Artifact {
    /// For artifact_get.
    pub artifact_id: String,
    pub name: String,
    pub size_bytes: u64,
    pub media_type: String,
    pub sha256: String,
    pub session_id: String,
    /// The execution that made it.
    pub exec_id: String,
    pub created_at_ms: i64,
    /// As a resource.
    pub uri: String,
}

impl From<v1::Artifact> for Artifact {
    fn from(artifact: v1::Artifact) -> Self {
        let v1::Artifact {
            id, name, size_bytes, media_type, sha256, session_id, task_id, created_at_ms, ..
        } = artifact;
        let uri = artifact_uri(&session_id, &name);
        Self {
            artifact_id: id,
            name,
            size_bytes,
            media_type,
            sha256,
            session_id,
            exec_id: task_id,
            created_at_ms,
            uri,
        }
    }
}

#[derive(Serialize, JsonSchema)]
struct Content {
    artifact: Artifact,
    /// What was read, where it is text.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    /// What was read, where it is neither text nor an image.
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
    next_offset_bytes: u64,
    /// It goes on at `next_offset_bytes`.
    truncated: bool,
    #[serde(skip)]
    image: Option<Vec<u8>>,
}
impl Reply for Content {
    fn content(&self) -> Vec<ContentBlock> {
        match (&self.text, &self.base64, &self.image) {
            (Some(text), _, _) => vec![ContentBlock::text(text)],
            (_, _, Some(image)) => {
                vec![ContentBlock::image(STANDARD.encode(image), &self.artifact.media_type)]
            }
            (_, base64, _) => vec![ContentBlock::text(base64.clone().unwrap_or_default())],
        }
    }
}

async fn list(call: Call, asked: List) -> Result<Artifacts> {
    let limit = page(asked.limit, 100, limits::mcp::LISTED_MAX)?;
    let session_id = call.meant(asked.session_id).await?;
    let request = v1::ListArtifactsRequest {
        session_id,
        task_id: asked.exec_id.unwrap_or_default(),
        page: Some(v1::Page { limit, cursor: asked.cursor.unwrap_or_default() }),
        ..Default::default()
    };
    let listed = call.runs().list_artifacts(call.by(request)).await.map_err(said)?.into_inner();
    let next_cursor = Some(listed.next_cursor).filter(|cursor| !cursor.is_empty());
    Ok(Artifacts { artifacts: listed.artifacts.into_iter().map(Artifact::from).collect(), next_cursor })
}

async fn get(call: Call, asked: Get) -> Result<Content> {
    let most = limits::mcp::READ_BYTES_MAX as u64;
    let request = match (asked.artifact_id, asked.name) {
        (Some(artifact_id), None) => v1::ReadArtifactRequest { artifact_id, ..Default::default() },
        (None, Some(name)) => v1::ReadArtifactRequest {
            session_id: call.meant(asked.session_id).await?,
            name,
            ..Default::default()
        },
        _ => return Err(Error::invalid("give either artifact_id or name")),
    };
    let request = v1::ReadArtifactRequest { offset_bytes: asked.offset_bytes, length_bytes: most, ..request };
    let (artifact, bytes) = read(&call, request, limits::mcp::READ_BYTES_MAX).await?;
    let artifact = artifact.ok_or_else(|| Error::internal("the artifact has no description"))?;
    let next_offset_bytes = asked.offset_bytes + bytes.len() as u64;
    let truncated = next_offset_bytes < artifact.size_bytes;
    let artifact = Artifact::from(artifact);
    let whole = asked.offset_bytes == 0 && !truncated;
    let (mut text, mut base64, mut image) = (None, None, None);
    if whole && artifact.media_type.starts_with("image/") && artifact.media_type != "image/svg+xml" {
        image = Some(bytes);
    } else {
        match String::from_utf8(bytes) {
            Ok(is) => text = Some(is),
            Err(error) => base64 = Some(STANDARD.encode(error.as_bytes())),
        }
    }
    Ok(Content { artifact, text, base64, next_offset_bytes, truncated, image })
}

/// What is asked for, of whatever kind of artifact, as long as it has no more than so many bytes: what comes after one more
/// is left out.
pub async fn read(
    call: &Call,
    request: v1::ReadArtifactRequest,
    bytes_max: usize,
) -> Result<(Option<v1::Artifact>, Vec<u8>)> {
    let mut parts = call.runs().read_artifact(call.by(request)).await.map_err(said)?.into_inner();
    let (mut artifact, mut bytes) = (None, Vec::new());
    while let Some(part) = parts.message().await.map_err(said)? {
        artifact = artifact.or(part.artifact);
        bytes.extend_from_slice(&part.data);
        if bytes.len() > bytes_max {
            break;
        }
    }
    Ok((artifact, bytes))
}
