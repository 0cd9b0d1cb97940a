//! Packages that a session is created with.

use std::sync::Arc;

use cooper_common::{
    error::{Code, Error, Result},
    ids::SessionId,
};
use cooper_core::task::End;
use cooper_proto::v1;

use super::destroy;
use crate::{
    caller::Caller,
    check,
    cluster::Cluster,
    tasks::{self, Following, Seen},
};

pub fn check(packages: &[String]) -> Result<()> {
    match packages {
        [] => Ok(()),
        packages => check::spec(&spec(SessionId::new(), packages.to_vec())),
    }
}

fn spec(session: SessionId, packages: Vec<String>) -> v1::TaskSpec {
    let kind = Some(v1::task_spec::Kind::Install(v1::InstallSpec { packages }));
    v1::TaskSpec { session_id: session.to_string(), kind, ..v1::TaskSpec::default() }
}

/// Installs them and waits. The task has a key of its session's: whoever repeats the create waits for the same install. A
/// session without its packages is of no use: it is destroyed.
pub async fn install(
    cluster: &Arc<Cluster>,
    caller: &Caller,
    session: SessionId,
    packages: Vec<String>,
) -> Result<()> {
    let request = v1::SubmitTaskRequest {
        idempotency_key: format!("packages-of-{session}"),
        spec: Some(spec(session, packages)),
        ..v1::SubmitTaskRequest::default()
    };
    let (submitted, follower) = tasks::execute(cluster, caller, request).await?;
    let task = submitted.id();
    let mut following = Following::new(cluster.clone(), task, follower);
    while let Some(seen) = following.next().await? {
        let Seen::Ended(ended) = seen else { continue };
        if ended.end == End::Succeeded {
            return Ok(());
        }
        destroy(cluster, caller, &session.to_string()).await?;
        return Err(Error::new(
            Code::InstallFailed,
            format!("the packages of session {session} could not be installed; the session was destroyed"),
        )
        .with_hint(format!("read the installer's output: `cooper tasks follow {task}`")));
    }
    Err(Error::new(Code::Unavailable, "the install could not be followed to its end"))
}
