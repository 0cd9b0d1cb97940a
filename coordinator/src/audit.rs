//! The audit trail: who did what, to what, from where, and what came of it. Rows are written in groups behind what they tell
//! of; whoever must not be answered before that (tokens, secrets, decisions) waits for it.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use cooper_common::{
    audit::{Entry, Link, Row},
    clock,
    error::{Code, Error, Result},
    limits::audit as limits,
    redact::Redactor,
    token::Scope,
};
use cooper_core::change::Aggregate;
use cooper_proto::v1;
use tokio::sync::{mpsc, oneshot};

use crate::{
    bus::{Bus, Feed},
    caller::Caller,
    store::{self, Durability, Store},
    tokens::DEFAULT_TENANT,
};

/// What ended as it should.
pub const OK: &str = "ok";
/// Number of the next event that is looked at, in the store.
const NEXT: &str = "audit_next_event";
/// Events that are looked at again after a restart, at most.
const PASSED_MAX: u64 = 1_000;
/// What is written though nobody asked for it by a request.
const EVENTS: [&str; 2] = ["run.refused", "run.expired"];
/// How long rows that nobody waits for gather.
const LINGER: Duration = Duration::from_millis(25);
/// Of a transaction that found no place in the store's queue.
const AGAIN: Duration = Duration::from_millis(50);

/// What waits to be written.
enum Item {
    Row(Entry, Option<oneshot::Sender<()>>),
    /// Something was asked for by this id that is not the caller's. Whether it is anybody's is looked up here, so that the
    /// answer takes as long either way (I10).
    Absent(Entry),
}

impl Item {
    fn is_awaited(&self) -> bool {
        matches!(self, Self::Row(_, Some(_)))
    }
}

/// Where the trail is written and read.
pub struct Audit {
    store: Arc<dyn Store>,
    queue: mpsc::Sender<Item>,
    /// Taken by whoever writes.
    waiting: Mutex<Option<mpsc::Receiver<Item>>>,
    /// Refused at the door, by address and code, since they were written last.
    refused: Mutex<HashMap<(Option<IpAddr>, Code), u64>>,
    /// Rows that found no place in the queue.
    lost: AtomicU64,
    redactor: Redactor,
}

impl Audit {
    pub fn new(store: Arc<dyn Store>) -> Arc<Self> {
        let (queue, waiting) = mpsc::channel(limits::WAITING_MAX);
        Arc::new(Self {
            store,
            queue,
            waiting: Mutex::new(Some(waiting)),
            refused: Mutex::default(),
            lost: AtomicU64::new(0),
            redactor: Redactor::default(),
        })
    }

    /// Writes what is noted, until it is dropped.
    pub async fn run(self: Arc<Self>, bus: Bus) {
        let Some(mut waiting) = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return;
        };
        let events = self.clone();
        let writing = async {
            let mut look = tokio::time::interval(Duration::from_millis(limits::REFUSED_EVERY_MS));
            let mut items = Vec::new();
            loop {
                tokio::select! {
                    taken = waiting.recv_many(&mut items, limits::GROUP_MAX) => {
                        if taken == 0 {
                            return;
                        }
                        // What nobody waits for goes along with more of it: the disk has other things to do.
                        let _ = tokio::time::timeout(LINGER, async {
                            while items.len() < limits::GROUP_MAX && !items.iter().any(Item::is_awaited) {
                                waiting.recv_many(&mut items, limits::GROUP_MAX).await;
                            }
                        })
                        .await;
                        self.write(std::mem::take(&mut items)).await;
                    }
                    _ = look.tick() => self.write_refused().await,
                }
            }
        };
        let following = async move {
            if let Err(error) = events.follow(&bus).await {
                tracing::error!(%error, "what happens by itself is not audited any more until the next start");
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = writing => {}
            () = following => {}
        }
    }

    /// Written soon; what finds no place is counted, and the count is written.
    pub fn note(&self, entry: Entry) {
        self.put(Item::Row(self.ready(entry), None));
    }

