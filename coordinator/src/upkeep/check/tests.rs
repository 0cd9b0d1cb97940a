//! Stores that released versions wrote open, migrate, and are read by this one.

use std::fs;

use super::*;
use crate::{
    bus::Bus,
    output::OutputLog,
    runs::Runs,
    store::{Keep, sqlite},
};

/// One a schema version, frozen.
const FIXTURES: [&str; 5] = [
    include_str!("../../../fixtures/v1.sql"),
    include_str!("../../../fixtures/v2.sql"),
    include_str!("../../../fixtures/v3.sql"),
    include_str!("../../../fixtures/v4.sql"),
    include_str!("../../../fixtures/v5.sql"),
];

fn written(fixture: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    rusqlite::Connection::open(dir.path().join(sqlite::DATABASE)).unwrap().execute_batch(fixture).unwrap();
    dir
}

#[test]
fn every_schema_has_its_fixture() {
    assert_eq!(
        FIXTURES.len() as i64,
        sqlite::SCHEMA,
        "a new schema is released with coordinator/fixtures/vN.sql"
    );
    for (fixture, version) in FIXTURES.iter().zip(1..) {
        assert_eq!(sqlite::schema_of(written(fixture).path()).unwrap(), version);
    }
}

#[tokio::test]
async fn a_store_of_every_released_schema_is_brought_to_this_one_and_read_whole() {
    for fixture in FIXTURES {
        let dir = written(fixture);
        super::super::migrate::migrate(dir.path()).await.unwrap();
        assert_eq!(sqlite::schema_of(dir.path()).unwrap(), sqlite::SCHEMA);
        let wrong = check(dir.path()).await.unwrap();
        // A fixture is text: files are not in it.
        let wrong: Vec<_> = wrong.iter().filter(|finding| !finding.what.starts_with("artifact ")).collect();
        assert!(wrong.is_empty(), "{wrong:#?}");

        let store: std::sync::Arc<dyn Store> =
            std::sync::Arc::new(Sqlite::open(dir.path(), Bus::default()).unwrap());
        let output = OutputLog::open(dir.path()).unwrap();
        let cluster = cluster::Cluster::load(
            store.clone(),
            output,
            Default::default(),
            Default::default(),
            Default::default(),
            secrets::Secrets::open(store.clone(), dir.path()).await.unwrap(),
        )
        .await
        .unwrap();
        let (epoch, counts) = cluster.look(|core| (core.epoch(), core.counts()));
        assert_eq!((epoch, counts.sessions_live, counts.tasks_held), (2, 1, 1));
        let blobs = std::sync::Arc::new(Blobs::open(dir.path()).unwrap());
        Runs::start(cluster, blobs, Default::default()).await.unwrap();
        assert_eq!(store.live(Aggregate::Run).await.unwrap().len(), 2);
        assert_eq!(store.events(None, 1, 10).await.unwrap().events.len(), 10);
        let keep = Keep { ended_tasks: 0, ended_runs: 0, ended_rows: 0, events: 1, audit: 1, since_ms: None };
        let gone = store.retain(keep).await.unwrap();
        assert!(gone.rows.len() >= 5 && gone.events >= 30, "{gone:?}");
        store.close().await.unwrap();
        fs::remove_file(dir.path().join(sqlite::DATABASE)).unwrap();
    }
}
