//! Steps of a repair on real Docker: the example stack broken, repaired step by step, and brought back from any of them.

mod stack_fixture;

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use cooper_repair::Decision;
use cooper_repair::edit::{FileChange, Root};
use cooper_repair::step::{Analysis, HealthClass, Input, Report};
use rustix::process::Signal;
use stack_fixture::{Fixture, STEPS, example_or_skip, small_or_skip};

/// A repair from a broken stack to a healthy one, each step performed twice.
#[test]
fn a_missing_python_package_is_repaired_and_repeating_a_step_changes_nothing() {
    let Some(fixture) = example_or_skip("python") else { return };
    fixture.up();
    fixture.break_it("missing-python-package");
    fixture.deploy_broken();
    let before = fixture.checkout();
    let neighbour = fixture.container("store");

    let analyzed = fixture.analyze(None);
    let start = analyzed.start.clone().expect("a start record");
    assert_eq!(start.health, HealthClass::Down);
    assert_eq!(start.neighbours.values().collect::<Vec<_>>(), [&neighbour.id]);
    assert_eq!(fixture.analyze(None).start, Some(start.clone()));
    let plan = fixture.plan(&analyzed);
    assert_eq!(fixture.checkout(), before, "nothing is written before the promotion");

    for step in STEPS {
        let reports: Vec<Report> = (0..2).map(|_| fixture.step(step, &plan)).collect();
        for report in &reports {
            assert!(report.ok, "{step}: {} {}\n{}", report.code, report.message, fixture.log());
        }
        match step {
            "build" => {
                assert_eq!(fixture.image("web"), start.image_id, "the service's tag waits for restart")
            }
            "restart" => assert_ne!(fixture.image("web"), start.image_id),
            "promote" => assert!(reports.iter().all(|report| report.promotion == "promoted")),
            "patch" => {
                let mut patched = fixture.copy();
                patched.apply(&reports[1].artifacts[0].content);
                assert_ne!(patched.checkout(), before);
            }
            _ => {}
        }
        if step != "promote" {
            assert_eq!(fixture.checkout(), before, "nothing is written before the promotion");
        }
    }
    assert_eq!(fixture.container("web").health, "healthy");
    assert_eq!(fixture.container("store"), neighbour);
    let mut expected = before.clone();
    let requirements = expected.get_mut("web/requirements.txt").expect("it is there");
    // What is added is pinned to what is now in the image.
    let version = ["exec", "-T", "web", "python", "-c", "import yaml; print(yaml.__version__)"];
    requirements.extend_from_slice(format!("PyYAML=={}\n", fixture.compose(&version).trim()).as_bytes());
    assert_eq!(fixture.checkout(), expected);
    assert_eq!(fixture.run_tags(), Vec::<String>::new(), "only the old image stays named");
    assert_eq!(fixture.image(&fixture.kept()), start.image_id);

    // And all the way back, from the very end, twice.
    for _ in 0..2 {
        let report = fixture.step("rollback", &plan);
        assert!(report.restored, "{}\n{}", report.message, fixture.log());
        assert_eq!(fixture.checkout(), before);
        assert_eq!(fixture.image("web"), start.image_id);
        assert_eq!(fixture.container("store"), neighbour);
    }
}

/// What a rollback has to bring back.
fn state(fixture: &Fixture) -> impl PartialEq + std::fmt::Debug + use<> {
    let web = fixture.container("web");
    (fixture.checkout(), fixture.image("web"), web.image, web.status, fixture.container("store").id)
}

/// Performs the first steps, then rolls back, and wants everything as it was.
fn forth_and_back(fixture: &mut Fixture, steps: &[&str]) {
    fixture.next_run();
    let before = state(fixture);
    let unnamed = fixture.unnamed();
    let analyzed = fixture.analyze(None);
    let plan = fixture.plan_to_set(&analyzed, "COLOUR", "blue");
    for step in steps {
        let report = fixture.step(step, &plan);
        assert!(report.ok, "{step}: {} {}", report.code, report.message);
    }
    for _ in 0..2 {
        let report = fixture.step("rollback", &plan);
        assert!(report.restored, "after {steps:?}: {}", report.message);
        assert_eq!(state(fixture), before, "after {steps:?}");
    }
    assert_eq!(fixture.run_tags(), Vec::<String>::new());
    assert_eq!(fixture.image(&fixture.kept()), "", "nothing of the run stays");
    assert_eq!(fixture.unnamed(), unnamed, "nothing of the run stays");
    assert!(!fixture.run_dir().join("stage").exists());
}

#[test]
fn a_rollback_after_any_step_restores() {
    let Some(mut fixture) = small_or_skip("rollback") else { return };
    fixture.up();
    for n in 0..=STEPS.len() {
        forth_and_back(&mut fixture, &STEPS[..n]);
    }
}

/// I7 after a kill: the engine is still at what the killed step had asked for.
#[test]
fn a_rollback_is_tried_again_where_the_engine_refuses_for_a_moment() {
    let Some(fixture) = small_or_skip("refused") else { return };
    fixture.up();
    let before = state(&fixture);
    let plan = fixture.plan_to_set(&fixture.analyze(None), "COLOUR", "blue");
    for step in ["patch", "build", "restart"] {
        assert!(fixture.step(step, &plan).ok, "{step}");
    }
    let directory = tempfile::tempdir().expect("a directory");
    let docker = directory.path().join("docker");
    let path = std::env::var("PATH").expect("a path");
    let text = format!(
        "#!/bin/sh\ncase \" $* \" in *' up '*) if mkdir \"$0.refused\" 2>/dev/null; then\n\
         echo 'removal of container is already in progress' >&2; exit 1; fi;; esac\n\
         PATH='{path}' exec docker \"$@\"\n"
    );
    std::fs::write(&docker, text).expect("a program");
    std::fs::set_permissions(&docker, std::fs::Permissions::from_mode(0o755)).expect("its mode");
    let path = format!("{}:{path}", directory.path().display());
    let process = fixture.spawn("step_process", &fixture.input("rollback", &plan), &[("PATH", &path)]);
    let (report, log) = process.wait();
    let report = report.expect("a report");
    assert!(report.restored, "{}\n{log}", report.message);
    assert!(log.contains("already in progress"), "it was refused once: {log}");
    assert_eq!(state(&fixture), before);
}

