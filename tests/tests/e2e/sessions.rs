//! Sessions: made, listed, named, isolated, destroyed.

use cooper_tests::{seconds, shared};

#[test]
fn a_session_is_made_listed_shown_and_destroyed() {
    let cluster = shared();
    let cooper = cluster.cooper();
    let made = cooper.json(["session", "create", "--label", "team=blue"]);
    let id = made["session_id"].as_str().expect("an id");
    assert_eq!((&made["state"], &made["labels"]["team"]), (&"ready".into(), &"blue".into()));
    assert!(made["python_version"].as_str().is_some_and(|version| version.starts_with("3.")), "{made}");
    assert!(made["facilities"].as_array().is_some_and(|list| !list.is_empty()), "I11: {made}");
    let listed = |all: &str| {
        let args = ["session", "list", all];
        let list = cooper.json(args.into_iter().filter(|arg| !arg.is_empty()));
        list["sessions"].as_array().expect("a list").iter().any(|session| session["session_id"] == id)
    };
    assert!(listed(""));
    assert_eq!(cooper.json(["session", "show", id])["session_id"], id);
    let dir = cluster.data.join("worker/sessions");
    let holds = || {
        std::fs::read_dir(&dir)
            .expect("sessions")
            .filter_map(Result::ok)
            .any(|entry| entry.file_name().to_string_lossy().contains(id))
    };
    assert!(holds(), "its files are in {}", dir.display());

    assert_eq!(cooper.json(["session", "destroy", id])["state"], "destroyed");
    assert!(!listed("") && listed("--all"));
    assert!(!holds(), "its files are gone");
    assert_eq!(cooper.json(["session", "destroy", id])["state"], "destroyed", "twice is as good as once");
    let ended = cooper.run(["exec", id, "-c", "1"]).expect(125);
    assert_eq!(ended.error_line().0, "session_ended");
}

#[test]
fn a_name_serves_as_an_id_and_belongs_to_one_live_session() {
    let cooper = shared().cooper();
    let id = cooper.ok(["session", "create", "--name", "one-name"]);
    assert_eq!(cooper.exec("one-name", "print('by name')"), "by name");
    assert_eq!(cooper.json(["session", "show", "one-name"])["session_id"], id.as_str());
    let taken = cooper.error(["session", "create", "--name", "one-name"]);
    assert_eq!((taken.status, taken.code.as_str()), (1, "name_taken"));
    cooper.ok(["session", "destroy", "one-name"]);
    let next = cooper.ok(["session", "create", "--name", "one-name"]);
    assert_ne!(next, id);
    for bad in ["Upper", "-x", "a b", "ä", &"x".repeat(64)] {
        let refused = cooper.error(["session", "create", &format!("--name={bad}")]);
        assert_eq!(refused.code, "invalid_argument", "{bad}");
    }
}

#[test]
fn a_session_sees_nothing_of_the_workers_environment() {
    let cooper = shared().cooper();
    let session = cooper.ok(["session", "create", "--env", "MINE=yes"]);
    let code = "import os\nfor name, value in os.environ.items(): print(f'{name}={value}')";
    let own = [
        "COOPER_HOST_DIR",
        "COOPER_SESSION",
        "HOME",
        "LANG",
        "MINE",
        "MPLBACKEND",
        "PATH",
        "PYTHONUNBUFFERED",
        "TMPDIR",
        "VIRTUAL_ENV",
    ];
    for seen in [cooper.exec(&session, code), cooper.ok(["sh", "-n", &session, "--", "env"])] {
        let mut names: Vec<&str> =
            seen.lines().filter_map(|line| line.split_once('=')).map(|pair| pair.0).collect();
        names.sort_unstable();
        // How programs find the proxy and the package index: as this machine's own settings are, and nothing secret.
        let is_way = |name: &str| {
            name.to_ascii_uppercase().ends_with("_PROXY")
                || name.starts_with("PIP_")
                || name.contains("_CERT_")
        };
        names.retain(|name| !is_way(name) && !name.ends_with("CA_BUNDLE"));
        assert_eq!(names, own, "{seen}");
        assert!(seen.contains("MINE=yes") && !seen.contains("secret of the worker's"), "{seen}");
        let home = seen.lines().find_map(|line| line.strip_prefix("HOME=")).expect("a home");
        assert!(home.ends_with(&format!("{session}/workspace")), "{home}");
    }
}

