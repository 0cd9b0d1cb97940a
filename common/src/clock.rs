//! The one place that reads clocks: wall clock for display, monotonic clock for decisions (I13).
#![allow(clippy::disallowed_methods)]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Unix milliseconds, UTC. For display and records, never for decisions.
pub fn wall_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64)
}

/// Monotonic milliseconds since this process first asked. For every decision about time.
pub fn mono_ms() -> u64 {
    since_start().as_millis() as u64
}

/// Like [`mono_ms`], with the full resolution.
pub fn since_start() -> Duration {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}
