//! What this binary is.

use cooper_common::{VERSION, failpoint};
use serde_json::{Value, json};

/// Empty where nobody said: see `build.rs`.
const COMMIT: &str = env!("COOPER_BUILT_FROM");
const TARGET: &str = env!("COOPER_BUILT_FOR");

/// What it can do beyond what is shipped.
fn features() -> Vec<&'static str> {
    if failpoint::COMPILED_IN { vec!["failpoints"] } else { Vec::new() }
}

/// `0.1.0 0123456789ab (failpoints)`: a binary that can be told to kill itself says so.
pub fn text() -> String {
    let mut text = VERSION.to_owned();
    if !COMMIT.is_empty() {
        text = format!("{text} {COMMIT}");
    }
    let features = features();
    if !features.is_empty() {
        text = format!("{text} ({})", features.join(", "));
    }
    text
}

pub fn json() -> Value {
    let commit = (!COMMIT.is_empty()).then_some(COMMIT);
    json!({"version": VERSION, "commit": commit, "features": features(), "target": TARGET})
}
