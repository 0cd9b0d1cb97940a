//! Paths a change may name at all, before any list is asked.

use crate::limits;

/// Refuses a path that is not plainly below its root.
pub(super) fn check(path: &str) -> Result<(), String> {
    let shown: String = path.chars().take(80).flat_map(char::escape_debug).collect();
    if path.is_empty() || path.len() > limits::PATH_BYTES_MAX {
        return Err(format!("a path must have 1 to {} bytes", limits::PATH_BYTES_MAX));
    }
    if path.chars().any(|part| part.is_control() || part == '\\') {
        return Err(format!("the path {shown} has a control character or a backslash"));
    }
    if path.starts_with('/') {
        return Err(format!("the path {shown} is absolute; it must be relative to the build context"));
    }
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(format!("the path {shown} is not in its shortest form, without . and .."));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_paths_below_the_root_pass() {
        for good in ["Dockerfile", "app/requirements.txt", "a..b/.c"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in ["", "/etc/passwd", "../x", "a/../b", "a//b", "./a", "a/", "a\0b", "a\nb", "a\\b"] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
        assert!(check(&"a".repeat(5000)).is_err());
    }
}
