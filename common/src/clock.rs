//! The one place that reads clocks: wall clock for display, monotonic clock for decisions (I13).
#![allow(clippy::disallowed_methods)]

use std::{
    cell::Cell,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// When simulated time begins: the first second of 2026, UTC.
const SIMULATED_START_MS: i64 = 1_767_225_600_000;

thread_local! {
    static SIMULATED: Cell<Option<fn() -> Duration>> = const { Cell::new(None) };
}

/// Unix milliseconds, UTC. For display and records, never for decisions.
pub fn wall_ms() -> i64 {
    match simulated() {
        Some(elapsed) => SIMULATED_START_MS + elapsed.as_millis() as i64,
        None => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64),
    }
}

/// Monotonic milliseconds since this process first asked. For every decision about time.
pub fn mono_ms() -> u64 {
    since_start().as_millis() as u64
}

/// Like [`mono_ms`], with the full resolution.
pub fn since_start() -> Duration {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    simulated().unwrap_or_else(|| START.get_or_init(Instant::now).elapsed())
}

/// From now on this thread lives in simulated time, of which `elapsed` has passed: both clocks follow it, and so do the
/// ids made here. Only simulations call this (DESIGN §11).
pub fn simulate(elapsed: fn() -> Duration) {
    SIMULATED.set(Some(elapsed));
}

/// The simulated time of this thread, if it lives in one. Whoever would hand work to another thread asks: a simulation
/// has only this one.
pub fn simulated() -> Option<Duration> {
    SIMULATED.get().map(|elapsed| elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_simulated_thread_has_both_clocks_from_its_simulation() {
        let simulated = std::thread::spawn(|| {
            simulate(|| Duration::from_millis(1_500));
            (mono_ms(), wall_ms())
        });
        assert_eq!(simulated.join().unwrap(), (1_500, SIMULATED_START_MS + 1_500));
        assert!(simulated_is_of_the_thread());
    }

    fn simulated_is_of_the_thread() -> bool {
        simulated().is_none()
    }
}
