//! A TCP proxy that can be told to misbehave.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Result;
use rand::Rng;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

use super::schedule::Trouble;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const DELAY_MS: std::ops::Range<u64> = 20..250;
/// With these pauses about 100 KiB/s.
const SLOW_BYTES: usize = 2_048;
const SLOW_PAUSE: Duration = Duration::from_millis(20);

/// How the proxy is, and how often it was told to cut.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Mood {
    trouble: Option<Trouble>,
    cuts: u64,
}

pub struct Proxy {
    pub address: SocketAddr,
    mood: Arc<watch::Sender<Mood>>,
}

impl Proxy {
    /// Listens on a free port of `ip` and connects whoever comes to `target`.
    pub async fn start(ip: std::net::IpAddr, target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((ip, 0)).await?;
        let address = listener.local_addr()?;
        let mood = Arc::new(watch::Sender::new(Mood::default()));
        let told = mood.subscribe();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(connection(client, target, told.clone()));
            }
        });
        Ok(Self { address, mood })
    }

    pub fn set(&self, trouble: Option<Trouble>) {
        self.mood.send_modify(|mood| match trouble {
            Some(Trouble::Cut) => mood.cuts += 1,
            other => mood.trouble = other,
        });
    }
}

async fn connection(client: TcpStream, target: SocketAddr, mut told: watch::Receiver<Mood>) {
    let Ok(Ok(server)) = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(target)).await else {
        return;
    };
    for stream in [&client, &server] {
        let _ = stream.set_nodelay(true);
    }
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let cuts = told.borrow_and_update().cuts;
    let pumps = async {
        tokio::join!(pump(from_client, to_server, told.clone()), pump(from_server, to_client, told.clone()))
    };
    let mut watched = told.clone();
    tokio::select! {
        _ = pumps => {}
        _ = watched.wait_for(|mood| mood.cuts > cuts) => {}
    }
}

/// Moves bytes one way, as the mood allows. Once something was swallowed the connection never carries anything again.
async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, told: watch::Receiver<Mood>) {
    let mut buffer = vec![0; 32 << 10];
    let mut dead = false;
    loop {
        let slow = told.borrow().trouble == Some(Trouble::Slow);
        let room = if slow { SLOW_BYTES } else { buffer.len() };
        let n = match from.read(&mut buffer[..room]).await {
            Ok(n @ 1..) => n,
            // Half-open is exactly that the end of one side is not seen by the other.
            _ if dead => return to.forget(),
            _ => return drop(to.shutdown().await),
        };
        let trouble = told.borrow().trouble;
        match trouble {
            Some(Trouble::Swallow) => dead = true,
            Some(Trouble::Slow) => tokio::time::sleep(SLOW_PAUSE).await,
            Some(Trouble::Delay) => {
                let ms = rand::rng().random_range(DELAY_MS);
                tokio::time::sleep(Duration::from_millis(ms)).await;
            }
            Some(Trouble::Cut) | None => {}
        }
        if !dead && to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}
