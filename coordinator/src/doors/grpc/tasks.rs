//! `cooper.v1.Tasks`.

use std::{collections::HashMap, sync::Arc};

use cooper_common::error::{Code, Error};
use cooper_core::task;
use cooper_proto::v1::{self, execute_response::Event, tasks_server};
use prost::Message as _;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio_stream::StreamExt;
use tonic::{Request, Response, Status, Streaming};

use super::convert;
use crate::{
    bus::{Bus, Feed},
    cluster::Cluster,
    doors::{BoxStream, caller, status},
    hub::Told,
    tasks::{self, Following, Seen, Submitted},
};

/// Ids one watch may name.
const WATCHED_MAX: usize = 100_000;
/// Ended tasks in one message.
const WATCH_BATCH_MAX: usize = 1024;
/// The same in bytes; the one that reaches it is the last. With its result it stays below what a client decodes.
const WATCH_BATCH_BYTES: usize = 1 << 20;

/// Ended tasks on their way to a watcher, as one message of bounded size.
#[derive(Default)]
struct Batch {
    tasks: Vec<v1::Task>,
    bytes: usize,
}

impl Batch {
    /// True when it is full.
    fn push(&mut self, task: v1::Task) -> bool {
        self.bytes += task.encoded_len();
        self.tasks.push(task);
        self.tasks.len() >= WATCH_BATCH_MAX || self.bytes >= WATCH_BATCH_BYTES
    }
    fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }
    fn take(&mut self) -> v1::WatchTasksResponse {
        self.bytes = 0;
        v1::WatchTasksResponse { tasks: std::mem::take(&mut self.tasks), next_seq: 0 }
    }
}

pub struct Tasks {
    pub cluster: Arc<Cluster>,
    pub bus: Bus,
}

/// Every task of the tenant whose end is recorded by an event of the feed.
fn ended_since(
    mut feed: Feed,
    cluster: Arc<Cluster>,
    caller: crate::caller::Caller,
) -> BoxStream<v1::WatchTasksResponse> {
    Box::pin(async_stream::try_stream! {
        // Tells the client that the watch is on.
        yield v1::WatchTasksResponse::default();
        while let Some(event) = feed.next().await.map_err(|error| status(error.into()))? {
            let Some(state) = event.kind.strip_prefix("task.").filter(|state| task::End::named(state).is_some())
            else {
                continue;
            };
            let record = match tasks::get(&cluster, &caller, &event.subject).await {
                Ok(record) => record,
                // It ended so long ago that retention took it.
                Err(error) if error.code == Code::TaskNotFound => continue,
                Err(error) => Err(status(error))?,
            };
            // A dead letter may have been taken back and have ended again: that is another event.
            if record.row.state == state {
                let task = v1::Task { spec: None, ..convert::task(&record)? };
                yield v1::WatchTasksResponse { tasks: vec![task], next_seq: event.seq + 1 };
            }
        }
    })
}

fn seen_event(seen: Seen, spec: &Option<v1::TaskSpec>, task: &str) -> v1::ExecuteResponse {
    event(match seen {
        Seen::Restarted { attempts_used } => {
            Event::Restarted(v1::Restarted { task_id: task.to_owned(), attempts_used })
        }
        Seen::Output { stream, offset, data } => {
            Event::Output(v1::Output { stream: i32::from(stream.number()), offset, data })
        }
        Seen::Ended(ended) => {
            let ended = convert::ended(&ended);
            Event::Ended(v1::Task { spec: spec.clone().or(ended.spec.clone()), ..ended })
        }
    })
}

fn event(event: Event) -> v1::ExecuteResponse {
    v1::ExecuteResponse { event: Some(event) }
}

/// `accepted`, then output as it comes, then the end.
fn follow(
    accepted: v1::Task,
    first: Option<Seen>,
    mut following: Following,
) -> BoxStream<v1::ExecuteResponse> {
    Box::pin(async_stream::try_stream! {
        let (spec, task) = (accepted.spec.clone(), accepted.id.clone());
        yield event(Event::Accepted(accepted));
        if let Some(first) = first {
            yield seen_event(first, &spec, &task);
        }
        while let Some(seen) = following.next().await.map_err(status)? {
            yield seen_event(seen, &spec, &task);
        }
    })
}

