//! The claims, on disk and in memory, and what only SQLite has to keep.

use std::sync::Arc;

use cooper_core::change::{Change, Row};

use super::*;
use crate::store::conformance::{claims, durable_claims, silent};

mod on_disk {
    use super::*;

    fn open(path: &Path) -> Arc<dyn Store> {
        Arc::new(Sqlite::open(path, silent()).unwrap())
    }
    claims!(open);
    durable_claims!(open);
}

mod in_memory {
    use super::*;

    fn open(_: &Path) -> Arc<dyn Store> {
        Arc::new(Sqlite::memory(silent()).unwrap())
    }
    claims!(open);
}

fn task(id: &str, spec: Vec<u8>) -> Change {
    Change {
        aggregate: Aggregate::Task,
        id: id.into(),
        expected: 0,
        row: Row { spec: Some(spec), ..Row::default() },
        events: vec![],
        output: vec![],
    }
}

#[tokio::test]
async fn a_second_coordinator_is_told_who_has_the_data_directory() {
    let dir = tempfile::tempdir().unwrap();
    let store = Sqlite::open(dir.path(), silent()).unwrap();
    match Sqlite::open(dir.path(), silent()) {
        Err(Error::Busy { pid, .. }) => assert_eq!(pid, std::process::id().to_string()),
        other => panic!("opened twice: {:?}", other.err()),
    }
    store.close().await.unwrap();
    Sqlite::open(dir.path(), silent()).unwrap();
}

#[tokio::test]
async fn a_store_that_was_only_dropped_opens_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = Sqlite::open(dir.path(), silent()).unwrap();
    store.commit_wait(vec![task("t", vec![])], Durability::Full).await.unwrap();
    drop(store);
    for _ in 0..500 {
        match Sqlite::open(dir.path(), silent()) {
            Err(Error::Busy { .. }) => tokio::time::sleep(Duration::from_millis(10)).await,
            opened => return assert!(opened.unwrap().get(Aggregate::Task, "t").await.unwrap().is_some()),
        }
    }
    panic!("the writer never left");
}

#[tokio::test]
async fn what_was_answered_survives_the_death_of_the_process() {
    let (dir, after) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = Sqlite::open(dir.path(), silent()).unwrap();
    for n in 0..200 {
        let durability = if n % 2 == 0 { Durability::Full } else { Durability::Relaxed };
        store.commit_wait(vec![task(&format!("t{n}"), vec![1; 3000])], durability).await.unwrap();
    }
    // What a process leaves that is killed now: its files, and no goodbye.
    for name in [DATABASE, "cooper.db-wal"] {
        fs::copy(dir.path().join(name), after.path().join(name)).unwrap();
    }
    let store = Sqlite::open(after.path(), silent()).unwrap();
    assert_eq!(store.live(Aggregate::Task).await.unwrap().len(), 200);
    assert_eq!(store.check().await.unwrap(), Vec::<String>::new());
}

#[test]
fn a_newer_schema_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let connection = Connection::open(dir.path().join(DATABASE)).unwrap();
    connection.pragma_update(None, "user_version", schema::VERSION + 1).unwrap();
    drop(connection);
    let refused = Sqlite::open(dir.path(), silent()).err().unwrap();
    assert!(matches!(refused, Error::Newer { .. }), "{refused}");
}

#[test]
fn a_file_that_is_no_database_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(DATABASE), "not a database, but the only copy of my thesis".repeat(20))
        .unwrap();
    let refused = Sqlite::open(dir.path(), silent()).err().unwrap();
    assert!(matches!(refused, Error::Unusable { .. }), "{refused}");
    assert!(fs::read_to_string(dir.path().join(DATABASE)).unwrap().starts_with("not a database"));
}

