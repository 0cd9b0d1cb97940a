//! Workers that say nothing: suspect, then lost. A coordinator that was itself away judges nobody by that time.

use cooper_common::ids::TaskId;

use super::{Cluster, Effect, Out};
use crate::{Now, lease::Silence, worker};

impl Cluster {
    /// Called every [`crate::lease::Timing::tick_ms`], and again while [`Self::is_due`].
    pub fn tick(&mut self, now: Now) -> Out {
        let mut out = Out { full: true, ..Out::default() };
        let since = now.mono_ms.saturating_sub(self.last_tick_mono_ms);
        self.last_tick_mono_ms = now.mono_ms;
        if since > self.timing.own_lag_ms() {
            // Stopped, swapped out or starved: the beats of that time wait in buffers, unread.
            for worker in self.workers.values_mut() {
                worker.last_seen_mono_ms += since;
            }
            return out;
        }
        self.expire(now, &mut out);
        if now.mono_ms < self.grace_until_mono_ms {
            self.finish(now, &mut out);
            return out;
        }
        let heartbeat_ms = self.timing.heartbeat_ms(self.workers.len());
        let silent: Vec<_> = self
            .workers
            .values()
            .filter(|w| !matches!(w.body.state, worker::State::Gone | worker::State::Lost))
            .map(|w| {
                (
                    w.id.clone(),
                    self.timing.silence(now.mono_ms.saturating_sub(w.last_seen_mono_ms), heartbeat_ms),
                )
            })
            .filter(|(_, silence)| *silence != Silence::Fresh)
            .collect();
        for (id, silence) in silent {
            let Some(worker) = self.workers.get_mut(&id) else { continue };
            match silence {
                Silence::Fresh => {}
                Silence::Suspect => {
                    if worker.to(worker::State::Suspect) {
                        out.workers.insert(id.clone());
                    }
                }
                Silence::Lost => {
                    worker.to(worker::State::Lost);
                    if let Some(attached) = worker.attached.take() {
                        out.effects.push(Effect::Close { worker: id.clone(), attach: attached.epoch });
                    }
                    let held: Vec<TaskId> = worker.running.iter().copied().collect();
                    out.workers.insert(id.clone());
                    // Before its tasks go elsewhere.
                    self.reindex(&id);
                    for task in held {
                        self.give_up(now, task, false, "the worker was silent for too long", &mut out);
                    }
                }
            }
            self.reindex(&id);
        }
        self.pump_ready(now, &mut out);
        self.finish(now, &mut out);
        out
    }
}
