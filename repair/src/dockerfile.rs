//! A Dockerfile as the parts that repair looks at: stages, their instructions, and where each stands in the text.

use std::ops::Range;

use parse_dockerfile::{Command, Instruction as Parsed, Source};

/// The Dockerfile cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the Dockerfile cannot be parsed: {0}")]
pub struct Error(String);

/// A parsed Dockerfile.
#[derive(Debug)]
pub struct Dockerfile<'a> {
    /// The text it was parsed from; every offset points into it.
    pub text: &'a str,
    /// Its stages, in order; at least one.
    pub stages: Vec<Stage>,
}

/// One stage.
#[derive(Debug)]
pub struct Stage {
    /// Image or earlier stage it starts from.
    pub image: String,
    /// Name given by `AS`.
    pub name: Option<String>,
    /// Its instructions after `FROM`.
    pub instructions: Vec<Instruction>,
    /// Offset of its `FROM`.
    pub start: usize,
}

/// One instruction.
#[derive(Debug)]
pub struct Instruction {
    /// Offset of its keyword.
    pub start: usize,
    /// What it says.
    pub kind: Kind,
}

/// Instructions that matter here.
#[derive(Debug, PartialEq, Eq)]
pub enum Kind {
    /// `RUN` in shell form: where its command stands. Here-documents and exec form are `Other`.
    Run(Range<usize>),
    /// `COPY` or `ADD`.
    Copy {
        /// Stage or image of `--from`.
        from: Option<String>,
        /// Sources, without here-documents.
        sources: Vec<String>,
        /// Destination.
        dest: String,
    },
    /// `USER`.
    User(String),
    /// `WORKDIR`.
    Workdir(String),
    /// `ENTRYPOINT` or `CMD`.
    Start,
    /// Anything else.
    Other,
}

impl<'a> Dockerfile<'a> {
    /// Parses a Dockerfile.
    pub fn parse(text: &'a str) -> Result<Self, Error> {
        let parsed = parse_dockerfile::parse(text).map_err(|error| Error(error.to_string()))?;
        let mut stages: Vec<Stage> = Vec::new();
        for instruction in &parsed.instructions {
            if let Parsed::From(from) = instruction {
                stages.push(Stage {
                    image: from.image.value.to_string(),
                    name: from.as_.as_ref().map(|(_, name)| name.value.to_string()),
                    instructions: Vec::new(),
                    start: from.from.span.start,
                });
            } else if let Some(stage) = stages.last_mut() {
                stage.instructions.push(read(instruction));
            }
        }
        if stages.is_empty() {
            return Err(Error("there is no FROM".to_owned()));
        }
        Ok(Self { text, stages })
    }

    /// Index of the stage that a build of `target` ends in; the last one if there is no target or none of that name.
    pub fn target(&self, target: Option<&str>) -> usize {
        target.and_then(|name| self.stage_named(name)).unwrap_or(self.stages.len() - 1)
    }

    /// Index of the stage with that name or number.
    pub fn stage_named(&self, name: &str) -> Option<usize> {
        let by_name = |stage: &Stage| stage.name.as_deref().is_some_and(|own| own.eq_ignore_ascii_case(name));
        self.stages
            .iter()
            .position(by_name)
            .or_else(|| name.parse().ok().filter(|&number| number < self.stages.len()))
    }

    /// Stage and instruction that cover a line (from 1); the instruction is `None` for the `FROM` itself.
    pub fn at_line(&self, line: usize) -> Option<(usize, Option<usize>)> {
        let end = self.text.split_inclusive('\n').take(line).map(str::len).sum::<usize>();
        let stage = self.stages.iter().rposition(|stage| stage.start < end)?;
        Some((stage, self.stages[stage].instructions.iter().rposition(|instruction| instruction.start < end)))
    }

    /// The stage and those it is made from, itself first: by `FROM`, then by `COPY --from`.
    pub fn lineage(&self, stage: usize) -> Vec<usize> {
        let mut lineage = vec![stage];
        let mut at = 0;
        while let Some(&index) = lineage.get(at) {
            let stage = &self.stages[index];
            let copied = stage.instructions.iter().filter_map(|instruction| match &instruction.kind {
                Kind::Copy { from: Some(from), .. } => Some(from.as_str()),
                _ => None,
            });
            for name in std::iter::once(stage.image.as_str()).chain(copied) {
                // A stage can only be made from earlier ones; anything else is an image.
                if let Some(other) = self.stage_named(name).filter(|&other| other < index)
                    && !lineage.contains(&other)
                {
                    lineage.push(other);
                }
            }
            at += 1;
        }
        lineage
    }

    /// The image a stage comes from in the end, through the stages it names in `FROM`.
    pub fn base_image(&self, stage: usize) -> &str {
        let mut stage = stage;
        while let Some(earlier) =
            self.stage_named(&self.stages[stage].image).filter(|&earlier| earlier < stage)
        {
            stage = earlier;
        }
        &self.stages[stage].image
    }

