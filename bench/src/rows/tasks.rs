//! Rows about durable tasks that do nothing: volume, single submits, latency at a low rate.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use cooper_common::clock;
use cooper_proto::v1::{SubmitTasksRequest, Task, TaskState, WatchTasksResponse};
use futures::future::{try_join, try_join_all};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{Measured, ms_since};
use crate::{
    client::{Client, noop},
    figures::Figures,
};

const BATCHED: usize = 60_000;
const MESSAGE: usize = 512;
const IN_FLIGHT: usize = 4096;
const UNARY: usize = 20_000;
const CALLERS: usize = 64;
const ROUND_TRIPS: usize = 4000;
const ROUND_TRIPS_EACH_MIN: usize = 100;
const AT_RATE: usize = 1000;
const EVERY: Duration = Duration::from_millis(10);

/// Ends seen, each with the time it was seen; every task ends once and well.
struct Ends {
    watch: Streaming<WatchTasksResponse>,
    seen: HashMap<String, Duration>,
}

impl Ends {
    async fn watch(client: &mut Client) -> Result<Self> {
        Ok(Self { watch: client.watch().await?, seen: HashMap::new() })
    }

    /// Reads until `count` tasks ended; `tell` hears how many more did.
    async fn until(mut self, count: usize, tell: impl Fn(usize)) -> Result<HashMap<String, Duration>> {
        while self.seen.len() < count {
            let message = self.watch.message().await?.context("the watch ended before the tasks")?;
            let now = clock::since_start();
            let more = message.tasks.len();
            for task in message.tasks {
                ensure!(task.state() == TaskState::Succeeded, "{} ended as {}", task.id, state(&task));
                if let Some(earlier) = self.seen.insert(task.id, now) {
                    bail!("a task ended twice, {:?} apart", now - earlier);
                }
            }
            tell(more);
        }
        Ok(self.seen)
    }
}

fn state(task: &Task) -> &'static str {
    task.state().as_str_name()
}

pub(super) async fn batched(mut client: Client) -> Result<Measured> {
    stream(&mut client, 4 * MESSAGE).await?;
    let begin = clock::since_start();
    stream(&mut client, BATCHED).await?;
    Ok(Measured {
        figures: rate(BATCHED, begin),
        how: format!(
            "one SubmitTasks stream, {MESSAGE} a message, at most {IN_FLIGHT} in flight, no keys; until WatchTasks told of each"
        ),
    })
}

/// Submits `count` tasks over one stream and sees each of them end.
async fn stream(client: &mut Client, count: usize) -> Result<()> {
    let ends = Ends::watch(client).await?;
    let room = Arc::new(Semaphore::new(IN_FLIGHT));
    let (send, messages) = mpsc::channel(IN_FLIGHT / MESSAGE);
    let submit = async {
        let mut left = count;
        while left > 0 {
            let now = left.min(MESSAGE);
            room.acquire_many(now as u32).await?.forget();
            let message = SubmitTasksRequest { tasks: vec![noop(); now] };
            send.send(message).await.ok().context("the stream of submits was cut")?;
            left -= now;
        }
        drop(send);
        Ok(())
    };
    let mut client = client.clone();
    let answers = async {
        let mut answers = client.tasks.submit_tasks(ReceiverStream::new(messages)).await?.into_inner();
        let mut ids = Vec::with_capacity(count);
        while let Some(answer) = answers.message().await? {
            ensure!(answer.errors.is_empty(), "a submit was refused: {:?}", answer.errors);
            ids.extend(answer.task_ids);
        }
        Ok(ids)
    };
    let ends = ends.until(count, |more| room.add_permits(more));
    let (((), ids), ends) = try_join(try_join(submit, answers), ends).await?;
    same(&ids, &ends)
}

/// What was answered is what ended.
fn same(ids: &[String], ends: &HashMap<String, Duration>) -> Result<()> {
    ensure!(ids.len() == ends.len(), "{} tasks were submitted, {} ended", ids.len(), ends.len());
    ensure!(ids.iter().all(|id| ends.contains_key(id)), "tasks ended that nobody submitted");
    Ok(())
}

