//! What may be done to a service without asking, what only with approval, what never.
//!
//! The stack says it itself, under `x-cooper` in its compose file; what it does not say has a safe default. Policy is
//! asked twice: when a plan is made, with the diff people review, and by the worker, with the bytes really there.

mod operator;
mod path;
mod weakening;
mod x_cooper;

use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};
use serde::{Deserialize, Serialize};

use crate::compose::{self, Model, Role, change};
use crate::diff;
use crate::edit::{FileChange, Root};
use crate::limits;
use crate::rules::Class;

pub use operator::{Error as OperatorError, OperatorPolicy};
use x_cooper::XCooper;

/// The stack's policy is not valid.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `x-cooper` does not have the shape it must have.
    #[error("{place}: {problem}")]
    Invalid {
        /// `x-cooper` or `services.NAME.x-cooper`.
        place: String,
        /// What is wrong and what is allowed.
        problem: String,
    },
    /// The service is not in the model.
    #[error(transparent)]
    Model(#[from] compose::Error),
}

/// What policy says to a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "decision", rename_all = "snake_case")]
pub enum Decision {
    /// It may run at once.
    Allowed,
    /// It waits for one of `approvers` (anyone who may approve, if empty).
    NeedsApproval {
        /// Why, one sentence each.
        reasons: Vec<String>,
        /// Names from `x-cooper.approvers`.
        approvers: Vec<String>,
        /// How long they may take, where `x-cooper.approval_ttl` says so.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        ttl_ms: Option<u64>,
    },
    /// It never runs.
    Refused {
        /// Why, one sentence each, with what to do.
        reasons: Vec<String>,
    },
}

/// A request that shows that the application is well.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// `http://HOST[:PORT]/PATH`, as seen from the stack's own network; empty where `exec` is asked.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub url: String,
    /// A command and its arguments, run in the container; exit code 0 is well.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub exec: Vec<String>,
    /// Expected status; any of 200..=399 if absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub expect_status: Option<u16>,
    /// Text the body, or what the command prints, must contain.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub body_contains: Option<String>,
}

/// What becomes of a promoted repair in the stack's git repository.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Publish {
    /// Nothing.
    #[default]
    None,
    /// A commit on a branch of its own.
    Branch,
    /// The same, pushed.
    Push,
    /// The same, with a pull request.
    PullRequest,
}

impl Publish {
    /// True for nothing.
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }
}

/// The effective policy of one service.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Why the service needs approval by what it is: one sentence each.
    pub guarded: Vec<String>,
    /// Who may approve; anyone with the right to, if empty.
    pub approvers: Vec<String>,
    /// How long an approval may be waited for; what the operator has set, if that is shorter or this is not said.
    pub approval_ttl_ms: Option<u64>,
    /// Globs of files in the build context that may change.
    pub allow: Vec<String>,
    /// Application request for verification.
    pub health: Option<Health>,
    /// Stability window in milliseconds.
    pub stable_for_ms: u64,
    /// What becomes of a promoted repair in git.
    pub publish: Publish,
    /// Repairs may start by themselves.
    pub auto_repair: bool,
    /// Attempts of a run, 1..=[`limits::ATTEMPTS_MAX`].
    pub max_attempts: u32,
    /// The service it is about; a compose file may change only where it speaks of that.
    service: String,
    allowed: GlobSet,
    never: GlobSet,
    compose_files: GlobSet,
}

/// Files in the build context that may change where `allow` does not say: what says how the image is made.
const ALLOW_DEFAULT: &[&str] = &[
    "**/Dockerfile*",
    "**/*.Dockerfile",
    "**/Containerfile*",
    "**/.dockerignore",
    "**/requirements*.txt",
    "**/requirements/*.txt",
    "**/constraints*.txt",
    "**/pyproject.toml",
    "**/package.json",
    "**/package-lock.json",
    "**/go.mod",
    "**/go.sum",
    "**/Cargo.toml",
    "**/Cargo.lock",
    "**/Gemfile",
    "**/Gemfile.lock",
    "**/entrypoint*",
    "**/docker-entrypoint*",
];

/// Files that never change, whatever `allow` says: secrets, and what gives others access or code.
const NEVER: &[&str] = &[
    "**/.env*",
    "**/*.env",
    "**/*secret*",
    "**/*secret*/**",
    "**/*credential*",
    "**/*.pem",
    "**/*.key",
    "**/*.p12",
    "**/*.pfx",
    "**/*.jks",
    "**/id_rsa*",
    "**/id_ed25519*",
    "**/.ssh/**",
    "**/.git/**",
    "**/.gitmodules",
    "**/.netrc",
    "**/.npmrc",
    "**/.pypirc",
    "**/pip.conf",
    "**/.docker/**",
    "**/.aws/**",
    "**/.kube/**",
    "**/*.tf",
    "**/*.tfvars",
    "**/.github/**",
    "**/.gitlab-ci.yml",
    "**/.ci/**",
    "**/Jenkinsfile",
];

