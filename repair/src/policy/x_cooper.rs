//! `x-cooper`, as a stack's compose file has it.

use serde::{Deserialize, Deserializer, de};
use serde_json::Value;

use crate::limits;

use super::{Error, Health, Publish};

/// `x-cooper` at the top level or in a service. Every key may be left out.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct XCooper {
    /// True: every repair needs approval. False: what the service looks like does not matter.
    pub(super) protected: Option<bool>,
    /// Who may approve.
    pub(super) approvers: Option<Vec<String>>,
    /// How long an approval is waited for, such as `2h`.
    pub(super) approval_ttl: Option<Milliseconds>,
    /// Globs, relative to the build context, in place of the defaults.
    pub(super) allow: Option<Vec<String>>,
    /// Only in a service.
    pub(super) health: Option<Health>,
    /// Stability window, such as `3s`.
    pub(super) stable_for: Option<Milliseconds>,
    /// What becomes of a promoted repair in git.
    pub(super) git: Option<Publish>,
    /// Repairs may start by themselves.
    pub(super) auto_repair: Option<bool>,
    /// Attempts of a run.
    pub(super) max_attempts: Option<u32>,
}

impl XCooper {
    pub(super) fn read(place: &str, value: Option<&Value>) -> Result<Self, Error> {
        let invalid = |problem: String| Error::Invalid { place: place.to_owned(), problem };
        // `x-cooper:` with nothing below it is null.
        let Some(value) = value.filter(|value| !value.is_null()) else {
            return Ok(Self::default());
        };
        let read: Self = serde_json::from_value(value.clone()).map_err(|error| invalid(error.to_string()))?;
        if read.max_attempts.is_some_and(|attempts| !(1..=limits::ATTEMPTS_MAX).contains(&attempts)) {
            return Err(invalid(format!("max_attempts must be 1 to {}", limits::ATTEMPTS_MAX)));
        }
        if read.stable_for.is_some_and(|time| time.0 > limits::STABLE_FOR_MAX_MS) {
            return Err(invalid(format!(
                "stable_for must be at most {} s",
                limits::STABLE_FOR_MAX_MS / 1000
            )));
        }
        let ttl = limits::APPROVAL_TTL_MIN_MS..=limits::APPROVAL_TTL_MAX_MS;
        if read.approval_ttl.is_some_and(|time| !ttl.contains(&time.0)) {
            return Err(invalid("approval_ttl must be 1s to 720h".to_owned()));
        }
        if let Some(health) = &read.health {
            if health.exec.is_empty() == health.url.is_empty() {
                return Err(invalid(
                    "health wants either a url or an exec (a command and its arguments)".to_owned(),
                ));
            }
            if !health.exec.is_empty() && health.expect_status.is_some() {
                return Err(invalid(
                    "health.expect_status goes with a url; an exec must end with 0".to_owned(),
                ));
            }
            let rest = health.url.strip_prefix("http://").or_else(|| health.url.strip_prefix("https://"));
            if !health.url.is_empty()
                && rest.is_none_or(|rest| {
                    rest.is_empty() || rest.starts_with('/') || rest.contains(char::is_whitespace)
                })
            {
                return Err(invalid("health.url must be http://HOST[:PORT]/PATH".to_owned()));
            }
            if health.expect_status.is_some_and(|status| !(100..=599).contains(&status)) {
                return Err(invalid("health.expect_status must be 100 to 599".to_owned()));
            }
        }
        Ok(read)
    }
}

/// A time written as compose writes them: `500ms`, `3s`, `1m30s`, `2h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Milliseconds(pub(super) u64);

impl<'de> Deserialize<'de> for Milliseconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        duration_ms(&text)
            .map(Self)
            .ok_or_else(|| de::Error::custom(format!("{text:?} is not a time such as 500ms, 3s or 1m30s")))
    }
}

fn duration_ms(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|part: char| part.is_ascii_digit()).len();
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.len() - rest.trim_start_matches(|part: char| part.is_ascii_alphabetic()).len();
        let unit_ms = match &rest[..letters] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        rest = &rest[letters..];
        total = total.checked_add(number.checked_mul(unit_ms)?)?;
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_compose_writes_them() {
        let known =
            [("500ms", Some(500)), ("3s", Some(3_000)), ("1m30s", Some(90_000)), ("2h", Some(7_200_000))];
        for (text, expected) in known.into_iter().chain([("", None), ("3", None), ("s", None), ("3x", None)])
        {
            assert_eq!(duration_ms(text), expected, "{text}");
        }
    }
}
