//! The Docker engine by its API: containers and images looked at, tags moved, logs read.

use std::collections::HashMap;
use std::time::Duration;

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::errors::Error as Refused;
use bollard::models::{ContainerInspectResponse, EventMessage};
use bollard::query_parameters::{
    EventsOptionsBuilder, ListContainersOptionsBuilder, ListImagesOptionsBuilder, LogsOptionsBuilder,
    RemoveContainerOptionsBuilder, RemoveImageOptionsBuilder, StatsOptionsBuilder, TagImageOptionsBuilder,
    WaitContainerOptionsBuilder,
};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use tokio::time::timeout;

use cooper_common::error::{Code, Error, Result};
use cooper_repair::step::Measured;

use super::While;

/// Labels that compose puts on its containers.
const PROJECT: &str = "com.docker.compose.project";
const SERVICE: &str = "com.docker.compose.service";
const NUMBER: &str = "com.docker.compose.container-number";
const ONEOFF: &str = "com.docker.compose.oneoff";
const WORKING_DIR: &str = "com.docker.compose.project.working_dir";
pub(super) const CONFIG_HASH: &str = "com.docker.compose.config-hash";

/// The engine answers a ping at once, or it is not there.
const PING: Duration = Duration::from_secs(10);
/// Any other answer of the engine.
const ANSWER: Duration = Duration::from_secs(60);
/// Lines of a container's log that are asked for, and the bytes of them that are kept, from the end.
const LOG_LINES: &str = "20000";
const LOG_BYTES_MAX: usize = 1 << 20;

/// A connection to the engine that the docker command line uses too.
pub(super) struct Engine {
    docker: Docker,
}

/// A container of a project.
#[derive(Debug, Clone, Default)]
pub(super) struct Container {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) service: String,
    /// The directory compose was called for when it made the container.
    pub(super) working_dir: String,
    number: u32,
}

/// Something that happened to a container.
#[derive(Debug, Clone, Default)]
pub(super) struct Event {
    /// `start`, `die`, `health_status: unhealthy` and so on.
    pub(super) action: String,
    pub(super) container: Container,
    pub(super) exit_code: i64,
    /// Of `kill`.
    pub(super) signal: String,
    /// When, in Unix nanoseconds.
    pub(super) at_ns: i64,
}

impl Event {
    fn of(message: EventMessage) -> Self {
        let actor = message.actor.unwrap_or_default();
        let attributes = actor.attributes.unwrap_or_default();
        let attribute = |name: &str| attributes.get(name).cloned().unwrap_or_default();
        Self {
            action: message.action.unwrap_or_default(),
            container: Container {
                id: actor.id.unwrap_or_default(),
                name: attribute("name"),
                service: attribute(SERVICE),
                working_dir: attribute(WORKING_DIR),
                number: attribute(NUMBER).parse().unwrap_or(0),
            },
            exit_code: attribute("exitCode").parse().unwrap_or_default(),
            signal: attribute("signal"),
            at_ns: message.time_nano.unwrap_or_default(),
        }
    }
}

impl Engine {
    /// Connects and sees that the engine answers.
    pub(super) async fn connect() -> Result<Self> {
        let unavailable = |error: String| {
            Error::new(Code::EngineUnavailable, format!("the Docker engine does not answer: {error}"))
        };
        let docker = match context_host().await {
            Some(host) => Docker::connect_with_host(&host),
            None => Docker::connect_with_defaults(),
        };
        let docker = docker.map_err(|error| unavailable(error.to_string()))?;
        match timeout(PING, docker.negotiate_version()).await {
            Ok(Ok(docker)) => Ok(Self { docker }),
            Ok(Err(error)) => Err(unavailable(error.to_string())),
            Err(_) => Err(unavailable(format!("nothing came within {} s", PING.as_secs()))),
        }
    }

    /// The containers of a project but for those of `run`, in order of service and number.
    pub(super) async fn containers(&self, project: &str) -> Result<Vec<Container>> {
        self.list(vec![format!("{PROJECT}={project}"), format!("{ONEOFF}=False")]).await
    }

    /// Those of every project.
    pub(super) async fn composed(&self) -> Result<Vec<Container>> {
        self.list(vec![PROJECT.to_owned(), format!("{ONEOFF}=False")]).await
    }

