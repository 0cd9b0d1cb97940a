//! The zip format: stored and deflated files, zip64, and what Unix adds to it (modes, symbolic links, times).
//!
//! What is read is believed only where it is bounded: an archive is read by its directory, entries may not take more
//! bytes together than there are (so none are packed twice), a file must have the size and the sum that it says.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    os::unix::fs::FileExt,
};

use cooper_common::{
    error::{Error, Result},
    limits::request::PATH_BYTES_MAX,
};
use flate2::{Crc, read::DeflateDecoder};
use rustix::fs::{FileType, Timespec};

use super::{Entry, Kind, Source};

mod write;

pub use write::Writer;

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const DESCRIPTOR: u32 = 0x0807_4b50;
const END: u32 = 0x0605_4b50;
const END_64: u32 = 0x0606_4b50;
const LOCATOR_64: u32 = 0x0706_4b50;
const LOCAL_BYTES: u64 = 30;
const CENTRAL_BYTES: usize = 46;
const END_BYTES: usize = 22;
const END_64_BYTES: usize = 56;
const LOCATOR_BYTES: usize = 20;
const STORED: u16 = 0;
const DEFLATED: u16 = 8;
const ENCRYPTED: u16 = 1;
const SIZES_FOLLOW: u16 = 1 << 3;
const UTF8: u16 = 1 << 11;
const EXTRA_64: u16 = 1;
const EXTRA_TIME: u16 = 0x5455;
const UNIX: u8 = 3;
const MACOS: u8 = 19;
/// A file of this size or more gets fields of 64 bits: what deflate adds to it fits beneath 4 GiB.
const LARGE: u64 = 0xf000_0000;
const MAX_32: u64 = u32::MAX as u64;

pub struct Reader {
    file: File,
    directory: BufReader<At>,
    /// Where entries end and the directory begins.
    end: u64,
    /// Bytes before the archive, as a program that unpacks itself has.
    base: u64,
    /// Bytes that entries may still take.
    room: u64,
}

/// A part of a file.
struct At {
    file: File,
    at: u64,
    left: u64,
}

impl Read for At {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(&mut buffer[..want], self.at)?;
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

/// The content of an entry; one that has another size or sum than it says is an error.
pub struct Body {
    from: From,
    left: u64,
    crc: Crc,
    said: u32,
}

enum From {
    Stored(At),
    Deflated(Box<DeflateDecoder<At>>),
}

impl Read for From {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            From::Stored(at) => at.read(buffer),
            From::Deflated(packed) => packed.read(buffer),
        }
    }
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if buffer.is_empty() {
            return Ok(0);
        }
        if want == 0 {
            let bad = |what: &str| Err(io::Error::new(io::ErrorKind::InvalidData, what));
            return match self.from.read(&mut [0])? {
                0 if self.crc.sum() == self.said => Ok(0),
                0 => bad("its content has another sum than the archive says"),
                _ => bad("it is larger than the archive says"),
            };
        }
        match self.from.read(&mut buffer[..want])? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                self.crc.update(&buffer[..n]);
                self.left -= n as u64;
                Ok(n)
            }
        }
    }
}

impl Reader {
    pub fn new(file: File) -> Result<Self> {
        let length = file.metadata().map_err(unreadable)?.len();
        let mut tail = vec![0; length.min((END_BYTES + usize::from(u16::MAX)) as u64) as usize];
        let begin = length - tail.len() as u64;
        file.read_exact_at(&mut tail, begin).map_err(unreadable)?;
        // It ends with a comment of any text, which may look like the mark before it.
        let found = (0..(tail.len() + 1).saturating_sub(END_BYTES)).rev().find(|at| {
            u32_at(&tail, *at) == END && at + END_BYTES + usize::from(u16_at(&tail, at + 20)) == tail.len()
        });
        let found = found.ok_or_else(|| malformed("its end is missing: it was cut, or is none"))?;
        let end = &tail[found..];
        if u16_at(end, 4) != u16_at(end, 6) || !matches!(u16_at(end, 4), 0 | u16::MAX) {
            return Err(malformed("it is one of several parts"));
        }
        let mut at = length - end.len() as u64;
        let (mut size, mut offset) = (u64::from(u32_at(end, 12)), u64::from(u32_at(end, 16)));
        if size == MAX_32 || offset == MAX_32 || u16_at(end, 10) == u16::MAX {
            (at, size, offset) = end_64(&file, at)?.unwrap_or((at, size, offset));
        }
        // The directory ends where its end mark begins.
        let begin = at.checked_sub(size).ok_or_else(|| malformed("its directory is malformed"))?;
        let base = begin.checked_sub(offset).ok_or_else(|| malformed("its directory is malformed"))?;
        let directory = At { file: clone(&file)?, at: begin, left: size };
        Ok(Self { file, directory: BufReader::new(directory), end: begin, base, room: begin - base })
    }