#[test]
fn the_database_is_readable_by_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let _store = Sqlite::open(dir.path(), silent()).unwrap();
    for name in [DATABASE, "cooper.db-wal", LOCK] {
        let mode = fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[tokio::test]
async fn a_full_disk_fails_the_commit_and_the_next_one_works_when_space_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = Sqlite::open(dir.path(), silent()).unwrap();
    // SQLite reports its own page limit as a full disk.
    let limit = |pages: i64| {
        store.write(move |pen| {
            let set = format!("PRAGMA max_page_count={pages}");
            pen.connection.query_row(&set, [], |_| Ok(())).map_err(|cause| write::error(&cause))
        })
    };
    limit(1).await.unwrap();
    let commits: Vec<_> = (0..4)
        .map(|n| store.commit_wait(vec![task(&format!("t{n}"), vec![0; 1 << 20])], Durability::Full))
        .collect();
    for commit in commits {
        assert_eq!(commit.await, Err(Error::Full));
    }
    assert_eq!(store.list(Aggregate::Task, Filter::default()).await.unwrap().records, []);
    limit(1_000_000).await.unwrap();
    store.commit_wait(vec![task("t", vec![0; 1 << 20])], Durability::Full).await.unwrap();
    assert_eq!(store.check().await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_commit_that_fails_half_way_leaves_nothing_and_stops_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let store = Sqlite::open(dir.path(), silent()).unwrap();
    let rename = |from: &str, to: &str| {
        let sql = format!("ALTER TABLE {from} RENAME TO {to}");
        store.write(move |pen| pen.connection.execute_batch(&sql).map_err(|cause| write::error(&cause)))
    };
    let mut change = task("t", vec![]);
    change.events = vec![cooper_core::change::NewEvent { kind: "task.queued".into(), body: "{}".into() }];
    rename("event", "away").await.unwrap();
    let failed = store.commit_wait(vec![change.clone()], Durability::Full).await;
    assert!(matches!(failed, Err(Error::Unavailable(_))), "{failed:?}");
    rename("away", "event").await.unwrap();
    assert_eq!(store.get(Aggregate::Task, "t").await.unwrap(), None);
    store.commit_wait(vec![change], Durability::Full).await.unwrap();
    assert_eq!(store.last_seq().await.unwrap(), 1);
}

#[tokio::test]
async fn a_value_beyond_sqlites_limits_fails_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = Sqlite::open(dir.path(), silent()).unwrap();
    let (open_gate, gate) = std::sync::mpsc::sync_channel::<()>(1);
    let held = store.write(move |_| {
        let _ = gate.recv();
        Ok(())
    });
    // One group, because the writer is held until all of it waits.
    let commits: Vec<_> = ["t1", "huge", "t2"]
        .map(|id| {
            let spec = if id == "huge" { vec![0; 1_000_000_001] } else { vec![] };
            store.commit_wait(vec![task(id, spec)], Durability::Relaxed)
        })
        .into();
    open_gate.send(()).unwrap();
    held.await.unwrap();
    let outcomes: Vec<bool> = future::join_all(commits).await.iter().map(Result::is_ok).collect();
    assert_eq!(outcomes, [true, false, true]);
    assert!(store.get(Aggregate::Task, "t2").await.unwrap().is_some());
}

#[tokio::test]
async fn a_queue_at_its_limit_refuses_at_once_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let store = Sqlite::open(dir.path(), silent()).unwrap();
    let (open_gate, gate) = std::sync::mpsc::sync_channel::<()>(1);
    let (arrive, arrived) = tokio::sync::oneshot::channel();
    let held = store.write(move |_| {
        let _ = arrive.send(());
        let _ = gate.recv();
        Ok(())
    });
    arrived.await.unwrap();
    let max = limits::store::WRITER_QUEUE_MAX;
    assert_eq!(store.room(), max);
    let commits: Vec<_> = (0..max + 10)
        .map(|n| store.commit_wait(vec![task(&format!("t{n}"), vec![])], Durability::Relaxed))
        .collect();
    assert_eq!(store.room(), 0);
    open_gate.send(()).unwrap();
    held.await.unwrap();
    let outcomes = future::join_all(commits).await;
    assert_eq!(store.room(), max);
    let refused = outcomes.iter().filter(|outcome| **outcome == Err(Error::Overloaded)).count();
    assert_eq!(refused, 10);
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), max);
}

