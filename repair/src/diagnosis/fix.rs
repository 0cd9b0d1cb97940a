//! From a rule's typed fix to changes of real files. Every function returns the changes, or why there are none.

use std::collections::BTreeMap;

use crate::dockerfile::Kind;
use crate::edit::{self, Edit, FileChange, distribution_name};
use crate::names::{Distribution, Provides};
use crate::rules::{Class, Fix, Rule, fill};

use super::compose;
use super::python;
use super::scene::Scene;
use super::{Evidence, Phase, Remedy};

/// What a fix came to.
pub(super) struct Resolved {
    pub(super) edits: Vec<FileChange>,
    pub(super) remedy: Remedy,
    /// The class is at least this.
    pub(super) class: Class,
    /// The confidence is at most this, in percent.
    pub(super) confidence: u8,
}

impl Resolved {
    pub(super) fn nothing(remedy: Remedy) -> Self {
        Self { edits: vec![], remedy, class: Class::Auto, confidence: 100 }
    }

    pub(super) fn patch(change: FileChange) -> Self {
        Self { edits: vec![change], ..Self::nothing(Remedy::Patch) }
    }

    /// The same, resting on a guess that a person must confirm.
    pub(super) fn guessed(self) -> Self {
        Self { class: Class::Approve, confidence: 50, ..self }
    }
}

/// Works out the changes of a rule that matched.
pub(super) fn resolve(
    scene: &Scene<'_>,
    rule: &Rule,
    captures: &BTreeMap<String, String>,
) -> Result<Resolved, String> {
    let fill = |text: &String| fill(text, captures);
    match &rule.fix {
        Fix::PythonModule { module } => python_module(scene, &fill(module)),
        Fix::PythonVersion { package, version, available } => {
            python_version(scene, &fill(package), &fill(version), &fill(available))
        }
        Fix::PythonOperator { requirement } => python_operator(scene, &fill(requirement)),
        Fix::AptPackages { packages } => apt_packages(scene, packages.iter().map(fill).collect()),
        Fix::AptProvider { what, name } => apt_provider(scene, *what, &fill(name)),
        Fix::AptPackageMissing { package } => apt_package_missing(scene, &fill(package)),
        Fix::AptVersionMissing { package, version } => {
            let (package, version) = (fill(package), fill(version));
            let description = format!("install {package} in the version the archive has");
            let from = format!("{package}={version}");
            at_failing_line(scene, description, |line| Edit::ReplaceAptPackage { line, from, to: package })
        }
        Fix::AptYes => {
            at_failing_line(scene, "answer apt-get with yes".to_owned(), |line| Edit::AnswerAptYes { line })
        }
        Fix::PythonVenv => {
            let file = scene.dockerfile()?;
            scene.check_debian(&file, scene.place(&file).stage)?;
            let description = "install into a virtual environment".to_owned();
            at_failing_line(scene, description, |line| Edit::UseVenv { line })
        }
        Fix::CopyFile { path } => copy_file(scene, &fill(path)),
        Fix::CopySource { path } => copy_source(scene, fill(path).trim_start_matches('/')),
        Fix::Writable { path } => writable(scene, &fill(path)),
        Fix::NodeModule { module } => node_module(scene, &fill(module)),
        Fix::NodeWithoutLock { outdated } => node_without_lock(scene, *outdated),
        Fix::Executable { path } => {
            let path = fill(path);
            in_stage(scene, format!("make {path} executable"), |stage| Edit::MakeExecutable { stage, path })
        }
        Fix::Script { path } => script(scene, &fill(path)),
        Fix::User { user } => {
            let user = fill(user);
            in_stage(scene, format!("create the user {user}"), |stage| Edit::AddUser { stage, user })
        }
        Fix::ComposeVariable { name } => compose::variable(scene, &fill(name)),
        Fix::ComposePort { port } => compose::port(scene, &fill(port)),
        Fix::ComposeOrder { peer } => compose::order(scene, &fill(peer)),
        Fix::Variable { name, value } => {
            let (name, value) = (fill(name), fill(value));
            in_stage(scene, format!("set {name}={value}"), |stage| Edit::SetEnv { stage, name, value })
        }
        Fix::Keyword { line, from, to } => {
            let line = fill(line).parse().map_err(|_| "the log names no line".to_owned())?;
            let (from, to) = (fill(from), fill(to));
            let description = format!("line {line}: {to} in place of {from}");
            scene
                .dockerfile_change(Edit::RenameInstruction { line, from, to }, description)
                .map(Resolved::patch)
        }
        Fix::Rebuild => Ok(Resolved::nothing(Remedy::Rebuild)),
        Fix::Escalate => Ok(Resolved::nothing(Remedy::Escalate)),
    }
}

