//! Each way to break the example stack, repaired: healthy, promoted exactly as its patch says, the rest untouched.

use cooper_tests::{Answer, Cooper, cluster::shared_compose, docker, docker::Stack, seconds, tree};

/// A repair builds images.
pub fn patient(cooper: Cooper) -> Cooper {
    cooper.patience(seconds(300))
}

/// Content of an artifact.
pub fn artifact(cooper: &Cooper, run: &str, name: &str) -> Vec<u8> {
    cooper.run(["runs", "artifact", run, name]).expect(0).stdout
}

pub fn text<'a>(run: &'a Answer, field: &str) -> &'a str {
    run[field].as_str().unwrap_or_else(|| panic!("{field} in {run:#}"))
}

pub fn names(run: &Answer) -> Vec<&str> {
    run["artifacts"].as_array().expect("a list").iter().filter_map(Answer::as_str).collect()
}

/// Every artifact of a repair that went through is there, says something, and comes out the same way twice.
fn check_artifacts(cooper: &Cooper, run: &Answer) {
    let id = text(run, "run_id");
    let scratch = cooper_tests::Scratch::new("artifacts");
    cooper.ok(["runs", "artifacts", id, "--to", scratch.path().to_str().expect("plain")]);
    let listed = cooper.json(["runs", "artifacts", id]);
    for name in
        ["analyze.log", "plan.json", "patch.diff", "build.log", "restart.log", "verify.log", "metrics.json"]
    {
        assert!(names(run).contains(&name), "{name} in {run:#}");
        let content = artifact(cooper, id, name);
        assert!(!content.is_empty(), "{name}");
        assert!(std::fs::read(scratch.join(name)).expect("it was copied") == content, "{name}");
        let sizes = listed["artifacts"].as_array().expect("a list").iter();
        let size = sizes.filter(|artifact| artifact["name"] == name).map(|artifact| &artifact["size_bytes"]);
        assert_eq!(size.collect::<Vec<_>>(), [&Answer::from(content.len())], "{name}");
    }
    let plan: Answer = serde_json::from_slice(&artifact(cooper, id, "plan.json")).expect("JSON");
    assert!(plan.to_string().contains(text(run, "rule_id")), "{plan:#}");
    let metrics: Answer = serde_json::from_slice(&artifact(cooper, id, "metrics.json")).expect("JSON");
    let after = &metrics["containers_after"][0];
    assert_eq!(
        (&metrics["state"], &after["health"]),
        (&"succeeded".into(), &"healthy".into()),
        "{metrics:#}"
    );
    assert!(
        after["memory_bytes"].as_u64() > Some(0) && metrics["duration_ms"].as_u64() > Some(0),
        "{metrics:#}"
    );
    assert!(metrics["containers_before"].is_array(), "{metrics:#}");
}

/// Breaks a healthy stack, repairs `web`, and compares everything that could have changed.
fn breaks_and_heals(how: &str, seen_before: &str, changes: &[&str]) {
    let stack = Stack::healthy(how);
    stack.visit();
    stack.break_it(how);
    stack.compose(&["up", "-d", "--build"]);
    stack.await_health("web", seen_before);
    let (before, neighbour, image) = (stack.tree(), stack.container("store"), stack.image("web"));

    let cluster = shared_compose();
    let cooper = patient(cluster.cooper());
    let run = cooper.json(["repair", "web", "--stack", stack.arg()]);
    assert_eq!(text(&run, "state"), "succeeded", "{run:#}");
    assert_eq!(text(&run, "promotion"), "promoted");
    assert!(!text(&run, "rule_id").is_empty() && !text(&run, "cause").is_empty(), "{run:#}");
    let steps: Vec<(&str, &str)> = run["steps"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|step| (text(step, "name"), text(step, "state")))
        .filter(|(name, _)| *name != "rollback")
        .collect();
    let done = ["analyze", "patch", "build", "restart", "verify", "promote"].map(|name| (name, "succeeded"));
    assert_eq!(steps, done, "{run:#}");

    // The service is healthy, on an image of its own; its neighbour never noticed.
    assert_eq!(stack.health("web"), "healthy");
    assert_ne!(stack.image("web"), image);
    assert_eq!(stack.container("web").image, stack.image("web"));
    assert_eq!(stack.container("store"), neighbour);
    assert_eq!(stack.visits(), 1, "it goes on counting");

    // The checkout changed exactly as the patch says, in the files the plan names.
    check_artifacts(&cooper, &run);
    let after = stack.tree();
    assert_eq!(tree::changed(&before, &after), changes);
    assert_eq!(run["files"], serde_json::json!(changes));
    let patch = artifact(&cooper, text(&run, "run_id"), "patch.diff");
    let patched = stack.patched(&before, &patch);
    for path in before.keys().chain(after.keys()).filter(|path| patched.contains_key(*path)) {
        assert_eq!(after.get(path), patched.get(path), "{path}");
    }

    // What was promoted is what a user builds from now on.
    stack.compose(&["up", "-d", "--build", "--wait"]).expect(0);
    assert_eq!(stack.health("web"), "healthy");
    assert_eq!(stack.container("store"), neighbour);
}

