//! Committed events on their way to whoever watches; the store holds what a slow watcher missed.

use std::{collections::VecDeque, sync::Arc};

use futures::{Stream, stream};
use tokio::sync::broadcast;

use crate::store::{Event, Result, Store};

/// Commits a subscriber may lag behind before it has to read from the store again (I12).
const COMMITS_BUFFERED_MAX: usize = 1024;
/// Events that a feed reads from the store at once.
const PAGE: usize = 512;

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

/// Events from a sequence number on: those recorded, then new ones, each once and in order.
///
/// The bus says that there is something new, the store is the truth: whatever the bus left out (a lag, a commit before
/// the subscription) is read from there. Events that retention took are passed over.
pub struct Feed {
    store: Arc<dyn Store>,
    live: broadcast::Receiver<Arc<[Event]>>,
    /// `None` = every tenant's.
    tenant: Option<String>,
    /// Number of the first event not looked at yet; 0 = those that are still to come, whatever their number.
    next_seq: u64,
    /// Number of the last event wanted; `None` = there is no last one.
    last_seq: Option<u64>,
    /// The store may have events from `next_seq` on that the bus will not bring.
    behind: bool,
    ready: VecDeque<Event>,
}

impl Feed {
    /// `from_seq` 0 = only new events.
    pub fn from(store: Arc<dyn Store>, bus: &Bus, from_seq: u64, tenant: Option<String>) -> Self {
        let live = bus.sender.subscribe();
        Self { store, live, tenant, next_seq: from_seq, last_seq: None, behind: true, ready: VecDeque::new() }
    }

    /// Ends once everything was given that is recorded now.
    pub async fn until_end(mut self) -> Result<Self> {
        self.last_seq = Some(self.store.last_seq().await?);
        Ok(self)
    }

