//! Settings: one table says which there are; flag > environment > file > default says which value holds.
//!
//! Every value carries its origin, so that an error and `cooper config show --origin` can name it.

mod file;
mod table;
#[cfg(test)]
mod tests;
mod timing;
mod value;

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use crate::{
    error::{Code, Error, Result},
    token::Secret,
};

pub use table::{Default, Kind, Role, SETTINGS, Setting, setting};
pub use value::Value;

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Flag(&'static str),
    /// Name of the environment variable.
    Env(&'static str),
    File(PathBuf),
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Flag(key) => write!(f, "flag --{}", key.replace('_', "-")),
            Origin::Env(name) => write!(f, "environment {name}"),
            Origin::File(path) => write!(f, "file {}", path.display()),
            Origin::Default => f.write_str("default"),
        }
    }
}

/// What settings are read from. The environment is a function, so that tests need not change the process's.
pub struct Sources<'a> {
    pub role: Role,
    /// By key; only those given.
    pub flags: BTreeMap<&'static str, String>,
    /// `--config`.
    pub config_file: Option<PathBuf>,
    pub env: &'a dyn Fn(&str) -> Option<String>,
}

impl Sources<'_> {
    /// A variable that is set to the empty string counts as absent: compose files write `WORKER_ID: ${WORKER_ID:-}`.
    fn env(&self, name: &str) -> Option<String> {
        (self.env)(name).filter(|value| !value.is_empty())
    }
}

/// One resolved setting.
#[derive(Debug, Clone)]
pub struct Entry {
    pub setting: &'static Setting,
    pub value: Value,
    pub origin: Origin,
}

/// The resolved settings of one role.
#[derive(Debug, Clone)]
pub struct Config {
    /// In the table's order.
    pub entries: Vec<Entry>,
    /// The file that was read.
    pub file: Option<PathBuf>,
}

