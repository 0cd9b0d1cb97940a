//! Which commit a binary for release is of: `COOPER_COMMIT`, else what git says. Others do not say, and so need not be linked
//! anew after each commit.

use std::{env, process::Command};

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

fn main() {
    println!("cargo::rerun-if-env-changed=COOPER_COMMIT");
    println!("cargo::rerun-if-changed=build.rs");
    let mut commit = env::var("COOPER_COMMIT").ok().filter(|commit| !commit.is_empty());
    if commit.is_none() && env::var("PROFILE").as_deref() == Ok("release") {
        commit = git(&["rev-parse", "--short=12", "HEAD"]);
        if let Some(log) = git(&["rev-parse", "--path-format=absolute", "--git-path", "logs/HEAD"]) {
            println!("cargo::rerun-if-changed={log}");
        }
    }
    println!("cargo::rustc-env=COOPER_BUILT_FROM={}", commit.unwrap_or_default());
    println!("cargo::rustc-env=COOPER_BUILT_FOR={}", env::var("TARGET").unwrap_or_default());
}
