//! How each row of `budgets.toml` is measured on Cooper.

mod checkpoints;
mod fleet;
mod packages;
mod repairs;
mod sessions;
mod start;
mod tasks;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use cooper_common::clock;
use tokio::sync::OnceCell;

use self::fleet::{Figure, Fleet};
use crate::{client::Client, cluster::Cooper, figures::Figures};

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
    thousand: OnceCell<Fleet>,
    ten_thousand: OnceCell<Fleet>,
}

impl Bench {
    pub async fn start(binary: &Path, dir: &Path) -> Result<Self> {
        let cooper = Cooper::start(binary, dir, &[]).await?;
        Ok(Self {
            cooper,
            binary: binary.to_owned(),
            dir: dir.to_owned(),
            thousand: OnceCell::new(),
            ten_thousand: OnceCell::new(),
        })
    }

    pub async fn measure(&self, name: &str) -> Result<Measured> {
        let client = self.cooper.client.clone();
        match name {
            "session_create_first_result" => sessions::create_first_result(client).await,
            "session_create_pool_miss" => {
                self.apart(&["--pool-low", "0", "--pool-high", "0"], sessions::create_first_result).await
            }
            "session_destroy" => sessions::destroy_to_clean(client, &self.cooper).await,
            "import_science" => {
                let layer = self.dir.join("layer");
                ensure!(layer.join("numpy").exists(), "{} is made when peers are measured", layer.display());
                let layer = layer.to_string_lossy().into_owned();
                self.apart(&["--preload", "science", "--layer", &layer], sessions::import_science).await
            }
            "install_cold" => packages::cold(self).await,
            "install_warm" => packages::warm(client).await,
            "checkpoint_save" => checkpoints::save(client).await,
            "checkpoint_restore" => checkpoints::restore(client).await,
            "exec_round_trip" => sessions::exec_round_trip(client).await,
            "exec_fresh_round_trip" => sessions::fresh_round_trip(client).await,
            "noop_tasks_batched" => tasks::batched(client).await,
            "noop_unary" => tasks::unary(client).await,
            "noop_round_trip_1" => tasks::round_trip(client, 1).await,
            "noop_round_trip_16" => tasks::round_trip(client, 16).await,
            "noop_round_trip_64" => tasks::round_trip(client, 64).await,
            "workers_1000_attach" => Ok(self.thousand().await?.measured(Figure::Attach)),
            "workers_1000_memory" => Ok(self.thousand().await?.measured(Figure::Memory)),
            "workers_1000_heartbeats" => Ok(self.thousand().await?.measured(Figure::Heartbeats)),
            "workers_10000_attach" => Ok(self.ten_thousand().await?.measured(Figure::Attach)),
            "workers_10000_memory" => Ok(self.ten_thousand().await?.measured(Figure::Memory)),
            "workers_10000_heartbeats" => Ok(self.ten_thousand().await?.measured(Figure::Heartbeats)),
            "workers_10000_recovery" => Ok(self.ten_thousand().await?.measured(Figure::Recovery)),
            "repair_overhead" => repairs::overhead(self).await,
            "noop_latency_100_per_s" => tasks::latency_at_rate(client).await,
            "sessions_100_at_once" => sessions::hundred_at_once(client).await,
            "coordinator_cold_start" => start::cold(self).await,
            "idle_session_private_memory" => sessions::private_memory(client, &self.cooper).await,
            _ => bail!("nothing here measures it"),
        }
    }

    /// Measures on a cluster of its own, whose worker is told something else.
    async fn apart<F: Future<Output = Result<Measured>>>(
        &self,
        worker: &[&str],
        measure: impl FnOnce(Client) -> F,
    ) -> Result<Measured> {
        let cooper = Cooper::start(&self.binary, &self.dir, worker).await?;
        let measured = measure(cooper.client.clone()).await.with_context(|| cooper.log());
        cooper.stop().await;
        measured
    }

    async fn thousand(&self) -> Result<&Fleet> {
        self.thousand.get_or_try_init(|| Fleet::measure(self, 1_000)).await
    }

    async fn ten_thousand(&self) -> Result<&Fleet> {
        self.ten_thousand.get_or_try_init(|| Fleet::measure(self, 10_000)).await
    }
}

fn ms_since(begin: Duration) -> f64 {
    (clock::since_start() - begin).as_secs_f64() * 1e3
}