fn at_failing_line(
    scene: &Scene<'_>,
    description: String,
    edit: impl FnOnce(usize) -> Edit,
) -> Result<Resolved, String> {
    let line = scene.failing_line(&scene.dockerfile()?)?;
    scene.dockerfile_change(edit(line), description).map(Resolved::patch)
}

fn in_stage(
    scene: &Scene<'_>,
    description: String,
    edit: impl FnOnce(usize) -> Edit,
) -> Result<Resolved, String> {
    let stage = scene.place(&scene.dockerfile()?).stage;
    scene.dockerfile_change(edit(stage), description).map(Resolved::patch)
}

/// What pip does not read may hold for others: a lock file that does not fit any more wants a person.
pub(super) fn required(scene: &Scene<'_>, mut change: FileChange) -> Resolved {
    const LOCKS: [&str; 3] = ["uv.lock", "poetry.lock", "pdm.lock"];
    let lock = LOCKS.iter().find(|lock| scene.evidence.files.contains_key(**lock));
    match lock.filter(|_| change.path == "pyproject.toml") {
        None => Resolved::patch(change),
        Some(lock) => {
            change.description = format!("{}; {lock} has to be locked again afterwards", change.description);
            Resolved { class: Class::Approve, ..Resolved::patch(change) }
        }
    }
}

fn python_module(scene: &Scene<'_>, module: &str) -> Result<Resolved, String> {
    let top = module.split('.').next().unwrap_or(module);
    let is_own =
        |path: &String| path.split('/').any(|part| part == top || part.strip_suffix(".py") == Some(top));
    if let Some(path) = scene.evidence.files.keys().find(|path| is_own(path)) {
        if path.rsplit('/').next() == Some(&format!("{top}.py"))
            && let Some(forgotten) = copy_beside(scene, path)
        {
            return forgotten;
        }
        return Err(format!(
            "{top} is the service's own code ({path}): the image does not copy it, or not to where it looks"
        ));
    }
    match scene.names.distribution(module) {
        Distribution::Known(requirement) => Ok(required(scene, python::add(scene, &requirement)?)),
        // The name may belong to somebody else's distribution: a person has to look.
        Distribution::Guessed(name) => Ok(Resolved::patch(python::add(scene, &name)?).guessed()),
        Distribution::Standard => {
            Err(format!("{top} is part of Python itself: this image's Python lacks it"))
        }
    }
}

fn python_version(
    scene: &Scene<'_>,
    package: &str,
    version: &str,
    available: &str,
) -> Result<Resolved, String> {
    let Some(nearest) = nearest(version, available) else {
        return Err(format!("{package} has no release that could stand in for {version}"));
    };
    let mut problems = Vec::new();
    for path in python::requirements_files(scene)? {
        let edit = Edit::PinRequirement { package: package.to_owned(), version: nearest.to_owned() };
        match scene.change(&path, edit, format!("{path}: {package}=={nearest} in place of {version}")) {
            Ok(change) if major(nearest) == major(version) => return Ok(Resolved::patch(change)),
            Ok(change) => return Ok(Resolved::patch(change).guessed()),
            Err(error) => problems.push(format!("{path}: {error}")),
        }
    }
    Err(format!("{package}=={version} stands in no requirements file of the build; {}", problems.join("; ")))
}

fn major(version: &str) -> Option<u64> {
    version.split('.').next()?.parse().ok()
}

