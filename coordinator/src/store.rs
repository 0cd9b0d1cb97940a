//! What every store does: commit what the cores decided, arbitrate by version, answer reads (DESIGN §9).
//!
//! A store knows versions, keys and events; it knows no states. Backends keep the claims of `conformance.rs`.

#[cfg(test)]
mod conformance;
pub mod sqlite;

use std::{fmt, path::Path, str::FromStr};

use cooper_core::change::{Aggregate, Change, Row, Version};
use futures::future::BoxFuture;

use cooper_common::{
    audit,
    error::{self, Code},
};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Key of what [`Store::meta_get`] tells: the epoch at which this store was brought back from a backup.
pub const RESTORED_EPOCH: &str = "restored_epoch";

/// The answer of a store: owns all it needs, so that it may be awaited anywhere.
pub type Answer<T> = BoxFuture<'static, Result<T>>;

/// Told once what became of a batch. On success every change's version is its `expected + 1`.
///
/// Runs on the writer's thread, in the order of the commits and after the transaction that holds them: send to a
/// channel, do not work or block here. Only a refusal with [`Error::Overloaded`] or [`Error::Closed`] is told at once,
/// on the caller's thread.
pub type Done = Box<dyn FnOnce(Result<()>) + Send>;

/// When a commit counts as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// On the disk: survives power loss. What a client is answered for is `Full` (I2).
    Full,
    /// With the operating system: survives the death of the process; the next `Full` commit puts it on the disk.
    /// Only for what nobody was answered for yet (DESIGN §9).
    Relaxed,
}

/// Changes that hold together: all of them are recorded, or, when one conflicts, none.
pub struct Batch {
    pub changes: Vec<Change>,
    pub durability: Durability,
    pub done: Done,
}

/// A row as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub id: String,
    pub version: Version,
    pub row: Row,
}

/// A recorded fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// From 1, without gaps, in the order of the commits.
    pub seq: u64,
    /// Unix milliseconds.
    pub at_ms: i64,
    pub tenant: String,
    pub kind: String,
    /// Id of what it is about.
    pub subject: String,
    /// JSON.
    pub body: String,
}

/// Which rows of an aggregate; what is left empty does not narrow.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub tenant: Option<String>,
    pub parent: Option<String>,
    pub states: Vec<String>,
    pub ended: Option<bool>,
    /// Only rows older than this: the `next` of the page before.
    pub before: Option<Cursor>,
    /// At most this many; from 1 to `limits::request::PAGE_MAX`, anything else is brought into that range.
    pub limit: usize,
}

/// A place in a list. Rows that come later do not move it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor(pub(crate) i64);

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl FromStr for Cursor {
    type Err = error::Error;
    fn from_str(text: &str) -> Result<Self, error::Error> {
        text.parse().map(Cursor).map_err(|_| {
            error::Error::invalid("the cursor is not one that a list gave")
                .with_hint("take next_cursor of the page before")
        })
    }
}

/// Rows, newest first.
#[derive(Debug, Clone, Default)]
pub struct Page {
    pub records: Vec<Record>,
    /// Where to go on; `None` when there is no more.
    pub next: Option<Cursor>,
}

/// Events, oldest first.
#[derive(Debug, Clone, Default)]
pub struct EventPage {
    pub events: Vec<Event>,
    /// Where to go on. Beyond the last event's number when events of others were passed over.
    pub next_seq: u64,
    /// Nothing was recorded at or after `next_seq` when this was read.
    pub at_end: bool,
}

/// How much retention leaves. Rows that have not ended always stay, and what belongs to a row goes with it.
#[derive(Debug, Clone, Copy)]
pub struct Keep {
    pub ended_tasks: u64,
    pub ended_runs: u64,
    /// Of every other aggregate.
    pub ended_rows: u64,
    pub events: u64,
    pub audit: u64,
    /// What ended or happened before this goes too. Unix milliseconds.
    pub since_ms: Option<i64>,
}