#[test]
fn a_rollback_restores_a_container_whose_image_the_tag_does_not_name_any_more() {
    let Some(mut fixture) = small_or_skip("undeployed") else { return };
    fixture.up();
    fixture.write("web/extra.txt", "");
    fixture.write(
        "web/Dockerfile",
        &fixture.read("web/Dockerfile").replace("COPY app.py", "COPY extra.txt app.py"),
    );
    fixture.compose(&["build", "web"]);
    assert_ne!(fixture.container("web").image, fixture.image("web"));
    forth_and_back(&mut fixture, &STEPS);
    assert_ne!(fixture.container("web").image, fixture.image("web"));
}

#[test]
fn a_rollback_restores_absence() {
    let Some(mut fixture) = small_or_skip("absent") else { return };
    fixture.compose(&["up", "-d", "--build", "store"]);
    forth_and_back(&mut fixture, &STEPS);
    assert_eq!((fixture.image("web"), fixture.container("web").id), (String::new(), String::new()));
    // And a container that was stopped is stopped again.
    fixture.up();
    fixture.compose(&["stop", "web"]);
    let stopped = fixture.container("web").image;
    fixture.next_run();
    let plan = fixture.plan_to_set(&fixture.analyze(None), "COLOUR", "blue");
    for step in ["patch", "build", "restart", "verify", "rollback"] {
        let report = fixture.step(step, &plan);
        assert!(report.ok, "{step}: {}", report.message);
    }
    let web = fixture.container("web");
    assert_eq!(web.image, stopped);
    assert!(["exited", "created"].contains(&web.status.as_str()), "{web:?}");
}

#[test]
fn a_patch_that_changes_no_image_stops_before_the_restart() {
    let Some(fixture) = small_or_skip("no-effect") else { return };
    fixture.up();
    let analyzed = fixture.analyze(None);
    let old = fixture.read("web/Dockerfile");
    let mut plan = fixture.plan_to_set(&analyzed, "COLOUR", "blue");
    let new = format!("{old}# only a comment\n");
    plan.edits[0].diff = cooper_repair::diff::unified("Dockerfile", Some(&old), &new);
    (plan.edits[0].new_content, plan.edits[0].edits) = (new, vec![]);
    let running = fixture.container("web");
    assert!(fixture.step("patch", &plan).ok);
    let built = fixture.step("build", &plan);
    assert_eq!(built.code, "patch_no_effect", "{}", built.message);
    assert!(fixture.step("rollback", &plan).restored);
    assert_eq!(fixture.container("web"), running);
}

#[test]
fn another_services_container_that_changes_during_a_restart_fails_it() {
    let Some(fixture) = small_or_skip("neighbour") else { return };
    // A signal that ends nothing: the restart takes as long as the grace period.
    let slow = fixture.read("compose.yaml").replacen("1s", "5s\n    stop_signal: SIGWINCH", 1);
    fixture.write("compose.yaml", &slow);
    fixture.up();
    let plan = fixture.plan_to_set(&fixture.analyze(None), "COLOUR", "blue");
    for step in ["patch", "build"] {
        assert!(fixture.step(step, &plan).ok);
    }
    let restarted = std::thread::scope(|scope| {
        scope.spawn(|| {
            let journal = fixture.run_dir().join("restart.json");
            while !journal.exists() {
                std::thread::sleep(Duration::from_millis(20));
            }
            std::thread::sleep(Duration::from_millis(800));
            fixture.compose(&["up", "-d", "--force-recreate", "--no-deps", "store"]);
        });
        fixture.step("restart", &plan)
    });
    assert_eq!(restarted.code, "neighbour_changed", "{}", restarted.message);
    assert!(restarted.message.contains("-store-1"), "{}", restarted.message);
    // The service itself is brought back; that its neighbour is another one is not hidden.
    let report = fixture.step("rollback", &plan);
    assert_eq!((report.restored, report.code.as_str()), (false, "rollback_failed"), "{}", report.message);
    assert!(report.message.contains("-store-1 of another service is not the same"), "{}", report.message);
}

/// I7 where somebody has removed the image of before.
#[test]
fn a_rollback_without_the_old_image_builds_it_again_and_says_so() {
    let Some(mut fixture) = small_or_skip("image-gone") else { return };
    fixture.up();
    let before = fixture.checkout();
    let neighbour = fixture.container("store");
    let plan = fixture.plan_to_set(&fixture.analyze(None), "COLOUR", "blue");
    for step in ["patch", "build", "restart", "verify", "promote"] {
        assert!(fixture.step(step, &plan).ok, "{step}");
    }
    fixture.remove_image(&fixture.kept());
    // Else the engine's cache would bring back the very image.
    let old = fixture.read("web/Dockerfile");
    fixture.write("web/Dockerfile", std::str::from_utf8(&before["web/Dockerfile"]).expect("text"));
    fixture.build_anew("web");
    fixture.write("web/Dockerfile", &old);
    for _ in 0..2 {
        let report = fixture.step("rollback", &plan);
        assert!(report.restored, "{}\n{}", report.message, fixture.log());
        assert_eq!(report.image_equal, Some(false));
        assert!(report.message.contains("built again"), "{}", report.message);
        assert_eq!((fixture.checkout(), fixture.container("store")), (before.clone(), neighbour.clone()));
        assert_eq!(fixture.container("web").image, fixture.image("web"));
    }
    assert_eq!(fixture.run_tags(), Vec::<String>::new());

    // And where the files of before do not build either, a person is told what to do.
    fixture.next_run();
    let plan = fixture.plan_to_set(&fixture.analyze(None), "COLOUR", "red");
    for step in ["patch", "build", "restart"] {
        assert!(fixture.step(step, &plan).ok, "{step}");
    }
    fixture.remove_image(&fixture.kept());
    fixture.write("web/Dockerfile", &format!("{}RUN false\n", fixture.read("web/Dockerfile")));
    let report = fixture.step("rollback", &plan);
    assert_eq!((report.restored, report.code.as_str()), (false, "rollback_failed"), "{}", report.message);
    assert!(report.message.contains("the restored files do not build"), "{}", report.message);
    assert!(report.message.contains("By hand: docker compose --project-directory"), "{}", report.message);
}

