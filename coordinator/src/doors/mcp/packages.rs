//! Tools for the packages of a session.

use cooper_common::error::Result;
use cooper_proto::v1::{self, task_spec::Kind};
use rmcp::model::ContentBlock;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    call::{Call, said},
    executions::{self, Execution, Wait},
    tool::{Hints, READS, Reply, SETS, Tool},
};

/// From an index that is elsewhere.
const INSTALLS: Hints = SETS.reaching_out();

pub fn tools() -> Vec<Tool> {
    vec![
        Tool::new(
            "install_packages",
            INSTALLS,
            "Install Python packages into the session, with pip: all of them, or none when one cannot be installed. \
             They can be imported right after it. What pip printed is in `stdout` and `stderr`.",
            install,
        ),
        Tool::new(
            "list_packages",
            READS,
            "The Python packages that the session's code can import besides the standard library.",
            list,
        ),
    ]
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Install {
    /// Requirements, e.g. "requests" or "pandas>=2,<3".
    #[serde(default)]
    packages: Vec<String>,
    /// Also, or instead: text of a requirements file.
    requirements: Option<String>,
    /// Newer versions of what is there already.
    #[serde(default)]
    upgrade: bool,
    /// Take everything from this index instead of the worker's own.
    index_url: Option<String>,
    /// Id or name of a session; without it, the connection's own.
    session_id: Option<String>,
    /// How long this call waits before it answers with status `running`; 50000 by default, at most 600000.
    wait_ms: Option<u64>,
    /// Calls that are repeated with the same key run once.
    idempotency_key: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct List {
    /// Id or name of a session; without it, the connection's own.
    session_id: Option<String>,
}

#[derive(Serialize, JsonSchema)]
struct Packages {
    packages: Vec<Package>,
    truncated: bool,
}
#[derive(Serialize, JsonSchema)]
struct Package {
    name: String,
    version: String,
    /// session: installed there; worker: offered to every session.
    from: String,
}
impl Reply for Packages {
    fn content(&self) -> Vec<ContentBlock> {
        let lines: Vec<String> =
            self.packages.iter().map(|package| format!("{}=={}", package.name, package.version)).collect();
        vec![ContentBlock::text(if lines.is_empty() { "(none)".to_owned() } else { lines.join("\n") })]
    }
}

async fn install(call: Call, asked: Install) -> Result<Execution> {
    let wait = Wait::new(asked.wait_ms, None, true)?;
    let place = call.place(asked.session_id).await?;
    let spec = v1::InstallSpec {
        packages: asked.packages,
        requirements: asked.requirements.unwrap_or_default(),
        upgrade: asked.upgrade,
        index_url: asked.index_url.unwrap_or_default(),
    };
    let spec = v1::TaskSpec { kind: Some(Kind::Install(spec)), ..Default::default() };
    executions::run(&call, place, spec, asked.idempotency_key, wait).await
}

async fn list(call: Call, asked: List) -> Result<Packages> {
    let place = call.place(asked.session_id).await?;
    let request = v1::ListPackagesRequest { session_id: place.session_id };
    let listed = call.sessions().list_packages(call.by(request)).await.map_err(said)?.into_inner();
    let packages = listed.packages.into_iter().map(|package| {
        let v1::Package { name, version, from, .. } = package;
        Package { name, version, from }
    });
    Ok(Packages { packages: packages.collect(), truncated: listed.truncated })
}
