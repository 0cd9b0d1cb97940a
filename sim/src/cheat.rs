//! Faults that nobody may have, planted on purpose: whoever checks must find them.

use clap::ValueEnum;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Cheat {
    /// The disk says "written" before it writes.
    AckBeforeCommit,
    /// The disk leaves out one event in a hundred.
    LoseEvents,
    /// A host that starts runs again what ran when it died.
    RunAgain,
    /// A host forgets the results that its link had not brought home when the link dies.
    ForgetResults,
    /// A host changes one byte of an output.
    FlipByte,
    /// A host keeps the last byte of an output to itself.
    DropByte,
}
