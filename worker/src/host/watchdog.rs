//! What sessions use that the kernel does not limit here: memory without a control group, processes without one and without
//! a uid, files always, and what is left of the disk. Whoever goes beyond loses what runs in the session; its files stay.

use std::{
    fs, io,
    os::fd::OwnedFd,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::Path,
    sync::LazyLock,
};

use cooper_common::{
    clock,
    error::{Code, Error},
    limits::exec::{
        DEPTH_MAX, DISK_COUNT_MS_MAX, DISK_WATCH_MS, FREE_BYTES_MIN, SHARED_PROCESSES, WATCH_IDLE_MS,
        WATCH_MS,
    },
};
use rustix::{
    fs::{AtFlags, FileType, MemfdFlags, Mode, OFlags},
    io::Errno,
};

use super::{
    Due, Host,
    attempt::State,
    helper::Task,
    outcome::Why,
    session::Session,
    tree::{self, Which},
};
use crate::confine::cgroup::Group;

/// Sessions whose files are counted at the same time.
const COUNTS_MAX: usize = 2;
/// Room for who removes files from a session that has too many.
const SLACK_BYTES: u64 = 16 << 20;
const SLACK_INODES: u64 = 1_000;

/// What a session went beyond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    Memory(u64),
    Processes(u64),
    Bytes(u64),
    Inodes(u64),
    Depth,
    /// The disk that all sessions share is nearly full.
    Space,
}

impl Over {
    pub fn error(self) -> Error {
        match self {
            Over::Memory(limit) => {
                Error::new(Code::MemoryLimit, format!("the session used more memory than its {limit} bytes"))
            }
            Over::Processes(limit) => Error::new(
                Code::ProcessLimit,
                format!("the session had more than its {limit} processes and threads"),
            ),
            Over::Bytes(limit) => {
                Error::new(Code::DiskQuota, format!("the session's files take more than its {limit} bytes"))
            }
            Over::Inodes(limit) => Error::new(
                Code::DiskQuota,
                format!("the session has more than its {limit} files and directories"),
            ),
            Over::Depth => {
                let what = format!(
                    "the session has directories more than {DEPTH_MAX} deep, or files that cannot be counted"
                );
                Error::new(Code::DiskQuota, what)
            }
            Over::Space => Error::new(Code::DiskQuota, "the disk of the worker's sessions is nearly full")
                .with_hint("free space on the worker's disk"),
        }
    }
}

/// Processes and threads of this process's user, those there were at first and what its sessions together may add.
pub static SHARED_PROCESSES_MAX: LazyLock<u64> = LazyLock::new(|| {
    let own = rustix::process::geteuid().as_raw();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let of_user = entries.filter(|entry| entry.metadata().is_ok_and(|meta| meta.uid() == own));
    let threads =
        of_user.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).map(|pid| used_by(pid).threads);
    threads.sum::<u64>() + SHARED_PROCESSES
});

/// What is known of a session's files.
#[derive(Debug, Default)]
pub struct Disk {
    bytes: u64,
    counting: bool,
    /// Not counted again before.
    next_ms: u64,
    looked_ms: u64,
    /// It went beyond: the next count says where it starts from, so that its files can be removed in it.
    begins_anew: bool,
    /// What it may hold in place of its limit until it has less.
    spared: Counted,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    bytes: u64,
    inodes: u64,
    /// There are directories too deep to be counted.
    deep: bool,
}

