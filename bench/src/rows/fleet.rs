//! Rows about many workers: a coordinator of their own, and workers that are a connection and a link's manners each, all
//! of them in this process. One scenario a size gives all its rows: attach, sit still, lose the coordinator by `kill -9`
//! with a task in the hands of many, come back, finish.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use cooper_common::{backoff::full_jitter, clock, limits::link, token::Secret};
use cooper_proto::v1::{
    AttemptItem, Capacity, Credit, Down, Fence, Heartbeat, Hello, Result as Ended, SubmitTasksRequest,
    TaskState, Up, Verdict, down, up, worker_link_client::WorkerLinkClient,
};
use rustix::process::Resource;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, interval_at, sleep},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Streaming,
    metadata::{Ascii, MetadataValue},
    transport::Endpoint,
};

use super::{Bench, Measured, ms_since};
use crate::{
    client::{Client, noop},
    cluster::{self, Spawned},
    figures::Figures,
    process,
};

/// Tasks that are held when the coordinator is killed; one message of submits each.
const HELD_MAX: usize = 4096;
const MESSAGE: usize = 512;
/// Room for what a worker has to say between two messages of the coordinator.
const SAID_MAX: usize = 16;
/// Longer than anything here should take.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(5);

/// What the scenario came to.
#[derive(Debug, Clone)]
pub struct Fleet {
    workers: usize,
    held: usize,
    heartbeat: Duration,
    attach_ms: f64,
    kib_each: f64,
    heartbeats_percent: f64,
    recovery_ms: f64,
}

/// Which figure of it a row wants.
pub enum Figure {
    Attach,
    Memory,
    Heartbeats,
    Recovery,
}

impl Fleet {
    pub fn measured(&self, figure: Figure) -> Measured {
        let Fleet { workers, held, heartbeat, .. } = self;
        let (value, how) = match figure {
            Figure::Attach => {
                (self.attach_ms, format!("{workers} connect, say Hello and are welcomed, all at once"))
            }
            Figure::Memory => {
                (self.kib_each, "resident memory of the coordinator, after less before, for each".into())
            }
            Figure::Heartbeats => (
                self.heartbeats_percent,
                format!("processor time of the coordinator over one interval of {} s", heartbeat.as_secs()),
            ),
            Figure::Recovery => (
                self.recovery_ms,
                format!(
                    "kill -9 with {workers} attached and {held} tasks in their hands, from /health to the last attach; then each \
                     task ended once, on its first attempt"
                ),
            ),
        };
        Measured { figures: Figures::one(value, *workers), how }
    }

    pub async fn measure(bench: &Bench, workers: usize) -> Result<Self> {
        open_files()?;
        let data = tempfile::Builder::new().prefix("fleet-").tempdir_in(&bench.dir)?;
        let address = cluster::free_address()?;
        let mut coordinator = start(bench, data.path(), address).await?;
        let url = format!("http://{address}");
        let token = Secret::read(&data.path().join("admin.token")).context("admin.token")?;
        let mut client = Client::connect(&url, &token).await?;
        let join = client.join_token().await?;
        let (tell, told) = watch::channel(false);
        let (count, mut attached) = watch::channel(0usize);
        let all = Arc::new(Shared {
            url,
            bearer: format!("Bearer {join}").parse()?,
            attached: count,
            heartbeat_ms: AtomicU64::new(0),
            finish: told,
        });

        let before = process::resident_bytes(coordinator.group.pid())?;
        let begin = clock::since_start();
        let fleet = Tasks((0..workers).map(|n| tokio::spawn(worker(all.clone(), n))).collect());
        until(&mut attached, workers).await?;
        let attach_ms = ms_since(begin);
        let kib_each = process::resident_bytes(coordinator.group.pid())?.saturating_sub(before) as f64
            / 1024.0
            / workers as f64;

        // What the coordinator asks of so many.
        let heartbeat = Duration::from_millis(all.heartbeat_ms.load(Ordering::Relaxed));
        let cpu = process::cpu_ms(coordinator.group.pid());
        sleep(heartbeat).await;
        let cpu = process::cpu_ms(coordinator.group.pid()) - cpu;
        let heartbeats_percent = cpu as f64 / heartbeat.as_millis() as f64 * 100.0;

        let held = workers.min(HELD_MAX);
        let ids = hold(&mut client, held).await?;
        drop(coordinator);
        until(&mut attached, 0).await?;
        coordinator = start(bench, data.path(), address).await?;
        let begin = clock::since_start();
        until(&mut attached, workers).await?;
        let recovery_ms = ms_since(begin);

        let mut client = Client::connect(&all.url, &token).await?;
        tell.send_replace(true);
        finished(&mut client, ids).await?;
        drop(fleet);
        drop(coordinator);
        Ok(Self { workers, held, heartbeat, attach_ms, kib_each, heartbeats_percent, recovery_ms })
    }
}

