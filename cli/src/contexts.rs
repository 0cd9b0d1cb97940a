//! Clusters by name: each is a settings file of its own, beside the account's other configuration.
//!
//! A context names its cluster wholly: what the environment says of another one (a URL, a token) does not mix with it, so
//! that no token is sent where it does not belong.

use std::{
    env, fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use cooper_common::{
    config::{self, Role, SETTINGS},
    error::Code,
    token::Secret,
};

use crate::{
    args::Global,
    failure::{Failure, Result},
};

/// The cluster of the data directory: what there is without a context.
pub const LOCAL: &str = "local";
const VARIABLE: &str = "COOPER_CONTEXT";
/// They name a cluster by themselves, before the one in use does.
const NAME_A_CLUSTER: [&str; 3] = ["COOPER_URL", "COOPER_CONFIG", "COOPER_DATA"];

/// Where contexts are kept.
#[derive(Debug, Clone)]
pub struct Contexts {
    dir: PathBuf,
}

/// What a context is made of. Tokens are in a file, never in the settings.
pub struct New<'a> {
    pub url: &'a str,
    pub token_file: Option<&'a Path>,
    pub token: Option<&'a str>,
    pub tls_ca: Option<&'a Path>,
}

impl Contexts {
    /// `$XDG_CONFIG_HOME/cooper`, else `~/.config/cooper`.
    pub fn of_account() -> Result<Self> {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let config = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
        let config = config.ok_or_else(|| {
            Failure::new(Code::ConfigInvalid, "there is no place for contexts: HOME is not set")
                .hint("set HOME or XDG_CONFIG_HOME, or name the cluster with COOPER_URL")
        })?;
        Ok(Self { dir: config.join("cooper") })
    }

    /// The settings file that commands go by; none = what flags, the environment and the data directory say.
    pub fn in_force(global: &Global) -> Result<Option<PathBuf>> {
        let set = |name: &str| config::process_env(name).filter(|value| !value.is_empty());
        let name = match &global.context {
            Some(name) => name.clone(),
            None => {
                let named = global.url.is_some() || global.config.is_some() || global.data.is_some();
                if named || NAME_A_CLUSTER.iter().any(|name| set(name).is_some()) {
                    return Ok(None);
                }
                // Without a home there is none in use.
                let in_use = || Self::of_account().ok().and_then(|contexts| contexts.in_use());
                match set(VARIABLE).or_else(in_use) {
                    Some(name) => name,
                    None => return Ok(None),
                }
            }
        };
        match name.as_str() {
            LOCAL => Ok(None),
            name => Self::of_account()?.existing(name).map(Some),
        }
    }

    /// Names, in order.
    pub fn names(&self) -> Result<Vec<String>> {
        let entries = match fs::read_dir(self.dir.join("contexts")) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(unusable(&self.dir, &error)),
        };
        let mut names: Vec<String> = entries
            .filter_map(|entry| {
                entry.ok()?.file_name().into_string().ok()?.strip_suffix(".toml").map(str::to_owned)
            })
            .collect();
        names.sort();
        Ok(names)
    }

    /// The one that `use` named.
    pub fn in_use(&self) -> Option<String> {
        let name = fs::read_to_string(self.dir.join("context")).ok()?;
        Some(name.trim().to_owned()).filter(|name| !name.is_empty())
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join("contexts").join(format!("{name}.toml"))
    }

    fn existing(&self, name: &str) -> Result<PathBuf> {
        let file = self.file(name);
        if plain(name) && file.is_file() {
            return Ok(file);
        }
        let known = self.names()?;
        let hint = match known.is_empty() {
            true => "add it with `cooper context add NAME --url URL`".to_owned(),
            false => format!("there are {LOCAL}, {}", known.join(", ")),
        };
        Err(Failure::new(Code::ConfigInvalid, format!("there is no context {name:?}")).hint(hint))
    }

    pub fn add(&self, name: &str, new: &New<'_>, replace: bool) -> Result<PathBuf> {
        if !plain(name) || name == LOCAL {
            return Err(Failure::new(
                Code::InvalidArgument,
                format!("{name:?} cannot be the name of a context"),
            )
            .hint(format!(
                "write [a-z0-9] and inner dashes, at most 63; {LOCAL} is the data directory's cluster"
            )));
        }
        let file = self.file(name);
        if file.exists() && !replace {
            return Err(Failure::new(Code::InvalidArgument, format!("there is a context {name:?} already"))
                .hint("replace it with --replace"));
        }
        let contexts = self.dir.join("contexts");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&contexts)
            .map_err(|error| unusable(&contexts, &error))?;
        let kept = contexts.join(format!("{name}.token"));
        let token_file = match (new.token, new.token_file) {
            (Some(token), _) => {
                private(&kept, token)?;
                Some(kept)
            }
            (None, Some(path)) => {
                let path = std::path::absolute(path).map_err(|error| unusable(path, &error))?;
                Secret::read(&path).map_err(|error| unusable(&path, &error))?;
                Some(path)
            }
            (None, None) => None,
        };
        let mut table = toml::Table::new();
        table.insert("url".into(), new.url.into());
        if let Some(path) = token_file {
            table.insert("token_file".into(), path.to_string_lossy().into_owned().into());
        }
        if let Some(path) = new.tls_ca {
            let path = std::path::absolute(path).map_err(|error| unusable(path, &error))?;
            fs::metadata(&path).map_err(|error| unusable(&path, &error))?;
            table.insert("tls_ca".into(), path.to_string_lossy().into_owned().into());
        }
        private(&file, &table.to_string())?;
        Ok(file)
    }

    pub fn use_it(&self, name: &str) -> Result<()> {
        let current = self.dir.join("context");
        if name == LOCAL {
            return match fs::remove_file(&current) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(unusable(&current, &error)),
                _ => Ok(()),
            };
        }
        self.existing(name)?;
        private(&current, name)
    }

    pub fn remove(&self, name: &str) -> Result<()> {
        let file = self.existing(name)?;
        if self.in_use().as_deref() == Some(name) {
            self.use_it(LOCAL)?;
        }
        let _ = fs::remove_file(file.with_extension("token"));
        fs::remove_file(&file).map_err(|error| unusable(&file, &error))
    }
}

/// Whether a variable says where commands go and with what: a context in force leaves no room for it.
pub fn hides(variable: &str) -> bool {
    let connects =
        SETTINGS.iter().filter(|setting| setting.belongs_to(Role::Client) && setting.key != "data");
    connects.flat_map(|setting| setting.env).any(|name| *name == variable)
}

/// Part of a path: a name as those of sessions.
fn plain(name: &str) -> bool {
    let bytes = name.as_bytes();
    let inner = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
    !bytes.is_empty() && bytes.len() <= 63 && bytes.iter().all(inner) && bytes[0] != b'-'
}

/// Replaced as a whole, readable by its owner alone.
fn private(path: &Path, content: &str) -> Result<()> {
    let new = path.with_added_extension("new");
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .and_then(|mut file| io::Write::write_all(&mut file, content.as_bytes()))
        .and_then(|()| fs::rename(&new, path));
    written.map_err(|error| unusable(path, &error))
}

fn unusable(path: &Path, error: &io::Error) -> Failure {
    Failure::new(Code::ConfigInvalid, format!("{}: {error}", path.display()))
}