#[test]
fn packages_of_one_session_are_not_there_for_another() {
    let cooper = shared().cooper();
    let (with, without) = (cooper.session(), cooper.session());
    let installed = cooper.run(["packages", "install", &with, "six"]).expect(0);
    assert_eq!(installed.out(), "", "quiet when it works\n{installed}");
    assert_eq!(cooper.exec(&with, "import six; print(six.__name__)"), "six");
    assert_eq!(cooper.ok(["sh", "-n", &with, "--", "python", "-c", "import six; print('too')"]), "too");
    let absent = cooper.run(["exec", &without, "-c", "import six"]).expect(1);
    assert!(absent.err().contains("ModuleNotFoundError"), "{absent}");
}

#[test]
fn a_failed_install_says_why_with_a_code() {
    let cooper = shared().cooper();
    let session = cooper.session();
    let failed =
        cooper.run(["packages", "install", &session, "no-such-package-of-cooper==0.0.1", "--timeout", "60s"]);
    assert_ne!(failed.status, 0);
    assert!(failed.err().contains("no-such-package-of-cooper"), "{failed}");
    assert_eq!(failed.error_line().0, "install_failed");
    let option =
        cooper.run(["packages", "install", &session, "--", "--index-url=http://127.0.0.1:1"]).expect(125);
    assert_eq!(option.error_line().0, "invalid_argument");
    assert_eq!(cooper.exec(&session, "print('still fine')"), "still fine");
}

#[test]
fn destroying_a_session_ends_what_runs_in_it() {
    let cluster = shared();
    let cooper = cluster.cooper();
    let session = cooper.session();
    let code = "import os, time; print(os.getpid(), flush=True)\ntime.sleep(1000)";
    let mut busy = cooper.start(["exec", &session, "-c", code], b"");
    let pid: i32 = busy.await_said("its pid", seconds(20), |busy| busy.stdout().trim().parse().ok());
    assert_eq!(cooper.json(["session", "show", &session])["active_executions"], 1);
    cooper.ok(["session", "destroy", &session]);
    assert!(!cooper_tests::processes::is_alive(pid), "answered once it is destroyed");
    let end = busy.finish(seconds(10));
    assert!([125, 130, 137].contains(&end.status), "{end}");
}

#[test]
fn a_session_ends_with_its_time_and_says_so_and_can_be_extended_before() {
    let cooper = shared().cooper();
    let short = cooper.ok(["session", "create", "--ttl", "1500ms"]);
    let kept = cooper.json(["session", "create", "--ttl", "1500ms"]);
    assert!(
        kept["expires_at_ms"].as_i64().is_some_and(|at| at > kept["created_at_ms"].as_i64().unwrap_or(0))
    );
    let kept = kept["session_id"].as_str().expect("an id");
    let idle = cooper.ok(["session", "create", "--idle-timeout", "1s"]);
    cooper.ok(["session", "extend", kept, "1h"]);
    let ended = |id: &str, code: &str| {
        let session =
            cooper.until_json("the end of a session", seconds(20), &["session", "show", id], |session| {
                session["state"] == "destroyed"
            });
        assert_eq!(session["error"]["code"], code, "{session}");
        assert_eq!(cooper.run(["exec", id, "-c", "1"]).expect(125).error_line().0, "session_ended");
    };
    ended(&short, "session_expired");
    ended(&idle, "session_idle");
    assert_eq!(cooper.exec(kept, "print(1)"), "1");
    cooper.ok(["session", "extend", kept, "never"]);
    assert_eq!(cooper.json(["session", "show", kept])["expires_at_ms"], 0);
}

