//! Artifacts by content: a file is named by the BLAKE3 of its bytes, written whole or not at all, and never changed.

use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use cooper_common::{
    clock,
    error::{self, Code},
    limits,
};
use futures::{Stream, stream};

/// A file that nothing refers to may belong to a change that is on its way to the store; after this time it does not.
const UNREFERENCED_KEPT: Duration = Duration::from_secs(3_600);
const DRAFT_PREFIX: &str = "draft-";

/// Name of a blob: the BLAKE3 of its bytes, in hex.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(blake3::Hash);

impl Digest {
    pub fn of(bytes: &[u8]) -> Self {
        Self(blake3::hash(bytes))
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.to_hex())
    }
}

impl FromStr for Digest {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        // Upper case would be a second name of the same file.
        match blake3::Hash::from_hex(text) {
            Ok(hash) if hash.to_hex().as_str() == text => Ok(Self(hash)),
            _ => Err(Error::Malformed(text.chars().take(80).collect())),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("larger than what may be stored of one file")]
    TooLarge,
    #[error("there is no artifact {0}")]
    NotFound(Digest),
    #[error("{0:?} is not the digest of an artifact")]
    Malformed(String),
    #[error("artifact {0} is damaged: its bytes do not have its digest")]
    Damaged(Digest),
    #[error("artifacts cannot be stored or read: {0}")]
    Io(#[from] io::Error),
}

impl From<Error> for error::Error {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::TooLarge => Code::TooLarge,
            Error::NotFound(_) => Code::ArtifactNotFound,
            Error::Malformed(_) => Code::InvalidArgument,
            Error::Io(cause) if cause.kind() == io::ErrorKind::StorageFull => Code::StoreFull,
            Error::Damaged(_) | Error::Io(_) => Code::StoreUnavailable,
        };
        error::Error::new(code, error.to_string())
    }
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The files below `<data>/artifacts`.
#[derive(Debug, Clone)]
pub struct Blobs {
    directory: PathBuf,
    /// Held while a file gets its name or is judged to be unneeded: the same bytes may be kept anew at that moment.
    naming: Arc<Mutex<()>>,
}

impl Blobs {
    /// Drafts that a dead start left behind go.
    pub fn open(data: &Path) -> io::Result<Self> {
        let directory = data.join("artifacts");
        fs::create_dir_all(&directory)?;
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(DRAFT_PREFIX) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(Self { directory, naming: Arc::default() })
    }

    /// For a look at those of a data directory that somebody else may have open.
    pub fn at(data: &Path) -> Self {
        Self { directory: data.join("artifacts"), naming: Arc::default() }
    }

    /// Where a blob lies in its data directory.
    pub fn relative(digest: Digest) -> PathBuf {
        Self::at(Path::new("")).path(digest)
    }

