//! A terminal for an execution: its user's side stays with the host, the other is handed to the execution open. Nothing of
//! `/dev/pts` has to be reachable in the session.

use std::{io, os::fd::OwnedFd};

use cooper_common::error::{Code, Error, Result};
use cooper_proto::v1;
use rustix::{
    pty::{self, OpenptFlags},
    termios::{self, Winsize},
};

use super::Host;

const COLUMNS: u32 = 80;
const ROWS: u32 = 24;

/// Both sides of a new terminal, the user's first. It does not block; the other one does.
pub fn open(size: v1::Terminal) -> io::Result<(OwnedFd, OwnedFd)> {
    let user = pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    pty::grantpt(&user)?;
    pty::unlockpt(&user)?;
    // By descriptor: whatever is mounted at /dev/pts here may be another one.
    let theirs =
        pty::ioctl_tiocgptpeer(&user, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    resize(&user, size)?;
    rustix::io::ioctl_fionbio(&user, true)?;
    Ok((user, theirs))
}

/// The kernel tells the group in the foreground (SIGWINCH).
pub fn resize(user: &OwnedFd, size: v1::Terminal) -> io::Result<()> {
    let or = |value: u32, default: u32| if value == 0 { default } else { value };
    let cells = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
    let size = Winsize {
        ws_col: cells(or(size.columns, COLUMNS)),
        ws_row: cells(or(size.rows, ROWS)),
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(termios::tcsetwinsize(user, size)?)
}

impl Host {
    pub(super) fn resize_terminal(&mut self, wanted: &v1::TerminalSize) -> Result<()> {
        let (_, attempt) = self.running(&wanted.task_id, wanted.fence)?;
        let terminal = attempt.terminal.as_ref();
        let user = terminal.ok_or_else(|| Error::new(Code::NoTerminal, "the execution has no terminal"))?;
        resize(user, wanted.size.unwrap_or_default())
            .map_err(|e| Error::invalid(format!("the terminal takes no such size: {e}")))
    }
}
