//! What every backend must keep: one suite of claims, run against each.

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use cooper_core::change::{Aggregate, Change, InlineOutput, NewEvent, Row};

use super::{Batch, Cause, Conflict, Durability, Error, Filter, Keep, Record, Store};
use crate::bus::Bus;

/// A backend under test.
pub(crate) struct Bed {
    dir: tempfile::TempDir,
    open: fn(&Path) -> Arc<dyn Store>,
    pub store: Arc<dyn Store>,
}

impl Bed {
    pub(crate) fn new(open: fn(&Path) -> Arc<dyn Store>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        Self { dir, open, store }
    }

    async fn reopen(&mut self) {
        self.store.close().await.unwrap();
        self.store = (self.open)(self.dir.path());
    }

    async fn put(&self, changes: Vec<Change>) -> Result<(), Error> {
        self.store.commit_wait(changes, Durability::Full).await
    }

    async fn task(&self, id: &str) -> Option<Record> {
        self.store.get(Aggregate::Task, id).await.unwrap()
    }

    async fn event_seqs(&self) -> Vec<u64> {
        let page = self.store.events(None, 1, usize::MAX).await.unwrap();
        assert!(page.at_end);
        page.events.iter().map(|event| event.seq).collect()
    }

    async fn ids(&self, filter: Filter) -> Vec<String> {
        let page = self.store.list(Aggregate::Task, Filter { limit: 1000, ..filter }).await.unwrap();
        page.records.into_iter().map(|record| record.id).collect()
    }
}

