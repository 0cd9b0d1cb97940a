//! Changes attributes of files in a session's place, where it has the worker's own uid (see `confine::attributes`).
//!
//! What the call names is read once and resolved from where the caller stands; what that gives is only a hint. The change
//! is made to a file that the kernel found beneath one of the session's own directories, through a descriptor of the host's,
//! so nothing that the session does to its memory, descriptors or directories meanwhile leads elsewhere.
#![allow(unsafe_code)]

use std::{
    ffi::{CString, OsStr},
    fs::File,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            ffi::{OsStrExt, OsStringExt},
            fs::FileExt,
        },
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{self, FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};

use super::beneath;
use crate::confine::{
    attributes::{CALLS, Named, What},
    notify::{self, Call},
};

const PATH_BYTES_MAX: usize = 4096;
/// As the kernel has them.
const NAME_BYTES_MAX: usize = 255;
const VALUE_BYTES_MAX: u64 = 64 << 10;
/// A name that moves while it is looked for is looked for this often.
const LOOKS_MAX: u32 = 8;

const PLACE: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// Makes the change that `call` asks for, if it is to a file beneath one of `own`. None: it is not such a call.
pub fn change(listener: &OwnedFd, call: &Call, own: &[PathBuf]) -> Option<Result<(), Errno>> {
    let (_, named, what) = CALLS.iter().find(|(number, ..)| *number == call.number)?;
    Some(Asked { listener, call }.perform(*named, *what, own))
}

struct Asked<'a> {
    listener: &'a OwnedFd,
    call: &'a Call,
}

