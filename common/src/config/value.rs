//! Values of settings: from text, to text.

use std::{
    fmt, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use super::{Default, Kind, Origin, Setting, invalid};
use crate::{
    error::{Error, Result},
    token::Secret,
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    None,
    Text(String),
    Path(PathBuf),
    Address(SocketAddr),
    Integer(u64),
    Pairs(Vec<(String, String)>),
    Secret(Secret),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::None => Ok(()),
            Value::Text(text) => f.write_str(text),
            Value::Path(path) => write!(f, "{}", path.display()),
            Value::Address(address) => write!(f, "{address}"),
            Value::Integer(number) => write!(f, "{number}"),
            Value::Pairs(pairs) => {
                for (i, (name, value)) in pairs.iter().enumerate() {
                    write!(f, "{}{name}={value}", if i == 0 { "" } else { "," })?;
                }
                Ok(())
            }
            Value::Secret(_) => f.write_str("(secret)"),
        }
    }
}

impl Value {
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Value::None => serde_json::Value::Null,
            Value::Integer(number) => (*number).into(),
            Value::Pairs(pairs) => pairs
                .iter()
                .map(|(name, value)| (name.clone(), serde_json::Value::from(value.as_str())))
                .collect(),
            other => other.to_string().into(),
        }
    }
}

/// Reads a text as a flag, a variable or a file gives it.
pub(super) fn parse(setting: &Setting, text: &str, origin: &Origin) -> Result<Value> {
    convert(setting.kind, text, &base_of(origin)).map_err(|what| refused(setting, &what, origin))
}

pub(super) fn refused(setting: &Setting, what: &str, origin: &Origin) -> Error {
    invalid(setting.key, &format!("{what} (from {origin})"))
}

/// Relative paths in a file are relative to that file.
fn base_of(origin: &Origin) -> PathBuf {
    match origin {
        Origin::File(path) => path.parent().map(Path::to_owned).unwrap_or_default(),
        _ => PathBuf::new(),
    }
}

fn convert(kind: Kind, text: &str, base: &Path) -> Result<Value, String> {
    let text = text.trim();
    match kind {
        Kind::Text => Ok(Value::Text(text.to_owned())),
        Kind::Secret => Ok(Value::Secret(Secret::from_text(text))),
        Kind::Path => absolute(base, text).map(Value::Path),
        Kind::Programs => {
            let programs = text.split(',').map(|program| match program.trim() {
                program if program.contains('/') => {
                    absolute(base, program).map(|path| path.to_string_lossy().into_owned())
                }
                program => Ok(program.to_owned()),
            });
            Ok(Value::Text(programs.collect::<Result<Vec<_>, _>>()?.join(",")))
        }
        Kind::Name if is_name(text) => Ok(Value::Text(text.to_owned())),
        Kind::Name => Err(format!("{text:?} is not a name: letters, digits, '.', '_', '-', at most 63")),
        Kind::Address => address(text).map(Value::Address),
        Kind::Url => url(text).map(Value::Text),
        Kind::WebUrl => web_url(text).map(Value::Text),
        Kind::Integer { min, max } => match text.parse() {
            Ok(number) if (min..=max).contains(&number) => Ok(Value::Integer(number)),
            _ => Err(format!("{text:?} is not a whole number from {min} to {max}")),
        },
        Kind::LogLevel => log_level(text),
        Kind::Choice(choices) if choices.contains(&text) => Ok(Value::Text(text.to_owned())),
        Kind::Choice(choices) => Err(format!("{text:?} is not one of {}", choices.join(", "))),
        Kind::Pairs => pairs(text).map(Value::Pairs),
        Kind::Dirs => pairs(text).and_then(|pairs| dirs(pairs, base)).map(Value::Pairs),
    }
}

fn absolute(base: &Path, text: &str) -> Result<PathBuf, String> {
    if text.is_empty() {
        return Err("the path is empty".to_owned());
    }
    std::path::absolute(base.join(text)).map_err(|error| format!("{text:?}: {error}"))
}

fn is_name(text: &str) -> bool {
    text.len() <= 63
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let spelled = match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => text.to_owned(),
    };
    spelled.parse().map_err(|_| {
        format!("{text:?} is not an address: give IP:PORT, e.g. 127.0.0.1:50051 or 0.0.0.0:50051")
    })
}

