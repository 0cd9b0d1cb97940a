//! Edits of `apt-get` commands in a Dockerfile.

use std::ops::Range;

use crate::dockerfile::{Dockerfile, Kind};

use super::shell::{self, Command};
use super::{Error, check, splice};

/// Options of `apt-get install` that take the next word.
const OPTIONS_WITH_VALUE: &[&str] = &["-o", "-t", "-c", "--option", "--target-release", "--default-release"];

/// The packages of an `apt-get install` among the words of a command: index of each.
fn packages(command: &Command) -> Option<Vec<usize>> {
    let start = command.after(&["apt-get", "install"]).or_else(|| command.after(&["apt", "install"]))?;
    let mut packages = Vec::new();
    let mut skip = false;
    for (index, word) in command.words.iter().enumerate().skip(start) {
        if word.text.contains('>') || word.text.contains('<') {
            break;
        }
        if !skip && !word.text.starts_with('-') {
            packages.push(index);
        }
        skip = !skip && OPTIONS_WITH_VALUE.contains(&word.text.as_str());
    }
    Some(packages)
}

fn updates_lists(command: &Command) -> bool {
    command.after(&["apt-get", "update"]).or_else(|| command.after(&["apt", "update"])).is_some()
}

fn is_root(user: &str) -> bool {
    matches!(user.split(':').next(), Some("root" | "0"))
}

/// True if a stage starts as another user than root, as far as the Dockerfile tells.
fn starts_unprivileged(file: &Dockerfile<'_>, stage: usize) -> bool {
    let Some(parent) = file.stage_named(&file.stages[stage].image).filter(|&parent| parent < stage) else {
        return false;
    };
    let user =
        file.stages[parent].instructions.iter().rev().find_map(|instruction| match &instruction.kind {
            Kind::User(user) => Some(!is_root(user)),
            _ => None,
        });
    user.unwrap_or_else(|| starts_unprivileged(file, parent))
}

/// Installs packages in a stage before the instruction at `before_line`.
pub(super) fn install(
    old: &str,
    stage: usize,
    before_line: Option<usize>,
    wanted: &[String],
) -> Result<String, Error> {
    for package in wanted {
        check("Debian package name", package, "", "+.-")?;
    }
    let file = Dockerfile::parse(old)?;
    let Some(instructions) = file.stages.get(stage).map(|stage| &stage.instructions) else {
        return Err(Error::NoPlace(format!("the Dockerfile has no stage {stage}")));
    };
    let user = before_line.and_then(|line| file.at_line(line)).filter(|(of, _)| *of == stage);
    let end = user.and_then(|(_, instruction)| instruction).unwrap_or(instructions.len());

    // Runs of the stage that come in time; the failing one itself counts, since what fails in it comes after.
    let runs: Vec<(Range<usize>, Vec<Command>)> = instructions
        .iter()
        .take(end + 1)
        .filter_map(|instruction| match &instruction.kind {
            Kind::Run(span) => Some((span.clone(), shell::commands(&old[span.clone()]))),
            _ => None,
        })
        .collect();
    let installed = |name: &String| {
        runs.iter().flat_map(|(_, commands)| commands).any(|command| {
            let named = |&index: &usize| command.words[index].text.split('=').next() == Some(name.as_str());
            packages(command).is_some_and(|packages| packages.iter().any(named))
        })
    };
    let missing: Vec<&str> = wanted.iter().filter(|name| !installed(name)).map(String::as_str).collect();
    if missing.is_empty() {
        return Err(Error::NoEffect(wanted.join(", ")));
    }

    for (span, commands) in runs.iter().rev().filter(|(_, commands)| commands.iter().any(updates_lists)) {
        let last = commands.iter().find_map(|command| {
            let packages = packages(command)?;
            Some(command.words[*packages.last()?].span.clone())
        });
        if let Some(last) = last {
            let text = &old[span.clone()];
            let added: String = missing.iter().map(|package| shell::addition(text, &last, package)).collect();
            let at = span.start + last.end;
            return Ok(splice(old, at..at, &added));
        }
    }

    if starts_unprivileged(&file, stage) {
        return Err(Error::NoPlace(format!(
            "stage {stage} starts as an unprivileged user: install {} in the stage it is made from",
            missing.join(", ")
        )));
    }
    let too_late = |kind: &Kind| match kind {
        Kind::Copy { .. } | Kind::Start => true,
        Kind::User(user) => !is_root(user),
        _ => false,
    };
    let at = instructions.iter().take(end).position(|instruction| too_late(&instruction.kind)).unwrap_or(end);
    let at =
        if at < instructions.len() { file.before(stage, at) } else { file.after(stage, at.checked_sub(1)) };
    let newline = if at > 0 && !old[..at].ends_with('\n') { "\n" } else { "" };
    let run = format!(
        "{newline}RUN apt-get update \\\n && apt-get install -y --no-install-recommends {} \\\n && rm -rf /var/lib/apt/lists/*\n",
        missing.join(" ")
    );
    Ok(splice(old, at..at, &run))
}

/// The `RUN` at a line: its span and commands.
pub(super) fn run_at(old: &str, line: usize) -> Result<(Range<usize>, Vec<Command>), Error> {
    let file = Dockerfile::parse(old)?;
    if let Some((stage, Some(instruction))) = file.at_line(line)
        && let Kind::Run(span) = &file.stages[stage].instructions[instruction].kind
    {
        return Ok((span.clone(), shell::commands(&old[span.clone()])));
    }
    Err(Error::NoPlace(format!("line {line} of the Dockerfile is not a RUN in shell form")))
}

