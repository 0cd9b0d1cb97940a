//! A compose project by the docker command line: its resolved model, builds, and the one service that is moved.
//!
//! `-f`, project name, env file and profiles mean what they mean to compose: nothing of it is read here but what
//! `docker compose config` prints.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;

use cooper_common::error::Result;
use cooper_common::redact::{self, Redactor};
use cooper_repair::command;
use cooper_repair::compose::{Model, Service, change};

use super::checkout::Checkout;
use super::process::{self, Finished};
use super::{Log, While, evidence, failed};

const CONFIG_LIMIT: Duration = Duration::from_secs(60);
/// Files with secrets are read up to here.
const SECRET_FILE_BYTES_MAX: u64 = 64 << 10;

/// A project as compose resolves it now.
pub(super) struct Project {
    pub(super) dir: PathBuf,
    pub(super) model: Model,
    /// The compose files it is made of, in their order; absolute, or as `COMPOSE_FILE` names them.
    pub(super) files: Vec<PathBuf>,
    /// Other files in place of those: what a plan makes of them, before it is promoted.
    staged: Option<Vec<PathBuf>>,
    /// Everything that `config` printed; it holds interpolated secrets and never leaves the process but into compose.
    resolved: Value,
}

impl Project {
    /// Resolves the project of a directory and hides its secrets from the log.
    pub(super) async fn load(dir: &Path, log: &Log) -> Result<Self> {
        Self::read(dir, None, log).await
    }

    /// The same project with other compose files.
    pub(super) async fn with_files(&self, files: Vec<PathBuf>, log: &Log) -> Result<Self> {
        Self::read(&self.dir, Some(files), log).await
    }

    async fn read(dir: &Path, staged: Option<Vec<PathBuf>>, log: &Log) -> Result<Self> {
        log.hide(dotenv_secrets(dir));
        let dir = dir.to_path_buf();
        // As YAML: JSON leaves the extension fields out, and policy is one (`x-cooper`).
        let told = process::read(compose(&dir, staged.as_deref(), &[], &["config"]), CONFIG_LIMIT).await?;
        if !told.status.success() {
            let said = log.redact(&told.last_line());
            let near = near_env_file(&said).map_or_else(String::new, |near| {
                format!("; {near} is there: if that is meant, correct env_file by hand, since nothing is repaired in a stack that compose cannot read")
            });
            return Err(failed(format!("compose cannot read the stack in {}: {said}{near}", dir.display())));
        }
        let resolved: Value = serde_norway::from_slice(&told.output)
            .while_doing("reading what `docker compose config` printed")?;
        let model = Model::from_json(&resolved.to_string()).while_doing("reading the compose model")?;
        log.hide(model_secrets(&model));
        Ok(Self { files: compose_files(&dir), dir, model, staged, resolved })
    }

    /// Reasons against running these files in place of those of `self`: what compose makes of them may only differ as
    /// an edit of a compose file may.
    pub(super) fn against(&self, other: &Self, service: &str) -> Vec<String> {
        change::check_model(service, &self.resolved, &other.resolved)
    }

    pub(super) fn service(&self, name: &str) -> Result<&Service> {
        self.model.service(name).map_err(|error| failed(error.to_string()))
    }

    /// The tag compose runs a service from.
    pub(super) fn image_ref(&self, service: &str) -> Result<String> {
        let image = self.service(service)?.image.clone().filter(|image| !image.is_empty());
        Ok(image.unwrap_or_else(|| format!("{}-{service}", self.model.name)))
    }

    /// Builds a service into a tag of ours, from its own context or another directory. The model given to compose
    /// differs only in these two; no other tag of the user's moves, and no cache is written for others.
    pub(super) async fn build(
        &self,
        log: &Log,
        service: &str,
        context: Option<&Path>,
        tag: &str,
        limit: Duration,
    ) -> Result<Finished> {
        let mut model = self.resolved.clone();
        let described = &mut model["services"][service];
        described["image"] = json!(tag);
        let Some(build) = described["build"].as_object_mut() else {
            return Err(failed(format!("service {service} has no build")));
        };
        build.retain(|key, _| key != "tags" && key != "cache_to");
        if let Some(context) = context {
            if let Some(dockerfile) = build.get("dockerfile").and_then(Value::as_str)
                && let Some(original) = build.get("context").and_then(Value::as_str)
                && let Ok(inside) = Path::new(dockerfile).strip_prefix(original)
            {
                build["dockerfile"] = json!(inside.to_str());
            }
            build["context"] = json!(context.to_str());
        }
        // By standard input: the model holds secrets and has no business in a file.
        let command = compose(&self.dir, None, &command::FROM_STDIN, &command::build(service));
        process::stream(log, command, Some(model.to_string().as_bytes()), limit).await
    }

