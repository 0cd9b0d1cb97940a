//! Sessions that take all they can get, beside one that wants to go on, where control groups limit them and where the host
//! has to watch.

use std::path::Path;

use cooper_common::clock;
use cooper_proto::{host::to_host, v1};

use crate::worker::{self, Done, Worker, eventually};

/// Where everybody may read it.
const PYTHON: &str = "/usr/bin/python3";
/// With control groups, and without.
const MASKS: [&str; 2] = ["namespaces", "namespaces,cgroup"];
/// A neighbour waits no longer for an answer, on a machine with many tests.
const ANSWER_MS: u64 = 5_000;

pub const ALL: &[(&str, fn())] = &[
    ("a_fork_bomb_stays_in_its_session", a_fork_bomb_stays_in_its_session),
    ("a_fork_bomb_of_a_shell_ends_with_its_session", a_fork_bomb_of_a_shell_ends_with_its_session),
    ("threads_are_limited_as_processes_are", threads_are_limited_as_processes_are),
    ("memory_beyond_the_limit_ends_its_session_alone", memory_beyond_the_limit_ends_its_session_alone),
    ("memory_spread_over_children_counts_together", memory_spread_over_children_counts_together),
    ("files_beyond_the_quota_end_what_writes_them", files_beyond_the_quota_end_what_writes_them),
    (
        "processor_time_is_limited_and_the_limit_can_be_changed",
        processor_time_is_limited_and_the_limit_can_be_changed,
    ),
    ("a_disk_that_gets_full_ends_who_fills_it_alone", a_disk_that_gets_full_ends_who_fills_it_alone),
    (
        "a_session_granted_again_keeps_its_uid_and_gets_its_limits",
        a_session_granted_again_keeps_its_uid_and_gets_its_limits,
    ),
];

/// A session with limits and a neighbour, at each of [`MASKS`].
fn beside_a_neighbour(limits: v1::Limits, test: impl Fn(&mut Neighbourhood)) {
    if !rustix::process::geteuid().is_root() || !Path::new(PYTHON).exists() {
        return println!("left out: it takes root and {PYTHON}");
    }
    for mask in MASKS {
        let mut worker = Worker::start_in(&[("TEST_MASK", mask), ("TEST_PYTHON", PYTHON)]);
        let grouped = worker.hello.facilities.iter().any(|name| name == "cgroup:memory");
        let neighbour = worker.create_session(v1::Limits::default());
        worker.python(&neighbour, "kept = 42");
        let session = worker.create_session(limits);
        let uid = worker.python(&session, "import os; os.getuid()").value().parse().unwrap();
        let mut all = Neighbourhood { worker, neighbour, session, uid, grouped };
        test(&mut all);
        all.neighbour_answers();
        let (worker, session) = (&mut all.worker, all.session.clone());
        worker.destroy(&session);
        eventually("nothing of the session is left", || (of_uid(uid) == 0).then_some(()));
    }
}

struct Neighbourhood {
    worker: Worker,
    neighbour: String,
    session: String,
    uid: u32,
    grouped: bool,
}

impl Neighbourhood {
    fn neighbour_answers(&mut self) {
        let asked = clock::mono_ms();
        assert_eq!(self.worker.python(&self.neighbour, "kept").value(), "42");
        let took = clock::mono_ms() - asked;
        assert!(took < ANSWER_MS, "{took} ms");
    }

    /// Runs it while the neighbour goes on.
    fn python(&mut self, code: &str, timeout_ms: u64) -> Done {
        let task = self.worker.start_python(&self.session, code, timeout_ms);
        for _ in 0..5 {
            self.neighbour_answers();
        }
        self.worker.link.wait(&task)
    }

    fn still_works(&mut self) {
        assert_eq!(self.worker.python(&self.session, "1 + 1").value(), "2");
    }
}

fn of_uid(uid: u32) -> usize {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let owned = |entry: &std::fs::DirEntry| {
        entry.metadata().is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == uid)
    };
    entries.filter(owned).count()
}

fn few_processes() -> v1::Limits {
    v1::Limits { processes_max: 100, ..v1::Limits::default() }
}

