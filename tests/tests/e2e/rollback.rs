//! I7: a repair that fails, or is ended, leaves everything as it was at its start.

use cooper_tests::{Answer, cluster::shared_compose, docker, docker::Stack, seconds};

use super::repair::{artifact, names, patient, text};

/// Repairs `web`, which ends rolled back because of a step, and compares with the start.
fn is_rolled_back(stack: &Stack, health: &str, step: &str) {
    let cooper = patient(shared_compose().cooper());
    stack.await_health("web", health);
    let (tree, image, web, store) =
        (stack.tree(), stack.image("web"), stack.container("web"), stack.container("store"));
    let (status, run) = cooper.run_json(["repair", "web", "--stack", stack.arg()]);
    assert_eq!((status, text(&run, "state")), (4, "rolled_back"), "{run:#}");
    assert!(run["error"]["code"].as_str().is_some_and(|code| !code.is_empty()), "{run:#}");
    assert!(!artifact(&cooper, text(&run, "run_id"), "rollback.log").is_empty());
    let log = format!("{step}.log");
    assert!(names(&run).contains(&log.as_str()), "{run:#}");
    assert!(!artifact(&cooper, text(&run, "run_id"), &log).is_empty());

    assert_eq!(stack.tree(), tree, "bytes");
    assert_eq!(stack.image("web"), image, "image id");
    let now = stack.container("web");
    assert_eq!((now.image, now.configuration), (web.image, web.configuration), "container configuration");
    assert_eq!(stack.container("store"), store, "its neighbour");
    stack.await_health("web", health);
    let said = cooper.run(["runs", "watch", text(&run, "run_id")]).expect(4);
    assert!(said.out().contains("rollback.log"), "{said}");
}

#[test]
fn an_unrepairable_service_that_was_down_ends_as_it_was() {
    if docker::wanted("an_unrepairable_service_that_was_down_ends_as_it_was") {
        is_rolled_back(&Stack::broken("unrepairable", &["unrepairable"]), "down", "verify");
    }
}

#[test]
fn a_service_that_was_healthy_is_healthy_after_a_failed_repair() {
    if docker::wanted("a_service_that_was_healthy_is_healthy_after_a_failed_repair") {
        // Its build fails for a reason that has a fix; what is built then does not live, as is seen beside what runs.
        let stack = Stack::broken("once-healthy", &["missing-apt-package", "unexplained"]);
        is_rolled_back(&stack, "healthy", "restart");
    }
}

#[test]
fn a_run_that_is_cancelled_in_its_build_touches_nothing() {
    if !docker::wanted("a_run_that_is_cancelled_in_its_build_touches_nothing") {
        return;
    }
    let stack = Stack::broken("cancel", &["missing-python-package"]);
    stack.await_health("web", "down");
    let (tree, image, store) = (stack.tree(), stack.image("web"), stack.container("store"));
    let cooper = patient(shared_compose().cooper());
    let id = cooper.ok(["repair", "web", "--stack", stack.arg(), "--detach"]);
    let building = |run: &Answer| {
        let steps = run["steps"].as_array().expect("a list").iter();
        steps.filter(|step| step["name"] == "build").any(|step| step["state"] == "running")
    };
    cooper.until_json("a running build", seconds(120), &["runs", "show", &id], building);
    cooper.ok(["cancel", &id]);
    let ended = cooper.run(["runs", "watch", &id]);
    assert!([4, 7].contains(&ended.status), "{ended}");
    assert_eq!(stack.tree(), tree);
    assert_eq!(stack.image("web"), image);
    assert_eq!(stack.container("store"), store);
    // The service is free for the next run.
    assert_eq!(text(&cooper.json(["repair", "web", "--stack", stack.arg()]), "state"), "succeeded");
}
