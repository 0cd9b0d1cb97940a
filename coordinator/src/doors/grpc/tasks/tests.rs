//! A watcher that does not read costs a bounded amount, and is told when it has lost something.

use cooper_common::{ids::TaskId, token::Scope};
use cooper_core::{
    change::{Aggregate, Change, Row},
    cluster::Ended,
    task::{Body, End},
};
use tasks_server::Tasks as _;

use super::*;
use crate::{
    bus::Bus,
    caller::Caller,
    doors::error::from_status,
    output::OutputLog,
    store::{Durability, Store, sqlite::Sqlite},
};

const BODY: &str = r#"{"state":"succeeded","kind":"noop","fence":{"epoch":1,"attempt":1},"timeout_ms":1,
    "output_limit_bytes":1,"started_ms":1,"ended_ms":2}"#;

async fn door() -> (tempfile::TempDir, Tasks) {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(Sqlite::memory(Bus::default()).unwrap());
    let output = OutputLog::open(dir.path()).unwrap();
    let secrets = crate::secrets::Secrets::open(store.clone(), dir.path()).await.unwrap();
    let cluster =
        Cluster::load(store, output, Default::default(), Default::default(), Default::default(), secrets)
            .await
            .unwrap();
    (dir, Tasks { cluster, bus: Bus::default() })
}

fn outcome(bytes: usize) -> Vec<u8> {
    let exception = Some(v1::PythonError { traceback: "x".repeat(bytes), ..v1::PythonError::default() });
    v1::Outcome { exception, ..v1::Outcome::default() }.encode_to_vec()
}

/// A task that ended, recorded and told.
async fn end(door: &Tasks, bytes: usize) -> TaskId {
    let task = TaskId::new();
    let row = Row {
        tenant: "t".into(),
        ended: true,
        body: BODY.into(),
        result: Some(outcome(bytes)),
        ..Row::default()
    };
    let id = task.to_string();
    let change = Change { aggregate: Aggregate::Task, id, expected: 0, row, events: vec![], output: vec![] };
    door.cluster.store.commit_wait(vec![change], Durability::Relaxed).await.unwrap();
    tell(door, task, bytes);
    task
}

fn tell(door: &Tasks, task: TaskId, bytes: usize) {
    let body: Body = serde_json::from_str(BODY).unwrap();
    let (end, tenant, result) = (End::Succeeded, "t".into(), Some(outcome(bytes)));
    door.cluster.hub.task_ended(Arc::new(Ended {
        task,
        end,
        tenant,
        created_ms: 0,
        body,
        result,
        output: vec![],
    }));
}

async fn watch(door: &Tasks, ids: &[TaskId]) -> BoxStream<v1::WatchTasksResponse> {
    let task_ids = ids.iter().map(ToString::to_string).collect();
    let mut request = Request::new(v1::WatchTasksRequest { task_ids, from_seq: 0 });
    let (tenant, scope) = ("t".into(), Scope::Client);
    request.extensions_mut().insert(Caller {
        tenant,
        scope,
        token_id: String::new(),
        name: String::new(),
        from: None,
    });
    door.watch_tasks(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn a_watcher_that_does_not_read_is_told_what_it_lost_and_can_ask_for_it_by_name() {
    let (_dir, door) = door().await;
    let mut watching = watch(&door, &[]).await;
    assert!(watching.next().await.unwrap().unwrap().tasks.is_empty(), "it is on");
    let first = end(&door, 10).await;
    // More than are buffered.
    for _ in 0..70_000 {
        tell(&door, first, 10);
    }
    let told = from_status(&watching.next().await.unwrap().unwrap_err());
    assert_eq!(told.code, Code::Overloaded);
    assert!(told.message.contains("behind") && told.hint().contains("watch again"), "{told:?}");
    let again: Vec<_> = watch(&door, &[first]).await.collect().await;
    assert_eq!(again.len(), 1);
    assert_eq!(again[0].as_ref().unwrap().tasks[0].id, first.to_string());
}

#[tokio::test]
async fn large_results_come_whole_in_messages_of_bounded_size_and_are_not_buffered() {
    let (_dir, door) = door().await;
    let mut buffered = door.cluster.hub.watch_ended();
    let mut watching = watch(&door, &[]).await;
    watching.next().await.unwrap().unwrap();
    let mut ended = Vec::new();
    for _ in 0..8 {
        ended.push(end(&door, 400 << 10).await);
    }
    let light = buffered.recv().await.unwrap();
    assert!(!light.whole && light.ended.result.is_none());
    for named in [false, true] {
        let mut messages = if named { watch(&door, &ended).await } else { watch(&door, &[]).await };
        if !named {
            std::mem::swap(&mut messages, &mut watching);
        }
        let mut seen = Vec::new();
        while seen.len() < ended.len() {
            let message = messages.next().await.unwrap().unwrap();
            assert!(message.encoded_len() < 2 << 20, "{}", message.encoded_len());
            for task in message.tasks {
                assert_eq!(task.outcome.unwrap().exception.unwrap().traceback.len(), 400 << 10);
                seen.push(task.id);
            }
        }
        assert_eq!(seen, ended.iter().map(ToString::to_string).collect::<Vec<_>>());
    }
}
