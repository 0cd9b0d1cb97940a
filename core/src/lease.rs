//! Fences and leases (I1): who may still write, and how long a silent worker is believed in.

use serde::{Deserialize, Serialize};

/// Names one grant. Strictly increasing per aggregate: by attempt under one coordinator, by epoch across restarts, even
/// when the grant itself was lost with the power.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Fence {
    pub epoch: u64,
    pub attempt: u32,
}

/// How silent a worker may be. All in milliseconds of the coordinator's monotonic clock.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    pub heartbeat_min_ms: u64,
    pub suspect_beats: u64,
    pub lease_ms: u64,
    pub lost_ms: u64,
    pub reattach_grace_ms: u64,
    /// Between two looks at the clock.
    pub tick_ms: u64,
}

impl Default for Timing {
    fn default() -> Self {
        use cooper_common::limits::link;
        Self {
            heartbeat_min_ms: link::HEARTBEAT_MIN_MS,
            suspect_beats: link::SUSPECT_BEATS,
            lease_ms: link::LEASE_MS,
            lost_ms: link::LOST_MS,
            reattach_grace_ms: link::REATTACH_GRACE_MS,
            tick_ms: link::TICK_MS,
        }
    }
}

/// What silence says about a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    Fresh,
    /// No new work.
    Suspect,
    /// Its attempts are given up.
    Lost,
}

impl Timing {
    /// The interval asked of each of `workers`: 2 s, and more for many, so that beats cost a bounded share of a core; but
    /// three of them fit into a lease, or thousands of workers would be out of theirs between two beats.
    pub fn heartbeat_ms(&self, workers: usize) -> u64 {
        let for_many = workers as u64 * 5 + self.heartbeat_min_ms / 2;
        for_many.min(self.lease_ms / 3).max(self.heartbeat_min_ms)
    }

    /// How late a look at the clock may be before the coordinator mistrusts itself rather than its workers.
    pub fn own_lag_ms(&self) -> u64 {
        2 * self.tick_ms
    }

    pub fn silence(&self, silent_ms: u64, heartbeat_ms: u64) -> Silence {
        if silent_ms >= self.lost_ms {
            Silence::Lost
        } else if silent_ms > self.suspect_beats * heartbeat_ms {
            Silence::Suspect
        } else {
            Silence::Fresh
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_of_a_later_epoch_wins_over_any_attempt_of_an_earlier_one() {
        assert!(Fence { epoch: 2, attempt: 1 } > Fence { epoch: 1, attempt: u32::MAX });
    }

    #[test]
    fn silence_turns_suspect_after_three_beats_and_lost_after_a_minute() {
        let timing = Timing::default();
        assert_eq!(timing.silence(6_000, 2_000), Silence::Fresh);
        assert_eq!(timing.silence(6_001, 2_000), Silence::Suspect);
        assert_eq!(timing.silence(60_000, 2_000), Silence::Lost);
    }

    #[test]
    fn many_workers_beat_more_slowly() {
        let timing = Timing::default();
        assert_eq!(timing.heartbeat_ms(1), 2_000);
        assert_eq!(timing.heartbeat_ms(1_000), 6_000);
        assert_eq!(timing.heartbeat_ms(10_000), 10_000);
    }
}
