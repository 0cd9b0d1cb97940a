//! Fixes in the compose file. Each of them needs an approval, whatever the rule's class: the file is where a stack is wired
//! and where its policy stands.

use crate::compose::Service;
use crate::edit::{self, Edit, FileChange, Root};
use crate::rules::Class;

use super::fix::Resolved;
use super::scene::Scene;

/// Files in which a stack says which variables there are.
const EXAMPLES: [&str; 5] = [".env.example", ".env.sample", ".env.template", ".env.dist", "env.example"];
/// A name with one of these is that of a secret, which an operator gives.
const SECRET: [&str; 7] = ["SECRET", "TOKEN", "PASSW", "KEY", "CREDENTIAL", "PRIVATE", "AUTH"];
/// A value with one of these only stands for one.
const PLACEHOLDERS: [&str; 8] =
    ["changeme", "change-me", "change_me", "your", "xxx", "todo", "example.", "[redacted]"];

/// Gives the service a variable with the value that the stack's example has for it.
pub(super) fn variable(scene: &Scene<'_>, name: &str) -> Result<Resolved, String> {
    if let Some(Some(value)) = service(scene)?.environment.get(name)
        && !value.is_empty()
    {
        return Err(format!(
            "the compose file sets {name}: what the service runs with is older, or it is wrong"
        ));
    }
    if SECRET.iter().any(|part| name.to_ascii_uppercase().contains(part)) {
        return Err(format!("{name} looks like a secret: an operator has to give it"));
    }
    let files = &scene.evidence.stack_files;
    let known = EXAMPLES.iter().find_map(|path| Some((path, value_of(files.get(*path)?, name)?)));
    let Some((path, value)) = known else {
        return Err(format!("no value for {name} is known: an operator has to give it"));
    };
    let lower = value.to_ascii_lowercase();
    if value.starts_with('<') || PLACEHOLDERS.iter().any(|part| lower.contains(part)) {
        return Err(format!("{path} has only a placeholder for {name}: an operator has to give its value"));
    }
    let edit = Edit::SetEnvironment { service: scene.evidence.service.clone(), name: name.to_owned(), value };
    changed(scene, edit, format!("set {name} as {path} has it"))
}

/// The value of a variable in a file as `.env` is one.
fn value_of(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (known, value) = line.trim().trim_start_matches("export ").split_once('=')?;
        let value = value.trim();
        let quoted = |mark| Some(value.strip_prefix(mark)?.split_once(mark)?.0);
        let value = quoted('"').or_else(|| quoted('\'')).unwrap_or_else(|| {
            let end = value.find(" #").unwrap_or(value.len());
            value[..end].trim_end()
        });
        (known.trim() == name && !value.is_empty()).then(|| value.to_owned())
    })
}

/// Publishes on the next port of the host that no service of the stack has.
pub(super) fn port(scene: &Scene<'_>, port: &str) -> Result<Resolved, String> {
    let from: u16 = port.parse().map_err(|_| "the log names no port".to_owned())?;
    if !published(service(scene)?).any(|port| port == from) {
        return Err(format!("the service does not publish port {from} by this number"));
    }
    let taken: Vec<u16> = scene.evidence.model.services.values().flat_map(published).collect();
    let to = (from..=u16::MAX).skip(1).find(|port| !taken.contains(port));
    let to = to.ok_or_else(|| format!("there is no port above {from}"))?;
    let edit = Edit::MovePort { service: scene.evidence.service.clone(), from, to };
    changed(scene, edit, format!("publish on port {to} of the host in place of {from}, which is taken"))
}

fn published(service: &Service) -> impl Iterator<Item = u16> {
    service.ports.iter().filter_map(|port| match port.published.as_ref()? {
        serde_json::Value::String(text) => text.parse().ok(),
        number => u16::try_from(number.as_u64()?).ok(),
    })
}

/// Lets the service wait until the one it needs is healthy.
pub(super) fn order(scene: &Scene<'_>, peer: &str) -> Result<Resolved, String> {
    let model = &scene.evidence.model;
    let started = |(name, dependency): (&String, &crate::compose::Dependency)| {
        (dependency.condition == "service_started").then(|| name.clone())
    };
    let host = peer.split(':').next().unwrap_or_default();
    let on = if model.services.contains_key(host) && host != scene.evidence.service {
        host.to_owned()
    } else {
        let waited: Vec<String> = service(scene)?.depends_on.iter().filter_map(started).collect();
        match waited.as_slice() {
            [only] => only.clone(),
            _ => return Err("it is not certain which service it has to wait for".to_owned()),
        }
    };
    let healthcheck = model.services.get(&on).and_then(|service| service.healthcheck.as_ref());
    if healthcheck.is_none_or(|healthcheck| healthcheck.disable) {
        return Err(format!("{on} has no healthcheck that could be waited for: give it one"));
    }
    let service = scene.evidence.service.clone();
    changed(scene, Edit::WaitUntilHealthy { service, on: on.clone() }, format!("wait until {on} is healthy"))
}

fn service<'a>(scene: &Scene<'a>) -> Result<&'a Service, String> {
    scene.evidence.model.service(&scene.evidence.service).map_err(|error| error.to_string())
}

/// The change of the one compose file that has a place for the edit.
fn changed(scene: &Scene<'_>, edit: Edit, description: String) -> Result<Resolved, String> {
    let mut problem =
        "the stack's compose file cannot be edited: it holds a secret, or lies elsewhere".to_owned();
    let is_compose = |path: &str| path.ends_with(".yaml") || path.ends_with(".yml");
    for (path, text) in scene.evidence.stack_files.iter().filter(|(path, _)| is_compose(path)) {
        match FileChange::edit(path, text, edit.clone(), format!("{path}: {description}")) {
            Ok(change) => {
                let change = FileChange { root: Root::Stack, ..change };
                return Ok(Resolved { class: Class::Approve, confidence: 80, ..Resolved::patch(change) });
            }
            Err(error @ edit::Error::NoEffect(_)) => return Err(error.to_string()),
            Err(error) => problem = format!("{path}: {error}"),
        }
    }
    Err(problem)
}
