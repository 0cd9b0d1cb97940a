//! What a dead `cooper up` left running on the same data directory is ended before anything starts.

use std::{
    fs,
    io::{Read, Seek, SeekFrom, Write},
    thread,
    time::Duration,
};

use cooper_common::{clock, error::Code};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::{child::Child, preflight::Data};
use crate::failure::{Failure, Result};

const GRACE_MS: u64 = 3_000;

/// A process, told from a later one with the same pid by when it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) pid: Pid,
    /// Clock ticks since boot.
    started: u64,
}

impl Identity {
    pub(super) fn of(pid: Pid) -> Option<Self> {
        let stat = Stat::read(pid.as_raw_pid())?;
        (stat.state != 'Z').then_some(Self { pid, started: stat.started })
    }
    fn alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }
}

/// The fields of `/proc/PID/stat` that are of use here.
pub(super) struct Stat {
    pub(super) state: char,
    pub(super) parent: i32,
    started: u64,
}

impl Stat {
    pub(super) fn read(pid: i32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything; what follows its last parenthesis is fields 3 and up.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        Some(Self {
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            started: fields.get(19)?.parse().ok()?,
        })
    }
}

/// Writes who holds the data directory and what it started.
pub(super) fn record(data: &Data, children: &[Child]) {
    let children: Vec<Value> = children
        .iter()
        .filter_map(|child| Some((child.name, Identity::of(child.pid?)?)))
        .map(
            |(name, id)| json!({"name": name.to_string(), "pid": id.pid.as_raw_pid(), "started": id.started}),
        )
        .collect();
    let text = json!({"pid": std::process::id(), "boot_id": boot_id(), "children": children}).to_string();
    let mut file = &data.lock;
    // A record that cannot be written costs the next start its sweep, nothing now.
    let _ = file
        .seek(SeekFrom::Start(0))
        .and_then(|_| data.lock.set_len(0))
        .and_then(|()| file.write_all(text.as_bytes()));
}

/// Ends the children that the last holder recorded, if they are still the same processes.
pub(super) fn end(data: &Data) -> Result<()> {
    let mut text = String::new();
    let mut file = &data.lock;
    let _ = file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_string(&mut text));
    let left = recorded(&text, &boot_id());
    signal(&left, Signal::TERM);
    if !gone_within(&left, GRACE_MS) {
        signal(&left, Signal::KILL);
    }
    if !gone_within(&left, GRACE_MS) {
        return Err(Failure::new(
            Code::DataBusy,
            format!("processes of an earlier cooper up on {} do not end", data.dir.display()),
        ));
    }
    record(data, &[]);
    Ok(())
}

fn recorded(text: &str, boot_id: &str) -> Vec<Identity> {
    let Ok(all) = serde_json::from_str::<Value>(text) else { return Vec::new() };
    if all["boot_id"] != boot_id {
        return Vec::new();
    }
    let identity = |child: &Value| {
        let raw = i32::try_from(child["pid"].as_i64()?).ok().filter(|raw| *raw > 0)?;
        let pid = Pid::from_raw(raw)?;
        Some(Identity { pid, started: child["started"].as_u64()? })
    };
    let children = all["children"].as_array().cloned().unwrap_or_default();
    children.iter().filter_map(identity).filter(|id| id.alive()).collect()
}

fn signal(processes: &[Identity], signal: Signal) {
    for process in processes.iter().filter(|process| process.alive()) {
        let _ = kill_process(process.pid, signal);
    }
}

fn gone_within(processes: &[Identity], ms: u64) -> bool {
    let deadline = clock::mono_ms() + ms;
    while processes.iter().any(|process| process.alive()) {
        if clock::mono_ms() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(20));
    }
    true
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_process_that_was_recorded_counts() {
        let me = Identity::of(rustix::process::getpid()).expect("I am alive");
        let pid = me.pid.as_raw_pid();
        let text = |started: u64, boot: &str| {
            json!({"boot_id": boot, "children": [{"pid": pid, "started": started}]}).to_string()
        };
        assert_eq!(recorded(&text(me.started, "b"), "b"), [me]);
        assert_eq!(recorded(&text(me.started + 1, "b"), "b"), []);
        assert_eq!(recorded(&text(me.started, "a"), "b"), []);
        assert_eq!(recorded("", "b"), []);
        assert_eq!(recorded(r#"{"boot_id":"b","children":[{"pid":-1},{"pid":"x"}]}"#, "b"), []);
    }
}
