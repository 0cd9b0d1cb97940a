//! The reads, and the two threads that run them beside the writer.

use std::{
    sync::{Arc, Mutex, mpsc},
    thread,
};

use cooper_core::change::{Aggregate, Row};
use rusqlite::{Connection, OptionalExtension, ToSql, params};

use cooper_common::limits;

use super::schema;
use crate::store::{Cursor, Event, EventPage, Filter, Page, Record};

/// Threads: one may be busy with a long list while the other answers.
const THREADS: usize = 2;
/// Reads that wait; more are refused (`overloaded`).
const QUEUE_MAX: usize = 1024;
/// Events that one page looks at, whoever's they are: bounds the work of a tenant who has few among many, without an
/// index that every event would pay for.
const EVENTS_LOOKED_AT_MAX: u64 = 10_000;

pub(super) type Job = Box<dyn FnOnce(&Connection) + Send>;

/// Where reads queue up.
pub(super) struct Readers {
    queue: mpsc::SyncSender<Job>,
}

impl Readers {
    /// `open` makes a read-only connection; called once a thread.
    pub(super) fn start<E>(open: impl Fn() -> Result<Connection, E>) -> Result<Self, E>
    where
        E: From<std::io::Error>,
    {
        let (queue, jobs) = mpsc::sync_channel::<Job>(QUEUE_MAX);
        let jobs = Arc::new(Mutex::new(jobs));
        for number in 0..THREADS {
            let (connection, jobs) = (open()?, Arc::clone(&jobs));
            thread::Builder::new().name(format!("store-read-{number}")).spawn(move || {
                // Poisoned: the other reader died holding the queue; the store is then useless anyway.
                while let Some(job) = jobs.lock().ok().and_then(|jobs| jobs.recv().ok()) {
                    job(&connection);
                }
            })?;
        }
        Ok(Self { queue })
    }

    /// False when too many wait.
    pub(super) fn submit(&self, job: Job) -> bool {
        self.queue.try_send(job).is_ok()
    }
}

fn record(row: &rusqlite::Row<'_>) -> rusqlite::Result<Record> {
    Ok(Record {
        id: row.get(1)?,
        version: row.get::<_, i64>(2)? as u64,
        row: Row {
            tenant: row.get(3)?,
            state: row.get(4)?,
            ended: row.get(5)?,
            parent: row.get(6)?,
            key: row.get(7)?,
            created_ms: row.get(8)?,
            updated_ms: row.get(9)?,
            body: row.get(10)?,
            spec: row.get(11)?,
            result: row.get(12)?,
        },
    })
}

pub(super) fn get(c: &Connection, aggregate: Aggregate, id: &str) -> rusqlite::Result<Option<Record>> {
    c.prepare_cached(&schema::sql(aggregate).get)?.query_row([id], record).optional()
}

pub(super) fn by_key(
    c: &Connection,
    aggregate: Aggregate,
    tenant: Option<&str>,
    key: &str,
) -> rusqlite::Result<Option<Record>> {
    c.prepare_cached(&schema::sql(aggregate).by_key)?.query_row(params![key, tenant], record).optional()
}

pub(super) fn live(c: &Connection, aggregate: Aggregate) -> rusqlite::Result<Vec<Record>> {
    c.prepare_cached(&schema::sql(aggregate).live)?.query_map([], record)?.collect()
}

pub(super) fn list(c: &Connection, aggregate: Aggregate, filter: &Filter) -> rusqlite::Result<Page> {
    let limit = filter.limit.clamp(1, limits::request::PAGE_MAX as usize);
    let states = serde_json::Value::from(filter.states.clone()).to_string();
    let before = filter.before.map(|cursor| cursor.0);
    // One row more than asked for tells whether there is a next page.
    let wanted = limit as i64 + 1;

    let mut sql = format!("SELECT {} FROM {} WHERE 1", schema::COLUMNS, aggregate.name());
    let mut values: Vec<(&str, &dyn ToSql)> = vec![(":wanted", &wanted)];
    let mut narrow = |condition: &str, name: &'static str, value| {
        sql.push_str(condition);
        values.push((name, value));
    };
    if let Some(tenant) = &filter.tenant {
        narrow(" AND tenant = :tenant", ":tenant", tenant);
    }
    if let Some(parent) = &filter.parent {
        narrow(" AND parent = :parent AND parent <> ''", ":parent", parent);
    }
    if !filter.states.is_empty() {
        narrow(" AND state IN (SELECT value FROM json_each(:states))", ":states", &states);
    }
    if let Some(before) = &before {
        narrow(" AND n < :before", ":before", before);
    }
    // Spelled out, because the index of live rows is found only by these very words.
    sql.push_str(match filter.ended {
        None => "",
        Some(false) => " AND ended = 0",
        Some(true) => " AND ended <> 0",
    });
    sql.push_str(" ORDER BY n DESC LIMIT :wanted");

    let mut numbers = Vec::new();
    let mut records = Vec::new();
    let mut statement = c.prepare_cached(&sql)?;
    let mut rows = statement.query(values.as_slice())?;
    while let Some(row) = rows.next()? {
        numbers.push(row.get(0)?);
        records.push(record(row)?);
    }
    let next = (records.len() > limit).then(|| Cursor(numbers[limit - 1]));
    records.truncate(limit);
    Ok(Page { records, next })
}

