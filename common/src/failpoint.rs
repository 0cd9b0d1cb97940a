//! Places where a process kills itself on demand, so that tests can hit the moments that matter (feature `failpoints`,
//! which no shipped binary has).
//!
//! `FAILPOINTS=commit-before-reply=21,mid-group-commit=300` lets 20 passes of the one go and dies at the 21st. By count
//! and not by chance, so that the same seed kills at the same pass.
//!
//! `FAILPOINTS_ONCE=FILE` is for a process whose children pass failpoints, and are started anew with the same environment:
//! who makes the file dies, and nobody after it. Else a child that dies at its first pass always would.

/// Every failpoint, by the process that passes it.
pub mod name {
    /// Coordinator: a commit is durable, and nobody was told or sent anything.
    pub const COMMIT_BEFORE_REPLY: &str = "commit-before-reply";
    /// Coordinator: one batch of a group is written, the transaction is open.
    pub const MID_GROUP_COMMIT: &str = "mid-group-commit";
    /// Coordinator: an attempt was sent to its worker and its result is here, recorded nowhere and not acked.
    pub const DISPATCH_BEFORE_ACK: &str = "dispatch-before-ack";
    /// Coordinator: output of a result is appended, its end is not recorded.
    pub const OUTPUT_BEFORE_RESULT: &str = "output-before-result";
    /// Coordinator: an artifact is on the disk, and no row and no worker knows.
    pub const ARTIFACT_BEFORE_KEPT: &str = "artifact-before-kept";
    /// Coordinator: a session's archive has arrived, and is not kept.
    pub const PACKED_BEFORE_KEPT: &str = "packed-before-kept";
    /// Coordinator: a session's archive was sent to its new worker, which has not unpacked it.
    pub const RESTORE_BEFORE_UNPACKED: &str = "restore-before-unpacked";
    /// Coordinator: a run that nobody asked for has begun, and the worker that saw why does not know.
    pub const TROUBLE_BEFORE_HEARD: &str = "trouble-before-heard";
    /// Worker's host: an attempt has ended and its output is spooled, the link does not know.
    pub const SPOOLED_BEFORE_SENT: &str = "spooled-before-sent";
    /// Worker's host: a session that goes on elsewhere is sealed, and not packed.
    pub const SEALED_BEFORE_PACKED: &str = "sealed-before-packed";
    /// Worker's host: a session's files are unpacked, and nobody was told.
    pub const UNPACKED_BEFORE_READY: &str = "unpacked-before-ready";
    /// Worker's link: an assignment arrived, the host does not know.
    pub const ASSIGN_BEFORE_HOST: &str = "assign-before-host";
    /// Worker's link: the coordinator has an attempt's artifacts, and its result was not said.
    pub const ARTIFACTS_BEFORE_RESULT: &str = "artifacts-before-result";
    /// Worker's link: a result was acked, the host still keeps it.
    pub const ACK_BEFORE_HOST: &str = "ack-before-host";
}

/// Whether this binary can be told to fail.
pub const COMPILED_IN: bool = cfg!(feature = "failpoints");

/// Dies here, as by `kill -9`, if this pass is the one.
#[inline]
pub fn pass(name: &str) {
    #[cfg(feature = "failpoints")]
    armed::pass(name);
    #[cfg(not(feature = "failpoints"))]
    let _ = name;
}

#[cfg(feature = "failpoints")]
mod armed {
    use std::sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    };

    use rustix::process::{Signal, getpid, kill_process};

    struct Failpoint {
        name: String,
        /// Passes until the one that kills, itself included.
        left: AtomicU64,
    }

    pub(super) fn pass(name: &str) {
        static ARMED: OnceLock<Vec<Failpoint>> = OnceLock::new();
        let armed = ARMED.get_or_init(|| read(&std::env::var("FAILPOINTS").unwrap_or_default()));
        for failpoint in armed.iter().filter(|failpoint| failpoint.name == name) {
            if failpoint.left.fetch_sub(1, Ordering::Relaxed) == 1 && is_first() {
                let _ = kill_process(getpid(), Signal::KILL);
            }
        }
    }

    fn is_first() -> bool {
        std::env::var_os("FAILPOINTS_ONCE").is_none_or(|file| std::fs::File::create_new(file).is_ok())
    }

    fn read(text: &str) -> Vec<Failpoint> {
        let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
        pairs
            .filter_map(|(name, pass)| {
                Some(Failpoint { name: name.to_owned(), left: AtomicU64::new(pass.parse().ok()?) })
            })
            .collect()
    }
}
