//! `cooper.v1.Runs`.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use cooper_common::{error::Error, limits, token::Scope};
use cooper_core::run::StepState;
use cooper_proto::v1::{self, runs_server, watch_run_response::Event};
use tokio::sync::broadcast::error::RecvError;
use tokio_stream::StreamExt as _;
use tonic::{Request, Response, Status};

use super::convert;
use crate::{
    artifacts::Artifacts,
    caller::Caller,
    cluster::Cluster,
    doors::{BoxStream, caller, status},
    output::Stream,
    runs::{self, Loaded},
    tasks::{self, Following, Seen},
    tokens::Tokens,
};

pub struct Runs {
    pub runs: Arc<runs::Runs>,
    pub cluster: Arc<Cluster>,
    pub artifacts: Arc<Artifacts>,
    pub tokens: Arc<Tokens>,
}

/// Whose artifacts are meant has to be said, and once.
fn one_of(named: &[&str], fields: &str) -> Result<(), Status> {
    match named.iter().filter(|name| !name.is_empty()).count() {
        1 => Ok(()),
        _ => Err(status(Error::invalid(format!("one of {fields} has to be given")))),
    }
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
        let v1::WatchRunRequest { run_id: id, resume } = request.into_inner();
        // Before the first look, so that no change falls in between.
        let changes = self.runs.changes();
        let first = self.runs.get(&caller, &id).await.map_err(status)?;
        let watch = Watch { runs: self.runs.clone(), cluster: self.cluster.clone(), caller, id };
        Ok(Response::new(watch.stream(first, Logs::resumed(resume), changes)))
    }

    async fn decide_run(&self, request: Request<v1::DecideRunRequest>) -> Result<Response<v1::Run>, Status> {
        let caller = caller(&request)?;
        caller.require(&[Scope::Operator]).map_err(status)?;
        let run = self.runs.decide(&caller, request.into_inner()).await.map_err(status)?;
        Ok(Response::new(convert::run(&run)))
    }

    async fn get_plan(
        &self,
        request: Request<v1::GetPlanRequest>,
    ) -> Result<Response<v1::GetPlanResponse>, Status> {
        let caller = client(&request)?;
        let plan = self.runs.plan(&caller, &request.into_inner()).await.map_err(status)?;
        Ok(Response::new(plan))
    }

    async fn get_run_stats(
        &self,
        request: Request<v1::GetRunStatsRequest>,
    ) -> Result<Response<v1::RunStats>, Status> {
        let caller = client(&request)?;
        let stats = self.runs.stats(&caller, request.get_ref()).await.map_err(status)?;
        Ok(Response::new(stats))
    }

    async fn pause(&self, request: Request<v1::PauseRequest>) -> Result<Response<v1::Pauses>, Status> {
        let caller = caller(&request)?;
        caller.require(&[Scope::Operator]).map_err(status)?;
        let held = self.runs.pause(&caller, request.into_inner()).await.map_err(status)?;
        Ok(Response::new(convert::pauses(held)))
    }

    async fn resume(&self, request: Request<v1::ResumeRequest>) -> Result<Response<v1::Pauses>, Status> {
        let caller = caller(&request)?;
        caller.require(&[Scope::Operator]).map_err(status)?;
        let held = self.runs.resume(&caller, request.into_inner()).await.map_err(status)?;
        Ok(Response::new(convert::pauses(held)))
    }

    async fn list_pauses(
        &self,
        request: Request<v1::ListPausesRequest>,
    ) -> Result<Response<v1::Pauses>, Status> {
        let caller = client(&request)?;
        Ok(Response::new(convert::pauses(self.runs.pauses(&caller))))
    }

    async fn list_approvals(
        &self,
        request: Request<v1::ListApprovalsRequest>,
    ) -> Result<Response<v1::ListApprovalsResponse>, Status> {
        let caller = client(&request)?;
        let (waiting, next_cursor) =
            self.runs.approvals(&caller, request.into_inner()).await.map_err(status)?;
        let approvals = waiting
            .into_iter()
            .map(|waiting| v1::ListedApproval {
                may_decide: runs::may_decide(&caller, &waiting.approval),
                approval: Some(convert::approval(&waiting.approval)),
                run_id: waiting.run_id,
                stack: waiting.run.stack,
                service: waiting.run.service,
                cause: waiting.run.cause,
                files: waiting.run.files,
            })
            .collect();
        Ok(Response::new(v1::ListApprovalsResponse { approvals, next_cursor }))
    }

    async fn retry_run(&self, request: Request<v1::RetryRunRequest>) -> Result<Response<v1::Run>, Status> {
        let caller = client(&request)?;
        let run = self.runs.retry(&caller, request.into_inner()).await.map_err(status)?;
        Ok(Response::new(convert::run(&run)))
    }

    async fn undo_run(&self, request: Request<v1::UndoRunRequest>) -> Result<Response<v1::Run>, Status> {
        let caller = client(&request)?;
        let run = self.runs.undo(&caller, request.into_inner()).await.map_err(status)?;
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
        let request = request.into_inner();
        one_of(&[&request.run_id, &request.session_id], "run_id and session_id")?;
        if !request.session_id.is_empty() {
            let (records, next) = self.artifacts.list(&caller, request).await.map_err(status)?;
            let artifacts = records.iter().map(convert::made_artifact).collect::<Result<_, _>>();
            let next_cursor = next.map_or(String::new(), |next| next.to_string());
            return Ok(Response::new(v1::ListArtifactsResponse { artifacts: artifacts?, next_cursor }));
        }
        let loaded = self.runs.get(&caller, &request.run_id).await.map_err(status)?;
        let artifacts = loaded.run.body.artifacts.iter().map(convert::artifact).collect();
        Ok(Response::new(v1::ListArtifactsResponse { artifacts, next_cursor: String::new() }))
    }

    async fn read_artifact(
        &self,
        request: Request<v1::ReadArtifactRequest>,
    ) -> Result<Response<Self::ReadArtifactStream>, Status> {
        let caller = client(&request)?;
        let request = request.into_inner();
        one_of(
            &[&request.run_id, &request.session_id, &request.artifact_id],
            "run_id, session_id and artifact_id",
        )?;
        if request.run_id.is_empty() {
            let record = match request.artifact_id.as_str() {
                "" => self.artifacts.named(&caller, &request.session_id, &request.name).await,
                id => self.artifacts.get(&caller, id).await,
            };
            let record = record.map_err(status)?;
            let artifact = convert::made_artifact(&record)?;
            let body = crate::artifacts::body(&record).map_err(status)?;
            let content = self.artifacts.read(&body, request.offset_bytes, request.length_bytes);
            let first = v1::ReadArtifactResponse { data: Vec::new(), artifact: Some(artifact) };
            let pieces = content.map_err(status)?.map(|piece| match piece {
                Ok(piece) => Ok(v1::ReadArtifactResponse { data: piece.to_vec(), artifact: None }),
                Err(error) => Err(status(error)),
            });
            return Ok(Response::new(Box::pin(tokio_stream::iter([Ok(first)]).chain(pieces))));
        }
        let content =
            self.runs.read_artifact(&caller, &request.run_id, &request.name).await.map_err(status)?;
        let pieces: Vec<_> = content
            .chunks(limits::link::CHUNK_BYTES_MAX)
            .map(|piece| Ok(v1::ReadArtifactResponse { data: piece.to_vec(), artifact: None }))
            .collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(pieces))))
    }

    async fn delete_artifact(
        &self,
        request: Request<v1::DeleteArtifactRequest>,
    ) -> Result<Response<v1::Artifact>, Status> {
        let caller = client(&request)?;
        let record = self.artifacts.delete(&caller, &request.get_ref().artifact_id).await.map_err(status)?;
        Ok(Response::new(convert::made_artifact(&record)?))
    }

    async fn list_stacks(
        &self,
        request: Request<v1::ListStacksRequest>,
    ) -> Result<Response<v1::ListStacksResponse>, Status> {
        let caller = client(&request)?;
        let stacks = self.runs.stacks(&caller).iter().map(convert::stack).collect();
        Ok(Response::new(v1::ListStacksResponse { stacks }))
    }

    async fn check_stack(
        &self,
        request: Request<v1::CheckStackRequest>,
    ) -> Result<Response<v1::CheckStackResponse>, Status> {
        let caller = client(&request)?;
        let approvers = self.tokens.approvers(&caller.tenant);
        let checked = self.runs.check(&caller, &request.get_ref().stack, approvers).await.map_err(status)?;
        Ok(Response::new(checked))
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
    Log(cooper_common::error::Result<Option<Seen>>),
    Changed(Result<cooper_common::ids::RunId, RecvError>),
}

