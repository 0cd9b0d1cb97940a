//! Copies of a data directory's store: made while it is used, verified before they are believed, brought back with fences
//! that go on (I1).
//!
//! A backup is a directory: the database as of one moment, the files that its rows refer to, `files.blake3` with the
//! digest of each (as `b3sum --check` reads it), and `manifest.json` with the digest of that list.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use cooper_common::{
    VERSION, clock, data_dir,
    error::{Code, Error, Result},
};
use cooper_core::change::Aggregate;
use serde::{Deserialize, Serialize};

use super::{Hold, blocking, files};
use crate::{
    blobs::Blobs,
    checkpoints,
    output::OutputLog,
    store::{Store, sqlite, sqlite::Sqlite},
};

const MANIFEST: &str = "manifest.json";
const LIST: &str = "files.blake3";
/// What a backup consists of, and what a restore replaces.
const PARTS: [&str; 4] = [sqlite::DATABASE, "output", "artifacts", checkpoints::KEY_FILE];
/// Of this shape.
const FORMAT: u32 = 1;
/// A turn of removing files takes far less.
const HOLD_PATIENCE: u32 = 600;
const HOLD_POLL: Duration = Duration::from_millis(100);

/// What a backup says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Manifest {
    pub format: u32,
    /// The cooper that made it.
    pub version: String,
    /// Unix milliseconds.
    pub made_at_ms: i64,
    pub schema: i64,
    pub epoch: u64,
    pub last_seq: u64,
    pub files: u64,
    pub bytes: u64,
    /// Files that rows refer to and that were not there.
    pub missing: Vec<String>,
    /// BLAKE3 of `files.blake3`.
    pub list: String,
}

/// Makes a backup of the store in `data`, which may be in use, at `to`, which must not exist. It is there whole or not
/// at all.
pub async fn make(data: &Path, to: &Path) -> Result<Manifest> {
    if fs::symlink_metadata(to).is_ok() {
        return Err(Error::invalid(format!("{} exists already", to.display()))
            .with_hint("name a new directory: a backup is not written over something else"));
    }
    let (Some(parent), Some(name)) = (to.parent(), to.file_name()) else {
        return Err(Error::invalid(format!("{} cannot be a backup", to.display())));
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let draft = parent.join(format!(".{}.{}.partial", name.to_string_lossy(), std::process::id()));
    let made = match directory(&draft) {
        Ok(()) => fill(data, &draft).await,
        Err(error) => return Err(failed(&draft, error)),
    };
    let kept = made.and_then(|manifest| {
        let keep = || -> io::Result<()> {
            rustix::fs::syncfs(File::open(&draft)?)?;
            let cwd = rustix::fs::CWD;
            rustix::fs::renameat_with(cwd, &draft, cwd, to, rustix::fs::RenameFlags::NOREPLACE)?;
            File::open(parent)?.sync_all()
        };
        keep().map(|()| manifest).map_err(|error| failed(to, error))
    });
    if kept.is_err() {
        let _ = fs::remove_dir_all(&draft);
    }
    kept
}

async fn fill(data: &Path, draft: &Path) -> Result<Manifest> {
    // From here on no file goes whose row is in the copy.
    let _hold = hold(data).await?;
    let source = Sqlite::read_only(data)?;
    source.backup(&draft.join(sqlite::DATABASE)).await?;
    let copy = Sqlite::read_only(draft)?;
    let (wanted, optional) = referenced(&copy, sqlite::schema_of(draft)?).await?;
    let text = async |key| copy.meta_get(key).await;
    let epoch = text("epoch").await?.and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut manifest = Manifest {
        format: FORMAT,
        version: VERSION.to_owned(),
        made_at_ms: clock::wall_ms(),
        schema: sqlite::schema_of(draft)?,
        epoch,
        last_seq: copy.last_seq().await?,
        files: 0,
        bytes: 0,
        missing: Vec::new(),
        list: String::new(),
    };
    let (from, to) = (data.to_owned(), draft.to_owned());
    blocking(move || {
        let mut list = List::create(&to).map_err(|error| failed(&to, error))?;
        let database = digest(&to.join(sqlite::DATABASE)).map_err(|error| failed(&to, error))?;
        list.add(Path::new(sqlite::DATABASE), database).map_err(|error| failed(&to, error))?;
        for (path, must_be) in
            wanted.into_iter().map(|path| (path, true)).chain(optional.into_iter().map(|path| (path, false)))
        {
            match copy_file(&from.join(&path), &to.join(&path)) {
                Ok(copied) => list.add(&path, copied).map_err(|error| failed(&to, error))?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    if must_be {
                        manifest.missing.push(path.to_string_lossy().into_owned());
                    }
                }
                Err(error) => return Err(failed(&path, error)),
            }
        }
        (manifest.files, manifest.bytes) = (list.files, list.bytes);
        manifest.list = list.finish().map_err(|error| failed(&to, error))?;
        let text =
            serde_json::to_vec_pretty(&manifest).map_err(|error| Error::internal(error.to_string()))?;
        fs::write(to.join(MANIFEST), text).map_err(|error| failed(&to, error))?;
        Ok(manifest)
    })
    .await
}

