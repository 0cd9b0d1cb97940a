//! Templates: built once, versioned, in stock.

use cooper_tests::{Scratch, Setup, fleet::Fleet, seconds, shared};
use serde_json::Value;

fn recipe(directory: &Scratch, more: &str) -> String {
    directory.write("seed.csv", "a,b\n1,2\n");
    let text = format!(
        "packages = [\"six\"]\nwarm_up = \"import six; seed = open('data/seed.csv').read()\"\n{more}\n\
         [env]\nKIND = \"templated\"\n\n[labels]\nteam = \"blue\"\n\n[limits]\nexec_timeout = \"10m\"\n\n\
         [files]\n\"data/seed.csv\" = {{ from = \"seed.csv\" }}\n\"bin/hello\" = {{ content = \"#!/bin/sh\\necho hello\\n\", mode = 0o755 }}\n"
    );
    directory.write("recipe.toml", text).to_string_lossy().into_owned()
}

#[test]
fn sessions_of_a_template_begin_with_its_packages_files_environment_and_warm_up() {
    let (cooper, directory) = (shared().cooper(), Scratch::new("template"));
    let file = recipe(&directory, "");
    assert_eq!(cooper.ok(["template", "build", &file, "--name", "begun"]), "begun@1");
    let session =
        cooper.json(["session", "create", "--template", "begun", "--label", "own=1", "--env", "MORE=yes"]);
    assert_eq!(session["template"], "begun@1");
    assert_eq!(session["labels"], serde_json::json!({"team": "blue", "own": "1"}));
    assert_eq!(session["limits"]["exec_timeout_ms"], 600_000);
    let id = session["session_id"].as_str().expect("an id");
    let code = "import os; print(six.__name__, repr(seed), os.environ['KIND'], os.environ['MORE'])";
    assert_eq!(cooper.exec(id, code), "six 'a,b\\n1,2\\n' templated yes");
    assert_eq!(cooper.ok(["sh", id, "--", "bin/hello"]), "hello");
    // The next version changes nothing for those that are there.
    assert_eq!(cooper.ok(["template", "build", &file, "--name", "begun"]), "begun@2");
    let old = cooper.json(["session", "create", "--template", "begun@1"]);
    let new = cooper.json(["session", "create", "--template", "begun"]);
    assert_eq!((&old["template"], &new["template"]), (&Value::from("begun@1"), &Value::from("begun@2")));
    let listed = cooper.json(["template", "list", "begun"]);
    let versions: Vec<_> =
        listed["templates"].as_array().expect("a list").iter().map(|t| t["version"].clone()).collect();
    assert_eq!(versions, [2, 1]);
    cooper.ok(["template", "rm", "begun@1"]);
    let gone = cooper.error(["session", "create", "--template", "begun@1"]);
    assert_eq!(gone.code, "template_not_found");
    assert_eq!(cooper.exec(id, "print(six.__name__)"), "six", "what was made of it goes on");
    cooper.ok(["template", "rm", "begun"]);
    assert_eq!(cooper.error(["template", "show", "begun"]).code, "template_not_found");
    assert_eq!(
        cooper.ok(["template", "build", &file, "--name", "begun"]),
        "begun@3",
        "no number is given twice"
    );
}

#[test]
fn a_recipe_that_does_not_work_leaves_no_version_and_no_session() {
    let (cooper, directory) = (shared().cooper(), Scratch::new("template"));
    let write = |text: &str| directory.write("bad.toml", text).to_string_lossy().into_owned();
    let build = |text: &str| cooper.error(["template", "build", &write(text), "--name", "bad"]).code;
    assert_eq!(build("warm_up = \"1 / 0\""), "template_failed");
    assert_eq!(build("packages = [\"no-such-package-of-cooper==0.0.1\"]"), "install_failed");
    assert_eq!(build("[files]\n\"../out\" = { content = \"x\" }"), "path_escapes");
    assert_eq!(build("unknown = 1"), "invalid_argument");
    assert_eq!(build("[files]\n\"a\" = { from = \"missing\" }"), "invalid_argument");
    assert_eq!(build("spares = 17"), "invalid_argument");
    assert_eq!(cooper.error(["template", "show", "bad"]).code, "template_not_found");
    let left = cooper.json(["session", "list", "--label", "cooper.template=bad"]);
    assert_eq!(left["sessions"].as_array().map(Vec::len), Some(0), "{left}");
}

