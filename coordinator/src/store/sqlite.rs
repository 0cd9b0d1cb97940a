//! SQLite in the data directory: one writer, two readers and a checkpointer on threads of their own.
//!
//! rusqlite rather than sqlx, whose every statement is a hop between threads (docs/dependencies.md). In memory the same
//! SQL runs inline on the calling thread, so that a simulation is deterministic.

mod audit;
mod checkpoint;
mod keys;
mod lock;
mod read;
mod retain;
mod schema;
#[cfg(test)]
mod tests;
mod write;
mod writer;

use std::{
    fs,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cooper_common::{
    audit::{Entry, Link, Row},
    limits,
};
use cooper_core::change::Aggregate;
use futures::{FutureExt, future};
use rusqlite::{Connection, OpenFlags, params};
use tokio::sync::oneshot;

use self::{
    checkpoint::Checkpointer,
    keys::Keys,
    lock::Lock,
    read::Readers,
    write::Pen,
    writer::{Command, Writer},
};
use super::{
    Answer, Batch, Durability, Error, EventPage, Filter, Keep, Page, RESTORED_EPOCH, Record, Removed, Result,
    Store,
};
use crate::bus::Bus;

/// File names in the data directory.
pub(crate) const DATABASE: &str = "cooper.db";
/// Of the write-ahead log, beside the database.
pub(crate) const SIDE_FILES: [&str; 2] = ["cooper.db-wal", "cooper.db-shm"];
const LOCK: &str = "store.lock";
/// There while a restore replaces what is beside it.
pub(crate) const RESTORING: &str = "restoring";
/// Only readers of a foreign tool can make us wait.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// More than there are statements: each aggregate has ten, lists have their combinations.
const STATEMENTS_CACHED: usize = 256;

/// The store. Cloning gives another handle on the same one.
#[derive(Clone)]
pub struct Sqlite {
    inner: Arc<Inner>,
}

struct Inner {
    bus: Bus,
    mode: Mode,
    closed: AtomicBool,
}

/// Which steps from an older schema may be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Steps {
    /// Those that take no time to speak of.
    Small,
    All,
}

enum Mode {
    Threads { writer: Writer, readers: Readers, keys: Keys, file: Place },
    Reading { readers: Readers, file: Place },
    Inline(Mutex<Pen>),
}

/// Which file it is, wherever its name leads by now.
#[derive(Debug, Clone)]
struct Place {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Place {
    fn of(path: &Path, metadata: &fs::Metadata) -> std::io::Result<Self> {
        Ok(Self { path: path.to_owned(), device: metadata.dev(), inode: metadata.ino() })
    }

    /// What is written to a file without a name is gone with its last handle.
    fn look(&self) -> Result<()> {
        let same = |found: fs::Metadata| (found.dev(), found.ino()) == (self.device, self.inode);
        match fs::metadata(&self.path).map(same) {
            Ok(true) => Ok(()),
            Ok(false) => Err(unusable(&self.path, "another file took its place")),
            Err(cause) => Err(unusable(&self.path, format!("it is gone: {cause}"))),
        }
    }
}

impl Sqlite {
    /// Opens, and where needed creates, the store of a data directory. Events go to `bus` once they are committed.
    ///
    /// Errors: [`Error::Busy`] when another coordinator has it, [`Error::Newer`], [`Error::Unusable`].
    pub fn open(data: &Path, bus: Bus) -> Result<Self> {
        fs::create_dir_all(data).map_err(|cause| unusable(data, cause))?;
        Self::open_here(data, true, Steps::Small, bus)
    }

    /// Opens a store that is there, and takes whatever steps its schema needs.
    pub fn open_all(data: &Path, bus: Bus) -> Result<Self> {
        Self::open_here(data, false, Steps::All, bus)
    }