/// The small stack without a secret in its compose file, which then may go into a plan, and with comments.
fn plain_or_skip(name: &str) -> Option<Fixture> {
    let fixture = small_or_skip(name)?;
    let plain = fixture.read("compose.yaml").replace("planted-secret-value", "short  # no secret");
    fixture.write("compose.yaml", &plain);
    Some(fixture)
}

#[test]
fn a_missing_variable_is_wired_from_the_stacks_example_and_the_compose_file_keeps_its_lines() {
    let Some(fixture) = plain_or_skip("wired") else { return };
    fixture.write(
        "web/app.py",
        &fixture.read("web/app.py").replace("import http", "import os; os.environ['GREETING']\nimport http"),
    );
    fixture.write(".env.example", "GREETING=\"hello $you\"  # any text\n");
    fixture.deploy_broken();
    let (before, neighbour) = (fixture.checkout(), fixture.container("store"));
    let analyzed = fixture.analyze(None);
    let plan = fixture.plan(&analyzed);
    assert!(matches!(plan.decision, Decision::NeedsApproval { .. }), "{:?}", plan.decision);
    for step in ["patch", "restart", "verify", "promote"] {
        assert_eq!(fixture.checkout(), before, "nothing is written before the promotion");
        for _ in 0..2 {
            let report = fixture.step(step, &plan);
            assert!(report.ok, "{step}: {} {}\n{}", report.code, report.message, fixture.log());
        }
    }
    let was = std::str::from_utf8(&before["compose.yaml"]).expect("text");
    let line = "      MODE: live\n";
    let expected = was.replace(line, &format!("{line}      GREETING: \"hello $$you\"\n"));
    assert_eq!(fixture.read("compose.yaml"), expected);
    assert_eq!(fixture.variable("web", "GREETING").as_deref(), Some("hello $you"));
    // What the user does next finds nothing to do.
    let repaired = fixture.container("web");
    fixture.compose(&["up", "-d", "--no-build"]);
    assert_eq!((fixture.container("web").id, fixture.container("store")), (repaired.id, neighbour.clone()));
    for _ in 0..2 {
        let report = fixture.step("rollback", &plan);
        assert!(report.restored, "{}\n{}", report.message, fixture.log());
        assert_eq!((fixture.checkout(), fixture.container("store")), (before.clone(), neighbour.clone()));
        assert_eq!(fixture.variable("web", "GREETING"), None);
    }
}

#[test]
fn a_changed_compose_file_is_rolled_back_after_any_step() {
    let Some(mut fixture) = plain_or_skip("unwired") else { return };
    fixture.up();
    let steps = ["patch", "restart", "verify", "promote"];
    for n in 0..=steps.len() {
        fixture.next_run();
        let before = state(&fixture);
        let plan = fixture.plan_to_wire(&fixture.analyze(None), "COLOUR", "blue");
        for step in &steps[..n] {
            let report = fixture.step(step, &plan);
            assert!(report.ok, "{step}: {} {}", report.code, report.message);
        }
        assert_eq!(fixture.variable("web", "COLOUR").is_some(), n >= 2);
        for _ in 0..2 {
            let report = fixture.step("rollback", &plan);
            assert!(report.restored, "after {n} steps: {}\n{}", report.message, fixture.log());
            assert_eq!(state(&fixture), before, "after {n} steps");
            assert_eq!(fixture.variable("web", "COLOUR"), None);
        }
    }
}

#[test]
fn a_port_that_is_taken_is_moved() {
    let Some(fixture) = plain_or_skip("port") else { return };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let ports = format!("ports: [\"127.0.0.1:{port}:8000\"]");
    fixture.write("compose.yaml", &fixture.read("compose.yaml").replace("expose: [8000]", &ports));
    fixture.deploy_broken();
    let analyzed = fixture.analyze(None);
    let plan = fixture.plan(&analyzed);
    for step in ["patch", "restart", "verify", "promote"] {
        let report = fixture.step(step, &plan);
        assert!(report.ok, "{step}: {} {}\n{}", report.code, report.message, fixture.log());
    }
    assert!(fixture.read("compose.yaml").contains(&format!("127.0.0.1:{}:8000", port + 1)));
}

#[test]
fn of_a_compose_file_nothing_else_is_changed() {
    let Some(fixture) = plain_or_skip("unwirable") else { return };
    fixture.up();
    let plan = fixture.plan_to_wire(&fixture.analyze(None), "COLOUR", "blue");
    let old = fixture.read("compose.yaml");
    let before = (fixture.checkout(), fixture.container("web"));
    for (from, to) in [
        ("stable_for: 1s", "stable_for: 1s\n      protected: false"),
        ("init: true", "init: true\n    privileged: true"),
        ("init: true", "init: true\n    volumes: [\"/var/run/docker.sock:/s\"]"),
        ("build: ./store", "build: ./web"),
        ("build: ./web", "build: .."),
    ] {
        let mut plan = plan.clone();
        let new = old.replacen(from, to, 1);
        plan.edits[0].diff = cooper_repair::diff::unified("compose.yaml", Some(&old), &new);
        (plan.edits[0].new_content, plan.edits[0].edits) = (new, vec![]);
        let report = fixture.step("patch", &plan);
        assert_eq!(report.code, "policy_refused", "{to}: {}", report.message);
    }
    // Nor is it enough that a rule says so: a person has to look at it.
    let mut auto = plan.clone();
    auto.diagnosis.class = cooper_repair::Class::Auto;
    assert_eq!(fixture.step("patch", &auto).code, "policy_refused");
    assert_eq!((fixture.checkout(), fixture.container("web")), before);
}

