//! Logs: one line a fact on standard error, `LOG_LEVEL` decides how many.

use tracing_subscriber::{EnvFilter, fmt};

/// Starts logging to standard error. `level` is `error`, `warn`, `info`, `debug`, `trace` or a tracing filter.
/// A second call changes nothing.
pub fn init(level: &str) {
    let filter = EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"));
    // It writes down each message as a whole, code and answers included.
    let filter = match "rmcp=error".parse() {
        Ok(quiet) if !level.contains("rmcp") => filter.add_directive(quiet),
        _ => filter,
    };
    let _ = fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(false)
        .try_init();
}
