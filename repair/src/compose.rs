//! The resolved compose model: what `docker compose config` prints.
//!
//! Its YAML, not its JSON: Compose 2.26 leaves `x-cooper` of services out of the JSON, and with it `protected: true`.
//!
//! Only what repair decides on is typed; everything else is kept in `extra`, so that a model can be compared before
//! and after an edit. The model holds interpolated secrets: it may be planned with, never stored or shown.

pub mod change;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::limits;

/// Why a model could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is not what compose prints.
    #[error("the compose model is not valid: {0}; it must be the output of `docker compose config`")]
    Invalid(String),
    /// The text is longer than [`limits::MODEL_BYTES_MAX`].
    #[error("the compose model has {0} bytes, at most {max} are read", max = limits::MODEL_BYTES_MAX)]
    TooLong(usize),
    /// The service is not in the model.
    #[error("the stack has no service {service}; its services are: {known}")]
    NoService {
        /// The name that was asked for.
        service: String,
        /// The names there are, joined by commas.
        known: String,
    },
}

/// A whole stack as compose resolves it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Model {
    /// Project name.
    pub name: String,
    /// Services by name.
    pub services: BTreeMap<String, Service>,
    /// The stack's policy, as written; [`crate::Policy`] reads it.
    #[serde(rename = "x-cooper", skip_serializing_if = "Option::is_none")]
    pub x_cooper: Option<Value>,
    /// Everything else (networks, volumes, …), as printed.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

/// One service of the stack.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Service {
    /// How its image is built, if it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build: Option<Build>,
    /// Image reference, if given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Fixed container name, if given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_name: Option<String>,
    /// Environment, resolved; `None` is a name without a value.
    pub environment: BTreeMap<String, Option<String>>,
    /// Healthcheck, if the compose file sets one (the image may bring another).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// Services this one waits for.
    pub depends_on: BTreeMap<String, Dependency>,
    /// Published ports.
    pub ports: Vec<Port>,
    /// Mounts.
    pub volumes: Vec<Mount>,
    /// Environment files, as printed (their shape differs between compose versions).
    pub env_file: Value,
    /// The service's policy, as written; [`crate::Policy`] reads it.
    #[serde(rename = "x-cooper", skip_serializing_if = "Option::is_none")]
    pub x_cooper: Option<Value>,
    /// Everything else, as printed.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

/// How an image is built.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Build {
    /// Context directory; compose prints it absolute.
    pub context: String,
    /// Dockerfile, relative to the context; compose fills in `Dockerfile`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dockerfile: Option<String>,
    /// A Dockerfile written inside the compose file, instead of a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dockerfile_inline: Option<String>,
    /// Build arguments.
    pub args: BTreeMap<String, Option<String>>,
    /// Stage to build; the last one if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Named further contexts.
    pub additional_contexts: BTreeMap<String, String>,
    /// Everything else, as printed.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

impl Build {
    /// The Dockerfile's path relative to the context, `Dockerfile` where none is named.
    pub fn dockerfile(&self) -> &str {
        self.dockerfile.as_deref().unwrap_or("Dockerfile")
    }
}

/// A healthcheck as compose prints it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Healthcheck {
    /// `["CMD", …]`, `["CMD-SHELL", "…"]` or `["NONE"]`.
    pub test: Option<Vec<String>>,
    /// True where the healthcheck is switched off.
    pub disable: bool,
    /// Interval, retries and times, as printed.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

/// An edge of `depends_on`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dependency {
    /// `service_started`, `service_healthy` or `service_completed_successfully`.
    pub condition: String,
    /// False where the stack may start without it.
    pub required: bool,
}

/// A published port.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Port {
    /// Port inside the container.
    pub target: u16,
    /// Port on the host: a number, a range or empty (chosen by the engine); compose prints a string.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub published: Option<Value>,
    /// Host address it listens on; every address if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<String>,
    /// `tcp` or `udp`.
    pub protocol: String,
}

impl Port {
    /// True if other machines may reach the port.
    pub fn is_public(&self) -> bool {
        let Some(host) = self.host_ip.as_deref().filter(|host| !host.is_empty()) else {
            return true;
        };
        !host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

/// A mount of a service.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mount {
    /// `bind`, `volume`, `tmpfs`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// Path or volume name on the host's side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Path in the container.
    pub target: String,
    /// True if the container cannot write to it.
    pub read_only: bool,
}

/// What a service looks like from outside, read from its image name and its ports' habits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Keeps data: a repair gone wrong can cost it.
    Database,
    /// Carries messages or a cache that others rely on.
    Broker,
    /// Stands in front of other services.
    Proxy,
}