/// Ends what it holds when it is dropped.
struct Tasks(Vec<tokio::task::JoinHandle<()>>);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

async fn start(bench: &Bench, data: &Path, address: SocketAddr) -> Result<Spawned> {
    let mut coordinator = cluster::coordinator_at(&bench.binary, data, address)?;
    cluster::healthy(&mut coordinator.group, address).await?;
    Ok(coordinator)
}

/// A connection each; the hard limit is the system's word.
fn open_files() -> Result<()> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    rustix::process::setrlimit(
        Resource::Nofile,
        rustix::process::Rlimit { current: limit.maximum, ..limit },
    )?;
    Ok(())
}

async fn until(attached: &mut watch::Receiver<usize>, wanted: usize) -> Result<()> {
    let reached = tokio::time::timeout(PATIENCE, attached.wait_for(|now| *now == wanted)).await.is_ok();
    ensure!(
        reached,
        "{} workers are attached after {} s, not {wanted}",
        *attached.borrow(),
        PATIENCE.as_secs()
    );
    Ok(())
}

/// Submits tasks and waits until each is in a worker's hands.
async fn hold(client: &mut Client, count: usize) -> Result<Vec<String>> {
    let messages: Vec<_> = (0..count)
        .step_by(MESSAGE)
        .map(|from| SubmitTasksRequest { tasks: vec![noop(); MESSAGE.min(count - from)] })
        .collect();
    let mut answers = client.tasks.submit_tasks(tokio_stream::iter(messages)).await?.into_inner();
    let mut ids = Vec::with_capacity(count);
    while let Some(answer) = answers.message().await? {
        ensure!(answer.errors.is_empty(), "a submit was refused: {:?}", answer.errors);
        ids.extend(answer.task_ids);
    }
    let deadline = clock::since_start() + PATIENCE;
    while client.queued().await? > 0 {
        ensure!(clock::since_start() < deadline, "tasks wait although every worker has room for one");
        sleep(LOOK).await;
    }
    Ok(ids)
}

/// Each ended well, once, and on its first attempt: nothing was lost, nothing was done again.
async fn finished(client: &mut Client, ids: Vec<String>) -> Result<()> {
    let mut left: BTreeMap<String, ()> = ids.iter().map(|id| (id.clone(), ())).collect();
    let mut watch = client.watch_these(ids).await?;
    while !left.is_empty() {
        let message = tokio::time::timeout(PATIENCE, watch.message()).await.context("tasks do not end")??;
        for task in message.context("the watch ended before the tasks")?.tasks {
            ensure!(left.remove(&task.id).is_some(), "{} ended twice", task.id);
            ensure!(
                task.state() == TaskState::Succeeded && task.attempt == 1,
                "{} ended as {} on attempt {}",
                task.id,
                task.state().as_str_name(),
                task.attempt
            );
        }
    }
    Ok(())
}

/// What all workers know.
struct Shared {
    url: String,
    bearer: MetadataValue<Ascii>,
    attached: watch::Sender<usize>,
    /// The longest any of them was asked for: the last one's.
    heartbeat_ms: AtomicU64,
    /// True: end what is held.
    finish: watch::Receiver<bool>,
}

