//! Sessions that are saved, made anew from what was saved, and moved from worker to worker.

use cooper_tests::{Cooper, fleet::Fleet, seconds};

use super::repair::text;

/// What a session has to have after a restore, said in one line.
const LOOK: &str = "
import os, subprocess, sys
script = subprocess.run(['greet'], capture_output=True, text=True).stdout.strip()
import greeting
print(open('data.txt').read(), os.readlink('link'), oct(os.stat('tool').st_mode & 0o7777),
      os.stat('a').st_ino == os.stat('b').st_ino, os.path.exists('fifo'), script == sys.executable, greeting.word)
";

const SEEN: &str = "kept data.txt 0o751 True False True hello";

/// Files of every kind, a package and a script of the venv.
const MAKE: &str = "
import os, sys, site
open('data.txt', 'w').write('kept')
os.symlink('data.txt', 'link')
open('tool', 'w').write('#!/bin/sh\\n'); os.chmod('tool', 0o751)
open('a', 'w').write('same'); os.link('a', 'b')
os.mkfifo('fifo')
open(site.getsitepackages()[0] + '/greeting.py', 'w').write('word = \"hello\"')
script = os.path.dirname(sys.executable) + '/greet'
open(script, 'w').write('#!' + sys.executable + '\\nimport sys; print(sys.executable)\\n'); os.chmod(script, 0o755)
";

fn session(cooper: &Cooper, id: &str) -> serde_json::Value {
    cooper.json(["session", "show", id])
}

#[test]
fn a_session_is_saved_and_a_new_one_on_another_worker_begins_where_it_was() {
    let (mut fleet, [left, right]) = Fleet::of_two();
    let cooper = fleet.cooper();
    cooper.exec(&left, MAKE);
    let saved = cooper.json(["checkpoint", "create", &left, "--name", "before"]);
    let id = text(&saved, "checkpoint_id").to_owned();
    assert_eq!((text(&saved, "session_id"), text(&saved, "name")), (left.as_str(), "before"));
    assert_eq!((&saved["skipped"], &saved["hard_links"]), (&serde_json::json!(["fifo"]), &1.into()));
    assert_eq!(text(&session(&cooper, &left), "state"), "ready");
    assert_eq!(cooper.exec(&left, "MAKE = 1; MAKE"), "1", "its interpreter goes on");

    // Of a session that is no more, on the other worker.
    cooper.ok(["session", "destroy", &left]);
    cooper.ok(["drain", "left", "--deadline", "0s", "--wait"]);
    let new = cooper.json(["checkpoint", "restore", &id, "--name", "again"]);
    let new_id = text(&new, "session_id").to_owned();
    assert_eq!((text(&new, "worker_id"), text(&new, "state")), ("right", "ready"));
    assert_eq!(cooper.exec("again", LOOK), SEEN);
    assert_ne!(new_id, right);
    assert_eq!(cooper.json(["checkpoint", "list", "--session", &left])["checkpoints"][0], saved);

    // Another tenant's is not there.
    let other = cooper.json(["token", "create", "--tenant", "other", "--scope", "client"]);
    let stranger = Cooper::with_token(&fleet.url(), text(&other, "secret"));
    for command in
        [["checkpoint", "show", &id], ["checkpoint", "restore", &id], ["checkpoint", "delete", &id]]
    {
        assert_eq!(stranger.error(command).code, "checkpoint_not_found");
    }

    // What was changed is not restored.
    let digest = text(&saved, "digest");
    let archive = fleet.scratch.join("coordinator/artifacts").join(&digest[..2]).join(digest);
    let mut bytes = std::fs::read(&archive).expect("the archive is there");
    bytes[1000] ^= 1;
    std::fs::write(&archive, bytes).expect("written");
    cooper.ok(["session", "destroy", "again"]);
    assert_eq!(cooper.error(["checkpoint", "restore", &id]).code, "checkpoint_damaged");
    cooper.ok(["checkpoint", "delete", &id]);
    assert_eq!(cooper.error(["checkpoint", "show", &id]).code, "checkpoint_not_found");
    fleet.stop();
}

