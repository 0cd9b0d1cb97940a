//! From the schema of an older cooper to this one's, with a way back.

use std::path::{Path, PathBuf};

use cooper_common::{clock, error::Result};
use serde::Serialize;

use super::backup;
use crate::{
    bus::Bus,
    store::{
        Store,
        sqlite::{self, Sqlite},
    },
};

#[derive(Debug, Clone, Serialize)]
pub struct Migrated {
    pub from: i64,
    pub to: i64,
    /// The store as it was; `None` when nothing had to be done.
    pub backup: Option<PathBuf>,
}

/// Brings the store in `data`, which nobody may have in use, to the schema of this cooper. The backup comes first.
pub async fn migrate(data: &Path) -> Result<Migrated> {
    let (from, to) = (sqlite::schema_of(data)?, sqlite::SCHEMA);
    if from == to {
        return Ok(Migrated { from, to, backup: None });
    }
    let copy = data.join(format!("before-schema-{to}-{}", clock::wall_ms()));
    {
        let _lock = sqlite::hold(data)?;
        backup::make(data, &copy).await?;
    }
    Sqlite::open_all(data, Bus::default())?.close().await?;
    Ok(Migrated { from, to, backup: Some(copy) })
}
