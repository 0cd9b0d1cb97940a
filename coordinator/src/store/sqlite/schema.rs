//! The tables, how they come to be, and the statements on them.

use std::sync::OnceLock;

use cooper_core::change::Aggregate;
use rusqlite::{Connection, params};

use cooper_common::clock;

/// One step from a schema to the next. Frozen once released: a change is a new step.
pub(super) struct Migration {
    name: &'static str,
    /// Takes no time to speak of, however much is stored: a coordinator may do it when it starts.
    pub small: bool,
    run: fn(&Connection) -> rusqlite::Result<()>,
}

pub(super) const MIGRATIONS: &[Migration] = &[
    Migration { name: "first", small: true, run: first },
    Migration { name: "checkpoints_templates", small: true, run: checkpoints_templates },
    Migration { name: "secrets", small: true, run: secrets },
    Migration { name: "fixes", small: true, run: fixes },
    Migration { name: "audit", small: true, run: audit },
];

/// What this build writes; `PRAGMA user_version` of the file.
pub(super) const VERSION: i64 = MIGRATIONS.len() as i64;

pub(super) fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}

/// Whether a schema needs a step that somebody has to want.
pub(super) fn needs_somebody(found: i64, steps: &[Migration]) -> bool {
    // In a new store every step is small.
    found > 0 && steps.iter().zip(1i64..).any(|(step, number)| number > found && !step.small)
}

/// Takes the steps that are missing. The caller has refused newer schemas.
pub(super) fn migrate(connection: &mut Connection, steps: &[Migration]) -> rusqlite::Result<()> {
    for (migration, number) in steps.iter().zip(1i64..) {
        if version(connection)? >= number {
            continue;
        }
        let transaction = connection.transaction()?;
        (migration.run)(&transaction)?;
        transaction.execute(
            "INSERT INTO migration (version, name, at_ms) VALUES (?1, ?2, ?3)",
            params![number, migration.name, clock::wall_ms()],
        )?;
        transaction.pragma_update(None, "user_version", number)?;
        transaction.commit()?;
    }
    Ok(())
}

const FIRST_AGGREGATES: [&str; 10] =
    ["session", "task", "run", "step", "plan", "approval", "artifact", "token", "worker", "stack"];

fn first(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(
        "CREATE TABLE migration (version INTEGER PRIMARY KEY, name TEXT NOT NULL, at_ms INTEGER NOT NULL) STRICT;
         CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
         CREATE TABLE event (
           seq INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, tenant TEXT NOT NULL,
           kind TEXT NOT NULL, subject TEXT NOT NULL, body TEXT NOT NULL) STRICT;
         CREATE TABLE output (
           task TEXT NOT NULL, stream INTEGER NOT NULL, bytes BLOB NOT NULL,
           PRIMARY KEY (task, stream)) STRICT, WITHOUT ROWID;",
    )?;
    FIRST_AGGREGATES.into_iter().try_for_each(|table| aggregate_table(connection, table))
}

fn checkpoints_templates(connection: &Connection) -> rusqlite::Result<()> {
    ["checkpoint", "template"].into_iter().try_for_each(|table| aggregate_table(connection, table))
}

fn secrets(connection: &Connection) -> rusqlite::Result<()> {
    aggregate_table(connection, "secret")
}

fn fixes(connection: &Connection) -> rusqlite::Result<()> {
    aggregate_table(connection, "fix")
}

fn audit(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(
        "CREATE TABLE audit (
           seq INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, tenant TEXT NOT NULL, token_id TEXT NOT NULL,
           name TEXT NOT NULL, came_from TEXT NOT NULL, action TEXT NOT NULL, object TEXT NOT NULL,
           outcome TEXT NOT NULL, detail TEXT NOT NULL, hash TEXT NOT NULL) STRICT;
         CREATE INDEX audit_tenant ON audit (tenant, seq);",
    )
}

fn aggregate_table(connection: &Connection, table: &str) -> rusqlite::Result<()> {
    // `n` is the order of creation: the cursor of lists, and short in every index. A table WITHOUT ROWID would save
    // the index on `id`, but holds rows badly that are larger than a twentieth of a page, as these are.
    connection.execute_batch(&format!(
        "CREATE TABLE {table} (
               n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, version INTEGER NOT NULL, tenant TEXT NOT NULL,
               state TEXT NOT NULL, ended INTEGER NOT NULL, parent TEXT NOT NULL, key TEXT NOT NULL,
               created_ms INTEGER NOT NULL, updated_ms INTEGER NOT NULL,
               body TEXT NOT NULL, spec BLOB, result BLOB) STRICT;
             CREATE UNIQUE INDEX {table}_key ON {table} (key, tenant) WHERE key <> '';
             CREATE INDEX {table}_live ON {table} (n) WHERE ended = 0;
             CREATE INDEX {table}_parent ON {table} (parent, n) WHERE parent <> '';
             CREATE INDEX {table}_tenant ON {table} (tenant, n);"
    ))
}

/// The columns of a record, in the order that `read::record` takes them.
pub(super) const COLUMNS: &str =
    "n, id, version, tenant, state, ended, parent, key, created_ms, updated_ms, body, spec, result";

/// The statements on one aggregate's table. Built once, so that the statement cache is asked with the same text.
pub(super) struct Sql {
    pub insert: String,
    pub update: String,
    pub update_parent: String,
    pub version_of: String,
    pub holder_of_key: String,
    pub get: String,
    pub by_key: String,
    pub keys: String,
    pub live: String,
    pub ended_count: String,
    pub oldest: String,
    pub known: String,
    pub delete: String,
    pub delete_parts: String,
}