#[test]
fn every_list_and_every_read_at_start_finds_its_index() {
    let store = Sqlite::memory(silent()).unwrap();
    let Mode::Inline(pen) = &store.inner.mode else { unreachable!() };
    let pen = pen.lock().unwrap();
    let plan = |sql: &str| -> String {
        let mut statement = pen.connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let lines: rusqlite::Result<Vec<String>> =
            statement.raw_query().mapped(|row| row.get::<_, String>(3)).collect();
        lines.unwrap().join("; ")
    };
    let by_tenant = plan("SELECT * FROM task WHERE tenant = 'a' AND n < 9 ORDER BY n DESC");
    assert!(by_tenant.contains("task_tenant") && !by_tenant.contains("SORT"), "{by_tenant}");
    let by_parent = plan("SELECT * FROM task WHERE parent = 's' AND parent <> '' ORDER BY n DESC");
    assert!(by_parent.contains("task_parent") && !by_parent.contains("SORT"), "{by_parent}");
    let live = plan(&schema::sql(Aggregate::Task).live);
    assert!(live.contains("task_live") && !live.contains("SORT"), "{live}");
    let by_key = plan(&schema::sql(Aggregate::Token).by_key);
    assert!(by_key.contains("token_key"), "{by_key}");
}

#[tokio::test]
async fn the_log_grows_for_a_long_reader_and_is_cut_back_when_it_has_gone() {
    let dir = tempfile::tempdir().unwrap();
    let store = Sqlite::open(dir.path(), silent()).unwrap();
    let log = || fs::metadata(dir.path().join(SIDE_FILES[0])).unwrap().len();
    let mut written = 0;
    let mut write = async |mib: u64| {
        for _ in 0..mib {
            written += 1;
            let change = task(&format!("t{written}"), vec![7; 1 << 20]);
            store.commit_wait(vec![change], Durability::Relaxed).await.unwrap();
        }
    };
    write(1).await;
    let reader = Connection::open(dir.path().join(DATABASE)).unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM task;").unwrap();
    write(90).await;
    assert!(log() > 80 << 20, "the reader needs it: {}", log());
    reader.execute_batch("COMMIT").unwrap();
    // The checkpointer finishes beside the writer; the first commit after that begins the log anew.
    let bound = limits::store::WAL_KEPT_BYTES + (4 << 20);
    for _ in 0..100 {
        write(1).await;
        if log() <= bound {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the log still has {} bytes", log());
}

#[tokio::test]
async fn a_store_that_was_served_is_not_begun_anew_nor_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("copy");
    let store = Sqlite::open(dir.path(), silent()).unwrap();
    assert_eq!(store.next_epoch().await.unwrap(), 1);
    store.backup(&copy).await.unwrap();
    assert_eq!(store.next_epoch().await.unwrap(), 2);
    store.close().await.unwrap();
    Sqlite::open_known(dir.path(), silent(), 2).unwrap().close().await.unwrap();
    let away = dir.path().join("away");
    fs::rename(dir.path().join(DATABASE), &away).unwrap();
    for older in [false, true] {
        if older {
            fs::copy(&copy, dir.path().join(DATABASE)).unwrap();
        }
        let refused = Sqlite::open_known(dir.path(), silent(), 2);
        assert!(matches!(refused, Err(Error::Unusable { .. })), "{older}");
    }
    assert!(fs::exists(away).unwrap());
}

#[tokio::test]
async fn who_only_reads_sees_what_is_committed_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Sqlite::open(dir.path(), silent()).unwrap();
    let reader = Sqlite::read_only(dir.path()).unwrap();
    store.commit_wait(vec![task("t", vec![])], Durability::Full).await.unwrap();
    assert!(reader.get(Aggregate::Task, "t").await.unwrap().is_some());
    assert!(reader.commit_wait(vec![task("u", vec![])], Durability::Full).await.is_err());
    assert!(reader.next_epoch().await.is_err() && reader.probe().await.is_err());
    assert_eq!(holder(dir.path()), Some(std::process::id().to_string()));
    assert!(matches!(hold(dir.path()).map(drop), Err(Error::Busy { .. })));
}
