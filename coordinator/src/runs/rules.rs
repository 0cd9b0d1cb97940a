//! The rules that repairs go by: those that come with Cooper, and an operator's own.

use std::{fs, path::Path, sync::Arc};

use cooper_common::error::{Code, Error, Result};
use cooper_repair::RuleSet;

/// Files of one directory that are read.
const FILES_MAX: usize = 64;

/// Shared by whoever diagnoses.
#[derive(Debug, Clone, Default)]
pub struct Rules(Option<Arc<RuleSet>>);

impl Rules {
    /// Those that come with Cooper and those of a directory's `*.toml`, in order of their names.
    ///
    /// # Errors
    /// `config_invalid`: the directory cannot be read, or a rule is wrong, with its file and line.
    pub fn with(dir: &Path) -> Result<Self> {
        let unread = |error: std::io::Error| {
            Error::new(Code::ConfigInvalid, format!("rules_dir: cannot read {}: {error}", dir.display()))
        };
        let mut paths = Vec::new();
        for entry in fs::read_dir(dir).map_err(unread)? {
            let path = entry.map_err(unread)?.path();
            if path.extension().is_some_and(|extension| extension == "toml") {
                paths.push(path);
            }
        }
        if paths.len() > FILES_MAX {
            let what = format!(
                "rules_dir: {} has {} files, at most {FILES_MAX} are read",
                dir.display(),
                paths.len()
            );
            return Err(Error::new(Code::ConfigInvalid, what));
        }
        paths.sort();
        let mut texts = Vec::new();
        for path in paths {
            let text = fs::read_to_string(&path).map_err(unread)?;
            texts.push((path.display().to_string(), text));
        }
        let texts: Vec<(&str, &str)> =
            texts.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        let rules = RuleSet::with(&texts)
            .map_err(|error| Error::new(Code::ConfigInvalid, format!("rules_dir: {error}")))?;
        Ok(Self(Some(Arc::new(rules))))
    }

    pub fn set(&self) -> &RuleSet {
        self.0.as_deref().unwrap_or_else(|| RuleSet::builtin())
    }
}
