//! What is there now: a service's container, how well it is, and everybody else's containers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use bollard::models::{
    ContainerInspectResponse, ContainerStateStatusEnum as Status, HealthStatusEnum as Green,
};
use tokio::time::sleep;

use cooper_common::clock;
use cooper_common::error::Result;
use cooper_repair::diagnosis::State;
use cooper_repair::policy::Health;
use cooper_repair::step::HealthClass;

use super::configuration::Configuration;
use super::engine::{CONFIG_HASH, Engine, unix_ms};
use super::{Step, configuration, probe};

/// A container that is starting, or that may be between two crashes, is looked at again for this long.
const SETTLE_MS: u64 = 10_000;
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// A container that was just started, or has restarts behind it, counts as running when it stays for this long.
const FLAP_MS: u64 = 2_500;
/// Kept of a healthcheck's output.
const HEALTH_OUTPUT_BYTES_MAX: usize = 16 << 10;

/// A container as the engine tells it.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) image_id: String,
    /// Compose's label for it.
    pub(super) config_hash: String,
    pub(super) configuration: Configuration,
    /// Changes with every start.
    pub(super) started_at: String,
    pub(super) state: State,
    /// Its addresses in the networks it is in, one of the host's own if it shares that network.
    pub(super) addresses: Vec<IpAddr>,
    /// Names it is known by in its networks.
    pub(super) aliases: BTreeSet<String>,
    /// Host ports by TCP port of the container.
    pub(super) published: BTreeMap<u16, u16>,
    /// TCP ports the image exposes.
    pub(super) exposed: BTreeSet<u16>,
}

impl Seen {
    pub(super) fn is_running(&self) -> bool {
        self.state.status == "running"
    }

    /// Ended, or never started: nothing will happen to it by itself.
    pub(super) fn is_stopped(&self) -> bool {
        matches!(self.state.status.as_str(), "exited" | "created" | "dead")
    }

    /// How well it is by its state and healthcheck.
    pub(super) fn class(&self) -> HealthClass {
        match (self.is_running(), self.state.health.as_deref()) {
            (false, _) => HealthClass::Down,
            (true, Some("healthy")) => HealthClass::Healthy,
            (true, Some("unhealthy")) => HealthClass::Unhealthy,
            (true, _) => HealthClass::Running,
        }
    }

    /// Its state in words.
    pub(super) fn describe(&self) -> String {
        let state = &self.state;
        let mut text = state.status.clone();
        if let Some(health) = &state.health {
            text.push_str(&format!(", {health}"));
        }
        if !self.is_running() {
            text.push_str(&format!(", exit code {}", state.exit_code));
        }
        if state.restart_count > 0 {
            text.push_str(&format!(", restarted {} times", state.restart_count));
        }
        if state.oom_killed {
            text.push_str(", killed for its memory");
        }
        if !state.error.is_empty() {
            text.push_str(&format!(", {}", state.error));
        }
        text
    }
}