    /// Starts one more container of a service from another image: no port, no name in the networks, no other service.
    pub(super) async fn run_beside(
        &self,
        log: &Log,
        service: &str,
        image: &str,
        name: &str,
        limit: Duration,
    ) -> Result<()> {
        let mut model = self.resolved.clone();
        let described = &mut model["services"][service];
        described["image"] = json!(image);
        described["pull_policy"] = json!("never");
        if let Some(described) = described.as_object_mut() {
            described.retain(|key, _| !matches!(key.as_str(), "build" | "restart" | "deploy" | "scale"));
        }
        let args = command::run_beside(service, name);
        log.say(format_args!("docker compose {}", args.join(" ")));
        let command = compose(&self.dir, None, &command::FROM_STDIN, &args);
        let finished = process::stream(log, command, Some(model.to_string().as_bytes()), limit).await?;
        if finished.status.success() {
            return Ok(());
        }
        Err(failed(format!("`docker compose {}` failed: {}", args.join(" "), finished.last_line())))
    }

    /// Brings a service to what its file and its tag say: its container and no other, no build, no pull.
    pub(super) async fn up(&self, log: &Log, service: &str, start: bool, limit: Duration) -> Result<()> {
        self.act(log, &command::up(service, start), limit).await
    }

    /// Any other command on one service.
    pub(super) async fn act(&self, log: &Log, args: &[&str], limit: Duration) -> Result<()> {
        log.say(format_args!("docker compose {}", args.join(" ")));
        let finished =
            process::stream(log, compose(&self.dir, self.staged.as_deref(), &[], args), None, limit).await?;
        if finished.status.success() {
            return Ok(());
        }
        Err(failed(format!("`docker compose {}` failed: {}", args.join(" "), finished.last_line())))
    }
}

/// A file beside the `env_file` that compose did not find, of nearly the same name.
fn near_env_file(said: &str) -> Option<String> {
    let (_, rest) = said.split_once("env file ")?;
    let wanted = Path::new(rest.split_once(" not found")?.0);
    let name = wanted.file_name()?.to_str()?;
    let plain = |name: &str| name.to_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "");
    let names = std::fs::read_dir(wanted.parent()?)
        .ok()?
        .flatten()
        .filter_map(|it| it.file_name().into_string().ok());
    let is_env =
        |name: &String| name.starts_with(".env") || name.ends_with(".env") || name.ends_with(".env.example");
    let alike = |other: &String| {
        let (a, b) = (plain(name), plain(other));
        a == b || a.starts_with(&b) || b.starts_with(&a) || {
            let differ = a.chars().zip(b.chars()).filter(|(a, b)| a != b).count();
            a.len().abs_diff(b.len()) <= 1 && differ <= 2
        }
    };
    let mut near: Vec<String> = names.filter(is_env).filter(alike).collect();
    near.sort();
    near.into_iter().next()
}

fn compose(dir: &Path, files: Option<&[PathBuf]>, options: &[&str], args: &[&str]) -> Command {
    let mut command = process::docker(dir, &command::COMPOSE);
    command.arg(dir).args(command::PLAIN);
    for file in files.into_iter().flatten() {
        command.arg("-f").arg(file);
    }
    command.args(options).args(args);
    command
}

/// The files compose takes in a directory: those of `COMPOSE_FILE`, else the first of its own names, with the first
/// of those that override it.
fn compose_files(dir: &Path) -> Vec<PathBuf> {
    const NAMES: [&str; 4] = ["compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"];
    const OVERRIDES: [&str; 4] = [
        "compose.override.yml",
        "compose.override.yaml",
        "docker-compose.override.yml",
        "docker-compose.override.yaml",
    ];
    let dotenv = small_file(&dir.join(".env")).unwrap_or_default();
    let setting = |name: &str| {
        let of_file = || dotenv_variables(&dotenv).into_iter().find(|(known, _)| known == name);
        std::env::var(name)
            .ok()
            .or_else(|| of_file().map(|(_, value)| value))
            .filter(|value| !value.is_empty())
    };
    if let Some(named) = setting("COMPOSE_FILE") {
        let separator = setting("COMPOSE_PATH_SEPARATOR").unwrap_or_else(|| ":".to_owned());
        return named.split(separator.as_str()).map(|path| dir.join(path)).collect();
    }
    let first = |names: [&str; 4]| names.map(|name| dir.join(name)).into_iter().find(|path| path.is_file());
    first(NAMES).into_iter().chain(first(OVERRIDES)).collect()
}

/// Examples of a stack's variables, for people; their values are no secrets, or only stand for them.
const EXAMPLES: [&str; 5] = [".env.example", ".env.sample", ".env.template", ".env.dist", "env.example"];

impl Project {
    /// What an edit of the stack's own files needs: the compose files beneath its directory but for those that hold a
    /// secret, since a plan carries whole files, and examples of variables without their secrets.
    pub(super) fn stack_files(&self, redactor: &Redactor) -> Result<BTreeMap<String, String>> {
        let checkout = Checkout::open(&self.dir)?;
        let read = |path: &str| {
            let content = checkout.read(path).ok().flatten()?;
            String::from_utf8(content.bytes).ok()
        };
        let inside = self.files.iter().filter_map(|file| file.strip_prefix(&self.dir).ok()?.to_str());
        let plain = |text: &String| !redactor.finds(text, evidence::KNOWN_BYTES_MIN);
        let compose = inside.filter_map(|path| Some((path.to_owned(), read(path).filter(plain)?)));
        let examples = EXAMPLES.into_iter().filter_map(|path| {
            let text = read(path).filter(|text| text.len() as u64 <= SECRET_FILE_BYTES_MAX)?;
            Some((path.to_owned(), redactor.redact(&text).into_owned()))
        });
        Ok(compose.chain(examples).collect())
    }
}