/// `host:port` becomes `http://host:port`; a trailing slash goes.
fn url(text: &str) -> Result<String, String> {
    let bad = || format!("{text:?} is neither host:port nor an http:// or https:// URL");
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme @ ("http" | "https"), rest)) => (scheme, rest),
        Some(_) => return Err(bad()),
        None => ("http", text),
    };
    let rest = rest.trim_end_matches('/');
    let host_ok = !rest.is_empty() && !rest.contains(['/', ' ', '@', '?', '#']);
    // A URL may leave the port to its scheme; a bare host:port may not.
    let port_ok = match rest.rsplit_once(':') {
        Some((host, port)) => !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0),
        None => text.contains("://"),
    };
    if host_ok && port_ok { Ok(format!("{scheme}://{rest}")) } else { Err(bad()) }
}

fn web_url(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or_default();
    let host = rest.split('/').next().unwrap_or_default();
    // What is secret does not belong into a URL, which is printed.
    if host.is_empty() || text.contains([' ', '@', '#']) {
        return Err(format!("{text:?} is not an http:// or https:// URL without a user name"));
    }
    Ok(text.trim_end_matches('/').to_owned())
}

fn log_level(text: &str) -> Result<Value, String> {
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    let lower = text.to_ascii_lowercase();
    if LEVELS.contains(&lower.as_str()) {
        return Ok(Value::Text(lower));
    }
    // A lone word would be taken for a module's name and silence everything else.
    if text.contains('=') && tracing_subscriber::EnvFilter::try_new(text).is_ok() {
        return Ok(Value::Text(text.to_owned()));
    }
    Err(format!("{text:?} is not one of {} or a tracing filter", LEVELS.join(", ")))
}

fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut all: Vec<(String, String)> = Vec::new();
    for piece in text.split(',').map(str::trim).filter(|piece| !piece.is_empty()) {
        let (name, value) = piece.split_once('=').ok_or_else(|| format!("{piece:?} is not name=value"))?;
        push_pair(&mut all, name.trim(), value.trim())?;
    }
    Ok(all)
}

fn push_pair(all: &mut Vec<(String, String)>, name: &str, value: &str) -> Result<(), String> {
    if !is_name(name) {
        return Err(format!("{name:?} is not a name: letters, digits, '.', '_', '-', at most 63"));
    }
    if all.iter().any(|(known, _)| known == name) {
        return Err(format!("{name:?} is given twice"));
    }
    all.push((name.to_owned(), value.to_owned()));
    Ok(())
}

fn dirs(pairs: Vec<(String, String)>, base: &Path) -> Result<Vec<(String, String)>, String> {
    pairs
        .into_iter()
        .map(|(name, dir)| absolute(base, &dir).map(|path| (name, path.to_string_lossy().into_owned())))
        .collect()
}

/// Reads a value as a file holds it: strings, whole numbers, and tables for pairs.
pub(super) fn from_toml(setting: &Setting, raw: &toml::Value, origin: &Origin) -> Result<Value> {
    let bad = |what: &str| refused(setting, what, origin);
    match (setting.kind, raw) {
        (_, toml::Value::String(text)) => parse(setting, text, origin),
        (Kind::Integer { .. }, toml::Value::Integer(number)) => parse(setting, &number.to_string(), origin),
        (Kind::Pairs | Kind::Dirs, toml::Value::Table(table)) => {
            let mut all = Vec::new();
            for (name, value) in table {
                let text = value.as_str().ok_or_else(|| bad(&format!("{name} is not a string")))?;
                push_pair(&mut all, name, text).map_err(|what| bad(&what))?;
            }
            if setting.kind == Kind::Dirs {
                all = dirs(all, &base_of(origin)).map_err(|what| bad(&what))?;
            }
            Ok(Value::Pairs(all))
        }
        (_, other) => Err(bad(&format!("a {} does not fit here", other.type_str()))),
    }
}

pub(super) fn default(setting: &Setting, data: &Path) -> Result<Value> {
    match setting.default {
        Default::None => Ok(Value::None),
        Default::Text(text) => parse(setting, text, &Origin::Default),
        Default::Number(number) => Ok(Value::Integer(number)),
        Default::InData(rest) => Ok(Value::Path(data.join(rest))),
        Default::SessionsOfThisMachine => Ok(Value::Integer(sessions_of_this_machine())),
    }
}

/// 64 a core, and one for each 64 MiB of memory, whichever is less: sessions mostly wait.
fn sessions_of_this_machine() -> u64 {
    const PER_CORE: u64 = 64;
    const MEMORY_KIB: u64 = 64 << 10;
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let memory = memory_kib().unwrap_or(MEMORY_KIB * PER_CORE * cores);
    (memory / MEMORY_KIB).clamp(1, PER_CORE * cores)
}

/// Memory of the machine or, when smaller, of the control group.
fn memory_kib() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo")
        .ok()?
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.trim().parse().ok())?;
    let group = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .iter()
        .find_map(|path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok())
        .map_or(u64::MAX, |bytes| bytes >> 10);
    Some(group.min(machine))
}
