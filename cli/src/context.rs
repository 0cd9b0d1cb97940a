//! What every command gets: the global options, settings of its role, and where to write.

use std::collections::BTreeMap;

use cooper_common::config::{self, Config, Role, Sources};

use crate::{
    args::Global,
    connect::Cluster,
    contexts::{self, Contexts},
    failure::Result,
    output::Output,
};

pub struct Context {
    pub global: Global,
    pub out: Output,
}

impl Context {
    pub fn new(global: Global) -> Self {
        let out = Output::of_process(global.json);
        Self { global, out }
    }

    /// Settings of a role with its flags.
    pub fn config(&self, role: Role, mut flags: BTreeMap<&'static str, String>) -> Result<Config> {
        if let Some(data) = &self.global.data {
            flags.insert("data", data.to_string_lossy().into_owned());
        }
        if let (Some(url), Role::Client) = (&self.global.url, role) {
            flags.insert("url", url.clone());
        }
        let named = match role {
            Role::Client => Contexts::in_force(&self.global)?,
            _ => None,
        };
        let hidden = |name: &str| named.is_some() && contexts::hides(name);
        let env = |name: &str| (!hidden(name)).then(|| config::process_env(name)).flatten();
        let config_file = named.clone().or_else(|| self.global.config.clone());
        Ok(config::resolve(&Sources { role, flags, config_file, env: &env })?)
    }

    /// The cluster that commands talk to.
    pub fn cluster(&self) -> Result<Cluster> {
        Cluster::find(&self.config(Role::Client, BTreeMap::new())?)
    }
}
