//! How each row of `budgets.toml` is measured on Cooper.

mod sessions;
mod start;
mod tasks;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Result, bail};
use cooper_common::clock;

use crate::{cluster::Cooper, figures::Figures};

/// What a row came to, and how.
pub struct Measured {
    pub figures: Figures,
    /// For readers of the table: counts, concurrency, what was left out.
    pub how: String,
}

/// What rows are measured on.
pub struct Bench {
    pub cooper: Cooper,
    pub binary: PathBuf,
    /// Everything temporary is below, on the disk that is measured.
    pub dir: PathBuf,
}

impl Bench {
    pub async fn start(binary: &Path, dir: &Path) -> Result<Self> {
        let cooper = Cooper::start(binary, dir).await?;
        Ok(Self { cooper, binary: binary.to_owned(), dir: dir.to_owned() })
    }

    pub async fn measure(&self, name: &str) -> Result<Measured> {
        let client = self.cooper.client.clone();
        match name {
            "session_create_first_result" => sessions::create_first_result(client).await,
            "exec_round_trip" => sessions::exec_round_trip(client).await,
            "noop_tasks_batched" => tasks::batched(client).await,
            "noop_unary" => tasks::unary(client).await,
            "noop_latency_100_per_s" => tasks::latency_at_rate(client).await,
            "sessions_100_at_once" => sessions::hundred_at_once(client).await,
            "coordinator_cold_start" => start::cold(self).await,
            "idle_session_private_memory" => sessions::private_memory(client, &self.cooper).await,
            _ => bail!("nothing here measures it"),
        }
    }
}

fn ms_since(begin: Duration) -> f64 {
    (clock::since_start() - begin).as_secs_f64() * 1e3
}
