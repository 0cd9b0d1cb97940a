//! What workers see of their stacks by themselves: the same way into a repair as `--automatic`, for somebody who asks
//! again, and never twice at once.

use cooper_common::{
    error::{Code, Error},
    failpoint,
    limits::{observer, run as limits},
    token::Scope,
};
use cooper_core::worker::WorkerId;
use cooper_proto::v1;

use super::{Beginning, Runs};
use crate::caller::Caller;

/// Who asked, of a run that nobody asked for.
const NOBODY: &str = "cooper";

impl Runs {
    /// By what a worker is to watch its stacks.
    pub fn observe(&self) -> v1::Observe {
        let rules = self.settings.rules.set().further().iter();
        let file = |(name, text): &(String, String)| v1::RulesFile { name: name.clone(), text: text.clone() };
        v1::Observe { rules: rules.map(file).collect() }
    }

    /// Begins a repair of a service that is not well, if it may be repaired by itself. None: nothing could be decided, and
    /// the worker says it again.
    pub async fn trouble(&self, worker: &WorkerId, trouble: v1::Trouble) -> Option<v1::TroubleHeard> {
        let heard = |quiet_ms, again| {
            let (stack, service) = (trouble.stack.clone(), trouble.service.clone());
            Some(v1::TroubleHeard { stack, service, quiet_ms, again })
        };
        let tenant = self.cluster.look(|core| core.worker(worker).map(|worker| worker.tenant.clone()))?;
        let caller = Caller {
            tenant,
            scope: Scope::Operator,
            token_id: String::new(),
            name: NOBODY.to_owned(),
            from: None,
        };
        // Of several workers that have a stack of this name, the one that repairs it is believed.
        let stack = match self.stack(&caller, &trouble.stack) {
            Ok(stack) if stack.worker == *worker => stack,
            Ok(_) | Err(_) => return heard(observer::AGAIN_MS, false),
        };
        let asked = v1::CreateRunRequest {
            stack: trouble.stack.clone(),
            service: trouble.service.clone(),
            log: trouble.log.clone(),
            automatic: true,
            ..v1::CreateRunRequest::default()
        };
        let cut = trouble.what.floor_char_boundary(limits::TRIGGER_BYTES_MAX.min(trouble.what.len()));
        let trigger = trouble.what[..cut].to_owned();
        let count = |end| {
            let labels = [("kind", kind(&trouble.kind)), ("end", end)];
            metrics::counter!("cooper_run_triggers_total", &labels).increment(1);
        };
        let cooldown_ms = self.settings.auto_repair.cooldown_ms;
        match self.begin(&caller, asked, Beginning { trigger, ..Beginning::default() }).await {
            Ok(begun) => {
                tracing::info!(run = %begun.run.id, stack = trouble.stack, service = trouble.service, kind = trouble.kind, "a repair began by itself: {}", trouble.what);
                count("begun");
                failpoint::pass(failpoint::name::TROUBLE_BEFORE_HEARD);
                heard(cooldown_ms, false)
            }
            Err(Error { code: Code::Cooldown, message, .. }) => {
                tracing::debug!(
                    stack = trouble.stack,
                    service = trouble.service,
                    "not repaired by itself: {message}"
                );
                count("cooldown");
                let wait = self.wait(&caller, &stack, &trouble.service, true).await.ok()?;
                heard(wait.map_or(1_000, |wait| wait.left_ms + 1_000), true)
            }
            Err(error) if matches!(error.code, Code::Paused | Code::WorkerDraining) => {
                count(error.code.as_str());
                heard(observer::AGAIN_MS, true)
            }
            Err(error) => {
                tracing::warn!(stack = trouble.stack, service = trouble.service, %error, "nothing could be begun by itself");
                count("error");
                heard(observer::AGAIN_MS, true)
            }
        }
    }
}

/// Of the kinds there are: what a worker says otherwise makes no time series.
fn kind(said: &str) -> &'static str {
    ["died", "oom", "unhealthy", "looping", "log"].into_iter().find(|kind| *kind == said).unwrap_or("other")
}
