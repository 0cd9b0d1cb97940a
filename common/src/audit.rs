//! The audit trail's rows, and the chain of hashes that holds them together: each row's hash covers the row and the hash of
//! the row before it, so that one that is changed, left out, put in or moved shows in all that follow.

use serde::{Deserialize, Serialize};

/// What comes before the first row.
pub const GENESIS: &str = "";

/// Who did what, to what, from where, and what came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Entry {
    /// Unix milliseconds.
    pub at_ms: i64,
    /// Of whoever acted; empty when nobody knows.
    pub tenant: String,
    /// Of the token that was used.
    pub token_id: String,
    /// The token's name.
    pub name: String,
    /// Address that the request came from.
    pub from: String,
    /// `Service/Method` of the contract, or what happened without a request.
    pub action: String,
    /// What it was about: an id, or a name.
    pub object: String,
    /// `ok`, or the code of the error.
    pub outcome: String,
    /// For people, and for what has no field.
    pub detail: String,
}

/// A row as it is stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Row {
    /// From 1, without gaps.
    pub seq: u64,
    #[serde(flatten)]
    pub entry: Entry,
    pub hash: String,
}

/// A place in the chain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    pub seq: u64,
    pub hash: String,
}

impl Entry {
    /// The hash of the row with this number behind the one with the hash `before`.
    pub fn hash(&self, seq: u64, before: &str) -> String {
        let mut hasher = blake3::Hasher::new_derive_key("cooper audit row 1");
        let (seq, at) = (seq.to_le_bytes(), self.at_ms.to_le_bytes());
        let fields: [&[u8]; 11] = [
            before.as_bytes(),
            &seq,
            &at,
            self.tenant.as_bytes(),
            self.token_id.as_bytes(),
            self.name.as_bytes(),
            self.from.as_bytes(),
            self.action.as_bytes(),
            self.object.as_bytes(),
            self.outcome.as_bytes(),
            self.detail.as_bytes(),
        ];
        for field in fields {
            // Where one field ends and the next begins is part of what is said.
            hasher.update(&(field.len() as u64).to_le_bytes()).update(field);
        }
        hasher.finalize().to_hex().to_string()
    }
}

impl Link {
    /// Goes on by one row.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn follow(&mut self, row: &Row) -> Result<(), String> {
        let next = self.seq + 1;
        let found = if row.seq != next {
            Err(format!("row {next} is missing: row {} comes instead", row.seq))
        } else if row.entry.hash(row.seq, &self.hash) != row.hash {
            Err(format!("row {next} is not as it was written, or does not follow on the row before it"))
        } else {
            Ok(())
        };
        // From here on by what is there, so that one fault is told once.
        *self = Self { seq: row.seq, hash: row.hash.clone() };
        found
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chain(names: &[String]) -> Vec<Row> {
        let mut link = Link::default();
        let row = |(index, name): (usize, &String)| {
            let entry = Entry { at_ms: index as i64, name: name.clone(), ..Entry::default() };
            let seq = link.seq + 1;
            link = Link { seq, hash: entry.hash(seq, &link.hash) };
            Row { seq, entry, hash: link.hash.clone() }
        };
        names.iter().enumerate().map(row).collect()
    }

    fn faults(rows: &[Row]) -> usize {
        let mut link = Link::default();
        rows.iter().filter(|row| link.follow(row).is_err()).count()
    }

    proptest! {
        #[test]
        fn a_row_that_is_changed_removed_put_in_or_moved_is_found(
            names in prop::collection::vec("[a-c]{0,3}", 3..8),
            at in 0usize..6,
        ) {
            let rows = chain(&names);
            prop_assert_eq!(faults(&rows), 0);
            let at = at % (rows.len() - 1);
            let mut changed = rows.clone();
            changed[at].entry.name.push('x');
            prop_assert!(faults(&changed) > 0);
            // Also by somebody who knows how hashes are made.
            let before = at.checked_sub(1).map_or(GENESIS, |at| &rows[at].hash);
            changed[at].hash = changed[at].entry.hash(changed[at].seq, before);
            prop_assert!(faults(&changed) > 0);
            let mut removed = rows.clone();
            removed.remove(at);
            prop_assert!(faults(&removed) > 0);
            let mut moved = rows.clone();
            moved.swap(at, at + 1);
            prop_assert!(faults(&moved) > 0);
            let mut twice = rows.clone();
            twice.insert(at, rows[at].clone());
            prop_assert!(faults(&twice) > 0);
        }

        #[test]
        fn text_does_not_move_from_one_field_to_the_next(a in "[a-c]{1,4}", b in "[a-c]{1,4}") {
            let one = Entry { tenant: format!("{a}{b}"), ..Entry::default() };
            let two = Entry { tenant: a, token_id: b, ..Entry::default() };
            prop_assert_ne!(one.hash(1, GENESIS), two.hash(1, GENESIS));
        }
    }
}
