//! Puts a group of batches into one transaction, row by row, each batch whole or not at all.
//!
//! Row by row with prepared statements, because in this process a statement is a function call: measured at 59–64k task
//! lifecycles/s against 33k for set-based `json_each` statements through sqlx. (Postgres, across a socket, wants sets.)

use cooper_common::failpoint;
use cooper_core::change::{Aggregate, Change, Row};
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};

use super::{lock::Lock, read, schema};
use crate::store::{Batch, Cause, Conflict, Durability, Error, Event, Result};

/// The write connection. There is one, and whoever has it is the writer.
pub(super) struct Pen {
    pub connection: Connection,
    /// Number of the newest event.
    pub last_seq: u64,
    /// What `PRAGMA synchronous` stands at.
    synced: Durability,
    /// Goes after the connection.
    _lock: Option<Lock>,
}

/// What became of a group.
pub(super) struct Outcomes {
    /// One a batch, in order.
    pub of_batches: Vec<Result<()>>,
    /// Number of the first event of the group.
    pub first_seq: u64,
}

/// Why a batch is not in the transaction.
enum Refused {
    Conflict(Conflict),
    Sql(rusqlite::Error),
}

impl From<rusqlite::Error> for Refused {
    fn from(error: rusqlite::Error) -> Self {
        Refused::Sql(error)
    }
}

impl Pen {
    /// The connection stands at `synchronous=FULL`.
    pub(super) fn new(connection: Connection, lock: Option<Lock>) -> rusqlite::Result<Self> {
        let last_seq = read::last_seq(&connection)?;
        Ok(Self { connection, last_seq, synced: Durability::Full, _lock: lock })
    }

    /// Records what it can of a group in one transaction. A transaction that cannot commit fails every batch of it.
    pub(super) fn write(&mut self, group: &[Batch]) -> Outcomes {
        let first_seq = self.last_seq + 1;
        let mut of_batches = vec![Ok(()); group.len()];
        let durability = match group.iter().all(|batch| batch.durability == Durability::Relaxed) {
            true => Durability::Relaxed,
            false => Durability::Full,
        };
        if let Err(cause) = self.try_write(group, durability, &mut of_batches) {
            self.roll_back();
            for outcome in &mut of_batches {
                // A conflict seen in a transaction that is gone may not be one any more.
                *outcome = Err(error(&cause));
            }
        }
        Outcomes { of_batches, first_seq }
    }

    fn try_write(
        &mut self,
        group: &[Batch],
        durability: Durability,
        outcomes: &mut [Result<()>],
    ) -> rusqlite::Result<()> {
        self.sync_as(durability)?;
        // Batches that SQLite itself refused (a value beyond its limits); each is left out of the next attempt.
        let mut hopeless: Vec<(usize, Error)> = Vec::new();
        'attempt: loop {
            outcomes.fill(Ok(()));
            for (index, error) in &hopeless {
                outcomes[*index] = Err(error.clone());
            }
            self.connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
            let mut seq = self.last_seq;
            for (index, batch) in group.iter().enumerate() {
                if outcomes[index].is_err() {
                    continue;
                }
                match apply(&self.connection, &batch.changes, &mut seq) {
                    Ok(()) => failpoint::pass(failpoint::name::MID_GROUP_COMMIT),
                    Err(Refused::Conflict(conflict)) => outcomes[index] = Err(conflict.into()),
                    Err(Refused::Sql(cause)) if ends_transaction(&cause) => return Err(cause),
                    Err(Refused::Sql(cause)) => {
                        hopeless.push((index, error(&cause)));
                        self.roll_back();
                        continue 'attempt;
                    }
                }
            }
            self.connection.prepare_cached("COMMIT")?.execute([])?;
            self.last_seq = seq;
            return Ok(());
        }
    }

    /// Runs one write of another kind (meta, retention) as a transaction of its own.
    pub(super) fn transact<T>(
        &mut self,
        durability: Durability,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T> {
        let result = self.sync_as(durability).and_then(|()| {
            self.connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
            let value = work(&self.connection)?;
            self.connection.prepare_cached("COMMIT")?.execute([])?;
            Ok(value)
        });
        result.map_err(|cause| {
            self.roll_back();
            error(&cause)
        })
    }

    /// Cheap, and allowed only outside a transaction.
    fn sync_as(&mut self, durability: Durability) -> rusqlite::Result<()> {
        if self.synced != durability {
            self.connection.execute_batch(match durability {
                Durability::Full => "PRAGMA synchronous=FULL",
                Durability::Relaxed => "PRAGMA synchronous=NORMAL",
            })?;
            self.synced = durability;
        }
        Ok(())
    }

    fn roll_back(&mut self) {
        // A full disk makes SQLite roll back by itself.
        if !self.connection.is_autocommit()
            && let Err(cause) = self.connection.execute_batch("ROLLBACK")
        {
            tracing::error!(%cause, "the store could not roll back");
        }
    }
}

