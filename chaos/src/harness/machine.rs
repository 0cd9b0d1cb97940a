//! What this machine allows: a small file system of one's own, a network namespace, a wall clock that can be moved.
//! What it does not is said, and left out of the faults.

use std::{
    fs::{self, File},
    io::Write,
    net::{IpAddr, Ipv4Addr},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// Set once this process has a mount namespace of its own.
const APART: &str = "COOPER_CHAOS_APART";
/// Of memory, as far as it is used: a run of 30,000 tasks writes about 150 MiB.
const DISK_BYTES: &str = "768m";
const FAKETIME: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/faketime/libfaketime.so.1",
];

/// Starts this program anew in a mount namespace of its own, where that is allowed: whatever is mounted there goes
/// with its last process, however that ends.
pub fn go_apart() -> Result<()> {
    if std::env::var_os(APART).is_some() || !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let program = std::env::current_exe()?;
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "--"])
        .arg(program)
        .args(std::env::args_os().skip(1));
    let allowed = Command::new("unshare").args(["--mount", "true"]).stderr(Stdio::null()).status();
    if allowed.is_ok_and(|status| status.success()) {
        return Err(command.env(APART, "1").exec().into());
    }
    Ok(())
}

fn is_apart() -> bool {
    std::env::var_os(APART).is_some()
}

fn run(words: &[&str]) -> Result<()> {
    let out = Command::new(words[0]).args(&words[1..]).stdin(Stdio::null()).output();
    let out = out.with_context(|| words.join(" "))?;
    if !out.status.success() {
        bail!("{}: {}", words.join(" "), String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(())
}

/// A file system that is small enough to be filled.
pub struct Disk {
    dir: PathBuf,
}

impl Disk {
    pub fn mount(dir: &Path) -> Result<Self> {
        if !is_apart() {
            bail!("needs root and a mount namespace");
        }
        let options = format!("size={DISK_BYTES},mode=0755");
        run(&["mount", "-t", "tmpfs", "-o", &options, "cooper-chaos", &dir.to_string_lossy()])?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// For good; what a run is kept for is copied to where it was mounted.
    pub fn unmount(&self, keep: bool) -> Result<()> {
        let dir = self.dir.to_string_lossy();
        let copy = format!("{dir}.kept");
        if keep {
            run(&["cp", "-a", &dir, &copy])?;
        }
        run(&["umount", "--lazy", &dir])?;
        if keep {
            fs::remove_dir(&self.dir)?;
            fs::rename(copy, &self.dir)?;
        }
        Ok(())
    }

    fn ballast(&self) -> PathBuf {
        self.dir.join("ballast")
    }

    pub fn fill(&self) -> Result<()> {
        let mut file = File::create(self.ballast())?;
        for size in [1 << 20, 4 << 10] {
            let zeros = vec![0; size];
            while file.write_all(&zeros).is_ok() {}
        }
        Ok(())
    }

    pub fn free(&self) {
        let _ = fs::remove_file(self.ballast());
    }
}

/// A network namespace at the other end of a pair of interfaces.
pub struct Namespace {
    name: String,
    /// Of this end.
    pub ours: IpAddr,
}

impl Namespace {
    pub fn make() -> Result<Self> {
        if !is_apart() {
            bail!("needs root and a mount namespace");
        }
        sweep();
        let pid = std::process::id();
        let (name, interface, theirs) = (format!("chaos{pid}"), interface(pid), format!("ch{pid}b"));
        let net = [10, 213, (pid >> 6) as u8, ((pid & 63) << 2) as u8];
        let ip = |host: u8| Ipv4Addr::new(net[0], net[1], net[2], net[3] + host);
        fs::create_dir_all("/run/netns").ok();
        run(&["ip", "netns", "add", &name])?;
        let made = Self { name: name.clone(), ours: ip(1).into() };
        run(&["ip", "link", "add", &interface, "type", "veth", "peer", "name", &theirs, "netns", &name])?;
        run(&["ip", "addr", "add", &format!("{}/30", ip(1)), "dev", &interface])?;
        run(&["ip", "link", "set", &interface, "up"])?;
        made.inside(&["ip", "addr", "add", &format!("{}/30", ip(2)), "dev", &theirs])?;
        made.inside(&["ip", "link", "set", &theirs, "up"])?;
        made.inside(&["ip", "link", "set", "lo", "up"])?;
        made.inside(&["iptables", "-L", "-n"])?;
        Ok(made)
    }

    fn inside(&self, words: &[&str]) -> Result<()> {
        run(&[&["ip", "netns", "exec", &self.name], words].concat())
    }

    /// What a command has to start with to run in there.
    pub fn prefix(&self) -> Vec<String> {
        ["ip", "netns", "exec", &self.name].map(str::to_owned).into()
    }

    pub fn drop_packets(&self, on: bool) -> Result<()> {
        let how = if on { "-A" } else { "-D" };
        for chain in ["INPUT", "OUTPUT"] {
            self.inside(&["iptables", "-w", how, chain, "-j", "DROP"])?;
        }
        Ok(())
    }

    pub fn remove(&self) {
        remove(std::process::id());
    }
}

/// The end of the pair that is on our side.
fn interface(pid: u32) -> String {
    format!("ch{pid}a")
}

fn remove(pid: u32) {
    let _ = run(&["ip", "link", "del", &interface(pid)]);
    let _ = run(&["ip", "netns", "del", &format!("chaos{pid}")]);
}

/// Removes what harnesses left that were killed themselves.
fn sweep() {
    let left = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let pids = left.filter_map(|left| left.file_name().to_str()?.strip_prefix("chaos")?.parse::<u32>().ok());
    for pid in pids.filter(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
        remove(pid);
    }
}

/// A wall clock that moves while its process runs. The monotonic clock stays true.
pub struct Clock {
    library: &'static str,
    file: PathBuf,
}

impl Clock {
    pub fn make(dir: &Path) -> Result<Self> {
        let found = FAKETIME.into_iter().find(|path| Path::new(path).exists());
        let library = found.context("needs libfaketime (Debian: libfaketime)")?;
        let clock = Self { library, file: dir.join("clock") };
        clock.set(0)?;
        Ok(clock)
    }

    pub fn set(&self, offset_s: i64) -> Result<()> {
        let temporary = self.file.with_extension("new");
        fs::write(&temporary, format!("{offset_s:+}\n"))?;
        Ok(fs::rename(temporary, &self.file)?)
    }

    pub fn env(&self) -> [(&'static str, String); 4] {
        [
            ("LD_PRELOAD", self.library.to_owned()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.to_string_lossy().into_owned()),
            ("FAKETIME_CACHE_DURATION", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
    }
}
