//! Where an image installs its Python distributions from, and how to add one there.

use globset::GlobBuilder;

use crate::dockerfile::{Dockerfile, Kind};
use crate::edit::{self, Edit, FileChange, pip_installs};

use super::scene::Scene;

/// A name without version, extras or marker.
pub(super) fn is_bare(requirement: &str) -> bool {
    requirement.chars().all(|part| part.is_ascii_alphanumeric() || "-_.".contains(part))
}

/// Adds a requirement where the failing stage, or one it is made from, installs its distributions: a requirements
/// file, else the project's own list, else the `pip install` line itself.
pub(super) fn add(scene: &Scene<'_>, requirement: &str) -> Result<FileChange, String> {
    let file = scene.dockerfile()?;
    let place = scene.place(&file);
    let resolved = scene.evidence.versions.get(&edit::distribution_name(requirement));
    let requirement = match resolved.filter(|_| is_bare(requirement)) {
        Some(version) => format!("{requirement}=={version}"),
        None => requirement.to_owned(),
    };
    let mut problems = Vec::new();
    for stage in file.lineage(place.stage) {
        let installs = pip_installs(&file, stage);
        let requirements_file = |install: &edit::PipInstall| {
            let path = install
                .files
                .iter()
                .find_map(|path| source(scene, &file, stage, install.instruction, path))?;
            let description = format!("{path}: require {requirement}");
            Some((path, Edit::AppendRequirement { requirement: requirement.clone() }, description))
        };
        let project = |install: &edit::PipInstall| {
            let path = "pyproject.toml".to_owned();
            let usable = install.project && scene.evidence.files.contains_key(&path);
            let edit = Edit::AppendProjectDependency { requirement: requirement.clone() };
            usable.then(|| (path, edit, format!("pyproject.toml: require {requirement}")))
        };
        let inline = |install: &edit::PipInstall| {
            let path = scene.dockerfile_path().ok()?;
            let description = format!("{path}: install {requirement} with pip");
            let edit = Edit::ExtendPipInstall { line: install.line, requirement: requirement.clone() };
            (!install.requirements.is_empty()).then_some((path, edit, description))
        };
        let files = installs.iter().rev().filter_map(requirements_file);
        let projects = installs.iter().rev().filter_map(project);
        let inlines = installs.iter().rev().filter_map(inline);
        for (path, edit, description) in files.chain(projects).chain(inlines) {
            match scene.change(&path, edit, description) {
                Ok(change) => return Ok(change),
                // It is required already: adding it elsewhere would only hide why it is not there.
                Err(error @ edit::Error::NoEffect(_)) => return Err(error.to_string()),
                Err(error) => problems.push(format!("{path}: {error}")),
            }
        }
        for install in &installs {
            let unknown = |path: &&String| source(scene, &file, stage, install.instruction, path).is_none();
            let missing = install.files.iter().filter(unknown);
            problems.extend(
                missing.map(|path| format!("{path} of the Dockerfile's pip install is not in the context")),
            );
        }
    }
    if problems.is_empty() {
        problems.push("the Dockerfile has no pip install that could be extended".to_owned());
    }
    Err(problems.join("; "))
}

/// Requires a distribution in exactly this version, in the requirements file that names it.
pub(super) fn pin(scene: &Scene<'_>, package: &str, version: &str) -> Result<FileChange, String> {
    let edit = || Edit::PinRequirement { package: package.to_owned(), version: version.to_owned() };
    in_requirements(scene, edit, |path| format!("{path}: {package}=={version}"))
}

/// Takes a distribution out of the requirements file that names it.
pub(super) fn remove(scene: &Scene<'_>, package: &str) -> Result<FileChange, String> {
    let edit = || Edit::RemoveRequirement { package: package.to_owned() };
    in_requirements(scene, edit, |path| format!("{path}: no longer require {package}"))
}

fn in_requirements(
    scene: &Scene<'_>,
    edit: impl Fn() -> Edit,
    description: impl Fn(&str) -> String,
) -> Result<FileChange, String> {
    let mut problems = Vec::new();
    for path in requirements_files(scene)? {
        match scene.change(&path, edit(), description(&path)) {
            Ok(change) => return Ok(change),
            Err(error) => problems.push(format!("{path}: {error}")),
        }
    }
    if problems.is_empty() {
        problems.push("the Dockerfile installs from no requirements file".to_owned());
    }
    Err(problems.join("; "))
}

