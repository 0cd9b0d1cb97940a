//! What a request may hold, checked before anything is decided. Every refusal names the field, the limit and the value.

use std::collections::HashMap;

use cooper_common::{
    error::{Code, Error, Result},
    limits::request as limits,
};
use cooper_core::{python, retry::When, task::Scheduling};
use cooper_proto::v1;

use crate::store::Filter;

pub fn at_most(field: &str, value: u64, max: u64) -> Result<()> {
    if value > max {
        return Err(Error::invalid(format!("{field} is {value}; at most {max} is allowed")));
    }
    Ok(())
}

pub fn at_least(field: &str, value: u64, min: u64) -> Result<()> {
    if value < min {
        return Err(Error::invalid(format!("{field} is {value}; it has to be at least {min}")));
    }
    Ok(())
}

pub fn size(field: &str, bytes: usize, max: usize) -> Result<()> {
    if bytes > max {
        return Err(Error::new(
            Code::TooLarge,
            format!("{field} has {bytes} bytes; at most {max} are allowed"),
        ));
    }
    Ok(())
}

pub fn idempotency_key(key: &str) -> Result<()> {
    size("idempotency_key", key.len(), limits::IDEMPOTENCY_KEY_BYTES_MAX)
}

/// A key that was used before, for something else.
pub fn other_request(key: &str) -> Error {
    Error::new(Code::IdempotencyConflict, format!("key {key:?} was used for another request"))
}

/// `[a-z0-9][a-z0-9-]*`, or empty.
pub fn name(name: &str) -> Result<()> {
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.len() > limits::NAME_BYTES_MAX || !name.chars().all(fine) || name.starts_with('-') {
        return Err(Error::invalid(format!(
            "{name:?} is no name: use lower-case letters, digits and '-', at most {} of them",
            limits::NAME_BYTES_MAX
        )));
    }
    // A name that reads as an id could hide a session behind another.
    if name.parse::<cooper_common::ids::SessionId>().is_ok() {
        return Err(Error::invalid(format!("{name:?} looks like an id")));
    }
    Ok(())
}

/// `3.12`, `3.12.1` or empty.
pub fn python_version(version: &str) -> Result<()> {
    if version.is_empty() || python::is_wanted(version) {
        return Ok(());
    }
    Err(Error::invalid(format!("python_version is {version:?}; it has to be like 3.12 or 3.12.1")))
}

pub fn env(env: &HashMap<String, String>) -> Result<()> {
    at_most("env entries", env.len() as u64, limits::ENV_ENTRIES_MAX as u64)?;
    size("env", env.iter().map(|(k, v)| k.len() + v.len() + 2).sum(), limits::ENV_BYTES_MAX)?;
    for (key, value) in env {
        if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
            return Err(Error::invalid(format!("{key:?} cannot be an environment variable")));
        }
    }
    Ok(())
}

pub fn labels(labels: &HashMap<String, String>) -> Result<()> {
    at_most("labels", labels.len() as u64, limits::LABELS_MAX as u64)?;
    for (key, value) in labels {
        size("a label", key.len().max(value.len()), limits::LABEL_BYTES_MAX)?;
    }
    Ok(())
}

pub fn metadata(metadata: &HashMap<String, String>) -> Result<()> {
    at_most("metadata entries", metadata.len() as u64, limits::LABELS_MAX as u64)?;
    size("metadata", metadata.iter().map(|(k, v)| k.len() + v.len()).sum(), limits::METADATA_BYTES_MAX)
}

/// What a path may look like; what it resolves to, the worker's host decides beneath the workspace.
pub fn path(path: &str, may_be_empty: bool) -> Result<()> {
    size("path", path.len(), limits::PATH_BYTES_MAX)?;
    if path.is_empty() && !may_be_empty {
        return Err(Error::invalid("path is empty"));
    }
    if path.contains('\0') {
        return Err(Error::invalid("path holds a NUL byte"));
    }
    if path.starts_with('/') {
        return Err(Error::new(Code::PathEscapes, format!("{path:?} is absolute")));
    }
    Ok(())
}

pub fn page(page: Option<v1::Page>) -> Result<Filter> {
    let page = page.unwrap_or_default();
    at_most("page.limit", u64::from(page.limit), u64::from(limits::PAGE_MAX))?;
    let limit = if page.limit == 0 { limits::PAGE_DEFAULT } else { page.limit };
    let before = if page.cursor.is_empty() { None } else { Some(page.cursor.parse()?) };
    Ok(Filter { before, limit: limit as usize, ..Filter::default() })
}

/// From low to high.
pub fn priority(given: i32) -> Result<i8> {
    let max = cooper_common::limits::schedule::PRIORITY_MAX;
    let within = i8::try_from(given).ok().filter(|priority| i32::from(*priority).abs() <= max);
    within.ok_or_else(|| Error::invalid(format!("priority is {given}; it goes from -{max} to {max}")))
}

