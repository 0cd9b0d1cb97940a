//! Rules: what a log line means and what to do about it, as data in `rules/*.toml`.
//!
//! A rules file is a list of `[[rule]]` tables; [`Rule`] documents their fields. A rule is checked when it is loaded:
//! its pattern compiles, its sentence and its fix use only captures the pattern has, its examples match and do not
//! match. An error names the file and the rule.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use regex::{Captures, Regex, RegexBuilder, RegexSet, RegexSetBuilder};
use serde::{Deserialize, Serialize};

use crate::diagnosis::Phase;
use crate::limits;
use crate::names::{Names, Provides};

/// What may be done about a cause, from mild to strict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Patch, within the allow-list.
    Auto,
    /// Build again as it is: a passing fault.
    Retry,
    /// Patch only after an approval.
    Approve,
    /// Never patch: a person has to act.
    Escalate,
}

/// Where a rule looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Where {
    /// Build logs.
    Build,
    /// Container logs, the engine's error and the healthcheck's output.
    Runtime,
    /// Both.
    Any,
}

impl Where {
    /// True if a rule for here is asked in this phase.
    pub fn covers(self, phase: Phase) -> bool {
        match self {
            Self::Any => true,
            Self::Build => phase == Phase::Build,
            Self::Runtime => phase != Phase::Build,
        }
    }
}

/// What a rule does about its cause. Text fields may hold `{capture}`; each is checked when an edit is made of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Fix {
    /// Install the distribution of a Python module where the image installs its requirements.
    PythonModule {
        /// Module as Python names it, with or without submodules.
        module: String,
    },
    /// Pin a distribution to the nearest version that exists.
    PythonVersion {
        /// Distribution.
        package: String,
        /// Version that was asked for.
        version: String,
        /// Versions that exist, separated by commas.
        available: String,
    },
    /// `=` should be `==` in a requirement.
    PythonOperator {
        /// The requirement as pip printed it.
        requirement: String,
    },
    /// Install these Debian packages in the stage that needs them.
    AptPackages {
        /// Package names.
        packages: Vec<String>,
    },
    /// Install what provides a command, header or library, by the name maps.
    AptProvider {
        /// What `name` is.
        what: Provides,
        /// Its name.
        name: String,
    },
    /// The package lists are missing or old, or the package has another name now.
    AptPackageMissing {
        /// The package that was not found; empty if it was found but could not be fetched.
        package: String,
    },
    /// Install whatever version there is.
    AptVersionMissing {
        /// Package.
        package: String,
        /// Version that was asked for.
        version: String,
    },
    /// `-y` is missing.
    AptYes,
    /// Python's distributions go into a virtual environment of the image.
    PythonVenv,
    /// A file of the build context is not copied to where it is wanted.
    CopyFile {
        /// Its path as the image wants it.
        path: String,
    },
    /// The Dockerfile copies a file that the build context does not have under that name, or leaves out.
    CopySource {
        /// Its path as the Dockerfile has it.
        path: String,
    },
    /// The service's user may not write a file or directory of the image.
    Writable {
        /// Its absolute path.
        path: String,
    },
    /// Add a dependency to `package.json`.
    NodeModule {
        /// Module as Node names it.
        module: String,
    },
    /// `npm install` instead of `npm ci`, which wants a lock file that fits.
    NodeWithoutLock {
        /// There is a lock file, and it does not fit.
        #[serde(default)]
        outdated: bool,
    },
    /// A file of the image is not executable.
    Executable {
        /// Its path in the image.
        path: String,
    },
    /// A script has CRLF line ends or no interpreter line.
    Script {
        /// Its path in the image; empty if the log does not tell.
        path: String,
    },
    /// A user of the image does not exist.
    User {
        /// Its name.
        user: String,
    },
    /// A variable is missing that the stack documents with a value (`.env.example`).
    ComposeVariable {
        /// Name.
        name: String,
    },
    /// Something else has the port of the host that the service publishes.
    ComposePort {
        /// Port of the host.
        port: String,
    },
    /// The service starts before one that it needs.
    ComposeOrder {
        /// The other service, as far as the log tells; may be empty.
        peer: String,
    },
    /// A variable is missing in the image.
    Variable {
        /// Name.
        name: String,
        /// Value.
        value: String,
    },
    /// A misspelt Dockerfile instruction.
    Keyword {
        /// Line, from 1.
        line: String,
        /// Keyword as it is.
        from: String,
        /// Keyword as it shall be.
        to: String,
    },
    /// Build again as it is.
    Rebuild,
    /// Nothing: a person has to act.
    Escalate,
}