impl Keep {
    /// How many ended rows stay; `None` for those that go with what they belong to.
    pub(crate) fn ended(&self, aggregate: Aggregate) -> Option<u64> {
        match aggregate {
            Aggregate::Task => Some(self.ended_tasks),
            Aggregate::Run => Some(self.ended_runs),
            Aggregate::Step | Aggregate::Plan | Aggregate::Approval => None,
            Aggregate::Session
            | Aggregate::Token
            | Aggregate::Worker
            | Aggregate::Stack
            | Aggregate::Artifact
            | Aggregate::Checkpoint
            | Aggregate::Template
            | Aggregate::Secret
            | Aggregate::Fix => Some(self.ended_rows),
        }
    }
}

/// Whose rows belong to one of this aggregate, by `parent`, and are nothing without it.
pub(crate) fn parts(aggregate: Aggregate) -> &'static [Aggregate] {
    match aggregate {
        Aggregate::Run => &[Aggregate::Step, Aggregate::Plan, Aggregate::Approval],
        _ => &[],
    }
}

/// What retention deleted.
#[derive(Debug, Clone, Default)]
pub struct Removed {
    /// Whose files may go as well. What belonged to them went unnamed.
    pub rows: Vec<(Aggregate, String)>,
    pub events: u64,
    pub audit: u64,
}

/// Why a batch was not recorded although the store works. Reload, and ask the core again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} {id}: {cause}", aggregate.name())]
pub struct Conflict {
    /// Which change of the batch.
    pub index: usize,
    pub aggregate: Aggregate,
    pub id: String,
    pub cause: Cause,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// Decided on a version that is not the stored one. 0 = there is no such row.
    #[error("decided on version {expected}, stored is {found}")]
    Stale { expected: Version, found: Version },
    /// Another row of this aggregate and tenant has the key.
    #[error("its key belongs to {by}")]
    KeyTaken { by: String },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// More waits for the store than it takes; nothing was recorded.
    #[error("more work waits for the store than it takes")]
    Overloaded,
    #[error("the disk of the data directory is full")]
    Full,
    /// The disk or the database refuses; nothing of the batch was recorded.
    #[error("the store does not work: {0}")]
    Unavailable(String),
    #[error("another cooper (pid {pid}) uses {path}")]
    Busy { path: String, pid: String },
    #[error("{path} was written by a newer cooper (schema {found}, this one knows {known})")]
    Newer { path: String, found: i64, known: i64 },
    /// The step to the schema of this cooper takes its time: somebody has to want it.
    #[error("{path} was written by an older cooper (schema {found}, this one needs {known})")]
    Older { path: String, found: i64, known: i64 },
    #[error("{path} cannot be used: {cause}")]
    Unusable { path: String, cause: String },
    #[error("the store is closed")]
    Closed,
}

impl From<Error> for error::Error {
    fn from(error: Error) -> Self {
        let code = match &error {
            // A conflict that nobody resolved by asking the core again is a fault of ours.
            Error::Conflict(_) => Code::Internal,
            Error::Overloaded => Code::Overloaded,
            Error::Full => Code::StoreFull,
            Error::Unavailable(_) => Code::StoreUnavailable,
            Error::Busy { .. } => Code::DataBusy,
            Error::Newer { .. } | Error::Older { .. } | Error::Unusable { .. } => Code::DataUnusable,
            Error::Closed => Code::Unavailable,
        };
        let message = error.to_string();
        match error {
            Error::Newer { .. } => {
                error::Error::new(code, message).with_hint("use the newer cooper, or another --data")
            }
            Error::Older { .. } => error::Error::new(code, message).with_hint("run `cooper store migrate`"),
            Error::Unusable { .. } => error::Error::new(code, message).with_hint(
                "see `cooper store check`; make the directory writable for this user, or restore a backup",
            ),
            _ => error::Error::new(code, message),
        }
    }
}

