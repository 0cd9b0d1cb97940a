//! Artifacts, files and logs as resources: a host shows them to a person, or gives them to a model, without a tool.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use cooper_common::{
    error::{Code, Error, Result},
    limits,
};
use cooper_proto::v1;
use rmcp::model::{Resource, ResourceContents, ResourceTemplate};

use super::{
    artifacts,
    call::{Call, said},
    files,
};

/// How a URI of ours begins.
const SCHEME: &str = "cooper://";
/// Newest of each kind that are looked through for a list.
const LISTED_EACH: u32 = 10;

/// Where an artifact of a session is.
pub fn artifact_uri(session_id: &str, name: &str) -> String {
    format!("{SCHEME}sessions/{session_id}/artifacts/{}", escaped(name))
}

fn run_uri(run_id: &str, name: &str) -> String {
    format!("{SCHEME}runs/{run_id}/artifacts/{}", escaped(name))
}

fn output_uri(exec_id: &str, stream: &str) -> String {
    format!("{SCHEME}executions/{exec_id}/{stream}")
}

/// What may not stand in a path as it is, as in every URI.
fn escaped(path: &str) -> String {
    let mut text = String::new();
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                text.push(byte.into())
            }
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

/// The reverse. None: it is no text that was escaped.
fn unescaped(path: &str) -> Option<String> {
    let (mut bytes, mut rest) = (Vec::new(), path.as_bytes());
    while let [first, after @ ..] = rest {
        match (first, after) {
            (b'%', [a, b, after @ ..]) => {
                let digits = [*a, *b];
                bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
                rest = after;
            }
            (b'%', _) => return None,
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

/// Everything that can be read, as patterns.
pub fn templates() -> Vec<ResourceTemplate> {
    let of = |uri: &str, name: &str, description: &str| {
        ResourceTemplate::new(format!("{SCHEME}{uri}"), name).with_description(description)
    };
    vec![
        of(
            "sessions/{session_id}/artifacts/{+name}",
            "artifact",
            "A file that an execution of a session saved beneath artifacts/, also after the session has ended",
        ),
        of("sessions/{session_id}/files/{+path}", "file", "A file of a session's workspace"),
        of("executions/{exec_id}/stdout", "stdout", "What an execution printed"),
        of("executions/{exec_id}/stderr", "stderr", "What an execution printed to standard error"),
        of("runs/{run_id}/artifacts/{+name}", "run artifact", "A plan, patch or log of a repair run"),
    ]
}

/// What is newest: artifacts and output of sessions that live, and artifacts of runs. Everything else has its URI by a tool.
pub async fn list(call: &Call) -> Result<Vec<Resource>> {
    let page = || Some(v1::Page { limit: LISTED_EACH, cursor: String::new() });
    let mut listed = Vec::new();
    let sessions = v1::ListSessionsRequest { page: page(), ..Default::default() };
    let sessions =
        call.sessions().list_sessions(call.by(sessions)).await.map_err(said)?.into_inner().sessions;
    for session in sessions {
        let artifacts =
            v1::ListArtifactsRequest { session_id: session.id.clone(), page: page(), ..Default::default() };
        let artifacts =
            call.runs().list_artifacts(call.by(artifacts)).await.map_err(said)?.into_inner().artifacts;
        listed.extend(artifacts.into_iter().map(|artifact| {
            Resource::new(artifact_uri(&session.id, &artifact.name), artifact.name)
                .with_description(format!("artifact of session {}", session.id))
                .with_mime_type(artifact.media_type)
                .with_size(artifact.size_bytes)
        }));
    }
    let tasks = v1::ListTasksRequest { page: page(), ..Default::default() };
    let tasks = call.tasks().list_tasks(call.by(tasks)).await.map_err(said)?.into_inner().tasks;
    for task in tasks {
        let session = task.spec.map(|spec| spec.session_id).unwrap_or_default();
        let Some(outcome) = task.outcome.filter(|_| !session.is_empty()) else { continue };
        let streams = [("stdout", outcome.stdout_bytes), ("stderr", outcome.stderr_bytes)];
        listed.extend(streams.into_iter().filter(|(_, size)| *size > 0).map(|(stream, size)| {
            Resource::new(output_uri(&task.id, stream), format!("{stream} of {}", task.id))
                .with_description(format!("output of an execution in session {session}"))
                .with_mime_type("text/plain")
                .with_size(size)
        }));
    }
    let runs = v1::ListRunsRequest { page: page(), ..Default::default() };
    let runs = call.runs().list_runs(call.by(runs)).await.map_err(said)?.into_inner().runs;
    for run in runs {
        listed.extend(run.artifacts.iter().map(|name| {
            Resource::new(run_uri(&run.id, name), format!("{name} of {}", run.id))
                .with_description(format!("repair of {} in stack {}", run.service, run.stack))
        }));
    }
    Ok(listed)
}

pub async fn read(call: &Call, uri: &str) -> Result<ResourceContents> {
    let absent = || {
        let shown: String = uri.chars().take(200).collect();
        Error::new(Code::InvalidArgument, format!("{shown} is no resource"))
            .with_hint("see resources/templates/list for what there is")
    };
    let path = uri.strip_prefix(SCHEME).ok_or_else(absent)?;
    let parts: Vec<&str> = path.splitn(4, '/').collect();
    let (bytes, media_type) = match parts[..] {
        ["sessions", session_id, "artifacts", name] => {
            let request = v1::ReadArtifactRequest {
                session_id: session_id.to_owned(),
                name: unescaped(name).ok_or_else(absent)?,
                ..Default::default()
            };
            let (artifact, bytes) = artifacts::read(call, request, limits::mcp::RESOURCE_BYTES_MAX).await?;
            (bytes, artifact.map(|artifact| artifact.media_type))
        }
        ["sessions", session_id, "files", path] => {
            let path = unescaped(path).ok_or_else(absent)?;
            let most = limits::mcp::RESOURCE_BYTES_MAX as u64 + 1;
            (files::part(call, session_id, &path, 0, most).await?.1, None)
        }
        ["executions", exec_id, stream @ ("stdout" | "stderr")] => {
            let stream = if stream == "stdout" { v1::Stream::Stdout } else { v1::Stream::Stderr };
            let request = v1::ReadOutputRequest {
                task_id: exec_id.to_owned(),
                stream: stream.into(),
                offset_bytes: 0,
                length_bytes: limits::mcp::RESOURCE_BYTES_MAX as u32 + 1,
            };
            let output = call.executions().read_output(call.by(request)).await.map_err(said)?.into_inner();
            (String::from_utf8_lossy(&output.data).into_owned().into_bytes(), Some("text/plain".to_owned()))
        }
        ["runs", run_id, "artifacts", name] => {
            let request = v1::ReadArtifactRequest {
                run_id: run_id.to_owned(),
                name: unescaped(name).ok_or_else(absent)?,
                ..Default::default()
            };
            (artifacts::read(call, request, limits::mcp::RESOURCE_BYTES_MAX).await?.1, None)
        }
        _ => return Err(absent()),
    };
    let most = limits::mcp::RESOURCE_BYTES_MAX;
    if bytes.len() > most {
        return Err(Error::new(Code::TooLarge, format!("the resource has more than {most} bytes"))
            .with_hint("read it in parts: artifact_get, file_read or exec_poll"));
    }
    Ok(match String::from_utf8(bytes) {
        Ok(text) => ResourceContents::text(text, uri)
            .with_mime_type(media_type.unwrap_or_else(|| "text/plain".to_owned())),
        Err(error) => ResourceContents::blob(STANDARD.encode(error.as_bytes()), uri)
            .with_mime_type(media_type.unwrap_or_else(|| "application/octet-stream".to_owned())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_from_uris_as_they_went() {
        for name in ["plot.png", "a b/ü.txt", "100%", "x?y#z"] {
            let escaped = escaped(name);
            assert!(escaped.is_ascii() && !escaped.contains([' ', '?', '#']), "{escaped}");
            assert_eq!(unescaped(&escaped).as_deref(), Some(name));
        }
        assert_eq!(unescaped("%"), None);
        assert_eq!(unescaped("%zz"), None);
        assert_eq!(unescaped("%ff"), None);
    }
}