impl Asked<'_> {
    fn perform(&self, named: Named, what: What, own: &[PathBuf]) -> Result<(), Errno> {
        let change = self.read_change(what)?;
        for _ in 0..LOOKS_MAX {
            let found = self.find(named)?;
            // Up to here its thread waited, so all of this was said by whoever made the call.
            if !notify::is_waiting(self.listener, self.call.id) {
                return Err(Errno::INTR);
            }
            if let Some(file) = owned(found, own)? {
                return change.apply(&file);
            }
        }
        Err(Errno::PERM)
    }

    fn argument(&self, number: u8) -> u64 {
        self.call.arguments[usize::from(number)]
    }

    /// What the caller has at an address: up to `max` bytes, fewer where its memory ends.
    fn read(&self, address: u64, max: usize) -> Result<Vec<u8>, Errno> {
        let memory = File::open(self.of_caller("mem")).map_err(denied)?;
        let mut bytes = vec![0; max];
        let length = memory.read_at(&mut bytes, address).map_err(|_| Errno::FAULT)?;
        bytes.truncate(length);
        Ok(bytes)
    }

    fn read_exactly<const N: usize>(&self, address: u64) -> Result<[u8; N], Errno> {
        self.read(address, N)?.try_into().map_err(|_| Errno::FAULT)
    }

    fn read_text(&self, address: u64, max: usize, too_long: Errno) -> Result<CString, Errno> {
        let mut bytes = self.read(address, max + 1)?;
        let whole = bytes.len() == max + 1;
        let end = bytes.iter().position(|byte| *byte == 0);
        bytes.truncate(end.ok_or(if whole { too_long } else { Errno::FAULT })?);
        CString::new(bytes).map_err(|_| Errno::INVAL)
    }

    fn of_caller(&self, what: &str) -> String {
        format!("/proc/{}/{what}", self.call.pid)
    }

    fn read_change(&self, what: What) -> Result<Change, Errno> {
        // Of struct timespec, timeval and utimbuf: 64 bits each.
        let word = |bytes: &[u8]| i64::from_ne_bytes(bytes.try_into().unwrap_or_default());
        let time = |seconds, nanoseconds| libc::timespec { tv_sec: seconds, tv_nsec: nanoseconds };
        let now = || Change::Times([time(0, libc::UTIME_NOW), time(0, libc::UTIME_NOW)]);
        Ok(match what {
            What::Mode(at) => Change::Mode(self.argument(at) as u32 & 0o7777),
            What::Owner(at) => Change::Owner(self.argument(at) as u32, self.argument(at + 1) as u32),
            What::Times(at) | What::MicroTimes(at) | What::Seconds(at) if self.argument(at) == 0 => now(),
            What::Times(at) => {
                let read = self.read_exactly::<32>(self.argument(at))?;
                let words: Vec<i64> = read.chunks(8).map(word).collect();
                Change::Times([time(words[0], words[1]), time(words[2], words[3])])
            }
            What::MicroTimes(at) => {
                let read = self.read_exactly::<32>(self.argument(at))?;
                let words: Vec<i64> = read.chunks(8).map(word).collect();
                if [words[1], words[3]].iter().any(|micros| !(0..1_000_000).contains(micros)) {
                    return Err(Errno::INVAL);
                }
                Change::Times([time(words[0], words[1] * 1000), time(words[2], words[3] * 1000)])
            }
            What::Seconds(at) => {
                let read = self.read_exactly::<16>(self.argument(at))?;
                Change::Times([time(word(&read[..8]), 0), time(word(&read[8..]), 0)])
            }
            What::Set(at) => {
                let name = self.read_text(self.argument(at), NAME_BYTES_MAX, Errno::RANGE)?;
                let length = self.argument(at + 2);
                if length > VALUE_BYTES_MAX {
                    return Err(Errno::TOOBIG);
                }
                let value =
                    if length == 0 { Vec::new() } else { self.read(self.argument(at + 1), length as usize)? };
                if value.len() as u64 != length {
                    return Err(Errno::FAULT);
                }
                Change::Set { name, value, flags: self.argument(at + 3) as i32 }
            }
            What::Remove(at) => {
                Change::Remove(self.read_text(self.argument(at), NAME_BYTES_MAX, Errno::RANGE)?)
            }
        })
    }

    /// What the call names, as its caller would find it.
    fn find(&self, named: Named) -> Result<OwnedFd, Errno> {
        let (directory, address, follow, may_be_empty) = match named {
            Named::Descriptor => return self.descriptor(self.argument(0) as i32),
            Named::Path(follow) => (libc::AT_FDCWD, self.argument(0), follow, false),
            Named::At(flags) => {
                let flags = flags.map_or(0, |at| self.argument(at) as i32);
                if flags & !(libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH) != 0 {
                    return Err(Errno::INVAL);
                }
                let directory = self.argument(0) as i32;
                // utimensat and futimesat take none for the descriptor itself.
                if self.argument(1) == 0 && directory != libc::AT_FDCWD {
                    return self.descriptor(directory);
                }
                let follow = flags & libc::AT_SYMLINK_NOFOLLOW == 0;
                (directory, self.argument(1), follow, flags & libc::AT_EMPTY_PATH != 0)
            }
        };
        let path = self.read_text(address, PATH_BYTES_MAX, Errno::NAMETOOLONG)?;
        let path = path.as_bytes();
        if path.is_empty() {
            return if may_be_empty { self.start(directory) } else { Err(Errno::NOENT) };
        }
        if let (Some(number), true) = (of_descriptor(path), follow) {
            return self.descriptor(number);
        }
        let (from, path, within) = match path.iter().position(|byte| *byte != b'/') {
            Some(0) => (self.start(directory)?, path, ResolveFlags::empty()),
            Some(name) => (self.open("root")?, &path[name..], ResolveFlags::IN_ROOT),
            None => (self.open("root")?, &b"."[..], ResolveFlags::IN_ROOT),
        };
        let flags = if follow { PLACE } else { PLACE | OFlags::NOFOLLOW };
        // Links of /proc would lead to what the host has open, not the caller.
        let resolve = within | ResolveFlags::NO_MAGICLINKS;
        fs::openat2(from, Path::new(OsStr::from_bytes(path)), flags, Mode::empty(), resolve)
    }

    /// Where a relative path begins.
    fn start(&self, directory: i32) -> Result<OwnedFd, Errno> {
        if directory == libc::AT_FDCWD { self.open("cwd") } else { self.descriptor(directory) }
    }

    fn descriptor(&self, number: i32) -> Result<OwnedFd, Errno> {
        match self.open(&format!("fd/{number}")) {
            Err(Errno::NOENT) => Err(Errno::BADF),
            other => other,
        }
    }

    fn open(&self, what: &str) -> Result<OwnedFd, Errno> {
        fs::open(self.of_caller(what), PLACE, Mode::empty()).map_err(|error| match error {
            Errno::ACCESS => Errno::PERM,
            other => other,
        })
    }
}