impl Disk {
    /// As last counted.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes a count in; Some = it is too much.
    fn judge(&mut self, counted: Counted, bytes_max: u64, inodes_max: u64) -> Option<Over> {
        self.bytes = counted.bytes;
        let above = |value: u64, limit: u64, slack: u64| if value > limit { value + slack } else { 0 };
        let now = Counted {
            bytes: above(counted.bytes, bytes_max, SLACK_BYTES),
            inodes: above(counted.inodes, inodes_max, SLACK_INODES),
            deep: counted.deep,
        };
        if std::mem::take(&mut self.begins_anew) {
            self.spared = now;
            return None;
        }
        let over = match (self.spared, counted) {
            (spared, counted) if counted.bytes > bytes_max.max(spared.bytes) => Some(Over::Bytes(bytes_max)),
            (spared, counted) if counted.inodes > inodes_max.max(spared.inodes) => {
                Some(Over::Inodes(inodes_max))
            }
            (spared, counted) if counted.deep && !spared.deep => Some(Over::Depth),
            _ => None,
        };
        // It only ever gets less.
        self.spared = Counted {
            bytes: self.spared.bytes.min(now.bytes),
            inodes: self.spared.inodes.min(now.inodes),
            deep: self.spared.deep && now.deep,
        };
        over
    }
}

impl Host {
    /// Something runs in a session, or is left in one.
    pub(super) fn watch_sessions(&mut self) {
        if self.watching.is_none() {
            self.watching = Some(self.timers.add(clock::mono_ms() + WATCH_MS, Due::Watch));
        }
    }

    pub(super) fn on_watch(&mut self) {
        self.watching = None;
        let now = clock::mono_ms();
        let running: std::collections::BTreeSet<String> = self
            .attempts
            .values()
            .filter(|attempt| matches!(attempt.state, State::Tree(_) | State::Interpreter(_)))
            .filter_map(|attempt| attempt.session.clone())
            .collect();
        let looked_at = |id: &str, session: &Session| {
            running.contains(id)
                || (!session.trees.is_empty() && now >= session.disk.looked_ms + WATCH_IDLE_MS)
        };
        let ids: Vec<String> =
            self.sessions.iter().filter(|(id, s)| looked_at(id, s)).map(|(id, _)| id.clone()).collect();
        let mut busy = Vec::new();
        for id in ids {
            let (alive, over) = self.look_at(&id);
            if let Some(session) = self.sessions.get_mut(&id) {
                session.disk.looked_ms = now;
            }
            if let Some(over) = over {
                self.end_over(&id, over);
            } else if running.contains(&id) || alive > 1 {
                busy.push(id);
            }
        }
        self.count_files_of(&busy, now);
        self.keep_space(&busy);
        if self.sessions.values().any(|session| !session.trees.is_empty()) {
            let wait = if running.is_empty() { WATCH_IDLE_MS } else { WATCH_MS };
            self.watching = Some(self.timers.add(now + wait, Due::Watch));
        }
    }

    /// How many processes of a session live, and what they use too much of.
    fn look_at(&self, id: &str) -> (u64, Option<Over>) {
        let Some(session) = self.sessions.get(id) else { return (0, None) };
        let groups = session.group.as_ref().map(Group::controllers).unwrap_or_default();
        if let Some(alive) = session.group.as_ref().and_then(Group::processes)
            && groups.memory
        {
            return (alive, None);
        }
        let (mut processes, mut threads, mut memory) = (0, 0, 0);
        for tree in session.trees.iter().filter_map(|tree| self.trees.get(tree)) {
            // What stands beneath a branch stands beneath its interpreter's subreaper too.
            for process in tree.own_root().map(tree::descendants).unwrap_or_default() {
                let used = used_by(process.pid);
                processes += 1;
                threads += used.threads;
                memory += used.bytes;
            }
        }
        let (memory_max, threads_max) = (session.record.memory_limit(), session.record.processes_limit());
        let counted = groups.pids || session.uid().is_some();
        let over = match () {
            () if !groups.memory && memory > memory_max => Some(Over::Memory(memory_max)),
            () if !counted && threads > threads_max => Some(Over::Processes(threads_max)),
            () => None,
        };
        (processes, over)
    }

