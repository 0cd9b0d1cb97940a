//! `cooper.v1.Runs`.

use std::{collections::HashMap, sync::Arc};

use cooper_common::{error::Error, limits, token::Scope};
use cooper_core::run::StepState;
use cooper_proto::v1::{self, runs_server, watch_run_response::Event};
use tokio::sync::broadcast::error::RecvError;
use tonic::{Request, Response, Status};

use super::convert;
use crate::{
    caller::Caller,
    cluster::Cluster,
    doors::{BoxStream, caller, status},
    output::Stream,
    runs::{self, Loaded},
    tasks::{self, Following, Seen},
};

pub struct Runs {
    pub runs: Arc<runs::Runs>,
    pub cluster: Arc<Cluster>,
}

fn client<T>(request: &Request<T>) -> Result<Caller, Status> {
    let caller = caller(request)?;
    caller.require_client().map_err(status)?;
    Ok(caller)
}

#[tonic::async_trait]
impl runs_server::Runs for Runs {
    type WatchRunStream = BoxStream<v1::WatchRunResponse>;
    type ReadArtifactStream = BoxStream<v1::ReadArtifactResponse>;

    async fn create_run(&self, request: Request<v1::CreateRunRequest>) -> Result<Response<v1::Run>, Status> {
        let caller = client(&request)?;
        let run = self.runs.create(&caller, request.into_inner()).await.map_err(status)?;
        Ok(Response::new(convert::run(&run)))
    }

    async fn get_run(&self, request: Request<v1::GetRunRequest>) -> Result<Response<v1::Run>, Status> {
        let caller = client(&request)?;
        let run = self.runs.get(&caller, &request.get_ref().run_id).await.map_err(status)?;
        Ok(Response::new(convert::run(&run)))
    }

    async fn list_runs(
        &self,
        request: Request<v1::ListRunsRequest>,
    ) -> Result<Response<v1::ListRunsResponse>, Status> {
        let caller = client(&request)?;
        let request = request.into_inner();
        let mut states = Vec::new();
        for state in request.states() {
            let name = convert::run_state_name(state)
                .ok_or_else(|| status(Error::invalid("states holds a value that is no state")))?;
            states.push(name.to_owned());
        }
        let (runs, next_cursor) = self.runs.list(&caller, request.page, states).await.map_err(status)?;
        Ok(Response::new(v1::ListRunsResponse { runs: runs.iter().map(convert::run).collect(), next_cursor }))
    }

    async fn watch_run(
        &self,
        request: Request<v1::WatchRunRequest>,
    ) -> Result<Response<Self::WatchRunStream>, Status> {
        let caller = client(&request)?;
        let id = request.into_inner().run_id;
        // Before the first look, so that no change falls in between.
        let changes = self.runs.changes();
        let first = self.runs.get(&caller, &id).await.map_err(status)?;
        let watch = Watch { runs: self.runs.clone(), cluster: self.cluster.clone(), caller, id };
        Ok(Response::new(watch.stream(first, changes)))
    }

    async fn decide_run(&self, request: Request<v1::DecideRunRequest>) -> Result<Response<v1::Run>, Status> {
        let caller = caller(&request)?;
        caller.require(&[Scope::Operator]).map_err(status)?;
        let run = self.runs.decide(&caller, request.into_inner()).await.map_err(status)?;
        Ok(Response::new(convert::run(&run)))
    }

    async fn cancel_run(&self, request: Request<v1::CancelRunRequest>) -> Result<Response<v1::Run>, Status> {
        let caller = client(&request)?;
        let run = self.runs.cancel(&caller, &request.get_ref().run_id).await.map_err(status)?;
        Ok(Response::new(convert::run(&run)))
    }

    async fn list_artifacts(
        &self,
        request: Request<v1::ListArtifactsRequest>,
    ) -> Result<Response<v1::ListArtifactsResponse>, Status> {
        let caller = client(&request)?;
        let loaded = self.runs.get(&caller, &request.get_ref().run_id).await.map_err(status)?;
        let artifacts = loaded.run.body.artifacts.iter().map(convert::artifact).collect();
        Ok(Response::new(v1::ListArtifactsResponse { artifacts }))
    }

