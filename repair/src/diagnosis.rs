//! From evidence to a diagnosis: which rule explains the failure, and which edits remove its cause.

mod compose;
mod fix;
mod instruction;
mod past;
mod python;
mod scene;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::compose::Model;
use crate::edit::{self, Edit, FileChange};
use crate::limits;
use crate::log::{Failure, Log};
use crate::rules::{Class, Rule, RuleSet, fill};

pub use crate::edit::distribution_name;
use fix::Resolved;
pub use instruction::undo_asked;
pub use past::{FileEdits, Ground, Learned, Outcome, Past, Repair};
use scene::Scene;

/// Where a failure showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The image does not build.
    Build,
    /// The container does not start or does not stay.
    Runtime,
    /// The container runs but is not well.
    Health,
}

/// What is known about a failing service. Text fields hold what was printed, raw or normalised; an empty string is
/// "nothing there".
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Evidence {
    /// Name of the service in `model`.
    pub service: String,
    /// The resolved compose model, best [without values](Model::without_values).
    pub model: Model,
    /// Where the failure showed.
    pub phase: Phase,
    /// Output of the build, lossily decoded.
    #[serde(default)]
    pub build_log: String,
    /// Output of the container, lossily decoded.
    #[serde(default)]
    pub container_log: String,
    /// What the same build or container printed when the service was last seen well: its lines explain no failure.
    #[serde(default)]
    pub good_log: String,
    /// The container's state as the engine tells, if there is a container.
    #[serde(default)]
    pub state: Option<State>,
    /// Files of the build context that matter, by path relative to it: the Dockerfile, dependency files, scripts.
    /// Files that are only known to exist may be given with empty text.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// Files of the stack's directory that compose reads, by path relative to it: the compose files, and examples of
    /// variables (`.env.example`).
    #[serde(default)]
    pub stack_files: BTreeMap<String, String>,
    /// Files of the build context that git does not know as they are, as `git status --porcelain` prints them.
    #[serde(default)]
    pub uncommitted: Vec<String>,
    /// What a person asked for.
    #[serde(default)]
    pub instruction: Option<String>,
    /// Versions of Python distributions that pip chose inside the service's image, by their names in lower case with `-`. What is
    /// added is pinned to them.
    #[serde(default)]
    pub versions: BTreeMap<String, String>,
}

impl Evidence {
    /// Of a service of which nothing more is known yet.
    pub fn new(service: impl Into<String>, model: Model, phase: Phase) -> Self {
        Self {
            service: service.into(),
            model,
            phase,
            build_log: String::new(),
            container_log: String::new(),
            good_log: String::new(),
            state: None,
            files: BTreeMap::new(),
            stack_files: BTreeMap::new(),
            uncommitted: Vec::new(),
            instruction: None,
            versions: BTreeMap::new(),
        }
    }
}

/// A container's state, from `docker inspect`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// `created running restarting exited dead paused`.
    pub status: String,
    /// Exit code of the last end.
    pub exit_code: i64,
    /// Restarts by the engine.
    pub restart_count: u64,
    /// The kernel killed it for its memory.
    pub oom_killed: bool,
    /// `healthy unhealthy starting`, if there is a healthcheck.
    pub health: Option<String>,
    /// Last output of the healthcheck.
    pub health_output: String,
    /// The engine's own error (a container that could not be started has no log but this).
    pub error: String,
}

/// A failure with its cause.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// Rule that explains it.
    pub rule_id: String,
    /// The cause, in a sentence.
    pub cause: String,
    /// How sure, in percent.
    pub confidence: u8,
    /// Class of the fix: the rule's, or a stricter one where the fix rests on a guess.
    pub class: Class,
    /// The log line or the instruction it rests on.
    pub evidence_line: String,
    /// What Cooper can do about it.
    pub remedy: Remedy,
    /// The changes, for [`Remedy::Patch`]; else empty. With those of the attempt it builds upon.
    pub edits: Vec<FileChange>,
    /// Names this failure across runs and services: 64 hex digits.
    pub fingerprint: String,
    /// The instruction of the Dockerfile that failed; empty if it was none.
    #[serde(default)]
    pub at: String,
    /// What is done about this cause alone.
    pub repair: Repair,
    /// The run that has verified this repair of this failure before.
    #[serde(default)]
    pub verified_by: Option<String>,
    /// The attempt of the run whose edits are kept, since the failure it was about is gone.
    #[serde(default)]
    pub builds_on: Option<u32>,
}