/// The events of a group that was recorded, as `write` numbered them.
pub(super) fn events(group: &[Batch], outcomes: &Outcomes) -> Vec<Event> {
    let recorded = group.iter().zip(&outcomes.of_batches).filter(|(_, outcome)| outcome.is_ok());
    recorded
        .flat_map(|(batch, _)| &batch.changes)
        .flat_map(|change| change.events.iter().map(move |event| (change, event)))
        .zip(outcomes.first_seq..)
        .map(|((change, event), seq)| Event {
            seq,
            at_ms: change.row.updated_ms,
            tenant: change.row.tenant.clone(),
            kind: event.kind.clone(),
            subject: change.id.clone(),
            body: event.body.clone(),
        })
        .collect()
}

/// Applies one batch inside the open transaction; refused, it leaves no trace.
fn apply(connection: &Connection, changes: &[Change], seq: &mut u64) -> Result<(), Refused> {
    let before = *seq;
    // A single change conflicts before it has written anything, so it needs no savepoint.
    let guarded = changes.len() > 1;
    if guarded {
        connection.prepare_cached("SAVEPOINT batch")?.execute([])?;
    }
    for (index, change) in changes.iter().enumerate() {
        let recorded = record(connection, index, change, seq);
        if let (true, Err(Refused::Conflict(_))) = (guarded, &recorded) {
            connection.prepare_cached("ROLLBACK TO batch")?.execute([])?;
            connection.prepare_cached("RELEASE batch")?.execute([])?;
            *seq = before;
        }
        recorded?;
    }
    if guarded {
        connection.prepare_cached("RELEASE batch")?.execute([])?;
    }
    Ok(())
}

fn record(connection: &Connection, index: usize, change: &Change, seq: &mut u64) -> Result<(), Refused> {
    let sql = schema::sql(change.aggregate);
    let Change { id, row, expected, .. } = change;
    let Row { tenant, state, ended, parent, key, created_ms, updated_ms, body, spec, result } = row;
    let rows = if *expected == 0 {
        connection.prepare_cached(&sql.insert)?.execute(params![
            id, tenant, state, ended, parent, key, created_ms, updated_ms, body, spec, result
        ])?
    } else {
        let version = *expected as i64;
        connection
            .prepare_cached(&sql.update)?
            .execute(params![id, version, state, ended, key, updated_ms, body, spec, result])?
    };
    if rows == 0 {
        let cause = cause_of_conflict(connection, change)?;
        return Err(Refused::Conflict(Conflict {
            index,
            aggregate: change.aggregate,
            id: id.clone(),
            cause,
        }));
    }
    // Sessions move from worker to worker; of all others what they belong to stays.
    if change.aggregate == Aggregate::Session && *expected > 0 {
        connection.prepare_cached(&sql.update_parent)?.execute(params![id, parent])?;
    }
    for output in &change.output {
        connection
            .prepare_cached("INSERT OR REPLACE INTO output (task, stream, bytes) VALUES (?1, ?2, ?3)")?
            .execute(params![id, output.stream, output.bytes])?;
    }
    for event in &change.events {
        *seq += 1;
        connection
            .prepare_cached(
                "INSERT INTO event (seq, at_ms, tenant, kind, subject, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![*seq as i64, updated_ms, tenant, event.kind, id, event.body])?;
    }
    Ok(())
}

fn cause_of_conflict(connection: &Connection, change: &Change) -> rusqlite::Result<Cause> {
    let sql = schema::sql(change.aggregate);
    let found: i64 = connection
        .prepare_cached(&sql.version_of)?
        .query_row([&change.id], |row| row.get(0))
        .optional()?
        .unwrap_or(0);
    let (expected, found) = (change.expected, found as u64);
    if expected != found {
        return Ok(Cause::Stale { expected, found });
    }
    let by = connection
        .prepare_cached(&sql.holder_of_key)?
        .query_row(params![change.row.key, change.row.tenant, change.id], |row| row.get(0))?;
    Ok(Cause::KeyTaken { by })
}

/// Whether the transaction is lost with the statement, rather than the statement alone.
fn ends_transaction(error: &rusqlite::Error) -> bool {
    !matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::TooBig | ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch)
    )
}

pub(super) fn error(cause: &rusqlite::Error) -> Error {
    match cause.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => Error::Full,
        _ => Error::Unavailable(cause.to_string()),
    }
}
