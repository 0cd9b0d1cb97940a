//! Claims about backups, and about what a check finds.

use std::{path::Path, sync::Arc};

use cooper_common::ids::TaskId;
use cooper_core::change::{Aggregate, Change, NewEvent, Row};

use super::*;
use crate::{
    bus::Bus,
    output::Stream,
    store::Durability,
    upkeep::check::{Severity, check},
};

struct Scene {
    dir: tempfile::TempDir,
    store: Arc<dyn Store>,
    output: OutputLog,
    artifact: crate::blobs::Digest,
    task: TaskId,
}

impl Scene {
    /// A store in use, with a run, its artifact, and a task with output.
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let store: Arc<dyn Store> = Arc::new(Sqlite::open(&data, Bus::default()).unwrap());
        store.next_epoch().await.unwrap();
        let output = OutputLog::open(&data).unwrap();
        let artifact = Blobs::open(&data).unwrap().put(bytes::Bytes::from_static(b"patch")).await.unwrap();
        let task = TaskId::new();
        let scene = Self { dir, store, output, artifact, task };
        let run = json_of_a_run(&artifact.to_string());
        scene.put(Aggregate::Run, &cooper_common::ids::RunId::new().to_string(), &run).await;
        scene.put(Aggregate::Task, &task.to_string(), TASK).await;
        scene.output.append(task, Stream::Stdout, 0, b"out").unwrap();
        scene
    }

    async fn put(&self, aggregate: Aggregate, id: &str, body: &str) {
        let row = Row { tenant: "t".into(), ended: true, body: body.into(), ..Row::default() };
        let events = vec![NewEvent { kind: "x.y".into(), body: "{}".into() }];
        let change = Change { aggregate, id: id.into(), expected: 0, row, events, output: vec![] };
        self.store.commit_wait(vec![change], Durability::Full).await.unwrap();
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }
    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    fn output_file(&self) -> PathBuf {
        OutputLog::relative(self.task)[0].clone()
    }
}

const TASK: &str = r#"{"state":"succeeded","kind":"noop",
    "fence":{"epoch":1,"attempt":1},"timeout_ms":1,"output_limit_bytes":1,
    "started_ms":1,"ended_ms":2}"#;

fn json_of_a_run(digest: &str) -> String {
    let create = cooper_core::run::Create {
        id: cooper_common::ids::RunId::new(),
        tenant: "t".into(),
        key: String::new(),
        stack: "shop".into(),
        dir: "/srv/shop".into(),
        worker: "w".into(),
        service: "web".into(),
        instruction: String::new(),
        dry_run: false,
        automatic: false,
        trigger: String::new(),
        recurring: 0,
        priority: 0,
        origin: cooper_core::run::Origin::Repair,
        needs_approval: false,
        spec: vec![],
    };
    let now = cooper_core::Now { mono_ms: 0, wall_ms: 0 };
    let mut run = cooper_core::run::Run::new(now, create);
    run.artifact(cooper_core::run::Artifact {
        name: "patch.diff".into(),
        size_bytes: 5,
        digest: digest.to_owned(),
        created_ms: 0,
    });
    let changes = run.take_changes(now);
    changes.into_iter().find(|change| change.aggregate == Aggregate::Run).unwrap().row.body
}

async fn damages(data: &Path) -> Vec<String> {
    let found = check(data).await.unwrap().into_iter();
    found.filter(|finding| finding.severity == Severity::Damage).map(|finding| finding.what).collect()
}

#[tokio::test]
async fn a_backup_of_a_store_in_use_comes_back_whole_with_epochs_and_events_that_go_on() {
    let scene = Scene::new().await;
    let made = make(&scene.data(), &scene.at("copy")).await.unwrap();
    assert_eq!((made.files, made.epoch, made.last_seq, made.missing.len()), (3, 1, 2, 0));
    // What comes after is not in it, and a worker may have seen this epoch.
    scene.put(Aggregate::Task, "tsk_after", TASK).await;
    assert_eq!(scene.store.next_epoch().await.unwrap(), 2);
    verify(&scene.at("copy")).await.unwrap();
    assert_eq!(
        damages(&scene.at("copy")).await,
        Vec::<String>::new(),
        "it can be checked like a data directory"
    );

    let target = scene.at("other");
    let restored = restore(&scene.at("copy"), &target, false).await.unwrap();
    assert_eq!(restored.replaced, None);
    let store = Sqlite::open(&target, Bus::default()).unwrap();
    assert_eq!(store.next_epoch().await.unwrap(), restored.epoch + 1);
    assert!(restored.epoch > 1_000);
    assert!(store.get(Aggregate::Task, &scene.task.to_string()).await.unwrap().is_some());
    assert_eq!(store.get(Aggregate::Task, "tsk_after").await.unwrap(), None);
    assert_eq!(fs::read(target.join(scene.output_file())).unwrap(), b"out");
    assert_eq!(Blobs::open(&target).unwrap().read(scene.artifact).await.unwrap(), "patch");
    // Whoever watched up to event 3 misses none of what comes.
    let events = store.events(None, 4, 10).await.unwrap();
    assert!(events.events.is_empty() && !events.at_end, "the gap is looked through in steps");
    assert!(store.last_seq().await.unwrap() > 1_000);
    assert_eq!(damages(&target).await, Vec::<String>::new(), "the gap is explained");
}

