//! What Cooper may not do by itself: protected services wait, and what it cannot explain it leaves alone.

use cooper_tests::{
    Answer,
    cluster::shared_compose,
    docker::{self, Container, Stack},
    tree::Tree,
};

use super::repair::{artifact, names, patient, text};

/// Everything that a repair could touch.
#[derive(Debug, PartialEq)]
struct Seen {
    tree: Tree,
    containers: [Container; 2],
    images: [String; 2],
}

fn seen(stack: &Stack) -> Seen {
    Seen {
        tree: stack.tree(),
        containers: ["web", "store"].map(|service| stack.container(service)),
        images: ["web", "store"].map(|service| stack.image(service)),
    }
}

#[test]
fn a_protected_service_waits_and_goes_on_only_when_it_is_approved() {
    if !docker::wanted("a_protected_service_waits_and_goes_on_only_when_it_is_approved") {
        return;
    }
    let stack = Stack::broken("protected", &["protected"]);
    stack.await_health("web", "down");
    let before = seen(&stack);
    let cooper = patient(shared_compose().cooper());
    let waits = |run: &Answer| {
        assert_eq!(text(run, "state"), "awaiting_approval", "{run:#}");
        assert_eq!(run["approval"]["decision"], "pending");
        assert!(run["approval"]["reasons"].to_string().contains("protected"), "{run:#}");
        assert_eq!(
            names(run),
            ["analyze.log", "plan.json", "patch.diff"],
            "what is to be decided can be read"
        );
        assert!(!artifact(&cooper, text(run, "run_id"), "patch.diff").is_empty());
        assert_eq!(seen(&stack), before, "nothing happened");
    };

    let (status, run) = cooper.run_json(["repair", "web", "--stack", stack.arg()]);
    assert_eq!(status, 3);
    waits(&run);
    let id = text(&run, "run_id");
    let (status, rejected) = cooper.run_json(["reject", id, "--comment", "not today", "--follow"]);
    assert_eq!((status, text(&rejected, "state")), (7, "rejected"));
    assert_eq!(rejected["approval"]["comment"], "not today");
    assert_eq!(cooper.run(["runs", "watch", id]).status, 7);
    assert_eq!(seen(&stack), before, "a rejected plan did nothing");
    assert_eq!(cooper.error(["approve", id]).code, "not_awaiting_approval");

    let said = cooper.run(["repair", "web", "--stack", stack.arg()]).expect(3);
    let id = said
        .out()
        .lines()
        .find_map(|line| line.strip_prefix("  approve   cooper approve "))
        .map(str::to_owned);
    let id = id.unwrap_or_else(|| panic!("it says how to go on\n{said}"));
    waits(&cooper.json(["runs", "show", &id]));
    assert_eq!(cooper.error(["approve", &id, "--plan", &"0".repeat(64)]).code, "plan_changed", "I8");
    let (status, approved) = cooper.run_json(["approve", &id, "--follow"]);
    assert_eq!((status, text(&approved, "state")), (0, "succeeded"), "{approved:#}");
    assert_eq!(approved["approval"]["decision"], "approved");
    assert!(approved["approval"]["decided_by"].as_str().is_some_and(|who| !who.is_empty()), "{approved:#}");
    assert_eq!(stack.health("web"), "healthy");
    assert_eq!(stack.container("store"), before.containers[1]);
    let events = cooper.json(["events"]);
    let kinds: Vec<&str> = events["events"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|event| event["subject"] == id.as_str())
        .filter_map(|event| event["kind"].as_str())
        .collect();
    assert!(kinds.contains(&"run.awaiting_approval") && kinds.contains(&"run.succeeded"), "{kinds:?}");
}