    /// The next event; `None` at the end that was wanted, or when the store has gone. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            if self.last_seq.is_some_and(|last| self.next_seq > last) {
                return Ok(None);
            }
            if self.behind {
                self.catch_up().await?;
                continue;
            }
            match self.live.recv().await {
                Ok(events) => self.take(&events),
                Err(broadcast::error::RecvError::Lagged(_)) => self.behind = true,
                Err(broadcast::error::RecvError::Closed) => return Ok(None),
            }
        }
    }

    pub fn into_stream(self) -> impl Stream<Item = Result<Event>> + Send {
        stream::try_unfold(self, |mut feed| async move { Ok(feed.next().await?.map(|event| (event, feed))) })
    }

    async fn catch_up(&mut self) -> Result<()> {
        if self.next_seq == 0 {
            self.next_seq = self.store.last_seq().await? + 1;
        }
        let page = self.store.events(self.tenant.as_deref(), self.next_seq, PAGE).await?;
        let last = self.last_seq.unwrap_or(u64::MAX);
        self.ready.extend(page.events.into_iter().filter(|event| event.seq <= last));
        self.next_seq = page.next_seq;
        self.behind = !page.at_end;
        Ok(())
    }

    fn take(&mut self, events: &[Event]) {
        let (Some(first), Some(last)) = (events.first(), events.last()) else { return };
        if first.seq > self.next_seq {
            // Two commits of a store in memory may be published in either order.
            self.behind = true;
            return;
        }
        let wanted = events
            .iter()
            .filter(|event| event.seq >= self.next_seq && self.last_seq.is_none_or(|last| event.seq <= last))
            .filter(|event| self.tenant.as_ref().is_none_or(|tenant| *tenant == event.tenant));
        self.ready.extend(wanted.cloned());
        self.next_seq = self.next_seq.max(last.seq + 1);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use cooper_core::change::{Aggregate, Change, NewEvent, Row};

    use super::*;
    use crate::store::{Durability, sqlite::Sqlite};

    fn change(tenant: &str, id: u64, events: usize) -> Change {
        let event = NewEvent { kind: "task.queued".into(), body: "{}".into() };
        Change {
            aggregate: Aggregate::Task,
            id: format!("tsk_{id}"),
            expected: 0,
            row: Row { tenant: tenant.into(), body: "{}".into(), ..Row::default() },
            events: vec![event; events],
            output: vec![],
        }
    }

    async fn take(feed: &mut Feed, count: usize) -> Vec<u64> {
        let mut seqs = Vec::new();
        for _ in 0..count {
            let next = tokio::time::timeout(Duration::from_secs(10), feed.next()).await;
            seqs.push(next.expect("an event in time").unwrap().unwrap().seq);
        }
        seqs
    }

    #[tokio::test]
    async fn a_feed_joins_history_and_live_without_gap_or_double() {
        let bus = Bus::default();
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(Sqlite::open(dir.path(), bus.clone()).unwrap());
        let writing = Arc::clone(&store);
        let writer = tokio::spawn(async move {
            for id in 0..600 {
                writing.commit_wait(vec![change("a", id, 3)], Durability::Relaxed).await.unwrap();
            }
        });
        tokio::time::sleep(Duration::from_millis(5)).await;
        let mut feed = Feed::from(Arc::clone(&store), &bus, 1, None);
        assert_eq!(take(&mut feed, 1800).await, (1..=1800).collect::<Vec<_>>());
        writer.await.unwrap();
    }

    #[tokio::test]
    async fn a_feed_until_the_end_ends_there_also_where_the_end_is_another_tenants() {
        let bus = Bus::default();
        let store: Arc<dyn Store> = Arc::new(Sqlite::memory(bus.clone()).unwrap());
        let until = async |tenant: &str, from| {
            Feed::from(Arc::clone(&store), &bus, from, Some(tenant.to_owned())).until_end().await.unwrap()
        };
        assert_eq!(until("a", 1).await.next().await.unwrap(), None, "nothing is recorded");
        store.commit_wait(vec![change("a", 0, 1000), change("b", 1, 2)], Durability::Full).await.unwrap();
        let mut feed = until("a", 1).await;
        // Comes too late for it.
        store.commit_wait(vec![change("a", 2, 1)], Durability::Full).await.unwrap();
        assert_eq!(take(&mut feed, 1000).await, (1..=1000).collect::<Vec<_>>());
        assert_eq!(feed.next().await.unwrap(), None);
        assert_eq!(until("a", 0).await.next().await.unwrap(), None, "only new ones, and none is new");
    }

    #[tokio::test]
    async fn a_feed_that_lags_reads_what_it_missed_from_the_store() {
        let bus = Bus::default();
        let store: Arc<dyn Store> = Arc::new(Sqlite::memory(bus.clone()).unwrap());
        let mut feed = Feed::from(Arc::clone(&store), &bus, 0, None);
        store.commit_wait(vec![change("a", 0, 1)], Durability::Full).await.unwrap();
        // Only new ones: the feed looks at the store when it is first asked.
        store.commit_wait(vec![change("a", 1, 1)], Durability::Full).await.unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(20), feed.next()).await.is_err());
        let more = COMMITS_BUFFERED_MAX as u64 + 500;
        for id in 2..2 + more {
            store.commit_wait(vec![change("a", id, 1)], Durability::Full).await.unwrap();
        }
        assert_eq!(take(&mut feed, more as usize).await, (3..3 + more).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_feed_shows_only_its_tenants_events_and_passes_over_many_of_others() {
        let bus = Bus::default();
        let store: Arc<dyn Store> = Arc::new(Sqlite::memory(bus.clone()).unwrap());
        for id in 0..30 {
            store.commit_wait(vec![change("b", id, 1000)], Durability::Full).await.unwrap();
        }
        store.commit_wait(vec![change("a", 100, 1)], Durability::Full).await.unwrap();
        let mut feed = Feed::from(Arc::clone(&store), &bus, 1, Some("a".into()));
        assert_eq!(take(&mut feed, 1).await, [30_001]);
        store.commit_wait(vec![change("b", 101, 1)], Durability::Full).await.unwrap();
        store.commit_wait(vec![change("a", 102, 1)], Durability::Full).await.unwrap();
        assert_eq!(take(&mut feed, 1).await, [30_003]);
    }

    #[tokio::test]
    async fn a_feed_that_was_not_told_of_an_event_notices_at_the_next() {
        let (bus, untold) = (Bus::default(), Bus::default());
        let store: Arc<dyn Store> = Arc::new(Sqlite::memory(untold).unwrap());
        let mut feed = Feed::from(Arc::clone(&store), &bus, 1, None);
        assert!(tokio::time::timeout(Duration::from_millis(20), feed.next()).await.is_err());
        for id in 0..2 {
            store.commit_wait(vec![change("a", id, 1)], Durability::Full).await.unwrap();
        }
        bus.publish(store.events(None, 2, 1).await.unwrap().events);
        bus.publish(store.events(None, 1, 1).await.unwrap().events);
        assert_eq!(take(&mut feed, 2).await, [1, 2]);
        assert!(tokio::time::timeout(Duration::from_millis(20), feed.next()).await.is_err());
    }
}
