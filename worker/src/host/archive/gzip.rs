//! What packs an archive as a whole.

use std::io::{self, Read, Write};

use cooper_common::limits::checkpoint::ARCHIVE_BYTES_MAX;
use flate2::{Compression, bufread::MultiGzDecoder, write::GzEncoder};

pub fn packer<W: Write>(out: W) -> GzEncoder<W> {
    GzEncoder::new(out, Compression::new(super::LEVEL))
}

/// Reads what was packed, up to what an archive may have when it is not.
pub struct Unpacker<R> {
    from: MultiGzDecoder<R>,
    left: u64,
}

impl<R: io::BufRead> Unpacker<R> {
    pub fn new(from: R) -> Self {
        Self { from: MultiGzDecoder::new(from), left: ARCHIVE_BYTES_MAX }
    }

    /// Reads over what comes behind the end of an archive: only then is its sum compared.
    pub fn finish(mut self) -> io::Result<()> {
        io::copy(&mut self, &mut io::sink()).map(drop)
    }
}

impl<R: io::BufRead> Read for Unpacker<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        self.left = self.left.checked_sub(read as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(read)
    }
}