    /// Start of the line an offset is in.
    pub fn line_start(&self, offset: usize) -> usize {
        self.text[..offset].rfind('\n').map_or(0, |at| at + 1)
    }

    /// Line number of an offset, from 1.
    pub fn line_number(&self, offset: usize) -> usize {
        self.text[..offset].matches('\n').count() + 1
    }

    /// Offset for a new instruction before the given one: above the comment lines that belong to it.
    pub fn before(&self, stage: usize, instruction: usize) -> usize {
        let mut at = self.line_start(self.stages[stage].instructions[instruction].start);
        while at > 0 {
            let above = self.line_start(at - 1);
            if above <= self.stages[stage].start || !self.text[above..at].trim_start().starts_with('#') {
                break;
            }
            at = above;
        }
        at
    }

    /// Offset for a new instruction after the given one, or right after `FROM` for `None`.
    pub fn after(&self, stage: usize, instruction: Option<usize>) -> usize {
        let next = instruction.map_or(0, |index| index + 1);
        if next < self.stages[stage].instructions.len() {
            return self.before(stage, next);
        }
        match self.stages.get(stage + 1) {
            Some(following) => self.line_start(following.start),
            None => self.text.len(),
        }
    }
}

fn read(instruction: &Parsed<'_>) -> Instruction {
    let (start, kind) = match instruction {
        Parsed::Run(run) => {
            let kind = match &run.arguments {
                Command::Shell(shell) if run.here_docs.is_empty() => Kind::Run(shell.span.clone()),
                _ => Kind::Other,
            };
            (run.run.span.start, kind)
        }
        Parsed::Copy(copy) => {
            let from = copy.options.iter().find(|flag| flag.name.value == "from");
            let from = from.and_then(|flag| flag.value.as_ref()).map(|value| value.value.to_string());
            let kind = Kind::Copy { from, sources: sources(&copy.src), dest: copy.dest.value.to_string() };
            (copy.copy.span.start, kind)
        }
        Parsed::Add(add) => {
            let kind =
                Kind::Copy { from: None, sources: sources(&add.src), dest: add.dest.value.to_string() };
            (add.add.span.start, kind)
        }
        Parsed::User(user) => (user.user.span.start, Kind::User(user.arguments.value.to_string())),
        Parsed::Workdir(workdir) => {
            (workdir.workdir.span.start, Kind::Workdir(workdir.arguments.value.to_string()))
        }
        Parsed::Entrypoint(entrypoint) => (entrypoint.entrypoint.span.start, Kind::Start),
        Parsed::Cmd(cmd) => (cmd.cmd.span.start, Kind::Start),
        Parsed::Arg(other) => (other.arg.span.start, Kind::Other),
        Parsed::Env(other) => (other.env.span.start, Kind::Other),
        Parsed::Expose(other) => (other.expose.span.start, Kind::Other),
        Parsed::Healthcheck(other) => (other.healthcheck.span.start, Kind::Other),
        Parsed::Label(other) => (other.label.span.start, Kind::Other),
        Parsed::Maintainer(other) => (other.maintainer.span.start, Kind::Other),
        Parsed::Onbuild(other) => (other.onbuild.span.start, Kind::Other),
        Parsed::Shell(other) => (other.shell.span.start, Kind::Other),
        Parsed::Stopsignal(other) => (other.stopsignal.span.start, Kind::Other),
        Parsed::Volume(other) => (other.volume.span.start, Kind::Other),
        // The parser may learn instructions that this code does not know yet; `From` is handled by the caller.
        _ => (usize::MAX, Kind::Other),
    };
    Instruction { start, kind }
}

fn sources(sources: &[Source<'_>]) -> Vec<String> {
    sources
        .iter()
        .filter_map(|source| match source {
            Source::Path(path) => Some(path.value.to_string()),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_STAGES: &str = "\
FROM python:3.11 AS builder
WORKDIR /src
COPY requirements.txt .
# all of it
RUN pip install \\
    -r requirements.txt

FROM builder AS last
COPY --from=0 /opt/venv /opt/venv
USER app
CMD [\"python\", \"app.py\"]
";

    #[test]
    fn a_line_leads_to_its_stage_and_instruction() {
        let file = Dockerfile::parse(TWO_STAGES).unwrap();
        assert_eq!(file.at_line(1), Some((0, None)));
        assert_eq!(file.at_line(6), Some((0, Some(2))));
        assert_eq!(file.at_line(9), Some((1, Some(0))));
    }

    #[test]
    fn lineage_follows_from_and_copy() {
        let file = Dockerfile::parse(TWO_STAGES).unwrap();
        assert_eq!(file.lineage(1), [1, 0]);
        assert_eq!(file.base_image(1), "python:3.11");
    }

    #[test]
    fn a_new_instruction_goes_above_the_comment_of_the_next_one() {
        let file = Dockerfile::parse(TWO_STAGES).unwrap();
        assert!(file.text[file.before(0, 2)..].starts_with("# all of it"));
        assert!(file.text[file.after(0, Some(2))..].starts_with("FROM builder"));
        assert_eq!(file.after(1, Some(2)), TWO_STAGES.len());
    }
}