    /// Opens the store that this process had open before, under `epoch`. It must still be there: a disk that is away, or
    /// an older copy in its place, is no new beginning.
    pub fn open_known(data: &Path, bus: Bus, epoch: u64) -> Result<Self> {
        let store = Self::open_here(data, false, Steps::Small, bus)?;
        let Mode::Threads { file, .. } = &store.inner.mode else { return Ok(store) };
        let found = connect(&file.path, OpenFlags::SQLITE_OPEN_READ_ONLY)
            .and_then(|c| read::meta(&c, "epoch").map_err(|e| write::error(&e)))?
            .and_then(|text| text.parse().ok())
            .unwrap_or(0);
        if found < epoch {
            let cause = format!(
                "it stands at epoch {found}, but epoch {epoch} was served: an older copy took its place; \
                 bring copies back with `cooper store restore`"
            );
            return Err(unusable(&file.path, cause));
        }
        Ok(store)
    }

    fn open_here(data: &Path, create: bool, steps: Steps, bus: Bus) -> Result<Self> {
        let path = data.join(DATABASE);
        if !create && !path.exists() {
            return Err(unusable(&path, "it is gone, with its disk or directory"));
        }
        let lock = Lock::take(&data.join(LOCK))?;
        if data.join(RESTORING).exists() {
            return Err(unusable(data, "a restore into it did not finish; run it again"));
        }
        // Its log and index files take over the mode.
        let file = fs::OpenOptions::new()
            .write(true)
            .create(create)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .and_then(|file| Place::of(&path, &file.metadata()?))
            .map_err(|cause| unusable(&path, cause))?;
        Self::open_locked(file, lock, steps, bus).map_err(|error| match error {
            Error::Unavailable(cause) => unusable(&path, cause),
            other => other,
        })
    }

    fn open_locked(file: Place, lock: Lock, steps: Steps, bus: Bus) -> Result<Self> {
        let database = &file.path;
        let mut connection = connect(database, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        refuse_newer(database, &connection)?;
        if steps == Steps::Small {
            refuse_older(database, &connection)?;
        }
        let pen = prepare(&mut connection)
            .and_then(|()| Pen::new(connection, Some(lock)))
            .map_err(|cause| write::error(&cause))?;
        let checkpoints = connect(database, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let readers = Readers::start(|| connect(database, OpenFlags::SQLITE_OPEN_READ_ONLY))?;
        let writer = Writer::start(pen, bus.clone(), Checkpointer::start(checkpoints)?)?;
        let keys = Keys::of(database);
        Ok(Self::with(Mode::Threads { writer, readers, keys, file }, bus))
    }

    /// Looks into the store of a data directory, or into a backup, beside whoever has it open. Writes are refused.
    pub fn read_only(data: &Path) -> Result<Self> {
        let path = data.join(DATABASE);
        let file = fs::metadata(&path)
            .and_then(|metadata| Place::of(&path, &metadata))
            .map_err(|cause| unusable(&path, cause))?;
        let open = || connect(&file.path, OpenFlags::SQLITE_OPEN_READ_ONLY);
        refuse_newer(&path, &open()?)?;
        let readers = Readers::start(open)?;
        Ok(Self::with(Mode::Reading { readers, file }, Bus::default()))
    }

    fn with(mode: Mode, bus: Bus) -> Self {
        Self { inner: Arc::new(Inner { bus, mode, closed: AtomicBool::new(false) }) }
    }

    /// A store that is gone with its last handle. Everything happens on the calling thread, `done` included; answers
    /// are ready at once.
    pub fn memory(bus: Bus) -> Result<Self> {
        let open = || -> rusqlite::Result<Pen> {
            let mut connection = Connection::open_in_memory()?;
            configure(&connection)?;
            schema::migrate(&mut connection, schema::MIGRATIONS)?;
            Pen::new(connection, None)
        };
        let mode = Mode::Inline(Mutex::new(open().map_err(|cause| write::error(&cause))?));
        Ok(Self::with(mode, bus))
    }

    fn is_closed(&self) -> bool {
        self.inner.closed.load(Ordering::Acquire)
    }

    /// Runs a read on a reader's connection.
    fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Answer<T> {
        if self.is_closed() {
            return future::ready(Err(Error::Closed)).boxed();
        }
        match &self.inner.mode {
            Mode::Inline(pen) => {
                let pen = pen.lock().unwrap_or_else(PoisonError::into_inner);
                future::ready(work(&pen.connection).map_err(|cause| write::error(&cause))).boxed()
            }
            Mode::Threads { readers, .. } | Mode::Reading { readers, .. } => {
                let (sender, answer) = oneshot::channel();
                let job: read::Job = Box::new(move |connection| {
                    // Nobody waits any more for what a caller has dropped.
                    if !sender.is_closed() {
                        let _ = sender.send(work(connection).map_err(|cause| write::error(&cause)));
                    }
                });
                match readers.submit(job) {
                    true => answer.map(|answer| answer.unwrap_or(Err(Error::Closed))).boxed(),
                    false => future::ready(Err(Error::Overloaded)).boxed(),
                }
            }
        }
    }

    /// Runs a write of another kind than a batch on the writer's connection, in the order of the commits.
    fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Pen) -> Result<T> + Send + 'static,
    ) -> Answer<T> {
        if self.is_closed() {
            return future::ready(Err(Error::Closed)).boxed();
        }
        match &self.inner.mode {
            Mode::Inline(pen) => {
                let mut pen = pen.lock().unwrap_or_else(PoisonError::into_inner);
                future::ready(work(&mut pen)).boxed()
            }
            Mode::Reading { .. } => future::ready(Err(for_reading())).boxed(),
            Mode::Threads { writer, .. } => {
                let (sender, answer) = oneshot::channel();
                let job: writer::Job = Box::new(move |pen| drop(sender.send(work(pen))));
                match writer.submit(Command::Job(job)) {
                    Ok(()) => answer.map(|answer| answer.unwrap_or(Err(Error::Closed))).boxed(),
                    Err((_, reason)) => future::ready(Err(reason)).boxed(),
                }
            }
        }
    }
}

impl Store for Sqlite {
    fn commit(&self, batch: Batch) {
        if self.is_closed() {
            return (batch.done)(Err(Error::Closed));
        }
        match &self.inner.mode {
            Mode::Inline(pen) => {
                let group = vec![batch];
                // Let go before `done`, which may commit again.
                let outcomes = pen.lock().unwrap_or_else(PoisonError::into_inner).write(&group);
                writer::settle(group, outcomes, &self.inner.bus);
            }
            Mode::Reading { .. } => (batch.done)(Err(for_reading())),
            Mode::Threads { writer, keys, .. } => {
                for change in batch.changes.iter().filter(|it| it.expected == 0 && !it.row.key.is_empty()) {
                    keys.add(change.aggregate, &change.row.tenant, &change.row.key);
                }
                if let Err((Command::Commit(batch), reason)) = writer.submit(Command::Commit(batch)) {
                    metrics::counter!("cooper_store_refused_total").increment(1);
                    (batch.done)(Err(reason));
                }
            }
        }
    }