#[tonic::async_trait]
impl tasks_server::Tasks for Tasks {
    type ExecuteStream = BoxStream<v1::ExecuteResponse>;
    type FollowStream = BoxStream<v1::ExecuteResponse>;
    type SubmitTasksStream = BoxStream<v1::SubmitTasksResponse>;
    type WatchTasksStream = BoxStream<v1::WatchTasksResponse>;

    async fn execute(
        &self,
        request: Request<v1::SubmitTaskRequest>,
    ) -> Result<Response<Self::ExecuteStream>, Status> {
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        let (submitted, follower) =
            tasks::execute(&self.cluster, &caller, request.into_inner()).await.map_err(status)?;
        let id = submitted.id();
        let accepted = match submitted {
            Submitted::New(id) => convert::accepted(id),
            Submitted::Known(id) => {
                convert::task(&tasks::get(&self.cluster, &caller, &id.to_string()).await.map_err(status)?)?
            }
        };
        let following = Following::new(self.cluster.clone(), id, follower);
        Ok(Response::new(follow(accepted, None, following)))
    }

    async fn submit_task(
        &self,
        request: Request<v1::SubmitTaskRequest>,
    ) -> Result<Response<v1::Task>, Status> {
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        let task = match tasks::submit(&self.cluster, &caller, request.into_inner()).await.map_err(status)? {
            Submitted::New(id) => convert::accepted(id),
            Submitted::Known(id) => {
                convert::task(&tasks::get(&self.cluster, &caller, &id.to_string()).await.map_err(status)?)?
            }
        };
        Ok(Response::new(task))
    }

    async fn submit_tasks(
        &self,
        request: Request<Streaming<v1::SubmitTasksRequest>>,
    ) -> Result<Response<Self::SubmitTasksStream>, Status> {
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        let cluster = self.cluster.clone();
        let mut batches = request.into_inner();
        let stream = async_stream::try_stream! {
            while let Some(batch) = batches.next().await.transpose()? {
                let results = tasks::submit_all(&cluster, &caller, batch.tasks).await.map_err(status)?;
                let mut response = v1::SubmitTasksResponse { task_ids: Vec::new(), errors: HashMap::new() };
                for (index, result) in results.into_iter().enumerate() {
                    match result {
                        Ok(id) => response.task_ids.push(id.to_string()),
                        Err(error) => {
                            response.task_ids.push(String::new());
                            let hint = error.hint().to_owned();
                            response.errors.insert(
                                index as u32,
                                v1::Error { code: error.code.as_str().to_owned(), message: error.message, hint },
                            );
                        }
                    }
                }
                yield response;
            }
        };
        Ok(Response::new(Box::pin(stream)))
    }

    async fn watch_tasks(
        &self,
        request: Request<v1::WatchTasksRequest>,
    ) -> Result<Response<Self::WatchTasksStream>, Status> {
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        let v1::WatchTasksRequest { task_ids: ids, from_seq } = request.into_inner();
        if ids.is_empty() && from_seq > 0 {
            let tenant = Some(caller.tenant.to_string());
            let feed = Feed::from(self.cluster.store.clone(), &self.bus, from_seq, tenant);
            return Ok(Response::new(ended_since(feed, self.cluster.clone(), caller)));
        }
        crate::check::at_most("task_ids", ids.len() as u64, WATCHED_MAX as u64).map_err(status)?;
        // From here on nothing that ends is missed; what ended before is read below.
        let mut ended = self.cluster.hub.watch_ended();
        let cluster = self.cluster.clone();
        let stream = async_stream::try_stream! {
            let all = ids.is_empty();
            let mut wanted = std::collections::HashSet::new();
            let mut batch = Batch::default();
            // Tells the client that the watch is on.
            if all {
                yield batch.take();
            }
            for id in ids {
                let record = tasks::get(&cluster, &caller, &id).await.map_err(status)?;
                if record.row.ended {
                    if batch.push(v1::Task { spec: None, ..convert::task(&record)? }) {
                        yield batch.take();
                    }
                } else {
                    wanted.insert(record.id);
                }
            }
            if !batch.is_empty() {
                yield batch.take();
            }
            while all || !wanted.is_empty() {
                let mut next = Some(ended.recv().await);
                while let Some(received) = next.take() {
                    let mut full = false;
                    match received {
                        Ok(Told { ended: task, whole }) if task.tenant == caller.tenant
                            && (all || wanted.remove(&task.task.to_string())) =>
                        {
                            let task = match whole {
                                true => convert::ended(&task),
                                false => {
                                    let id = task.task.to_string();
                                    let record = tasks::get(&cluster, &caller, &id).await.map_err(status)?;
                                    v1::Task { spec: convert::ended(&task).spec, ..convert::task(&record)? }
                                }
                            };
                            full = batch.push(task);
                        }
                        Ok(_) => {}
                        Err(RecvError::Lagged(missed)) => {
                            Err(status(Error::new(
                                Code::Overloaded,
                                format!("this watch fell {missed} ended tasks behind"),
                            ).with_hint("watch again, naming the tasks that are still wanted")))?;
                        }
                        Err(RecvError::Closed) => return,
                    }
                    if !full {
                        next = match ended.try_recv() {
                            Ok(told) => Some(Ok(told)),
                            Err(TryRecvError::Lagged(missed)) => Some(Err(RecvError::Lagged(missed))),
                            Err(TryRecvError::Empty | TryRecvError::Closed) => None,
                        };
                    }
                }
                if !batch.is_empty() {
                    yield batch.take();
                }
            }
        };
        Ok(Response::new(Box::pin(stream)))
    }

