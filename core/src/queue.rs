//! Tasks that wait in one place: the higher priority first, equal ones in order of submission.

use std::collections::BTreeMap;

use cooper_common::ids::TaskId;

/// Where a task stands among those that wait in the same place. It keeps its place over its attempts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The priority, negated: the smallest place is served first.
    rank: i8,
    /// Counts submits.
    seq: u64,
}

impl Place {
    pub fn new(priority: i8, seq: u64) -> Self {
        Self { rank: priority.saturating_neg(), seq }
    }
}

/// Strictly by priority: while tasks of a higher one keep coming, those of a lower one wait.
#[derive(Debug, Clone, Default)]
pub struct Queue(BTreeMap<Place, TaskId>);

impl Queue {
    pub fn insert(&mut self, place: Place, task: TaskId) {
        self.0.insert(place, task);
    }
    pub fn remove(&mut self, place: Place) {
        self.0.remove(&place);
    }
    pub fn pop(&mut self) -> Option<TaskId> {
        self.0.pop_first().map(|(_, task)| task)
    }
    /// Who is served next.
    pub fn first(&self) -> Option<Place> {
        self.0.first_key_value().map(|(place, _)| *place)
    }
    pub fn iter(&self) -> impl Iterator<Item = (Place, TaskId)> {
        self.0.iter().map(|(place, task)| (*place, *task))
    }
    /// How many are served before this place.
    pub fn before(&self, place: Place) -> usize {
        self.0.range(..place).count()
    }
    pub fn len(&self) -> usize {
        self.0.len()
    }
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    pub fn contains(&self, place: Place) -> bool {
        self.0.contains_key(&place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_higher_priority_goes_first_and_equal_ones_in_order() {
        let mut queue = Queue::default();
        for (seq, priority) in [0, -3, 5, 0, 5].into_iter().enumerate() {
            queue.insert(Place::new(priority, seq as u64), TaskId::from_u128(seq as u128));
        }
        let order: Vec<TaskId> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, [2, 4, 0, 3, 1].map(TaskId::from_u128));
    }
}
