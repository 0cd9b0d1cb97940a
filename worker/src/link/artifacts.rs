//! Artifacts on the second connection: those of an attempt that has ended, before its result.

use cooper_common::{clock, failpoint, limits::artifact::UPLOADS_MAX};
use cooper_proto::{
    host::ArtifactPart,
    v1::{ArtifactUp, TransferUp, transfer_down, transfer_up::Part},
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tracing::warn;

use super::{
    dial::{Bulk, Failure},
    ledger::{Key, Ledger, Sent, Upload},
    transfer::{PIECES, send_body},
};

/// What is under way, of one attach: it ends with it.
pub struct Artifacts {
    bulk: Bulk,
    uploads: JoinSet<(Key, Result<Vec<Sent>, Failure>)>,
}

impl Artifacts {
    pub fn new(bulk: Bulk) -> Self {
        Self { bulk, uploads: JoinSet::new() }
    }

    /// Begins what there is room for.
    pub fn begin(&mut self, ledger: &mut Ledger) {
        while self.uploads.len() < UPLOADS_MAX {
            let Some(upload) = ledger.poll_upload() else { return };
            let bulk = self.bulk.clone();
            self.uploads.spawn(async move {
                let Upload { key, parts, file } = upload;
                let mut sent = Vec::with_capacity(parts.len());
                for part in &parts {
                    match send(&bulk, &key, part, &file).await {
                        Ok(done) => sent.push(done),
                        Err(failure) => return (key, Err(failure)),
                    }
                }
                (key, Ok(sent))
            });
        }
    }

    /// Waits for the end of one, for ever when there is none.
    pub async fn done(&mut self) -> (Key, Result<Vec<Sent>, Failure>) {
        loop {
            match self.uploads.join_next().await {
                Some(Ok(done)) => return done,
                // Only with the attach itself.
                Some(Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }

    pub fn take(&mut self, (key, sent): (Key, Result<Vec<Sent>, Failure>), ledger: &mut Ledger) {
        let now = clock::mono_ms();
        match sent {
            Ok(sent) => {
                failpoint::pass(failpoint::name::ARTIFACTS_BEFORE_RESULT);
                ledger.uploaded(now, &key, &sent);
            }
            Err(failure) => {
                warn!(task = %key.task, "its artifacts were not taken: {} (trying again)", failure.what);
                ledger.upload_cut(now, &key);
            }
        }
    }
}

async fn send(
    bulk: &Bulk,
    key: &Key,
    part: &ArtifactPart,
    file: &std::sync::Arc<std::fs::File>,
) -> Result<Sent, Failure> {
    let (parts, outbound) = mpsc::channel(PIECES);
    let up = ArtifactUp {
        task_id: key.task.to_string(),
        fence: key.fence.into(),
        name: part.name.clone(),
        size_bytes: part.size_bytes,
        sha256: part.sha256.clone(),
    };
    // The channel is empty.
    let _ = parts.try_send(TransferUp { part: Some(Part::Artifact(up)) });
    let (file, begin, end) = (file.clone(), part.offset, part.offset + part.size_bytes);
    tokio::task::spawn_blocking(move || send_body(&file, begin, end, &parts));
    let mut down =
        bulk.client.clone().transfer(bulk.request(ReceiverStream::new(outbound))).await?.into_inner();
    match down.message().await?.and_then(|down| down.part) {
        Some(transfer_down::Part::Kept(_)) => Ok(Sent::Kept),
        Some(transfer_down::Part::Refused(error)) => Ok(Sent::Refused(error.code)),
        Some(_) | None => Err(Failure::passing("the transfer was cut")),
    }
}
