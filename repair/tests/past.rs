//! What came before a diagnosis decides what is proposed: attempts of the run, and what other runs have learned.
#![allow(clippy::unwrap_used)]

use cooper_repair::compose::Model;
use cooper_repair::diagnosis::{Outcome, Phase, Remedy, fingerprints};
use cooper_repair::{
    Class, Diagnosis, Evidence, Learned, NoDiagnosis, Past, RepairPlan, RuleSet, diagnose_after,
};

const DOCKERFILE: &str = "FROM python:3.11\nWORKDIR /app\nCOPY . .\nRUN pip install -r requirements.txt\n";

fn evidence(phase: Phase, log: &str) -> Evidence {
    let model = Model::from_config("{name: p, services: {web: {build: {context: /s/web}}}}").unwrap();
    let mut evidence = Evidence::new("web", model, phase);
    match phase {
        Phase::Build => evidence.build_log = log.to_owned(),
        Phase::Runtime | Phase::Health => evidence.container_log = log.to_owned(),
    }
    for (path, text) in [("Dockerfile", DOCKERFILE), ("requirements.txt", "flask\n")] {
        evidence.files.insert(path.to_owned(), text.to_owned());
    }
    evidence
}

fn missing(module: &str) -> Evidence {
    evidence(Phase::Runtime, &format!("ModuleNotFoundError: No module named '{module}'\n"))
}

fn after(evidence: &Evidence, past: &Past) -> Result<Diagnosis, NoDiagnosis> {
    diagnose_after(RuleSet::builtin(), evidence, past)
}

fn plan(evidence: &Evidence, past: &Past) -> RepairPlan {
    let attempt = u32::try_from(past.tried.len()).unwrap() + 1;
    RepairPlan::new("s", &evidence.model, "web", attempt, &after(evidence, past).unwrap()).unwrap()
}

fn learned(plan: &RepairPlan, outcome: Outcome) -> Learned {
    Learned {
        fingerprint: plan.diagnosis.fingerprint.clone(),
        repair: plan.diagnosis.repair.clone().unwrap(),
        class: plan.diagnosis.class,
        run: "run_0".to_owned(),
        outcome,
    }
}

#[test]
fn an_attempt_builds_upon_the_one_before_where_that_got_further_and_its_plan_shows_everything() {
    let mut past = Past { tried: vec![plan(&missing("yaml"), &Past::default())], ..Past::default() };
    let second = plan(&missing("tabulate"), &past);
    assert_eq!((second.attempt, second.builds_on), (2, Some(1)));
    let [change] = &second.edits[..] else { panic!("{second:#?}") };
    assert_eq!(change.new_content, "flask\nPyYAML\ntabulate\n");
    assert!(change.is_based_on(Some(b"flask\n")), "it is a change of the checkout");
    assert!(change.diff.contains("+PyYAML") && change.diff.contains("+tabulate"), "{}", change.diff);
    let repair = second.diagnosis.repair.as_ref().unwrap();
    assert_eq!(repair.edits[0].edits.len(), 1, "what is learned is about this cause alone");

    // A third one, of another file, and by a passing fault.
    past.tried.push(second);
    let header = evidence(Phase::Build, "#9 1.0 fatal error: sys/acl.h: No such file or directory\n");
    let paths: Vec<_> = plan(&header, &past).edits.into_iter().map(|change| change.path).collect();
    assert_eq!(paths, ["requirements.txt", "Dockerfile"]);
    let passing = evidence(Phase::Build, "#9 1.0 Temporary failure resolving 'deb.debian.org'\n");
    let diagnosis = after(&passing, &past).unwrap();
    assert_eq!((diagnosis.repair.remedy, diagnosis.remedy), (Remedy::Rebuild, Remedy::Patch));
    assert_eq!(diagnosis.edits[0].new_content, "flask\nPyYAML\ntabulate\n");
}

#[test]
fn a_failure_that_is_still_there_is_not_repaired_the_same_way_again() {
    let past = Past { tried: vec![plan(&missing("yaml"), &Past::default())], ..Past::default() };
    let none = after(&missing("yaml"), &past).unwrap_err();
    assert!(none.to_string().contains("in attempt 1 already"), "{none}");
    // With another cause behind it that is the next to try, on the files without the first attempt's edits.
    let both = evidence(
        Phase::Runtime,
        "ModuleNotFoundError: No module named 'tabulate'\nModuleNotFoundError: No module named 'yaml'\n",
    );
    if let Ok(other) = after(&both, &past) {
        assert_eq!(other.builds_on, None);
    }
}

