//! `cooper exec` and `cooper sh`: run something in a session as if it ran here.

use std::{
    fs,
    io::{self, IsTerminal, Read, Write},
    path::Path,
};

use cooper_common::{error::Code, limits::request};
use cooper_proto::v1::{
    ExecutionMode, PythonSpec, ShellSpec, Stream, Task, TaskSpec, TaskState, task_spec::Kind,
};

use super::{
    attach,
    follow::{Follow, Sink},
    input,
};
use crate::{
    args::{DetachKeys, Exec, Schedule, Sh, Streams},
    context::Context,
    failure::{EXIT_COOPER, Failure, Report, Result},
    output::{Output, json},
};

const EXIT_TIMED_OUT: u8 = 124;
const EXIT_CANCELLED: u8 = 130;

pub async fn exec(context: &Context, args: Exec) -> Result<u8> {
    let (code, filename) = match (&args.code, &args.file) {
        (Some(code), _) => (code.clone(), String::new()),
        (None, Some(file)) if file == Path::new("-") => {
            (read_text("standard input", request::CODE_BYTES_MAX, io::stdin().lock())?, "<stdin>".to_owned())
        }
        (None, Some(file)) => {
            let name = file.display().to_string();
            let opened = fs::File::open(file).map_err(|error| {
                Failure::new(Code::FileNotFound, format!("cannot open {name}: {error}"))
                    .hint("name a file of this machine, or give code with -c")
                    .exit(EXIT_COOPER)
            })?;
            (read_text(&name, request::CODE_BYTES_MAX, opened)?, name)
        }
        (None, None) => return Err(Failure::new(Code::InvalidArgument, "no code was given").exit(2)),
    };
    if args.streams.interactive && args.file.as_deref() == Some(Path::new("-")) {
        let what = "standard input cannot be both the code and what the code reads";
        return Err(Failure::new(Code::InvalidArgument, what).exit(2));
    }
    let mode = if args.fresh { ExecutionMode::Fresh } else { ExecutionMode::Unspecified };
    let spec = TaskSpec {
        kind: Some(Kind::Python(PythonSpec {
            code,
            filename,
            args: args.args,
            mode: mode.into(),
            ..PythonSpec::default()
        })),
        session_id: args.session,
        env: args.env.into_iter().collect(),
        cwd: args.cwd.unwrap_or_default(),
        timeout_ms: args.timeout.unwrap_or(0),
        ..TaskSpec::default()
    };
    run(context, spec, args.streams, &args.schedule, None).await
}

pub async fn sh(context: &Context, args: Sh) -> Result<u8> {
    let streamed = args.streams.interactive || args.streams.tty;
    let stdin = match args.no_stdin || streamed || args.streams.background || io::stdin().is_terminal() {
        true => Vec::new(),
        false => read_bytes("standard input", request::STDIN_BYTES_MAX, io::stdin().lock())?,
    };
    let command_line = args.argv.len() == 1 && args.argv[0].contains(char::is_whitespace);
    let advice = command_line
        .then(|| format!("for a shell's command line: cooper sh SESSION -- sh -c '{}'", args.argv[0]));
    let spec = TaskSpec {
        kind: Some(Kind::Shell(ShellSpec { argv: args.argv.clone(), stdin })),
        session_id: args.session,
        env: args.env.into_iter().collect(),
        cwd: args.cwd.unwrap_or_default(),
        timeout_ms: args.timeout.unwrap_or(0),
        ..TaskSpec::default()
    };
    run(context, spec, args.streams, &args.schedule, advice).await
}

/// `advice` is the hint if the command cannot even be started.
async fn run(
    context: &Context,
    mut spec: TaskSpec,
    streams: Streams,
    schedule: &Schedule,
    advice: Option<String>,
) -> Result<u8> {
    let of_cooper = |failure: Failure| failure.exit(EXIT_COOPER);
    let cluster = context.cluster().map_err(of_cooper)?;
    spec.stdin_open = streams.interactive && !streams.tty;
    if streams.tty {
        spec = attach::on_terminal(spec);
    }
    if streams.background {
        let mut tasks = cluster.connect().await.map_err(of_cooper)?.tasks();
        let submitted = tasks.submit_task(schedule.request(spec)).await;
        let task = submitted.map_err(|status| of_cooper(status.into()))?.into_inner();
        context.out.answer(|| json::task(&task), || task.id.clone())?;
        return Ok(0);
    }
    let follow = Follow::new_task(&cluster, spec, schedule).map_err(of_cooper)?;
    if streams.tty {
        return attach::follow(context, &cluster, follow, &DetachKeys::default(), true).await;
    }
    if !streams.interactive {
        return follow_to_exit(context, follow, advice).await;
    }
    let passing = input::pass(&cluster, follow.task_id(), tokio::io::stdin(), None, true);
    let following = follow_to_exit(context, follow, advice);
    tokio::pin!(passing, following);
    tokio::select! {
        ended = &mut following => ended,
        passed = &mut passing => {
            passed.map_err(of_cooper)?;
            following.await
        }
    }
}

