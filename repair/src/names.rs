//! Name maps: which package provides a module, header, command, library. Data in `maps/*.toml`, each table with its
//! source in a comment.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::edit::distribution_name;

/// What a Debian package is looked up by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Provides {
    /// A program on the `PATH`, such as `git`.
    Command,
    /// A C header as it is included, such as `openssl/ssl.h`.
    Header,
    /// A library as the linker names it, such as `pq` of `-lpq`.
    Library,
    /// A `.pc` file as pkg-config names it, such as `libffi`.
    PkgConfig,
    /// A shared library as the loader names it, such as `libGL.so.1`.
    Soname,
    /// A package as CMake's `find_package` names it, such as `OpenSSL`.
    Cmake,
}

/// What provides a Python module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Distribution {
    /// A distribution that is known to.
    Known(String),
    /// Nobody knows: the module's own name, which may belong to someone else's distribution.
    Guessed(String),
    /// The module belongs to Python itself; no distribution brings it.
    Standard,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Python {
    /// Import name → distribution.
    import: BTreeMap<String, String>,
    /// Import names that are the distribution's name as well.
    same: BTreeSet<String>,
    /// Modules of Python itself that an image or a version may lack.
    standard: BTreeSet<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Apt {
    command: BTreeMap<String, Vec<String>>,
    header: BTreeMap<String, Vec<String>>,
    library: BTreeMap<String, Vec<String>>,
    pkg_config: BTreeMap<String, Vec<String>>,
    soname: BTreeMap<String, Vec<String>>,
    cmake: BTreeMap<String, Vec<String>>,
    /// Old name → name in current Debian.
    renamed: BTreeMap<String, String>,
}

/// All name maps.
#[derive(Debug)]
pub struct Names {
    python: Python,
    apt: Apt,
}

impl Names {
    /// The maps that come with Cooper.
    ///
    /// # Errors
    /// The file and what is wrong with it.
    pub fn builtin() -> Result<Self, (&'static str, toml::de::Error)> {
        let python =
            toml::from_str(include_str!("../maps/python.toml")).map_err(|error| ("python.toml", error))?;
        let apt = toml::from_str(include_str!("../maps/apt.toml")).map_err(|error| ("apt.toml", error))?;
        Ok(Self { python, apt })
    }

    /// What provides a Python module, given with or without submodules.
    pub fn distribution(&self, module: &str) -> Distribution {
        let top = module.split('.').next().unwrap_or(module);
        // The longest known prefix decides: `google.protobuf` and `google.cloud.storage` come from different places.
        let shorter = module.rmatch_indices('.').map(|(at, _)| &module[..at]);
        if let Some(known) = [module].into_iter().chain(shorter).find_map(|name| self.python.import.get(name))
        {
            return Distribution::Known(known.clone());
        }
        if self.python.standard.contains(top) {
            return Distribution::Standard;
        }
        if self.python.same.contains(top) {
            return Distribution::Known(top.to_owned());
        }
        Distribution::Guessed(distribution_name(top))
    }

    /// True if the name is that of a distribution the maps know.
    pub fn knows_distribution(&self, name: &str) -> bool {
        let name = distribution_name(name);
        let python = &self.python;
        python.same.iter().chain(python.import.values()).any(|known| distribution_name(known) == name)
    }

    /// The Debian packages that provide something, the first one holding the thing itself.
    pub fn apt(&self, what: Provides, name: &str) -> Option<&[String]> {
        let map = match what {
            Provides::Command => &self.apt.command,
            Provides::Header => &self.apt.header,
            Provides::Library => &self.apt.library,
            Provides::PkgConfig => &self.apt.pkg_config,
            Provides::Soname => &self.apt.soname,
            Provides::Cmake => &self.apt.cmake,
        };
        map.get(name).map(Vec::as_slice)
    }

    /// The name a Debian package has now.
    pub fn renamed(&self, package: &str) -> Option<&str> {
        self.apt.renamed.get(package).map(String::as_str)
    }

    /// True if a map names this Debian package.
    pub fn knows_apt(&self, package: &str) -> bool {
        let apt = &self.apt;
        let maps = [&apt.command, &apt.header, &apt.library, &apt.pkg_config, &apt.soname, &apt.cmake];
        maps.iter().flat_map(|map| map.values().flatten()).any(|known| known == package)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_leads_to_its_distribution() {
        let names = Names::builtin().unwrap();
        assert_eq!(names.distribution("yaml"), Distribution::Known("PyYAML".into()));
        assert_eq!(names.distribution("google.protobuf.message"), Distribution::Known("protobuf".into()));
        assert_eq!(names.distribution("flask.views"), Distribution::Known("flask".into()));
        assert_eq!(names.distribution("distutils"), Distribution::Standard);
        assert_eq!(names.distribution("no_such_thing"), Distribution::Guessed("no-such-thing".into()));
    }

    #[test]
    fn headers_commands_and_libraries_lead_to_debian_packages() {
        let names = Names::builtin().unwrap();
        assert_eq!(names.apt(Provides::Command, "git"), Some(&["git".to_owned()][..]));
        assert_eq!(names.apt(Provides::Header, "libpq-fe.h"), Some(&["libpq-dev".to_owned()][..]));
        assert_eq!(
            names.apt(Provides::Soname, "libGL.so.1").map(|packages| packages[0].as_str()),
            Some("libgl1")
        );
        assert_eq!(names.apt(Provides::Library, "nothing"), None);
    }
}