/// What can be done about a cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Remedy {
    /// Change files, then build, restart, verify, promote.
    Patch,
    /// Build again as it is (a passing fault of a network or mirror), restart, verify.
    Rebuild,
    /// Restart as it is, verify.
    Restart,
    /// Nothing that Cooper may do: a person has to act.
    Escalate,
}

/// Nothing explains the failure, or nothing that could be repaired. Also an instruction that is not understood.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("no diagnosis: {}", reasons.join("; "))]
pub struct NoDiagnosis {
    /// Why each candidate was put aside, or that there was none; each with what to do.
    pub reasons: Vec<String>,
    /// What was looked at: which logs with how many lines, which files.
    pub looked_at: Vec<String>,
}

/// Finds the cause of a failure and the edits that remove it.
///
/// A cause that no edit is known for is a diagnosis too: its remedy is [`Remedy::Escalate`].
///
/// # Errors
/// [`NoDiagnosis`] if no rule explains the failure, or the instruction is not understood.
pub fn diagnose(rules: &RuleSet, evidence: &Evidence) -> Result<Diagnosis, NoDiagnosis> {
    diagnose_after(rules, evidence, &Past::default())
}

/// The same with what came before: what was verified of the same failure is proposed first, what was rolled back is
/// not proposed. After an attempt of the same run the logs are those of that attempt, the files those of the checkout.
///
/// # Errors
/// As [`diagnose`]; also if all that could be done was done before.
pub fn diagnose_after(rules: &RuleSet, evidence: &Evidence, past: &Past) -> Result<Diagnosis, NoDiagnosis> {
    let instruction = evidence.instruction.as_deref().map(str::trim).filter(|text| !text.is_empty());
    if let Some(instruction) = instruction
        && past.tried.is_empty()
        && let Some(asked) = instruction::follow(rules, evidence, instruction)?
    {
        return Ok(asked);
    }
    let found = Found::of(evidence);
    let at = found.failure.instruction.clone().unwrap_or_default();
    let mut candidates = candidates(rules, evidence.phase, &found.lines);
    if candidates.is_empty() {
        let reasons = vec![format!("no rule explains what was printed ({} lines)", found.lines.len())];
        return Err(NoDiagnosis { reasons, looked_at: found.looked_at });
    }
    candidates.truncate(limits::CANDIDATES_MAX);
    // What was verified before first, else as they are.
    candidates.sort_by_key(|candidate| past.verified(&candidate.fingerprint(evidence)).is_none());
    let ground = match ground_of(evidence, past, &found, &candidates) {
        Ok(ground) => ground,
        Err(reason) => return Err(NoDiagnosis { reasons: vec![reason], looked_at: found.looked_at }),
    };
    let scene = Scene::new(&ground.evidence, rules.names(), found.failure);
    let mut first_without_remedy = None;
    let mut done_before = Vec::new();
    for candidate in candidates {
        let fingerprint = candidate.fingerprint(evidence);
        let resolved = fix::resolve(&scene, candidate.rule, &candidate.captures);
        let (resolved, learned) = past.preferred(&fingerprint, resolved, scene.evidence);
        match resolved {
            // What explains it best and cannot be repaired says more than what explains it less and is not repaired either.
            Ok(resolved) if resolved.remedy == Remedy::Escalate && first_without_remedy.is_some() => {}
            Ok(resolved) => {
                if let Some(why) = past.against(&fingerprint, &Repair::of(&resolved)) {
                    done_before.push(format!("{} But {why}", candidate.cause()));
                    continue;
                }
                let verified_by = learned.map(|learned| learned.run.clone());
                let diagnosis = ground.settle(candidate.diagnosis(evidence, at, resolved), evidence);
                return Ok(Diagnosis { verified_by, ..diagnosis });
            }
            Err(reason) => {
                first_without_remedy.get_or_insert((candidate, reason));
            }
        }
    }
    match first_without_remedy {
        Some((candidate, reason)) if done_before.is_empty() => Ok(candidate.escalated(evidence, at, &reason)),
        _ => Err(NoDiagnosis { reasons: done_before, looked_at: found.looked_at }),
    }
}

/// What an attempt is worked out for.
///
/// # Errors
/// A file was changed while it was repaired.
pub fn ground<'p>(rules: &RuleSet, evidence: &Evidence, past: &'p Past) -> Result<Ground<'p>, String> {
    let found = Found::of(evidence);
    ground_of(evidence, past, &found, &candidates(rules, evidence.phase, &found.lines))
}

