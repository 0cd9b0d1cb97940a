//! Approvals: who looks for what is waited for finds it, and what nobody decides expires in time.

use cooper_tests::{
    Answer, Cooper, Setup,
    docker::{self, Stack},
    seconds,
};

use super::repair::{patient, text};

/// A run that waits for an approval, of a service that was never started: nothing is built for it.
pub fn waits(cooper: &Cooper, stack: &Stack) -> Answer {
    let asked = ["repair", "web", "--stack", stack.arg(), "--instruction", "add package PyYAML"];
    let (status, run) = cooper.run_json(asked);
    assert_eq!((status, text(&run, "state")), (3, "awaiting_approval"), "{run:#}");
    run
}

/// A stack whose service needs an approval; never up.
pub fn protected(name: &str) -> Stack {
    let stack = Stack::files(name);
    stack.break_it("protected");
    stack
}

/// When an event of a run was recorded.
fn recorded(cooper: &Cooper, run: &str, kind: &str) -> Option<i64> {
    let events = cooper.json(["events"]);
    let events = events["events"].as_array().expect("a list").iter();
    let mut of_run = events.filter(|event| event["subject"] == run && event["kind"] == kind);
    of_run.next().and_then(|event| event["at_ms"].as_i64())
}

fn listed<'a>(answer: &'a Answer, run: &str) -> Option<&'a Answer> {
    answer["approvals"].as_array().expect("a list").iter().find(|approval| approval["run_id"] == run)
}

#[test]
fn what_waits_is_listed_first_and_expires_within_a_second_of_its_time_also_after_a_restart() {
    if !docker::wanted(
        "what_waits_is_listed_first_and_expires_within_a_second_of_its_time_also_after_a_restart",
    ) {
        return;
    }
    let stack = protected("expires");
    let cluster = Setup::compose().env("COOPER_APPROVAL_TTL_MS", "6000").start();
    let cooper = patient(cluster.cooper());
    let mut earlier = String::new();
    for restart in [false, true] {
        let run = waits(&cooper, &stack);
        let id = text(&run, "run_id");
        let approvals = cooper.json(["approvals", "list"]);
        assert_eq!(approvals["approvals"][0]["run_id"], id, "pending first: {approvals:#}");
        let approval = listed(&approvals, id).expect("it is there");
        assert_eq!((text(approval, "decision"), text(approval, "service")), ("pending", "web"));
        assert_eq!(approval["plan_hash"], run["plan_hash"]);
        assert_eq!(approval["may_decide"], true);
        assert!(approval["reasons"].to_string().contains("protected"), "{approval:#}");
        if restart {
            assert_eq!(listed(&approvals, &earlier).map(|old| text(old, "decision")), Some("expired"));
            assert!(listed(&cooper.json(["approvals", "list", "--pending"]), &earlier).is_none());
            cluster.kill("coordinator");
        }
        let due = run["approval"]["expires_at_ms"].as_i64().expect("a time");
        let ended = cooper
            .until_json("the end", seconds(20), &["runs", "show", id], |run| text(run, "state") == "expired");
        assert_eq!(ended["approval"]["decision"], "expired");
        let late = recorded(&cooper, id, "run.expired").expect("an event") - due;
        assert!((0..1_000).contains(&late), "{late} ms late");
        assert_eq!(cooper.error(["approve", id]).code, "not_awaiting_approval");
        earlier = id.to_owned();
    }
    let said = cooper.ok(["approvals", "list"]);
    assert!(said.contains("expired") && said.contains(&earlier), "{said}");
}

#[test]
fn a_stack_says_how_long_it_waits_and_who_may_decide_and_others_see_it_but_not_other_tenants() {
    let name = "a_stack_says_how_long_it_waits_and_who_may_decide_and_others_see_it_but_not_other_tenants";
    if !docker::wanted(name) {
        return;
    }
    let stack = protected("approvers");
    stack.append("compose.yaml", "\nx-cooper:\n  approvers: [ann]\n  approval_ttl: 1h\n");
    let cluster = cooper_tests::cluster::shared_compose();
    let cooper = patient(cluster.cooper());
    let run = waits(&cooper, &stack);
    let id = text(&run, "run_id");
    let lasts = run["approval"]["expires_at_ms"].as_i64().expect("a time")
        - run["updated_at_ms"].as_i64().expect("a time");
    assert!((3_590_000..=3_600_000).contains(&lasts), "{lasts}");
    let said = cooper.ok(["approvals", "list"]);
    let row = said.lines().find(|line| line.contains(id)).unwrap_or_else(|| panic!("{said}"));
    assert!(row.contains("ann") && row.contains("expires in 59"), "{row}");

    let as_of = |tenant: &str, scope: &str| Cooper::with_token(&cluster.url, &cluster.token(tenant, scope));
    let client = as_of("default", "client");
    let approvals = client.json(["approvals", "list"]);
    assert_eq!(listed(&approvals, id).map(|approval| &approval["may_decide"]), Some(&false.into()));
    let operator = as_of("default", "operator");
    let approvals = operator.json(["approvals", "list"]);
    assert_eq!(
        listed(&approvals, id).map(|approval| &approval["may_decide"]),
        Some(&false.into()),
        "not ann"
    );
    assert_eq!(operator.error(["approve", id]).code, "forbidden", "I8");
    let other = as_of("elsewhere", "admin");
    assert!(listed(&other.json(["approvals", "list"]), id).is_none(), "I10");
    cooper.ok(["cancel", id]);
    assert!(listed(&cooper.json(["approvals", "list", "--pending"]), id).is_none());
}

