//! The files of a build context that a diagnosis may need, without secrets in them.

use std::collections::BTreeMap;
use std::path::Path;

use cooper_common::error::Result;
use cooper_common::redact::Redactor;

use super::checkout::Checkout;
use super::tree::{self, Entry, LeftOut, Listing};

/// Directories that hold what others wrote, or what no build looks at.
pub(super) const WITHOUT: [&str; 9] =
    [".git", "node_modules", ".venv", "venv", "__pycache__", ".tox", ".mypy_cache", "target", "vendor"];
/// Files listed; further ones are not known to exist.
pub(super) const LISTED_MAX: usize = 5_000;
/// Text of one file, and of all together.
const FILE_BYTES_MAX: u64 = 64 << 10;
const TEXT_BYTES_MAX: usize = 2 << 20;
/// A file with a known secret of this length is not read; a shorter one is too likely an ordinary word of the code.
pub(super) const KNOWN_BYTES_MIN: usize = 12;

/// Files by path relative to the context; only known to exist (no text): what is of no use, too large, not text, or
/// holds a secret, since a plan carries whole files.
pub(super) fn files(
    context: &Path,
    dockerfile: &str,
    listing: &Listing,
    redactor: &Redactor,
) -> Result<BTreeMap<String, String>> {
    let checkout = Checkout::open(context)?;
    let mut left = TEXT_BYTES_MAX;
    let mut files = BTreeMap::new();
    let mut wanted: Vec<(Use, String)> = Vec::new();
    for entry in &listing.files {
        let Some(path) = entry.path.to_str() else { continue };
        files.insert(path.to_owned(), String::new());
        if entry.len <= FILE_BYTES_MAX
            && let Some(used) = used(entry, path, dockerfile)
        {
            wanted.push((used, path.to_owned()));
        }
    }
    // The most telling first, while there is room.
    wanted.sort();
    for (_, path) in wanted {
        let Ok(Some(content)) = checkout.read(&path) else { continue };
        let Ok(text) = String::from_utf8(content.bytes) else { continue };
        if text.len() <= left && !redactor.finds(&text, KNOWN_BYTES_MIN) {
            left -= text.len();
            files.insert(path, text);
        }
    }
    Ok(files)
}

/// What a file is for, most telling first.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    Dockerfile,
    Dependencies,
    Script,
    Python,
}

fn used(entry: &Entry, path: &str, dockerfile: &str) -> Option<Use> {
    const DEPENDENCIES: [&str; 14] = [
        "pyproject.toml",
        "setup.py",
        "setup.cfg",
        "Pipfile",
        "package.json",
        ".npmrc",
        ".dockerignore",
        "go.mod",
        "Cargo.toml",
        "Gemfile",
        "composer.json",
        "pom.xml",
        "environment.yml",
        "tsconfig.json",
    ];
    const SCRIPTS: [&str; 5] = ["sh", "bash", "js", "mjs", "cjs"];
    let name = path.rsplit('/').next().unwrap_or(path);
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    let requirements =
        matches!(extension, "txt" | "in") && name.to_ascii_lowercase().contains("requirements");
    if path == dockerfile || name.starts_with("Dockerfile") {
        Some(Use::Dockerfile)
    } else if requirements || name == "constraints.txt" || DEPENDENCIES.contains(&name) {
        Some(Use::Dependencies)
    } else if SCRIPTS.contains(&extension) || (entry.executable && extension.is_empty()) {
        Some(Use::Script)
    } else if extension == "py" {
        Some(Use::Python)
    } else {
        None
    }
}

/// Lists a context as [`files`] needs it.
pub(super) fn list(context: &Path, left_out: LeftOut) -> Result<Listing> {
    tree::list(context, &WITHOUT, left_out, LISTED_MAX)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn files_that_matter_come_with_their_text_and_secret_ones_without() {
        let dir = tempfile::tempdir().expect("a directory");
        let own = tempfile::tempdir().expect("a directory");
        for (path, text) in [
            ("Dockerfile", "FROM python\n"),
            ("dev-requirements.txt", "flask\n"),
            ("app.py", "import yaml\n"),
            ("settings.py", "key = 'AKIAABCDEFGHIJKLMNOP'\n"),
            ("data.bin", "x"),
            ("node_modules/a.js", "x"),
        ] {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, text).expect("written");
        }
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("entrypoint.sh")).expect("linked");
        let listing = list(dir.path(), LeftOut::new(own.path()).expect("there")).expect("listed");
        let files = files(dir.path(), "Dockerfile", &listing, &Redactor::default()).expect("read");
        let expected = [
            ("Dockerfile", "FROM python\n"),
            ("app.py", "import yaml\n"),
            ("data.bin", ""),
            ("dev-requirements.txt", "flask\n"),
            ("settings.py", ""),
        ];
        assert_eq!(files, expected.map(|(path, text)| (path.to_owned(), text.to_owned())).into());
    }
}
