//! Hostile code in a session, with less and less of the machine's facilities.

use std::{io::Write as _, net::TcpListener, path::Path};

use cooper_proto::v1;

use crate::worker::{CANARY, Worker};

const PRELUDE: &str = include_str!("../../../tests/hostile/prelude.py");
/// Of the cases in `tests/hostile` those that try what is refused; the others are about how much there is of something, and
/// run through a whole cluster (`tests/tests/hostile.rs`).
const CASES: &[(&str, &str)] = &[
    ("attributes", include_str!("../../../tests/hostile/attributes.py")),
    ("core_dump", include_str!("../../../tests/hostile/core_dump.py")),
    ("descriptors", include_str!("../../../tests/hostile/descriptors.py")),
    ("priorities", include_str!("../../../tests/hostile/priorities.py")),
    ("privileges", include_str!("../../../tests/hostile/privileges.py")),
    ("secrets", include_str!("../../../tests/hostile/secrets.py")),
    ("shared_places", include_str!("../../../tests/hostile/shared_places.py")),
    ("siblings_files", include_str!("../../../tests/hostile/siblings_files.py")),
    ("signals", include_str!("../../../tests/hostile/signals.py")),
    ("sockets", include_str!("../../../tests/hostile/sockets.py")),
    ("works", include_str!("../../../tests/hostile/works.py")),
];
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
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // Whoever gets here is answered, and so noticed.
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.write_all(b"reached");
        }
    });
    let layer = worker.dir.with_file_name("layer");
    // Where it listens nobody else gets to: by a network of its own, or by a filter.
    let filtered = worker.hello.facilities.iter().any(|name| name == "filter");
    let private = filtered || caged && facilities.contains(&"namespaces");
    let known = format!(
        "known = {{'canary': '-'.join({:?}), 'data': {:?}, 'base': {:?}, 'sibling': {:?}, 'layer': {layer:?}, \
         'port': {port}, 'worker': {}, 'coordinator': {}, 'shared_network': {}}}\n",
        CANARY.split('-').collect::<Vec<_>>(),
        worker.dir.parent().unwrap(),
        worker.dir.join("sessions"),
        worker.workspace(&neighbour),
        worker.host.id(),
        worker.link.pid,
        if private { "False" } else { "True" },
    );
    let mut session = String::new();
    for (name, code) in CASES {
        if !session.is_empty() {
            worker.destroy(&session);
        }
        session = worker.create_session(v1::Limits::default());
        let done = worker.python(&session, &format!("{known}{PRELUDE}{code}"));
        assert_eq!(
            done.out().lines().last(),
            Some("contained"),
            "{name}: {} {:?} {:?}",
            done.out(),
            done.outcome.exception,
            done.outcome.error
        );
    }
    // The neighbour is as it was.
    assert_eq!(worker.python(&neighbour, "open('secret').read()").value(), "'s'");
    let shell = worker.shell(&session, &["sh", "-c", "cat /etc/shadow; id -u"], b"");
    assert!(shell.out().trim().parse::<u32>().is_ok_and(|uid| uid > 1000), "{}", shell.out());
}

pub fn with_all_facilities_hostile_code_reaches_nothing() {
    let mut has = vec!["uid", "seccomp", "rlimits"];
    if Worker::start().hello.facilities.iter().any(|name| name == "namespaces") {
        has.push("namespaces");
    }
    attempt_all("", &has);
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

/// A host keeps what its part in confining takes, for itself and for all it starts; the link and the proxy keep nothing.
pub fn the_host_keeps_the_capabilities_it_needs_and_the_link_and_the_proxy_none() {
    const FOR_UIDS: u64 = 0b1110_1011;
    const FOR_NAMESPACES: u64 = 1 << 21 | 1 << 18;
    const FOR_FILTERS: u64 = 1 << 12;
    if !rustix::process::geteuid().is_root() {
        return println!("left out: only root has any");
    }
    let had = capabilities(std::process::id(), "CapEff");
    for (mask, ports) in [
        ("", ""),
        ("namespaces", "on"),
        ("namespaces,cgroup", "off"),
        ("uid,landlock:5", ""),
        ("filter", "on"),
    ] {
        let worker = Worker::start_in(&[("TEST_MASK", mask), ("TEST_PORTS", ports)]);
        let has = |facility: &str| worker.hello.facilities.iter().any(|name| name == facility);
        let mut kept = FOR_UIDS | if has("namespaces") { FOR_NAMESPACES } else { 0 };
        if has("filter") {
            kept |= FOR_FILTERS & had;
        }
        assert!(mask != "filter" && ports != "off" || !has("filter"), "{:?}", worker.hello.facilities);
        let host = worker.host.id();
        for (set, expected) in
            [("CapEff", kept), ("CapPrm", kept), ("CapBnd", kept), ("CapInh", 0), ("CapAmb", 0)]
        {
            assert_eq!(capabilities(host, set), expected, "{set} without {mask:?}");
        }
        let is_proxy = |pid: &u32| {
            let said = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&said).contains(cooper_worker::egress::ARGV)
        };
        let begin = cooper_common::clock::mono_ms();
        let proxy = loop {
            let children = std::fs::read_to_string(format!("/proc/{host}/task/{host}/children")).unwrap();
            let found = children.split_whitespace().map(|pid| pid.parse().unwrap()).find(is_proxy);
            // It may not have become its program yet.
            if found.is_some() || cooper_common::clock::mono_ms() - begin > 10_000 {
                break found;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        };
        for pid in [u32::try_from(worker.link.pid).unwrap(), proxy.expect("a proxy")] {
            for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
                assert_eq!(capabilities(pid, set), 0, "{set} of {pid} without {mask:?}");
            }
            assert_eq!(status(pid, "NoNewPrivs"), "1", "nothing brings it any");
        }
    }
}

fn capabilities(pid: u32, set: &str) -> u64 {
    u64::from_str_radix(&status(pid, set), 16).unwrap()
}

fn status(pid: u32, name: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap().trim().to_owned()
}
