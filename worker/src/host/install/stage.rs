//! Packages are changed in a copy of the venv, which takes the venv's place when all went well: whatever ends an installer,
//! the venv is as it was.
//!
//! Files of the copy are hard links. Installers replace files, they do not write into those that are there; the scripts in
//! `bin`, of which that is not sure, are copied, and so are files that are not the session's (`layers`). All of this runs as
//! the session, within its confinement.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, symlink},
    path::{Path, PathBuf},
};

use cooper_common::limits::exec;
use rustix::fs::{CWD, FlockOperation, RenameFlags};

/// The copy, beside the venv. One that is left of an installer that was killed is removed by the next.
pub const STAGE: &str = ".cooper-venv.part";
/// The venv of before, while it is removed.
pub const GONE: &str = ".cooper-venv.gone";
/// A script's first line names its interpreter.
const SCRIPT_HEAD_BYTES: usize = 4096;

pub struct Stage {
    venv: PathBuf,
    copy: PathBuf,
    gone: PathBuf,
    /// Files that are no links: by inode, that of the file in the venv.
    copies: BTreeMap<u64, u64>,
    /// Held until the end: one change at a time.
    _lock: File,
}

impl Stage {
    /// Copies the venv. Waits while another installer is at work in the session.
    pub fn make(workspace: &Path, venv: &Path, cache: &Path) -> io::Result<Self> {
        let lock =
            OpenOptions::new().write(true).create(true).truncate(false).open(cache.join("packages.lock"))?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
        let (copy, gone) = (workspace.join(STAGE), workspace.join(GONE));
        if gone.is_dir() && !venv.exists() {
            // Killed between the two renames of a file system that cannot exchange.
            fs::rename(&gone, venv)?;
        }
        remove(&copy)?;
        remove(&gone)?;
        let copies = BTreeMap::new();
        let mut stage = Self { venv: venv.to_owned(), copy, gone, copies, _lock: lock };
        copied(&stage.venv, &stage.copy, false, &mut stage.copies)?;
        Ok(stage)
    }

    pub fn python(&self) -> PathBuf {
        self.copy.join("bin/python")
    }

    /// Where the packages are, of the copy.
    pub fn site(&self) -> io::Result<PathBuf> {
        sites(&self.copy).next().ok_or_else(|| io::Error::other("the session's venv has no site-packages"))
    }

    /// Which of these modules are others in the copy than in the venv.
    pub fn changed(&self, modules: &BTreeSet<String>) -> BTreeSet<String> {
        let mut all: Vec<&str> = modules.iter().map(String::as_str).collect();
        all.sort_unstable();
        let none = BTreeMap::new();
        let (before, after) = (inodes(&self.venv, &all, &none), inodes(&self.copy, &all, &self.copies));
        all.into_iter().filter(|name| before.get(*name) != after.get(*name)).map(str::to_owned).collect()
    }

    /// Makes the copy the venv.
    pub fn commit(self) -> io::Result<()> {
        self.name_scripts()?;
        match rustix::fs::renameat_with(CWD, &self.copy, CWD, &self.venv, RenameFlags::EXCHANGE) {
            Ok(()) => {}
            // Some file systems cannot.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                fs::rename(&self.venv, &self.gone)?;
                fs::rename(&self.copy, &self.venv)?;
            }
            Err(error) => return Err(error.into()),
        }
        // It has happened: what of the old one cannot be removed now is removed by the next.
        let _ = remove(&self.copy);
        let _ = remove(&self.gone);
        Ok(())
    }

    pub fn discard(self) {
        let _ = remove(&self.copy);
    }

    /// Scripts that were made in the copy name its interpreter; it will be the venv's.
    fn name_scripts(&self) -> io::Result<()> {
        use std::os::unix::ffi::OsStrExt as _;
        let (ours, theirs) = (self.copy.as_os_str().as_bytes(), self.venv.as_os_str().as_bytes());
        for entry in fs::read_dir(self.copy.join("bin"))?.flatten() {
            let meta = entry.metadata()?;
            if !meta.is_file() || meta.len() > exec::SCRIPT_BYTES_MAX {
                continue;
            }
            let content = fs::read(entry.path())?;
            let head = &content[..content.len().min(SCRIPT_HEAD_BYTES)];
            let at = head.windows(ours.len()).position(|part| part == ours);
            if let (true, Some(at)) = (head.starts_with(b"#!"), at) {
                let renamed = [&content[..at], theirs, &content[at + ours.len()..]].concat();
                fs::write(entry.path(), renamed)?;
            }
        }
        Ok(())
    }
}

fn sites(venv: &Path) -> impl Iterator<Item = PathBuf> {
    let lib = fs::read_dir(venv.join("lib")).into_iter().flatten().flatten();
    lib.map(|entry| entry.path().join("site-packages")).filter(|site| site.is_dir())
}

