//! What one commit costs on the disk that everything here is on: a small append and fdatasync. Measured right before and
//! after each row, because a disk that others use changes from minute to minute.

use std::{fs::File, io::Write, path::Path};

use anyhow::Result;
use cooper_common::clock;

const COMMITS: usize = 100;
/// A page of SQLite.
const APPEND_BYTES: usize = 4096;

/// Milliseconds.
pub fn commits(dir: &Path) -> Result<Vec<f64>> {
    let mut file = tempfile::tempfile_in(dir)?;
    let mut samples = Vec::with_capacity(COMMITS);
    for _ in 0..COMMITS {
        let begin = clock::since_start();
        append(&mut file)?;
        samples.push((clock::since_start() - begin).as_secs_f64() * 1e3);
    }
    Ok(samples)
}

fn append(file: &mut File) -> Result<()> {
    file.write_all(&[0x5a; APPEND_BYTES])?;
    file.sync_data()?;
    Ok(())
}