    /// Ends everything that runs in a session, and says why.
    fn end_over(&mut self, id: &str, over: Over) {
        tracing::info!(session = id, error = %over.error(), "ending what runs in a session");
        for attempt in self.attempts.values_mut().filter(|attempt| attempt.session.as_deref() == Some(id)) {
            if matches!(attempt.state, State::Tree(_) | State::Interpreter(_)) {
                attempt.why.get_or_insert(Why::Over(over));
            }
        }
        let Some(session) = self.sessions.get_mut(id) else { return };
        session.disk.begins_anew |= !matches!(over, Over::Memory(_) | Over::Processes(_));
        if let Some(group) = &session.group {
            group.kill();
        }
        let (trees, dir) = (session.trees.clone(), session.home.dir.clone());
        let count = session.disk.begins_anew && !session.disk.counting;
        for tree in trees {
            self.doom(tree, Which::default(), None);
        }
        // At once, before anything new can add to it.
        if count && let Err(error) = self.count_files(id, &dir) {
            tracing::warn!(session = id, %error, "its files cannot be counted");
        }
    }

    fn count_files_of(&mut self, busy: &[String], now: u64) {
        let mut counting = self.sessions.values().filter(|session| session.disk.counting).count();
        let mut due: Vec<&String> = busy.iter().collect();
        // Whoever waits longest is next.
        due.sort_by_key(|id| self.sessions.get(*id).map(|session| session.disk.next_ms));
        for id in due {
            let Some(session) = self.sessions.get(id) else { continue };
            if counting >= COUNTS_MAX || session.disk.counting || now < session.disk.next_ms {
                continue;
            }
            let dir = session.home.dir.clone();
            match self.count_files(id, &dir) {
                Ok(()) => counting += 1,
                Err(error) => tracing::warn!(session = %id, %error, "its files cannot be counted"),
            }
        }
    }

    fn count_files(&mut self, id: &str, dir: &Path) -> io::Result<()> {
        let result = rustix::fs::memfd_create("cooper-count", MemfdFlags::CLOEXEC)?;
        let (theirs, dir) = (fs::File::from(result.try_clone()?), dir.to_owned());
        let keep = std::os::fd::AsRawFd::as_raw_fd(&theirs);
        let task = Task::Count { session: id.to_owned(), result, started_ms: clock::mono_ms() };
        let pid = self.help(task, &[keep], move || {
            let counted = count(&dir, DEPTH_MAX);
            counted.is_ok_and(|counted| {
                let words = [counted.bytes, counted.inodes, counted.deep.into()];
                theirs.write_all_at(&words.map(u64::to_ne_bytes).concat(), 0).is_ok()
            })
        })?;
        self.timers.add(clock::mono_ms() + DISK_COUNT_MS_MAX, Due::Helper(pid));
        if let Some(session) = self.sessions.get_mut(id) {
            session.disk.counting = true;
        }
        Ok(())
    }

    pub(super) fn on_counted(&mut self, id: &str, result: OwnedFd, started_ms: u64, well: bool) {
        let now = clock::mono_ms();
        let Some(session) = self.sessions.get_mut(id) else { return };
        session.disk.counting = false;
        session.disk.next_ms = now + DISK_WATCH_MS.max(9 * (now - started_ms));
        let mut words = [0; 24];
        let read = fs::File::from(result).read_exact_at(&mut words, 0);
        let word = |n: usize| words[n * 8..].first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
        let counted = match well && read.is_ok() {
            true => Counted { bytes: word(0), inodes: word(1), deep: word(2) != 0 },
            // Not within the time there is.
            false => Counted { deep: true, ..Counted::default() },
        };
        let limits = (session.record.disk_limit(), session.record.inodes_limit());
        if let Some(over) = session.disk.judge(counted, limits.0, limits.1) {
            self.end_over(id, over);
        }
    }

    /// When the disk gets full all the same (files that were removed and are open still are in no count), what runs is
    /// ended, one session at each look, the one with most files first.
    fn keep_space(&mut self, busy: &[String]) {
        let free = rustix::fs::statvfs(&self.dir.base).map_or(u64::MAX, |fs| fs.f_bavail * fs.f_frsize);
        if free >= FREE_BYTES_MIN {
            return self.out_of_space.clear();
        }
        // What nobody begins with now can be unpacked again.
        if self.drop_all_layers() {
            return;
        }
        let bytes = |id: &&String| self.sessions.get(*id).map(|session| session.disk.bytes);
        let most = busy.iter().filter(|id| !self.out_of_space.contains(*id)).max_by_key(bytes).cloned();
        if let Some(id) = most {
            self.out_of_space.insert(id.clone());
            self.end_over(&id, Over::Space);
        }
    }
}

