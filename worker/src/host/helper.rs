//! Short-lived children that do what would make the host wait: removing files, asking Docker.

use std::{
    fs, io,
    os::fd::{OwnedFd, RawFd},
    path::{Path, PathBuf},
};

use cooper_common::clock;
use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags},
    process::{Pid, Signal},
};

use super::{Compose, Due, Host, stacks, sys};

const PROBE_MS: u64 = 5_000;

/// What a helper is doing.
pub enum Task {
    ProbeCompose,
    /// Removes a directory; of a session that is being destroyed, or one that a dead host did not get to.
    Remove {
        session: Option<String>,
    },
    /// Removes what calls of a dead host left in workspaces.
    Sweep,
    /// Counts a session's files, into `result`.
    Count {
        session: String,
        result: OwnedFd,
        started_ms: u64,
    },
    /// Packs a session, or unpacks into it.
    Checkpoint(super::checkpoint::Work),
    /// Makes what was unpacked into a session a layer.
    Layer(super::checkpoint::Sharing),
    /// Copies what an execution made.
    Artifacts(super::artifacts::Work),
}

impl Task {
    pub fn removes(&self) -> bool {
        matches!(self, Self::Remove { .. })
    }
}

/// Ends a helper that takes too long, and what it started.
pub fn end(pid: Pid) {
    let _ = rustix::process::kill_process_group(pid, Signal::KILL);
}

impl Host {
    pub(super) fn probe_compose(&mut self) {
        if !self.config.compose {
            self.compose = Compose::Missing;
            return;
        }
        match self.help(Task::ProbeCompose, &[], stacks::compose_works) {
            Ok(pid) => drop(self.timers.add(clock::mono_ms() + PROBE_MS, Due::Helper(pid))),
            Err(error) => {
                tracing::warn!(%error, "Docker cannot be asked");
                self.compose = Compose::Missing;
            }
        }
    }

    /// Moves a session's directory out of the way at once and removes it in a child.
    pub(super) fn remove_session_files(&mut self, session: &str, dir: &Path) -> io::Result<()> {
        // Every process of it was found beneath its subreapers and is dead. What was not would belong to its uid; a control
        // group, which nothing leaves, knows that there is none without looking.
        let inhabited = |session: &&super::Session| {
            session.group.as_ref().and_then(crate::confine::cgroup::Group::processes) != Some(0)
        };
        let uid = self.sessions.get(session).filter(inhabited).and_then(super::Session::uid);
        let gone = self.dir.base.join(format!(".gone-{session}-{:08x}", rand::random::<u32>()));
        match fs::rename(dir, &gone) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        self.help(Task::Remove { session: Some(session.to_owned()) }, &[], move || {
            let dead = uid.is_none_or(sys::kill_all_of);
            remove(&gone).is_ok() && dead
        })?;
        Ok(())
    }

    /// Goes on with removals that a dead host did not finish, and removes the places it made in advance.
    pub(super) fn remove_what_was_destroyed(&mut self) {
        let Ok(entries) = fs::read_dir(&self.dir.base) else { return };
        let gone: Vec<PathBuf> = entries
            .flatten()
            .filter(|entry| {
                let name = entry.file_name();
                let name = name.to_string_lossy();
                name.starts_with(".gone-") || super::berth::is_name(&name, &self.dir.worker_id)
            })
            .map(|entry| entry.path())
            .collect();
        if !gone.is_empty() {
            let all = move || gone.iter().all(|dir| remove(dir).is_ok());
            if let Err(error) = self.help(Task::Remove { session: None }, &[], all) {
                tracing::warn!(%error, "files of destroyed sessions stay for now");
            }
        }
    }

