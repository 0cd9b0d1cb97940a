//! The data directory as it is made: others may pass through it and cannot see what is in it.
//!
//! Sessions under uids of their own pass it on the way to their homes. What else is in it is made with modes that keep
//! others out: coordinators run under a umask that does.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
};

const MODE: u32 = 0o711;

/// Makes the directory with whatever is missing above. One that is there stays as its owner made it.
pub fn create(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(MODE).create(path)?;
    // Whatever the umask took away.
    fs::set_permissions(path, Permissions::from_mode(MODE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_may_pass_a_new_one_and_one_that_was_there_stays_as_it_was() {
        let top = tempfile::tempdir().unwrap();
        let (new, old) = (top.path().join("a/b"), top.path().join("old"));
        create(&new).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&new), 0o711);
        fs::create_dir(&old).unwrap();
        fs::set_permissions(&old, Permissions::from_mode(0o750)).unwrap();
        create(&old).unwrap();
        assert_eq!(mode(&old), 0o750);
    }
}
