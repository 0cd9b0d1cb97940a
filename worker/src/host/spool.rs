//! One output stream of an attempt: its pipe, and the spool file the pipe is spliced into.
//!
//! The bytes never live only in the memory of a process that may be killed.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt},
    path::PathBuf,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    pipe::{PipeFlags, SpliceFlags},
};

/// Moved in one round of the event loop, so that one loud stream does not keep others waiting.
const ROUND_BYTES: u64 = 1 << 20;

pub struct Stream {
    /// It is the user's side of a terminal, which is read rather than spliced, and shared with its standard input.
    terminal: bool,
    /// Read end; None once nobody can write any more, or nobody wants to read.
    pipe: Option<OwnedFd>,
    path: PathBuf,
    /// Created at the first byte.
    file: Option<File>,
    /// Bytes in the spool file.
    pub bytes: u64,
    limit: u64,
    /// There were more bytes than the limit or the disk allows.
    pub truncated: bool,
    /// Bytes the present link was told of.
    pub announced: u64,
    /// The present link has the spool's descriptor.
    pub named: bool,
}

/// What is left in the pipe after a [`Stream::pump`].
#[derive(Debug, PartialEq, Eq)]
pub enum Pipe {
    Open,
    Closed,
}

impl Stream {
    /// A stream that spools to `path`, and the end to write to.
    pub fn new(path: PathBuf, limit: u64) -> io::Result<(Self, OwnedFd)> {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&read, true)?;
        Ok((Self::of(Some(read), false, path, limit), write))
    }

    /// What is written to a terminal, whose user's side is `user`.
    pub fn terminal(path: PathBuf, limit: u64, user: OwnedFd) -> Self {
        Self::of(Some(user), true, path, limit)
    }

    /// One that nobody writes to.
    pub fn closed(path: PathBuf, limit: u64) -> Self {
        Self::of(None, false, path, limit)
    }

    fn of(pipe: Option<OwnedFd>, terminal: bool, path: PathBuf, limit: u64) -> Self {
        Self {
            pipe,
            terminal,
            path,
            file: None,
            bytes: 0,
            limit,
            truncated: false,
            announced: 0,
            named: false,
        }
    }

    pub fn pipe(&self) -> Option<&OwnedFd> {
        self.pipe.as_ref()
    }

    /// Gives the pipe away: what comes from now on does not belong to the stream any more. A terminal is hung up instead.
    pub fn take_pipe(&mut self) -> Option<OwnedFd> {
        let pipe = self.pipe.take();
        pipe.filter(|_| !self.terminal)
    }

    /// Gives a terminal away that nobody writes to any more.
    pub fn hang_up(&mut self) -> Option<OwnedFd> {
        self.pipe.take_if(|_| self.terminal)
    }

    /// Moves what waits in the pipe, at most a round's worth, to the spool.
    pub fn pump(&mut self, null: &File) -> Pipe {
        self.pump_up_to(ROUND_BYTES, null)
    }

    /// Moves exactly what is in the pipe now: everything its execution wrote, nothing a leftover child writes after.
    pub fn drain(&mut self, null: &File) -> Pipe {
        if self.terminal {
            // How much is on its way through the kernel is not said; reading waits for it, and its buffer is smaller.
            return self.pump_up_to(ROUND_BYTES, null);
        }
        let waiting = self.pipe.as_ref().and_then(|pipe| rustix::io::ioctl_fionread(pipe).ok()).unwrap_or(0);
        if waiting == 0 {
            return match &self.pipe {
                Some(pipe) if !is_closed(pipe) => Pipe::Open,
                _ => {
                    self.pipe = None;
                    Pipe::Closed
                }
            };
        }
        self.pump_up_to(waiting, null)
    }

    fn pump_up_to(&mut self, mut budget: u64, null: &File) -> Pipe {
        while budget > 0 {
            match self.move_some(budget, null) {
                Ok(0) => {
                    // A terminal has to be taken out of the event loop first.
                    self.pipe.take_if(|_| !self.terminal);
                    return Pipe::Closed;
                }
                Ok(moved) => budget = budget.saturating_sub(moved),
                Err(Errno::AGAIN) => return Pipe::Open,
                Err(Errno::INTR) => {}
                Err(error) if self.truncated => {
                    tracing::warn!(%error, spool = %self.path.display(), "an output stream cannot be read");
                    self.pipe = None;
                    return Pipe::Closed;
                }
                Err(error) => {
                    // A full disk: keep what there is, say so, and let the execution go on.
                    tracing::warn!(%error, spool = %self.path.display(), "output is cut: the spool cannot be written");
                    self.truncated = true;
                }
            }
        }
        Pipe::Open
    }

    fn move_some(&mut self, budget: u64, null: &File) -> Result<u64, Errno> {
        let Some(pipe) = &self.pipe else { return Ok(0) };
        if self.terminal {
            return self.read_some();
        }
        let room = self.limit - self.bytes;
        if room == 0 || self.truncated {
            let dropped = splice(pipe, null, None, budget)?;
            self.truncated |= dropped > 0;
            return Ok(dropped);
        }
        let file = match &self.file {
            Some(file) => file,
            // Most streams stay empty: look before a file is made, without taking a byte.
            None if rustix::io::ioctl_fionread(pipe)? == 0 => {
                return if is_closed(pipe) { Ok(0) } else { Err(Errno::AGAIN) };
            }
            None => self.file.insert(create(&self.path)?),
        };
        let moved = splice(pipe, file, Some(self.bytes), budget.min(room))?;
        self.bytes += moved;
        Ok(moved)
    }

    fn read_some(&mut self) -> Result<u64, Errno> {
        let Some(terminal) = &self.pipe else { return Ok(0) };
        let mut piece = [0; 16 << 10];
        let read = match rustix::io::read(terminal, &mut piece) {
            // Nobody has the other side open any more.
            Err(Errno::IO) => return Ok(0),
            read => read?,
        };
        let room = if self.truncated { 0 } else { self.limit - self.bytes };
        let kept = read.min(usize::try_from(room).unwrap_or(usize::MAX));
        if kept > 0 {
            let file = match &self.file {
                Some(file) => file,
                None => self.file.insert(create(&self.path)?),
            };
            let mut written = 0;
            while written < kept {
                let at = self.bytes + written as u64;
                written += rustix::io::pwrite(file, &piece[written..kept], at)?;
            }
            self.bytes += kept as u64;
        }
        self.truncated |= kept < read;
        Ok(read as u64)
    }

    /// The spool file for reading, as a descriptor of its own.
    pub fn open_for_reading(&self) -> io::Result<Option<OwnedFd>> {
        if self.file.is_none() {
            return Ok(None);
        }
        Ok(Some(File::open(&self.path)?.into()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.file.is_some() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Nothing is in the pipe and nobody can write to it any more.
pub fn is_closed(pipe: &OwnedFd) -> bool {
    let mut events = [PollFd::new(pipe, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut events, Some(&now)).is_ok() && events[0].revents() == PollFlags::HUP
}

fn create(path: &PathBuf) -> Result<File, Errno> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
}

/// Moves up to `length` bytes; 0 = nobody holds the write end any more.
fn splice(pipe: &OwnedFd, to: &File, at: Option<u64>, length: u64) -> Result<u64, Errno> {
    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
    let mut offset = at;
    let length = length as usize;
    match rustix::pipe::splice(pipe, None, to, offset.as_mut(), length, flags) {
        Ok(moved) => Ok(moved as u64),
        // A file system that cannot splice.
        Err(Errno::INVAL) => copy(pipe, to, at, length),
        Err(error) => Err(error),
    }
}

fn copy(pipe: &OwnedFd, to: &File, at: Option<u64>, length: usize) -> Result<u64, Errno> {
    let mut piece = [0; 16 << 10];
    let room = length.min(piece.len());
    let read = rustix::io::read(pipe, &mut piece[..room])?;
    let mut written = 0;
    while let Some(at) = at
        && written < read
    {
        written += rustix::io::pwrite(to, &piece[written..read], at + written as u64)?;
    }
    Ok(read as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn null() -> File {
        OpenOptions::new().write(true).open("/dev/null").unwrap()
    }

    #[test]
    fn output_beyond_the_limit_is_dropped_and_said_to_be() {
        let dir = tempfile::tempdir().unwrap();
        let (mut stream, write) = Stream::new(dir.path().join("a.out"), 10).unwrap();
        let mut write = File::from(write);
        write.write_all(b"0123456789").unwrap();
        assert_eq!((stream.pump(&null()), stream.bytes, stream.truncated), (Pipe::Open, 10, false));
        write.write_all(b"more").unwrap();
        drop(write);
        assert_eq!((stream.pump(&null()), stream.bytes, stream.truncated), (Pipe::Closed, 10, true));
        assert_eq!(fs::read(dir.path().join("a.out")).unwrap(), b"0123456789");
    }

    #[test]
    fn a_silent_stream_makes_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let (mut stream, write) = Stream::new(dir.path().join("a.out"), 10).unwrap();
        assert_eq!(stream.pump(&null()), Pipe::Open);
        drop(write);
        assert_eq!(stream.pump(&null()), Pipe::Closed);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_spool_goes_with_its_stream() {
        let dir = tempfile::tempdir().unwrap();
        let (mut stream, write) = Stream::new(dir.path().join("a.out"), 10).unwrap();
        File::from(write).write_all(b"x").unwrap();
        stream.pump(&null());
        drop(stream);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
