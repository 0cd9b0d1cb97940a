//! Idempotency keys in flight: two requests with one key at the same time must not both be new. What was recorded is the
//! store's to remember; this covers the moment between.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use cooper_core::change::Aggregate;

/// Reserved keys remembered, in flight and after (I12); older ones are the store's by then.
const REMEMBERED_MAX: usize = 65_536;

type Key = (Aggregate, Arc<str>, String);

#[derive(Debug, Default)]
pub struct Keys {
    inner: Mutex<(HashMap<Key, String>, VecDeque<Key>)>,
}

impl Keys {
    /// Takes the key for `id`, or says whose it is.
    pub fn reserve(
        &self,
        aggregate: Aggregate,
        tenant: &Arc<str>,
        key: &str,
        id: &str,
    ) -> Result<(), String> {
        if key.is_empty() {
            return Ok(());
        }
        let key = (aggregate, tenant.clone(), key.to_owned());
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let (ids, order) = &mut *inner;
        if let Some(holder) = ids.get(&key) {
            return Err(holder.clone());
        }
        ids.insert(key.clone(), id.to_owned());
        order.push_back(key);
        if order.len() > REMEMBERED_MAX
            && let Some(oldest) = order.pop_front()
        {
            ids.remove(&oldest);
        }
        Ok(())
    }

    /// Gives the key back: its request failed and nothing was recorded.
    pub fn release(&self, aggregate: Aggregate, tenant: &Arc<str>, key: &str) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.0.remove(&(aggregate, tenant.clone(), key.to_owned()));
    }
}
