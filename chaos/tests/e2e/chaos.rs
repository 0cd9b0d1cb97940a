//! I1–I5 under faults: a bounded run of what `make chaos` does at length.

use std::{io::Write, path::Path, process::Command};

use serde_json::Value;

/// Kills by schedule, and tasks: one of every kind of fault, within a minute or so.
const KILLS: &str = "30";
const TASKS: &str = "1000";

/// The last line of a run, and whether all was well.
#[track_caller]
fn run(args: &[&str], cheat: &str) -> (Value, bool) {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("short.toml");
    let mut chaos = Command::new(env!("CARGO_BIN_EXE_cooper-chaos"));
    // Built together with this test, and found by the harness beside itself.
    assert!(Path::new(env!("CARGO_BIN_EXE_cooper-chaos-check")).is_file());
    let done =
        chaos.args(args).arg("--config").arg(config).env("CHAOS_CHEAT", cheat).output().expect("it starts");
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    // Seed, faults, and what this machine does not allow: said even if all is well, so not by `print!`.
    let _ = std::io::stderr().write_all(format!("{out}{err}").as_bytes());
    let report = out.lines().last().and_then(|line| serde_json::from_str(line).ok());
    (report.expect("a report"), done.status.success())
}

fn counts(report: &Value) -> [u64; 5] {
    ["lost", "doubled", "stale_applied", "bytes_wrong", "leaked"]
        .map(|name| report[name].as_u64().unwrap_or_else(|| panic!("{name} in {report}")))
}

#[test]
fn nothing_is_lost_doubled_altered_or_left_under_every_kind_of_fault() {
    let (report, fine) = run(&["--kills", KILLS, "--tasks", TASKS], "");
    assert_eq!(counts(&report), [0; 5], "{report}");
    assert!(fine);
    assert!(report["kills"].as_u64() >= KILLS.parse().ok() && report["tasks"].as_u64() >= TASKS.parse().ok());
}

#[test]
fn the_checker_sees_a_lost_end_a_second_effect_and_a_flipped_byte() {
    for (cheat, caught) in [("drop", [1, 0, 0, 0, 0]), ("dup", [0, 1, 0, 0, 0]), ("flip", [0, 0, 0, 1, 0])] {
        let (report, fine) = run(&["--kills", "1", "--tasks", "80", "--seed", "7"], cheat);
        assert_eq!(counts(&report), caught, "{cheat}: {report}");
        assert!(!fine, "{cheat}");
    }
}

#[test]
fn the_same_seed_gives_the_same_faults_and_another_seed_gives_others() {
    let schedule = |seed: &str| {
        let mut chaos = Command::new(env!("CARGO_BIN_EXE_cooper-chaos"));
        let args = ["--schedule", "--kills", "200", "--config", "none", "--seed", seed];
        chaos.args(args).output().expect("it starts").stdout
    };
    assert!(schedule("5").len() > 200);
    assert_eq!(schedule("5"), schedule("5"));
    assert_ne!(schedule("5"), schedule("6"));
}
