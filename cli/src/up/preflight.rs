//! What must hold before anything starts: one clear line for each thing that does not.

use std::{
    env,
    fs::{self, File, OpenOptions},
    io::{self, Read},
    net::{SocketAddr, TcpListener},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use cooper_common::{config::Config, data_dir, error::Code};
use rustix::fs::FlockOperation;

use super::child::Name;
use crate::failure::{Failure, Result};

/// The data directory, held: one `cooper up` at a time.
pub(super) struct Data {
    pub(super) dir: PathBuf,
    /// Locked as long as it is open; its content says who holds it and what it started.
    pub(super) lock: File,
}

impl Data {
    pub(super) fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }
    pub(super) fn log(&self, name: Name) -> PathBuf {
        self.logs().join(format!("{name}.log"))
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        // Everything it names has ended.
        let _ = self.lock.set_len(0);
    }
}

pub(super) fn data(config: &Config) -> Result<Data> {
    let dir = config.data();
    let unusable = |what: &Path, error: io::Error| {
        Failure::new(Code::DataUnusable, format!("cannot use the data directory {}: {error}", what.display()))
    };
    data_dir::create(&dir)
        .and_then(|()| fs::DirBuilder::new().recursive(true).mode(0o700).create(dir.join("logs")))
        .map_err(|error| unusable(&dir, error))?;
    let path = dir.join("up.lock");
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|error| unusable(&dir, error))?;
    if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Err(busy(&dir, &mut lock));
    }
    // It holds tokens: no tree that it lies in should take it along.
    let ignore = dir.join(".gitignore");
    if !ignore.exists() {
        fs::write(&ignore, "*\n").map_err(|error| unusable(&dir, error))?;
    }
    Ok(Data { dir, lock })
}

fn busy(dir: &Path, lock: &mut File) -> Failure {
    let mut text = String::new();
    let _ = lock.read_to_string(&mut text);
    let holder = serde_json::from_str::<serde_json::Value>(&text).ok().and_then(|all| all["pid"].as_u64());
    let holder =
        holder.map_or_else(|| "another cooper up".to_owned(), |pid| format!("cooper up with pid {pid}"));
    Failure::new(Code::DataBusy, format!("{} is in use by {holder}", dir.display()))
}

/// A worker started by hand takes over what a dead host of its directory left; from a live `up` it takes nothing.
pub(crate) fn not_beside_up(dir: &Path) -> Result<()> {
    // No lock file: no `up` was ever here.
    let Ok(mut lock) = File::open(dir.join("up.lock")) else { return Ok(()) };
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(()),
        Err(_) => Err(busy(dir, &mut lock)),
    }
}

/// A coordinator started by hand on this directory would leave ours waiting for it.
pub(super) fn store_is_free(data: &Data) -> Result<()> {
    match cooper_coordinator::store::sqlite::holder(&data.dir) {
        None => Ok(()),
        Some(pid) => Err(Failure::new(
            Code::DataBusy,
            format!("{} is in use by a coordinator with pid {pid}", data.dir.display()),
        )),
    }
}

/// The address, free at this moment.
pub(super) fn listen(config: &Config) -> Result<SocketAddr> {
    let Some(address) = config.address("listen") else {
        return Err(Failure::new(Code::Internal, "setting listen is not an address"));
    };
    match TcpListener::bind(address) {
        Ok(_) => Ok(address),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            Err(Failure::new(Code::PortTaken, format!("something else listens on {address}")))
        }
        Err(error) => Err(Failure::new(Code::ConfigInvalid, format!("cannot listen on {address}: {error}"))
            .hint("choose another --listen")),
    }
}

pub(super) struct Python {
    pub(super) version: String,
}

/// The Python that sessions will run on when they name none: the first of the setting, else python3 of PATH; 3.9 or newer.
pub(super) fn python(config: &Config) -> Result<Python> {
    let named = config.text("python").filter(|python| python != "auto");
    let first = named.as_deref().and_then(|python| python.split(',').next()).unwrap_or("python3");
    let program = first.to_owned();
    let missing = |what: String| Failure::new(Code::PythonMissing, what);
    if named.is_none() && !in_path(&program) {
        return Err(missing("there is no python3 in PATH".to_owned()));
    }
    let output = Command::new(&program)
        .args(["-I", "-c", "import sys; print('%d.%d.%d' % sys.version_info[:3])"])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| missing(format!("cannot run {program}: {error}")))?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let mut numbers = version.split('.').map_while(|number| number.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) >= (3, 9) => Ok(Python { version }),
        (Some(_), Some(_)) => Err(missing(format!("{program} is Python {version}; 3.9 or newer is needed"))),
        _ => {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.lines().last().unwrap_or("it printed no version");
            Err(missing(format!("{program} does not run: {said}")))
        }
    }
}

pub(super) fn in_path(program: &str) -> bool {
    env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}
