//! What is said of services that are not well, and when. Decided without any I/O; times are monotonic milliseconds.

use std::collections::BTreeMap;

use cooper_common::limits::observer::{SERVICES_MAX, SETTLE_MS};
use cooper_proto::v1::Trouble;

/// Stack and service.
pub(super) type Key = (String, String);

/// How a service fails; the worst comes last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// It printed what a rule knows.
    Log,
    Unhealthy,
    Died,
    Looping,
    Oom,
}

impl Kind {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Unhealthy => "unhealthy",
            Self::Died => "died",
            Self::Looping => "looping",
            Self::Oom => "oom",
        }
    }
}

/// Something that is wrong with a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) kind: Kind,
    /// In a sentence.
    pub(super) what: String,
    /// Container it was seen on.
    pub(super) container: String,
}

/// What is to be done now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Say it.
    Tell(Key, Seen),
    /// It was quiet as long as it had to be, and something was seen: say it if it is still so.
    Look(Key, Seen),
}

#[derive(Debug)]
enum Phase {
    /// It is said then: until then all is one trouble.
    Settling(u64),
    /// It is on its way.
    Told(Seen),
    /// Nothing has to be said until then.
    Quiet(u64),
}

#[derive(Debug)]
struct Service {
    phase: Phase,
    /// What is to be said, or was seen since.
    seen: Option<Seen>,
}

/// Services that are not well, or were a moment ago.
#[derive(Debug, Default)]
pub(super) struct Troubles {
    services: BTreeMap<Key, Service>,
}

impl Troubles {
    pub(super) fn saw(&mut self, now: u64, key: Key, seen: Seen) {
        let room = self.services.len() < SERVICES_MAX;
        match self.services.get_mut(&key) {
            // Of the same kind the newest: an older container may be gone.
            Some(service) if service.seen.as_ref().is_none_or(|known| known.kind <= seen.kind) => {
                service.seen = Some(seen);
            }
            None if room => {
                let phase = Phase::Settling(now + SETTLE_MS);
                self.services.insert(key, Service { phase, seen: Some(seen) });
            }
            Some(_) | None => {}
        }
    }

    /// The coordinator has heard of a service.
    pub(super) fn heard(&mut self, now: u64, key: &Key, quiet_ms: u64, again: bool) {
        let Some(service) = self.services.get_mut(key) else { return };
        let Phase::Told(told) = std::mem::replace(&mut service.phase, Phase::Quiet(now + quiet_ms)) else {
            return;
        };
        // What came between belongs to what was told.
        let known = service.seen.take();
        service.seen = again.then(|| known.unwrap_or(told));
    }

    /// Something that is due, if anything is.
    pub(super) fn poll(&mut self, now: u64) -> Option<Due> {
        let due = |service: &Service| match service.phase {
            Phase::Settling(due) | Phase::Quiet(due) => due <= now,
            Phase::Told(_) => false,
        };
        loop {
            let key = self.services.iter().find(|(_, service)| due(service)).map(|(key, _)| key.clone())?;
            let service = self.services.get_mut(&key)?;
            let Some(seen) = service.seen.take() else {
                self.services.remove(&key);
                continue;
            };
            match std::mem::replace(&mut service.phase, Phase::Told(seen.clone())) {
                Phase::Quiet(_) => return Some(Due::Look(key, seen)),
                Phase::Settling(_) | Phase::Told(_) => return Some(Due::Tell(key, seen)),
            }
        }
    }

    /// It is well again: nothing is said.
    pub(super) fn forget(&mut self, key: &Key) {
        self.services.remove(key);
    }

    pub(super) fn next(&self) -> Option<u64> {
        let due = |service: &Service| match service.phase {
            Phase::Settling(due) | Phase::Quiet(due) => Some(due),
            Phase::Told(_) => None,
        };
        self.services.values().filter_map(due).min()
    }
}

/// As it travels.
pub(super) fn trouble(key: Key, seen: &Seen, log: Vec<u8>) -> Trouble {
    let (stack, service) = key;
    Trouble { stack, service, kind: seen.kind.as_str().to_owned(), what: seen.what.clone(), log }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        ("shop".to_owned(), "web".to_owned())
    }

    fn seen(kind: Kind, what: &str) -> Seen {
        Seen { kind, what: what.to_owned(), container: "c".to_owned() }
    }

    #[test]
    fn what_comes_together_is_one_trouble_and_the_worst_of_it_is_said_once() {
        let mut troubles = Troubles::default();
        troubles.saw(0, key(), seen(Kind::Log, "it says why"));
        troubles.saw(10, key(), seen(Kind::Died, "it died"));
        troubles.saw(20, key(), seen(Kind::Log, "it says why again"));
        assert_eq!(troubles.poll(SETTLE_MS - 1), None);
        assert_eq!(troubles.poll(SETTLE_MS), Some(Due::Tell(key(), seen(Kind::Died, "it died"))));
        troubles.saw(SETTLE_MS, key(), seen(Kind::Died, "it died again"));
        assert_eq!((troubles.poll(u64::MAX), troubles.next()), (None, None), "it is on its way");
    }

    #[test]
    fn nothing_is_said_for_as_long_as_the_coordinator_wants_and_then_only_what_came_since() {
        let mut troubles = Troubles::default();
        troubles.saw(0, key(), seen(Kind::Died, "it died"));
        troubles.poll(SETTLE_MS);
        troubles.heard(3_000, &key(), 1_000, false);
        assert_eq!(troubles.poll(4_000), None);
        troubles.saw(5_000, key(), seen(Kind::Unhealthy, "a new trouble"));
        assert_eq!(troubles.next(), Some(7_000));
        troubles.poll(7_000);
        troubles.heard(8_000, &key(), 1_000, false);
        troubles.saw(8_500, key(), seen(Kind::Unhealthy, "still"));
        assert_eq!(troubles.poll(8_999), None);
        assert_eq!(troubles.poll(9_000), Some(Due::Look(key(), seen(Kind::Unhealthy, "still"))));
    }

    #[test]
    fn what_nothing_was_done_about_is_looked_at_again() {
        let mut troubles = Troubles::default();
        troubles.saw(0, key(), seen(Kind::Unhealthy, "sick"));
        troubles.poll(SETTLE_MS);
        troubles.heard(3_000, &key(), 1_000, true);
        assert_eq!(troubles.poll(4_000), Some(Due::Look(key(), seen(Kind::Unhealthy, "sick"))));
        troubles.forget(&key());
        assert_eq!(troubles.next(), None);
    }

    #[test]
    fn services_are_bounded() {
        let mut troubles = Troubles::default();
        for number in 0..SERVICES_MAX + 5 {
            let key = ("shop".to_owned(), format!("web{number}"));
            troubles.saw(0, key, seen(Kind::Died, "it died"));
        }
        assert_eq!(troubles.services.len(), SERVICES_MAX, "I12");
    }
}
