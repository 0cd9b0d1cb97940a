//! Logs: one line a fact on standard error, `LOG_LEVEL` decides how many.

use tracing_subscriber::{EnvFilter, fmt};

/// Starts logging to standard error. `level` is `error`, `warn`, `info`, `debug`, `trace` or a tracing filter.
/// A second call changes nothing.
pub fn init(level: &str) {
    let filter = EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"));
    let _ = fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(false)
        .try_init();
}
