//! How well the rules tell what a log means: logs in the shape that real tools print (`corpus.toml`), with precision and
//! recall over all of them. The numbers are printed: `cargo test -p cooper-repair --test corpus -- --nocapture`.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use cooper_repair::compose::Model;
use cooper_repair::diagnosis::Phase;
use cooper_repair::{Evidence, RuleSet, diagnose};
use serde::Deserialize;

#[derive(Deserialize)]
struct Corpus {
    sample: Vec<Sample>,
}

#[derive(Deserialize)]
struct Sample {
    name: String,
    phase: Phase,
    /// Id of the rule that has to explain it, or `none`.
    rule: String,
    log: String,
}

impl Sample {
    /// What explains it, by the log alone.
    fn explained(&self, log: &str) -> String {
        let (build_log, container_log) = if self.phase == Phase::Build { (log, "") } else { ("", log) };
        let model =
            Model::from_config("{name: shop, services: {web: {build: {context: /srv/shop/web}}}}").unwrap();
        let evidence = Evidence {
            build_log: build_log.to_owned(),
            container_log: container_log.to_owned(),
            ..Evidence::new("web", model, self.phase)
        };
        diagnose(RuleSet::builtin(), &evidence).map_or("none".to_owned(), |diagnosis| diagnosis.rule_id)
    }
}

fn corpus() -> Vec<Sample> {
    toml::from_str::<Corpus>(include_str!("corpus.toml")).unwrap().sample
}

#[test]
fn the_rules_explain_what_they_should_and_nothing_else() {
    let corpus = corpus();
    let (mut right, mut explained, mut explainable) = (0, 0, 0);
    for sample in &corpus {
        let found = sample.explained(&sample.log);
        let is_right = found == sample.rule;
        explainable += usize::from(sample.rule != "none");
        explained += usize::from(found != "none");
        right += usize::from(is_right && found != "none");
        if !is_right {
            println!("{}: {found}, not {}", sample.name, sample.rule);
        }
    }
    let percent = |part: usize, whole: usize| 100.0 * part as f64 / whole as f64;
    let (precision, recall) = (percent(right, explained), percent(right, explainable));
    println!(
        "{} logs, {explainable} of them to be explained: precision {precision:.1} %, recall {recall:.1} %",
        corpus.len()
    );
    assert!(corpus.len() >= 150);
    assert!(precision >= 98.0 && recall >= 98.0, "see the names above");
}

#[test]
fn every_rule_explains_a_log_of_the_corpus() {
    let corpus = corpus();
    let shown: BTreeSet<&str> = corpus.iter().map(|sample| sample.rule.as_str()).collect();
    let missing: Vec<_> = RuleSet::builtin()
        .rules()
        .filter(|rule| !shown.contains(rule.id.as_str()))
        .map(|rule| &rule.id)
        .collect();
    // It is told by the engine's state, not by a log.
    assert_eq!(missing, ["container.out-of-memory", "health.refused"]);
}

#[test]
fn colours_carriage_returns_and_200_000_lines_before_it_change_nothing() {
    let noise = "#8 1.000 \u{1b}[32mok\u{1b}[0m something went well\r\n".repeat(200_000);
    let corpus = corpus();
    let sample = corpus.iter().find(|sample| sample.rule == "apt.package-not-located").unwrap();
    let coloured = sample.log.replace("E: ", "\u{1b}[1;31mE: \u{1b}[0m").replace('\n', "\r\n");
    assert_eq!(sample.explained(&format!("{noise}{coloured}")), sample.rule);
}
