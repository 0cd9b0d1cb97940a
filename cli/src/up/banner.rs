//! What `cooper up` says once everything is ready: what runs, where, and what to try.

use std::{
    env, fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use cooper_common::{clock, error::Code};
use cooper_proto::v1::{ListWorkersRequest, Worker};
use serde_json::json;

use super::{Up, preflight, short};
use crate::{
    command::block_on,
    connect::Cluster,
    failure::{Failure, Result},
    output::json,
};

const ASK: Duration = Duration::from_secs(3);

/// Our own worker, once it is registered and ready.
pub(super) fn registered(up: &Up<'_>) -> Option<Worker> {
    let cluster = Cluster::local(up.config, &up.url).ok()?;
    let ask = async {
        let client = cluster.connect().await?;
        Ok(client.admin().list_workers(ListWorkersRequest {}).await?.into_inner().workers)
    };
    let asked = async {
        tokio::time::timeout(ASK, ask)
            .await
            .unwrap_or_else(|_| Err(Failure::new(Code::TimedOut, "the coordinator is slow to answer")))
    };
    let workers = block_on(asked).ok()?;
    let id = match up.config.text("worker_id") {
        Some(id) => id,
        None => fs::read_to_string(up.data.dir.join("worker/worker_id")).ok()?.trim().to_owned(),
    };
    workers.into_iter().find(|worker| worker.id == id && worker.state == "ready")
}

fn offers_compose(worker: &Worker) -> bool {
    worker.capabilities.iter().any(|name| name == "compose")
}

pub(super) fn show(up: &Up<'_>, worker: Option<&Worker>) -> Result<()> {
    let python = up.python.as_ref().map_or("", |python| python.version.as_str());
    let compose = worker.map(offers_compose);
    let why_not = match compose {
        Some(false) => why_no_compose(up),
        _ => String::new(),
    };
    if up.context.out.json {
        return up.context.out.document(&json!({
            "state": "ready",
            "version": cooper_common::VERSION,
            "url": up.url,
            "data": up.data.dir.to_string_lossy(),
            "pid": std::process::id(),
            "python_version": python,
            "compose": compose,
            "compose_unavailable": why_not,
            "worker": worker.map(json::worker),
        }));
    }
    let mut lines = vec![format!("cooper {} is up at {}", cooper_common::VERSION, up.url)];
    lines.push(format!("  data      {} (logs in {})", short(&up.data.dir), short(&up.data.logs())));
    match worker {
        None => lines.push("  worker    none (--no-worker)".to_owned()),
        Some(worker) => {
            lines.push(format!("  worker    {}, room for {} sessions", worker.id, worker.sessions_max));
            let pythons = match worker.python_versions.is_empty() {
                true => python.to_owned(),
                false => worker.python_versions.join(", "),
            };
            lines.push(format!("  python    {pythons}"));
            lines.push(match (compose, worker.stacks.is_empty()) {
                (Some(true), true) => {
                    "  compose   yes; name a stack with `cooper repair SERVICE --stack DIR`".to_owned()
                }
                (Some(true), false) => format!("  compose   yes; stacks: {}", worker.stacks.join(" ")),
                _ => format!("  compose   no: {why_not}"),
            });
        }
    }
    lines.push(String::new());
    lines.extend(to_try(up, worker, compose == Some(true)));
    lines.push("Ctrl-C stops everything.".to_owned());
    up.context.out.line(&lines.join("\n"))
}

fn to_try(up: &Up<'_>, worker: Option<&Worker>, compose: bool) -> Vec<String> {
    let cooper = as_typed();
    let mut lines = vec!["Try in another terminal:".to_owned()];
    if up.data.dir != Path::new(&env::current_dir().unwrap_or_default()).join(".cooper") {
        lines.push(format!("  export COOPER_DATA={}", up.data.dir.display()));
    }
    match worker {
        None => lines.push(format!("  {cooper} worker --coordinator-addr {}", up.url)),
        Some(_) => {
            lines.push(format!("  {cooper} session create --name demo"));
            lines.push(format!("  {cooper} exec demo -c 'x = 20 + 1; x * 2'"));
        }
    }
    lines.push(match worker.filter(|_| compose).map(|worker| worker.stacks.first()) {
        Some(Some(_)) => format!("  {cooper} repair SERVICE"),
        Some(None) => format!("  {cooper} repair SERVICE --stack DIR"),
        None => format!("  {cooper} status"),
    });
    lines
}

/// The name that the user called this binary by works in another terminal too, as long as it is in PATH.
fn as_typed() -> String {
    if preflight::in_path("cooper") {
        return "cooper".to_owned();
    }
    env::current_exe().map_or_else(|_| "cooper".to_owned(), |path| short(&path))
}

fn why_no_compose(up: &Up<'_>) -> String {
    obstacle(up).unwrap_or_else(|| {
        format!("the worker could not use Docker; see {}", short(&up.data.logs().join("worker.log")))
    })
}

/// What keeps Docker Compose from working here.
fn obstacle(up: &Up<'_>) -> Option<String> {
    let with_hint = |what: &str| Some(format!("{what}; `scripts/ensure-engine.sh` can set one up"));
    if up.config.text("compose").as_deref() == Some("off") {
        return Some("switched off".to_owned());
    }
    if !preflight::in_path("docker") {
        return with_hint("there is no docker here");
    }
    if !succeeds(&["compose", "version"]) {
        return with_hint("docker has no Compose v2 plugin");
    }
    if !succeeds(&["version", "--format", "{{.Server.Version}}"]) {
        return with_hint("the Docker engine does not answer");
    }
    None
}

/// Whether a docker command succeeds soon.
fn succeeds(args: &[&str]) -> bool {
    let spawned = Command::new("docker")
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = spawned else { return false };
    let deadline = clock::mono_ms() + ASK.as_millis() as u64;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return status.success(),
            Ok(None) if clock::mono_ms() < deadline => std::thread::sleep(Duration::from_millis(10)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return false;
            }
        }
    }
}
