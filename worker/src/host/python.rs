//! The base interpreter of the sessions, and the venv skeleton made from it.

use std::{
    fs,
    io::{self, Read},
    os::unix::fs::{DirBuilderExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use cooper_common::{
    clock,
    error::{Code, Error, Result},
    limits::zygote::PYTHONS_MAX,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Deserialize;

use crate::{config::Pythons as Named, confine::facilities::Facilities};

/// Oldest Python the runner works on.
const OLDEST: (u32, u32) = (3, 9);
const PROBE_MS: u64 = 10_000;

/// A usable base interpreter: the real executable, not a shim and not another venv's.
#[derive(Debug, Clone)]
pub struct Python {
    pub executable: PathBuf,
    /// Where it is installed: what it needs to run lies beneath, or in the system's own directories.
    pub prefix: PathBuf,
    /// A file of its standard library.
    library: Option<PathBuf>,
    /// major, minor, micro
    pub version: (u32, u32, u32),
}

impl Python {
    /// Where a venv of this Python has its packages.
    pub fn site_packages(&self, venv: &Path) -> PathBuf {
        venv.join(format!("lib/python{}.{}/site-packages", self.version.0, self.version.1))
    }

    pub fn version_text(&self) -> String {
        format!("{}.{}.{}", self.version.0, self.version.1, self.version.2)
    }

    /// Packages for one are good for all of the same.
    pub fn minor(&self) -> String {
        format!("{}.{}", self.version.0, self.version.1)
    }

    fn not_offered(&self, why: &str) -> String {
        format!("Python {} ({}) is not offered: {why}", self.version_text(), self.executable.display())
    }

    /// What of it nobody but its owner may read or pass. `way_open`: its prefix is reached whatever the way there is like.
    fn closed_to_others(&self, way_open: bool) -> Option<&Path> {
        let others = |path: &Path| fs::metadata(path).map_or(0, |meta| meta.permissions().mode() & 0o7);
        let files = [Some((&*self.executable, 0o1)), self.library.as_deref().map(|file| (file, 0o4))];
        files.into_iter().flatten().find_map(|(file, needed)| {
            let way = file.ancestors().skip(1);
            let counted = way.take_while(|dir| !way_open || dir.starts_with(&self.prefix));
            let closed = counted.filter(|dir| others(dir) & 0o1 == 0).last();
            closed.or_else(|| (others(file) & needed != needed).then_some(file))
        })
    }
}

/// What the sessions of a worker run on, of each version one; the first is for those that name none.
#[derive(Debug, Default)]
pub struct Pythons(Vec<Python>);

impl Pythons {
    /// Finds them, and says which were looked at and are not offered.
    pub fn find(named: &Named) -> Result<(Self, Vec<String>)> {
        let (mut found, mut notes) = (Self::default(), Vec::new());
        match named {
            Named::These(paths) => {
                if paths.len() > PYTHONS_MAX {
                    return Err(Error::invalid(format!("python names more than {PYTHONS_MAX}")));
                }
                for path in paths {
                    let python = probe(path).map_err(|why| {
                        Error::new(
                            Code::PythonMissing,
                            format!("{} is not a usable Python: {why}", path.display()),
                        )
                    })?;
                    notes.extend(found.add(python));
                }
            }
            Named::Usual => notes.extend(found.add(usual()?)),
            Named::All => {
                notes.extend(found.add(usual()?));
                for path in on_path() {
                    notes.extend(match probe(&path) {
                        Ok(python) => found.add(python),
                        Err(why) => Some(format!("{} is not offered: {why}", path.display())),
                    });
                }
            }
        }
        Ok((found, notes))
    }

    fn add(&mut self, python: Python) -> Option<String> {
        // The same by another name is nothing to tell of.
        let same = self.0.iter().find(|other| other.version == python.version);
        let why = match same {
            Some(same) if same.executable == python.executable => return None,
            Some(same) => format!("{} has the same version", same.executable.display()),
            None if self.0.len() >= PYTHONS_MAX => format!("there are {PYTHONS_MAX} already"),
            None => {
                self.0.push(python);
                return None;
            }
        };
        Some(python.not_offered(&why))
    }

    /// Leaves out what sessions could not run, and says so.
    pub fn keep_reachable(&mut self, facilities: &Facilities) -> Vec<String> {
        if !facilities.uid {
            return Vec::new();
        }
        let mut notes = Vec::new();
        self.0.retain(|python| match python.closed_to_others(facilities.namespaces) {
            Some(place) => {
                let why = format!("others may not read or pass {} (chmod o+rx)", place.display());
                notes.push(python.not_offered(&why));
                false
            }
            None => true,
        });
        notes
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    pub fn first(&self) -> Option<&Python> {
        self.0.first()
    }
    pub fn iter(&self) -> std::slice::Iter<'_, Python> {
        self.0.iter()
    }
    pub fn versions(&self) -> Vec<String> {
        self.0.iter().map(Python::version_text).collect()
    }
    pub fn prefixes(&self) -> Vec<&Path> {
        self.0.iter().map(|python| &*python.prefix).collect()
    }

    /// What `3.12` (the newest), `3.12.1` or nothing (the first) stands for.
    pub fn wanted(&self, version: &str) -> Option<&Python> {
        if version.is_empty() {
            return self.first();
        }
        let exact = self.0.iter().find(|python| python.version_text() == version);
        let of_minor = self.0.iter().filter(|python| python.minor() == version);
        exact.or_else(|| of_minor.max_by_key(|python| python.version))
    }

    /// For what was made with a version: that, or the newest for which its packages are good.
    pub fn like(&self, version: &str) -> Option<&Python> {
        let minor = || version.rsplit_once('.').filter(|(minor, _)| minor.contains('.'));
        self.wanted(version).or_else(|| self.wanted(minor()?.0))
    }

    /// Why a session cannot be.
    pub fn lack(&self, version: &str) -> Error {
        Error::new(
            Code::PythonMissing,
            match self.is_empty() {
                true => "this worker has no usable Python".to_owned(),
                false => format!("this worker has no Python {version}, but {}", self.versions().join(", ")),
            },
        )
    }
}

/// The first usable one on PATH.
fn usual() -> Result<Python> {
    let mut reasons = Vec::new();
    for name in ["python3", "python"] {
        match probe(Path::new(name)) {
            Ok(python) => return Ok(python),
            Err(why) => reasons.push(format!("{name}: {why}")),
        }
    }
    Err(Error::new(Code::PythonMissing, format!("no usable Python on PATH ({})", reasons.join("; "))))
}

/// Every program on PATH that is called like a Python that is new enough, the newest first.
fn on_path() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let entries = std::env::split_paths(&path).filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            let minor = entry.file_name().to_str()?.strip_prefix("python3.")?.parse().ok()?;
            ((3, minor) >= OLDEST).then(|| (minor, entry.path()))
        })
        .collect();
    // Of two of the same name that which comes first on PATH.
    found.sort_by_key(|(minor, _)| std::cmp::Reverse(*minor));
    found.into_iter().map(|(_, path)| path).collect()
}