/// The release nearest to a version: of the same major version the newest one that is not newer, else the oldest one
/// that is; else the newest of all. Pre-releases do not count.
fn nearest<'a>(version: &str, available: &'a str) -> Option<&'a str> {
    let parts = |text: &str| text.split('.').map(|part| part.parse::<u64>().ok()).collect::<Option<Vec<_>>>();
    let releases = available.split(',').map(str::trim).filter_map(|text| Some((parts(text)?, text)));
    let mut releases: Vec<_> = releases.collect();
    releases.sort();
    let wanted = parts(version).or_else(|| Some(vec![major(version)?]))?;
    let same_major = || releases.iter().filter(|(parts, _)| parts.first() == wanted.first());
    let older = same_major().rfind(|(parts, _)| *parts <= wanted);
    let newer = same_major().find(|(parts, _)| *parts > wanted);
    older.or(newer).or(releases.last()).map(|(_, text)| *text)
}

fn python_operator(scene: &Scene<'_>, requirement: &str) -> Result<Resolved, String> {
    for path in python::requirements_files(scene)? {
        let edit = Edit::FixRequirementOperator { requirement: requirement.to_owned() };
        if let Ok(change) = scene.change(&path, edit, format!("{path}: == in {requirement}")) {
            return Ok(Resolved::patch(change));
        }
    }
    Err(format!("{requirement} stands in no requirements file of the build"))
}

/// Installs Debian packages for the failing instruction, or for the container.
pub(super) fn apt_packages(scene: &Scene<'_>, packages: Vec<String>) -> Result<Resolved, String> {
    let file = scene.dockerfile()?;
    let place = scene.place(&file);
    scene.check_debian(&file, place.stage)?;
    let description = format!("install {} with apt-get", packages.join(", "));
    let edit = Edit::InstallAptPackages { stage: place.stage, before_line: place.line, packages };
    scene.dockerfile_change(edit, description).map(Resolved::patch)
}

fn apt_provider(scene: &Scene<'_>, what: Provides, name: &str) -> Result<Resolved, String> {
    if let Some(packages) = scene.names.apt(what, name) {
        return apt_packages(scene, packages.to_vec());
    }
    // Some commands come with a Python distribution of the same name: gunicorn, celery, alembic.
    if what == Provides::Command && scene.names.knows_distribution(name) {
        return Ok(required(scene, python::add(scene, &distribution_name(name))?));
    }
    Err(format!("it is not known which Debian package provides {name}"))
}

fn apt_package_missing(scene: &Scene<'_>, package: &str) -> Result<Resolved, String> {
    let line = scene.failing_line(&scene.dockerfile()?)?;
    let path = scene.dockerfile_path()?;
    let update = Edit::UpdateAptLists { line };
    match scene.change(&path, update, "update the package lists in the same layer".to_owned()) {
        Ok(change) => return Ok(Resolved::patch(change)),
        Err(edit::Error::NoEffect(_)) => {}
        Err(error) => return Err(error.to_string()),
    }
    let Some(now) = scene.names.renamed(package) else {
        return Err(match package {
            "" => "the package lists are updated in that layer already".to_owned(),
            package => {
                format!("the package lists are up to date and {package} is not in them: is its name right?")
            }
        });
    };
    let edit = Edit::ReplaceAptPackage { line, from: package.to_owned(), to: now.to_owned() };
    scene.dockerfile_change(edit, format!("{package} is now called {now}")).map(Resolved::patch)
}

fn node_module(scene: &Scene<'_>, module: &str) -> Result<Resolved, String> {
    // `lodash/fp` and `@scope/name/part` belong to `lodash` and `@scope/name`.
    let parts = if module.starts_with('@') { 2 } else { 1 };
    let package = module.split('/').take(parts).collect::<Vec<_>>().join("/");
    let manifest = "package.json";
    scene.file(manifest)?;
    let locks = ["package-lock.json", "npm-shrinkwrap.json", "yarn.lock", "pnpm-lock.yaml"];
    if let Some(lock) = locks.iter().find(|lock| scene.evidence.files.contains_key(**lock)) {
        return Err(format!(
            "{lock} fixes what is installed: add {package} with its tool and commit the lock file"
        ));
    }
    let description = format!("{manifest}: depend on {package}");
    let edit = Edit::AddNodeDependency { package, version: "*".to_owned() };
    let change = scene.change(manifest, edit, description).map_err(|error| error.to_string())?;
    Ok(Resolved::patch(change).guessed())
}

