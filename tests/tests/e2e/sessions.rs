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
        "PATH",
        "PYTHONUNBUFFERED",
        "TMPDIR",
        "VIRTUAL_ENV",
    ];
    for seen in [cooper.exec(&session, code), cooper.ok(["sh", "-n", &session, "--", "env"])] {
        let mut names: Vec<&str> =
            seen.lines().filter_map(|line| line.split_once('=')).map(|pair| pair.0).collect();
        names.sort_unstable();
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
    let installed = cooper.run(["pip", &with, "six"]).expect(0);
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
    let failed = cooper.run(["pip", &session, "no-such-package-of-cooper==0.0.1", "--timeout", "60s"]);
    assert_ne!(failed.status, 0);
    assert!(failed.err().contains("no-such-package-of-cooper"), "{failed}");
    assert_eq!(failed.error_line().0, "install_failed");
    let option = cooper.run(["pip", &session, "--", "--index-url=http://127.0.0.1:1"]).expect(125);
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
