//! Clients as they should be: they repeat with the same key, go on at the offset they have, and note down everything.

use std::{cell::Cell, path::PathBuf, rc::Rc, time::Duration};

use anyhow::{Context, Result};
use cooper_chaos::{
    journal::{Entry, Journal, digest},
    work::Work,
};
use cooper_proto::v1::{
    self, CreateSessionRequest, DestroySessionRequest, FollowRequest, SubmitTaskRequest, SubmitTasksRequest,
    WatchTasksRequest, execute_response::Event, sessions_client::SessionsClient, tasks_client::TasksClient,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{sync::watch, time::timeout};
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

/// Until a call that answers once is called again.
const CALL: Duration = Duration::from_secs(8);
/// Until a stream that says nothing is opened again.
const SILENCE: Duration = Duration::from_secs(10);
const PING: Duration = Duration::from_secs(1);
const BATCH: usize = 32;
/// A stream of output is cut by its own client once in so many messages.
const OWN_CUT: u32 = 12;
const KEPT_BUSY_MS: u64 = 20;

#[derive(Clone)]
pub struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

pub type Service = InterceptedService<Channel, Bearer>;

/// A connection that is made when it is needed, and again when it broke.
pub fn connect(address: std::net::SocketAddr, token: &str) -> Result<Service> {
    let channel = Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(Duration::from_secs(2))
        .http2_keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true)
        .connect_lazy();
    let bearer = Bearer(format!("Bearer {token}").parse().context("the token")?);
    Ok(InterceptedService::new(channel, bearer))
}

/// What a client does all the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Habit {
    /// No-ops, many in a message.
    Batches,
    /// No-ops, one by one.
    Single,
    Python,
    /// Commands with long output.
    Shell,
}

/// What all clients share.
pub struct Common {
    /// Tasks that were asked for.
    pub asked: Cell<u64>,
    /// Tasks whose end was heard.
    pub heard: Cell<u64>,
    /// Batches are sent this far apart.
    pub batch_pause: Duration,
    pub effects: PathBuf,
    /// The next piece of output that is noted down is noted down wrongly.
    pub flip: Cell<bool>,
    pub finish: watch::Receiver<bool>,
}

/// What was heard of an execution so far.
#[derive(Debug, Default)]
struct Heard {
    /// Empty: that it was accepted was not heard.
    task: String,
    /// Of standard output, next.
    offset: u64,
    /// Whose output that is.
    attempts_used: u32,
}

pub struct Client {
    name: String,
    habit: Habit,
    service: Service,
    journal: Journal,
    rng: StdRng,
    common: Rc<Common>,
    session: Option<String>,
    count: u64,
}

impl Client {
    pub fn new(
        name: String,
        habit: Habit,
        service: Service,
        journal: Journal,
        seed: u64,
        common: Rc<Common>,
    ) -> Self {
        let rng = StdRng::seed_from_u64(seed);
        Self { name, habit, service, journal, rng, common, session: None, count: 0 }
    }

    fn tasks(&self) -> TasksClient<Service> {
        TasksClient::new(self.service.clone())
    }

    /// Works until it is told to finish, and then until what it began has ended.
    pub async fn run(mut self) -> Result<()> {
        while !*self.common.finish.borrow() {
            match self.habit {
                Habit::Batches => {
                    self.batch().await?;
                    tokio::time::sleep(self.common.batch_pause).await;
                }
                Habit::Single => self.single().await?,
                Habit::Python | Habit::Shell => self.execute().await?,
            }
        }
        if let Some(session) = self.session.take() {
            self.destroy(session).await;
        }
        Ok(())
    }

    fn key(&mut self) -> String {
        self.count += 1;
        self.common.asked.set(self.common.asked.get() + 1);
        format!("{}-{}", self.name, self.count)
    }

