//! `cooper drain`, `cooper undrain`.

use std::time::Duration;

use cooper_common::error::Code;
use cooper_proto::v1::{DrainWorkerRequest, ListWorkersRequest, UndrainWorkerRequest, Worker};

use crate::{
    args::Drain,
    connect::{Client, Patience},
    context::Context,
    failure::{Failure, Result, is_cut},
    output::json,
    units,
};

/// Between looks at a worker that is being emptied.
const LOOK: Duration = Duration::from_millis(500);

pub async fn drain(context: &Context, args: Drain) -> Result<u8> {
    let cluster = context.cluster()?;
    let mut client = cluster.connect().await?;
    let request = DrainWorkerRequest {
        worker_id: args.worker.clone(),
        deadline_ms: Some(args.deadline),
        checkpoint: args.checkpoint,
    };
    let mut worker = client.admin().drain_worker(request).await?.into_inner();
    let mut patience = Patience::default();
    while args.wait && worker.drained_at_ms == 0 {
        tokio::time::sleep(LOOK).await;
        match look(&client, &args.worker).await {
            Ok(seen) => {
                patience.contact();
                worker = seen.filter(|seen| seen.draining_since_ms != 0).ok_or_else(|| {
                    Failure::new(Code::Cancelled, format!("{} is drained no longer", args.worker))
                        .hint("somebody else undrained it")
                })?;
            }
            Err(status) if is_cut(&status) => client = patience.reconnect(&cluster, status.into()).await?,
            Err(status) => return Err(status.into()),
        }
    }
    context.out.answer(|| json::worker(&worker), || said(&worker))?;
    Ok(0)
}

async fn look(client: &Client, id: &str) -> Result<Option<Worker>, tonic::Status> {
    let workers = client.admin().list_workers(ListWorkersRequest {}).await?.into_inner().workers;
    Ok(workers.into_iter().find(|worker| worker.id == id))
}

pub async fn undrain(context: &Context, worker: String) -> Result<u8> {
    let client = context.cluster()?.connect().await?;
    let worker =
        client.admin().undrain_worker(UndrainWorkerRequest { worker_id: worker }).await?.into_inner();
    context.out.answer(|| json::worker(&worker), || format!("{} {}", worker.id, worker.state))?;
    Ok(0)
}

/// `wrk drained`, `wrk draining: 2 run, 1 session stays; cancelled at …`.
fn said(worker: &Worker) -> String {
    let sessions = match worker.sessions {
        0 => String::new(),
        n => format!(", {n} session(s) stay on its disk"),
    };
    let waits = match worker.drain_waits_for.as_str() {
        "" => String::new(),
        why => format!("; {why}"),
    };
    if worker.drained_at_ms != 0 {
        return format!("{} drained{sessions}{waits}", worker.id);
    }
    let until = units::utc(worker.drain_deadline_at_ms);
    format!("{} draining: {} run until {until}{sessions}{waits}", worker.id, worker.running)
}