    pub(super) fn on_helper_done(&mut self, task: Task, well: bool) {
        match task {
            Task::ProbeCompose => {
                let before = self.compose;
                self.compose = if well { Compose::Works } else { Compose::Missing };
                if before == Compose::Unknown {
                    self.greet_waiting_link();
                } else if before != self.compose {
                    // A link learns capabilities once, in its greeting.
                    self.link.end(Signal::TERM);
                }
                self.watch_stacks();
            }
            Task::Count { session, result, started_ms } => {
                self.on_counted(&session, result, started_ms, well);
            }
            Task::Remove { session } => {
                if !well {
                    tracing::warn!(?session, "some files could not be removed");
                }
                if let Some(session) = session {
                    if let Some(group) =
                        self.sessions.get(&session).and_then(|session| session.group.as_ref())
                        && !group.remove()
                    {
                        tracing::warn!(session, "its control group could not be removed");
                    }
                    self.session_destroyed(&session);
                }
            }
            Task::Sweep if !well => tracing::warn!("not all that was left of calls could be looked for"),
            Task::Sweep => {}
            Task::Checkpoint(work) => self.checkpoint_work_done(work, well),
            Task::Layer(sharing) => self.sharing_done(&sharing),
            Task::Artifacts(work) => self.collecting_done(work, well),
        }
    }

    /// Forks a child that keeps nothing open but stderr and `keep`.
    pub(super) fn help(
        &mut self,
        task: Task,
        keep: &[RawFd],
        work: impl FnOnce() -> bool,
    ) -> io::Result<Pid> {
        match sys::fork()? {
            sys::Fork::Parent(pid) => {
                self.helpers.insert(pid, task);
                Ok(pid)
            }
            sys::Fork::Child => {
                // A group of its own, so that it can be ended with what it started.
                let _ = rustix::process::setsid();
                let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
                sys::reset_signals();
                let well = sys::close_all_except(&[&[2], keep].concat()).is_ok() && work();
                sys::exit_now(i32::from(!well))
            }
        }
    }
}

/// Removes a directory however deep it is: subdirectories are moved up next to it first, so that there is neither
/// recursion nor a path that grows. Symbolic links are removed, not followed.
pub fn remove(dir: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let (Some(parent), Some(name)) = (dir.parent(), dir.file_name().and_then(|name| name.to_str())) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let parent = match rustix::fs::open(parent, flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        other => other?,
    };
    let mut left = vec![name.to_owned()];
    let mut moved = 0u64;
    while let Some(current) = left.last().cloned() {
        // Its owner may have taken its own rights away.
        let _ = rustix::fs::chmodat(&parent, &current, Mode::RWXU, AtFlags::empty());
        let directory = match rustix::fs::openat(&parent, &current, flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => {
                left.pop();
                continue;
            }
            other => other?,
        };
        let mut below = Vec::new();
        for entry in rustix::fs::Dir::read_from(&directory)? {
            let entry = entry?;
            if matches!(entry.file_name().to_bytes(), b"." | b"..") {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => {
                    let stat = rustix::fs::statat(&directory, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
                    FileType::from_raw_mode(stat.st_mode)
                }
                kind => kind,
            };
            if kind == FileType::Directory {
                let _ = rustix::fs::chmodat(&directory, entry.file_name(), Mode::RWXU, AtFlags::empty());
                let up = format!("{name}-{moved}");
                moved += 1;
                rustix::fs::renameat(&directory, entry.file_name(), &parent, &up)?;
                below.push(up);
            } else {
                rustix::fs::unlinkat(&directory, entry.file_name(), AtFlags::empty())?;
            }
        }
        left.pop();
        rustix::fs::unlinkat(&parent, &current, AtFlags::REMOVEDIR)?;
        left.extend(below);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn a_directory_goes_however_deep_and_nothing_beside_it() {
        let root = tempfile::tempdir().unwrap();
        let outside = root.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "").unwrap();
        let dir = root.path().join("dir");
        fs::create_dir(&dir).unwrap();
        symlink(&outside, dir.join("link")).unwrap();
        fs::create_dir(dir.join("closed")).unwrap();
        fs::write(dir.join("closed/file"), "").unwrap();
        fs::set_permissions(dir.join("closed"), fs::Permissions::from_mode(0o0)).unwrap();
        // Far deeper than PATH_MAX allows a path to be.
        let mut at = rustix::fs::open(&dir, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, "deep", Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, "deep", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        drop(at);
        remove(&dir).unwrap();
        let left: Vec<_> =
            fs::read_dir(root.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left, ["outside"]);
        assert!(outside.join("kept").exists());
    }
}
