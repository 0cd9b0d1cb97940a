//! The processes beneath a process, found through /proc, and their end.
//!
//! Every child of the host lives beneath a subreaper of its own (see `reaper`), so that whatever daemonises, however
//! often it forks, is still found beneath it. No privilege is needed.

use std::{collections::BTreeSet, fs};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// More than this many processes may be more by the time they are killed.
const MANY: usize = 8;
const HOLD_ROUNDS: usize = 4;

pub struct Process {
    pub pid: i32,
    /// Clock ticks after boot.
    pub started: u64,
}

/// Which descendants are meant; by default all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Which {
    /// Only those that started at or after this tick.
    pub since: Option<u64>,
    /// Never this one.
    pub spare: Option<i32>,
}

/// Every living (not zombie) descendant of `root`, without `root`.
pub fn descendants(root: i32) -> Vec<Process> {
    let mut found = Vec::new();
    let mut parents = vec![root];
    while let Some(parent) = parents.pop() {
        for child in children(parent) {
            parents.push(child);
            if let Some(process) = living(child) {
                found.push(process);
            }
        }
    }
    found
}

/// The parents above a process, from its own upwards.
pub fn ancestors(pid: i32) -> impl Iterator<Item = i32> {
    std::iter::successors(stat(pid).map(|stat| stat.parent), |pid| stat(*pid).map(|stat| stat.parent))
}

pub fn is_alive(pid: i32) -> bool {
    living(pid).is_some()
}

/// Children of `pid` that are not zombies.
pub fn living_children(pid: i32) -> Vec<i32> {
    children(pid).into_iter().filter(|child| living(*child).is_some()).collect()
}

/// Kills the descendants of `root` once and returns how many were alive. Call it again until that is 0: a fork may
/// have been missed, and death takes a moment.
pub fn kill_round(root: i32, which: Which) -> usize {
    if descendants(root).len() > MANY {
        hold(root, which);
    }
    let mut alive = 0;
    for process in descendants(root) {
        if which.spare == Some(process.pid) || which.since.is_some_and(|since| process.started < since) {
            continue;
        }
        alive += 1;
        signal(process.pid, Signal::KILL);
    }
    alive
}

/// Stops many before they are killed: what is stopped forks no more and keeps its place among the processes that its
/// session may have, so that what forks without end comes to one all the same.
fn hold(root: i32, which: Which) {
    let mut held = BTreeSet::new();
    for _ in 0..HOLD_ROUNDS {
        let before = held.len();
        for process in descendants(root) {
            let meant =
                which.spare != Some(process.pid) && which.since.is_none_or(|since| process.started >= since);
            if meant && held.insert(process.pid) {
                signal(process.pid, Signal::STOP);
            }
        }
        if held.len() == before {
            return;
        }
    }
}

/// Signals a process that may be gone.
pub fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Signals what is beneath `root` and in a process group; nothing else that has or gets those numbers.
pub fn signal_group(root: i32, group: i32, signal: Signal) {
    let members = descendants(root).into_iter().map(|process| process.pid);
    for pid in members.filter(|pid| stat(*pid).is_some_and(|stat| stat.group == group)) {
        let Some(fd) = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else {
            continue;
        };
        // Looked at again once it is held: its number may have become another's.
        if ancestors(pid).any(|ancestor| ancestor == root) {
            let _ = pidfd_send_signal(fd, signal);
        }
    }
}

/// The kernel's clock for process start times, in its ticks.
pub fn now_ticks() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let per_second = rustix::param::clock_ticks_per_second();
    now.tv_sec as u64 * per_second + now.tv_nsec as u64 * per_second / 1_000_000_000
}

/// Direct children, of every thread. Empty when the process is gone.
fn children(pid: i32) -> Vec<i32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let mut children = Vec::new();
    for thread in threads.flatten() {
        match fs::read_to_string(thread.path().join("children")) {
            Ok(text) => {
                children.extend(text.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok()))
            }
            // A kernel without CONFIG_PROC_CHILDREN, or a thread that ended.
            Err(_) if !thread.path().exists() => {}
            Err(_) => return children_by_scan(pid),
        }
    }
    children
}

fn children_by_scan(parent: i32) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| stat(*pid).is_some_and(|stat| stat.parent == parent))
        .collect()
}

struct Stat {
    state: char,
    parent: i32,
    group: i32,
    started: u64,
}

fn living(pid: i32) -> Option<Process> {
    let stat = stat(pid)?;
    (!matches!(stat.state, 'Z' | 'X')).then_some(Process { pid, started: stat.started })
}

fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    parse_stat(&String::from_utf8_lossy(&text))
}

/// proc(5): the command name may contain anything, so fields count from the last parenthesis.
fn parse_stat(text: &str) -> Option<Stat> {
    let mut fields = text[text.rfind(')')? + 1..].split_ascii_whitespace();
    Some(Stat {
        state: fields.next()?.chars().next()?,
        parent: fields.next()?.parse().ok()?,
        group: fields.next()?.parse().ok()?,
        started: fields.nth(16)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_command_name_does_not_shift_the_fields() {
        let stat =
            parse_stat("7 (a) Z 1 (b) S 42 7 7 0 -1 4194304 1 0 0 0 1 2 0 0 20 0 1 0 98765 1 2").unwrap();
        assert_eq!((stat.state, stat.parent, stat.group, stat.started), ('S', 42, 7, 98765));
    }

    #[test]
    fn a_child_is_found_and_its_start_time_is_now() {
        let before = now_ticks();
        let mut child = std::process::Command::new("sleep").arg("5").spawn().unwrap();
        let me = std::process::id() as i32;
        let found = descendants(me).into_iter().find(|p| p.pid == child.id() as i32).unwrap();
        assert!(found.started + 1 >= before && found.started <= now_ticks());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
