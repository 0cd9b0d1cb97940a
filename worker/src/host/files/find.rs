//! What is there: list, stat, search. Bounded in what they hold and answer, and in time: what they have by then is the
//! answer, and says that there is more.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::Path,
};

use cooper_common::{
    clock,
    error::{Code, Error, Result},
    limits::{
        files::{
            GLOB_BYTES_MAX, MATCH_TEXT_BYTES_MAX, MATCHES, MATCHES_MAX, PATTERN_BYTES_MAX,
            SEARCHED_LINE_BYTES_MAX, WORK_SOFT_MS,
        },
        request::{FILES_LISTED_BYTES_MAX, FILES_LISTED_MAX},
    },
    path_text,
};
use cooper_proto::v1::{
    FileStat, ListFilesRequest, ListFilesResponse, SearchFilesRequest, SearchFilesResponse, SearchMatch,
    StatFileRequest,
};
use globset::{GlobBuilder, GlobMatcher};
use prost::Message as _;
use regex::bytes::{Regex, RegexBuilder};
use rustix::{
    fs::{self, FileType, Mode, OFlags},
    io::Errno,
};
use sha2::{Digest, Sha256};

use super::walk::{Entry, Walk};
use crate::host::beneath::{self, LISTABLE, READABLE, checked, failed, failed_io};

/// A file with a NUL byte in so much of its beginning is binary.
const LOOKED_AT: usize = 8 << 10;

/// Which paths are wanted.
struct Wanted(Option<(GlobMatcher, bool)>);

impl Wanted {
    fn new(glob: &str) -> Result<Self> {
        if glob.is_empty() {
            return Ok(Self(None));
        }
        if glob.len() > GLOB_BYTES_MAX {
            return Err(Error::new(Code::TooLarge, format!("glob has more than {GLOB_BYTES_MAX} bytes")));
        }
        let built = GlobBuilder::new(glob).literal_separator(true).build();
        let built = built.map_err(|e| Error::invalid(format!("glob {glob:?}: {}", e.kind())))?;
        Ok(Self(Some((built.compile_matcher(), glob.contains('/')))))
    }

    fn takes(&self, entry: &Entry) -> bool {
        self.0.as_ref().is_none_or(|(glob, whole)| {
            let text = if *whole { &entry.path } else { &entry.name };
            glob.is_match(Path::new(OsStr::from_bytes(text)))
        })
    }
}

/// How paths beneath the one asked for begin.
fn prefix(path: &str) -> String {
    let path = path.trim_start_matches("./").trim_matches('/');
    if path.is_empty() || path == "." { String::new() } else { format!("{path}/") }
}

fn stat_of(prefix: &str, entry: &Entry, target: Option<String>) -> FileStat {
    let (path, not_utf8) = path_text::encode(&entry.path);
    FileStat {
        not_utf8,
        link_target: target.unwrap_or_default(),
        ..beneath::describe(&format!("{prefix}{path}"), &entry.stat)
    }
}

pub fn list(root: &OwnedFd, request: &ListFilesRequest) -> Result<ListFilesResponse> {
    let path = &request.path;
    let limit = match request.limit as usize {
        0 => FILES_LISTED_MAX,
        limit => limit.min(FILES_LISTED_MAX),
    };
    let wanted = Wanted::new(&request.glob)?;
    let directory =
        beneath::open(root, &checked(path)?, LISTABLE, Mode::empty()).map_err(|e| no_directory(path, e))?;
    let after = path_text::decode(&request.cursor);
    let walk = Walk::new(directory, request.recursive, request.hidden, &after);
    let mut walk = walk.map_err(|e| failed(path, e))?;
    let (prefix, until) = (prefix(path), clock::mono_ms() + WORK_SOFT_MS);
    let mut answer = ListFilesResponse::default();
    let (mut bytes, mut last) = (0, Vec::new());
    while let Some(entry) = walk.step() {
        if answer.files.len() == limit || bytes > FILES_LISTED_BYTES_MAX || clock::mono_ms() > until {
            answer.truncated = true;
            answer.next_cursor = path_text::encode(&last).0;
            return Ok(answer);
        }
        if wanted.takes(&entry) {
            let target = (entry.kind() == FileType::Symlink).then(|| link_target(&walk, &entry)).flatten();
            let stat = stat_of(&prefix, &entry, target);
            // A tag and a length before each; deep directories and names that are not UTF-8 make long paths.
            bytes += stat.encoded_len() + 8;
            answer.files.push(stat);
        }
        last = entry.path;
    }
    answer.truncated = walk.too_deep || walk.skipped > 0;
    Ok(answer)
}

