//! One attempt as the link knows it: what the host said of it, how much of its output is where, whether it ended.

use std::{fs::File, sync::Arc};

use cooper_common::limits::link::INLINE_OUTPUT_BYTES_MAX;
use cooper_proto::{host::ArtifactPart, v1};

/// What is left of a stream at the end rides inside the result if it is no longer than this.
const INLINE: u64 = INLINE_OUTPUT_BYTES_MAX as u64;

/// [`v1::Fence`] as a number that can be compared: an older one changes nothing (I1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Fence {
    epoch: u64,
    attempt: u32,
}

impl From<Option<v1::Fence>> for Fence {
    /// A message without a fence has the oldest one.
    fn from(fence: Option<v1::Fence>) -> Self {
        fence.map_or_else(Self::default, |fence| Self { epoch: fence.epoch, attempt: fence.attempt })
    }
}
impl From<Fence> for Option<v1::Fence> {
    fn from(fence: Fence) -> Self {
        Some(v1::Fence { epoch: fence.epoch, attempt: fence.attempt })
    }
}

/// What names an attempt. Keys of one task sort by age.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub task: Arc<str>,
    pub fence: Fence,
}

impl Key {
    pub fn new(task_id: &str, fence: Option<v1::Fence>) -> Self {
        Self { task: task_id.into(), fence: fence.into() }
    }
}

/// One output stream: three offsets, `acked <= sent <= len`, into an append-only spool file of the host's.
#[derive(Debug, Default)]
pub struct Spool {
    /// Given by the host with the first message that names the stream.
    pub file: Option<Arc<File>>,
    /// Bytes in the spool.
    pub len: u64,
    /// Bytes handed to the output stream of this attach.
    pub sent: u64,
    /// Bytes the coordinator holds.
    pub acked: u64,
    /// The host had more, but it cannot be read any more.
    pub cut: bool,
}

impl Spool {
    pub fn in_flight(&self) -> u64 {
        self.sent - self.acked
    }
    pub fn unsent(&self) -> u64 {
        self.len - self.sent
    }
    /// The coordinator holds the stream up to `offset` and nothing is on its way: the start of an attach.
    pub fn rewind_to(&mut self, offset: u64) {
        self.acked = offset.min(self.len);
        self.sent = self.acked;
    }
    /// The coordinator holds the stream up to `offset`. Acks never go back, and may run ahead of what this attach
    /// sent, when an earlier one had sent it.
    pub fn ack(&mut self, offset: u64) {
        self.acked = self.acked.max(offset.min(self.len));
        self.sent = self.sent.max(self.acked);
    }
    /// There is nothing to read from `len` on, whatever the host said: what is there is all there will be.
    pub fn cut_at(&mut self, len: u64) {
        self.len = len.max(self.acked);
        self.sent = self.sent.min(self.len);
        self.cut = true;
    }
    /// What was on its way is lost: send it again.
    pub fn forget_in_flight(&mut self) {
        self.sent = self.acked;
    }
    /// Whether the rest may ride in the result: short, readable, and nothing before it still on its way.
    fn settled(&self) -> bool {
        self.in_flight() == 0 && self.unsent() <= INLINE && (self.unsent() == 0 || self.file.is_some())
    }
}

/// How an attempt ended, until the coordinator acks it.
#[derive(Debug, Default)]
pub struct End {
    pub state: i32,
    pub outcome: v1::Outcome,
    /// Handed out in this attach.
    pub sent: bool,
    pub artifacts: Artifacts,
    /// Of artifacts, the host's word alone: those that were not collected, and their number.
    pub said: (Vec<v1::ArtifactSkipped>, u64),
}

impl End {
    /// What the coordinator said of artifacts was said in an attach that is over.
    pub fn unsay_artifacts(&mut self) {
        self.outcome.artifacts.clear();
        (self.outcome.artifacts_skipped, self.outcome.artifacts_skipped_count) = self.said.clone();
    }
}

/// Artifacts of an attempt that has ended: with the coordinator before its result is.
#[derive(Debug, Default)]
pub struct Artifacts {
    pub parts: Vec<ArtifactPart>,
    /// Given by the host with the end.
    pub file: Option<Arc<File>>,
    pub sending: Sending,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Sending {
    #[default]
    Wanted,
    UnderWay,
    /// The coordinator has all of them, in this attach: one that was started anew does not know of them.
    Done,
}

impl Artifacts {
    pub fn settled(&self) -> bool {
        self.parts.is_empty() || self.sending == Sending::Done
    }
}

#[derive(Debug, Default)]
pub struct Attempt {
    pub stdout: Spool,
    pub stderr: Spool,
    pub end: Option<Box<End>>,
    /// The host knows it. Noops never get there.
    pub on_host: bool,
    /// The host said that it started.
    pub started: bool,
    /// The host announced its end, which has not arrived yet: a link that is new here.
    pub end_announced: bool,
    /// The coordinator wants nothing of it any more: forget it as soon as it has ended.
    pub discarded: bool,
    /// Unsent bytes are old enough to be streamed though they are few.
    pub aged: bool,
    /// A timer for `aged` runs.
    pub ageing: bool,
    /// Stands in the line of those with something to stream.
    pub in_line: bool,
}

impl Attempt {
    pub fn spool(&mut self, stream: v1::Stream) -> &mut Spool {
        if stream == v1::Stream::Stderr { &mut self.stderr } else { &mut self.stdout }
    }
    pub fn spools(&mut self) -> [(v1::Stream, &mut Spool); 2] {
        [(v1::Stream::Stdout, &mut self.stdout), (v1::Stream::Stderr, &mut self.stderr)]
    }
    pub fn running(&self) -> bool {
        self.end.is_none()
    }
    pub fn in_flight(&self) -> u64 {
        self.stdout.in_flight() + self.stderr.in_flight()
    }
    /// The result may go: all that came before its tails is with the coordinator.
    pub fn result_ready(&self) -> bool {
        !self.discarded
            && self.end.as_ref().is_some_and(|end| !end.sent && end.artifacts.settled())
            && self.stdout.settled()
            && self.stderr.settled()
    }
    /// The stream to send from next, if any should be sent now. Short output of an attempt that has ended, or may
    /// end any moment, waits for the result.
    pub fn streams_now(&self) -> Option<v1::Stream> {
        if self.discarded {
            return None;
        }
        let wants = |spool: &Spool| {
            let eager = spool.unsent() > INLINE || (self.running() && self.aged && spool.unsent() > 0);
            eager && spool.file.is_some()
        };
        match (wants(&self.stdout), wants(&self.stderr)) {
            // The one that is behind goes first, so that a flood on one cannot hold back the other.
            (true, true) if self.stderr.sent < self.stdout.sent => Some(v1::Stream::Stderr),
            (true, _) => Some(v1::Stream::Stdout),
            (false, true) => Some(v1::Stream::Stderr),
            (false, false) => None,
        }
    }
    /// Few bytes that wait for more, or for the end.
    pub fn has_young_output(&self) -> bool {
        self.running() && !self.discarded && !self.aged && self.stdout.unsent() + self.stderr.unsent() > 0
    }
}
