//! Places for sessions that are made in advance: taken whole, and cleared away when nobody can take them.

use std::{fs, os::unix::fs::MetadataExt, path::PathBuf};

use cooper_proto::v1;
use rustix::process::Signal;

use crate::{
    claims::claims,
    worker::{Worker, eventually, signal},
};

/// Places that no session has.
fn berths(worker: &Worker) -> Vec<PathBuf> {
    let all = fs::read_dir(worker.dir.join("sessions")).unwrap().flatten().map(|entry| entry.path());
    all.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(".berth-")).collect()
}

fn group_of(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default()
}

claims! {
    fn a_session_takes_a_berth_with_its_files_and_its_interpreter_and_gets_its_own_limits() {
        let mut worker = Worker::start();
        worker.wait_for_pool(4);
        let places: Vec<u64> = berths(&worker).iter().map(|dir| fs::metadata(dir).unwrap().ino()).collect();
        let waiting = worker.pooled();
        let limits = v1::Limits { open_files: 77, memory_bytes: 192 << 20, processes_max: 33, ..v1::Limits::default() };
        let session = worker.create_session(limits);
        let home = worker.workspace(&session).parent().unwrap().to_owned();
        assert!(places.contains(&fs::metadata(&home).unwrap().ino()), "its home was there before");
        let question = "import json, os, resource, sys\nassert os.getcwd() == os.environ['HOME'], os.getcwd()\n\
            assert sys.prefix == os.getcwd() + '/.venv', sys.prefix\n\
            print(json.dumps([os.getpid(), resource.getrlimit(resource.RLIMIT_NOFILE)]))";
        let answer = worker.python(&session, question).out();
        let answer: (i32, (u64, u64)) = serde_json::from_str(&answer).unwrap();
        assert!(waiting.contains(&answer.0), "its interpreter was there before");
        assert_eq!(answer.1, (77, 77));
        let groups = group_of(answer.0);
        for line in groups.lines().filter(|line| line.contains(":pids:") && line.contains("berth")) {
            let (_, place) = line.split_once(":pids:").unwrap();
            let max = fs::read_to_string(format!("/sys/fs/cgroup/pids{place}/pids.max")).unwrap();
            assert_eq!(max.trim(), "33");
        }
        // Nothing says from whom the place was.
        assert_eq!(worker.shell(&session, &["sh", "-c", "ls -a ../ | grep berth"], b"").outcome.exit_code, 1);
    }

    fn sessions_of_berths_have_uids_of_their_own() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let mut worker = Worker::start();
        worker.wait_for_pool(4);
        let mut uids: Vec<String> = (0..8)
            .map(|_| worker.create_session(v1::Limits::default()))
            .collect::<Vec<_>>()
            .iter()
            .map(|session| worker.python(session, "import os; os.getuid()").value().to_owned())
            .collect();
        uids.sort();
        uids.dedup();
        assert_eq!(uids.len(), 8);
    }

    fn a_berth_whose_interpreter_dies_is_cleared_away_and_replaced() {
        let worker = Worker::start();
        worker.wait_for_pool(4);
        let (waiting, before) = (worker.pooled(), berths(&worker));
        waiting.iter().for_each(|pid| signal(*pid, Signal::KILL));
        eventually("others wait", || {
            let now = worker.pooled();
            (now.len() >= 4 && now.iter().all(|pid| !waiting.contains(pid))).then_some(())
        });
        eventually("their places are gone", || before.iter().all(|dir| !dir.exists()).then_some(()));
    }

    fn berths_of_a_host_that_was_killed_are_gone_with_the_next() {
        let mut worker = Worker::start();
        worker.wait_for_pool(4);
        let before = berths(&worker);
        assert!(!before.is_empty());
        let host = worker.host.id() as i32;
        signal(host, Signal::KILL);
        worker.start_again();
        eventually("what it left is gone", || before.iter().all(|dir| !dir.exists()).then_some(()));
        worker.wait_for_pool(4);
    }
}