    fn room(&self) -> usize {
        match &self.inner.mode {
            Mode::Inline(_) => limits::store::WRITER_QUEUE_MAX,
            Mode::Reading { .. } => 0,
            Mode::Threads { writer, .. } => writer.room(),
        }
    }

    fn get(&self, aggregate: Aggregate, id: &str) -> Answer<Option<Record>> {
        let id = id.to_owned();
        self.read(move |c| read::get(c, aggregate, &id))
    }

    fn by_key(&self, aggregate: Aggregate, tenant: Option<&str>, key: &str) -> Answer<Option<Record>> {
        if let (Mode::Threads { keys, .. }, Some(tenant)) = (&self.inner.mode, tenant)
            && !self.is_closed()
            && !keys.may_hold(aggregate, tenant, key)
        {
            return future::ready(Ok(None)).boxed();
        }
        let (tenant, key) = (tenant.map(str::to_owned), key.to_owned());
        self.read(move |c| read::by_key(c, aggregate, tenant.as_deref(), &key))
    }

    fn live(&self, aggregate: Aggregate) -> Answer<Vec<Record>> {
        self.read(move |c| read::live(c, aggregate))
    }

    fn list(&self, aggregate: Aggregate, filter: Filter) -> Answer<Page> {
        self.read(move |c| read::list(c, aggregate, &filter))
    }

    fn last_seq(&self) -> Answer<u64> {
        self.read(read::last_seq)
    }

