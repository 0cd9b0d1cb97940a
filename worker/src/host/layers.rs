//! Layers: the packages of an archive that many sessions begin with, on this worker once.
//!
//! The first session that is filled from such an archive has its installed files made the worker's: from then on nobody's
//! code changes them, and a layer, a directory of the worker's beside the sessions, holds a second name of each. Later
//! sessions are given names of the same files instead of copies. Directories are each session's own, so what it installs,
//! removes or replaces is its own affair; what is packed of it is whole; and a layer may go at any time, without any session
//! noticing. Sessions need a uid of their own for all that: where they have the worker's, each has copies.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CStr,
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use cooper_common::{clock, limits::layer as limits};
use rustix::{
    fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Uid},
    io::Errno,
};

use super::{
    Due, Host,
    beneath::{LISTABLE, kind, open_plain},
    helper::{self, Task},
};

const DIRECTORY: OFlags = LISTABLE.union(OFlags::NOFOLLOW);
/// After the name of one that is being made.
const PART: &str = ".part";

/// The layers there are.
#[derive(Default)]
pub struct Layers {
    /// By digest: when it was used last.
    used: BTreeMap<String, u64>,
    /// They will be looked at.
    watched: bool,
}

/// How the name of its directory begins. Other workers may have theirs in the same place.
fn prefix(worker_id: &str) -> String {
    format!(".layer-{worker_id}-")
}

fn is_digest(text: &str) -> bool {
    text.len() == blake3::OUT_LEN * 2 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl Layers {
    /// Those that are to go at `now` (monotonic): nothing began with them for long, or others were used since.
    fn outdated(&self, now: u64) -> Vec<String> {
        let mut by_use: Vec<(&String, u64)> =
            self.used.iter().map(|(digest, used)| (digest, *used)).collect();
        by_use.sort_by_key(|(_, used)| std::cmp::Reverse(*used));
        let is_old = |used: u64| now.saturating_sub(used) > limits::IDLE_MS;
        let kept = by_use.iter().take(limits::LAYERS_MAX).take_while(|(_, used)| !is_old(*used)).count();
        by_use.into_iter().skip(kept).map(|(digest, _)| digest.clone()).collect()
    }
}

impl Host {
    pub(super) fn layer_dir(&self, digest: &str) -> PathBuf {
        self.dir.base.join(format!("{}{digest}", prefix(&self.dir.worker_id)))
    }

    /// The layer of an archive, if there is one; it counts as used.
    pub(super) fn use_layer(&mut self, digest: &str) -> Option<PathBuf> {
        *self.layers.used.get_mut(digest)? = clock::mono_ms();
        Some(self.layer_dir(digest))
    }

    /// Whether sessions share what comes with the archive of this name.
    pub(super) fn shares(&self, digest: &str) -> bool {
        is_digest(digest) && self.uids.is_some()
    }

    /// What a helper made is there, or nothing is.
    pub(super) fn layer_made(&mut self, digest: &str) {
        if self.layer_dir(digest).is_dir() {
            self.layers.used.insert(digest.to_owned(), clock::mono_ms());
            self.tend_layers();
        }
    }

    /// Removes what is not needed of the layers.
    fn tend_layers(&mut self) {
        let now = clock::mono_ms();
        let gone = self.layers.outdated(now);
        self.drop_layers(gone);
        if let (false, Some(used)) = (self.layers.watched, self.layers.used.values().min()) {
            self.layers.watched = true;
            self.timers.add(used + limits::IDLE_MS + 1, Due::Layers);
        }
    }

    pub(super) fn on_layers_due(&mut self) {
        self.layers.watched = false;
        self.tend_layers();
    }

    /// Gives all of them up, for their space; false = there are none.
    pub(super) fn drop_all_layers(&mut self) -> bool {
        let all: Vec<String> = self.layers.used.keys().cloned().collect();
        let any = !all.is_empty();
        self.drop_layers(all);
        any
    }

    fn drop_layers(&mut self, digests: Vec<String>) {
        for digest in digests {
            self.layers.used.remove(&digest);
            // A host that starts later goes on with the removal.
            let gone = self.dir.base.join(format!(".gone-{:016x}", rand::random::<u64>()));
            let removed = fs::rename(self.layer_dir(&digest), &gone).and_then(|()| {
                self.help(Task::Remove { session: None }, &[], move || helper::remove(&gone).is_ok())
            });
            if let Err(error) = removed {
                tracing::warn!(%error, digest, "packages that sessions shared stay until the next start");
            }
        }
    }

    /// Layers that an earlier host made; what it was at work on is removed.
    pub(super) fn find_layers(&mut self) {
        let own = prefix(&self.dir.worker_id);
        let now = clock::mono_ms();
        for entry in fs::read_dir(&self.dir.base).into_iter().flatten().flatten() {
            let name = entry.file_name();
            match name.to_str().and_then(|name| name.strip_prefix(&own)) {
                Some(digest) if is_digest(digest) => drop(self.layers.used.insert(digest.to_owned(), now)),
                Some(part) if part.ends_with(PART) => {
                    let gone = entry.path();
                    let removed =
                        self.help(Task::Remove { session: None }, &[], move || helper::remove(&gone).is_ok());
                    if let Err(error) = removed {
                        tracing::warn!(%error, "a half-made layer stays until the next start");
                    }
                }
                _ => {}
            }
        }
        self.tend_layers();
    }
}

/// Makes the packages of a session that was just filled a layer: nothing ran in the session yet. The archive it was filled
/// from is that of the digest, or there is none.
pub fn make(
    layer: &Path,
    digest: &str,
    archive: impl io::Read,
    root: &OwnedFd,
    site: &Path,
    uid: u32,
) -> io::Result<()> {
    let mut hash = blake3::Hasher::new();
    if hash.update_reader(archive)?.finalize().to_hex().as_str() != digest {
        return Err(io::Error::other("the archive is not the one that it was called"));
    }
    // Of several at once the first to be done is the layer.
    let mut part = layer.as_os_str().to_owned();
    part.push(format!(".{:016x}{PART}", rand::random::<u64>()));
    let part = PathBuf::from(part);
    rustix::fs::mkdir(&part, Mode::RWXU)?;
    let made = site_of(root, site).and_then(|site| {
        adopt(&site, &rustix::fs::open(&part, DIRECTORY, Mode::empty())?, uid, 0)?;
        Ok(rustix::fs::rename(&part, layer)?)
    });
    made.inspect_err(|_| drop(helper::remove(&part)))
}

fn site_of(root: &OwnedFd, site: &Path) -> io::Result<OwnedFd> {
    Ok(open_plain(root, site.as_os_str().as_encoded_bytes(), DIRECTORY)?)
}

fn names(dir: &OwnedFd) -> Result<Vec<std::ffi::CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let name = entry?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    Ok(names)
}

