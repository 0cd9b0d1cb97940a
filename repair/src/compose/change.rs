//! What a change of a compose file may do: only to one service, only in the parts named here, and never so that less is
//! checked or more is open. Asked of the file's text and, by the worker, of what `docker compose config` makes of it.

use serde_norway::Value;

/// Parts of a service that may differ.
const PARTS: [&str; 6] = ["healthcheck", "depends_on", "environment", "ports", "env_file", "build"];
/// Of `build`, what may differ: the rest is access to secrets, networks and hosts.
const BUILD_PARTS: [&str; 4] = ["context", "dockerfile", "target", "args"];

/// Reasons against the change of a compose file's text; empty is good.
pub fn check_text(service: &str, old: &str, new: &str) -> Vec<String> {
    let read = |text: &str| serde_norway::from_str::<Value>(text).map_err(|error| error.to_string());
    match (read(old), read(new)) {
        (Ok(old), Ok(new)) => check(service, &old, &new),
        (Err(error), _) => vec![format!("the compose file cannot be read: {error}")],
        (_, Err(error)) => vec![format!("the compose file could not be read after the change: {error}")],
    }
}

/// The same of the resolved models.
pub fn check_model(service: &str, old: &serde_json::Value, new: &serde_json::Value) -> Vec<String> {
    let read = |model: &serde_json::Value| serde_norway::to_value(model).map_err(|error| error.to_string());
    match (read(old), read(new)) {
        (Ok(old), Ok(new)) => check(service, &old, &new),
        (Err(error), _) | (_, Err(error)) => vec![error],
    }
}

fn check(service: &str, old: &Value, new: &Value) -> Vec<String> {
    let mut reasons = Vec::new();
    for key in differing(old, new) {
        if key != "services" {
            reasons.push(format!("{key} of the stack would change"));
        }
    }
    let (old, new) = (part(old, "services"), part(new, "services"));
    for name in differing(old, new) {
        if name != service {
            reasons.push(format!("service {name} would change"));
        }
    }
    let (old, new) = (part(old, service), part(new, service));
    if old.is_mapping() != new.is_mapping() {
        reasons.push(format!("service {service} would come or go"));
        return reasons;
    }
    for key in differing(old, new) {
        if !PARTS.contains(&key.as_str()) {
            reasons.push(format!("{key} of {service} would change; only {} may", PARTS.join(", ")));
        }
    }
    let both = |key| (part(old, key), part(new, key));
    let (was, is) = both("healthcheck");
    if checks(was) && !checks(is) {
        reasons.push(format!("{service} would lose its healthcheck"));
    }
    let (was, is) = both("ports");
    if was != is && open(was) != open(is) {
        reasons.push(format!("{service} would be open elsewhere: only the number of a host port may change"));
    }
    let (was, is) = both("build");
    for key in differing(was, is) {
        if !BUILD_PARTS.contains(&key.as_str()) && was.is_mapping() && is.is_mapping() {
            reasons.push(format!("build.{key} of {service} would change"));
        }
    }
    let (was, is) = both("env_file");
    let outside = |path: &String| path.starts_with("..") || path.contains("/../");
    if was != is && paths(is).iter().any(outside) {
        reasons.push(format!("env_file of {service} would lead out of the stack's directory"));
    }
    reasons
}

fn part<'v>(value: &'v Value, key: &str) -> &'v Value {
    static NOTHING: Value = Value::Null;
    value.get(key).unwrap_or(&NOTHING)
}

/// Keys of two mappings whose values are not the same.
fn differing(old: &Value, new: &Value) -> Vec<String> {
    let keys = |value: &Value| -> Vec<Value> {
        value.as_mapping().map(|mapping| mapping.keys().cloned().collect()).unwrap_or_default()
    };
    let mut all = keys(old);
    all.extend(keys(new).into_iter().filter(|key| old.get(key).is_none()));
    all.into_iter()
        .filter(|key| old.get(key) != new.get(key))
        .map(|key| match key {
            Value::String(text) => text,
            other => format!("{other:?}"),
        })
        .collect()
}

