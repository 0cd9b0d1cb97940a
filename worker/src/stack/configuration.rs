//! How a container is configured, as digests by part: equal when two containers were made from the same definition.
//!
//! Compose's own label `config-hash` does not tell: some versions (2.26) hash `depends_on` in, which `--no-deps` empties,
//! so that the same definition has two hashes. What the engine says is compared instead. Only digests are kept, since
//! a configuration holds secrets.

use std::collections::BTreeMap;

use bollard::models::ContainerInspectResponse;
use serde_json::{Value, json};

use cooper_repair::edit::sha256;
use cooper_repair::plan::canonical;

/// Digest by part: `environment`, `mounts`, ….
pub(super) type Configuration = BTreeMap<String, String>;

/// The configuration of a container, without what differs from one container to the next.
pub(super) fn of(id: &str, container: &ContainerInspectResponse) -> Configuration {
    let value = |part: serde_json::Result<Value>| part.unwrap_or_default();
    let mut config = value(serde_json::to_value(&container.config));
    let mut host = value(serde_json::to_value(&container.host_config));
    let mut parts = BTreeMap::new();

    if let Some(config) = config.as_object_mut() {
        // The image is compared by its id; its name may be a tag or, once that is gone, an id.
        config.remove("Image");
        if config.get("Hostname").and_then(Value::as_str).is_some_and(|name| id.starts_with(name)) {
            config.remove("Hostname");
        }
        if let Some(labels) = config.get_mut("Labels").and_then(Value::as_object_mut) {
            labels.retain(|name, _| !name.starts_with("com.docker.compose."));
        }
        sort(config.get_mut("Env"));
        parts.insert("environment", config.remove("Env"));
        parts.insert("labels", config.remove("Labels"));
        parts.insert("healthcheck", config.remove("Healthcheck"));
        parts.insert("command, user and ports", Some(config.clone().into()));
    }
    if let Some(host) = host.as_object_mut() {
        // Compose hands anonymous volumes on by name; before, they had none.
        for mounts in ["Binds", "Mounts"] {
            host.remove(mounts);
        }
        parts.insert("restart policy", host.remove("RestartPolicy"));
        parts.insert("limits, networks and privileges", Some(host.clone().into()));
    }
    let mut mounts: Vec<Value> = container.mounts.iter().flatten().map(mount).collect();
    mounts.sort_by_key(Value::to_string);
    parts.insert("mounts", Some(mounts.into()));
    let ends = container.network_settings.as_ref().and_then(|settings| settings.networks.as_ref());
    let ends: BTreeMap<&String, Value> = ends
        .into_iter()
        .flatten()
        .map(|(network, end)| {
            let mut aliases = end.aliases.clone().unwrap_or_default();
            // Older engines list the container's own id among them.
            aliases.retain(|alias| !id.starts_with(alias.as_str()));
            aliases.sort();
            aliases.dedup();
            (network, json!({ "aliases": aliases, "address": end.ipam_config }))
        })
        .collect();
    parts.insert("network aliases", serde_json::to_value(ends).ok());
    parts.into_iter().map(|(part, value)| (part.to_owned(), sha256(canonical(&value).as_bytes()))).collect()
}

/// The parts in which two configurations differ.
pub(super) fn differences<'c>(now: &Configuration, was: &'c Configuration) -> Vec<&'c str> {
    was.iter()
        .filter(|(part, digest)| now.get(*part) != Some(digest))
        .map(|(part, _)| part.as_str())
        .collect()
}

fn mount(mount: &bollard::models::MountPoint) -> Value {
    let anonymous = mount
        .name
        .as_ref()
        .is_some_and(|name| name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit()));
    let source = if anonymous { None } else { mount.name.as_ref().or(mount.source.as_ref()) };
    json!({ "source": source, "to": mount.destination, "writes": mount.rw, "propagation": mount.propagation })
}

fn sort(list: Option<&mut Value>) {
    if let Some(list) = list.and_then(Value::as_array_mut) {
        list.sort_by_key(Value::to_string);
    }
}

#[cfg(test)]
mod tests {
    use bollard::models::{ContainerConfig, MountPoint};

    use super::*;

    fn container(id: &str, environment: &[&str], volume: &str) -> Configuration {
        let config = ContainerConfig {
            hostname: Some(id[..12].to_owned()),
            env: Some(environment.iter().map(|&variable| variable.to_owned()).collect()),
            labels: Some([("com.docker.compose.config-hash".to_owned(), id.to_owned())].into()),
            ..ContainerConfig::default()
        };
        let mount = MountPoint {
            name: Some(volume.to_owned()),
            destination: Some("/data".into()),
            ..MountPoint::default()
        };
        let (config, mounts) = (Some(config), Some(vec![mount]));
        of(id, &ContainerInspectResponse { config, mounts, ..ContainerInspectResponse::default() })
    }

    #[test]
    fn what_differs_by_container_does_not_count_and_what_is_defined_does() {
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        let first = container(&a, &["X=1", "Y=2"], &a);
        assert_eq!(container(&b, &["Y=2", "X=1"], &b), first);
        assert_eq!(differences(&container(&b, &["X=1"], &b), &first), ["environment"]);
        assert_eq!(differences(&container(&b, &["X=1", "Y=2"], "named"), &first), ["mounts"]);
    }
}