/// The process's environment, for [`Sources::env`].
pub fn process_env(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

/// Resolves every setting of a role. Errors name the setting and its origin (`config_invalid`).
pub fn resolve(sources: &Sources<'_>) -> Result<Config> {
    let data_setting = setting("data");
    let (data, data_origin) = match given(sources, data_setting) {
        Some((text, origin)) => (value::parse(data_setting, &text, &origin)?, origin),
        None => (value::default(data_setting, Path::new("."))?, Origin::Default),
    };
    let Value::Path(mut data_dir) = data else { return Err(Error::internal("setting data is not a path")) };
    let mut data_origin = data_origin;

    let file = file::find(sources, &data_dir)?;
    let mut from_file = match &file {
        Some(found) => file::read(&found.path)?,
        None => BTreeMap::new(),
    };
    if let Some(text) = from_file.remove("data") {
        let Some(found) = file.as_ref().filter(|found| found.explicit) else {
            return Err(invalid("data", "cannot be set by the file in the data directory itself")
                .with_hint("name the file with --config or COOPER_CONFIG, or the directory with --data"));
        };
        if data_origin == Origin::Default {
            data_origin = Origin::File(found.path.clone());
            if let Value::Path(path) = file::value(data_setting, &text, &found.path)? {
                data_dir = path;
            }
        }
    }

    let mut entries = Vec::with_capacity(SETTINGS.len());
    for setting in SETTINGS.iter().filter(|setting| setting.belongs_to(sources.role)) {
        let (value, origin) = if setting.key == "data" {
            (Value::Path(data_dir.clone()), data_origin.clone())
        } else if let Some((text, origin)) = given(sources, setting) {
            (value::parse(setting, &text, &origin)?, origin)
        } else if let (Some(raw), Some(found)) = (from_file.get(setting.key), &file) {
            (file::value(setting, raw, &found.path)?, Origin::File(found.path.clone()))
        } else {
            (value::default(setting, &data_dir)?, Origin::Default)
        };
        entries.push(with_port(sources, Entry { setting, value, origin })?);
    }
    let config = Config { entries, file: file.map(|found| found.path) };
    timing::check(&config)?;
    Ok(config)
}

/// `GRPC_PORT` replaces the port of `listen`, whatever that comes from, unless it comes from a flag.
fn with_port(sources: &Sources<'_>, mut entry: Entry) -> Result<Entry> {
    let Some(name) = entry.setting.port_env else { return Ok(entry) };
    if matches!(entry.origin, Origin::Flag(_)) {
        return Ok(entry);
    }
    if let (Some(text), Value::Address(address)) = (sources.env(name), &mut entry.value) {
        let origin = Origin::Env(name);
        let port = text
            .trim()
            .parse::<u16>()
            .map_err(|_| invalid(entry.setting.key, &format!("{text:?} is not a port (from {origin})")))?;
        address.set_port(port);
        entry.origin = origin;
    }
    Ok(entry)
}

fn given(sources: &Sources<'_>, setting: &'static Setting) -> Option<(String, Origin)> {
    if let Some(text) = sources.flags.get(setting.key) {
        return Some((text.clone(), Origin::Flag(setting.key)));
    }
    setting.env.iter().find_map(|name| sources.env(name).map(|text| (text, Origin::Env(name))))
}

fn invalid(key: &str, what: &str) -> Error {
    Error::new(Code::ConfigInvalid, format!("setting {key}: {what}"))
}

impl Config {
    /// The value of a setting of this role. `None` when it has none, or is not a setting of the role.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.setting.key == key)
    }
    pub fn text(&self, key: &str) -> Option<String> {
        match &self.get(key)?.value {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        }
    }
    pub fn path(&self, key: &str) -> Option<PathBuf> {
        match &self.get(key)?.value {
            Value::Path(path) => Some(path.clone()),
            _ => None,
        }
    }
    pub fn address(&self, key: &str) -> Option<SocketAddr> {
        match &self.get(key)?.value {
            Value::Address(address) => Some(*address),
            _ => None,
        }
    }
    pub fn integer(&self, key: &str) -> Option<u64> {
        match &self.get(key)?.value {
            Value::Integer(number) => Some(*number),
            _ => None,
        }
    }
    pub fn pairs(&self, key: &str) -> Vec<(String, String)> {
        match self.get(key).map(|entry| &entry.value) {
            Some(Value::Pairs(pairs)) => pairs.clone(),
            _ => Vec::new(),
        }
    }
    pub fn secret(&self, key: &str) -> Option<Secret> {
        match &self.get(key)?.value {
            Value::Secret(secret) => Some(secret.clone()),
            _ => None,
        }
    }
    /// The data directory, absolute.
    pub fn data(&self) -> PathBuf {
        self.path("data").unwrap_or_default()
    }
    pub fn log_level(&self) -> String {
        self.text("log_level").unwrap_or_else(|| "info".to_owned())
    }
    /// The token that `cooper worker` joins with: `COOPER_JOIN_TOKEN`, else the file that `join_token_file` names.
    pub fn join_token(&self) -> Result<Secret> {
        self.token("join_token", "join_token_file")
    }
    /// A token given by value in the environment, else by a file.
    pub fn token(&self, key: &str, file_key: &str) -> Result<Secret> {
        if let Some(secret) = self.secret(key) {
            return Ok(secret);
        }
        let Some(path) = self.path(file_key) else {
            return Err(Error::new(Code::Unauthenticated, "no token was given"));
        };
        let origin = self.get(file_key).map_or_else(String::new, |entry| entry.origin.to_string());
        Secret::read(&path).map_err(|error| {
            Error::new(
                Code::Unauthenticated,
                format!("cannot read the token file {} ({origin}): {error}", path.display()),
            )
            .with_hint(format!(
                "write the token there, or set {}",
                setting(key).env.first().copied().unwrap_or_default()
            ))
        })
    }
}