/// A task's next version, with one event.
fn task(id: &str, expected: u64) -> Change {
    Change {
        aggregate: Aggregate::Task,
        id: id.into(),
        expected,
        row: Row {
            tenant: "a".into(),
            state: "queued".into(),
            created_ms: 1,
            updated_ms: 2,
            body: format!(r#"{{"at":{expected}}}"#),
            ..Row::default()
        },
        events: vec![NewEvent { kind: "task.queued".into(), body: "{}".into() }],
        output: vec![],
    }
}

fn with(mut change: Change, edit: impl FnOnce(&mut Row)) -> Change {
    edit(&mut change.row);
    change
}

fn stale(index: usize, id: &str, expected: u64, found: u64) -> Result<(), Error> {
    let cause = Cause::Stale { expected, found };
    Err(Error::Conflict(Conflict { index, aggregate: Aggregate::Task, id: id.into(), cause }))
}

pub(crate) async fn a_row_reads_back_as_it_was_written(bed: Bed) {
    let mut change = task("t", 0);
    change.row = Row {
        tenant: "a".into(),
        state: "queued".into(),
        ended: false,
        parent: "ses_1".into(),
        key: "once".into(),
        created_ms: 7,
        updated_ms: 8,
        body: r#"{"é":"\u0000"}"#.into(),
        spec: Some(vec![0, 255, 1]),
        result: Some(vec![]),
    };
    bed.put(vec![change.clone()]).await.unwrap();
    let record = bed.task("t").await.unwrap();
    assert_eq!(record, Record { id: "t".into(), version: 1, row: change.row });
    assert_eq!(bed.store.get(Aggregate::Run, "t").await.unwrap(), None);
    let event = bed.store.events(None, 0, 10).await.unwrap().events.remove(0);
    assert_eq!((event.at_ms, event.tenant.as_str(), event.subject.as_str()), (8, "a", "t"));
}

pub(crate) async fn versions_grow_by_one(bed: Bed) {
    for expected in 0..5 {
        bed.put(vec![task("t", expected)]).await.unwrap();
        assert_eq!(bed.task("t").await.unwrap().version, expected + 1);
    }
}

pub(crate) async fn an_update_without_spec_and_result_keeps_them(bed: Bed) {
    bed.put(vec![with(task("t", 0), |row| row.spec = Some(b"spec".to_vec()))]).await.unwrap();
    bed.put(vec![with(task("t", 1), |row| row.result = Some(b"result".to_vec()))]).await.unwrap();
    bed.put(vec![task("t", 2)]).await.unwrap();
    let row = bed.task("t").await.unwrap().row;
    assert_eq!((row.spec, row.result), (Some(b"spec".to_vec()), Some(b"result".to_vec())));
}

pub(crate) async fn a_stale_version_conflicts_and_changes_nothing(bed: Bed) {
    bed.put(vec![task("t", 0)]).await.unwrap();
    bed.put(vec![task("t", 1)]).await.unwrap();
    let before = (bed.task("t").await, bed.event_seqs().await);
    for expected in [0, 1, 3] {
        let edit = |row: &mut Row| row.state = "succeeded".into();
        assert_eq!(bed.put(vec![with(task("t", expected), edit)]).await, stale(0, "t", expected, 2));
    }
    assert_eq!(bed.put(vec![task("absent", 1)]).await, stale(0, "absent", 1, 0));
    assert_eq!((bed.task("t").await, bed.event_seqs().await), before);
}

pub(crate) async fn a_key_is_unique_per_tenant_and_names_its_holder(bed: Bed) {
    let keyed = |id, expected, tenant: &str, key: &str| {
        with(task(id, expected), |row| (row.tenant, row.key) = (tenant.into(), key.into()))
    };
    bed.put(vec![keyed("t1", 0, "a", "k")]).await.unwrap();
    let taken = |id: &str| {
        let cause = Cause::KeyTaken { by: "t1".into() };
        Err(Error::Conflict(Conflict { index: 0, aggregate: Aggregate::Task, id: id.into(), cause }))
    };
    assert_eq!(bed.put(vec![keyed("t2", 0, "a", "k")]).await, taken("t2"));
    bed.put(vec![keyed("t3", 0, "b", "k"), task("t4", 0), task("t5", 0)]).await.unwrap();
    assert_eq!(bed.put(vec![keyed("t4", 1, "a", "k")]).await, taken("t4"));
    let by_key = |tenant, key| bed.store.by_key(Aggregate::Task, tenant, key);
    assert_eq!(by_key(Some("b"), "k").await.unwrap().unwrap().id, "t3");
    assert_eq!(by_key(Some("c"), "k").await.unwrap(), None);
    assert_eq!(by_key(Some("a"), "").await.unwrap(), None);
    assert!(by_key(None, "k").await.unwrap().is_some());
    // Given up, it is free.
    bed.put(vec![task("t1", 1)]).await.unwrap();
    bed.put(vec![keyed("t2", 0, "a", "k")]).await.unwrap();
}

pub(crate) async fn a_batch_is_recorded_whole_or_not_at_all(bed: Bed) {
    bed.put(vec![task("old", 0)]).await.unwrap();
    let batch = vec![task("new", 0), with(task("old", 1), |row| row.ended = true), task("old", 7)];
    assert_eq!(bed.put(batch).await, stale(2, "old", 7, 2));
    assert_eq!(bed.task("new").await, None);
    assert_eq!(bed.task("old").await.unwrap().version, 1);
    // The numbers of its events are given to the next.
    bed.put(vec![task("old", 1), task("old", 2)]).await.unwrap();
    assert_eq!(bed.task("old").await.unwrap().version, 3);
    assert_eq!(bed.event_seqs().await, [1, 2, 3]);
}

pub(crate) async fn a_conflict_leaves_the_batches_around_it_untouched(bed: Bed) {
    let commits: Vec<_> = (0..100)
        .map(|n| {
            let change = if n % 2 == 0 { task(&format!("t{n}"), 0) } else { task("absent", 9) };
            bed.store.commit_wait(vec![change.clone(), with(change, |_| ())], Durability::Relaxed)
        })
        .collect();
    for (n, commit) in commits.into_iter().enumerate() {
        // The second change of an even batch is stale by the first.
        let expected = if n % 2 == 0 { stale(1, &format!("t{n}"), 0, 1) } else { stale(0, "absent", 9, 0) };
        assert_eq!(commit.await, expected);
    }
    let commits: Vec<_> = (0..100)
        .map(|n| {
            let change = if n % 2 == 0 { task(&format!("t{n}"), 0) } else { task("absent", 9) };
            bed.store.commit_wait(vec![change], Durability::Full)
        })
        .collect();
    for (n, commit) in commits.into_iter().enumerate() {
        assert_eq!(commit.await.is_ok(), n % 2 == 0);
    }
    assert_eq!(bed.event_seqs().await, (1..=50).collect::<Vec<_>>());
}

pub(crate) async fn callbacks_come_in_the_order_of_the_commits_and_after_them(bed: Bed) {
    let told = Arc::new(Mutex::new(Vec::new()));
    let (last, all_told) = tokio::sync::oneshot::channel();
    let mut last = Some(last);
    for n in 0..500u64 {
        let (told, last) = (Arc::clone(&told), if n == 499 { last.take() } else { None });
        let done = Box::new(move |result: Result<(), Error>| {
            result.unwrap();
            told.lock().unwrap().push(n);
            if let Some(last) = last {
                let _ = last.send(());
            }
        });
        let durability = if n % 3 == 0 { Durability::Full } else { Durability::Relaxed };
        bed.store.commit(Batch { changes: vec![task("t", n)], durability, done });
    }
    all_told.await.unwrap();
    assert_eq!(*told.lock().unwrap(), (0..500).collect::<Vec<_>>());
    assert_eq!(bed.task("t").await.unwrap().version, 500);
}

pub(crate) async fn an_empty_batch_is_recorded(bed: Bed) {
    bed.put(vec![]).await.unwrap();
    assert!(bed.event_seqs().await.is_empty());
}

pub(crate) async fn events_come_in_pages_without_gaps_and_by_tenant(bed: Bed) {
    for n in 0..10 {
        let tenant = if n % 2 == 0 { "a" } else { "b" };
        bed.put(vec![with(task(&format!("t{n}"), 0), |row| row.tenant = tenant.into())]).await.unwrap();
    }
    let page = bed.store.events(None, 3, 4).await.unwrap();
    assert_eq!(page.events.iter().map(|e| e.seq).collect::<Vec<_>>(), [3, 4, 5, 6]);
    assert_eq!((page.next_seq, page.at_end), (7, false));
    let page = bed.store.events(Some("b"), 3, 100).await.unwrap();
    assert_eq!(page.events.iter().map(|e| e.seq).collect::<Vec<_>>(), [4, 6, 8, 10]);
    assert_eq!((page.next_seq, page.at_end), (11, true));
    let page = bed.store.events(None, 11, 100).await.unwrap();
    assert!(page.events.is_empty() && page.next_seq == 11 && page.at_end);
    assert_eq!(bed.store.last_seq().await.unwrap(), 10);
}

pub(crate) async fn list_pages_stay_in_place_while_rows_are_added_and_changed(bed: Bed) {
    for n in 0..25 {
        bed.put(vec![task(&format!("t{n:02}"), 0)]).await.unwrap();
    }
    let mut seen = Vec::new();
    let mut filter = Filter { limit: 10, ..Filter::default() };
    loop {
        let page = bed.store.list(Aggregate::Task, filter.clone()).await.unwrap();
        seen.extend(page.records.iter().map(|record| record.id.clone()));
        bed.put(vec![task(&format!("later{}", seen.len()), 0)]).await.unwrap();
        bed.put(vec![task("t00", 1 + seen.len() as u64 / 10 - 1)]).await.ok();
        let Some(next) = page.next else { break };
        filter.before = Some(next.to_string().parse().unwrap());
    }
    assert_eq!(seen, (0..25).rev().map(|n| format!("t{n:02}")).collect::<Vec<_>>());
}

pub(crate) async fn lists_narrow_by_every_part_of_the_filter(bed: Bed) {
    let row = |id: &str, tenant: &str, parent: &str, state: &str, ended: bool| {
        with(task(id, 0), |row| {
            (row.tenant, row.parent) = (tenant.into(), parent.into());
            (row.state, row.ended) = (state.into(), ended);
        })
    };
    bed.put(vec![
        row("t1", "a", "s1", "queued", false),
        row("t2", "a", "s2", "running", false),
        row("t3", "b", "s1", "succeeded", true),
        row("t4", "a", "s1", "failed", true),
    ])
    .await
    .unwrap();
    let all = Filter::default();
    let of_a = Filter { tenant: Some("a".into()), ..all.clone() };
    assert_eq!(bed.ids(all.clone()).await, ["t4", "t3", "t2", "t1"]);
    assert_eq!(bed.ids(of_a.clone()).await, ["t4", "t2", "t1"]);
    assert_eq!(bed.ids(Filter { parent: Some("s1".into()), ..of_a.clone() }).await, ["t4", "t1"]);
    assert_eq!(bed.ids(Filter { ended: Some(true), ..all.clone() }).await, ["t4", "t3"]);
    assert_eq!(bed.ids(Filter { ended: Some(false), ..of_a }).await, ["t2", "t1"]);
    let states = vec!["queued".into(), "succeeded".into()];
    assert_eq!(bed.ids(Filter { states, ..all }).await, ["t3", "t1"]);
}

pub(crate) async fn live_gives_what_has_not_ended_oldest_first(bed: Bed) {
    bed.put((0..6).map(|n| with(task(&format!("t{n}"), 0), |row| row.ended = n % 2 == 1)).collect())
        .await
        .unwrap();
    bed.put(vec![with(task("t2", 1), |row| row.ended = true)]).await.unwrap();
    let live = bed.store.live(Aggregate::Task).await.unwrap();
    assert_eq!(live.iter().map(|record| record.id.as_str()).collect::<Vec<_>>(), ["t0", "t4"]);
    assert!(bed.store.live(Aggregate::Session).await.unwrap().is_empty());
}

pub(crate) async fn inline_output_comes_with_its_change(bed: Bed) {
    let mut change = task("t", 0);
    change.output = vec![
        InlineOutput { stream: 1, bytes: b"out".to_vec() },
        InlineOutput { stream: 2, bytes: vec![0; 9000] },
    ];
    bed.put(vec![change]).await.unwrap();
    assert_eq!(bed.store.inline_output("t", 1).await.unwrap(), Some(b"out".to_vec()));
    assert_eq!(bed.store.inline_output("t", 2).await.unwrap(), Some(vec![0; 9000]));
    assert_eq!(bed.store.inline_output("other", 1).await.unwrap(), None);
}

const KEEP: Keep =
    Keep { ended_tasks: 10, ended_runs: 10, ended_rows: 10, events: 50, audit: 50, since_ms: None };

pub(crate) async fn retention_takes_the_oldest_ended_and_keeps_the_living(bed: Bed) {
    for n in 0..700 {
        let mut change = with(task(&format!("t{n:03}"), 0), |row| row.ended = n % 7 != 0);
        change.output = vec![InlineOutput { stream: 1, bytes: vec![1] }];
        bed.store.commit_wait(vec![change], Durability::Relaxed).await.unwrap();
    }
    let removed = bed.store.retain(KEEP).await.unwrap();
    assert_eq!((removed.rows.len(), removed.events), (590, 650));
    assert_eq!(removed.rows[0], (Aggregate::Task, "t001".into()));
    assert_eq!(bed.store.live(Aggregate::Task).await.unwrap().len(), 100);
    let ended = bed.ids(Filter { ended: Some(true), ..Filter::default() }).await;
    assert_eq!((ended.len(), ended[0].as_str(), ended[9].as_str()), (10, "t699", "t689"));
    assert_eq!(bed.store.inline_output("t001", 1).await.unwrap(), None);
    assert_eq!(bed.store.inline_output("t000", 1).await.unwrap(), Some(vec![1]));
    assert_eq!(bed.event_seqs().await, (651..=700).collect::<Vec<_>>());
    let again = bed.store.retain(KEEP).await.unwrap();
    assert!(again.rows.is_empty() && again.events == 0);
    assert_eq!(bed.store.check().await.unwrap(), Vec::<String>::new());
}

pub(crate) async fn retention_by_age_takes_what_ended_before_and_nothing_younger(bed: Bed) {
    for n in 0..600 {
        let change = with(task(&format!("t{n:03}"), 0), |row| {
            (row.ended, row.created_ms, row.updated_ms) = (n != 3, n, n);
            // Began early, ended late.
            if n == 5 {
                row.updated_ms = 1_000;
            }
        });
        bed.store.commit_wait(vec![change], Durability::Relaxed).await.unwrap();
    }
    let keep = Keep { ended_tasks: 1_000, events: 1_000, since_ms: Some(500), ..KEEP };
    let removed = bed.store.retain(keep).await.unwrap();
    assert_eq!(removed.rows.len(), 498, "500 began before, one has not ended, one ended later");
    let left = bed.ids(Filter::default()).await;
    assert_eq!((left.len(), left[101].as_str(), left[100].as_str()), (102, "t003", "t005"));
    assert_eq!(bed.event_seqs().await[0], 6, "events go from the oldest on, up to the first that is young");
}

pub(crate) async fn what_belongs_to_a_row_goes_with_it(bed: Bed) {
    for (id, ended) in [("r1", true), ("r2", true), ("r3", false)] {
        let run = with(Change { aggregate: Aggregate::Run, ..task(id, 0) }, |row| row.ended = ended);
        let step = with(Change { aggregate: Aggregate::Step, ..task(&format!("{id}/1"), 0) }, |row| {
            (row.ended, row.parent) = (true, id.into());
        });
        bed.put(vec![run, step]).await.unwrap();
    }
    let ids = |ids: &[&str]| ids.iter().map(ToString::to_string).collect::<Vec<_>>();
    let known = |ids| bed.store.known(Aggregate::Step, ids);
    let asked = ids(&["r1/1", "r2/1", "r3/1", "r4/1"]);
    assert_eq!(known(asked.clone()).await.unwrap(), ids(&["r1/1", "r2/1", "r3/1"]));
    let removed = bed.store.retain(Keep { ended_runs: 1, ..KEEP }).await.unwrap();
    assert_eq!(removed.rows, [(Aggregate::Run, "r1".into())]);
    assert_eq!(known(asked.clone()).await.unwrap(), ids(&["r2/1", "r3/1"]));
    let gone = bed.store.remove_ended(Aggregate::Run, ids(&["r2", "r3", "r4"])).await.unwrap();
    assert_eq!(gone, ids(&["r2"]), "what lives stays");
    assert_eq!(known(asked).await.unwrap(), ids(&["r3/1"]));
}

pub(crate) async fn commits_of_many_threads_are_each_applied_once(bed: Bed) {
    const THREADS: u64 = 8;
    const EACH: u64 = 1000;
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            let store = Arc::clone(&bed.store);
            tokio::task::spawn_blocking(move || {
                let commit = |change| {
                    futures::executor::block_on(store.commit_wait(vec![change], Durability::Relaxed))
                };
                let mut won = 0;
                for n in 0..EACH {
                    commit(task(&format!("t{thread}-{n}"), 0)).unwrap();
                    // One row for which everybody fights: each version goes to exactly one.
                    won += u64::from(commit(task("fought", n)).is_ok());
                }
                won
            })
        })
        .collect();
    let (own, mut won) = (THREADS * EACH, 0);
    for thread in threads {
        won += thread.await.unwrap();
    }
    assert_eq!(bed.task("fought").await.unwrap().version, won);
    let mut seqs = Vec::new();
    let mut from = 1;
    loop {
        let page = bed.store.events(None, from, 700).await.unwrap();
        seqs.extend(page.events.iter().map(|event| event.seq));
        from = page.next_seq;
        if page.at_end {
            break;
        }
    }
    assert_eq!(seqs, (1..=own + won).collect::<Vec<_>>());
}

