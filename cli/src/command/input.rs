//! Passes standard input on to an execution that runs: keys of a terminal, or whatever is piped in.

use cooper_common::{error::Code, limits::exec};
use cooper_proto::v1::{ResizeTerminalRequest, WriteStdinRequest};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use tonic_types::StatusExt;

use crate::{
    args::DetachKeys,
    connect::{Client, Cluster, Patience},
    failure::{Failure, Result, is_cut},
    terminal,
};

/// Why no more is passed on.
#[derive(Debug, PartialEq, Eq)]
pub enum Over {
    /// All of it was, or nobody reads it any more.
    Input,
    /// The keys for it were pressed.
    Detached,
}

/// To one execution.
pub struct Passing<'a> {
    cluster: &'a Cluster,
    task_id: String,
    client: Option<Client>,
    /// Known only where all of its input comes from here.
    offset: Option<u64>,
}

impl<'a> Passing<'a> {
    /// `whole`: nobody else writes to it, so what a cut left unclear can be repeated.
    pub fn new(cluster: &'a Cluster, task_id: String, whole: bool) -> Self {
        Self { cluster, task_id, client: None, offset: whole.then_some(0) }
    }

    /// Gives all of `data`; false: nobody reads it any more.
    pub async fn give(&mut self, mut data: &[u8], eof: bool) -> Result<bool> {
        let mut patience = Patience::default();
        loop {
            let piece = data.len().min(exec::STDIN_WRITE_BYTES_MAX);
            let request = WriteStdinRequest {
                task_id: self.task_id.clone(),
                offset_bytes: self.offset,
                data: data[..piece].to_vec(),
                eof: eof && piece == data.len(),
            };
            let client = match &self.client {
                Some(client) => client,
                None => self.client.insert(self.cluster.connect().await?),
            };
            match client.executions().write_stdin(request).await {
                Ok(written) => {
                    patience.contact();
                    let written = written.into_inner();
                    self.offset = self.offset.map(|_| written.offset_bytes);
                    let left = if written.incomplete { written.remaining_bytes as usize } else { 0 };
                    data = &data[piece.saturating_sub(left)..];
                    if data.is_empty() && !written.incomplete {
                        return Ok(true);
                    }
                }
                Err(status) if may_repeat(&status, self.offset.is_some()) => {
                    self.client = Some(patience.reconnect(self.cluster, status.into()).await?);
                }
                Err(status) => {
                    let failure = Failure::from(status);
                    return if is_over(&failure) { Ok(false) } else { Err(failure) };
                }
            }
        }
    }

    async fn resize(&mut self) -> Result<()> {
        let request = ResizeTerminalRequest { task_id: self.task_id.clone(), size: Some(terminal::size()) };
        if let Some(client) = &self.client {
            // The next change brings the next one.
            let _ = client.executions().resize_terminal(request).await;
        }
        Ok(())
    }
}

/// Where nobody else writes, what was given already is left out; where nobody heard of it, nothing was given.
fn may_repeat(status: &tonic::Status, counted: bool) -> bool {
    let no_worker =
        status.get_details_error_info().is_some_and(|info| info.reason == Code::NoWorker.as_str());
    no_worker || (counted && is_cut(status))
}

fn is_over(failure: &Failure) -> bool {
    let over = [Code::NotRunning, Code::StdinNotOpen].map(Code::as_str);
    matches!(failure, Failure::Error(report) if over.contains(&report.code.as_str()))
}

/// Passes `input` on from the moment the task is known.
pub async fn pass(
    cluster: &Cluster,
    mut task: watch::Receiver<String>,
    mut input: impl AsyncRead + Unpin,
    keys: Option<&DetachKeys>,
    whole: bool,
) -> Result<Over> {
    let Ok(task_id) = task.wait_for(|id| !id.is_empty()).await.map(|id| id.clone()) else {
        return Ok(Over::Input);
    };
    let mut passing = Passing::new(cluster, task_id, whole);
    passing.client = Some(cluster.connect().await?);
    let mut resized = signal(SignalKind::window_change())
        .map_err(|error| Failure::new(Code::Internal, format!("cannot listen for signals: {error}")))?;
    if keys.is_some() {
        passing.resize().await?;
    }
    let mut detach = Detach::new(keys.map_or(&[], |keys| &keys.0));
    let mut piece = vec![0; exec::STDIN_WRITE_BYTES_MAX];
    loop {
        let read = tokio::select! {
            read = input.read(&mut piece) => read.map_err(|error| {
                Failure::new(Code::NotAFile, format!("cannot read standard input: {error}"))
            })?,
            _ = resized.recv(), if keys.is_some() => {
                passing.resize().await?;
                continue;
            }
        };
        let (data, detached) = detach.take(&piece[..read]);
        if (!data.is_empty() || read == 0) && !passing.give(&data, read == 0).await? {
            return Ok(Over::Input);
        }
        if detached {
            return Ok(Over::Detached);
        }
        if read == 0 {
            return Ok(Over::Input);
        }
    }
}

/// Looks for the keys that detach, which may come in pieces.
struct Detach<'a> {
    keys: &'a [u8],
    seen: usize,
}

impl<'a> Detach<'a> {
    fn new(keys: &'a [u8]) -> Self {
        Self { keys, seen: 0 }
    }

    /// What is to be passed on, and whether all the keys were pressed.
    fn take(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut data = Vec::with_capacity(typed.len());
        for byte in typed {
            if self.keys.get(self.seen) == Some(byte) {
                self.seen += 1;
                if self.seen == self.keys.len() {
                    return (data, true);
                }
                continue;
            }
            data.extend_from_slice(&self.keys[..self.seen]);
            self.seen = usize::from(self.keys.first() == Some(byte));
            if self.seen == 0 {
                data.push(*byte);
            }
        }
        (data, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_that_detach_are_found_across_pieces_and_nothing_else_is_lost() {
        let mut detach = Detach::new(&[16, 17]);
        assert_eq!(detach.take(b"ab\x10"), (b"ab".to_vec(), false));
        assert_eq!(detach.take(b"c\x10\x10d"), (b"\x10c\x10\x10d".to_vec(), false));
        assert_eq!(detach.take(b"\x10"), (Vec::new(), false));
        assert_eq!(detach.take(b"\x11later"), (Vec::new(), true));
        assert_eq!(Detach::new(&[]).take(b"\x10\x11"), (b"\x10\x11".to_vec(), false));
    }
}
