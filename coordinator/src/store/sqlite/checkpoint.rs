//! Moves the write-ahead log into the database file beside the writer, so that no commit waits for it.

use std::{ffi::c_int, sync::mpsc, thread};

use rusqlite::Connection;

/// Pages in the log (4 KiB each) at which the checkpoint thread is woken.
const WAKE_AT_PAGES: c_int = 4_000;
/// Under steady load the log never falls empty beside the writer and would grow for ever. From this size on the writer
/// itself moves the rest, which by then is short, and starts the log anew.
const HELP_AT_PAGES: c_int = 32_000;

/// The writer's side of it.
pub(super) struct Checkpointer {
    wake: mpsc::SyncSender<()>,
    help_at: c_int,
}

impl Checkpointer {
    pub(super) fn start(connection: Connection) -> std::io::Result<Self> {
        // One wake-up waits at most: a second would find nothing to do.
        let (wake, woken) = mpsc::sync_channel(1);
        thread::Builder::new().name("store-checkpoint".into()).spawn(move || {
            while woken.recv().is_ok() {
                passive(&connection);
            }
        })?;
        Ok(Self { wake, help_at: HELP_AT_PAGES })
    }

    pub(super) fn after_commit(&mut self, writer: &Connection, pages: c_int) {
        if pages < WAKE_AT_PAGES {
            self.help_at = HELP_AT_PAGES;
            return;
        }
        let _ = self.wake.try_send(());
        if pages >= self.help_at {
            passive(writer);
            // A long read (a backup) keeps the log from starting anew; do not try again at every commit.
            self.help_at = pages + HELP_AT_PAGES;
        }
    }

    /// The writer leaves: the next start finds a short log.
    pub(super) fn close(&mut self, writer: &Connection) {
        for statement in ["PRAGMA optimize", "PRAGMA wal_checkpoint(TRUNCATE)"] {
            if let Err(cause) = writer.query_row(statement, [], |_| Ok(()))
                && cause != rusqlite::Error::QueryReturnedNoRows
            {
                tracing::warn!(%cause, "the store closes without tidying up ({statement})");
            }
        }
    }
}

/// Never waits for readers nor for the writer.
fn passive(connection: &Connection) {
    let before = cooper_common::clock::since_start();
    match connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())) {
        Ok(()) => metrics::histogram!("cooper_store_checkpoint_seconds")
            .record((cooper_common::clock::since_start() - before).as_secs_f64()),
        Err(cause) => tracing::warn!(%cause, "the store's log was not checkpointed"),
    }
}
