//! Which packages a directory has: its `*.dist-info`, as installers leave them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read},
    os::fd::OwnedFd,
    path::Path,
};

use cooper_common::limits::exec::PACKAGES_LISTED_MAX;
use cooper_proto::v1;
use rustix::fs::{CWD, Dir, Mode, OFlags, ResolveFlags};

/// The head of METADATA: name and version stand before everything long.
const METADATA_BYTES_MAX: u64 = 64 << 10;
/// RECORD, or top_level.txt, of a package with very many files is read this far.
const RECORD_BYTES_MAX: u64 = 4 << 20;

pub struct Found {
    /// As the package writes it.
    pub name: String,
    pub version: String,
    /// What it can be imported by.
    pub modules: Vec<String>,
}

/// By normalised name. What cannot be read, or is reached by a symbolic link, is left out.
pub fn packages(site: &OwnedFd) -> BTreeMap<String, Found> {
    let entries = Dir::read_from(site).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().to_str().ok().map(str::to_owned));
    let infos = names.filter(|name| name.ends_with(".dist-info"));
    infos.filter_map(|info| found(site, &info)).map(|found| (normalised(&found.name), found)).collect()
}

/// What a session's code can import: of its venv, and of the layer as far as the venv has no other.
pub fn list(
    site: Option<&OwnedFd>,
    layer: Option<&Path>,
    imported: &BTreeSet<String>,
) -> v1::ListPackagesResponse {
    let layer = layer.and_then(|layer| open(layer).ok());
    let mut all = BTreeMap::new();
    for (from, dir) in [("worker", layer.as_ref()), ("session", site)] {
        let Some(dir) = dir else { continue };
        all.extend(packages(dir).into_iter().map(|(key, found)| (key, (from, found))));
    }
    let truncated = all.len() > PACKAGES_LISTED_MAX;
    let packages = all.into_values().take(PACKAGES_LISTED_MAX).map(|(from, found)| v1::Package {
        imported: found.modules.iter().any(|module| imported.contains(module)),
        name: found.name,
        version: found.version,
        from: from.to_owned(),
    });
    v1::ListPackagesResponse { packages: packages.collect(), truncated }
}

/// The directory of a venv or a layer.
pub fn open(site: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(CWD, site, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// An error that names those that are not.
pub fn all_are_there(site: &Path, names: &[String]) -> io::Result<()> {
    let there = packages(&open(site)?);
    let missing: Vec<&str> =
        names.iter().map(String::as_str).filter(|name| !there.contains_key(&normalised(name))).collect();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("{} is not installed in this session; nothing was removed", missing.join(", ")),
        )),
    }
}

fn found(site: &OwnedFd, info: &str) -> Option<Found> {
    let metadata = text(site, &format!("{info}/METADATA"), METADATA_BYTES_MAX)?;
    let head = metadata.lines().take_while(|line| !line.is_empty());
    let field = |name: &str| {
        head.clone()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(|value| value.trim().to_owned())
    };
    let name = field("Name")?;
    let version = field("Version").unwrap_or_default();
    Some(Found { name, version, modules: modules(site, info) })
}

fn modules(site: &OwnedFd, info: &str) -> Vec<String> {
    let record = text(site, &format!("{info}/RECORD"), RECORD_BYTES_MAX).unwrap_or_default();
    let mut modules: Vec<String> = record
        .lines()
        .filter_map(|line| line.split(['/', ',']).next())
        .filter(|top| *top != info && !top.starts_with("..") && !top.starts_with('"'))
        .filter_map(|top| top.split('.').next())
        .filter(|module| !module.is_empty() && *module != "__pycache__")
        .map(str::to_owned)
        .collect();
    modules.sort();
    modules.dedup();
    modules
}

fn text(site: &OwnedFd, path: &str, most: u64) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let file = File::from(rustix::fs::openat2(site, path, flags, Mode::empty(), within).ok()?);
    if !file.metadata().is_ok_and(|meta| meta.is_file()) {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// As the index compares names.
fn normalised(name: &str) -> String {
    let mut normalised = String::with_capacity(name.len());
    for character in name.trim().chars() {
        match character {
            '-' | '_' | '.' if normalised.ends_with('-') => {}
            '-' | '_' | '.' => normalised.push('-'),
            other => normalised.extend(other.to_lowercase()),
        }
    }
    normalised
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn packages_are_read_from_what_installers_leave() {
        let site = tempfile::tempdir().unwrap();
        let info = site.path().join("Py_YAML-6.0.dist-info");
        fs::create_dir(&info).unwrap();
        fs::write(
            info.join("METADATA"),
            "Metadata-Version: 2.1\nName: Py.YAML\nVersion: 6.0\n\nName: not this\n",
        )
        .unwrap();
        let record = "../../../bin/tool,,\nyaml/__init__.py,,\nyaml/x.py,,\n_yaml.cpython-311.so,,\nPy_YAML-6.0.dist-info/RECORD,,\n";
        fs::write(info.join("RECORD"), record).unwrap();
        fs::create_dir(site.path().join("broken-1.dist-info")).unwrap();
        let packages = packages(&open(site.path()).unwrap());
        let found = &packages["py-yaml"];
        assert_eq!((packages.len(), &*found.name, &*found.version), (1, "Py.YAML", "6.0"));
        assert_eq!(found.modules, ["_yaml", "yaml"]);
        assert!(all_are_there(site.path(), &["PY--yaml".to_owned()]).is_ok());
        let missing = all_are_there(site.path(), &["py-yaml".to_owned(), "six".to_owned()]).unwrap_err();
        assert!(missing.to_string().starts_with("six is not installed"), "{missing}");
    }
}
