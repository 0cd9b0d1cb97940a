//! A client as users write them: keys on what may be repeated, again after a cut, output from the offset it has.

use std::{collections::BTreeSet, time::Duration};

use cooper_proto::v1::{
    self, execute_response::Event, sessions_client::SessionsClient, task_spec, tasks_client::TasksClient,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt;
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt;

use crate::{job::Job, net, witness::Witness};

/// How long anything may take before it is tried again.
const PATIENCE: Duration = Duration::from_secs(6);
/// How many messages a slow reader keeps waiting.
const SLOW_MESSAGES: u32 = 25;
/// Output kept per stream in some sessions.
pub const SMALL_OUTPUT_BYTES: u64 = 5_000;

pub struct Client {
    name: String,
    rng: StdRng,
    witness: Witness,
    channel: Channel,
    authorization: MetadataValue<Ascii>,
    sessions: Vec<String>,
    keys: u64,
    /// What was acknowledged to this client.
    acked: Vec<(String, Option<Job>)>,
}

/// What a request led to, in the end.
enum Answer<T> {
    Done(T),
    /// Refused for good.
    Refused(String),
}

impl Client {
    pub fn new(name: String, seed: u64, token: &str, witness: Witness) -> turmoil::Result<Self> {
        let endpoint = Endpoint::from_shared(format!("http://{}:{}", net::COORDINATOR, net::PORT))?
            .connect_timeout(Duration::from_secs(2))
            .http2_keep_alive_interval(Duration::from_secs(2))
            .keep_alive_timeout(Duration::from_secs(2))
            .keep_alive_while_idle(true);
        Ok(Self {
            name,
            rng: StdRng::seed_from_u64(seed),
            witness,
            channel: net::channel(endpoint),
            authorization: format!("Bearer {token}").parse()?,
            sessions: Vec::new(),
            keys: 0,
            acked: Vec::new(),
        })
    }

    /// Works through its share, then waits until all it was promised has ended, and looks at every byte.
    pub async fn run(mut self, pieces: usize) -> turmoil::Result {
        for _ in 0..pieces {
            let pause = self.rng.random_range(0..1_500);
            sleep(Duration::from_millis(pause)).await;
            match self.rng.random_range(0..100) {
                0..30 => self.submit_noops().await,
                30..60 => self.submit_code().await,
                60..80 => self.execute().await,
                80..88 => self.submit_and_cancel().await,
                88..94 => self.repeat_a_key().await,
                _ => self.end_a_session().await,
            }
        }
        self.witness.say(format!("{} has submitted all", self.name));
        self.watch_to_the_end().await;
        for (task, job) in std::mem::take(&mut self.acked) {
            if let Some(job) = job {
                let reader = Reader::new(job, self.rng.random_bool(0.05));
                self.follow(&task, reader).await;
            }
        }
        self.witness.say(format!("{} is done", self.name));
        Ok(())
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", self.authorization.clone());
        request
    }
    fn tasks(&self) -> TasksClient<Channel> {
        TasksClient::new(self.channel.clone())
    }
    fn key(&mut self) -> String {
        self.keys += 1;
        format!("{}-{}", self.name, self.keys)
    }

    /// Judges a failure: `None` = worth another try.
    fn refusal(&self, status: &Status) -> Option<String> {
        let reason = status.get_details_error_info().map(|info| info.reason)?;
        let again = ["unavailable", "overloaded", "no_capacity", "store_unavailable"];
        if reason == "internal" {
            self.witness.violated(format!(
                "{} was told of an internal error: {}",
                self.name,
                status.message()
            ));
        }
        (!again.contains(&reason.as_str())).then_some(reason)
    }

    async fn pause(&mut self) {
        let pause = self.rng.random_range(50..800);
        sleep(Duration::from_millis(pause)).await;
    }

    /// Tries until there is an answer.
    async fn insist<T, F: Future<Output = Result<T, Status>>>(
        &mut self,
        mut call: impl FnMut(&Self) -> F,
    ) -> Answer<T> {
        loop {
            let called = timeout(PATIENCE, call(self)).await;
            match called.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer"))) {
                Ok(value) => return Answer::Done(value),
                Err(status) => {
                    if let Some(reason) = self.refusal(&status) {
                        return Answer::Refused(reason);
                    }
                    self.witness.say(format!("{} tries again: {}", self.name, status.message()));
                }
            }
            self.pause().await;
        }
    }

    /// One of its sessions, made if there are few.
    async fn session(&mut self) -> Option<String> {
        if self.sessions.len() < 2 {
            let output_bytes = if self.rng.random_bool(0.3) { SMALL_OUTPUT_BYTES } else { 0 };
            let request = v1::CreateSessionRequest {
                idempotency_key: self.key(),
                limits: Some(v1::Limits { output_bytes, ..v1::Limits::default() }),
                wait_ms: 3_000,
                ..v1::CreateSessionRequest::default()
            };
            let created = self
                .insist(|this| {
                    let request = this.request(request.clone());
                    let mut sessions = SessionsClient::new(this.channel.clone());
                    async move { sessions.create_session(request).await }
                })
                .await;
            if let Answer::Done(session) = created {
                let session = session.into_inner();
                self.witness.say(format!("{} has {} on {}", self.name, session.id, session.worker_id));
                self.sessions.push(session.id);
            }
        }
        let count = self.sessions.len();
        (count > 0).then(|| self.sessions[self.rng.random_range(0..count)].clone())
    }

    /// A session that is of no use any more is replaced.
    fn refused(&mut self, session: &str, reason: &str) {
        if ["session_ended", "session_not_found", "no_worker"].contains(&reason) {
            self.sessions.retain(|known| known != session);
        }
    }

    async fn end_a_session(&mut self) {
        let Some(session) = self.session().await else { return };
        self.sessions.retain(|known| *known != session);
        let request =
            v1::DestroySessionRequest { session_id: session, ..v1::DestroySessionRequest::default() };
        let _ = self
            .insist(|this| {
                let request = this.request(request.clone());
                let mut sessions = SessionsClient::new(this.channel.clone());
                async move { sessions.destroy_session(request).await }
            })
            .await;
    }

    fn job(&mut self) -> Job {
        let size = |rng: &mut StdRng| match rng.random_range(0..10) {
            0..3 => 0,
            3..7 => rng.random_range(1..3_000),
            7..9 => rng.random_range(3_000..40_000),
            _ => rng.random_range(40_000..400_000),
        };
        let bytes = [size(&mut self.rng), size(&mut self.rng) / 4];
        let ms = match self.rng.random_range(0..10) {
            0..6 => self.rng.random_range(0..200),
            6..9 => self.rng.random_range(200..3_000),
            _ => self.rng.random_range(3_000..12_000),
        };
        let exit = i32::from(self.rng.random_bool(0.1));
        let again = self.rng.random_bool(0.15);
        Job { number: self.witness.new_job_number(), ms, bytes, exit, again }
    }

    fn spec(&mut self, session: &str, job: &Job) -> v1::TaskSpec {
        let kind = if self.rng.random_bool(0.6) {
            task_spec::Kind::Python(v1::PythonSpec { code: job.code(), ..v1::PythonSpec::default() })
        } else {
            let argv = job.code().split(' ').map(str::to_owned).collect();
            task_spec::Kind::Shell(v1::ShellSpec { argv, ..v1::ShellSpec::default() })
        };
        let timeout_ms = if self.rng.random_bool(0.1) { 1_500 } else { 0 };
        v1::TaskSpec {
            kind: Some(kind),
            session_id: session.to_owned(),
            timeout_ms,
            ..v1::TaskSpec::default()
        }
    }

    fn acked(&mut self, key: &str, task: &str, job: Option<Job>) {
        self.witness.acked(key, task, job);
        if !self.acked.iter().any(|(known, _)| known == task) {
            self.acked.push((task.to_owned(), job));
        }
    }

    async fn submit_noops(&mut self) {
        let keyed = self.rng.random_bool(0.7);
        let mut tasks = Vec::new();
        for _ in 0..self.rng.random_range(1..12) {
            let kind = Some(task_spec::Kind::Noop(v1::NoopSpec {}));
            let spec = Some(v1::TaskSpec { kind, ..v1::TaskSpec::default() });
            let idempotency_key = if keyed { self.key() } else { String::new() };
            tasks.push(v1::SubmitTaskRequest { idempotency_key, spec, ..v1::SubmitTaskRequest::default() });
        }
        let batch = v1::SubmitTasksRequest { tasks: tasks.clone() };
        let call = |this: &Self| {
            let request = this.request(tokio_stream::iter([batch.clone()]));
            let mut client = this.tasks();
            async move {
                let mut answers = client.submit_tasks(request).await?.into_inner();
                answers.message().await?.ok_or_else(|| Status::unavailable("cut before the answer"))
            }
        };
        let answer = if keyed {
            self.insist(call).await
        } else {
            // Without keys nobody may try again: what was not acknowledged may have happened.
            match timeout(PATIENCE, call(self)).await {
                Ok(Ok(answer)) => Answer::Done(answer),
                _ => return,
            }
        };
        let Answer::Done(answer) = answer else { return };
        for (index, task) in answer.task_ids.iter().enumerate() {
            match answer.errors.get(&(index as u32)) {
                Some(error) => self.witness.say(format!("{}: a noop was refused: {}", self.name, error.code)),
                None => self.acked(&tasks[index].idempotency_key, task, None),
            }
        }
    }

    async fn submit(&mut self, request: &v1::SubmitTaskRequest, job: Job) -> Option<String> {
        let answer = self
            .insist(|this| {
                let request = this.request(request.clone());
                let mut client = this.tasks();
                async move { client.submit_task(request).await }
            })
            .await;
        match answer {
            Answer::Done(task) => {
                let task = task.into_inner().id;
                self.acked(&request.idempotency_key, &task, Some(job));
                Some(task)
            }
            Answer::Refused(reason) => {
                let session = request.spec.as_ref().map_or("", |spec| &spec.session_id).to_owned();
                self.refused(&session, &reason);
                None
            }
        }
    }

    async fn keyed_code(&mut self) -> Option<(v1::SubmitTaskRequest, Job)> {
        let session = self.session().await?;
        let job = self.job();
        let spec = Some(self.spec(&session, &job));
        let retry = job.again.then(|| v1::RetryPolicy { when: v1::RetryWhen::Lost.into(), max_attempts: 5 });
        let priority = self.rng.random_range(-1..=1);
        let request = v1::SubmitTaskRequest {
            idempotency_key: self.key(),
            spec,
            retry,
            priority,
            ..v1::SubmitTaskRequest::default()
        };
        Some((request, job))
    }

    async fn submit_code(&mut self) {
        if let Some((request, job)) = self.keyed_code().await {
            self.submit(&request, job).await;
        }
    }

    async fn repeat_a_key(&mut self) {
        let Some((request, job)) = self.keyed_code().await else { return };
        self.submit(&request, job).await;
        self.pause().await;
        // The witness compares the tasks of a key.
        self.submit(&request, job).await;
    }

    async fn submit_and_cancel(&mut self) {
        let Some((request, job)) = self.keyed_code().await else { return };
        let Some(task) = self.submit(&request, job).await else { return };
        self.pause().await;
        self.witness.look(|seen| seen.cancelled.insert(task.clone()));
        let cancel = v1::CancelTaskRequest { task_id: task, idempotency_key: String::new() };
        let _ = self
            .insist(|this| {
                let request = this.request(cancel.clone());
                let mut client = this.tasks();
                async move { client.cancel_task(request).await }
            })
            .await;
    }

    /// Submits and follows in one call; goes on with Follow after a cut.
    async fn execute(&mut self) {
        let Some((request, job)) = self.keyed_code().await else { return };
        let mut reader = Reader::new(job, self.rng.random_bool(0.2));
        let called = {
            let (mut client, call) = (self.tasks(), self.request(request.clone()));
            timeout(PATIENCE, client.execute(call)).await
        };
        let task = match called {
            Ok(Ok(stream)) => {
                let cut = reader.read(self, stream.into_inner()).await;
                match &reader.task {
                    Some(task) => self.acked(&request.idempotency_key, &task.clone(), Some(job)),
                    None => return,
                }
                if cut.is_ok() {
                    return;
                }
                reader.task.clone()
            }
            Ok(Err(status)) => {
                if let Some(reason) = self.refusal(&status) {
                    let session = request.spec.as_ref().map_or("", |spec| &spec.session_id).to_owned();
                    self.refused(&session, &reason);
                }
                None
            }
            Err(_) => None,
        };
        // Unknown whether it was taken in: the key finds out.
        match task {
            Some(task) => self.follow(&task, reader).await,
            None => {
                self.submit(&request, job).await;
            }
        }
    }

    /// Follows a task to its end, from where its reader is.
    async fn follow(&mut self, task: &str, mut reader: Reader) {
        loop {
            let follow = v1::FollowRequest {
                task_id: task.to_owned(),
                stdout_offset: reader.offsets[0],
                stderr_offset: reader.offsets[1],
                attempts_used: reader.attempts_used,
            };
            let (mut client, request) = (self.tasks(), self.request(follow));
            match timeout(PATIENCE, client.follow(request)).await {
                Ok(Ok(stream)) => {
                    if reader.read(self, stream.into_inner()).await.is_ok() {
                        return;
                    }
                }
                Ok(Err(status)) => {
                    if let Some(reason) = self.refusal(&status) {
                        return self.witness.violated(format!("I2: follow of {task} was refused: {reason}"));
                    }
                }
                Err(_) => {}
            }
            self.pause().await;
        }
    }

    /// Watches everything that was acknowledged until all of it has ended.
    async fn watch_to_the_end(&mut self) {
        let mut open: BTreeSet<String> = self.acked.iter().map(|(task, _)| task.clone()).collect();
        while !open.is_empty() {
            let watch = v1::WatchTasksRequest { task_ids: open.iter().cloned().collect(), from_seq: 0 };
            let (mut client, request) = (self.tasks(), self.request(watch));
            if let Ok(watched) = timeout(PATIENCE, client.watch_tasks(request)).await
                && let Err(status) = self.watch(watched, &mut open).await
                && let Some(reason) = self.refusal(&status)
            {
                let why = status.message();
                return self.witness.violated(format!("I2: a watch was refused: {reason}: {why}"));
            }
            self.pause().await;
        }
    }

    async fn watch(
        &self,
        watched: Result<tonic::Response<tonic::Streaming<v1::WatchTasksResponse>>, Status>,
        open: &mut BTreeSet<String>,
    ) -> Result<(), Status> {
        let mut stream = watched?.into_inner();
        // A watch that says nothing for long is opened again: the other end may be gone without a word.
        while !open.is_empty()
            && let Ok(Some(ended)) = timeout(PATIENCE * 3, stream.next()).await
        {
            for task in ended?.tasks {
                self.witness.told(&task.id, task.state);
                if !open.remove(&task.id) {
                    self.witness.violated(format!("I3: a watch told twice of {}", task.id));
                }
            }
        }
        Ok(())
    }
}