fn ground_of<'p>(
    evidence: &Evidence,
    past: &'p Past,
    found: &Found,
    candidates: &[Candidate<'_>],
) -> Result<Ground<'p>, String> {
    let at = found.failure.instruction.as_deref().unwrap_or_default();
    let base = past.base(|last| {
        let same = |candidate: &Candidate<'_>| candidate.fingerprint(evidence) == last.diagnosis.fingerprint;
        at == last.diagnosis.at && candidates.iter().any(same)
    });
    Ground::upon(base, evidence)
}

/// The lines that say what failed, without decoration.
pub(crate) fn lines(evidence: &Evidence) -> Vec<String> {
    Found::of(evidence).lines
}

/// Python distributions that the diagnosis would add without a version: whoever has the service's image can say in which one
/// they work there ([`Evidence::versions`]).
pub fn unpinned(rules: &RuleSet, evidence: &Evidence) -> Vec<String> {
    let Ok(diagnosis) = diagnose(rules, evidence) else { return Vec::new() };
    let added = diagnosis.edits.iter().flat_map(|change| &change.edits).filter_map(|edit| match edit {
        Edit::AppendRequirement { requirement }
        | Edit::AppendProjectDependency { requirement }
        | Edit::ExtendPipInstall { requirement, .. } => Some(requirement),
        _ => None,
    });
    added.filter(|requirement| python::is_bare(requirement)).cloned().collect()
}

/// The fingerprints of all failures that show, for which something may have been learned.
pub fn fingerprints(rules: &RuleSet, evidence: &Evidence) -> Vec<String> {
    let found = Found::of(evidence);
    let mut candidates = candidates(rules, evidence.phase, &found.lines);
    candidates.truncate(limits::CANDIDATES_MAX);
    candidates.iter().map(|candidate| candidate.fingerprint(evidence)).collect()
}

/// The lines to ask the rules about, and what they were taken from.
struct Found {
    lines: Vec<String>,
    failure: Failure,
    looked_at: Vec<String>,
}

impl Found {
    fn of(evidence: &Evidence) -> Self {
        let mut looked_at = Vec::new();
        let mut lines = Vec::new();
        let mut failure = Failure::default();
        let good = Good::of(&evidence.good_log);
        if evidence.phase == Phase::Build {
            let log = Log::normalise(evidence.build_log.as_bytes());
            failure = log.failure();
            looked_at.push(format!("build log: {} lines", log.lines.len()));
            lines.extend(log.suspects(&failure).filter(|line| !good.has(line)).map(str::to_owned));
        } else {
            let log = Log::normalise(evidence.container_log.as_bytes());
            looked_at.push(format!("container log: {} lines", log.lines.len()));
            lines.extend(log.lines.into_iter().map(|line| line.text).filter(|line| !good.has(line)));
        }
        if !good.0.is_empty() {
            looked_at.push(format!("log of when it was well: {} lines", good.0.len()));
        }
        if let Some(state) = &evidence.state {
            looked_at.push("container state".to_owned());
            let health = Log::normalise(state.health_output.as_bytes());
            lines.extend(
                health.lines.into_iter().filter_map(|line| of_healthcheck(line.text, evidence.phase)),
            );
            lines.extend(Log::normalise(state.error.as_bytes()).lines.into_iter().map(|line| line.text));
            // The state as a line, so that rules can speak about it.
            lines.push(format!(
                "container state: status={} exit_code={} oom_killed={}",
                state.status, state.exit_code, state.oom_killed
            ));
        }
        looked_at
            .extend(evidence.files.keys().take(limits::CANDIDATES_MAX).map(|path| format!("file {path}")));
        Self { lines, failure, looked_at }
    }
}

static REFUSED: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?i)connection refused|ECONNREFUSED|failed to connect to").expect("constant and tested")
});

/// A line of the healthcheck's output. One that nobody answered tells of the service itself, not of a peer; and nothing
/// at all where the service does not even run.
fn of_healthcheck(line: String, phase: Phase) -> Option<String> {
    match (REFUSED.is_match(&line), phase) {
        (false, _) => Some(line),
        (true, Phase::Health) => Some(format!("container healthcheck: {line}")),
        (true, _) => None,
    }
}

