use serde_json::json;

use crate::edit::Edit;

use super::*;

fn model(services: serde_json::Value) -> Model {
    let model = json!({ "name": "p", "services": services });
    Model::from_config(&model.to_string()).unwrap()
}

fn web(x_cooper: serde_json::Value) -> Policy {
    let model = model(json!({ "web": { "build": { "context": "/s/web" }, "x-cooper": x_cooper } }));
    Policy::of(&model, "web").unwrap()
}

fn require(path: &str) -> FileChange {
    let edit = Edit::AppendRequirement { requirement: "PyYAML".to_owned() };
    FileChange::edit(path, "flask\n", edit, String::new()).unwrap()
}

fn refusal(decision: Decision) -> String {
    match decision {
        Decision::Refused { reasons } => reasons.join("; "),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_plain_service_is_repaired_without_asking() {
    assert_eq!(web(json!(null)).decide(Class::Auto, &[require("requirements.txt")]), Decision::Allowed);
}

#[test]
fn databases_depended_on_and_published_services_need_approval_unless_the_stack_says_otherwise() {
    let services = |x_cooper: serde_json::Value| {
        json!({
            "db": { "image": "registry.example:5000/library/postgres:16", "x-cooper": x_cooper,
                    "ports": [{ "target": 5432, "published": "5432", "protocol": "tcp" }] },
            "web": { "image": "web", "depends_on": { "db": { "condition": "service_healthy" } },
                     "ports": [{ "target": 80, "host_ip": "127.0.0.1" }] },
        })
    };
    let of = |x_cooper, name| Policy::of(&model(services(x_cooper)), name).unwrap();
    assert_eq!(of(json!(null), "db").guarded.len(), 3);
    assert!(matches!(of(json!({}), "db").decide(Class::Auto, &[]), Decision::NeedsApproval { .. }));
    assert_eq!(of(json!({ "protected": false }), "db").decide(Class::Auto, &[]), Decision::Allowed);
    assert_eq!(of(json!({}), "web").decide(Class::Auto, &[]), Decision::Allowed);
}

#[test]
fn a_protected_service_and_a_fix_of_class_approve_wait_for_the_named_approvers() {
    let approvers = vec!["ada".to_owned()];
    let protected = web(json!({ "protected": true, "approvers": ["ada"] }));
    let reasons = vec!["web is protected by x-cooper".to_owned()];
    assert_eq!(
        protected.decide(Class::Auto, &[]),
        Decision::NeedsApproval { reasons, approvers, ttl_ms: None }
    );
    assert!(matches!(web(json!({})).decide(Class::Approve, &[]), Decision::NeedsApproval { .. }));
}

#[test]
fn the_service_overrides_the_stack() {
    let model = json!({
        "name": "p",
        "x-cooper": { "stable_for": "3s", "max_attempts": 1 },
        "services": { "web": { "x-cooper": { "stable_for": "1m", "health": { "url": "http://web:80/" } } } },
    });
    let policy = Policy::of(&Model::from_config(&model.to_string()).unwrap(), "web").unwrap();
    assert_eq!((policy.stable_for_ms, policy.max_attempts, policy.auto_repair), (60_000, 1, false));
    assert_eq!(policy.health.unwrap().url, "http://web:80/");
}

#[test]
fn a_wrong_key_or_value_is_named_with_its_place() {
    for (x_cooper, problem) in [
        (json!({ "protcted": true }), "unknown field `protcted`, expected one of `protected`"),
        (json!({ "stable_for": "3 seconds" }), "not a time"),
        (json!({ "stable_for": "3h" }), "at most 600 s"),
        (json!({ "max_attempts": 0 }), "max_attempts must be 1 to 3"),
        (json!({ "health": { "url": "web:80" } }), "health.url must be"),
        (json!({ "allow": ["a["] }), "allow: "),
    ] {
        let model = model(json!({ "web": { "x-cooper": x_cooper } }));
        let error = Policy::of(&model, "web").unwrap_err().to_string();
        assert!(error.starts_with("services.web.x-cooper: ") && error.contains(problem), "{error}");
    }
}

#[test]
fn files_outside_the_allow_list_secrets_and_compose_files_are_refused() {
    let policy = web(json!({}));
    for (path, reason) in [
        ("src/main.py", "not in the service's allow list"),
        (".env", "never changes it"),
        ("secrets/requirements.txt", "never changes it"),
        ("compose.yaml", "outside what a fix of this kind may change"),
        ("../requirements.txt", "shortest form"),
        ("/requirements.txt", "absolute"),
    ] {
        let reasons = refusal(policy.decide(Class::Auto, &[require(path)]));
        assert!(reasons.contains(reason), "{path}: {reasons}");
    }
    let own = web(json!({ "allow": ["deps/*.in", ".env"] }));
    assert_eq!(own.decide(Class::Auto, &[require("deps/app.in")]), Decision::Allowed);
    assert!(refusal(own.decide(Class::Auto, &[require("requirements.txt")])).contains("allow list"));
    assert!(refusal(own.decide(Class::Auto, &[require(".env")])).contains("never"));
}

#[test]
fn a_weakening_is_refused_by_its_diff_and_by_the_real_bytes() {
    let policy = web(json!({ "protected": true }));
    let (old, new) = ("FROM a\nRUN make test\n", "FROM a\nRUN make test || true\n");
    let change = FileChange {
        new_content: new.to_owned(),
        edits: vec![],
        path: "Dockerfile".to_owned(),
        base_sha256: Some(crate::edit::sha256(old.as_bytes())),
        diff: diff::unified("Dockerfile", Some(old), new),
        ..require("requirements.txt")
    };
    assert!(
        refusal(policy.decide(Class::Approve, std::slice::from_ref(&change))).contains("hides a failure")
    );
    assert!(policy.check_change(Class::Approve, &change, Some(old))[0].contains("hides a failure"));
}

#[test]
fn a_plan_whose_parts_disagree_is_refused() {
    let policy = web(json!({}));
    let good = require("requirements.txt");
    assert!(policy.check_change(Class::Auto, &good, Some("flask\n")).is_empty());
    assert!(policy.check_change(Class::Auto, &good, Some("django\n"))[0].contains("has changed since"));
    let other_diff = FileChange { diff: String::new(), ..good.clone() };
    assert!(policy.check_change(Class::Auto, &other_diff, Some("flask\n"))[0].contains("diff in the plan"));
    let other_edit = FileChange { edits: vec![Edit::AppendRequirement { requirement: "x".into() }], ..good };
    assert!(policy.check_change(Class::Auto, &other_edit, Some("flask\n"))[0].contains("edits in the plan"));
}

#[test]
fn a_plan_that_is_too_large_is_refused() {
    let policy = web(json!({}));
    let many: Vec<_> = (0..4).map(|number| require(&format!("requirements{number}.txt"))).collect();
    assert!(refusal(policy.decide(Class::Auto, &many)).contains("4 files"));
    let new = "x\n".repeat(60);
    let long = FileChange {
        diff: diff::unified("Dockerfile", Some("x\n"), &new),
        new_content: new,
        ..require("Dockerfile")
    };
    assert!(refusal(policy.decide(Class::Auto, &[long])).contains("59 lines"));
}
