//! Deadlines of the host, in one ordered map; the event loop sleeps until the first.

use std::collections::BTreeMap;

/// Names one deadline, to cancel it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timer(u64, u64);

pub struct Timers<T> {
    due: BTreeMap<Timer, T>,
    next: u64,
}

impl<T> Default for Timers<T> {
    fn default() -> Self {
        Self { due: BTreeMap::new(), next: 0 }
    }
}

impl<T> Timers<T> {
    /// `at_ms` is on the clock of `clock::mono_ms`.
    pub fn add(&mut self, at_ms: u64, what: T) -> Timer {
        self.next += 1;
        let timer = Timer(at_ms, self.next);
        self.due.insert(timer, what);
        timer
    }
    pub fn cancel(&mut self, timer: Timer) {
        self.due.remove(&timer);
    }
    /// Milliseconds until the first deadline; None = there is none.
    pub fn wait_ms(&self, now_ms: u64) -> Option<u64> {
        self.due.keys().next().map(|timer| timer.0.saturating_sub(now_ms))
    }
    /// Takes the first deadline that has passed.
    pub fn pop(&mut self, now_ms: u64) -> Option<T> {
        let first = self.due.first_entry().filter(|first| first.key().0 <= now_ms)?;
        Some(first.remove())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_come_in_order_and_cancelled_ones_not_at_all() {
        let mut timers = Timers::default();
        timers.add(20, "b");
        timers.add(10, "a");
        let never = timers.add(15, "never");
        timers.cancel(never);
        assert_eq!((timers.wait_ms(5), timers.pop(5)), (Some(5), None));
        assert_eq!((timers.pop(20), timers.pop(20), timers.pop(20)), (Some("a"), Some("b"), None));
        assert_eq!(timers.wait_ms(0), None);
    }
}