/// Image base names by role. An image counts if its last path part, without tag, is or starts with one of these.
const ROLES: &[(Role, &[&str])] = &[
    (
        Role::Database,
        &[
            "postgres",
            "postgis",
            "timescaledb",
            "pgvector",
            "mysql",
            "mariadb",
            "percona",
            "mongo",
            "mssql",
            "cockroach",
            "cassandra",
            "scylla",
            "clickhouse",
            "elasticsearch",
            "opensearch",
            "influxdb",
            "neo4j",
            "couchdb",
            "couchbase",
            "minio",
            "etcd",
            "qdrant",
            "weaviate",
            "milvus",
            "oracle",
        ],
    ),
    (
        Role::Broker,
        &[
            "redis",
            "valkey",
            "keydb",
            "dragonfly",
            "memcached",
            "rabbitmq",
            "kafka",
            "redpanda",
            "zookeeper",
            "nats",
            "pulsar",
            "activemq",
            "artemis",
            "mosquitto",
            "emqx",
            "nsq",
            "consul",
            "vault",
        ],
    ),
    (
        Role::Proxy,
        &[
            "nginx",
            "traefik",
            "haproxy",
            "caddy",
            "envoy",
            "httpd",
            "apache",
            "kong",
            "squid",
            "varnish",
            "pgbouncer",
            "docker-socket-proxy",
            "oauth2-proxy",
            "cloudflared",
        ],
    ),
];

impl Service {
    /// The role its image name tells, if any. A service that is built is judged by its `image` name too, if it has one.
    pub fn role(&self) -> Option<Role> {
        let image = self.image.as_deref()?;
        let name = image.rsplit('/').next()?.split(['@', ':']).next()?.to_ascii_lowercase();
        ROLES
            .iter()
            .find(|(_, names)| names.iter().any(|known| name.starts_with(known)))
            .map(|(role, _)| *role)
    }

    /// The ports other machines may reach.
    pub fn public_ports(&self) -> impl Iterator<Item = &Port> {
        self.ports.iter().filter(|port| port.is_public())
    }
}

impl Model {
    /// Reads a model from JSON: one that was written by serde, or that is built from what compose printed as YAML.
    /// Compose's own JSON lacks policy: see the module's note.
    pub fn from_json(text: &str) -> Result<Self, Error> {
        if text.len() > limits::MODEL_BYTES_MAX {
            return Err(Error::TooLong(text.len()));
        }
        serde_json::from_str(text).map_err(|error| Error::Invalid(error.to_string()))
    }

    /// Reads what `docker compose config` printed.
    pub fn from_config(text: &str) -> Result<Self, Error> {
        if text.len() > limits::MODEL_BYTES_MAX {
            return Err(Error::TooLong(text.len()));
        }
        serde_norway::from_str(text).map_err(|error| Error::Invalid(error.to_string()))
    }

    /// The model without values: every environment variable and build argument keeps its name and loses its value,
    /// and what the stack defines as secrets and configs is left out. Diagnosis and policy decide the same on it, so
    /// this is the one to send and to store.
    pub fn without_values(mut self) -> Self {
        for part in ["secrets", "configs"] {
            self.extra.remove(part);
        }
        for service in self.services.values_mut() {
            let build = service.build.iter_mut().flat_map(|build| build.args.values_mut());
            service.environment.values_mut().chain(build).for_each(|value| *value = None);
            // Commands, labels and logging options may carry secrets as well, and nothing here reads them.
            service.extra.clear();
            service.env_file = Value::Null;
            if let Some(healthcheck) = &mut service.healthcheck {
                healthcheck.test = None;
            }
        }
        self
    }

    /// The service of that name.
    pub fn service(&self, name: &str) -> Result<&Service, Error> {
        self.services.get(name).ok_or_else(|| Error::NoService {
            service: name.to_owned(),
            known: self.services.keys().cloned().collect::<Vec<_>>().join(", "),
        })
    }

    /// True if one more container of the service may run beside the first for a while.
    pub fn can_run_beside(&self, name: &str) -> bool {
        self.services.contains_key(name) && self.against_beside(name).is_empty()
    }