    /// Written when this returns.
    pub async fn record(&self, entry: Entry) {
        let (done, written) = oneshot::channel();
        if self.queue.send(Item::Row(self.ready(entry), Some(done))).await.is_ok() {
            let _ = written.await;
        }
    }

    /// Somebody asked for what is not there, or not theirs.
    pub fn absent(&self, entry: Entry) {
        self.put(Item::Absent(self.ready(entry)));
    }

    /// Nobody was let in. A flood of these is one row.
    pub fn refused(&self, from: Option<IpAddr>, code: Code) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let from = if refused.len() < limits::REFUSED_ADDRESSES_MAX { from } else { None };
        *refused.entry((from, code)).or_default() += 1;
    }

    fn put(&self, item: Item) {
        if self.queue.try_send(item).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
            metrics::counter!("cooper_audit_lost_total").increment(1);
        }
    }

    /// Nothing that comes from a request makes a row large, or carries a secret (I9).
    fn ready(&self, mut entry: Entry) -> Entry {
        if entry.at_ms == 0 {
            entry.at_ms = clock::wall_ms();
        }
        for text in [&mut entry.object, &mut entry.detail] {
            let short: String = text.chars().take(limits::TEXT_CHARS_MAX).collect();
            *text = self.redactor.redact(&short).into_owned();
        }
        entry
    }

    async fn write(&self, items: Vec<Item>) {
        let (mut entries, mut waiters) = (Vec::with_capacity(items.len()), Vec::new());
        for item in items {
            match item {
                Item::Row(entry, waiter) => {
                    entries.push(entry);
                    waiters.extend(waiter);
                }
                Item::Absent(entry) => entries.extend(self.elsewhere(entry).await),
            }
        }
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            entries.push(Entry {
                at_ms: clock::wall_ms(),
                action: "audit.lost".to_owned(),
                outcome: Code::Overloaded.as_str().to_owned(),
                detail: format!("{lost} rows found no place"),
                ..Entry::default()
            });
        }
        // Without one the next commit of whatever else brings them to the disk.
        let durability = if waiters.is_empty() { Durability::Relaxed } else { Durability::Full };
        self.append(entries, durability).await;
        for waiter in waiters {
            let _ = waiter.send(());
        }
    }

    async fn append(&self, entries: Vec<Entry>, durability: Durability) {
        if entries.is_empty() {
            return;
        }
        loop {
            match self.store.audit_append(entries.clone(), durability).await {
                Ok(()) => return,
                Err(store::Error::Overloaded) => tokio::time::sleep(AGAIN).await,
                Err(error) => {
                    // The store is gone, and whoever serves with it.
                    tracing::error!(%error, rows = entries.len(), "nothing could be audited");
                    return;
                }
            }
        }
    }

    async fn write_refused(&self) {
        let refused = std::mem::take(&mut *self.refused.lock().unwrap_or_else(PoisonError::into_inner));
        let row = |((from, code), times): ((Option<IpAddr>, Code), u64)| Entry {
            at_ms: clock::wall_ms(),
            from: from.map(|from| from.to_string()).unwrap_or_default(),
            action: "door.refused".to_owned(),
            outcome: code.as_str().to_owned(),
            detail: match times {
                1 => "1 request".to_owned(),
                times => format!("{times} requests"),
            },
            ..Entry::default()
        };
        let mut rows: Vec<Entry> = refused.into_iter().map(row).collect();
        rows.sort_by(|a, b| (&a.from, &a.outcome).cmp(&(&b.from, &b.outcome)));
        self.append(rows, Durability::Relaxed).await;
    }

    /// What to write when somebody asked for another's: nobody but the installation's admins sees that it is there.
    async fn elsewhere(&self, entry: Entry) -> Option<Entry> {
        let aggregate = kind_of(&entry.object)?;
        let record = self.store.get(aggregate, &entry.object).await.ok()??;
        if record.row.tenant == entry.tenant {
            return None;
        }
        let detail = format!(
            "{} of tenant {} asked for by tenant {}",
            aggregate.name(),
            record.row.tenant,
            entry.tenant
        );
        Some(Entry { tenant: String::new(), outcome: "cross_tenant".to_owned(), detail, ..entry })
    }

    /// What happens to runs without anybody's request: policy refuses one, an approval expires.
    async fn follow(&self, bus: &Bus) -> Result<()> {
        let next = match self.store.meta_get(NEXT).await?.and_then(|text| text.parse::<u64>().ok()) {
            Some(next) => next,
            None => self.store.last_seq().await? + 1,
        };
        let mut feed = Feed::from(self.store.clone(), bus, next, None);
        let mut recorded = next;
        while let Some(event) = feed.next().await? {
            let told = EVENTS.contains(&event.kind.as_str());
            if told {
                self.record(Entry {
                    at_ms: event.at_ms,
                    tenant: event.tenant,
                    name: "cooper".to_owned(),
                    action: event.kind.clone(),
                    object: event.subject,
                    outcome: match event.kind.as_str() {
                        "run.refused" => Code::PolicyRefused.as_str(),
                        _ => "expired",
                    }
                    .to_owned(),
                    ..Entry::default()
                })
                .await;
            }
            if told || event.seq.saturating_sub(recorded) > PASSED_MAX {
                recorded = event.seq + 1;
                self.store.meta_put(NEXT, &recorded.to_string()).await?;
            }
        }
        Ok(())
    }
}

