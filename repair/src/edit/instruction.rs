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

/// Where the virtual environment of an image stands.
const VENV: &str = "/opt/venv";

/// Has the `RUN` at a line, and what comes after it, use a virtual environment.
pub(super) fn use_venv(old: &str, line: usize) -> Result<String, Error> {
    let file = Dockerfile::parse(old)?;
    let path = format!("ENV PATH={VENV}/bin:$PATH");
    if old.lines().any(|other| other.trim() == path) {
        return Err(Error::NoEffect(path));
    }
    let Some((stage, Some(instruction))) = file.at_line(line) else {
        return Err(Error::NoPlace(format!("no instruction stands at line {line} of the Dockerfile")));
    };
    let lines = format!(
        "RUN apt-get update \\\n && apt-get install -y --no-install-recommends python3-venv \\\n \
         && rm -rf /var/lib/apt/lists/* \\\n && python3 -m venv {VENV}\n{path}"
    );
    Ok(insert(old, file.before(stage, instruction), &lines))
}

/// Copies one more file into a stage.
pub(super) fn copy_file(
    old: &str,
    index: usize,
    before_line: Option<usize>,
    source: &str,
    dest: &str,
) -> Result<String, Error> {
    check("path", source, "._-", "/._-")?;
    check("path", dest, "/._-", "/._-")?;
    let file = Dockerfile::parse(old)?;
    let stage = stage(&file, index)?;
    let line = format!("COPY {source} {dest}");
    if old.lines().any(|other| other.trim() == line) {
        return Err(Error::NoEffect(line));
    }
    let before = before_line.and_then(|line| file.at_line(line)).and_then(|(stage, at)| Some((stage, at?)));
    let at = match before {
        Some((stage, instruction)) => file.before(stage, instruction),
        None => {
            let is_copy = |kind: &Kind| matches!(kind, Kind::Copy { .. } | Kind::Workdir(_));
            file.after(index, stage.instructions.iter().rposition(|instruction| is_copy(&instruction.kind)))
        }
    };
    Ok(insert(old, at, &line))
}

/// Replaces one source of a `COPY` or `ADD`.
pub(super) fn replace_copy_source(old: &str, line: usize, from: &str, to: &str) -> Result<String, Error> {
    check("path", to, "._-", "/._-")?;
    let file = Dockerfile::parse(old)?;
    let found = file.at_line(line).and_then(|(stage, at)| Some(&file.stages[stage].instructions[at?]));
    let Some(instruction) = found.filter(|found| matches!(&found.kind, Kind::Copy { from: None, .. })) else {
        return Err(Error::NoPlace(format!("line {line} of the Dockerfile copies nothing of the context")));
    };
    let text = &old[instruction.start..];
    let bare = |word: &str| word.trim_start_matches("./").trim_matches('/').to_owned();
    let mut at = 0;
    for word in text.split_inclusive([' ', '\t', '\n']) {
        let plain = word.trim_end();
        if !plain.is_empty() && bare(plain) == bare(from) {
            let start = instruction.start + at;
            return Ok(splice(old, start..start + plain.len(), to));
        }
        at += word.len();
        // The instruction ends with the first line that is not continued.
        if word.ends_with('\n') && !text[..at].trim_end().ends_with('\\') {
            break;
        }
    }
    Err(Error::NoPlace(format!("line {line} of the Dockerfile does not copy {from}")))
}

/// Makes a directory that the user of a stage owns.
pub(super) fn own_directory(old: &str, index: usize, path: &str) -> Result<String, Error> {
    check("path", path, "/", "/._-")?;
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    const SYSTEM: [&str; 12] =
        ["bin", "boot", "dev", "etc", "lib", "lib64", "proc", "root", "run", "sbin", "sys", "usr"];
    if parts.first().is_none_or(|first| SYSTEM.contains(first)) || parts.contains(&"..") {
        return Err(Error::NoPlace(format!("{path} belongs to the system of the image")));
    }
    let file = Dockerfile::parse(old)?;
    let stage = stage(&file, index)?;
    let named =
        stage.instructions.iter().enumerate().rev().find_map(|(at, instruction)| match &instruction.kind {
            Kind::User(user) => Some((at, user.as_str())),
            _ => None,
        });
    let Some((at, user)) = named.filter(|(_, user)| !matches!(user.split(':').next(), Some("root" | "0")))
    else {
        return Err(Error::NoPlace(format!("stage {index} has no USER to whom {path} could be given")));
    };
    check("user name", user, "_", "_-:")?;
    let line = format!("RUN mkdir -p {path} && chown -R {user} {path}");
    if old.lines().any(|other| other.trim() == line) {
        return Err(Error::NoEffect(line));
    }
    Ok(insert(old, file.before(index, at), &line))
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

    #[test]
    fn a_virtual_environment_is_made_before_the_line_that_needs_it() {
        let old = "FROM debian\nRUN pip install flask\nCMD [\"python\"]\n";
        let new = use_venv(old, 2).unwrap();
        assert!(
            new.contains("python3 -m venv /opt/venv\nENV PATH=/opt/venv/bin:$PATH\nRUN pip install flask\n"),
            "{new}"
        );
        assert!(matches!(use_venv(&new, 6), Err(Error::NoEffect(_))));
    }

    #[test]
    fn a_file_is_copied_where_it_is_wanted() {
        let old = "FROM a\nWORKDIR /app\nRUN pip install -r requirements.txt\nCOPY . .\nCMD x\n";
        let new = copy_file(old, 0, Some(3), "requirements.txt", "requirements.txt").unwrap();
        assert_eq!(new, old.replace("RUN", "COPY requirements.txt requirements.txt\nRUN"));
        let new = copy_file(old, 0, None, "src/run.py", "/app/run.py").unwrap();
        assert_eq!(new, old.replace("CMD", "COPY src/run.py /app/run.py\nCMD"));
        assert!(copy_file(old, 0, None, "a b", "/x").is_err());
    }

    #[test]
    fn one_source_of_a_copy_is_replaced_alone() {
        let old = "FROM a\nCOPY ./requirments.txt app.py \\\n     /app/\nRUN x requirments.txt\n";
        let new = replace_copy_source(old, 2, "/requirments.txt", "requirements.txt").unwrap();
        assert_eq!(new, "FROM a\nCOPY requirements.txt app.py \\\n     /app/\nRUN x requirments.txt\n");
        assert!(matches!(replace_copy_source(old, 2, "other", "x"), Err(Error::NoPlace(_))));
        assert!(matches!(replace_copy_source(old, 4, "requirments.txt", "x"), Err(Error::NoPlace(_))));
    }

    #[test]
    fn a_directory_is_given_to_the_user_before_it_is_used() {
        let new = own_directory(FILE, 0, "/data/app").unwrap();
        assert_eq!(new, FILE.replace("USER", "RUN mkdir -p /data/app && chown -R app /data/app\nUSER"));
        assert!(matches!(own_directory(FILE, 0, "/etc/app"), Err(Error::NoPlace(_))));
        assert!(matches!(own_directory(FILE, 0, "/"), Err(Error::NoPlace(_))));
        assert!(own_directory(FILE, 0, "/a; rm").is_err());
        assert!(matches!(own_directory("FROM a\nCMD x\n", 0, "/data"), Err(Error::NoPlace(_))));
    }
}