#[test]
fn an_image_that_fails_beside_the_running_service_leaves_that_untouched() {
    let Some(mut fixture) = small_or_skip("preflight") else { return };
    fixture.up();
    let (web, store) = (fixture.container("web"), fixture.container("store"));
    for (dies, why) in [("at-once", "exited, exit code 1"), ("soon", "exit code 3")] {
        fixture.next_run();
        let plan = fixture.plan_to_set(&fixture.analyze(None), "DIES", dies);
        assert!(plan.preflight);
        for step in ["patch", "build"] {
            assert!(fixture.step(step, &plan).ok);
        }
        for _ in 0..2 {
            let report = fixture.step("restart", &plan);
            assert_eq!(report.code, "preflight_failed", "{}\n{}", report.message, fixture.log());
            assert!(
                report.message.contains(why) && report.message.contains("not touched"),
                "{}",
                report.message
            );
            assert_eq!((fixture.container("web"), fixture.container("store")), (web.clone(), store.clone()));
        }
        assert!(fixture.step("rollback", &plan).restored);
        assert_eq!((fixture.container("web"), fixture.one_offs()), (web.clone(), String::new()));
    }
    assert!(fixture.log().contains("  | it died"), "what it printed is in the log");
    // One that passes is followed by the restart in place, once.
    fixture.next_run();
    let plan = fixture.plan_to_set(&fixture.analyze(None), "COLOUR", "blue");
    for step in ["patch", "build", "restart", "restart", "verify"] {
        let report = fixture.step(step, &plan);
        assert!(report.ok, "{step}: {}\n{}", report.message, fixture.log());
    }
    assert!(fixture.log().contains("preflight: web is well"));
    assert_ne!(fixture.container("web").id, web.id);
    assert_eq!((fixture.one_offs(), fixture.container("store")), (String::new(), store));
    // What was down has nothing to be spared.
    fixture.compose(&["stop", "web"]);
    fixture.next_run();
    let plan = fixture.plan_to_set(&fixture.analyze(None), "COLOUR", "red");
    for step in ["patch", "build", "restart"] {
        assert!(fixture.step(step, &plan).ok);
    }
    assert!(fixture.log().contains("no preflight: the service does not run"));
}

#[test]
fn what_is_not_committed_and_goes_into_the_image_is_named() {
    let Some(fixture) = small_or_skip("uncommitted") else { return };
    assert_eq!(fixture.analyze(None).evidence.expect("evidence").uncommitted, Vec::<String>::new());
    fixture.commit();
    fixture.write("web/app.py", &format!("{}# mine\n", fixture.read("web/app.py")));
    fixture.write("web/new file.txt", "");
    fixture.write("store/other.txt", "");
    let index = std::fs::read(fixture.path(".git/index")).expect("an index");
    let evidence = fixture.analyze(None).evidence.expect("evidence");
    assert_eq!(evidence.uncommitted, [" M web/app.py", "?? web/new file.txt"]);
    assert_eq!(std::fs::read(fixture.path(".git/index")).expect("an index"), index);
}

#[test]
fn a_command_in_the_container_shows_that_a_service_is_well_and_ports_are_asked_of_its_kernel() {
    let Some(mut fixture) = small_or_skip("exec") else { return };
    let original = fixture.read("compose.yaml");
    let with = |exec: &str| {
        let health =
            format!("{{stable_for: 1s, health: {{exec: [python, -c, \"{exec}\"], body_contains: fine}}}}");
        original.replace("stable_for: 1s", &health)
    };
    fixture.write("compose.yaml", &with("print('fine')"));
    fixture.up();
    for (exec, said) in [
        ("print('fine')", "in the container ended with 0"),
        ("raise SystemExit(3)", "in the container ended with 3"),
        ("print('bad')", "does not print"),
    ] {
        fixture.write("compose.yaml", &with(exec));
        fixture.next_run();
        let mut plan = fixture.plan_with(&fixture.analyze(None), vec![]);
        plan.verify.become_well_ms = 1_000;
        let report = fixture.step("verify", &plan);
        assert!(
            report.ok == (exec == "print('fine')") && report.message.contains(said),
            "{}",
            report.message
        );
    }
    // No healthcheck, no request, and no way to the port from here: its kernel knows who listens.
    fixture
        .write("compose.yaml", &original.replace("expose: [8000]", "expose: [8000]\n    network_mode: none"));
    fixture.up();
    fixture.next_run();
    let mut plan = fixture.plan_with(&fixture.analyze(None), vec![]);
    let report = fixture.step("verify", &plan);
    assert!(report.ok && report.message.contains("port 8000 accepts"), "{}", report.message);
    fixture
        .write("compose.yaml", &original.replace("expose: [8000]", "expose: [8001]\n    network_mode: none"));
    plan.verify.become_well_ms = 1_000;
    let report = fixture.step("verify", &plan);
    assert!(!report.ok && report.message.contains("port 8001 does not accept"), "{}", report.message);
}

#[test]
fn what_a_service_printed_when_it_was_well_is_kept_for_the_next_failure() {
    let Some(mut fixture) = small_or_skip("good-log") else { return };
    fixture.up();
    let mut plan = fixture.plan_to_set(&fixture.analyze(None), "COLOUR", "blue");
    plan.preflight = false;
    for step in ["patch", "build", "restart", "verify", "promote"] {
        assert!(fixture.step(step, &plan).ok, "{step}");
    }
    fixture.write("compose.yaml", &fixture.read("compose.yaml").replace("MODE: live", "DIES: at-once"));
    fixture.deploy_dying();
    fixture.next_run();
    let evidence = fixture.analyze(None).evidence.expect("evidence");
    assert_eq!(evidence.good_log.trim(), "token [redacted]");
    assert!(evidence.container_log.contains("it died"));
    fixture.write("web/Dockerfile", &format!("{}RUN false\n", fixture.read("web/Dockerfile")));
    fixture.next_run();
    let evidence = fixture.analyze(None).evidence.expect("evidence");
    assert!(evidence.good_log.contains("COPY app.py"), "{}", evidence.good_log);
}

