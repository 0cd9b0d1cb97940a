//! Landlock: which files, ports and processes of other domains a session reaches, enforced by the kernel for a process
//! and all it starts, without any privilege. Everything that the rules of [`base`] and of its [`Places`] do not name is
//! refused, as far as the kernel's version of Landlock knows of it.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags};

const EXECUTE: u64 = 1 << 0;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const REMOVE_DIR: u64 = 1 << 4;
const REMOVE_FILE: u64 = 1 << 5;
const MAKE_DIR: u64 = 1 << 7;
const MAKE_REG: u64 = 1 << 8;
const MAKE_FIFO: u64 = 1 << 10;
const MAKE_SYM: u64 = 1 << 12;
const REFER: u64 = 1 << 13;
const TRUNCATE: u64 = 1 << 14;
const IOCTL_DEV: u64 = 1 << 15;
/// Of these a rule on a file, not a directory, may grant some.
const OF_FILES: u64 = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV;

const READ: u64 = READ_FILE | READ_DIR;
const RUN: u64 = READ | EXECUTE;
/// Neither devices nor sockets are made: of those a session needs none.
const CHANGE: u64 = RUN
    | WRITE_FILE
    | REMOVE_DIR
    | REMOVE_FILE
    | MAKE_DIR
    | MAKE_REG
    | MAKE_FIFO
    | MAKE_SYM
    | REFER
    | TRUNCATE;

const BIND_TCP: u64 = 1 << 0;
const CONNECT_TCP: u64 = 1 << 1;
const SCOPE_ABSTRACT_UNIX: u64 = 1 << 0;
const SCOPE_SIGNAL: u64 = 1 << 1;

/// Rights on files that each version handles: what a version does not know, it does not refuse.
fn handled(abi: u32) -> u64 {
    match abi {
        0 => 0,
        1 => REFER - 1,
        2 => TRUNCATE - 1,
        3 | 4 => IOCTL_DEV - 1,
        _ => (IOCTL_DEV << 1) - 1,
    }
}

/// The kernel's version of Landlock; 0 = none.
pub fn abi() -> u32 {
    const VERSION: libc::c_ulong = 1;
    // SAFETY: with this flag the call takes no structure and answers with a number.
    let abi =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0usize, VERSION) };
    u32::try_from(abi).unwrap_or(0)
}

/// What is the same for every session of a worker: opened once, a session's ruleset then costs some 40 µs.
pub struct Base {
    abi: u32,
    rules: Vec<(OwnedFd, u64)>,
}

/// What a session has of its own.
pub struct Places<'a> {
    /// It may do there whatever it likes.
    pub own: &'a [PathBuf],
    /// More that it may read and run.
    pub readable: &'a [PathBuf],
    /// TCP is left alone: for installs.
    pub network: bool,
    /// Nothing but this keeps it from signalling others. Where it has a uid of its own, its commands may signal each
    /// other's processes.
    pub scope_signals: bool,
}

/// Opens what every session may read. What does not exist here is left out.
pub fn base(abi: u32, installed: &[PathBuf]) -> Base {
    let mut rules = Vec::new();
    let mut grant = |path: &Path, rights: u64| rules.extend(opened(path, rights));
    // The base Python and its standard library, and the layer of packages, wherever they are installed.
    installed.iter().for_each(|place| grant(place, RUN));
    // Programs and libraries of the system.
    for path in ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"] {
        grant(Path::new(path), RUN);
    }
    // The loader's cache and search path.
    for path in ["/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives"] {
        grant(Path::new(path), READ);
    }
    // Names of users and hosts; no shadow, no keys: /etc as a whole is not granted.
    for name in ["passwd", "group", "nsswitch.conf", "hosts", "host.conf", "resolv.conf", "gai.conf"] {
        grant(&Path::new("/etc").join(name), READ);
    }
    for name in
        ["services", "protocols", "localtime", "timezone", "mime.types", "os-release", "debian_version"]
    {
        grant(&Path::new("/etc").join(name), READ);
    }
    // Certificates of authorities; the private ones beside them belong to root and stay unreadable by mode.
    for name in ["ssl/certs", "ssl/openssl.cnf", "ca-certificates", "ca-certificates.conf", "pki/tls/certs"] {
        grant(&Path::new("/etc").join(name), READ);
    }
    // Fonts for figures; settings of shells and readline.
    for name in
        ["fonts", "inputrc", "profile", "bash.bashrc", "terminfo", "python3", "python3.11", "python3.12"]
    {
        grant(&Path::new("/etc").join(name), READ);
    }
    // How many processors there are, and in which nodes: for thread pools of numerical libraries.
    for path in ["/sys/devices/system/cpu", "/sys/devices/system/node", "/sys/kernel/mm/transparent_hugepage"]
    {
        grant(Path::new(path), READ);
    }
    // Of /proc what is about the machine; its own processes are added by the process itself ([`own_processes`]).
    for name in
        ["cpuinfo", "meminfo", "stat", "uptime", "loadavg", "version", "filesystems", "sys/kernel/osrelease"]
    {
        grant(&Path::new("/proc").join(name), READ);
    }
    for name in ["sys/kernel/ostype", "sys/kernel/version", "sys/kernel/pid_max", "sys/kernel/cap_last_cap"] {
        grant(&Path::new("/proc").join(name), READ);
    }
    for name in ["sys/vm/overcommit_memory", "sys/kernel/random", "sys/fs/pipe-max-size"] {
        grant(&Path::new("/proc").join(name), READ);
    }
    // Devices without a state of their own. /dev/shm is granted only where it is a private one.
    for name in ["null", "zero", "full", "random", "urandom"] {
        grant(&Path::new("/dev").join(name), READ_FILE | WRITE_FILE | TRUNCATE | IOCTL_DEV);
    }
    Base { abi, rules }
}