    fn read<const N: usize>(&mut self) -> Result<Option<[u8; N]>> {
        let mut bytes = [0; N];
        match self.directory.read_exact(&mut bytes) {
            Ok(()) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(unreadable(error)),
        }
    }

    fn text(&mut self, length: u16) -> Result<Vec<u8>> {
        let mut text = vec![0; length.into()];
        self.directory.read_exact(&mut text).map_err(|_| malformed("its directory is malformed"))?;
        Ok(text)
    }

    fn body(&mut self, offset: u64, packed: u64, size: u64, method: u16, crc: u32) -> Result<Body> {
        let wrong = || malformed("an entry is not where its directory says");
        let at = self.base.checked_add(offset).ok_or_else(wrong)?;
        let mut local = [0; LOCAL_BYTES as usize];
        self.file.read_exact_at(&mut local, at).map_err(|_| wrong())?;
        if u32_at(&local, 0) != LOCAL {
            return Err(wrong());
        }
        let at = at + LOCAL_BYTES + u64::from(u16_at(&local, 26)) + u64::from(u16_at(&local, 28));
        if at.checked_add(packed).is_none_or(|end| end > self.end) {
            return Err(wrong());
        }
        self.room = packed
            .checked_add(LOCAL_BYTES)
            .and_then(|taken| self.room.checked_sub(taken))
            .ok_or_else(|| malformed("its entries take more than there is: they overlap"))?;
        let at = At { file: clone(&self.file)?, at, left: packed };
        let from = match method {
            STORED if packed == size => From::Stored(at),
            STORED => return Err(malformed("an entry that is not packed has two sizes")),
            DEFLATED => From::Deflated(Box::new(DeflateDecoder::new(at))),
            method => {
                return Err(malformed(&format!("method {method} in it is neither stored nor deflated")));
            }
        };
        Ok(Body { from, left: size, crc: Crc::new(), said: crc })
    }
}

impl Source for Reader {
    type Body<'a> = Body;

    fn next(&mut self) -> Result<Option<Entry<Body>>> {
        let Some(head) = self.read::<CENTRAL_BYTES>()? else { return Ok(None) };
        if u32_at(&head, 0) != CENTRAL {
            return Err(malformed("its directory is malformed"));
        }
        let path = self.text(u16_at(&head, 28))?;
        let extra = self.text(u16_at(&head, 30))?;
        self.text(u16_at(&head, 32))?;
        if u16_at(&head, 8) & ENCRYPTED != 0 {
            return Err(malformed("it is encrypted"));
        }
        let [mut packed, mut size, mut offset] = [20, 24, 42].map(|at| u64::from(u32_at(&head, at)));
        let mut modified = undos(u16_at(&head, 14), u16_at(&head, 12));
        let mut rest = &extra[..];
        while rest.len() >= 4 {
            let (id, length) = (u16_at(rest, 0), usize::from(u16_at(rest, 2)));
            let Some(field) = rest.get(4..4 + length) else { break };
            rest = &rest[4 + length..];
            match id {
                EXTRA_64 => {
                    let mut words = field
                        .chunks_exact(8)
                        .map(|it| it.first_chunk().map_or(0, |it| u64::from_le_bytes(*it)));
                    for value in [&mut size, &mut packed, &mut offset].into_iter().filter(|it| **it == MAX_32)
                    {
                        *value = words.next().ok_or_else(|| malformed("a size in it is malformed"))?;
                    }
                }
                EXTRA_TIME if length >= 5 && field[0] & 1 != 0 => {
                    modified = i64::from(u32_at(field, 1).cast_signed());
                }
                _ => {}
            }
        }
        let (kind, mode) = kind_of(&path, head[5], u32_at(&head, 38));
        let mut body = self.body(offset, packed, size, u16_at(&head, 10), u32_at(&head, 16))?;
        let mut link = Vec::new();
        if kind == Kind::Symlink {
            if size == 0 || size > PATH_BYTES_MAX as u64 {
                return Err(malformed("a link in it leads nowhere"));
            }
            body.read_to_end(&mut link).map_err(|error| malformed(&format!("a link in it: {error}")))?;
        }
        let modified = Timespec { tv_sec: modified, tv_nsec: 0 };
        let size = if kind == Kind::File { size } else { 0 };
        Ok(Some(Entry { path, link, kind, mode, modified, size, body }))
    }
}

