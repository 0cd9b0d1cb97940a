//! Zips that are written: one entry after the other, so nothing has to be sought in.

use std::io::{self, Read, Write};

use flate2::{Compression, Crc, write::DeflateEncoder};
use rustix::fs::{FileType, Stat};

use super::{
    CENTRAL, DEFLATED, DESCRIPTOR, END, END_64, END_64_BYTES, EXTRA_64, EXTRA_TIME, LARGE, LOCAL, LOCATOR_64,
    MAX_32, SIZES_FOLLOW, STORED, UNIX, UTF8, dos,
};
use crate::host::archive::{LEVEL, PIECE_BYTES, Sink, exactly};

struct Counted<W> {
    out: W,
    at: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.at += written as u64;
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

pub struct Writer<W> {
    out: Counted<W>,
    /// Written last.
    directory: Vec<u8>,
    entries: u64,
    piece: Vec<u8>,
}

/// What an entry's two headers say.
struct Head<'a> {
    path: &'a [u8],
    mode: u32,
    modified: i64,
    method: u16,
    flags: u16,
    crc: u32,
    packed: u64,
    size: u64,
}

impl<W: Write> Writer<W> {
    pub fn new(out: W) -> Self {
        let piece = vec![0; PIECE_BYTES];
        Self { out: Counted { out, at: 0 }, directory: Vec::new(), entries: 0, piece }
    }

    #[cfg(test)]
    pub fn into_inner(self) -> W {
        self.out.out
    }

    /// An entry that is in memory.
    fn small(&mut self, path: &[u8], content: &[u8], stat: &Stat) -> io::Result<()> {
        let mut crc = Crc::new();
        crc.update(content);
        let size = content.len() as u64;
        let head = Head { crc: crc.sum(), packed: size, size, ..Head::of(path, stat) };
        let at = self.out.at;
        self.local(&head, false)?;
        self.out.write_all(content)?;
        self.list(&head, at);
        Ok(())
    }

    fn local(&mut self, head: &Head<'_>, large: bool) -> io::Result<()> {
        let mut extra = head.time();
        let mut sizes = [head.packed, head.size].map(|size| size as u32);
        if large {
            sizes = [u32::MAX; 2];
            extra.extend(fields_64(&[0, 0]));
        }
        let mut bytes = Vec::with_capacity(128);
        bytes.extend(LOCAL.to_le_bytes());
        bytes.extend((if large { 45u16 } else { 20 }).to_le_bytes());
        bytes.extend(head.common(sizes, &extra));
        bytes.extend(head.path);
        bytes.extend(extra);
        self.out.write_all(&bytes)
    }

    /// Notes an entry for the directory.
    fn list(&mut self, head: &Head<'_>, at: u64) {
        let mut extra = head.time();
        let large = [head.size, head.packed, at].iter().any(|size| *size >= MAX_32);
        let (mut sizes, mut offset) = ([head.packed, head.size].map(|size| size as u32), at as u32);
        if large {
            (sizes, offset) = ([u32::MAX; 2], u32::MAX);
            extra.extend(fields_64(&[head.size, head.packed, at]));
        }
        let out = &mut self.directory;
        let version = if large { 45u16 } else { 20 };
        out.extend(CENTRAL.to_le_bytes());
        out.extend((u16::from(UNIX) << 8 | version).to_le_bytes());
        out.extend(version.to_le_bytes());
        out.extend(head.common(sizes, &extra));
        // No comment, the first of one disk, no text.
        out.extend([0; 6]);
        let is_directory = FileType::from_raw_mode(head.mode) == FileType::Directory;
        out.extend((head.mode << 16 | if is_directory { 0x10 } else { 0 }).to_le_bytes());
        out.extend(offset.to_le_bytes());
        out.extend(head.path);
        out.extend(extra);
        self.entries += 1;
    }
}

impl<W: Write> Sink for Writer<W> {
    /// The format has none: what has several names is there as often.
    const HARD_LINKS: bool = false;

    fn directory(&mut self, path: &[u8], stat: &Stat) -> io::Result<()> {
        self.small(&[path, b"/"].concat(), b"", stat)
    }

    fn symlink(&mut self, path: &[u8], target: &[u8], stat: &Stat) -> io::Result<()> {
        self.small(path, target, stat)
    }