/// Shows a task's output and end; the status it ends with.
pub async fn follow_to_exit(context: &Context, follow: Follow<'_>, advice: Option<String>) -> Result<u8> {
    let of_cooper = |failure: Failure| failure.exit(EXIT_COOPER);
    if context.out.json {
        let mut kept = Kept::default();
        let task = follow.run(&mut kept).await.map_err(of_cooper)?;
        let mut document = json::task(&task);
        json::add_stream(&mut document, "stdout", &kept.stdout);
        json::add_stream(&mut document, "stderr", &kept.stderr);
        context.out.document(&document)?;
        return Ok(exit_status(&task));
    }
    let mut through = Through::default();
    let mut task = follow.run(&mut through).await.map_err(of_cooper)?;
    if let (Some(advice), Some(error)) =
        (advice, task.outcome.as_mut().and_then(|outcome| outcome.error.as_mut()))
        && error.code == Code::SpawnFailed.as_str()
    {
        error.hint = advice;
    }
    show_end(&context.out, &task, &through)?;
    Ok(exit_status(&task))
}

/// The status that a task's end means to a shell.
pub fn exit_status(task: &Task) -> u8 {
    let code = task.outcome.as_ref().map_or(0, |outcome| outcome.exit_code);
    let failed_inside = task.outcome.as_ref().is_none_or(|outcome| outcome.error.is_none());
    match task.state() {
        TaskState::Succeeded => 0,
        TaskState::TimedOut => EXIT_TIMED_OUT,
        TaskState::Cancelled => EXIT_CANCELLED,
        // A shell sees eight bits; a failure must not turn into success by that.
        TaskState::Failed if code != 0 => u8::try_from(code & 0xff).ok().filter(|low| *low != 0).unwrap_or(1),
        TaskState::Failed if failed_inside => 1,
        _ => EXIT_COOPER,
    }
}

/// What display() was given, value of the last expression, traceback, and what Cooper has to say about the end.
pub fn show_end(out: &Output, task: &Task, through: &Through) -> Result<()> {
    let Some(outcome) = &task.outcome else { return Ok(()) };
    let values: Vec<&Vec<u8>> = outcome
        .displays
        .iter()
        .chain(&outcome.result)
        .filter_map(|bundle| bundle.data.get("text/plain"))
        .collect();
    if !values.is_empty() {
        let mut stdout = io::stdout().lock();
        if out.stdout_tty && through.open_line {
            stdout.write_all(b"\n")?;
        }
        for text in values {
            stdout.write_all(text)?;
            if !text.ends_with(b"\n") {
                stdout.write_all(b"\n")?;
            }
        }
        stdout.flush()?;
    }
    if let Some(exception) = &outcome.exception {
        let mut stderr = io::stderr().lock();
        let newline = if exception.traceback.ends_with('\n') { "" } else { "\n" };
        write!(stderr, "{}{newline}", exception.traceback)?;
    }
    for (name, truncated) in [("stdout", outcome.stdout_truncated), ("stderr", outcome.stderr_truncated)] {
        if truncated {
            out.note(&format!("note: {name} was longer than the session keeps; the rest was cut"));
        }
    }
    if out.stderr_tty {
        for artifact in &outcome.artifacts {
            out.note(&format!(
                "note: artifact {} ({})",
                artifact.name,
                crate::units::human_bytes(artifact.size_bytes)
            ));
        }
    }
    for skipped in &outcome.artifacts_skipped {
        let name = if skipped.name.is_empty() { "some" } else { &skipped.name };
        out.note(&format!("note: artifacts: {name} not kept ({})", skipped.reason));
    }
    let unnamed = outcome.artifacts_skipped_count.saturating_sub(outcome.artifacts_skipped.len() as u64);
    if unnamed > 0 {
        out.note(&format!("note: artifacts: {unnamed} more not kept"));
    }
    if outcome.interpreter_restarted && out.stderr_tty {
        out.note("note: the interpreter was started anew; variables from before are gone");
    }
    if let Some(error) = &outcome.error {
        out.report(&Report {
            code: error.code.clone(),
            message: error.message.clone(),
            hint: error.hint.clone(),
            exit: 0,
        });
    }
    Ok(())
}