/// Reading it.
impl Audit {
    /// The newest rows before a number (0 = the newest there are), newest first, of those that the caller may see.
    pub async fn list(&self, caller: &Caller, before_seq: u64, limit: usize) -> Result<Vec<Row>> {
        let before = if before_seq == 0 { u64::MAX } else { before_seq };
        Ok(self.store.audit_before(visible(caller), before, limit).await?)
    }

    /// Rows from a number on, oldest first.
    pub async fn from(&self, caller: &Caller, from_seq: u64, limit: usize) -> Result<Vec<Row>> {
        Ok(self.store.audit_from(visible(caller), from_seq, limit).await?)
    }

    /// Follows the whole chain. `expected` is a place that somebody noted earlier: it has to be on it still.
    pub async fn verify(&self, caller: &Caller, expected: Option<Link>) -> Result<v1::AuditVerdict> {
        if visible(caller).is_some() {
            let message = "the chain holds the rows of all tenants: only an admin of the tenant \"default\" can follow it";
            return Err(Error::new(Code::Forbidden, message));
        }
        let (anchor, head) = self.store.audit_ends().await?;
        let (mut link, mut findings, mut rows) = (anchor.clone(), Vec::new(), 0);
        let mut met = expected.is_none() || expected.as_ref() == Some(&anchor);
        // What is written meanwhile is not part of it.
        while link.seq < head.seq {
            let page = self.store.audit_from(None, link.seq + 1, limits::PAGE_MAX).await?;
            if page.is_empty() {
                break;
            }
            for row in page.iter().filter(|row| row.seq <= head.seq) {
                if let Err(what) = link.follow(row)
                    && findings.len() < limits::FINDINGS_MAX
                {
                    findings.push(what);
                }
                met |= expected.as_ref() == Some(&link);
                rows += 1;
            }
            if page.iter().any(|row| row.seq >= head.seq) {
                break;
            }
        }
        if link != head {
            findings.push(format!(
                "the chain ends with row {} instead of row {}, or is not what it was",
                link.seq, head.seq
            ));
        }
        if let Some(expected) = expected.filter(|_| !met) {
            findings.push(match expected.seq < anchor.seq {
                true => format!("row {} was pruned: it cannot be compared any more", expected.seq),
                false => format!("row {} has not the hash that was expected", expected.seq),
            });
        }
        Ok(v1::AuditVerdict {
            ok: findings.is_empty(),
            rows,
            first_seq: if rows > 0 { anchor.seq + 1 } else { 0 },
            last_seq: link.seq,
            last_hash: link.hash,
            findings,
        })
    }
}