/// Files that rows refer to: those that must be there, and output, which a task may have or not.
async fn referenced(store: &Sqlite, schema: i64) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    // One that is yet to be brought to this schema may be of before there were checkpoints.
    let artifacts = match schema < sqlite::CHECKPOINTS_SINCE {
        true => files::artifacts_of_runs(store).await?,
        false => files::artifacts(store).await?,
    };
    let artifacts: std::collections::BTreeSet<PathBuf> = artifacts.into_iter().map(Blobs::relative).collect();
    let mut output = Vec::new();
    files::each(store, Aggregate::Task, |record| {
        if let Ok(task) = record.id.parse() {
            output.extend(OutputLog::relative(task));
        }
        Ok(())
    })
    .await?;
    // Without it the checkpoints of the backup are no better than forged ones.
    output.push(PathBuf::from(checkpoints::KEY_FILE));
    Ok((artifacts.into_iter().collect(), output))
}

async fn hold(data: &Path) -> Result<Hold> {
    for _ in 0..HOLD_PATIENCE {
        if let Some(hold) = Hold::shared(data).map_err(|error| failed(data, error))? {
            return Ok(hold);
        }
        tokio::time::sleep(HOLD_POLL).await;
    }
    Err(Error::new(Code::DataBusy, "old files are being removed, without an end"))
}

/// Whether a backup is what was made: every file, the database, and a schema that this cooper reads.
pub async fn verify(backup: &Path) -> Result<Manifest> {
    let manifest = manifest_of(backup)?;
    let from = backup.to_owned();
    let expected = manifest.clone();
    blocking(move || {
        each_listed(&from, &expected, |path, sum| {
            let found = digest(&from.join(path)).map_err(|error| failed(path, error))?;
            same(path, &found.0, sum)
        })
    })
    .await?;
    let wrong = Sqlite::read_only(backup)?.check().await?;
    match wrong.first() {
        None => Ok(manifest),
        Some(first) => Err(damaged(backup, first)),
    }
}

/// What a restore did.
#[derive(Debug, Clone, Serialize)]
pub struct Restored {
    pub manifest: Manifest,
    /// The next coordinator's is one more.
    pub epoch: u64,
    /// Where what was there before is now.
    pub replaced: Option<PathBuf>,
}

