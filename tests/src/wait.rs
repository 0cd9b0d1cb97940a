//! Waiting for what has to come: every wait has a deadline and says what it waited for.

use std::{thread, time::Duration};

use cooper_common::clock;

const LOOK: Duration = Duration::from_millis(10);

/// Looks until there is an answer.
#[track_caller]
pub fn until<T>(what: &str, within: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = clock::since_start() + within;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(clock::since_start() < deadline, "waited {within:?} for {what}");
        thread::sleep(LOOK);
    }
}

/// Looks until it is true.
#[track_caller]
pub fn until_true(what: &str, within: Duration, mut look: impl FnMut() -> bool) {
    until(what, within, || look().then_some(()));
}
