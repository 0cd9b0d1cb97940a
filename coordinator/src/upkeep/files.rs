//! Which files rows refer to.

use std::collections::HashSet;

use cooper_common::{
    error::{Error, Result},
    limits,
};
use cooper_core::{change::Aggregate, run};

use crate::{
    artifacts,
    blobs::Digest,
    checkpoints,
    store::{Filter, Record, Store},
};

/// Every row of an aggregate, newest first, page by page.
pub async fn each(
    store: &dyn Store,
    aggregate: Aggregate,
    mut see: impl FnMut(Record) -> Result<()>,
) -> Result<()> {
    let mut filter = Filter { limit: limits::request::PAGE_MAX as usize, ..Filter::default() };
    loop {
        let page = store.list(aggregate, filter.clone()).await?;
        page.records.into_iter().try_for_each(&mut see)?;
        match page.next {
            Some(next) => filter.before = Some(next),
            None => return Ok(()),
        }
    }
}

/// The artifacts that a run's row names.
pub fn artifacts_of(record: &Record) -> Result<Vec<Digest>> {
    let body: run::Body = serde_json::from_str(&record.row.body)
        .map_err(|error| Error::internal(format!("the stored run {} cannot be read: {error}", record.id)))?;
    body.artifacts.iter().map(|artifact| Ok(artifact.digest.parse()?)).collect()
}

/// The archive of a checkpoint; none of one that was deleted.
pub fn archive_of(record: &Record) -> Result<Option<Digest>> {
    if record.row.ended {
        return Ok(None);
    }
    Ok(Some(checkpoints::manifest(record)?.digest.parse()?))
}

/// The file of a session's artifact; none of one that was deleted.
pub fn content_of(record: &Record) -> Result<Option<Digest>> {
    if record.row.ended {
        return Ok(None);
    }
    Ok(Some(artifacts::body(record)?.digest.parse()?))
}

/// The artifacts that any row refers to. Fails rather than leaves out one.
pub async fn artifacts(store: &dyn Store) -> Result<HashSet<Digest>> {
    let mut all = artifacts_of_runs(store).await?;
    each(store, Aggregate::Artifact, |record| {
        all.extend(content_of(&record)?);
        Ok(())
    })
    .await?;
    each(store, Aggregate::Checkpoint, |record| {
        all.extend(archive_of(&record)?);
        Ok(())
    })
    .await?;
    Ok(all)
}

/// Those of runs alone.
pub async fn artifacts_of_runs(store: &dyn Store) -> Result<HashSet<Digest>> {
    let mut all = HashSet::new();
    each(store, Aggregate::Run, |record| {
        all.extend(artifacts_of(&record)?);
        Ok(())
    })
    .await?;
    Ok(all)
}