/// Compose files, which hold policy and wiring: only with approval.
const COMPOSE_FILES: &[&str] = &["**/compose*.y{a,}ml", "**/docker-compose*.y{a,}ml"];

fn glob(pattern: &str) -> Result<Glob, globset::Error> {
    GlobBuilder::new(pattern).literal_separator(true).case_insensitive(true).build()
}

fn globs<S: AsRef<str>>(patterns: &[S]) -> Result<GlobSet, globset::Error> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        set.add(glob(pattern.as_ref())?);
    }
    set.build()
}

impl Policy {
    /// The policy of a service: its own `x-cooper` over the stack's over the defaults.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the place and the key that is wrong; [`Error::Model`] if there is no such service.
    pub fn of(model: &Model, service: &str) -> Result<Self, Error> {
        let described = model.service(service)?;
        let top = XCooper::read("x-cooper", model.x_cooper.as_ref())?;
        if top.health.is_some() {
            let problem = "health belongs to a service: move it to services.NAME.x-cooper".to_owned();
            return Err(Error::Invalid { place: "x-cooper".to_owned(), problem });
        }
        let place = format!("services.{service}.x-cooper");
        let own = XCooper::read(&place, described.x_cooper.as_ref())?;

        let mut allow = own.allow.or(top.allow).unwrap_or_else(|| {
            let mut defaults: Vec<String> = ALLOW_DEFAULT.iter().map(|&pattern| pattern.to_owned()).collect();
            // The service's Dockerfile may have any name; as a glob it names only itself.
            defaults.extend(described.build.as_ref().map(|build| globset::escape(build.dockerfile())));
            defaults
        });
        allow.retain(|pattern| !pattern.is_empty());
        let invalid = |error: globset::Error| Error::Invalid { place, problem: format!("allow: {error}") };
        let allowed = globs(&allow).map_err(invalid)?;
        let constant =
            |patterns: &[&str]| globs(patterns).expect("the patterns of this file are constant and tested");
        Ok(Self {
            guarded: match own.protected.or(top.protected) {
                Some(true) => vec![format!("{service} is protected by x-cooper")],
                Some(false) => vec![],
                None => guarded(model, service, described),
            },
            approvers: own.approvers.or(top.approvers).unwrap_or_default(),
            approval_ttl_ms: own.approval_ttl.or(top.approval_ttl).map(|time| time.0),
            allow,
            health: own.health,
            stable_for_ms: own
                .stable_for
                .or(top.stable_for)
                .map_or(limits::STABLE_FOR_DEFAULT_MS, |time| time.0),
            publish: own.git.or(top.git).unwrap_or_default(),
            auto_repair: own.auto_repair.or(top.auto_repair).unwrap_or(false),
            max_attempts: own.max_attempts.or(top.max_attempts).unwrap_or(limits::ATTEMPTS_MAX),
            service: service.to_owned(),
            allowed,
            never: constant(NEVER),
            compose_files: constant(COMPOSE_FILES),
        })
    }

    /// What policy says to a fix of this class with these changes, judged by their diffs.
    pub fn decide(&self, class: Class, edits: &[FileChange]) -> Decision {
        let mut refused = Vec::new();
        for edit in edits {
            let (before, after) = diff::sides(&edit.diff);
            refused.extend(self.check(class, edit, &before, &after));
        }
        let changed = changed_lines(edits);
        if edits.len() > limits::PLAN_FILES_MAX {
            refused.push(format!("it changes {} files, at most {} may", edits.len(), limits::PLAN_FILES_MAX));
        }
        if changed > limits::PLAN_LINES_MAX {
            refused.push(format!("it changes {changed} lines, at most {} may", limits::PLAN_LINES_MAX));
        }
        if class == Class::Escalate {
            refused.push("its cause is one that a person has to deal with".to_owned());
        }
        if !refused.is_empty() {
            return Decision::Refused { reasons: refused };
        }
        let mut reasons = self.guarded.clone();
        if class == Class::Approve {
            reasons.push("the fix is of a kind that a person has to look at".to_owned());
        }
        if reasons.is_empty() {
            return Decision::Allowed;
        }
        Decision::NeedsApproval { reasons, approvers: self.approvers.clone(), ttl_ms: self.approval_ttl_ms }
    }