#[test]
fn a_session_is_saved_before_it_is_destroyed_and_stays_when_it_cannot_be() {
    let mut fleet = Fleet::new().env("COOPER_QUOTA_CHECKPOINTS", "1");
    fleet.start_coordinator();
    fleet.start_worker("left");
    fleet.await_registered(0);
    let cooper = fleet.cooper();
    let (one, two) = (cooper.session(), cooper.session());
    cooper.exec(&one, "import os\nkept = 1\nopen('data.txt', 'w').write('kept')");
    let until_go = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)";
    let running = cooper.start(["--json", "exec", &one, "-c", until_go], b"");
    let list = ["tasks", "list", "--session", &one];
    cooper.until_json("that it runs", seconds(20), &list, |list| list["tasks"][0]["state"] == "running");
    let destroy = ["session", "destroy", "--checkpoint", "--wait", "300ms", &one];
    assert_eq!(cooper.error(destroy).code, "session_busy");
    assert_eq!(text(&session(&cooper, &one), "state"), "ready");
    cooper.ok(["sh", &one, "--", "touch", "go"]);
    running.finish(seconds(30)).expect(0);
    assert_eq!(cooper.exec(&one, "kept"), "1", "its interpreter goes on");

    // What waits behind it is not run in between: it would not be in the checkpoint.
    let destroyed = cooper.json(["session", "destroy", "--checkpoint", &one]);
    let id = text(&destroyed, "last_checkpoint_id");
    assert_eq!(text(&destroyed, "state"), "destroyed");
    assert_eq!(cooper.json(["session", "destroy", "--checkpoint", &one])["last_checkpoint_id"], id);
    assert_eq!(text(&cooper.json(["checkpoint", "show", id]), "session_id"), one);

    assert_eq!(cooper.error(["session", "destroy", "--checkpoint", &two]).code, "quota_exceeded");
    assert_eq!(cooper.exec(&two, "2"), "2");
    let again = cooper.ok(["checkpoint", "restore", id]);
    assert_eq!(cooper.exec(&again, "print(open('data.txt').read())"), "kept");
    fleet.stop();
}

/// Variables of every kind: shared, with code of their own, and such that cannot be saved.
const VARIABLES: &str = "
import collections, dataclasses, math, os, threading
import math as m
shared = [1, 2]
inside = {'shared': shared}
def factorial(n): return 1 if n < 2 else n * factorial(n - 1)
def counter():
    n = 0
    def count():
        nonlocal n
        n += 1
        return n
    return count
count = counter(); count()
class Base:
    def __init__(self, value): self.value = value
    @property
    def twice(self): return self.value * 2
class Derived(Base):
    def __init__(self, value): super().__init__(value + 1)
derived = Derived(4)
@dataclasses.dataclass
class Point:
    x: int
    tags: list = dataclasses.field(default_factory=list)
point = Point(1, shared)
Pair = collections.namedtuple('Pair', 'a b')
pair = Pair(1, 2)
file = open('mine', 'w')
lock = threading.Lock()
class Refuses:
    def __reduce__(self): raise ValueError('not me')
refuses = Refuses()
";

const VARIABLES_SEEN: &str = "
print(inside['shared'] is shared, point.tags is shared, factorial(5), count(), derived.twice, isinstance(derived, Base),
      Point(2), dataclasses.replace(point, x=9).x, pair._replace(b=7), m.pi == math.pi,
      [name for name in ('file', 'lock', 'refuses', 'Refuses') if name in globals()])
";

