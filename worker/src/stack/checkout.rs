//! The user's files, by paths that stay beneath the stack's directory and follow no symlink (I6).

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Component, Path};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

use cooper_common::error::{Code, Error, Result};
use cooper_repair::edit::{FileChange, Root};
use cooper_repair::limits;

use super::project::Project;
use super::{Step, While, failed};

/// A directory whose files are read and replaced.
pub(super) struct Checkout {
    root: OwnedFd,
}

/// A file as it is.
pub(super) struct Content {
    pub(super) bytes: Vec<u8>,
    pub(super) mode: u32,
    uid: u32,
    gid: u32,
}

impl Checkout {
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(dir, flags, Mode::empty());
        Ok(Self { root: root.while_doing(format_args!("opening {}", dir.display()))? })
    }

    /// A regular file of at most [`limits::FILE_BYTES_MAX`], `None` if there is none.
    pub(super) fn read(&self, path: &str) -> Result<Option<Content>> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let mut file = match self.beneath(path, flags) {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(refused(path, error)),
        };
        let stat = rustix::fs::fstat(&file).while_doing(format_args!("reading {path}"))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(failed(format!("{path} is not a regular file")));
        }
        let mut bytes = Vec::new();
        let max = limits::FILE_BYTES_MAX as u64;
        (&mut file).take(max + 1).read_to_end(&mut bytes).while_doing(format_args!("reading {path}"))?;
        if bytes.len() as u64 > max {
            return Err(failed(format!("{path} is larger than {max} bytes")));
        }
        Ok(Some(Content { bytes, mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid }))
    }

    /// Replaces a file (or makes it, where `like` is `None`) in one moment: a reader sees the old or the new one, with
    /// the same owner and permissions. `temporary` is the name it is written under first, beside it.
    pub(super) fn replace(
        &self,
        path: &str,
        bytes: &[u8],
        like: Option<&Content>,
        mode: Option<u32>,
        temporary: &str,
    ) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        let write = || -> std::io::Result<()> {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut file =
                File::from(rustix::fs::openat(&parent, temporary, flags, Mode::from_raw_mode(0o600))?);
            file.write_all(bytes)?;
            if let Some(like) = like {
                let now = rustix::fs::fstat(&file)?;
                if (now.st_uid, now.st_gid) != (like.uid, like.gid) {
                    rustix::fs::fchown(&file, Some(Uid::from_raw(like.uid)), Some(Gid::from_raw(like.gid)))?;
                }
            }
            let mode = mode.or(like.map(|like| like.mode)).unwrap_or(0o644);
            rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o7777))?;
            file.sync_all()?;
            rustix::fs::renameat(&parent, temporary, &parent, name)?;
            Ok(rustix::fs::fsync(&parent)?)
        };
        let written = write();
        if written.is_err() {
            let _ = rustix::fs::unlinkat(&parent, temporary, AtFlags::empty());
        }
        written.while_doing(format_args!("writing {path}"))
    }

    /// Removes a file, if it is there.
    pub(super) fn remove(&self, path: &str) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
            Ok(()) => rustix::fs::fsync(&parent).while_doing(format_args!("removing {path}")),
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error).while_doing(format_args!("removing {path}")),
        }
    }

    /// Removes a temporary file that a crash has left beside a path.
    pub(super) fn sweep(&self, path: &str, temporary: &str) -> Result<()> {
        let (parent, _) = self.parent(path)?;
        match rustix::fs::unlinkat(&parent, temporary, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error).while_doing(format_args!("removing {temporary}")),
        }
    }

    fn parent<'p>(&self, path: &'p str) -> Result<(OwnedFd, &'p str)> {
        let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        Ok((self.beneath(parent, flags).map_err(|error| refused(path, error))?, name))
    }

    fn beneath(&self, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }
}

fn refused(path: &str, error: Errno) -> Error {
    let why = match error {
        Errno::LOOP => "a part of it is a symbolic link".to_owned(),
        Errno::XDEV => "it leads out of the stack's directory".to_owned(),
        other => other.to_string(),
    };
    Error::new(Code::PolicyRefused, format!("{path} cannot be used: {why}"))
}

