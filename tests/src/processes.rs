//! Which processes there are, as /proc tells.

use std::{collections::BTreeSet, fs, os::unix::ffi::OsStrExt, path::Path};

use rustix::process::Pid;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    pub args: Vec<String>,
}

impl Process {
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.pid).expect("a process has a pid")
    }

    fn read(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything; what follows its last parenthesis is fields 3 and up.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let (state, parent) = (fields.next()?, fields.next()?.parse().ok()?);
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let args =
            line.split(|byte| *byte == 0).map(|arg| String::from_utf8_lossy(arg).into_owned()).collect();
        (state != "Z").then_some(Self { pid, parent, args })
    }

    /// It names the directory in its command line or environment, or works in it.
    fn touches(&self, dir: &Path) -> bool {
        let proc = format!("/proc/{}", self.pid);
        let names = |file: &str| {
            let bytes = fs::read(format!("{proc}/{file}")).unwrap_or_default();
            bytes.windows(dir.as_os_str().len()).any(|window| window == dir.as_os_str().as_bytes())
        };
        names("cmdline")
            || names("environ")
            || fs::read_link(format!("{proc}/cwd")).is_ok_and(|cwd| cwd.starts_with(dir))
    }
}

/// Every live process; zombies do not count.
pub fn all() -> Vec<Process> {
    let entries = fs::read_dir("/proc").expect("/proc");
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(Process::read).collect()
}

/// Those that have to do with a directory, and everything below them.
pub fn of(dir: &Path) -> Vec<Process> {
    let all = all();
    let mut ours: BTreeSet<i32> = all.iter().filter(|process| process.touches(dir)).map(|p| p.pid).collect();
    loop {
        let before = ours.len();
        ours.extend(
            all.iter().filter(|process| ours.contains(&process.parent)).map(|p| p.pid).collect::<Vec<_>>(),
        );
        if ours.len() == before {
            break;
        }
    }
    all.into_iter().filter(|process| ours.contains(&process.pid)).collect()
}

pub fn is_alive(pid: i32) -> bool {
    Process::read(pid).is_some()
}
