//! Edits that add or rename whole instructions of a Dockerfile.

use crate::dockerfile::{Dockerfile, Kind, Stage};

use super::{Error, check, splice};

fn stage<'a>(file: &'a Dockerfile<'_>, stage: usize) -> Result<&'a Stage, Error> {
    file.stages.get(stage).ok_or_else(|| Error::NoPlace(format!("the Dockerfile has no stage {stage}")))
}

/// Inserts a line, with a line end before it where the text lacks one.
fn insert(old: &str, at: usize, line: &str) -> String {
    let newline = if at > 0 && !old[..at].ends_with('\n') { "\n" } else { "" };
    splice(old, at..at, &format!("{newline}{line}\n"))
}

/// Makes a file of the image executable, as root, after it was copied.
pub(super) fn make_executable(old: &str, index: usize, path: &str) -> Result<String, Error> {
    check("path", path, "/.", "/._-")?;
    let file = Dockerfile::parse(old)?;
    let stage = stage(&file, index)?;
    let line = format!("RUN chmod +x {path}");
    if old.lines().any(|other| other.trim() == line) {
        return Err(Error::NoEffect(line));
    }
    let is_copy = |kind: &Kind| matches!(kind, Kind::Copy { .. });
    let Some(copy) = stage.instructions.iter().rposition(|instruction| is_copy(&instruction.kind)) else {
        return Err(Error::NoPlace(format!("stage {index} copies no file that could be made executable")));
    };
    let user = stage.instructions[..=copy].iter().rev().find_map(|instruction| match &instruction.kind {
        Kind::User(user) => Some(user.as_str()),
        _ => None,
    });
    if user.is_some_and(|user| !matches!(user.split(':').next(), Some("root" | "0"))) {
        return Err(Error::NoPlace(format!(
            "{path} is copied as an unprivileged user: set its mode in the checkout (chmod +x)"
        )));
    }
    Ok(insert(old, file.after(index, Some(copy)), &line))
}

/// Creates the user that a stage's `USER` names.
pub(super) fn add_user(old: &str, index: usize, user: &str) -> Result<String, Error> {
    check("user name", user, "_", "_-")?;
    let file = Dockerfile::parse(old)?;
    let stage = stage(&file, index)?;
    let names = |kind: &Kind| matches!(kind, Kind::User(named) if named.split(':').next() == Some(user));
    let Some(at) = stage.instructions.iter().position(|instruction| names(&instruction.kind)) else {
        return Err(Error::NoPlace(format!("stage {index} has no USER {user}")));
    };
    let line = if file.base_image(index).contains("alpine") {
        format!("RUN adduser -D {user}")
    } else {
        format!("RUN useradd --create-home {user}")
    };
    if old.lines().any(|other| other.trim() == line) {
        return Err(Error::NoEffect(line));
    }
    Ok(insert(old, file.before(index, at), &line))
}

/// Sets a variable at the start of a stage.
pub(super) fn set_env(old: &str, index: usize, name: &str, value: &str) -> Result<String, Error> {
    check("variable name", name, "_", "_")?;
    check("variable value", value, "/", "/._-:")?;
    let file = Dockerfile::parse(old)?;
    let _ = stage(&file, index)?;
    let line = format!("ENV {name}={value}");
    if old.lines().any(|other| other.trim() == line) {
        return Err(Error::NoEffect(line));
    }
    Ok(insert(old, file.after(index, None), &line))
}

/// Replaces a misspelt keyword. The Dockerfile cannot be parsed before, only after.
pub(super) fn rename(old: &str, line: usize, from: &str, to: &str) -> Result<String, Error> {
    check("instruction", to, "", "")?;
    let start = old.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum::<usize>();
    let text = old[start..].split('\n').next().unwrap_or_default();
    let keyword = text.trim_start();
    let at = start + text.len() - keyword.len();
    let word = keyword.split_whitespace().next().unwrap_or_default();
    if from.is_empty() || !word.eq_ignore_ascii_case(from) {
        return Err(Error::NoPlace(format!("line {line} of the Dockerfile does not start with {from}")));
    }
    Ok(splice(old, at..at + word.len(), to))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "FROM debian\nCOPY run.sh /run.sh\nUSER app\nCMD [\"/run.sh\"]\n";

    #[test]
    fn a_copied_file_is_made_executable_before_the_user_changes() {
        let new = make_executable(FILE, 0, "/run.sh").unwrap();
        assert_eq!(new, FILE.replace("USER", "RUN chmod +x /run.sh\nUSER"));
        assert!(matches!(make_executable(&new, 0, "/run.sh"), Err(Error::NoEffect(_))));
    }

    #[test]
    fn a_missing_user_is_created_before_it_is_used() {
        assert_eq!(
            add_user(FILE, 0, "app").unwrap(),
            FILE.replace("USER", "RUN useradd --create-home app\nUSER")
        );
    }

    #[test]
    fn a_variable_is_set_at_the_start_of_the_stage() {
        assert_eq!(
            set_env(FILE, 0, "LANG", "C.UTF-8").unwrap(),
            FILE.replace("COPY", "ENV LANG=C.UTF-8\nCOPY")
        );
    }

    #[test]
    fn a_misspelt_keyword_is_replaced_alone() {
        assert_eq!(rename("FROM a\n  RUM true\n", 2, "RUM", "RUN").unwrap(), "FROM a\n  RUN true\n");
        assert!(matches!(rename("FROM a\n", 9, "RUM", "RUN"), Err(Error::NoPlace(_))));
    }
}
