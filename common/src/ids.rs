//! Typed ids: a task id cannot be passed where a run id is wanted.
//!
//! Written as a prefix and 26 characters of Crockford base32 over a UUIDv7, so that they sort by creation time and
//! survive a double click.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::{ContextV7, Timestamp, Uuid};

use crate::clock;

/// The text was not an id of the kind asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {kind} id (expected {prefix}_ and 26 characters)")]
pub struct Malformed {
    text: String,
    kind: &'static str,
    prefix: &'static str,
}

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const DIGITS: usize = 26;

fn encode(prefix: &str, value: u128, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut digits = [0u8; DIGITS];
    for (i, digit) in digits.iter_mut().enumerate() {
        *digit = ALPHABET[((value >> (5 * (DIGITS - 1 - i))) & 31) as usize];
    }
    // The alphabet is ASCII.
    write!(f, "{prefix}_{}", std::str::from_utf8(&digits).unwrap_or_default())
}

fn decode(text: &str) -> Option<u128> {
    if text.len() != DIGITS {
        return None;
    }
    text.bytes().try_fold(0u128, |value, byte| {
        let digit = ALPHABET.iter().position(|c| *c == byte)? as u128;
        value.checked_mul(32)?.checked_add(digit)
    })
}

fn fresh() -> Uuid {
    thread_local! {
        static SIMULATED: ContextV7 = const { ContextV7::new() };
    }
    match clock::simulated() {
        None => Uuid::now_v7(),
        // The context of the process is shared with other simulations, which must not be felt here.
        Some(_) => SIMULATED.with(|context| {
            let ms = clock::wall_ms().unsigned_abs();
            Uuid::new_v7(Timestamp::from_unix(context, ms / 1_000, (ms % 1_000) as u32 * 1_000_000))
        }),
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(u128);

        impl $name {
            /// A fresh id: time-ordered, unguessable in its last 74 bits.
            pub fn new() -> Self {
                Self(fresh().as_u128())
            }
            /// For tests and simulation: the same number gives the same id.
            pub const fn from_u128(value: u128) -> Self {
                Self(value)
            }
            /// The number: its last 74 bits are random.
            pub const fn as_u128(self) -> u128 {
                self.0
            }
        }
        impl Default for $name {
            fn default() -> Self {
                Self::new()
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                encode($prefix, self.0, f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                encode($prefix, self.0, f)
            }
        }
        impl FromStr for $name {
            type Err = Malformed;
            fn from_str(text: &str) -> Result<Self, Malformed> {
                text.strip_prefix(concat!($prefix, "_"))
                    .and_then(decode)
                    .map(Self)
                    .ok_or_else(|| Malformed { text: text.chars().take(80).collect(), kind: $kind, prefix: $prefix })
            }
        }
        impl TryFrom<String> for $name {
            type Error = Malformed;
            fn try_from(text: String) -> Result<Self, Malformed> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }
    };
}

id!(
    /// A saved session.
    CheckpointId, "chk", "checkpoint"
);
id!(
    /// A session.
    SessionId, "ses", "session"
);
id!(
    /// A task; executions are tasks.
    TaskId, "tsk", "task"
);
id!(
    /// One execution of a plan.
    RunId, "run", "run"
);
id!(
    /// A decision about one plan.
    ApprovalId, "apr", "approval"
);
id!(
    /// A version of a template.
    TemplateId, "tpl", "template"
);
id!(
    /// A file that a session made and that is kept.
    ArtifactId, "art", "artifact"
);
id!(
    /// What a tenant sets and its sessions are given.
    SecretId, "sec", "secret"
);
id!(
    /// A token (not its secret).
    TokenId, "tok", "token"
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_id_reads_back_as_itself(value in any::<u128>()) {
            let id = TaskId::from_u128(value);
            prop_assert_eq!(id.to_string().parse::<TaskId>(), Ok(id));
        }
        #[test]
        fn arbitrary_text_never_panics(text in ".*") {
            let _ = text.parse::<SessionId>();
        }
    }

    #[test]
    fn an_id_of_another_kind_is_refused() {
        assert!(TaskId::new().to_string().parse::<RunId>().is_err());
    }

    #[test]
    fn ids_sort_by_creation() {
        let (a, b) = (TaskId::new(), TaskId::new());
        assert!(a < b && a.to_string() < b.to_string());
    }
}