/// Requirements files of the failing stage and those it is made from.
pub(super) fn requirements_files(scene: &Scene<'_>) -> Result<Vec<String>, String> {
    let file = scene.dockerfile()?;
    let mut found = Vec::new();
    for stage in file.lineage(scene.place(&file).stage) {
        for install in pip_installs(&file, stage) {
            let paths = install.files.iter();
            found.extend(paths.filter_map(|path| source(scene, &file, stage, install.instruction, path)));
        }
    }
    Ok(found)
}

/// The file of the build context that a path in the image was copied from, as seen by an instruction of a stage.
fn source(
    scene: &Scene<'_>,
    file: &Dockerfile<'_>,
    stage: usize,
    instruction: usize,
    path: &str,
) -> Option<String> {
    let files = &scene.evidence.files;
    let before = &file.stages[stage].instructions[..=instruction];
    let mut directory = String::from("/");
    let mut copies = Vec::new();
    for at in before {
        match &at.kind {
            Kind::Workdir(to) => directory = join(&directory, to),
            Kind::Copy { from: None, sources, dest } => copies.push((sources, join(&directory, dest))),
            _ => {}
        }
    }
    let wanted = join(&directory, path);
    let origin = |(sources, target): &(&Vec<String>, String)| {
        sources.iter().find_map(|origin| copied(files.keys(), origin, target, &wanted))
    };
    // The last copy wins.
    let found = copies.iter().rev().find_map(origin);
    // A bind mount or an `ADD` of an archive leaves no trace above: a file of that name, if there is only one, is it.
    found.or_else(|| {
        let name = path.rsplit('/').next().unwrap_or(path);
        let mut alike = files.keys().filter(|known| known.rsplit('/').next() == Some(name));
        alike.next().filter(|_| alike.next().is_none()).cloned()
    })
}

/// The file of the context that ends up at `wanted` when `origin` is copied to `target`.
fn copied<'a>(
    mut files: impl Iterator<Item = &'a String>,
    origin: &str,
    target: &str,
    wanted: &str,
) -> Option<String> {
    let origin = join("/", origin);
    let origin = origin.trim_start_matches('/');
    let glob = GlobBuilder::new(origin).literal_separator(true).build().ok()?.compile_matcher();
    files
        .find(|file| {
            let inside = if origin.is_empty() {
                Some(file.as_str())
            } else {
                file.strip_prefix(&format!("{origin}/"))
            };
            if let Some(inside) = inside {
                return join(target, inside) == wanted;
            }
            let name = file.rsplit('/').next().unwrap_or(file);
            glob.is_match(file) && (target == wanted || join(target, name) == wanted)
        })
        .cloned()
}

/// `path` seen from `directory`, without `.` and `..`.
fn join(directory: &str, path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let from = if path.starts_with('/') { "" } else { directory };
    for part in from.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copied_file_is_found_in_the_context() {
        let files = ["app/requirements.txt".to_owned(), "requirements-dev.txt".to_owned()];
        let find = |origin, target, wanted| copied(files.iter(), origin, target, wanted);
        assert_eq!(find("app", "/srv", "/srv/requirements.txt").as_deref(), Some("app/requirements.txt"));
        assert_eq!(find(".", "/srv", "/srv/app/requirements.txt").as_deref(), Some("app/requirements.txt"));
        assert_eq!(
            find("app/requirements.txt", "/tmp/r.txt", "/tmp/r.txt").as_deref(),
            Some("app/requirements.txt")
        );
        let glob = find("requirements*.txt", "/srv", "/srv/requirements-dev.txt");
        assert_eq!(glob.as_deref(), Some("requirements-dev.txt"));
        assert_eq!(find("other", "/srv", "/srv/requirements.txt"), None);
    }

    #[test]
    fn paths_are_joined_as_docker_does() {
        assert_eq!(join("/srv/app", "../x/./y"), "/srv/x/y");
        assert_eq!(join("/srv", "/abs/"), "/abs");
    }
}
