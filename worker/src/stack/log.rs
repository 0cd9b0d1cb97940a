//! The log of a step: lines with the time of day, without secrets (I9), on the step's standard output.

use std::fmt::Display;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cooper_common::clock;
use cooper_common::redact::{self, Redactor};

/// Where a step says what it does. Clones write to the same place.
#[derive(Clone)]
pub struct Log(Arc<Mutex<Inner>>);

struct Inner {
    writer: redact::Writer<'static, Box<dyn Write + Send>>,
    redactor: Redactor,
}

impl Log {
    /// A log to this writer. The secrets in this process's own environment are known from the start.
    pub fn new(to: impl Write + Send + 'static) -> Self {
        let environment: Vec<(String, String)> = std::env::vars_os()
            .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
            .collect();
        let redactor = Redactor::for_environment(environment.iter().map(|(k, v)| (k.as_str(), v.as_str())));
        let writer = redact::Writer::owning(redactor.clone(), Box::new(to) as Box<dyn Write + Send>);
        Self(Arc::new(Mutex::new(Inner { writer, redactor })))
    }

    /// Writes a line of the step's own. A log that cannot be written does not stop the step: its report still tells.
    pub fn say(&self, line: impl Display) {
        let _ = writeln!(self.inner().writer, "{} {line}", time_of_day(clock::wall_ms()));
    }

    /// Writes output of a child as it comes.
    pub fn raw(&self, bytes: &[u8]) {
        let _ = self.inner().writer.write_all(bytes);
    }

    /// Takes these secrets out of everything from here on.
    pub fn hide(&self, more: Redactor) {
        let mut inner = self.inner();
        inner.redactor = std::mem::take(&mut inner.redactor).and(more);
        let redactor = inner.redactor.clone();
        inner.writer.set_redactor(redactor);
    }

    /// What is known to be secret so far.
    pub fn redactor(&self) -> Redactor {
        self.inner().redactor.clone()
    }

    /// The text without its secrets.
    pub fn redact(&self, text: &str) -> String {
        self.inner().redactor.redact(text).into_owned()
    }

    /// Passes on everything, also a line without an end.
    pub fn flush(&self) -> io::Result<()> {
        let mut inner = self.inner();
        inner.writer.end_line()?;
        inner.writer.flush()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `HH:MM:SS.mmm`, UTC.
fn time_of_day(wall_ms: i64) -> String {
    let ms = wall_ms.rem_euclid(86_400_000);
    format!("{:02}:{:02}:{:02}.{:03}", ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60, ms % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_day_is_utc() {
        assert_eq!(time_of_day(1_700_000_000_123), "22:13:20.123");
    }
}
