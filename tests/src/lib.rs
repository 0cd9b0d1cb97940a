//! The harness of the end-to-end tests: real processes of the built binary, real clients, real Docker.
//!
//! A test gets a [`Cluster`] (or the [`shared`](cluster::shared) one, if it does not disturb it), talks to it through
//! [`Cooper`] (the command line) or [`grpc`], and leaves nothing behind. What a failed test worked on is kept and named.

pub mod cases;
pub mod cluster;
pub mod contract;
pub mod cooper;
pub mod docker;
pub mod document;
pub mod fleet;
pub mod grpc;
pub mod http;
pub mod model;
pub mod processes;
pub mod program;
pub mod scratch;
pub mod tree;
pub mod venv;
pub mod wait;

pub use cluster::{Cluster, Setup, shared};
pub use cooper::{Answer, Cooper};
pub use program::{Finished, Running};
pub use scratch::Scratch;
pub use wait::until;

use std::{path::PathBuf, time::Duration};

/// The binary under test: `COOPER_BIN`, else the one that was built beside this test.
pub fn binary() -> PathBuf {
    let found = std::env::var_os("COOPER_BIN").map_or_else(
        || {
            let test = std::env::current_exe().expect("this test is a file");
            // target/PROFILE/deps/e2e-HASH, or a program beside it
            let mut above = test.ancestors().skip(1);
            let found = above.find(|dir| !dir.ends_with("deps")).expect("it lies in a target directory");
            found.join("cooper")
        },
        PathBuf::from,
    );
    assert!(found.is_file(), "no binary at {}: `cargo build --workspace --bins` makes it", found.display());
    found
}

pub const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}
