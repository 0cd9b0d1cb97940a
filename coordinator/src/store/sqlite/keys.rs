//! Which idempotency keys may be recorded, in memory: a key that is new, as nearly all are, is known to be new without a
//! read. There is one process that writes, so what it remembers is all there is.

use std::{
    collections::HashSet,
    hash::{BuildHasher, RandomState},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use cooper_common::limits;
use cooper_core::change::Aggregate;
use rusqlite::{Connection, OpenFlags};

use super::{schema, write};
use crate::store::Result;

/// Hashes of keys. One that is not here is not recorded; one that is here may be.
#[derive(Clone)]
pub(super) struct Keys {
    database: PathBuf,
    hasher: RandomState,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    hashes: HashSet<u64>,
    /// Everything recorded is here. Until then every key may be.
    complete: bool,
}

impl Keys {
    pub(super) fn of(database: &Path) -> Self {
        let keys = Self { database: database.to_owned(), hasher: RandomState::new(), seen: Arc::default() };
        keys.load();
        keys
    }

    /// Reads what is recorded, on a thread of its own.
    fn load(&self) {
        let keys = self.clone();
        let load = move || match keys.read() {
            Ok(hashes) => {
                let mut seen = keys.lock();
                seen.hashes.extend(hashes);
                // With less room than this it would soon be read again, and again.
                seen.complete = seen.hashes.len() < limits::store::KEYS_REMEMBERED_MAX / 2;
            }
            Err(cause) => tracing::warn!(%cause, "keys are looked up on the disk, one by one"),
        };
        if let Err(cause) = thread::Builder::new().name("store-keys".into()).spawn(load) {
            tracing::warn!(%cause, "keys are looked up on the disk, one by one");
        }
    }

    fn read(&self) -> Result<Vec<u64>> {
        let connection = super::connect(&self.database, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        self.hashes(&connection).map_err(|cause| write::error(&cause))
    }

    fn hashes(&self, connection: &Connection) -> rusqlite::Result<Vec<u64>> {
        let mut hashes = Vec::new();
        for aggregate in Aggregate::ALL {
            let mut keys = connection.prepare(&schema::sql(aggregate).keys)?;
            let mut rows = keys.query([])?;
            while let Some(row) = rows.next()? {
                hashes.push(self.hash(aggregate, row.get_ref(0)?.as_str()?, row.get_ref(1)?.as_str()?));
            }
        }
        Ok(hashes)
    }

    /// Before the key's commit is queued.
    pub(super) fn add(&self, aggregate: Aggregate, tenant: &str, key: &str) {
        let hash = self.hash(aggregate, tenant, key);
        let mut seen = self.lock();
        if seen.hashes.len() < limits::store::KEYS_REMEMBERED_MAX {
            seen.hashes.insert(hash);
        } else if seen.complete {
            // Rows fell to retention and their hashes stayed: begin anew.
            *seen = Seen { hashes: HashSet::from([hash]), complete: false };
            drop(seen);
            self.load();
        }
    }

    /// False = it is not recorded.
    pub(super) fn may_hold(&self, aggregate: Aggregate, tenant: &str, key: &str) -> bool {
        let hash = self.hash(aggregate, tenant, key);
        let seen = self.lock();
        !seen.complete || seen.hashes.contains(&hash)
    }

    fn hash(&self, aggregate: Aggregate, tenant: &str, key: &str) -> u64 {
        self.hasher.hash_one((aggregate as usize, tenant, key))
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