    async fn follow(
        &self,
        request: Request<v1::FollowRequest>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        let (record, first, following) =
            tasks::follow(&self.cluster, &caller, request.get_ref()).await.map_err(status)?;
        Ok(Response::new(follow(convert::task(&record)?, first, following)))
    }

    async fn get_task(&self, request: Request<v1::GetTaskRequest>) -> Result<Response<v1::Task>, Status> {
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        let record = tasks::get(&self.cluster, &caller, &request.get_ref().task_id).await.map_err(status)?;
        Ok(Response::new(convert::task(&record)?))
    }

    async fn list_tasks(
        &self,
        request: Request<v1::ListTasksRequest>,
    ) -> Result<Response<v1::ListTasksResponse>, Status> {
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        let request = request.into_inner();
        let states: Option<Vec<_>> = request.states().map(convert::state_of).collect();
        let states = states.ok_or_else(|| status(Error::invalid("states has one that no task has")))?;
        let (page, session) = (request.page, &request.session_id);
        let page = tasks::list(&self.cluster, &caller, page, session, states).await.map_err(status)?;
        let tasks: Result<Vec<_>, _> = page.records.iter().map(convert::task).collect();
        let next_cursor = page.next.map(|cursor| cursor.to_string()).unwrap_or_default();
        Ok(Response::new(v1::ListTasksResponse { tasks: tasks?, next_cursor }))
    }

    async fn cancel_task(
        &self,
        request: Request<v1::CancelTaskRequest>,
    ) -> Result<Response<v1::Task>, Status> {
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        let record =
            tasks::cancel(&self.cluster, &caller, &request.get_ref().task_id).await.map_err(status)?;
        Ok(Response::new(convert::task(&record)?))
    }
    async fn explain_task(
        &self,
        request: Request<v1::ExplainTaskRequest>,
    ) -> Result<Response<v1::ExplainTaskResponse>, Status> {
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        let (record, why) =
            tasks::explain(&self.cluster, &caller, &request.get_ref().task_id).await.map_err(status)?;
        let task = convert::task(&record)?;
        let answer = match why {
            Some(why) => v1::ExplainTaskResponse {
                code: why.cause.as_str().to_owned(),
                sentence: why.sentence,
                worker_id: why.worker.map(|worker| worker.to_string()).unwrap_or_default(),
                blocking_task_id: why.blocking.map(|task| task.to_string()).unwrap_or_default(),
                ahead: u32::try_from(why.ahead).unwrap_or(u32::MAX),
                task: Some(task),
            },
            None => v1::ExplainTaskResponse {
                code: "ended".to_owned(),
                sentence: convert::how_it_ended(&record, &task),
                task: Some(task),
                ..v1::ExplainTaskResponse::default()
            },
        };
        Ok(Response::new(answer))
    }

    async fn requeue_task(
        &self,
        request: Request<v1::RequeueTaskRequest>,
    ) -> Result<Response<v1::Task>, Status> {
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        let request = request.into_inner();
        let record = tasks::requeue(&self.cluster, &caller, &request.task_id, &request.idempotency_key)
            .await
            .map_err(status)?;
        Ok(Response::new(convert::task(&record)?))
    }
}

#[cfg(test)]
mod tests;
