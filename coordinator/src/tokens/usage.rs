//! What a token is used for: when last, how often, how much at once.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use cooper_common::{
    clock,
    error::{Code, Error, Result},
    limits::token as limits,
};

/// What one token may ask for; 0 = without end.
#[derive(Debug, Clone, Copy)]
pub struct Allowance {
    pub requests_per_s: u64,
    pub concurrent: u64,
}

impl Default for Allowance {
    fn default() -> Self {
        Self { requests_per_s: limits::REQUESTS_PER_S, concurrent: limits::CONCURRENT }
    }
}

#[derive(Debug, Default)]
pub(super) struct Usage {
    last_ms: AtomicI64,
    written_ms: AtomicI64,
    open: AtomicU64,
    bucket: Mutex<Bucket>,
}

/// Requests that are left, in thousandths, as of a moment.
#[derive(Debug, Default)]
struct Bucket {
    left: u64,
    at_ms: u64,
}

/// One of the requests that a token may have open; given back when it is dropped.
#[derive(Debug)]
pub struct Share(Arc<Usage>);

impl Drop for Share {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Usage {
    pub(super) fn used(&self) {
        self.last_ms.fetch_max(clock::wall_ms(), Ordering::Relaxed);
    }

    /// As the store has it.
    pub(super) fn known(&self, at_ms: i64) {
        self.last_ms.fetch_max(at_ms, Ordering::Relaxed);
        self.written_ms.fetch_max(at_ms, Ordering::Relaxed);
    }

    pub(super) fn last_ms(&self) -> i64 {
        self.last_ms.load(Ordering::Relaxed)
    }

    /// When it was used last, if that is not written yet; once.
    pub(super) fn unwritten(&self) -> Option<i64> {
        let last = self.last_ms();
        (self.written_ms.swap(last, Ordering::Relaxed) != last).then_some(last)
    }

    /// # Errors
    /// `rate_limited`.
    pub(super) fn take(self: &Arc<Self>, allowance: &Allowance) -> Result<Share> {
        let now = clock::mono_ms();
        if allowance.requests_per_s > 0 {
            let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
            if !bucket.take(allowance.requests_per_s, now) {
                let rate = allowance.requests_per_s;
                return Err(limited(format!("this token has asked more often than {rate} times a second")));
            }
        }
        let open = self.open.fetch_add(1, Ordering::Relaxed);
        // Given back when it is refused, too.
        let share = Share(self.clone());
        if allowance.concurrent > 0 && open >= allowance.concurrent {
            return Err(limited(format!("this token has {open} requests open")));
        }
        Ok(share)
    }
}

impl Bucket {
    fn take(&mut self, per_s: u64, now_ms: u64) -> bool {
        let most = per_s * limits::BURST_S * 1_000;
        // A request a millisecond is a thousand a second: what comes back in one is `per_s` thousandths.
        let back = now_ms.saturating_sub(self.at_ms).saturating_mul(per_s);
        self.left = if self.at_ms == 0 { most } else { self.left.saturating_add(back).min(most) };
        self.at_ms = now_ms.max(1);
        let taken = self.left >= 1_000;
        if taken {
            self.left -= 1_000;
        }
        taken
    }
}

/// When whoever was refused may come back.
pub const COME_BACK_AFTER: Duration = Duration::from_secs(1);

fn limited(what: String) -> Error {
    metrics::counter!("cooper_rate_limited_total").increment(1);
    Error::new(Code::RateLimited, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_taken_and_then_as_many_as_come_back() {
        let mut bucket = Bucket::default();
        let burst = 10 * limits::BURST_S;
        assert_eq!((0..100).filter(|_| bucket.take(10, 1)).count() as u64, burst);
        assert!(!bucket.take(10, 100) && bucket.take(10, 101) && !bucket.take(10, 101));
        assert_eq!((0..100).filter(|_| bucket.take(10, 1_000_000)).count() as u64, burst);
    }

    #[test]
    fn what_is_open_is_bounded_and_given_back() {
        let usage = Arc::new(Usage::default());
        let allowance = Allowance { requests_per_s: 0, concurrent: 2 };
        let (one, _two) = (usage.take(&allowance).unwrap(), usage.take(&allowance).unwrap());
        assert_eq!(usage.take(&allowance).unwrap_err().code, Code::RateLimited);
        drop(one);
        usage.take(&allowance).unwrap();
    }
}
