//! Typed edits of single files, and the file changes they amount to.
//!
//! An edit changes only the span it is about: every other line keeps its bytes, a CRLF file stays CRLF. Names in an
//! edit may come from a log, which anyone can write: each is checked against the form it must have before it gets
//! into a file.

mod apt;
mod compose;
mod instruction;
mod package_json;
mod python;
pub(crate) mod shell;
mod text;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::dockerfile::{self, Dockerfile};
use crate::{diff, limits, plan};

pub use python::distribution_name;
pub(crate) use python::{PipInstall, pip_installs};

/// Why an edit was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The file already says what the edit would make it say.
    #[error("{0} is already there: the image may be older than the file, build it again")]
    NoEffect(String),
    /// The file has no place for the edit.
    #[error("{0}")]
    NoPlace(String),
    /// The file is not what it should be, before or after the edit.
    #[error(transparent)]
    Dockerfile(#[from] dockerfile::Error),
    /// A name or version in the edit is not one.
    #[error("{value:?} is not a valid {what}")]
    Invalid {
        /// What it should be.
        what: &'static str,
        /// What it is.
        value: String,
    },
    /// The file is longer than [`limits::FILE_BYTES_MAX`].
    #[error("the file has {0} bytes, at most {max} can be edited", max = limits::FILE_BYTES_MAX)]
    TooLong(usize),
}

/// One typed edit of one file. Stages count from 0, lines from 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Edit {
    /// Requirements file: append a line.
    AppendRequirement {
        /// `name`, or `name==version`.
        requirement: String,
    },
    /// Requirements file: require exactly this version of a package, in place of what its line asks for.
    PinRequirement {
        /// Distribution.
        package: String,
        /// Version to install.
        version: String,
    },
    /// Requirements file: take the line of a package out.
    RemoveRequirement {
        /// Distribution.
        package: String,
    },
    /// Requirements file: replace `=` by `==` in a line such as `flask=2.0`.
    FixRequirementOperator {
        /// The line as pip printed it.
        requirement: String,
    },
    /// `pyproject.toml`: append to `project.dependencies`.
    AppendProjectDependency {
        /// `name`, or `name==version`.
        requirement: String,
    },
    /// Dockerfile: one more argument for the `pip install` of the `RUN` at a line.
    ExtendPipInstall {
        /// Line of the `RUN`.
        line: usize,
        /// `name`, or `name==version`.
        requirement: String,
    },
    /// Dockerfile: install Debian packages in a stage, before a line if one is given. Extends an `apt-get install`
    /// of that stage that also updates the lists, else adds a `RUN` before the first `COPY` or `ADD`.
    InstallAptPackages {
        /// The stage.
        stage: usize,
        /// Line of the instruction that needs them; the whole stage if absent.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        before_line: Option<usize>,
        /// Debian package names.
        packages: Vec<String>,
    },
    /// Dockerfile: `apt-get update` before the `apt-get install` of the `RUN` at a line.
    UpdateAptLists {
        /// Line of the `RUN`.
        line: usize,
    },
    /// Dockerfile: another package, or the same without its version, in the `apt-get install` at a line.
    ReplaceAptPackage {
        /// Line of the `RUN`.
        line: usize,
        /// The argument as it is: `name` or `name=version`.
        from: String,
        /// The argument as it shall be.
        to: String,
    },
    /// Dockerfile: `-y` for the `apt-get install` at a line.
    AnswerAptYes {
        /// Line of the `RUN`.
        line: usize,
    },
    /// Dockerfile: a virtual environment that the `RUN` at a line and everything after it uses. With Debian's package
    /// for it, since an image that wants one has Debian's Python.
    UseVenv {
        /// Line of the `RUN`.
        line: usize,
    },
    /// Dockerfile: copy one more file of the build context into a stage, before a line if one is given, else after the
    /// stage's last `COPY`.
    CopyFile {
        /// The stage.
        stage: usize,
        /// Line of the instruction that needs it.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        before_line: Option<usize>,
        /// Path in the build context.
        source: String,
        /// Path in the image.
        dest: String,
    },
    /// Dockerfile: another source in the `COPY` at a line.
    ReplaceCopySource {
        /// Line of the `COPY`.
        line: usize,
        /// The source as it is.
        from: String,
        /// The source as it shall be.
        to: String,
    },
    /// `.dockerignore`: take one file back in.
    Unignore {
        /// Path in the build context.
        path: String,
    },
    /// Dockerfile: a directory that the stage's last `USER` owns, made before that `USER`.
    OwnDirectory {
        /// The stage.
        stage: usize,
        /// Absolute path in the image.
        path: String,
    },
    /// Dockerfile: `npm ci` becomes `npm install` in the `RUN` at a line.
    InstallWithoutLock {
        /// Line of the `RUN`.
        line: usize,
    },
    /// Dockerfile: `RUN chmod +x` after the last `COPY` of a stage.
    MakeExecutable {
        /// The stage.
        stage: usize,
        /// Path in the image.
        path: String,
    },
    /// Dockerfile: create the user that a stage's `USER` names.
    AddUser {
        /// The stage.
        stage: usize,
        /// User name.
        user: String,
    },
    /// Dockerfile: an `ENV` at the start of a stage.
    SetEnv {
        /// The stage.
        stage: usize,
        /// Name.
        name: String,
        /// Value.
        value: String,
    },
    /// Dockerfile: another keyword at a line.
    RenameInstruction {
        /// The line.
        line: usize,
        /// Keyword as it is.
        from: String,
        /// Keyword as it shall be.
        to: String,
    },
    /// `package.json`: one more entry in `dependencies`.
    AddNodeDependency {
        /// Package.
        package: String,
        /// Version range.
        version: String,
    },
    /// Compose file: one more environment variable of a service.
    SetEnvironment {
        /// Service.
        service: String,
        /// Name.
        name: String,
        /// Value.
        value: String,
    },
    /// Compose file: publish on another port of the host.
    MovePort {
        /// Service.
        service: String,
        /// Host port as it is.
        from: u16,
        /// Host port as it shall be.
        to: u16,
    },
    /// Compose file: start only once another service is healthy.
    WaitUntilHealthy {
        /// Service.
        service: String,
        /// The service it waits for.
        on: String,
    },
    /// Any text: CRLF becomes LF.
    UseUnixLineEnds,
    /// Any text: one passage in place of another, which stands in it exactly once.
    ReplaceText {
        /// The passage as it is.
        from: String,
        /// The passage as it shall be.
        to: String,
    },
    /// Script: a first line that names its interpreter.
    AddShebang {
        /// Absolute path of the interpreter.
        interpreter: String,
    },
}