#[test]
fn what_a_rule_of_the_coordinators_own_explains_is_not_built_to_know_more() {
    let Some(fixture) = small_or_skip("own-rule") else { return };
    // An image of its own: one from the cache would be older than its context.
    fixture.write("web/app.py", &format!("# {}\n{}", fixture.project, fixture.read("web/app.py")));
    fixture.up();
    fixture.write("compose.yaml", &fixture.read("compose.yaml").replace("MODE: live", "DIES: at-once"));
    fixture.deploy_dying();
    let rule = "[[rule]]\nid = \"shop.died\"\necosystem = \"shop\"\nwhere = \"runtime\"\npattern = '^it died$'\n\
        cause = \"It died.\"\nclass = \"retry\"\nfix = { kind = \"rebuild\" }\n[rule.examples]\nmatch = [\"it died\"]\n";
    let input = |rules| Input::Analyze {
        stack: fixture.stack(),
        service: "web".to_owned(),
        log: None,
        instruction: None,
        mode: Analysis::Service,
        rules,
    };
    let own = vec![("shop.toml".to_owned(), rule.to_owned())];
    for (rules, builds) in [(Some(own), false), (None, true), (Some(vec![]), true)] {
        let report = fixture.perform(&input(rules));
        assert_eq!(report.message.contains("its context builds"), builds, "{}", report.message);
    }
}

/// The user's index and branch, and his files but for the one of the plan.
fn of_the_user(fixture: &Fixture) -> impl PartialEq + std::fmt::Debug + use<> {
    let index = std::fs::read(fixture.path(".git/index")).expect("an index");
    let mut files = fixture.checkout();
    files.retain(|path, _| !path.starts_with(".git/") && path != "web/Dockerfile");
    (index, fixture.git(&["symbolic-ref", "HEAD"]), fixture.git(&["rev-parse", "HEAD"]), files)
}

