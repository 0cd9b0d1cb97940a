//! In which versions Python distributions that a fix would add work in the service's own image: its pip says so, in a container
//! of its own. Nothing of a distribution is run there: only what is built already counts, and it is not installed.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use cooper_repair::{Evidence, RuleSet, diagnosis};

use super::{Step, failed, process};

/// Until pip has asked its index.
const LIMIT: Duration = Duration::from_secs(45);

/// Of what `pip install --report` prints.
#[derive(Deserialize)]
struct Chosen {
    install: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    version: String,
}

impl Step<'_> {
    /// Adds them to the evidence. Where the image has no pip, or that reaches no index, there is none, and what is added is not
    /// pinned.
    pub(super) async fn resolve_versions(&self, found: &mut Evidence, rules: &RuleSet, image: &str) {
        if image.is_empty() {
            return;
        }
        for name in diagnosis::unpinned(rules, found) {
            match self.resolve(image, &name).await {
                Ok(version) => {
                    self.log.say(format_args!("pip of its image would install {name} {version}"));
                    found.versions.insert(diagnosis::distribution_name(&name), version);
                }
                Err(error) => self.log.say(format_args!(
                    "{name} is not pinned: pip of its image did not say a version: {}",
                    error.message
                )),
            }
        }
    }

    async fn resolve(&self, image: &str, name: &str) -> cooper_common::error::Result<String> {
        let pip = ["-m", "pip", "install", "--dry-run", "--no-deps", "--ignore-installed"];
        let quietly = ["--only-binary", ":all:", "--disable-pip-version-check", "--quiet", "--report", "-"];
        let mut args = vec!["run", "--rm", "--pull", "never", "--entrypoint", "python3", image];
        args.extend(pip.into_iter().chain(quietly).chain(["--", name]));
        let told = process::read(process::docker(Path::new("/"), &args), LIMIT).await?;
        if !told.status.success() {
            return Err(failed(told.last_line()));
        }
        let unread = |_| failed("its report cannot be read");
        let chosen: Chosen = serde_json::from_slice(&told.output).map_err(unread)?;
        let wanted = diagnosis::distribution_name(name);
        let mut items = chosen.install.into_iter().map(|item| item.metadata);
        let item = items.find(|item| diagnosis::distribution_name(&item.name) == wanted);
        item.map(|item| item.version).ok_or_else(|| failed("its report does not name it"))
    }
}
