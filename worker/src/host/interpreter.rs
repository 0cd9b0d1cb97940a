//! A session's interpreter as the host sees it: a process beneath a subreaper, and a control socket.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use base64::Engine as _;
use cooper_common::limits::exec::{DISPLAYS_MAX, RESULT_BYTES_MAX, TRACEBACK_BYTES_MAX};
use cooper_proto::v1;
use rustix::process::Resource;
use serde::{Deserialize, Serialize};

use super::{
    launch::{Launch, Program},
    reaper::{self, Reaper},
};
use crate::{confine::Confinement, frame};

pub const RUNNER: &str = include_str!("runner.py");
/// Reads the runner from descriptor 3; its frames are recognised, and left out of tracebacks, by this file name.
const BOOTSTRAP: &str =
    "import os; exec(compile(os.pread(3, 1 << 20, 0), '<cooper>', 'exec'), {'__name__': 'cooper'})";

/// What an interpreter is started with.
pub struct Start {
    /// The session venv's python.
    pub python: PathBuf,
    pub workspace: PathBuf,
    pub seat: Seat,
    pub confinement: Confinement,
}

/// What makes an interpreter that of one session.
pub struct Seat {
    pub venv: PathBuf,
    /// Where the venv has its packages.
    pub site: PathBuf,
    pub env: Vec<(String, String)>,
    pub limits: Vec<(Resource, u64)>,
}

pub struct Running {
    pub reaper: Reaper,
    /// Non-blocking; speaks the protocol of `runner.py`.
    pub control: OwnedFd,
}

/// Starts an interpreter from scratch: where there is no zygote, and for who does not want one.
pub struct PlainChild {
    runner: OwnedFd,
}

impl PlainChild {
    pub fn new() -> io::Result<Self> {
        // Sealed: no session can change what the next one runs.
        Ok(Self { runner: frame::sealed_memfd("cooper-runner", RUNNER.as_bytes())? })
    }

    /// Returns at once; the interpreter says hello on its control socket when it is ready.
    pub fn start(&self, start: Start) -> io::Result<Running> {
        let (control, theirs) = frame::pair()?;
        rustix::io::ioctl_fionbio(&control, true)?;
        let null = || -> io::Result<OwnedFd> {
            OpenOptions::new().read(true).write(true).open("/dev/null").map(File::into)
        };
        let reaper = reaper::start(Launch {
            argv: vec![start.python.to_string_lossy().into_owned(), "-c".to_owned(), BOOTSTRAP.to_owned()],
            program: Program::Path(start.python),
            env: start.seat.env,
            cwd: start.workspace,
            fds: vec![null()?, null()?, null()?, self.runner.try_clone()?, theirs],
            limits: start.seat.limits,
            uid: None,
            powerless: false,
            terminal: false,
            confinement: Some(start.confinement),
        })?;
        Ok(Running { reaper, control })
    }
}

/// One execution for the runner. Its stdout and stderr pipes go with it.
#[derive(Serialize)]
pub struct Request<'a> {
    pub id: u64,
    pub code: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub filename: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    pub args: &'a [String],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: &'a BTreeMap<&'a str, &'a str>,
    /// Packages were installed since the last execution.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub installed: bool,
    /// In a fork, with two descriptors more.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub fresh: bool,
    /// Standard input is one descriptor more, the last.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stdin: bool,
    /// Its streams are a terminal. Fresh only.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub terminal: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<&'a std::path::Path>,
}

impl Request<'_> {
    pub fn send(&self, control: &OwnedFd, fds: &[&OwnedFd]) -> io::Result<()> {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        frame::send_bytes(control, &serde_json::to_vec(self)?, &fds)
    }
}

/// How many parts that were left out are named in one bundle, and how much of each name.
const TRUNCATED_NAMED_MAX: usize = 64;
const MIME_BYTES_MAX: usize = 256;

