//! The place a fix is worked out for: the service's Dockerfile, and the stage and line in it that need something.

use crate::compose::Build;
use crate::dockerfile::{Dockerfile, Kind};
use crate::edit::{self, Edit, FileChange};
use crate::log::Failure;
use crate::names::Names;

use super::{Evidence, Phase};

/// Base images whose packages are not Debian's, and images without any package tool.
const NOT_DEBIAN: &[&str] = &[
    "alpine",
    "fedora",
    "centos",
    "rocky",
    "alma",
    "ubi",
    "amazonlinux",
    "archlinux",
    "opensuse",
    "busybox",
    "scratch",
    "distroless",
    "chainguard",
    "wolfi",
    "nanoserver",
    "servercore",
];

pub(super) struct Scene<'a> {
    pub(super) evidence: &'a Evidence,
    pub(super) names: &'a Names,
    failure: Failure,
}

/// The stage that needs something, and the line of the instruction that needs it (`None`: the container does).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) stage: usize,
    pub(super) line: Option<usize>,
}

impl<'a> Scene<'a> {
    pub(super) fn new(evidence: &'a Evidence, names: &'a Names, failure: Failure) -> Self {
        Self { evidence, names, failure }
    }

    fn build(&self) -> Result<&'a Build, String> {
        let service =
            self.evidence.model.service(&self.evidence.service).map_err(|error| error.to_string())?;
        service.build.as_ref().ok_or_else(|| {
            format!(
                "{} is not built here but pulled as an image, which Cooper does not change",
                self.evidence.service
            )
        })
    }

    /// Path of the Dockerfile in the build context.
    pub(super) fn dockerfile_path(&self) -> Result<String, String> {
        let build = self.build()?;
        if build.dockerfile_inline.is_some() {
            return Err("the Dockerfile is written inside the compose file".to_owned());
        }
        let named = build.dockerfile();
        let path = named.strip_prefix(&format!("{}/", build.context.trim_end_matches('/'))).unwrap_or(named);
        let path = path.strip_prefix("./").unwrap_or(path);
        if path.starts_with('/') || path.split('/').any(|part| part == "..") {
            return Err(format!("the Dockerfile {named} lies outside the build context"));
        }
        Ok(path.to_owned())
    }

    pub(super) fn file(&self, path: &str) -> Result<&'a str, String> {
        let text = self.evidence.files.get(path).map(String::as_str);
        text.ok_or_else(|| format!("the build context has no readable {path}"))
    }

    pub(super) fn dockerfile(&self) -> Result<Dockerfile<'a>, String> {
        Dockerfile::parse(self.file(&self.dockerfile_path()?)?).map_err(|error| error.to_string())
    }

    /// Where the failure needs something.
    pub(super) fn place(&self, file: &Dockerfile<'_>) -> Place {
        let target = self.build().ok().and_then(|build| build.target.as_deref());
        let end = Place { stage: file.target(target), line: None };
        if self.evidence.phase != Phase::Build {
            return end;
        }
        let failure = &self.failure;
        if let Some((line, _)) = failure.culprit
            && let Some((stage, instruction)) = file.at_line(line)
        {
            return Place { stage, line: instruction.map(|_| line) };
        }
        if let Some(place) = failure.instruction.as_deref().and_then(|text| find_run(file, text)) {
            return place;
        }
        let stage = failure
            .step
            .as_deref()
            .and_then(|step| step.split_whitespace().rev().skip(1).find_map(|name| file.stage_named(name)));
        stage.map_or(end, |stage| Place { stage, line: None })
    }

    /// Line of the failing `RUN`.
    pub(super) fn failing_line(&self, file: &Dockerfile<'_>) -> Result<usize, String> {
        self.place(file)
            .line
            .ok_or_else(|| "the log does not tell which line of the Dockerfile failed".to_owned())
    }

    /// The change that an edit of a file amounts to.
    pub(super) fn change(
        &self,
        path: &str,
        edit: Edit,
        description: String,
    ) -> Result<FileChange, edit::Error> {
        let old = self.evidence.files.get(path).map(String::as_str).unwrap_or_default();
        FileChange::edit(path, old, edit, description)
    }

    /// The change that an edit of the Dockerfile amounts to.
    pub(super) fn dockerfile_change(&self, edit: Edit, description: String) -> Result<FileChange, String> {
        let path = self.dockerfile_path()?;
        self.file(&path)?;
        self.change(&path, edit, description).map_err(|error| error.to_string())
    }

    /// Refuses stages whose packages do not come from Debian.
    pub(super) fn check_debian(&self, file: &Dockerfile<'_>, stage: usize) -> Result<(), String> {
        let image = file.base_image(stage).to_ascii_lowercase();
        match NOT_DEBIAN.iter().find(|name| image.contains(*name)) {
            Some(_) => {
                Err(format!("the base image {image} is not Debian's, whose package names Cooper knows"))
            }
            None => Ok(()),
        }
    }
}

/// The `RUN` a log repeats: BuildKit joins its lines and may cut it.
fn find_run(file: &Dockerfile<'_>, instruction: &str) -> Option<Place> {
    let squeeze = |text: &str| text.replace("\\\n", " ").split_whitespace().collect::<String>();
    let wanted = squeeze(instruction.strip_prefix("RUN ")?);
    let wanted = wanted.trim_end_matches("...");
    for (stage, instructions) in file.stages.iter().map(|stage| &stage.instructions).enumerate() {
        for instruction in instructions {
            if let Kind::Run(span) = &instruction.kind
                && !wanted.is_empty()
                && squeeze(&file.text[span.clone()]).starts_with(wanted)
            {
                return Some(Place { stage, line: Some(file.line_number(instruction.start)) });
            }
        }
    }
    None
}
