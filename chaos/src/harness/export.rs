//! The event log, from its first event to its last, as one file.

use std::{
    fs::File,
    io::{BufWriter, Write},
    net::SocketAddr,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use cooper_proto::v1::{CreateTokenRequest, WatchEventsRequest, admin_client::AdminClient};
use serde_json::{Value, json};

use crate::client::connect;

const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(300);

/// Answers how many there were. Asked again when it breaks off: failpoints that nothing passed yet are still armed.
pub async fn events(address: SocketAddr, token: &str, path: &Path) -> Result<u64> {
    let asked_again = async {
        loop {
            match export(address, token, path).await {
                Ok(count) => return count,
                Err(error) => eprintln!("chaos: the event log broke off, asking again: {error:#}"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::time::timeout(PATIENCE, asked_again).await.context("the event log did not come to its end")
}

/// The last event is of a token that is made for that.
async fn export(address: SocketAddr, token: &str, path: &Path) -> Result<u64> {
    let mut admin = AdminClient::new(connect(address, token)?);
    let last =
        CreateTokenRequest { scope: "client".into(), name: "end-of-chaos".into(), ..Default::default() };
    let last = admin.create_token(last).await.context("a last event")?.into_inner();
    let last = last.token.context("a token")?.id;
    let mut file = BufWriter::new(File::create(path)?);
    let mut count = 0;
    let mut events =
        admin.watch_events(WatchEventsRequest { from_seq: 1, until_end: false }).await?.into_inner();
    while let Some(event) = events.message().await? {
        let body: Value = serde_json::from_str(&event.body).unwrap_or_default();
        let line = json!({"seq": event.seq, "kind": event.kind, "subject": event.subject, "body": body});
        writeln!(file, "{line}")?;
        count += 1;
        if event.subject == last {
            file.flush()?;
            return Ok(count);
        }
    }
    bail!("it ended")
}
