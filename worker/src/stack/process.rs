//! Runs the docker command line: argument vectors, no shell, bounded output, a deadline each.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use cooper_common::error::{Code, Error, Result};

use super::{Log, While};

/// Kept of the output of a command that is streamed to the log: its start and its end.
pub(super) const HEAD_BYTES_MAX: usize = 256 << 10;
pub(super) const TAIL_BYTES_MAX: usize = 768 << 10;
/// Kept of the output of a command that is read; more is an error.
const READ_BYTES_MAX: u64 = 16 << 20;
/// From SIGTERM to SIGKILL when a deadline has passed; the docker command line cancels what it does on SIGTERM.
const TERM_GRACE: Duration = Duration::from_secs(5);
/// For output that arrives after its process has ended.
const DRAIN: Duration = Duration::from_secs(2);

/// How a command ended, and what is kept of its output.
pub(super) struct Finished {
    pub(super) status: ExitStatus,
    pub(super) output: Vec<u8>,
    pub(super) errors: Vec<u8>,
}

impl Finished {
    /// The last thing it said, for a sentence.
    pub(super) fn last_line(&self) -> String {
        let text = String::from_utf8_lossy(if self.errors.is_empty() { &self.output } else { &self.errors })
            .into_owned();
        text.lines()
            .rev()
            .map(str::trim)
            .find(|line| !line.is_empty())
            .unwrap_or("it said nothing")
            .to_owned()
    }
}

/// `docker ARGS` in a directory. Everything of the environment is passed on (`DOCKER_HOST`, proxies, what the compose
/// file interpolates) but what is Cooper's own: tokens have no business there.
pub(super) fn docker(dir: &Path, args: &[&str]) -> Command {
    let mut command = tool("docker", dir);
    command.args(args);
    command.env("NO_COLOR", "1").env("BUILDX_NO_DEFAULT_ATTESTATIONS", "1").env("DOCKER_CLI_HINTS", "false");
    command
}

/// A program in a directory, without what is Cooper's own in the environment, and without the token for pushing.
pub(super) fn tool(program: &str, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(dir).stdin(Stdio::null()).kill_on_drop(true);
    let kept_back = |name: &str| name.starts_with("COOPER_") || name.starts_with("GITHUB_TOKEN");
    for (name, _) in std::env::vars_os().filter(|(name, _)| kept_back(&name.to_string_lossy())) {
        command.env_remove(name);
    }
    command
}

/// Runs a command and keeps what it prints.
pub(super) async fn read(command: Command, limit: Duration) -> Result<Finished> {
    read_fed(command, &[], limit).await
}

/// The same, of a command that reads this.
pub(super) async fn read_fed(mut command: Command, input: &[u8], limit: Duration) -> Result<Finished> {
    if !input.is_empty() {
        command.stdin(Stdio::piped());
    }
    let mut child = spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let stdin = child.stdin.take();
    let (Some(output), Some(errors)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(Error::internal("a child without the pipes it was given"));
    };
    let finish = async {
        let feed = async {
            if let Some(mut stdin) = stdin {
                // A child that does not read its input says why itself.
                let _ = stdin.write_all(input).await;
            }
            Ok(())
        };
        let (output, errors, ()) =
            tokio::try_join!(all(output), all(errors), feed).while_doing("reading from a command")?;
        let status = child.wait().await.while_doing("waiting for a command")?;
        Ok(Finished { status, output, errors })
    };
    match timeout(limit, finish).await {
        Ok(finished) => finished,
        Err(_) => Err(end(&mut child, &command, limit).await),
    }
}