    /// Whether a file of the build context may change at all.
    pub fn may_change(&self, path: &str) -> bool {
        let never = self.never.is_match(path) || self.compose_files.is_match(path);
        path::check(path).is_ok() && self.allowed.is_match(path) && !never
    }

    /// Whether a glob, as `allow` has it, matches a path.
    pub fn matches(pattern: &str, path: &str) -> bool {
        glob(pattern).is_ok_and(|glob| glob.compile_matcher().is_match(path))
    }

    /// Checks one change against the bytes that are really there (`None`: no file). Returns the reasons against it,
    /// each with what to do; empty is good.
    pub fn check_change(&self, class: Class, change: &FileChange, old: Option<&str>) -> Vec<String> {
        let path = &change.path;
        if !change.is_based_on(old.map(str::as_bytes)) {
            return vec![format!("{path} has changed since the plan was made: repair again")];
        }
        let mut reasons = self.check(class, change, old.unwrap_or_default(), &change.new_content);
        if change.root == Root::Stack {
            let against = change::check_text(&self.service, old.unwrap_or_default(), &change.new_content);
            reasons.extend(against.into_iter().map(|what| format!("{path}: {what}")));
        }
        if diff::unified(path, old, &change.new_content) != change.diff {
            reasons.push(format!("{path}: the diff in the plan is not what the plan writes"));
        }
        if !change.edits.is_empty() {
            let mut text = Ok(old.unwrap_or_default().to_owned());
            for edit in &change.edits {
                text = text.and_then(|text| edit.apply(&text));
            }
            if text.as_ref() != Ok(&change.new_content) {
                reasons.push(format!("{path}: the edits in the plan do not lead to what the plan writes"));
            }
        }
        reasons
    }

    fn check(&self, class: Class, change: &FileChange, old: &str, new: &str) -> Vec<String> {
        let path = change.path.as_str();
        if let Err(problem) = path::check(path) {
            return vec![problem];
        }
        let mut reasons = Vec::new();
        if change.new_content.len() > limits::FILE_BYTES_MAX {
            reasons.push(format!("{path} would be longer than {} bytes", limits::FILE_BYTES_MAX));
        }
        if self.never.is_match(path) {
            reasons.push(format!("{path} holds secrets or gives access: Cooper never changes it"));
        } else if change.root == Root::Stack || self.compose_files.is_match(path) {
            let is_compose = self.compose_files.is_match(path);
            if !is_compose || class != Class::Approve || change.root != Root::Stack {
                reasons.push(format!("{path} lies outside what a fix of this kind may change"));
            }
        } else if !self.allowed.is_match(path) {
            reasons.push(format!(
                "{path} is not in the service's allow list: add it to x-cooper.allow, or change it by hand"
            ));
        }
        if change.mode.is_some_and(|mode| mode & !0o755 != 0) {
            reasons.push(format!("{path} would get permissions beyond 0755"));
        }
        reasons.extend(weakening::check(old, new).into_iter().map(|what| format!("{path}: {what}")));
        reasons
    }
}

/// Lines that are added and removed, together.
fn changed_lines(edits: &[FileChange]) -> usize {
    let of = |edit: &FileChange| {
        let (before, after) = diff::sides(&edit.diff);
        let lines = diff::lines(&before, &after);
        // A line that only changes its line end is not counted.
        let added = lines.added.iter().filter(|line| !lines.removed.contains(line)).count();
        added + lines.removed.iter().filter(|line| !lines.added.contains(line)).count()
    };
    edits.iter().map(of).sum()
}

/// Why a service needs approval by what it is.
fn guarded(model: &Model, name: &str, service: &compose::Service) -> Vec<String> {
    let mut reasons = Vec::new();
    if let Some(role) = service.role() {
        let role = match role {
            Role::Database => "a database",
            Role::Broker => "a broker or cache",
            Role::Proxy => "a proxy",
        };
        reasons.push(format!("{name} looks like {role} by its image"));
    }
    let dependents = model.dependents(name);
    if !dependents.is_empty() {
        reasons.push(format!("other services depend on {name}: {}", dependents.join(", ")));
    }
    let ports: Vec<String> = service.public_ports().map(|port| port.target.to_string()).collect();
    if !ports.is_empty() {
        reasons.push(format!("{name} is published to other machines (container port {})", ports.join(", ")));
    }
    reasons
}

#[cfg(test)]
mod tests;
