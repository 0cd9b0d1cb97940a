//! Clusters by name, and completions of the command line.

use std::{fs, os::unix::fs::PermissionsExt};

use cooper_tests::{Cooper, Scratch, program, program::Running, seconds, shared};

#[test]
fn a_context_names_its_cluster_wholly_and_no_other_token_is_sent_there() {
    let cluster = shared();
    let scratch = Scratch::new("contexts");
    let home = scratch.join("home");
    let plain = Cooper::default().env("XDG_CONFIG_HOME", &home.to_string_lossy()).dir(scratch.path());
    let token = cluster.admin_token();
    let add = ["context", "add", "prod", "--url", &cluster.url, "--token-stdin"];
    plain.run_with(add, format!("{token}\n").as_bytes()).expect(0);
    for kept in ["prod.toml", "prod.token"] {
        let mode = fs::metadata(home.join("cooper/contexts").join(kept)).expect(kept).permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{kept}");
    }
    let settings = fs::read_to_string(home.join("cooper/contexts/prod.toml")).expect("it was written");
    assert!(!settings.contains(&token), "the token is in a file of its own");
    assert_eq!(plain.error(["context", "add", "prod", "--url", &cluster.url]).code, "invalid_argument");

    // Named on the command line it holds against the environment as a whole: URL and token.
    let elsewhere =
        plain.clone().env("COOPER_URL", "http://127.0.0.1:1").env("COOPER_TOKEN", "of another cluster");
    elsewhere.ok(["--context", "prod", "session", "list"]);
    // In use it gives way to what the environment names, and its token with it.
    plain.ok(["context", "use", "prod"]);
    plain.ok(["session", "list"]);
    let refused = elsewhere.error(["session", "list"]);
    assert!(refused.code == "unavailable" && refused.message.contains("COOPER_URL"), "{refused:?}");
    let stranger = plain.clone().env("COOPER_URL", &cluster.url);
    assert_eq!(stranger.error(["session", "list"]).code, "unauthenticated");
    let listed = plain.json(["context", "list"]);
    let of = |name: &str| {
        let all = listed["contexts"].as_array().expect("a list");
        all.iter().find(|context| context["name"] == name).cloned().expect("it is listed")
    };
    assert_eq!((&of("prod")["in_use"], &of("local")["in_use"]), (&true.into(), &false.into()));
    assert_eq!(of("prod")["url"], *cluster.url);

    let refused = plain.error(["--context", "prdo", "session", "list"]);
    assert!(refused.code == "config_invalid" && refused.hint.contains("prod"), "{refused:?}");
    assert_eq!(plain.error(["context", "add", "../x", "--url", &cluster.url]).code, "invalid_argument");
    assert_eq!(plain.error(["context", "add", "bad", "--url", "not a url"]).code, "config_invalid");
    assert_eq!(plain.error(["context", "add", "bare"]).status, 2);
    plain.ok(["context", "remove", "prod"]);
    assert_eq!(plain.json(["context", "list"])["contexts"].as_array().map(Vec::len), Some(1));
    assert!(!home.join("cooper/contexts/prod.token").exists());
    assert_eq!(plain.error(["session", "list"]).code, "unavailable");
}

#[test]
fn a_shell_completes_commands_by_the_script_that_it_is_given() {
    let script = Cooper::default().ok(["completions", "bash"]);
    let mut bash = program::command("bash");
    // What bash does when a user types `cooper sess` and presses tab.
    bash.args(["--norc", "-c", "source /dev/stdin; COMP_WORDS=(cooper sess) COMP_CWORD=1; _cooper cooper sess cooper; echo ${COMPREPLY[@]}"]);
    let done = Running::start(bash, script.as_bytes()).finish(seconds(20)).expect(0);
    assert_eq!(done.out().trim(), "session sessions");
    for shell in ["zsh", "fish"] {
        assert!(Cooper::default().ok(["completions", shell]).contains("checkpoint"), "{shell}");
    }
}
