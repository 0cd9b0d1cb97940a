//! Files of a run: stored by content, listed on the run.

use std::sync::Arc;

use bytes::Bytes;
use cooper_common::{clock, error::Result, ids::TaskId, limits};
use cooper_core::run::Artifact;

use crate::{blobs::Blobs, cluster::Cluster, output::Stream};

/// Stores a file; too large ones are cut with a mark at the end.
pub async fn store(blobs: &Arc<Blobs>, name: &str, mut content: Vec<u8>) -> Result<Artifact> {
    if content.len() > limits::run::ARTIFACT_BYTES_MAX {
        content.truncate(limits::run::ARTIFACT_BYTES_MAX - 64);
        content.extend_from_slice(b"\n[truncated]\n");
    }
    let size_bytes = content.len() as u64;
    let digest = blobs.put(content.into()).await?.to_string();
    Ok(Artifact { name: name.to_owned(), size_bytes, digest, created_ms: clock::wall_ms() })
}

pub async fn read(blobs: &Arc<Blobs>, digest: &str) -> Result<Bytes> {
    Ok(blobs.read(digest.parse()?).await?)
}

/// The whole log of an ended step: its stdout, then its stderr.
pub async fn log_of(cluster: &Cluster, task: TaskId) -> Result<Vec<u8>> {
    let mut log = Vec::new();
    for stream in Stream::BOTH {
        let inline = cluster.store.inline_output(&task.to_string(), stream.number()).await?;
        match inline {
            Some(bytes) => log.extend_from_slice(&bytes),
            None => log.extend_from_slice(&file(cluster, task, stream)?),
        }
    }
    Ok(log)
}

fn file(cluster: &Cluster, task: TaskId, stream: Stream) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let max = usize::try_from(limits::run::STEP_LOG_BYTES_MAX).unwrap_or(usize::MAX);
    loop {
        let piece = cluster.output.read(task, stream, bytes.len() as u64, limits::link::CHUNK_BYTES_MAX)?;
        if piece.is_empty() || bytes.len() >= max {
            return Ok(bytes);
        }
        bytes.extend_from_slice(&piece);
    }
}