/// Runs a command whose output goes to the log as it comes. The start and the end of it are kept.
pub(super) async fn stream(
    log: &Log,
    mut command: Command,
    input: Option<&[u8]>,
    limit: Duration,
) -> Result<Finished> {
    let (reader, writer) = std::io::pipe().while_doing("making a pipe")?;
    // One pipe for both: their lines stay in the order in which they were written.
    command.stderr(writer.try_clone().while_doing("making a pipe")?).stdout(writer);
    if input.is_some() {
        command.stdin(Stdio::piped());
    }
    let mut reader = pipe::Receiver::from_owned_fd(OwnedFd::from(reader)).while_doing("making a pipe")?;
    let mut child = spawn(&mut command)?;
    // The command holds the write ends; with them open there would be no end of file.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let stdin = child.stdin.take();
    let feed = async {
        if let (Some(mut stdin), Some(input)) = (stdin, input) {
            // A child that does not read its input says why itself.
            let _ = stdin.write_all(input).await;
        }
    };
    let mut kept = Kept::default();
    let finish = async {
        let status = tokio::select! {
            status = async { tokio::join!(feed, child.wait()).1 } => status,
            () = pump(&mut reader, log, &mut kept) => child.wait().await,
        };
        // What was started by it may hold the pipe open for ever.
        let _ = timeout(DRAIN, pump(&mut reader, log, &mut kept)).await;
        status.while_doing("waiting for a command")
    };
    let finished = timeout(limit, finish).await;
    kept.end_line(log);
    match finished {
        Ok(status) => Ok(Finished { status: status?, output: kept.text(), errors: vec![] }),
        Err(_) => Err(end(&mut child, &command, limit).await),
    }
}

fn spawn(command: &mut Command) -> Result<Child> {
    command.spawn().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            let program = command.as_std().get_program().to_string_lossy();
            Error::new(Code::EngineUnavailable, format!("{program} is not installed on this worker"))
        }
        _ => {
            let program = command.as_std().get_program().to_string_lossy();
            super::failed(format!("{program} cannot be started: {error}"))
        }
    })
}

async fn all(from: impl AsyncRead + Unpin) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(READ_BYTES_MAX + 1).read_to_end(&mut bytes).await?;
    if bytes.len() as u64 > READ_BYTES_MAX {
        return Err(std::io::Error::other(format!("it printed more than {READ_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

/// Passes on what comes until there is no more.
async fn pump(reader: &mut pipe::Receiver, log: &Log, kept: &mut Kept) {
    let mut buffer = vec![0; 32 << 10];
    loop {
        match reader.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(n) => {
                log.raw(&buffer[..n]);
                kept.push(&buffer[..n]);
            }
        }
    }
}

/// Ends a child whose deadline has passed.
async fn end(child: &mut Child, command: &Command, limit: Duration) -> Error {
    if let Some(pid) = child.id().and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed())) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    if timeout(TERM_GRACE, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
    let args: Vec<_> = command.as_std().get_args().map(|arg| arg.to_string_lossy()).collect();
    Error::new(Code::TimedOut, format!("`docker {}` took longer than {} s", args.join(" "), limit.as_secs()))
}

/// The start and the end of an output.
#[derive(Default)]
struct Kept {
    head: Vec<u8>,
    tail: Vec<u8>,
    cut: bool,
    open_line: bool,
}

impl Kept {
    fn push(&mut self, bytes: &[u8]) {
        self.open_line = bytes.last().map_or(self.open_line, |last| *last != b'\n');
        let (head, rest) = bytes.split_at(bytes.len().min(HEAD_BYTES_MAX - self.head.len()));
        self.head.extend_from_slice(head);
        self.tail.extend_from_slice(rest);
        if self.tail.len() > 2 * TAIL_BYTES_MAX {
            self.tail.drain(..self.tail.len() - TAIL_BYTES_MAX);
            self.cut = true;
        }
    }

    /// What the step says next starts on a line of its own.
    fn end_line(&mut self, log: &Log) {
        if std::mem::take(&mut self.open_line) {
            log.raw(b"\n");
        }
    }

    fn text(mut self) -> Vec<u8> {
        if self.tail.len() > TAIL_BYTES_MAX {
            self.tail.drain(..self.tail.len() - TAIL_BYTES_MAX);
            self.cut = true;
        }
        if self.cut {
            self.head.extend_from_slice(b"\n[... cut ...]\n");
        }
        self.head.append(&mut self.tail);
        self.head
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_output_the_start_and_the_end_are_kept() {
        let mut kept = Kept::default();
        kept.push(b"first");
        for _ in 0..100 {
            kept.push(&[b'.'; 64 << 10]);
        }
        kept.push(b"last");
        let text = kept.text();
        assert!(text.starts_with(b"first") && text.ends_with(b"last"));
        assert!(text.len() <= HEAD_BYTES_MAX + TAIL_BYTES_MAX + 32);
        assert!(text.windows(7).any(|part| part == b"... cut"));
    }
}