#[test]
fn what_nobody_can_explain_is_refused_and_left_as_it_is() {
    if !docker::wanted("what_nobody_can_explain_is_refused_and_left_as_it_is") {
        return;
    }
    let stack = Stack::broken("unexplained", &["unexplained"]);
    stack.await_health("web", "down");
    let before = seen(&stack);
    let cooper = patient(shared_compose().cooper());
    let (status, run) = cooper.run_json(["repair", "web", "--stack", stack.arg()]);
    assert_eq!((status, text(&run, "state")), (5, "refused"), "{run:#}");
    assert_eq!(run["error"]["code"], "no_diagnosis");
    assert!(run["error"]["message"].as_str().is_some_and(|message| !message.is_empty()), "{run:#}");
    assert_eq!(seen(&stack), before);
    let said = cooper.run(["runs", "watch", text(&run, "run_id")]).expect(5);
    assert_eq!(said.error_line().0, "no_diagnosis");
}

#[test]
fn a_dry_run_shows_the_plan_and_touches_nothing() {
    if !docker::wanted("a_dry_run_shows_the_plan_and_touches_nothing") {
        return;
    }
    let stack = Stack::broken("dry", &["missing-python-package"]);
    stack.await_health("web", "down");
    let before = seen(&stack);
    let cooper = patient(shared_compose().cooper());
    let (status, run) = cooper.run_json(["repair", "web", "--stack", stack.arg(), "--dry-run"]);
    assert_eq!((status, text(&run, "state"), &run["dry_run"]), (0, "succeeded", &true.into()), "{run:#}");
    assert_eq!(names(&run), ["analyze.log", "plan.json", "patch.diff", "metrics.json"]);
    assert_eq!(run["files"], serde_json::json!(["web/requirements.txt"]));
    let patch = artifact(&cooper, text(&run, "run_id"), "patch.diff");
    assert!(String::from_utf8_lossy(&patch).contains("+PyYAML"), "{}", String::from_utf8_lossy(&patch));
    assert_eq!(seen(&stack), before);

    // What somebody else's log says is enough for a plan, too: no container has to be broken for that.
    let log = "Traceback (most recent call last):\n  File \"/app/app.py\", line 6, in <module>\n    import yaml\nModuleNotFoundError: No module named 'yaml'\n";
    let done = cooper.run_with(
        ["--json", "repair", "web", "--stack", stack.arg(), "--dry-run", "--log", "-"],
        log.as_bytes(),
    );
    assert_eq!(done.expect(0).json()["files"], serde_json::json!(["web/requirements.txt"]));
    let told = cooper.json([
        "repair",
        "web",
        "--stack",
        stack.arg(),
        "--dry-run",
        "--instruction",
        "add package PyYAML",
    ]);
    assert_eq!(told["files"], serde_json::json!(["web/requirements.txt"]), "{told:#}");
    assert_eq!(seen(&stack), before);
}

#[test]
fn a_service_or_stack_that_is_not_there_is_said_to_be_absent() {
    if !docker::wanted("a_service_or_stack_that_is_not_there_is_said_to_be_absent") {
        return;
    }
    let stack = Stack::files("absent");
    let cluster = shared_compose();
    let cooper = patient(cluster.cooper());
    let done = cooper.run(["repair", "no-such-service", "--stack", stack.arg()]);
    assert!([1, 5].contains(&done.status), "{done}");
    let (code, message) = done.error_line();
    assert_eq!(code, "service_not_found", "{done}");
    assert!(message.contains("no-such-service"), "{message}");

    let empty = cluster.scratch.join("no-stack");
    std::fs::create_dir_all(&empty).expect("made");
    let refused = cooper.error(["repair", "web", "--stack", empty.to_str().expect("plain")]);
    assert!(["invalid_argument", "stack_not_found"].contains(&refused.code.as_str()), "{refused:?}");
    assert!(refused.message.contains("compose"), "{refused:?}");
    assert_eq!(cooper.error(["repair", "web", "--stack", "/no/such/dir"]).code, "stack_not_found");
    assert_eq!(cooper.error(["repair", "web", "--stack", "unregistered"]).code, "stack_not_found");
    let stacks = cooper.json(["stacks"]);
    let ours = stacks["stacks"].as_array().expect("a list").iter().find(|known| known["dir"] == stack.arg());
    assert_eq!(ours.map(|known| &known["online"]), Some(&true.into()), "{stacks:#}");
}
