//! What runs in a session before it is handed out: packages that it was asked for with, the warm-up of its template.

use std::sync::Arc;

use cooper_common::{
    error::{Code, Error, Result},
    ids::{SessionId, TaskId},
};
use cooper_core::task::End;
use cooper_proto::v1::{self, task_spec::Kind};

use crate::{
    caller::Caller,
    check,
    cluster::Cluster,
    tasks::{self, Following, Seen},
};

pub enum Ran {
    Well,
    Badly(TaskId),
}

pub fn check_packages(packages: &[String]) -> Result<()> {
    match packages {
        [] => Ok(()),
        packages => {
            let kind =
                Kind::Install(v1::InstallSpec { packages: packages.to_vec(), ..v1::InstallSpec::default() });
            check::spec(&spec(SessionId::new(), kind))
        }
    }
}

fn spec(session: SessionId, kind: Kind) -> v1::TaskSpec {
    v1::TaskSpec { session_id: session.to_string(), kind: Some(kind), ..v1::TaskSpec::default() }
}

/// Runs it and waits. The task's key is made of `what` and the session: whoever asks again waits for the same run. `say`
/// hears what it prints.
pub async fn run_first(
    cluster: &Arc<Cluster>,
    caller: &Caller,
    session: SessionId,
    what: &str,
    kind: Kind,
    say: &mut (dyn FnMut(Seen) + Send),
) -> Result<Ran> {
    let request = v1::SubmitTaskRequest {
        idempotency_key: format!("{what}-{session}"),
        spec: Some(spec(session, kind)),
        ..v1::SubmitTaskRequest::default()
    };
    let (submitted, follower) = tasks::execute(cluster, caller, request).await?;
    let task = submitted.id();
    let mut following = Following::new(cluster.clone(), task, follower);
    while let Some(seen) = following.next().await? {
        match seen {
            Seen::Ended(ended) if ended.end == End::Succeeded => return Ok(Ran::Well),
            Seen::Ended(_) => return Ok(Ran::Badly(task)),
            seen => say(seen),
        }
    }
    Err(Error::new(Code::Unavailable, "what runs in the session first could not be followed to its end"))
}

/// A session without its packages is of no use: whoever asked for it destroys it.
pub async fn install(
    cluster: &Arc<Cluster>,
    caller: &Caller,
    session: SessionId,
    packages: Vec<String>,
) -> Result<()> {
    let kind = Kind::Install(v1::InstallSpec { packages, ..v1::InstallSpec::default() });
    match run_first(cluster, caller, session, "packages-of", kind, &mut |_| {}).await? {
        Ran::Well => Ok(()),
        Ran::Badly(task) => Err(Error::new(
            Code::InstallFailed,
            format!("the packages of session {session} could not be installed; the session was destroyed"),
        )
        .with_hint(format!("read the installer's output: `cooper tasks follow {task}`"))),
    }
}
