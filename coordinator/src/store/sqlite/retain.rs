//! Retention: the oldest of what has ended goes, in steps so short that no commit notices.

use cooper_core::change::Aggregate;
use rusqlite::{Connection, OptionalExtension, params};

use super::schema;
use crate::store::parts;

/// Rows that one step deletes.
pub(super) const STEP_ROWS: u64 = 256;

/// Ended rows of an aggregate beyond `keep`. Reads an index from end to end: for a reader's connection.
pub(super) fn surplus(c: &Connection, aggregate: Aggregate, keep: u64) -> rusqlite::Result<u64> {
    let ended: i64 = c.query_row(&schema::sql(aggregate).ended_count, [], |row| row.get(0))?;
    Ok((ended as u64).saturating_sub(keep))
}

/// The oldest ended rows after place `after`, at most a step of them: up to `count` whatever their age, beyond that only
/// those that ended before `since_ms`. For a reader's connection.
pub(super) fn oldest(
    c: &Connection,
    aggregate: Aggregate,
    after: i64,
    count: u64,
    since_ms: Option<i64>,
) -> rusqlite::Result<(i64, Vec<String>)> {
    let (mut reached, mut ids) = (after, Vec::new());
    let mut statement = c.prepare_cached(&schema::sql(aggregate).oldest)?;
    let mut rows = statement.query([after])?;
    while (ids.len() as u64) < STEP_ROWS
        && let Some(row) = rows.next()?
    {
        let (n, ended, created_ms, updated_ms) =
            (row.get(0)?, row.get::<_, bool>(2)?, row.get::<_, i64>(3)?, row.get::<_, i64>(4)?);
        let surplus = (ids.len() as u64) < count;
        // Nothing ends before it begins: from here on everything is younger.
        if !surplus && since_ms.is_none_or(|since| created_ms >= since) {
            break;
        }
        if ended && (surplus || since_ms.is_some_and(|since| updated_ms < since)) {
            ids.push(row.get(1)?);
        }
        reached = n;
    }
    Ok((reached, ids))
}

/// Deletes these rows, as far as they have ended, with what belongs to them. Returns those that went.
pub(super) fn delete_rows(
    c: &Connection,
    aggregate: Aggregate,
    ids: Vec<String>,
) -> rusqlite::Result<Vec<String>> {
    let mut gone = Vec::with_capacity(ids.len());
    for id in ids {
        if c.prepare_cached(&schema::sql(aggregate).delete)?.execute([&id])? == 0 {
            continue;
        }
        if aggregate == Aggregate::Task {
            c.prepare_cached("DELETE FROM output WHERE task = ?1")?.execute([&id])?;
        }
        for part in parts(aggregate) {
            c.prepare_cached(&schema::sql(*part).delete_parts)?.execute([&id])?;
        }
        gone.push(id);
    }
    Ok(gone)
}

/// The number up to which there are more events than `keep`. Numbers may have gaps (a restore), so they are counted, in
/// an index: for a reader's connection.
pub(super) fn surplus_events(c: &Connection, keep: u64) -> rusqlite::Result<u64> {
    let (oldest, newest): (i64, i64) =
        c.query_row("SELECT coalesce(min(seq), 0), coalesce(max(seq), 0) FROM event", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
    if ((newest - oldest + 1) as u64) <= keep {
        return Ok(0);
    }
    let first_beyond: Option<i64> = c
        .query_row("SELECT seq FROM event ORDER BY seq DESC LIMIT 1 OFFSET ?1", [keep as i64], |row| {
            row.get(0)
        })
        .optional()?;
    Ok(first_beyond.unwrap_or(0) as u64)
}

/// Deletes at most a step of the oldest events: those up to `surplus`, and those before `since_ms`. Returns how many
/// went.
pub(super) fn delete_events(c: &Connection, surplus: u64, since_ms: Option<i64>) -> rusqlite::Result<u64> {
    let step: Option<i64> = c
        .prepare_cached("SELECT max(seq) FROM (SELECT seq FROM event ORDER BY seq LIMIT ?1)")?
        .query_row([STEP_ROWS as i64], |row| row.get(0))?;
    let Some(step) = step else { return Ok(0) };
    let mut until = step.min(surplus as i64);
    if let Some(since) = since_ms {
        let young: Option<i64> = c
            .prepare_cached("SELECT min(seq) FROM event WHERE seq <= ?1 AND at_ms >= ?2")?
            .query_row(params![step, since], |row| row.get(0))?;
        until = until.max(young.map_or(step, |seq| seq - 1));
    }
    let gone = c.prepare_cached("DELETE FROM event WHERE seq <= ?1")?.execute([until])?;
    if gone > 0 {
        // The numbers go on where they were even when no event is left to tell.
        c.prepare_cached(UPSERT_META)?.execute(params!["event_seq_floor", until.to_string()])?;
    }
    Ok(gone as u64)
}

pub(super) const UPSERT_META: &str =
    "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