pub(super) fn last_seq(c: &Connection) -> rusqlite::Result<u64> {
    // Retention leaves the floor: a log that it emptied does not begin again at 1.
    c.prepare_cached(
        "SELECT max(coalesce((SELECT max(seq) FROM event), 0),
                    coalesce((SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'event_seq_floor'), 0))",
    )?
    .query_row([], |row| row.get::<_, i64>(0))
    .map(|seq| seq as u64)
}

pub(super) fn events(
    c: &Connection,
    tenant: Option<&str>,
    from_seq: u64,
    limit: usize,
) -> rusqlite::Result<EventPage> {
    // One read transaction, so that `last` and the page see the same log.
    let c = c.unchecked_transaction()?;
    let last = last_seq(&c)?;
    // Retention may have taken what lies before the oldest.
    let oldest: i64 =
        c.prepare_cached("SELECT coalesce(min(seq), 1) FROM event")?.query_row([], |row| row.get(0))?;
    let from = from_seq.max(oldest as u64);
    let until = last.min(from.saturating_add(EVENTS_LOOKED_AT_MAX - 1));
    let limit = limit.max(1);
    let events = c
        .prepare_cached(
            "SELECT seq, at_ms, tenant, kind, subject, body FROM event
             WHERE seq BETWEEN ?1 AND ?2 AND (?3 IS NULL OR tenant = ?3) ORDER BY seq LIMIT ?4",
        )?
        .query_map(params![from as i64, until as i64, tenant, limit as i64], |row| {
            Ok(Event {
                seq: row.get::<_, i64>(0)? as u64,
                at_ms: row.get(1)?,
                tenant: row.get(2)?,
                kind: row.get(3)?,
                subject: row.get(4)?,
                body: row.get(5)?,
            })
        })?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    let next_seq = match events.last() {
        Some(event) if events.len() == limit => event.seq + 1,
        _ => from.max(until + 1),
    };
    Ok(EventPage { events, next_seq, at_end: next_seq > last })
}

pub(super) fn inline_output(c: &Connection, task: &str, stream: u8) -> rusqlite::Result<Option<Vec<u8>>> {
    c.prepare_cached("SELECT bytes FROM output WHERE task = ?1 AND stream = ?2")?
        .query_row(params![task, stream], |row| row.get(0))
        .optional()
}

pub(super) fn meta(c: &Connection, key: &str) -> rusqlite::Result<Option<String>> {
    c.prepare_cached("SELECT value FROM meta WHERE key = ?1")?.query_row([key], |row| row.get(0)).optional()
}

/// `ids` is a JSON array.
pub(super) fn known(c: &Connection, aggregate: Aggregate, ids: &str) -> rusqlite::Result<Vec<String>> {
    c.prepare_cached(&schema::sql(aggregate).known)?.query_map([ids], |row| row.get(0))?.collect()
}

/// Kind of the event with which a restored store goes on, beyond numbers that may have been given out.
pub(super) const RESTORED_EVENT: &str = "store.restored";

pub(super) fn check(c: &Connection) -> rusqlite::Result<Vec<String>> {
    // One read transaction: commits go on beside us.
    let c = c.unchecked_transaction()?;
    let mut found: Vec<String> =
        c.prepare("PRAGMA integrity_check")?.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    found.retain(|line| line != "ok");
    let (count, span): (i64, i64) =
        c.query_row("SELECT count(*), coalesce(max(seq) - min(seq) + 1, 0) FROM event", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
    let jumped: i64 = c.query_row(
        "SELECT coalesce(sum(seq - 1 - coalesce((SELECT max(seq) FROM event b WHERE b.seq < a.seq), seq - 1)), 0)
         FROM event a WHERE kind = ?1",
        [RESTORED_EVENT],
        |row| row.get(0),
    )?;
    if count + jumped != span {
        found.push(format!("events have gaps: {count} stored where {} were numbered", span - jumped));
    }
    let lost: i64 =
        c.query_row("SELECT count(*) FROM output WHERE task NOT IN (SELECT id FROM task)", [], |row| {
            row.get(0)
        })?;
    if lost > 0 {
        found.push(format!("{lost} inline outputs belong to no task"));
    }
    Ok(found)
}
