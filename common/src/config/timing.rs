//! What has to hold among the times of the link. Each alone may be right and the set still evict workers that are well.

use super::{Config, invalid};
use crate::error::Result;

/// `left` has to be less than `right`, or the cluster does what the text says.
const ORDER: &[(&str, &str, &str)] = &[
    ("heartbeat_ms", "lease_ms", "a worker would attach again between two heartbeats"),
    ("lease_ms", "lost_ms", "a worker would be lost before it knows that nobody hears it"),
    ("tick_ms", "lost_ms", "silence would not be seen in time"),
    ("reconnect_base_ms", "reconnect_cap_ms", "waits could not grow"),
];

/// Settings of other roles are not there, and not compared.
pub(super) fn check(config: &Config) -> Result<()> {
    for (left, right, consequence) in ORDER {
        less(config, left, config.integer(left), right, consequence)?;
    }
    let silence = config.integer("suspect_beats").zip(config.integer("heartbeat_ms"));
    let silence = silence.map(|(beats, heartbeat_ms)| beats.saturating_mul(heartbeat_ms));
    less(
        config,
        "suspect_beats × heartbeat_ms",
        silence,
        "lost_ms",
        "a worker would be lost before it is suspect",
    )
}

fn less(config: &Config, left: &str, value: Option<u64>, right: &str, consequence: &str) -> Result<()> {
    let Some((value, bound)) = value.zip(config.get(right)) else { return Ok(()) };
    if config.integer(right).is_some_and(|bound| value < bound) {
        return Ok(());
    }
    let what = format!(
        "{} is not more than {left}, which is {value} (from {}): {consequence}",
        bound.value, bound.origin
    );
    Err(invalid(right, &what))
}