impl Step<'_> {
    /// The service's build context: its directory, and the path to it from the stack's directory.
    pub(super) fn context_dir(&self) -> Result<(std::path::PathBuf, String)> {
        self.context_inside(&self.project)
    }

    /// The same in another version of the project.
    pub(super) fn context_inside(&self, project: &Project) -> Result<(std::path::PathBuf, String)> {
        let build = project.service(&self.service)?.build.as_ref();
        let context = build.map(|build| Path::new(&build.context));
        let context = context.ok_or_else(|| failed(format!("service {} has no build", self.service)))?;
        if !context.is_dir() {
            return Err(failed(format!(
                "the build context {} is no directory on this worker; in a container the stack must be mounted at the same path as on the host",
                context.display()
            )));
        }
        let real = std::fs::canonicalize(&self.project.dir).while_doing("resolving the stack's directory")?;
        let inside = context.strip_prefix(&self.project.dir).or_else(|_| context.strip_prefix(&real));
        let inside = inside.ok().and_then(plain).ok_or_else(|| {
            Error::new(
                Code::PolicyRefused,
                format!(
                    "the build context {} lies outside the stack's directory {}; register a directory that holds both",
                    context.display(),
                    self.project.dir.display()
                ),
            )
        })?;
        Ok((context.to_path_buf(), inside))
    }

    /// The path of a change from the stack's directory.
    pub(super) fn place(&self, change: &FileChange) -> Result<String> {
        if change.root == Root::Stack {
            let known = self.project.files.iter().any(|file| *file == self.project.dir.join(&change.path));
            return if known {
                Ok(change.path.clone())
            } else {
                let what = format!("{} is none of the files compose reads for this stack", change.path);
                Err(Error::new(Code::PolicyRefused, what))
            };
        }
        let (_, context) = self.context_dir()?;
        let path = plain(Path::new(&change.path)).filter(|path| !path.is_empty()).ok_or_else(|| {
            Error::new(
                Code::PolicyRefused,
                format!("{:?} is not a path inside the build context", change.path),
            )
        })?;
        Ok(if context.is_empty() { path } else { format!("{context}/{path}") })
    }
}

/// A relative path of plain names, `/` between them; empty for the directory itself.
fn plain(path: &Path) -> Option<String> {
    let names: Option<Vec<&str>> = path
        .components()
        .filter(|part| *part != Component::CurDir)
        .map(|part| match part {
            Component::Normal(name) => name.to_str(),
            _ => None,
        })
        .collect();
    Some(names?.join("/"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn nothing_beyond_the_directory_is_reached() {
        let dir = tempfile::tempdir().expect("a directory");
        let stack = dir.path().join("stack");
        fs::create_dir_all(stack.join("web")).expect("made");
        fs::write(dir.path().join("outside"), "secret").expect("written");
        symlink("../../outside", stack.join("web/link")).expect("linked");
        symlink("..", stack.join("up")).expect("linked");
        let checkout = Checkout::open(&stack).expect("opened");
        for path in ["web/link", "up/outside", "../outside", "/etc/hostname"] {
            assert!(checkout.read(path).is_err(), "{path} was read");
        }
        for path in ["up/outside", "../outside"] {
            assert!(checkout.replace(path, b"x", None, None, ".new").is_err(), "{path} was written");
        }
        assert_eq!(fs::read(dir.path().join("outside")).expect("there"), b"secret");
    }

    #[test]
    fn a_replaced_file_keeps_its_permissions_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("run.sh");
        fs::write(&path, "old").expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o751)).expect("set");
        let checkout = Checkout::open(dir.path()).expect("opened");
        let old = checkout.read("run.sh").expect("read").expect("there");
        checkout.replace("run.sh", b"new", Some(&old), None, ".cooper.new").expect("replaced");
        assert_eq!(fs::read(&path).expect("there"), b"new");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o751);
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1);
        assert!(checkout.read("missing").expect("read").is_none());
    }
}
