//! Hostile code in a session, with less and less of the machine's facilities.

use std::{net::TcpListener, path::Path};

use cooper_proto::v1;

use crate::worker::Worker;

const ATTEMPTS: &str = include_str!("hostile.py");
/// Where everybody may read it; the one that is found first may lie in root's home.
const PYTHON: &str = "/usr/bin/python3";

/// Runs every attempt in a session of a worker that does without `mask`, beside a session with a secret.
fn attempt_all(mask: &str, facilities: &[&str]) {
    if !rustix::process::geteuid().is_root() {
        return println!("left out: sessions have uids of their own only when the tests run as root");
    }
    let caged = mask.is_empty();
    let python = if caged { "" } else { PYTHON };
    if !caged && !Path::new(PYTHON).exists() {
        return println!("left out: there is no {PYTHON}");
    }
    let mut worker = Worker::start_in(&[("TEST_MASK", mask), ("TEST_PYTHON", python)]);
    for facility in facilities {
        assert!(worker.hello.facilities.iter().any(|f| f == facility), "{:?}", worker.hello.facilities);
    }
    let neighbour = worker.create_session(v1::Limits::default());
    worker.python(&neighbour, "open('secret', 'w').write('s')");
    let session = worker.create_session(v1::Limits::default());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let known = format!(
        "sibling, base, worker, port = {:?}, {:?}, {:?}, {}",
        worker.workspace(&neighbour),
        worker.dir.join("sessions"),
        worker.dir,
        listener.local_addr().unwrap().port()
    );
    worker.python(&session, &known);
    let done = worker.python(&session, ATTEMPTS);
    assert_eq!(done.value(), "[]", "{:?} {:?}", done.outcome.exception, done.outcome.error);
    // The neighbour is as it was.
    assert_eq!(worker.python(&neighbour, "open('secret').read()").value(), "'s'");
    let shell = worker.shell(&session, &["sh", "-c", "cat /etc/shadow; id -u"], b"");
    assert!(shell.out().trim().parse::<u32>().is_ok_and(|uid| uid > 1000), "{}", shell.out());
}

pub fn with_all_facilities_hostile_code_reaches_nothing() {
    attempt_all("", &["uid", "seccomp", "rlimits"]);
}

pub fn without_namespaces_hostile_code_reaches_nothing() {
    attempt_all("namespaces", &["uid", "seccomp"]);
}

pub fn without_namespaces_and_control_groups_hostile_code_reaches_nothing() {
    attempt_all("namespaces,cgroup", &["uid", "seccomp"]);
}

/// Root without uids, or without seccomp: less than any tier.
pub fn below_the_least_tier_sessions_are_refused() {
    for mask in ["uid,landlock:5", "seccomp"] {
        let mut worker = Worker::start_in(&[("TEST_MASK", mask)]);
        let update = worker.try_session(v1::Limits::default());
        let error = update.error.unwrap();
        assert_eq!((&*update.state, &*error.code), ("failed", "isolation_unavailable"), "{mask}");
        assert!(error.message.contains("T0"), "{}", error.message);
    }
}

/// Processes that outlive everything else still belong to the session's uid.
pub fn after_a_session_nothing_of_its_uid_is_left() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    for mask in ["", "cgroup"] {
        nothing_is_left_of_a_session(Worker::start_in(&[("TEST_MASK", mask)]));
    }
}

fn nothing_is_left_of_a_session(mut worker: Worker) {
    let session = worker.create_session(v1::Limits::default());
    let uid: u32 = worker.python(&session, "import os; os.getuid()").value().parse().unwrap();
    worker.python(
        &session,
        "import subprocess\nfor _ in range(5): subprocess.Popen(['setsid', '-f', 'sleep', '71'])",
    );
    let started = cooper_common::clock::mono_ms();
    worker.destroy(&session);
    // Other processes of the machine do not make it look again and again whether there are some of the session's.
    let took = cooper_common::clock::mono_ms() - started;
    assert!(took < 1_000, "{took} ms");
    let left = std::fs::read_dir("/proc").unwrap().flatten().filter(|entry| {
        std::os::unix::fs::MetadataExt::uid(
            &entry.metadata().unwrap_or_else(|_| std::fs::metadata("/").unwrap()),
        ) == uid
    });
    assert_eq!(left.count(), 0);
    assert!(!worker.workspace(&session).exists());
}
