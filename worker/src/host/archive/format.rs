//! What a format of archives is to those who pack and unpack.

use std::io::{self, Read};

use cooper_common::error::Result;
use rustix::fs::{Stat, Timespec};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    /// A device, a pipe, or what nobody knows.
    Other,
}

/// An entry that is read, as its archive describes it: nothing of it was judged.
pub struct Entry<B> {
    pub path: Vec<u8>,
    pub link: Vec<u8>,
    pub kind: Kind,
    pub mode: u32,
    pub modified: Timespec,
    /// Of its content; 0 of all that are no files.
    pub size: u64,
    /// Ends after exactly so many bytes, or with an error.
    pub body: B,
}

/// A format that is read.
pub trait Source {
    type Body<'a>: Read
    where
        Self: 'a;

    fn next(&mut self) -> Result<Option<Entry<Self::Body<'_>>>>;
}

/// A format that is written.
pub trait Sink {
    /// Whether two names can be one file.
    const HARD_LINKS: bool;

    fn directory(&mut self, path: &[u8], stat: &Stat) -> io::Result<()>;
    fn symlink(&mut self, path: &[u8], target: &[u8], stat: &Stat) -> io::Result<()>;
    fn hard_link(&mut self, path: &[u8], target: &[u8], stat: &Stat) -> io::Result<()>;
    /// Exactly `size` bytes of the body.
    fn file(&mut self, path: &[u8], stat: &Stat, size: u64, body: &mut dyn Read) -> io::Result<()>;
    fn finish(&mut self) -> io::Result<()>;
}

/// Hands on so many bytes: of a file that grows the rest is left out, one that shrinks ends in zeros.
pub fn exactly(
    size: u64,
    body: &mut dyn Read,
    piece: &mut [u8],
    mut take: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut left = size;
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
        let read = match body.read(&mut piece[..want]) {
            Ok(0) => {
                piece[..want].fill(0);
                want
            }
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        take(&piece[..read])?;
        left -= read as u64;
    }
    Ok(())
}
