//! The writer's thread: takes what waits, commits it as one, tells everybody, takes what waits by then.
//!
//! There is no timer. An idle writer commits the first batch at once; while the disk syncs, the next group gathers.

use std::{
    cell::Cell,
    ffi::c_int,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use cooper_common::{clock, failpoint, limits};
use rusqlite::hooks::Wal;

use super::{
    checkpoint::Checkpointer,
    write::{self, Pen},
};
use crate::{
    bus::Bus,
    store::{Batch, Error, Result},
};

/// A write of another kind than a batch, run between two groups.
pub(super) type Job = Box<dyn FnOnce(&mut Pen) + Send>;

pub(super) enum Command {
    Commit(Batch),
    Job(Job),
    /// Everything queued before it is done when this is told.
    Close(Box<dyn FnOnce() + Send>),
}

/// Where commits queue up.
pub(super) struct Writer {
    queue: mpsc::SyncSender<Command>,
    /// Commands that wait, or are about to.
    waiting: Arc<AtomicUsize>,
}

impl Writer {
    pub(super) fn start(pen: Pen, bus: Bus, checkpointer: Checkpointer) -> std::io::Result<Self> {
        let (queue, commands) = mpsc::sync_channel(limits::store::WRITER_QUEUE_MAX);
        let waiting = Arc::new(AtomicUsize::new(0));
        let commands = Commands { queue: commands, waiting: Arc::clone(&waiting) };
        thread::Builder::new()
            .name("store-write".into())
            .spawn(move || run(pen, bus, checkpointer, commands))?;
        Ok(Self { queue, waiting })
    }

    /// Places left in the queue.
    pub(super) fn room(&self) -> usize {
        limits::store::WRITER_QUEUE_MAX.saturating_sub(self.waiting.load(Ordering::Relaxed))
    }

    /// Gives the command back with the reason when it cannot be queued.
    pub(super) fn submit(&self, command: Command) -> Result<(), (Command, Error)> {
        // Counted first: counted after, the writer could take it off before it is on.
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.queue.try_send(command).map_err(|refused| {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            match refused {
                mpsc::TrySendError::Full(command) => (command, Error::Overloaded),
                mpsc::TrySendError::Disconnected(command) => (command, Error::Closed),
            }
        })
    }
}

/// The writer's end of the queue.
struct Commands {
    queue: mpsc::Receiver<Command>,
    waiting: Arc<AtomicUsize>,
}

impl Commands {
    /// `None` when every handle on the store is gone.
    fn next(&self) -> Option<Command> {
        self.queue.recv().ok().inspect(|_| self.took_one())
    }
    fn next_waiting(&self) -> Option<Command> {
        self.queue.try_recv().ok().inspect(|_| self.took_one())
    }
    fn took_one(&self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

thread_local! {
    /// Pages in the write-ahead log after this thread's last commit.
    static WAL_PAGES: Cell<c_int> = const { Cell::new(0) };
}

fn note_wal_pages(_: &Wal, pages: c_int) -> rusqlite::Result<()> {
    WAL_PAGES.set(pages);
    Ok(())
}

fn run(mut pen: Pen, bus: Bus, mut checkpointer: Checkpointer, commands: Commands) {
    pen.connection.wal_hook(Some(note_wal_pages));
    let mut group = Vec::new();
    while let Some(first) = commands.next() {
        // What ended the gathering of a group and is not a batch.
        let mut other = gather(first, &commands, &mut group);
        commit(&mut pen, &bus, &mut group);
        checkpointer.after_commit(&pen.connection, WAL_PAGES.get());
        match other.take() {
            None | Some(Command::Commit(_)) => {}
            Some(Command::Job(job)) => job(&mut pen),
            Some(Command::Close(done)) => {
                checkpointer.close(&pen.connection);
                drop(pen);
                return done();
            }
        }
    }
    checkpointer.close(&pen.connection);
}

/// Fills `group` with the batches that wait, up to the first command of another kind, which it returns.
fn gather(first: Command, waiting: &Commands, group: &mut Vec<Batch>) -> Option<Command> {
    let mut changes = 0;
    let mut next = Some(first);
    while let Some(command) = next {
        match command {
            Command::Commit(batch) => {
                changes += batch.changes.len();
                group.push(batch);
            }
            other => return Some(other),
        }
        if changes >= limits::store::COMMIT_CHANGES_MAX {
            return None;
        }
        next = waiting.next_waiting();
    }
    None
}

fn commit(pen: &mut Pen, bus: &Bus, group: &mut Vec<Batch>) {
    if group.is_empty() {
        return;
    }
    let before = clock::since_start();
    let outcomes = pen.write(group);
    metrics::histogram!("cooper_store_commit_seconds").record((clock::since_start() - before).as_secs_f64());
    metrics::histogram!("cooper_store_commit_batches").record(group.len() as f64);
    failpoint::pass(failpoint::name::COMMIT_BEFORE_REPLY);
    settle(std::mem::take(group), outcomes, bus);
}

/// After the commit: the events to the bus, then to each batch what became of it, in order.
pub(super) fn settle(group: Vec<Batch>, outcomes: write::Outcomes, bus: &Bus) {
    // Asked after the commit: who subscribes later than this finds the events in the store.
    if bus.is_watched() {
        bus.publish(write::events(&group, &outcomes));
    }
    for (batch, outcome) in group.into_iter().zip(outcomes.of_batches) {
        (batch.done)(outcome);
    }
}