impl Edit {
    /// The text after the edit.
    ///
    /// # Errors
    /// [`Error::NoEffect`] if the text already says it, [`Error::NoPlace`] if the edit does not fit the text,
    /// [`Error::Invalid`] for a name that is not one, [`Error::Dockerfile`] if it cannot be parsed before or after.
    pub fn apply(&self, old: &str) -> Result<String, Error> {
        if old.len() > limits::FILE_BYTES_MAX {
            return Err(Error::TooLong(old.len()));
        }
        if *self == Self::UseUnixLineEnds {
            return text::use_unix_line_ends(old);
        }
        // Work on LF and put CRLF back: only where every line has it, since a mixed file could not be put back as it was.
        let crlf = old.contains("\r\n") && old.matches('\n').count() == old.matches("\r\n").count();
        let plain = if crlf { Cow::Owned(old.replace("\r\n", "\n")) } else { Cow::Borrowed(old) };
        let new = self.apply_plain(&plain)?;
        if self.edits_dockerfile() {
            Dockerfile::parse(&new)?;
        }
        Ok(if crlf { new.replace('\n', "\r\n") } else { new })
    }

    fn edits_dockerfile(&self) -> bool {
        match self {
            Self::ExtendPipInstall { .. }
            | Self::InstallAptPackages { .. }
            | Self::UpdateAptLists { .. }
            | Self::ReplaceAptPackage { .. }
            | Self::AnswerAptYes { .. }
            | Self::UseVenv { .. }
            | Self::CopyFile { .. }
            | Self::ReplaceCopySource { .. }
            | Self::OwnDirectory { .. }
            | Self::InstallWithoutLock { .. }
            | Self::MakeExecutable { .. }
            | Self::AddUser { .. }
            | Self::SetEnv { .. }
            | Self::RenameInstruction { .. } => true,
            Self::AppendRequirement { .. }
            | Self::PinRequirement { .. }
            | Self::RemoveRequirement { .. }
            | Self::FixRequirementOperator { .. }
            | Self::AppendProjectDependency { .. }
            | Self::AddNodeDependency { .. }
            | Self::Unignore { .. }
            | Self::SetEnvironment { .. }
            | Self::MovePort { .. }
            | Self::WaitUntilHealthy { .. }
            | Self::UseUnixLineEnds
            | Self::ReplaceText { .. }
            | Self::AddShebang { .. } => false,
        }
    }

