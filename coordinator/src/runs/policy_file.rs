//! The operator's policy, as the setting `policy_file` names it.

use std::{fs, path::Path, sync::Arc};

use cooper_common::error::{Code, Error, Result};
use cooper_repair::OperatorPolicy;

/// Reads the file.
///
/// # Errors
/// `config_invalid`: it cannot be read, or something in it is wrong, with its line.
pub fn policy_file(path: &Path) -> Result<Arc<OperatorPolicy>> {
    let invalid = |what: String| Error::new(Code::ConfigInvalid, format!("policy_file: {what}"));
    let text = fs::read_to_string(path)
        .map_err(|error| invalid(format!("cannot read {}: {error}", path.display())))?;
    let policy = OperatorPolicy::read(&path.display().to_string(), &text);
    policy.map(Arc::new).map_err(|error| {
        invalid(error.to_string()).with_hint("correct that line; docs/repair.md has the keys of this file")
    })
}