/// A rule that matched a line.
struct Candidate<'a> {
    rule: &'a Rule,
    captures: BTreeMap<String, String>,
    line: &'a str,
}

/// Every rule that matches, best first: by priority, then the first line in a build (what follows is fallout) and the
/// last in a container's log (it tells of the newest start).
fn candidates<'a>(rules: &'a RuleSet, phase: Phase, lines: &'a [String]) -> Vec<Candidate<'a>> {
    let mut best: BTreeMap<&str, (usize, Candidate<'a>)> = BTreeMap::new();
    for (number, line) in lines.iter().enumerate() {
        for (rule, captures) in rules.matches(phase, line) {
            let candidate = Candidate { rule, captures, line };
            match best.get_mut(rule.id.as_str()) {
                Some(_) if phase == Phase::Build => {}
                Some(known) => *known = (number, candidate),
                None => {
                    best.insert(&rule.id, (number, candidate));
                }
            }
        }
    }
    let mut found: Vec<_> = best.into_values().collect();
    found.sort_by_key(|(number, candidate)| {
        let order = if phase == Phase::Build { *number } else { usize::MAX - number };
        (u8::MAX - candidate.rule.priority, order)
    });
    found.into_iter().map(|(_, candidate)| candidate).collect()
}

impl Candidate<'_> {
    fn cause(&self) -> String {
        fill(&self.rule.cause, &self.captures)
    }

    fn fingerprint(&self, evidence: &Evidence) -> String {
        fingerprint(&self.rule.id, &self.captures, self.line, &evidence.service)
    }

    fn diagnosis(&self, evidence: &Evidence, at: String, resolved: Resolved) -> Diagnosis {
        Diagnosis {
            rule_id: self.rule.id.clone(),
            cause: self.cause(),
            confidence: self.rule.confidence.min(resolved.confidence),
            class: self.rule.class.max(resolved.class),
            evidence_line: self.line.to_owned(),
            remedy: resolved.remedy,
            repair: Repair::of(&resolved),
            edits: resolved.edits,
            fingerprint: self.fingerprint(evidence),
            at,
            verified_by: None,
            builds_on: None,
        }
    }

    /// The cause is known, but nothing that may be done about it.
    fn escalated(&self, evidence: &Evidence, at: String, reason: &str) -> Diagnosis {
        let resolved = Resolved { class: Class::Escalate, ..Resolved::nothing(Remedy::Escalate) };
        let mut diagnosis = self.diagnosis(evidence, at, resolved);
        if !reason.is_empty() {
            diagnosis.cause = format!("{} Not repaired: {reason}.", diagnosis.cause);
        }
        diagnosis
    }
}

/// What is another one at each time and place: directories, ids, numbers.
static PASSING: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?:/[\w@.+~-]+)+/|\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b|\b[0-9a-f]{8,}\b|\d+")
        .expect("the pattern is constant and tested")
});
/// The same in what a rule has picked out, where numbers and most paths mean something.
static PASSING_IN_CAPTURES: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"(?:/(?:tmp|var/tmp|proc|run)(?:/[\w@.+~-]+)*/)|\b[0-9a-f]{12,}\b|\b\d{4}-\d\d-\d\d[T ][\d:.]+Z?",
    )
    .expect("the pattern is constant and tested")
});
/// Lines of a log in which nothing had failed, without their numbers.
struct Good(BTreeSet<String>);

impl Good {
    fn of(log: &str) -> Self {
        let lines = Log::normalise(log.as_bytes()).lines;
        Self(lines.iter().map(|line| PASSING.replace_all(&line.text, "N").into_owned()).collect())
    }

    fn has(&self, line: &str) -> bool {
        !self.0.is_empty() && self.0.contains(&*PASSING.replace_all(line, "N"))
    }
}

/// Names a failure: the rule with what it has picked out, or with its line where it picks out nothing; whatever the
/// service, the time and the ids in it.
pub(crate) fn fingerprint(
    rule: &str,
    captures: &BTreeMap<String, String>,
    line: &str,
    service: &str,
) -> String {
    let text = if captures.is_empty() {
        let line = PASSING.replace_all(line, "N");
        if service.is_empty() { line.into_owned() } else { line.replace(service, "SERVICE") }
    } else {
        let of = |value| PASSING_IN_CAPTURES.replace_all(value, "N");
        captures.iter().map(|(name, value)| format!("{name}={}\n", of(value))).collect()
    };
    edit::sha256(format!("{rule}\n{text}").as_bytes())
}
