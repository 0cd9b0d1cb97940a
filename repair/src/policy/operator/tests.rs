use serde_json::json;

use super::*;
use crate::compose::Model;
use crate::edit::{Edit, FileChange};
use crate::plan::{Build, Finding, SCHEMA_VERSION, Verify};

/// A plan that adds a line to `requirements.txt` of `web`, as the stack's own policy decides about it.
fn plan(x_cooper: serde_json::Value) -> (RepairPlan, Policy) {
    let edit = Edit::AppendRequirement { requirement: "PyYAML".to_owned() };
    let change = FileChange::edit("requirements.txt", "flask\n", edit, String::new()).unwrap();
    let service = json!({ "build": { "context": "/s/web" }, "x-cooper": x_cooper });
    let model = json!({ "name": "p", "services": { "web": service } });
    let model = Model::from_config(&model.to_string()).unwrap();
    let policy = super::super::Policy::of(&model, "web").unwrap();
    let finding = json!({
        "rule_id": "python.module", "cause": "c", "confidence": 90, "class": "auto",
        "evidence_line": "e", "fingerprint": "f",
    });
    let finding: Finding = serde_json::from_value(finding).unwrap();
    let plan = json!({
        "schema_version": SCHEMA_VERSION, "stack": "shop", "project": "p", "service": "web", "attempt": 1,
        "diagnosis": finding, "edits": [change], "steps": [], "on_failure": [],
        "build": Build { context: "/s/web".into(), dockerfile: "Dockerfile".into(), target: None },
        "verify": Verify { health: None, become_well_ms: 1, stable_for_ms: 1 },
        "decision": policy.decide(finding.class, std::slice::from_ref(&change)),
    });
    (serde_json::from_value(plan).unwrap(), policy)
}

fn decided(text: &str, x_cooper: serde_json::Value) -> Decision {
    let (mut plan, own) = plan(x_cooper);
    OperatorPolicy::read("policy.toml", text).unwrap().tighten(&mut plan, "/s", &own);
    plan.decision
}

#[test]
fn a_refusal_says_which_line_of_which_file_and_what_to_do() {
    for (key, named) in [
        ("deny = ['web/*.txt']", "deny \"web/*.txt\""),
        ("deny = ['**/requirements*.txt']", "web/requirements.txt"),
        ("deny_rules = ['python.*']", "python.module"),
        ("deny_classes = ['auto']", "class auto"),
        ("max_files = 0", "max_files"),
        ("max_lines = 0", "max_lines"),
    ] {
        let text = format!("# ours\n\n[[limit]]\nservices = ['shop/web']\n{key}\n");
        let Decision::Refused { reasons } = decided(&text, json!(null)) else { panic!("{key}") };
        let said = reasons.join("; ");
        assert!(said.starts_with("policy.toml:3 ") && said.contains(named), "{said}");
        assert!(said.contains("ask whoever keeps policy.toml"), "{said}");
        // Of another service it says nothing.
        let other = text.replace("shop/web", "db");
        assert_eq!(decided(&other, json!(null)), Decision::Allowed, "{key}");
    }
}

#[test]
fn it_asks_for_approvals_and_narrows_who_may_give_them() {
    let protects = "[[limit]]\nservices = ['web']\nprotected = true\napprovers = ['ann', 'bert']\n";
    let Decision::NeedsApproval { reasons, approvers, .. } = decided(protects, json!(null)) else {
        panic!("it is protected")
    };
    assert_eq!((reasons[0].as_str(), approvers.len()), ("policy.toml:1 protects web", 2));
    let both = json!({ "approvers": ["bert", "carl"] });
    let Decision::NeedsApproval { approvers, .. } = decided(protects, both) else {
        panic!("it is protected")
    };
    assert_eq!(approvers, ["bert"]);
    let neither = json!({ "approvers": ["carl"] });
    let Decision::Refused { reasons } = decided(protects, neither) else { panic!("nobody may") };
    assert!(reasons[0].contains("policy.toml:1") && reasons[0].contains("carl"), "{reasons:?}");
    // Approvers alone ask for nothing.
    assert_eq!(decided("[[limit]]\napprovers = ['ann']\n", json!(null)), Decision::Allowed);
}

#[test]
fn what_is_refused_stays_refused_whatever_the_file_says() {
    let refused = json!({ "allow": ["nothing"] });
    for text in ["", "[[limit]]\n", "[[limit]]\nprotected = true\nmax_lines = 40\n"] {
        assert!(matches!(decided(text, refused.clone()), Decision::Refused { .. }), "{text}");
    }
    assert_eq!(decided("", json!(null)), Decision::Allowed);
}

#[test]
fn what_would_loosen_or_cannot_be_read_is_an_error_with_its_line() {
    for (text, line, problem) in [
        ("[[limit]]\n\nprotected = false\n", 3, "only be true"),
        ("[[limit]]\nauto_repair = true\n", 2, "only be false"),
        ("[[limit]]\nmax_lines = 1000\n", 2, "0 to 40"),
        ("[[limit]]\napprovers = []\n", 2, "names nobody"),
        ("[[limit]]\ndeny = ['{']\n", 2, "deny"),
        ("\n[[limit]]\nallow = ['*']\n", 3, "unknown field `allow`"),
        ("[[limit]]\ndeny_classes = ['all']\n", 2, "unknown variant"),
        ("limits = 1\n", 1, "unknown field"),
        ("[[limit]\n", 1, ""),
    ] {
        let error = OperatorPolicy::read("policy.toml", text).unwrap_err();
        assert_eq!(error.line, line, "{text:?}: {error}");
        assert!(error.problem.contains(problem), "{text:?}: {error}");
        assert!(error.to_string().starts_with(&format!("policy.toml:{line}: ")), "{error}");
    }
}

#[test]
fn nothing_starts_by_itself_where_the_file_says_so() {
    let policy =
        OperatorPolicy::read("p", "[[limit]]\nservices = ['shop/*']\nauto_repair = false\n").unwrap();
    assert!(policy.against_automatic("shop", "web").is_some_and(|why| why.contains("p:1")));
    assert_eq!(policy.against_automatic("blog", "web"), None);
}
