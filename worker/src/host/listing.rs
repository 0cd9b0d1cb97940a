//! Lists one directory of a session. The host does it: the link, as another uid, may not stat in there.

use std::{collections::BinaryHeap, ffi::CString, os::fd::OwnedFd};

use cooper_common::{
    error::{Code, Error, Result},
    limits::request::{FILES_LISTED_BYTES_MAX, FILES_LISTED_MAX},
};
use cooper_proto::v1::{FileStat, ListFilesResponse};
use prost::Message as _;
use rustix::fs::{AtFlags, Dir, FileType, statat};

/// Sorted by name; the first of them, up to [`FILES_LISTED_MAX`] and to [`FILES_LISTED_BYTES_MAX`] in all, however many
/// there are and whatever they are called. Links are shown, not followed.
pub fn list(directory: OwnedFd, path: &str) -> Result<ListFilesResponse> {
    list_first(directory, path, FILES_LISTED_MAX, FILES_LISTED_BYTES_MAX)
}

fn list_first(directory: OwnedFd, path: &str, max: usize, bytes_max: usize) -> Result<ListFilesResponse> {
    let failed = |e: rustix::io::Errno| match e {
        rustix::io::Errno::NOTDIR => Error::invalid(format!("{path:?} is not a directory")),
        _ => Error::new(Code::Internal, format!("cannot list {path:?}: {e}")),
    };
    // The smallest names win a place; the largest of them is on top and leaves first.
    let mut names = BinaryHeap::new();
    let mut truncated = false;
    for entry in Dir::read_from(&directory).map_err(failed)? {
        let name: CString = entry.map_err(failed)?.file_name().to_owned();
        if name.as_bytes() == b"." || name.as_bytes() == b".." {
            continue;
        }
        names.push(name);
        if names.len() > max {
            names.pop();
            truncated = true;
        }
    }
    let prefix = path.trim_start_matches("./").trim_matches('/');
    let prefix = if prefix.is_empty() || prefix == "." { String::new() } else { format!("{prefix}/") };
    let mut files = Vec::with_capacity(names.len());
    let mut bytes = 0;
    for name in names.into_sorted_vec() {
        // Gone in the meantime: then it is not there.
        let Ok(stat) = statat(&directory, &name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => "file",
            FileType::Directory => "dir",
            FileType::Symlink => "symlink",
            _ => "other",
        };
        let file = FileStat {
            path: format!("{prefix}{}", name.to_string_lossy()),
            size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
            mode: stat.st_mode & 0o7777,
            modified_at_ms: stat.st_mtime * 1000 + stat.st_mtime_nsec as i64 / 1_000_000,
            kind: kind.to_owned(),
            ..FileStat::default()
        };
        // A tag and a length before each; deep directories and names that are not UTF-8 make long paths.
        bytes += file.encoded_len() + 8;
        if bytes > bytes_max {
            truncated = true;
            break;
        }
        files.push(file);
    }
    Ok(ListFilesResponse { files, truncated, ..ListFilesResponse::default() })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn listed(dir: &std::path::Path, path: &str, max: usize) -> (Vec<(String, String)>, bool) {
        let directory = fs::File::open(dir).unwrap().into();
        let listing = list_first(directory, path, max, 1 << 20).unwrap();
        (listing.files.into_iter().map(|file| (file.path, file.kind)).collect(), listing.truncated)
    }

    #[test]
    fn a_listing_is_sorted_shows_links_as_links_and_says_when_it_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["c", "a", "d"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        fs::create_dir(dir.path().join("b")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).unwrap();
        let all = ["a file", "b dir", "c file", "d file", "link symlink"];
        let all = all.map(|line| line.split_once(' ').unwrap()).map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(listed(dir.path(), "", 5), (all.to_vec(), false));
        assert_eq!(listed(dir.path(), ".", 2), (all[..2].to_vec(), true));
        assert_eq!(listed(dir.path(), "./sub/", 1).0, vec![("sub/a".to_owned(), "file".to_owned())]);
    }

    #[test]
    fn a_listing_fits_into_a_message_however_long_its_names_are() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..10 {
            fs::write(dir.path().join(format!("{n}{}", "x".repeat(200))), "").unwrap();
        }
        let directory = fs::File::open(dir.path()).unwrap().into();
        let listing = list_first(directory, &"deep/".repeat(20), 10, 1000).unwrap();
        assert!(listing.truncated && !listing.files.is_empty());
        assert!(listing.encoded_len() <= 1000, "{} bytes", listing.encoded_len());
    }

    #[test]
    fn a_file_is_no_directory() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(list(file.into(), "x").unwrap_err().code, Code::InvalidArgument);
    }
}
