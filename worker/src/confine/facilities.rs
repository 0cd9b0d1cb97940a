//! What this machine offers to confine sessions with.

use std::fs;

/// CHOWN, DAC_OVERRIDE, FOWNER, KILL, SETGID, SETUID: what it takes to run sessions under uids of their own and to go on
/// with their files.
const FOR_UIDS: u64 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 7;

/// Whether sessions can have a uid each.
pub fn has_uids() -> bool {
    capabilities() & FOR_UIDS == FOR_UIDS
}

/// The effective capabilities of this process.
fn capabilities() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0)
}
