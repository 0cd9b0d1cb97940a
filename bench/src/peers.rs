//! The peers: each is measured once a run, by a script of ours (`peers/*.py`) in a virtual environment of its own.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::{net::TcpStream, process::Command, sync::OnceCell};

use crate::{budgets, cluster::free_address, figures::Figures, process::Group};

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/peers");
/// Downloads included.
const PREPARE: Duration = Duration::from_secs(300);
const SCRIPT: Duration = Duration::from_secs(180);

/// Kernel starts, round trips, kernels that idle.
const IPYKERNEL: [&str; 3] = ["10", "500", "4"];
/// Starts, installs from pip's cache, installs without one.
const PYTHON: [&str; 3] = ["10", "5", "3"];
/// Tasks at once, tasks one by one, their rate.
const CELERY: [&str; 3] = ["3000", "300", "100"];

pub struct Peers {
    /// What they need is here.
    dir: PathBuf,
    ipykernel: OnceCell<Result<Ipykernel>>,
    celery: OnceCell<Result<Celery>>,
    python: OnceCell<Result<Python>>,
}

#[derive(Deserialize)]
struct Ipykernel {
    version: String,
    start_to_first_reply_ms: Vec<f64>,
    round_trip_ms: Vec<f64>,
    private_bytes: Vec<f64>,
}

#[derive(Deserialize)]
struct Celery {
    version: String,
    tasks: usize,
    tasks_per_s: f64,
    round_trip_ms: Vec<f64>,
    /// By how many are on their way.
    in_flight_ms: HashMap<String, Vec<f64>>,
}

#[derive(Deserialize)]
struct Python {
    version: String,
    venv_to_first_result_ms: Vec<f64>,
    run_in_venv_ms: Vec<f64>,
    import_science_ms: Vec<f64>,
    install_warm_ms: Vec<f64>,
    install_cold_ms: Vec<f64>,
}

/// What a peer came to in a row.
pub struct Beside {
    pub name: String,
    pub figures: Figures,
}

impl Peers {
    pub async fn prepare(dir: &Path) -> Result<Self> {
        let mut script = Command::new(Path::new(SCRIPTS).join("prepare.sh"));
        let mut running = Group::start(script.arg(dir).stdin(Stdio::null()))?;
        let status = tokio::time::timeout(PREPARE, running.child().wait()).await;
        if !status.context("bench/peers/prepare.sh takes too long")??.success() {
            eprintln!("bench/peers/prepare.sh failed: rows will have no peers");
        }
        Ok(Self {
            dir: dir.to_owned(),
            ipykernel: OnceCell::new(),
            celery: OnceCell::new(),
            python: OnceCell::new(),
        })
    }

    /// The peer's figures for a row, or why there are none.
    pub async fn beside(&self, peer: budgets::Peer, row: &str) -> Result<Beside> {
        match peer {
            budgets::Peer::Ipykernel => {
                let measured = self.ipykernel.get_or_init(|| self.measure_ipykernel()).await;
                let measured = measured.as_ref().map_err(again)?;
                let figures = match row {
                    "session_create_first_result" => measured.start_to_first_reply_ms.clone(),
                    "exec_round_trip" => measured.round_trip_ms.clone(),
                    "idle_session_private_memory" => {
                        measured.private_bytes.iter().map(|bytes| bytes / f64::from(1 << 20)).collect()
                    }
                    _ => bail!("ipykernel has nothing beside {row}"),
                };
                let name = format!("ipykernel {}", measured.version);
                Ok(Beside { name, figures: Figures::samples(figures) })
            }
            budgets::Peer::Python => {
                let measured = self.python.get_or_init(|| self.measure_python()).await;
                let measured = measured.as_ref().map_err(again)?;
                let (what, figures) = match row {
                    "session_create_pool_miss" => ("python -m venv", &measured.venv_to_first_result_ms),
                    "exec_fresh_round_trip" => ("python -c", &measured.run_in_venv_ms),
                    "import_science" => ("python -c", &measured.import_science_ms),
                    "install_warm" => ("pip", &measured.install_warm_ms),
                    "install_cold" => ("pip", &measured.install_cold_ms),
                    _ => bail!("Python has nothing beside {row}"),
                };
                let name = format!("{what}, Python {}", measured.version);
                Ok(Beside { name, figures: Figures::samples(figures.clone()) })
            }
            budgets::Peer::Celery => {
                let measured = self.celery.get_or_init(|| self.measure_celery()).await;
                let measured = measured.as_ref().map_err(again)?;
                let figures = match row {
                    "noop_tasks_batched" | "noop_unary" => Figures::one(measured.tasks_per_s, measured.tasks),
                    "noop_latency_100_per_s" => Figures::samples(measured.round_trip_ms.clone()),
                    row if row.starts_with("noop_round_trip_") => {
                        let width = row.trim_start_matches("noop_round_trip_");
                        let samples = measured.in_flight_ms.get(width);
                        Figures::samples(
                            samples.with_context(|| format!("not measured with {width}"))?.clone(),
                        )
                    }
                    _ => bail!("Celery has nothing beside {row}"),
                };
                Ok(Beside { name: format!("Celery {} + Redis", measured.version), figures })
            }
        }
    }