    /// Every blob, and those whose bytes do not have their digest. Reads all of them, and blocks for that long.
    pub fn survey(&self) -> Result<(Vec<Digest>, Vec<Digest>)> {
        let (mut all, mut damaged) = (Vec::new(), Vec::new());
        let folders = match fs::read_dir(&self.directory) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok((all, damaged)),
            folders => folders?,
        };
        for folder in folders {
            let folder = folder?;
            if !folder.file_type()?.is_dir() {
                continue;
            }
            for entry in fs::read_dir(folder.path())? {
                let entry = entry?;
                let Some(digest) = entry.file_name().to_str().and_then(|name| name.parse::<Digest>().ok())
                else {
                    continue;
                };
                let mut hasher = blake3::Hasher::new();
                hasher.update_reader(File::open(entry.path())?)?;
                if Digest(hasher.finalize()) != digest {
                    damaged.push(digest);
                }
                all.push(digest);
            }
        }
        Ok((all, damaged))
    }

    /// Stores bytes that are at hand. On the disk when it returns.
    pub async fn put(&self, bytes: Bytes) -> Result<Digest> {
        let mut draft = self.draft()?;
        let written = tokio::task::spawn_blocking(move || {
            draft.write(&bytes)?;
            draft.keep()
        });
        written.await.map_err(io::Error::other)?
    }

    /// Begins a blob whose bytes come piece by piece.
    pub fn draft(&self) -> Result<Draft> {
        self.draft_of(limits::run::ARTIFACT_BYTES_MAX as u64)
    }

    /// The same with another bound than an artifact's.
    pub fn draft_of(&self, bytes_max: u64) -> Result<Draft> {
        let path = self.directory.join(format!("{DRAFT_PREFIX}{}", random_name()));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Draft {
            blobs: self.clone(),
            file,
            path,
            hasher: blake3::Hasher::new(),
            len: 0,
            bytes_max,
            kept: false,
        })
    }

    /// Size in bytes.
    pub fn len(&self, digest: Digest) -> Result<u64> {
        Ok(self.file(digest)?.metadata()?.len())
    }

    /// All of it, checked against its digest.
    pub async fn read(&self, digest: Digest) -> Result<Bytes> {
        let mut file = self.file(digest)?;
        let read = tokio::task::spawn_blocking(move || {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            match Digest::of(&bytes) == digest {
                true => Ok(Bytes::from(bytes)),
                false => Err(Error::Damaged(digest)),
            }
        });
        read.await.map_err(io::Error::other)?
    }

    /// Its bytes in chunks. A damaged blob ends with an error after its last chunk.
    pub fn stream(&self, digest: Digest) -> Result<impl Stream<Item = Result<Bytes>> + Send + use<>> {
        let start = (self.file(digest)?, blake3::Hasher::new());
        Ok(stream::try_unfold(start, move |(mut file, mut hasher)| async move {
            let read = tokio::task::spawn_blocking(move || {
                let mut chunk = Vec::new();
                Read::by_ref(&mut file).take(limits::link::CHUNK_BYTES_MAX as u64).read_to_end(&mut chunk)?;
                hasher.update(&chunk);
                match (chunk.is_empty(), Digest(hasher.finalize()) == digest) {
                    (false, _) => Ok(Some((Bytes::from(chunk), (file, hasher)))),
                    (true, true) => Ok(None),
                    (true, false) => Err(Error::Damaged(digest)),
                }
            });
            read.await.map_err(io::Error::other)?
        }))
    }

    /// `length` of its bytes from `offset` on, in chunks, as far as there are any. Of a part nothing says whether it is
    /// damaged; all of it is checked as in [`stream`](Self::stream).
    pub fn stream_range(
        &self,
        digest: Digest,
        offset: u64,
        length: u64,
    ) -> Result<futures::stream::BoxStream<'static, Result<Bytes>>> {
        use std::io::Seek as _;
        if offset == 0 && length >= self.len(digest)? {
            return Ok(Box::pin(self.stream(digest)?));
        }
        let mut file = self.file(digest)?;
        file.seek(io::SeekFrom::Start(offset))?;
        Ok(Box::pin(stream::try_unfold((file, length), move |(mut file, left)| async move {
            let read = tokio::task::spawn_blocking(move || {
                let mut chunk = Vec::new();
                let most = left.min(limits::link::CHUNK_BYTES_MAX as u64);
                Read::by_ref(&mut file).take(most).read_to_end(&mut chunk)?;
                let left = left - chunk.len() as u64;
                Ok((!chunk.is_empty()).then(|| (Bytes::from(chunk), (file, left))))
            });
            read.await.map_err(io::Error::other)?
        })))
    }

    /// Deletes every blob that is not in `referenced` and was not written in the last hour. Blocks: not for a thread
    /// that serves. Returns how many went.
    pub fn remove_unreferenced(&self, referenced: &HashSet<Digest>) -> Result<usize> {
        let now_ms = clock::wall_ms();
        let mut removed = 0;
        for folder in fs::read_dir(&self.directory)? {
            let folder = folder?;
            if !folder.file_type()?.is_dir() {
                continue;
            }
            for entry in fs::read_dir(folder.path())? {
                let entry = entry?;
                let _naming = self.naming.lock().unwrap_or_else(PoisonError::into_inner);
                let digest = entry.file_name().to_str().and_then(|name| name.parse::<Digest>().ok());
                let written = entry.metadata()?.modified()?;
                let age_ms = now_ms.saturating_sub(unix_ms(written));
                if let Some(digest) = digest
                    && !referenced.contains(&digest)
                    && age_ms >= UNREFERENCED_KEPT.as_millis() as i64
                {
                    fs::remove_file(entry.path())?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }

    fn path(&self, digest: Digest) -> PathBuf {
        let name = digest.to_string();
        self.directory.join(&name[..2]).join(&name)
    }

    fn file(&self, digest: Digest) -> Result<File> {
        File::open(self.path(digest)).map_err(|cause| match cause.kind() {
            io::ErrorKind::NotFound => Error::NotFound(digest),
            _ => cause.into(),
        })
    }
}

/// A blob that is being written. Dropped before [`keep`](Draft::keep), it never was.
#[derive(Debug)]
pub struct Draft {
    blobs: Blobs,
    file: File,
    path: PathBuf,
    hasher: blake3::Hasher,
    len: u64,
    bytes_max: u64,
    kept: bool,
}

impl Draft {
    /// Adds bytes, into the page cache.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.len += bytes.len() as u64;
        if self.len > self.bytes_max {
            return Err(Error::TooLarge);
        }
        self.hasher.update(bytes);
        Ok(self.file.write_all(bytes)?)
    }

    /// Bytes written so far.
    pub fn bytes_written(&self) -> u64 {
        self.len
    }

    /// Gives the blob its name; on the disk when it returns. Blocks for as long as the disk takes.
    pub fn keep(mut self) -> Result<Digest> {
        let digest = Digest(self.hasher.finalize());
        let path = self.blobs.path(digest);
        let folder = path.parent().unwrap_or(&self.blobs.directory);
        fs::create_dir_all(folder)?;
        self.file.sync_all()?;
        // The same bytes once more replace themselves, which also makes the file new for `remove_unreferenced`.
        let naming = self.blobs.naming.lock().unwrap_or_else(PoisonError::into_inner);
        // The draft may have waited for its last bytes longer than unneeded files are kept.
        self.file
            .set_modified(std::time::UNIX_EPOCH + Duration::from_millis(clock::wall_ms().max(0) as u64))?;
        fs::rename(&self.path, &path)?;
        drop(naming);
        self.kept = true;
        File::open(folder)?.sync_all()?;
        File::open(&self.blobs.directory)?.sync_all()?;
        Ok(digest)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.kept {
            // What stays is removed at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn random_name() -> String {
    format!("{:032x}", rand::random::<u128>())
}

fn unix_ms(time: std::time::SystemTime) -> i64 {
    time.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;

    use super::*;

    fn blobs() -> (tempfile::TempDir, Blobs) {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        (dir, blobs)
    }

    async fn streamed(blobs: &Blobs, digest: Digest) -> Result<Vec<u8>> {
        let chunks: Vec<Bytes> = blobs.stream(digest)?.try_collect().await?;
        Ok(chunks.concat())
    }

    fn names(dir: &Path) -> usize {
        fs::read_dir(dir.join("artifacts")).unwrap().count()
    }

    #[tokio::test]
    async fn what_is_put_reads_back_by_its_digest_and_is_held_once() {
        let (_dir, blobs) = blobs();
        let bytes: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
        let digest = blobs.put(bytes.clone().into()).await.unwrap();
        assert_eq!(digest, blobs.put(bytes.clone().into()).await.unwrap());
        assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        assert_eq!(blobs.read(digest).await.unwrap(), bytes);
        assert_eq!(streamed(&blobs, digest).await.unwrap(), bytes);
        assert_eq!(blobs.len(digest).unwrap(), 300_000);
        for (offset, length, there) in
            [(0, 10, 0..10), (70_000, 150_000, 70_000..220_000), (299_990, 99, 299_990..300_000)]
        {
            let part: Vec<Bytes> =
                blobs.stream_range(digest, offset, length).unwrap().try_collect().await.unwrap();
            assert_eq!(part.concat(), bytes[there]);
        }
        let empty = blobs.put(Bytes::new()).await.unwrap();
        assert!(streamed(&blobs, empty).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn an_absent_or_malformed_name_is_told_apart_and_reaches_no_other_file() {
        let (_dir, blobs) = blobs();
        assert!(matches!(blobs.read(Digest::of(b"x")).await, Err(Error::NotFound(_))));
        let long = "../".repeat(40);
        for text in ["", "../../etc/passwd", &long, &"A".repeat(64), &"é".repeat(32)] {
            assert!(matches!(text.parse::<Digest>(), Err(Error::Malformed(_))), "{text}");
        }
    }

    #[tokio::test]
    async fn a_draft_that_is_dropped_or_too_large_leaves_nothing() {
        let (dir, blobs) = blobs();
        let mut draft = blobs.draft().unwrap();
        draft.write(&vec![0; limits::run::ARTIFACT_BYTES_MAX]).unwrap();
        assert!(matches!(draft.write(&[0]), Err(Error::TooLarge)));
        drop(draft);
        assert_eq!(names(dir.path()), 0);
        std::mem::forget(blobs.draft().unwrap());
        assert_eq!(names(dir.path()), 1);
        Blobs::open(dir.path()).unwrap();
        assert_eq!(names(dir.path()), 0);
    }

    #[tokio::test]
    async fn a_damaged_blob_is_not_passed_on_as_whole() {
        let (_dir, blobs) = blobs();
        let digest = blobs.put(Bytes::from_static(b"true")).await.unwrap();
        fs::write(blobs.path(digest), b"fals").unwrap();
        assert!(matches!(blobs.read(digest).await, Err(Error::Damaged(_))));
        assert!(matches!(streamed(&blobs, digest).await, Err(Error::Damaged(_))));
    }

    #[tokio::test]
    async fn only_old_blobs_that_nothing_refers_to_are_removed() {
        let (_dir, blobs) = blobs();
        let old = std::time::UNIX_EPOCH;
        let mut digests = Vec::new();
        for (name, aged) in [("kept", true), ("gone", true), ("young", false)] {
            let digest = blobs.put(Bytes::from_static(name.as_bytes())).await.unwrap();
            if aged {
                let file = OpenOptions::new().write(true).open(blobs.path(digest)).unwrap();
                file.set_modified(old).unwrap();
            }
            digests.push(digest);
        }
        assert_eq!(blobs.remove_unreferenced(&HashSet::from([digests[0]])).unwrap(), 1);
        assert!(blobs.len(digests[0]).is_ok() && blobs.len(digests[2]).is_ok());
        assert!(matches!(blobs.len(digests[1]), Err(Error::NotFound(_))));
    }
}
