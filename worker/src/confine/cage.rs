//! Namespaces: a view of the machine in which there is nothing but what sessions run on, and no network.
//!
//! Built once when the host starts; a session's process enters it and gets its own /tmp, /var/tmp and /dev/shm. Inside,
//! /proc shows a session its own processes only, and every directory on the way to Python and to the workspaces can be
//! passed, whoever may pass it outside. It is kept by two descriptors: when the host goes, it goes.
#![allow(unsafe_code)]

use std::{
    ffi::CString,
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::PermissionsExt},
    },
    path::{Path, PathBuf},
    ptr,
};

/// What of the machine is seen inside, read-only. Links (/bin on most) are made as links.
const SYSTEM: [&str; 9] =
    ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/sys/devices/system"];
const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];
const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];
/// What a session has to itself: place inside, and directory of its home.
const PRIVATE: [(&str, &str); 3] = [("/tmp", "tmp"), ("/var/tmp", "tmp"), ("/dev/shm", "shm")];

pub struct Cage {
    mounts: OwnedFd,
    network: OwnedFd,
    private: Vec<Private>,
}

/// A place inside, and the directory of a session's home that is mounted there.
pub type Private = (&'static str, &'static str);

/// Those of [`PRIVATE`] that can be: a place with the workspaces or Python beneath stays as it is, bare and read-only.
pub fn private(visible: &[(PathBuf, bool)]) -> Vec<Private> {
    let hides = |place: &str| visible.iter().any(|(path, _)| path.starts_with(place));
    PRIVATE.into_iter().filter(|(place, _)| !hides(place)).collect()
}

impl Cage {
    /// Builds it. `scratch` is a directory of the worker's own, `visible` what is seen besides the system: read-only
    /// unless `true`.
    ///
    /// # Errors
    /// Where this process may not make namespaces, or the kernel has none.
    pub fn build(scratch: &Path, visible: &[(PathBuf, bool)]) -> io::Result<Self> {
        let (done_read, done_write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let (go_read, go_write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        // SAFETY: the host has one thread: the child inherits no lock that nobody will release.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                let errno = match build_here(scratch, visible) {
                    Ok(()) => 0,
                    Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
                };
                let _ = rustix::io::write(&done_write, &errno.to_ne_bytes());
                drop(go_write);
                let _ = rustix::io::read(&go_read, &mut [0u8]);
                // SAFETY: _exit has no preconditions.
                unsafe { libc::_exit(0) }
            }
            child => {
                drop((done_write, go_read));
                let mut errno = [0u8; 4];
                let said = rustix::io::retry_on_intr(|| rustix::io::read(&done_read, &mut errno));
                let namespace = |name: &str| -> io::Result<OwnedFd> {
                    Ok(File::open(format!("/proc/{child}/ns/{name}"))?.into())
                };
                let cage = match (said, i32::from_ne_bytes(errno)) {
                    (Ok(4), 0) => namespace("mnt").and_then(|mounts| {
                        Ok(Self { mounts, network: namespace("net")?, private: private(visible) })
                    }),
                    (Ok(4), errno) => Err(io::Error::from_raw_os_error(errno)),
                    _ => Err(io::ErrorKind::BrokenPipe.into()),
                };
                drop(go_write);
                // SAFETY: waits for the child made above.
                unsafe { libc::waitpid(child, ptr::null_mut(), 0) };
                cage
            }
        }
    }

    pub fn mounts(&self) -> &OwnedFd {
        &self.mounts
    }
    pub fn network(&self) -> &OwnedFd {
        &self.network
    }
    pub fn private(&self) -> &[Private] {
        &self.private
    }
}

/// Moves the calling process in, which has its capabilities still, and mounts its own directories at its own places.
/// Without `network` the network stays as it is.
pub fn enter(mounts: &OwnedFd, network: Option<&OwnedFd>, own: &[(PathBuf, PathBuf)]) -> io::Result<()> {
    network.map_or(Ok(()), |network| set_namespace(network, libc::CLONE_NEWNET))?;
    set_namespace(mounts, libc::CLONE_NEWNS)?;
    if own.is_empty() {
        return Ok(());
    }
    unshare(libc::CLONE_NEWNS)?;
    own.iter().try_for_each(|(directory, place)| mount(Some(directory), place, None, libc::MS_BIND, None))
}

