//! The contract: generated from `cooper/v1/*.proto` (documented there, field by field) and the host protocol.
#![allow(clippy::all)]

mod cooper {
    pub mod v1 {
        tonic::include_proto!("cooper.v1");
    }
    pub mod host {
        pub mod v1 {
            tonic::include_proto!("cooper.host.v1");
        }
    }
}

/// What host and link of one worker say to each other.
pub use cooper::host::v1 as host;
/// Client, administration and worker-link services.
pub use cooper::v1;

/// Descriptors of everything above, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/cooper.bin"));
