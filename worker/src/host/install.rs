//! Installs packages into a session's venv: the process `worker-install`, which becomes uv, or pip where uv is not to
//! be had.
//!
//! The installer runs in the session's environment plus the worker's index, proxy and CA settings; those reach
//! installs only, never the session's own code. Every session has a cache of its own and files are copied out of it:
//! hard links to a shared, writable cache would let one session change another's packages.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use cooper_common::{
    error::{Error, Result},
    limits::request,
    redact::Redactor,
};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::sys;
use crate::{
    confine::{self, Plan},
    egress::dial::Place,
};
use pip_settings::Settings;

mod pip_settings;

/// What the host hands over as descriptor 3.
#[derive(Serialize, Deserialize)]
pub struct Job {
    /// Taken on before the installer runs: what it builds is the session's code, or anybody's.
    pub confinement: Plan,
    pub packages: Vec<String>,
    pub venv: PathBuf,
    pub workspace: PathBuf,
    pub cache: PathBuf,
    /// Where a fetched uv is kept, for all sessions of the worker.
    pub tools: PathBuf,
    pub base_python: PathBuf,
    /// The session's environment.
    pub env: Vec<(String, String)>,
}

/// Requirement specifiers only: nothing an installer could take for an option or for several lines of a file.
pub fn checked(packages: Vec<String>) -> Result<Vec<String>> {
    if packages.is_empty() || packages.len() > request::PACKAGES_MAX {
        return Err(Error::invalid(format!("name 1 to {} packages", request::PACKAGES_MAX)));
    }
    for package in &packages {
        let trimmed = package.trim();
        if trimmed.is_empty() || trimmed.starts_with('-') || package.contains(['\0', '\n', '\r']) {
            return Err(Error::invalid(format!("{package:?} is not a requirement (options are refused)")));
        }
    }
    Ok(packages.into_iter().map(|package| package.trim().to_owned()).collect())
}

