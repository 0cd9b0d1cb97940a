//! Arguments of what runs in a session and is spoken with.

use clap::Args;

use crate::units;

/// What an execution's standard streams are.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct Streams {
    /// Pass standard input on as it comes; with --background: keep it open for `cooper tasks write`
    #[arg(short, long)]
    pub interactive: bool,
    /// Run it on a terminal of its own, which this one's keys and size go to (code: with --fresh)
    #[arg(short, long)]
    pub tty: bool,
    /// Print the task's id and leave it running
    #[arg(long)]
    pub background: bool,
}

#[derive(Debug, Args)]
pub struct Attach {
    /// Id or name of a session; or the id of a task that was started with --tty or --interactive
    pub target: String,
    /// Python instead of a shell: it sees the session's variables and leaves none
    #[arg(long, conflicts_with = "command")]
    pub python: bool,
    /// Working directory, relative to the workspace
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,
    /// Extra environment; repeatable
    #[arg(long, value_name = "NAME=VALUE", value_parser = units::pair)]
    pub env: Vec<(String, String)>,
    /// Time limit, e.g. 2h
    #[arg(long, value_name = "DURATION", value_parser = units::duration_ms, default_value = "24h")]
    pub timeout: u64,
    /// Of a task: first byte of output wanted
    #[arg(long, value_name = "BYTES", default_value_t = 0, hide_default_value = true)]
    pub offset: u64,
    /// Keys that leave it running: ctrl-LETTER with commas between them, or none
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q", value_parser = keys)]
    pub detach_keys: DetachKeys,
    /// Command in place of a shell
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<String>,
}

/// Bytes that a terminal sends for the keys that detach; empty = none do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetachKeys(pub Vec<u8>);

impl Default for DetachKeys {
    fn default() -> Self {
        Self(vec![b'p' & 0x1f, b'q' & 0x1f])
    }
}

fn keys(text: &str) -> Result<DetachKeys, String> {
    if text == "none" {
        return Ok(DetachKeys(Vec::new()));
    }
    let key = |key: &str| match key.strip_prefix("ctrl-").map(str::as_bytes) {
        Some([letter]) if letter.is_ascii_alphabetic() => Ok(letter & 0x1f),
        _ => Err(format!("{key:?} is no key: use ctrl-LETTER, with commas between them, or none")),
    };
    text.split(',').map(key).collect::<Result<_, _>>().map(DetachKeys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_what_a_terminal_sends() {
        assert_eq!(keys("ctrl-p,ctrl-q"), Ok(DetachKeys::default()));
        assert_eq!(keys("ctrl-A"), Ok(DetachKeys(vec![1])));
        assert_eq!(keys("none"), Ok(DetachKeys(Vec::new())));
        for bad in ["", "p", "ctrl-", "ctrl-pq", "ctrl-1"] {
            assert!(keys(bad).is_err(), "{bad}");
        }
    }
}