/// Straight to our own streams.
#[derive(Default)]
pub struct Through {
    /// The last byte of standard output was not a line's end.
    open_line: bool,
    stdout_bytes: u64,
}

impl Through {
    /// After so many bytes of standard output.
    pub fn from(stdout_bytes: u64) -> Self {
        Self { stdout_bytes, ..Self::default() }
    }

    /// Standard output that has passed.
    pub fn stdout_bytes(&self) -> u64 {
        self.stdout_bytes
    }
}

impl Sink for Through {
    fn write(&mut self, stream: Stream, data: &[u8]) -> Result<()> {
        let Some(last) = data.last() else { return Ok(()) };
        if stream == Stream::Stderr {
            let mut err = io::stderr().lock();
            err.write_all(data)?;
            return Ok(err.flush()?);
        }
        self.open_line = *last != b'\n';
        self.stdout_bytes += data.len() as u64;
        let mut out = io::stdout().lock();
        out.write_all(data)?;
        Ok(out.flush()?)
    }

    fn restarted(&mut self, attempts_used: u32) {
        eprintln!("note: attempt {attempts_used} did not succeed; what follows is the next one's output");
    }
}

/// In memory, for one JSON document. The session's output limit bounds it.
#[derive(Default)]
struct Kept {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Sink for Kept {
    fn write(&mut self, stream: Stream, data: &[u8]) -> Result<()> {
        match stream {
            Stream::Stderr => self.stderr.extend_from_slice(data),
            _ => self.stdout.extend_from_slice(data),
        }
        Ok(())
    }

    fn restarted(&mut self, _attempts_used: u32) {
        *self = Self::default();
    }
}

/// Reads to the end, or refuses what is longer than a request may hold.
pub fn read_bytes(name: &str, max: usize, source: impl Read) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(max as u64 + 1).read_to_end(&mut bytes).map_err(|error| {
        Failure::new(Code::NotAFile, format!("cannot read {name}: {error}")).exit(EXIT_COOPER)
    })?;
    if bytes.len() > max {
        return Err(Failure::new(Code::TooLarge, format!("{name} is longer than {} KiB", max >> 10))
            .hint("put it into the session with `cooper files put` and read it there")
            .exit(EXIT_COOPER));
    }
    Ok(bytes)
}

fn read_text(name: &str, max: usize, source: impl Read) -> Result<String> {
    String::from_utf8(read_bytes(name, max, source)?).map_err(|_| {
        Failure::new(Code::InvalidArgument, format!("{name} is not UTF-8 text")).exit(EXIT_COOPER)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use cooper_proto::v1::{Error, Outcome};

    fn ended(state: TaskState, exit_code: i32, error: Option<&str>) -> Task {
        let error = error.map(|code| Error { code: code.to_owned(), ..Error::default() });
        let outcome = Some(Outcome { exit_code, error, ..Outcome::default() });
        Task { state: state.into(), outcome, ..Task::default() }
    }

    #[test]
    fn a_task_ends_with_the_status_of_its_code() {
        for (task, status) in [
            (ended(TaskState::Succeeded, 0, None), 0),
            (ended(TaskState::Failed, 1, None), 1),
            (ended(TaskState::Failed, 3, None), 3),
            (ended(TaskState::Failed, 137, Some("interpreter_died")), 137),
            (ended(TaskState::Failed, 127, Some("spawn_failed")), 127),
            (ended(TaskState::Failed, 256, None), 1),
            (ended(TaskState::Failed, -1, None), 255),
            (ended(TaskState::Failed, 0, None), 1),
            (ended(TaskState::TimedOut, 137, Some("timed_out")), 124),
            (ended(TaskState::Cancelled, 130, Some("cancelled")), 130),
        ] {
            assert_eq!(exit_status(&task), status, "{task:?}");
        }
    }

    #[test]
    fn what_cooper_failed_at_is_125() {
        for task in [
            ended(TaskState::Failed, 0, Some("spawn_failed")),
            ended(TaskState::Lost, 0, Some("worker_lost")),
            ended(TaskState::DeadLetter, 0, None),
        ] {
            assert_eq!(exit_status(&task), EXIT_COOPER, "{task:?}");
        }
    }
}
