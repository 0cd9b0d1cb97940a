//! What Cooper could do to a stack is known before anything fails, with a cluster and without.

use cooper_tests::{
    Answer, Cooper, Scratch,
    cluster::shared_compose,
    docker::{self, Stack},
};

use super::repair::text;

fn service<'a>(checked: &'a Answer, name: &str) -> &'a Answer {
    let services = checked["services"].as_array().expect("a list").iter();
    services
        .clone()
        .find(|service| service["service"] == name)
        .unwrap_or_else(|| panic!("{name}: {checked:#}"))
}

fn problems(checked: &Answer) -> Vec<String> {
    let problems = checked["problems"].as_array().expect("a list").iter();
    problems.map(|problem| format!("{}: {}", text(problem, "place"), text(problem, "problem"))).collect()
}

#[test]
fn a_stack_is_checked_by_its_worker_and_without_a_cluster_alike_but_for_who_has_a_token() {
    if !docker::wanted("a_stack_is_checked_by_its_worker_and_without_a_cluster_alike_but_for_who_has_a_token")
    {
        return;
    }
    let stack = Stack::files("checked");
    let cluster = shared_compose();
    let cooper = cluster.cooper();
    let asked = ["repair", "web", "--stack", stack.arg(), "--instruction", "restart", "--dry-run"];
    let name = text(&cooper.json(asked), "stack").to_owned();

    let checked = cooper.json(["stacks", "check", &name]);
    assert_eq!(problems(&checked), Vec::<String>::new());
    let web = service(&checked, "web");
    assert_eq!(web["files"], serde_json::json!(["Dockerfile", "requirements.txt"]));
    assert!(web["verification"].to_string().contains("GET http://web:8000/health"), "{web:#}");
    assert_eq!(web["no_preflight"], serde_json::json!([]));
    assert!(service(&checked, "store")["approval"].to_string().contains("depend on store"), "{checked:#}");
    let offline = Cooper::default().json(["stacks", "check", "--stack", stack.arg()]);
    assert_eq!(offline["services"], checked["services"]);

    stack.append(
        "compose.yaml",
        "
x-cooper:
  approvers: [nobody-of-this-name]
",
    );
    let (status, wrong) = cooper.run_json(["stacks", "check", &name]);
    assert_eq!(status, 1);
    assert!(problems(&wrong)[0].contains("nobody-of-this-name, so nobody may approve"), "{wrong:#}");
    Cooper::default().run(["stacks", "check", "--stack", stack.arg()]).expect(0);
    stack.append(
        "compose.yaml",
        "  aprovers: []
",
    );
    for said in [
        cooper.run(["stacks", "check", &name]),
        Cooper::default().run(["stacks", "check", "--stack", stack.arg()]),
    ] {
        let out = said.expect(1).out();
        assert!(out.contains("error: x-cooper: unknown field `aprovers`"), "{out}");
    }
    let scratch = Scratch::new("operator-file");
    let file = scratch.join("policy.toml");
    std::fs::write(
        &file,
        "[[limit]]
deny = ['{']
",
    )
    .expect("written");
    let policy = file.to_str().expect("plain");
    let refused = Cooper::default().error(["stacks", "check", "--stack", stack.arg(), "--policy", policy]);
    assert!(refused.message.contains("policy.toml:2"), "{refused:?}");
    assert_eq!(cooper.error(["stacks", "check", "no-such-stack"]).code, "stack_not_found");
}
