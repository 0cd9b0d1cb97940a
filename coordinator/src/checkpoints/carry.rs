//! The transfers between workers and the blob store that the core asks for.

use std::{sync::Arc, sync::PoisonError};

use bytes::Bytes;
use cooper_common::{
    error::{Code, Error, Result},
    ids::CheckpointId,
    limits::checkpoint as limits,
};
use cooper_core::{
    change::{Aggregate, Change, NewEvent, Row},
    cluster::{Transfer, What},
    session::{Purpose, Reason, Saving},
};
use cooper_proto::v1;
use futures::StreamExt;

use super::{Body, Checkpoints, LOOK, Manifest};
use crate::{blobs::Digest, cluster::durable, upkeep::blocking};

impl Checkpoints {
    /// Carries what the core asks for, as long as it is not dropped.
    pub async fn run(self: Arc<Self>) {
        loop {
            let _ = tokio::time::timeout(LOOK, self.cluster.transfers.notified()).await;
            let due = self.cluster.decide(|core, now| Ok((core.due_transfers(now), Default::default())));
            for transfer in due.map(|(due, _)| due).unwrap_or_default() {
                let this = self.clone();
                tokio::spawn(async move { this.carry(transfer).await });
            }
        }
    }

    async fn carry(&self, transfer: Transfer) {
        let Transfer { job, session, .. } = transfer;
        // What asked for it may still be on its way to the disk, and the checkpoint's row with it (I2).
        if let Err(error) = self.cluster.recorded().await {
            tracing::warn!(%session, %error, "a session is not carried: what asked for it was not recorded");
            return;
        }
        let brought = match &transfer.what {
            What::Pack { saving, python_version } => self.pack(&transfer, saving, python_version).await,
            What::Restore { checkpoint } => self.restore(&transfer, *checkpoint).await,
        };
        let Err(error) = brought else { return };
        tracing::warn!(%session, worker = %transfer.worker, %error, "a session was not carried");
        let hopeless = match &transfer.what {
            What::Pack { .. } => !is_passing(error.code),
            What::Restore { .. } => is_lasting(error.code),
        };
        let lasting =
            hopeless.then(|| Reason { code: error.code.as_str().to_owned(), message: error.message.clone() });
        if let What::Pack { saving, .. } = &transfer.what
            && saving.purpose.is_for_somebody()
            && lasting.is_some()
        {
            let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
            failures.insert(saving.checkpoint, error);
        }
        self.cluster.tell(|core, now| match transfer.what {
            What::Pack { .. } => core.pack_failed(now, session, job, lasting),
            What::Restore { .. } => core.restore_failed(now, session, job, lasting),
        });
    }

    async fn pack(&self, transfer: &Transfer, saving: &Saving, python_version: &str) -> Result<()> {
        let session = transfer.session;
        let record = self.cluster.store.get(Aggregate::Session, &session.to_string()).await?;
        let record = record.ok_or_else(|| Error::internal("a session that is saved has no row"))?;
        let last = saving.purpose != Purpose::Keep;
        let (summary, mut body) =
            self.cluster.fleet.pack(&transfer.worker, session.to_string(), last, saving.globals).await?;
        let of_before = || v1::GlobalsSummary {
            error: "its worker is of a version that saves none".to_owned(),
            ..v1::GlobalsSummary::default()
        };
        let globals = saving.globals.then(|| summary.globals.unwrap_or_else(of_before));
        let mut draft = self.blobs.draft_of(limits::ARCHIVE_BYTES_MAX)?;
        while let Some(piece) = body.recv().await {
            let piece = piece?;
            draft = blocking(move || {
                draft.write(&piece)?;
                Ok(draft)
            })
            .await?;
        }
        let archive_bytes = draft.bytes_written();
        if saving.purpose.is_for_somebody() {
            self.within_quota(&record.row.tenant, archive_bytes).await?;
        }
        cooper_common::failpoint::pass(cooper_common::failpoint::name::PACKED_BEFORE_KEPT);
        let digest = blocking(move || Ok(draft.keep()?)).await?;
        let spec = record.row.spec.unwrap_or_default();
        let manifest = Manifest {
            id: saving.checkpoint,
            tenant: record.row.tenant.clone(),
            session,
            purpose: if saving.purpose.is_for_somebody() { Purpose::Keep } else { saving.purpose },
            name: saving.name.clone(),
            python_version: python_version.to_owned(),
            digest: digest.to_string(),
            archive_bytes,
            files: summary.files,
            directories: summary.directories,
            symlinks: summary.symlinks,
            hard_links: summary.hard_links,
            content_bytes: summary.content_bytes,
            skipped: summary.skipped,
            skipped_count: summary.skipped_count,
            globals: globals.as_ref().map(super::opaque).unwrap_or_default(),
            spec: blake3::hash(&spec).to_hex().to_string(),
        };
        let signature = self.sign(&manifest)?;
        let event = serde_json::json!({"session": session, "archive_bytes": archive_bytes});
        let body = serde_json::to_string(&Body { manifest, signature })
            .map_err(|error| Error::internal(error.to_string()))?;
        let decided = self.cluster.decide(|core, now| {
            let wanted = core.wants_transfer(session, transfer.job);
            let mut out = core.packed(now, session, transfer.job);
            if wanted {
                out.changes.push(Change {
                    aggregate: Aggregate::Checkpoint,
                    id: saving.checkpoint.to_string(),
                    expected: 0,
                    row: Row {
                        tenant: record.row.tenant,
                        state: "ready".to_owned(),
                        ended: false,
                        parent: session.to_string(),
                        key: saving.key.clone(),
                        created_ms: now.wall_ms,
                        updated_ms: now.wall_ms,
                        body,
                        spec: Some(spec),
                        result: None,
                    },
                    events: vec![NewEvent { kind: "checkpoint.created".to_owned(), body: event.to_string() }],
                    output: Vec::new(),
                });
            }
            Ok(((), out))
        });
        durable(decided?.1).await
    }

