//! A program that runs: what it wrote so far, signals, its end. It does not outlive this process, however that ends.

use std::{
    fmt,
    io::{Read, Write},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::wait::{until, until_true};

/// Variables that tests pass on from their own environment: how to find programs, the engine, and packages.
fn passed_on(name: &str) -> bool {
    let plain =
        ["PATH", "HOME", "USER", "LANG", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"];
    let lower = name.to_ascii_lowercase();
    plain.contains(&name)
        || ["DOCKER_", "PIP_", "UV_", "XDG_", "PYENV_"].iter().any(|prefix| name.starts_with(prefix))
        || lower.ends_with("_proxy")
}

/// A command with an environment that holds nothing of this machine's user but what it needs.
pub fn command(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    command.env_clear().envs(std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(passed_on)));
    command
}

/// What a program wrote to one stream so far.
struct Stream {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Stream {
    fn of(pipe: Option<impl Read + Send + 'static>) -> Self {
        let mut pipe = pipe.expect("it is piped");
        let bytes: Arc<Mutex<Vec<u8>>> = Arc::default();
        let kept = Arc::clone(&bytes);
        let reader = thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(n @ 1..) = pipe.read(&mut buffer) {
                kept.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..n]);
            }
        });
        Self { bytes, reader: Some(reader) }
    }

    fn look<T>(&self, look: impl FnOnce(&[u8]) -> T) -> T {
        look(&self.bytes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Everything, once the writer is gone. What it started may hold the pipe for longer; nobody waits for that.
    fn close(&mut self) -> Vec<u8> {
        if let Some(reader) = self.reader.take() {
            until_true("the end of a stream", Duration::from_secs(5), || reader.is_finished());
        }
        self.look(<[u8]>::to_vec)
    }
}

pub struct Running {
    what: String,
    child: Child,
    stdout: Stream,
    stderr: Stream,
    leash: Leash,
}

impl Running {
    /// Starts a command with this standard input.
    pub fn start(mut command: Command, stdin: &[u8]) -> Self {
        // Not the environment: that may hold tokens.
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let what = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {what}: {error}"));
        let mut to = child.stdin.take().expect("it is piped");
        let input = stdin.to_vec();
        thread::spawn(move || {
            // A program that reads less is free to.
            let _ = to.write_all(&input);
        });
        let (stdout, stderr) = (Stream::of(child.stdout.take()), Stream::of(child.stderr.take()));
        let leash = Leash::on(child.id(), None);
        Self { what, child, stdout, stderr, leash }
    }

    /// Also removes this directory after everything, unless it is to be kept.
    pub fn cleaning(mut self, dir: &Path) -> Self {
        self.leash = Leash::on(self.child.id(), Some(dir));
        self
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn stdout(&self) -> String {
        self.stdout.look(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    pub fn stderr(&self) -> String {
        self.stderr.look(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    pub fn stdout_len(&self) -> usize {
        self.stdout.look(<[u8]>::len)
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_some()
    }

    /// Waits for what it says; it may not end before.
    #[track_caller]
    pub fn await_said<T>(&mut self, what: &str, within: Duration, look: impl Fn(&Self) -> Option<T>) -> T {
        until(&format!("{what} from {}", self.what), within, || {
            let found = look(self);
            if found.is_none() && self.has_ended() {
                let said = look(self);
                let (stdout, stderr) = (self.stdout(), self.stderr());
                assert!(said.is_some(), "{} ended before {what}:\n{stdout}\n{stderr}", self.what);
                return said;
            }
            found
        })
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap_or_else(|error| panic!("{}: {error}", self.what));
    }

    /// Waits for its end.
    #[track_caller]
    pub fn finish(mut self, within: Duration) -> Finished {
        let status = until(&format!("the end of {}", self.what), within, || {
            self.child.try_wait().expect("it is our child")
        });
        self.leash.let_go();
        Finished {
            what: std::mem::take(&mut self.what),
            status: code_of(status),
            stdout: self.stdout.close(),
            stderr: self.stderr.close(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.leash.let_go();
        if !self.has_ended() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if thread::panicking() && !self.what.is_empty() {
            eprintln!("{} was running; its standard error:\n{}", self.what, tail(&self.stderr()));
        }
    }
}

fn tail(text: &str) -> &str {
    let from = text.len().saturating_sub(4_000);
    &text[text.ceil_char_boundary(from)..]
}

/// As a shell says it: 128 + N for signal N.
fn code_of(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// A process that notices the death of this one by the end of its input, and ends what it was told to.
struct Leash(Child, Option<ChildStdin>);

const LEASH: &str = r#"
read -r word && exit
kill -TERM "$1" 2>/dev/null
for _ in 1 2 3 4 5 6 7 8; do kill -0 "$1" 2>/dev/null || break; sleep 1; done
[ -z "$2" ] || [ -e "$2/failed" ] || rm -rf "$2"
"#;

impl Leash {
    fn on(pid: u32, dir: Option<&Path>) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", LEASH, "leash", &pid.to_string()]).arg(dir.unwrap_or(Path::new("")));
        let mut shell = shell
            .process_group_of_its_own()
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell");
        let held = shell.stdin.take();
        Self(shell, held)
    }

    fn let_go(&mut self) {
        if let Some(mut held) = self.1.take() {
            let _ = held.write_all(b"done\n");
            let _ = self.0.wait();
        }
    }
}

impl Drop for Leash {
    fn drop(&mut self) {
        self.let_go();
    }
}

trait ProcessGroup {
    fn process_group_of_its_own(&mut self) -> &mut Self;
}

impl ProcessGroup for Command {
    /// Ctrl-C on the tests must not end the leash before it did its work.
    fn process_group_of_its_own(&mut self) -> &mut Self {
        std::os::unix::process::CommandExt::process_group(self, 0)
    }
}

/// How a program ended, and everything it wrote.
pub struct Finished {
    pub what: String,
    /// Exit status; 128 + N for signal N.
    pub status: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Finished {
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// It ended with this status.
    #[track_caller]
    pub fn expect(self, status: i32) -> Self {
        assert_eq!(self.status, status, "{self}");
        self
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |text: String| tail(&text).to_owned();
        write!(f, "{}\n--- ended with {}\n", self.what, self.status)?;
        write!(f, "--- stdout\n{}\n--- stderr\n{}", short(self.out()), short(self.err()))
    }
}