#[test]
fn a_promoted_repair_is_committed_pushed_and_proposed_and_the_users_repository_stays_as_it_is() {
    let Some(fixture) = small_or_skip("git") else { return };
    let policy = "stable_for: 1s\n      git: pull_request";
    fixture.write("compose.yaml", &fixture.read("compose.yaml").replace("stable_for: 1s", policy));
    let bare = tempfile::tempdir().expect("a directory");
    let remote = bare.path().join("ann/shop.git");
    fixture.commit();
    fixture.git(&["init", "--quiet", "--bare", remote.to_str().expect("a path")]);
    fixture.git(&["remote", "add", "origin", remote.to_str().expect("a path")]);
    // What the user is at: something staged, something changed, something new.
    fixture.write("notes.md", "staged\n");
    fixture.git(&["add", "notes.md"]);
    fixture.write("web/app.py", &format!("{}# mine\n", fixture.read("web/app.py")));
    fixture.write("new.txt", "new\n");
    fixture.up();
    let mut plan = fixture.plan_to_set(&fixture.analyze(None), "COLOUR", "blue");
    plan.preflight = false;
    for step in ["patch", "build", "restart", "verify"] {
        assert!(fixture.step(step, &plan).ok, "{step}");
    }
    let before = of_the_user(&fixture);
    let api = Listener::start(201, r#"{"html_url": "http://127.0.0.1/ann/shop/pull/7"}"#);
    let environment =
        [("GITHUB_TOKEN", "planted-token-12345"), ("GITHUB_API_URL", api.url.as_str()), ("HTTP_PROXY", "")];
    let mut said = Vec::new();
    for _ in 0..2 {
        let process = fixture.spawn("step_process", &fixture.input("promote", &plan), &environment);
        let (report, log) = process.wait();
        let report = report.expect("a report");
        assert_eq!(report.promotion, "promoted", "{}\n{log}", report.message);
        assert_eq!(of_the_user(&fixture), before);
        assert!(!log.contains("planted-token") && !report.message.contains("planted-token"));
        said.push(report.message);
    }
    let branch = format!("cooper/{}", fixture.run.to_string().replace('_', "-"));
    assert!(
        said[0].contains(&branch) && said[0].contains("pull request http://127.0.0.1/ann/shop/pull/7"),
        "{said:?}"
    );
    assert_eq!(said[0], said[1]);
    let git_dir = format!("--git-dir={}", remote.display());
    let changed = fixture.git(&[&git_dir, "show", "--format=%an", "--name-only", &branch]);
    assert_eq!(changed.split_whitespace().collect::<Vec<_>>(), ["Cooper", "web/Dockerfile"]);
    let text = fixture.git(&[&git_dir, "show", &format!("{branch}:web/Dockerfile")]);
    assert_eq!(text.trim_end(), plan.edits[0].new_content.trim_end());
    assert_eq!(fixture.git(&["rev-list", "--count", &format!("HEAD..{branch}")]).trim(), "1");
    let asked = api.heard();
    assert!(
        asked[0].starts_with("POST /repos/ann/shop/pulls ")
            && asked[0].contains("Bearer planted-token-12345")
    );
    assert!(asked[0].contains(&format!("\"head\":\"{branch}\"")), "{}", asked[0]);
}

#[test]
fn a_token_reaches_the_remote_by_askpass_and_what_cannot_be_pushed_is_said() {
    let Some(fixture) = small_or_skip("askpass") else { return };
    let policy = "stable_for: 1s\n      git: push";
    fixture.write("compose.yaml", &fixture.read("compose.yaml").replace("stable_for: 1s", policy));
    let remote = Listener::start(403, "");
    fixture.commit();
    fixture.git(&["remote", "add", "origin", &format!("{}/ann/shop.git", remote.url)]);
    fixture.up();
    let mut plan = fixture.plan_to_set(&fixture.analyze(None), "COLOUR", "blue");
    plan.preflight = false;
    for step in ["patch", "build", "restart", "verify"] {
        assert!(fixture.step(step, &plan).ok, "{step}");
    }
    let token = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(token.path(), "planted-token-12345\n").expect("written");
    let environment =
        [("GITHUB_TOKEN_FILE", token.path().to_str().expect("a path")), ("no_proxy", "127.0.0.1")];
    let process = fixture.spawn("step_process", &fixture.input("promote", &plan), &environment);
    let (report, log) = process.wait();
    let report = report.expect("a report");
    // The repair itself is done.
    assert_eq!((report.ok, report.promotion.as_str()), (true, "promoted"), "{log}");
    assert!(report.message.contains("but not pushed"), "{}", report.message);
    assert!(!log.contains("planted-token") && !report.message.contains("planted-token"));
    let heard = remote.heard();
    assert!(heard[0].starts_with("GET /ann/shop.git/info/refs") && !heard[0].contains("uthorization"));
    let basic = "Basic eC1hY2Nlc3MtdG9rZW46cGxhbnRlZC10b2tlbi0xMjM0NQ==";
    assert!(heard[1].contains(basic), "{}", heard[1]);
    // A file with changes that nobody has committed is not committed by others.
    fixture.git(&["checkout", "--quiet", "--", "."]);
    fixture.write("web/Dockerfile", &format!("{}# mine\n", fixture.read("web/Dockerfile")));
    let mut fixture = fixture;
    fixture.next_run();
    let mut plan = fixture.plan_to_set(&fixture.analyze(None), "COLOUR", "red");
    plan.preflight = false;
    for step in ["patch", "build", "restart", "verify"] {
        assert!(fixture.step(step, &plan).ok, "{step}");
    }
    let report = fixture.step("promote", &plan);
    assert!(
        report.message.contains("web/Dockerfile has changes that are not committed"),
        "{}",
        report.message
    );
    assert!(!fixture.git(&["branch", "--list"]).contains(&fixture.run.to_string().replace('_', "-")));
}

/// A server of HTTP that wants to know who asks, and then answers everything in the same way.
struct Listener {
    url: String,
    heard: std::sync::Arc<std::sync::Mutex<Vec<String>>>,
}

impl Listener {
    fn start(status: u16, body: &'static str) -> Self {
        use std::io::{Read, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let heard = std::sync::Arc::<std::sync::Mutex<Vec<String>>>::default();
        let hears = heard.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                let mut request = Vec::new();
                let mut buffer = [0; 4096];
                // Head, and as much of a body as it announces.
                loop {
                    let n = stream.read(&mut buffer).unwrap_or(0);
                    request.extend_from_slice(&buffer[..n]);
                    let text = String::from_utf8_lossy(&request).to_lowercase();
                    let Some((head, body)) = text.split_once("\r\n\r\n") else {
                        if n == 0 {
                            break;
                        }
                        continue;
                    };
                    let announced = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                    let announced: usize = announced.map_or(0, |n| n.trim().parse().expect("a number"));
                    if n == 0 || body.len() >= announced {
                        break;
                    }
                }
                let text = String::from_utf8_lossy(&request).into_owned();
                let known = text.to_lowercase().contains("\r\nauthorization: ");
                let (status, more) =
                    if known { (status, "") } else { (401, "www-authenticate: Basic realm=\"x\"\r\n") };
                hears.lock().expect("unpoisoned").push(text);
                let length = body.len();
                let head = format!(
                    "HTTP/1.1 {status} X\r\n{more}content-length: {length}\r\nconnection: close\r\n\r\n"
                );
                let _ = stream.write_all(format!("{head}{body}").as_bytes());
            }
        });
        Self { url, heard }
    }

    fn heard(&self) -> Vec<String> {
        self.heard.lock().expect("unpoisoned").clone()
    }
}

/// `up -d --wait` calls both of these good.
#[test]
fn a_service_that_dies_is_not_verified_and_is_restored() {
    let Some(mut fixture) = small_or_skip("dies") else { return };
    fixture.up();
    for dies in ["at-once", "soon"] {
        fixture.next_run();
        let before = state(&fixture);
        let mut plan = fixture.plan_to_set(&fixture.analyze(None), "DIES", dies);
        plan.preflight = false;
        for step in ["patch", "build", "restart"] {
            assert!(fixture.step(step, &plan).ok);
        }
        let verified = fixture.step("verify", &plan);
        assert_eq!((verified.ok, verified.code.as_str()), (false, "verify_failed"), "{}", verified.message);
        assert!(fixture.step("rollback", &plan).restored, "{}", fixture.log());
        assert_eq!(state(&fixture), before);
    }
}

#[test]
fn a_plan_without_edits_restarts_once() {
    let Some(fixture) = small_or_skip("restart") else { return };
    fixture.up();
    let plan = fixture.plan_with(&fixture.analyze(None), vec![]);
    let before = fixture.container("web");
    assert!(fixture.step("restart", &plan).ok);
    let restarted = fixture.container("web");
    assert_eq!(restarted.id, before.id);
    assert_ne!(restarted.started_at, before.started_at);
    assert!(fixture.step("restart", &plan).ok);
    assert_eq!(fixture.container("web"), restarted);
    let report = fixture.step("verify", &plan);
    assert!(report.ok && report.message.contains("port 8000 accepts"), "{}", report.message);
}

