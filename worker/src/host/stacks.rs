//! The stacks registered on this worker, and whether Docker Compose works here.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use cooper_common::error::{Code, Error, Result};
use cooper_proto::v1::{StackAdd, StackInfo};

use super::dir::write_durably;

/// File names Compose looks for, in its order.
const COMPOSE_FILES: [&str; 4] = ["compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"];
const STACKS_MAX: usize = 1024;

pub struct Stacks {
    /// Name → directory of all of them, for the steps.
    file: PathBuf,
    /// The same, of those that were added while the worker ran.
    added_file: PathBuf,
    list: Vec<(String, PathBuf)>,
    added: BTreeMap<String, PathBuf>,
}

impl Stacks {
    /// The configured ones first (the first is the default), then those added while the worker ran.
    pub fn open(dir: &Path, configured: &[(String, PathBuf)]) -> Result<Self> {
        let added_file = dir.join("stacks-added.json");
        let added: BTreeMap<String, PathBuf> = fs::read(&added_file)
            .ok()
            .and_then(|json| serde_json::from_slice(&json).ok())
            .unwrap_or_default();
        let mut stacks = Self { file: dir.join("stacks.json"), added_file, list: Vec::new(), added };
        for (name, path) in configured {
            let path = check(name, path)
                .map_err(|e| Error::new(Code::ConfigInvalid, format!("stack {name:?}: {}", e.message)))?;
            stacks.list.retain(|(known, _)| known != name);
            stacks.list.push((name.clone(), path));
        }
        for (name, path) in &stacks.added {
            if !stacks.list.iter().any(|(known, _)| known == name) {
                stacks.list.push((name.clone(), path.clone()));
            }
        }
        stacks.save()?;
        Ok(stacks)
    }

    pub fn file(&self) -> &Path {
        &self.file
    }

    pub fn add(&mut self, add: &StackAdd) -> Result<()> {
        let dir = check(&add.name, Path::new(&add.dir))?;
        let known = self.list.iter().find(|(name, _)| *name == add.name);
        match known {
            Some((_, there)) if *there == dir => return Ok(()),
            Some((_, there)) => {
                let what = format!("stack {:?} is registered already, as {}", add.name, there.display());
                return Err(Error::new(Code::NameTaken, what).with_hint("choose another name"));
            }
            None if self.list.len() >= STACKS_MAX => {
                return Err(Error::new(
                    Code::Overloaded,
                    format!("this worker has {STACKS_MAX} stacks already"),
                ));
            }
            None => {}
        }
        self.added.insert(add.name.clone(), dir.clone());
        self.list.push((add.name.clone(), dir));
        self.save()
    }

    pub fn list(&self) -> Vec<StackInfo> {
        self.list
            .iter()
            .map(|(name, dir)| StackInfo { name: name.clone(), dir: dir.to_string_lossy().into_owned() })
            .collect()
    }

    fn save(&self) -> Result<()> {
        let all = self.list.iter().cloned().collect();
        for (file, stacks) in [(&self.file, &all), (&self.added_file, &self.added)] {
            let json = serde_json::to_string_pretty(stacks).map_err(|e| Error::internal(e.to_string()))?;
            write_durably(file, &json)
                .map_err(|e| Error::new(Code::DataUnusable, format!("{}: {e}", file.display())))?;
        }
        Ok(())
    }
}

fn check(name: &str, dir: &Path) -> Result<PathBuf> {
    let of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 63 || !name.chars().all(of_name) {
        return Err(Error::invalid(format!(
            "{name:?} is not a stack name (letters, digits, '-', '_', '.'; at most 63)"
        )));
    }
    if !dir.is_absolute() {
        return Err(Error::invalid(format!("{} is not an absolute path", dir.display())));
    }
    let dir = fs::canonicalize(dir).map_err(|e| Error::invalid(format!("{}: {e}", dir.display())))?;
    if !COMPOSE_FILES.iter().any(|file| dir.join(file).is_file()) {
        let what = format!("{} holds no compose file ({})", dir.display(), COMPOSE_FILES.join(", "));
        return Err(Error::invalid(what));
    }
    Ok(dir)
}

/// Asks Docker Compose and the engine whether they work. Waits for them: for a process of its own.
pub fn compose_works() -> bool {
    let works = |args: &[&str]| {
        let status = Command::new("docker")
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        status.is_ok_and(|status| status.success())
    };
    works(&["compose", "version"]) && works(&["version"])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(name: &str, dir: &Path) -> StackAdd {
        StackAdd { name: name.to_owned(), dir: dir.to_string_lossy().into_owned() }
    }

    #[test]
    fn stacks_survive_a_restart_and_keep_their_order() {
        let (dir, stack) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(stack.path().join("compose.yaml"), "").unwrap();
        let mut stacks = Stacks::open(dir.path(), &[]).unwrap();
        stacks.add(&add("shop", stack.path())).unwrap();
        stacks.add(&add("shop", stack.path())).unwrap();
        let again = Stacks::open(dir.path(), &[("web".to_owned(), stack.path().to_owned())]).unwrap();
        let names: Vec<_> = again.list().into_iter().map(|stack| stack.name).collect();
        assert_eq!(names, ["web", "shop"]);
    }

    #[test]
    fn only_a_directory_with_a_compose_file_is_a_stack() {
        let dir = tempfile::tempdir().unwrap();
        let mut stacks = Stacks::open(dir.path(), &[]).unwrap();
        for bad in [add("s", dir.path()), add("s", Path::new("relative")), add("s/t", dir.path())] {
            assert_eq!(stacks.add(&bad).unwrap_err().code, Code::InvalidArgument);
        }
    }
}
