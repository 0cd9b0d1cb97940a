//! What keeps a session from everything that is not its own.

pub mod facilities;
pub mod uids;
