//! Tokens: 256 random bits, shown once, stored as a BLAKE3 hash, compared in constant time.
//!
//! High-entropy secrets need no slow hash; the prefix `cpr_` lets secret scanners find them.

use std::{fmt, fs, io::Write, os::unix::fs::OpenOptionsExt, path::Path};

use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

/// What a token may do. `admin` may do everything in its tenant; `worker` may only attach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Everything, tokens included.
    Admin,
    /// Sessions, runs, approvals, workers.
    Operator,
    /// Sessions and runs, no approvals.
    Client,
    /// Attach as a worker.
    Worker,
}

impl Scope {
    pub const ALL: [Scope; 4] = [Scope::Admin, Scope::Operator, Scope::Client, Scope::Worker];
    pub const fn as_str(self) -> &'static str {
        match self {
            Scope::Admin => "admin",
            Scope::Operator => "operator",
            Scope::Client => "client",
            Scope::Worker => "worker",
        }
    }
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == text)
    }
}

/// A token's secret. Not printed by Debug.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn generate() -> Self {
        let bytes: [u8; 32] = rand::random();
        let mut text = String::from("cpr_");
        for byte in bytes {
            text.push_str(&format!("{byte:02x}"));
        }
        Self(text)
    }
    pub fn from_text(text: &str) -> Self {
        Self(text.trim().to_owned())
    }
    pub fn expose(&self) -> &str {
        &self.0
    }
    /// What is stored and looked up: hex BLAKE3.
    pub fn hash(&self) -> String {
        blake3::hash(self.0.as_bytes()).to_hex().to_string()
    }
    pub fn matches(&self, hash: &str) -> bool {
        self.hash().as_bytes().ct_eq(hash.as_bytes()).into()
    }
    /// Reads a secret from a file, surrounding white space removed.
    pub fn read(path: &Path) -> std::io::Result<Self> {
        Ok(Self::from_text(&fs::read_to_string(path)?))
    }
    /// Writes the secret to a new file that only its owner may read.
    pub fn write_new(&self, path: &Path) -> std::io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        writeln!(file, "{}", self.0)?;
        file.sync_all()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_matches_only_its_own_hash_and_is_not_printed() {
        let (a, b) = (Secret::generate(), Secret::generate());
        assert!(a.matches(&a.hash()) && !b.matches(&a.hash()));
        assert!(!format!("{a:?}").contains(&a.expose()[4..]));
    }
}
