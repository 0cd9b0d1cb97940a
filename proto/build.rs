//! Generates the contract's Rust types with protox, so that no `protoc` binary is needed.
use protox::prost::Message;
use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let files = [
        "cooper/v1/common.proto",
        "cooper/v1/sessions.proto",
        "cooper/v1/checkpoints.proto",
        "cooper/v1/templates.proto",
        "cooper/v1/secrets.proto",
        "cooper/v1/tasks.proto",
        "cooper/v1/executions.proto",
        "cooper/v1/runs.proto",
        "cooper/v1/admin.proto",
        "cooper/v1/link.proto",
        "cooper/host/v1/host.proto",
    ];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?).join("cooper.bin");
    fs::write(out, descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".cooper.v1.Output.data")
        .bytes(".cooper.v1.Assign.spec")
        .compile_fds(descriptors)?;
    Ok(())
}