/// Priority, and whatever else of a submit is about when and where rather than what.
pub fn scheduling(
    request: &v1::SubmitTaskRequest,
    spec: &v1::TaskSpec,
) -> Result<(i8, Option<Box<Scheduling>>)> {
    use cooper_common::limits::{retry, schedule};
    let priority = priority(request.priority)?;
    labels(&request.worker_labels)?;
    if !request.worker_labels.is_empty() && !spec.session_id.is_empty() {
        return Err(Error::invalid("worker_labels are for tasks without a session")
            .with_hint("a session's tasks go to its worker: give the labels when it is created"));
    }
    at_most("schedule_to_start_ms", request.schedule_to_start_ms, schedule::DEADLINE_MS_MAX)?;
    at_most("schedule_to_close_ms", request.schedule_to_close_ms, schedule::DEADLINE_MS_MAX)?;
    let policy = request.retry.unwrap_or_default();
    at_most("retry.max_attempts", u64::from(policy.max_attempts), u64::from(retry::ATTEMPTS_MAX))?;
    let when = v1::RetryWhen::try_from(policy.when);
    let scheduling = Scheduling {
        worker_labels: request.worker_labels.clone().into_iter().collect(),
        retry: match when.map_err(|_| Error::invalid("retry.when is not one that this version knows"))? {
            v1::RetryWhen::Unspecified => None,
            v1::RetryWhen::IfNotStarted => Some(When::IfNotStarted),
            v1::RetryWhen::Lost => Some(When::Lost),
            v1::RetryWhen::Always => Some(When::Always),
        },
        max_attempts: policy.max_attempts,
        schedule_to_start_ms: request.schedule_to_start_ms,
        schedule_to_close_ms: request.schedule_to_close_ms,
        ..Scheduling::default()
    };
    Ok((priority, (scheduling != Scheduling::default()).then(|| Box::new(scheduling))))
}

pub fn spec(spec: &v1::TaskSpec) -> Result<()> {
    use v1::task_spec::Kind;
    env(&spec.env)?;
    at_most("timeout_ms", spec.timeout_ms, cooper_common::limits::exec::TIMEOUT_MS_MAX)?;
    let kind = spec.kind.as_ref().ok_or_else(|| Error::invalid("spec.kind is missing"))?;
    let needs_session = match kind {
        Kind::Python(python) => {
            size("code", python.code.len(), limits::CODE_BYTES_MAX)?;
            argv("args", &python.args)?;
            size("stdin", python.stdin.len(), limits::STDIN_BYTES_MAX)?;
            path(&spec.cwd, true)?;
            if cooper_proto::v1::ExecutionMode::try_from(python.mode).is_err() {
                return Err(Error::invalid(format!("mode {} is not known", python.mode)));
            }
            true
        }
        Kind::Shell(shell) => {
            if shell.argv.first().is_none_or(String::is_empty) {
                return Err(Error::invalid("argv is empty"));
            }
            argv("argv", &shell.argv)?;
            size("stdin", shell.stdin.len(), limits::STDIN_BYTES_MAX)?;
            path(&spec.cwd, true)?;
            true
        }
        Kind::Install(install) => {
            size("requirements", install.requirements.len(), limits::REQUIREMENTS_BYTES_MAX)?;
            size("index_url", install.index_url.len(), limits::PATH_BYTES_MAX)?;
            if !install.packages.is_empty() || install.requirements.trim().is_empty() {
                packages(&install.packages)?;
            }
            true
        }
        Kind::Uninstall(uninstall) => {
            packages(&uninstall.packages)?;
            true
        }
        Kind::Noop(_) => false,
        Kind::Step(_) => {
            return Err(Error::new(Code::Forbidden, "steps are made by runs only").with_hint("create a run"));
        }
    };
    streams(spec, kind)?;
    match (needs_session, spec.session_id.is_empty()) {
        (true, true) => Err(Error::invalid("session_id is missing")),
        (false, false) => Err(Error::invalid("a noop task has no session")),
        _ => Ok(()),
    }
}

/// Where it runs, and what its standard input is.
fn streams(spec: &v1::TaskSpec, kind: &v1::task_spec::Kind) -> Result<()> {
    use v1::task_spec::Kind;
    let (stdin, stateful) = match kind {
        Kind::Shell(shell) => (&shell.stdin, false),
        Kind::Python(python) => (&python.stdin, python.mode() != v1::ExecutionMode::Fresh),
        _ if spec.cwd.is_empty() && !spec.stdin_open && spec.terminal.is_none() => return Ok(()),
        _ => return Err(Error::invalid("cwd, stdin_open and terminal are for shell and python tasks")),
    };
    if !stdin.is_empty() && (spec.stdin_open || spec.terminal.is_some()) {
        return Err(Error::invalid("stdin is given, and is to be open too")
            .with_hint("leave stdin out and give it by WriteStdin"));
    }
    match &spec.terminal {
        Some(_) if stateful => Err(Error::invalid("stateful code has no terminal")
            .with_hint("run it as fresh (--fresh), or `cooper attach SESSION --python`")),
        Some(size) => terminal(size),
        None => Ok(()),
    }
}

/// A terminal's size.
pub fn terminal(size: &v1::Terminal) -> Result<()> {
    let max = cooper_common::limits::exec::TERMINAL_SIZE_MAX.into();
    at_most("terminal.columns", size.columns.into(), max)?;
    at_most("terminal.rows", size.rows.into(), max)
}

fn argv(field: &str, args: &[String]) -> Result<()> {
    at_most(field, args.len() as u64, limits::ARGV_MAX as u64)?;
    size(field, args.iter().map(|arg| arg.len() + 1).sum(), limits::ARGV_BYTES_MAX)?;
    if args.iter().any(|arg| arg.contains('\0')) {
        return Err(Error::invalid(format!("{field} holds a NUL byte")));
    }
    Ok(())
}

fn packages(packages: &[String]) -> Result<()> {
    if packages.is_empty() {
        return Err(Error::invalid("packages is empty"));
    }
    at_most("packages", packages.len() as u64, limits::PACKAGES_MAX as u64)?;
    for package in packages {
        size("a package", package.len(), limits::PATH_BYTES_MAX)?;
        if package.trim().is_empty()
            || package.trim_start().starts_with('-')
            || package.contains(['\n', '\r', '\0'])
        {
            return Err(Error::invalid(format!("{package:?} is no requirement; options are not taken here")));
        }
    }
    Ok(())
}
