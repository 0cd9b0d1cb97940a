//! What Cooper could do to each service of a stack, and what is wrong with what its policy says: known before anything
//! fails.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::compose::{Model, Service};
use crate::plan::Verify;
use crate::policy::{self, OperatorPolicy, Policy};
use crate::rules::RuleSet;
use crate::{limits, review};

/// A stack as whoever has its files sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Survey {
    /// Without values of secrets.
    pub model: Model,
    /// The files of each build context, by service; relative to the context.
    pub files: BTreeMap<String, Vec<String>>,
    /// Why no service can be repaired from there: the engine takes what the stack binds from somewhere else.
    #[serde(default)]
    pub elsewhere: Option<String>,
}

/// What else is known of where the stack would be repaired.
#[derive(Debug, Default)]
pub struct Known<'a> {
    /// The stack's name.
    pub stack: &'a str,
    /// Names of tokens that may approve; `None` where that is not known.
    pub approvers: Option<BTreeSet<String>>,
    pub operator: Option<&'a OperatorPolicy>,
    pub rules: Option<&'a RuleSet>,
}

/// Every service, and every problem.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StackCheck {
    pub stack: String,
    pub project: String,
    pub services: Vec<ServiceCheck>,
    pub problems: Vec<Problem>,
}

/// What could be done to a service.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServiceCheck {
    pub service: String,
    /// It is built; a service that is not can only be restarted.
    pub builds: bool,
    /// Files that a fix may change, as there are now; relative to the build context.
    pub files: Vec<String>,
    /// Why every repair of it needs an approval; empty if it is fixes of class `approve` alone.
    pub approval: Vec<String>,
    /// Who may approve; anybody with scope operator or admin, if empty.
    pub approvers: Vec<String>,
    /// What has to be seen before it counts as repaired.
    pub verification: Vec<String>,
    /// Why a repaired container cannot be tried beside the one that runs; empty if it can.
    pub no_preflight: Vec<String>,
    /// Repairs may start by themselves.
    pub auto_repair: bool,
    pub max_attempts: u32,
    /// What the operator's file adds.
    pub operator: Vec<String>,
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Nothing is repaired until it is corrected; otherwise it probably does not mean what it says.
    pub error: bool,
    /// `x-cooper`, `services.NAME.x-cooper`, or a file and line.
    pub place: String,
    pub problem: String,
}

/// Looks at every service.
pub fn check(survey: &Survey, known: &Known<'_>) -> StackCheck {
    let model = &survey.model;
    let mut problems = Vec::new();
    let mut services = Vec::new();
    if let Some(why) = &survey.elsewhere {
        push(&mut problems, true, "the stack's directory".to_owned(), why.clone());
    }
    for (name, described) in &model.services {
        let files = survey.files.get(name).map(Vec::as_slice).unwrap_or_default();
        match Policy::of(model, name) {
            Ok(policy) => {
                lint(name, model, described, &policy, files, known, &mut problems);
                services.push(service(name, model, described, &policy, files, known));
            }
            Err(policy::Error::Invalid { place, problem }) => push(&mut problems, true, place, problem),
            Err(other) => push(&mut problems, true, format!("services.{name}"), other.to_string()),
        }
    }
    if let Some(operator) = known.operator {
        let all: Vec<&str> = model.services.keys().map(String::as_str).collect();
        let rules = known.rules.into_iter().flat_map(RuleSet::rules);
        let rules: Vec<&str> = rules.map(|rule| rule.id.as_str()).collect();
        for said in operator.unmatched(known.stack, &all, &rules) {
            let (place, problem) = said.split_once(": ").unwrap_or(("policy_file", &said));
            push(&mut problems, false, place.to_owned(), problem.to_owned());
        }
    }
    StackCheck { stack: known.stack.to_owned(), project: model.name.clone(), services, problems }
}

/// What is wrong for every service is said once.
fn push(problems: &mut Vec<Problem>, error: bool, place: String, problem: String) {
    let found = Problem { error, place, problem };
    if !problems.contains(&found) {
        problems.push(found);
    }
}

