//! What a service printed when it was last seen well, beside which a failing one is read: lines that are in both explain
//! nothing. In the worker's directory, by project and service, without secrets.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use cooper_common::error::Result;
use cooper_repair::diagnosis::Phase;
use cooper_repair::edit::sha256;

use super::observe::Seen;
use super::{Step, While, run_dir};

/// Kept of a log, from its end.
const LOG_BYTES_MAX: usize = 256 << 10;
/// Services whose logs are kept; beyond that the one that was not seen well for longest goes.
const SERVICES_MAX: usize = 256;

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Good {
    /// Of the last build that led to a verified service.
    build: String,
    /// Of its container, from its start until it was well.
    container: String,
}

/// The log of then to hold one of now against; empty if there is none.
pub(super) fn read(worker_dir: &Path, project: &str, service: &str, phase: Phase) -> Result<String> {
    let good = load(&path(worker_dir, project, service))?;
    Ok(if phase == Phase::Build { good.build } else { good.container })
}

fn load(path: &Path) -> Result<Good> {
    match fs::read(path) {
        // One that cannot be read is as good as none.
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).unwrap_or_default()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Good::default()),
        Err(error) => Err(error).while_doing("reading the log of when the service was well"),
    }
}

/// Names of services may hold what a file's name may not.
fn path(worker_dir: &Path, project: &str, service: &str) -> PathBuf {
    let name = sha256(format!("{project}\n{service}").as_bytes());
    worker_dir.join("good").join(format!("{}.json", &name[..32]))
}

fn end_of(text: String) -> String {
    let from = text.ceil_char_boundary(text.len().saturating_sub(LOG_BYTES_MAX));
    text[from..].to_owned()
}

impl Step<'_> {
    /// Keeps what the service printed, now that it is well. What fails here does not fail the step.
    pub(super) async fn keep_good(&self, seen: Option<&Seen>, build: Option<String>) {
        let kept = async {
            let path = path(self.worker_dir, &self.project.model.name, &self.service);
            let mut good = load(&path)?;
            if let Some(build) = build {
                good.build = end_of(build);
            }
            if let Some(seen) = seen {
                let log = self.engine.logs(&seen.id).await?;
                good.container = end_of(self.log.redact(&String::from_utf8_lossy(&log)));
            }
            let dir = path.parent().unwrap_or(self.worker_dir);
            run_dir::make_dir(dir)?;
            let new = path.with_extension(format!("{}.new", self.run));
            let json = serde_json::to_vec(&good).while_doing("writing a log")?;
            fs::write(&new, json).while_doing("writing a log")?;
            fs::rename(&new, &path).while_doing("writing a log")?;
            prune(dir);
            Ok::<_, cooper_common::error::Error>(())
        };
        if let Err(error) = kept.await {
            self.log.say(format_args!("its log could not be kept: {}", error.message));
        }
    }
}

/// Removes the oldest beyond the bound.
fn prune(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut all: Vec<_> = entries
        .flatten()
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    all.sort();
    for (_, path) in all.iter().take(all.len().saturating_sub(SERVICES_MAX)) {
        let _ = fs::remove_file(path);
    }
}
