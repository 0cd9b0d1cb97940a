//! Versions of Python: what a session wants, and what is good enough for it.

use crate::session::Session;

/// `3.11` of `3.11.7`: packages are good for all of these.
pub fn minor(version: &str) -> &str {
    let end = version.match_indices('.').nth(1).map_or(version.len(), |(at, _)| at);
    &version[..end]
}

/// Whether this names one release, and not any of a minor version.
pub fn is_exact(wanted: &str) -> bool {
    minor(wanted).len() < wanted.len()
}

/// Whether a version is one that `wanted` stands for.
pub fn is(version: &str, wanted: &str) -> bool {
    version == wanted || minor(version) == wanted
}

/// `3.12` or `3.12.1`.
pub fn is_wanted(text: &str) -> bool {
    let number = |part: &str| !part.is_empty() && part.len() <= 3 && part.bytes().all(|b| b.is_ascii_digit());
    let parts: Vec<&str> = text.split('.').collect();
    (2..=3).contains(&parts.len()) && parts.into_iter().all(number)
}

impl Session {
    /// What its worker makes it with: what was asked for, or what its files were made with.
    pub fn python(&self) -> &str {
        match self.body.python_version.is_empty() || is_exact(&self.body.python_wanted) {
            true => &self.body.python_wanted,
            false => &self.body.python_version,
        }
    }

    /// What a worker has to offer to have it.
    pub fn python_needed(&self) -> &str {
        match is_exact(&self.body.python_wanted) {
            true => &self.body.python_wanted,
            false => minor(self.python()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minor_version_stands_for_all_its_releases_and_a_release_for_itself() {
        assert!(is("3.12.1", "3.12") && is("3.12.1", "3.12.1"));
        assert!(
            !is("3.12.1", "3.1") && !is("3.12.1", "3.12.10") && !is("3.1.2", "3.12") && !is("3.12.1", "")
        );
    }

    #[test]
    fn what_is_no_version_is_told_from_one() {
        assert!(["3.12", "3.9", "3.12.1"].into_iter().all(is_wanted));
        let not = ["", "3", "3.", ".12", "3.12.", "3.12.1.2", "3.x", "python3.12", "3.12 ", "-3.1", "3.1234"];
        assert!(!not.into_iter().any(is_wanted));
    }
}