fn a_fork_bomb_stays_in_its_session() {
    beside_a_neighbour(few_processes(), |all| {
        let bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass";
        let task = all.worker.start_python(&all.session, bomb, 2_000);
        let uid = all.uid;
        eventually("it is full", || (of_uid(uid) >= 95).then_some(()));
        for _ in 0..5 {
            all.neighbour_answers();
            assert!(of_uid(uid) <= 101);
        }
        let done = all.worker.link.wait(&task);
        assert_eq!(done.state, v1::TaskState::TimedOut, "{:?}", done.outcome.error);
        all.still_works();
    });
}

fn a_fork_bomb_of_a_shell_ends_with_its_session() {
    beside_a_neighbour(few_processes(), |all| {
        let bomb = ["sh", "-c", "f() { f | f & }; f; sleep 30"];
        let task = all.worker.start_shell(&all.session, &bomb, b"", 1_000);
        for _ in 0..5 {
            all.neighbour_answers();
        }
        all.worker.link.wait(&task);
    });
}

fn threads_are_limited_as_processes_are() {
    beside_a_neighbour(few_processes(), |all| {
        let threads = "import threading, time\nstarted = 0\nwhile started < 1_000:\n    try:\n        \
            threading.Thread(target=time.sleep, args=(5,), daemon=True).start()\n    \
            except RuntimeError: break\n    started += 1\nstarted";
        let started: u32 = all.python(threads, 0).value().parse().unwrap();
        assert!((50..100).contains(&started), "{started}");
    });
}

fn memory_beyond_the_limit_ends_its_session_alone() {
    let limits = v1::Limits { memory_bytes: 160 << 20, ..v1::Limits::default() };
    beside_a_neighbour(limits, |all| {
        let slowly =
            "import time\nheld = []\nwhile True:\n    held.append(b'x' * (2 << 20))\n    time.sleep(0.005)";
        let done = all.python(slowly, 0);
        if all.grouped {
            assert_eq!((done.error(), done.outcome.oom), ("memory_limit", true));
            assert!(done.outcome.interpreter_restarted);
        } else {
            assert_eq!(done.outcome.exception.unwrap().name, "MemoryError");
        }
        all.worker.python(&all.session, "held = None");
        all.still_works();
        let command = ["python3", "-c", "b = b'x' * (1 << 30)"];
        let done = all.worker.shell(&all.session, &command, b"");
        assert_eq!((done.state, done.outcome.oom), (v1::TaskState::Failed, all.grouped));
    });
}

fn memory_spread_over_children_counts_together() {
    let limits = v1::Limits { memory_bytes: 200 << 20, ..v1::Limits::default() };
    beside_a_neighbour(limits, |all| {
        // Each has less than the limit.
        let spread = "import os, time\nfor _ in range(8):\n    if os.fork() == 0:\n        held = b'x' * (60 << 20)\n        \
            time.sleep(20)\n        os._exit(0)\n\
            [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(8)].count(-9)";
        let done = all.python(spread, 15_000);
        if all.grouped {
            // The kernel takes one after the other until the rest fits.
            assert_eq!(done.state, v1::TaskState::TimedOut);
        } else {
            assert_eq!((done.error(), done.outcome.oom), ("memory_limit", true));
        }
        all.still_works();
    });
}

fn files_beyond_the_quota_end_what_writes_them() {
    let limits = v1::Limits { disk_bytes: 48 << 20, inodes_max: 3_000, ..v1::Limits::default() };
    beside_a_neighbour(limits, |all| {
        let one = "import time\nwith open('big', 'wb') as big:\n    while True:\n        big.write(bytes(1 << 20))\n        \
            big.flush()\n        time.sleep(0.02)";
        let many = "import os\nos.mkdir('many')\nn = 0\nwhile True:\n    open('many/%d' % n, 'w').close()\n    n += 1";
        let deep =
            "import os, time\nwhile True:\n    os.mkdir('d')\n    os.chdir('d')\n    time.sleep(0.002)";
        for (code, what) in [(one, "big"), (many, "many"), (deep, "d")] {
            let done = all.python(code, 0);
            assert_eq!((done.error(), done.outcome.oom), ("disk_quota", false), "{what}");
            // What is there stays, and can be removed.
            let removed = all.worker.shell(&all.session, &["rm", "-r", what], b"");
            assert_eq!(removed.outcome.exit_code, 0, "{}", String::from_utf8_lossy(&removed.stderr));
            all.still_works();
        }
    });
}