#[test]
fn variables_that_can_be_saved_come_back_in_another_session_and_the_others_are_listed() {
    let (mut fleet, [left, _]) = Fleet::of_two();
    let cooper = fleet.cooper();
    cooper.exec(&left, VARIABLES);
    let saved = cooper.json(["checkpoint", "create", &left, "--globals"]);
    let globals = &saved["globals"];
    let dropped: Vec<&str> =
        globals["dropped"].as_array().expect("a list").iter().map(|it| text(it, "name")).collect();
    assert_eq!((dropped, text(globals, "error")), (vec!["file", "lock", "refuses"], ""), "{globals:#}");
    assert!(text(&globals["dropped"][2], "reason").contains("not me"), "{globals:#}");
    assert_eq!(cooper.exec(&left, "count(), file.closed"), "(2, False)", "its interpreter goes on as it was");
    assert_eq!(cooper.exec(&left, "[n for n in os.listdir() if 'cooper' in n]"), "[]");

    cooper.ok(["drain", "left", "--deadline", "0s", "--wait"]);
    let new = cooper.json(["checkpoint", "restore", text(&saved, "checkpoint_id")]);
    let id = text(&new, "session_id");
    let seen = "True True 120 2 10 True Point(x=2, tags=[]) 9 Pair(a=1, b=7) True ['Refuses']";
    assert_eq!(cooper.exec(id, VARIABLES_SEEN), seen);
    assert_eq!((&new["globals"]["count"], text(&new["globals"], "error")), (&globals["count"], ""));
    assert_eq!(new["globals"]["dropped"], globals["dropped"], "who has it back is told what was left out");
    assert_eq!(cooper.exec(id, "[n for n in os.listdir() if 'cooper' in n]"), "[]");
    // Source lines come along too.
    let traceback = cooper.run(["exec", id, "-c", "factorial('x')"]);
    assert!(traceback.err().contains("def factorial(n)"), "{traceback}");
    // Without being asked for, none are saved.
    let plain = cooper.json(["checkpoint", "create", id]);
    assert!(plain["globals"].is_null(), "{plain:#}");
    fleet.stop();
}

/// What unpickling does happens in the sandbox of the new session, which outlives it.
#[test]
fn a_hostile_pickle_costs_the_variables_and_nothing_else() {
    let mut fleet = Fleet::new();
    fleet.start_coordinator();
    fleet.start_worker_in("left", &[("MAX_SESSIONS", "8")]);
    fleet.await_registered(0);
    let cooper = fleet.cooper();
    let neighbour = cooper.session();
    let secret = fleet.scratch.join("coordinator/admin.token");
    let cases = [
        ("dies", "(os._exit, (3,))".to_owned(), "ended while they were loaded"),
        ("hangs", "(time.sleep, (1000,))".to_owned(), "ended while they were loaded"),
        ("explodes", "(bytes, (1 << 40,))".to_owned(), "MemoryError"),
        ("raises", "(exec, ('raise SystemExit(3)',))".to_owned(), "SystemExit"),
        ("escapes", format!("(open, ({:?},))", secret.to_string_lossy()), "admin.token"),
    ];
    std::thread::scope(|scope| {
        for (name, reduced, why) in &cases {
            let cooper = &cooper;
            scope.spawn(move || {
                let session = cooper.session();
                let code = format!(
                    "import os, time\nopen('kept', 'w').write('yes')\nclass Hostile:\n    def __reduce__(self): return {reduced}\nit = Hostile(); fine = 1"
                );
                cooper.exec(&session, &code);
                let destroy = ["session", "destroy", "--checkpoint", "--globals", &session];
                let saved = cooper.json(destroy);
                let new = cooper.json(["checkpoint", "restore", text(&saved, "last_checkpoint_id")]);
                let id = text(&new, "session_id");
                let globals = &new["globals"];
                assert!(text(globals, "error").contains(why), "{name}: {globals:#}");
                assert_eq!(text(&new, "state"), "ready", "{name}");
                let look = "import os; print('fine' in globals(), open('kept').read(), [n for n in os.listdir() if 'cooper' in n])";
                assert_eq!(cooper.exec(id, look), "False yes []", "{name}");
                cooper.ok(["session", "destroy", id]);
            });
        }
    });
    assert_eq!(cooper.exec(&neighbour, "1 + 1"), "2");
    fleet.stop();
}