    async fn pause(&mut self) {
        let ms = self.rng.random_range(10..150);
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    fn note(&mut self, entry: Entry) -> Result<()> {
        Ok(self.journal.note(&entry)?)
    }

    fn ended(&mut self, task: &v1::Task) -> Result<()> {
        self.common.heard.set(self.common.heard.get() + 1);
        let outcome = task.outcome.clone().unwrap_or_default();
        self.note(Entry::Ended {
            task: task.id.clone(),
            state: task.state().as_str_name().trim_start_matches("TASK_STATE_").to_lowercase(),
            stdout_bytes: outcome.stdout_bytes,
            truncated: outcome.stdout_truncated,
        })
    }

    // No-ops.

    fn noop(key: &str) -> SubmitTaskRequest {
        let spec = Some(Work::Noop.spec("", ""));
        SubmitTaskRequest { idempotency_key: key.to_owned(), spec, ..SubmitTaskRequest::default() }
    }

    async fn batch(&mut self) -> Result<()> {
        let keys: Vec<String> = (0..BATCH).map(|_| self.key()).collect();
        for key in &keys {
            self.note(Entry::Asked { key: key.clone(), work: Work::Noop })?;
        }
        let mut left = keys;
        let mut ids = Vec::new();
        while !left.is_empty() {
            let tasks = left.iter().map(|key| Self::noop(key)).collect();
            let batch = tokio_stream::iter([SubmitTasksRequest { tasks }]);
            let mut client = self.tasks();
            let answer =
                timeout(CALL, async { client.submit_tasks(batch).await?.into_inner().message().await });
            if let Ok(Ok(Some(answer))) = answer.await {
                let answered: Vec<_> = left.drain(..).zip(answer.task_ids).collect();
                for (key, task) in answered {
                    if task.is_empty() {
                        left.push(key);
                    } else {
                        self.note(Entry::Accepted { key, task: task.clone() })?;
                        ids.push(task);
                    }
                }
            }
            if !left.is_empty() {
                self.pause().await;
            }
        }
        while !ids.is_empty() {
            let mut client = self.tasks();
            let watching = timeout(
                CALL,
                client.watch_tasks(WatchTasksRequest { task_ids: ids.clone(), ..Default::default() }),
            );
            if let Ok(Ok(stream)) = watching.await {
                let mut stream = stream.into_inner();
                while !ids.is_empty()
                    && let Ok(Ok(Some(some))) = timeout(SILENCE, stream.message()).await
                {
                    for task in some.tasks {
                        if let Some(at) = ids.iter().position(|id| *id == task.id) {
                            ids.swap_remove(at);
                            self.ended(&task)?;
                        }
                    }
                }
            }
            if !ids.is_empty() {
                self.pause().await;
            }
        }
        Ok(())
    }

    async fn single(&mut self) -> Result<()> {
        let key = self.key();
        self.note(Entry::Asked { key: key.clone(), work: Work::Noop })?;
        let task = loop {
            let mut client = self.tasks();
            if let Ok(Ok(task)) = timeout(CALL, client.submit_task(Self::noop(&key))).await {
                break task.into_inner().id;
            }
            self.pause().await;
        };
        self.note(Entry::Accepted { key: key.clone(), task: task.clone() })?;
        // Asked again although it was answered: the answer has to be the same.
        if self.rng.random_ratio(1, 8) {
            let mut client = self.tasks();
            if let Ok(Ok(again)) = timeout(CALL, client.submit_task(Self::noop(&key))).await {
                self.note(Entry::Accepted { key, task: again.into_inner().id })?;
            }
        }
        self.follow_to_the_end(Heard { task, ..Heard::default() }).await?;
        let ms = self.rng.random_range(0..KEPT_BUSY_MS);
        tokio::time::sleep(Duration::from_millis(ms)).await;
        Ok(())
    }

    // Executions.

    fn work(&mut self, key: &str) -> Work {
        let token = format!("token-{key}");
        let long = self.rng.random_ratio(1, 6);
        match self.habit {
            Habit::Python => Work::Python {
                token,
                seed: self.rng.random(),
                lines: if long {
                    self.rng.random_range(5_000..15_000)
                } else {
                    self.rng.random_range(0..1_500)
                },
                pause_ms: self.rng.random_range(0..60),
            },
            _ => Work::Shell {
                token,
                lines: if long {
                    self.rng.random_range(2_000..8_000)
                } else {
                    self.rng.random_range(10..1_000)
                },
                blocks: self.rng.random_range(1..8),
                pause_ms: self.rng.random_range(0..200),
            },
        }
    }

    async fn execute(&mut self) -> Result<()> {
        let key = self.key();
        let work = self.work(&key);
        self.note(Entry::Asked { key: key.clone(), work: work.clone() })?;
        let session = self.session().await?;
        let spec = work.spec(&session, &self.common.effects.to_string_lossy());
        let request = SubmitTaskRequest {
            idempotency_key: key.clone(),
            spec: Some(spec),
            ..SubmitTaskRequest::default()
        };
        loop {
            let mut client = self.tasks();
            match timeout(CALL, client.execute(request.clone())).await {
                Ok(Ok(stream)) => {
                    let mut heard = Heard::default();
                    if self.listen(stream.into_inner(), Some(&key), &mut heard).await? {
                        return Ok(());
                    }
                    if !heard.task.is_empty() {
                        return self.follow_to_the_end(heard).await;
                    }
                }
                // The session is gone for good; another one is another request, and needs another key.
                Ok(Err(status)) if matches!(status.code(), Code::FailedPrecondition | Code::NotFound) => {
                    self.session = None;
                    return self.note(Entry::Abandoned { key, why: status.message().to_owned() });
                }
                Ok(Err(_)) | Err(_) => {}
            }
            self.pause().await;
        }
    }

    async fn follow_to_the_end(&mut self, mut heard: Heard) -> Result<()> {
        loop {
            let mut client = self.tasks();
            let request = FollowRequest {
                task_id: heard.task.clone(),
                stdout_offset: heard.offset,
                stderr_offset: 0,
                attempts_used: heard.attempts_used,
            };
            if let Ok(Ok(stream)) = timeout(CALL, client.follow(request)).await
                && self.listen(stream.into_inner(), None, &mut heard).await?
            {
                return Ok(());
            }
            self.pause().await;
        }
    }

    /// Reads a stream of an execution. True: its end was told.
    async fn listen(
        &mut self,
        mut stream: tonic::Streaming<v1::ExecuteResponse>,
        key: Option<&str>,
        heard: &mut Heard,
    ) -> Result<bool> {
        while let Ok(Ok(Some(message))) = timeout(SILENCE, stream.message()).await {
            match message.event {
                Some(Event::Accepted(accepted)) => {
                    if let Some(key) = key {
                        self.note(Entry::Accepted { key: key.to_owned(), task: accepted.id.clone() })?;
                    }
                    if heard.task.is_empty() {
                        (heard.task, heard.attempts_used) = (accepted.id, accepted.attempts_used);
                    }
                }
                Some(Event::Output(output)) => {
                    let task = heard.task.clone();
                    let mut data = output.data.to_vec();
                    if !data.is_empty() && self.common.flip.replace(false) {
                        data[0] ^= 1;
                    }
                    let len = data.len() as u64;
                    self.note(Entry::Received {
                        task,
                        stream: output.stream,
                        offset: output.offset,
                        len,
                        sha256: digest(&data),
                    })?;
                    if output.stream == v1::Stream::Stdout as i32 {
                        heard.offset = output.offset + len;
                    }
                    if self.rng.random_ratio(1, OWN_CUT) {
                        return Ok(false);
                    }
                }
                Some(Event::Ended(ended)) => {
                    self.ended(&ended)?;
                    return Ok(true);
                }
                Some(Event::Restarted(restarted)) => {
                    self.note(Entry::Restarted { task: heard.task.clone() })?;
                    (heard.offset, heard.attempts_used) = (0, restarted.attempts_used);
                }
                None => {}
            }
        }
        Ok(false)
    }

    // Sessions.

    async fn session(&mut self) -> Result<String> {
        if let Some(session) = &self.session {
            return Ok(session.clone());
        }
        self.count += 1;
        let request = CreateSessionRequest {
            idempotency_key: format!("{}-session-{}", self.name, self.count),
            wait_ms: 5_000,
            ..CreateSessionRequest::default()
        };
        loop {
            let mut client = SessionsClient::new(self.service.clone());
            match timeout(2 * CALL, client.create_session(request.clone())).await {
                Ok(Ok(session)) => {
                    let id = session.into_inner().id;
                    self.session = Some(id.clone());
                    return Ok(id);
                }
                Ok(Err(_)) | Err(_) => self.pause().await,
            }
        }
    }

    async fn destroy(&mut self, session: String) {
        let key = format!("{}-destroy", self.name);
        loop {
            let request = DestroySessionRequest {
                session_id: session.clone(),
                idempotency_key: key.clone(),
                ..DestroySessionRequest::default()
            };
            let mut client = SessionsClient::new(self.service.clone());
            if matches!(timeout(CALL, client.destroy_session(request)).await, Ok(Ok(_))) {
                return;
            }
            self.pause().await;
        }
    }
}