fn processor_time_is_limited_and_the_limit_can_be_changed() {
    let mut worker = Worker::start();
    if !worker.hello.facilities.iter().any(|name| name == "cgroup:cpu") {
        return println!("left out: processor time is not limited on this machine");
    }
    // Two children and the interpreter, of which each would take a processor.
    let burn = "import os, resource, time\nchildren = []\nbegin = time.monotonic()\nfor _ in range(2):\n    \
        pid = os.fork()\n    if pid == 0:\n        while time.monotonic() < begin + 1.5: pass\n        \
        os._exit(0)\n    children.append(pid)\nwhile time.monotonic() < begin + 1.5: pass\n\
        for pid in children: os.waitpid(pid, 0)\nused = [resource.getrusage(who) for who in \
        (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]\n\
        sum(one.ru_utime + one.ru_stime for one in used)";
    let limits = |cpu_millis| v1::Limits { cpu_millis, ..v1::Limits::default() };
    let session = worker.create_session(limits(200));
    let used: f64 = worker.python(&session, burn).value().parse().unwrap();
    // A fifth of 1.5 s, a period more at either end, and what the interpreter had used before.
    assert!((0.05..0.7).contains(&used), "{used} s of a processor");

    let grant = v1::SessionGrant {
        session_id: session.clone(),
        fence: worker::fence(),
        limits: Some(limits(0)),
        ..v1::SessionGrant::default()
    };
    worker.link.send(to_host::Message::SessionCreate(grant));
    worker.link.session_update(&session);
    let free: f64 = worker.python(&session, burn).value().parse().unwrap();
    assert!(free > 2.0 * used, "{free} s after the limit was taken away, {used} s before");
}

/// A disk of its own for a worker, which goes with it.
struct Disk(tempfile::TempDir);

impl Disk {
    fn of(bytes: u64) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={bytes},mode=0711");
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(dir.path()).stderr(std::process::Stdio::null());
        let mounted = mount.status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(dir))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: processes of the worker may still be on their way out.
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

fn a_disk_that_gets_full_ends_who_fills_it_alone() {
    let Some(disk) = Disk::of(512 << 20) else {
        return println!("left out: nothing may be mounted here");
    };
    let mut worker = Worker::start_on(disk.0.path(), &[]);
    let neighbour = worker.create_session(v1::Limits::default());
    worker.python(&neighbour, "kept = 42");
    let session = worker.create_session(v1::Limits { disk_bytes: 4 << 30, ..v1::Limits::default() });
    // Removed and open still: in no count of its files.
    let hidden = "import os, time\nbig = open('big', 'wb')\nos.remove('big')\nwhile True:\n    \
        big.write(bytes(4 << 20))\n    big.flush()\n    time.sleep(0.01)";
    let done = worker.python(&session, hidden);
    assert_eq!(done.error(), "disk_quota", "{:?}", done.outcome.error);
    let said = done.outcome.error.map(|error| error.message).unwrap_or_default();
    assert!(said.contains("nearly full"), "{said}");
    // Its file is gone with its interpreter, and there is room again: for both.
    assert_eq!(worker.python(&neighbour, "kept").value(), "42");
    let small = "open('small', 'wb').write(bytes(1 << 20))";
    assert_eq!(worker.python(&neighbour, small).value(), (1 << 20).to_string());
    assert_eq!(worker.python(&session, small).value(), (1 << 20).to_string());
}

fn a_session_granted_again_keeps_its_uid_and_gets_its_limits() {
    let mut worker = Worker::start();
    let session = worker.create_session(v1::Limits::default());
    let before = worker.shell(&session, &["id", "-u"], b"").out();
    let limits = v1::Limits { processes_max: 20, memory_bytes: 128 << 20, ..v1::Limits::default() };
    let grant = v1::SessionGrant {
        session_id: session.clone(),
        fence: worker::fence(),
        limits: Some(limits),
        ..v1::SessionGrant::default()
    };
    worker.link.send(to_host::Message::SessionCreate(grant));
    worker.link.session_update(&session);
    assert_eq!(worker.shell(&session, &["id", "-u"], b"").out(), before);
    if worker.hello.facilities.iter().any(|name| name == "cgroup:memory") {
        let done = worker.python(&session, "held = b'x' * (1 << 30)");
        assert_eq!((done.error(), done.outcome.oom), ("memory_limit", true), "{:?}", done.outcome.exception);
    }
}
