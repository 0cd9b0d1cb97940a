//! The operator's policy: what whoever runs Cooper forbids, or wants to be asked about, whatever stacks say themselves.
//! It only tightens: nothing it can say allows what a stack's own policy, or Cooper's, refuses.
//!
//! A file is a list of `[[limit]]` tables; all that name a service hold for it. An error, and a refusal, names file and
//! line.

use std::collections::BTreeSet;

use globset::GlobSet;
use serde::Deserialize;
use toml::Spanned;

use super::{Decision, Policy, changed_lines, globs};
use crate::limits;
use crate::plan::RepairPlan;
use crate::review::shown;
use crate::rules::Class;

/// The file is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {problem}")]
pub struct Error {
    pub file: String,
    pub line: usize,
    /// What is wrong and what is allowed.
    pub problem: String,
}

/// What a file says. The default says nothing.
#[derive(Debug, Clone, Default)]
pub struct OperatorPolicy {
    file: String,
    limits: Vec<Limit>,
}

/// One `[[limit]]`. Every key may be left out.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    /// `STACK/SERVICE` or `SERVICE`, with globs; every service if left out.
    services: Option<Spanned<Vec<String>>>,
    /// Globs of files that never change, relative to the stack's directory or to the build context.
    deny: Option<Spanned<Vec<String>>>,
    /// Ids of rules whose fixes are never made, with globs.
    deny_rules: Option<Spanned<Vec<String>>>,
    /// Classes of fixes that are never made.
    deny_classes: Vec<Class>,
    /// Every repair needs an approval.
    protected: Option<Spanned<bool>>,
    /// Who may approve; where the stack says so too, only who is in both.
    approvers: Option<Spanned<Vec<String>>>,
    /// Files and lines that one plan may change.
    max_files: Option<Spanned<usize>>,
    max_lines: Option<Spanned<usize>>,
    /// Nothing starts by itself.
    auto_repair: Option<Spanned<bool>>,
}

#[derive(Debug, Clone)]
struct Limit {
    line: usize,
    services: GlobSet,
    services_written: Vec<String>,
    deny: GlobSet,
    deny_written: Vec<String>,
    deny_rules: GlobSet,
    rules_written: Vec<String>,
    deny_classes: Vec<Class>,
    protected: bool,
    approvers: Option<Vec<String>>,
    max_files: Option<usize>,
    max_lines: Option<usize>,
    automatic: bool,
}

