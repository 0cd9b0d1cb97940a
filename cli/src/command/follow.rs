//! Follows a task to its end, byte for byte, across cut connections and restarted coordinators.

#[cfg(test)]
mod tests;

use std::time::Duration;

use cooper_common::{backoff, clock, error::Code, limits};
use cooper_proto::v1::{
    CancelTaskRequest, ExecuteResponse, FollowRequest, Stream, SubmitTaskRequest, Task, TaskSpec,
    execute_response::Event,
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};
use tonic::Streaming;

use crate::{
    args::Schedule,
    connect::{Client, Cluster, PATIENCE_MS, idempotency_key},
    failure::{Failure, Result, is_cut},
};

/// Takes output as it comes, each byte once, in order per stream.
pub trait Sink {
    fn write(&mut self, stream: Stream, data: &[u8]) -> Result<()>;
    /// The attempt did not succeed: what was written of it counts no more.
    fn restarted(&mut self, attempts_used: u32);
}

/// What is followed, and how far.
pub struct Follow<'a> {
    cluster: &'a Cluster,
    /// To be submitted until it is known to be durable.
    submit: Option<SubmitTaskRequest>,
    task_id: String,
    stdout: u64,
    stderr: u64,
    /// Whose output that is.
    attempts_used: u32,
    interrupts: Interrupts,
    cancel_wanted: bool,
    /// An interrupt leaves it running.
    leaves: bool,
    /// Told the task's id once it has one.
    known: watch::Sender<String>,
}

/// Why following stopped before the task's end.
enum Stop {
    Cut(Failure),
    Final(Failure),
}

impl From<tonic::Status> for Stop {
    fn from(status: tonic::Status) -> Self {
        let cut = is_cut(&status);
        let failure = Failure::from(status);
        if cut { Stop::Cut(failure) } else { Stop::Final(failure) }
    }
}

impl<'a> Follow<'a> {
    /// A task that is not submitted yet. Its idempotency key keeps a repeated submit from running it twice.
    pub fn new_task(cluster: &'a Cluster, spec: TaskSpec, schedule: &Schedule) -> Result<Self> {
        let request = schedule.request(spec);
        Self::make(cluster, Some(request), String::new())
    }

    /// A task that exists.
    pub fn task(cluster: &'a Cluster, task_id: String) -> Result<Self> {
        Self::make(cluster, None, task_id)
    }

    fn make(cluster: &'a Cluster, submit: Option<SubmitTaskRequest>, task_id: String) -> Result<Self> {
        let interrupts = Interrupts::new()?;
        let known = watch::Sender::new(task_id.clone());
        Ok(Self {
            cluster,
            submit,
            task_id,
            stdout: 0,
            stderr: 0,
            attempts_used: 0,
            interrupts,
            cancel_wanted: false,
            leaves: false,
            known,
        })
    }

    /// From this byte of standard output on; an interrupt leaves the task running.
    pub fn leaving(mut self, stdout: u64) -> Self {
        (self.stdout, self.leaves) = (stdout, true);
        self
    }

    /// Standard output that was received, or is not wanted.
    pub fn received(&self) -> u64 {
        self.stdout
    }

    /// The task's id, once it has one.
    pub fn task_id(&self) -> watch::Receiver<String> {
        self.known.subscribe()
    }

    /// Follows to the end. The first interrupt cancels the task when it is ours (submitted here), the second leaves.
    pub async fn run(mut self, sink: &mut impl Sink) -> Result<Task> {
        let mut client = self.cluster.connect().await?;
        let mut attempt = 0;
        let mut last_contact = clock::mono_ms();
        loop {
            let received = self.stdout + self.stderr;
            let cut = match self.attach(&client, sink).await {
                Ok(task) => return Ok(task),
                Err(Stop::Final(failure)) => {
                    if matches!(failure, Failure::Pipe) {
                        self.cancel(&client).await;
                    }
                    return Err(failure);
                }
                Err(Stop::Cut(failure)) => failure,
            };
            if self.stdout + self.stderr > received {
                (attempt, last_contact) = (0, clock::mono_ms());
            }
            client = self.reconnect(&mut attempt, last_contact, cut).await?;
        }
    }

    async fn reconnect(&mut self, attempt: &mut u32, last_contact: u64, mut cut: Failure) -> Result<Client> {
        loop {
            if clock::mono_ms() - last_contact > PATIENCE_MS {
                return Err(self.given_up(cut));
            }
            let (base, cap) = (limits::link::RECONNECT_BASE_MS, limits::link::RECONNECT_CAP_MS);
            let pause = backoff::full_jitter(base, cap, *attempt, rand::random());
            *attempt += 1;
            tokio::select! {
                () = tokio::time::sleep(pause.max(Duration::from_millis(20))) => {}
                () = self.interrupts.next() => self.interrupted()?,
            }
            match self.cluster.connect().await {
                Ok(client) => return Ok(client),
                Err(failure) => cut = failure,
            }
        }
    }