/// Reads an execution's output and holds every byte against what it must be.
struct Reader {
    job: Job,
    /// Messages it takes its time over.
    slow: u32,
    task: Option<String>,
    /// Whose output `offsets` count.
    attempts_used: u32,
    offsets: [u64; 2],
}

impl Reader {
    fn new(job: Job, slow: bool) -> Self {
        Self {
            job,
            slow: if slow { SLOW_MESSAGES } else { 0 },
            task: None,
            attempts_used: 0,
            offsets: [0, 0],
        }
    }

    /// To the end of the task, or `Err` at a cut.
    async fn read(
        &mut self,
        client: &mut Client,
        mut stream: tonic::Streaming<v1::ExecuteResponse>,
    ) -> Result<(), ()> {
        let witness = client.witness.clone();
        loop {
            // An execution may be silent for as long as it likes; a connection that is dead is found by its keepalive.
            let event = match timeout(PATIENCE * 5, stream.message()).await {
                Ok(Ok(Some(v1::ExecuteResponse { event: Some(event) }))) => event,
                Ok(Err(status)) if status.code() == Code::Internal => {
                    let _ = client.refusal(&status);
                    return Err(());
                }
                _ => return Err(()),
            };
            if self.slow > 0 {
                self.slow -= 1;
                client.pause().await;
            }
            match event {
                Event::Accepted(task) => self.task = Some(task.id),
                Event::Restarted(restarted) => {
                    // One that never started may have another attempt, and has said nothing yet.
                    if !self.job.again && self.offsets != [0, 0] {
                        witness.violated(format!("I1: {} was restarted", restarted.task_id));
                    }
                    (self.attempts_used, self.offsets) = (restarted.attempts_used, [0, 0]);
                }
                Event::Output(output) => self.take(&witness, &output),
                Event::Ended(task) => {
                    self.ended(&witness, &task);
                    return Ok(());
                }
            }
        }
    }

