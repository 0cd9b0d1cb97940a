//! The end of `cooper up`: worker first, then coordinator, then whatever remains; under five seconds.

use std::{fs, time::Duration};

use cooper_common::{clock, limits::stop};
use rustix::process::{Pid, Signal, kill_process};

use super::{Up, child::Name, leftovers::Stat};
use crate::failure::Result;

const LOOK: Duration = Duration::from_millis(50);

pub(super) fn stop(up: &mut Up<'_>) -> Result<()> {
    let start = clock::mono_ms();
    for child in &mut up.children {
        child.restart_at_ms = None;
    }
    end(up, Name::Worker, start + stop::HOST_MS);
    end(up, Name::Coordinator, start + stop::UP_MS);
    sweep(up, start + stop::UP_MS);
    Ok(())
}

/// SIGTERM, patience until the deadline, SIGKILL.
fn end(up: &mut Up<'_>, name: Name, deadline_ms: u64) {
    if let Some(pid) = up.child(name).and_then(|child| child.pid) {
        let _ = kill_process(pid, Signal::TERM);
    }
    while let Some(pid) = up.child(name).and_then(|child| child.pid) {
        if clock::mono_ms() >= deadline_ms || up.signals.stop_at_once() {
            let _ = kill_process(pid, Signal::KILL);
        }
        up.signals.wait(Some(LOOK));
        up.reap();
    }
}

/// Everything that a child left behind became our child; none of it outlives us.
fn sweep(up: &mut Up<'_>, deadline_ms: u64) {
    loop {
        up.reap();
        let left = children_of_ours();
        if left.is_empty() || clock::mono_ms() > deadline_ms + 300 {
            return;
        }
        for pid in left {
            let _ = kill_process(pid, Signal::KILL);
        }
        up.signals.wait(Some(Duration::from_millis(10)));
    }
}

fn children_of_ours() -> Vec<Pid> {
    let me = std::process::id();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| Stat::read(*pid).is_some_and(|stat| u32::try_from(stat.parent).ok() == Some(me)))
        .filter_map(Pid::from_raw)
        .collect()
}
