//! Control groups, version 1 or 2, wherever the host may write them: memory, processes and CPU of a session as a whole.
//!
//! A worker has a group of its own beneath the one it runs in, and each session one beneath that. What an earlier host of
//! the same worker left is emptied and removed at the start.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::process::{Pid, Signal, kill_process};

/// Which controllers limit sessions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Controllers {
    pub memory: bool,
    pub pids: bool,
    pub cpu: bool,
}

/// Of a session as a whole; 0 = unlimited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    pub memory_bytes: u64,
    pub processes: u64,
    /// Thousandths of a processor.
    pub cpu_millis: u64,
}

const PERIOD_US: u64 = 100_000;

/// Whether this process, and what it forks, is scheduled by a real-time class: version 1 takes none of those into a group
/// that has no share of real time, and processor time is then not limited.
fn is_real_time() -> bool {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Field 41 of proc_pid_stat(5), 39th behind the name; 1 is SCHED_FIFO, 2 SCHED_RR.
    let policy = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().nth(38));
    matches!(policy, Some("1" | "2"))
}

/// What [`Root::open`] would find, without making anything.
pub fn available() -> Controllers {
    let of_self = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let writable = |file: PathBuf| File::options().write(true).open(file).is_ok();
    let there = unified(&mounts, &of_self)
        .filter(|dir| writable(dir.join("cgroup.subtree_control")))
        .and_then(|dir| fs::read_to_string(dir.join("cgroup.controllers")).ok())
        .filter(|there| there.split_ascii_whitespace().any(|name| name == "memory"));
    let has = |controller: &str| match &there {
        Some(there) => there.split_ascii_whitespace().any(|name| name == controller),
        None => {
            hierarchy(&mounts, &of_self, controller).is_some_and(|dir| writable(dir.join("cgroup.procs")))
        }
    };
    Controllers { memory: has("memory"), pids: has("pids"), cpu: has("cpu") }
}

/// The worker's place in the hierarchies.
pub struct Root {
    unified: bool,
    memory: Option<PathBuf>,
    pids: Option<PathBuf>,
    cpu: Option<PathBuf>,
    freezer: Option<PathBuf>,
}

impl Root {
    /// Finds or makes the worker's groups, called `name`; what may not be written is left out.
    pub fn open(name: &str) -> Self {
        let of_self = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let root = match unified(&mounts, &of_self).and_then(|dir| Self::open_unified(&dir, name)) {
            Some(root) => root,
            None => {
                let group = |controller| {
                    let dir = hierarchy(&mounts, &of_self, controller)?.join(name);
                    made(&dir).then_some(dir)
                };
                Self {
                    unified: false,
                    memory: group("memory"),
                    pids: group("pids"),
                    cpu: (!is_real_time()).then(|| group("cpu")).flatten(),
                    freezer: group("freezer"),
                }
            }
        };
        root.places().for_each(empty);
        root
    }

    /// Version 2: a group with processes of its own has no limited groups beneath it, so the host moves one down.
    fn open_unified(dir: &Path, name: &str) -> Option<Self> {
        let available = fs::read_to_string(dir.join("cgroup.controllers")).ok()?;
        let wanted: Vec<&str> = ["memory", "pids", "cpu"]
            .into_iter()
            .filter(|c| available.split(' ').any(|a| a.trim() == *c))
            .collect();
        if !wanted.contains(&"memory") {
            return None;
        }
        let (host, own) = (dir.join(format!("{name}-host")), dir.join(name));
        if !made(&host) || !made(&own) {
            return None;
        }
        let on = wanted.iter().map(|controller| format!("+{controller}")).collect::<Vec<_>>().join(" ");
        fs::write(host.join("cgroup.procs"), "0").ok()?;
        fs::write(dir.join("cgroup.subtree_control"), &on).ok()?;
        fs::write(own.join("cgroup.subtree_control"), &on).ok()?;
        let with = |controller| wanted.contains(&controller).then(|| own.clone());
        Some(Self {
            unified: true,
            memory: with("memory"),
            pids: with("pids"),
            cpu: with("cpu"),
            freezer: None,
        })
    }

    pub fn controllers(&self) -> Controllers {
        Controllers { memory: self.memory.is_some(), pids: self.pids.is_some(), cpu: self.cpu.is_some() }
    }

    fn places(&self) -> impl Iterator<Item = &Path> {
        let mut all: Vec<&Path> = [&self.memory, &self.pids, &self.cpu, &self.freezer]
            .into_iter()
            .flatten()
            .map(PathBuf::as_path)
            .collect();
        all.dedup();
        all.into_iter()
    }

