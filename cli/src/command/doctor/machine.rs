//! This machine: what sessions, repairs and a coordinator need of it, beside what confines sessions.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::Stdio,
    time::Duration,
};

use cooper_common::limits;
use cooper_worker::confine::facilities::Facilities;
use tokio::process::Command;

use super::finding::Finding;
use crate::command::health;

/// An engine that does not answer within this is one that does not answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the kernel gives to confine sessions with.
pub fn kernel(has: &Facilities) -> [Finding; 2] {
    let landlock = match has.landlock {
        0 => {
            Finding::bad("landlock", "none", "Linux 5.13 or newer with `landlock` among its security modules")
        }
        abi => Finding::good("landlock", format!("ABI {abi}")),
    };
    let controllers: Vec<_> =
        [(has.cgroup.memory, "memory"), (has.cgroup.pids, "pids"), (has.cgroup.cpu, "cpu")]
            .into_iter()
            .filter(|(has, _)| *has)
            .map(|(_, name)| name)
            .collect();
    let cgroups = match controllers.is_empty() {
        true => Finding::bad(
            "cgroups",
            "none that may be written",
            "docs/isolation.md says how a worker is given some",
        ),
        false => Finding::good("cgroups", controllers.join(", ")),
    };
    [landlock, cgroups]
}

/// Docker and Compose: for repairs only.
pub async fn engine() -> [Finding; 2] {
    let install = "only repairs need it; scripts/ensure-engine.sh sets one up on Debian 12";
    let docker = match said("docker", &["version", "--format", "{{.Server.Version}}"]).await {
        Ok(version) => Finding::good("docker", version),
        Err(why) => Finding::bad("docker", why, install),
    };
    let compose = match said("docker", &["compose", "version", "--short"]).await {
        Ok(version) if version.trim_start_matches('v').starts_with("1.") => {
            Finding::bad("compose", version, "repairs need Compose v2")
        }
        Ok(version) => Finding::good("compose", version),
        Err(why) => Finding::bad("compose", why, "repairs need Compose v2, a plugin of the Docker CLI"),
    };
    [docker, compose]
}

/// First line of what a program says, or of what it complains about.
async fn said(program: &str, args: &[&str]) -> Result<String, String> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    let line =
        |bytes: &[u8]| String::from_utf8_lossy(bytes).lines().next().unwrap_or_default().trim().to_owned();
    match tokio::time::timeout(PATIENCE, command.output()).await {
        Err(_) => Err(format!("`{program}` does not answer")),
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => Err(format!("there is no `{program}`")),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(done)) if done.status.success() => Ok(line(&done.stdout)),
        Ok(Ok(done)) => Err(line(&done.stderr)),
    }
}

/// Where a coordinator would listen.
pub fn port(listen: SocketAddr) -> Finding {
    match TcpListener::bind(listen) {
        Ok(_) => Finding::good("port", format!("{listen} is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let cooper =
                ["http", "https"].iter().any(|scheme| health::is_cooper(&format!("{scheme}://{listen}")));
            match cooper {
                true => Finding::good("port", format!("a coordinator answers at {listen}")),
                false => Finding::bad(
                    "port",
                    format!("something else listens at {listen}"),
                    "choose another with --listen",
                ),
            }
        }
        Err(error) => Finding::bad("port", format!("{listen}: {error}"), "choose another with --listen"),
    }
}

/// The disk that the data directory is on, or would be.
pub fn disk(data: &Path) -> Finding {
    let there = data.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    let least = limits::store::FREE_MIB_MIN;
    match rustix::fs::statvfs(there) {
        Ok(disk) => {
            let free = disk.f_bavail.saturating_mul(disk.f_frsize) >> 20;
            let what = format!("{free} MiB free at {}", there.display());
            match free < 4 * least {
                true => {
                    Finding::bad("disk", what, format!("below {least} MiB nothing new is taken: make room"))
                }
                false => Finding::good("disk", what),
            }
        }
        Err(error) => {
            Finding::bad("disk", format!("{}: {error}", there.display()), "name another with --data")
        }
    }
}