#[derive(Deserialize)]
struct Answer {
    executable: PathBuf,
    prefix: PathBuf,
    library: Option<PathBuf>,
    version: (u32, u32, u32),
}

/// Shims are scripts and venvs have no standard library of their own, so Python itself is asked where it really is.
fn probe(program: &Path) -> Result<Python, String> {
    let question = "import sys, json, os; print(json.dumps({'executable': getattr(sys, '_base_executable', None) or \
                    sys.executable, 'prefix': sys.base_prefix, 'library': getattr(os, '__file__', None), \
                    'version': sys.version_info[:3]}))";
    let mut child = Command::new(program)
        .args(["-I", "-S", "-c", question])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| e.to_string())?;
    let answer = read_within(&mut child, PROBE_MS);
    let _ = child.kill();
    let _ = child.wait();
    let answer: Answer = serde_json::from_slice(&answer.map_err(|e| e.to_string())?)
        .map_err(|_| "it gave no sensible answer")?;
    let (major, minor, _) = answer.version;
    if (major, minor) < OLDEST {
        return Err(format!("version {major}.{minor} is older than {}.{}", OLDEST.0, OLDEST.1));
    }
    let executable = fs::canonicalize(&answer.executable).map_err(|e| e.to_string())?;
    let prefix = fs::canonicalize(&answer.prefix).map_err(|e| e.to_string())?;
    let library = answer.library.and_then(|file| fs::canonicalize(file).ok());
    Ok(Python { executable, prefix, library, version: answer.version })
}

