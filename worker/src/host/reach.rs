//! How long no coordinator was reached. Beyond the lease and `detach_max_ms` steps that run are ended here: the
//! coordinator may have started them elsewhere. Code of users goes on, as nobody else may start it (I1).

use cooper_common::{clock, limits::link::LEASE_MS};
use cooper_proto::host as wire;

use super::{
    Due, Host,
    outcome::{Kind, Why},
    timers::Timer,
};

/// What the link says of it; links come and go, this stays.
#[derive(Debug, Default)]
pub struct Reach {
    lease_ms: u64,
    /// Runs while nobody is reached.
    timer: Option<Timer>,
}

impl Host {
    pub(super) fn on_reach(&mut self, reach: &wire::Reach) {
        if !reach.attached {
            return self.out_of_reach();
        }
        self.reach.lease_ms = reach.lease_ms;
        if let Some(timer) = self.reach.timer.take() {
            self.timers.cancel(timer);
        }
    }

    /// From now on, unless it was before: a link that dies reaches nobody either.
    pub(super) fn out_of_reach(&mut self) {
        let lease_ms = if self.reach.lease_ms == 0 { LEASE_MS } else { self.reach.lease_ms };
        // A link of version 1 never says when somebody is reached again, so nothing is counted with it.
        if self.reach.timer.is_none() && self.link.version >= 2 {
            let due = clock::mono_ms() + lease_ms + self.config.detach_max_ms;
            self.reach.timer = Some(self.timers.add(due, Due::Unreached));
        }
    }

    pub(super) fn on_unreached(&mut self) {
        let steps =
            self.attempts.iter().filter(|(_, attempt)| attempt.kind == Kind::Step && !attempt.has_ended());
        let steps: Vec<u64> = steps.map(|(id, _)| *id).collect();
        for id in &steps {
            self.interrupt(*id, Why::Unreached, super::ladder::STEP_GRACE_MS);
        }
        if !steps.is_empty() {
            let steps = steps.len();
            tracing::warn!(steps, "no coordinator for too long: steps may be started elsewhere and end here");
        }
    }
}