    fn given_up(&self, cut: Failure) -> Failure {
        if self.task_id.is_empty() {
            return cut;
        }
        let what = match &cut {
            Failure::Error(report) => report.message.clone(),
            _ => String::new(),
        };
        Failure::new(Code::Unavailable, format!("{what}; gave up after {} s", PATIENCE_MS / 1_000))
            .hint(format!("the task may still run; see it with `cooper tasks follow {}`", self.task_id))
    }

    /// One connection's worth of following.
    async fn attach(&mut self, client: &Client, sink: &mut impl Sink) -> Result<Task, Stop> {
        let from = FollowRequest {
            task_id: self.task_id.clone(),
            stdout_offset: self.stdout,
            stderr_offset: self.stderr,
            attempts_used: self.attempts_used,
        };
        let mut events = tokio::select! {
            opened = open(client, &self.submit, &from) => opened?,
            () = self.interrupts.next() => {
                self.interrupted().map_err(Stop::Final)?;
                open(client, &self.submit, &from).await?
            }
        };
        loop {
            let message = tokio::select! {
                message = events.message() => message?,
                () = self.interrupts.next() => {
                    self.interrupted().map_err(Stop::Final)?;
                    self.cancel(client).await;
                    continue;
                }
            };
            let Some(ExecuteResponse { event }) = message else {
                let early = tonic::Status::unavailable("the stream ended before the task did");
                return Err(early.into());
            };
            match event {
                Some(Event::Accepted(task)) => {
                    self.submit = None;
                    self.task_id = task.id;
                    self.known.send_replace(self.task_id.clone());
                    if self.cancel_wanted {
                        self.cancel(client).await;
                    }
                }
                Some(Event::Output(output)) => {
                    let stream = output.stream();
                    let fresh = self.advance(stream, output.offset, &output.data)?;
                    sink.write(stream, fresh).map_err(Stop::Final)?;
                }
                Some(Event::Restarted(restarted)) => {
                    (self.stdout, self.stderr) = (0, 0);
                    self.attempts_used = restarted.attempts_used;
                    sink.restarted(restarted.attempts_used);
                }
                Some(Event::Ended(task)) => return Ok(task),
                // Of a newer contract.
                None => {}
            }
        }
    }

    /// Skips what was received before. A gap means that bytes are gone: ask for them again.
    fn advance<'d>(&mut self, stream: Stream, offset: u64, data: &'d [u8]) -> Result<&'d [u8], Stop> {
        let have = if stream == Stream::Stderr { &mut self.stderr } else { &mut self.stdout };
        if offset > *have {
            return Err(tonic::Status::unavailable("output arrived with a gap").into());
        }
        let skip = usize::try_from(*have - offset).unwrap_or(usize::MAX).min(data.len());
        *have += (data.len() - skip) as u64;
        Ok(&data[skip..])
    }

    /// Counts an interrupt; the second one leaves.
    fn interrupted(&mut self) -> Result<()> {
        if self.cancel_wanted || self.leaves {
            return Err(Failure::Exit(130));
        }
        self.cancel_wanted = true;
        Ok(())
    }

    async fn cancel(&self, client: &Client) {
        if self.task_id.is_empty() {
            return;
        }
        let request = CancelTaskRequest { task_id: self.task_id.clone(), idempotency_key: idempotency_key() };
        let asked = tokio::time::timeout(Duration::from_secs(5), client.tasks().cancel_task(request)).await;
        if !matches!(asked, Ok(Ok(_))) {
            eprintln!("note: {} could not be cancelled; press Ctrl-C again to leave it", self.task_id);
        }
    }
}

async fn open(
    client: &Client,
    submit: &Option<SubmitTaskRequest>,
    from: &FollowRequest,
) -> Result<Streaming<ExecuteResponse>, tonic::Status> {
    let mut tasks = client.tasks();
    let response = match submit {
        Some(request) => tasks.execute(request.clone()).await?,
        None => tasks.follow(from.clone()).await?,
    };
    Ok(response.into_inner())
}

/// Ctrl-C and SIGTERM, from the moment this is made.
pub struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    pub fn new() -> Result<Self> {
        let listen = |kind| {
            signal(kind)
                .map_err(|error| Failure::new(Code::Internal, format!("cannot listen for signals: {error}")))
        };
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
