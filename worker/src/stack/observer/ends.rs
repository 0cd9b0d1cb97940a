//! Which end of a container is a failure: not one that somebody asked for, and not the only one with exit code 0.

use std::collections::{HashMap, VecDeque};

use cooper_common::limits::observer::{LOOP_ENDS, LOOP_MS, STOP_MS};

use super::troubles::Kind;

/// Containers of which something is known; of further ones the oldest is forgotten.
const CONTAINERS_MAX: usize = 4_096;

#[derive(Debug, Default)]
struct Container {
    /// When it was sent a signal that ends.
    stopped_ms: Option<u64>,
    /// When it ended, of late.
    ended_ms: VecDeque<u64>,
    touched_ms: u64,
}

/// What containers were sent, and how often they ended.
#[derive(Debug, Default)]
pub(super) struct Ends {
    containers: HashMap<String, Container>,
}

impl Ends {
    /// Somebody sent it a signal, `docker stop` for one.
    pub(super) fn signalled(&mut self, now: u64, id: &str, signal: &str) {
        let number = signal.trim_start_matches("SIG");
        if matches!(number, "15" | "9" | "2" | "3" | "TERM" | "KILL" | "INT" | "QUIT") {
            self.of(now, id).stopped_ms = Some(now);
        }
    }

    /// It ended: how that is a failure, if it is one.
    pub(super) fn ended(&mut self, now: u64, id: &str, exit_code: i64) -> Option<Kind> {
        let container = self.of(now, id);
        if container.stopped_ms.take().is_some_and(|at| now - at <= STOP_MS) {
            container.ended_ms.clear();
            return None;
        }
        container.ended_ms.push_back(now);
        while container.ended_ms.front().is_some_and(|at| now - at > LOOP_MS)
            || container.ended_ms.len() > LOOP_ENDS
        {
            container.ended_ms.pop_front();
        }
        if container.ended_ms.len() >= LOOP_ENDS {
            return Some(Kind::Looping);
        }
        (exit_code != 0).then_some(Kind::Died)
    }

    pub(super) fn forget(&mut self, id: &str) {
        self.containers.remove(id);
    }

    fn of(&mut self, now: u64, id: &str) -> &mut Container {
        if self.containers.len() >= CONTAINERS_MAX && !self.containers.contains_key(id) {
            let oldest = self.containers.iter().min_by_key(|(_, container)| container.touched_ms);
            if let Some(oldest) = oldest.map(|(id, _)| id.clone()) {
                self.containers.remove(&oldest);
            }
        }
        let container = self.containers.entry(id.to_owned()).or_default();
        container.touched_ms = now;
        container
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_stopped_has_not_failed_but_what_ends_by_itself_with_an_error_has() {
        let mut ends = Ends::default();
        ends.signalled(0, "a", "15");
        assert_eq!(ends.ended(10_000, "a", 143), None, "docker stop");
        assert_eq!(ends.ended(20_000, "a", 1), Some(Kind::Died));
        ends.signalled(30_000, "b", "1");
        assert_eq!(ends.ended(31_000, "b", 1), Some(Kind::Died), "SIGHUP is to read a configuration again");
        assert_eq!(ends.ended(31_000, "c", 0), None, "a task that is done");
    }

    #[test]
    fn what_ends_with_0_again_and_again_is_in_a_loop() {
        let mut ends = Ends::default();
        assert_eq!((ends.ended(0, "a", 0), ends.ended(1_000, "a", 0)), (None, None));
        assert_eq!(ends.ended(2_000, "a", 0), Some(Kind::Looping));
        assert_eq!(ends.ended(2_000 + LOOP_MS + 1, "a", 0), None, "long ago");
    }
}
