//! This process's own terminal: in raw mode for as long as somebody holds it, and as it was on every way out.

use std::io::{self, IsTerminal, Read as _, Write as _};

use cooper_proto::v1;
use rustix::termios::{self, OptionalActions, Termios};

/// Raw mode; dropping it restores what was.
pub struct Raw {
    before: Termios,
}

impl Raw {
    /// None when standard input is no terminal.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = termios::tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(&stdin, OptionalActions::Drain, &raw)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Fails only when the terminal is gone.
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Drain, &self.before);
    }
}

/// Its size; that of none at all when there is no terminal.
pub fn size() -> v1::Terminal {
    let size = termios::tcgetwinsize(io::stdin()).or_else(|_| termios::tcgetwinsize(io::stdout()));
    size.map_or_else(
        |_| v1::Terminal::default(),
        |size| v1::Terminal { columns: size.ws_col.into(), rows: size.ws_row.into() },
    )
}

/// A line typed at this process's terminal that is not shown there.
pub fn hidden_line(prompt: &str) -> io::Result<Vec<u8>> {
    let Some(_raw) = Raw::enter()? else { return Err(io::Error::other("there is none")) };
    let mut say = io::stderr();
    write!(say, "{prompt}")?;
    let mut line = Vec::new();
    for byte in io::stdin().lock().bytes() {
        match byte? {
            b'\r' | b'\n' => break,
            3 | 4 => {
                line.clear();
                break;
            }
            8 | 127 => drop(line.pop()),
            byte => line.push(byte),
        }
    }
    write!(say, "\r\n")?;
    if line.is_empty() {
        return Err(io::Error::other("nothing was typed"));
    }
    Ok(line)
}
