//! Changes the packages of a session's venv: the process `worker-install`, which runs uv, or pip where uv is not to be
//! had, on a copy of the venv (`stage`).
//!
//! The installer runs in the session's environment plus the worker's index, proxy and CA settings; those reach
//! installs only, never the session's own code. Every session has a cache of its own and files are copied out of it:
//! hard links to a shared, writable cache would let one session change another's packages.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode, ExitStatus, Stdio},
};

use cooper_common::{
    error::{Error, Result},
    limits::request,
    redact::Redactor,
};
use cooper_proto::v1;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::sys;
use crate::{
    confine::{self, Plan},
    egress::{dial::Place, index::Index},
};
use pip_settings::Settings;
use stage::Stage;

pub mod listing;
mod passwords;
mod pip_settings;
pub mod stage;

/// Names of modules; more than an interpreter is known to have imported do not come.
const REPORT_BYTES_MAX: u64 = 1 << 20;

/// What is to become of a session's packages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Order {
    Install(Wanted),
    /// Names.
    Uninstall(Vec<String>),
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Wanted {
    /// Requirements.
    pub packages: Vec<String>,
    /// Text of a requirements file.
    pub requirements: String,
    /// What `pip` in a session was given besides, as paths of the session: requirements files, constraints, projects to
    /// install in place.
    pub requirement_files: Vec<String>,
    pub constraint_files: Vec<String>,
    pub editable: Vec<String>,
    /// Of whoever called `pip`; empty = the workspace.
    pub cwd: PathBuf,
    pub upgrade: bool,
    pub reinstall: bool,
    pub no_deps: bool,
    pub prerelease: bool,
    /// Instead of the worker's index.
    pub index_url: String,
}

/// What the host hands over as descriptor 3. Descriptor 4 is for the [`Report`].
#[derive(Serialize, Deserialize)]
pub struct Job {
    /// Taken on before the installer runs: what it builds is the session's code, or anybody's.
    pub confinement: Plan,
    pub order: Order,
    pub venv: PathBuf,
    pub workspace: PathBuf,
    pub cache: PathBuf,
    /// Where a fetched uv is kept, for all sessions of the worker.
    pub tools: PathBuf,
    pub base_python: PathBuf,
    /// The session's environment.
    pub env: Vec<(String, String)>,
    /// Modules that the session's interpreter has imported.
    pub imported: BTreeSet<String>,
}

/// What the host hears of it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Of the modules that are imported, those that are others now.
    pub changed: BTreeSet<String>,
}

impl Report {
    /// Nothing in it is believed beyond its own session; what cannot be read says nothing.
    pub fn read(file: Option<File>) -> Self {
        let read = |file: File| -> Option<Self> {
            let mut json = vec![0; file.metadata().ok()?.len().min(REPORT_BYTES_MAX) as usize];
            file.read_exact_at(&mut json, 0).ok()?;
            serde_json::from_slice(&json).ok()
        };
        file.and_then(read).unwrap_or_default()
    }
}

impl Order {
    pub fn of_install(spec: v1::InstallSpec) -> Result<Self> {
        let wanted = Wanted {
            packages: spec.packages,
            requirements: spec.requirements,
            upgrade: spec.upgrade,
            index_url: spec.index_url,
            ..Wanted::default()
        };
        Self::Install(wanted).checked()
    }

    /// Requirement specifiers only: nothing an installer could take for an option or for several lines of a file.
    pub fn checked(mut self) -> Result<Self> {
        let named = match &mut self {
            Self::Install(wanted) => {
                requirements_of_text(&wanted.requirements)?;
                let files = [&wanted.requirement_files, &wanted.constraint_files, &wanted.editable];
                for file in files.into_iter().flatten() {
                    if file.is_empty() || file.starts_with('-') || file.contains('\0') {
                        return Err(Error::invalid(format!("{file:?} is no path")));
                    }
                }
                let others = wanted.requirement_files.len() + wanted.editable.len();
                if others + wanted.constraint_files.len() > request::PACKAGES_MAX {
                    return Err(Error::invalid(format!("more than {} files", request::PACKAGES_MAX)));
                }
                if wanted.packages.is_empty() && (others > 0 || !wanted.requirements.trim().is_empty()) {
                    return Ok(self);
                }
                &mut wanted.packages
            }
            Self::Uninstall(names) => names,
        };
        if named.is_empty() || named.len() > request::PACKAGES_MAX {
            return Err(Error::invalid(format!("name 1 to {} packages", request::PACKAGES_MAX)));
        }
        for package in named {
            *package = package.trim().to_owned();
            if package.is_empty() || package.starts_with('-') || package.contains(['\0', '\n', '\r']) {
                return Err(Error::invalid(format!(
                    "{package:?} is not a requirement (options are refused)"
                )));
            }
        }
        Ok(self)
    }

