//! Which attempts are followed by another, when, and how many at most.

use cooper_common::{backoff, ids::TaskId, limits::retry};
use serde::{Deserialize, Serialize};

/// Which ends of an attempt another attempt may follow. An attempt that surely never started is always handed out again
/// and never counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    IfNotStarted,
    /// Lost with its worker: it may run twice.
    Lost,
    /// Lost or failed.
    Always,
}

/// The pause before another attempt. The dice were thrown when the task's id was made: each task has a roll of its own
/// for each of its attempts, so that a thousand lost at once do not come back at once.
pub fn pause_ms(task: TaskId, used: u32) -> u64 {
    let roll = roll(task, used);
    let pause = backoff::full_jitter(retry::BASE_MS, retry::CAP_MS, used.saturating_sub(1), roll);
    u64::try_from(pause.as_millis()).unwrap_or(u64::MAX)
}

/// In [0, 1), evenly: splitmix64 over the id's random bits.
fn roll(task: TaskId, used: u32) -> f64 {
    let id = task.as_u128();
    let mut x = (id as u64) ^ ((id >> 64) as u64).rotate_left(32) ^ (u64::from(used) << 48);
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^= x >> 31;
    (x >> 11) as f64 / (1u64 << 53) as f64
}

/// Keeps a storm of retries from displacing first attempts: one tenant's retries stay below a share of its attempts and
/// a floor. Beyond, a retry waits until its turn comes at the floor's rate; none is dropped.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Thousandths of a retry. Negative: that many are promised ahead.
    milli: i64,
    at_mono_ms: u64,
}

const FULL_MILLI: i64 = retry::BUDGET_BURST as i64 * 1_000;

impl Budget {
    pub fn full(now_mono_ms: u64) -> Self {
        Self { milli: FULL_MILLI, at_mono_ms: now_mono_ms }
    }

    fn refill(&mut self, now_mono_ms: u64) {
        let passed = i64::try_from(now_mono_ms.saturating_sub(self.at_mono_ms)).unwrap_or(i64::MAX);
        // Retries a second are thousandths of one a millisecond.
        self.milli =
            self.milli.saturating_add(passed.saturating_mul(retry::BUDGET_PER_SECOND)).min(FULL_MILLI);
        self.at_mono_ms = now_mono_ms;
    }

    /// A first attempt earns its share.
    pub fn earn(&mut self) {
        self.milli = (self.milli + 10 * retry::BUDGET_PERCENT).min(FULL_MILLI);
    }

    /// Takes one retry; how long it waits for its turn.
    pub fn take(&mut self, now_mono_ms: u64) -> u64 {
        self.refill(now_mono_ms);
        self.milli -= 1_000;
        u64::try_from(-self.milli / retry::BUDGET_PER_SECOND).unwrap_or(0)
    }

    /// Nothing to remember.
    pub fn is_full(&mut self, now_mono_ms: u64) -> bool {
        self.refill(now_mono_ms);
        self.milli == FULL_MILLI
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pauses_of_tasks_lost_together_are_spread() {
        let pauses: std::collections::BTreeSet<u64> =
            (0..1_000).map(|n| pause_ms(TaskId::from_u128(n), 3) / 100).collect();
        assert_eq!(pauses.len(), 20, "every tenth of a second of the first two seconds has some");
    }

    proptest! {
        /// However many are lost, in any window of time no more retries start than the floor and the share allow.
        #[test]
        fn a_storm_of_retries_is_bounded(steps in prop::collection::vec((0u64..50, 0u32..40, 0u32..200), 1..60)) {
            let mut budget = Budget::full(0);
            let (mut now, mut earned) = (0u64, 0i64);
            let mut starts: Vec<u64> = Vec::new();
            for (pass, attempts, lost) in steps {
                now += pass;
                for _ in 0..attempts {
                    budget.earn();
                    earned += 1;
                }
                for _ in 0..lost {
                    starts.push(now + budget.take(now));
                }
            }
            starts.sort_unstable();
            for (n, at) in starts.iter().enumerate() {
                let allowed = i64::from(retry::BUDGET_BURST)
                    + earned * retry::BUDGET_PERCENT / 100
                    + (*at as i64 + 1) * retry::BUDGET_PER_SECOND / 1_000
                    + 1;
                prop_assert!((n as i64) < allowed, "{n} retries by {at} ms, allowed {allowed}");
            }
        }
    }
}