/// Files of each of these modules by inode; of a copy, that of its original. `six.py`,
/// `_cffi.cpython-311-x86_64-linux-gnu.so` and `numpy` are modules.
fn inodes<'a>(
    venv: &Path,
    modules: &[&'a str],
    copies: &BTreeMap<u64, u64>,
) -> BTreeMap<&'a str, BTreeMap<PathBuf, u64>> {
    let mut found: BTreeMap<&str, BTreeMap<PathBuf, u64>> = BTreeMap::new();
    for entry in sites(venv).filter_map(|site| fs::read_dir(site).ok()).flatten().flatten() {
        let name = entry.file_name();
        let module = name.to_str().and_then(|name| name.split('.').next()).unwrap_or_default();
        if let Ok(at) = modules.binary_search(&module) {
            let files = found.entry(modules[at]).or_default();
            note(&entry.path(), Path::new(&name), copies, files);
        }
    }
    found
}

fn note(path: &Path, name: &Path, copies: &BTreeMap<u64, u64>, files: &mut BTreeMap<PathBuf, u64>) {
    let Ok(meta) = path.symlink_metadata() else { return };
    if !meta.is_dir() {
        files.insert(name.to_owned(), *copies.get(&meta.ino()).unwrap_or(&meta.ino()));
        return;
    }
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_name() != OsStr::new("__pycache__") && files.len() < exec::INSTALLED_SEEN_MAX {
            note(&entry.path(), &name.join(entry.file_name()), copies, files);
        }
    }
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Links are kept as they are and never followed; what is no file, directory or link is left out.
fn copied(from: &Path, to: &Path, whole: bool, copies: &mut BTreeMap<u64, u64>) -> io::Result<()> {
    let meta = from.symlink_metadata()?;
    if meta.is_symlink() {
        return symlink(fs::read_link(from)?, to);
    }
    if meta.is_file() {
        if whole || fs::hard_link(from, to).is_err() {
            copies.insert(copy_file(from, to, meta.mode())?, meta.ino());
        }
        return Ok(());
    }
    if !meta.is_dir() {
        return Ok(());
    }
    // Its owner goes on to write there.
    fs::DirBuilder::new().mode(meta.mode() & 0o7777 | 0o700).create(to)?;
    for entry in fs::read_dir(from)? {
        let name = entry?.file_name();
        copied(&from.join(&name), &to.join(&name), whole || name == "bin", copies)?;
    }
    Ok(())
}

/// Answers with its inode. Made with its mode, not given it: where the host changes modes for a session it changes none for this process, which
/// nobody may look into.
fn copy_file(from: &Path, to: &Path, mode: u32) -> io::Result<u64> {
    let mut options = OpenOptions::new();
    let mut copy = options.write(true).create_new(true).mode(mode & 0o7777).open(to)?;
    io::copy(&mut File::open(from)?, &mut copy)?;
    Ok(copy.metadata()?.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn venv() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let venv = dir.path().join(".venv");
        for made in ["bin", "lib/python3.11/site-packages/numpy"] {
            fs::create_dir_all(venv.join(made)).unwrap();
        }
        symlink("/usr/bin/python3", venv.join("bin/python")).unwrap();
        fs::write(venv.join("lib/python3.11/site-packages/numpy/core.py"), "1").unwrap();
        fs::write(venv.join("lib/python3.11/site-packages/six.py"), "1").unwrap();
        (dir, venv)
    }

    #[test]
    fn what_is_not_committed_has_not_happened() {
        let (dir, venv) = venv();
        let stage = Stage::make(dir.path(), &venv, dir.path()).unwrap();
        let site = stage.site().unwrap();
        fs::remove_file(site.join("six.py")).unwrap();
        fs::write(site.join("new.py"), "2").unwrap();
        assert!(venv.join("lib/python3.11/site-packages/six.py").exists());
        // As if it had been killed: its copy is there, and the next begins anew.
        drop(stage);
        assert!(dir.path().join(STAGE).exists());
        let stage = Stage::make(dir.path(), &venv, dir.path()).unwrap();
        assert!(!stage.site().unwrap().join("new.py").exists());
        stage.discard();
        assert!(!dir.path().join(STAGE).exists());
    }

    #[test]
    fn modules_that_were_replaced_are_named_and_scripts_name_the_venv() {
        let (dir, venv) = venv();
        let stage = Stage::make(dir.path(), &venv, dir.path()).unwrap();
        let site = stage.site().unwrap();
        let names: BTreeSet<String> = ["numpy", "six", "pandas", "absent"].map(str::to_owned).into();
        assert_eq!(stage.changed(&names), BTreeSet::new());
        fs::remove_file(site.join("numpy/core.py")).unwrap();
        fs::write(site.join("numpy/core.py"), "2").unwrap();
        fs::create_dir(site.join("pandas")).unwrap();
        fs::write(site.join("pandas/__init__.py"), "").unwrap();
        assert_eq!(stage.changed(&names), ["numpy", "pandas"].map(str::to_owned).into());
        let script = format!("#!{}\nrun()\n", stage.python().display());
        fs::write(venv.join(format!("../{STAGE}/bin/tool")), script).unwrap();
        stage.commit().unwrap();
        let script = fs::read_to_string(venv.join("bin/tool")).unwrap();
        assert_eq!(script, format!("#!{}/bin/python\nrun()\n", venv.display()));
        assert!(venv.join("lib/python3.11/site-packages/pandas").exists() && !dir.path().join(GONE).exists());
    }
}