fn read_within(child: &mut std::process::Child, within_ms: u64) -> io::Result<Vec<u8>> {
    let mut out = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let deadline = clock::since_start() + Duration::from_millis(within_ms);
    let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let left = deadline.saturating_sub(clock::since_start());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        if poll(&mut [PollFd::new(&out, PollFlags::IN)], Some(&left))? == 0 {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it did not answer in time"));
        }
        match out.read(&mut piece)? {
            0 => return Ok(answer),
            n if answer.len() < 64 << 10 => answer.extend_from_slice(&piece[..n]),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// Leads from a venv to the packages that every session of the worker finds.
pub const LAYER_FILE: &str = "cooper-layer.pth";

/// Asks the worker for installs.
pub const PIP_FILE: &str = "pip.py";
const PIP: &str = include_str!("install/pip.py");

/// Makes a venv by hand: what `python -m venv --without-pip` makes, in a fraction of a millisecond instead of 80.
pub fn make_venv(python: &Python, venv: &Path, layer: Option<&Path>) -> io::Result<()> {
    let (major, minor, _) = python.version;
    let mut dirs = fs::DirBuilder::new();
    dirs.recursive(true).mode(0o755);
    let site = python.site_packages(venv);
    dirs.create(&site)?;
    if let Some(layer) = layer {
        fs::write(site.join(LAYER_FILE), format!("{}\n", layer.display()))?;
    }
    dirs.create(venv.join("bin"))?;
    symlink(&python.executable, venv.join("bin/python"))?;
    symlink("python", venv.join("bin/python3"))?;
    symlink("python", venv.join(format!("bin/python{major}.{minor}")))?;
    // What `pip` and `python -m pip` are in a session.
    fs::write(site.join(PIP_FILE), PIP)?;
    let script = venv.join("bin/pip");
    fs::write(&script, "#!/bin/sh\nexec \"${0%/*}/python\" -m pip \"$@\"\n")?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    symlink("pip", venv.join("bin/pip3"))?;
    if cfg!(target_pointer_width = "64") {
        symlink("lib", venv.join("lib64"))?;
    }
    let home = python.executable.parent().unwrap_or(Path::new("/"));
    fs::write(
        venv.join("pyvenv.cfg"),
        format!(
            "home = {}\ninclude-system-site-packages = false\nversion = {}\nexecutable = {}\n",
            home.display(),
            python.version_text(),
            python.executable.display()
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_skeleton_is_a_venv_to_python_itself() {
        let Ok(python) = usual() else { return };
        let dir = tempfile::tempdir().unwrap();
        let venv = dir.path().join(".venv");
        make_venv(&python, &venv, None).unwrap();
        let out = Command::new(venv.join("bin/python"))
            .args(["-c", "import sys, json; print(sys.prefix, sys.base_prefix != sys.prefix, sys.path[-1])"])
            .env_clear()
            .output()
            .unwrap();
        let out = String::from_utf8(out.stdout).unwrap();
        let site = format!("lib/python{}.{}/site-packages", python.version.0, python.version.1);
        let venv = venv.display();
        assert_eq!(out.trim(), format!("{venv} True {venv}/{site}"));
    }

    fn of(version: (u32, u32, u32)) -> Python {
        let executable = PathBuf::from(format!("/python-{version:?}"));
        Python { executable, prefix: PathBuf::from("/"), library: None, version }
    }

    #[test]
    fn a_minor_version_stands_for_its_newest_and_what_was_made_goes_on_with_the_nearest() {
        let mut pythons = Pythons::default();
        for version in [(3, 11, 7), (3, 12, 1), (3, 12, 10), (3, 9, 2)] {
            assert_eq!(pythons.add(of(version)), None);
        }
        let named = |python: Option<&Python>| python.map(Python::version_text).unwrap_or_default();
        let wanted = ["", "3.12", "3.12.1", "3.12.2", "3.1", "3.10"].map(|text| named(pythons.wanted(text)));
        assert_eq!(wanted, ["3.11.7", "3.12.10", "3.12.1", "", "", ""]);
        let like = ["", "3.12.1", "3.12.2", "3.9.18", "3.10.1"].map(|text| named(pythons.like(text)));
        assert_eq!(like, ["3.11.7", "3.12.1", "3.12.10", "3.9.2", ""]);
        let twice = Python { executable: PathBuf::from("/other"), ..of((3, 9, 2)) };
        assert!(pythons.add(twice).unwrap().contains("same version"));
    }

    #[test]
    fn a_python_that_others_may_not_read_is_not_offered_where_sessions_have_uids() {
        let dir = tempfile::tempdir().unwrap();
        let home = fs::canonicalize(dir.path()).unwrap();
        let prefix = home.join("py");
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let [executable, library] = ["bin/python3.12", "lib/python3.12/os.py"].map(|name| {
            let file = prefix.join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, "").unwrap();
            mode(&file, 0o755);
            file
        });
        for dir in ["", "bin", "lib", "lib/python3.12"] {
            mode(&prefix.join(dir), 0o755);
        }
        mode(&home, 0o700);
        let python = Python {
            executable,
            prefix: prefix.clone(),
            library: Some(library.clone()),
            version: (3, 12, 1),
        };
        let kept = |facilities: Facilities| {
            let mut pythons = Pythons(vec![python.clone()]);
            let notes = pythons.keep_reachable(&facilities);
            assert_eq!(pythons.is_empty(), !notes.is_empty());
            notes.join("")
        };
        let caged = || Facilities { uid: true, namespaces: true, ..Facilities::default() };
        let bare = || Facilities { uid: true, ..Facilities::default() };
        assert_eq!(kept(caged()), "", "inside, the way to it is open");
        assert!(kept(bare()).contains(&format!("pass {} (", home.display())));
        mode(&library, 0o750);
        assert!(kept(caged()).contains("os.py"));
        assert_eq!(kept(Facilities::default()), "", "sessions have the worker's own uid");
        mode(&library, 0o644);
        mode(&prefix, 0o700);
        assert!(kept(caged()).contains(&format!("pass {} (", prefix.display())));
    }

    #[test]
    fn a_program_that_is_not_python_is_refused_with_its_name() {
        let error = Pythons::find(&Named::parse("/bin/true")).unwrap_err();
        assert!(error.message.contains("/bin/true"), "{error}");
    }
}
