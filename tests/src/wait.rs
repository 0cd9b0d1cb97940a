//! Waiting for what has to come: every wait has a deadline and says what it waited for.

use std::{thread, time::Duration};

use cooper_common::clock;

const LOOK: Duration = Duration::from_millis(10);

/// Looks until there is an answer.
#[track_caller]
pub fn until<T>(what: &str, within: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    until_within(within, &mut look).unwrap_or_else(|| panic!("waited {within:?} for {what}"))
}

/// The same for what need not come.
pub fn until_within<T>(within: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = clock::since_start() + within;
    loop {
        let found = look();
        if found.is_some() || clock::since_start() >= deadline {
            return found;
        }
        thread::sleep(LOOK);
    }
}

/// Looks until it is true.
#[track_caller]
pub fn until_true(what: &str, within: Duration, mut look: impl FnMut() -> bool) {
    until(what, within, || look().then_some(()));
}
