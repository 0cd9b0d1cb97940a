//! Edits of scripts and other plain text.

use super::{Error, check};

/// CRLF becomes LF.
pub(super) fn use_unix_line_ends(old: &str) -> Result<String, Error> {
    if !old.contains("\r\n") {
        return Err(Error::NoEffect("LF at every line end".to_owned()));
    }
    Ok(old.replace("\r\n", "\n"))
}

/// Puts an interpreter line in front of a script.
pub(super) fn add_shebang(old: &str, interpreter: &str) -> Result<String, Error> {
    check("interpreter", interpreter, "/", "/._-")?;
    if old.starts_with("#!") {
        return Err(Error::NoEffect("an interpreter line".to_owned()));
    }
    if old.contains('\0') {
        return Err(Error::NoPlace(
            "the file is a program, not a script: it was built for another machine".to_owned(),
        ));
    }
    Ok(format!("#!{interpreter}\n{old}"))
}

/// Puts one passage in place of another.
pub(super) fn replace(old: &str, from: &str, to: &str) -> Result<String, Error> {
    if from.is_empty() || from == to || to.contains('\0') {
        return Err(Error::Invalid { what: "passage", value: from.chars().take(80).collect() });
    }
    let mut places = old.match_indices(from);
    match (places.next(), places.next()) {
        (Some((at, _)), None) => Ok(super::splice(old, at..at + from.len(), to)),
        (None, _) => Err(Error::NoPlace("the passage to replace does not stand in the file".to_owned())),
        (Some(_), Some(_)) => {
            Err(Error::NoPlace("the passage to replace stands in the file more than once".to_owned()))
        }
    }
}

/// Takes a file back into the build context; the last pattern that fits decides.
pub(super) fn unignore(old: &str, path: &str) -> Result<String, Error> {
    check("path", path, "._-", "/._-")?;
    let line = format!("!{path}");
    if old.lines().any(|other| other.trim() == line) {
        return Err(Error::NoEffect(line));
    }
    let newline = if old.is_empty() || old.ends_with('\n') { "" } else { "\n" };
    Ok(format!("{old}{newline}{line}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_get_unix_line_ends_and_an_interpreter_once() {
        assert_eq!(use_unix_line_ends("a\r\nb\n").unwrap(), "a\nb\n");
        assert!(matches!(use_unix_line_ends("a\n"), Err(Error::NoEffect(_))));
        assert_eq!(add_shebang("exec app\n", "/bin/sh").unwrap(), "#!/bin/sh\nexec app\n");
        assert!(matches!(add_shebang("#!/bin/sh\n", "/bin/sh"), Err(Error::NoEffect(_))));
        assert_eq!(unignore("*.md", "README.md").unwrap(), "*.md\n!README.md\n");
        assert!(matches!(unignore("*.md\n!README.md\n", "README.md"), Err(Error::NoEffect(_))));
        assert_eq!(replace("a b\n", "b", "c").unwrap(), "a c\n");
        for (from, old) in [("b", "b b"), ("c", "b"), ("", "b")] {
            assert!(replace(old, from, "d").is_err(), "{from:?} in {old:?}");
        }
        assert!(matches!(add_shebang("\u{7f}ELF\0", "/bin/sh"), Err(Error::NoPlace(_))));
    }
}