/// Entry of the process `worker-install`.
pub fn main() -> ExitCode {
    match read_job().and_then(|job| install(&job)) {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("cooper: packages cannot be installed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn read_job() -> io::Result<Job> {
    let mut json = Vec::new();
    File::from(descriptor(3)).read_to_end(&mut json)?;
    Ok(serde_json::from_slice(&json)?)
}

/// Becomes the installer. Returns only when that failed.
fn install(job: &Job) -> io::Result<std::convert::Infallible> {
    let mut settings = Settings::of_worker(&job.base_python);
    if job.confinement.is_intercepted() {
        settings.leave_the_way_to_the_session();
    }
    let mut readable = settings.places();
    let mut command = match find_uv(job) {
        Some(uv) => {
            let command = uv_command(&uv, job, &settings);
            readable.push(uv);
            command
        }
        None => pip_command(job, &settings),
    };
    command.arg("--").args(&job.packages).stdin(Stdio::null());
    confine(job, &readable)
        .map_err(|(part, error)| io::Error::other(format!("{}: {error}", part.as_str())))?;
    Err(command.exec())
}

/// From here on this process has the session's rights, but for the network, which an index is reached by.
fn confine(job: &Job, readable: &[PathBuf]) -> Result<(), confine::Failed> {
    let mounts = job.confinement.is_caged().then(|| descriptor(4));
    let next = 4 + i32::from(mounts.is_some());
    let theirs = job.confinement.is_intercepted().then(|| descriptor(next));
    let confinement = job
        .confinement
        .confinement(mounts, theirs, readable)
        .map_err(confine::of(confine::Part::Landlock))?;
    confinement.enter()?;
    if let Some(uid) = confinement.uid {
        sys::become_user(uid).map_err(confine::of(confine::Part::Uid))?;
        // The change of uid cleared it.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
            .map_err(confine::of(confine::Part::Uid))?;
    }
    rustix::process::chdir(&job.workspace).map_err(confine::of(confine::Part::Directory))?;
    confinement.restrict()
}

#[allow(unsafe_code)]
fn descriptor(number: i32) -> OwnedFd {
    // SAFETY: the host started this process with this descriptor open, for nobody but one caller.
    unsafe { OwnedFd::from_raw_fd(number) }
}

fn uv_command(uv: &Path, job: &Job, settings: &Settings) -> Command {
    let mut command = Command::new(uv);
    command.args(["pip", "install", "--link-mode", "copy", "--color", "never", "--no-progress", "--python"]);
    command.arg(job.venv.join("bin/python")).arg("--cache-dir").arg(&job.cache);
    if settings.no_index {
        command.arg("--no-index");
    }
    command.env_clear().envs(job.env.iter().cloned()).envs(settings.for_uv());
    command.env("UV_PYTHON_DOWNLOADS", "never");
    command
}

fn pip_command(job: &Job, settings: &Settings) -> Command {
    let mut command = Command::new(&job.base_python);
    command.args(["-m", "pip", "--python"]).arg(job.venv.join("bin/python"));
    command.args([
        "install",
        "--disable-pip-version-check",
        "--no-input",
        "--progress-bar",
        "off",
        "--cache-dir",
    ]);
    command.arg(&job.cache);
    command.env_clear().envs(job.env.iter().cloned()).envs(settings.for_pip());
    command
}

/// Where packages come from, and what programs of a session are told of that: nothing secret.
pub fn index(base_python: &Path) -> (Vec<Place>, Vec<(String, String)>) {
    let settings = Settings::of_worker(base_python);
    (settings.hosts(base_python), settings.for_sessions())
}

/// What installers use of the machine's files, besides the system's own.
pub fn places(base_python: &Path, tools: &Path) -> Vec<PathBuf> {
    let on_path = std::env::var_os("PATH").into_iter().flat_map(|path| {
        std::env::split_paths(&path).map(|dir| dir.join("uv")).filter(|uv| uv.is_file()).collect::<Vec<_>>()
    });
    let mut places = Settings::of_worker(base_python).places();
    places.extend(on_path);
    places.push(tools.to_owned());
    places
}

/// uv on the worker's PATH, else the one fetched before, else one fetched now.
fn find_uv(job: &Job) -> Option<PathBuf> {
    let on_path = std::env::var_os("PATH")
        .and_then(|path| std::env::split_paths(&path).map(|dir| dir.join("uv")).find(|uv| works(uv)));
    let fetched = job.tools.join("uv/bin/uv");
    on_path.or_else(|| works(&fetched).then(|| fetched.clone())).or_else(|| match fetch_uv(job) {
        Ok(()) => works(&fetched).then_some(fetched),
        Err(error) => {
            eprintln!("uv cannot be fetched ({error}); using pip");
            None
        }
    })
}

/// A file of that name may be a shim to nothing.
fn works(uv: &Path) -> bool {
    uv.is_file()
        && Command::new(uv)
            .arg("--version")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
}

/// Once per worker, whoever comes first; the others wait for it.
fn fetch_uv(job: &Job) -> io::Result<()> {
    fs::create_dir_all(&job.tools)?;
    let lock = OpenOptions::new().write(true).create(true).truncate(false).open(job.tools.join("uv.lock"))?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
    let (place, fresh) = (job.tools.join("uv"), job.tools.join("uv.new"));
    if works(&place.join("bin/uv")) {
        return Ok(());
    }
    for dir in [&place, &fresh] {
        if dir.exists() {
            fs::remove_dir_all(dir)?;
        }
    }
    eprintln!("fetching uv, once for this worker");
    let mut command = Command::new(&job.base_python);
    command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]);
    command.args(["--retries", "1", "--timeout", "15", "--target"]).arg(&fresh).args(["--", "uv"]);
    // With the worker's own environment: pip finds its own settings.
    let output = command.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("pip failed").to_owned();
        let secrets: Vec<(String, String)> = std::env::vars().collect();
        let redactor = Redactor::for_environment(secrets.iter().map(|(name, value)| (&**name, &**value)));
        return Err(io::Error::other(redactor.redact(&last).into_owned()));
    }
    fs::rename(fresh, place)
}

/// Variables the installer gets besides the session's; a later one of the same name wins.
type Variables = BTreeMap<String, OsString>;

#[cfg(test)]
mod tests {
    use super::*;

    fn packages(packages: &[&str]) -> Vec<String> {
        packages.iter().map(|package| (*package).to_owned()).collect()
    }

    #[test]
    fn only_requirements_are_taken() {
        assert_eq!(checked(packages(&["requests>=2", " numpy "])).unwrap(), ["requests>=2", "numpy"]);
        for bad in ["-r file", " --index-url=x", "a\nb", "", "a\0"] {
            assert!(checked(packages(&["ok", bad])).is_err(), "{bad:?}");
        }
        assert!(checked(Vec::new()).is_err());
    }
}
