//! A cluster that ends with us.

use std::{
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use cooper_common::{clock, error::Code};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{
    context::Context,
    failure::{Failure, Result},
};

/// `up` takes less; what is left then is ended by force.
const STOP_MS: u64 = 8_000;
const LOOK: Duration = Duration::from_millis(20);

pub struct Embedded {
    up: Child,
    pub url: String,
}

impl Embedded {
    /// Starts `cooper up` on a port that is free, with the settings that hold here. Its notes and errors go where ours do.
    pub fn start(context: &Context) -> Result<Self> {
        let fail =
            |error: std::io::Error| Failure::new(Code::Internal, format!("cannot start a cluster: {error}"));
        let mut command = Command::new(std::env::current_exe().map_err(fail)?);
        command.args(["up", "--json", "--listen", "127.0.0.1:0"]);
        command.args(["--supervisor", &std::process::id().to_string()]);
        if let Some(data) = &context.global.data {
            command.arg("--data").arg(data);
        }
        if let Some(config) = &context.global.config {
            command.arg("--config").arg(config);
        }
        // Whoever ends us by our group leaves it to end in order.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut up = command.spawn().map_err(fail)?;
        let mut said = String::new();
        if let Some(out) = up.stdout.take() {
            BufReader::new(out).read_line(&mut said).map_err(fail)?;
        }
        let ready: Value = serde_json::from_str(&said).unwrap_or_default();
        let mut embedded = Self { up, url: String::new() };
        match ready["url"].as_str() {
            Some(url) => embedded.url = url.to_owned(),
            None => {
                return Err(Failure::new(Code::Unavailable, "the cluster did not start")
                    .hint("see what it said above; `cooper doctor` says what is missing"));
            }
        }
        Ok(embedded)
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        let pid = i32::try_from(self.up.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = kill_process(pid, Signal::TERM);
        }
        let until = clock::mono_ms() + STOP_MS;
        while clock::mono_ms() < until {
            match self.up.try_wait() {
                Ok(None) => thread::sleep(LOOK),
                _ => return,
            }
        }
        let _ = self.up.kill();
        let _ = self.up.wait();
    }
}
