//! Figures of the host alone, without link and coordinator: `cargo test --release -p cooper-worker --test host -- measure`.

use std::process::ExitCode;

use cooper_common::clock;
use cooper_proto::v1;

use crate::worker::Worker;

pub fn main() -> ExitCode {
    let (mut worker, session) = Worker::with_session();
    report("stateful execution, there and back", 2_000, || {
        worker.python(&session, "1");
    });
    report("execution with one line of output", 1_000, || {
        worker.python(&session, "print(1)");
    });
    report("command (true)", 200, || {
        worker.shell(&session, &["true"], b"");
    });
    let mut sessions = Vec::new();
    report("session: created and ready", 7, || sessions.push(worker.create_session(v1::Limits::default())));
    report("session: destroyed", 7, || worker.destroy(&sessions.pop().unwrap_or_default()));
    let host = worker.host.id() as i32;
    println!("host: {} KiB private; of {session}:", private_kib(host));
    for pid in worker.processes() {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        println!("  {:<16} {} KiB private", name.trim(), private_kib(pid));
    }
    ExitCode::SUCCESS
}

fn report(what: &str, times: usize, mut act: impl FnMut()) {
    let mut took: Vec<u128> = (0..times)
        .map(|_| {
            let before = clock::since_start();
            act();
            (clock::since_start() - before).as_micros()
        })
        .collect();
    took.sort_unstable();
    println!("{what}: p50 {} us, p99 {} us (n={times})", took[times / 2], took[times * 99 / 100]);
}

fn private_kib(pid: i32) -> u64 {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let lines = smaps.lines().filter(|line| line.starts_with("Private_"));
    lines.filter_map(|line| line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()).sum()
}
