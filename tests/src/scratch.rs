//! A directory for one test: gone afterwards, kept and named when the test fails.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
};

#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    shared: bool,
}

impl Scratch {
    pub fn new(name: &str) -> Self {
        let prefix = format!("cooper-e2e-{name}-");
        let dir = tempfile::Builder::new().prefix(&prefix).rand_bytes(8).tempdir().expect("a directory");
        // Canonical, as processes show it.
        let path = fs::canonicalize(dir.keep()).expect("it was just made");
        Self { path, shared: false }
    }

    /// One that other tests work on too: whoever ends this process's children removes it, unless it was kept.
    pub fn shared(name: &str) -> Self {
        let mut scratch = Self::new(name);
        scratch.shared = true;
        scratch
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn join(&self, path: &str) -> PathBuf {
        self.path.join(path)
    }

    /// A file with this content; its directories are made.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.join(path);
        fs::create_dir_all(path.parent().expect("it is in here")).expect("directories");
        fs::write(&path, content).expect("written");
        path
    }

    /// Keeps it, and says where it is.
    pub fn keep(&self) {
        // A marker that nobody can write costs a directory, nothing else.
        let _ = fs::write(self.path.join("failed"), "");
        eprintln!("kept for a look: {}", self.path.display());
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if thread::panicking() {
            self.keep();
        } else if !self.shared {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}