#[test]
fn a_variable_that_hangs_or_crashes_while_it_is_saved_is_left_out() {
    let (mut fleet, [left, right]) = Fleet::of_two();
    let cooper = fleet.cooper();
    let hangs =
        "import time\nclass Hangs:\n    def __reduce__(self): time.sleep(1000)\nit = Hangs(); fine = [1]";
    cooper.exec(&left, hangs);
    let saved = cooper.json(["checkpoint", "create", &left, "--globals"]);
    assert_eq!(text(&saved["globals"]["dropped"][0], "name"), "it", "{saved:#}");
    assert_eq!(cooper.exec(&left, "fine.append(2); fine"), "[1, 2]");
    let crashes = "import os\nclass Crashes:\n    def __reduce__(self): os.kill(os.getpid(), 11)\nit = Crashes(); fine = [1]";
    cooper.exec(&right, crashes);
    let saved = cooper.json(["checkpoint", "create", &right, "--globals"]);
    assert!(text(&saved["globals"], "error").contains("signal 11"), "{saved:#}");
    assert_eq!(
        cooper.exec(&right, "fine.append(2); fine"),
        "[1, 2]",
        "the fork crashed, not the interpreter"
    );
    fleet.stop();
}

#[test]
fn a_drain_with_checkpoints_moves_sessions_and_what_waits_in_them() {
    let (mut fleet, [left, _]) = Fleet::of_two();
    let cooper = fleet.cooper();
    cooper.exec(&left, MAKE);
    cooper.exec(&left, "variable = 1");
    let until_go = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)";
    let running = cooper.start(["--json", "exec", &left, "-c", until_go], b"");
    let list = ["tasks", "list", "--session", &left];
    cooper.until_json("that it runs", seconds(20), &list, |list| list["tasks"][0]["state"] == "running");
    let waiting = cooper.start(["drain", "left", "--checkpoint", "--wait", "--deadline", "5m"], b"");
    let show = ["session", "show", &left];
    cooper.until_json("that it is being saved", seconds(20), &show, |it| it["state"] == "checkpointing");
    // Taken, and executed where the session will be.
    let queued = cooper.start(["--json", "exec", &left, "-c", LOOK], b"");
    cooper.until_json("that it waits", seconds(20), &list, |list| {
        list["tasks"].as_array().map(Vec::len) >= Some(4)
    });
    let workspace = fleet.scratch.join("left/worker/sessions").join(&left).join("workspace");
    std::fs::write(workspace.join("go"), "").expect("written");
    running.finish(seconds(30)).expect(0);
    let looked = queued.finish(seconds(60)).expect(0).json();
    assert_eq!(text(&looked, "stdout").trim(), SEEN);
    waiting.finish(seconds(30)).expect(0);
    let moved = session(&cooper, &left);
    assert_eq!((text(&moved, "worker_id"), text(&moved, "state")), ("right", "ready"));
    let drained = cooper.json(["workers"]);
    let drained = drained["workers"].as_array().expect("a list").iter().find(|it| it["worker_id"] == "left");
    assert_eq!(drained.expect("it is there")["sessions"], 0);
    cooper_tests::wait::until_true("that its files are gone", seconds(20), || !workspace.exists());
    fleet.stop();
}

