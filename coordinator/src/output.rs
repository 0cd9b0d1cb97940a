//! The output log: append-only files, one a task and stream, for output that did not ride inside a result (I4).

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use cooper_common::{
    clock,
    error::{self, Code},
    ids::TaskId,
    limits,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout = 1,
    Stderr = 2,
}

impl Stream {
    pub const BOTH: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

    /// As the contract and `InlineOutput` count them.
    pub const fn number(self) -> u8 {
        self as u8
    }
    pub fn from_number(number: u8) -> Option<Self> {
        Self::BOTH.into_iter().find(|stream| stream.number() == number)
    }
    const fn extension(self) -> &'static str {
        match self {
            Stream::Stdout => "out",
            Stream::Stderr => "err",
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Bytes are missing between what is held and what came: send from `held`.
    #[error("output came at {offset}, but only {held} bytes are held")]
    Gap { offset: u64, held: u64 },
    #[error("a stream of {0} bytes is longer than any session may write")]
    TooLong(u64),
    #[error("the output log does not work: {0}")]
    Io(#[from] io::Error),
}

impl From<Error> for error::Error {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Gap { .. } => Code::Internal,
            Error::TooLong(_) => Code::TooLarge,
            Error::Io(cause) if cause.kind() == io::ErrorKind::StorageFull => Code::StoreFull,
            Error::Io(_) => Code::StoreUnavailable,
        };
        error::Error::new(code, error.to_string())
    }
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The files below `<data>/output`. Cloning gives another handle on the same log.
///
/// Calls that are not `async` touch the page cache with at most a chunk of bytes and may be made on any thread.
#[derive(Clone)]
pub struct OutputLog {
    inner: Arc<Inner>,
}

struct Inner {
    directory: PathBuf,
    open: Mutex<OpenFiles>,
}

/// The files in use, and those that were used last.
#[derive(Default)]
struct OpenFiles {
    tasks: HashMap<TaskId, (Arc<Mutex<Files>>, u64)>,
    /// Counts uses; the smallest is the longest ago.
    uses: u64,
}

/// The two files of a task.
#[derive(Default)]
struct Files {
    streams: [Slot; 2],
    /// Their names are on the disk too.
    named: bool,
}

#[derive(Default)]
enum Slot {
    /// Not looked for yet.
    #[default]
    Unknown,
    /// Looked for, and not there: nobody else makes it.
    Absent,
    Open(Held),
}

impl Slot {
    fn held(&mut self) -> Option<&mut Held> {
        match self {
            Slot::Open(held) => Some(held),
            Slot::Unknown | Slot::Absent => None,
        }
    }
}

struct Held {
    file: File,
    len: u64,
}

impl OutputLog {
    pub fn open(data: &Path) -> io::Result<Self> {
        let directory = data.join("output");
        fs::create_dir_all(&directory)?;
        let inner = Inner { directory, open: Mutex::default() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// For a look at that of a data directory that somebody else may have open.
    pub fn at(data: &Path) -> Self {
        let inner = Inner { directory: data.join("output"), open: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    /// Where a task's files lie in their data directory, if it has any.
    pub fn relative(task: TaskId) -> [PathBuf; 2] {
        let log = Self::at(Path::new(""));
        Stream::BOTH.map(|stream| log.path(task, stream))
    }

    /// A task that was made just now has no output: nobody needs to look for it.
    pub fn begin(&self, task: TaskId) {
        let files = self.files(task);
        lock(&files).streams = [Slot::Absent, Slot::Absent];
    }

    /// Adds bytes at `offset` and returns how many the stream has now: they survive the death of this process, and
    /// power loss after [`sync`](Self::sync). What is held already is skipped, so sending again changes nothing.
    pub fn append(&self, task: TaskId, stream: Stream, offset: u64, bytes: &[u8]) -> Result<u64> {
        let end = offset.saturating_add(bytes.len() as u64);
        if end > limits::exec::OUTPUT_BYTES_MAX {
            return Err(Error::TooLong(end));
        }
        let files = self.files(task);
        let mut files = lock(&files);
        let held = self.held(&mut files, task, stream, true)?;
        // Asked to create, `held` is there.
        let Some(held) = held else { return Err(io::Error::from(io::ErrorKind::NotFound).into()) };
        if offset > held.len {
            return Err(Error::Gap { offset, held: held.len });
        }
        let new = bytes.get((held.len - offset) as usize..).unwrap_or_default();
        if new.is_empty() {
            return Ok(held.len);
        }
        // A write that stops half way (a full disk) leaves bytes that are right, and are sent again.
        held.file.write_all_at(new, held.len)?;
        held.len += new.len() as u64;
        Ok(held.len)
    }

    /// Bytes held of a stream; 0 when there are none.
    pub fn len(&self, task: TaskId, stream: Stream) -> Result<u64> {
        let files = self.files(task);
        let mut files = lock(&files);
        Ok(self.held(&mut files, task, stream, false)?.map_or(0, |held| held.len))
    }

    /// At most `max` bytes, and at most a chunk, from `offset` on; empty at the end.
    pub fn read(&self, task: TaskId, stream: Stream, offset: u64, max: usize) -> Result<Bytes> {
        let files = self.files(task);
        let mut files = lock(&files);
        let Some(held) = self.held(&mut files, task, stream, false)? else { return Ok(Bytes::new()) };
        let there = held.len.saturating_sub(offset) as usize;
        let mut bytes = vec![0; there.min(max).min(limits::link::CHUNK_BYTES_MAX)];
        held.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes.into())
    }

    /// Puts a task's output on the disk. Before its result is committed.
    pub async fn sync(&self, task: TaskId) -> Result<()> {
        if clock::simulated().is_some() {
            return self.sync_blocking(task);
        }
        let log = self.clone();
        let joined = tokio::task::spawn_blocking(move || log.sync_blocking(task)).await;
        joined.map_err(io::Error::other)?
    }

    fn sync_blocking(&self, task: TaskId) -> Result<()> {
        let files = self.files(task);
        let (handles, named) = {
            let mut files = lock(&files);
            for stream in Stream::BOTH {
                self.held(&mut files, task, stream, false)?;
            }
            let handles: Vec<File> = files
                .streams
                .iter_mut()
                .filter_map(Slot::held)
                .map(|held| held.file.try_clone())
                .collect::<io::Result<_>>()?;
            (handles, files.named)
        };
        // Outside the lock, so that readers do not wait for the disk.
        for file in &handles {
            file.sync_data()?;
        }
        if !handles.is_empty() && !named {
            File::open(self.folder(task))?.sync_all()?;
            File::open(&self.inner.directory)?.sync_all()?;
            lock(&files).named = true;
        }
        Ok(())
    }

    /// Forgets a task's output: it fell to retention, or a new attempt begins at 0.
    pub fn remove(&self, task: TaskId) -> Result<()> {
        let files = self.files(task);
        let mut files = lock(&files);
        files.streams = Default::default();
        for stream in Stream::BOTH {
            match fs::remove_file(self.path(task, stream)) {
                Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(cause.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Where files of tasks are, for [`sizes`](Self::sizes).
    pub fn folders(&self) -> Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.inner.directory) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        entries
            .map(|entry| Ok(entry?.path()))
            .filter(|path| path.as_ref().map_or(true, |p| p.is_dir()))
            .collect()
    }

    /// How many bytes of each task a folder holds. Blocks for as long as the disk takes.
    pub fn sizes(&self, folder: &Path) -> Result<BTreeMap<TaskId, u64>> {
        let mut sizes = BTreeMap::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let task = Path::new(&entry.file_name()).file_stem().and_then(|stem| stem.to_str()?.parse().ok());
            if let Some(task) = task {
                match entry.metadata() {
                    Ok(metadata) => *sizes.entry(task).or_default() += metadata.len(),
                    // Removed since it was listed.
                    Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
                    Err(cause) => return Err(cause.into()),
                }
            }
        }
        Ok(sizes)
    }

    fn folder(&self, task: TaskId) -> PathBuf {
        // The last characters of an id are random, the first are its time.
        let text = task.to_string();
        self.inner.directory.join(&text[text.len() - 2..])
    }

    fn path(&self, task: TaskId, stream: Stream) -> PathBuf {
        self.folder(task).join(format!("{task}.{}", stream.extension()))
    }

    /// The place for a task's files. Lets go of those used longest ago when too many are open.
    fn files(&self, task: TaskId) -> Arc<Mutex<Files>> {
        let mut open = lock(&self.inner.open);
        open.uses += 1;
        let now = open.uses;
        if !open.tasks.contains_key(&task) && open.tasks.len() >= limits::output::OPEN_TASKS_MAX {
            // Not those that somebody works with right now: two handles would each have a length of their own.
            let idle = open.tasks.iter().filter(|(_, (files, _))| Arc::strong_count(files) == 1);
            if let Some(task) = idle.min_by_key(|(_, (_, used))| *used).map(|(task, _)| *task) {
                open.tasks.remove(&task);
            }
        }
        let (files, used) = open.tasks.entry(task).or_default();
        *used = now;
        Arc::clone(files)
    }

    fn held<'f>(
        &self,
        files: &'f mut Files,
        task: TaskId,
        stream: Stream,
        create: bool,
    ) -> Result<Option<&'f mut Held>> {
        let slot = &mut files.streams[stream as usize - 1];
        if matches!(slot, Slot::Unknown) || create && matches!(slot, Slot::Absent) {
            if create {
                fs::create_dir_all(self.folder(task))?;
            }
            let path = self.path(task, stream);
            match OpenOptions::new()
                .read(true)
                .write(true)
                .create(create)
                .truncate(false)
                .mode(0o600)
                .open(path)
            {
                Ok(file) => {
                    let len = file.metadata()?.len();
                    files.named = false;
                    *slot = Slot::Open(Held { file, len });
                }
                Err(cause) if cause.kind() == io::ErrorKind::NotFound && !create => *slot = Slot::Absent,
                Err(cause) => return Err(cause.into()),
            }
        }
        Ok(slot.held())
    }
}

/// A panic while holding one of these locks leaves lengths that were true before it: going on is safe.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