    /// Why one more container of a service may not run beside the first: it writes to a volume that both have, wants a
    /// port of the host or a name or address of its own, or ends by itself. A sentence's end each.
    pub fn against_beside(&self, name: &str) -> Vec<String> {
        let Some(service) = self.services.get(name) else { return Vec::new() };
        let mut reasons = Vec::new();
        let written = service.volumes.iter().filter(|mount| !mount.read_only && mount.kind != "tmpfs");
        let written: Vec<&str> = written.map(|mount| mount.target.as_str()).collect();
        if !written.is_empty() {
            reasons.push(format!("it writes to {}", written.join(", ")));
        }
        if service.ports.iter().any(|port| port.published.is_some()) {
            reasons.push("it has a port of the host".to_owned());
        }
        if service.container_name.is_some() {
            reasons.push("its container has a fixed name".to_owned());
        }
        for key in ["network_mode", "pid", "ipc"] {
            let mode = service.extra.get(key).and_then(Value::as_str);
            if let Some(mode) = mode.filter(|mode| *mode == "host" || mode.contains(':')) {
                reasons.push(format!("its {key} is {mode}"));
            }
        }
        let networks = service.extra.get("networks").and_then(Value::as_object);
        let addressed = |network: &Value| {
            ["ipv4_address", "ipv6_address", "mac_address"].iter().any(|key| network.get(key).is_some())
        };
        if networks.into_iter().flatten().any(|(_, network)| addressed(network)) {
            reasons.push("it has a fixed address".to_owned());
        }
        if service.extra.contains_key("volumes_from") {
            reasons.push("it has the volumes of another container".to_owned());
        }
        let ends = |dependent: &Service| {
            let dependency = dependent.depends_on.get(name);
            dependency.is_some_and(|dependency| dependency.condition == "service_completed_successfully")
        };
        if self.services.values().any(ends) {
            reasons.push("it ends by itself".to_owned());
        }
        reasons
    }

    /// The services that name this one in their `depends_on`, in order of name.
    pub fn dependents(&self, name: &str) -> Vec<&str> {
        self.services
            .iter()
            .filter(|(_, service)| service.depends_on.contains_key(name))
            .map(|(dependent, _)| dependent.as_str())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: &str = r#"{
        "name": "p", "networks": {"default": {"name": "p_default"}}, "secrets": {"s": {"environment": "hunter2"}},
        "services": {
            "db": {"image": "ghcr.io/x/pgvector:pg16", "environment": {"PASSWORD": "hunter2", "EMPTY": null}},
            "web": {"build": {"context": "/s/web", "dockerfile": "Dockerfile", "args": {"TOKEN": "hunter2"}},
                    "command": ["run", "hunter2"], "env_file": [{"path": "/s/.env", "required": true}],
                    "depends_on": {"db": {"condition": "service_started", "required": true}},
                    "ports": [{"mode": "ingress", "host_ip": "::1", "target": 80, "published": "8080", "protocol": "tcp"}]}
        }
    }"#;

    #[test]
    fn a_model_is_read_with_what_it_has_beyond_these_types() {
        let model = Model::from_config(MODEL).unwrap();
        assert_eq!(model.dependents("db"), ["web"]);
        assert_eq!(model.service("db").unwrap().role(), Some(Role::Database));
        assert_eq!(model.service("web").unwrap().public_ports().count(), 0);
        assert!(model.extra.contains_key("networks"));
        assert!(model.service("nope").unwrap_err().to_string().ends_with("its services are: db, web"));
    }

    #[test]
    fn a_port_is_public_unless_it_listens_on_loopback_alone() {
        let port = |host_ip: Option<&str>| Port { host_ip: host_ip.map(str::to_owned), ..Port::default() };
        for host in [None, Some(""), Some("0.0.0.0"), Some("::"), Some("192.0.2.1")] {
            assert!(port(host).is_public(), "{host:?}");
        }
        for host in [Some("127.0.0.1"), Some("127.1.2.3"), Some("::1"), Some("[::1]")] {
            assert!(!port(host).is_public(), "{host:?}");
        }
    }

    #[test]
    fn a_model_without_values_has_no_secret_and_the_same_services() {
        let model = Model::from_config(MODEL).unwrap().without_values();
        let text = serde_json::to_string(&model).unwrap();
        assert!(!text.contains("hunter2"), "{text}");
        assert!(model.service("web").unwrap().build.is_some() && text.contains("PASSWORD"));
    }

    #[test]
    fn a_service_runs_twice_for_a_while_only_where_the_two_share_nothing() {
        let beside = |more: &str| {
            let model = format!("{{services: {{web: {{build: {{context: /w}}{more}}}}}}}");
            Model::from_config(&model).unwrap().can_run_beside("web")
        };
        for more in [
            "",
            ", expose: ['80']",
            ", networks: {default: null}, volumes: [{type: bind, source: /a, target: /a, read_only: true}]",
        ] {
            assert!(beside(more), "{more}");
        }
        for more in [
            ", volumes: [{type: volume, source: data, target: /data}]",
            ", ports: [{target: 80, published: '8080', protocol: tcp}]",
            ", container_name: web",
            ", network_mode: host",
            ", network_mode: 'service:db'",
            ", networks: {default: {ipv4_address: 172.20.0.9}}",
        ] {
            assert!(!beside(more), "{more}");
        }
        let ends = "{services: {migrate: {}, web: {depends_on: {migrate: {condition: service_completed_successfully}}}}}";
        assert!(!Model::from_config(ends).unwrap().can_run_beside("migrate"));
    }
}
