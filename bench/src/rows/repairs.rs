//! What a repair costs over the compose commands that somebody would type who knew the fix.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Result, ensure};
use cooper_common::clock;
use tokio::process::Command;

use super::{Bench, Measured, ms_since};
use crate::{cluster::Cooper, figures::Figures};

/// Repairs, and as many times the bare commands.
const ROUNDS: usize = 5;
/// The stability window of the stack, which is waited for on purpose.
const STABLE_FOR: Duration = Duration::from_secs(2);
/// The part of the bare commands that does not count as overhead.
const TOLERATED: f64 = 0.05;

const COMPOSE: &str = "\
services:
  web:
    build: ./web
    init: true
    restart: unless-stopped
    healthcheck:
      test: [CMD, test, -e, /tmp/well]
      interval: 1s
      start_period: 10s
    x-cooper: {stable_for: 2s}
";
const DOCKERFILE: &str = "\
FROM python:3.11-slim
WORKDIR /app
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY app.py .
CMD [\"python3\", \"-u\", \"app.py\"]
";
const APP: &str = "import six, time\nopen('/tmp/well', 'w').close()\ntime.sleep(10 ** 6)\n";

/// A stack of its own whose service lacks a module.
struct Stack {
    dir: PathBuf,
}

impl Stack {
    /// `number` keeps the layers of one stack from being another's.
    async fn broken(base: &Path, number: usize) -> Result<Self> {
        let stack = Self { dir: base.join(format!("bench-{}-{number}", std::process::id())) };
        fs::create_dir_all(stack.dir.join("web"))?;
        for (path, text) in [("compose.yaml", COMPOSE), ("web/Dockerfile", DOCKERFILE), ("web/app.py", APP)] {
            fs::write(stack.dir.join(path), text)?;
        }
        stack.require(number, "")?;
        stack.compose(&["up", "-d", "--build"]).await?;
        Ok(stack)
    }

    fn require(&self, number: usize, requirement: &str) -> Result<()> {
        let text = format!("# {} {number}\n{requirement}", std::process::id());
        Ok(fs::write(self.dir.join("web/requirements.txt"), text)?)
    }

    async fn compose(&self, args: &[&str]) -> Result<()> {
        let mut compose = Command::new("docker");
        compose.args(["compose", "--progress", "quiet"]).args(args).current_dir(&self.dir);
        let done = compose.stdin(Stdio::null()).output().await?;
        ensure!(done.status.success(), "docker compose {args:?}: {}", String::from_utf8_lossy(&done.stderr));
        Ok(())
    }

    async fn remove(&self) -> Result<()> {
        self.compose(&["down", "-v", "--rmi", "local", "-t", "0"]).await
    }
}

/// Milliseconds of a repair beyond its stability window and beyond the bare commands and a twentieth.
pub(super) async fn overhead(bench: &Bench) -> Result<Measured> {
    let base = tempfile::Builder::new().prefix("stacks-").tempdir_in(&bench.dir)?;
    let (mut bare, mut samples) = (Vec::with_capacity(ROUNDS), Vec::with_capacity(ROUNDS));
    for round in 0..ROUNDS {
        let stack = Stack::broken(base.path(), 2 * round).await?;
        stack.require(2 * round, "six\n")?;
        let begin = clock::since_start();
        stack.compose(&["build", "web"]).await?;
        stack.compose(&["up", "-d", "--no-deps", "--wait", "web"]).await?;
        bare.push(ms_since(begin));
        stack.remove().await?;
    }
    let bare = Figures::samples(bare).p50();
    for round in 0..ROUNDS {
        let stack = Stack::broken(base.path(), 2 * round + 1).await?;
        let stacks = format!("bench={}", stack.dir.display());
        let cooper = Cooper::start(&bench.binary, &bench.dir, &["--stacks", &stacks]).await?;
        let begin = clock::since_start();
        let repaired = cooper.client.clone().repair("bench", "web").await;
        let took = ms_since(begin) - STABLE_FOR.as_secs_f64() * 1e3;
        cooper.stop().await;
        stack.remove().await?;
        repaired?;
        samples.push((took - bare * (1.0 + TOLERATED)).max(0.0));
    }
    Ok(Measured {
        figures: Figures::samples(samples),
        how: format!(
            "bare: {bare:.0} ms for `compose build` and `up --wait` of the files as the repair leaves them"
        ),
    })
}
