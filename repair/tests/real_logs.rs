//! Logs that a real engine printed (`samples/`), and the repair that each of them must lead to.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use cooper_repair::compose::Model;
use cooper_repair::diagnosis::{Phase, State};
use cooper_repair::plan::StepKind;
use cooper_repair::{Class, Decision, Diagnosis, Evidence, Policy, RepairPlan, RuleSet, diagnose};

const CONFIG: &str = include_str!("samples/config.yaml");

macro_rules! sample {
    ($name:literal) => {
        include_str!(concat!("samples/", $name, ".txt"))
    };
}

fn evidence(phase: Phase, log: &str, files: &[(&str, &str)]) -> Evidence {
    let own = |&(path, text): &(&str, &str)| (path.to_owned(), text.to_owned());
    let (build_log, container_log) = if phase == Phase::Build { (log, "") } else { ("", log) };
    Evidence {
        build_log: build_log.to_owned(),
        container_log: container_log.to_owned(),
        files: files.iter().map(own).collect::<BTreeMap<_, _>>(),
        ..Evidence::new("web", Model::from_config(CONFIG).unwrap().without_values(), phase)
    }
}

fn diagnosed(evidence: &Evidence) -> Diagnosis {
    diagnose(RuleSet::builtin(), evidence).unwrap()
}

/// The one change of a diagnosis: path and what it adds or removes. Policy lets it pass, both ways it is asked.
fn change(evidence: &Evidence, diagnosis: &Diagnosis) -> (String, Vec<String>) {
    let [edit] = &diagnosis.edits[..] else { panic!("not one edit: {diagnosis:?}") };
    let policy = Policy::of(&evidence.model, "web").unwrap();
    let decision = policy.decide(diagnosis.class, &diagnosis.edits);
    assert!(!matches!(decision, Decision::Refused { .. }), "{decision:?}");
    let old = evidence.files.get(&edit.path).map(String::as_str);
    assert_eq!(policy.check_change(diagnosis.class, edit, old), Vec::<String>::new());
    let lines = edit.diff.lines().skip(2).filter(|line| line.starts_with(['+', '-']));
    (edit.path.clone(), lines.map(str::to_owned).collect())
}

const PIP: &str = "FROM python:3.11-slim\nWORKDIR /app\nCOPY requirements.txt .\n\
    RUN pip install --no-cache-dir -r requirements.txt\nCOPY app.py .\nCMD [\"python\", \"app.py\"]\n";

#[test]
fn a_missing_python_package_becomes_a_requirement() {
    let log = sample!("missing-python-package.container");
    let files = [("Dockerfile", PIP), ("requirements.txt", "flask==3.1.*\n"), ("app.py", "")];
    let evidence = evidence(Phase::Runtime, log, &files);
    let diagnosis = diagnosed(&evidence);
    assert_eq!((diagnosis.rule_id.as_str(), diagnosis.class), ("python.module-missing", Class::Auto));
    assert_eq!(change(&evidence, &diagnosis), ("requirements.txt".to_owned(), vec!["+PyYAML".to_owned()]));
}

#[test]
fn a_missing_command_is_installed_before_the_first_copy() {
    let dockerfile = "FROM python:3.11-slim\n\nWORKDIR /app\nCOPY requirements.txt .\n\
        RUN pip install --no-cache-dir -r requirements.txt\nCOPY app.py .\nCOPY settings.json .\n\
        RUN jq --compact-output . settings.json > settings.min.json\n\nCMD [\"python\", \"app.py\"]\n";
    let evidence =
        evidence(Phase::Build, sample!("missing-apt-package.build"), &[("Dockerfile", dockerfile)]);
    let diagnosis = diagnosed(&evidence);
    assert_eq!(diagnosis.rule_id, "shell.command-missing");
    let (path, lines) = change(&evidence, &diagnosis);
    assert_eq!(path, "Dockerfile");
    assert_eq!(
        lines,
        [
            "+RUN apt-get update \\",
            "+ && apt-get install -y --no-install-recommends jq \\",
            "+ && rm -rf /var/lib/apt/lists/*"
        ]
    );
    assert!(
        diagnosis.edits[0].new_content.find("jq \\").unwrap()
            < diagnosis.edits[0].new_content.find("COPY").unwrap()
    );
}

