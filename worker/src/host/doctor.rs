//! What a worker would find on this machine, for who asks before there is one. Changes nothing.

use crate::{
    config::Config,
    confine::{self, Surroundings, facilities::Facilities},
};

use super::{install, ports, python::Pythons};

/// What sessions would be confined by, and why not by more.
pub struct Survey {
    pub facilities: Facilities,
    pub notes: Vec<String>,
    /// Versions of the Pythons that sessions would have; empty = there is none, and no sessions.
    pub pythons: Vec<String>,
}

/// Must be called by a process with one thread: it forks.
pub fn survey(config: &Config) -> Survey {
    let (mut pythons, unusable) =
        Pythons::find(&config.python).unwrap_or_else(|error| (Pythons::default(), vec![error.to_string()]));
    // A place of its own: there may be no worker's yet.
    let scratch = std::env::temp_dir().join(format!("cooper-doctor-{}", std::process::id()));
    let base = config.base_workspace.clone().unwrap_or_else(|| config.dir.join("sessions"));
    let around = Surroundings {
        dir: &scratch,
        base: &base,
        pythons: pythons.prefixes(),
        readable: pythons
            .first()
            .map(|python| install::places(&python.executable, &config.dir.join("tools")))
            .unwrap_or_default(),
        layer: config.layer.as_deref(),
        worker_id: "doctor",
    };
    let (facilities, mut notes) = confine::survey(config.mask(), &around);
    let _ = std::fs::remove_dir_all(&scratch);
    notes.extend(unusable);
    notes.extend(ports::filtered(config.ports, &facilities).err().map(|refused| refused.to_string()));
    notes.extend(pythons.keep_reachable(&facilities));
    Survey { facilities, notes, pythons: pythons.versions() }
}