    async fn list(&self, labels: Vec<String>) -> Result<Vec<Container>> {
        let options = ListContainersOptionsBuilder::default()
            .all(true)
            .filters(&HashMap::from([("label", labels)]))
            .build();
        let listed = answer("listing containers", self.docker.list_containers(Some(options))).await?;
        let mut containers: Vec<Container> = listed
            .into_iter()
            .filter_map(|listed| {
                let labels = listed.labels?;
                Some(Container {
                    id: listed.id?,
                    name: listed.names?.first()?.trim_start_matches('/').to_owned(),
                    service: labels.get(SERVICE)?.clone(),
                    working_dir: labels.get(WORKING_DIR).cloned().unwrap_or_default(),
                    number: labels.get(NUMBER).and_then(|number| number.parse().ok()).unwrap_or(0),
                })
            })
            .collect();
        containers.sort_by(|a, b| (&a.service, a.number, &a.id).cmp(&(&b.service, b.number, &b.id)));
        Ok(containers)
    }

    /// Everything about a container, `None` if it is gone.
    pub(super) async fn inspect(&self, id: &str) -> Result<Option<ContainerInspectResponse>> {
        present(answer_raw(self.docker.inspect_container(id, None)).await)
            .while_doing(format_args!("inspecting container {id}"))
    }

    /// The id behind an image reference or id, `None` if there is none.
    pub(super) async fn image_id(&self, reference: &str) -> Result<Option<String>> {
        Ok(self.image(reference).await?.and_then(|image| image.id))
    }

    /// When an image was created, in Unix milliseconds.
    pub(super) async fn image_created_ms(&self, reference: &str) -> Result<Option<i64>> {
        Ok(self.image(reference).await?.and_then(|image| image.created).and_then(|created| unix_ms(&created)))
    }

    async fn image(&self, reference: &str) -> Result<Option<bollard::models::ImageInspect>> {
        present(answer_raw(self.docker.inspect_image(reference)).await)
            .while_doing(format_args!("inspecting image {reference}"))
    }

    /// Lets `reference` (`repository[:tag]`) name this image.
    pub(super) async fn tag(&self, id: &str, reference: &str) -> Result<()> {
        let (repository, tag) = split_tag(reference);
        let options = TagImageOptionsBuilder::default().repo(repository).tag(tag).build();
        answer(format_args!("tagging {id} as {reference}"), self.docker.tag_image(id, Some(options))).await
    }

    /// Takes a tag away; an image that then has none, and no container, goes with it. No such tag is fine.
    pub(super) async fn untag(&self, reference: &str) -> Result<()> {
        // Force only concerns the tag: an image that a container uses stays, without a name.
        let options = RemoveImageOptionsBuilder::default().force(true).noprune(false).build();
        present(answer_raw(self.docker.remove_image(reference, Some(options), None)).await)
            .map(|_| ())
            .while_doing(format_args!("removing the tag {reference}"))
    }

    /// Removes an image that has no name and that no container uses; any other is left.
    pub(super) async fn remove_unnamed(&self, id: &str) -> Result<()> {
        let unnamed = |image: bollard::models::ImageInspect| image.repo_tags.unwrap_or_default().is_empty();
        if !self.image(id).await?.is_some_and(unnamed) {
            return Ok(());
        }
        let options = RemoveImageOptionsBuilder::default().force(false).build();
        match present(answer_raw(self.docker.remove_image(id, Some(options), None)).await) {
            Ok(_) | Err(Refused::DockerResponseServerError { status_code: 409, .. }) => Ok(()),
            Err(error) => Err(error).while_doing(format_args!("removing image {id}")),
        }
    }

    /// Ends a container and removes it with its anonymous volumes. None of that name is fine.
    pub(super) async fn remove_container(&self, name: &str) -> Result<()> {
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        match present(answer_raw(self.docker.remove_container(name, Some(options))).await) {
            Ok(_) => Ok(()),
            // Whoever asked first, as a step that was killed meanwhile, has begun it.
            Err(Refused::DockerResponseServerError { status_code: 409, .. }) => self.gone(name).await,
            Err(error) => Err(error).while_doing(format_args!("removing container {name}")),
        }
    }