/// How much of a step's log was sent, and of which of its attempts.
#[derive(Default)]
struct Read {
    /// Of stdout and stderr.
    offsets: [u64; 2],
    attempts_used: u32,
}

fn goes_on(state: StepState) -> bool {
    matches!(state, StepState::Pending | StepState::Running)
}

/// What was sent of the logs of a run, by task.
#[derive(Default)]
struct Logs {
    /// The first step whose log is wanted; found with the first look at the run.
    first: Option<usize>,
    read: HashMap<String, Read>,
    complete: HashSet<String>,
}

impl Logs {
    /// As a watch that was cut left off.
    fn resumed(position: Option<v1::LogPosition>) -> Self {
        let mut logs = Self::default();
        if let Some(position) = position {
            let offsets = [position.stdout_offset, position.stderr_offset];
            logs.read.insert(position.task_id, Read { offsets, attempts_used: position.attempts_used });
        }
        logs
    }

    /// Steps whose logs are wanted, as name, task and whether it goes on; in order.
    fn wanted(&mut self, loaded: &Loaded) -> Vec<(String, String, bool)> {
        let steps = &loaded.run.steps;
        let first = *self.first.get_or_insert_with(|| {
            let resumed = steps
                .iter()
                .position(|step| step.task.is_some_and(|task| self.read.contains_key(&task.to_string())));
            let going_on = || steps.iter().position(|step| goes_on(step.state));
            resumed.or_else(going_on).unwrap_or(steps.len())
        });
        let steps = steps.iter().skip(first).filter(|step| step.state != StepState::Pending);
        steps
            .filter_map(|step| Some((step, step.task?.to_string())))
            .filter(|(_, task)| !self.complete.contains(task))
            .map(|(step, task)| (step.kind.as_str().to_owned(), task, goes_on(step.state)))
            .collect()
    }

