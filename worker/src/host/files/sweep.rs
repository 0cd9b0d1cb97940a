//! What calls were at work on when a host was killed: drafts of files, directories half removed, archives half unpacked.
//! The next host removes them from the workspaces that it finds, as the session's user and beneath its workspace like any
//! call, in a process beside the host.

use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
};

use cooper_common::{
    clock,
    limits::files::{SWEEP_MS, SWEPT_ENTRIES_MAX, WORK_SOFT_MS},
};
use rustix::{
    fs::{self, AtFlags, FileType, Mode, Stat},
    io::Errno,
    time::{ClockId, Timespec, clock_gettime},
};

use super::{
    acting, change,
    walk::{Entry, Walk},
};
use crate::host::{
    Due, Host,
    beneath::{self, DIRECTORY, LISTABLE, Place},
    globals,
    helper::Task,
    install::stage,
    session::State,
    sys,
};

/// Whether a name is one of those that calls give to what they are at work on: `.cooper-`, 16 hexadecimal digits, and
/// what it is.
pub fn is_draft(name: &[u8]) -> bool {
    let Some((number, kind)) = name.strip_prefix(b".cooper-").and_then(|rest| rest.split_at_checked(16))
    else {
        return false;
    };
    number.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        && matches!(kind, b".part" | b".gone" | b".archive")
}

fn is_left(root: &OwnedFd, entry: &Entry, before: Timespec) -> bool {
    // Nobody can set this time, and whatever this host's calls make has a later one.
    let Stat { st_ctime, st_ctime_nsec, .. } = entry.stat;
    if (st_ctime, st_ctime_nsec as i64) >= (before.tv_sec, before.tv_nsec) {
        return false;
    }
    let named = |name: &str| entry.path == name.as_bytes();
    // The venv of before is all there is of it when an installer was killed between two renames.
    let replaced = || fs::statat(root, ".venv", AtFlags::SYMLINK_NOFOLLOW).is_ok();
    is_draft(&entry.name) || named(globals::FILE) || named(stage::STAGE) || (named(stage::GONE) && replaced())
}

/// Removes what is left from before that time; answers how many entries that were.
fn sweep(root: &OwnedFd, before: Timespec) -> Result<u64, Errno> {
    let until = clock::mono_ms() + WORK_SOFT_MS;
    let top = beneath::open_plain(root, b".", LISTABLE)?;
    let mut walk = Walk::new(top, true, true, b"")?;
    let (mut seen, mut swept) = (0, 0);
    while let Some(entry) = walk.step() {
        seen += 1;
        if seen > SWEPT_ENTRIES_MAX || clock::mono_ms() > until {
            break;
        }
        if !is_left(root, &entry, before) {
            continue;
        }
        // What cannot be removed stays: a session may have taken its own right to.
        swept += match entry.kind() {
            FileType::Directory => {
                let dir = walk.directory().try_clone_to_owned().map_err(|_| Errno::MFILE)?;
                change::remove_all(root, &Place { dir, name: entry.name }).unwrap_or(0)
            }
            _ => {
                let name = OsStr::from_bytes(&entry.name);
                u64::from(fs::unlinkat(walk.directory(), name, AtFlags::empty()).is_ok())
            }
        };
    }
    Ok(swept)
}

impl Host {
    /// Begins to remove what earlier hosts left in the workspaces of the sessions that were found.
    pub(in crate::host) fn sweep_workspaces(&mut self) {
        // The clock that files get their times from.
        let before = clock_gettime(ClockId::RealtimeCoarse);
        let found = self.sessions.values().filter(|session| !matches!(session.state, State::Failed(_)));
        let places: Vec<_> = found
            .filter_map(|session| {
                let root = fs::open(session.home.workspace(), DIRECTORY, Mode::empty()).ok()?;
                Some((session.record.session_id.clone(), root, acting(session)))
            })
            .collect();
        if places.is_empty() {
            return;
        }
        let keep: Vec<_> = places.iter().map(|(_, root, _)| root.as_fd().as_raw_fd()).collect();
        let swept = self.help(Task::Sweep, &keep, || {
            // Nobody waits for it.
            let _ = rustix::process::nice(19);
            let mut well = true;
            for (session, root, uid) in &places {
                match sys::as_user(*uid, || sweep(root, before)) {
                    Ok(Ok(0)) => {}
                    Ok(Ok(entries)) => tracing::info!(session, entries, "removed what was left of calls"),
                    Ok(Err(_)) | Err(_) => well = false,
                }
            }
            well
        });
        match swept {
            Ok(pid) => drop(self.timers.add(clock::mono_ms() + SWEEP_MS, Due::Helper(pid))),
            Err(error) => tracing::warn!(%error, "what was left of calls stays in its workspaces"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_calls_give_are_drafts() {
        for name in [
            ".cooper-00ff00ff00ff00ff.part",
            ".cooper-0123456789abcdef.gone",
            ".cooper-0123456789abcdef.archive",
        ] {
            assert!(is_draft(name.as_bytes()), "{name}");
        }
        for name in [
            "cooper-0123456789abcdef.part",
            ".cooper-0123456789abcdeF.part",
            ".cooper-0123456789abcde.part",
            ".cooper-0123456789abcdef0.part",
            ".cooper-0123456789abcdef.txt",
            ".cooper-notes.part",
            ".cooper-",
        ] {
            assert!(!is_draft(name.as_bytes()), "{name}");
        }
    }
}