    async fn measure_ipykernel(&self) -> Result<Ipykernel> {
        let home = self.scratch("ipykernel-")?;
        let mut script = self.script("ipykernel_peer.py", &IPYKERNEL)?;
        script.env("IPYTHONDIR", home.path()).env("JUPYTER_RUNTIME_DIR", home.path());
        output(&mut script).await
    }

    async fn measure_celery(&self) -> Result<Celery> {
        let home = self.scratch("redis-")?;
        let address = free_address()?;
        let _redis = Group::start(
            self.redis()
                .args(["--bind", "127.0.0.1", "--port", &address.port().to_string()])
                .args(["--appendonly", "yes", "--appendfsync", "everysec", "--save", ""])
                .arg("--dir")
                .arg(home.path())
                .stdin(Stdio::null())
                .stdout(Stdio::null()),
        )
        .context("there is no redis-server, and its packages could not be fetched")?;
        for _ in 0..200 {
            if TcpStream::connect(address).await.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        let mut script = self.script("celery_peer.py", &CELERY)?;
        script.env("REDIS_URL", format!("redis://{address}/0"));
        output(&mut script).await
    }

    async fn measure_python(&self) -> Result<Python> {
        let home = self.scratch("python-")?;
        let mut script = self.script("python_peer.py", &PYTHON)?;
        script.arg(home.path()).arg(self.dir.join("layer"));
        output(&mut script).await
    }

    fn redis(&self) -> Command {
        let unpacked = self.dir.join("redis/usr");
        let program = unpacked.join("bin/redis-server");
        if !program.exists() {
            return Command::new("redis-server");
        }
        let mut command = Command::new(program);
        let libraries = unpacked.join("lib").join(format!("{}-linux-gnu", std::env::consts::ARCH));
        command.env("LD_LIBRARY_PATH", libraries);
        command
    }

    fn scratch(&self, prefix: &str) -> Result<tempfile::TempDir> {
        Ok(tempfile::Builder::new().prefix(prefix).tempdir_in(&self.dir)?)
    }

    fn script(&self, name: &str, args: &[&str]) -> Result<Command> {
        let python = self.dir.join("venv/bin/python");
        if !python.exists() {
            bail!("its virtual environment could not be made");
        }
        let mut command = Command::new(python);
        command.arg(name).args(args).current_dir(SCRIPTS).env("PYTHONDONTWRITEBYTECODE", "1");
        Ok(command)
    }
}

/// Errors are told once a row.
fn again(error: &anyhow::Error) -> anyhow::Error {
    anyhow::anyhow!("{error:#}")
}

/// The JSON that a script prints; what it says beside that is shown when it fails.
async fn output<T: DeserializeOwned>(script: &mut Command) -> Result<T> {
    let mut running =
        Group::start(script.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let (stdout, stderr) = (running.child().stdout.take(), running.child().stderr.take());
    let read = futures::future::try_join(all(stdout), all(stderr));
    let (stdout, stderr) =
        tokio::time::timeout(SCRIPT, read).await.context("its script takes too long")??;
    let status = running.child().wait().await?;
    if !status.success() {
        let said = String::from_utf8_lossy(&stderr);
        bail!("its script failed ({status}): {}", said.trim().lines().last().unwrap_or_default());
    }
    serde_json::from_slice(&stdout).context("its script printed something else than its figures")
}

async fn all(pipe: Option<impl tokio::io::AsyncRead + Unpin>) -> Result<Vec<u8>> {
    use tokio::io::AsyncReadExt;
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        pipe.read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}
