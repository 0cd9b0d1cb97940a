//! The repair cases of `tests/repair-cases`: small stacks with a fault, and what has to come of a repair.
//!
//! A case is a directory: `stack/` over the base it names is the first version, `fault/` over that what somebody deploys
//! then, `case.toml` the oracle. What a field means stands here; what the cases are, in `tests/repair-cases/README.md`.

mod judge;
mod kill;
mod work;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;

pub use judge::{End, Verdict};
pub use kill::{ROLES, STEPS, kill, kill_retry, kill_undo};
pub use work::work;

/// `case.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    #[serde(skip)]
    pub name: String,
    #[serde(skip)]
    dir: PathBuf,
    /// What is wrong, in a sentence.
    pub fault: String,
    pub ecosystem: String,
    /// The kind of public failure that this is modelled on.
    #[serde(default)]
    pub modelled_on: Option<String>,
    /// A directory of `tests/repair-cases/bases` that lies beneath `stack/`.
    #[serde(default)]
    pub base: Option<String>,
    /// Part of `make test`.
    #[serde(default)]
    pub quick: bool,
    /// Part of the sample that is repaired while processes are killed.
    #[serde(default)]
    pub killed: bool,
    /// There was never a version that was well: only the faulty one is deployed.
    #[serde(default)]
    pub never_well: bool,
    /// The stack is a git checkout, with what `dirty/` holds as uncommitted work, half of it staged.
    #[serde(default)]
    pub git: bool,
    /// Files that the fault removes.
    #[serde(default)]
    pub remove: Vec<String>,
    #[serde(default = "web")]
    pub service: String,
    /// How the service looks once the fault is deployed: `healthy running unhealthy down absent`.
    pub seen: String,
    /// Given to the repair in place of what Cooper would collect: a file of the case.
    #[serde(default)]
    pub log: Option<String>,
    #[serde(default)]
    pub instruction: Option<String>,
    pub expect: Expected,
}

fn web() -> String {
    "web".to_owned()
}

/// How a repair has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// Ends with 0: verified, promoted, and what was promoted builds and is well again.
    Fixed,
    /// Ends with 5: not one byte, image or container is another.
    Refused,
    /// Stops with 3 for a person to decide, and nothing is touched: neither before it is rejected nor after.
    Waits,
    /// Ends with 4: bytes, image ids, configuration and health as before.
    RolledBack,
}

/// The oracle.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    pub end: Wanted,
    /// It stops with 3 first, and a person approves.
    #[serde(default)]
    pub approval: bool,
    /// Rules that may be named as the cause; none if nothing explains it.
    #[serde(default)]
    pub rules: Vec<String>,
    /// Files that may be another afterwards.
    #[serde(default)]
    pub files: Vec<String>,
    /// Lines that may be added and removed, together.
    #[serde(default)]
    pub max_lines: usize,
    /// Attempts that it may take.
    #[serde(default = "one")]
    pub max_attempts: u64,
    /// Text that stands in the patch.
    #[serde(default)]
    pub patch: Vec<String>,
    /// Text that stands in no line that the patch adds or removes, its sign included.
    #[serde(default)]
    pub never: Vec<String>,
    #[serde(default)]
    pub probe: Option<Probe>,
}

fn one() -> u64 {
    1
}

/// What holds of a service that is well.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    #[serde(default = "port")]
    pub port: u16,
    #[serde(default = "root")]
    pub path: String,
    #[serde(default)]
    pub contains: String,
    /// Asked in place of a request: a command in the container that ends with 0.
    #[serde(default)]
    pub exec: Vec<String>,
}

fn port() -> u16 {
    8000
}

fn root() -> String {
    "/".to_owned()
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("repair-cases")
}

impl Case {
    /// # Panics
    /// If there is none, or it is not as it has to be.
    pub fn named(name: &str) -> Self {
        let dir = directory().join(name);
        let file = dir.join("case.toml");
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let case: Self = toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let case = Self { name: name.to_owned(), dir, ..case };
        case.check();
        case
    }

    /// Every case, by name.
    pub fn all() -> Vec<Self> {
        let entries = fs::read_dir(directory()).expect("the cases are there").flatten();
        let names = entries.filter(|entry| entry.path().join("case.toml").is_file());
        let names: BTreeMap<String, ()> =
            names.map(|entry| (entry.file_name().to_string_lossy().into_owned(), ())).collect();
        names.keys().map(|name| Self::named(name)).collect()
    }

    fn check(&self) {
        let (name, expect) = (&self.name, &self.expect);
        assert!(["healthy", "running", "unhealthy", "down", "absent"].contains(&&*self.seen), "{name}: seen");
        let fixed = expect.end == Wanted::Fixed;
        assert!(!fixed || (expect.probe.is_some() && !expect.rules.is_empty()), "{name}: a probe and rules");
        assert!(fixed || (expect.files.is_empty() && expect.max_lines == 0), "{name}: nothing may change");
        assert!(self.dir.join("fault").is_dir() || !self.remove.is_empty(), "{name}: a fault");
    }

    /// Whether a repair can make it well.
    pub fn fixable(&self) -> bool {
        self.expect.end == Wanted::Fixed
    }

    /// Directories of the first version, the lowest first.
    fn layers(&self) -> Vec<PathBuf> {
        let base = self.base.as_ref().map(|base| directory().join("bases").join(base));
        base.into_iter().chain(self.part("stack")).collect()
    }

    fn part(&self, name: &str) -> Option<PathBuf> {
        Some(self.dir.join(name)).filter(|path| path.exists())
    }
}
