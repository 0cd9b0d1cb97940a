//! The host as its link sees it: real processes, and the test in the place of the link.
//!
//! This program plays every part: without a known first argument it runs the tests (those whose names contain one of
//! the arguments); a host started by a test is this program again, and so are its link and its installers.

// In a test a broken expectation is a panic.
#![allow(clippy::unwrap_used)]

mod berths;
mod claims;
mod files;
mod hostile;
mod interactive;
mod limits;
mod measure;
mod network;
mod packages;
mod ports;
mod pythons;
mod science;
mod secrets;
mod worker;

use std::{
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("host") => worker::host(&arguments[1..]),
        Some("worker-link") => worker::link(),
        Some(cooper_worker::egress::ARGV) => cooper_worker::egress::main(),
        Some(cooper_worker::host::INSTALL_ARGV) => cooper_worker::host::install::main(),
        Some(cooper_worker::host::STEP_ARGV) => worker::step(),
        Some("measure") => measure::main(),
        _ => run(&arguments),
    }
}

fn run(arguments: &[String]) -> ExitCode {
    let wanted: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let hostile: &[(&str, fn())] = &[
        (
            "with_all_facilities_hostile_code_reaches_nothing",
            hostile::with_all_facilities_hostile_code_reaches_nothing,
        ),
        (
            "without_namespaces_hostile_code_reaches_nothing",
            hostile::without_namespaces_hostile_code_reaches_nothing,
        ),
        (
            "without_namespaces_and_control_groups_hostile_code_reaches_nothing",
            hostile::without_namespaces_and_control_groups_hostile_code_reaches_nothing,
        ),
        ("below_the_least_tier_sessions_are_refused", hostile::below_the_least_tier_sessions_are_refused),
        (
            "the_host_keeps_the_capabilities_it_needs_and_the_link_and_the_proxy_none",
            hostile::the_host_keeps_the_capabilities_it_needs_and_the_link_and_the_proxy_none,
        ),
        ("after_a_session_nothing_of_its_uid_is_left", hostile::after_a_session_nothing_of_its_uid_is_left),
    ];
    let tests: Vec<_> = claims::ALL
        .iter()
        .chain(berths::ALL)
        .chain(hostile)
        .chain(limits::ALL)
        .chain(files::ALL)
        .chain(interactive::ALL)
        .chain(network::ALL)
        .chain(packages::ALL)
        .chain(ports::ALL)
        .chain(pythons::ALL)
        .chain(science::ALL)
        .chain(secrets::ALL)
        .filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str())))
        .collect();
    println!("\nrunning {} tests", tests.len());
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((name, test)) = tests.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let well = std::panic::catch_unwind(test).is_ok();
                    println!("test {name} ... {}", if well { "ok" } else { "FAILED" });
                    if !well {
                        failed.lock().expect("no test panics while it holds this").push(*name);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("all threads ended");
    if !failed.is_empty() {
        println!("\nfailures:\n    {}", failed.join("\n    "));
    }
    let word = if failed.is_empty() { "ok" } else { "FAILED" };
    println!("\ntest result: {word}. {} passed; {} failed\n", tests.len() - failed.len(), failed.len());
    ExitCode::from(u8::from(!failed.is_empty()))
}