    async fn restore(&self, transfer: &Transfer, checkpoint: CheckpointId) -> Result<()> {
        let record = self.cluster.store.get(Aggregate::Checkpoint, &checkpoint.to_string()).await?;
        let gone = || Error::new(Code::CheckpointDamaged, format!("checkpoint {checkpoint} is gone"));
        let manifest = self.verified(&record.filter(|record| !record.row.ended).ok_or_else(gone)?)?;
        let tenant = self.cluster.look(|core| core.session(transfer.session).map(|it| it.tenant.to_string()));
        if tenant.is_some_and(|tenant| tenant != manifest.tenant) {
            return Err(gone());
        }
        let damaged = |error: crate::blobs::Error| match error {
            crate::blobs::Error::NotFound(_) | crate::blobs::Error::Damaged(_) => Error::new(
                Code::CheckpointDamaged,
                format!("the archive of checkpoint {checkpoint} is not what it was: {error}"),
            ),
            other => other.into(),
        };
        let digest: Digest = manifest.digest.parse().map_err(damaged)?;
        let mut pieces = Box::pin(self.blobs.stream(digest).map_err(damaged)?);
        // What somebody keeps may be restored often; what was saved for a move or to hibernate is restored once.
        let shared_digest = match manifest.purpose {
            Purpose::Keep => manifest.digest,
            _ => String::new(),
        };
        let op = v1::call::Op::Unpack(v1::UnpackSession { shared_digest });
        let (body, unpacked) =
            self.cluster.fleet.write(&transfer.worker, transfer.session.to_string(), op)?;
        let send = async {
            while let Some(piece) = pieces.next().await {
                if body.send(piece.map_err(damaged)?).await.is_err() {
                    // The worker gave up; its answer says why.
                    return Ok(());
                }
            }
            cooper_common::failpoint::pass(cooper_common::failpoint::name::RESTORE_BEFORE_UNPACKED);
            // Complete. What was damaged fails above, and the body is dropped without this.
            let _ = body.send(Bytes::new()).await;
            Ok::<(), Error>(())
        };
        tokio::pin!(send, unpacked);
        let mut sent = false;
        loop {
            tokio::select! {
                result = &mut send, if !sent => {
                    result?;
                    sent = true;
                }
                done = &mut unpacked => {
                    done?;
                    break;
                }
            }
        }
        let _ = self.cluster.decide(|core, _| {
            core.restored(transfer.session, transfer.job);
            Ok(((), Default::default()))
        });
        Ok(())
    }
}

/// Packing is tried again after this; what else is wrong with a session's files stays wrong.
fn is_passing(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable
            | Code::NoWorker
            | Code::Overloaded
            | Code::StaleLease
            | Code::TimedOut
            | Code::StoreUnavailable
            | Code::SessionNotReady
    )
}

/// Whether restoring again would not help.
fn is_lasting(code: Code) -> bool {
    matches!(
        code,
        Code::TooLarge
            | Code::QuotaExceeded
            | Code::PathEscapes
            | Code::InvalidArgument
            | Code::CheckpointDamaged
            | Code::NotSupported
    )
}
