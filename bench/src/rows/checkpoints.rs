//! Rows about checkpoints: a workspace saved, and brought back in another session.

use anyhow::{Result, ensure};
use cooper_common::clock;

use super::{Measured, ms_since};
use crate::{client::Client, figures::Figures};

const SAMPLES: usize = 10;
/// 200 files of 50 kB.
const FILL: &str =
    "import os\nfor n in range(200): open(f'file{n}', 'wb').write(os.urandom(50_000))\n'filled'";
const HOW: &str = "200 files of 50 kB";

pub(super) async fn save(mut client: Client) -> Result<Measured> {
    let session = filled(&mut client).await?;
    let mut samples = Vec::with_capacity(SAMPLES);
    for _ in 0..SAMPLES {
        let begin = clock::since_start();
        let checkpoint = client.checkpoint(&session).await?;
        samples.push(ms_since(begin));
        client.delete_checkpoint(checkpoint).await?;
    }
    client.destroy_session(session).await?;
    Ok(Measured { figures: Figures::samples(samples), how: HOW.to_owned() })
}

pub(super) async fn restore(mut client: Client) -> Result<Measured> {
    let session = filled(&mut client).await?;
    let checkpoint = client.checkpoint(&session).await?;
    let mut samples = Vec::with_capacity(SAMPLES);
    for _ in 0..SAMPLES {
        let begin = clock::since_start();
        let restored = client.restore(&checkpoint).await?;
        let value = client.execute(&restored, "import os; len(os.listdir())").await?;
        samples.push(ms_since(begin));
        // The venv is one more.
        ensure!(value == "201", "{value} files came back");
        client.destroy_session(restored).await?;
    }
    client.delete_checkpoint(checkpoint).await?;
    client.destroy_session(session).await?;
    Ok(Measured {
        figures: Figures::samples(samples),
        how: format!("{HOW}; until the first execution's result"),
    })
}

async fn filled(client: &mut Client) -> Result<String> {
    let session = client.create_session().await?.id;
    let value = client.execute(&session, FILL).await?;
    ensure!(value == "'filled'", "{value}");
    Ok(session)
}