/// A worker that attaches for ever, as the link does.
async fn worker(shared: Arc<Shared>, number: usize) {
    let mut held = BTreeMap::new();
    let mut failures = 0;
    loop {
        if attach(&shared, number, &mut held).await.is_ok_and(|welcomed| welcomed) {
            failures = 0;
            shared.attached.send_modify(|count| *count -= 1);
        }
        // Spread as the real ones are; what is random there is their number here.
        let roll = (number.wrapping_mul(2_654_435_761) + failures * 97) % 1000;
        let pause = full_jitter(
            link::RECONNECT_BASE_MS,
            link::RECONNECT_CAP_MS,
            failures as u32,
            roll as f64 / 1000.0,
        );
        failures += 1;
        sleep(pause).await;
    }
}

/// One attach to its end. True = it was welcomed.
async fn attach(shared: &Shared, number: usize, held: &mut BTreeMap<String, Option<Fence>>) -> Result<bool> {
    let channel = Endpoint::from_shared(shared.url.clone())?
        .tcp_nodelay(true)
        .connect_timeout(Duration::from_secs(5))
        .connect()
        .await?;
    let (say, said) = mpsc::channel(SAID_MAX);
    let hello = Hello {
        protocol_min: 1,
        protocol_max: link::PROTOCOL_MAX,
        worker_id: format!("bench-{number}"),
        incarnation: 1,
        capacity: Some(Capacity { sessions_max: 0, tasks_max: 1 }),
        attempts: held
            .iter()
            .map(|(task, fence)| AttemptItem {
                task_id: task.clone(),
                fence: *fence,
                running: true,
                ..AttemptItem::default()
            })
            .collect(),
        hostname: "bench".into(),
        ..Hello::default()
    };
    say.send(up(up::Message::Hello(hello))).await?;
    let mut request = Request::new(ReceiverStream::new(said));
    request.metadata_mut().insert("authorization", shared.bearer.clone());
    let mut downs = WorkerLinkClient::new(channel).attach(request).await?.into_inner();
    let first = downs.message().await?.and_then(|first| first.message);
    let Some(down::Message::Welcome(welcome)) = first else { return Ok(false) };
    for verdict in welcome.attempts {
        if matches!(verdict.verdict(), Verdict::Cancel | Verdict::Forget) {
            held.remove(&verdict.task_id);
        }
    }
    shared.attached.send_modify(|count| *count += 1);
    shared.heartbeat_ms.fetch_max(welcome.heartbeat_ms, Ordering::Relaxed);
    let every = Duration::from_millis(welcome.heartbeat_ms);
    // However it ends, it was welcomed.
    let _ = work(shared, every, &say, downs, held).await;
    Ok(true)
}

/// Takes assigns and beats until the stream ends; ends what it holds when it is told to.
async fn work(
    shared: &Shared,
    every: Duration,
    say: &mpsc::Sender<Up>,
    mut downs: Streaming<Down>,
    held: &mut BTreeMap<String, Option<Fence>>,
) -> Result<()> {
    // Room for one, and none again after that.
    let room = Credit { tasks: u32::from(held.is_empty()), assigns_seen: 0 };
    say.send(up(up::Message::Credit(room))).await?;
    let mut beats = interval_at(Instant::now() + every, every);
    let mut finish = shared.finish.clone();
    let mut told = *finish.borrow();
    if told {
        end_all(say, held).await?;
    }
    loop {
        tokio::select! {
            message = downs.message() => match message.ok().flatten().and_then(|message| message.message) {
                Some(down::Message::Assign(assign)) => {
                    held.insert(assign.task_id, assign.fence);
                }
                Some(down::Message::ResultAck(ack)) => {
                    held.remove(&ack.task_id);
                }
                Some(_) => {}
                None => return Ok(()),
            },
            _ = beats.tick() => say.send(up(up::Message::Heartbeat(Heartbeat::default()))).await?,
            changed = finish.changed(), if !told => {
                changed?;
                told = true;
                end_all(say, held).await?;
            }
        }
    }
}

async fn end_all(say: &mpsc::Sender<Up>, held: &BTreeMap<String, Option<Fence>>) -> Result<()> {
    for (task, fence) in held {
        let state = TaskState::Succeeded.into();
        let ended = Ended { task_id: task.clone(), fence: *fence, state, ..Ended::default() };
        say.send(up(up::Message::Result(ended))).await?;
    }
    Ok(())
}

fn up(message: up::Message) -> Up {
    Up { message: Some(message) }
}
