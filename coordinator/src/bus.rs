//! Committed events on their way to whoever watches; the store holds what a slow watcher missed.

use std::sync::Arc;

use tokio::sync::broadcast;

use crate::store::Event;

/// Commits a subscriber may lag behind before it has to read from the store again (I12).
const COMMITS_BUFFERED_MAX: usize = 1024;

/// Carries the events of each commit, whole and in order.
#[derive(Debug, Clone)]
pub struct Bus {
    sender: broadcast::Sender<Arc<[Event]>>,
}

impl Default for Bus {
    fn default() -> Self {
        Self { sender: broadcast::Sender::new(COMMITS_BUFFERED_MAX) }
    }
}

impl Bus {
    /// Whether anybody would receive what is published now.
    pub(crate) fn is_watched(&self) -> bool {
        self.sender.receiver_count() > 0
    }

    /// The events of one commit. Nobody there is no error.
    pub(crate) fn publish(&self, events: Vec<Event>) {
        if !events.is_empty() {
            let _ = self.sender.send(events.into());
        }
    }
}