    fn events(&self, tenant: Option<&str>, from_seq: u64, limit: usize) -> Answer<EventPage> {
        let tenant = tenant.map(str::to_owned);
        self.read(move |c| read::events(c, tenant.as_deref(), from_seq, limit))
    }

    fn inline_output(&self, task: &str, stream: u8) -> Answer<Option<Vec<u8>>> {
        let task = task.to_owned();
        self.read(move |c| read::inline_output(c, &task, stream))
    }

    fn audit_append(&self, entries: Vec<Entry>, durability: Durability) -> Answer<()> {
        self.write(move |pen| pen.transact(durability, |c| audit::append(c, &entries)))
    }

    fn audit_ends(&self) -> Answer<(Link, Link)> {
        self.read(audit::ends)
    }

    fn audit_from(&self, tenant: Option<String>, seq: u64, limit: usize) -> Answer<Vec<Row>> {
        self.read(move |c| audit::rows(c, tenant.as_deref(), seq, limit))
    }

    fn audit_before(&self, tenant: Option<String>, seq: u64, limit: usize) -> Answer<Vec<Row>> {
        self.read(move |c| audit::rows_before(c, tenant.as_deref(), seq, limit))
    }

    fn meta_get(&self, key: &str) -> Answer<Option<String>> {
        let key = key.to_owned();
        self.read(move |c| read::meta(c, &key))
    }

    fn meta_put(&self, key: &str, value: &str) -> Answer<()> {
        let (key, value) = (key.to_owned(), value.to_owned());
        self.write(move |pen| pen.transact(Durability::Full, |c| put_meta(c, &key, &value)))
    }

    fn next_epoch(&self) -> Answer<u64> {
        self.write(|pen| {
            pen.transact(Durability::Full, |c| {
                let last = read::meta(c, "epoch")?.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
                put_meta(c, "epoch", &(last + 1).to_string())?;
                Ok(last + 1)
            })
        })
    }

    fn retain(&self, keep: Keep) -> Answer<Removed> {
        let store = self.clone();
        async move {
            let mut removed = Removed::default();
            for aggregate in Aggregate::ALL {
                if let Some(ended) = keep.ended(aggregate) {
                    store.retain_rows(aggregate, ended, keep.since_ms, &mut removed).await?;
                }
            }
            let surplus = store.read(move |c| retain::surplus_events(c, keep.events)).await?;
            loop {
                // What retention deletes need not be on the disk before anything else is.
                let step = move |pen: &mut Pen| {
                    pen.transact(Durability::Relaxed, |c| retain::delete_events(c, surplus, keep.since_ms))
                };
                match store.write(step).await? {
                    0 => break,
                    gone => removed.events += gone,
                }
            }
            loop {
                let step = move |pen: &mut Pen| {
                    pen.transact(Durability::Relaxed, |c| audit::prune(c, keep.audit, keep.since_ms))
                };
                match store.write(step).await? {
                    0 => break,
                    gone => removed.audit += gone,
                }
            }
            if !removed.rows.is_empty() || removed.events > 0 {
                store.write(optimize).await?;
            }
            Ok(removed)
        }
        .boxed()
    }

    fn remove_ended(&self, aggregate: Aggregate, ids: Vec<String>) -> Answer<Vec<String>> {
        let store = self.clone();
        async move {
            let mut gone = Vec::new();
            for step in ids.chunks(retain::STEP_ROWS as usize) {
                gone.extend(store.delete(aggregate, step.to_vec()).await?);
            }
            Ok(gone)
        }
        .boxed()
    }

    fn known(&self, aggregate: Aggregate, ids: Vec<String>) -> Answer<Vec<String>> {
        let ids = serde_json::Value::from(ids).to_string();
        self.read(move |c| read::known(c, aggregate, &ids))
    }

    fn probe(&self) -> Answer<()> {
        if let Mode::Threads { file, .. } = &self.inner.mode
            && let Err(error) = file.look()
        {
            return future::ready(Err(error)).boxed();
        }
        // A real write: a full disk answers reads happily.
        let now = cooper_common::clock::wall_ms().to_string();
        self.write(move |pen| pen.transact(Durability::Relaxed, |c| put_meta(c, "probed_at_ms", &now)))
    }