#[test]
fn labels_limits_and_notes_of_a_live_session_change_and_lists_follow() {
    let cooper = shared().cooper();
    let id =
        cooper.ok(["session", "create", "--label", "who=me", "--label", "old=1", "--metadata", "ticket=7"]);
    let other = cooper.ok(["session", "create", "--label", "who=me"]);
    cooper.exec(&id, "x = 1");
    let args =
        ["session", "update", &id, "--label", "new=2", "--remove-label", "old", "--metadata", "by=ann"];
    let more = ["--memory", "2G", "--exec-timeout", "400ms"];
    let session = cooper.json(args.into_iter().chain(more));
    assert_eq!(session["labels"], serde_json::json!({"who": "me", "new": "2"}));
    assert_eq!(session["metadata"], serde_json::json!({"ticket": "7", "by": "ann"}));
    assert_eq!(session["limits"]["memory_bytes"], 2_u64 << 30);
    assert_eq!(cooper.exec(&id, "print(x)"), "1", "the interpreter stays");
    let slow = cooper.run(["exec", &id, "-c", "import time; time.sleep(60)"]);
    assert_eq!(slow.error_line().0, "timed_out", "the limit holds for what is submitted from now on");
    let listed = |filter: &[&str]| {
        let list = cooper.json(["session", "list"].into_iter().chain(filter.iter().copied()));
        let list = list["sessions"].as_array().expect("a list").clone();
        list.iter()
            .map(|session| session["session_id"].as_str().expect("an id").to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(listed(&["--label", "who=me"]), [other.clone(), id.clone()]);
    assert_eq!(listed(&["--label", "who=me", "--label", "new=2"]), std::slice::from_ref(&id));
    assert!(listed(&["--label", "old=1"]).is_empty());
    cooper.ok(["session", "destroy", &other]);
    assert_eq!(listed(&["--label", "who=me", "--state", "destroyed"]), std::slice::from_ref(&other));
    let refused = cooper.error(["session", "update", &other, "--label", "a=b"]);
    assert_eq!(refused.code, "session_ended");
    let bad = cooper.error(["session", "update", &id, "--metadata", &format!("a={}", "x".repeat(17 << 10))]);
    assert_eq!(bad.code, "too_large");
}

#[test]
fn a_session_is_created_with_its_packages_or_not_at_all() {
    let cooper = shared().cooper();
    let made = cooper.ok(["session", "create", "--package", "six"]);
    assert_eq!(cooper.exec(&made, "import six; print(six.__name__)"), "six");
    let refused = cooper.error([
        "session",
        "create",
        "--name",
        "no-such-package",
        "--package",
        "no-such-package-of-cooper==0.0.1",
    ]);
    assert_eq!(refused.code, "install_failed");
    assert_eq!(cooper.error(["session", "show", "no-such-package"]).code, "session_not_found");
    let option = cooper.error(["session", "create", "--package=--index-url=file:///"]);
    assert_eq!(option.code, "invalid_argument");
}

#[test]
fn doctor_says_what_would_confine_sessions_and_whether_they_are_taken() {
    let nowhere = tempfile::tempdir().expect("a directory");
    let cooper = cooper_tests::Cooper::at(nowhere.path());
    let (status, said) = cooper.run_json(["doctor", "--min-tier", "unconfined"]);
    assert!(said["facilities"].as_array().is_some_and(|list| !list.is_empty()), "{said}");
    assert_eq!((status, &said["takes_sessions"]), (0, &serde_json::json!(true)), "{said}");
    let (status, said) = cooper.run_json(["doctor", "--mask-facilities", "seccomp"]);
    assert_eq!((status, said["tier"].as_str()), (1, Some("unconfined")), "{said}");
    assert!(said["next"].as_str().is_some_and(|next| next.contains("seccomp")), "{said}");
}
