//! Cooper as it is measured: a coordinator and a worker of the binary beside this one, on a data directory of their own.

use std::{
    fs::File,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use cooper_common::{clock, token::Secret};
use serde::Serialize;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
};

use crate::{
    client::Client,
    process::{self, Group},
};

/// Room for the row of 200 idle sessions.
const MAX_SESSIONS: &str = "256";
const START: Duration = Duration::from_secs(30);
const STOP: Duration = Duration::from_secs(6);
const LOOK: Duration = Duration::from_millis(1);

pub struct Cooper {
    pub client: Client,
    coordinator: Group,
    worker: Group,
    dir: TempDir,
}

/// Processor time, user and system.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Cpu {
    pub coordinator_ms: u64,
    /// Host and link.
    pub worker_ms: u64,
}

impl Cooper {
    /// Starts both below `base` and waits until the worker is ready. `more` are arguments of the worker, which has nothing
    /// to do with Docker unless they name stacks.
    pub async fn start(binary: &Path, base: &Path, more: &[&str]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("data-").tempdir_in(base)?;
        // The link gives up its rights and has to find its way.
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let mut coordinator = coordinator(binary, dir.path())?;
        let url = format!("http://{}", coordinator.address);
        healthy(&mut coordinator.group, coordinator.address).await.with_context(|| log(dir.path()))?;
        let token = Secret::read(&dir.path().join("admin.token")).context("admin.token")?;
        let mut worker = role(binary, "worker", dir.path());
        let compose = if more.contains(&"--stacks") { "auto" } else { "off" };
        worker
            .args(["--coordinator-addr", &url, "--max-sessions", MAX_SESSIONS, "--compose", compose])
            .args(more)
            .stderr(log_file(dir.path(), "worker.log")?)
            .env_remove("COOPER_JOIN_TOKEN")
            .env_remove("GRPC_PORT");
        let worker = Group::start(&mut worker)?;
        let client = Client::connect(&url, &token).await?;
        let mut cooper = Self { client, coordinator: coordinator.group, worker, dir };
        cooper.registered().await.with_context(|| log(cooper.dir.path()))?;
        Ok(cooper)
    }

    async fn registered(&mut self) -> Result<()> {
        let deadline = clock::since_start() + START;
        while clock::since_start() < deadline {
            if let Some(status) = self.worker.ended() {
                bail!("the worker ended early: {status}");
            }
            if self.client.worker_is_ready().await? {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("no worker was ready within {} s", START.as_secs())
    }

    pub fn cpu(&self) -> Cpu {
        let host = self.worker.pid();
        let link = process::descendants(host)
            .into_iter()
            .filter(|pid| process::command_line(*pid).contains(" worker-link"))
            .map(process::cpu_ms)
            .sum::<u64>();
        Cpu {
            coordinator_ms: process::cpu_ms(self.coordinator.pid()),
            worker_ms: process::cpu_ms(host) + link,
        }
    }

    /// Every process below the worker's host.
    pub fn worker_processes(&self) -> Vec<u32> {
        process::descendants(self.worker.pid())
    }

    /// The last lines of both logs.
    pub fn log(&self) -> String {
        log(self.dir.path())
    }

    pub async fn stop(self) {
        self.worker.stop(STOP).await;
        self.coordinator.stop(STOP).await;
    }
}

/// A coordinator that was just spawned.
pub struct Spawned {
    pub group: Group,
    pub address: SocketAddr,
}

pub fn coordinator(binary: &Path, data: &Path) -> Result<Spawned> {
    coordinator_at(binary, data, free_address()?)
}

pub fn coordinator_at(binary: &Path, data: &Path, address: SocketAddr) -> Result<Spawned> {
    let mut command = role(binary, "coordinator", data);
    command.args(["--listen", &address.to_string()]).stderr(log_file(data, "coordinator.log")?);
    Ok(Spawned { group: Group::start(&mut command)?, address })
}

/// Until `/health` answers 200.
pub async fn healthy(coordinator: &mut Group, address: SocketAddr) -> Result<()> {
    let deadline = clock::since_start() + START;
    while clock::since_start() < deadline {
        if let Some(status) = coordinator.ended() {
            bail!("the coordinator ended early: {status}");
        }
        if answers(address).await.unwrap_or(false) {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
    bail!("no coordinator answered on {address} within {} s", START.as_secs())
}

async fn answers(address: SocketAddr) -> Result<bool> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET /health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer.starts_with(b"HTTP/1.1 200"))
}

/// `cooper ROLE` on a data directory, which ends when we do.
fn role(binary: &Path, name: &str, data: &Path) -> Command {
    let mut command = Command::new(binary);
    command.arg(name).arg("--data").arg(data).args(["--supervisor", &std::process::id().to_string()]);
    command.args(["--log-level", "warn"]).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

fn log_file(data: &Path, name: &str) -> Result<File> {
    Ok(File::options().create(true).append(true).open(data.join(name))?)
}

fn log(data: &Path) -> String {
    let mut text = String::new();
    for name in ["coordinator.log", "worker.log"] {
        let log = std::fs::read_to_string(data.join(name)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(8).collect();
        for line in lines.into_iter().rev() {
            text += &format!("\n  {name}: {line}");
        }
    }
    text
}

/// An address nobody listens on; who takes it next is up to luck, which is good enough on a loopback interface.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// The binary under test: built with the profile of this one, beside it.
pub fn binary() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let dir = own.parent().context("this program is nowhere")?;
    if let Some(cargo) = std::env::var_os("CARGO") {
        let mut build = std::process::Command::new(cargo);
        build.args(["build", "--locked", "--bin", "cooper"]);
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        if !build.status()?.success() {
            bail!("cooper cannot be built");
        }
    }
    Ok(dir.join("cooper"))
}
