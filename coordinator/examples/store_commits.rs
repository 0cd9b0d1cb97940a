//! How many commits a second the store takes, beside what the disk itself can sync.
//!
//! `cargo run --release -p cooper-coordinator --example store_commits [DIRECTORY]`

use std::{fs::File, io::Write, os::unix::fs::FileExt, path::PathBuf, sync::Arc, time::Duration};

use cooper_common::clock;
use cooper_coordinator::{
    bus::Bus,
    store::{Durability, Store, sqlite::Sqlite},
};
use cooper_core::change::{Aggregate, Change, InlineOutput, NewEvent, Row};

const RUN_FOR: Duration = Duration::from_secs(3);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let base = std::env::args().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let directory = base.join(format!("cooper-store-commits-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    println!("fdatasync of 4 KiB over old bytes  {:>9.3} ms", sync_ms(&directory)?);

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    println!("{:<22}{:>10}{:>14}{:>12}{:>12}", "a task's life", "in flight", "commits/s", "p50 ms", "p99 ms");
    for durability in [Durability::Full, Durability::Relaxed] {
        for in_flight in [1, 16, 256, 1024] {
            let store = Sqlite::open(&directory.join(format!("{durability:?}-{in_flight}")), Bus::default())?;
            let mut took = runtime.block_on(load(Arc::new(store), durability, in_flight));
            took.sort_unstable();
            let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
            let rate = took.len() as f64 / RUN_FOR.as_secs_f64();
            println!(
                "{:<22}{in_flight:>10}{rate:>14.0}{:>12.3}{:>12.3}",
                format!("{durability:?}"),
                at(0.5),
                at(0.99)
            );
        }
    }
    std::fs::remove_dir_all(&directory)?;
    Ok(())
}

/// Tasks, each inserted leased and then ended with a result and an inline output: two commits with an event each.
async fn load(store: Arc<Sqlite>, durability: Durability, in_flight: u64) -> Vec<Duration> {
    let end = clock::since_start() + RUN_FOR;
    let clients = (0..in_flight).map(|client| {
        let store = Arc::clone(&store);
        async move {
            let mut took = Vec::new();
            for n in 0.. {
                let id = format!("tsk_{:013}{client:013}", n);
                for expected in [0, 1] {
                    let before = clock::since_start();
                    if before > end {
                        return took;
                    }
                    if let Err(cause) = store.commit_wait(vec![change(&id, expected)], durability).await {
                        panic!("the store refused: {cause}");
                    }
                    took.push(clock::since_start() - before);
                }
            }
            took
        }
    });
    let took = futures::future::join_all(clients).await.concat();
    if let Err(cause) = store.close().await {
        eprintln!("close: {cause}");
    }
    took
}

fn change(id: &str, expected: u64) -> Change {
    let ended = expected > 0;
    let kind = if ended { "task.succeeded" } else { "task.assigned" };
    Change {
        aggregate: Aggregate::Task,
        id: id.into(),
        expected,
        row: Row {
            tenant: "default".into(),
            state: kind[5..].into(),
            ended,
            parent: "ses_00000000000000000000000001".into(),
            created_ms: 1_700_000_000_000,
            updated_ms: 1_700_000_000_001,
            body: format!(
                r#"{{"kind":"python","worker":"wrk_1","attempt":1,"epoch":3,"pad":"{}"}}"#,
                "x".repeat(200)
            ),
            spec: (!ended).then(|| vec![7; 200]),
            result: ended.then(|| vec![9; 100]),
            ..Row::default()
        },
        events: vec![NewEvent { kind: kind.into(), body: r#"{"attempt":1}"#.into() }],
        output: ended.then(|| InlineOutput { stream: 1, bytes: b"2\n".to_vec() }).into_iter().collect(),
    }
}

fn sync_ms(directory: &std::path::Path) -> std::io::Result<f64> {
    let mut file = File::create(directory.join("sync"))?;
    file.write_all(&[0; 1 << 20])?;
    file.sync_all()?;
    let mut took = Vec::new();
    for n in 0..200 {
        file.write_at(&[n as u8; 4096], n * 4096)?;
        let before = clock::since_start();
        file.sync_data()?;
        took.push(clock::since_start() - before);
    }
    took.sort_unstable();
    Ok(took[100].as_secs_f64() * 1e3)
}