/// The one place where things become durable.
pub trait Store: Send + Sync + 'static {
    /// Queues a batch and returns at once. Batches are applied strictly in the order of the calls; a conflict in one
    /// leaves the others untouched.
    fn commit(&self, batch: Batch);

    /// How many more commits would be queued before one is refused. Who decides before it commits asks first, and turns
    /// new requests away while there is little; the rest is for what cannot be turned away.
    fn room(&self) -> usize;

    /// [`commit`](Store::commit), awaited. The batch is queued by the call, not by the first poll.
    fn commit_wait(&self, changes: Vec<Change>, durability: Durability) -> Answer<()> {
        let (done, answer) = tokio::sync::oneshot::channel();
        let done: Done = Box::new(move |result| drop(done.send(result)));
        self.commit(Batch { changes, durability, done });
        Box::pin(async move { answer.await.unwrap_or(Err(Error::Closed)) })
    }

    fn get(&self, aggregate: Aggregate, id: &str) -> Answer<Option<Record>>;
    /// `tenant: None` looks through all tenants (a token's tenant is not known before the token is).
    fn by_key(&self, aggregate: Aggregate, tenant: Option<&str>, key: &str) -> Answer<Option<Record>>;
    /// Every row that has not ended, oldest first. For start-up.
    fn live(&self, aggregate: Aggregate) -> Answer<Vec<Record>>;
    fn list(&self, aggregate: Aggregate, filter: Filter) -> Answer<Page>;

    /// Number of the newest event; 0 before the first.
    fn last_seq(&self) -> Answer<u64>;
    /// Events from `from_seq` on. One call looks at a bounded number of events: a page may be empty and not `at_end`.
    fn events(&self, tenant: Option<&str>, from_seq: u64, limit: usize) -> Answer<EventPage>;
    /// A stream that was recorded with its task's result. 1 = stdout, 2 = stderr.
    fn inline_output(&self, task: &str, stream: u8) -> Answer<Option<Vec<u8>>>;

    /// Appends rows to the audit trail, each behind the hash of the one before.
    fn audit_append(&self, entries: Vec<audit::Entry>, durability: Durability) -> Answer<()>;
    /// Where the trail begins since older rows were pruned (what the first row follows on), and its last row.
    fn audit_ends(&self) -> Answer<(audit::Link, audit::Link)>;
    /// Rows from a number on, oldest first; of one tenant, or of all.
    fn audit_from(&self, tenant: Option<String>, seq: u64, limit: usize) -> Answer<Vec<audit::Row>>;
    /// The newest rows before a number, newest first.
    fn audit_before(&self, tenant: Option<String>, seq: u64, limit: usize) -> Answer<Vec<audit::Row>>;

    fn meta_get(&self, key: &str) -> Answer<Option<String>>;
    /// Durable when it returns.
    fn meta_put(&self, key: &str, value: &str) -> Answer<()>;
    /// The coordinator epoch: one more than at the last call, durable when it returns.
    fn next_epoch(&self) -> Answer<u64>;

    /// Deletes the oldest ended rows and events beyond `keep`, in small steps between the commits.
    fn retain(&self, keep: Keep) -> Answer<Removed>;
    /// Deletes these rows, as far as they have ended, with what belongs to them. Returns those that went.
    fn remove_ended(&self, aggregate: Aggregate, ids: Vec<String>) -> Answer<Vec<String>>;
    /// Which of these rows there are.
    fn known(&self, aggregate: Aggregate, ids: Vec<String>) -> Answer<Vec<String>>;
    /// Whether commits would work right now.
    fn probe(&self) -> Answer<()>;
    /// What is wrong with the stored data; empty when nothing is.
    fn check(&self) -> Answer<Vec<String>>;
    /// Writes a consistent copy to a new file while commits go on.
    fn backup(&self, path: &Path) -> Answer<()>;
    /// Finishes what was queued, then refuses everything. A store that is only dropped loses nothing either.
    fn close(&self) -> Answer<()>;
}
