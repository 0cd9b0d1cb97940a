//! A child's log: into a file of bounded size; warnings and errors to the terminal as well.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::ChildStderr,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use cooper_common::{clock, error::Code};

use super::child::Name;
use crate::{
    failure::{Failure, Report, Result},
    output::clean,
};

const FILE_BYTES_MAX: u64 = 8 << 20;
/// `x.log.1` to `x.log.3`.
const FILES_KEPT: u32 = 3;
const LINE_BYTES_MAX: u64 = 64 << 10;
/// Lines to the terminal in one window; what is more is only in the file.
const FORWARDED_MAX: u32 = 20;
const WINDOW_MS: u64 = 10_000;

pub(super) struct Log {
    reader: Option<JoinHandle<()>>,
    last_error: Arc<Mutex<Option<Report>>>,
}

impl Log {
    pub(super) fn start(name: Name, path: PathBuf, pipe: ChildStderr, forward: bool) -> Result<Self> {
        let fail = |error: io::Error| {
            Failure::new(Code::DataUnusable, format!("cannot write {}: {error}", path.display()))
        };
        let file = Rotating::open(&path).map_err(fail)?;
        let last_error = Arc::new(Mutex::new(None));
        let mut forwarder =
            Forwarder { name, forward, last_error: Arc::clone(&last_error), window_at: 0, in_window: 0 };
        let reader = thread::Builder::new()
            .name(format!("{name}-log"))
            .spawn(move || pump(pipe, file, &mut forwarder))
            .map_err(fail)?;
        Ok(Self { reader: Some(reader), last_error })
    }

    /// The error it last reported in the form that commands report errors.
    pub(super) fn last_error(&self) -> Option<Report> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits, a moment at most, until everything that an ended child wrote is read. Its own children may hold the
    /// pipe for longer.
    pub(super) fn drain(&mut self) {
        let Some(reader) = self.reader.take() else { return };
        let deadline = clock::mono_ms() + 200;
        while !reader.is_finished() && clock::mono_ms() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
    }
}

fn pump(pipe: impl Read, mut file: Rotating, forwarder: &mut Forwarder) {
    let mut lines = BufReader::new(pipe);
    let mut line = Vec::new();
    loop {
        line.clear();
        match lines.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        // A full disk must not stop the child, which would block on a full pipe.
        let _ = file.write(&line);
        forwarder.line(String::from_utf8_lossy(&line).trim_end());
    }
}

struct Forwarder {
    name: Name,
    forward: bool,
    last_error: Arc<Mutex<Option<Report>>>,
    window_at: u64,
    in_window: u32,
}

impl Forwarder {
    fn line(&mut self, line: &str) {
        let mut last = self.last_error.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(report) = read_report(line) {
            *last = Some(report);
            return;
        }
        if let (Some(hint), Some(report)) = (line.strip_prefix("  hint: "), last.as_mut()) {
            report.hint = hint.to_owned();
            return;
        }
        drop(last);
        if let Some(text) = urgent(line).filter(|_| self.forward && self.allowed()) {
            let _ = writeln!(io::stderr().lock(), "{}: {}", self.name, clean(text));
        }
    }

    fn allowed(&mut self) -> bool {
        let now = clock::mono_ms();
        if now.saturating_sub(self.window_at) > WINDOW_MS {
            (self.window_at, self.in_window) = (now, 0);
        }
        self.in_window += 1;
        self.in_window <= FORWARDED_MAX
    }
}

/// `error[code]: message`, as commands report errors.
fn read_report(line: &str) -> Option<Report> {
    let (code, message) = line.strip_prefix("error[")?.split_once("]: ")?;
    let hint = Code::parse(code).map_or("", Code::hint).to_owned();
    Some(Report { code: code.to_owned(), message: message.to_owned(), hint, exit: 1 })
}

/// The part of a log line that a person should see: level and message of warnings and errors, and panics.
fn urgent(line: &str) -> Option<&str> {
    let (_time, rest) = line.split_once(' ')?;
    let rest = rest.trim_start();
    let tagged = rest.starts_with("WARN ") || rest.starts_with("ERROR ");
    if tagged {
        return Some(rest);
    }
    (line.starts_with("thread '") && line.contains("panicked")).then_some(line)
}

/// A file that makes room for itself.
struct Rotating {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Rotating {
    fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, bytes })
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.bytes > 0 && self.bytes + line.len() as u64 > FILE_BYTES_MAX {
            self.rotate()?;
        }
        self.bytes += line.len() as u64;
        self.file.write_all(line)
    }

    fn rotate(&mut self) -> io::Result<()> {
        let numbered = |n: u32| PathBuf::from(format!("{}.{n}", self.path.display()));
        for n in (1..FILES_KEPT).rev() {
            let _ = fs::rename(numbered(n), numbered(n + 1));
        }
        fs::rename(&self.path, numbered(1))?;
        *self = Self::open(&self.path)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_errors_and_panics_are_urgent_and_nothing_else_is() {
        assert_eq!(urgent("2026-11-22T01:02:03.1Z  WARN disk is slow"), Some("WARN disk is slow"));
        assert_eq!(urgent("2026-11-22T01:02:03.1Z ERROR disk is gone"), Some("ERROR disk is gone"));
        assert_eq!(urgent("2026-11-22T01:02:03.1Z  INFO no ERROR here"), None);
        assert!(urgent("thread 'main' panicked at x.rs").is_some());
        assert_eq!(urgent(""), None);
    }

    #[test]
    fn a_childs_error_is_taken_over_with_its_code() {
        let report = read_report("error[port_taken]: something else listens").expect("a report");
        assert_eq!((report.code.as_str(), report.message.as_str()), ("port_taken", "something else listens"));
        assert!(read_report("error: x").is_none());
    }

    #[test]
    fn a_log_never_outgrows_its_files() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("x.log");
        let mut log = Rotating::open(&path).expect("opened");
        let line = vec![b'x'; 1 << 20];
        for _ in 0..60 {
            log.write(&line).expect("written");
        }
        let sizes: Vec<u64> = fs::read_dir(dir.path())
            .expect("listed")
            .map(|entry| entry.expect("an entry").metadata().expect("its size").len())
            .collect();
        assert!(sizes.len() == 4 && sizes.iter().all(|size| *size <= FILE_BYTES_MAX), "{sizes:?}");
    }
}