pub(crate) async fn the_epoch_grows_and_meta_reads_back(bed: Bed) {
    assert_eq!(bed.store.next_epoch().await.unwrap(), 1);
    assert_eq!(bed.store.next_epoch().await.unwrap(), 2);
    assert_eq!(bed.store.meta_get("name").await.unwrap(), None);
    bed.store.meta_put("name", "a").await.unwrap();
    bed.store.meta_put("name", "b").await.unwrap();
    assert_eq!(bed.store.meta_get("name").await.unwrap().as_deref(), Some("b"));
    bed.store.probe().await.unwrap();
}

/// For backends that outlive the process.
pub(crate) async fn what_was_answered_survives_a_reopen(mut bed: Bed) {
    for n in 0..100 {
        bed.put(vec![task(&format!("t{n}"), 0)]).await.unwrap();
    }
    assert_eq!(bed.store.next_epoch().await.unwrap(), 1);
    bed.store.retain(Keep { ended_tasks: 0, events: 0, ..KEEP }).await.unwrap();
    bed.reopen().await;
    assert_eq!(bed.store.live(Aggregate::Task).await.unwrap().len(), 100);
    assert_eq!(bed.store.next_epoch().await.unwrap(), 2);
    // Events that are gone leave their numbers taken.
    assert_eq!(bed.store.last_seq().await.unwrap(), 100);
    bed.put(vec![task("t0", 1)]).await.unwrap();
    assert_eq!(bed.event_seqs().await, [101]);
}