    fn take(&mut self, witness: &Witness, output: &v1::Output) {
        let stream = if output.stream == i32::from(v1::Stream::Stderr) { 1 } else { 0 };
        let task = self.task.clone().unwrap_or_default();
        let at = self.offsets[stream];
        if output.offset != at {
            witness
                .violated(format!("I4: {task} stream {stream}: {} came where {at} was due", output.offset));
        }
        let wrong =
            output.data.iter().zip(output.offset..).find(|(byte, at)| **byte != self.job.byte(stream, *at));
        if let Some((_, at)) = wrong {
            witness.violated(format!("I4: {task} stream {stream}: the byte at {at} is wrong"));
        }
        self.offsets[stream] = output.offset + output.data.len() as u64;
    }

    fn ended(&self, witness: &Witness, task: &v1::Task) {
        witness.told(&task.id, task.state);
        let outcome = task.outcome.clone().unwrap_or_default();
        let told = [outcome.stdout_bytes, outcome.stderr_bytes];
        let truncated = [outcome.stdout_truncated, outcome.stderr_truncated];
        let whole = matches!(task.state(), v1::TaskState::Succeeded | v1::TaskState::Failed);
        // An end that Cooper decided on says nothing of bytes.
        let ran = whole || matches!(task.state(), v1::TaskState::TimedOut | v1::TaskState::Cancelled);
        for stream in 0..2 {
            let (got, printed) = (self.offsets[stream], self.job.bytes[stream]);
            if ran && outcome.error.is_none() && got != told[stream] {
                witness.violated(format!(
                    "I4: {} stream {stream}: {got} bytes came, the outcome says {}",
                    task.id, told[stream]
                ));
            }
            let expected = if truncated[stream] { SMALL_OUTPUT_BYTES } else { printed };
            if whole && outcome.error.is_none() && got != expected {
                witness.violated(format!(
                    "I4: {} stream {stream}: {got} bytes of {printed} (truncated: {})",
                    task.id, truncated[stream]
                ));
            }
        }
    }
}