pub(super) fn sql(aggregate: Aggregate) -> &'static Sql {
    static ALL: OnceLock<Vec<(Aggregate, Sql)>> = OnceLock::new();
    let all = ALL.get_or_init(|| Aggregate::ALL.into_iter().map(|a| (a, Sql::on(a.name()))).collect());
    match all.get(aggregate as usize) {
        Some((at, sql)) if *at == aggregate => sql,
        _ => unreachable!("Aggregate::ALL lists every aggregate in the order of its declaration"),
    }
}

impl Sql {
    fn on(table: &str) -> Self {
        Self {
            // A row that is in the way is not an error of the statement: nothing was inserted, and the reason is asked
            // for afterwards. Likewise below.
            insert: format!(
                "INSERT INTO {table} (id, version, tenant, state, ended, parent, key, created_ms, updated_ms, body,
                   spec, result) VALUES (?1, 1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11) ON CONFLICT DO NOTHING"
            ),
            // What never changes is left out: SQLite rewrites every index whose columns are named here.
            update: format!(
                "UPDATE OR IGNORE {table} SET version = version + 1, state = ?3, ended = ?4, key = ?5,
                   updated_ms = ?6, body = ?7, spec = coalesce(?8, spec), result = coalesce(?9, result)
                 WHERE id = ?1 AND version = ?2"
            ),
            update_parent: format!("UPDATE {table} SET parent = ?2 WHERE id = ?1 AND parent <> ?2"),
            version_of: format!("SELECT version FROM {table} WHERE id = ?1"),
            holder_of_key: format!(
                "SELECT id FROM {table} WHERE key = ?1 AND key <> ''
                   AND tenant = coalesce((SELECT tenant FROM {table} WHERE id = ?3), ?2)"
            ),
            get: format!("SELECT {COLUMNS} FROM {table} WHERE id = ?1"),
            by_key: format!(
                "SELECT {COLUMNS} FROM {table} WHERE key = ?1 AND key <> '' AND (?2 IS NULL OR tenant = ?2) LIMIT 1"
            ),
            keys: format!("SELECT tenant, key FROM {table} WHERE key <> ''"),
            live: format!("SELECT {COLUMNS} FROM {table} WHERE ended = 0 ORDER BY n"),
            ended_count: format!(
                "SELECT (SELECT count(*) FROM {table}) - (SELECT count(*) FROM {table} WHERE ended = 0)"
            ),
            oldest: format!(
                "SELECT n, id, ended, created_ms, updated_ms FROM {table} WHERE n > ?1 ORDER BY n"
            ),
            known: format!("SELECT id FROM {table} WHERE id IN (SELECT value FROM json_each(?1))"),
            delete: format!("DELETE FROM {table} WHERE id = ?1 AND ended <> 0"),
            delete_parts: format!("DELETE FROM {table} WHERE parent = ?1 AND parent <> ''"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_aggregate_has_its_table() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, MIGRATIONS).unwrap();
        for aggregate in Aggregate::ALL {
            for text in [&sql(aggregate).live, &sql(aggregate).get] {
                connection.prepare(text).unwrap();
            }
        }
        assert_eq!(version(&connection).unwrap(), VERSION);
    }

    #[test]
    fn migrating_twice_changes_nothing() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, MIGRATIONS).unwrap();
        migrate(&mut connection, MIGRATIONS).unwrap();
        let steps: i64 = connection.query_row("SELECT count(*) FROM migration", [], |r| r.get(0)).unwrap();
        assert_eq!(steps, VERSION);
    }

    #[test]
    fn a_step_is_taken_once_keeps_what_is_stored_and_a_large_one_has_to_be_wanted() {
        let second =
            |c: &Connection| c.execute_batch("ALTER TABLE event ADD COLUMN note TEXT NOT NULL DEFAULT ''");
        let fails = |c: &Connection| c.execute_batch("DROP TABLE event; SELECT nonsense");
        let steps = |large: bool, third: fn(&Connection) -> rusqlite::Result<()>| {
            [
                Migration { name: "first", small: true, run: first },
                Migration { name: "second", small: !large, run: second },
                Migration { name: "third", small: true, run: third },
            ]
        };
        let mut connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(include_str!("../../../fixtures/v1.sql")).unwrap();
        let events =
            |c: &Connection| c.query_row("SELECT count(*) FROM event", [], |r| r.get::<_, i64>(0)).unwrap();
        let before = events(&connection);
        assert!(!needs_somebody(0, &steps(true, |_| Ok(()))));
        assert!(!needs_somebody(1, MIGRATIONS) && !needs_somebody(1, &steps(false, |_| Ok(()))));
        assert!(needs_somebody(1, &steps(true, |_| Ok(()))) && !needs_somebody(2, &steps(true, |_| Ok(()))));
        // One that fails is not there by halves, and those before it stay.
        migrate(&mut connection, &steps(true, fails)).unwrap_err();
        assert_eq!((version(&connection).unwrap(), events(&connection)), (2, before));
        migrate(&mut connection, &steps(true, |_| Ok(()))).unwrap();
        migrate(&mut connection, &steps(true, |_| Ok(()))).unwrap();
        assert_eq!((version(&connection).unwrap(), events(&connection)), (3, before));
        connection.execute_batch("UPDATE event SET note = 'x'").unwrap();
    }
}
