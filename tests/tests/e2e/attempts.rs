//! A run of several attempts: each on the newest log, rolled back before the next, with a plan of its own (I7, I8).

use cooper_tests::{
    Answer,
    cluster::{Setup, shared_compose},
    docker,
    docker::Stack,
    seconds, tree,
};

use super::repair::{artifact, names, patient, text};

/// Attempt, name and state of each step.
fn steps(run: &Answer) -> Vec<(u64, &str, &str)> {
    let steps = run["steps"].as_array().expect("a list").iter();
    steps.map(|s| (s["attempt"].as_u64().expect("a number"), text(s, "name"), text(s, "state"))).collect()
}

/// A run that succeeded with its second attempt, whose plan holds both fixes.
fn check_second_succeeded(run: &Answer) {
    assert_eq!((text(run, "state"), &run["attempt"]), ("succeeded", &2.into()), "{run:#}");
    // Beside the running service, or in its place.
    let failed = |(attempt, name, state): (u64, &str, &str)| {
        attempt == 1 && ["restart", "verify"].contains(&name) && state == "failed"
    };
    assert!(steps(run).into_iter().any(failed), "{run:#}");
    assert!(steps(run).contains(&(1, "rollback", "succeeded")), "{run:#}");
    assert!(steps(run).contains(&(2, "promote", "succeeded")), "{run:#}");
    let hashes: Vec<&str> =
        run["attempts"].as_array().expect("a list").iter().map(|tried| text(tried, "plan_hash")).collect();
    assert!(hashes.len() == 2 && hashes[0] != hashes[1] && hashes[1] == text(run, "plan_hash"), "{run:#}");
    assert!(!text(&run["attempts"][0]["error"], "code").is_empty(), "{run:#}");
    for name in ["build.log", "rollback.log", "attempt-2/analyze.log", "attempt-2/patch.diff"] {
        assert!(names(run).contains(&name), "{name} in {run:#}");
    }
}

/// Breaks a healthy stack by two faults of which one shows behind the other.
fn heals_in_two_attempts(name: &str, how: &[&str], changes: &[&str]) {
    let stack = Stack::broken(name, how);
    let (before, neighbour) = (stack.tree(), stack.container("store"));
    let cooper = patient(shared_compose().cooper());
    let run = cooper.json(["repair", "web", "--stack", stack.arg()]);
    check_second_succeeded(&run);
    assert_eq!(stack.health("web"), "healthy");
    assert_eq!(stack.container("store"), neighbour);
    // What is promoted is what the second plan shows: both fixes.
    let after = stack.tree();
    assert_eq!(tree::changed(&before, &after), changes);
    let patched = stack.patched(&before, &artifact(&cooper, text(&run, "run_id"), "attempt-2/patch.diff"));
    for path in changes {
        assert_eq!(after.get(*path), patched.get(*path), "{path}");
    }
    let scratch = cooper_tests::Scratch::new("attempts");
    cooper.ok(["runs", "artifacts", text(&run, "run_id"), "--to", scratch.path().to_str().expect("plain")]);
    assert!(scratch.join("attempt-2/plan.json").is_file());
    let said = cooper.run(["runs", "show", text(&run, "run_id")]).expect(0).out();
    assert!(said.contains("attempts  2 of 3") && said.contains("2 promote"), "{said}");
}

#[test]
fn a_fault_behind_a_fault_is_repaired_by_a_second_attempt_upon_the_first() {
    if docker::wanted("a_fault_behind_a_fault_is_repaired_by_a_second_attempt_upon_the_first") {
        heals_in_two_attempts("behind", &["two-missing-packages"], &["web/requirements.txt"]);
    }
}

#[test]
fn a_fault_of_the_container_behind_one_of_the_build_is_repaired_too() {
    if docker::wanted("a_fault_of_the_container_behind_one_of_the_build_is_repaired_too") {
        let how = ["missing-apt-package", "missing-python-package"];
        heals_in_two_attempts("layers", &how, &["web/Dockerfile", "web/requirements.txt"]);
    }
}

#[test]
fn i8_a_second_attempt_asks_again_about_its_own_plan() {
    if !docker::wanted("i8_a_second_attempt_asks_again_about_its_own_plan") {
        return;
    }
    let stack = Stack::healthy("asks-again");
    stack.break_it("protected");
    // The second fault, in the way `two-missing-packages` puts it.
    let app = std::fs::read_to_string(stack.dir.join("web/app.py")).expect("a file");
    std::fs::write(
        stack.dir.join("web/app.py"),
        app.replace("import yaml\n", "import yaml\nimport tabulate\n"),
    )
    .expect("written");
    stack.compose(&["up", "-d", "--build"]);
    let tree = stack.tree();
    let cooper = patient(shared_compose().cooper());
    let (status, first) = cooper.run_json(["repair", "web", "--stack", stack.arg()]);
    assert_eq!((status, text(&first, "state")), (3, "awaiting_approval"), "{first:#}");
    let id = text(&first, "run_id");
    let (status, second) = cooper.run_json(["approve", id, "--follow"]);
    assert_eq!(
        (status, text(&second, "state"), &second["attempt"]),
        (3, "awaiting_approval", &2.into()),
        "{second:#}"
    );
    assert_ne!(second["plan_hash"], first["plan_hash"]);
    assert_eq!(stack.tree(), tree, "the first attempt was rolled back");
    stack.await_health("web", "down");
    let refused = cooper.run(["approve", id, "--plan", text(&first, "plan_hash")]);
    assert!(refused.err().contains("plan_changed"), "{refused}");
    check_second_succeeded(&cooper.json(["approve", id, "--follow"]));
    assert_eq!(stack.health("web"), "healthy");
}

#[test]
fn a_run_between_two_attempts_outlives_kills_of_the_coordinator() {
    if !docker::wanted("a_run_between_two_attempts_outlives_kills_of_the_coordinator") {
        return;
    }
    let stack = Stack::broken("between", &["two-missing-packages"]);
    let cluster = Setup::compose().start();
    let cooper = patient(cluster.cooper());
    let following = cooper.start(["--json", "repair", "web", "--stack", stack.arg()], b"");
    let newest = |list: &Answer, is: &dyn Fn(&Answer) -> bool| list["runs"].get(0).is_some_and(is);
    let rolls_back = |list: &Answer| newest(list, &|run| run["state"] == "rolling_back");
    cooper.until_json("the end of the first attempt", seconds(180), &["runs", "list"], rolls_back);
    cluster.kill("coordinator");
    let again = |list: &Answer| newest(list, &|run| run["attempt"] == 2);
    cooper.until_json("a second attempt", seconds(120), &["runs", "list"], again);
    cluster.kill("coordinator");
    let run = following.finish(seconds(300)).expect(0).json();
    check_second_succeeded(&run);
    assert_eq!(stack.health("web"), "healthy");
    let built = steps(&run).into_iter().filter(|(_, name, _)| *name == "build").count();
    assert_eq!(built, 2, "{run:#}");
}
