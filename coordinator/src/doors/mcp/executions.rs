//! Tools that run code, and go on with what runs.

mod outcome;

use std::{collections::BTreeMap, time::Duration};

use cooper_common::{
    error::{Error, Result},
    limits,
};
use cooper_proto::v1::{self, execute_response::Event, task_spec::Kind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tonic::Streaming;

pub use self::outcome::{Execution, Status, status_of};
use super::{
    call::{Call, Place, deadline, said},
    files,
    tool::{ADDS, READS, RUNS, Reply, Tool},
};

/// Between notifications of progress, and until one says that nothing was said.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
const PROGRESS_SILENT: Duration = Duration::from_secs(5);
/// Least time for what is there already.
const LOOK: Duration = Duration::from_millis(50);

pub fn tools() -> Vec<Tool> {
    vec![
        Tool::new(
            "run_python",
            RUNS,
            "Run Python in a session and get its output. Variables, imports, functions and files stay for the next \
             call, as in a notebook; the value of a last expression is the `result`. Plots (matplotlib figures shown \
             with display(), PIL images) come back as images. Give either `code` or `file`. Code that takes longer \
             than `wait_ms` goes on: the answer then has status `running`; continue with exec_poll. An exception is \
             not a tool error: see `status` and `error`.",
            python,
        ),
        Tool::new(
            "run_shell",
            RUNS,
            "Run a shell command (bash) in the session's workspace and get its output and exit code. Use it for \
             programs, tests, git and file juggling; use run_python for Python that shares variables. What takes longer than \
             `wait_ms` goes on in the background: continue with exec_poll.",
            shell,
        ),
        Tool::new(
            "exec_poll",
            READS,
            "Wait for an execution and get the output that it has printed since. Give the `exec_id` of a run_* or \
             install_packages call and the offsets of its last answer. Status `running` or `queued` means: poll again.",
            poll,
        ),
        Tool::new(
            "exec_write_stdin",
            ADDS,
            "Write to the standard input of an execution that was started with `stdin_open`. `eof` ends its input.",
            write_stdin,
        ),
        Tool::new(
            "exec_signal",
            RUNS,
            "Send a signal to a running execution: `int` interrupts (Python code gets KeyboardInterrupt and variables \
             stay), `kill` ends it with all its processes (Python variables are lost).",
            signal,
        ),
    ]
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RunPython {
    /// Python source. If its last statement is an expression, its value is the result.
    code: Option<String>,
    /// Instead of `code`: path of a Python file in the workspace to run.
    file: Option<String>,
    /// sys.argv[1:] while it runs.
    #[serde(default)]
    args: Vec<String>,
    /// Run in a fork of the interpreter: it sees the variables and leaves none behind.
    #[serde(default)]
    fresh: bool,
    /// Id or name of a session; without it, the connection's own.
    session_id: Option<String>,
    /// Kill the code when it has run for so long; by default the session's limit (5 minutes).
    timeout_ms: Option<u64>,
    /// How long this call waits before it answers with status `running`; 50000 by default, at most 600000. 0 = run it in
    /// the background.
    wait_ms: Option<u64>,
    /// Longest output to answer with, for each stream; 32768 by default, at most 131072. The rest is there for exec_poll.
    max_output_bytes: Option<u32>,
    /// Keep standard input open for exec_write_stdin.
    #[serde(default)]
    stdin_open: bool,
    /// Calls that are repeated with the same key run once.
    idempotency_key: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RunShell {
    /// Command line for bash, e.g. "ls -l | head".
    command: String,
    /// Working directory, relative to the workspace.
    cwd: Option<String>,
    /// Environment variables to add.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// What it reads from standard input.
    stdin: Option<String>,
    /// Keep standard input open for exec_write_stdin; not together with `stdin`.
    #[serde(default)]
    stdin_open: bool,
    /// Answer at once with an `exec_id` and let it run: the same as `wait_ms` 0.
    #[serde(default)]
    background: bool,
    /// Id or name of a session; without it, the connection's own.
    session_id: Option<String>,
    /// Kill it when it has run for so long; by default the session's limit (5 minutes).
    timeout_ms: Option<u64>,
    /// How long this call waits before it answers with status `running`; 50000 by default, at most 600000.
    wait_ms: Option<u64>,
    /// Longest output to answer with, for each stream; 32768 by default, at most 131072. The rest is there for exec_poll.
    max_output_bytes: Option<u32>,
    /// Calls that are repeated with the same key run once.
    idempotency_key: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Poll {
    /// Of the execution.
    exec_id: String,
    /// `next_stdout_offset` of the answer before; 0 = from the beginning.
    #[serde(default)]
    stdout_offset: u64,
    /// `next_stderr_offset` of the answer before; 0 = from the beginning.
    #[serde(default)]
    stderr_offset: u64,
    /// How long to wait for its end; 50000 by default, at most 600000, 0 = only look.
    wait_ms: Option<u64>,
    /// Longest output to answer with, for each stream; 32768 by default, at most 131072.
    max_output_bytes: Option<u32>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct WriteStdin {
    /// Of the execution.
    exec_id: String,
    /// Text to write, line ends included.
    #[serde(default)]
    text: String,
    /// End its input after that.
    #[serde(default)]
    eof: bool,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SignalOf {
    /// Of the execution.
    exec_id: String,
    signal: Signal,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Signal {
    Int,
    Term,
    Hup,
    Usr1,
    Usr2,
    Kill,
}

#[derive(Serialize, JsonSchema)]
struct Written {
    exec_id: String,
    /// Standard input it was given in all, in bytes.
    offset_bytes: u64,
    /// So many bytes at the end were not taken, because it does not read: write them again.
    remaining_bytes: u32,
}
impl Reply for Written {}

#[derive(Serialize, JsonSchema)]
struct Signalled {
    exec_id: String,
    /// The signal is on its way; exec_poll says what came of it.
    sent: bool,
}
impl Reply for Signalled {}

/// How a call waits for what runs.
pub struct Wait {
    until: Instant,
    /// Of each stream.
    bytes_max: usize,
    /// What runs was started by this call, and ends when it is cancelled.
    own: bool,
}

impl Wait {
    pub fn new(wait_ms: Option<u64>, max_output_bytes: Option<u32>, own: bool) -> Result<Self> {
        let (default, most) = (limits::mcp::OUTPUT_BYTES, limits::mcp::OUTPUT_BYTES_MAX);
        let bytes_max = max_output_bytes.map_or(default, |bytes| bytes as usize);
        if bytes_max > most {
            return Err(Error::invalid(format!("max_output_bytes is {bytes_max}; at most {most}")));
        }
        // What is there already is read, whatever it takes.
        let until = deadline(wait_ms)?.max(Instant::now() + LOOK);
        Ok(Self { until, bytes_max, own })
    }
}

async fn python(call: Call, asked: RunPython) -> Result<Execution> {
    let wait = Wait::new(asked.wait_ms, asked.max_output_bytes, true)?;
    let place = call.place(asked.session_id).await?;
    let (code, filename) = source(&call, &place.session_id, asked.code, asked.file).await?;
    let mode = if asked.fresh { v1::ExecutionMode::Fresh } else { v1::ExecutionMode::Stateful };
    let spec = v1::PythonSpec { code, filename, args: asked.args, mode: mode.into(), stdin: Vec::new() };
    let spec = v1::TaskSpec {
        kind: Some(Kind::Python(spec)),
        timeout_ms: asked.timeout_ms.unwrap_or_default(),
        stdin_open: asked.stdin_open,
        ..Default::default()
    };
    run(&call, place, spec, asked.idempotency_key, wait).await
}

/// What is to be run, and its name in tracebacks.
pub async fn source(
    call: &Call,
    session_id: &str,
    code: Option<String>,
    file: Option<String>,
) -> Result<(String, String)> {
    match (code, file) {
        (Some(code), None) => Ok((code, String::new())),
        (None, Some(file)) => {
            let bytes = files::whole(call, session_id, &file, limits::request::CODE_BYTES_MAX).await?;
            let code = String::from_utf8(bytes)
                .map_err(|_| Error::invalid(format!("{file} is no Python source: it is not UTF-8")))?;
            Ok((code, file))
        }
        _ => Err(Error::invalid("give either code or file")),
    }
}

async fn shell(call: Call, asked: RunShell) -> Result<Execution> {
    let wait_ms = if asked.background { Some(0) } else { asked.wait_ms };
    let wait = Wait::new(wait_ms, asked.max_output_bytes, true)?;
    let place = call.place(asked.session_id).await?;
    let spec = v1::ShellSpec {
        argv: vec!["bash".to_owned(), "-c".to_owned(), asked.command],
        stdin: asked.stdin.unwrap_or_default().into_bytes(),
    };
    let spec = v1::TaskSpec {
        kind: Some(Kind::Shell(spec)),
        env: asked.env.into_iter().collect(),
        cwd: asked.cwd.unwrap_or_default(),
        timeout_ms: asked.timeout_ms.unwrap_or_default(),
        stdin_open: asked.stdin_open,
        ..Default::default()
    };
    run(&call, place, spec, asked.idempotency_key, wait).await
}

/// Starts it, and tells how it goes until it has ended or this has waited long enough.
pub async fn run(
    call: &Call,
    place: Place,
    spec: v1::TaskSpec,
    idempotency_key: Option<String>,
    wait: Wait,
) -> Result<Execution> {
    let submit = v1::SubmitTaskRequest {
        idempotency_key: idempotency_key.unwrap_or_default(),
        spec: Some(v1::TaskSpec { session_id: place.session_id.clone(), ..spec }),
        ..Default::default()
    };
    let events = call.tasks().execute(call.by(submit)).await.map_err(said)?.into_inner();
    let execution =
        Execution { session_id: place.session_id, session_created: place.created, ..Default::default() };
    follow(call, events, execution, wait).await
}

async fn poll(call: Call, asked: Poll) -> Result<Execution> {
    let wait = Wait::new(asked.wait_ms, asked.max_output_bytes, false)?;
    go_on(&call, asked.exec_id, (asked.stdout_offset, asked.stderr_offset), wait).await
}

/// How an execution is now, with its output from the beginning.
pub async fn look(call: &Call, exec_id: String) -> Result<Execution> {
    let most = u32::try_from(limits::mcp::OUTPUT_BYTES_MAX).ok();
    go_on(call, exec_id, (0, 0), Wait::new(Some(0), most, false)?).await
}

async fn go_on(call: &Call, exec_id: String, offsets: (u64, u64), wait: Wait) -> Result<Execution> {
    let task = v1::GetTaskRequest { task_id: exec_id.clone() };
    let task = call.tasks().get_task(call.by(task)).await.map_err(said)?.into_inner();
    let (stdout_offset, stderr_offset) = offsets;
    let follow_on = v1::FollowRequest {
        task_id: exec_id,
        stdout_offset,
        stderr_offset,
        attempts_used: task.attempts_used,
    };
    let events = call.tasks().follow(call.by(follow_on)).await.map_err(said)?.into_inner();
    let execution = Execution {
        exec_id: task.id.clone(),
        session_id: task.spec.as_ref().map(|spec| spec.session_id.clone()).unwrap_or_default(),
        status: status_of(&task),
        next_stdout_offset: stdout_offset,
        next_stderr_offset: stderr_offset,
        ..Default::default()
    };
    follow(call, events, execution, wait).await
}

async fn write_stdin(call: Call, asked: WriteStdin) -> Result<Written> {
    let write = v1::WriteStdinRequest {
        task_id: asked.exec_id.clone(),
        offset_bytes: None,
        data: asked.text.into_bytes(),
        eof: asked.eof,
    };
    let written = call.executions().write_stdin(call.by(write)).await.map_err(said)?.into_inner();
    Ok(Written {
        exec_id: asked.exec_id,
        offset_bytes: written.offset_bytes,
        remaining_bytes: written.remaining_bytes,
    })
}

async fn signal(call: Call, asked: SignalOf) -> Result<Signalled> {
    let signal = match asked.signal {
        Signal::Int => v1::Signal::Int,
        Signal::Term => v1::Signal::Term,
        Signal::Hup => v1::Signal::Hup,
        Signal::Usr1 => v1::Signal::Usr1,
        Signal::Usr2 => v1::Signal::Usr2,
        Signal::Kill => v1::Signal::Kill,
    };
    let request = v1::SignalExecutionRequest { task_id: asked.exec_id.clone(), signal: signal.into() };
    call.executions().signal_execution(call.by(request)).await.map_err(said)?;
    Ok(Signalled { exec_id: asked.exec_id, sent: true })
}

/// Output as it comes, for the answer and for those who watch.
#[derive(Default)]
struct Heard {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    /// Not told as progress yet.
    news: Vec<u8>,
    told_bytes: usize,
}

async fn follow(
    call: &Call,
    mut events: Streaming<v1::ExecuteResponse>,
    mut execution: Execution,
    wait: Wait,
) -> Result<Execution> {
    let mut heard = Heard::default();
    let mut told = Instant::now();
    let mut ended = None;
    loop {
        let tell_at = told + if heard.news.is_empty() { PROGRESS_SILENT } else { PROGRESS_EVERY };
        let event = tokio::select! {
            biased;
            // What was submitted has to be known before it can be ended.
            () = call.cancelled.cancelled(), if !execution.exec_id.is_empty() => {
                if wait.own {
                    interrupt(call, &execution.exec_id).await;
                }
                return Err(Error::new(cooper_common::error::Code::Cancelled, "the call was cancelled"));
            }
            // Before what is printed: some of it may always be there.
            () = tokio::time::sleep_until(wait.until), if !execution.exec_id.is_empty() => break,
            () = tokio::time::sleep_until(tell_at), if call.wants_progress() => {
                call.progress(heard.news()).await;
                told = Instant::now();
                continue;
            }
            event = events.message() => event.map_err(said)?,
        };
        match event.and_then(|event| event.event) {
            Some(Event::Accepted(task)) => {
                execution.exec_id = task.id.clone();
                if execution.status == Status::Queued {
                    execution.status = status_of(&task);
                }
            }
            Some(Event::Restarted(_)) => {
                heard = Heard::default();
                (execution.next_stdout_offset, execution.next_stderr_offset) = (0, 0);
            }
            Some(Event::Output(output)) => heard.hear(&output, wait.bytes_max, &mut execution.truncated),
            Some(Event::Ended(task)) => {
                ended = Some(task);
                break;
            }
            None => break,
        }
    }
    if let Some(news) = heard.news() {
        call.progress(Some(news)).await;
    }
    execution.next_stdout_offset += heard.stdout.len() as u64;
    execution.next_stderr_offset += heard.stderr.len() as u64;
    execution.stdout = String::from_utf8_lossy(&heard.stdout).into_owned();
    execution.stderr = String::from_utf8_lossy(&heard.stderr).into_owned();
    match ended {
        Some(task) => execution.end(task),
        None => {
            let task = v1::GetTaskRequest { task_id: execution.exec_id.clone() };
            let task = call.tasks().get_task(call.by(task)).await.map_err(said)?.into_inner();
            // What has ended meanwhile is told with all its output by the next poll.
            execution.status = match status_of(&task) {
                Status::Queued => Status::Queued,
                _ => Status::Running,
            };
        }
    }
    Ok(execution)
}

impl Heard {
    fn hear(&mut self, output: &v1::Output, bytes_max: usize, truncated: &mut bool) {
        let stream = match output.stream() {
            v1::Stream::Stderr => &mut self.stderr,
            _ => &mut self.stdout,
        };
        let room = bytes_max - stream.len();
        let taken = &output.data[..room.min(output.data.len())];
        *truncated |= taken.len() < output.data.len();
        stream.extend_from_slice(taken);
        let room = limits::mcp::PROGRESS_BYTES_MAX.saturating_sub(self.told_bytes);
        let news = &taken[..room.min(taken.len())];
        self.news.extend_from_slice(news);
        self.told_bytes += news.len();
    }

    fn news(&mut self) -> Option<String> {
        let news = std::mem::take(&mut self.news);
        (!news.is_empty()).then(|| String::from_utf8_lossy(&news).into_owned())
    }
}

/// Whoever waited for it does not any more.
async fn interrupt(call: &Call, exec_id: &str) {
    let cancel = v1::CancelTaskRequest { task_id: exec_id.to_owned(), ..Default::default() };
    if let Err(status) = call.tasks().cancel_task(call.by(cancel)).await {
        tracing::debug!(exec_id, %status, "what was cancelled by its client goes on");
    }
}