    /// Notes what is sent of a task's log, and shapes it.
    fn note(&mut self, step: &str, task: &str, seen: Seen) -> Option<v1::WatchRunResponse> {
        let read = self.read.entry(task.to_owned()).or_default();
        match seen {
            Seen::Output { stream, offset, data } => {
                let at = usize::from(stream == Stream::Stderr);
                read.offsets[at] = offset + data.len() as u64;
                let log = v1::StepLog {
                    step: step.to_owned(),
                    task_id: task.to_owned(),
                    offset,
                    data: data.to_vec(),
                    stream: i32::from(stream.number()),
                    attempts_used: read.attempts_used,
                };
                Some(v1::WatchRunResponse { event: Some(Event::Log(log)) })
            }
            Seen::Restarted { attempts_used } => {
                *read = Read { offsets: [0, 0], attempts_used };
                None
            }
            Seen::Ended(_) => {
                self.complete.insert(task.to_owned());
                None
            }
        }
    }
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
        mut logs: Logs,
        mut changes: tokio::sync::broadcast::Receiver<cooper_common::ids::RunId>,
    ) -> BoxStream<v1::WatchRunResponse> {
        Box::pin(async_stream::try_stream! {
            let mut loaded = first;
            loop {
                let mut following = None;
                for (name, task, goes_on) in logs.wanted(&loaded) {
                    let Some(mut log) = self.follow(&mut logs, &task).await? else { continue };
                    if goes_on {
                        following = Some((name, task, log));
                        break;
                    }
                    // It ended since the last look: the rest of its log.
                    while let Some(seen) = log.next().await.map_err(status)? {
                        if let Some(message) = logs.note(&name, &task, seen) {
                            yield message;
                        }
                    }
                    logs.complete.insert(task);
                }
                yield v1::WatchRunResponse { event: Some(Event::Run(convert::run(&loaded))) };
                if loaded.run.body.state.ended() {
                    return;
                }
                let id = loaded.run.id;
                // Log lines of the running step until the run changes.
                loop {
                    let log = async {
                        match &mut following {
                            Some((.., log)) => log.next().await,
                            None => std::future::pending().await,
                        }
                    };
                    let next = tokio::select! {
                        biased;
                        log = log => Next::Log(log),
                        changed = changes.recv() => Next::Changed(changed),
                    };
                    match next {
                        Next::Log(seen) => match (seen.map_err(status)?, &following) {
                            (Some(seen), Some((name, task, _))) => {
                                let ended = matches!(seen, Seen::Ended(_));
                                if let Some(message) = logs.note(name, task, seen) {
                                    yield message;
                                }
                                if ended {
                                    following = None;
                                }
                            }
                            _ => following = None,
                        },
                        Next::Changed(Ok(changed)) if changed != id => {}
                        Next::Changed(Ok(_) | Err(RecvError::Lagged(_))) => break,
                        Next::Changed(Err(RecvError::Closed)) => return,
                    }
                }
                loaded = self.runs.get(&self.caller, &self.id).await.map_err(status)?;
            }
        })
    }

    /// The log of a step from where it was read to.
    async fn follow(&self, logs: &mut Logs, task: &str) -> Result<Option<Following>, Status> {
        let read = logs.read.entry(task.to_owned()).or_default();
        let request = v1::FollowRequest {
            task_id: task.to_owned(),
            stdout_offset: read.offsets[0],
            stderr_offset: read.offsets[1],
            attempts_used: read.attempts_used,
        };
        match tasks::follow(&self.cluster, &self.caller, &request).await {
            Ok((_, restarted, following)) => {
                if let Some(Seen::Restarted { attempts_used }) = restarted {
                    *read = Read { offsets: [0, 0], attempts_used };
                }
                Ok(Some(following))
            }
            // Recorded as running a moment before its task is; or so long ago that retention took it.
            Err(error) if error.code == cooper_common::error::Code::TaskNotFound => Ok(None),
            Err(error) => Err(status(error)),
        }
    }
}
