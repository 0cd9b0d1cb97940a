//! Capabilities of the host and of what it starts: no more than its part in confining sessions takes.

use std::io;

use rustix::thread::{
    self as kernel, CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set,
    set_capabilities,
};

use super::facilities::Facilities;

/// To give sessions, the link and the proxy uids of their own, to go on with their files, and to end them.
pub const FOR_UIDS: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID);
/// To make namespaces and to enter them.
pub const FOR_NAMESPACES: CapabilitySet = CapabilitySet::SYS_ADMIN.union(CapabilitySet::SYS_CHROOT);
/// To attach filters to what sessions listen on: there are kernels that let nobody else. One that lets everybody cannot be
/// told from them before this is given up for good.
pub const FOR_FILTERS: CapabilitySet = CapabilitySet::NET_ADMIN;

/// What a host with these facilities goes on with, of what it was started with.
pub fn needed(facilities: &Facilities) -> CapabilitySet {
    let mut needed = CapabilitySet::empty();
    if facilities.uid || facilities.root {
        needed |= FOR_UIDS;
    }
    if facilities.namespaces {
        needed |= FOR_NAMESPACES;
    }
    if facilities.filter {
        needed |= FOR_FILTERS;
    }
    needed & effective()
}

/// As in capabilities(7), without the prefix.
pub fn names(set: CapabilitySet) -> Vec<&'static str> {
    set.iter_names().map(|(name, _)| name).collect()
}

/// The effective capabilities of this process.
pub fn effective() -> CapabilitySet {
    capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective)
}

/// Gives up every other capability, for good, also for whatever this thread starts: root among that gets no more.
pub fn keep(needed: CapabilitySet) -> io::Result<()> {
    let had = capabilities(None)?;
    // A process that may not do this holds none that it could pass on to others by it.
    if had.effective.contains(CapabilitySet::SETPCAP) {
        for number in 0..u64::BITS {
            let one = CapabilitySet::from_bits_retain(1 << number);
            // The kernel knows of no more.
            if !needed.contains(one) && remove_capability_from_bounding_set(one).is_err() {
                break;
            }
        }
    }
    // What a worker that is not root passes on goes by these; capabilities that are ambient go with them.
    let inheritable = had.inheritable & needed;
    let inheritable = if rustix::process::geteuid().is_root() { CapabilitySet::empty() } else { inheritable };
    set_capabilities(None, CapabilitySets { effective: needed, permitted: needed, inheritable })?;
    Ok(())
}

/// Gives up all there are, and what a program could bring.
pub fn keep_none() -> io::Result<()> {
    kernel::set_no_new_privs(true)?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    Ok(())
}
