//! Runs the program of this crate: every seed in a process of its own, so that nothing of one is felt by another.

use std::process::{Command, Output};

/// Seeds of a test run. `make sim SEEDS=5000` runs more.
const SEEDS: u64 = 200;
/// Within so many seeds every planted fault has to be found.
const SEEDS_OF_A_CHEAT: u64 = 40;

fn sim(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cooper-sim"))
        .args(args)
        .output()
        .expect("the program of this crate runs")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// All of I1 to I5 and I12, as far as they can be seen from outside. `COOPER_SIM_SEED=7` runs that one, with its trace.
#[test]
fn a_cluster_keeps_its_promises_whatever_breaks() {
    let ran = match std::env::var("COOPER_SIM_SEED") {
        Ok(seed) => sim(&["--seed", &seed, "--trace"]),
        Err(_) => sim(&["--seeds", &SEEDS.to_string()]),
    };
    print!("{}", text(&ran));
    assert!(
        ran.status.success(),
        "again: COOPER_SIM_SEED=<seed> cargo test -p cooper-sim -- promises --nocapture"
    );
}

#[test]
fn a_seed_gives_the_same_run_again() {
    for seed in ["3", "1000003"] {
        let (first, second) =
            (text(&sim(&["--seed", seed, "--trace"])), text(&sim(&["--seed", seed, "--trace"])));
        let different = first.lines().zip(second.lines()).find(|(first, second)| first != second);
        assert_eq!(different, None, "seed {seed}");
        assert!(first.lines().count() > 100, "{first}");
    }
}

/// Whoever says that nothing is wrong must be able to say otherwise.
#[test]
fn planted_faults_are_found() {
    for cheat in ["ack-before-commit", "lose-events", "run-again", "forget-results", "flip-byte", "drop-byte"]
    {
        let found = (1..=SEEDS_OF_A_CHEAT).find(|seed| {
            let ran = sim(&["--seed", &seed.to_string(), "--cheat", cheat]);
            let said = text(&ran);
            println!("{cheat}: {}", said.lines().last().unwrap_or_default());
            !ran.status.success()
        });
        assert!(found.is_some(), "{cheat} was not found by {SEEDS_OF_A_CHEAT} seeds");
    }
}