pub(super) async fn unary(mut client: Client) -> Result<Measured> {
    let ends = Ends::watch(&mut client).await?;
    let begin = clock::since_start();
    let callers = try_join_all((0..CALLERS).map(|caller| {
        let mut client = client.clone();
        let share = UNARY / CALLERS + usize::from(caller < UNARY % CALLERS);
        let calls = async move {
            let mut ids = Vec::with_capacity(share);
            for _ in 0..share {
                ids.push(client.tasks.submit_task(noop()).await?.into_inner().id);
            }
            anyhow::Ok(ids)
        };
        async move { tokio::spawn(calls).await? }
    }));
    let (ids, ends) = try_join(callers, ends.until(UNARY, |_| ())).await?;
    let figures = rate(UNARY, begin);
    same(&ids.concat(), &ends)?;
    Ok(Measured {
        figures,
        how: format!("{CALLERS} callers on one connection, no keys; until WatchTasks told of each"),
    })
}

/// `callers` that each submit a task, see its end, and go on.
pub(super) async fn round_trip(mut client: Client, callers: usize) -> Result<Measured> {
    let mut watch = client.watch().await?;
    // Of each task: its end, or who waits for that. Whichever comes first makes the entry.
    let waiting: Arc<Mutex<HashMap<String, Option<oneshot::Sender<()>>>>> = Arc::default();
    let ends = waiting.clone();
    let watcher = tokio::spawn(async move {
        while let Ok(Some(message)) = watch.message().await {
            let mut ends = ends.lock().unwrap_or_else(PoisonError::into_inner);
            for task in message.tasks {
                match ends.remove(&task.id) {
                    Some(Some(waiter)) => drop(waiter.send(())),
                    _ => drop(ends.insert(task.id, None)),
                }
            }
        }
    });
    let callers_run = try_join_all((0..callers).map(|_| {
        let (mut client, waiting) = (client.clone(), waiting.clone());
        let calls = async move {
            let mut samples = Vec::new();
            for _ in 0..(ROUND_TRIPS / callers).max(ROUND_TRIPS_EACH_MIN) {
                let begin = clock::since_start();
                let id = client.tasks.submit_task(noop()).await?.into_inner().id;
                let (waiter, ended) = oneshot::channel();
                let waits = {
                    let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
                    let waits = waiting.remove(&id).is_none();
                    if waits {
                        waiting.insert(id, Some(waiter));
                    }
                    waits
                };
                if waits {
                    ended.await.context("the watch ended before a task")?;
                }
                samples.push(ms_since(begin));
            }
            anyhow::Ok(samples)
        };
        async move { tokio::spawn(calls).await? }
    }));
    let samples = callers_run.await;
    watcher.abort();
    Ok(Measured {
        figures: Figures::samples(samples?.concat()),
        how: format!(
            "{callers} callers on one connection: SubmitTask, then WatchTasks tells of its end; no keys"
        ),
    })
}

pub(super) async fn latency_at_rate(mut client: Client) -> Result<Measured> {
    let ends = Ends::watch(&mut client).await?;
    let submit = async {
        let mut ticks = tokio::time::interval(EVERY);
        let mut calls = Vec::with_capacity(AT_RATE);
        for _ in 0..AT_RATE {
            ticks.tick().await;
            let begin = clock::since_start();
            let mut client = client.clone();
            calls.push(tokio::spawn(async move {
                let task = client.tasks.submit_task(noop()).await?.into_inner();
                anyhow::Ok((task.id, begin))
            }));
        }
        let mut begins = Vec::with_capacity(AT_RATE);
        for call in calls {
            begins.push(call.await??);
        }
        anyhow::Ok(begins)
    };
    let (begins, ends) = try_join(submit, ends.until(AT_RATE, |_| ())).await?;
    let mut samples = Vec::with_capacity(AT_RATE);
    for (id, begin) in begins {
        let end = ends.get(&id).with_context(|| format!("{id} never ended"))?;
        samples.push((*end - begin).as_secs_f64() * 1e3);
    }
    Ok(Measured {
        figures: Figures::samples(samples),
        how: format!(
            "SubmitTask every {} ms whatever the last one does; until WatchTasks tells",
            EVERY.as_millis()
        ),
    })
}

fn rate(count: usize, begin: Duration) -> Figures {
    Figures::one(count as f64 / ms_since(begin) * 1e3, count)
}