fn no_directory(path: &str, error: Errno) -> Error {
    match error {
        Errno::NOTDIR => Error::invalid(format!("{path:?} is not a directory")),
        error => failed(path, error),
    }
}

fn link_target(walk: &Walk, entry: &Entry) -> Option<String> {
    let target = fs::readlinkat(walk.directory(), OsStr::from_bytes(&entry.name), Vec::new()).ok()?;
    Some(path_text::encode(target.as_bytes()).0)
}

pub fn stat(root: &OwnedFd, request: &StatFileRequest) -> Result<FileStat> {
    let path = &request.path;
    let bytes = checked(path)?;
    let mut flags = OFlags::PATH | OFlags::CLOEXEC;
    if !request.follow {
        flags |= OFlags::NOFOLLOW;
    }
    let found = beneath::open(root, &bytes, flags, Mode::empty()).map_err(|e| failed(path, e))?;
    let stat = fs::fstat(&found).map_err(|e| failed(path, e))?;
    let mut described = beneath::describe(path, &stat);
    described.not_utf8 = path_text::encode(&bytes).1;
    match beneath::kind(&stat) {
        FileType::Symlink => {
            let target = fs::readlinkat(&found, "", Vec::new()).map_err(|e| failed(path, e))?;
            described.link_target = path_text::encode(target.as_bytes()).0;
        }
        FileType::RegularFile if request.sha256 => {
            let file = open_regular(root, path, &bytes)?;
            described = beneath::describe(path, &fs::fstat(&file).map_err(|e| failed(path, e))?);
            described.sha256 = sha256(&mut File::from(file)).map_err(|e| failed_io(path, &e))?;
        }
        _ => {}
    }
    Ok(described)
}

pub fn open_regular(root: &OwnedFd, path: &str, bytes: &[u8]) -> Result<OwnedFd> {
    let file = beneath::open(root, bytes, READABLE, Mode::empty()).map_err(|e| failed(path, e))?;
    let stat = fs::fstat(&file).map_err(|e| failed(path, e))?;
    match beneath::kind(&stat) {
        FileType::RegularFile => Ok(file),
        _ => Err(Error::new(Code::NotAFile, format!("{path:?} is not a regular file"))),
    }
}

pub fn sha256(file: &mut File) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

struct Search {
    pattern: Regex,
    limit: usize,
    bytes: usize,
    until: u64,
    answer: SearchFilesResponse,
}

