//! Edits of what npm installs.

use serde_json::Value;

use super::{Error, apt, check, splice};

/// `npm ci` becomes `npm install` in the `RUN` at a line.
pub(super) fn install_without_lock(old: &str, line: usize) -> Result<String, Error> {
    let (span, commands) = apt::run_at(old, line)?;
    for command in commands {
        if let Some(after) = command.after(&["npm", "ci"]) {
            let word = &command.words[after - 1].span;
            return Ok(splice(old, span.start + word.start..span.start + word.end, "install"));
        }
    }
    Err(Error::NoPlace(format!("line {line} of the Dockerfile has no npm ci")))
}

/// Adds an entry to `dependencies`, in the style of its last entry.
pub(super) fn add_dependency(old: &str, package: &str, version: &str) -> Result<String, Error> {
    check("npm package name", package, "@", "@/._-")?;
    check("npm version", version, "*^~", "*^~.-+")?;
    let read: Value = serde_json::from_str(old)
        .map_err(|error| Error::NoPlace(format!("package.json cannot be read: {error}")))?;
    let Some(dependencies) = read.get("dependencies").and_then(Value::as_object) else {
        return Err(Error::NoPlace("package.json has no dependencies".to_owned()));
    };
    if dependencies.contains_key(package) {
        return Err(Error::NoEffect(package.to_owned()));
    }
    let Some(span) = object_of(old, "dependencies") else {
        return Err(Error::NoPlace("package.json has no dependencies".to_owned()));
    };
    let inside = &old[span.start + 1..span.end - 1];
    let entries = inside.trim_end();
    let entry = format!("\"{package}\": \"{version}\"");
    let at = span.start + 1 + entries.len();
    if entries.trim().is_empty() {
        return Ok(splice(old, span.start + 1..span.end - 1, &format!(" {entry} ")));
    }
    let separator = match entries.rfind('\n') {
        Some(line) => {
            let last = &entries[line + 1..];
            format!(",\n{}", &last[..last.len() - last.trim_start().len()])
        }
        None => ", ".to_owned(),
    };
    Ok(splice(old, at..at, &format!("{separator}{entry}")))
}

/// Span of the object under a key of the outermost object. The text is known to be JSON.
fn object_of(text: &str, key: &str) -> Option<std::ops::Range<usize>> {
    let bytes = text.as_bytes();
    let (mut depth, mut at) = (0, 0);
    let mut under = None;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => {
                let start = at + 1;
                at += 1;
                while bytes.get(at).is_some_and(|&byte| byte != b'"') {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                let follows = text.get(at + 1..).unwrap_or_default().trim_start();
                if depth == 1 && text.get(start..at) == Some(key) && follows.starts_with(':') {
                    under = follows[1..].trim_start().starts_with('{').then_some(text.len() - follows.len());
                }
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => {
                depth -= 1;
                if depth == 1
                    && let Some(colon) = under
                {
                    let start = colon + text[colon..].find('{')?;
                    return Some(start..at + 1);
                }
            }
            _ => {}
        }
        at += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_added_in_the_style_of_the_file() {
        let old = "{\n  \"x\": {\"dependencies\": {}},\n  \"dependencies\": {\n    \"express\": \"^4.0.0\"\n  },\n  \"y\": {}\n}\n";
        let new = add_dependency(old, "@scope/a", "*").unwrap();
        assert_eq!(new, old.replace("\"^4.0.0\"", "\"^4.0.0\",\n    \"@scope/a\": \"*\""));
        assert!(matches!(add_dependency(old, "express", "*"), Err(Error::NoEffect(_))));
        assert_eq!(
            add_dependency("{\"dependencies\":{}}", "a", "1").unwrap(),
            "{\"dependencies\":{ \"a\": \"1\" }}"
        );
        assert!(matches!(add_dependency("{}", "a", "1"), Err(Error::NoPlace(_))));
    }

    #[test]
    fn npm_ci_becomes_npm_install() {
        let old = "FROM node\nRUN npm ci --omit=dev\n";
        assert_eq!(install_without_lock(old, 2).unwrap(), old.replace("ci", "install"));
    }
}