    /// The group of one session, with its limits.
    pub fn make(&self, session: &str, limits: Limits) -> io::Result<Group> {
        let at = |place: &Option<PathBuf>| place.as_ref().map(|place| place.join(session));
        let group = Group {
            unified: self.unified,
            memory: at(&self.memory),
            pids: at(&self.pids),
            cpu: at(&self.cpu),
            freezer: at(&self.freezer),
        };
        for place in group.places() {
            match fs::create_dir(place) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        group.limit(limits)?;
        Ok(group)
    }
}

/// The control group of one session.
#[derive(Debug, Clone)]
pub struct Group {
    unified: bool,
    memory: Option<PathBuf>,
    pids: Option<PathBuf>,
    cpu: Option<PathBuf>,
    freezer: Option<PathBuf>,
}

impl Group {
    fn places(&self) -> impl Iterator<Item = &Path> {
        let mut all: Vec<&Path> = [&self.memory, &self.pids, &self.cpu, &self.freezer]
            .into_iter()
            .flatten()
            .map(PathBuf::as_path)
            .collect();
        all.dedup();
        all.into_iter()
    }

    pub fn controllers(&self) -> Controllers {
        Controllers { memory: self.memory.is_some(), pids: self.pids.is_some(), cpu: self.cpu.is_some() }
    }

    /// Gives it other limits; they hold at once.
    pub fn limit(&self, limits: Limits) -> io::Result<()> {
        if let Some(dir) = &self.memory
            && limits.memory_bytes > 0
        {
            let bytes = limits.memory_bytes.to_string();
            if self.unified {
                fs::write(dir.join("memory.max"), &bytes)?;
                // One that swaps slows everybody down; without swap there is no such file.
                let _ = fs::write(dir.join("memory.swap.max"), "0");
                let _ = fs::write(dir.join("memory.oom.group"), "0");
            } else {
                // With swap may never be less than without: which comes first depends on the direction.
                let with_swap = dir.join("memory.memsw.limit_in_bytes");
                let _ = fs::write(&with_swap, &bytes);
                fs::write(dir.join("memory.limit_in_bytes"), &bytes)?;
                let _ = fs::write(&with_swap, &bytes);
            }
        }
        if let Some(dir) = &self.pids
            && limits.processes > 0
        {
            fs::write(dir.join("pids.max"), limits.processes.to_string())?;
        }
        if let Some(dir) = &self.cpu {
            let quota = PERIOD_US * limits.cpu_millis / 1000;
            let limited = quota > 0;
            if self.unified {
                let quota = if limited { quota.to_string() } else { "max".to_owned() };
                fs::write(dir.join("cpu.max"), format!("{quota} {PERIOD_US}"))?;
            } else {
                let quota = if limited { quota.to_string() } else { "-1".to_owned() };
                fs::write(dir.join("cpu.cfs_quota_us"), quota)?;
            }
        }
        Ok(())
    }

    /// Into these a process writes "0" to join. Version 1 takes single threads without the lock that moving whole
    /// processes needs, which can take milliseconds.
    pub fn entrances(&self) -> io::Result<Vec<OwnedFd>> {
        let file = if self.unified { "cgroup.procs" } else { "tasks" };
        self.places().map(|dir| Ok(OpenOptions::new().write(true).open(dir.join(file))?.into())).collect()
    }

    /// Its processes and threads; None where they are not counted.
    pub fn processes(&self) -> Option<u64> {
        let dir = self.pids.as_ref()?;
        fs::read_to_string(dir.join("pids.current")).ok()?.trim().parse().ok()
    }

    /// How many of its processes the kernel killed for want of memory.
    pub fn oom_kills(&self) -> u64 {
        let Some(dir) = &self.memory else { return 0 };
        let file = if self.unified { "memory.events" } else { "memory.oom_control" };
        let text = fs::read_to_string(dir.join(file)).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    }

    /// Kills all of it at once, so that none escapes by forking. The caller looks whether it is empty.
    pub fn kill(&self) {
        if self.unified
            && let Some(dir) = &self.memory
            && fs::write(dir.join("cgroup.kill"), "1").is_ok()
        {
            return;
        }
        let frozen = self.freezer.as_ref().map(|dir| dir.join("freezer.state"));
        if let Some(state) = &frozen {
            let _ = fs::write(state, "FROZEN");
        }
        if let Some(dir) = self.places().next() {
            kill_in(dir);
        }
        if let Some(state) = &frozen {
            let _ = fs::write(state, "THAWED");
        }
    }

    /// Removes it; false while processes are in it.
    pub fn remove(&self) -> bool {
        self.places().all(|dir| match fs::remove_dir(dir) {
            Ok(()) => true,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        })
    }
}

fn kill_in(dir: &Path) {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    for pid in text.lines().filter_map(|line| line.parse().ok()).filter_map(Pid::from_raw) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Kills and removes what is beneath a group that an earlier host of this worker had.
fn empty(place: &Path) {
    let Ok(entries) = fs::read_dir(place) else { return };
    for dir in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()) {
        for _ in 0..100 {
            kill_in(&dir);
            if fs::remove_dir(&dir).is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }
}

fn made(dir: &Path) -> bool {
    let there = match fs::create_dir(dir) {
        Ok(()) => true,
        Err(error) => error.kind() == io::ErrorKind::AlreadyExists,
    };
    // A read-only mount shows directories that cannot be used.
    there && File::options().write(true).open(dir.join("cgroup.procs")).is_ok()
}

/// The directory of this process in version 2.
fn unified(mounts: &str, of_self: &str) -> Option<PathBuf> {
    let path = of_self.lines().find_map(|line| line.strip_prefix("0::"))?;
    let (point, root) = mounts
        .lines()
        .filter_map(parse_mount)
        .find_map(|(point, root, kind, _)| (kind == "cgroup2").then_some((point, root)))?;
    Some(within(point, root, path))
}

/// The directory of this process in the hierarchy of a controller of version 1.
fn hierarchy(mounts: &str, of_self: &str, controller: &str) -> Option<PathBuf> {
    let path = of_self.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        controllers.split(',').any(|c| c == controller).then_some(path)
    })?;
    let (point, root) = mounts.lines().filter_map(parse_mount).find_map(|(point, root, kind, options)| {
        (kind == "cgroup" && options.split(',').any(|o| o == controller)).then_some((point, root))
    })?;
    Some(within(point, root, path))
}

