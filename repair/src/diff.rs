//! Unified diffs, as people review them and `git apply` reads them.

use similar::{ChangeTag, TextDiff};

/// Lines of context around a change.
const CONTEXT_LINES: usize = 3;

/// Unified diff of one file with `a/` and `b/` paths; `/dev/null` where there was no file. Empty if nothing changed.
pub fn unified(path: &str, old: Option<&str>, new: &str) -> String {
    let before = old.map_or_else(|| "/dev/null".to_owned(), |_| format!("a/{path}"));
    let diff = TextDiff::from_lines(old.unwrap_or_default(), new);
    diff.unified_diff().context_radius(CONTEXT_LINES).header(&before, &format!("b/{path}")).to_string()
}

/// The texts before and after, as far as a unified diff shows them: its context with what it removes, and with what
/// it adds.
pub fn sides(diff: &str) -> (String, String) {
    let (mut before, mut after) = (String::new(), String::new());
    let mut in_hunk = false;
    for line in diff.split_inclusive('\n') {
        in_hunk |= line.starts_with("@@");
        let body = line.get(1..).unwrap_or_default();
        match line.as_bytes().first() {
            Some(b' ') if in_hunk => {
                before.push_str(body);
                after.push_str(body);
            }
            Some(b'-') if in_hunk => before.push_str(body),
            Some(b'+') if in_hunk => after.push_str(body),
            _ => {}
        }
    }
    (before, after)
}

/// What a change adds and removes, line by line.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Lines {
    /// Added lines, without line ends.
    pub added: Vec<String>,
    /// Removed lines, without line ends.
    pub removed: Vec<String>,
}

/// The lines that differ between two texts.
pub fn lines(old: &str, new: &str) -> Lines {
    let mut lines = Lines::default();
    for change in TextDiff::from_lines(old, new).iter_all_changes() {
        let text = change.value().trim_end_matches(['\r', '\n']).to_owned();
        match change.tag() {
            ChangeTag::Insert => lines.added.push(text),
            ChangeTag::Delete => lines.removed.push(text),
            ChangeTag::Equal => {}
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diff_names_both_sides_and_marks_a_missing_newline() {
        let diff = unified("app/requirements.txt", Some("flask"), "flask\npyyaml\n");
        assert!(diff.starts_with("--- a/app/requirements.txt\n+++ b/app/requirements.txt\n@@"), "{diff}");
        assert!(diff.contains("-flask\n\\ No newline at end of file\n+flask\n+pyyaml\n"), "{diff}");
        assert!(unified("new", None, "x\n").starts_with("--- /dev/null\n+++ b/new\n"));
    }

    #[test]
    fn a_diff_shows_both_sides() {
        let diff = unified("x", Some("a\n--- b\n"), "a\n+++ c\n");
        assert_eq!(sides(&diff), ("a\n--- b\n".to_owned(), "a\n+++ c\n".to_owned()));
    }

    #[test]
    fn lines_tells_what_was_added_and_removed() {
        let found = lines("a\nb\n", "a\nc\nd\n");
        assert_eq!((found.added, found.removed), (vec!["c".into(), "d".into()], vec!["b".into()]));
    }
}
