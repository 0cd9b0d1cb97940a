//! The tar format itself: POSIX pax, as written here; and of what others write, ustar and GNU long names.

use std::io::{self, Read, Write};

use cooper_common::{
    error::{Error, Result},
    limits::archive::HEADER_BYTES_MAX,
};
use rustix::fs::{Stat, Timespec};

use super::{Entry, Kind, Sink, Source};

const BLOCK: usize = 512;
/// What the size field holds in octal.
const SIZE_MAX: u64 = 0o77_777_777_777;

pub struct Writer<W> {
    out: W,
    piece: Vec<u8>,
}

impl<W: Write> Writer<W> {
    pub fn new(out: W) -> Self {
        Self { out, piece: vec![0; super::PIECE_BYTES] }
    }

    pub fn into_inner(self) -> W {
        self.out
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let over = (size % BLOCK as u64) as usize;
        if over > 0 { self.out.write_all(&[0; BLOCK][over..]) } else { Ok(()) }
    }

    fn header(&mut self, path: &[u8], link: &[u8], kind: u8, stat: &Stat, size: u64) -> io::Result<()> {
        let mut records = Vec::new();
        if path.len() > 100 {
            record(&mut records, "path", path);
        }
        if link.len() > 100 {
            record(&mut records, "linkpath", link);
        }
        if size > SIZE_MAX {
            record(&mut records, "size", size.to_string().as_bytes());
        }
        if stat.st_mtime < 0 || stat.st_mtime_nsec != 0 {
            let text = format!("{}.{:09}", stat.st_mtime, stat.st_mtime_nsec);
            record(&mut records, "mtime", text.as_bytes());
        }
        if !records.is_empty() {
            self.block(b"pax", b"", b'x', 0o644, 0, records.len() as u64)?;
            self.out.write_all(&records)?;
            self.pad(records.len() as u64)?;
        }
        let modified = u64::try_from(stat.st_mtime).unwrap_or(0);
        self.block(path, link, kind, stat.st_mode & 0o777, modified, size)
    }

    fn block(
        &mut self,
        path: &[u8],
        link: &[u8],
        kind: u8,
        mode: u32,
        modified: u64,
        size: u64,
    ) -> io::Result<()> {
        let mut block = [0; BLOCK];
        let mut put = |at: usize, bytes: &[u8], max: usize| {
            let bytes = &bytes[..bytes.len().min(max)];
            block[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(0, path, 100);
        put(100, format!("{mode:07o}").as_bytes(), 7);
        put(108, b"0000000", 7);
        put(116, b"0000000", 7);
        put(124, format!("{:011o}", size.min(SIZE_MAX)).as_bytes(), 11);
        put(136, format!("{:011o}", modified.min(SIZE_MAX)).as_bytes(), 11);
        put(148, b"        ", 8);
        put(156, &[kind], 1);
        put(157, link, 100);
        put(257, b"ustar\x0000", 8);
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.out.write_all(&block)
    }
}

impl<W: Write> Sink for Writer<W> {
    const HARD_LINKS: bool = true;

    fn directory(&mut self, path: &[u8], stat: &Stat) -> io::Result<()> {
        let path = [path, b"/"].concat();
        self.header(&path, b"", b'5', stat, 0)
    }

    fn symlink(&mut self, path: &[u8], target: &[u8], stat: &Stat) -> io::Result<()> {
        self.header(path, target, b'2', stat, 0)
    }

    fn hard_link(&mut self, path: &[u8], target: &[u8], stat: &Stat) -> io::Result<()> {
        self.header(path, target, b'1', stat, 0)
    }

    fn file(&mut self, path: &[u8], stat: &Stat, size: u64, body: &mut dyn Read) -> io::Result<()> {
        self.header(path, b"", b'0', stat, size)?;
        super::exactly(size, body, &mut self.piece, |piece| self.out.write_all(piece))?;
        self.pad(size)
    }

    fn finish(&mut self) -> io::Result<()> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()
    }
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn record(records: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} {key}=").as_bytes());
    records.extend_from_slice(value);
    records.push(b'\n');
}

pub struct Reader<R> {
    from: R,
    /// Bytes of the entry before that were not read, and what fills its last block.
    left: u64,
    padding: u64,
}

/// The content of an entry; shorter than its size is an error.
pub struct Body<'a, R>(&'a mut Reader<R>);

impl<R: Read> Read for Body<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.0.left).unwrap_or(usize::MAX).min(buffer.len());
        if want == 0 {
            return Ok(0);
        }
        match self.0.from.read(&mut buffer[..want])? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                self.0.left -= n as u64;
                Ok(n)
            }
        }
    }
}

/// What headers before an entry said of it.
#[derive(Default)]
struct Said {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    modified: Option<Timespec>,
}

impl<R: Read> Source for Reader<R> {
    type Body<'a>
        = Body<'a, R>
    where
        Self: 'a;

    fn next(&mut self) -> Result<Option<Entry<Body<'_, R>>>> {
        let mut said = Said::default();
        loop {
            self.pass_by()?;
            let mut block = [0; BLOCK];
            // An archive ends with a mark: one that just ends was cut, be it between two entries.
            if self.fill(&mut block)? != BLOCK {
                return Err(cut());
            }
            if block.iter().all(|byte| *byte == 0) {
                return Ok(None);
            }
            check_sum(&block)?;
            let size = number(&block[124..136]).ok_or_else(|| malformed("a size"))?;
            self.expect(size);
            match block[156] {
                b'x' => self.pax(size, &mut said)?,
                b'L' => said.path = Some(until_nul(self.small(size)?)),
                b'K' => said.link = Some(until_nul(self.small(size)?)),
                // Of the whole archive: nothing of it matters here.
                b'g' => {}
                kind => return self.entry(&block, kind, size, said).map(Some),
            }
        }
    }
}