fn service(
    name: &str,
    model: &Model,
    described: &Service,
    policy: &Policy,
    files: &[String],
    known: &Known<'_>,
) -> ServiceCheck {
    let verify = Verify {
        health: policy.health.clone(),
        become_well_ms: limits::BECOME_WELL_DEFAULT_MS,
        stable_for_ms: policy.stable_for_ms,
    };
    let builds = described.build.is_some();
    let operator = known.operator;
    let may = |path: &&String| builds && policy.may_change(path);
    let automatic = operator.is_none_or(|it| it.against_automatic(known.stack, name).is_none());
    ServiceCheck {
        service: name.to_owned(),
        builds,
        files: files.iter().filter(may).cloned().collect(),
        approval: policy.guarded.clone(),
        approvers: policy.approvers.clone(),
        verification: review::verification(builds, &verify),
        no_preflight: model.against_beside(name),
        auto_repair: policy.auto_repair && automatic,
        max_attempts: policy.max_attempts,
        operator: operator.map(|it| it.about(known.stack, name)).unwrap_or_default(),
    }
}

fn lint(
    name: &str,
    model: &Model,
    described: &Service,
    policy: &Policy,
    files: &[String],
    known: &Known<'_>,
    problems: &mut Vec<Problem>,
) {
    let own = format!("services.{name}.x-cooper");
    let has =
        |value: Option<&serde_json::Value>, key: &str| value.is_some_and(|value| value.get(key).is_some());
    let place = |key: &str| match has(described.x_cooper.as_ref(), key) {
        true => Some(own.clone()),
        false => has(model.x_cooper.as_ref(), key).then(|| "x-cooper".to_owned()),
    };
    // What holds for the whole stack may well match nothing of one service.
    if described.build.is_some() && has(described.x_cooper.as_ref(), "allow") {
        for glob in &policy.allow {
            let matched: Vec<&String> = files.iter().filter(|path| Policy::matches(glob, path)).collect();
            if matched.is_empty() {
                let problem = format!("allow: {glob:?} matches no file of the build context");
                push(problems, false, own.clone(), problem);
            } else if !matched.iter().any(|path| policy.may_change(path)) {
                let problem = format!("allow: {glob:?} matches only files that Cooper never changes");
                push(problems, false, own.clone(), problem);
            }
        }
    } else if described.build.is_none() && has(described.x_cooper.as_ref(), "allow") {
        push(
            problems,
            false,
            own.clone(),
            "allow: the service is not built, no file of it changes".to_owned(),
        );
    }
    if let (Some(place), Some(tokens)) = (place("approvers"), &known.approvers) {
        nobody(place, &policy.approvers, tokens, problems);
    }
    if let (Some(operator), Some(tokens)) = (known.operator, &known.approvers) {
        let names: Vec<String> =
            operator.approvers(known.stack, name).into_iter().map(str::to_owned).collect();
        nobody(operator.file().to_owned(), &names, tokens, problems);
    }
    if policy.auto_repair
        && let Some(why) = known.operator.and_then(|it| it.against_automatic(known.stack, name))
        && let Some(place) = place("auto_repair")
    {
        push(problems, false, place, format!("auto_repair has no effect: {why}"));
    }
}