    fn apply_plain(&self, old: &str) -> Result<String, Error> {
        match self {
            Self::AppendRequirement { requirement } => python::append_requirement(old, requirement),
            Self::PinRequirement { package, version } => python::pin_requirement(old, package, version),
            Self::RemoveRequirement { package } => python::remove_requirement(old, package),
            Self::FixRequirementOperator { requirement } => python::fix_operator(old, requirement),
            Self::AppendProjectDependency { requirement } => {
                python::append_project_dependency(old, requirement)
            }
            Self::ExtendPipInstall { line, requirement } => {
                python::extend_pip_install(old, *line, requirement)
            }
            Self::InstallAptPackages { stage, before_line, packages } => {
                apt::install(old, *stage, *before_line, packages)
            }
            Self::UpdateAptLists { line } => apt::update_lists(old, *line),
            Self::ReplaceAptPackage { line, from, to } => apt::replace_package(old, *line, from, to),
            Self::AnswerAptYes { line } => apt::answer_yes(old, *line),
            Self::UseVenv { line } => instruction::use_venv(old, *line),
            Self::CopyFile { stage, before_line, source, dest } => {
                instruction::copy_file(old, *stage, *before_line, source, dest)
            }
            Self::ReplaceCopySource { line, from, to } => {
                instruction::replace_copy_source(old, *line, from, to)
            }
            Self::Unignore { path } => text::unignore(old, path),
            Self::OwnDirectory { stage, path } => instruction::own_directory(old, *stage, path),
            Self::InstallWithoutLock { line } => package_json::install_without_lock(old, *line),
            Self::MakeExecutable { stage, path } => instruction::make_executable(old, *stage, path),
            Self::AddUser { stage, user } => instruction::add_user(old, *stage, user),
            Self::SetEnv { stage, name, value } => instruction::set_env(old, *stage, name, value),
            Self::RenameInstruction { line, from, to } => instruction::rename(old, *line, from, to),
            Self::AddNodeDependency { package, version } => {
                package_json::add_dependency(old, package, version)
            }
            Self::SetEnvironment { service, name, value } => {
                compose::set_environment(old, service, name, value)
            }
            Self::MovePort { service, from, to } => compose::move_port(old, service, *from, *to),
            Self::WaitUntilHealthy { service, on } => compose::wait_until_healthy(old, service, on),
            Self::UseUnixLineEnds => text::use_unix_line_ends(old),
            Self::ReplaceText { from, to } => text::replace(old, from, to),
            Self::AddShebang { interpreter } => text::add_shebang(old, interpreter),
        }
    }
}

/// What a path is relative to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Root {
    /// The service's build context.
    #[default]
    Context,
    /// The stack's directory.
    Stack,
}

/// One file as it shall be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileChange {
    /// What `path` is relative to.
    #[serde(default)]
    pub root: Root,
    /// Relative path, `/` between parts, no `..`.
    pub path: String,
    /// SHA-256 of the bytes it replaces, 64 hex digits; `None` if there is no file yet.
    pub base_sha256: Option<String>,
    /// The whole new text.
    pub new_content: String,
    /// New permission bits, if they change.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mode: Option<u32>,
    /// The edits that lead from the old text to the new; empty if it was written as a whole.
    pub edits: Vec<Edit>,
    /// What the change does, for people.
    pub description: String,
    /// Unified diff with `a/` and `b/` paths.
    pub diff: String,
}

impl FileChange {
    /// The change that an edit of a file in the build context amounts to.
    pub fn edit(path: &str, old: &str, edit: Edit, description: String) -> Result<Self, Error> {
        Self::edits(path, old, vec![edit], description)
    }

    /// The change that several edits of one file amount to, one after the other.
    pub fn edits(path: &str, old: &str, edits: Vec<Edit>, description: String) -> Result<Self, Error> {
        let mut new_content = old.to_owned();
        for edit in &edits {
            new_content = edit.apply(&new_content)?;
        }
        Ok(Self {
            root: Root::Context,
            path: path.to_owned(),
            base_sha256: Some(sha256(old.as_bytes())),
            diff: diff::unified(path, Some(old), &new_content),
            new_content,
            mode: None,
            edits,
            description,
        })
    }

    /// True if `old` (`None`: no file) is what the change was made for. A worker writes nothing where this is false.
    pub fn is_based_on(&self, old: Option<&[u8]>) -> bool {
        self.base_sha256 == old.map(sha256)
    }
}

/// SHA-256 as 64 lower-case hex digits, as `base_sha256` has it.
pub fn sha256(bytes: &[u8]) -> String {
    plan::hex(&Sha256::digest(bytes))
}

/// Checks a value that may come from a log: only these characters, the first a letter or digit (or one of `first`).
fn check(what: &'static str, value: &str, first: &str, further: &str) -> Result<(), Error> {
    let plain = |part: char| part.is_ascii_alphanumeric();
    let starts_well = value.chars().next().is_some_and(|part| plain(part) || first.contains(part));
    if starts_well && value.len() <= 200 && value.chars().all(|part| plain(part) || further.contains(part)) {
        return Ok(());
    }
    Err(Error::Invalid { what, value: value.chars().take(80).collect() })
}

/// `old` with `replacement` in place of a span.
fn splice(old: &str, span: std::ops::Range<usize>, replacement: &str) -> String {
    [&old[..span.start], replacement, &old[span.end..]].concat()
}
