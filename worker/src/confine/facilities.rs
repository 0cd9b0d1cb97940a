//! What this machine offers to confine sessions with, and the tier that amounts to.
//!
//! A tier is a name for a set of facilities; what is there beyond it is used all the same. Nothing is taken for granted:
//! each is probed, and a session lists what holds for it (I11).

use std::{fmt, fs, path::Path};

use cooper_common::error::{Code, Error, Result};
use rustix::process::geteuid;

use super::{attributes::Attributes, capabilities, cgroup, filter, landlock, notify, seccomp};

/// The first version of Landlock that keeps signals and abstract sockets within a session.
pub const LANDLOCK_WITH_SCOPES: u32 = 6;
/// The first that knows TCP.
pub const LANDLOCK_WITH_TCP: u32 = 4;

/// Named sets of facilities, each with all of the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Tier {
    /// Less than any of the others.
    #[default]
    Unconfined,
    /// Landlock with scopes and seccomp. Sessions share the worker's uid: for one tenant a worker.
    T0,
    /// A uid for each session, seccomp, and the Landlock there is.
    T1,
    /// And control groups for memory and processes.
    T2,
    /// And namespaces.
    T3,
}

impl Tier {
    pub const fn as_str(self) -> &'static str {
        match self {
            Tier::Unconfined => "unconfined",
            Tier::T0 => "T0",
            Tier::T1 => "T1",
            Tier::T2 => "T2",
            Tier::T3 => "T3",
        }
    }
    pub fn parse(text: &str) -> Option<Self> {
        [Tier::Unconfined, Tier::T0, Tier::T1, Tier::T2, Tier::T3].into_iter().find(|t| t.as_str() == text)
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Facilities to do without, for tests and to see what a lesser machine would refuse. It only ever takes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mask {
    pub uid: bool,
    pub namespaces: bool,
    pub cgroup: bool,
    pub seccomp: bool,
    pub network: bool,
    pub filter: bool,
    /// Landlock is no newer than this.
    pub landlock: u32,
}

impl Default for Mask {
    fn default() -> Self {
        Self {
            uid: false,
            namespaces: false,
            cgroup: false,
            seccomp: false,
            network: false,
            filter: false,
            landlock: u32::MAX,
        }
    }
}

impl Mask {
    /// `uid,namespaces,cgroup,seccomp,network,filter,landlock` in any order; `landlock:4` leaves version 4 of it.
    pub fn parse(text: &str) -> Result<Self> {
        let mut mask = Self::default();
        for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            match name.split_once(':').unwrap_or((name, "0")) {
                ("uid", "0") => mask.uid = true,
                ("namespaces", "0") => mask.namespaces = true,
                ("cgroup", "0") => mask.cgroup = true,
                ("seccomp", "0") => mask.seccomp = true,
                ("network", "0") => mask.network = true,
                ("filter", "0") => mask.filter = true,
                ("landlock", version) if version.parse::<u32>().is_ok() => {
                    mask.landlock = version.parse().unwrap_or(0);
                }
                _ => {
                    return Err(Error::new(
                        Code::ConfigInvalid,
                        format!("mask_facilities: unknown {name:?}"),
                    )
                    .with_hint(
                        "name some of uid, namespaces, cgroup, seccomp, network, filter, landlock, landlock:N",
                    ));
                }
            }
        }
        Ok(mask)
    }
}

/// What is there and used.
#[derive(Debug, Clone, Default)]
pub struct Facilities {
    /// The host may give every session a uid of its own.
    pub uid: bool,
    /// The host runs as root, whatever it may do.
    pub root: bool,
    /// Mount and network namespaces.
    pub namespaces: bool,
    pub cgroup: cgroup::Controllers,
    /// Version; 0 = none.
    pub landlock: u32,
    pub seccomp: bool,
    /// Connects are answered by the host (`notify`).
    pub network: bool,
    /// What sessions listen on can be kept from everybody but the host.
    pub filter: bool,
    pub kernel: String,
    /// What was taken away by `mask_facilities`.
    pub masked: String,
}

impl Facilities {
    /// `namespaces` and `cgroup` are tried by whoever uses them, and entered then.
    pub fn probe(mask: Mask) -> Self {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
        Self {
            uid: !mask.uid && has_uids(),
            root: geteuid().is_root(),
            namespaces: false,
            cgroup: cgroup::Controllers::default(),
            landlock: landlock::abi().min(mask.landlock),
            seccomp: !mask.seccomp && seccomp::is_there(),
            network: !mask.network && !mask.seccomp && notify::works(),
            filter: !mask.filter && filter::works(),
            kernel,
            masked: String::new(),
        }
    }