/// By the attributes, of which the upper half is a Unix mode where the archive is from there.
fn kind_of(path: &[u8], system: u8, attributes: u32) -> (Kind, u32) {
    let mode = attributes >> 16;
    let unix = matches!(system, UNIX | MACOS) && mode != 0;
    let kind = match FileType::from_raw_mode(mode) {
        FileType::Symlink if unix => Kind::Symlink,
        FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo | FileType::Socket if unix => {
            Kind::Other
        }
        _ if path.ends_with(b"/") => Kind::Directory,
        FileType::Directory if unix => Kind::Directory,
        _ => Kind::File,
    };
    let plain = if kind == Kind::Directory { 0o755 } else { 0o644 };
    (kind, if unix { mode & 0o7777 } else { plain })
}

/// Where the 64-bit end begins, and the directory's size and offset; `None` when there is none.
fn end_64(file: &File, end: u64) -> Result<Option<(u64, u64, u64)>> {
    let mut locator = [0; LOCATOR_BYTES];
    let Some(at) = end.checked_sub(LOCATOR_BYTES as u64) else { return Ok(None) };
    file.read_exact_at(&mut locator, at).map_err(unreadable)?;
    if u32_at(&locator, 0) != LOCATOR_64 {
        return Ok(None);
    }
    // Right before its locator, whatever stands before the archive.
    let mut record = [0; END_64_BYTES];
    let wrong = || malformed("its end is malformed");
    let at = at.checked_sub(END_64_BYTES as u64).ok_or_else(wrong)?;
    file.read_exact_at(&mut record, at).map_err(unreadable)?;
    if u32_at(&record, 0) != END_64 {
        return Err(wrong());
    }
    Ok(Some((at, u64_at(&record, 40), u64_at(&record, 48))))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes[at..].first_chunk().map_or(0, |bytes| u16::from_le_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Days since 1970 of a date; by Howard Hinnant's `days_from_civil`.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let year = year.rem_euclid(400);
    era * 146_097 + year * 365 + year / 4 - year / 100 + of_year - 719_468
}

/// Date and time as the format has them, taken as UTC: from 1980 to 2107, in steps of two seconds.
fn dos(seconds: i64) -> (u16, u16) {
    let seconds = seconds.clamp(days(1980, 1, 1) * 86_400, days(2108, 1, 1) * 86_400 - 1);
    let (day, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let year = (1980..2108).rev().find(|year| days(*year, 1, 1) <= day).unwrap_or(1980);
    let month = (1..=12).rev().find(|month| days(year, *month, 1) <= day).unwrap_or(1);
    let date = (year - 1980) << 9 | month << 5 | (day - days(year, month, 1) + 1);
    let time = ((second / 3600) << 11) | ((second % 3600 / 60) << 5) | (second % 60 / 2);
    (date as u16, time as u16)
}

fn undos(date: u16, time: u16) -> i64 {
    let [date, time] = [date, time].map(i64::from);
    let day = days(1980 + (date >> 9), (date >> 5 & 15).clamp(1, 12), (date & 31).max(1));
    day * 86_400 + (time >> 11) * 3600 + (time >> 5 & 63) * 60 + (time & 31) * 2
}

fn clone(file: &File) -> Result<File> {
    file.try_clone().map_err(unreadable)
}

fn malformed(what: &str) -> Error {
    Error::invalid(format!("this is no zip that can be read: {what}"))
}

fn unreadable(error: io::Error) -> Error {
    Error::internal(format!("the archive cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, date) in
            [(315_532_800, (0x21, 0)), (951_827_696, (0x285d, 0x645c)), (4_354_819_199, (0xff9f, 0xbf7d))]
        {
            assert_eq!(dos(seconds), date, "{seconds}");
            assert_eq!(undos(date.0, date.1), seconds & !1, "{seconds}");
        }
        assert_eq!((dos(0), dos(i64::MAX)), (dos(315_532_800), dos(4_354_819_199)));
        assert_eq!(undos(0, 0), 315_532_800);
    }
}
