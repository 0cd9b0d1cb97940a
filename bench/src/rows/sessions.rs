//! Rows about sessions: the first result, the round trip, many at once, memory.

use std::{collections::HashSet, time::Duration};

use anyhow::{Result, bail, ensure};
use cooper_common::clock;
use futures::future::try_join_all;

use super::{Measured, ms_since};
use crate::{client::Client, cluster::Cooper, figures::Figures, process};

const CREATES: usize = 50;
const ROUND_TRIPS: usize = 2000;
const WARM_UP: usize = 100;
const AT_ONCE: usize = 100;
const ROUNDS: usize = 3;
const IDLE: usize = 10;
/// After the first result, so that what a session does late is over.
const SETTLE: Duration = Duration::from_millis(1500);

pub(super) async fn create_first_result(mut client: Client) -> Result<Measured> {
    let mut samples = Vec::with_capacity(CREATES);
    for _ in 0..CREATES {
        let begin = clock::since_start();
        let session = client.create_session().await?;
        let value = client.execute(&session.id, "1+1").await?;
        samples.push(ms_since(begin));
        ensure!(value == "2", "1+1 came to {value:?}");
        client.destroy_session(session.id).await?;
    }
    Ok(Measured {
        figures: Figures::samples(samples),
        how: "one after the other; destroyed in between, not counted".to_owned(),
    })
}

pub(super) async fn exec_round_trip(mut client: Client) -> Result<Measured> {
    let session = client.create_session().await?.id;
    client.execute(&session, "x = 0").await?;
    let mut samples = Vec::with_capacity(ROUND_TRIPS);
    for round in 1..=WARM_UP + ROUND_TRIPS {
        let begin = clock::since_start();
        let value = client.execute(&session, "x += 1\nx").await?;
        if round > WARM_UP {
            samples.push(ms_since(begin));
        }
        ensure!(value == round.to_string(), "execution {round} came to {value:?}");
    }
    client.destroy_session(session).await?;
    Ok(Measured {
        figures: Figures::samples(samples),
        how: format!("`x += 1; x`, one after the other in one session, after {WARM_UP} others"),
    })
}

pub(super) async fn hundred_at_once(mut client: Client) -> Result<Measured> {
    let mut samples = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let begin = clock::since_start();
        let sessions = create(&client, AT_ONCE).await?;
        samples.push(ms_since(begin));
        destroy(&mut client, sessions).await?;
    }
    Ok(Measured {
        figures: Figures::samples(samples),
        how: format!("{AT_ONCE} concurrent calls on one connection, {ROUNDS} rounds"),
    })
}

pub(super) async fn private_memory(mut client: Client, cooper: &Cooper) -> Result<Measured> {
    let before: HashSet<u32> = cooper.worker_processes().into_iter().collect();
    let sessions = create(&client, IDLE).await?;
    for session in &sessions {
        client.execute(session, "1+1").await?;
    }
    tokio::time::sleep(SETTLE).await;
    let new: Vec<u32> = cooper.worker_processes().into_iter().filter(|pid| !before.contains(pid)).collect();
    if new.is_empty() {
        bail!("sessions without processes");
    }
    let mut bytes = 0;
    for pid in &new {
        bytes += process::private_bytes(*pid)?;
    }
    destroy(&mut client, sessions).await?;
    let mib = bytes as f64 / f64::from(1 << 20);
    Ok(Measured {
        figures: Figures::one(mib / IDLE as f64, IDLE),
        how: format!("mean of {IDLE} that ran `1+1`; {} processes came with them", new.len()),
    })
}

async fn create(client: &Client, count: usize) -> Result<Vec<String>> {
    try_join_all((0..count).map(|_| {
        let mut client = client.clone();
        async move { Ok(client.create_session().await?.id) }
    }))
    .await
}

async fn destroy(client: &mut Client, sessions: Vec<String>) -> Result<()> {
    try_join_all(sessions.into_iter().map(|session| {
        let mut client = client.clone();
        async move { client.destroy_session(session).await }
    }))
    .await?;
    Ok(())
}
