//! A backup and the removal of files keep out of each other's way, also between processes.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use rustix::fs::{FlockOperation, flock};

/// Name in the data directory.
const FILE: &str = "files.lock";

/// Held until it is dropped.
#[derive(Debug)]
pub struct Hold(#[allow(dead_code)] File);

impl Hold {
    /// To remove files; `None` while somebody copies them.
    pub fn alone(data: &Path) -> io::Result<Option<Self>> {
        Self::take(data, FlockOperation::NonBlockingLockExclusive)
    }

    /// To copy files; `None` while somebody removes some, which never takes long.
    pub fn shared(data: &Path) -> io::Result<Option<Self>> {
        Self::take(data, FlockOperation::NonBlockingLockShared)
    }

    fn take(data: &Path, operation: FlockOperation) -> io::Result<Option<Self>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(data.join(FILE))?;
        match flock(&file, operation) {
            Ok(()) => Ok(Some(Self(file))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(cause) => Err(cause.into()),
        }
    }
}
