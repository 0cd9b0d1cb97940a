//! Modes, owners, times and extended attributes of files, where sessions have the worker's own uid (T0). Landlock knows
//! nothing of the calls that change them and seccomp sees no path, so each stops in the kernel and the host makes the change
//! in the caller's place, to files of the session alone. Here is which calls those are, and what they ask for.

use libc::c_long;
use serde::{Deserialize, Serialize};

/// Who decides about the attributes of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Attributes {
    /// The kernel, by the owner of the file: a session has a uid of its own.
    ByOwner,
    /// The host, call by call.
    ByHost,
    /// Nobody can be asked: nobody changes any.
    Fixed,
}

/// The first number that no kernel had given to a call when [`CALLS`] was written: what comes later may change attributes.
pub const UNKNOWN_FROM: u32 = 470;
/// Variants of listed calls that few kernels have and that libraries do without: setxattrat, removexattrat,
/// file_setattr. The numbers are the same on all architectures.
pub const DISOWNED: [c_long; 3] = [463, 466, 469];

/// Where a call says which file it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    /// A path by its address, from the working directory. False: of a symbolic link, the link itself.
    Path(bool),
    /// A descriptor.
    Descriptor,
    /// A descriptor of a directory, a path, and flags in this argument (none: it has no flags).
    At(Option<u8>),
}

/// What it changes; numbers are those of arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Mode(u8),
    /// And the group after it.
    Owner(u8),
    /// Two of seconds and nanoseconds, by their address.
    Times(u8),
    /// Two of seconds and microseconds.
    MicroTimes(u8),
    /// Two of seconds.
    Seconds(u8),
    /// Name, value, its length, flags.
    Set(u8),
    Remove(u8),
}

/// All of them.
pub const CALLS: &[(c_long, Named, What)] = &[
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_chmod, Named::Path(true), What::Mode(1)),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_chown, Named::Path(true), What::Owner(1)),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_lchown, Named::Path(false), What::Owner(1)),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_utime, Named::Path(true), What::Seconds(1)),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_utimes, Named::Path(true), What::MicroTimes(1)),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_futimesat, Named::At(None), What::MicroTimes(2)),
    (libc::SYS_fchmod, Named::Descriptor, What::Mode(1)),
    (libc::SYS_fchmodat, Named::At(None), What::Mode(2)),
    (libc::SYS_fchmodat2, Named::At(Some(3)), What::Mode(2)),
    (libc::SYS_fchown, Named::Descriptor, What::Owner(1)),
    (libc::SYS_fchownat, Named::At(Some(4)), What::Owner(2)),
    (libc::SYS_utimensat, Named::At(Some(3)), What::Times(2)),
    (libc::SYS_setxattr, Named::Path(true), What::Set(1)),
    (libc::SYS_lsetxattr, Named::Path(false), What::Set(1)),
    (libc::SYS_fsetxattr, Named::Descriptor, What::Set(1)),
    (libc::SYS_removexattr, Named::Path(true), What::Remove(1)),
    (libc::SYS_lremovexattr, Named::Path(false), What::Remove(1)),
    (libc::SYS_fremovexattr, Named::Descriptor, What::Remove(1)),
];