/// Whether a healthcheck asks anything.
fn checks(healthcheck: &Value) -> bool {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let test = match part(healthcheck, "test") {
        Value::Sequence(words) => words.iter().map(text).collect::<Vec<_>>().join(" "),
        other => text(other),
    };
    let command = test.trim_start_matches("CMD-SHELL").trim_start_matches("CMD").trim();
    let empty = matches!(command, "" | "NONE" | "true" | "/bin/true" | ":" | "exit 0");
    healthcheck.is_mapping() && part(healthcheck, "disable") != &Value::Bool(true) && !empty
}

/// Published ports without the number on the host.
fn open(ports: &Value) -> Vec<Value> {
    let without = |port: &Value| match port {
        Value::String(text) => {
            let mut parts: Vec<&str> = text.split(':').collect();
            if parts.len() > 1 {
                parts.remove(parts.len() - 2);
            }
            Value::String(parts.join(":"))
        }
        Value::Mapping(fields) => {
            let mut fields = fields.clone();
            fields.remove("published");
            Value::Mapping(fields)
        }
        other => other.clone(),
    };
    ports.as_sequence().into_iter().flatten().map(without).collect()
}

fn paths(env_file: &Value) -> Vec<String> {
    match env_file {
        Value::String(path) => vec![path.clone()],
        Value::Sequence(entries) => entries.iter().flat_map(paths).collect(),
        Value::Mapping(_) => paths(part(env_file, "path")),
        _ => vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "
x-cooper: {approvers: [ann]}
x-common: &common
  restart: always
services:
  web:
    <<: *common
    build: ./web
    ports: ['127.0.0.1:8080:80']
    environment:
      MODE: live
    healthcheck:
      test: [CMD, curl, -f, http://localhost/]
    x-cooper: {protected: true}
  db:
    image: postgres
";

    #[test]
    fn only_one_service_changes_and_only_where_it_may() {
        let refused = |from: &str, to: &str| {
            let new = OLD.replace(from, to);
            assert_ne!(new, OLD, "{from}");
            check_text("web", OLD, &new).join("; ")
        };
        for (from, to) in [
            ("MODE: live", "MODE: live\n      URL: 'x'"),
            ("8080:80", "8081:80"),
            ("build: ./web", "build: ./app"),
            ("[CMD, curl, -f, http://localhost/]", "[CMD, wget, -q, http://localhost/]"),
            ("MODE: live", "MODE: live\n    depends_on: [db]"),
            ("MODE: live", "MODE: live\n    env_file: web.env"),
        ] {
            assert_eq!(refused(from, to), "", "{to}");
        }
        for (from, to, why) in [
            ("image: postgres", "image: mysql", "service db"),
            ("restart: always", "restart: 'no'", "x-common"),
            ("approvers: [ann]", "approvers: [eve]", "x-cooper of the stack"),
            ("protected: true", "protected: false", "x-cooper of web"),
            ("build: ./web", "build: ./web\n    privileged: true", "privileged"),
            ("build: ./web", "build: ./web\n    pid: host", "pid"),
            ("build: ./web", "build: ./web\n    volumes: ['/:/host']", "volumes"),
            ("127.0.0.1:8080:80", "8080:80", "open elsewhere"),
            ("['127.0.0.1:8080:80']", "['127.0.0.1:8080:80', '22:22']", "open elsewhere"),
            ("[CMD, curl, -f, http://localhost/]", "[CMD, 'true']", "lose its healthcheck"),
            ("[CMD, curl, -f, http://localhost/]", "[NONE]", "lose its healthcheck"),
            ("test: [CMD, curl, -f, http://localhost/]", "disable: true", "lose its healthcheck"),
            ("MODE: live", "MODE: live\n    env_file: ../../etc/passwd", "lead out"),
            ("image: postgres", "image: [", "after the change"),
        ] {
            assert!(refused(from, to).contains(why), "{to}: {}", refused(from, to));
        }
    }

    #[test]
    fn of_a_build_only_what_says_which_image_it_is_may_change() {
        let old = "services: {web: {build: {context: ./web, dockerfile: Dockerfile}}}";
        assert!(check_text("web", old, &old.replace("Dockerfile}", "Dockerfile.prod}")).is_empty());
        let with = |more: &str| {
            check_text("web", old, &old.replace("Dockerfile}", &format!("Dockerfile, {more}}}")))
        };
        assert!(!with("network: host").is_empty() && !with("ssh: [default]").is_empty());
    }
}
