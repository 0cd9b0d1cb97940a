//! What a worker would find on this machine, for who asks before there is one. Changes nothing.

use crate::{
    config::Config,
    confine::{self, Surroundings, facilities::Facilities},
};

use super::{install, python};

/// What sessions would be confined by, and why not by more.
pub struct Survey {
    pub facilities: Facilities,
    pub notes: Vec<String>,
    /// Version of the Python that sessions would have; None = there is none, and no sessions.
    pub python: Option<String>,
}

/// Must be called by a process with one thread: it forks.
pub fn survey(config: &Config) -> Survey {
    let (python, unusable) = match python::find(config.python.as_deref()) {
        Ok(python) => (Some(python), None),
        Err(error) => (None, Some(error.to_string())),
    };
    // A place of its own: there may be no worker's yet.
    let scratch = std::env::temp_dir().join(format!("cooper-doctor-{}", std::process::id()));
    let base = config.base_workspace.clone().unwrap_or_else(|| config.dir.join("sessions"));
    let around = Surroundings {
        dir: &scratch,
        base: &base,
        python_prefix: python.as_ref().map(|python| &*python.prefix),
        readable: python
            .as_ref()
            .map(|python| install::places(&python.executable, &config.dir.join("tools")))
            .unwrap_or_default(),
        layer: config.layer.as_deref(),
        worker_id: "doctor",
    };
    let (facilities, mut notes) = confine::survey(config.mask, &around);
    let _ = std::fs::remove_dir_all(&scratch);
    notes.extend(unusable);
    Survey { facilities, notes, python: python.map(|python| python.version_text()) }
}
