//! The store's life: unusable at the start, full or gone at run time; backup, restore, check.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use cooper_proto::v1::{NoopSpec, SubmitTaskRequest, TaskSpec, task_spec::Kind};
use cooper_tests::{
    Cooper,
    fleet::Fleet,
    grpc::{self, Client},
    http, seconds, until,
    wait::until_true,
};
use serde_json::Value;

/// A small disk of its own for a directory; gone with this value.
struct Disk(PathBuf);

impl Disk {
    /// `None`, and said so, where mounting is not allowed.
    fn mount(dir: &Path, mib: u32) -> Option<Self> {
        fs::create_dir_all(dir).expect("a directory");
        let size = format!("size={mib}m,mode=0700");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "cooper-test"]).arg(dir).output();
        if mounted.is_ok_and(|done| done.status.success()) {
            return Some(Self(dir.to_owned()));
        }
        eprintln!("skipped: no disk can be mounted here");
        None
    }

    /// Takes all of the space but this much.
    fn fill(&self, leave_kib: u64) {
        let free = rustix::fs::statvfs(&self.0).expect("its size");
        let bytes = (free.f_bavail * free.f_frsize).saturating_sub(leave_kib << 10);
        fs::write(self.0.join("filler"), vec![0; bytes as usize]).expect("it fits");
    }

    fn free(&self) {
        fs::remove_file(self.0.join("filler")).expect("it is there");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn epoch(fleet: &Fleet) -> u64 {
    http::get(&fleet.url(), "/health").json()["epoch"].as_u64().expect("an epoch")
}

fn pid(fleet: &Fleet) -> rustix::process::Pid {
    fleet.coordinator.as_ref().expect("it runs").pid()
}

/// Counts to 99 over a few seconds, and says so at the start.
const COUNT: &str = "
import time
for i in range(100):
    print(i, flush=True)
    time.sleep(0.05)
";

fn counted() -> String {
    (0..100).map(|i| format!("{i}\n")).collect()
}

#[test]
fn a_store_that_cannot_be_used_at_the_start_is_waited_for_and_then_served() {
    let mut fleet = Fleet::new();
    let database =
        fleet.scratch.write("coordinator/cooper.db", "this is no database, and never was one\n".repeat(200));
    fleet.start_coordinator();
    let (first, url) = (pid(&fleet), fleet.url());
    let why = fleet.await_ready(503);
    assert_eq!(why["code"], "data_unusable", "{why:#}");
    assert!(why["message"].as_str().is_some_and(|message| message.contains("cooper.db")), "{why:#}");
    assert!(!why["hint"].as_str().unwrap_or_default().is_empty(), "{why:#}");
    assert_eq!(http::get(&url, "/health").json()["status"], "healthy");
    let refused = Cooper::with_token(&url, "cpr_whatever").error(["session", "list"]);
    assert_eq!(refused.code, "store_unavailable", "{refused:?}");
    assert!(refused.message.contains("cooper.db"), "{refused:?}");

    fs::remove_file(database).expect("it was there");
    fleet.await_ready(200);
    assert_eq!(fleet.cooper().json(["session", "list"])["sessions"], serde_json::json!([]));
    assert_eq!((pid(&fleet), epoch(&fleet)), (first, 1), "the same process");
    let log = fleet.coordinator.as_ref().expect("it runs").stderr();
    assert_eq!(log.matches("not ready").count(), 1, "the same reason is said once a minute\n{log}");
    fleet.stop();
}

#[test]
fn a_data_directory_that_goes_away_is_waited_for_and_nothing_is_lost() {
    let mut fleet = Fleet::new();
    fleet.start_coordinator();
    fleet.start_worker("hand");
    fleet.await_registered(0);
    let cooper = fleet.cooper();
    let session = cooper.session();
    cooper.exec(&session, "kept = 42");
    let (first, before) = (pid(&fleet), epoch(&fleet));
    let (data, away) = (fleet.scratch.join("coordinator"), fleet.scratch.join("away"));
    fs::rename(&data, &away).expect("moved");
    let why = fleet.await_ready(503);
    assert_eq!(why["code"], "data_unusable", "{why:#}");
    // It begins anew meanwhile, which cuts a connection.
    until_true("an epoch of nobody", seconds(10), || {
        http::try_get(&fleet.url(), "/health", None).is_ok_and(|answer| answer.body.contains("\"epoch\":0"))
    });
    assert!(!data.join("cooper.db").exists(), "no new beginning");
    // Something may have been made there meanwhile.
    let _ = fs::remove_dir_all(&data);
    fs::rename(&away, &data).expect("moved back");
    fleet.await_ready(200);
    assert_eq!(pid(&fleet), first);
    assert!(epoch(&fleet) > before);
    let kept = until("the session", seconds(30), || {
        let done = cooper.run(["exec", &session, "-c", "kept"]);
        (done.status == 0).then(|| done.out())
    });
    assert_eq!(kept, "42\n", "the interpreter is the same");
    fleet.stop();
}

#[test]
fn a_disk_that_is_full_is_survived_and_what_ran_meanwhile_has_its_result() {
    let mut fleet = Fleet::new().env("COOPER_KEEP_FREE_MIB", "0");
    let Some(disk) = Disk::mount(&fleet.scratch.join("coordinator"), 24) else { return };
    fleet.start_coordinator();
    fleet.start_worker("hand");
    fleet.await_registered(0);
    let (cooper, first) = (fleet.cooper(), pid(&fleet));
    let session = cooper.session();
    let mut counting = cooper.start(["exec", &session, "-c", COUNT], b"");
    counting.await_said("that it runs", seconds(20), |counting| (counting.stdout_len() > 0).then_some(()));
    disk.fill(0);
    // The log of the database may have room left: write until it has none.
    let value = fleet.scratch.write("value", "v".repeat(32 << 10));
    let value = value.to_str().expect("a plain path");
    let why = until("a store that is full", seconds(120), || {
        let _ = cooper.run(["secret", "set", "FILLER", "--from-file", value]);
        let answer = http::get(&fleet.url(), "/ready");
        (answer.status == 503).then(|| answer.json())
    });
    assert_eq!(why["code"], "store_full", "{why:#}");
    assert_eq!(http::get(&fleet.url(), "/health").status, 200);
    disk.free();
    fleet.await_ready(200);
    assert_eq!(pid(&fleet), first, "it did not start again");
    assert_eq!(counting.finish(seconds(60)).expect(0).out(), counted());
    assert_eq!(cooper.exec(&session, "i"), "99");
    fleet.stop();
    drop(disk);
}

#[test]
fn below_the_floor_of_free_space_new_work_is_refused_and_results_are_taken() {
    let mut fleet = Fleet::new().env("COOPER_KEEP_FREE_MIB", "16");
    let Some(disk) = Disk::mount(&fleet.scratch.join("coordinator"), 64) else { return };
    fleet.start_coordinator();
    fleet.start_worker("hand");
    fleet.await_registered(0);
    let (cooper, before) = (fleet.cooper(), epoch(&fleet));
    let session = cooper.session();
    let mut counting = cooper.start(["exec", &session, "-c", COUNT], b"");
    counting.await_said("that it runs", seconds(20), |counting| (counting.stdout_len() > 0).then_some(()));
    disk.fill(8 << 10);
    assert_eq!(fleet.await_ready(503)["code"], "store_full");
    let refused = cooper.error(["exec", &session, "-c", "1"]);
    assert_eq!((refused.status, refused.code.as_str()), (125, "store_full"), "{refused:?}");
    assert_eq!(cooper.error(["session", "create"]).code, "store_full");
    assert_eq!(counting.finish(seconds(60)).expect(0).out(), counted());
    let tasks: Value = cooper.json(["tasks", "list", "--session", &session]);
    assert_eq!(tasks["tasks"][0]["state"], "succeeded", "{tasks:#}");
    disk.free();
    fleet.await_ready(200);
    assert_eq!(cooper.exec(&session, "i"), "99");
    assert_eq!(epoch(&fleet), before, "the store never failed");
    fleet.stop();
    drop(disk);
}

/// Submits no-ops one after another until told to stop; the ids of those that were acknowledged.
async fn load(client: Client, acknowledged: tokio::sync::watch::Sender<Vec<String>>) {
    loop {
        let spec = TaskSpec { kind: Some(Kind::Noop(NoopSpec::default())), ..TaskSpec::default() };
        let request = SubmitTaskRequest { spec: Some(spec), ..SubmitTaskRequest::default() };
        let Ok(task) = client.tasks().submit_task(request).await else { return };
        acknowledged.send_modify(|ids| ids.push(task.into_inner().id));
    }
}

#[test]
fn a_backup_under_load_brings_back_every_acknowledged_task_and_the_worker_obeys_what_was_restored() {
    let mut fleet = Fleet::new();
    fleet.start_coordinator();
    fleet.start_worker("hand");
    fleet.await_registered(0);
    let (cooper, data) = (fleet.cooper(), fleet.scratch.join("coordinator"));
    let session = cooper.session();
    let long = cooper.ok(["exec", &session, "-c", "kept = 42; print('x' * 100_000)"]);
    let (copy, other) = (fleet.scratch.join("copy"), fleet.scratch.join("other"));
    let path = |path: &Path| path.to_string_lossy().into_owned();

    let token = fs::read_to_string(data.join("admin.token")).expect("a token");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let client = runtime.block_on(Client::connect(&fleet.url(), Some(token.trim())));
    let (sender, acknowledged) = tokio::sync::watch::channel(Vec::new());
    let loading = runtime.spawn(load(client, sender));
    until_true("some load", seconds(20), || acknowledged.borrow().len() > 50);
    let before = acknowledged.borrow().clone();
    let made = cooper.json(["store", "backup", &path(&copy)]);
    assert!(acknowledged.borrow().len() > before.len(), "it went on meanwhile");
    loading.abort();
    assert_eq!(made["missing"], serde_json::json!([]), "{made:#}");
    assert_eq!(
        cooper.error(["store", "backup", &path(&copy)]).code,
        "invalid_argument",
        "nothing is written over"
    );
    let (status, checked) = cooper.run_json(["store", "check"]);
    assert_eq!((status, &checked["ok"]), (0, &true.into()), "{checked:#}");
    assert_eq!(cooper.error(["store", "restore", &path(&copy), "--replace"]).code, "data_busy");
    let gone = cooper.session();

    // Elsewhere: every task that was acknowledged before, and the output.
    let elsewhere = Cooper::at(&other);
    elsewhere.json(["store", "restore", &path(&copy)]);
    assert_eq!(elsewhere.run_json(["store", "check"]).0, 0);
    let second = http::free_port().to_string();
    let mut coordinator = elsewhere.clone().env("GRPC_PORT", &second).start(["coordinator"], b"");
    coordinator.await_said("an answer at /ready", seconds(30), |_| {
        let url = format!("http://127.0.0.1:{second}");
        http::try_get(&url, "/ready", None).is_ok_and(|answer| answer.status == 200).then_some(())
    });
    let token = fs::read_to_string(other.join("admin.token")).expect("a token");
    let client = runtime.block_on(Client::connect(&format!("http://127.0.0.1:{second}"), Some(token.trim())));
    for id in &before {
        let request = cooper_proto::v1::GetTaskRequest { task_id: id.clone() };
        let found = runtime.block_on(client.tasks().get_task(request));
        assert!(found.is_ok(), "{id}: {:?}", found.err().map(|status| grpc::refusal(&status).code));
    }
    let tasks = elsewhere.json(["tasks", "list", "--session", &session]);
    let task =
        tasks["tasks"][0]["id"].as_str().or(tasks["tasks"][0]["task_id"].as_str()).expect("an id").to_owned();
    assert_eq!(elsewhere.ok(["tasks", "follow", &task]), long);
    coordinator.signal(rustix::process::Signal::TERM);
    coordinator.finish(seconds(5)).expect(0);

    // In place: the worker has seen higher fences than the copy knows, and obeys all the same.
    let first = fleet.coordinator.take().expect("it runs");
    first.signal(rustix::process::Signal::TERM);
    first.finish(seconds(5)).expect(0);
    let restored = cooper.json(["store", "restore", &path(&copy), "--replace"]);
    assert!(Path::new(restored["replaced"].as_str().expect("a path")).join("cooper.db").exists());
    fleet.start_coordinator();
    fleet.await_ready(200);
    assert!(epoch(&fleet) > 1_000_000);
    let kept = until("the session", seconds(60), || {
        let done = cooper.run(["exec", &session, "-c", "kept"]);
        (done.status == 0).then(|| done.out())
    });
    assert_eq!(kept, "42\n", "the same interpreter under a restored coordinator");
    assert_eq!(cooper.error(["session", "show", &gone]).code, "session_not_found", "made after the backup");
    fleet.stop();
}

#[test]
fn a_check_finds_planted_damage_and_a_damaged_backup_is_not_restored() {
    let mut fleet = Fleet::new();
    fleet.start_coordinator();
    let (cooper, data) = (fleet.cooper(), fleet.scratch.join("coordinator"));
    let copy = fleet.scratch.join("copy").to_string_lossy().into_owned();
    cooper.json(["store", "backup", &copy]);
    assert_eq!(cooper.json(["store", "migrate"])["backup"], Value::Null, "nothing to do");
    fleet.stop();
    let flip = |path: &Path| {
        let mut bytes = fs::read(path).expect("it is there");
        let from = bytes.len() / 2;
        bytes[from..from + 4096].fill(0xa5);
        fs::write(path, bytes).expect("written");
    };
    flip(&data.join("cooper.db"));
    let (status, found) = cooper.run_json(["store", "check"]);
    assert_eq!((status, &found["ok"]), (1, &false.into()), "{found:#}");
    assert_eq!(found["findings"][0]["severity"], "damage", "{found:#}");
    flip(&Path::new(&copy).join("cooper.db"));
    let refused = cooper.error(["store", "restore", &copy, "--replace"]);
    assert_eq!(refused.code, "data_unusable", "{refused:?}");
    assert!(data.join("cooper.db").exists(), "what is there stays");
}
