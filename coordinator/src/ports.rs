//! Ports that sessions listen on: who may connect, how many connections there are, and where they go.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use cooper_common::{
    clock,
    error::{Code, Error, Result},
    ids::SessionId,
    limits::ports::{CONNECTIONS_MAX, CONNECTIONS_PER_SESSION_MAX},
};
use cooper_core::worker::PORTS;
use cooper_proto::v1::{self, call::Op};
use tokio::io::DuplexStream;

use crate::{caller::Caller, cluster::Cluster, files::unexpected, fleet::Reply, sessions::holder};

/// A connection on which bytes move keeps its session from idling; it says so this often.
const TOUCH_EVERY_MS: u64 = 1_000;

/// Connections by session.
#[derive(Debug, Default)]
pub struct Open {
    by_session: Mutex<HashMap<SessionId, usize>>,
}

/// One of the connections that a session may have, for as long as it lives.
#[derive(Debug)]
pub struct Place {
    open: Arc<Open>,
    session: SessionId,
}

impl Open {
    fn enter(self: &Arc<Self>, session: SessionId) -> Result<Place> {
        let mut open = self.by_session.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |most: usize, whose: &str| {
            Err(Error::new(Code::Overloaded, format!("{most} connections to ports of {whose} are open"))
                .with_hint("close connections, then try again"))
        };
        if open.values().sum::<usize>() >= CONNECTIONS_MAX {
            return full(CONNECTIONS_MAX, "sessions");
        }
        let count = open.entry(session).or_default();
        if *count >= CONNECTIONS_PER_SESSION_MAX {
            return full(CONNECTIONS_PER_SESSION_MAX, &format!("session {session}"));
        }
        *count += 1;
        Ok(Place { open: self.clone(), session })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.open.by_session.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.session) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.session);
            }
        }
    }
}

/// Connects to a port that a session of the tenant listens on; one that hibernates is woken.
pub async fn connect(
    cluster: &Arc<Cluster>,
    caller: &Caller,
    session: &str,
    port: u32,
) -> Result<(DuplexStream, Place)> {
    if !(1..=u32::from(u16::MAX)).contains(&port) {
        return Err(Error::invalid(format!("{port} is no port: there are 1 to 65535")));
    }
    let (id, worker) = holder(cluster, caller, session).await?;
    supported(cluster, &worker)?;
    let place = cluster.ports.enter(id)?;
    let connection = cluster.fleet.connect(&worker, id, port).await?;
    metrics::counter!("cooper_port_connections_total").increment(1);
    Ok((connection, place))
}

/// What a session of the tenant listens on.
pub async fn list(cluster: &Arc<Cluster>, caller: &Caller, session: &str) -> Result<v1::ListPortsResponse> {
    let (id, worker) = holder(cluster, caller, session).await?;
    supported(cluster, &worker)?;
    let op = Op::ListPorts(v1::ListPortsRequest { session_id: id.to_string() });
    match cluster.fleet.call(&worker, id.to_string(), op).await? {
        Reply::Ports(ports) => Ok(ports),
        _ => Err(unexpected()),
    }
}

fn supported(cluster: &Cluster, worker: &str) -> Result<()> {
    let knows = |core: &cooper_core::cluster::Cluster| {
        core.worker(worker).is_none_or(|worker| worker.body.capabilities.contains(PORTS))
    };
    match cluster.look(knows) {
        true => Ok(()),
        false => Err(Error::new(Code::NotSupported, format!("worker {worker} is older than this request"))),
    }
}

/// Bytes moved on a connection into a session: it does not idle. `last` is when the connection said so before.
pub fn moved(cluster: &Cluster, session: SessionId, last: &AtomicU64) {
    let now = clock::mono_ms();
    if now.saturating_sub(last.load(Ordering::Relaxed)) >= TOUCH_EVERY_MS {
        last.store(now, Ordering::Relaxed);
        cluster.touch(session);
    }
}