#[tokio::test]
async fn a_backup_is_not_written_over_anything_and_not_there_by_halves() {
    let scene = Scene::new().await;
    fs::create_dir(scene.at("there")).unwrap();
    assert_eq!(make(&scene.data(), &scene.at("there")).await.unwrap_err().code, Code::InvalidArgument);
    make(&scene.at("nowhere"), &scene.at("copy")).await.unwrap_err();
    let names: Vec<_> = fs::read_dir(scene.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

#[tokio::test]
async fn a_restore_refuses_a_live_or_a_filled_directory_and_moves_aside_when_told() {
    let scene = Scene::new().await;
    make(&scene.data(), &scene.at("copy")).await.unwrap();
    for replace in [false, true] {
        let refused = restore(&scene.at("copy"), &scene.data(), replace).await.unwrap_err();
        assert_eq!(refused.code, Code::DataBusy);
    }
    for _ in 0..6 {
        scene.store.next_epoch().await.unwrap();
    }
    scene.store.close().await.unwrap();
    let refused = restore(&scene.at("copy"), &scene.data(), false).await.unwrap_err();
    assert!(refused.hint().contains("--replace"), "{refused:?}");
    let restored = restore(&scene.at("copy"), &scene.data(), true).await.unwrap();
    assert!(
        restored.epoch > 1_000_006,
        "beyond what was there, not only beyond the copy: {}",
        restored.epoch
    );
    assert!(restored.replaced.unwrap().join("cooper.db").exists());
    Sqlite::open(&scene.data(), Bus::default()).unwrap();
}

#[tokio::test]
async fn a_damaged_backup_is_not_brought_back() {
    let scene = Scene::new().await;
    for (number, name) in ["cooper.db", "files.blake3", "manifest.json"].into_iter().enumerate() {
        let copy = scene.at(&format!("copy{number}"));
        make(&scene.data(), &copy).await.unwrap();
        let mut bytes = fs::read(copy.join(name)).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(copy.join(name), bytes).unwrap();
        let target = scene.at(&format!("target{number}"));
        assert_eq!(restore(&copy, &target, false).await.unwrap_err().code, Code::DataUnusable, "{name}");
        assert!(!target.join("cooper.db").exists());
    }
}

#[tokio::test]
async fn a_restore_that_was_cut_off_is_not_mistaken_for_a_store() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(sqlite::RESTORING), "").unwrap();
    assert!(matches!(Sqlite::open(dir.path(), Bus::default()), Err(crate::store::Error::Unusable { .. })));
}

#[tokio::test]
async fn a_check_finds_planted_damage_and_tells_it_from_leftovers() {
    let scene = Scene::new().await;
    assert_eq!(check(&scene.data()).await.unwrap(), []);
    scene.put(Aggregate::Session, "ses_bad", "{").await;
    scene.put(Aggregate::Step, "run_gone/1", "{}").await;
    scene.output.append(TaskId::new(), Stream::Stdout, 0, b"orphan").unwrap();
    let blob = scene.data().join(Blobs::relative(scene.artifact));
    fs::write(&blob, "other").unwrap();
    let sql = "UPDATE step SET parent = 'run_gone'; DELETE FROM event WHERE seq = 2;
               INSERT INTO output VALUES ('tsk_gone', 1, x'00')";
    rusqlite::Connection::open(scene.data().join("cooper.db")).unwrap().execute_batch(sql).unwrap();
    let found = damages(&scene.data()).await;
    for part in ["ses_bad", "run_gone", "gaps", "inline outputs", "bytes that its name says"] {
        assert!(found.iter().any(|what| what.contains(part)), "{part}: {found:#?}");
    }
    fs::remove_file(blob).unwrap();
    assert!(damages(&scene.data()).await.iter().any(|what| what.contains("is not there")));
    let leftovers = check(&scene.data()).await.unwrap();
    assert!(leftovers.iter().any(|f| f.severity == Severity::Leftover && f.what.contains("no task")));
    fs::write(scene.data().join("cooper.db"), "no database at all").unwrap();
    assert!(!damages(&scene.data()).await.is_empty());
}
