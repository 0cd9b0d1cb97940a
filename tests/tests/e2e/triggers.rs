//! Repairs that begin by themselves: by what the engine tells of services that allow it, once, and not where they may not.

use std::fs;

use cooper_tests::{
    Answer, Cluster, Cooper, Setup,
    docker::{self, Stack},
    http, seconds,
    wait::until_true,
};
use serde_json::json;

use super::repair::{patient, text};

/// A cluster whose worker has this stack from its start on.
fn watching(stack: &Stack, settings: &[(&str, &str)]) -> Cluster {
    let setup = Setup::compose().env("COOPER_STACKS", &format!("shop={}", stack.arg()));
    settings.iter().fold(setup, |setup, (name, value)| setup.env(name, value)).start()
}

fn runs(cooper: &Cooper) -> Vec<Answer> {
    cooper.json(["runs", "list"])["runs"].as_array().expect("a list").clone()
}

/// The one run of a service, once it has ended.
fn ended(cooper: &Cooper, service: &str) -> Answer {
    let of_service = |list: &Answer| {
        let runs = list["runs"].as_array().into_iter().flatten();
        runs.filter(|run| run["service"] == service).cloned().collect::<Vec<_>>()
    };
    let over = ["succeeded", "refused", "failed", "rolled_back", "awaiting_approval", "rollback_failed"];
    let list = cooper.until_json("the end of its run", seconds(180), &["runs", "list"], |list| {
        of_service(list).iter().any(|run| over.contains(&text(run, "state")))
    });
    let found = of_service(&list);
    assert_eq!(found.len(), 1, "exactly one: {list:#}");
    found[0].clone()
}