fn beneath(dir: &OwnedFd, name: &CStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(dir, name, DIRECTORY, Mode::empty())
}

/// Makes each file that has one name, in a directory of a session's, the worker's, and names it in `layer` too.
fn adopt(from: &OwnedFd, layer: &OwnedFd, uid: u32, depth: usize) -> Result<(), Errno> {
    for name in names(from)? {
        let stat = rustix::fs::statat(from, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        match kind(&stat) {
            FileType::Directory if depth < limits::DEPTH_MAX => {
                rustix::fs::mkdirat(layer, &name, Mode::RWXU)?;
                adopt(&beneath(from, &name)?, &beneath(layer, &name)?, uid, depth + 1)?;
            }
            // What has other names may have them where the session writes.
            FileType::RegularFile if stat.st_nlink == 1 && stat.st_uid == uid => {
                rustix::fs::linkat(from, &name, layer, &name, AtFlags::empty())?;
                let file = open_plain(layer, name.to_bytes(), OFlags::PATH | OFlags::CLOEXEC)?;
                let found = rustix::fs::fstat(&file)?;
                let is_it = (found.st_dev, found.st_ino) == (stat.st_dev, stat.st_ino);
                if !is_it || found.st_nlink != 2 {
                    rustix::fs::unlinkat(layer, &name, AtFlags::empty())?;
                    continue;
                }
                let (owner, group) = (rustix::process::geteuid(), rustix::process::getegid());
                rustix::fs::chownat(&file, c"", Some(owner), Some(group), AtFlags::EMPTY_PATH)?;
                // For every session to read, for none to change.
                let mode = Mode::from_raw_mode(stat.st_mode & 0o755 | 0o444);
                rustix::fs::chmod(format!("/proc/self/fd/{}", file.as_raw_fd()), mode)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Gives a session, whose archive is about to be unpacked, the files of a layer. Answers with their paths in its workspace;
/// what is not among them it gets from the archive.
pub fn give(layer: &Path, root: &OwnedFd, site: &Path, uid: u32) -> BTreeSet<Vec<u8>> {
    let mut given = BTreeSet::new();
    let mut path = site.as_os_str().as_encoded_bytes().to_vec();
    let all = rustix::fs::open(layer, DIRECTORY, Mode::empty())
        .map_err(io::Error::from)
        .and_then(|layer| Ok(link(&layer, &site_of(root, site)?, uid, &mut path, &mut given)?));
    if let Err(error) = all {
        tracing::warn!(%error, layer = %layer.display(), "a session gets copies of packages that it could share");
    }
    given
}

fn link(
    layer: &OwnedFd,
    site: &OwnedFd,
    uid: u32,
    path: &mut Vec<u8>,
    given: &mut BTreeSet<Vec<u8>>,
) -> Result<(), Errno> {
    let length = path.len();
    for name in names(layer)? {
        path.push(b'/');
        path.extend_from_slice(name.to_bytes());
        let stat = rustix::fs::statat(layer, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        if kind(&stat) == FileType::Directory {
            match rustix::fs::mkdirat(site, &name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
            let own = beneath(site, &name)?;
            rustix::fs::fchown(&own, Some(Uid::from_raw(uid)), Some(Gid::from_raw(uid)))?;
            link(&beneath(layer, &name)?, &own, uid, path, given)?;
        } else {
            match rustix::fs::unlinkat(site, &name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
            match rustix::fs::linkat(layer, &name, site, &name, AtFlags::empty()) {
                Ok(()) => drop(given.insert(path.clone())),
                // A file has only so many names.
                Err(Errno::MLINK) => {}
                Err(error) => return Err(error),
            }
        }
        path.truncate(length);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    const SITE: &str = ".venv/lib/python3.11/site-packages";

    fn workspace() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join(SITE).join("pkg/sub")).unwrap();
        let root = fs::File::open(dir.path()).unwrap().into();
        (dir, root)
    }

    #[test]
    fn what_one_session_unpacked_others_are_given_and_nothing_that_it_could_still_change() {
        let (base, (first, root)) = (tempfile::tempdir().unwrap(), workspace());
        let uid = rustix::process::geteuid().as_raw();
        let site = first.path().join(SITE);
        for file in ["six.py", "pkg/sub/deep.py", "pkg/two.py"] {
            fs::write(site.join(file), file).unwrap();
            fs::set_permissions(site.join(file), fs::Permissions::from_mode(0o666)).unwrap();
        }
        fs::hard_link(site.join("pkg/two.py"), first.path().join("mine")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", site.join("link")).unwrap();
        let digest = blake3::hash(b"archive").to_hex().to_string();
        let layer = base.path().join(&digest);
        let made = |archive: &[u8]| make(&layer, &digest, archive, &root, Path::new(SITE), uid);
        assert!(made(b"another").is_err(), "the archive is not the one that it was called");
        made(b"archive").unwrap();
        assert!(made(b"archive").is_err(), "it is there");
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 1, "nothing is left of what failed");

        let (second, root) = workspace();
        let given = give(&layer, &root, Path::new(SITE), uid);
        let given: Vec<String> = given.into_iter().map(|path| String::from_utf8(path).unwrap()).collect();
        assert_eq!(given, ["pkg/sub/deep.py", "six.py"].map(|name| format!("{SITE}/{name}")));
        for path in given {
            let [one, two] = [&first, &second].map(|dir| fs::metadata(dir.path().join(&path)).unwrap());
            assert_eq!((one.dev(), one.ino(), two.mode() & 0o777), (two.dev(), two.ino(), 0o644), "{path}");
        }
    }

    #[test]
    fn a_directory_that_leads_elsewhere_is_given_nothing() {
        let (base, (first, root)) = (tempfile::tempdir().unwrap(), workspace());
        let uid = rustix::process::geteuid().as_raw();
        fs::write(first.path().join(SITE).join("pkg/one.py"), "").unwrap();
        let digest = blake3::hash(b"").to_hex().to_string();
        let layer = base.path().join(&digest);
        make(&layer, &digest, &b""[..], &root, Path::new(SITE), uid).unwrap();
        let (second, root) = workspace();
        let outside = base.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::remove_dir_all(second.path().join(SITE).join("pkg")).unwrap();
        std::os::unix::fs::symlink(&outside, second.path().join(SITE).join("pkg")).unwrap();
        assert!(give(&layer, &root, Path::new(SITE), uid).is_empty());
        assert_eq!(fs::read_dir(outside).unwrap().count(), 0);
    }

    #[test]
    fn layers_that_nobody_begins_with_go_and_of_too_many_the_oldest() {
        let mut layers = Layers::default();
        for n in 0..limits::LAYERS_MAX as u64 + 2 {
            layers.used.insert(format!("{n:03}"), n);
        }
        assert_eq!(layers.outdated(100), ["001", "000"]);
        assert_eq!(layers.outdated(limits::IDLE_MS + 4).len(), 4);
        assert_eq!(layers.outdated(limits::IDLE_MS + 1000).len(), limits::LAYERS_MAX + 2);
    }
}
