//! Workers that say nothing: suspect, then lost. A coordinator that was itself away judges nobody by that time, and one
//! that hears nothing of many workers at once mistrusts the network before it mistrusts them (the brake).

use cooper_common::{ids::TaskId, limits};

use super::{Cluster, Effect, Out};
use crate::{
    Now,
    lease::Silence,
    worker::{self, WorkerId},
};

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
        self.tick_moves(now, &mut out);
        self.tick_drains(now, &mut out);
        if now.mono_ms >= self.grace_until_mono_ms {
            self.judge_silence(now, &mut out);
        }
        self.pump_ready(now, &mut out);
        self.finish(now, &mut out);
        out
    }

    fn judge_silence(&mut self, now: Now, out: &mut Out) {
        let heartbeat_ms = self.timing.heartbeat_ms(self.workers.len());
        let mut lost = Vec::new();
        let mut judged = 0;
        for (id, worker) in &mut self.workers {
            if matches!(worker.body.state, worker::State::Gone | worker::State::Lost) {
                continue;
            }
            judged += 1;
            let silent_ms = now.mono_ms.saturating_sub(worker.last_seen_mono_ms);
            match self.timing.silence(silent_ms, heartbeat_ms) {
                Silence::Fresh => continue,
                Silence::Suspect => {}
                Silence::Lost => lost.push((id.clone(), silent_ms)),
            }
            if worker.to(worker::State::Suspect) {
                out.workers.insert(id.clone());
            }
        }
        for id in out.workers.clone() {
            self.reindex(&id);
        }
        if !lost.is_empty() {
            self.brake(now, &mut lost, judged, out);
            for (id, _) in lost {
                self.evict(now, &id, out);
            }
        }
    }

    /// Takes out of `lost` whom the brake spares: everybody whose silence is not clearly longer, while too large a share
    /// of the workers would be given up within one window.
    fn brake(&mut self, now: Now, lost: &mut Vec<(WorkerId, u64)>, judged: usize, out: &mut Out) {
        use limits::link::{BRAKE_PATIENCE, BRAKE_SHARE, BRAKE_WORKERS_MIN};
        let window = now.mono_ms.saturating_sub(self.timing.lost_ms);
        while self.evictions.front().is_some_and(|at| *at < window) {
            self.evictions.pop_front();
        }
        let (silent, of) = (lost.len() + self.evictions.len(), judged + self.evictions.len());
        if silent < BRAKE_WORKERS_MIN || silent * BRAKE_SHARE <= of {
            return;
        }
        let patience_ms = self.timing.lost_ms.saturating_mul(BRAKE_PATIENCE);
        let mut news = false;
        lost.retain(|(id, silent_ms)| {
            if *silent_ms >= patience_ms {
                return true;
            }
            if let Some(worker) = self.workers.get_mut(id)
                && !std::mem::replace(&mut worker.spared, true)
            {
                worker.note_with("worker.spared", format!(r#","silent":{silent},"of":{of}"#));
                out.workers.insert(id.clone());
                news = true;
            }
            false
        });
        if news {
            out.effects.push(Effect::EvictionsBraked { silent, of });
        }
    }

    fn evict(&mut self, now: Now, id: &WorkerId, out: &mut Out) {
        let Some(worker) = self.workers.get_mut(id) else { return };
        worker.to(worker::State::Lost);
        worker.spared = false;
        self.evictions.push_back(now.mono_ms);
        if let Some(attached) = worker.attached.take() {
            out.effects.push(Effect::Close { worker: id.clone(), attach: attached.epoch });
        }
        let held: Vec<TaskId> = worker.running.iter().copied().collect();
        out.workers.insert(id.clone());
        // Before its tasks go elsewhere.
        self.reindex(id);
        for task in held {
            self.give_up(now, task, false, "the worker was silent for too long", out);
        }
    }
}