fn build_here(scratch: &Path, visible: &[(PathBuf, bool)]) -> io::Result<()> {
    unshare(libc::CLONE_NEWNS | libc::CLONE_NEWNET)?;
    let root = Path::new("/");
    mount(None, root, None, libc::MS_REC | libc::MS_PRIVATE, None)?;
    mount(Some(Path::new("cooper")), scratch, Some("tmpfs"), libc::MS_NOSUID, Some("mode=755,size=1m"))?;
    let inside = |path: &Path| scratch.join(path.strip_prefix("/").unwrap_or(path));
    for path in SYSTEM.map(Path::new) {
        match fs::symlink_metadata(path) {
            Ok(meta) if meta.is_symlink() => {
                std::os::unix::fs::symlink(fs::read_link(path)?, inside(path))?;
            }
            Ok(_) => bind(path, &inside(path), false)?,
            Err(_) => {}
        }
    }
    for path in DEVICES.map(Path::new) {
        directory(inside(path).parent().unwrap_or(root))?;
        File::create(inside(path))?;
        mount(Some(path), &inside(path), None, libc::MS_BIND, None)?;
    }
    for (target, link) in LINKS {
        std::os::unix::fs::symlink(target, inside(Path::new(link)))?;
    }
    for (place, _) in PRIVATE {
        directory(&inside(Path::new(place)))?;
    }
    let proc = inside(Path::new("/proc"));
    directory(&proc)?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    mount(Some(Path::new("proc")), &proc, Some("proc"), flags, Some("hidepid=2"))?;
    for (path, writable) in visible {
        // One that lies in what is seen already is mounted there all the same.
        if path.exists() {
            bind(path, &inside(path), *writable)?;
        }
    }
    // Nothing is made in the root itself any more.
    let locked = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV;
    mount(None, scratch, None, locked, None)?;
    rustix::process::chdir(scratch)?;
    // The old root comes to lie over the new one, and is taken off.
    rustix::process::pivot_root(".", ".")?;
    // SAFETY: a plain call with a path that outlives it.
    match unsafe { libc::umount2(c".".as_ptr(), libc::MNT_DETACH) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn bind(from: &Path, to: &Path, writable: bool) -> io::Result<()> {
    if fs::metadata(from)?.is_dir() {
        directory(to)?;
    } else {
        directory(to.parent().unwrap_or(Path::new("/")))?;
        if !to.exists() {
            File::create(to)?;
        }
    }
    mount(Some(from), to, None, libc::MS_BIND | libc::MS_REC, None)?;
    let flags = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_NOSUID | libc::MS_NODEV;
    mount(None, to, None, flags | if writable { 0 } else { libc::MS_RDONLY }, None)
}

/// Makes it and what is missing on the way, to be passed by everybody.
fn directory(path: &Path) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    path.parent().map_or(Ok(()), directory)?;
    fs::create_dir(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

fn set_namespace(namespace: &OwnedFd, kind: i32) -> io::Result<()> {
    // SAFETY: no memory is passed; the process has one thread.
    match unsafe { libc::setns(namespace.as_raw_fd(), kind) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn unshare(kinds: i32) -> io::Result<()> {
    // SAFETY: no memory is passed; the process has one thread.
    match unsafe { libc::unshare(kinds) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn mount(
    from: Option<&Path>,
    to: &Path,
    kind: Option<&str>,
    flags: libc::c_ulong,
    data: Option<&str>,
) -> io::Result<()> {
    let text = |bytes: &[u8]| CString::new(bytes).map_err(io::Error::from);
    let from = from.map(|path| text(path.as_os_str().as_bytes())).transpose()?;
    let to = text(to.as_os_str().as_bytes())?;
    let kind = kind.map(|kind| text(kind.as_bytes())).transpose()?;
    let data = data.map(|data| text(data.as_bytes())).transpose()?;
    let pointer = |text: &Option<CString>| text.as_ref().map_or(ptr::null(), |text| text.as_ptr());
    // SAFETY: every string is NUL-terminated and outlives the call.
    let mounted =
        unsafe { libc::mount(pointer(&from), to.as_ptr(), pointer(&kind), flags, pointer(&data).cast()) };
    if mounted == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
