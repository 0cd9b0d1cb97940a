//! Instructions that are understood without a model: a table of forms in `rules/instructions.toml`.

use crate::limits;
use crate::log::Failure;
use crate::rules::{Class, Request, RuleSet};

use super::fix::{self, Resolved};
use super::scene::Scene;
use super::{Diagnosis, Evidence, NoDiagnosis, Remedy, Repair, fingerprint, python};

/// The run that an instruction asks to take back, if it asks for that.
pub fn undo_asked(rules: &RuleSet, instruction: &str) -> Option<String> {
    let (form, mut captures) = rules.request(instruction.trim())?;
    captures.remove("run").filter(|_| form.request == Request::UndoRun)
}

/// Follows an instruction. `None` if it asks for what diagnosis does anyway.
pub(super) fn follow(
    rules: &RuleSet,
    evidence: &Evidence,
    instruction: &str,
) -> Result<Option<Diagnosis>, NoDiagnosis> {
    let refused = |reason: String| {
        let looked_at = vec![format!("instruction: {}", instruction.chars().take(200).collect::<String>())];
        NoDiagnosis { reasons: vec![reason], looked_at }
    };
    if instruction.len() > limits::INSTRUCTION_BYTES_MAX {
        return Err(refused(format!(
            "the instruction is longer than {} bytes",
            limits::INSTRUCTION_BYTES_MAX
        )));
    }
    let Some((form, captures)) = rules.request(instruction) else {
        let forms: Vec<_> = rules.instruction_forms().collect();
        return Err(refused(format!(
            "the instruction is not understood; these forms are: {}",
            forms.join(", ")
        )));
    };
    if let Some(other) = captures.get("service").filter(|name| **name != evidence.service) {
        return Err(refused(format!(
            "the instruction is about {other}, this run about {}",
            evidence.service
        )));
    }
    // A person named the place: whatever a log says about a failing line does not matter.
    let scene = Scene::new(evidence, rules.names(), Failure::default());
    let package = captures.get("package").map(String::as_str).unwrap_or_default();
    let (id, cause, resolved) = match form.request {
        Request::Fix => return Ok(None),
        Request::UndoRun => {
            let run = captures.get("run").map(String::as_str).unwrap_or_default();
            return Err(refused(format!("a run is taken back where it was made: `cooper runs undo {run}`")));
        }
        Request::Restart => {
            let restart = Resolved::nothing(Remedy::Restart);
            ("instruction.restart", "A restart was asked for.".to_owned(), Ok(restart))
        }
        Request::AddPackage => {
            let known = rules.names().knows_distribution(package.split("==").next().unwrap_or(package));
            let added = python::add(&scene, package).map(|change| fix::required(&scene, change));
            let cause = format!("The Python distribution {package} was asked for.");
            ("instruction.add-package", cause, if known { added } else { added.map(Resolved::guessed) })
        }
        Request::RemovePackage => {
            let removed = python::remove(&scene, package).map(Resolved::patch);
            // What else of the service wants it no log has told.
            let cause = format!("The Python distribution {package} is not wanted any more.");
            ("instruction.remove-package", cause, removed.map(Resolved::guessed))
        }
        Request::PinPackage => {
            let version = captures.get("version").map(String::as_str).unwrap_or_default();
            let pinned = python::pin(&scene, package, version).map(Resolved::patch);
            let cause = format!("The Python distribution {package} was asked for in version {version}.");
            ("instruction.pin-package", cause, pinned)
        }
        Request::UpgradePackage => {
            return Err(refused(format!("say which version: upgrade package {package} to VERSION")));
        }
        Request::InstallAptPackage => {
            let added = fix::apt_packages(&scene, vec![package.to_owned()]);
            let cause = format!("The Debian package {package} was asked for.");
            let known = rules.names().knows_apt(package);
            (
                "instruction.install-apt-package",
                cause,
                if known { added } else { added.map(Resolved::guessed) },
            )
        }
    };
    let resolved = resolved.map_err(refused)?;
    Ok(Some(Diagnosis {
        rule_id: id.to_owned(),
        cause,
        confidence: resolved.confidence,
        class: resolved.class.max(Class::Auto),
        evidence_line: instruction.to_owned(),
        remedy: resolved.remedy,
        repair: Repair::of(&resolved),
        edits: resolved.edits,
        fingerprint: fingerprint(id, &captures, "", &evidence.service),
        at: String::new(),
        verified_by: None,
        builds_on: None,
    }))
}