impl<R: Read> Reader<R> {
    pub fn new(from: R) -> Self {
        Self { from, left: 0, padding: 0 }
    }

    pub fn into_inner(self) -> R {
        self.from
    }

    fn entry(&mut self, block: &[u8; BLOCK], kind: u8, size: u64, said: Said) -> Result<Entry<Body<'_, R>>> {
        let size = said.size.unwrap_or(size);
        self.expect(size);
        let field = |from: usize, len: usize| until_nul(block[from..from + len].to_vec());
        let path = said.path.unwrap_or_else(|| {
            let (prefix, path) = (field(345, 155), field(0, 100));
            // GNU's own format has other things where ustar has a prefix.
            let ustar = &block[257..263] == b"ustar\0";
            if prefix.is_empty() || !ustar { path } else { [&prefix[..], b"/", &path].concat() }
        });
        let kind = match kind {
            // Before there were directories in the format, a slash at the end made one.
            0 | b'0' | b'7' if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'5' => Kind::Directory,
            _ => Kind::Other,
        };
        let seconds = number(&block[136..148]).and_then(|seconds| i64::try_from(seconds).ok()).unwrap_or(0);
        Ok(Entry {
            path,
            link: said.link.unwrap_or_else(|| field(157, 100)),
            kind,
            mode: u32::try_from(number(&block[100..108]).unwrap_or(0o644) & 0o7777).unwrap_or(0o644),
            modified: said.modified.unwrap_or(Timespec { tv_sec: seconds, tv_nsec: 0 }),
            size: if kind == Kind::File { size } else { 0 },
            body: Body(self),
        })
    }

    fn expect(&mut self, size: u64) {
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
    }

    /// Reads over what is left of the entry before.
    fn pass_by(&mut self) -> Result<()> {
        let mut over = self.left.saturating_add(self.padding);
        (self.left, self.padding) = (0, 0);
        let mut piece = [0; 8192];
        while over > 0 {
            let want = usize::try_from(over).unwrap_or(usize::MAX).min(piece.len());
            match self.fill(&mut piece[..want])? {
                n if n == want => over -= n as u64,
                _ => return Err(cut()),
            }
        }
        Ok(())
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.from.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(super::failed(b"the archive", error)),
            }
        }
        Ok(filled)
    }

    /// The content of a header of headers, in memory.
    fn small(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > HEADER_BYTES_MAX {
            return Err(malformed("a header"));
        }
        let mut content = Vec::new();
        let read = Body(self).read_to_end(&mut content);
        read.map_err(|_| cut())?;
        Ok(content)
    }

    fn pax(&mut self, size: u64, said: &mut Said) -> Result<()> {
        let content = self.small(size)?;
        let mut rest = &content[..];
        while !rest.is_empty() {
            let blank = rest.iter().position(|byte| *byte == b' ').ok_or_else(|| malformed("a header"))?;
            let length: usize = std::str::from_utf8(&rest[..blank])
                .ok()
                .and_then(|text| text.parse().ok())
                .filter(|length| *length > blank + 1 && *length <= rest.len())
                .ok_or_else(|| malformed("a header"))?;
            let record = rest[blank + 1..length].strip_suffix(b"\n").ok_or_else(|| malformed("a header"))?;
            rest = &rest[length..];
            let equals = record.iter().position(|b| *b == b'=').ok_or_else(|| malformed("a header"))?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            let text = || std::str::from_utf8(value).map_err(|_| malformed("a header"));
            match key {
                b"path" => said.path = Some(value.to_vec()),
                b"linkpath" => said.link = Some(value.to_vec()),
                b"size" => said.size = Some(text()?.parse().map_err(|_| malformed("a size"))?),
                b"mtime" => said.modified = Some(time(text()?).ok_or_else(|| malformed("a time"))?),
                // A sparse file of GNU's: its content is not what the file holds.
                key if key.starts_with(b"GNU.sparse") => return Err(malformed("a sparse file")),
                _ => {}
            }
        }
        Ok(())
    }
}

fn time(text: &str) -> Option<Timespec> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut nanos = 0;
    for digit in fraction.bytes().chain(std::iter::repeat(b'0')).take(9) {
        nanos = nanos * 10 + i64::from(digit.checked_sub(b'0').filter(|digit| *digit < 10)?);
    }
    Some(Timespec { tv_sec: seconds.parse().ok()?, tv_nsec: nanos })
}

/// Octal, or GNU's binary for what octal cannot hold.
fn number(field: &[u8]) -> Option<u64> {
    if field.first().is_some_and(|byte| byte & 0x80 != 0) {
        let (first, rest) = field.split_first()?;
        return rest.iter().try_fold(u64::from(first & 0x7f), |sum, byte| {
            sum.checked_mul(256)?.checked_add(u64::from(*byte))
        });
    }
    let text = std::str::from_utf8(field).ok()?.trim_matches(|c| c == '\0' || c == ' ');
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

fn check_sum(block: &[u8; BLOCK]) -> Result<()> {
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    let field: u64 = block[148..156].iter().map(|byte| u64::from(*byte)).sum();
    match number(&block[148..156]) {
        Some(said) if said == sum - field + 8 * u64::from(b' ') => Ok(()),
        _ => Err(malformed("a header")),
    }
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}

fn malformed(what: &str) -> Error {
    Error::invalid(format!("this is no tar that can be read: {what} in it is malformed"))
}

fn cut() -> Error {
    Error::invalid("the archive ends before its end mark: it was cut")
}