    fn check(&self) -> Answer<Vec<String>> {
        self.read(read::check)
    }

    fn backup(&self, path: &Path) -> Answer<()> {
        let Some(path) = path.to_str().map(str::to_owned) else {
            return future::ready(Err(unusable(path, "its name is not UTF-8"))).boxed();
        };
        let copy = |c: &Connection, path: &str| c.execute("VACUUM INTO ?1", [path]).map(drop);
        match &self.inner.mode {
            Mode::Inline(_) => self.read(move |c| copy(c, &path)),
            // On a connection and a thread of its own: it takes as long as the disk does.
            Mode::Threads { file, .. } | Mode::Reading { file, .. } => {
                let database = file.path.clone();
                tokio::task::spawn_blocking(move || {
                    let connection = connect(&database, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
                    copy(&connection, &path).map_err(|cause| write::error(&cause))
                })
                .map(|joined| joined.unwrap_or_else(|cause| Err(Error::Unavailable(cause.to_string()))))
                .boxed()
            }
        }
    }

    fn close(&self) -> Answer<()> {
        if self.inner.closed.swap(true, Ordering::AcqRel) {
            return future::ready(Ok(())).boxed();
        }
        let store = self.clone();
        async move {
            let Mode::Threads { writer, .. } = &store.inner.mode else { return Ok(()) };
            let (sender, closed) = oneshot::channel();
            let mut command = Command::Close(Box::new(move || {
                let _ = sender.send(());
            }));
            // The one command that is worth waiting for a place in the queue.
            loop {
                match writer.submit(command) {
                    Ok(()) => break,
                    Err((_, Error::Closed)) => return Ok(()),
                    Err((refused, _)) => command = refused,
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let _ = closed.await;
            Ok(())
        }
        .boxed()
    }
}

impl Sqlite {
    async fn retain_rows(
        &self,
        aggregate: Aggregate,
        keep: u64,
        since_ms: Option<i64>,
        removed: &mut Removed,
    ) -> Result<()> {
        let mut surplus = self.read(move |c| retain::surplus(c, aggregate, keep)).await?;
        let mut after = 0;
        loop {
            let (reached, ids) =
                self.read(move |c| retain::oldest(c, aggregate, after, surplus, since_ms)).await?;
            if ids.is_empty() {
                return Ok(());
            }
            after = reached;
            surplus = surplus.saturating_sub(ids.len() as u64);
            let gone = self.delete(aggregate, ids).await?;
            removed.rows.extend(gone.into_iter().map(|id| (aggregate, id)));
        }
    }

    fn delete(&self, aggregate: Aggregate, ids: Vec<String>) -> Answer<Vec<String>> {
        self.write(move |pen| pen.transact(Durability::Relaxed, |c| retain::delete_rows(c, aggregate, ids)))
    }
}

/// Statistics for the planner, of a bounded number of rows.
fn optimize(pen: &mut Pen) -> Result<()> {
    pen.connection.execute_batch("PRAGMA analysis_limit=400; PRAGMA optimize;").map_err(|e| write::error(&e))
}

fn put_meta(c: &Connection, key: &str, value: &str) -> rusqlite::Result<()> {
    c.prepare_cached(retain::UPSERT_META)?.execute(params![key, value]).map(drop)
}

/// A connection of one thread (SQLite's own mutexes are left out).
fn connect(database: &Path, mode: OpenFlags) -> Result<Connection> {
    let open = || -> rusqlite::Result<Connection> {
        let connection = Connection::open_with_flags(database, mode | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        configure(&connection)?;
        if mode.contains(OpenFlags::SQLITE_OPEN_READ_ONLY) {
            connection.pragma_update(None, "query_only", true)?;
        }
        Ok(connection)
    };
    open().map_err(|cause| write::error(&cause))
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_prepared_statement_cache_capacity(STATEMENTS_CACHED);
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.execute_batch(
        "PRAGMA trusted_schema=OFF; PRAGMA foreign_keys=ON; PRAGMA synchronous=FULL; PRAGMA temp_store=MEMORY;
         PRAGMA cache_size=-16384;",
    )
}

/// Makes the writer's connection a writer's.
fn prepare(connection: &mut Connection) -> rusqlite::Result<()> {
    let mode: String = connection.query_row("PRAGMA journal_mode=WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        return Err(rusqlite::Error::ToSqlConversionFailure(
            format!("its file system has no shared memory (journal mode {mode}); network file systems cannot hold it")
                .into(),
        ));
    }
    connection.query_row("PRAGMA wal_autocheckpoint=0", [], |_| Ok(()))?;
    // A long read (a backup) makes the log long; the next start of the log gives the space back.
    connection.pragma_update(None, "journal_size_limit", limits::store::WAL_KEPT_BYTES as i64)?;
    schema::migrate(connection, schema::MIGRATIONS)
}

/// The pid of the process that has this data directory's store open for writing, if there is one.
pub fn holder(data: &Path) -> Option<String> {
    lock::holder(&data.join(LOCK))
}

/// The schema that this build writes.
pub const SCHEMA: i64 = schema::VERSION;
/// The schema that brought checkpoints.
pub const CHECKPOINTS_SINCE: i64 = 2;

/// The schema of a data directory's store, or of a backup's.
pub fn schema_of(data: &Path) -> Result<i64> {
    let connection = connect(&data.join(DATABASE), OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    schema::version(&connection).map_err(|cause| unusable(&data.join(DATABASE), cause))
}

/// Keeps every coordinator off a data directory until it is dropped.
///
/// Errors: [`Error::Busy`] when one has it.
pub fn hold(data: &Path) -> Result<impl Send + use<>> {
    Lock::take(&data.join(LOCK))
}

/// Makes the store in `data`, which was copied from another time, go on beyond what was given out since: epochs beyond
/// `epoch`, event numbers beyond `seq`. Returns its epoch.
pub async fn renew(data: &Path, epoch: u64, seq: u64) -> Result<u64> {
    let store = Sqlite::open_all(data, Bus::default())?;
    let epoch = epoch + limits::store::RESTORE_JUMP;
    let seq = seq + limits::store::RESTORE_JUMP;
    let written = store.write(move |pen| {
        let renewed = pen.transact(Durability::Full, |c| {
            put_meta(c, "epoch", &epoch.to_string())?;
            put_meta(c, RESTORED_EPOCH, &epoch.to_string())?;
            // An event marks the place: whoever looks for gaps knows why there is one.
            c.execute(
                "INSERT INTO event (seq, at_ms, tenant, kind, subject, body) VALUES (?1, ?2, '', ?3, '', ?4)",
                params![
                    seq as i64,
                    cooper_common::clock::wall_ms(),
                    read::RESTORED_EVENT,
                    serde_json::json!({"epoch": epoch}).to_string()
                ],
            )
        });
        renewed.map(drop)
    });
    written.await?;
    store.close().await?;
    Ok(epoch)
}

fn for_reading() -> Error {
    Error::Unavailable("it was opened for reading".to_owned())
}

fn refuse_newer(path: &Path, connection: &Connection) -> Result<()> {
    let (found, known) = (schema::version(connection).map_err(|e| write::error(&e))?, schema::VERSION);
    match found > known {
        true => Err(Error::Newer { path: path.display().to_string(), found, known }),
        false => Ok(()),
    }
}

fn refuse_older(path: &Path, connection: &Connection) -> Result<()> {
    let found = schema::version(connection).map_err(|e| write::error(&e))?;
    match schema::needs_somebody(found, schema::MIGRATIONS) {
        true => Err(Error::Older { path: path.display().to_string(), found, known: schema::VERSION }),
        false => Ok(()),
    }
}

fn unusable(path: &Path, cause: impl ToString) -> Error {
    Error::Unusable { path: path.display().to_string(), cause: cause.to_string() }
}

impl From<std::io::Error> for Error {
    fn from(cause: std::io::Error) -> Self {
        match cause.kind() {
            std::io::ErrorKind::StorageFull => Error::Full,
            _ => Error::Unavailable(cause.to_string()),
        }
    }
}
