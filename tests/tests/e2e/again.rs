//! What comes after a run: it is remembered, done over again, or taken back.

use cooper_tests::{Answer, cluster::shared_compose, docker, docker::Stack, tree};

use super::repair::{artifact, patient, text};

fn code(run: &Answer) -> &str {
    text(&run["error"], "code")
}

#[test]
fn a_repair_that_was_rolled_back_is_not_tried_again_until_something_changes_or_somebody_asks() {
    if !docker::wanted(
        "a_repair_that_was_rolled_back_is_not_tried_again_until_something_changes_or_somebody_asks",
    ) {
        return;
    }
    let stack = Stack::broken("remembers", &["unrepairable"]);
    let cooper = patient(shared_compose().cooper());
    let repair = ["repair", "web", "--stack", stack.arg()];
    let (status, first) = cooper.run_json(repair);
    assert_eq!((status, text(&first, "state")), (4, "rolled_back"), "{first:#}");
    let (status, again) = cooper.run_json(repair);
    assert_eq!((status, text(&again, "state"), code(&again)), (5, "refused", "no_diagnosis"), "{again:#}");
    let why = text(&again["error"], "message");
    assert!(why.contains(text(&first, "run_id")) && why.contains("was rolled back"), "{why}");

    // A person may ask for it all the same: a run of its own.
    let (status, retried) = cooper.run_json(["runs", "retry", text(&first, "run_id")]);
    assert_eq!((status, text(&retried, "state")), (4, "rolled_back"), "{retried:#}");
    assert_eq!(retried["retry_of"], first["run_id"]);
    assert_ne!(retried["run_id"], first["run_id"]);
    assert!(!artifact(&cooper, text(&retried, "run_id"), "build.log").is_empty());

    // And with the other fault gone the repair is another matter.
    let app = std::fs::read_to_string(stack.dir.join("web/app.py")).expect("a file");
    let app = app.replace("    raise SystemExit(\"ledger is inconsistent\")\n", "");
    std::fs::write(stack.dir.join("web/app.py"), app).expect("written");
    let healed = cooper.json(repair);
    assert_eq!(text(&healed, "state"), "succeeded", "{healed:#}");
    let refused = cooper.run(["runs", "retry", text(&healed, "run_id")]);
    assert!(refused.err().contains("not_retryable"), "{refused}");

    // Another service with the same failure hears of what was verified.
    let other = Stack::broken("hears", &["missing-python-package"]);
    let dry = cooper.json(["repair", "web", "--stack", other.arg(), "--dry-run"]);
    let plan: Answer =
        serde_json::from_slice(&artifact(&cooper, text(&dry, "run_id"), "plan.json")).expect("JSON");
    assert!(plan["diagnosis"]["verified_by"].as_str().is_some_and(|run| run.starts_with("run_")), "{plan:#}");
}

#[test]
fn a_successful_repair_is_taken_back_bytes_image_and_all() {
    if !docker::wanted("a_successful_repair_is_taken_back_bytes_image_and_all") {
        return;
    }
    let stack = Stack::broken("undo", &["missing-python-package"]);
    stack.await_health("web", "down");
    let (before, image, neighbour) = (stack.tree(), stack.image("web"), stack.container("store"));
    let configuration = stack.container("web").configuration;
    let cooper = patient(shared_compose().cooper());
    let run = cooper.json(["repair", "web", "--stack", stack.arg()]);
    assert_eq!(text(&run, "state"), "succeeded", "{run:#}");
    let (repaired, repaired_image) = (stack.tree(), stack.image("web"));
    let id = text(&run, "run_id");

    let stats = cooper.json(["runs", "stats", "--stack", text(&run, "stack")]);
    let took = |run: &Answer| Some(run["updated_at_ms"].as_u64()? - run["created_at_ms"].as_u64()?);
    assert_eq!((&stats["runs"], &stats["succeeded"]), (&1.into(), &1.into()), "{stats:#}");
    assert_eq!(
        (&stats["success_rate"], &stats["first_attempt_rate"]),
        (&1.0.into(), &1.0.into()),
        "{stats:#}"
    );
    assert_eq!(stats["mean_time_to_repair_ms"].as_u64(), took(&run), "{stats:#}");

    // A file that somebody has changed since stops it, and nothing is touched.
    stack.append("web/requirements.txt", "# mine\n");
    let mine = stack.tree();
    let (status, conflict) = cooper.run_json(["runs", "undo", id]);
    assert_eq!(
        (status, text(&conflict, "state"), code(&conflict)),
        (5, "refused", "promotion_conflict"),
        "{conflict:#}"
    );
    assert_eq!((stack.tree(), stack.image("web")), (mine, repaired_image.clone()));
    let requirements = repaired["web/requirements.txt"].bytes.clone();
    std::fs::write(stack.dir.join("web/requirements.txt"), requirements).expect("written");

    let undone =
        cooper.json(["repair", "web", "--stack", stack.arg(), "--instruction", &format!("undo run {id}")]);
    assert_eq!((text(&undone, "state"), &undone["undo_of"]), ("succeeded", &run["run_id"]), "{undone:#}");
    assert_eq!(tree::changed(&before, &stack.tree()), [""; 0], "bytes");
    assert_eq!(stack.image("web"), image, "image id");
    let now = stack.container("web");
    assert_eq!((now.image, now.configuration), (image, configuration));
    assert_eq!(stack.container("store"), neighbour);
    stack.await_health("web", "down");
    assert_ne!(repaired_image, stack.image("web"));

    // Once; and what was taken back is not proposed anew.
    let twice = cooper.run(["runs", "undo", id]);
    assert!(twice.err().contains("not_undoable"), "{twice}");
    let (status, again) = cooper.run_json(["repair", "web", "--stack", stack.arg()]);
    assert_eq!((status, code(&again)), (5, "no_diagnosis"), "{again:#}");
    assert!(text(&again["error"], "message").contains("taken back"), "{again:#}");
}

