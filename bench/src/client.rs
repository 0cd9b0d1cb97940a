//! Cooper's gRPC client as a user's program has it: one connection, a token, a key for each request.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use cooper_common::{limits, token::Secret};
use cooper_proto::v1::{
    CreateCheckpointRequest, CreateRunRequest, CreateSessionRequest, CreateTokenRequest,
    DeleteCheckpointRequest, DestroySessionRequest, ExecutionMode, GetInfoRequest, InstallSpec,
    ListWorkersRequest, NoopSpec, PythonSpec, RestoreCheckpointRequest, RunState, Session, SubmitTaskRequest,
    Task, TaskSpec, TaskState, WatchRunRequest, WatchTasksRequest, WatchTasksResponse,
    admin_client::AdminClient, checkpoints_client::CheckpointsClient, execute_response::Event,
    runs_client::RunsClient, sessions_client::SessionsClient, task_spec::Kind, tasks_client::TasksClient,
    watch_run_response,
};
use tonic::{
    Request, Status, Streaming,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

#[derive(Clone)]
pub struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

type Service = InterceptedService<Channel, Bearer>;

#[derive(Clone)]
pub struct Client {
    admin: AdminClient<Service>,
    sessions: SessionsClient<Service>,
    checkpoints: CheckpointsClient<Service>,
    runs: RunsClient<Service>,
    pub tasks: TasksClient<Service>,
}

impl Client {
    pub async fn connect(url: &str, token: &Secret) -> Result<Self> {
        let channel = Endpoint::from_shared(url.to_owned())?.tcp_nodelay(true).connect().await?;
        let service = InterceptedService::new(channel, Bearer(format!("Bearer {}", token.expose()).parse()?));
        Ok(Self {
            admin: AdminClient::new(service.clone()),
            sessions: SessionsClient::new(service.clone()),
            checkpoints: CheckpointsClient::new(service.clone()),
            runs: RunsClient::new(service.clone()),
            tasks: TasksClient::new(service).max_decoding_message_size(limits::link::MESSAGE_BYTES_MAX),
        })
    }

    pub async fn worker_is_ready(&mut self) -> Result<bool> {
        let workers = self.admin.list_workers(ListWorkersRequest {}).await?.into_inner().workers;
        Ok(workers.iter().any(|worker| worker.state == "ready"))
    }

    pub async fn create_session(&mut self) -> Result<Session> {
        let request = CreateSessionRequest { idempotency_key: key(), ..Default::default() };
        Ok(self.sessions.create_session(request).await?.into_inner())
    }

    pub async fn destroy_session(&mut self, session_id: String) -> Result<()> {
        self.sessions
            .destroy_session(DestroySessionRequest {
                session_id,
                idempotency_key: key(),
                ..DestroySessionRequest::default()
            })
            .await?;
        Ok(())
    }

    /// Runs code to its end, which has to be a success; answers with its value as text.
    pub async fn execute(&mut self, session_id: &str, code: &str) -> Result<String> {
        self.execute_in(session_id, code, ExecutionMode::Stateful).await
    }

    /// The same in a fork of the session's interpreter.
    pub async fn execute_fresh(&mut self, session_id: &str, code: &str) -> Result<String> {
        self.execute_in(session_id, code, ExecutionMode::Fresh).await
    }

    async fn execute_in(&mut self, session_id: &str, code: &str, mode: ExecutionMode) -> Result<String> {
        let spec = PythonSpec { code: code.to_owned(), mode: mode.into(), ..Default::default() };
        value(self.run(session_id, Kind::Python(spec)).await?)
    }

    /// Installs a package in a session's venv.
    pub async fn install(&mut self, session_id: &str, package: &str) -> Result<()> {
        let spec = InstallSpec { packages: vec![package.to_owned()], ..Default::default() };
        value(self.run(session_id, Kind::Install(spec)).await?).map(drop)
    }

    /// Saves a session's files and packages; answers with the checkpoint's id.
    pub async fn checkpoint(&mut self, session_id: &str) -> Result<String> {
        let request = CreateCheckpointRequest {
            session_id: session_id.to_owned(),
            idempotency_key: key(),
            ..Default::default()
        };
        Ok(self.checkpoints.create_checkpoint(request).await?.into_inner().id)
    }

    /// A new session with what was saved, ready; answers with its id.
    pub async fn restore(&mut self, checkpoint_id: &str) -> Result<String> {
        let session = CreateSessionRequest { idempotency_key: key(), ..Default::default() };
        let request =
            RestoreCheckpointRequest { checkpoint_id: checkpoint_id.to_owned(), session: Some(session) };
        Ok(self.checkpoints.restore_checkpoint(request).await?.into_inner().id)
    }

    pub async fn delete_checkpoint(&mut self, checkpoint_id: String) -> Result<()> {
        self.checkpoints.delete_checkpoint(DeleteCheckpointRequest { checkpoint_id }).await?;
        Ok(())
    }

    /// Repairs a service of a registered stack, followed to its end, which has to be a success.
    pub async fn repair(&mut self, stack: &str, service: &str) -> Result<()> {
        let request = CreateRunRequest {
            idempotency_key: key(),
            stack: stack.to_owned(),
            service: service.to_owned(),
            ..Default::default()
        };
        let mut run = self.runs.create_run(request).await?.into_inner();
        let watch = WatchRunRequest { run_id: run.id.clone(), ..Default::default() };
        let mut changes = self.runs.watch_run(watch).await?.into_inner();
        while let Some(message) = changes.message().await? {
            if let Some(watch_run_response::Event::Run(now)) = message.event {
                run = now;
            }
        }
        if run.state() != RunState::Succeeded {
            bail!("{} ended as {}: {:?}", run.id, run.state().as_str_name(), run.error);
        }
        Ok(())
    }

    /// Runs something in a session to its end.
    async fn run(&mut self, session_id: &str, kind: Kind) -> Result<Task> {
        let spec = TaskSpec { kind: Some(kind), session_id: session_id.to_owned(), ..Default::default() };
        let request =
            SubmitTaskRequest { idempotency_key: key(), spec: Some(spec), ..SubmitTaskRequest::default() };
        let mut events = self.tasks.execute(request).await?.into_inner();
        let mut end = None;
        while let Some(message) = events.message().await? {
            if let Some(Event::Ended(task)) = message.event {
                end = Some(task);
            }
        }
        end.context("the stream ended before the task")
    }

    /// Every task of ours that ends from now on.
    pub async fn watch(&mut self) -> Result<Streaming<WatchTasksResponse>> {
        self.watch_these(Vec::new()).await
    }

    /// The end of each of these.
    pub async fn watch_these(&mut self, task_ids: Vec<String>) -> Result<Streaming<WatchTasksResponse>> {
        Ok(self.tasks.watch_tasks(WatchTasksRequest { task_ids, from_seq: 0 }).await?.into_inner())
    }

    /// Tasks of ours that wait for a worker.
    pub async fn queued(&mut self) -> Result<u32> {
        Ok(self.admin.get_info(GetInfoRequest {}).await?.into_inner().tasks_queued)
    }

    /// The secret of a token that workers come in with.
    pub async fn join_token(&mut self) -> Result<String> {
        let request = CreateTokenRequest {
            scope: "worker".into(),
            name: "bench".into(),
            idempotency_key: key(),
            ..CreateTokenRequest::default()
        };
        Ok(self.admin.create_token(request).await?.into_inner().secret)
    }
}

fn value(task: Task) -> Result<String> {
    let outcome = task.outcome.clone().unwrap_or_default();
    if task.state() != TaskState::Succeeded {
        bail!("task {} ended as {}: {outcome:?}", task.id, task.state().as_str_name());
    }
    let text = outcome.result.and_then(|result| result.data.get("text/plain").cloned()).unwrap_or_default();
    Ok(String::from_utf8(text)?)
}

/// A task that does nothing, without a key: nobody repeats a submit here.
pub fn noop() -> SubmitTaskRequest {
    let spec = TaskSpec { kind: Some(Kind::Noop(NoopSpec {})), ..Default::default() };
    SubmitTaskRequest { spec: Some(spec), ..SubmitTaskRequest::default() }
}

fn key() -> String {
    static LAST: AtomicU64 = AtomicU64::new(0);
    format!("bench-{}-{}", std::process::id(), LAST.fetch_add(1, Ordering::Relaxed))
}
