//! Stacks: which worker serves which directory.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use cooper_common::error::{Code, Error, Result};
use cooper_core::worker::WorkerId;
use cooper_proto::v1;
use tokio::sync::oneshot;

use super::Runs;
use crate::{caller::Caller, check, cluster::Cluster};

/// A worker checks and answers a registration within this time.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(20);
/// Between looks at whether it attached anew meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

#[derive(Debug, Clone)]
pub struct Stack {
    pub name: String,
    pub dir: String,
    pub worker: WorkerId,
    pub online: bool,
}

/// Registrations that wait for their worker's answer.
#[derive(Debug, Default)]
pub struct Registering {
    waiting: Mutex<HashMap<WorkerId, Vec<oneshot::Sender<Option<v1::Error>>>>>,
    /// An answer does not say to which question it belongs: one at a time.
    turn: tokio::sync::Mutex<()>,
}

impl Registering {
    fn wait(&self, worker: &WorkerId) -> oneshot::Receiver<Option<v1::Error>> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.entry(worker.clone()).or_default().push(sender);
        receiver
    }

    pub fn answered(&self, worker: &WorkerId, error: Option<v1::Error>) {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(worker);
        for sender in waiting.into_iter().flatten() {
            let _ = sender.send(error.clone());
        }
    }
}

/// Stacks that the caller's tenant may repair, in the workers' order.
fn visible(cluster: &Cluster, caller: &Caller) -> Vec<Stack> {
    cluster.look(|core| {
        let workers = core.workers().filter(|worker| worker.tenant == caller.tenant);
        workers
            .flat_map(|worker| {
                worker.body.stacks.iter().map(|(name, dir)| Stack {
                    name: name.clone(),
                    dir: dir.clone(),
                    worker: worker.id.clone(),
                    online: worker.attached.is_some(),
                })
            })
            .collect()
    })
}

impl Runs {
    pub fn stacks(&self, caller: &Caller) -> Vec<Stack> {
        visible(&self.cluster, caller)
    }

    /// The stack of this name; the first one for an empty name.
    pub(super) fn stack(&self, caller: &Caller, name: &str) -> Result<Stack> {
        let stacks = visible(&self.cluster, caller);
        let mut named = stacks.into_iter().filter(|stack| name.is_empty() || stack.name == name);
        named.next().ok_or_else(|| {
            let what = if name.is_empty() {
                "no stack is registered".into()
            } else {
                format!("there is no stack {name:?}")
            };
            Error::new(Code::StackNotFound, what)
        })
    }

    /// Registers a directory with the worker on the caller's machine.
    pub async fn register(&self, caller: &Caller, request: v1::RegisterStackRequest) -> Result<Stack> {
        let mut name = request.name.clone();
        if name.is_empty() {
            let last = request.dir.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
            name = last
                .to_lowercase()
                .replace(|c: char| !c.is_ascii_alphanumeric(), "-")
                .trim_matches('-')
                .to_owned();
        }
        check::name(&name)?;
        if !request.dir.starts_with('/') {
            return Err(Error::invalid("dir is not absolute"));
        }
        if let Some(known) = self.stacks(caller).into_iter().find(|stack| stack.dir == request.dir) {
            return Ok(known);
        }
        let worker = self
            .cluster
            .look(|core| {
                core.workers()
                    .filter(|worker| worker.tenant == caller.tenant && worker.body.boot_id == request.boot_id)
                    .find(|worker| worker.attached.is_some())
                    .map(|worker| worker.id.clone())
            })
            .ok_or_else(|| {
                Error::new(Code::NoWorker, format!("no worker shares a machine with {}", request.dir))
                    .with_hint("start a worker there with COOPER_STACKS=name=dir")
            })?;
        let _turn = self.registering.turn.lock().await;
        let mut answered = self.registering.wait(&worker);
        let add = v1::StackAdd { name, dir: request.dir.clone() };
        let asking = async {
            let mut asked = None;
            loop {
                // A worker that attached anew meanwhile may not have heard it.
                let attached = |core: &cooper_core::cluster::Cluster| core.worker(&worker)?.attached;
                let attach = self.cluster.look(attached).map(|attached| attached.epoch);
                if let Some(epoch) = attach.filter(|_| asked != attach) {
                    self.cluster.fleet.send(&worker, epoch, v1::down::Message::StackAdd(add.clone()));
                    asked = attach;
                }
                tokio::select! {
                    answer = &mut answered => return answer,
                    () = tokio::time::sleep(LOOK_AGAIN) => {}
                }
            }
        };
        match tokio::time::timeout(REGISTER_TIMEOUT, asking).await {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(error))) => {
                let code = Code::parse(&error.code).unwrap_or(Code::InvalidArgument);
                return Err(Error::new(code, error.message).with_hint(error.hint));
            }
            Ok(Err(_)) | Err(_) => {
                return Err(Error::new(Code::TimedOut, "the worker did not answer in time"));
            }
        }
        self.stacks(caller).into_iter().find(|stack| stack.dir == request.dir).ok_or_else(|| {
            Error::new(Code::StackNotFound, format!("the worker did not take {} as a stack", request.dir))
        })
    }
}