    /// Waits until a container that is being removed is.
    async fn gone(&self, name: &str) -> Result<()> {
        let options = WaitContainerOptionsBuilder::default().condition("removed").build();
        // How it ended, or that it has gone already, is all the same.
        let _ = timeout(ANSWER, self.docker.wait_container(name, Some(options)).next()).await;
        match self.inspect(name).await? {
            None => Ok(()),
            Some(_) => Err(Error::new(Code::StepFailed, format!("container {name} is not removed in time"))),
        }
    }

    /// The tags of a repository, in order.
    pub(super) async fn tags(&self, repository: &str) -> Result<Vec<String>> {
        let filters = HashMap::from([("reference", vec![repository.to_owned()])]);
        let options = ListImagesOptionsBuilder::default().filters(&filters).build();
        let images = answer("listing images", self.docker.list_images(Some(options))).await?;
        let mut tags: Vec<String> = images
            .into_iter()
            .flat_map(|image| image.repo_tags)
            .filter_map(|full| Some(full.strip_prefix(repository)?.strip_prefix(':')?.to_owned()))
            .collect();
        tags.sort();
        Ok(tags)
    }

    /// What a container uses now.
    pub(super) async fn usage(&self, id: &str) -> Result<Measured> {
        let options = StatsOptionsBuilder::default().stream(false).one_shot(true).build();
        let mut told = std::pin::pin!(self.docker.stats(id, Some(options)));
        let first = async { told.next().await.unwrap_or_else(|| Ok(Default::default())) };
        let stats = answer(format_args!("measuring container {id}"), first).await?;
        let memory = stats.memory_stats.unwrap_or_default();
        let cpu = stats.cpu_stats.and_then(|cpu| cpu.cpu_usage).and_then(|usage| usage.total_usage);
        Ok(Measured {
            memory_bytes: memory.usage.unwrap_or_default(),
            memory_limit_bytes: memory.limit.unwrap_or_default(),
            cpu_ms: cpu.unwrap_or_default() / 1_000_000,
            processes: stats.pids_stats.and_then(|pids| pids.current).unwrap_or_default(),
            ..Measured::default()
        })
    }

    /// What happens to the containers of projects, from now on or from a time (Unix nanoseconds) on, until the engine ends.
    pub(super) fn events(&self, since_ns: Option<i64>) -> impl Stream<Item = Result<Event>> + use<> {
        let filters = HashMap::from([
            ("type", vec!["container"]),
            ("label", vec![PROJECT, "com.docker.compose.oneoff=False"]),
            ("event", vec!["start", "die", "oom", "kill", "health_status", "destroy"]),
        ]);
        let mut options = EventsOptionsBuilder::default().filters(&filters);
        if let Some(ns) = since_ns {
            options = options.since(&format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000));
        }
        let events = self.docker.events(Some(options.build()));
        events.map(|event| event.map(Event::of).while_doing("hearing the engine's events"))
    }

    /// What a container prints from a time (Unix seconds) on, until it ends.
    pub(super) fn follow(&self, id: &str, since: i64) -> impl Stream<Item = Result<Bytes>> + use<> {
        let since = i32::try_from(since).unwrap_or(i32::MAX);
        let options =
            LogsOptionsBuilder::default().follow(true).stdout(true).stderr(true).since(since).build();
        let pieces = self.docker.logs(id, Some(options));
        pieces.map(|piece| piece.map(LogOutput::into_bytes).while_doing("following a container's log"))
    }

    /// The end of what a container has printed.
    pub(super) async fn logs(&self, id: &str) -> Result<Vec<u8>> {
        let options = LogsOptionsBuilder::default().stdout(true).stderr(true).tail(LOG_LINES).build();
        let mut stream = self.docker.logs(id, Some(options));
        let mut text = Vec::new();
        let read = async {
            while let Some(piece) = stream.next().await {
                text.extend_from_slice(&piece?.into_bytes());
                if text.len() > 2 * LOG_BYTES_MAX {
                    text.drain(..text.len() - LOG_BYTES_MAX);
                }
            }
            Ok(())
        };
        answer("reading a container's log", read).await?;
        text.drain(..text.len().saturating_sub(LOG_BYTES_MAX));
        Ok(text)
    }
}