    async fn read_artifact(
        &self,
        request: Request<v1::ReadArtifactRequest>,
    ) -> Result<Response<Self::ReadArtifactStream>, Status> {
        let caller = client(&request)?;
        let request = request.into_inner();
        let content =
            self.runs.read_artifact(&caller, &request.run_id, &request.name).await.map_err(status)?;
        let pieces: Vec<_> = content
            .chunks(limits::link::CHUNK_BYTES_MAX)
            .map(|piece| Ok(v1::ReadArtifactResponse { data: piece.to_vec() }))
            .collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(pieces))))
    }

    async fn list_stacks(
        &self,
        request: Request<v1::ListStacksRequest>,
    ) -> Result<Response<v1::ListStacksResponse>, Status> {
        let caller = client(&request)?;
        let stacks = self.runs.stacks(&caller).iter().map(convert::stack).collect();
        Ok(Response::new(v1::ListStacksResponse { stacks }))
    }

    async fn register_stack(
        &self,
        request: Request<v1::RegisterStackRequest>,
    ) -> Result<Response<v1::Stack>, Status> {
        let caller = caller(&request)?;
        caller.require(&[Scope::Operator]).map_err(status)?;
        let stack = self.runs.register(&caller, request.into_inner()).await.map_err(status)?;
        Ok(Response::new(convert::stack(&stack)))
    }
}

/// What a watch waits for.
enum Next {
    Log(Option<(String, cooper_common::error::Result<Option<Seen>>)>),
    Changed(Result<cooper_common::ids::RunId, RecvError>),
}

/// How much of a step's log was sent, and of which of its attempts.
#[derive(Default)]
struct Read {
    offset: u64,
    attempts_used: u32,
}

/// One run watched to its end.
struct Watch {
    runs: Arc<runs::Runs>,
    cluster: Arc<Cluster>,
    caller: Caller,
    id: String,
}

impl Watch {
    fn stream(
        self,
        first: Loaded,
        mut changes: tokio::sync::broadcast::Receiver<cooper_common::ids::RunId>,
    ) -> BoxStream<v1::WatchRunResponse> {
        Box::pin(async_stream::try_stream! {
            let mut loaded = first;
            let mut seen: HashMap<String, Read> = HashMap::new();
            loop {
                yield v1::WatchRunResponse { event: Some(Event::Run(convert::run(&loaded))) };
                if loaded.run.body.state.ended() {
                    return;
                }
                let id = loaded.run.id;
                let mut step = self.running_step(&loaded, &mut seen).await?;
                // Log lines of the running step until the run changes.
                loop {
                    let log = async {
                        match &mut step {
                            Some((name, following)) => Some((name.clone(), following.next().await)),
                            None => std::future::pending().await,
                        }
                    };
                    let next = tokio::select! {
                        biased;
                        log = log => Next::Log(log),
                        changed = changes.recv() => Next::Changed(changed),
                    };
                    match next {
                        Next::Log(Some((name, seen_now))) => match seen_now.map_err(status)? {
                            Some(Seen::Output { offset, data, stream }) => {
                                // One log a step: stderr is rare and comes with its own offsets; count stdout only.
                                let task_id = self.task_of(&loaded, &name);
                                if stream == Stream::Stdout {
                                    seen.entry(task_id.clone()).or_default().offset = offset + data.len() as u64;
                                }
                                let log = v1::StepLog { step: name, task_id, offset, data: data.to_vec() };
                                yield v1::WatchRunResponse { event: Some(Event::Log(log)) };
                            }
                            Some(Seen::Restarted { attempts_used }) => {
                                seen.insert(self.task_of(&loaded, &name), Read { offset: 0, attempts_used });
                            }
                            Some(Seen::Ended(_)) | None => step = None,
                        },
                        Next::Log(None) => step = None,
                        Next::Changed(Ok(changed)) if changed != id => {}
                        Next::Changed(Ok(_) | Err(RecvError::Lagged(_))) => break,
                        Next::Changed(Err(RecvError::Closed)) => return,
                    }
                }
                loaded = self.runs.get(&self.caller, &self.id).await.map_err(status)?;
            }
        })
    }

    fn task_of(&self, loaded: &Loaded, step: &str) -> String {
        let step = loaded.run.steps.iter().find(|known| known.kind.as_str() == step);
        step.and_then(|step| step.task).map(|task| task.to_string()).unwrap_or_default()
    }

    async fn running_step(
        &self,
        loaded: &Loaded,
        seen: &mut HashMap<String, Read>,
    ) -> Result<Option<(String, Following)>, Status> {
        let step = loaded.run.steps.iter().find(|step| step.state == StepState::Running);
        let Some((kind, task)) = step.and_then(|step| Some((step.kind, step.task?))) else { return Ok(None) };
        let read = seen.entry(task.to_string()).or_default();
        let request = v1::FollowRequest {
            task_id: task.to_string(),
            stdout_offset: read.offset,
            stderr_offset: 0,
            attempts_used: read.attempts_used,
        };
        match tasks::follow(&self.cluster, &self.caller, &request).await {
            Ok((_, restarted, following)) => {
                if let Some(Seen::Restarted { attempts_used }) = restarted {
                    *read = Read { offset: 0, attempts_used };
                }
                Ok(Some((kind.as_str().to_owned(), following)))
            }
            // Recorded as running a moment before its task is.
            Err(error) if error.code == cooper_common::error::Code::TaskNotFound => Ok(None),
            Err(error) => Err(status(error)),
        }
    }
}
