//! Every command with `--json` prints exactly one document; errors are documents on standard error.

use cooper_tests::shared;

#[test]
fn every_command_that_succeeds_prints_one_document() {
    let cluster = shared();
    let cooper = cluster.cooper();
    let session = cooper.session();
    let local = cluster.scratch.write("document.txt", "text");
    let local = local.to_str().expect("plain");
    let back = cluster.scratch.join("back.txt");
    let s = session.as_str();
    let made = cooper.json(["token", "create", "--scope", "client", "--name", "json"]);
    let token = made["token_id"].as_str().expect("an id");
    let task = cooper.json(["exec", s, "-c", "print(1)"])["task_id"].as_str().expect("an id").to_owned();
    for (args, key) in [
        (vec!["session", "create"], "session_id"),
        (vec!["session", "list"], "sessions"),
        (vec!["session", "show", s], "session_id"),
        (vec!["exec", s, "-c", "1"], "task_id"),
        (vec!["sh", "-n", s, "--", "true"], "task_id"),
        (vec!["files", "put", s, local, "f"], "path"),
        (vec!["files", "ls", s], "files"),
        (vec!["files", "get", s, "f", back.to_str().expect("plain")], "local"),
        (vec!["tasks", "list"], "tasks"),
        (vec!["tasks", "show", &task], "state"),
        (vec!["tasks", "follow", &task], "stdout"),
        (vec!["tasks", "cancel", &task], "state"),
        (vec!["runs", "list"], "runs"),
        (vec!["stacks"], "stacks"),
        (vec!["workers"], "workers"),
        (vec!["token", "list"], "tokens"),
        (vec!["token", "revoke", token], "revoked"),
        (vec!["events"], "events"),
        (vec!["status"], "state"),
        (vec!["health"], "status"),
        (vec!["config", "show"], "settings"),
        (vec!["version"], "version"),
        (vec!["session", "destroy", s], "state"),
    ] {
        let document = cooper.json(args.clone());
        assert!(document.get(key).is_some(), "{key} of {args:?}: {document}");
    }
    // Several at once are still one document.
    let two = [cooper.session(), cooper.session()];
    let gone = cooper.json(["session", "destroy", &two[0], &two[1]]);
    assert_eq!(gone["sessions"].as_array().map(Vec::len), Some(2));
}

#[test]
fn a_document_of_code_that_failed_is_still_on_standard_output() {
    let cooper = shared().cooper();
    let session = cooper.session();
    let (status, document) = cooper.run_json(["exec", &session, "-c", "raise ValueError('no')"]);
    assert_eq!((status, &document["state"], &document["exit_code"]), (1, &"failed".into(), &1.into()));
    assert_eq!(document["exception"]["name"], "ValueError");
    let (status, document) =
        cooper.run_json(["exec", &session, "--timeout", "500ms", "-c", "while True: pass"]);
    assert_eq!(
        (status, &document["state"], &document["error"]["code"]),
        (124, &"timed_out".into(), &"timed_out".into())
    );
}

#[test]
fn an_error_of_any_command_has_code_cause_and_next_step() {
    let cluster = shared();
    let cooper = cluster.cooper();
    let run = "run_00000000000000000000000000";
    let task = "tsk_00000000000000000000000000";
    for (args, code, status) in [
        (vec!["session", "show", "nobody"], "session_not_found", 1),
        (vec!["session", "destroy", "nobody"], "session_not_found", 1),
        (vec!["exec", "nobody", "-c", "1"], "session_not_found", 125),
        (vec!["sh", "-n", "nobody", "--", "true"], "session_not_found", 125),
        (vec!["packages", "install", "nobody", "six"], "session_not_found", 125),
        (vec!["files", "ls", "nobody"], "session_not_found", 1),
        (vec!["tasks", "show", task], "task_not_found", 1),
        (vec!["tasks", "follow", task], "task_not_found", 125),
        (vec!["tasks", "cancel", task], "task_not_found", 1),
        (vec!["runs", "show", run], "run_not_found", 1),
        (vec!["runs", "watch", run], "run_not_found", 1),
        (vec!["runs", "artifacts", run], "run_not_found", 1),
        (vec!["runs", "artifact", run, "patch.diff"], "run_not_found", 1),
        (vec!["approve", run], "run_not_found", 1),
        (vec!["reject", run], "run_not_found", 1),
        (vec!["cancel", run], "run_not_found", 1),
        (vec!["repair", "web", "--stack", "no-such-stack"], "stack_not_found", 1),
        (vec!["token", "revoke", "tok_00000000000000000000000000"], "token_not_found", 1),
        (vec!["token", "create", "--scope", "client", "--tenant", "No Tenant"], "invalid_argument", 1),
    ] {
        let failure = cooper.error(args.clone());
        assert_eq!((failure.code.as_str(), failure.status), (code, status), "{args:?}: {failure:?}");
        assert!(!failure.message.is_empty() && !failure.hint.is_empty(), "{args:?}: {failure:?}");
    }
    let nowhere = cooper_tests::Cooper::at(&cluster.scratch.join("nowhere")).error(["status"]);
    assert_eq!((nowhere.code.as_str(), nowhere.status), ("unavailable", 1));
    assert!(nowhere.hint.contains("cooper up"), "{nowhere:?}");
}

#[test]
fn wrong_usage_ends_with_2() {
    let cooper = shared().cooper();
    for args in [
        vec!["no-such-command"],
        vec!["exec"],
        vec!["session", "create", "--wait", "soon"],
        vec!["exec", "s", "f", "-c", "1"],
    ] {
        let done = cooper.run(args).expect(2);
        assert_eq!(done.out(), "");
        assert!(!done.err().is_empty());
    }
}
