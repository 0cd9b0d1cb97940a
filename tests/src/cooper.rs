//! The command line: one command, its end, and what it said.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    time::Duration,
};

use cooper_common::clock;
use serde_json::Value;

use crate::{
    binary,
    program::{Finished, Running, command},
    seconds,
};

/// Longer than any command but a repair takes.
const PATIENCE: Duration = seconds(90);

/// How commands are run: environment and directory.
#[derive(Debug, Clone, Default)]
pub struct Cooper {
    env: Vec<(String, String)>,
    dir: Option<PathBuf>,
    patience: Option<Duration>,
}

/// The document of a command that ended with `--json`.
pub type Answer = Value;

impl Cooper {
    /// Commands that find the cluster in this data directory.
    pub fn at(data: &Path) -> Self {
        Self::default().env("COOPER_DATA", &data.to_string_lossy())
    }

    /// Commands that come with a token, as from another machine.
    pub fn with_token(url: &str, token: &str) -> Self {
        Self::default().env("COOPER_URL", url).env("COOPER_TOKEN", token).env("COOPER_DATA", "/nonexistent")
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// What commands find the cluster by.
    pub fn environment(&self) -> Vec<(String, String)> {
        self.env.clone()
    }

    pub fn dir(mut self, dir: &Path) -> Self {
        self.dir = Some(dir.to_owned());
        self
    }

    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = Some(patience);
        self
    }

    pub fn start<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>, stdin: &[u8]) -> Running {
        let mut cooper = command(binary());
        cooper.args(args).envs(self.env.iter().map(|(name, value)| (name, value)));
        if let Some(dir) = &self.dir {
            cooper.current_dir(dir);
        }
        Running::start(cooper, stdin)
    }

    /// Runs a command to its end.
    #[track_caller]
    pub fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Finished {
        self.start(args, b"").finish(self.patience.unwrap_or(PATIENCE))
    }

    #[track_caller]
    pub fn run_with<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>, stdin: &[u8]) -> Finished {
        self.start(args, stdin).finish(self.patience.unwrap_or(PATIENCE))
    }

    /// Standard output of a command that succeeds, without its last newline.
    #[track_caller]
    pub fn ok<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> String {
        self.run(args).expect(0).out().trim_end_matches('\n').to_owned()
    }

    /// The document of a command that succeeds.
    #[track_caller]
    pub fn json<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Answer {
        self.run_json(args).1
    }

    /// The status and the one document of a command.
    #[track_caller]
    pub fn run_json<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> (i32, Answer) {
        let done = self.run(["--json"].into_iter().chain(args));
        (done.status, done.json())
    }

    /// The error of a command that fails: the one document on standard error, nothing on standard output.
    #[track_caller]
    pub fn error<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Failure {
        self.run(["--json"].into_iter().chain(args)).error()
    }

    /// A new session's id.
    #[track_caller]
    pub fn session(&self) -> String {
        self.ok(["session", "create"])
    }

    /// Runs code that succeeds; what it printed.
    #[track_caller]
    pub fn exec(&self, session: &str, code: &str) -> String {
        self.ok(["exec", session, "-c", code])
    }

    /// Asks for a document again and again until it is as wanted.
    #[track_caller]
    pub fn until_json(
        &self,
        what: &str,
        within: Duration,
        args: &[&str],
        wanted: impl Fn(&Answer) -> bool,
    ) -> Answer {
        let start = clock::since_start();
        loop {
            let done = self.run(["--json"].iter().chain(args));
            if done.status == 0 {
                let answer = done.json();
                if wanted(&answer) {
                    return answer;
                }
            }
            assert!(clock::since_start() - start < within, "waited {within:?} for {what}; last:\n{done}");
        }
    }
}

/// An error as a program reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub status: i32,
    pub code: String,
    pub message: String,
    pub hint: String,
}

impl Finished {
    /// The one JSON document on standard output.
    #[track_caller]
    pub fn json(&self) -> Answer {
        let mut documents = serde_json::Deserializer::from_slice(&self.stdout).into_iter::<Value>();
        let first = documents.next().and_then(Result::ok);
        let rest = documents.next();
        assert!(first.is_some() && rest.is_none(), "standard output is not one JSON document\n{self}");
        first.unwrap_or_default()
    }

    /// The error of a command that was run with `--json`.
    #[track_caller]
    pub fn error(&self) -> Failure {
        assert_ne!(self.status, 0, "{self}");
        assert!(self.stdout.is_empty(), "an error has no document\n{self}");
        let said: Value =
            serde_json::from_slice(&self.stderr).unwrap_or_else(|_| panic!("one JSON error\n{self}"));
        let field = |name: &str| {
            said["error"][name].as_str().unwrap_or_else(|| panic!("{name} in {said}")).to_owned()
        };
        Failure { status: self.status, code: field("code"), message: field("message"), hint: field("hint") }
    }

    /// The code of an error for people: `error[code]: message`, and what to do next.
    #[track_caller]
    pub fn error_line(&self) -> (String, String) {
        let err = self.err();
        let line = err
            .lines()
            .find(|line| line.starts_with("error["))
            .unwrap_or_else(|| panic!("no error line\n{self}"));
        let (code, message) = line["error[".len()..].split_once("]: ").unwrap_or_else(|| panic!("{line}"));
        (code.to_owned(), message.to_owned())
    }
}