/// Lines a rule must and must not match.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Examples {
    /// At least one.
    #[serde(rename = "match")]
    pub matching: Vec<String>,
    /// Lines that look alike and mean something else.
    #[serde(default)]
    pub no_match: Vec<String>,
}

/// One rule as it is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Unique name, `ecosystem.what-is-wrong`.
    pub id: String,
    /// `python`, `apt`, `cc`, `npm`, `dockerfile`, …
    pub ecosystem: String,
    /// Where it looks.
    #[serde(rename = "where")]
    pub place: Where,
    /// Regular expression over one normalised line, with named captures.
    pub pattern: String,
    /// The cause in a sentence; `{capture}` is replaced.
    pub cause: String,
    /// What may be done.
    pub class: Class,
    /// How sure a match is, in percent.
    #[serde(default = "confident")]
    pub confidence: u8,
    /// Which of several matching rules is the cause: the highest. 50 if not given; wrappers lower, precise ones higher.
    #[serde(default = "middle")]
    pub priority: u8,
    /// What to do.
    pub fix: Fix,
    /// Proof of the pattern.
    pub examples: Examples,
}

fn confident() -> u8 {
    90
}

fn middle() -> u8 {
    50
}

/// What a form of instruction asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Install a Python distribution: capture `package`.
    AddPackage,
    /// Install a Debian package: capture `package`.
    InstallAptPackage,
    /// Remove a Python distribution: capture `package`.
    RemovePackage,
    /// Install a Python distribution in another version: captures `package`, `version`.
    PinPackage,
    /// The same without saying which version: refused, since a diagnosis asks no index.
    UpgradePackage,
    /// Diagnose and repair what the logs tell.
    Fix,
    /// Restart as it is.
    Restart,
    /// Take a run back: capture `run`.
    UndoRun,
}

/// One form of instruction that is understood.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Form {
    /// What it asks for.
    pub request: Request,
    /// How the form is told to a person who used another.
    pub says: String,
    /// Regular expression over the whole instruction, case does not matter. Captures: `package`, `version`, `service`, `run`.
    pub pattern: String,
    /// Proof of the pattern.
    pub examples: Examples,
}