/// Waits for an answer, but not for ever.
async fn answer<T>(
    what: impl std::fmt::Display,
    ask: impl Future<Output = std::result::Result<T, Refused>>,
) -> Result<T> {
    answer_raw(ask).await.while_doing(what)
}

async fn answer_raw<T>(
    ask: impl Future<Output = std::result::Result<T, Refused>>,
) -> std::result::Result<T, Refused> {
    timeout(ANSWER, ask).await.unwrap_or(Err(Refused::RequestTimeoutError))
}

/// "There is none" is an answer.
fn present<T>(result: std::result::Result<T, Refused>) -> std::result::Result<Option<T>, Refused> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(Refused::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The engine's address in the docker command line's context, where one other than the default is chosen.
/// `DOCKER_HOST` comes before any context, for the command line as for us.
async fn context_host() -> Option<String> {
    if std::env::var_os("DOCKER_HOST").is_some() {
        return None;
    }
    let config = std::env::var_os("DOCKER_CONFIG")
        .map(std::path::PathBuf::from)
        .or_else(|| Some(std::path::PathBuf::from(std::env::var_os("HOME")?).join(".docker")))?;
    let chosen = std::env::var_os("DOCKER_CONTEXT").is_some()
        || std::fs::read_to_string(config.join("config.json"))
            .is_ok_and(|text| text.contains("\"currentContext\""));
    if !chosen {
        return None;
    }
    let ask = super::process::docker(
        std::path::Path::new("/"),
        &["context", "inspect", "--format", "{{.Endpoints.docker.Host}}"],
    );
    let told = super::process::read(ask, PING).await.ok().filter(|told| told.status.success())?;
    let host = String::from_utf8(told.output).ok()?.trim().to_owned();
    (!host.is_empty()).then_some(host)
}

/// `repository:tag` apart; the colon of a registry's port is no tag's.
fn split_tag(reference: &str) -> (&str, &str) {
    match reference.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, tag),
        _ => (reference, "latest"),
    }
}

/// Unix milliseconds of an RFC 3339 time as the engine writes it, UTC or with an offset.
pub(super) fn unix_ms(text: &str) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<i64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let rest = text.get(19..)?;
    // To the millisecond: an image is often made in the second in which its context changed.
    let fraction = rest.strip_prefix('.').unwrap_or_default();
    let digits = fraction.bytes().take_while(u8::is_ascii_digit).take(3);
    let ms = digits.zip([100, 10, 1]).map(|(digit, of)| i64::from(digit - b'0') * of).sum::<i64>();
    let zone = rest.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
    let offset = match zone.as_bytes() {
        [b'Z'] => 0,
        [sign @ (b'+' | b'-'), ..] => {
            let minutes = zone.get(1..3)?.parse::<i64>().ok()? * 60 + zone.get(4..6)?.parse::<i64>().ok()?;
            if *sign == b'-' { -minutes } else { minutes }
        }
        _ => return None,
    };
    // Days since 1970, counted with years that begin in March, so that the leap day is a year's last.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) + (153 * m + 2) / 5 + day
        - 1
        - 719_468;
    Some((((days * 24 + hour) * 60 + minute - offset) * 60 + second) * 1000 + ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_of_the_engine_is_read() {
        assert_eq!(unix_ms("2023-11-14T22:13:20.123456789Z"), Some(1_700_000_000_123));
        assert_eq!(unix_ms("2023-11-14T22:13:20.5Z"), Some(1_700_000_000_500));
        assert_eq!(unix_ms("2023-11-14T23:13:20+01:00"), Some(1_700_000_000_000));
        assert_eq!(unix_ms("2024-02-29T00:00:00Z"), Some(1_709_164_800_000));
        assert_eq!(unix_ms("soon"), None);
    }

    #[test]
    fn a_registry_port_is_not_a_tag() {
        assert_eq!(split_tag("host:5000/a/b"), ("host:5000/a/b", "latest"));
        assert_eq!(split_tag("host:5000/a/b:1"), ("host:5000/a/b", "1"));
    }
}
