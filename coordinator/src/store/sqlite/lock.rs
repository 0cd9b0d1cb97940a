//! One coordinator a data directory: a lock that the operating system drops with its holder.

use std::{
    fs::{self, File, OpenOptions},
    io::{Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use rustix::fs::{FlockOperation, flock};

use crate::store::{Error, Result};

/// Held as long as it lives.
#[derive(Debug)]
pub(super) struct Lock(#[allow(dead_code)] File);

impl Lock {
    pub(super) fn take(path: &Path) -> Result<Self> {
        let unusable = |cause: std::io::Error| Error::Unusable {
            path: path.display().to_string(),
            cause: cause.to_string(),
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(unusable)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                // Who holds it is a courtesy: without it the message is poorer, not wrong.
                let pid = fs::read_to_string(path).unwrap_or_default();
                return Err(Error::Busy { path: path.display().to_string(), pid: pid.trim().to_owned() });
            }
            Err(cause) => return Err(unusable(cause.into())),
        }
        file.set_len(0).and_then(|()| file.rewind()).map_err(unusable)?;
        writeln!(file, "{}", std::process::id()).map_err(unusable)?;
        Ok(Self(file))
    }
}

/// The pid of who has a data directory's store open for writing.
pub fn holder(path: &Path) -> Option<String> {
    let file = File::open(path).ok()?;
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Some(fs::read_to_string(path).unwrap_or_default().trim().to_owned())
        }
        _ => None,
    }
}
