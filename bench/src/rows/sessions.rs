//! Rows about sessions: the first result, the round trip, many at once, memory.

use std::time::Duration;

use anyhow::{Result, ensure};
use cooper_common::clock;
use futures::future::try_join_all;

use super::{Measured, ms_since};
use crate::{client::Client, cluster::Cooper, figures::Figures, process};

const CREATES: usize = 50;
/// Fewer than a worker keeps in advance.
const IN_A_ROW: usize = 10;
const FILL: Duration = Duration::from_millis(500);
const ROUND_TRIPS: usize = 2000;
const FRESH: usize = 200;
const SCIENCE: usize = 20;
const WARM_UP: usize = 100;
const AT_ONCE: usize = 100;
const ROUNDS: usize = 3;
const IDLE: usize = 200;
/// After the first result, so that what a session does late is over.
const SETTLE: Duration = Duration::from_millis(1500);

pub(super) async fn create_first_result(mut client: Client) -> Result<Measured> {
    let mut samples = Vec::with_capacity(CREATES);
    for n in 0..CREATES {
        if n % IN_A_ROW == 0 {
            // A worker fills its pool while nobody creates.
            tokio::time::sleep(FILL).await;
        }
        let begin = clock::since_start();
        let session = client.create_session().await?;
        let value = client.execute(&session.id, "1+1").await?;
        samples.push(ms_since(begin));
        ensure!(value == "2", "1+1 came to {value:?}");
        client.destroy_session(session.id).await?;
    }
    Ok(Measured {
        figures: Figures::samples(samples),
        how: format!("{IN_A_ROW} one after the other, then a pause; destroyed in between, not counted"),
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

pub(super) async fn fresh_round_trip(mut client: Client) -> Result<Measured> {
    let session = client.create_session().await?.id;
    client.execute(&session, "x = 0").await?;
    let mut samples = Vec::with_capacity(FRESH);
    for _ in 0..FRESH {
        let begin = clock::since_start();
        let value = client.execute_fresh(&session, "x += 1\nx").await?;
        samples.push(ms_since(begin));
        ensure!(value == "1", "a fresh execution left a trace: {value:?}");
    }
    client.destroy_session(session).await?;
    Ok(Measured {
        figures: Figures::samples(samples),
        how: "`x += 1; x` in a fork of the session's interpreter, one after the other".to_owned(),
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
    let sessions = create(&client, IDLE).await?;
    for session in &sessions {
        client.execute(session, "1+1").await?;
    }
    tokio::time::sleep(SETTLE).await;
    // Interpreters work in their workspace; above each is its subreaper. Those that wait in the pool are nobody's yet.
    let at_work = |pid: &u32| {
        let place = process::working_directory(*pid);
        place.components().any(|part| part.as_os_str().to_string_lossy().starts_with("ses_"))
    };
    let mut theirs: Vec<u32> = cooper.worker_processes().into_iter().filter(at_work).collect();
    ensure!(theirs.len() >= IDLE, "sessions without processes");
    theirs.extend(theirs.clone().into_iter().filter_map(process::parent));
    let mut bytes = 0;
    for pid in &theirs {
        bytes += process::private_bytes(*pid)?;
    }
    destroy(&mut client, sessions).await?;
    let mib = bytes as f64 / f64::from(1 << 20);
    Ok(Measured {
        figures: Figures::one(mib / IDLE as f64, IDLE),
        how: format!("mean of {IDLE} that ran `1+1`; {} processes are theirs", theirs.len()),
    })
}

/// DestroySession answers when the worker has said that nothing is left.
pub(super) async fn destroy_to_clean(mut client: Client, cooper: &Cooper) -> Result<Measured> {
    let mut samples = Vec::with_capacity(CREATES);
    for _ in 0..CREATES {
        let session = client.create_session().await?.id;
        client.execute(&session, "open('file', 'w').write('x' * 100_000)").await?;
        let begin = clock::since_start();
        client.destroy_session(session.clone()).await?;
        samples.push(ms_since(begin));
        let left = cooper.worker_processes().into_iter().filter(|pid| {
            process::working_directory(*pid).components().any(|part| *part.as_os_str() == *session)
        });
        ensure!(left.count() == 0, "a process of a destroyed session is left");
    }
    Ok(Measured {
        figures: Figures::samples(samples),
        how: "an interpreter that ran and a file of 100 kB, one after the other".to_owned(),
    })
}

/// In a worker that has them in its zygote.
pub(super) async fn import_science(mut client: Client) -> Result<Measured> {
    let mut samples = Vec::with_capacity(SCIENCE);
    for _ in 0..SCIENCE {
        let session = client.create_session().await?.id;
        let begin = clock::since_start();
        let value = client.execute(&session, "import numpy, pandas\nint(numpy.arange(4).sum())").await?;
        samples.push(ms_since(begin));
        ensure!(value == "6", "0 + 1 + 2 + 3 came to {value:?}");
        client.destroy_session(session).await?;
    }
    Ok(Measured {
        figures: Figures::samples(samples),
        how: "the first execution of a new session, round trip included".to_owned(),
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
