//! What is wrong with a store: its database, its rows as the domain reads them, and the files beside it.

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
};

use cooper_common::error::Result;
use cooper_core::{change::Aggregate, session::Session, task::Task, worker::Worker};
use serde::Serialize;

use super::{blocking, files};
use crate::{
    blobs::{Blobs, Digest},
    checkpoints, cluster,
    output::OutputLog,
    runs, secrets,
    store::{Record, Store, parts, sqlite::Sqlite},
    tokens,
};

/// Findings of one kind that are named; more are counted.
const NAMED_MAX: usize = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Something is lost or cannot be read: restore a backup.
    Damage,
    /// In the way of nobody; the coordinator removes it by itself.
    Leftover,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub severity: Severity,
    pub what: String,
}

/// Looks at a data directory, which may be in use, or at a backup.
pub async fn check(data: &Path) -> Result<Vec<Finding>> {
    let mut found = Findings::default();
    match Sqlite::read_only(data) {
        // What cannot even be opened is damage like any other.
        Err(error) => found.damage("database", error.to_string()),
        Ok(store) => {
            if let Err(error) = look(&store, data, &mut found).await {
                found.damage("database", error.to_string());
            }
        }
    }
    Ok(found.list())
}

async fn look(store: &Sqlite, data: &Path, found: &mut Findings) -> Result<()> {
    for wrong in store.check().await? {
        found.damage("database", wrong);
    }
    for aggregate in Aggregate::ALL {
        let mut runs = Vec::new();
        files::each(store, aggregate, |record| {
            if let Err(error) = read(aggregate, &record) {
                found.damage("row", format!("{} {} cannot be read: {error}", aggregate.name(), record.id));
            } else if aggregate == Aggregate::Run {
                runs.push(record);
            }
            Ok(())
        })
        .await?;
        for run in runs {
            let id = run.id.clone();
            if let Err(error) = runs::load(store, run).await {
                found.damage("row", format!("run {id} cannot be read with its steps: {error}"));
            }
        }
        for part in parts(aggregate) {
            let mut parents = BTreeMap::new();
            files::each(store, *part, |record| {
                parents.insert(record.row.parent, record.id);
                Ok(())
            })
            .await?;
            for names in parents.keys().cloned().collect::<Vec<_>>().chunks(500) {
                let known: HashSet<_> = store.known(aggregate, names.to_vec()).await?.into_iter().collect();
                for lost in names.iter().filter(|name| !known.contains(*name)) {
                    let (part, row) = (part.name(), &parents[lost]);
                    found.damage(
                        "row",
                        format!("{part} {row} belongs to {} {lost}, which is not there", aggregate.name()),
                    );
                }
            }
        }
    }
    artifacts(store, data, found).await?;
    output(store, data, found).await
}

/// As whoever loads it does.
fn read(aggregate: Aggregate, record: &Record) -> Result<(), String> {
    let (id, row) = (record.id.as_str(), record.row.clone());
    let said = |error: serde_json::Error| error.to_string();
    match aggregate {
        Aggregate::Worker => Worker::restore(cluster::now(), id, record.version, row).map(drop).map_err(said),
        Aggregate::Session => {
            let id = id.parse().map_err(|_| "its id is none".to_owned())?;
            Session::restore(cluster::now(), id, record.version, row).map(drop).map_err(said)
        }
        Aggregate::Task => {
            let id = id.parse().map_err(|_| "its id is none".to_owned())?;
            Task::restore(cluster::now(), id, record.version, row).map(drop).map_err(said)
        }
        Aggregate::Run => files::artifacts_of(record).map(drop).map_err(|error| error.message),
        Aggregate::Token => tokens::readable(record).map_err(|error| error.message),
        Aggregate::Plan => {
            cooper_repair::RepairPlan::from_json(&row.body).map(drop).map_err(|error| error.to_string())
        }
        Aggregate::Checkpoint => checkpoints::manifest(record).map(drop).map_err(|error| error.message),
        Aggregate::Artifact => {
            serde_json::from_str::<cooper_core::artifact::Artifact>(&row.body).map(drop).map_err(said)
        }
        Aggregate::Secret => secrets::readable(record).map_err(|error| error.message),
        Aggregate::Fix => runs::lesson_readable(&row.body).map_err(said),
        Aggregate::Step | Aggregate::Approval | Aggregate::Stack | Aggregate::Template => {
            serde_json::from_str::<serde_json::Value>(&row.body).map(drop).map_err(said)
        }
    }
}