#[test]
fn a_plan_is_shown_as_a_person_reviews_it_before_a_decision_and_by_a_dry_run() {
    if !docker::wanted("a_plan_is_shown_as_a_person_reviews_it_before_a_decision_and_by_a_dry_run") {
        return;
    }
    let stack = protected("review");
    let cluster = cooper_tests::cluster::shared_compose();
    let cooper = patient(cluster.cooper());
    let run = waits(&cooper, &stack);
    let id = text(&run, "run_id");
    let plan = cooper.json(["runs", "plan", id]);
    assert_eq!((&plan["plan_hash"], &plan["attempt"]), (&run["plan_hash"], &1.into()));
    let review = &plan["review"];
    assert_eq!(review["plan_hash"], run["plan_hash"]);
    assert_eq!(review["decision"]["decision"], "needs_approval");
    assert_eq!(review["files"][0]["path"], "web/requirements.txt");
    assert_eq!(
        (&review["files"][0]["lines_added"], &review["files"][0]["lines_removed"]),
        (&1.into(), &0.into())
    );
    let steps: Vec<&str> =
        review["steps"].as_array().expect("steps").iter().map(|step| text(step, "step")).collect();
    assert_eq!(steps, ["patch", "build", "restart", "verify", "promote"]);
    let up = ["up", "-d", "--no-deps", "--no-build", "--pull", "never", "web"];
    let command = review["steps"][2]["commands"][0].as_array().expect("an argument vector");
    assert_eq!(command[command.len() - up.len()..], up.map(Answer::from));
    assert_eq!(plan["plan"]["edits"][0]["path"], "requirements.txt", "as it is carried out");

    let said = cooper.ok(["runs", "plan", id]);
    for part in [
        "protected by x-cooper",
        "+PyYAML",
        "--no-deps --no-build --pull never web",
        "GET http://web:8000/health",
        "if a step fails",
        "expires   in ",
        &format!("cooper approve {id} --plan {}", text(&run, "plan_hash")),
    ] {
        assert!(said.contains(part), "{part}\n{said}");
    }
    assert_eq!(cooper.error(["runs", "plan", id, "--attempt", "7"]).code, "no_plan");
    cooper.ok(["reject", id]);

    let asked = ["repair", "web", "--stack", stack.arg(), "--instruction", "add package PyYAML", "--dry-run"];
    let dry = cooper.json(asked);
    assert_eq!(dry["plan"]["review"]["files"], review["files"]);
    let said = cooper.ok(asked);
    assert!(said.contains("+PyYAML") && said.contains("nothing was touched"), "{said}");
    let other = Cooper::with_token(&cluster.url, &cluster.token("elsewhere", "admin"));
    assert_eq!(other.error(["runs", "plan", id]).code, "run_not_found", "I10");
}

#[test]
fn the_operators_file_refuses_and_asks_whatever_the_stack_says_and_names_its_line() {
    if !docker::wanted("the_operators_file_refuses_and_asks_whatever_the_stack_says_and_names_its_line") {
        return;
    }
    let stack = Stack::files("operator");
    let scratch = cooper_tests::Scratch::new("policy-file");
    let file = scratch.join("policy.toml");
    let name = file.to_str().expect("plain").to_owned();
    let cluster = Setup::compose().env("COOPER_POLICY_FILE", &name);
    std::fs::write(&file, "[[limit]]\nservices = ['web']\nprotected = true\n").expect("written");
    {
        let started = cluster.start();
        let cooper = patient(started.cooper());
        // Asked for by the operator; meanwhile the file forbids it, and the plan that waited is not carried out.
        let run = waits(&cooper, &stack);
        assert!(run["approval"]["reasons"].to_string().contains("policy.toml:1"), "{run:#}");
        std::fs::write(&file, "\n[[limit]]\ndeny = ['**/requirements.txt']\n").expect("written");
        started.kill("coordinator");
        let id = text(&run, "run_id");
        cooper.until_json("the coordinator", seconds(20), &["runs", "show", id], |_| true);
        let before = stack.tree();
        let (status, refused) = cooper.run_json(["approve", id, "--follow"]);
        assert_eq!((status, text(&refused, "state")), (5, "refused"), "{refused:#}");
        let said = text(&refused["error"], "message");
        assert!(said.contains("policy.toml:2") && said.contains("web/requirements.txt"), "{said}");
        assert_eq!(stack.tree(), before);
        let asked = ["repair", "web", "--stack", stack.arg(), "--instruction", "add package PyYAML"];
        let (status, refused) = cooper.run_json(asked);
        assert_eq!((status, text(&refused["error"], "code")), (5, "policy_refused"), "{refused:#}");
    }
    // One that is wrong keeps a coordinator from starting, with its line.
    std::fs::write(&file, "[[limit]]\nprotected = false\n").expect("written");
    let wrong = Cooper::default().env("COOPER_POLICY_FILE", &name);
    let data = scratch.join("data");
    let refused =
        wrong.run(["coordinator", "--data", data.to_str().expect("plain"), "--listen", "127.0.0.1:0"]);
    assert_ne!(refused.status, 0);
    let (code, message) = refused.error_line();
    assert_eq!(code, "config_invalid");
    assert!(message.contains("policy.toml:2: protected can only be true"), "{message}");
}