pub fn search(root: &OwnedFd, request: &SearchFilesRequest) -> Result<SearchFilesResponse> {
    if request.pattern.is_empty() || request.pattern.len() > PATTERN_BYTES_MAX {
        return Err(Error::invalid(format!("pattern has 1 to {PATTERN_BYTES_MAX} bytes")));
    }
    if request.limit > MATCHES_MAX {
        return Err(Error::invalid(format!("limit is {}; at most {MATCHES_MAX} is allowed", request.limit)));
    }
    let text = if request.regex { request.pattern.clone() } else { regex::escape(&request.pattern) };
    let pattern = RegexBuilder::new(&text).case_insensitive(request.ignore_case).size_limit(8 << 20).build();
    let pattern = pattern.map_err(|e| Error::invalid(format!("pattern {:?}: {e}", request.pattern)))?;
    let wanted = Wanted::new(&request.glob)?;
    let mut search = Search {
        pattern,
        limit: if request.limit == 0 { MATCHES } else { request.limit } as usize,
        bytes: 0,
        until: clock::mono_ms() + WORK_SOFT_MS,
        answer: SearchFilesResponse::default(),
    };
    let path = &request.path;
    let bytes = checked(path)?;
    match beneath::open(root, &bytes, LISTABLE, Mode::empty()) {
        Ok(directory) => {
            let walk = Walk::new(directory, true, request.hidden, b"");
            let mut walk = walk.map_err(|e| failed(path, e))?;
            let prefix = prefix(path);
            while !search.is_full()
                && let Some(entry) = walk.step()
            {
                if entry.kind() != FileType::RegularFile || !wanted.takes(&entry) {
                    continue;
                }
                match beneath::open_plain(walk.directory(), &entry.name, READABLE) {
                    Ok(file) => {
                        let (name, _) = path_text::encode(&entry.path);
                        search.file(&format!("{prefix}{name}"), file);
                    }
                    Err(_) => search.answer.files_skipped += 1,
                }
            }
            search.answer.files_skipped += walk.skipped;
            search.answer.truncated |= walk.too_deep;
        }
        Err(Errno::NOTDIR) => {
            let file = open_regular(root, path, &bytes)?;
            search.file(path, file);
        }
        Err(error) => return Err(failed(path, error)),
    }
    search.answer.truncated |= search.is_full();
    Ok(search.answer)
}

impl Search {
    fn is_full(&self) -> bool {
        self.answer.matches.len() >= self.limit
            || self.bytes > FILES_LISTED_BYTES_MAX
            || clock::mono_ms() > self.until
    }

    fn file(&mut self, path: &str, file: OwnedFd) {
        // What the name led to may have changed since it was looked at.
        if !fs::fstat(&file).is_ok_and(|stat| beneath::kind(&stat) == FileType::RegularFile) {
            self.answer.files_skipped += 1;
            return;
        }
        let mut reader = BufReader::with_capacity(256 << 10, File::from(file));
        let binary = match reader.fill_buf() {
            Ok(start) => start[..start.len().min(LOOKED_AT)].contains(&0),
            Err(_) => true,
        };
        if binary {
            self.answer.files_skipped += 1;
            return;
        }
        self.answer.files_searched += 1;
        let (mut number, mut line) = (0, Vec::new());
        while !self.is_full() {
            line.clear();
            let read = (&mut reader).take(SEARCHED_LINE_BYTES_MAX as u64).read_until(b'\n', &mut line);
            if !matches!(read, Ok(1..)) {
                return;
            }
            number += 1;
            let whole = line.last() == Some(&b'\n');
            let text = line.strip_suffix(b"\n").unwrap_or(&line);
            let text = text.strip_suffix(b"\r").unwrap_or(text);
            if let Some(found) = self.pattern.find(text) {
                let shown = around(text, found.start());
                self.bytes += path.len() + shown.len() + 32;
                self.answer.matches.push(SearchMatch {
                    path: path.to_owned(),
                    line: number,
                    column: u32::try_from(found.start() + 1).unwrap_or(u32::MAX),
                    text: shown,
                });
            }
            if !whole && line.len() == SEARCHED_LINE_BYTES_MAX {
                // The next piece is of the same line.
                number -= 1;
            }
        }
    }
}

/// A part of a line that fits, with the match near its beginning.
fn around(line: &[u8], at: usize) -> String {
    if line.len() <= MATCH_TEXT_BYTES_MAX {
        return String::from_utf8_lossy(line).into_owned();
    }
    let start = at.saturating_sub(MATCH_TEXT_BYTES_MAX / 4);
    let end = line.len().min(start + MATCH_TEXT_BYTES_MAX);
    String::from_utf8_lossy(&line[start..end]).into_owned()
}