#[test]
fn spares_are_kept_in_stock_taken_warm_and_refilled() {
    let cluster = Setup::python().start();
    let (cooper, directory) = (cluster.cooper(), Scratch::new("template"));
    let file = recipe(&directory, "spares = 2");
    cooper.ok(["template", "build", &file, "--name", "stocked"]);
    let stocked = || {
        cooper.until_json("two spares", seconds(60), &["template", "show", "stocked"], |t| {
            t["spares_ready"] == 2
        })
    };
    stocked();
    assert_eq!(
        cooper.json(["session", "list"])["sessions"].as_array().map(Vec::len),
        Some(0),
        "nobody's yet"
    );
    let taken = cooper.json(["session", "create", "--template", "stocked", "--name", "mine", "--ttl", "1h"]);
    assert!(taken["expires_at_ms"].as_i64().is_some_and(|at| at > 0));
    let id = taken["session_id"].as_str().expect("an id");
    // The warm-up is not run for it now: it was.
    let tasks = cooper.json(["tasks", "list", "--session", id]);
    assert_eq!(tasks["tasks"].as_array().map(Vec::len), Some(1), "{tasks}");
    assert!(tasks["tasks"][0]["created_at_ms"].as_i64() < taken["updated_at_ms"].as_i64());
    assert_eq!(cooper.exec("mine", "print(six.__name__, len(seed))"), "six 8");
    stocked();
    // Two creates at once get two sessions.
    let one = cooper.ok(["session", "create", "--template", "stocked"]);
    let other = cooper.ok(["session", "create", "--template", "stocked"]);
    assert_ne!(one, other);
    // What differs from the template is made anew.
    let other = cooper.ok(["session", "create", "--template", "stocked", "--env", "KIND=other"]);
    assert_eq!(cooper.exec(&other, "import os; print(os.environ['KIND'], six.__name__)"), "other six");
    cooper.ok(["template", "rm", "stocked"]);
    cooper.until_json("no spare", seconds(30), &["session", "list", "--all"], |list| {
        let list = list["sessions"].as_array().expect("a list");
        list.iter().all(|session| session["spare"] == false || session["state"] == "destroyed")
    });
}

/// What a session says of a package's file: where its bytes are, and every way to change them that works.
const LOOK_AND_TOUCH: &str = "
import os, six
def works(change):
    try:
        change()
        return True
    except PermissionError:
        return False
touched = [name for name, change in dict(
    write=lambda: open(six.__file__, 'a').close(),
    mode=lambda: os.chmod(six.__file__, 0o666),
    time=lambda: os.utime(six.__file__, (1, 1)),
    cut=lambda: os.truncate(six.__file__, 0),
    link=lambda: os.link(six.__file__, 'mine'),
).items() if works(change)]
found = os.stat(six.__file__)
print(found.st_dev, found.st_ino, touched)
";

/// Needs sessions with uids, as where the tests run as root.
#[test]
fn sessions_of_one_template_share_the_bytes_of_its_packages_and_none_changes_what_another_has() {
    let (mut fleet, directory) = (Fleet::new(), Scratch::new("template"));
    fleet.start_coordinator();
    fleet.start_worker("left");
    fleet.await_registered(0);
    let cooper = fleet.cooper();
    let file = recipe(&directory, "");
    cooper.ok(["template", "build", &file, "--name", "lent"]);
    let create = || {
        let made = cooper.json(["session", "create", "--template", "lent"]);
        made["session_id"].as_str().expect("an id").to_owned()
    };
    let [one, two] = [create(), create()];
    let seen = [&one, &two].map(|id| cooper.exec(id, LOOK_AND_TOUCH));
    assert_eq!(seen[0], seen[1], "one file");
    assert!(seen[0].ends_with(" []"), "it can be changed: {}", seen[0]);

    // What one installs or removes is its own affair.
    cooper.ok(["packages", "install", &one, "six==1.15.0"]);
    cooper.ok(["packages", "install", &two, "idna"]);
    let version = "import importlib.metadata as m; print(m.version('six'))";
    assert_eq!(cooper.exec(&one, version), "1.15.0");
    let usual = cooper.exec(&two, version);
    assert_ne!(usual, "1.15.0");
    // A worker of these tests has room for two.
    cooper.ok(["session", "destroy", &one]);
    let three = create();
    assert_eq!(cooper.exec(&three, version), usual);
    assert_eq!(cooper.exec(&three, LOOK_AND_TOUCH), seen[0], "it is still lent");
    assert_eq!(
        cooper.exec(&three, "import os; os.remove(six.__file__); os.path.exists(six.__file__)"),
        "False"
    );
    cooper.ok(["session", "destroy", &two]);
    let four = create();
    assert_eq!(cooper.exec(&four, LOOK_AND_TOUCH), seen[0], "to those who did not remove it");

    // What is saved is whole: it goes on without the template, on a worker that never had it.
    let saved = cooper.json(["checkpoint", "create", &four]);
    cooper.ok(["template", "rm", "lent"]);
    fleet.start_worker("right");
    fleet.await_registered(1);
    cooper.ok(["drain", "left", "--deadline", "0s", "--wait"]);
    let saved = saved["checkpoint_id"].as_str().expect("an id");
    let restored = cooper.json(["checkpoint", "restore", saved]);
    assert_eq!(restored["worker_id"], "right");
    let id = restored["session_id"].as_str().expect("an id");
    assert_eq!(cooper.exec(id, version), usual);
}