#[test]
fn i8_a_repair_that_needed_an_approval_is_taken_back_with_one() {
    if !docker::wanted("i8_a_repair_that_needed_an_approval_is_taken_back_with_one") {
        return;
    }
    let stack = Stack::broken("undo-asks", &["protected"]);
    let before = stack.tree();
    let cooper = patient(shared_compose().cooper());
    let (_, waits) = cooper.run_json(["repair", "web", "--stack", stack.arg()]);
    let run = cooper.json(["approve", text(&waits, "run_id"), "--follow"]);
    assert_eq!(text(&run, "state"), "succeeded", "{run:#}");
    let repaired = stack.tree();
    let (status, undo) = cooper.run_json(["runs", "undo", text(&run, "run_id")]);
    assert_eq!((status, text(&undo, "state")), (3, "awaiting_approval"), "{undo:#}");
    assert_eq!(stack.tree(), repaired);
    let undone = cooper.json(["approve", text(&undo, "run_id"), "--follow"]);
    assert_eq!(text(&undone, "state"), "succeeded", "{undone:#}");
    assert_eq!(stack.tree(), before);
}

#[test]
fn after_a_promotion_conflict_a_run_goes_on_from_its_promotion() {
    if !docker::wanted("after_a_promotion_conflict_a_run_goes_on_from_its_promotion") {
        return;
    }
    let stack = Stack::broken("conflict", &["missing-python-package"]);
    stack.append("web/requirements.txt", &format!("# {}\n", stack.project));
    let requirements = stack.dir.join("web/requirements.txt");
    let original = std::fs::read(&requirements).expect("a file");
    let cooper = patient(shared_compose().cooper());
    let id = cooper.ok(["repair", "web", "--stack", stack.arg(), "--detach"]);
    let builds = |run: &Answer| {
        let steps = run["steps"].as_array().expect("a list").iter();
        steps.filter(|step| step["name"] == "build").any(|step| step["state"] != "pending")
    };
    cooper.until_json("a build", cooper_tests::seconds(120), &["runs", "show", &id], builds);
    stack.append("web/requirements.txt", "# mine\n");
    let run = cooper.json(["runs", "watch", &id]);
    assert_eq!((text(&run, "state"), text(&run, "promotion")), ("succeeded", "conflict"), "{run:#}");
    for step in ["build", "rollback"] {
        let refused = cooper.run(["runs", "retry", &id, "--from", step]);
        assert!(refused.err().contains("not_retryable"), "{refused}");
    }
    // Once the file is again what the plan was made for.
    std::fs::write(&requirements, &original).expect("written");
    let promoted = cooper.json(["runs", "retry", &id, "--from", "verify"]);
    assert_eq!(
        (text(&promoted, "state"), text(&promoted, "promotion")),
        ("succeeded", "promoted"),
        "{promoted:#}"
    );
    assert_eq!(promoted["retry_of"], run["run_id"]);
    let written = std::fs::read(&requirements).expect("a file");
    let added = written.strip_prefix(original.as_slice()).expect("a line is added");
    assert!(added.starts_with(b"PyYAML==") && added.ends_with(b"\n"), "{}", String::from_utf8_lossy(added));
    assert_eq!(stack.health("web"), "healthy");
}
