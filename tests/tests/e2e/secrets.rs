//! Secrets: set once by a tenant, files of the sessions that ask for them, and nowhere else.

mod inject;

use std::{fs, path::Path};

use cooper_tests::{Cooper, fleet::Fleet, program::Finished, seconds};

use super::repair::text;

const VALUE: &str = "v4lue-of-a-secret-that-is-nowhere";
const READ: &str = "import os; print(open(os.environ['COOPER_SECRETS'] + '/API_KEY').read() == 'v4lue-of-' + 'a-secret-that-is-nowhere')";

/// Files beneath that hold the value in plain, but for those that the session reads it from.
fn in_plain(dir: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().expect("a kind"));
        if kind.is_dir() && entry.file_name() != "secrets" {
            in_plain(&path, found);
        } else if kind.is_file() && holds(&fs::read(&path).unwrap_or_default()) {
            found.push(path.display().to_string());
        }
    }
}

fn holds(bytes: &[u8]) -> bool {
    bytes.windows(VALUE.len()).any(|part| part == VALUE.as_bytes())
}

#[track_caller]
fn says_nothing(done: &Finished) {
    assert!(!holds(&done.stdout) && !holds(&done.stderr), "{done}");
}

#[test]
fn a_secret_is_a_file_of_the_sessions_that_ask_for_it_wherever_they_go_and_nowhere_else() {
    let logged = "info,cooper=trace,cooper_coordinator=trace,cooper_worker=trace";
    let mut fleet = Fleet::new().env("LOG_LEVEL", logged);
    fleet.start_coordinator();
    fleet.start_worker_in("left", &[("LOG_LEVEL", logged)]);
    fleet.await_registered(0);
    let cooper = fleet.cooper();
    let file = fleet.scratch.write("secrets/value", VALUE);
    let file = file.to_string_lossy();
    says_nothing(&cooper.run(["secret", "set", "API_KEY", "--from-file", &file]).expect(0));
    says_nothing(&cooper.run_with(["secret", "set", "OTHER"], VALUE.as_bytes()).expect(0));
    let listed = cooper.run(["--json", "secret", "list"]).expect(0);
    says_nothing(&listed);
    let names: Vec<_> = listed.json()["secrets"].as_array().expect("a list").clone();
    assert_eq!(names.iter().map(|it| text(it, "name")).collect::<Vec<_>>(), ["API_KEY", "OTHER"]);

    let made = cooper.run(["--json", "session", "create", "--name", "has", "--secret", "API_KEY"]).expect(0);
    says_nothing(&made);
    assert_eq!(made.json()["secrets"], serde_json::json!(["API_KEY"]));
    let has_not = cooper.session();
    assert_eq!(cooper.exec("has", READ), "True");
    assert_eq!(cooper.ok(["sh", "-n", "has", "--", "sh", "-c", "ls $COOPER_SECRETS"]), "API_KEY");
    assert_eq!(cooper.exec(&has_not, "import os; print('COOPER_SECRETS' in os.environ)"), "False");
    cooper.ok(["session", "destroy", &has_not]);
    let unknown = cooper.error(["session", "create", "--secret", "API_KEX"]);
    assert_eq!(unknown.code, "secret_not_found");

    // Another tenant has none of that name, and those who only run code change none.
    let token = |tenant: &str, scope: &str| {
        let args = ["token", "create", "--tenant", tenant, "--scope", scope];
        Cooper::with_token(&fleet.url(), &cooper.ok(args))
    };
    let stranger = token("tenant-b", "operator");
    assert_eq!(stranger.json(["secret", "list"])["secrets"], serde_json::json!([]));
    assert_eq!(stranger.error(["session", "create", "--secret", "API_KEY"]).code, unknown.code);
    assert_eq!(stranger.error(["secret", "rm", "API_KEY"]).code, unknown.code);
    let client = token("default", "client");
    assert_eq!(client.error(["secret", "rm", "API_KEY"]).code, "forbidden");
    assert_eq!(client.run_with(["--json", "secret", "set", "API_KEY"], b"mine").error().code, "forbidden");

    // Saved, and made anew from that; the archive is among the files that are looked through below.
    let saved = cooper.ok(["checkpoint", "create", "has", "--globals"]);
    let restored = cooper.ok(["checkpoint", "restore", &saved]);
    assert_eq!(cooper.exec(&restored, READ), "True");
    cooper.ok(["session", "destroy", &restored]);

    // On another worker, on whose coming the first is emptied.
    fleet.start_worker_in("right", &[("LOG_LEVEL", logged)]);
    fleet.await_registered(1);
    let own = |worker: &str| fleet.scratch.join(worker).join("worker/sessions");
    cooper.ok(["drain", "left", "--checkpoint", "--deadline", "60s"]);
    cooper.until_json("that it moved", seconds(60), &["session", "show", "has"], |it| {
        it["worker_id"] == "right" && it["state"] == "ready"
    });
    assert_eq!(cooper.exec("has", READ), "True");
    cooper_tests::wait::until_true("that the first worker has nothing of it", seconds(20), || {
        fs::read_dir(own("left"))
            .expect("it is there")
            .flatten()
            .all(|it| !it.path().join("secrets/API_KEY").exists())
    });

    // Asleep it is nowhere on a worker; awake it has it again.
    let create = ["session", "create", "--name", "sleepy", "--secret", "API_KEY", "--hibernate-after", "1s"];
    let sleepy = cooper.ok(create);
    assert_eq!(cooper.exec("sleepy", READ), "True");
    let show = ["session", "show", "sleepy"];
    cooper.until_json("that it hibernates", seconds(30), &show, |it| it["hibernated"] == true);
    let gone = || !own("right").join(&sleepy).exists();
    cooper_tests::wait::until_true("that its files are gone", seconds(20), gone);
    assert_eq!(cooper.exec("sleepy", READ), "True");
    cooper.ok(["session", "destroy", "sleepy"]);

    // Another value comes with the next grant, and so does its absence.
    says_nothing(&cooper.run_with(["secret", "set", "API_KEY"], b"another").expect(0));
    cooper.ok(["session", "update", "has", "--label", "a=b"]);
    let read = "print(open(os.environ['COOPER_SECRETS'] + '/API_KEY').read())";
    assert_eq!(cooper.exec("has", read), "another");
    cooper.ok(["secret", "rm", "API_KEY"]);
    cooper.ok(["session", "update", "has", "--label", "a=c"]);
    assert_eq!(cooper.exec("has", "print(os.listdir(os.environ['COOPER_SECRETS']))"), "[]");
    says_nothing(&cooper.run(["--json", "events"]).expect(0));
    let kinds: Vec<_> = cooper.json(["events"])["events"].as_array().expect("a list").clone();
    for kind in ["secret.set", "secret.deleted"] {
        assert!(kinds.iter().any(|event| event["kind"] == kind), "{kind}");
    }

    let backup = fleet.scratch.join("backup");
    cooper.ok(["store", "backup", &*backup.to_string_lossy()]);
    assert!(!backup.join("secrets.key").exists(), "who has a backup alone reads no secret");
    let mut found = Vec::new();
    in_plain(fleet.scratch.path(), &mut found);
    assert_eq!(found, [""; 0]);
    for index in [1, 0] {
        let said = fleet.end_worker(index, seconds(20));
        assert!(!said.err().is_empty() || !said.out().is_empty());
        says_nothing(&said);
    }
    fleet.stop();
}