/// A container sees the group it is in as the root of the mount.
fn within(point: &str, root: &str, path: &str) -> PathBuf {
    let beneath = path.strip_prefix(root).unwrap_or(if root == "/" { path } else { "" });
    let dir = Path::new(point).join(beneath.trim_start_matches('/'));
    if dir.is_dir() { dir } else { PathBuf::from(point) }
}

/// Mount point, root, type and options of a line of mountinfo.
fn parse_mount(line: &str) -> Option<(&str, &str, &str, &str)> {
    let (before, after) = line.split_once(" - ")?;
    let mut before = before.split(' ').skip(3);
    let (root, point) = (before.next()?, before.next()?);
    let mut after = after.split(' ');
    let (kind, options) = (after.next()?, after.nth(1)?);
    Some((point, root, kind, options))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_of_a_process_is_found_in_both_versions() {
        let v1 = "30 25 0:26 / /nowhere/memory rw,relatime - cgroup cgroup rw,memory\n\
                  31 25 0:27 / /nowhere/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n";
        let of_self = "4:memory:/a\n3:cpu,cpuacct:/\n0::/\n";
        assert_eq!(hierarchy(v1, of_self, "memory"), Some("/nowhere/memory".into()));
        assert_eq!(hierarchy(v1, of_self, "cpu"), Some("/nowhere/cpu,cpuacct".into()));
        assert_eq!(hierarchy(v1, of_self, "pids"), None);
        let v2 = "30 25 0:26 / /nowhere rw,relatime - cgroup2 cgroup2 rw\n";
        assert_eq!(unified(v2, "0::/\n"), Some("/nowhere".into()));
        assert_eq!(unified(v1, of_self), None);
    }

    /// A plain directory in place of a mount of version 2: it shows what is written where, not what the kernel makes of it.
    #[test]
    fn version_2_is_told_its_limits_in_its_own_words() {
        let dir = tempfile::tempdir().unwrap();
        let read = |path: &str| fs::read_to_string(dir.path().join(path)).unwrap();
        let group = |path: &str| {
            fs::create_dir(dir.path().join(path)).unwrap();
            fs::write(dir.path().join(path).join("cgroup.procs"), "").unwrap();
        };
        assert!(Root::open_unified(dir.path(), "w").is_none(), "this is no control group");
        fs::write(dir.path().join("cgroup.controllers"), "cpuset cpu io pids\n").unwrap();
        assert!(Root::open_unified(dir.path(), "w").is_none(), "without memory it is not worth its while");
        fs::write(dir.path().join("cgroup.controllers"), "cpuset cpu io memory pids\n").unwrap();
        ["w-host", "w"].into_iter().for_each(group);

        let root = Root::open_unified(dir.path(), "w").unwrap();
        assert_eq!(root.controllers(), Controllers { memory: true, pids: true, cpu: true });
        assert_eq!(read("w-host/cgroup.procs"), "0", "the host moves out of the way");
        assert_eq!(read("cgroup.subtree_control"), "+memory +pids +cpu");
        assert_eq!(read("w/cgroup.subtree_control"), "+memory +pids +cpu");

        group("w/s");
        let limits = Limits { memory_bytes: 64 << 20, processes: 9, cpu_millis: 1500 };
        let group = root.make("s", limits).unwrap();
        assert_eq!(read("w/s/memory.max"), (64 << 20).to_string());
        assert_eq!(read("w/s/memory.swap.max"), "0");
        assert_eq!(read("w/s/pids.max"), "9");
        assert_eq!(read("w/s/cpu.max"), "150000 100000");
        group.limit(Limits { cpu_millis: 0, ..limits }).unwrap();
        assert_eq!(read("w/s/cpu.max"), "max 100000");
        assert_eq!(group.entrances().unwrap().len(), 1, "one hierarchy, one entrance");

        fs::write(
            dir.path().join("w/s/memory.events"),
            "low 0\nmax 7\noom 2\noom_kill 3\noom_group_kill 0\n",
        )
        .unwrap();
        fs::write(dir.path().join("w/s/pids.current"), "4\n").unwrap();
        fs::write(dir.path().join("w/s/cgroup.kill"), "").unwrap();
        assert_eq!((group.oom_kills(), group.processes()), (3, Some(4)));
        group.kill();
        assert_eq!(read("w/s/cgroup.kill"), "1");
    }
}