/// Rules could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not TOML of the right shape.
    #[error("{file}: {source}")]
    Toml {
        /// File name.
        file: String,
        /// What is wrong, with the line.
        source: Box<toml::de::Error>,
    },
    /// The file is longer than [`limits::RULES_BYTES_MAX`].
    #[error("{file} has {bytes} bytes, at most {max} are read", max = limits::RULES_BYTES_MAX)]
    TooLong {
        /// File name.
        file: String,
        /// Its length.
        bytes: usize,
    },
    /// A rule contradicts itself.
    #[error("{file}:{line}: rule {rule}: {problem}")]
    Rule {
        /// File name.
        file: String,
        /// Line of its id, from 1.
        line: usize,
        /// The rule's id.
        rule: String,
        /// What is wrong.
        problem: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RulesFile {
    rule: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FormsFile {
    form: Vec<Form>,
}

/// The rules files that come with Cooper.
const BUILTIN: &[(&str, &str)] = &[
    ("python.toml", include_str!("../rules/python.toml")),
    ("apt.toml", include_str!("../rules/apt.toml")),
    ("native.toml", include_str!("../rules/native.toml")),
    ("node.toml", include_str!("../rules/node.toml")),
    ("go.toml", include_str!("../rules/go.toml")),
    ("cargo.toml", include_str!("../rules/cargo.toml")),
    ("dockerfile.toml", include_str!("../rules/dockerfile.toml")),
    ("compose.toml", include_str!("../rules/compose.toml")),
    ("container.toml", include_str!("../rules/container.toml")),
    ("runtime.toml", include_str!("../rules/runtime.toml")),
];

/// Rules, instruction forms and name maps, validated and compiled.
#[derive(Debug)]
pub struct RuleSet {
    rules: Vec<(Rule, Regex)>,
    set: RegexSet,
    forms: Vec<(Form, Regex)>,
    names: Names,
    further: Vec<(String, String)>,
}

impl RuleSet {
    /// The rules that come with Cooper. Read when they are first asked for: that takes a coordinator's start as long as
    /// everything else in it.
    pub fn builtin() -> &'static Self {
        static BUILTIN: LazyLock<RuleSet> =
            LazyLock::new(|| RuleSet::with(&[]).expect("the rules that come with Cooper are tested"));
        &BUILTIN
    }

    /// The rules that come with Cooper and further ones, as pairs of file name and text.
    ///
    /// # Errors
    /// The file and the rule that is wrong, and how.
    pub fn with(further: &[(&str, &str)]) -> Result<Self, Error> {
        let names = Names::builtin().map_err(|(file, source)| toml_error(file, source))?;
        let mut rules: Vec<(Rule, Regex)> = Vec::new();
        let mut ids = BTreeSet::new();
        for (file, text) in BUILTIN.iter().chain(further) {
            if text.len() > limits::RULES_BYTES_MAX {
                return Err(Error::TooLong { file: (*file).to_owned(), bytes: text.len() });
            }
            let read: RulesFile = toml::from_str(text).map_err(|source| toml_error(file, source))?;
            for rule in read.rule {
                let wrong = |problem| wrong(file, text, &rule.id, problem);
                if !ids.insert(rule.id.clone()) {
                    return Err(wrong("the id is taken by an earlier rule".to_owned()));
                }
                let pattern = check_rule(&rule).map_err(wrong)?;
                rules.push((rule, pattern));
            }
        }
        let forms = forms()?;
        let set = RegexSetBuilder::new(rules.iter().map(|(rule, _)| &rule.pattern))
            .size_limit(limits::PATTERN_BYTES_MAX * 16)
            // With less the automaton of all rules is thrown away again and again, and a line costs 50 times as much.
            .dfa_size_limit(limits::RULES_CACHE_BYTES_MAX)
            .build()
            .map_err(|error| wrong("all rules", "", "together", error.to_string()))?;
        let further = further.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned())).collect();
        Ok(Self { rules, set, forms, names, further })
    }

    /// The further rules as they were given: file name and text.
    pub fn further(&self) -> &[(String, String)] {
        &self.further
    }

    /// All rules, in order of their files.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter().map(|(rule, _)| rule)
    }

    /// The forms of instruction that are understood, as a person would write them.
    pub fn instruction_forms(&self) -> impl Iterator<Item = &str> {
        let mut told = BTreeSet::new();
        self.forms.iter().map(|(form, _)| form.says.as_str()).filter(move |says| told.insert(*says))
    }

    /// The name maps.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// The rules of a phase that match a line, with what they captured.
    pub(crate) fn matches<'a>(
        &'a self,
        phase: Phase,
        line: &str,
    ) -> impl Iterator<Item = (&'a Rule, BTreeMap<String, String>)> {
        let found: Vec<_> = self
            .set
            .matches(line)
            .into_iter()
            .map(|index| &self.rules[index])
            .filter(|(rule, _)| rule.place.covers(phase))
            .filter_map(|(rule, pattern)| Some((rule, named(pattern, &pattern.captures(line)?))))
            .collect();
        found.into_iter()
    }

    /// The rule of class `auto` that is the cause of what a container printed, if one is.
    pub fn triggered(&self, line: &str) -> Option<&Rule> {
        let text = crate::log::Log::normalise(line.as_bytes()).text();
        let line = text.trim_end_matches('\n');
        let found = self.matches(Phase::Runtime, line).map(|(rule, _)| rule);
        found.max_by_key(|rule| rule.priority).filter(|rule| rule.class == Class::Auto)
    }

    /// What an instruction asks for, with its captures.
    pub(crate) fn request(&self, instruction: &str) -> Option<(&Form, BTreeMap<String, String>)> {
        self.forms
            .iter()
            .find_map(|(form, pattern)| Some((form, named(pattern, &pattern.captures(instruction)?))))
    }
}

fn toml_error(file: &str, source: toml::de::Error) -> Error {
    Error::Toml { file: file.to_owned(), source: Box::new(source) }
}

/// A rule is named once in its file; where that is, is where to look.
fn wrong(file: &str, text: &str, rule: &str, problem: String) -> Error {
    let before = text.find(rule).map_or("", |at| &text[..at]);
    Error::Rule {
        file: file.to_owned(),
        line: before.matches('\n').count() + 1,
        rule: rule.to_owned(),
        problem,
    }
}

fn named(pattern: &Regex, found: &Captures<'_>) -> BTreeMap<String, String> {
    let value = |name: &str| found.name(name).map(|value| (name.to_owned(), value.as_str().to_owned()));
    pattern.capture_names().flatten().filter_map(value).collect()
}

fn forms() -> Result<Vec<(Form, Regex)>, Error> {
    const FILE: &str = "instructions.toml";
    const FORMS: &str = include_str!("../rules/instructions.toml");
    let read: FormsFile = toml::from_str(FORMS).map_err(|source| toml_error(FILE, source))?;
    let mut forms = Vec::new();
    for form in read.form {
        let wrong = |problem| wrong(FILE, FORMS, &form.says, problem);
        let pattern = compile(&format!("(?i)^(?:{})$", form.pattern)).map_err(wrong)?;
        check_examples(&pattern, &form.examples).map_err(wrong)?;
        forms.push((form, pattern));
    }
    Ok(forms)
}