impl OperatorPolicy {
    /// Reads a file's text.
    ///
    /// # Errors
    /// What does not have the shape it must have, or would loosen something, with its line.
    pub fn read(file: &str, text: &str) -> Result<Self, Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct File {
            #[serde(default)]
            limit: Vec<Spanned<Written>>,
        }
        let line_at = |at: usize| text[..at.min(text.len())].matches('\n').count() + 1;
        let error = |line: usize, problem: String| Error { file: file.to_owned(), line, problem };
        if text.len() > limits::RULES_BYTES_MAX {
            return Err(error(1, format!("it is larger than {} bytes", limits::RULES_BYTES_MAX)));
        }
        let read: File = toml::from_str(text).map_err(|problem| {
            let line = problem.span().map_or(1, |span| line_at(span.start));
            error(line, problem.message().to_owned())
        })?;
        let mut policy = Self { file: file.to_owned(), limits: Vec::new() };
        for limit in read.limit {
            let line = line_at(limit.span().start);
            policy
                .limits
                .push(Limit::read(line, limit.into_inner(), |at, problem| error(line_at(at), problem))?);
        }
        Ok(policy)
    }

    /// The limits that hold for a service.
    fn of<'a>(&'a self, stack: &str, service: &str) -> impl Iterator<Item = &'a Limit> + use<'a> {
        let name = format!("{stack}/{service}");
        self.limits.iter().filter(move |limit| limit.services.is_match(&name))
    }

    /// Makes what was decided about a plan as strict as this policy wants it. `own` is the service's policy.
    pub fn tighten(&self, plan: &mut RepairPlan, dir: &str, own: &Policy) {
        let against = self.against(plan, dir);
        plan.decision = self.tightened(plan, against, own);
    }

    fn tightened(&self, plan: &RepairPlan, against: Vec<String>, own: &Policy) -> Decision {
        let (stack, service) = (plan.stack.as_str(), plan.service.as_str());
        let (mut reasons, mut approvers, ttl_ms) = match plan.decision.clone() {
            Decision::Refused { mut reasons } => {
                reasons.extend(against);
                return Decision::Refused { reasons };
            }
            _ if !against.is_empty() => return Decision::Refused { reasons: against },
            Decision::Allowed => (Vec::new(), own.approvers.clone(), own.approval_ttl_ms),
            Decision::NeedsApproval { reasons, approvers, ttl_ms } => (reasons, approvers, ttl_ms),
        };
        for limit in self.of(stack, service).filter(|limit| limit.protected) {
            reasons.push(format!("{} protects {service}", self.place(limit)));
        }
        if reasons.is_empty() {
            return Decision::Allowed;
        }
        for limit in self.of(stack, service) {
            let Some(ours) = &limit.approvers else { continue };
            let both: Vec<String> = match approvers.is_empty() {
                true => ours.clone(),
                false => approvers.iter().filter(|name| ours.contains(name)).cloned().collect(),
            };
            if both.is_empty() {
                return Decision::Refused {
                    reasons: vec![format!(
                        "it needs an approval that nobody may give: {} allows {}, and before that only {}; let both \
                         name the same person",
                        self.place(limit),
                        ours.join(", "),
                        approvers.join(", ")
                    )],
                };
            }
            approvers = both;
        }
        Decision::NeedsApproval { reasons, approvers, ttl_ms }
    }

    /// What speaks against a plan, each with its line in the file and what to do; empty is good. Asked again before each
    /// step, since the file may have changed while the plan waited.
    pub fn against(&self, plan: &RepairPlan, dir: &str) -> Vec<String> {
        let mut reasons = Vec::new();
        let (rule, class) = (plan.diagnosis.rule_id.as_str(), plan.diagnosis.class);
        let lines = changed_lines(&plan.edits);
        for limit in self.of(&plan.stack, &plan.service) {
            let place = self.place(limit);
            let ask = format!("do it by hand, or ask whoever keeps {}", self.file);
            for change in &plan.edits {
                let path = shown(plan, change, dir);
                let hit =
                    limit.deny.matches(&path).into_iter().chain(limit.deny.matches(&change.path)).next();
                if let Some(at) = hit {
                    let glob = &limit.deny_written[at];
                    reasons.push(format!("{place} (deny {glob:?}) forbids to change {path}: {ask}"));
                }
            }
            if let Some(&at) = limit.deny_rules.matches(rule).first() {
                let glob = &limit.rules_written[at];
                reasons.push(format!("{place} (deny_rules {glob:?}) forbids fixes of rule {rule}: {ask}"));
            }
            if limit.deny_classes.contains(&class) {
                let class = format!("{class:?}").to_lowercase();
                reasons.push(format!("{place} (deny_classes) forbids fixes of class {class}: {ask}"));
            }
            if let Some(max) = limit.max_files.filter(|max| plan.edits.len() > *max) {
                let files = plan.edits.len();
                reasons
                    .push(format!("{place} (max_files) allows {max} files, the plan changes {files}: {ask}"));
            }
            if let Some(max) = limit.max_lines.filter(|max| lines > *max) {
                reasons
                    .push(format!("{place} (max_lines) allows {max} lines, the plan changes {lines}: {ask}"));
            }
        }
        reasons
    }

    /// Why repairs of a service may not start by themselves, if they may not.
    pub fn against_automatic(&self, stack: &str, service: &str) -> Option<String> {
        let limit = self.of(stack, service).find(|limit| !limit.automatic)?;
        Some(format!("{} (auto_repair) lets nothing start by itself", self.place(limit)))
    }

    /// Its name, as errors and refusals have it.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Names of approvers that the file has for a service.
    pub fn approvers(&self, stack: &str, service: &str) -> BTreeSet<&str> {
        let of = self.of(stack, service).filter_map(|limit| limit.approvers.as_deref());
        of.flatten().map(String::as_str).collect()
    }

    /// What the file adds to a service's policy: a sentence each.
    pub fn about(&self, stack: &str, service: &str) -> Vec<String> {
        self.of(stack, service).map(|limit| format!("{}: {}", self.place(limit), limit.says())).collect()
    }

    /// What the file has and nothing of what it could mean is known: a sentence each, with its line.
    pub fn unmatched(&self, stack: &str, services: &[&str], rules: &[&str]) -> Vec<String> {
        let mut said = Vec::new();
        for limit in &self.limits {
            // What is about another stack alone is none of this one's business.
            let here = |written: &String| {
                let named = written.split_once('/').map_or("*", |(named, _)| named);
                Policy::matches(named, stack)
            };
            let any = |service: &&str| limit.services.is_match(format!("{stack}/{service}"));
            if limit.services_written.iter().any(here) && !services.iter().any(any) {
                let written = limit.services_written.join(", ");
                said.push(format!("{}: services {written} is none of this stack", self.place(limit)));
            }
            for (at, glob) in limit.rules_written.iter().enumerate() {
                if !rules.iter().any(|rule| limit.deny_rules.matches(rule).contains(&at)) {
                    said.push(format!("{}: deny_rules {glob:?} is no rule's id", self.place(limit)));
                }
            }
        }
        said
    }

    fn place(&self, limit: &Limit) -> String {
        format!("{}:{}", self.file, limit.line)
    }
}

