//! The audit trail's table: rows are appended and pruned from the oldest on, never changed.

use cooper_common::audit::{Entry, GENESIS, Link, Row};
use rusqlite::{Connection, OptionalExtension, params};

use super::{read, retain::UPSERT_META};

/// Rows that one step of pruning deletes.
const STEP_ROWS: u64 = 512;
/// Where the chain begins since older rows were pruned, and where it ended last, as `SEQ HASH`.
const ANCHOR: &str = "audit_anchor";
const HEAD: &str = "audit_head";
const COLUMNS: &str = "seq, at_ms, tenant, token_id, name, came_from, action, object, outcome, detail, hash";

fn link(c: &Connection, key: &str) -> rusqlite::Result<Link> {
    let text = read::meta(c, key)?.unwrap_or_default();
    let (seq, hash) = text.split_once(' ').unwrap_or(("0", GENESIS));
    Ok(Link { seq: seq.parse().unwrap_or(0), hash: hash.to_owned() })
}

fn put_link(c: &Connection, key: &str, link: &Link) -> rusqlite::Result<()> {
    c.prepare_cached(UPSERT_META)?.execute(params![key, format!("{} {}", link.seq, link.hash)]).map(drop)
}

/// From where on the chain can be followed, and how far it went.
pub(super) fn ends(c: &Connection) -> rusqlite::Result<(Link, Link)> {
    Ok((link(c, ANCHOR)?, link(c, HEAD)?))
}

pub(super) fn append(c: &Connection, entries: &[Entry]) -> rusqlite::Result<()> {
    let mut head = link(c, HEAD)?;
    let mut insert = c.prepare_cached(&format!(
        "INSERT INTO audit ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)"
    ))?;
    for entry in entries {
        let seq = head.seq + 1;
        head = Link { seq, hash: entry.hash(seq, &head.hash) };
        insert.execute(params![
            seq as i64,
            entry.at_ms,
            entry.tenant,
            entry.token_id,
            entry.name,
            entry.from,
            entry.action,
            entry.object,
            entry.outcome,
            entry.detail,
            head.hash
        ])?;
    }
    put_link(c, HEAD, &head)
}

/// Rows from a number on, oldest first; of one tenant, or of all.
pub(super) fn rows(
    c: &Connection,
    tenant: Option<&str>,
    from_seq: u64,
    limit: usize,
) -> rusqlite::Result<Vec<Row>> {
    let mut statement = c.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM audit WHERE seq >= ?1 AND (?2 IS NULL OR tenant = ?2) ORDER BY seq LIMIT ?3"
    ))?;
    let found = statement.query_map(params![from_seq as i64, tenant, limit as i64], row)?;
    found.collect()
}

/// The newest rows before a number, newest first.
pub(super) fn rows_before(
    c: &Connection,
    tenant: Option<&str>,
    before_seq: u64,
    limit: usize,
) -> rusqlite::Result<Vec<Row>> {
    let mut statement = c.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM audit WHERE seq < ?1 AND (?2 IS NULL OR tenant = ?2) ORDER BY seq DESC LIMIT ?3"
    ))?;
    let before = i64::try_from(before_seq).unwrap_or(i64::MAX);
    let found = statement.query_map(params![before, tenant, limit as i64], row)?;
    found.collect()
}

fn row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    Ok(Row {
        seq: row.get::<_, i64>(0)? as u64,
        entry: Entry {
            at_ms: row.get(1)?,
            tenant: row.get(2)?,
            token_id: row.get(3)?,
            name: row.get(4)?,
            from: row.get(5)?,
            action: row.get(6)?,
            object: row.get(7)?,
            outcome: row.get(8)?,
            detail: row.get(9)?,
        },
        hash: row.get(10)?,
    })
}

/// Deletes at most a step of the oldest rows beyond `keep`, and of those before `since_ms`. What is left is followed from
/// the last one that went. Returns how many went.
pub(super) fn prune(c: &Connection, keep: u64, since_ms: Option<i64>) -> rusqlite::Result<u64> {
    let (anchor, head) = ends(c)?;
    let beyond = head.seq.saturating_sub(keep);
    let step = anchor.seq + STEP_ROWS;
    let old = since_ms.map_or(Ok(None), |since| {
        c.prepare_cached("SELECT min(seq) FROM audit WHERE seq <= ?1 AND at_ms >= ?2")?
            .query_row(params![step.min(head.seq) as i64, since], |row| row.get::<_, Option<i64>>(0))
            .map(|young| Some(young.map_or(step.min(head.seq), |young| young as u64 - 1)))
    })?;
    let until = step.min(beyond.max(old.unwrap_or(0)));
    let last: Option<(i64, String)> = c
        .prepare_cached("SELECT seq, hash FROM audit WHERE seq <= ?1 ORDER BY seq DESC LIMIT 1")?
        .query_row([until as i64], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((seq, hash)) = last else { return Ok(0) };
    let gone = c.prepare_cached("DELETE FROM audit WHERE seq <= ?1")?.execute([seq])?;
    put_link(c, ANCHOR, &Link { seq: seq as u64, hash })?;
    Ok(gone as u64)
}
