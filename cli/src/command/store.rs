//! `cooper store`: on the data directory itself, with or without a coordinator that runs.

use std::path::Path;

use cooper_common::config::Role;
use cooper_coordinator::{
    store::sqlite,
    upkeep::{
        backup,
        check::{self, Severity},
        migrate,
    },
};
use serde_json::json;

use crate::{args, context::Context, failure::Result, units};

pub async fn run(context: &Context, args: args::Store) -> Result<u8> {
    // As a coordinator: what is in a store or a backup is nobody else's to read.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let data = context.config(Role::Client, Default::default())?.data();
    match args {
        args::Store::Backup { to } => make(context, &data, &to).await,
        args::Store::Restore { from, replace } => restore(context, &data, &from, replace).await,
        args::Store::Check => look(context, &data).await,
        args::Store::Migrate => migrated(context, &data).await,
    }
}

async fn make(context: &Context, data: &Path, to: &Path) -> Result<u8> {
    let made = backup::make(data, to).await?;
    for missing in &made.missing {
        context.out.note(&format!("note: {missing} is not there; see `cooper store check`"));
    }
    let mut document = json!(made);
    document["path"] = to.to_string_lossy().into_owned().into();
    context.out.answer(
        || document,
        || {
            format!(
                "{}: {} files, {} bytes, up to event {}",
                to.display(),
                made.files,
                made.bytes,
                made.last_seq
            )
        },
    )?;
    Ok(0)
}

async fn restore(context: &Context, data: &Path, from: &Path, replace: bool) -> Result<u8> {
    let restored = backup::restore(from, data, replace).await?;
    let manifest = &restored.manifest;
    if let Some(replaced) = &restored.replaced {
        context
            .out
            .note(&format!("note: what was there is in {}; delete it when all is well", replaced.display()));
    }
    context.out.answer(
        || json!(restored),
        || {
            let made = units::utc(manifest.made_at_ms);
            format!(
                "{}: as of {made}, {} files; the next epoch is {}",
                data.display(),
                manifest.files,
                restored.epoch + 1
            )
        },
    )?;
    Ok(0)
}

async fn look(context: &Context, data: &Path) -> Result<u8> {
    let found = check::check(data).await?;
    let damaged = found.iter().any(|finding| finding.severity == Severity::Damage);
    context.out.answer(
        || json!({"data": data.to_string_lossy(), "ok": !damaged, "findings": found}),
        || {
            let mut lines: Vec<String> = found
                .iter()
                .map(|finding| match finding.severity {
                    Severity::Damage => format!("damage    {}", finding.what),
                    Severity::Leftover => format!("leftover  {}", finding.what),
                })
                .collect();
            lines.push(match damaged {
                true => "damaged: restore a backup (docs/operations.md)".to_owned(),
                false => "no damage".to_owned(),
            });
            lines.join("\n")
        },
    )?;
    Ok(u8::from(damaged))
}

async fn migrated(context: &Context, data: &Path) -> Result<u8> {
    let done = migrate::migrate(data).await?;
    context.out.answer(
        || json!(done),
        || match &done.backup {
            None => format!("schema {}: nothing to do", done.from),
            Some(backup) => {
                format!("schema {} is now {}; as it was: {}", done.from, sqlite::SCHEMA, backup.display())
            }
        },
    )?;
    Ok(0)
}
