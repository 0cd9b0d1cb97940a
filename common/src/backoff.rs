//! Back-off with full jitter, the one retry rhythm of Cooper.

use std::time::Duration;

/// Full jitter: `U(0, min(cap, base * 2^attempt))`. `roll` in [0, 1) comes from the caller's random source.
pub fn full_jitter(base_ms: u64, cap_ms: u64, attempt: u32, roll: f64) -> Duration {
    let ceiling = base_ms.saturating_mul(1u64 << attempt.min(32)).min(cap_ms);
    Duration::from_millis((ceiling as f64 * roll) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn backoff_stays_under_its_cap(attempt in any::<u32>(), roll in 0.0f64..1.0) {
            prop_assert!(full_jitter(100, 5_000, attempt, roll) < Duration::from_millis(5_000));
        }
    }
}
