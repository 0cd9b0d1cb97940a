//! Which refusals of a session are told of, and which are only counted.

use std::collections::BTreeMap;

use cooper_common::limits::network::{REFUSAL_AGAIN_MS, REFUSALS_TOLD_MAX};

use super::Reason;

/// Kinds of refusals that are told of at once; one more each time that [`EACH_MS`] is over.
const AT_ONCE: u64 = 16;
const EACH_MS: u64 = 10_000;

type Key = (String, u16, Reason);

/// Bounded, however many hosts a session tries.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// When each was told of, and how often it happened since.
    known: BTreeMap<Key, (u64, u64)>,
    /// Refusals of kinds there was no room for.
    others: u64,
    others_told_ms: u64,
    /// Tells used up, and since when they come back.
    used: u64,
    since_ms: u64,
}

impl Refusals {
    /// One more. Some: tell of it, with this count.
    pub fn count(&mut self, now: u64, host: &str, port: u16, reason: Reason) -> Option<u64> {
        let key = (host.to_owned(), port, reason);
        if let Some((told_ms, count)) = self.known.get_mut(&key) {
            *count += 1;
            if now - *told_ms < REFUSAL_AGAIN_MS {
                return None;
            }
            *told_ms = now;
            return Some(std::mem::take(count));
        }
        let back = (now.saturating_sub(self.since_ms)) / EACH_MS;
        if back > 0 {
            (self.used, self.since_ms) = (self.used.saturating_sub(back), now);
        }
        if self.used >= AT_ONCE || self.known.len() >= REFUSALS_TOLD_MAX {
            self.others += 1;
            return None;
        }
        self.used += 1;
        self.known.insert(key, (now, 0));
        Some(1)
    }

    /// What was only counted and is to be told of now.
    pub fn counted(&mut self, now: u64) -> Vec<(String, u16, Reason, u64)> {
        let mut told = Vec::new();
        self.known.retain(|(host, port, reason), (told_ms, count)| {
            if now - *told_ms < REFUSAL_AGAIN_MS {
                return true;
            }
            if *count == 0 {
                return false;
            }
            told.push((host.clone(), *port, *reason, std::mem::take(count)));
            *told_ms = now;
            true
        });
        if self.others > 0 && now - self.others_told_ms >= EACH_MS {
            told.push((String::new(), 0, Reason::Others, std::mem::take(&mut self.others)));
            self.others_told_ms = now;
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_is_counted_and_few_are_told_of() {
        let mut refusals = Refusals::default();
        let (mut tells, mut told) = (0, 0);
        let mut tell = |count| {
            tells += 1;
            told += count;
        };
        for n in 0..10_000u64 {
            refusals
                .count(100_000 + n, &format!("h{}.test", n % 500), 443, Reason::Domain)
                .into_iter()
                .for_each(&mut tell);
            refusals.count(100_000 + n, "same.test", 443, Reason::Domain).into_iter().for_each(&mut tell);
        }
        for now in [200_000, 300_000] {
            refusals.counted(now).into_iter().for_each(|(.., count)| tell(count));
        }
        assert_eq!(told, 20_000);
        assert!(tells <= 64, "{tells}");
        assert!(refusals.known.len() <= REFUSALS_TOLD_MAX);
    }
}