fn node_without_lock(scene: &Scene<'_>, outdated: bool) -> Result<Resolved, String> {
    if !outdated && scene.evidence.files.contains_key("package-lock.json") {
        return Err(
            "there is a package-lock.json, but the Dockerfile does not copy it before npm ci".to_owned()
        );
    }
    let why = if outdated { "the lock file does not fit" } else { "there is no lock file" };
    let description = format!("npm install, since {why}");
    at_failing_line(scene, description, |line| Edit::InstallWithoutLock { line })
}

/// Copies a file of the context to where the image wants it, if it is one certain file.
fn copy_file(scene: &Scene<'_>, wanted: &str) -> Result<Resolved, String> {
    let name = wanted.rsplit('/').next().unwrap_or(wanted);
    let bare = wanted.trim_start_matches("./").trim_start_matches('/');
    let files = &scene.evidence.files;
    let alike: Vec<_> = files.keys().filter(|path| path.rsplit('/').next() == Some(name)).collect();
    let exact = alike.iter().find(|path| path.as_str() == bare).copied();
    let source = match (exact, &alike[..]) {
        (Some(path), _) => path,
        (None, [path]) => path,
        (None, []) => return Err(format!("the build context has no file {name} either")),
        (None, _) => return Err(format!("the build context has several files {name}")),
    };
    let file = scene.dockerfile()?;
    let place = scene.place(&file);
    let description = format!("copy {source} to {wanted}");
    let edit = Edit::CopyFile {
        stage: place.stage,
        before_line: place.line,
        source: source.clone(),
        dest: wanted.trim_start_matches("./").to_owned(),
    };
    scene.dockerfile_change(edit, description).map(Resolved::patch)
}

/// Copies a file of the service's own to where the Dockerfile copies its neighbours one by one; `None` if it does not.
fn copy_beside(scene: &Scene<'_>, path: &str) -> Option<Result<Resolved, String>> {
    let file = scene.dockerfile().ok()?;
    let place = scene.place(&file);
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
    let plain = |source: &String| source.trim_start_matches("./").to_owned();
    let neighbour = |source: &String| {
        let source = plain(source);
        let (beside, other) = source.rsplit_once('/').unwrap_or(("", &source));
        beside == directory && other != name && scene.evidence.files.contains_key(&source)
    };
    let copies = || {
        file.stages[place.stage].instructions.iter().filter_map(|instruction| match &instruction.kind {
            Kind::Copy { from: None, sources, dest } => Some((sources, dest)),
            _ => None,
        })
    };
    // Whatever copies more than single files may have copied it.
    let single = |source: &String| scene.evidence.files.contains_key(&plain(source));
    if !copies().all(|(sources, _)| sources.iter().all(|source| single(source) && plain(source) != path)) {
        return None;
    }
    let (sources, dest) = copies().rfind(|(sources, _)| sources.iter().any(neighbour))?;
    let into = match dest.rsplit_once('/') {
        _ if dest == "." || dest == "./" || sources.len() > 1 || dest.ends_with('/') => {
            dest.trim_end_matches('/')
        }
        Some((into, _)) => into,
        None => ".",
    };
    let dest = if into == "." { name.to_owned() } else { format!("{into}/{name}") };
    let edit = Edit::CopyFile { stage: place.stage, before_line: place.line, source: path.to_owned(), dest };
    Some(scene.dockerfile_change(edit, format!("copy {path} beside its neighbours")).map(Resolved::patch))
}

