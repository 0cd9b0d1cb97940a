//! `cooper diagnose`: without a cluster, without an engine, and without a trace.

use cooper_tests::{Cooper, Scratch, tree};

const DOCKERFILE: &str = "FROM python:3.11-slim\nWORKDIR /app\nCOPY requirements.txt .\nRUN pip install -r requirements.txt\nCOPY . .\nCMD [\"python\", \"app.py\"]\n";
const LOG: &str = "web-1  | Traceback (most recent call last):\nweb-1  |   File \"/app/app.py\", line 1, in <module>\n\
    web-1  | ModuleNotFoundError: No module named 'yaml'\n";

fn stack() -> Scratch {
    let stack = Scratch::new("diagnose");
    stack.write(
        "compose.yaml",
        "services:\n  web:\n    build: ./web\n    environment: {API_KEY: s3cr3t-of-the-stack}\n",
    );
    stack.write("web/Dockerfile", DOCKERFILE);
    stack.write("web/requirements.txt", "flask==3.0.3\n");
    stack.write("web/app.py", "import yaml\n");
    stack
}

/// Where there is no cluster.
fn alone(scratch: &Scratch) -> Cooper {
    Cooper::at(&scratch.join("data"))
}

#[test]
fn a_log_alone_leads_to_its_cause() {
    let scratch = Scratch::new("diagnose-alone");
    let done = alone(&scratch).run_with(["diagnose", "--log", "-"], LOG.as_bytes()).expect(5);
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(said.contains("The Python module yaml is not installed in the image."), "{said}");
    assert!(said.contains("--stack DIR"), "{said}");
}

#[test]
fn a_log_and_a_stack_lead_to_an_edit_that_is_not_made() {
    let stack = stack();
    let before = tree::read(stack.path());
    let cooper = alone(&stack);
    let dir = stack.path().to_str().expect("plain").to_owned();
    let done =
        cooper.run_with(["--json", "diagnose", "--log", "-", "--stack", &dir], LOG.as_bytes()).expect(0);
    let told = done.json();
    assert_eq!(told["diagnosis"]["rule_id"], "python.module-missing");
    assert_eq!(told["diagnosis"]["class"], "auto");
    assert_eq!(told["decision"]["decision"], "allowed", "{told:#}");
    assert_eq!(told["diagnosis"]["edits"][0]["new_content"], "flask==3.0.3\nPyYAML\n");
    assert!(!String::from_utf8_lossy(&done.stdout).contains("s3cr3t-of-the-stack"));
    let text =
        cooper.run_with(["diagnose", "--log", "-", "--stack", &dir, "--service", "web"], LOG.as_bytes());
    assert!(String::from_utf8_lossy(&text.expect(0).stdout).contains("+PyYAML"));
    assert_eq!(tree::read(stack.path()), before, "it changes nothing");

    let asked = cooper.json([
        "diagnose",
        "--stack",
        &dir,
        "--instruction",
        "install apt package jq",
        "--log",
        "/dev/null",
    ]);
    assert!(
        asked["diagnosis"]["edits"][0]["diff"]
            .as_str()
            .expect("a diff")
            .contains("install -y --no-install-recommends jq")
    );
}

#[test]
fn what_nothing_explains_is_said() {
    let scratch = Scratch::new("diagnose-none");
    let log = scratch.write("log", "all is well\n");
    let cooper = alone(&scratch);
    let none = cooper.run(["--json", "diagnose", "--log", log.to_str().expect("plain")]).expect(5).error();
    assert_eq!(none.code, "no_diagnosis");
    let missing = cooper.error(["diagnose", "--stack", "/nowhere", "--log", "/dev/null"]);
    assert_eq!(missing.code, "stack_not_found", "{missing:?}");
    cooper.run(["diagnose"]).expect(2);
}

#[test]
fn rules_of_ones_own_are_asked_and_a_wrong_one_is_named_with_its_line() {
    const RULE: &str = "[[rule]]\nid = 'shop.feature'\necosystem = 'shop'\nwhere = 'any'\npattern = 'unknown feature (?P<it>\\w+)'\n\
        cause = 'No feature {it}.'\nclass = 'escalate'\nfix = { kind = 'escalate' }\nexamples = { match = ['unknown feature x'] }\n";
    let scratch = Scratch::new("diagnose-rules");
    let log = scratch.write("log", "unknown feature cart\n");
    let rules = scratch.write("rules/shop.toml", RULE);
    let (log, dir) = (log.to_str().expect("plain"), rules.parent().expect("a directory"));
    let dir = dir.to_str().expect("plain");
    let cooper = alone(&scratch);
    let told = cooper.run(["diagnose", "--log", log, "--rules", dir]).expect(5);
    assert!(String::from_utf8_lossy(&told.stdout).contains("No feature cart."));

    scratch.write("rules/shop.toml", RULE.replace("unknown feature x", "x"));
    let wrong = cooper.run(["--json", "diagnose", "--log", log, "--rules", dir]).expect(1).error();
    assert_eq!(wrong.code, "config_invalid");
    assert!(wrong.message.contains("shop.toml:2: rule shop.feature"), "{}", wrong.message);
    // A coordinator does not start with it either.
    let start = cooper.run(["--json", "coordinator", "--listen", "127.0.0.1:0", "--rules-dir", dir]);
    assert!(String::from_utf8_lossy(&start.stderr).contains("shop.toml:2"), "{start}");
    assert_ne!(start.status, 0);
}