/// Whose rows the caller sees; `None`: everybody's.
fn visible(caller: &Caller) -> Option<String> {
    let all = caller.scope == Scope::Admin && *caller.tenant == *DEFAULT_TENANT;
    (!all).then(|| caller.tenant.to_string())
}

/// What an id is of, by how it begins.
fn kind_of(id: &str) -> Option<Aggregate> {
    let (prefix, _) = id.split_once('_')?;
    match prefix {
        "ses" => Some(Aggregate::Session),
        "tsk" => Some(Aggregate::Task),
        "run" => Some(Aggregate::Run),
        "apr" => Some(Aggregate::Approval),
        "art" => Some(Aggregate::Artifact),
        "chk" => Some(Aggregate::Checkpoint),
        "tok" => Some(Aggregate::Token),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use cooper_common::token::Secret;
    use cooper_core::change::{Change, Row as Stored};

    use super::*;
    use crate::store::{Keep, sqlite::Sqlite};

    fn caller(tenant: &str, scope: Scope) -> Caller {
        Caller { tenant: tenant.into(), scope, token_id: "tok_1".into(), name: "ada".into(), from: None }
    }

    fn entry(tenant: &str, object: &str) -> Entry {
        Entry {
            tenant: tenant.into(),
            action: "Sessions/GetSession".into(),
            object: object.into(),
            ..Entry::default()
        }
    }

    async fn running() -> (Arc<Audit>, Arc<dyn Store>, tokio::task::JoinHandle<()>) {
        let bus = Bus::default();
        let store: Arc<dyn Store> = Arc::new(Sqlite::memory(bus.clone()).unwrap());
        let audit = Audit::new(store.clone());
        let writing = tokio::spawn(audit.clone().run(bus));
        (audit, store, writing)
    }

    #[tokio::test]
    async fn rows_are_written_in_order_and_each_tenant_sees_its_own() {
        let (audit, _store, _writing) = running().await;
        audit.note(entry("a", "one"));
        audit.note(entry("b", "two"));
        audit.record(entry("a", "three")).await;
        let objects = |rows: Vec<Row>| rows.into_iter().map(|row| row.entry.object).collect::<Vec<_>>();
        let (root, a) = (caller(DEFAULT_TENANT, Scope::Admin), caller("a", Scope::Admin));
        assert_eq!(objects(audit.list(&root, 0, 10).await.unwrap()), ["three", "two", "one"]);
        assert_eq!(objects(audit.list(&a, 0, 10).await.unwrap()), ["three", "one"]);
        assert_eq!(objects(audit.list(&root, 3, 1).await.unwrap()), ["two"]);
        assert_eq!(objects(audit.from(&root, 2, 10).await.unwrap()), ["two", "three"]);
        assert_eq!(audit.verify(&a, None).await.unwrap_err().code, Code::Forbidden);
        let verdict = audit.verify(&root, None).await.unwrap();
        assert!(verdict.ok && verdict.rows == 3, "{verdict:?}");
    }

    #[tokio::test]
    async fn who_asks_for_anothers_is_told_of_to_the_installations_admins_alone() {
        let (audit, store, _writing) = running().await;
        let row = Stored { tenant: "a".into(), ..Stored::default() };
        let (aggregate, id) = (Aggregate::Session, "ses_theirs".to_owned());
        let change = Change { aggregate, id, expected: 0, row, events: vec![], output: vec![] };
        store.commit_wait(vec![change], Durability::Full).await.unwrap();
        for object in ["ses_theirs", "ses_nobodys", "a name", ""] {
            audit.absent(entry("b", object));
        }
        audit.absent(entry("a", "ses_theirs"));
        audit.record(entry("b", "the end")).await;
        let rows = audit.list(&caller("b", Scope::Admin), 0, 10).await.unwrap();
        assert_eq!(rows.len(), 1, "{rows:?}");
        let rows = audit.list(&caller(DEFAULT_TENANT, Scope::Admin), 0, 10).await.unwrap();
        let told: Vec<_> = rows.iter().filter(|row| row.entry.outcome == "cross_tenant").collect();
        assert_eq!(told.len(), 1, "{rows:?}");
        assert!(told[0].entry.detail.contains("tenant a") && told[0].entry.object == "ses_theirs");
    }

    #[tokio::test]
    async fn no_row_says_a_secret_and_none_is_large() {
        let (audit, _store, _writing) = running().await;
        let secret = Secret::generate();
        let detail = format!("refused: {} {}", secret.expose(), "x".repeat(10_000));
        audit.record(Entry { detail, object: secret.expose().into(), ..Entry::default() }).await;
        let rows = audit.list(&caller(DEFAULT_TENANT, Scope::Admin), 0, 10).await.unwrap();
        let text = format!("{rows:?}");
        assert!(!text.contains(secret.expose()) && text.len() < 2_000, "{text}");
    }

    #[tokio::test]
    async fn what_was_changed_removed_or_cut_off_is_found_and_pruning_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(Sqlite::open(dir.path(), Bus::default()).unwrap());
        let audit = Audit::new(store.clone());
        let root = caller(DEFAULT_TENANT, Scope::Admin);
        let entries = (0..2_000).map(|n| entry("a", &n.to_string())).collect();
        store.audit_append(entries, Durability::Full).await.unwrap();
        let place =
            |verdict: &v1::AuditVerdict| Link { seq: verdict.last_seq, hash: verdict.last_hash.clone() };
        let whole = audit.verify(&root, None).await.unwrap();
        assert!(whole.ok && (whole.first_seq, whole.last_seq) == (1, 2_000), "{whole:?}");

        let all = u64::MAX >> 1;
        let keep = Keep {
            ended_tasks: all,
            ended_runs: all,
            ended_rows: all,
            events: all,
            audit: 100,
            since_ms: None,
        };
        assert_eq!(store.retain(keep).await.unwrap().audit, 1_900);
        let pruned = audit.verify(&root, Some(place(&whole))).await.unwrap();
        assert!(pruned.ok && (pruned.first_seq, pruned.rows) == (1_901, 100), "{pruned:?}");
        let early = audit.verify(&root, Some(Link { seq: 5, hash: "x".into() })).await.unwrap();
        assert!(early.findings[0].contains("pruned"), "{early:?}");
        let other = audit.verify(&root, Some(Link { seq: 2_000, hash: "x".into() })).await.unwrap();
        assert!(!other.ok, "{other:?}");

        let tamper = |sql: &str| {
            let found = rusqlite::Connection::open(dir.path().join("cooper.db")).unwrap();
            found.execute_batch(sql).unwrap();
        };
        for (damage, undo) in [
            (
                "UPDATE audit SET outcome = 'ok' || outcome WHERE seq = 1950",
                "UPDATE audit SET outcome = '' WHERE seq = 1950",
            ),
            ("UPDATE audit SET seq = 9000 WHERE seq = 1950", "UPDATE audit SET seq = 1950 WHERE seq = 9000"),
            (
                "UPDATE audit SET seq = -1 WHERE seq = 1950; UPDATE audit SET seq = 1950 WHERE seq = 1951;
                 UPDATE audit SET seq = 1951 WHERE seq = -1;",
                "UPDATE audit SET seq = -1 WHERE seq = 1950; UPDATE audit SET seq = 1950 WHERE seq = 1951;
                 UPDATE audit SET seq = 1951 WHERE seq = -1;",
            ),
            ("DELETE FROM audit WHERE seq > 1990", ""),
        ] {
            tamper(damage);
            let found = audit.verify(&root, None).await.unwrap();
            assert!(!found.ok, "{damage}: {found:?}");
            if !undo.is_empty() {
                tamper(undo);
                assert!(audit.verify(&root, None).await.unwrap().ok, "{undo}");
            }
        }
    }
}