/// For backends that outlive the process.
pub(crate) async fn a_closed_store_finishes_what_was_queued_and_refuses_the_rest(mut bed: Bed) {
    let commits: Vec<_> = (0..200)
        .map(|n| bed.store.commit_wait(vec![task(&format!("t{n}"), 0)], Durability::Relaxed))
        .collect();
    bed.store.close().await.unwrap();
    assert_eq!(bed.put(vec![task("late", 0)]).await, Err(Error::Closed));
    assert!(matches!(bed.store.last_seq().await, Err(Error::Closed)));
    for commit in commits {
        commit.await.unwrap();
    }
    bed.reopen().await;
    assert_eq!(bed.event_seqs().await.len(), 200);
}

/// For backends that outlive the process.
pub(crate) async fn a_backup_is_a_store_of_its_own(bed: Bed) {
    bed.put(vec![task("t", 0)]).await.unwrap();
    let copy = tempfile::tempdir().unwrap();
    bed.store.backup(&copy.path().join("cooper.db")).await.unwrap();
    bed.put(vec![task("after", 0)]).await.unwrap();
    let copied = (bed.open)(copy.path());
    assert_eq!(copied.check().await.unwrap(), Vec::<String>::new());
    assert!(copied.get(Aggregate::Task, "t").await.unwrap().is_some());
    assert_eq!(copied.get(Aggregate::Task, "after").await.unwrap(), None);
}