#[test]
fn what_was_verified_of_a_directory_is_left_where_that_is_in_a_volume() {
    let mut owned = evidence(Phase::Runtime, "PermissionError: [Errno 13] Permission denied: '/data/log'\n");
    owned.files.insert("Dockerfile".to_owned(), format!("{DOCKERFILE}RUN useradd app\nUSER app\n"));
    let past = Past {
        learned: vec![learned(&plan(&owned, &Past::default()), Outcome::Verified)],
        ..Past::default()
    };
    assert_eq!(after(&owned, &past).unwrap().verified_by.as_deref(), Some("run_0"));
    owned.model = Model::from_config(
        "{name: p, services: {web: {build: {context: /s/web}, volumes: [{type: volume, source: d, target: /data}]}}}",
    )
    .unwrap();
    let refused = after(&owned, &past).map(|found| (found.remedy, found.edits.len()));
    assert!(!matches!(refused, Ok((_, 1..))), "{refused:?}");
}

#[test]
fn what_was_changed_meanwhile_is_not_built_upon() {
    let past = Past { tried: vec![plan(&missing("yaml"), &Past::default())], ..Past::default() };
    let mut changed = missing("tabulate");
    changed.files.insert("requirements.txt".to_owned(), "django\n".to_owned());
    let none = after(&changed, &past).unwrap_err();
    assert!(none.to_string().contains("requirements.txt was changed while it was repaired"), "{none}");
}

#[test]
fn an_instruction_is_followed_once_and_then_the_log_counts() {
    let mut asked = missing("tabulate");
    asked.instruction = Some("add package pyyaml".to_owned());
    let first = plan(&asked, &Past::default());
    assert_eq!(first.diagnosis.rule_id, "instruction.add-package");
    let second = plan(&asked, &Past { tried: vec![first], ..Past::default() });
    assert_eq!(second.edits[0].new_content, "flask\npyyaml\ntabulate\n");
}

#[test]
fn a_repair_that_was_rolled_back_is_not_proposed_again_for_the_same_failure() {
    let first = plan(&missing("yaml"), &Past::default());
    let outcome = Outcome::RolledBack { reason: "it died".to_owned() };
    let past = Past { learned: vec![learned(&first, outcome)], ..Past::default() };
    let none = after(&missing("yaml"), &past).unwrap_err().to_string();
    for word in ["run_0", "it died", "cooper runs retry run_0"] {
        assert!(none.contains(word), "{word}: {none}");
    }
    assert_eq!(after(&missing("tabulate"), &past).unwrap().edits.len(), 1, "another failure");
}

#[test]
fn a_repair_that_was_verified_is_proposed_first_and_never_with_a_milder_class() {
    let both = evidence(
        Phase::Runtime,
        "ModuleNotFoundError: No module named 'left_pad'\nPermissionError: [Errno 13] Permission denied: '/data/x'\n",
    );
    let plain = after(&both, &Past::default()).unwrap();
    // A person has once approved another repair of the same failure.
    let mut known = learned(&plan(&missing("yaml"), &Past::default()), Outcome::Verified);
    known.class = Class::Approve;
    for fingerprint in fingerprints(RuleSet::builtin(), &both) {
        known.fingerprint = fingerprint.clone();
        let past = Past { learned: vec![known.clone()], ..Past::default() };
        let diagnosis = after(&both, &past).unwrap();
        assert_eq!(diagnosis.fingerprint, fingerprint, "it comes first");
        assert_eq!(diagnosis.edits[0].new_content, "flask\nPyYAML\n");
        assert_eq!((diagnosis.class, diagnosis.verified_by.as_deref()), (Class::Approve, Some("run_0")));
    }
    assert_eq!(plain.verified_by, None);
}

#[test]
fn what_was_verified_is_the_rules_own_where_they_agree_and_is_left_where_it_does_not_fit() {
    let first = plan(&missing("yaml"), &Past::default());
    let past = Past { learned: vec![learned(&first, Outcome::Verified)], ..Past::default() };
    let again = after(&missing("yaml"), &past).unwrap();
    assert_eq!((again.verified_by.as_deref(), again.edits), (Some("run_0"), first.edits));
    // Here the requirements have another name: the rule knows, what was remembered does not.
    let mut other = missing("yaml");
    other.files.remove("requirements.txt");
    other.files.insert("deps.txt".to_owned(), "flask\n".to_owned());
    other.files.insert("Dockerfile".to_owned(), DOCKERFILE.replace("requirements.txt", "deps.txt"));
    let diagnosis = after(&other, &past).unwrap();
    assert_eq!((diagnosis.edits[0].path.as_str(), diagnosis.verified_by), ("deps.txt", None));
}

#[test]
fn a_failure_has_the_same_fingerprint_at_another_time_and_place() {
    let of = |log: &str| fingerprints(RuleSet::builtin(), &evidence(Phase::Build, log))[0].clone();
    let first = of("#9 1.1 /usr/src/a/x.c:3:10: fatal error: sys/acl.h: No such file or directory\n");
    for same in [
        "#12 77.1 /usr/src/a/x.c:4:1: fatal error: sys/acl.h: No such file or directory\n",
        "#9 1.1 /tmp/pip-req-build-8f3k2/src/y.c:300:1: fatal error: sys/acl.h: No such file or directory\n",
    ] {
        assert_eq!(of(same), first, "{same}");
    }
    assert_ne!(of("#9 1.1 a.c:1:1: fatal error: zlib.h: No such file or directory\n"), first);
}