#[test]
fn a_missing_header_joins_the_install_that_is_there() {
    let dockerfile = format!(
        "FROM python:3.11-slim\n\nWORKDIR /app\n{}{}",
        "RUN apt-get update \\\n && apt-get install -y --no-install-recommends gcc libc6-dev python3-dev \\\n \
         && rm -rf /var/lib/apt/lists/*\n",
        PIP.split_once("WORKDIR /app\n").unwrap().1
    );
    let files =
        [("Dockerfile", dockerfile.as_str()), ("requirements.txt", "flask==3.1.*\npylibacl==0.7.3\n")];
    let evidence = evidence(Phase::Build, sample!("missing-header.build"), &files);
    let diagnosis = diagnosed(&evidence);
    assert_eq!(diagnosis.rule_id, "cc.header-missing");
    assert!(diagnosis.cause.contains("sys/acl.h"));
    let (_, lines) = change(&evidence, &diagnosis);
    assert_eq!(
        lines,
        [
            "- && apt-get install -y --no-install-recommends gcc libc6-dev python3-dev \\",
            "+ && apt-get install -y --no-install-recommends gcc libc6-dev python3-dev libacl1-dev \\"
        ]
    );
}

#[test]
fn what_no_rule_explains_is_left_alone() {
    let mut evidence = evidence(Phase::Runtime, sample!("unexplained.container"), &[("Dockerfile", PIP)]);
    evidence.state = Some(State { status: "restarting".to_owned(), exit_code: 1, ..State::default() });
    let nothing = diagnose(RuleSet::builtin(), &evidence).unwrap_err();
    assert!(nothing.reasons[0].starts_with("no rule explains"), "{nothing:?}");
    assert_eq!(nothing.looked_at, ["container log: 1 lines", "container state", "file Dockerfile"]);
}

#[test]
fn pip_failures_lead_to_their_own_rules() {
    let with = |requirements| [("Dockerfile", PIP), ("requirements.txt", requirements)];
    let expected = [
        (
            sample!("psycopg.build"),
            "psycopg2==2.9.9\n",
            "pip.pg-config-missing",
            "Dockerfile",
            "libpq-dev gcc libc6-dev python3-dev",
        ),
        (
            sample!("gitreq.build"),
            "git+https://example.invalid/x.git\n",
            "pip.command-missing",
            "Dockerfile",
            "git",
        ),
        (
            sample!("version.build"),
            "flask==9.9.9\nrequests\n",
            "python.version-missing",
            "requirements.txt",
            "+flask==3",
        ),
        (
            sample!("operator.build"),
            "flask=3.0\n",
            "python.requirement-operator",
            "requirements.txt",
            "+flask==3.0",
        ),
    ];
    for (log, requirements, rule, path, added) in expected {
        let evidence = evidence(Phase::Build, log, &with(requirements));
        let diagnosis = diagnosed(&evidence);
        assert_eq!(diagnosis.rule_id, rule);
        let (changed, lines) = change(&evidence, &diagnosis);
        assert_eq!(changed, path);
        assert!(lines.iter().any(|line| line.contains(added)), "{rule}: {lines:?}");
    }
}

#[test]
fn another_major_version_needs_approval() {
    let files = [("Dockerfile", PIP), ("requirements.txt", "flask==9.9.9\nrequests\n")];
    let diagnosis = diagnosed(&evidence(Phase::Build, sample!("version.build"), &files));
    assert_eq!(diagnosis.class, Class::Approve);
}

#[test]
fn apt_linker_and_keyword_failures_are_repaired_in_place() {
    let expected = [
        (
            sample!("noupdate.build"),
            "FROM python:3.11-slim\nRUN apt-get install -y --no-install-recommends jq\n",
            "apt.package-not-located",
            "+RUN apt-get update && apt-get install -y --no-install-recommends jq",
        ),
        (
            sample!("ld.build"),
            "FROM python:3.11-slim\nRUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev\n\
             COPY m.c .\nRUN gcc m.c -lpq\n",
            "cc.library-missing",
            "+RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev libpq-dev",
        ),
        (
            sample!("keyword.build"),
            "FROM python:3.11-slim\nRUM true\n",
            "dockerfile.unknown-instruction",
            "+RUN true",
        ),
    ];
    for (log, dockerfile, rule, added) in expected {
        let evidence = evidence(Phase::Build, log, &[("Dockerfile", dockerfile)]);
        let diagnosis = diagnosed(&evidence);
        assert_eq!(diagnosis.rule_id, rule);
        let (_, lines) = change(&evidence, &diagnosis);
        assert!(lines.iter().any(|line| line == added), "{rule}: {lines:?}");
    }
}

