//! The settings file: TOML, flat, its keys those of the table.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use super::{Kind, Origin, SETTINGS, Setting, Sources, Value, value};
use crate::error::{Code, Error, Result};

pub(super) struct Found {
    pub(super) path: PathBuf,
    /// Named by `--config` or `COOPER_CONFIG`: then it has to exist.
    pub(super) explicit: bool,
}

/// `--config`, else `COOPER_CONFIG`, else `<data>/cooper.toml` when it is there.
pub(super) fn find(sources: &Sources<'_>, data: &Path) -> Result<Option<Found>> {
    let named = sources.config_file.clone().or_else(|| sources.env("COOPER_CONFIG").map(PathBuf::from));
    if let Some(path) = named {
        let path = std::path::absolute(&path)
            .map_err(|error| Error::new(Code::ConfigInvalid, format!("{}: {error}", path.display())))?;
        return Ok(Some(Found { path, explicit: true }));
    }
    let path = data.join("cooper.toml");
    Ok(path.exists().then_some(Found { path, explicit: false }))
}

/// Reads a file and checks its keys; values are checked where they are used, by [`value`].
pub(super) fn read(path: &Path) -> Result<BTreeMap<String, toml::Value>> {
    let fail = |what: String| Error::new(Code::ConfigInvalid, format!("file {}: {what}", path.display()));
    let text = fs::read_to_string(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => fail("there is no such file".to_owned()),
        _ => fail(error.to_string()),
    })?;
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        let line = error.span().map_or(0, |span| text[..span.start.min(text.len())].lines().count().max(1));
        fail(format!("line {line}: {}", error.message()))
    })?;
    for key in table.keys() {
        match SETTINGS.iter().find(|setting| setting.key == key) {
            Some(setting) if setting.kind == Kind::Secret => {
                return Err(fail(format!("{key} is a secret and has no place here"))
                    .with_hint(format!("write it to a file and name that with {key}_file")));
            }
            Some(_) => {}
            None => {
                return Err(fail(format!("unknown setting {key:?}"))
                    .with_hint(format!("did you mean {:?}?", nearest(key))));
            }
        }
    }
    Ok(table.into_iter().collect())
}

/// The value of one key of a file.
pub(super) fn value(setting: &Setting, raw: &toml::Value, path: &Path) -> Result<Value> {
    value::from_toml(setting, raw, &Origin::File(path.to_owned()))
}

fn nearest(key: &str) -> &'static str {
    SETTINGS
        .iter()
        .filter(|setting| setting.kind != Kind::Secret)
        .map(|setting| setting.key)
        .min_by_key(|known| distance(key, known))
        .unwrap_or_default()
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