/// The claims as tests of one backend: `claims!(open)`, where `open: fn(&Path) -> Arc<dyn Store>`.
macro_rules! claims {
    ($open:expr; $($claim:ident)*) => {
        $(
            #[tokio::test]
            async fn $claim() {
                crate::store::conformance::$claim(crate::store::conformance::Bed::new($open)).await
            }
        )*
    };
    ($open:expr) => {
        crate::store::conformance::claims! { $open;
            a_row_reads_back_as_it_was_written
            versions_grow_by_one
            an_update_without_spec_and_result_keeps_them
            a_stale_version_conflicts_and_changes_nothing
            a_key_is_unique_per_tenant_and_names_its_holder
            a_batch_is_recorded_whole_or_not_at_all
            a_conflict_leaves_the_batches_around_it_untouched
            callbacks_come_in_the_order_of_the_commits_and_after_them
            an_empty_batch_is_recorded
            events_come_in_pages_without_gaps_and_by_tenant
            list_pages_stay_in_place_while_rows_are_added_and_changed
            lists_narrow_by_every_part_of_the_filter
            live_gives_what_has_not_ended_oldest_first
            inline_output_comes_with_its_change
            retention_takes_the_oldest_ended_and_keeps_the_living
            retention_by_age_takes_what_ended_before_and_nothing_younger
            what_belongs_to_a_row_goes_with_it
            commits_of_many_threads_are_each_applied_once
            the_epoch_grows_and_meta_reads_back
        }
    };
}
/// Further claims of backends that outlive the process.
macro_rules! durable_claims {
    ($open:expr) => {
        crate::store::conformance::claims! { $open;
            what_was_answered_survives_a_reopen
            a_closed_store_finishes_what_was_queued_and_refuses_the_rest
            a_backup_is_a_store_of_its_own
        }
    };
}
pub(crate) use {claims, durable_claims};

/// A bus that nobody watches.
pub(crate) fn silent() -> Bus {
    Bus::default()
}