#[test]
fn a_missing_python_package_is_found_and_installed() {
    if docker::wanted("a_missing_python_package_is_found_and_installed") {
        breaks_and_heals("missing-python-package", "down", &["web/requirements.txt"]);
    }
}

#[test]
fn a_missing_command_at_build_is_found_and_installed() {
    if docker::wanted("a_missing_command_at_build_is_found_and_installed") {
        breaks_and_heals("missing-apt-package", "healthy", &["web/Dockerfile"]);
    }
}

#[test]
fn a_missing_system_header_is_found_and_installed() {
    if docker::wanted("a_missing_system_header_is_found_and_installed") {
        breaks_and_heals("missing-header", "healthy", &["web/Dockerfile"]);
    }
}

#[test]
fn for_people_a_repair_says_each_step_and_what_came_of_it() {
    if !docker::wanted("for_people_a_repair_says_each_step_and_what_came_of_it") {
        return;
    }
    let stack = Stack::broken("people", &["missing-python-package"]);
    // From the directory itself, as a user would.
    let cooper = patient(shared_compose().cooper()).dir(&stack.dir);
    let said = cooper.run(["repair", "web", "--stack", "."]).expect(0);
    let out = said.out();
    for word in [
        "analyze",
        "patch",
        "build",
        "restart",
        "verify",
        "promote",
        "succeeded",
        "web/requirements.txt",
        "patch.diff",
    ] {
        assert!(out.contains(word), "{word}\n{said}");
    }
    assert!(!out.contains('\r') && !out.contains('\x1b'), "no progress line in a pipe\n{said}");
    let listed = cooper.json(["runs", "list"]);
    let ours =
        listed["runs"].as_array().expect("a list").iter().find(|run| out.contains(text(run, "run_id")));
    assert_eq!(ours.map(|run| text(run, "state")), Some("succeeded"));
}

#[test]
fn two_runs_on_one_service_come_one_after_the_other() {
    if !docker::wanted("two_runs_on_one_service_come_one_after_the_other") {
        return;
    }
    let stack = Stack::broken("both", &["missing-python-package"]);
    let cooper = patient(shared_compose().cooper());
    let args = ["--json", "repair", "web", "--stack", stack.arg()];
    let both = [cooper.start(args, b""), cooper.start(args, b"")].map(|run| run.finish(seconds(300)));
    let mut runs = both.map(|run| run.json());
    runs.sort_by_key(|run| text(run, "run_id").to_owned());
    let [first, second] = &runs;
    assert_eq!(text(first, "state"), "succeeded", "{first:#}");
    assert!(
        ["succeeded", "refused"].contains(&text(second, "state")),
        "nothing is left to repair: {second:#}"
    );
    let times = |run: &Answer, field: &str| -> Vec<i64> {
        let steps = run["steps"].as_array().expect("a list").iter();
        steps.filter_map(|step| step[field].as_i64()).filter(|at| *at > 0).collect()
    };
    let first_ended = times(first, "ended_at_ms").into_iter().max().expect("it did something");
    let second_began = times(second, "started_at_ms").into_iter().min().expect("it did something");
    assert!(second_began >= first_ended, "{second_began} {first_ended}\n{second:#}");
    assert_eq!(stack.health("web"), "healthy");
}
