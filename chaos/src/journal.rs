//! What a client notes down of all it asked for and was answered, line by line, as it happens.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    path::Path,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::work::Work;

/// One line of a journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Entry {
    /// About to be asked for, maybe again.
    Asked { key: String, work: Work },
    /// The coordinator answered that this is the task of the key.
    Accepted { key: String, task: String },
    /// Output arrived. Offsets are the coordinator's.
    Received { task: String, stream: i32, offset: u64, len: u64, sha256: String },
    /// The coordinator said that another attempt follows, whose output begins at 0.
    Restarted { task: String },
    /// The coordinator said how it ended.
    Ended { task: String, state: String, stdout_bytes: u64, truncated: bool },
    /// Never accepted as far as the client knows, and not asked for again.
    Abandoned { key: String, why: String },
}

/// Appends lines to a journal.
pub struct Journal(File);

impl Journal {
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(Self(OpenOptions::new().create_new(true).append(true).open(path)?))
    }

    pub fn note(&mut self, entry: &Entry) -> io::Result<()> {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        self.0.write_all(&line)
    }
}

pub fn read(path: &Path) -> io::Result<Vec<Entry>> {
    let lines = BufReader::new(File::open(path)?).lines();
    lines.map(|line| Ok(serde_json::from_str(&line?)?)).collect()
}

pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