/// Brings a backup back into `data`, which nobody may have in use. What is there is moved aside if `replace` says so.
///
/// Epochs and event numbers go on beyond all that may have been given out since the backup: a worker obeys no
/// coordinator whose epoch went back, and a client that watches from a number misses nothing that comes.
pub async fn restore(backup: &Path, data: &Path, replace: bool) -> Result<Restored> {
    data_dir::create(data).map_err(|error| failed(data, error))?;
    let _lock = sqlite::hold(data)?;
    let there: Vec<&str> = PARTS.into_iter().filter(|part| data.join(part).exists()).collect();
    if !there.is_empty() && !replace {
        return Err(Error::new(Code::InvalidArgument, format!("{} holds a store already", data.display()))
            .with_hint("restore into an empty directory, or move what is there aside with --replace"));
    }
    let manifest = verify(backup).await?;
    let before = Sqlite::read_only(data).ok();
    let (mut epoch, mut seq) = (manifest.epoch, manifest.last_seq);
    if let Some(before) = before {
        // As far as it can still be read.
        if let Ok(Some(text)) = before.meta_get("epoch").await {
            epoch = epoch.max(text.parse().unwrap_or(0));
        }
        seq = seq.max(before.last_seq().await.unwrap_or(0));
    }
    let stage = data.join("restore.partial");
    let (from, to, expected) = (backup.to_owned(), stage.clone(), manifest.clone());
    blocking(move || {
        let _ = fs::remove_dir_all(&to);
        directory(&to).map_err(|error| failed(&to, error))?;
        each_listed(&from, &expected, |path, sum| {
            let copied = copy_file(&from.join(path), &to.join(path)).map_err(|error| failed(path, error))?;
            same(path, &copied.0, sum)
        })
    })
    .await?;
    let epoch = sqlite::renew(&stage, epoch, seq).await?;
    let replaced = (!there.is_empty()).then(|| data.join(format!("replaced-{}", clock::wall_ms())));
    let swap = || -> io::Result<()> {
        for part in ["output", "artifacts"] {
            fs::create_dir_all(stage.join(part))?;
        }
        rustix::fs::syncfs(File::open(&stage)?)?;
        // Until this is gone, no coordinator starts on the half of one and the half of the other.
        let mark = data.join(sqlite::RESTORING);
        File::create(&mark)?.sync_all()?;
        File::open(data)?.sync_all()?;
        if let Some(aside) = &replaced {
            directory(aside)?;
            for name in PARTS.into_iter().chain(sqlite::SIDE_FILES) {
                match fs::rename(data.join(name), aside.join(name)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
        }
        for part in PARTS {
            match fs::rename(stage.join(part), data.join(part)) {
                // A backup of before there were checkpoints has no key for them.
                Err(error) if part == checkpoints::KEY_FILE && error.kind() == io::ErrorKind::NotFound => {}
                renamed => renamed?,
            }
        }
        fs::remove_dir_all(&stage)?;
        File::open(data)?.sync_all()?;
        fs::remove_file(&mark)?;
        File::open(data)?.sync_all()
    };
    swap().map_err(|error| failed(data, error).with_hint("run it again, with --replace"))?;
    Ok(Restored { manifest, epoch, replaced })
}

fn manifest_of(backup: &Path) -> Result<Manifest> {
    let text = fs::read(backup.join(MANIFEST)).map_err(|error| {
        Error::invalid(format!("{} is no backup: {MANIFEST}: {error}", backup.display()))
            .with_hint("name a directory that `cooper store backup` made")
    })?;
    let manifest: Manifest = serde_json::from_slice(&text)
        .map_err(|error| damaged(backup, &format!("{MANIFEST} cannot be read: {error}")))?;
    if manifest.format > FORMAT || manifest.schema > sqlite::SCHEMA {
        let message = format!(
            "{} was made by cooper {} (format {}, schema {}); this one knows format {FORMAT}, schema {}",
            backup.display(),
            manifest.version,
            manifest.format,
            manifest.schema,
            sqlite::SCHEMA
        );
        return Err(Error::new(Code::DataUnusable, message).with_hint("use the newer cooper"));
    }
    Ok(manifest)
}

fn each_listed(
    backup: &Path,
    manifest: &Manifest,
    mut see: impl FnMut(&Path, &str) -> Result<()>,
) -> Result<()> {
    let list = backup.join(LIST);
    let found = digest(&list).map_err(|error| failed(&list, error))?;
    same(Path::new(LIST), &found.0, &manifest.list)?;
    let mut files = 0;
    for line in BufReader::new(File::open(&list).map_err(|error| failed(&list, error))?).lines() {
        let line = line.map_err(|error| failed(&list, error))?;
        let (sum, path) =
            line.split_once("  ").ok_or_else(|| damaged(backup, "its list of files cannot be read"))?;
        let path = Path::new(path);
        // Its digest is right, but whoever made it may not be us.
        if !path.components().all(|part| matches!(part, std::path::Component::Normal(_))) {
            return Err(damaged(backup, "its list of files leads out of it"));
        }
        files += 1;
        see(path, sum)?;
    }
    match files == manifest.files {
        true => Ok(()),
        false => Err(damaged(backup, "files are missing from its list")),
    }
}

struct List {
    file: io::BufWriter<File>,
    hasher: blake3::Hasher,
    files: u64,
    bytes: u64,
}

impl List {
    fn create(backup: &Path) -> io::Result<Self> {
        let file = create(&backup.join(LIST))?;
        Ok(Self { file: io::BufWriter::new(file), hasher: blake3::Hasher::new(), files: 0, bytes: 0 })
    }

    fn add(&mut self, path: &Path, (sum, bytes): (String, u64)) -> io::Result<()> {
        let line = format!("{sum}  {}\n", path.display());
        self.hasher.update(line.as_bytes());
        self.files += 1;
        self.bytes += bytes;
        self.file.write_all(line.as_bytes())
    }

    fn finish(mut self) -> io::Result<String> {
        self.file.flush()?;
        Ok(self.hasher.finalize().to_hex().to_string())
    }
}

/// What is there when it begins: a file that grows is copied as far as that. Its digest and size.
fn copy_file(from: &Path, to: &Path) -> io::Result<(String, u64)> {
    let source = File::open(from)?;
    let length = source.metadata()?.len();
    if let Some(folder) = to.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    pass(source.take(length), &mut create(to)?)
}

fn digest(path: &Path) -> io::Result<(String, u64)> {
    pass(File::open(path)?, &mut io::sink())
}

fn pass(mut from: impl Read, to: &mut impl Write) -> io::Result<(String, u64)> {
    let (mut hasher, mut bytes, mut piece) = (blake3::Hasher::new(), 0, vec![0; 256 << 10]);
    loop {
        match from.read(&mut piece)? {
            0 => return Ok((hasher.finalize().to_hex().to_string(), bytes)),
            read => {
                hasher.update(&piece[..read]);
                to.write_all(&piece[..read])?;
                bytes += read as u64;
            }
        }
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(path)
}

fn same(path: &Path, found: &str, expected: &str) -> Result<()> {
    match found == expected {
        true => Ok(()),
        false => Err(damaged(path, "its bytes are not those that were written")),
    }
}

fn damaged(path: &Path, what: &str) -> Error {
    Error::new(Code::DataUnusable, format!("{} is damaged: {what}", path.display()))
        .with_hint("take another backup")
}

fn failed(path: &Path, error: io::Error) -> Error {
    let code = match error.kind() {
        io::ErrorKind::StorageFull => Code::StoreFull,
        _ => Code::DataUnusable,
    };
    Error::new(code, format!("{}: {error}", path.display()))
        .with_hint("see that its disk has space and that this user may read and write there")
}

#[cfg(test)]
mod tests;