impl Step<'_> {
    /// The service's container; the first one if it is scaled.
    pub(super) async fn container(&self) -> Result<Option<Seen>> {
        Ok(self.replicas().await?.into_iter().next())
    }

    /// All of the service's containers, in order of number.
    pub(super) async fn replicas(&self) -> Result<Vec<Seen>> {
        let mut replicas = Vec::new();
        for container in self.engine.containers(&self.project.model.name).await? {
            if container.service == self.service
                && let Some(seen) = look(&self.engine, &container.id).await?
            {
                replicas.push(seen);
            }
        }
        Ok(replicas)
    }

    /// The ids of the other services' containers, by name.
    pub(super) async fn neighbours(&self) -> Result<BTreeMap<String, String>> {
        let containers = self.engine.containers(&self.project.model.name).await?;
        let others = containers.into_iter().filter(|container| container.service != self.service);
        Ok(others.map(|container| (container.name, container.id)).collect())
    }

    /// The service's container and its class, once it is not just starting or between two crashes any more.
    pub(super) async fn settled(&self, probe: Option<&Health>) -> Result<(Option<Seen>, HealthClass)> {
        let since = clock::mono_ms();
        let mut first_start: Option<String> = None;
        loop {
            let Some(seen) = self.container().await? else { return Ok((None, HealthClass::Absent)) };
            let waited = clock::mono_ms() - since;
            let starting = seen.is_running() && seen.state.health.as_deref() == Some("starting");
            let restarted = first_start.get_or_insert_with(|| seen.started_at.clone()) != &seen.started_at;
            let is_new = unix_ms(&seen.started_at).is_none_or(|at| clock::wall_ms() - at < FLAP_MS as i64);
            let may_flap = seen.is_running()
                && (seen.state.restart_count > 0 || is_new)
                && seen.class() != HealthClass::Healthy;
            if restarted {
                return Ok((Some(seen), HealthClass::Down));
            }
            if (starting && waited < SETTLE_MS) || (may_flap && waited < FLAP_MS) {
                sleep(LOOK_AGAIN).await;
                continue;
            }
            let mut class = seen.class();
            if let Some(health) = probe.filter(|_| seen.is_running()) {
                let green = probe::ask(self.log, &self.project, &self.service, &seen, health).await.is_ok();
                class = match (green, class) {
                    (false, _) => HealthClass::Unhealthy,
                    (true, HealthClass::Running) => HealthClass::Healthy,
                    (true, class) => class,
                };
            }
            return Ok((Some(seen), class));
        }
    }
}

/// A container as it is now, `None` if it is gone.
pub(super) async fn look(engine: &Engine, id: &str) -> Result<Option<Seen>> {
    Ok(engine.inspect(id).await?.map(|container| seen(id, container)))
}

fn seen(id: &str, container: ContainerInspectResponse) -> Seen {
    let configuration = configuration::of(id, &container);
    let state = container.state.unwrap_or_default();
    let config = container.config.unwrap_or_default();
    let networks = container.network_settings.unwrap_or_default();
    let ends = networks.networks.unwrap_or_default();
    let health = state.health.unwrap_or_default();
    let shares_host = ends.contains_key("host");
    Seen {
        id: id.to_owned(),
        name: container.name.unwrap_or_default().trim_start_matches('/').to_owned(),
        image_id: container.image.unwrap_or_default(),
        configuration,
        config_hash: config.labels.unwrap_or_default().remove(CONFIG_HASH).unwrap_or_default(),
        started_at: state.started_at.unwrap_or_default(),
        addresses: ends
            .values()
            .filter_map(|end| end.ip_address.as_deref()?.parse().ok())
            .chain(shares_host.then_some(IpAddr::from([127, 0, 0, 1])))
            .collect(),
        aliases: ends
            .values()
            .flat_map(|end| end.aliases.iter().chain(&end.dns_names))
            .flatten()
            .cloned()
            .collect(),
        published: networks
            .ports
            .unwrap_or_default()
            .into_iter()
            .filter_map(|(port, bindings)| {
                let published = bindings?.into_iter().find_map(|binding| binding.host_port?.parse().ok())?;
                Some((tcp_port(&port)?, published))
            })
            .collect(),
        exposed: config.exposed_ports.unwrap_or_default().iter().filter_map(|port| tcp_port(port)).collect(),
        state: State {
            status: state
                .status
                .filter(|status| *status != Status::EMPTY)
                .map(|status| status.to_string())
                .unwrap_or_default(),
            exit_code: state.exit_code.unwrap_or_default(),
            restart_count: container.restart_count.unwrap_or_default().try_into().unwrap_or_default(),
            oom_killed: state.oom_killed.unwrap_or_default(),
            health: health.status.filter(|s| !matches!(s, Green::EMPTY | Green::NONE)).map(|s| s.to_string()),
            health_output: health
                .log
                .and_then(|log| log.into_iter().next_back())
                .and_then(|last| last.output)
                .map(|output| output.chars().take(HEALTH_OUTPUT_BYTES_MAX / 4).collect())
                .unwrap_or_default(),
            error: state.error.unwrap_or_default(),
        },
    }
}

/// `8000/tcp` → 8000.
fn tcp_port(text: &str) -> Option<u16> {
    let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    port.parse().ok().filter(|_| protocol == "tcp")
}
