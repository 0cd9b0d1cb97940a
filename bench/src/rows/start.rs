//! How long a coordinator takes to serve.

use std::time::Duration;

use anyhow::Result;
use cooper_common::clock;

use super::{Bench, Measured, ms_since};
use crate::{cluster, figures::Figures};

const STARTS: usize = 10;
const STOP: Duration = Duration::from_secs(5);

pub(super) async fn cold(bench: &Bench) -> Result<Measured> {
    let mut samples = Vec::with_capacity(STARTS);
    for _ in 0..STARTS {
        let data = tempfile::Builder::new().prefix("cold-").tempdir_in(&bench.dir)?;
        let begin = clock::since_start();
        let mut spawned = cluster::coordinator(&bench.binary, data.path())?;
        cluster::healthy(&mut spawned.group, spawned.address).await?;
        samples.push(ms_since(begin));
        spawned.group.stop(STOP).await;
    }
    Ok(Measured {
        figures: Figures::samples(samples),
        how: "looked at every millisecond; files of the binary are in the page cache".to_owned(),
    })
}