/// How often what a worker saw came to this end.
fn triggers(cluster: &Cluster, end: &str) -> u64 {
    // While a coordinator starts again, nobody counts.
    let metrics = http::try_get(&cluster.url, "/metrics", Some(&cluster.admin_token()));
    let metrics = metrics.map(|answer| answer.body).unwrap_or_default();
    let lines = metrics.lines().filter(|line| line.starts_with("cooper_run_triggers_total"));
    let of_end = lines.filter(|line| line.contains(&format!("end=\"{end}\"")));
    of_end.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

/// Services that end with an error which nothing explains, each of which may be repaired by itself.
fn hopeless(stack: &Stack, names: &[&str]) {
    for name in names {
        stack.append(
            "compose.yaml",
            &format!(
                "\n  {name}:\n    image: python:3.11-slim\n    command: [python, -c, \"raise SystemExit('the ledger is \
                 inconsistent')\"]\n    x-cooper:\n      auto_repair: true\n"
            ),
        );
    }
}

#[test]
fn a_service_that_crashes_is_repaired_without_anybody_asking() {
    if !docker::wanted("a_service_that_crashes_is_repaired_without_anybody_asking") {
        return;
    }
    let stack = Stack::healthy("triggered");
    let compose = fs::read_to_string(stack.dir.join("compose.yaml")).expect("it is there");
    let allowed = compose.replace("      stable_for: 3s", "      stable_for: 3s\n      auto_repair: true");
    fs::write(stack.dir.join("compose.yaml"), allowed).expect("written");
    let cluster = watching(&stack, &[]);
    let cooper = patient(cluster.cooper());

    stack.break_it("missing-python-package");
    stack.compose(&["up", "-d", "--build"]);
    let run = ended(&cooper, "web");
    assert_eq!((text(&run, "state"), &run["automatic"]), ("succeeded", &json!(true)), "{run:#}");
    let trigger = text(&run, "trigger");
    assert!(trigger.contains("web-1 end") || trigger.contains("No module named 'yaml'"), "{run:#}");
    assert_eq!(stack.health("web"), "healthy");
    assert!(fs::read_to_string(stack.dir.join("web/requirements.txt")).expect("text").contains("PyYAML"));
    // What the repair itself did to the container, and what a person stops, is nobody's trouble.
    stack.compose(&["restart", "web"]).expect(0);
    stack.await_health("web", "healthy");
    assert_eq!((runs(&cooper).len(), triggers(&cluster, "begun")), (1, 1));
}

#[test]
fn nothing_begins_by_itself_where_it_is_not_allowed_while_paused_or_beyond_the_budget() {
    if !docker::wanted("nothing_begins_by_itself_where_it_is_not_allowed_while_paused_or_beyond_the_budget") {
        return;
    }
    let stack = Stack::files("untriggered");
    hopeless(&stack, &["first", "second", "third"]);
    let cluster = watching(&stack, &[("COOPER_AUTO_REPAIR_PER_DAY", "1")]);
    let cooper = patient(cluster.cooper());

    cooper.ok(["pause"]);
    stack.break_it("missing-python-package");
    stack.compose(&["up", "-d", "--build", "web"]).expect(0);
    stack.await_health("web", "down");
    stack.compose(&["up", "-d", "first"]);
    until_true("the pause is noticed", seconds(60), || triggers(&cluster, "paused") == 1);
    assert_eq!(runs(&cooper), Vec::<Answer>::new());
    cooper.ok(["resume"]);

    stack.compose(&["up", "-d", "second"]);
    let run = ended(&cooper, "second");
    assert_eq!((text(&run, "state"), &run["error"]["code"]), ("refused", &json!("no_diagnosis")), "{run:#}");
    assert!(text(&run, "trigger").contains("second-1 ended, with exit code 1"), "{run:#}");
    cluster.kill("coordinator");
    cooper.until_json("the coordinator", seconds(20), &["runs", "list"], |_| true);
    stack.compose(&["up", "-d", "third"]);
    until_true("the budget is noticed", seconds(60), || triggers(&cluster, "cooldown") == 1);
    let services: Vec<Answer> = runs(&cooper).iter().map(|run| run["service"].clone()).collect();
    assert_eq!(services, ["second"], "web, which crashes for all this time, does not allow it; I13");
}

#[test]
fn a_service_that_stays_unhealthy_causes_one_run_also_when_the_coordinator_dies_before_it_says_so() {
    let name =
        "a_service_that_stays_unhealthy_causes_one_run_also_when_the_coordinator_dies_before_it_says_so";
    if !docker::wanted(name) {
        return;
    }
    let stack = Stack::files("unhealthy");
    stack.append(
        "compose.yaml",
        "\n  sick:\n    image: python:3.11-slim\n    init: true\n    command: [sleep, infinity]\n    healthcheck:\n      \
         test: [CMD, 'false']\n      interval: 1s\n      retries: 1\n    x-cooper:\n      auto_repair: true\n",
    );
    let cluster = watching(&stack, &[("FAILPOINTS", "trouble-before-heard=1")]);
    let cooper = patient(cluster.cooper());
    stack.compose(&["up", "-d", "sick"]).expect(0);
    until_true("the worker says it again", seconds(90), || triggers(&cluster, "cooldown") > 0);
    let run = ended(&cooper, "sick");
    assert!(text(&run, "trigger").contains("healthcheck"), "{run:#}");
    // The same again, within the cooldown.
    stack.compose(&["restart", "sick"]).expect(0);
    stack.await_health("sick", "unhealthy");
    assert_eq!(runs(&cooper).len(), 1);
}

#[test]
fn what_a_running_service_prints_causes_a_repair_by_a_rule_of_class_auto() {
    if !docker::wanted("what_a_running_service_prints_causes_a_repair_by_a_rule_of_class_auto") {
        return;
    }
    let stack = Stack::healthy("prints");
    let compose = fs::read_to_string(stack.dir.join("compose.yaml")).expect("it is there");
    let allowed = compose.replace("      stable_for: 3s", "      stable_for: 3s\n      auto_repair: true");
    fs::write(stack.dir.join("compose.yaml"), allowed).expect("written");
    let cluster = watching(&stack, &[]);
    let cooper = patient(cluster.cooper());
    // It goes on, without what it could not import.
    let app = fs::read_to_string(stack.dir.join("web/app.py")).expect("it is there");
    let gentle = "import traceback\ntry:\n    import yaml\nexcept ImportError:\n    traceback.print_exc()\n";
    let importing = app.replacen("from flask", &format!("{gentle}from flask"), 1);
    fs::write(stack.dir.join("web/app.py"), importing).expect("written");
    stack.compose(&["up", "-d", "--build", "--wait"]).expect(0);
    let run = ended(&cooper, "web");
    assert_eq!(
        (text(&run, "state"), text(&run, "rule_id")),
        ("succeeded", "python.module-missing"),
        "{run:#}"
    );
    assert!(text(&run, "trigger").contains("No module named 'yaml'"), "{run:#}");
}

#[test]
fn a_failure_of_ci_is_repaired_when_it_was_posted_often_enough_also_over_a_restart() {
    if !docker::wanted("a_failure_of_ci_is_repaired_when_it_was_posted_often_enough_also_over_a_restart") {
        return;
    }
    let stack = Stack::files("recurring");
    stack.append("compose.yaml", "\nx-cooper:\n  auto_repair: true\n");
    let cluster = watching(&stack, &[]);
    let cooper = patient(cluster.cooper());
    let log = stack.dir.join("../ci.log");
    fs::write(&log, "ModuleNotFoundError: No module named 'yaml'\n").expect("written");
    let posted = |cooper: &Cooper| {
        let post = ["repair", "web", "--automatic", "--dry-run", "--recurring", "3"];
        cooper.run_json([&post[..], &["--log", log.to_str().expect("plain")]].concat())
    };
    for times in 1..=2 {
        let (status, run) = posted(&cooper);
        assert_eq!((status, &run["error"]["code"]), (5, &json!("not_recurring")), "{run:#}");
        assert!(text(&run["error"], "message").contains(&format!("{times} of 3")), "{run:#}");
        cluster.kill("coordinator");
        cooper.until_json("the coordinator", seconds(20), &["runs", "list"], |_| true);
    }
    let (status, run) = posted(&cooper);
    assert_eq!((status, text(&run, "state")), (0, "succeeded"), "I13: {run:#}");
    assert_eq!(cooper.error(["repair", "web", "--recurring", "3"]).code, "invalid_argument");
}