#[test]
fn a_service_without_a_network_is_asked_from_inside_and_a_one_shot_by_its_end() {
    let Some(mut fixture) = small_or_skip("inside") else { return };
    let original = fixture.read("compose.yaml");
    let inside = original.replace("expose: [8000]", "network_mode: none").replace(
        "stable_for: 1s",
        "{stable_for: 1s, health: {url: 'http://web:8000/', body_contains: app.py}}",
    );
    fixture.write("compose.yaml", &inside);
    fixture.up();
    let analyzed = fixture.analyze(None);
    assert_eq!(analyzed.start.as_ref().map(|start| start.health), Some(HealthClass::Healthy));
    let plan = fixture.plan_with(&analyzed, vec![]);
    assert!(fixture.step("restart", &plan).ok);
    let report = fixture.step("verify", &plan);
    assert!(report.ok && report.message.contains("inside the container: status 200"), "{}", report.message);

    let one_shot = original.replace("restart: unless-stopped", "command: [\"true\"]").replace(
        "build: ./store",
        "build: ./store\n    depends_on: {web: {condition: service_completed_successfully}}",
    );
    fixture.write("compose.yaml", &one_shot);
    fixture.compose(&["up", "-d", "--build"]);
    fixture.next_run();
    let plan = fixture.plan_with(&fixture.analyze(None), vec![]);
    assert!(fixture.step("restart", &plan).ok);
    let report = fixture.step("verify", &plan);
    assert!(report.ok && report.message.contains("ended with exit code 0"), "{}", report.message);
}

#[test]
fn a_project_of_another_directory_is_refused() {
    let Some(fixture) = small_or_skip("twin") else { return };
    fixture.up();
    let input = |stack| Input::Analyze {
        stack,
        service: "web".to_owned(),
        log: None,
        instruction: None,
        mode: Analysis::Service,
        rules: None,
    };
    let twin = fixture.copy();
    let report = twin.perform(&input(twin.stack()));
    assert_eq!(report.code, "policy_refused", "{}", report.message);
}

#[test]
fn a_file_changed_meanwhile_is_not_overwritten() {
    let Some(fixture) = small_or_skip("dirty") else { return };
    fixture.up();
    let plan = fixture.plan_to_set(&fixture.analyze(None), "COLOUR", "blue");
    for step in ["patch", "build", "restart", "verify"] {
        assert!(fixture.step(step, &plan).ok);
    }
    fixture.write("web/Dockerfile", &format!("{}# mine\n", fixture.read("web/Dockerfile")));
    let before = fixture.checkout();
    for _ in 0..2 {
        let report = fixture.step("promote", &plan);
        assert_eq!((report.promotion.as_str(), report.code.as_str()), ("conflict", "promotion_conflict"));
        assert_eq!(fixture.checkout(), before);
    }
    // What changed before the patch makes the plan void.
    assert_eq!(fixture.step("patch", &plan).code, "plan_changed");
}

#[test]
fn what_policy_does_not_allow_is_refused_with_the_real_bytes() {
    let Some(fixture) = small_or_skip("policy") else { return };
    fixture.up();
    let analyzed = fixture.analyze(None);
    let mut plan = fixture.plan_to_set(&analyzed, "COLOUR", "blue");
    let change = |path: &str, root| FileChange {
        root,
        path: path.to_owned(),
        base_sha256: None,
        new_content: "x\n".to_owned(),
        mode: None,
        edits: vec![],
        description: String::new(),
        diff: cooper_repair::diff::unified(path, None, "x\n"),
    };
    let good = plan.edits.clone();
    for (path, root) in
        [("../outside", Root::Context), ("notes.md", Root::Context), (".env.new", Root::Stack)]
    {
        plan.edits = vec![change(path, root)];
        let report = fixture.step("patch", &plan);
        assert_eq!(report.code, "policy_refused", "{path}: {}", report.message);
    }
    plan.edits = good;
    plan.edits[0].new_content.push_str("RUN true\n");
    let report = fixture.step("patch", &plan);
    assert_eq!(report.code, "policy_refused", "{}", report.message);
    // A plan of before the service became protected was approved by nobody.
    let plan = fixture.plan_to_set(&analyzed, "COLOUR", "blue");
    fixture.write("compose.yaml", &fixture.read("compose.yaml").replace("stable_for: 1s", "protected: true"));
    assert_eq!(fixture.step("patch", &plan).code, "policy_refused");
}

#[test]
fn no_secret_leaves_the_worker() {
    let Some(fixture) = small_or_skip("secret") else { return };
    fixture.write(
        "web/Dockerfile",
        &format!("{}RUN echo planted-secret-value Bearer abcdefgh12345678\n", fixture.read("web/Dockerfile")),
    );
    fixture.up();
    fixture.write("compose.yaml", &fixture.read("compose.yaml").replace("MODE: live", "DIES: at-once"));
    fixture.deploy_broken();
    let analyzed = fixture.analyze(None);
    let evidence = analyzed.evidence.as_ref().expect("evidence");
    assert!(
        evidence.container_log.contains("it died") && evidence.container_log.contains("token [redacted]")
    );
    assert_eq!(evidence.files["Dockerfile"], "", "a file with a secret is only known to exist");
    let plan = fixture.plan_to_set(&analyzed, "COLOUR", "blue");
    let patched = fixture.step("patch", &plan);
    let built = fixture.step("build", &plan);
    assert!(built.ok, "{}", built.message);
    for text in [serde_json::to_string(&analyzed), serde_json::to_string(&patched)] {
        let text = text.expect("JSON");
        assert!(!text.contains("planted-secret-value") && !text.contains("abcdefgh12345678"));
    }
    assert!(fixture.log().contains("[redacted]"));
    assert!(!fixture.log().contains("planted-secret-value") && !fixture.log().contains("abcdefgh12345678"));
}

#[test]
fn a_failing_build_is_found_and_repaired_while_the_service_stays_up() {
    let Some(fixture) = example_or_skip("apt") else { return };
    fixture.up();
    fixture.break_it("missing-apt-package");
    let running = fixture.container("web");
    let analyzed = fixture.analyze(None);
    assert_eq!(analyzed.start.as_ref().map(|start| start.health), Some(HealthClass::Healthy));
    let plan = fixture.plan(&analyzed);
    for step in ["patch", "build"] {
        let report = fixture.step(step, &plan);
        assert!(report.ok, "{step}: {} {}\n{}", report.code, report.message, fixture.log());
        assert_eq!(fixture.container("web"), running);
    }
    for step in ["restart", "verify", "promote"] {
        let report = fixture.step(step, &plan);
        assert!(report.ok, "{step}: {} {}\n{}", report.code, report.message, fixture.log());
    }
    assert!(fixture.read("web/Dockerfile").contains("jq"));
    assert_eq!(fixture.container("web").health, "healthy");
}

