//! Retention: the oldest of what has ended goes, in steps so short that no commit notices.

use cooper_core::change::Aggregate;
use rusqlite::{Connection, params};

use super::schema;

/// Rows that one step deletes.
pub(super) const STEP_ROWS: u64 = 256;

/// Ended rows of an aggregate beyond `keep`. Reads an index from end to end: for a reader's connection.
pub(super) fn surplus(c: &Connection, aggregate: Aggregate, keep: u64) -> rusqlite::Result<u64> {
    let ended: i64 = c.query_row(&schema::sql(aggregate).ended_count, [], |row| row.get(0))?;
    Ok((ended as u64).saturating_sub(keep))
}

/// Deletes at most `count` of the oldest ended rows after place `after`. Returns the place reached and the ids.
pub(super) fn delete_rows(
    c: &Connection,
    aggregate: Aggregate,
    after: i64,
    count: u64,
) -> rusqlite::Result<(i64, Vec<String>)> {
    let sql = schema::sql(aggregate);
    let oldest: Vec<(i64, String)> = c
        .prepare_cached(&sql.oldest_ended)?
        .query_map(params![after, count as i64], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let reached = oldest.last().map_or(after, |(n, _)| *n);
    for (n, id) in &oldest {
        c.prepare_cached(&sql.delete)?.execute([n])?;
        if aggregate == Aggregate::Task {
            c.prepare_cached("DELETE FROM output WHERE task = ?1")?.execute([id])?;
        }
    }
    Ok((reached, oldest.into_iter().map(|(_, id)| id).collect()))
}

/// Deletes at most a step of the oldest events so that `keep` remain at `last_seq`. Returns how many went.
pub(super) fn delete_events(c: &Connection, last_seq: u64, keep: u64) -> rusqlite::Result<u64> {
    let oldest: Option<i64> = c.query_row("SELECT min(seq) FROM event", [], |row| row.get(0))?;
    let Some(oldest) = oldest else { return Ok(0) };
    let until = last_seq.saturating_sub(keep).min(oldest as u64 + STEP_ROWS - 1);
    let gone = c.prepare_cached("DELETE FROM event WHERE seq <= ?1")?.execute([until as i64])?;
    if gone > 0 {
        // The numbers go on where they were even when no event is left to tell.
        c.prepare_cached(UPSERT_META)?.execute(params!["event_seq_floor", until.to_string()])?;
    }
    Ok(gone as u64)
}

pub(super) const UPSERT_META: &str =
    "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