#[test]
fn a_session_that_moves_survives_kills_of_the_coordinator() {
    for failpoint in ["packed-before-kept=1", "restore-before-unpacked=1"] {
        let (mut fleet, [left, _]) = Fleet::of_two();
        let cooper = fleet.cooper();
        cooper.exec(&left, MAKE);
        fleet.end_coordinator();
        fleet.start_failing_coordinator(failpoint);
        let show = ["session", "show", &left];
        cooper.until_json("both workers", seconds(30), &["workers"], |list| {
            list["workers"].as_array().expect("a list").iter().all(|it| it["state"] == "ready")
        });
        cooper.ok(["drain", "left", "--checkpoint"]);
        fleet.await_dead_coordinator(seconds(30));
        fleet.start_coordinator();
        let moved = cooper.until_json("that it is moved", seconds(60), &show, |it| {
            it["state"] == "ready" && it["worker_id"] == "right"
        });
        assert_eq!(
            (&moved["interpreter_restarted"], text(&moved, "name")),
            (&true.into(), ""),
            "{failpoint}"
        );
        assert_eq!(cooper.exec(&left, LOOK), SEEN, "{failpoint}");
        fleet.stop();
    }
}

#[test]
fn a_session_that_moves_survives_kills_of_the_worker_that_it_leaves_and_of_the_one_that_takes_it() {
    for (victim, failpoint) in [("left", "sealed-before-packed=1"), ("right", "unpacked-before-ready=1")] {
        let mut fleet = Fleet::new();
        fleet.start_coordinator();
        let environment = |id: &str| if id == victim { vec![("FAILPOINTS", failpoint)] } else { Vec::new() };
        fleet.start_worker_in("left", &environment("left"));
        fleet.await_registered(0);
        let cooper = fleet.cooper();
        let session = cooper.session();
        cooper.exec(&session, MAKE);
        fleet.start_worker_in("right", &environment("right"));
        fleet.await_registered(1);
        cooper.ok(["drain", "left", "--checkpoint"]);
        fleet.await_dead_worker(if victim == "left" { 0 } else { 1 }, seconds(30));
        if victim == "left" {
            let home = fleet.scratch.join("left/worker/sessions").join(&session);
            let record = std::fs::read(home.join("session.json")).expect("the session is there");
            let record: serde_json::Value = serde_json::from_slice(&record).expect("JSON");
            assert_eq!(record["sealed"], true, "whatever host is the next finds it closed");
        }
        // What is submitted now must be where the session goes on, and nothing may be written where it was.
        let queued = cooper.start(["--json", "exec", &session, "-c", LOOK], b"");
        fleet.start_worker(victim);
        let show = ["session", "show", &session];
        cooper.until_json("that it is moved", seconds(60), &show, |it| {
            it["state"] == "ready" && it["worker_id"] == "right"
        });
        assert_eq!(text(&queued.finish(seconds(60)).expect(0).json(), "stdout").trim(), SEEN, "{victim}");
        fleet.stop();
    }
}

#[test]
fn a_worker_that_is_told_to_stop_hands_its_sessions_over_where_that_is_asked_for() {
    let mut fleet = Fleet::new();
    fleet.start_coordinator();
    fleet.start_worker_in("left", &[("COOPER_DRAIN_CHECKPOINT", "on")]);
    fleet.await_registered(0);
    let cooper = fleet.cooper();
    let session = cooper.session();
    fleet.start_worker("right");
    fleet.await_registered(1);
    cooper.exec(&session, MAKE);
    let code = "import time\nprint('on', flush=True)\ntime.sleep(1)\nopen('last', 'w').write('said')\n'done'";
    let running = cooper.start(["--json", "exec", &session, "-c", code], b"");
    let list = ["tasks", "list", "--session", &session];
    cooper.until_json("that it runs", seconds(20), &list, |list| list["tasks"][0]["state"] == "running");
    fleet.end_worker(0, seconds(60));
    assert_eq!(
        text(&running.finish(seconds(10)).expect(0).json(), "state"),
        "succeeded",
        "what ran has ended"
    );
    let moved = cooper.until_json("the session", seconds(30), &["session", "show", &session], |it| {
        it["state"] == "ready" && it["worker_id"] == "right"
    });
    assert_eq!(moved["interpreter_restarted"], true);
    assert_eq!(cooper.exec(&session, LOOK), SEEN);
    assert_eq!(cooper.exec(&session, "print(open('last').read())"), "said");
    fleet.stop();
}
