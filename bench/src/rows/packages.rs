//! Rows about installs: through the worker's installer into a session's venv.

use anyhow::Result;
use cooper_common::clock;

use super::{Bench, Measured, ms_since};
use crate::{client::Client, cluster::Cooper, figures::Figures};

/// Small, without dependencies, and the same for the peer (`peers/python_peer.py`).
const PACKAGE: &str = "idna==3.10";
const WARM: usize = 10;
const COLD: usize = 3;

/// Into a new session, of a worker that has installed it before.
pub(super) async fn warm(mut client: Client) -> Result<Measured> {
    install(&mut client).await?;
    let mut samples = Vec::with_capacity(WARM);
    for _ in 0..WARM {
        samples.push(install(&mut client).await?);
    }
    Ok(Measured { figures: Figures::samples(samples), how: format!("{PACKAGE}, a new session each time") })
}

/// Of a worker that never installed anything: its installer is there, its cache is empty.
pub(super) async fn cold(bench: &Bench) -> Result<Measured> {
    let mut samples = Vec::with_capacity(COLD);
    for _ in 0..COLD {
        let cooper = Cooper::start(&bench.binary, &bench.dir, &[]).await?;
        let installed = install(&mut cooper.client.clone()).await;
        let log = cooper.log();
        cooper.stop().await;
        samples.push(installed.map_err(|error| anyhow::anyhow!("{error:#}{log}"))?);
    }
    Ok(Measured { figures: Figures::samples(samples), how: format!("{PACKAGE}, a new worker each time") })
}

async fn install(client: &mut Client) -> Result<f64> {
    let session = client.create_session().await?.id;
    let begin = clock::since_start();
    client.install(&session, PACKAGE).await?;
    let took = ms_since(begin);
    client.destroy_session(session).await?;
    Ok(took)
}