/// What the runner says: hello once, then one answer a request. It is written by a process that runs the session's
/// code, so nothing in it is believed beyond its own session.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Answer {
    pub hello: Option<u32>,
    pub id: Option<u64>,
    /// A fresh execution runs in its fork; the interpreter is free.
    pub branched: Option<u64>,
    /// What came of the host's own text (`globals.py`).
    pub done: Option<super::globals::Done>,
    /// Names of modules that were imported since it was last said, without the standard library's.
    pub imported: Vec<String>,
    exit_code: i32,
    result: Option<Bundle>,
    displays: Vec<Bundle>,
    exception: Option<Exception>,
    cpu_ms: u64,
    peak_memory_bytes: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Bundle {
    data: BTreeMap<String, String>,
    data64: BTreeMap<String, String>,
    truncated: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Exception {
    name: String,
    value: String,
    traceback: String,
}

impl Answer {
    pub fn parse(body: &[u8]) -> io::Result<Self> {
        Ok(serde_json::from_slice(body)?)
    }

    /// The outcome as far as the interpreter knows it; the bounds of the contract hold whatever it said.
    pub fn into_outcome(self) -> v1::Outcome {
        let mut room = RESULT_BYTES_MAX;
        let result = self.result.map(|bundle| bundle.within(&mut room));
        let displays =
            self.displays.into_iter().take(DISPLAYS_MAX).map(|bundle| bundle.within(&mut room)).collect();
        v1::Outcome {
            exit_code: self.exit_code,
            result,
            displays,
            exception: self.exception.map(|e| v1::PythonError {
                name: cut(e.name, 256),
                value: cut(e.value, TRACEBACK_BYTES_MAX),
                traceback: cut(e.traceback, TRACEBACK_BYTES_MAX),
            }),
            usage: Some(v1::Usage {
                wall_ms: 0,
                cpu_ms: self.cpu_ms,
                peak_memory_bytes: self.peak_memory_bytes,
                ..v1::Usage::default()
            }),
            ..v1::Outcome::default()
        }
    }
}

impl Bundle {
    fn within(self, room: &mut usize) -> v1::MimeBundle {
        let named = self.truncated.into_iter().take(TRUNCATED_NAMED_MAX);
        let mut bundle = v1::MimeBundle {
            truncated: named.map(|mime| cut(mime, MIME_BYTES_MAX)).collect(),
            ..v1::MimeBundle::default()
        };
        let decoded = self.data64.into_iter().filter_map(|(mime, content)| {
            Some((mime, base64::engine::general_purpose::STANDARD.decode(content).ok()?))
        });
        for (mime, content) in
            self.data.into_iter().map(|(mime, text)| (mime, text.into_bytes())).chain(decoded)
        {
            if content.len() + mime.len() > *room {
                if bundle.truncated.len() < TRUNCATED_NAMED_MAX {
                    bundle.truncated.push(cut(mime, MIME_BYTES_MAX));
                }
                continue;
            }
            *room -= content.len() + mime.len();
            bundle.data.insert(mime, content);
        }
        bundle
    }
}

fn cut(mut text: String, max: usize) -> String {
    if text.len() > max {
        let end = (0..=max).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A bundle in the runner's words, with more in it than a runner would say.
    fn forged() -> impl Strategy<Value = serde_json::Value> {
        let text =
            |longest: usize| prop_oneof![8 => 0_usize..12, 1 => Just(longest)].prop_map(|n| "é".repeat(n));
        let texts = prop::collection::btree_map(text(300), text(30_000), 0..4);
        let names = prop::collection::vec(text(300), 0..80);
        (texts.clone(), texts, names)
            .prop_map(|(data, data64, truncated)| serde_json::json!({ "data": data, "data64": data64, "truncated": truncated }))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn a_hostile_answer_is_an_error_not_a_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Answer::parse(&body).map(Answer::into_outcome);
        }

        #[test]
        fn what_is_kept_of_a_forged_answer_is_bounded(
            displays in prop::collection::vec(forged(), 0..4),
            repeated in 1_usize..20,
            traceback in (0_usize..100_000).prop_map(|n| "é".repeat(n)),
            cut_at in any::<prop::sample::Index>(),
        ) {
            let displays = vec![displays; repeated].concat();
            let text = serde_json::json!({ "id": 1, "result": displays.first(), "displays": displays,
                "exception": { "name": traceback, "value": traceback, "traceback": traceback } });
            let text = text.to_string();
            let outcome = Answer::parse(text.as_bytes()).unwrap().into_outcome();
            let names = (DISPLAYS_MAX + 1) * TRUNCATED_NAMED_MAX * (MIME_BYTES_MAX + 16);
            let bound = RESULT_BYTES_MAX + 3 * TRACEBACK_BYTES_MAX + names;
            prop_assert!(prost::Message::encoded_len(&outcome) <= bound);
            prop_assert!(Answer::parse(&text.as_bytes()[..cut_at.index(text.len())]).is_err(), "half an answer is none");
        }
    }

    #[test]
    fn a_result_beyond_its_bounds_is_dropped_and_named() {
        let large = "x".repeat(RESULT_BYTES_MAX);
        let json = format!(r#"{{"id":1,"result":{{"data":{{"text/plain":"{large}","text/html":"y"}}}}}}"#);
        let result = Answer::parse(json.as_bytes()).unwrap().into_outcome().result.unwrap();
        assert_eq!(result.truncated, ["text/plain"]);
        assert_eq!(result.data["text/html"], b"y");
    }
}
