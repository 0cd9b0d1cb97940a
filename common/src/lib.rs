//! What every crate of Cooper shares: ids, limits, errors, configuration, tokens, clocks, telemetry.

pub mod audit;
pub mod backoff;
pub mod clock;
pub mod config;
pub mod data_dir;
pub mod error;
pub mod failpoint;
pub mod ids;
pub mod limits;
pub mod network;
pub mod path_text;
pub mod redact;

pub mod telemetry;
pub mod token;
#[cfg(feature = "tunnel")]
pub mod tunnel;

/// Version of this build, as shown by `cooper --version` and `/health`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
