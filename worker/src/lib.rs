//! A worker: the host process holds everything that runs, the link process talks to the coordinator.

pub mod config;
pub mod confine;
pub mod egress;
mod etag;
pub mod frame;
pub mod host;
pub mod link;
pub mod slot;
pub mod stack;
