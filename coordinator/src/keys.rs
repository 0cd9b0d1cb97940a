//! Idempotency keys in flight: of two requests with one key the second waits until the first is recorded or has failed.
//! What was recorded is the store's to remember.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use cooper_core::change::Aggregate;
use tokio::sync::OwnedMutexGuard;

type Key = (Aggregate, Arc<str>, String);

/// As many as there are requests with a key in flight.
#[derive(Debug, Default)]
pub struct Keys {
    turns: Mutex<HashMap<Key, Arc<tokio::sync::Mutex<()>>>>,
}

/// The right to be the one request with a key; given up when dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    keys: &'a Keys,
    key: Key,
    held: Option<OwnedMutexGuard<()>>,
}

impl Keys {
    /// Waits for the turn of a key; at once without one.
    pub async fn turn(&self, aggregate: Aggregate, tenant: &Arc<str>, key: &str) -> Option<Turn<'_>> {
        if key.is_empty() {
            return None;
        }
        let key = (aggregate, tenant.clone(), key.to_owned());
        let lock = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.entry(key.clone()).or_default().clone()
        };
        // Made first: it tidies up even if the wait is given up.
        let mut turn = Turn { keys: self, key, held: None };
        turn.held = Some(lock.lock_owned().await);
        Some(turn)
    }

    /// The turns of many keys. All who want several take them in the same order, so that nobody waits in a circle.
    pub async fn turns(
        &self,
        aggregate: Aggregate,
        tenant: &Arc<str>,
        keys: impl Iterator<Item = &str>,
    ) -> Vec<Turn<'_>> {
        let mut turns = Vec::new();
        for key in keys.collect::<BTreeSet<_>>() {
            turns.extend(self.turn(aggregate, tenant, key).await);
        }
        turns
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut turns = self.keys.turns.lock().unwrap_or_else(PoisonError::into_inner);
        self.held = None;
        // Whoever waits holds it, too.
        if turns.get(&self.key).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            turns.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_key_has_one_holder_at_a_time_and_nothing_stays_of_it() {
        let (keys, tenant) = (Keys::default(), Arc::<str>::from("t"));
        let turn = |key| keys.turn(Aggregate::Task, &tenant, key);
        let waits = Duration::from_millis(20);
        let first = turn("k").await;
        assert!(tokio::time::timeout(waits, turn("k")).await.is_err());
        let (other, none) = tokio::join!(turn("other"), turn(""));
        assert!(other.is_some() && none.is_none());
        let others_tenant = Arc::<str>::from("u");
        let theirs = keys.turn(Aggregate::Task, &others_tenant, "k").await;
        drop(first);
        let second = tokio::time::timeout(waits, turn("k")).await.expect("it is free");
        drop((second, other, theirs));
        assert!(keys.turns.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn many_keys_are_taken_without_a_circle() {
        let (keys, tenant) = (Keys::default(), Arc::<str>::from("t"));
        for _ in 0..100 {
            let take = |names: [&'static str; 3]| {
                let (keys, tenant) = (&keys, &tenant);
                async move {
                    let held = keys.turns(Aggregate::Task, tenant, names.into_iter()).await;
                    tokio::task::yield_now().await;
                    held.len()
                }
            };
            assert_eq!(tokio::join!(take(["a", "b", "b"]), take(["b", "a", ""])), (2, 2));
        }
    }
}