    /// Where it wants packages from, when not from the worker's index.
    pub fn index(&self) -> Result<Option<Place>> {
        match self {
            Self::Install(wanted) if !wanted.index_url.is_empty() => {
                let url = &wanted.index_url;
                let place = pip_settings::place(url).filter(|_| !url.contains('@'));
                place.map(Some).ok_or_else(|| {
                    Error::invalid(format!("{url:?} is no index: http or https, without user and password"))
                })
            }
            _ => Ok(None),
        }
    }
}

/// A line that is an option would be one to the installer; hashes belong to the requirement before them.
fn requirements_of_text(text: &str) -> Result<()> {
    if text.len() > request::REQUIREMENTS_BYTES_MAX || text.contains('\0') {
        return Err(Error::invalid(format!(
            "requirements: at most {} bytes of text",
            request::REQUIREMENTS_BYTES_MAX
        )));
    }
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.starts_with('-') && !line.starts_with("--hash") {
            let number = number + 1;
            return Err(Error::invalid(format!("requirements, line {number}: options are not taken here"))
                .with_hint("packages are named one a line; an index is `--index-url` of the command"));
        }
    }
    Ok(())
}

/// Entry of the process `worker-install`.
pub fn main() -> ExitCode {
    // It has the worker's environment: no other process of the same uid may look.
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    match read_job().and_then(|job| perform(&job)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("cooper: packages cannot be changed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn read_job() -> io::Result<Job> {
    let mut json = Vec::new();
    File::from(descriptor(3)).read_to_end(&mut json)?;
    Ok(serde_json::from_slice(&json)?)
}

/// Runs the installer on a copy of the venv, which becomes the venv when it went well.
fn perform(job: &Job) -> io::Result<ExitCode> {
    let report = File::from(descriptor(4));
    rustix::io::fcntl_setfd(&report, rustix::io::FdFlags::CLOEXEC)?;
    let mut settings = Settings::of_worker(&job.base_python);
    if job.confinement.is_intercepted() {
        settings.leave_the_way_to_the_session();
    }
    if !settings.hide_passwords().is_empty() && !job.confinement.is_intercepted() {
        return Err(io::Error::other(
            "the worker's package index takes a password, which what is installed could read here: connects of sessions \
             are not answered by the worker (facility `network`)",
        ));
    }
    if job.order.index().is_ok_and(|index| index.is_some()) {
        settings.leave_the_index();
    }
    let mut readable = settings.places();
    let uv = find_uv(job);
    readable.extend(uv.clone());
    confine(job, &readable)
        .map_err(|(part, error)| io::Error::other(format!("{}: {error}", part.as_str())))?;
    // Again: a change of uid decides about it anew.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    let stage = Stage::make(&job.workspace, &job.venv, &job.cache)?;
    match change(job, &settings, uv.as_deref(), &stage) {
        Ok(status) if status.success() => {
            let changed = stage.changed(&job.imported);
            stage.commit()?;
            if !changed.is_empty() {
                let names: Vec<&str> = changed.iter().map(String::as_str).collect();
                eprintln!("cooper: restart required: the interpreter keeps the old {}", names.join(", "));
            }
            serde_json::to_writer(report, &Report { changed })?;
            Ok(ExitCode::SUCCESS)
        }
        Ok(status) => {
            stage.discard();
            Ok(status.code().map_or(ExitCode::FAILURE, |code| ExitCode::from(code as u8)))
        }
        Err(error) => {
            stage.discard();
            Err(error)
        }
    }
}

fn change(job: &Job, settings: &Settings, uv: Option<&Path>, stage: &Stage) -> io::Result<ExitStatus> {
    let mut command = match (&job.order, uv) {
        (Order::Uninstall(names), uv) => {
            listing::all_are_there(&stage.site()?, names)?;
            let mut command = match uv {
                Some(uv) => uv_command(uv, job, settings, stage, "uninstall"),
                None => {
                    let mut command = pip_command(job, settings, stage, "uninstall");
                    command.arg("--yes");
                    command
                }
            };
            command.arg("--").args(names);
            command
        }
        (Order::Install(wanted), Some(uv)) => {
            let mut command = uv_command(uv, job, settings, stage, "install");
            command.args(["--link-mode", "copy"]);
            if settings.no_index && wanted.index_url.is_empty() {
                command.arg("--no-index");
            }
            if wanted.prerelease {
                command.args(["--prerelease", "allow"]);
            }
            if !wanted.index_url.is_empty() {
                command.args(["--default-index", &wanted.index_url]);
            }
            wanted.name_to(&mut command, "--reinstall");
            command
        }
        (Order::Install(wanted), None) => {
            let mut command = pip_command(job, settings, stage, "install");
            command.args(["--progress-bar", "off"]);
            if wanted.prerelease {
                command.arg("--pre");
            }
            if !wanted.index_url.is_empty() {
                command.args(["--index-url", &wanted.index_url]);
            }
            wanted.name_to(&mut command, "--force-reinstall");
            command
        }
    };
    let text = match &job.order {
        Order::Install(wanted) => wanted.requirements.as_bytes(),
        Order::Uninstall(_) => &[],
    };
    // The text of requirements is its standard input.
    let mut child = command.stdin(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that ended already says so by its status.
        let _ = stdin.write_all(text);
    }
    child.wait()
}

impl Wanted {
    /// What both installers call the same.
    fn name_to(&self, command: &mut Command, reinstall: &str) {
        for (is, option) in
            [(self.upgrade, "--upgrade"), (self.reinstall, reinstall), (self.no_deps, "--no-deps")]
        {
            if is {
                command.arg(option);
            }
        }
        if !self.cwd.as_os_str().is_empty() {
            command.current_dir(&self.cwd);
        }
        let lists = [("-r", &self.requirement_files), ("-c", &self.constraint_files), ("-e", &self.editable)];
        for (option, paths) in lists {
            for path in paths {
                command.arg(option).arg(path);
            }
        }
        if !self.requirements.trim().is_empty() {
            command.args(["-r", "/dev/stdin"]);
        }
        command.arg("--").args(&self.packages);
    }
}

/// From here on this process has the session's rights, but for the network, which an index is reached by.
fn confine(job: &Job, readable: &[PathBuf]) -> Result<(), confine::Failed> {
    let mounts = job.confinement.is_caged().then(|| descriptor(5));
    let next = 5 + i32::from(mounts.is_some());
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

fn uv_command(uv: &Path, job: &Job, settings: &Settings, stage: &Stage, what: &str) -> Command {
    let mut command = Command::new(uv);
    command.args(["pip", what, "--color", "never", "--no-progress", "--python"]);
    command.arg(stage.python()).arg("--cache-dir").arg(&job.cache);
    command.env_clear().envs(job.env.iter().cloned()).envs(settings.for_uv());
    command.env("UV_PYTHON_DOWNLOADS", "never");
    command
}

fn pip_command(job: &Job, settings: &Settings, stage: &Stage, what: &str) -> Command {
    let mut command = Command::new(&job.base_python);
    command.args(["-m", "pip", "--python"]).arg(stage.python());
    command.args([what, "--disable-pip-version-check", "--no-input", "--cache-dir"]).arg(&job.cache);
    command.env_clear().envs(job.env.iter().cloned()).envs(settings.for_pip());
    command
}

/// Where packages come from, and what programs of a session are told of that: nothing secret.
pub fn index(base_python: &Path) -> Reached {
    let mut settings = Settings::of_worker(base_python);
    let (hosts, told) = (settings.hosts(base_python), settings.for_sessions());
    let passwords = settings.hide_passwords();
    let authorities = settings.authorities();
    let roots = format!("{}{authorities}", machines_roots(base_python));
    Reached { hosts, told, passwords, authorities, roots }
}

/// Where systems keep the certificates that their programs trust.
const ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// What programs of this machine trust, as PEM; on one that has nothing of its own, what pip does.
fn machines_roots(base_python: &Path) -> String {
    let found = ROOTS.iter().filter_map(|file| fs::read_to_string(file).ok()).find(|pem| !pem.is_empty());
    let of_pip = || {
        let mut command = Command::new(base_python);
        command.args(["-I", "-c", "from pip._vendor import certifi; print(certifi.where())"]);
        let said = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?.stdout;
        fs::read_to_string(String::from_utf8(said).ok()?.trim()).ok()
    };
    found.or_else(of_pip).map(|pem| pem + "\n").unwrap_or_default()
}

/// The worker's package indexes.
#[derive(Default)]
pub struct Reached {
    pub hosts: Vec<Place>,
    /// Variables for sessions, without anything secret.
    pub told: Vec<(String, String)>,
    /// Those that take a password.
    pub passwords: Vec<Index>,
    /// Certificates that are trusted by these settings, as PEM.
    pub authorities: String,
    /// The same with those that the machine's programs trust.
    pub roots: String,
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

    fn install(packages: &[&str], requirements: &str) -> Result<Order> {
        let packages = packages.iter().map(|package| (*package).to_owned()).collect();
        let requirements = requirements.to_owned();
        Order::of_install(v1::InstallSpec { packages, requirements, ..v1::InstallSpec::default() })
    }

    #[test]
    fn only_requirements_are_taken() {
        let Order::Install(wanted) = install(&["requests>=2", " numpy "], "").unwrap() else { panic!() };
        assert_eq!(wanted.packages, ["requests>=2", "numpy"]);
        for bad in ["-r file", " --index-url=x", "a\nb", "", "a\0"] {
            assert!(install(&["ok", bad], "").is_err(), "{bad:?}");
            assert!(Order::Uninstall(vec![bad.to_owned()]).checked().is_err(), "{bad:?}");
        }
        assert!(install(&[], "").is_err() && install(&[], " \n").is_err());
    }

    #[test]
    fn a_requirements_text_holds_requirements_and_their_hashes() {
        assert!(
            install(&[], "# ours\nsix==1 \\\n    --hash=sha256:00\nidna; python_version > '3'\n").is_ok()
        );
        for option in ["-r other.txt", "  --index-url https://x.test", "-e ."] {
            let refused = install(&[], &format!("six\n{option}\n")).unwrap_err();
            assert!(refused.message.contains("line 2"), "{refused}");
        }
    }
}