impl Base {
    /// A ruleset for one process tree; None without Landlock.
    pub fn ruleset(&self, places: &Places<'_>) -> io::Result<Option<OwnedFd>> {
        if self.abi == 0 {
            return Ok(None);
        }
        let scope = if places.scope_signals { SCOPE_SIGNAL } else { 0 } | SCOPE_ABSTRACT_UNIX;
        let attributes: [u64; 3] = [
            handled(self.abi),
            // Without a rule for any port: nothing may bind or connect.
            if self.abi >= 4 && !places.network { BIND_TCP | CONNECT_TCP } else { 0 },
            if self.abi >= 6 { scope } else { 0 },
        ];
        // SAFETY: three u64 are struct landlock_ruleset_attr; an older kernel takes a longer one whose end is zero.
        let ruleset = unsafe {
            match libc::syscall(
                libc::SYS_landlock_create_ruleset,
                attributes.as_ptr(),
                size_of_val(&attributes),
                0,
            ) {
                -1 => return Err(io::Error::last_os_error()),
                fd => OwnedFd::from_raw_fd(fd as i32),
            }
        };
        for (fd, rights) in &self.rules {
            self.add(&ruleset, fd, *rights)?;
        }
        for place in places.own {
            self.add(&ruleset, open(place)?, CHANGE)?;
        }
        for path in places.readable {
            if let Some((fd, rights)) = opened(path, RUN) {
                self.add(&ruleset, fd, rights)?;
            }
        }
        Ok(Some(ruleset))
    }

    fn add(&self, ruleset: &OwnedFd, beneath: impl AsFd, rights: u64) -> io::Result<()> {
        add(ruleset, beneath, rights & handled(self.abi))
    }
}

/// Lets the calling process see processes through /proc: all that this /proc shows where it shows only the session's own
/// (`all`), else only itself. The ruleset must be its own, or others would see it.
pub fn own_processes(ruleset: &OwnedFd, all: bool) -> io::Result<()> {
    add(ruleset, open(Path::new(if all { "/proc" } else { "/proc/self/." }))?, READ)
}

/// Confines the calling thread, which must have given up new privileges, and all that it starts from now on.
pub fn restrict(ruleset: &OwnedFd) -> io::Result<()> {
    // SAFETY: no memory is passed.
    match unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn add(ruleset: &OwnedFd, beneath: impl AsFd, rights: u64) -> io::Result<()> {
    const PATH_BENEATH: i32 = 1;
    // struct landlock_path_beneath_attr is packed: u64, then s32.
    let mut attributes = [0u8; 12];
    attributes[..8].copy_from_slice(&rights.to_ne_bytes());
    attributes[8..].copy_from_slice(&beneath.as_fd().as_raw_fd().to_ne_bytes());
    // SAFETY: the structure is as the kernel reads it and outlives the call.
    let added = unsafe {
        libc::syscall(libc::SYS_landlock_add_rule, ruleset.as_raw_fd(), PATH_BENEATH, attributes.as_ptr(), 0)
    };
    if added == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

fn opened(path: &Path, rights: u64) -> Option<(OwnedFd, u64)> {
    let fd = open(path).ok()?;
    let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&fd).ok()?.st_mode);
    Some((fd, if kind == rustix::fs::FileType::Directory { rights } else { rights & OF_FILES }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_handles_what_it_brought() {
        assert_eq!(handled(0), 0);
        assert_eq!((handled(1) & REFER, handled(2) & REFER), (0, REFER));
        assert_eq!((handled(2) & TRUNCATE, handled(3) & TRUNCATE), (0, TRUNCATE));
        assert_eq!((handled(4) & IOCTL_DEV, handled(7) & IOCTL_DEV), (0, IOCTL_DEV));
    }
}