#[test]
fn the_unrepairable_is_restored() {
    let Some(fixture) = example_or_skip("lost") else { return };
    fixture.up();
    fixture.break_it("unrepairable");
    fixture.deploy_broken();
    let before = (
        fixture.checkout(),
        fixture.image("web"),
        fixture.container("web").image,
        fixture.container("store"),
    );
    let plan = fixture.plan(&fixture.analyze(None));
    for step in ["patch", "build", "restart"] {
        assert!(fixture.step(step, &plan).ok);
    }
    let verified = fixture.step("verify", &plan);
    assert_eq!((verified.ok, verified.code.as_str()), (false, "verify_failed"), "{}", verified.message);
    let report = fixture.step("rollback", &plan);
    assert!(report.restored, "{}\n{}", report.message, fixture.log());
    let after = (
        fixture.checkout(),
        fixture.image("web"),
        fixture.container("web").image,
        fixture.container("store"),
    );
    assert_eq!(after, before);
}

#[test]
fn a_stack_or_service_that_is_not_there_is_named() {
    let Some(fixture) = small_or_skip("names") else { return };
    let mut stack = fixture.stack();
    let analyze = |stack, service: &str| Input::Analyze {
        stack,
        service: service.to_owned(),
        log: None,
        instruction: None,
        mode: Analysis::Service,
        rules: None,
    };
    let report = fixture.perform(&analyze(stack.clone(), "nothing"));
    assert_eq!(report.code, "service_not_found");
    assert!(report.message.contains("store, web"), "{}", report.message);
    stack.dir = "/".to_owned();
    assert_eq!(fixture.perform(&analyze(stack.clone(), "web")).code, "stack_not_found");
    stack.name = "other".to_owned();
    assert_eq!(fixture.perform(&analyze(stack, "web")).code, "stack_not_found");
}

/// Not a test: the process that other tests start as `cooper worker-step`.
#[test]
#[ignore = "started by other tests"]
fn step_process() {
    if std::env::var_os("COOPER_WORKER_DIR").is_some() {
        cooper_worker::stack::main();
    }
}

#[test]
fn an_engine_that_is_away_is_said_and_nothing_is_touched() {
    let fixture = Fixture::example("away");
    let input = Input::Analyze {
        stack: fixture.stack(),
        service: "web".to_owned(),
        log: None,
        instruction: None,
        mode: Analysis::Service,
        rules: None,
    };
    let away = [("DOCKER_HOST", "unix:///nonexistent/docker.sock")];
    let (report, log) = fixture.spawn("step_process", &input, &away).wait();
    let report = report.expect("a report");
    assert_eq!((report.ok, report.code.as_str()), (false, "engine_unavailable"), "{}", report.message);
    assert!(log.contains("engine_unavailable"), "{log}");
}

/// Each step is killed at several moments and then performed again; the end is that of an undisturbed repair.
#[test]
fn a_step_killed_at_any_moment_is_completed_by_its_repetition() {
    let Some(fixture) = small_or_skip("killed") else { return };
    fixture.up();
    let neighbour = fixture.container("store");
    let before = state(&fixture);
    let analyzed = fixture.analyze(None);
    let plan = fixture.plan_to_set(&analyzed, "COLOUR", "blue");
    let disturbed = |step: &str, moments_ms: &[u64]| {
        for moment_ms in moments_ms {
            let process = fixture.spawn("step_process", &fixture.input(step, &plan), &[]);
            std::thread::sleep(Duration::from_millis(*moment_ms));
            process.signal(Signal::KILL);
            process.wait();
        }
        let (report, log) = fixture.spawn("step_process", &fixture.input(step, &plan), &[]).wait();
        let report = report.expect("a report");
        assert!(report.ok, "{step}: {} {}\n{log}", report.code, report.message);
        report
    };
    disturbed("patch", &[100, 160]);
    disturbed("build", &[150, 400]);
    disturbed("restart", &[150, 250, 400]);
    disturbed("verify", &[500]);
    let report = disturbed("promote", &[120, 150, 170, 190]);
    assert_eq!(report.promotion, "promoted");
    assert!(fixture.read("web/Dockerfile").contains("COLOUR"));
    assert_eq!(fixture.checkout().len(), 5, "no stray file: {:?}", fixture.checkout().keys());
    assert_eq!(fixture.container("store"), neighbour);
    let report = disturbed("rollback", &[200, 300, 600]);
    assert!(report.restored);
    assert_eq!(state(&fixture), before);
}

#[test]
fn a_cancelled_step_ends_with_everything_it_started() {
    let Some(fixture) = small_or_skip("cancelled") else { return };
    let slow = format!("{}RUN sleep 60.{}\n", fixture.read("web/Dockerfile"), std::process::id());
    fixture.write("web/Dockerfile", &slow);
    let input = Input::Analyze {
        stack: fixture.stack(),
        service: "web".to_owned(),
        log: None,
        instruction: None,
        mode: Analysis::Service,
        rules: None,
    };
    let process = fixture.spawn("step_process", &input, &[]);
    let group = process.child.id();
    std::thread::sleep(Duration::from_secs(3));
    process.signal(Signal::TERM);
    let (report, log) = process.wait();
    assert!(report.is_none() && log.contains("building") && log.contains("cancelled"), "{log}");
    // Killed with the group; whoever adopts them reaps them a moment later.
    let left = || {
        let found =
            std::process::Command::new("pgrep").args(["-g", &group.to_string()]).output().expect("pgrep");
        String::from_utf8_lossy(&found.stdout).into_owned()
    };
    let deadline = cooper_common::clock::mono_ms() + 10_000;
    while !left().is_empty() && cooper_common::clock::mono_ms() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(left(), "");
}