    pub fn tier(&self) -> Tier {
        if !self.seccomp {
            return Tier::Unconfined;
        }
        match (self.uid, self.cgroup.memory && self.cgroup.pids, self.namespaces) {
            (true, true, true) => Tier::T3,
            (true, true, false) => Tier::T2,
            (true, false, _) => Tier::T1,
            // As root, nothing but Landlock would stand between a session and the machine.
            (false, ..) if self.landlock >= LANDLOCK_WITH_SCOPES && !self.root => Tier::T0,
            (false, ..) => Tier::Unconfined,
        }
    }

    /// Who decides about modes and times of files. A session that is root is kept from none.
    pub fn attributes(&self) -> Attributes {
        match (self.uid || self.root, self.network) {
            (true, _) => Attributes::ByOwner,
            (false, true) => Attributes::ByHost,
            (false, false) => Attributes::Fixed,
        }
    }

    /// As sessions and workers list them.
    pub fn names(&self) -> Vec<String> {
        let mut names = vec!["rlimits".to_owned()];
        let mut add = |there: bool, name: &str| {
            if there {
                names.push(name.to_owned());
            }
        };
        add(self.uid, "uid");
        add(self.seccomp, "seccomp");
        add(self.landlock > 0, &format!("landlock:{}", self.landlock));
        add(self.cgroup.memory, "cgroup:memory");
        add(self.cgroup.pids, "cgroup:pids");
        add(self.cgroup.cpu, "cgroup:cpu");
        add(self.namespaces, "namespaces");
        add(self.network, "network");
        add(self.filter, "filter");
        add(self.seccomp && self.attributes() == Attributes::ByHost, "attributes");
        names
    }

    /// What is missing for the next tier, and what would bring it.
    pub fn next(&self) -> Option<&'static str> {
        Some(match self.tier() {
            Tier::Unconfined if !self.seccomp => "a kernel with seccomp filters",
            Tier::Unconfined => {
                "run the worker as root (in a container: not as another user), or use a kernel with Landlock 6 (6.12)"
            }
            Tier::T0 => "run the worker as root, as its image does: every session then gets a uid of its own",
            Tier::T1 => {
                "let the worker write control groups (in a container: `security_opt: [writable-cgroups=true]`)"
            }
            Tier::T2 => "let the worker make namespaces (CAP_SYS_ADMIN); not worth a privileged container",
            Tier::T3 => return None,
        })
    }
}

/// Whether sessions can have a uid each.
pub fn has_uids() -> bool {
    capabilities::effective().contains(capabilities::FOR_UIDS)
}

/// Whether this process may make namespaces; it is certain only when it did.
pub fn may_make_namespaces() -> bool {
    capabilities::effective().contains(capabilities::FOR_NAMESPACES)
}

/// The first directory on the way to `path` that others may not pass; sessions under uids of their own could not either.
pub fn impassable(path: &Path) -> Option<&Path> {
    use std::os::unix::fs::PermissionsExt;
    let closed = |dir: &&Path| fs::metadata(dir).is_ok_and(|meta| meta.permissions().mode() & 0o001 == 0);
    path.ancestors().filter(closed).last()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Facilities {
        Facilities {
            uid: true,
            root: true,
            namespaces: true,
            cgroup: cgroup::Controllers { memory: true, pids: true, cpu: true },
            landlock: 7,
            seccomp: true,
            ..Facilities::default()
        }
    }

    #[test]
    fn each_facility_that_goes_takes_its_tiers_along() {
        assert_eq!(all().tier(), Tier::T3);
        assert_eq!(Facilities { namespaces: false, ..all() }.tier(), Tier::T2);
        let no_cgroup = Facilities { cgroup: cgroup::Controllers::default(), ..all() };
        assert_eq!(no_cgroup.tier(), Tier::T1);
        assert_eq!(Facilities { landlock: 0, ..no_cgroup }.tier(), Tier::T1);
        assert_eq!(Facilities { uid: false, root: false, ..all() }.tier(), Tier::T0);
        assert_eq!(Facilities { uid: false, root: false, landlock: 5, ..all() }.tier(), Tier::Unconfined);
        assert_eq!(Facilities { uid: false, ..all() }.tier(), Tier::Unconfined, "root without uids");
        assert_eq!(Facilities { seccomp: false, ..all() }.tier(), Tier::Unconfined);
        assert!(Tier::T0 < Tier::T3 && Tier::Unconfined < Tier::T0);
    }

    #[test]
    fn a_mask_names_what_to_do_without() {
        let mask = Mask::parse("landlock:4, uid,cgroup,filter").unwrap();
        assert_eq!((mask.landlock, mask.uid, mask.cgroup, mask.namespaces), (4, true, true, false));
        assert!(mask.filter && !mask.network);
        assert_eq!(Mask::parse("landlock").unwrap().landlock, 0);
        assert!(Mask::parse("yama").is_err() && Mask::parse("uid:3").is_err());
    }
}
