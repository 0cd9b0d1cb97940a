//! What the harness and the checker share, and nothing else: the form of the journals, and what a piece of work prints.

pub mod journal;
pub mod work;
