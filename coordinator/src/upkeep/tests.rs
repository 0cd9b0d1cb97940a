//! Claims about upkeep.

use std::{collections::BTreeSet, path::Path};

use cooper_common::ids::TaskId;
use cooper_core::change::{Change, Row};

use super::*;
use crate::{
    bus::Bus,
    output::{OutputLog, Stream},
    store::{Durability, Store, sqlite::Sqlite},
};

async fn upkeep(data: &Path, keep: Keep) -> Upkeep {
    let store: Arc<dyn Store> = Arc::new(Sqlite::open(data, Bus::default()).unwrap());
    let secrets = crate::secrets::Secrets::open(store.clone(), data).await.unwrap();
    let cluster = Cluster::load(
        store,
        OutputLog::open(data).unwrap(),
        Default::default(),
        Default::default(),
        Default::default(),
        secrets,
    )
    .await
    .unwrap();
    let blobs = Arc::new(Blobs::open(data).unwrap());
    let checkpoints = Checkpoints::open(cluster.clone(), blobs.clone(), data, Default::default()).unwrap();
    let artifacts = Artifacts::load(cluster.clone(), blobs.clone(), Default::default()).await.unwrap();
    Upkeep { cluster, blobs, checkpoints, artifacts, data: data.to_owned(), keep }
}

async fn task(upkeep: &Upkeep, ended: bool, output: usize) -> TaskId {
    let task = TaskId::new();
    let row = Row { ended, body: "{}".into(), ..Row::default() };
    let change = Change {
        aggregate: Aggregate::Task,
        id: task.to_string(),
        expected: 0,
        row,
        events: vec![],
        output: vec![],
    };
    upkeep.cluster.store.commit_wait(vec![change], Durability::Relaxed).await.unwrap();
    upkeep.cluster.output.append(task, Stream::Stdout, 0, &vec![1; output]).unwrap();
    // Ids of one millisecond have no order.
    tokio::time::sleep(Duration::from_millis(2)).await;
    task
}

fn with_output(upkeep: &Upkeep) -> BTreeSet<TaskId> {
    let folders = upkeep.cluster.output.folders().unwrap();
    folders.iter().flat_map(|folder| upkeep.cluster.output.sizes(folder).unwrap().into_keys()).collect()
}

#[tokio::test]
async fn a_sweep_removes_output_without_a_task_and_the_oldest_beyond_the_bound() {
    let data = tempfile::tempdir().unwrap();
    let upkeep = upkeep(data.path(), Keep { output_bytes: 2_500, ..Keep::default() }).await;
    let running = task(&upkeep, false, 1_000).await;
    let oldest = task(&upkeep, true, 1_000).await;
    let newer = task(&upkeep, true, 1_000).await;
    let orphan = TaskId::new();
    upkeep.cluster.output.append(orphan, Stream::Stderr, 0, b"left by a death").unwrap();
    assert_eq!(with_output(&upkeep), BTreeSet::from([running, oldest, newer, orphan]));
    upkeep.sweep().await.unwrap();
    assert_eq!(with_output(&upkeep), BTreeSet::from([running, newer]));
    let row = upkeep.cluster.store.get(Aggregate::Task, &oldest.to_string()).await.unwrap();
    assert_eq!(row, None, "a task does not stay without its output");
}

#[tokio::test]
async fn retention_takes_the_output_with_the_task() {
    let data = tempfile::tempdir().unwrap();
    let upkeep = upkeep(data.path(), Keep { tasks: 1, ..Keep::default() }).await;
    let oldest = task(&upkeep, true, 10).await;
    let (running, newest) = (task(&upkeep, false, 10).await, task(&upkeep, true, 10).await);
    upkeep.retain().await.unwrap();
    assert_eq!(with_output(&upkeep), BTreeSet::from([running, newest]));
    assert!(!with_output(&upkeep).contains(&oldest));
}

#[tokio::test]
async fn files_are_not_removed_while_somebody_copies_them() {
    let data = tempfile::tempdir().unwrap();
    let copying = Hold::shared(data.path()).unwrap().unwrap();
    assert!(Hold::shared(data.path()).unwrap().is_some());
    assert!(Hold::alone(data.path()).unwrap().is_none());
    drop(copying);
    let removing = Hold::alone(data.path()).unwrap();
    assert!(removing.is_some() && Hold::shared(data.path()).unwrap().is_none());
}

#[test]
fn below_the_floor_nothing_new_is_taken_in_until_there_is_a_quarter_more() {
    let space = Space::default();
    for (free, admitted) in [(100, true), (99, false), (124, false), (125, true), (100, true)] {
        space.seen(free, 100);
        assert_eq!(space.admit().is_ok(), admitted, "{free}");
    }
    space.seen(0, 0);
    assert!(space.admit().is_ok(), "no floor");
}

#[tokio::test]
async fn a_database_that_is_gone_or_replaced_breaks_the_cluster() {
    for replaced in [false, true] {
        let data = tempfile::tempdir().unwrap();
        let upkeep = upkeep(data.path(), Keep::default()).await;
        upkeep.look_at_disk().await;
        assert!(upkeep.cluster.decide(|_, _| Ok(((), Default::default()))).is_ok());
        let database = data.path().join("cooper.db");
        std::fs::rename(&database, data.path().join("away")).unwrap();
        if replaced {
            std::fs::copy(data.path().join("away"), &database).unwrap();
        }
        upkeep.look_at_disk().await;
        let error = upkeep.cluster.broken().await;
        assert_eq!(error.code, Code::DataUnusable, "{error}");
        let refused = upkeep.cluster.decide(|_, _| Ok(((), Default::default()))).unwrap_err();
        assert_eq!(refused.code, Code::StoreUnavailable);
    }
}