#[derive(Default)]
struct Used {
    threads: u64,
    bytes: u64,
}

/// Memory that a process does not share with the files it maps; what it shares with a process it forked from counts for
/// both.
fn used_by(pid: i32) -> Used {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mut used = Used::default();
    for line in text.lines() {
        let Some((name, value)) = line.split_once(':') else { continue };
        let value = || value.split_ascii_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        match name {
            "Threads" => used.threads = value(),
            "RssAnon" | "RssShmem" | "VmSwap" => used.bytes += value() << 10,
            _ => {}
        }
    }
    used
}

/// Counts what is beneath a directory, without following links. Every level that it is in is an open directory.
fn count(dir: &Path, depth_max: usize) -> io::Result<Counted> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut counted = Counted::default();
    let mut open = vec![rustix::fs::Dir::new(rustix::fs::open(dir, flags, Mode::empty())?)?];
    loop {
        let depth = open.len();
        let Some(directory) = open.last_mut() else { return Ok(counted) };
        let Some(entry) = directory.read() else {
            open.pop();
            continue;
        };
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        // What goes away meanwhile does not count.
        let Ok(stat) = rustix::fs::statat(directory.fd()?, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        counted.inodes += 1;
        let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let names = if is_dir { 1 } else { stat.st_nlink.max(1) };
        counted.bytes += stat.st_blocks as u64 * 512 / names;
        if is_dir && depth >= depth_max {
            counted.deep = true;
        } else if is_dir {
            match rustix::fs::openat(directory.fd()?, name, flags, Mode::empty()) {
                Ok(fd) => open.push(rustix::fs::Dir::new(fd)?),
                Err(Errno::MFILE | Errno::NFILE) => counted.deep = true,
                // It went away, or became something else.
                Err(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_counted_once_and_links_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let beneath = root.path().join("a/b");
        fs::create_dir_all(&beneath).unwrap();
        fs::write(beneath.join("file"), vec![1; 1 << 20]).unwrap();
        fs::hard_link(beneath.join("file"), root.path().join("again")).unwrap();
        std::os::unix::fs::symlink("/usr", root.path().join("link")).unwrap();
        let counted = count(root.path(), 3).unwrap();
        assert_eq!((counted.inodes, counted.deep), (5, false));
        assert!((1 << 20..2 << 20).contains(&counted.bytes), "{counted:?}");
        fs::create_dir_all(root.path().join("d/d/d")).unwrap();
        assert!(count(root.path(), 3).unwrap().deep);
        assert!(!count(root.path(), 4).unwrap().deep);
    }

    #[test]
    fn who_has_too_much_may_remove_it_but_not_add() {
        let mut disk = Disk::default();
        let of = |bytes| Counted { bytes, inodes: 1, deep: false };
        let (limit, much) = (100 << 20, 500 << 20);
        assert_eq!(disk.judge(of(limit), limit, 10), None);
        assert_eq!(disk.judge(of(much), limit, 10), Some(Over::Bytes(limit)));
        disk.begins_anew = true;
        assert_eq!(disk.judge(of(much), limit, 10), None);
        assert_eq!(disk.judge(of(much + 1), limit, 10), None, "a little, to remove the rest");
        assert_eq!(disk.judge(of(much + (64 << 20)), limit, 10), Some(Over::Bytes(limit)));
        assert_eq!(disk.judge(of(limit / 2), limit, 10), None);
        assert_eq!(
            disk.judge(of(much), limit, 10),
            Some(Over::Bytes(limit)),
            "it starts from its limit again"
        );
        let many = Counted { bytes: 0, inodes: 11, deep: false };
        assert_eq!(disk.judge(many, limit, 10), Some(Over::Inodes(10)));
    }
}
