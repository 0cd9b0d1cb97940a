//! Sessions name the Python they run on, and keep it.

use std::{env, fs, path::PathBuf};

use cooper_tests::{Scratch, fleet::Fleet, seconds};

use super::repair::text;

const WHICH: &str = "import sys; '%d.%d.%d' % sys.version_info[:3]";

fn minor(version: &str) -> &str {
    version.rsplit_once('.').map_or(version, |(minor, _)| minor)
}

/// PATH, and then where version managers put theirs.
fn path() -> String {
    let home = PathBuf::from(env::var_os("HOME").unwrap_or_default());
    let mut path: Vec<PathBuf> = env::split_paths(&env::var_os("PATH").unwrap_or_default()).collect();
    for versions in [".pyenv/versions", ".local/share/uv/python"] {
        let there = fs::read_dir(home.join(versions)).into_iter().flatten().flatten();
        path.extend(there.map(|version| version.path().join("bin")));
    }
    env::join_paths(path).unwrap_or_default().to_string_lossy().into_owned()
}

#[test]
fn a_session_gets_the_python_it_names_and_keeps_it_when_it_is_saved_moved_and_made_again() {
    let mut fleet = Fleet::new();
    fleet.start_coordinator();
    fleet.start_worker_in("all", &[("COOPER_PYTHON", "auto"), ("PATH", &path()), ("MAX_SESSIONS", "20")]);
    fleet.await_registered(0);
    let cooper = fleet.cooper();
    let workers = cooper.json(["workers"]);
    let offered: Vec<String> =
        serde_json::from_value(workers["workers"][0]["python_versions"].clone()).unwrap();
    let first = offered[0].clone();
    assert_eq!(cooper.error(["session", "create", "--python", "three"]).code, "invalid_argument");
    let nobody = cooper.error(["session", "create", "--python", "3.999"]);
    assert_eq!(nobody.code, "no_worker");
    assert!(nobody.message.contains(&first), "{}", nobody.message);
    let usual = cooper.json(["session", "create"]);
    assert_eq!(text(&usual, "python_version"), first);
    let same = cooper.json(["session", "create", "--python", &first]);
    assert_eq!(text(&same, "python_version"), first);

    let Some(second) = offered.iter().find(|version| minor(version) != minor(&first)) else {
        println!("the rest is skipped: there is no second Python on PATH");
        return;
    };
    // More room, but not the Python.
    fleet.start_worker_in("one", &[("MAX_SESSIONS", "50")]);
    fleet.await_registered(1);
    let made = cooper.json(["session", "create", "--python", minor(second), "--name", "second"]);
    assert_eq!((text(&made, "worker_id"), text(&made, "python_version")), ("all", second.as_str()));
    cooper.exec("second", "x = 1; open('kept', 'w').write('y')");
    assert_eq!(cooper.exec("second", WHICH), format!("'{second}'"));

    // A session from its checkpoint, and one that slept.
    let checkpoint = cooper.ok(["checkpoint", "create", "second", "--globals"]);
    let again = cooper.ok(["checkpoint", "restore", &checkpoint]);
    assert_eq!(cooper.exec(&again, WHICH), format!("'{second}'"));
    assert_eq!(cooper.exec(&again, "x, open('kept').read()"), "(1, 'y')");
    cooper.ok(["session", "update", "second", "--hibernate-after", "1s"]);
    let show = ["session", "show", "second"];
    cooper.until_json("that it hibernates", seconds(30), &show, |it| it["hibernated"] == true);
    assert_eq!(cooper.exec("second", "x"), "1");
    assert_eq!(text(&cooper.json(show), "python_version"), second);

    // A template's sessions run on what it was built with.
    let directory = Scratch::new("pythons");
    let recipe = format!("python = \"{}\"\nwarm_up = \"ready = True\"\n", minor(second));
    let file = directory.write("recipe.toml", recipe).to_string_lossy().into_owned();
    cooper.ok(["template", "build", &file, "--name", "of-second"]);
    let of_template = cooper.json(["session", "create", "--template", "of-second"]);
    assert_eq!(text(&of_template, "python_version"), second);
    let other = ["session", "create", "--template", "of-second", "--python", minor(&first)];
    assert_eq!(cooper.error(other).code, "invalid_argument");

    // Nobody else has it: what is saved waits, and is not made with another.
    cooper.ok(["drain", "all", "--checkpoint"]);
    let waits = |it: &cooper_tests::cooper::Answer| it["state"] == "checkpointing";
    cooper.until_json("that it is saved", seconds(30), &["session", "show", &again], waits);
    let usual = text(&usual, "session_id").to_owned();
    let moved = |it: &cooper_tests::cooper::Answer| it["worker_id"] == "one" && it["state"] == "ready";
    cooper.until_json("that the other one is moved", seconds(30), &["session", "show", &usual], moved);
    assert_eq!(text(&cooper.json(["session", "show", &again]), "state"), "checkpointing");
    assert_eq!(cooper.error(["checkpoint", "restore", &checkpoint]).code, "no_worker");
    cooper.ok(["undrain", "all"]);
    assert_eq!(cooper.exec(&again, WHICH), format!("'{second}'"));
}
