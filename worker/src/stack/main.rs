//! The process of one step: what it is to do comes on file descriptor 3, what came of it goes to 4, its log to stdout.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use prost::Message;
use tokio::signal::unix::{SignalKind, signal};

use cooper_common::error::{Code, Error, Result};
use cooper_proto::v1::StepSpec;
use cooper_repair::step::{Input, Report};

use super::{Context, Log, While, perform};

/// A report that is larger is cut: a result travels in one message of the link.
const REPORT_BYTES_MAX: usize = 6 << 20;
/// From SIGTERM for the children to SIGKILL for everything of the step.
const GRACE: Duration = Duration::from_millis(1_500);

/// Entry of `cooper worker-step`. Exits 0 whenever a report was written, also one of failure.
pub fn main() -> ExitCode {
    let log = Log::new(std::io::stdout());
    // A process group of its own, so that nothing it started outlives it. Refused if it is a leader already: fine.
    let _ = rustix::process::setpgid(None, None);
    let report = run(&log).unwrap_or_else(|error| Report {
        code: error.code.as_str().to_owned(),
        message: log.redact(&error.message),
        ..Report::default()
    });
    let written = write(report);
    let _ = log.flush();
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cooper worker-step: {}", error.message);
            ExitCode::FAILURE
        }
    }
}

fn run(log: &Log) -> Result<Report> {
    let bytes = fs::read("/proc/self/fd/3").while_doing("reading what to do from file descriptor 3")?;
    let spec = StepSpec::decode(bytes.as_slice()).while_doing("reading what to do")?;
    let input: Input = serde_json::from_slice(&spec.input_json).while_doing("reading the step's input")?;
    let context = Context {
        run: spec.run_id.parse().map_err(|error| Error::invalid(format!("{error}")))?,
        worker_dir: PathBuf::from(variable("COOPER_WORKER_DIR")?),
        stacks: stacks()?,
        log: log.clone(),
    };
    fs::create_dir_all(&context.worker_dir).while_doing("making the worker's directory")?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().while_doing("starting")?;
    runtime.block_on(async {
        let (mut terminate, mut interrupt) = (
            signal(SignalKind::terminate()).while_doing("starting")?,
            signal(SignalKind::interrupt()).while_doing("starting")?,
        );
        tokio::select! {
            report = perform(&input, &context) => Ok(report),
            _ = terminate.recv() => end(log).await,
            _ = interrupt.recv() => end(log).await,
        }
    })
}

/// Ends everything the step has started, and the step with it.
async fn end(log: &Log) -> Result<Report> {
    log.say("stopping: the step was cancelled");
    let _ = log.flush();
    let group = rustix::process::getpgrp();
    // Only a group of its own may be ended; what else descends from the step, the host ends.
    if group == rustix::process::getpid() {
        // The signal streams are in place, so this one does not end the step itself.
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::TERM);
        tokio::time::sleep(GRACE).await;
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    Err(Error::new(Code::Cancelled, "the step was cancelled"))
}

fn stacks() -> Result<BTreeMap<String, PathBuf>> {
    let path = variable("COOPER_STACKS_FILE")?;
    let text = fs::read(&path).while_doing("reading COOPER_STACKS_FILE")?;
    serde_json::from_slice(&text).while_doing("reading COOPER_STACKS_FILE")
}

fn variable(name: &str) -> Result<std::ffi::OsString> {
    std::env::var_os(name).ok_or_else(|| Error::new(Code::ConfigInvalid, format!("{name} is not set")))
}

fn write(report: Report) -> Result<()> {
    let bytes = serialized(report)?;
    let mut to: File = fs::OpenOptions::new()
        .write(true)
        .open("/proc/self/fd/4")
        .while_doing("opening file descriptor 4")?;
    to.write_all(&bytes).while_doing("writing the report")
}

/// The report as JSON, its logs cut until it fits.
fn serialized(mut report: Report) -> Result<Vec<u8>> {
    loop {
        let bytes = serde_json::to_vec(&report).while_doing("writing the report")?;
        if bytes.len() <= REPORT_BYTES_MAX {
            return Ok(bytes);
        }
        let evidence = report.evidence.as_mut();
        let logs = evidence.into_iter().flat_map(|found| [&mut found.container_log, &mut found.build_log]);
        let texts = logs.chain(report.artifacts.iter_mut().map(|artifact| &mut artifact.content));
        match texts.max_by_key(|text| text.len()).filter(|text| text.len() > 1024) {
            // A failure is nearly always at the end.
            Some(text) => {
                *text = format!("[... cut ...]\n{}", &text[text.ceil_char_boundary(text.len() / 2)..])
            }
            None => return Err(Error::internal(format!("a report of {} bytes", bytes.len()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cooper_repair::step::Artifact;

    #[test]
    fn a_report_is_cut_to_what_a_message_can_carry() {
        let content = format!("{}end", "\u{1b}é".repeat(2 << 20));
        let report = Report { artifacts: vec![Artifact { name: "a".into(), content }], ..Report::default() };
        let bytes = serialized(report).expect("it fits");
        assert!(bytes.len() <= REPORT_BYTES_MAX);
        let read: Report = serde_json::from_slice(&bytes).expect("a report");
        assert!(
            read.artifacts[0].content.starts_with("[... cut") && read.artifacts[0].content.ends_with("end")
        );
    }
}
