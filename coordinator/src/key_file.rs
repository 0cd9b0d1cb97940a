//! Keys of a data directory: 32 random bytes in a file of its owner's alone, made when they are first wanted.

use std::{fs, io, os::unix::fs::OpenOptionsExt, path::Path};

pub const BYTES: usize = 32;

pub fn read(path: &Path) -> io::Result<[u8; BYTES]> {
    match fs::read(path) {
        Ok(bytes) => bytes.try_into().map_err(|_| io::Error::other("it is no key")),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
            let key: [u8; BYTES] = rand::random();
            // Whole or not at all: a start that dies in between leaves no half of a key.
            let draft = path.with_extension("new");
            let mut options = fs::OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
            io::Write::write_all(&mut file, &key)?;
            file.sync_all()?;
            fs::rename(draft, path)?;
            Ok(key)
        }
        Err(cause) => Err(cause),
    }
}
