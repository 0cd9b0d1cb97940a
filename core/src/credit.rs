//! Credit: how many attempts more a worker can take. Absolute numbers, so that a lost message loses nothing.

/// One attach's account.
#[derive(Debug, Clone, Copy, Default)]
pub struct Credit {
    granted: u32,
    /// Assigns the worker had seen when it granted.
    seen: u64,
    sent: u64,
}

impl Credit {
    /// The worker says: having seen `seen` assigns, I can take `granted` more.
    pub fn grant(&mut self, granted: u32, seen: u64) {
        // An older grant overtaken on the way would count assigns as still to come that the newer one knows of.
        if seen >= self.seen {
            self.granted = granted;
            self.seen = seen;
        }
    }

    /// Free credit: what was granted less what is on its way.
    pub fn available(&self) -> u32 {
        let on_the_way = self.sent.saturating_sub(self.seen);
        u32::try_from(u64::from(self.granted).saturating_sub(on_the_way)).unwrap_or(u32::MAX)
    }

    /// Spends one; false when there is none, and then nothing may be sent.
    #[must_use]
    pub fn spend(&mut self) -> bool {
        let free = self.available() > 0;
        if free {
            self.sent += 1;
        }
        free
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_on_its_way_is_not_granted_twice() {
        let mut credit = Credit::default();
        credit.grant(2, 0);
        assert!(credit.spend());
        assert!(credit.spend());
        assert!(!credit.spend());
        // The worker saw one of the two and still has room for one: that one is on its way.
        credit.grant(1, 1);
        assert_eq!(credit.available(), 0);
        credit.grant(1, 2);
        assert_eq!(credit.available(), 1);
    }

    proptest! {
        /// A worker with `slots` places is never sent more than it has places for, whatever the timing of its grants.
        #[test]
        fn a_worker_is_never_overfilled(slots in 1u32..20, script in prop::collection::vec(0u8..4, 1..300)) {
            let mut credit = Credit::default();
            let (mut wire, mut running, mut seen) = (0u32, 0u32, 0u64);
            credit.grant(slots, 0);
            for action in script {
                match action {
                    0 => if credit.spend() { wire += 1; },
                    1 => if wire > 0 { wire -= 1; running += 1; seen += 1; },
                    2 => running = running.saturating_sub(1),
                    _ => credit.grant(slots - running, seen),
                }
                prop_assert!(running + wire <= slots);
            }
        }
    }
}