impl Limit {
    fn read(line: usize, written: Written, error: impl Fn(usize, String) -> Error) -> Result<Self, Error> {
        let set = |given: &Option<Spanned<Vec<String>>>, key: &str, shape: fn(&str) -> String| {
            let Some(given) = given else { return Ok((GlobSet::empty(), Vec::new())) };
            let patterns: Vec<String> = given.get_ref().iter().map(|pattern| shape(pattern)).collect();
            let set =
                globs(&patterns).map_err(|problem| error(given.span().start, format!("{key}: {problem}")))?;
            Ok((set, given.get_ref().clone()))
        };
        let as_it_is = |pattern: &str| pattern.to_owned();
        let of_any_stack = |pattern: &str| match pattern.contains('/') {
            true => pattern.to_owned(),
            false => format!("*/{pattern}"),
        };
        let everywhere = || Spanned::new(0..0, vec!["*".to_owned()]);
        let (services, services_written) =
            set(&Some(written.services.unwrap_or_else(everywhere)), "services", of_any_stack)?;
        let (deny, deny_written) = set(&written.deny, "deny", as_it_is)?;
        let (deny_rules, rules_written) = set(&written.deny_rules, "deny_rules", as_it_is)?;
        let within = |given: Option<Spanned<usize>>, key: &str, max: usize| match given {
            Some(given) if *given.get_ref() > max => {
                let problem = format!("{key} must be 0 to {max}: this file can only tighten");
                Err(error(given.span().start, problem))
            }
            given => Ok(given.map(Spanned::into_inner)),
        };
        let only = |given: Option<Spanned<bool>>, key: &str, wanted: bool| match given {
            Some(given) if *given.get_ref() != wanted => {
                let problem =
                    format!("{key} can only be {wanted} here: this file can only tighten; leave it out");
                Err(error(given.span().start, problem))
            }
            given => Ok(given.is_some()),
        };
        if let Some(approvers) = written.approvers.as_ref().filter(|approvers| approvers.get_ref().is_empty())
        {
            return Err(error(approvers.span().start, "approvers names nobody; leave it out".to_owned()));
        }
        Ok(Self {
            line,
            services,
            services_written,
            deny,
            deny_written,
            deny_rules,
            rules_written,
            deny_classes: written.deny_classes,
            protected: only(written.protected, "protected", true)?,
            approvers: written.approvers.map(Spanned::into_inner),
            max_files: within(written.max_files, "max_files", limits::PLAN_FILES_MAX)?,
            max_lines: within(written.max_lines, "max_lines", limits::PLAN_LINES_MAX)?,
            automatic: !only(written.auto_repair, "auto_repair", false)?,
        })
    }

    fn says(&self) -> String {
        let mut said = Vec::new();
        if !self.deny_written.is_empty() {
            said.push(format!("never changes {}", self.deny_written.join(" ")));
        }
        if !self.rules_written.is_empty() {
            said.push(format!("no fixes of rules {}", self.rules_written.join(" ")));
        }
        if !self.deny_classes.is_empty() {
            said.push(format!("no fixes of classes {:?}", self.deny_classes).to_lowercase());
        }
        if self.protected {
            said.push("every repair needs an approval".to_owned());
        }
        if let Some(approvers) = &self.approvers {
            said.push(format!("of {}", approvers.join(" or ")));
        }
        if let Some(max) = self.max_files {
            said.push(format!("at most {max} files"));
        }
        if let Some(max) = self.max_lines {
            said.push(format!("at most {max} lines"));
        }
        if !self.automatic {
            said.push("nothing starts by itself".to_owned());
        }
        if said.is_empty() { "nothing".to_owned() } else { said.join(", ") }
    }
}

#[cfg(test)]
mod tests;
