//! Logs: one line a fact on standard error, `LOG_LEVEL` decides how many. No line says a secret (I9).

use std::{
    io::{self, Write},
    sync::Arc,
};

use tracing_subscriber::{EnvFilter, fmt};

use crate::redact::Redactor;

/// Starts logging to standard error. `level` is `error`, `warn`, `info`, `debug`, `trace` or a tracing filter.
/// A second call changes nothing.
pub fn init(level: &str) {
    let filter = EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"));
    // It writes down each message as a whole, code and answers included.
    let filter = match "rmcp=error".parse() {
        Ok(quiet) if !level.contains("rmcp") => filter.add_directive(quiet),
        _ => filter,
    };
    let redactor = Arc::new(of_process());
    let _ = fmt()
        .with_env_filter(filter)
        .with_writer(move || Lines { redactor: Arc::clone(&redactor), to: io::stderr() })
        .with_target(false)
        .with_ansi(false)
        .try_init();
}

/// What this process was told as a secret by its environment, and whatever looks like one.
fn of_process() -> Redactor {
    let variables: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    Redactor::for_environment(variables.iter().map(|(name, value)| (name.as_str(), value.as_str())))
}

/// Takes a whole line at a time, as `tracing_subscriber` writes them.
struct Lines<W> {
    redactor: Arc<Redactor>,
    to: W,
}

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.to.write_all(&self.redactor.redact_bytes(line))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::token::Secret;

    proptest! {
        #[test]
        fn no_line_says_a_secret(before in "[ -~]{0,60}", after in "[ -~]{0,60}", known in "[a-z]{12,20}") {
            let mut said = Vec::new();
            let secret = Secret::generate();
            let redactor = Arc::new(Redactor::for_environment([("COOPER_TOKEN", known.as_str())]));
            let line = format!("{before} {} {after} {known} {after}\n", secret.expose());
            Lines { redactor, to: &mut said }.write_all(line.as_bytes()).unwrap();
            let said = String::from_utf8_lossy(&said);
            prop_assert!(!said.contains(secret.expose()) && !said.contains(&known), "{said}");
        }
    }
}