/// The number in a name for one of the caller's own descriptors.
fn of_descriptor(path: &[u8]) -> Option<i32> {
    let names = ["/proc/self/fd/", "/proc/thread-self/fd/", "/dev/fd/"];
    let number = names.iter().find_map(|name| path.strip_prefix(name.as_bytes()))?;
    std::str::from_utf8(number).ok()?.parse().ok().filter(|number| *number >= 0)
}

fn denied(error: io::Error) -> Errno {
    match error.kind() {
        io::ErrorKind::PermissionDenied => Errno::PERM,
        _ => Errno::SRCH,
    }
}

/// The same file, found anew beneath one of `own`. None: it has another name by now.
fn owned(file: OwnedFd, own: &[PathBuf]) -> Result<Option<OwnedFd>, Errno> {
    let stat = fs::fstat(&file)?;
    let name = name_of(&file)?;
    let same = |other: &OwnedFd| {
        fs::fstat(other).is_ok_and(|it| (it.st_dev, it.st_ino) == (stat.st_dev, stat.st_ino))
    };
    for place in own {
        let Ok(root) = fs::open(place, beneath::DIRECTORY, Mode::empty()) else { continue };
        // Whoever has it open made it or removed it: a file of somebody else's that has no name cannot be opened.
        if stat.st_nlink == 0
            && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            && fs::fstat(&root)?.st_dev == stat.st_dev
        {
            return Ok(Some(file));
        }
        let Ok(rest) = Path::new(&name).strip_prefix(Path::new(&name_of(&root)?)) else { continue };
        if rest.as_os_str().is_empty() {
            return Ok(Some(root));
        }
        return match beneath::open_plain(&root, rest.as_os_str().as_bytes(), PLACE) {
            Ok(again) if same(&again) => Ok(Some(again)),
            Ok(_) | Err(Errno::NOENT | Errno::AGAIN | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(error) => Err(error),
        };
    }
    Err(Errno::PERM)
}

fn name_of(file: &OwnedFd) -> Result<std::ffi::OsString, Errno> {
    let name = fs::readlink(path_of(file), Vec::new())?;
    Ok(std::ffi::OsString::from_vec(name.into_bytes()))
}

fn path_of(file: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

enum Change {
    Mode(u32),
    Owner(u32, u32),
    /// Of access and of change.
    Times([libc::timespec; 2]),
    Set {
        name: CString,
        value: Vec<u8>,
        flags: i32,
    },
    Remove(CString),
}

impl Change {
    /// To what is open, which may be no more than its place.
    fn apply(&self, file: &OwnedFd) -> Result<(), Errno> {
        let path = CString::new(path_of(file)).map_err(|_| Errno::INVAL)?;
        let (path, here) = (path.as_ptr(), libc::AT_FDCWD);
        // SAFETY: every pointer is to memory that outlives the call, of the length that is named or ended by NUL. The path
        // names what is open; a symbolic link there is not followed further.
        let done = unsafe {
            match self {
                Change::Mode(mode) => libc::fchmodat(here, path, *mode, 0),
                Change::Owner(uid, gid) => libc::fchownat(here, path, *uid, *gid, 0),
                Change::Times(times) => libc::utimensat(here, path, times.as_ptr(), 0),
                Change::Set { name, value, flags } => {
                    libc::setxattr(path, name.as_ptr(), value.as_ptr().cast(), value.len(), *flags)
                }
                Change::Remove(name) => libc::removexattr(path, name.as_ptr()),
            }
        };
        if done == 0 {
            return Ok(());
        }
        Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::PERM))
    }
}