fn compile(pattern: &str) -> Result<Regex, String> {
    let built = RegexBuilder::new(pattern).size_limit(limits::PATTERN_BYTES_MAX).build();
    built.map_err(|error| format!("the pattern is not valid: {error}"))
}

fn check_examples(pattern: &Regex, examples: &Examples) -> Result<(), String> {
    if examples.matching.is_empty() {
        return Err("examples.match is empty".to_owned());
    }
    if let Some(line) = examples.matching.iter().find(|line| !pattern.is_match(line)) {
        return Err(format!("the pattern does not match its example {line:?}"));
    }
    match examples.no_match.iter().find(|line| pattern.is_match(line)) {
        Some(line) => Err(format!("the pattern matches {line:?}, which it must not")),
        None => Ok(()),
    }
}

fn check_rule(rule: &Rule) -> Result<Regex, String> {
    let pattern = compile(&rule.pattern)?;
    check_examples(&pattern, &rule.examples)?;
    let fix = serde_json::to_string(&rule.fix).map_err(|error| error.to_string())?;
    let names: BTreeSet<_> = pattern.capture_names().flatten().collect();
    for found in PLACE.captures_iter(&rule.cause).chain(PLACE.captures_iter(&fix)) {
        if !names.contains(&found[1]) {
            return Err(format!("the pattern has no capture {:?}", &found[1]));
        }
    }
    let consistent = match rule.class {
        Class::Auto | Class::Approve => !matches!(rule.fix, Fix::Rebuild | Fix::Escalate),
        Class::Retry => rule.fix == Fix::Rebuild,
        Class::Escalate => rule.fix == Fix::Escalate,
    };
    if !consistent {
        return Err(
            "class retry goes with fix rebuild, class escalate with fix escalate, and no other".to_owned()
        );
    }
    if rule.confidence > 100 {
        return Err("confidence is a percentage".to_owned());
    }
    Ok(pattern)
}

static PLACE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\{(\w+)\}").expect("the pattern is constant and tested"));

/// `template` with each `{capture}` replaced; an absent capture becomes empty.
pub(crate) fn fill(template: &str, captures: &BTreeMap<String, String>) -> String {
    PLACE
        .replace_all(template, |found: &Captures<'_>| captures.get(&found[1]).cloned().unwrap_or_default())
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(text: &str) -> String {
        RuleSet::with(&[("mine.toml", text)]).unwrap_err().to_string()
    }

    const RULE: &str = "[[rule]]\nid = 'mine.x'\necosystem = 'x'\nwhere = 'any'\npattern = 'no (?P<thing>\\w+) here'\n\
        cause = '{thing} is missing.'\nclass = 'auto'\nfix = { kind = 'apt_packages', packages = ['git'] }\n\
        examples = { match = ['no luck here'] }\n";

    #[test]
    fn the_rules_that_come_with_cooper_hold_their_examples() {
        let rules = RuleSet::builtin();
        assert!(rules.rules().count() >= 25);
        assert!(rules.instruction_forms().count() >= 4);
    }

    #[test]
    fn every_example_leads_to_its_own_rule_first() {
        let rules = RuleSet::builtin();
        for rule in rules.rules() {
            let phase = if rule.place == Where::Runtime { Phase::Runtime } else { Phase::Build };
            for line in &rule.examples.matching {
                let best = rules.matches(phase, line).max_by_key(|(found, _)| found.priority).unwrap().0;
                assert_eq!(best.id, rule.id, "{line}");
            }
        }
    }

    #[test]
    fn a_rule_of_ones_own_is_added() {
        assert!(RuleSet::with(&[("mine.toml", RULE)]).unwrap().rules().any(|rule| rule.id == "mine.x"));
    }

    #[test]
    fn a_broken_rule_is_named_with_its_file() {
        assert!(broken("x = 1").starts_with("mine.toml: TOML parse error at line 1"));
        assert!(broken(&RULE.replace("mine.x", "python.module-missing")).contains("the id is taken"));
        assert!(broken(&RULE.replace("{thing} is", "{other} is")).contains("no capture \"other\""));
        assert!(broken(&RULE.replace("no luck here", "luck")).contains("does not match its example"));
        assert!(
            broken(&RULE.replace("(?P", "(?P("))
                .contains("mine.toml:2: rule mine.x: the pattern is not valid")
        );
        assert!(broken(&RULE.replace("'auto'", "'escalate'")).contains("class escalate with fix escalate"));
    }
}
