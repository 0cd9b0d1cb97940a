//! What a directory holds, so that before and after can be compared.

use std::{collections::BTreeMap, fmt, fs, os::unix::fs::PermissionsExt, path::Path};

/// A file as far as somebody could notice a change.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    pub mode: u32,
    /// Content; target of a symlink; empty for a directory.
    pub bytes: Vec<u8>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:o} {:?}", self.mode, String::from_utf8_lossy(&self.bytes))
    }
}

/// By path, relative to the directory.
pub type Tree = BTreeMap<String, Entry>;

pub fn read(dir: &Path) -> Tree {
    let mut tree = Tree::new();
    add(dir, "", &mut tree);
    tree
}

fn add(dir: &Path, at: &str, tree: &mut Tree) {
    for entry in fs::read_dir(dir).expect("a directory") {
        let entry = entry.expect("an entry");
        let path = format!("{at}{}", entry.file_name().to_string_lossy());
        let meta = entry.metadata().expect("its metadata");
        let bytes = match () {
            () if meta.is_dir() => {
                add(&entry.path(), &format!("{path}/"), tree);
                Vec::new()
            }
            () if meta.is_symlink() => {
                fs::read_link(entry.path()).expect("a link").into_os_string().into_encoded_bytes()
            }
            () => fs::read(entry.path()).expect("readable"),
        };
        tree.insert(path, Entry { mode: meta.permissions().mode(), bytes });
    }
}

/// Paths that differ.
pub fn changed(before: &Tree, after: &Tree) -> Vec<String> {
    let paths: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    paths.into_iter().filter(|path| before.get(*path) != after.get(*path)).cloned().collect()
}