/// Approvers of whom there is no token.
fn nobody(place: String, approvers: &[String], tokens: &BTreeSet<String>, problems: &mut Vec<Problem>) {
    let missing: Vec<&str> =
        approvers.iter().filter(|name| !tokens.contains(*name)).map(String::as_str).collect();
    if missing.is_empty() {
        return;
    }
    let all = missing.len() == approvers.len();
    let so = if all { ", so nobody may approve" } else { "" };
    let problem = format!(
        "approvers: no token with scope operator or admin has the name {}{so}; `cooper token create --name` makes one",
        missing.join(" or ")
    );
    push(problems, all, place, problem);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn survey(services: serde_json::Value, files: &[&str]) -> Survey {
        let model = json!({ "name": "p", "services": services });
        let model = Model::from_config(&model.to_string()).unwrap();
        let files: Vec<String> = files.iter().map(|&path| path.to_owned()).collect();
        Survey {
            files: model.services.keys().map(|name| (name.clone(), files.clone())).collect(),
            model,
            elsewhere: None,
        }
    }

    fn problems(checked: &StackCheck) -> Vec<(bool, String)> {
        let said = |it: &Problem| (it.error, format!("{}: {}", it.place, it.problem));
        checked.problems.iter().map(said).collect()
    }

    #[test]
    fn of_each_service_it_says_what_could_change_who_approves_and_how_it_is_verified() {
        let services = json!({
            "db": { "image": "postgres:16", "volumes": [{ "type": "volume", "target": "/data" }],
                    "container_name": "db", "ports": [{ "target": 5432, "published": "5432" }] },
            "web": { "build": { "context": "/s/web" }, "x-cooper": { "health": { "url": "http://web/" }, "stable_for": "3s" } },
        });
        let checked = check(
            &survey(services, &["Dockerfile", "app.py", ".env", "requirements.txt"]),
            &Known::default(),
        );
        assert_eq!(checked.problems, []);
        let [db, web] = &checked.services[..] else { panic!("two") };
        assert!(!db.builds && db.files.is_empty() && !db.approval.is_empty());
        assert_eq!(db.no_preflight.len(), 3);
        assert_eq!(web.files, ["Dockerfile", "requirements.txt"]);
        assert!(web.approval.is_empty() && web.no_preflight.is_empty());
        assert!(web.verification.iter().any(|said| said.contains("GET http://web/")));
    }

    #[test]
    fn a_stack_that_the_engine_would_take_from_elsewhere_is_an_error_of_all_of_it() {
        let mut survey = survey(json!({ "web": { "build": { "context": "/s" } } }), &[]);
        survey.elsewhere = Some("service web takes /s/data from elsewhere".to_owned());
        let checked = check(&survey, &Known::default());
        let said = "the stack's directory: service web takes /s/data from elsewhere".to_owned();
        assert_eq!((checked.services.len(), problems(&checked)), (1, vec![(true, said)]));
    }

    #[test]
    fn what_is_wrong_with_x_cooper_is_named_with_its_place() {
        for (x_cooper, error, said) in [
            (json!({ "alow": [] }), true, "services.web.x-cooper: unknown field `alow`"),
            (json!({ "protected": "yes" }), true, "services.web.x-cooper: invalid type"),
            (json!({ "allow": ["*.lock"] }), false, "allow: \"*.lock\" matches no file"),
            (json!({ "allow": [".e*"] }), false, "matches only files that Cooper never changes"),
            (
                json!({ "approvers": ["ann"] }),
                true,
                "no token with scope operator or admin has the name ann, so nobody",
            ),
            (json!({ "approvers": ["ann", "bert"] }), false, "has the name ann;"),
        ] {
            let services = json!({ "web": { "build": { "context": "/s" }, "x-cooper": x_cooper } });
            let approvers = Some(BTreeSet::from(["bert".to_owned()]));
            let known = Known { approvers, ..Known::default() };
            let found = problems(&check(&survey(services, &["Dockerfile", ".env"]), &known));
            assert!(found.len() == 1 && found[0].0 == error && found[0].1.contains(said), "{found:?}");
        }
    }

    #[test]
    fn the_operators_file_is_checked_against_the_stack() {
        let text = "[[limit]]\nservices = ['payments']\nprotected = true\n\n[[limit]]\nauto_repair = false\n\
                    approvers = ['carl']\ndeny_rules = ['no.such']\n";
        let operator = OperatorPolicy::read("policy.toml", text).unwrap();
        let known = Known {
            stack: "shop",
            approvers: Some(BTreeSet::from(["ann".to_owned()])),
            operator: Some(&operator),
            rules: Some(RuleSet::builtin()),
        };
        let services =
            json!({ "web": { "build": { "context": "/s" }, "x-cooper": { "auto_repair": true } } });
        let checked = check(&survey(services, &["Dockerfile"]), &known);
        assert!(!checked.services[0].auto_repair);
        assert_eq!(checked.services[0].operator.len(), 1);
        let found = problems(&checked);
        for (error, said) in [
            (false, "policy.toml:1: services payments is none of this stack"),
            (false, "policy.toml:5: deny_rules \"no.such\" is no rule's id"),
            (true, "policy.toml: approvers: no token"),
            (false, "services.web.x-cooper: auto_repair has no effect: policy.toml:5"),
        ] {
            assert!(
                found.iter().any(|(is, text)| *is == error && text.starts_with(said)),
                "{said}: {found:#?}"
            );
        }
    }
}