async fn artifacts(store: &Sqlite, data: &Path, found: &mut Findings) -> Result<()> {
    let mut wanted: BTreeMap<String, String> = BTreeMap::new();
    files::each(store, Aggregate::Run, |record| {
        // What cannot be read was told above.
        for digest in files::artifacts_of(&record).unwrap_or_default() {
            wanted.entry(digest.to_string()).or_insert_with(|| format!("run {}", record.id));
        }
        Ok(())
    })
    .await?;
    files::each(store, Aggregate::Checkpoint, |record| {
        if let Ok(Some(digest)) = files::archive_of(&record) {
            wanted.entry(digest.to_string()).or_insert_with(|| format!("checkpoint {}", record.id));
        }
        Ok(())
    })
    .await?;
    files::each(store, Aggregate::Artifact, |record| {
        if let Ok(Some(digest)) = files::content_of(&record) {
            wanted.entry(digest.to_string()).or_insert_with(|| format!("artifact {}", record.id));
        }
        Ok(())
    })
    .await?;
    let blobs = Blobs::at(data);
    let (stored, damaged) = {
        let blobs = blobs.clone();
        blocking(move || Ok(blobs.survey()?)).await?
    };
    let stored: HashSet<String> = stored.iter().map(Digest::to_string).collect();
    for digest in damaged {
        found.damage("artifact", format!("artifact {digest} does not have the bytes that its name says"));
    }
    for (digest, owner) in &wanted {
        if !stored.contains(digest) {
            found.damage("artifact", format!("artifact {digest} of {owner} is not there"));
        }
    }
    for digest in stored.iter().filter(|digest| !wanted.contains_key(*digest)) {
        found.leftover("artifact", format!("nothing refers to artifact {digest}"));
    }
    Ok(())
}

async fn output(store: &Sqlite, data: &Path, found: &mut Findings) -> Result<()> {
    let log = OutputLog::at(data);
    for folder in log.folders()? {
        let log = log.clone();
        let tasks = blocking(move || Ok(log.sizes(&folder)?)).await?;
        let ids: Vec<String> = tasks.keys().map(ToString::to_string).collect();
        let known: HashSet<_> = store.known(Aggregate::Task, ids.clone()).await?.into_iter().collect();
        for id in ids.iter().filter(|id| !known.contains(*id)) {
            found.leftover("output", format!("there is output of {id}, which is no task"));
        }
    }
    Ok(())
}

#[derive(Default)]
struct Findings(BTreeMap<&'static str, (Vec<Finding>, usize)>);

impl Findings {
    fn damage(&mut self, of: &'static str, what: String) {
        self.add(of, Severity::Damage, what);
    }
    fn leftover(&mut self, of: &'static str, what: String) {
        self.add(of, Severity::Leftover, what);
    }
    fn add(&mut self, of: &'static str, severity: Severity, what: String) {
        let (named, more) = self.0.entry(of).or_default();
        match named.len() < NAMED_MAX {
            true => named.push(Finding { severity, what }),
            false => *more += 1,
        }
    }
    fn list(self) -> Vec<Finding> {
        let mut list = Vec::new();
        for (of, (named, more)) in self.0 {
            let damage = named.iter().any(|finding| finding.severity == Severity::Damage);
            list.extend(named);
            if more > 0 {
                let severity = if damage { Severity::Damage } else { Severity::Leftover };
                list.push(Finding { severity, what: format!("{more} more of {of}") });
            }
        }
        list.sort_by_key(|finding| finding.severity == Severity::Leftover);
        list
    }
}

#[cfg(test)]
mod tests;