/// A misspelt or moved source of a `COPY`, or one that `.dockerignore` leaves out.
fn copy_source(scene: &Scene<'_>, source: &str) -> Result<Resolved, String> {
    const IGNORE: &str = ".dockerignore";
    let files = &scene.evidence.files;
    if files.contains_key(source) {
        scene.file(IGNORE)?;
        let edit = Edit::Unignore { path: source.to_owned() };
        let description = format!("{IGNORE}: do not leave out {source}");
        return scene
            .change(IGNORE, edit, description)
            .map(Resolved::patch)
            .map_err(|error| error.to_string());
    }
    let name = |path: &str| path.rsplit('/').next().unwrap_or(path).to_owned();
    let wanted = name(source);
    let only = |found: Vec<&String>| match &found[..] {
        [one] => Some((*one).clone()),
        _ => None,
    };
    let moved = only(files.keys().filter(|path| name(path) == wanted).collect());
    let directory =
        |path: &str| path.rsplit_once('/').map_or(String::new(), |(directory, _)| directory.to_owned());
    let near = |path: &&String| {
        // Short names are all near to each other.
        let far = if wanted.len() < 5 { 1 } else { 2 };
        directory(path) == directory(source) && strsim::damerau_levenshtein(&name(path), &wanted) <= far
    };
    let Some(to) = moved.or_else(|| only(files.keys().filter(near).collect())) else {
        return Err(format!(
            "the build context has no file {source}, nor one certain file of nearly that name"
        ));
    };
    // Not every builder says which line it was; the one that names the file is.
    let file = scene.dockerfile()?;
    let names = |kind: &Kind| matches!(kind, Kind::Copy { from: None, sources, .. } if sources.iter().any(|known| known == source));
    let instructions = file.stages.iter().flat_map(|stage| &stage.instructions);
    let naming: Vec<_> = instructions.filter(|instruction| names(&instruction.kind)).collect();
    let line = match naming[..] {
        [one] => file.line_number(one.start),
        _ => scene.failing_line(&file)?,
    };
    let description = format!("copy {to} in place of {source}");
    let edit = Edit::ReplaceCopySource { line, from: source.to_owned(), to };
    let fix = scene.dockerfile_change(edit, description).map(Resolved::patch)?;
    Ok(Resolved { confidence: 80, ..fix })
}

/// Gives the service's user the directory it wants to write to.
fn writable(scene: &Scene<'_>, path: &str) -> Result<Resolved, String> {
    let (above, name) = path.trim_end_matches('/').rsplit_once('/').unwrap_or(("", path));
    let directory = if name.contains('.') { above } else { path };
    if let Some(target) = mounted(scene.evidence, directory)? {
        return Err(format!("{target} is a mount of the stack, whose owner the image does not decide"));
    }
    let description = format!("give the service's user {directory}");
    let directory = directory.to_owned();
    in_stage(scene, description, |stage| Edit::OwnDirectory { stage, path: directory })
}

/// Where in the container the mount is that holds this directory, if it is in one.
pub(super) fn mounted(evidence: &Evidence, directory: &str) -> Result<Option<String>, String> {
    let service = evidence.model.service(&evidence.service).map_err(|error| error.to_string())?;
    // A new named volume takes the owner of the image's directory; one that has data keeps its own.
    let mut targets = service.volumes.iter().map(|mount| mount.target.trim_end_matches('/'));
    let holds = |target: &&str| directory == *target || directory.starts_with(&format!("{target}/"));
    Ok(targets.find(holds).map(str::to_owned))
}

fn script(scene: &Scene<'_>, path: &str) -> Result<Resolved, String> {
    let name = path.rsplit('/').next().unwrap_or(path);
    let is_it = |(known, text): &(&String, &String)| match name {
        "" => text.starts_with("#!") && text.contains("\r\n"),
        name => known.rsplit('/').next() == Some(name),
    };
    let mut scripts = scene.evidence.files.iter().filter(is_it);
    let (Some((known, text)), None) = (scripts.next(), scripts.next()) else {
        return Err("the script is not one certain file of the build context".to_owned());
    };
    let (edit, description) = if text.contains("\r\n") {
        (Edit::UseUnixLineEnds, format!("{known}: Unix line ends"))
    } else if !text.starts_with("#!") && scene.evidence.phase != Phase::Build {
        (Edit::AddShebang { interpreter: "/bin/sh".to_owned() }, format!("{known}: name its interpreter"))
    } else {
        return Err(format!("{known} looks well: is the interpreter it names in the image?"));
    };
    scene.change(known, edit, description).map(Resolved::patch).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_release_keeps_the_major_version() {
        let available = "1.0, 2.0.1, 2.10.0, 3.0rc1, 3.1.0";
        assert_eq!(nearest("2.99", available), Some("2.10.0"));
        assert_eq!(nearest("2.0.0", available), Some("2.0.1"));
        assert_eq!(nearest("9.9", available), Some("3.1.0"));
        assert_eq!(nearest("1", "none"), None);
    }
}
