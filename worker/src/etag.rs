//! What tells one state of a file from the next without reading it.

use std::{fs::Metadata, os::unix::fs::MetadataExt};

/// Another file, another size or another time of change gives another etag. Times are the kernel's, which tick every few
/// milliseconds: of two writes of the same length within one tick only the first is sure to be seen.
pub fn of(file: &Metadata) -> String {
    from(
        file.ino(),
        file.size(),
        (file.mtime(), file.mtime_nsec() as u64),
        (file.ctime(), file.ctime_nsec() as u64),
    )
}

pub fn of_stat(stat: &rustix::fs::Stat) -> String {
    from(
        stat.st_ino,
        u64::try_from(stat.st_size).unwrap_or(0),
        (stat.st_mtime, stat.st_mtime_nsec),
        (stat.st_ctime, stat.st_ctime_nsec),
    )
}

fn from(inode: u64, size: u64, modified: (i64, u64), changed: (i64, u64)) -> String {
    let ((modified, modified_ns), (changed, changed_ns)) = (modified, changed);
    format!("{inode:x}-{size:x}-{modified:x}.{modified_ns:x}-{changed:x}.{changed_ns:x}")
}

#[cfg(test)]
mod tests {
    #[test]
    fn both_ways_to_look_at_a_file_give_the_same_etag() {
        let file = tempfile::tempfile().unwrap();
        let stat = rustix::fs::fstat(&file).unwrap();
        assert_eq!(super::of(&file.metadata().unwrap()), super::of_stat(&stat));
    }
}