#[test]
fn a_container_that_cannot_start_is_repaired_by_what_the_engine_says() {
    let dockerfile = "FROM debian:bookworm-slim\nCOPY entrypoint.sh /entrypoint.sh\nUSER app\nENTRYPOINT [\"/entrypoint.sh\"]\n";
    let expected = [
        (
            sample!("perm.container"),
            "#!/bin/sh\n",
            "container.not-executable",
            "+RUN chmod +x /entrypoint.sh",
        ),
        (sample!("fmt.container"), "echo hi\n", "container.exec-format", "+#!/bin/sh"),
        (sample!("crlf.container"), "#!/bin/sh\r\necho hi\r\n", "container.script-line-ends", "+#!/bin/sh"),
        (
            sample!("user.container"),
            "#!/bin/sh\n",
            "container.user-missing",
            "+RUN useradd --create-home app",
        ),
    ];
    for (error, script, rule, added) in expected {
        let mut evidence =
            evidence(Phase::Runtime, "", &[("Dockerfile", dockerfile), ("entrypoint.sh", script)]);
        evidence.state =
            Some(State { status: "created".to_owned(), error: error.to_owned(), ..State::default() });
        let diagnosis = diagnosed(&evidence);
        assert_eq!(diagnosis.rule_id, rule);
        let (_, lines) = change(&evidence, &diagnosis);
        assert!(lines.iter().any(|line| line == added), "{rule}: {lines:?}");
    }
}

#[test]
fn a_repair_becomes_a_plan_that_is_the_same_after_storing() {
    let files = [("Dockerfile", PIP), ("requirements.txt", "flask==3.1.*\n")];
    let evidence = evidence(Phase::Runtime, sample!("missing-python-package.container"), &files);
    let diagnosis = diagnosed(&evidence);
    let plan = RepairPlan::new("demo", &evidence.model, "web", 1, &diagnosis).unwrap();
    assert_eq!(plan.decision, Decision::Allowed);
    let kinds: Vec<_> = plan.steps.iter().map(|step| step.kind).collect();
    use StepKind::{Build, Patch, Promote, Restart, Verify};
    assert_eq!(kinds, [Patch, Build, Restart, Verify, Promote]);
    assert_eq!(plan.steps[1].needs, [Patch]);
    assert_eq!(plan.build.as_ref().unwrap().context, "/srv/stack/web");
    assert_eq!((plan.verify.stable_for_ms, plan.project.as_str()), (3_000, "stack"));
    assert_eq!(plan.verify.health.as_ref().unwrap().url, "http://web:8000/health");
    assert!(plan.edits.iter().any(|change| change.diff.contains("+++ b/requirements.txt\n")));
    let stored = RepairPlan::from_json(&plan.to_json()).unwrap();
    assert_eq!((stored.hash(), &stored), (plan.hash(), &plan));
    let next = RepairPlan::new("demo", &evidence.model, "web", 2, &diagnosis).unwrap();
    assert_ne!(next.hash(), plan.hash());
    let newer = plan.to_json().replace("\"schema_version\": 1", "\"schema_version\": 2");
    assert!(RepairPlan::from_json(&newer).unwrap_err().to_string().contains("use a newer one"));
}

#[test]
fn the_same_failure_has_the_same_fingerprint_whatever_service_and_numbers() {
    let files = [("Dockerfile", PIP), ("requirements.txt", "flask\n")];
    let fingerprint =
        |log: &str, files: &[(&str, &str)]| diagnosed(&evidence(Phase::Build, log, files)).fingerprint;
    let first = fingerprint("#9 1.1 /bin/sh: 1: jq: not found\n", &files);
    assert_eq!(first, fingerprint("#12 7.77 /bin/sh: 23: jq: not found\n", &files));
    assert_ne!(first, fingerprint("#9 1.1 /bin/sh: 1: git: not found\n", &files));
    assert_eq!(first.len(), 64);
}