/// What is secret in a model: variables and build arguments by name, passwords in URLs, files of `secrets`.
fn model_secrets(model: &Model) -> Redactor {
    let variables = model.services.values().flat_map(|service| {
        let arguments = service.build.iter().flat_map(|build| &build.args);
        service.environment.iter().chain(arguments)
    });
    let named = variables.filter_map(|(name, value)| Some((name.as_str(), value.as_deref()?)));
    let files: Vec<String> = model
        .extra
        .get("secrets")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter_map(|(_, secret)| small_file(Path::new(secret.get("file")?.as_str()?)))
        .collect();
    Redactor::for_environment(named).and(Redactor::new(files.iter().map(String::as_str)))
}

/// Values of a stack's `.env` whose names look secret, for what compose says before there is a model.
fn dotenv_secrets(dir: &Path) -> Redactor {
    let variables = dotenv_variables(&small_file(&dir.join(".env")).unwrap_or_default());
    Redactor::for_environment(variables.iter().map(|(name, value)| (name.as_str(), value.as_str())))
}

fn dotenv_variables(text: &str) -> Vec<(String, String)> {
    let line = |line: &'_ str| -> Option<(String, String)> {
        let (name, value) = line.trim().trim_start_matches("export ").split_once('=')?;
        Some((name.trim().to_owned(), value.trim().trim_matches(['"', '\'']).to_owned()))
    };
    text.lines().filter_map(line).collect()
}

fn small_file(path: &Path) -> Option<String> {
    let meta = std::fs::metadata(path).ok()?;
    (meta.is_file() && meta.len() <= SECRET_FILE_BYTES_MAX).then(|| std::fs::read_to_string(path).ok())?
}

/// Keys whose values are names and paths that planning needs as they are.
const NOT_REDACTED: [&str; 7] =
    ["name", "context", "dockerfile", "image", "source", "target", "container_name"];

/// The model as it may leave the worker: no value of a secret variable, nothing that looks like a secret.
pub(super) fn without_secrets(model: &Model, redactor: &Redactor) -> Result<Model> {
    fn walk(value: &mut Value, name: &str, redactor: &Redactor) {
        match value {
            Value::String(text) if redact::is_secret_name(name) && !text.is_empty() => {
                redact::MARK.clone_into(text);
            }
            Value::String(text) => *text = redactor.redact(text).into_owned(),
            Value::Array(items) => items.iter_mut().for_each(|item| walk(item, "", redactor)),
            Value::Object(fields) => {
                let kept = |key: &str, field: &Value| field.is_string() && NOT_REDACTED.contains(&key);
                for (key, field) in fields.iter_mut().filter(|(key, field)| !kept(key, field)) {
                    walk(field, key, redactor);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
    let mut value = serde_json::to_value(model).while_doing("writing the model")?;
    walk(&mut value, "", redactor);
    Model::from_json(&value.to_string()).while_doing("reading the model without its secrets")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_env_file_that_is_not_there_is_told_with_the_one_that_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let said =
            |name: &str| format!("env file {}/{name} not found: stat: no such file", dir.path().display());
        assert_eq!(near_env_file(&said(".env.prod")), None);
        std::fs::write(dir.path().join(".env.production"), "").expect("written");
        std::fs::write(dir.path().join("compose.yaml"), "").expect("written");
        assert_eq!(near_env_file(&said(".env.prod")).as_deref(), Some(".env.production"));
        assert_eq!(near_env_file(&said("web.conf")), None);
        assert_eq!(near_env_file("services.web must be a mapping"), None);
    }

    #[test]
    fn a_model_leaves_without_its_secrets() {
        let model = Model::from_json(
            r#"{"name": "shop", "services": {"web": {
                "image": "shop-web", "command": ["serve", "--key=s3cr3t-key"],
                "build": {"context": "/srv/s3cr3t-key/web", "args": {"PIP_TOKEN": "abc"}},
                "environment": {"SIGNING_KEY": "s3cr3t-key", "MODE": "live", "NONE": null}}}}"#,
        )
        .expect("a model");
        let safe = without_secrets(&model, &model_secrets(&model)).expect("a model");
        let web = &safe.services["web"];
        assert_eq!(web.environment["SIGNING_KEY"].as_deref(), Some("[redacted]"));
        assert_eq!(web.environment["MODE"].as_deref(), Some("live"));
        assert_eq!(web.extra["command"], json!(["serve", "--key=[redacted]"]));
        let build = web.build.as_ref().expect("it has a build");
        assert_eq!(
            (build.context.as_str(), build.args["PIP_TOKEN"].as_deref()),
            ("/srv/s3cr3t-key/web", Some("[redacted]"))
        );
    }
}