    fn hard_link(&mut self, _: &[u8], _: &[u8], _: &Stat) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn file(&mut self, path: &[u8], stat: &Stat, size: u64, body: &mut dyn Read) -> io::Result<()> {
        if size == 0 {
            return self.small(path, b"", stat);
        }
        let at = self.out.at;
        let mut head = Head { method: DEFLATED, size, ..Head::of(path, stat) };
        head.flags |= SIZES_FOLLOW;
        let large = size >= LARGE;
        self.local(&Head { size: 0, ..head }, large)?;
        let begin = self.out.at;
        let mut crc = Crc::new();
        let mut packer = DeflateEncoder::new(&mut self.out, Compression::new(LEVEL));
        exactly(size, body, &mut self.piece, |piece| {
            crc.update(piece);
            packer.write_all(piece)
        })?;
        packer.finish()?;
        (head.crc, head.packed) = (crc.sum(), self.out.at - begin);
        let mut after = Vec::with_capacity(24);
        after.extend(DESCRIPTOR.to_le_bytes());
        after.extend(head.crc.to_le_bytes());
        for size in [head.packed, head.size] {
            match large {
                true => after.extend(size.to_le_bytes()),
                false => after.extend((size as u32).to_le_bytes()),
            }
        }
        self.out.write_all(&after)?;
        self.list(&head, at);
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        let (at, size, entries) = (self.out.at, self.directory.len() as u64, self.entries);
        self.out.write_all(&std::mem::take(&mut self.directory))?;
        let mut end = Vec::with_capacity(100);
        if entries >= u64::from(u16::MAX) || size >= MAX_32 || at >= MAX_32 {
            end.extend(END_64.to_le_bytes());
            end.extend((END_64_BYTES as u64 - 12).to_le_bytes());
            end.extend([45, UNIX, 45, 0]);
            end.extend([0; 8]);
            [entries, entries, size, at].iter().for_each(|it| end.extend(it.to_le_bytes()));
            end.extend(LOCATOR_64.to_le_bytes());
            end.extend([0; 4]);
            end.extend((at + size).to_le_bytes());
            end.extend(1u32.to_le_bytes());
        }
        end.extend(END.to_le_bytes());
        end.extend([0; 4]);
        let few = (entries.min(u16::MAX.into()) as u16).to_le_bytes();
        end.extend([few, few].concat());
        [size, at].iter().for_each(|it| end.extend(((*it).min(MAX_32) as u32).to_le_bytes()));
        end.extend([0; 2]);
        self.out.write_all(&end)?;
        self.out.flush()
    }
}

impl<'a> Head<'a> {
    fn of(path: &'a [u8], stat: &Stat) -> Self {
        let flags = if std::str::from_utf8(path).is_ok() { UTF8 } else { 0 };
        let mode = stat.st_mode & 0o170_777;
        Self { path, mode, modified: stat.st_mtime, method: STORED, flags, crc: 0, packed: 0, size: 0 }
    }

    /// The part that both headers have.
    fn common(&self, sizes: [u32; 2], extra: &[u8]) -> Vec<u8> {
        let (date, time) = dos(self.modified);
        let mut bytes = Vec::with_capacity(24);
        [self.flags, self.method, time, date].iter().for_each(|it| bytes.extend(it.to_le_bytes()));
        [self.crc, sizes[0], sizes[1]].iter().for_each(|it| bytes.extend(it.to_le_bytes()));
        [self.path.len() as u16, extra.len() as u16].iter().for_each(|it| bytes.extend(it.to_le_bytes()));
        bytes
    }

    /// The time in seconds of UTC, which the format's own is not; nothing beyond what it can hold.
    fn time(&self) -> Vec<u8> {
        let Ok(seconds) = i32::try_from(self.modified) else { return Vec::new() };
        [&EXTRA_TIME.to_le_bytes()[..], &5u16.to_le_bytes(), &[1], &seconds.to_le_bytes()].concat()
    }
}

fn fields_64(values: &[u64]) -> Vec<u8> {
    let mut bytes = [EXTRA_64.to_le_bytes(), (values.len() as u16 * 8).to_le_bytes()].concat();
    values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
    bytes
}