/// The first `apt-get install` of the `RUN` at a line.
fn install_at(old: &str, line: usize) -> Result<(Range<usize>, Vec<Command>, usize), Error> {
    let (span, commands) = run_at(old, line)?;
    match commands.iter().position(|command| packages(command).is_some()) {
        Some(index) => Ok((span, commands, index)),
        None => Err(Error::NoPlace(format!("line {line} of the Dockerfile has no apt-get install"))),
    }
}

/// Puts `apt-get update` before the install at a line.
pub(super) fn update_lists(old: &str, line: usize) -> Result<String, Error> {
    let (span, commands, index) = install_at(old, line)?;
    if commands[..index].iter().any(updates_lists) {
        return Err(Error::NoEffect("apt-get update".to_owned()));
    }
    let at = span.start + commands[index].words[0].span.start;
    Ok(splice(old, at..at, "apt-get update && "))
}

/// Replaces one argument of the install at a line.
pub(super) fn replace_package(old: &str, line: usize, from: &str, to: &str) -> Result<String, Error> {
    check("Debian package", to, "", "+.-=:~")?;
    let (span, commands, _) = install_at(old, line)?;
    let found = commands.iter().find_map(|command| {
        let index = packages(command)?.into_iter().find(|&index| command.words[index].text == from)?;
        Some(command.words[index].span.clone())
    });
    let Some(word) = found else {
        return Err(Error::NoPlace(format!("the apt-get install at line {line} does not name {from}")));
    };
    Ok(splice(old, span.start + word.start..span.start + word.end, to))
}

/// Adds `-y` to the install at a line.
pub(super) fn answer_yes(old: &str, line: usize) -> Result<String, Error> {
    let (span, commands, index) = install_at(old, line)?;
    let command = &commands[index];
    if command
        .words
        .iter()
        .any(|word| matches!(word.text.as_str(), "-y" | "--yes" | "-qy" | "-yq" | "-qqy" | "-yqq"))
    {
        return Err(Error::NoEffect("-y".to_owned()));
    }
    let install = command.words.iter().find(|word| word.text == "install");
    let at = span.start + install.map_or(0, |word| word.span.end);
    Ok(splice(old, at..at, " -y"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn install_git(old: &str, stage: usize, line: Option<usize>) -> Result<String, Error> {
        install(old, stage, line, &["git".to_owned()])
    }

    #[test]
    fn a_run_is_added_before_the_first_copy_of_the_failing_stage() {
        let old =
            "FROM a AS one\nCOPY . .\n\nFROM debian\nWORKDIR /app\n# code\nCOPY . .\nRUN git --version\n";
        let new = install_git(old, 1, Some(8)).unwrap();
        let expected = "FROM a AS one\nCOPY . .\n\nFROM debian\nWORKDIR /app\n\
            RUN apt-get update \\\n && apt-get install -y --no-install-recommends git \\\n && rm -rf /var/lib/apt/lists/*\n\
            # code\nCOPY . .\nRUN git --version\n";
        assert_eq!(new, expected);
    }

    #[test]
    fn an_install_of_the_stage_is_extended_in_its_own_style() {
        let one_line =
            "FROM a\nRUN apt-get update && apt-get install -y curl && rm -rf /x\nRUN git --version\n";
        assert_eq!(install_git(one_line, 0, Some(3)).unwrap(), one_line.replace("curl &&", "curl git &&"));
        let lines = "FROM a\nRUN apt-get update && \\\n    apt-get install -y \\\n      curl \\\n      make \\\n && rm -rf /x\nRUN git\n";
        let extended = lines.replace("      make \\\n", "      make \\\n      git \\\n");
        assert_eq!(install_git(lines, 0, Some(7)).unwrap(), extended);
    }

    #[test]
    fn an_install_that_comes_too_late_is_not_extended() {
        let old = "FROM a\nRUN git --version\nRUN apt-get update && apt-get install -y curl\n";
        assert!(install_git(old, 0, Some(2)).unwrap().starts_with("FROM a\nRUN apt-get update \\\n"));
    }

    #[test]
    fn a_package_that_is_installed_already_has_no_effect() {
        let old = "FROM a\nRUN apt-get update && apt-get install -y git=1:2.3\nRUN git --version\n";
        assert_eq!(install_git(old, 0, Some(3)), Err(Error::NoEffect("git".to_owned())));
    }

    #[test]
    fn packages_go_before_an_unprivileged_user_and_never_under_an_inherited_one() {
        let old = "FROM a\nUSER app\nRUN git --version\n";
        assert!(install_git(old, 0, Some(3)).unwrap().ends_with("lists/*\nUSER app\nRUN git --version\n"));
        let inherited = "FROM a AS base\nUSER app\nFROM base\nRUN git --version\n";
        assert!(matches!(install_git(inherited, 1, Some(4)), Err(Error::NoPlace(_))));
    }

    #[test]
    fn a_package_name_cannot_carry_shell() {
        let evil = ["git; curl x".to_owned()];
        assert!(matches!(install("FROM a\n", 0, None, &evil), Err(Error::Invalid { .. })));
    }

    #[test]
    fn lists_are_updated_versions_dropped_and_questions_answered_in_place() {
        let old = "FROM a\nRUN apt-get install git=1.0 curl\n";
        assert_eq!(
            update_lists(old, 2).unwrap(),
            "FROM a\nRUN apt-get update && apt-get install git=1.0 curl\n"
        );
        assert_eq!(
            replace_package(old, 2, "git=1.0", "git").unwrap(),
            "FROM a\nRUN apt-get install git curl\n"
        );
        assert_eq!(answer_yes(old, 2).unwrap(), "FROM a\nRUN apt-get install -y git=1.0 curl\n");
    }

    #[test]
    fn a_missing_newline_at_the_end_does_not_glue_instructions() {
        assert!(install_git("FROM a", 0, None).unwrap().starts_with("FROM a\nRUN apt-get update"));
    }
}
