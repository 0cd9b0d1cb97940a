//! What shows why a step failed, taken before a rollback removes it: the next attempt goes by it.

use cooper_common::error::{Code, Result};
use cooper_repair::diagnosis::Phase;
use cooper_repair::step::{Artifact, Failure, Report};

use super::Step;

impl Step<'_> {
    /// A restart or a verification that failed, with what its container says.
    pub(super) async fn shown(&self, result: Result<Report>) -> Result<Report> {
        let error = match result {
            Err(error) if matches!(error.code, Code::StepFailed | Code::VerifyFailed) => error,
            result => return result,
        };
        let message = self.log.redact(&error.message);
        let mut report =
            Report { code: error.code.as_str().to_owned(), message: message.clone(), ..Report::default() };
        // What cannot be looked at is not there; the failure is told all the same.
        let Some(seen) = self.container().await.ok().flatten() else {
            report.failure = Some(Failure { phase: Phase::Runtime, log: message, state: None });
            return Ok(report);
        };
        let said = self.engine.logs(&seen.id).await.unwrap_or_default();
        let said = self.log.redact(&String::from_utf8_lossy(&said));
        if !said.is_empty() {
            report.artifacts.push(Artifact { name: "container.log".to_owned(), content: said.clone() });
        }
        // A container that could not even be started has said nothing: then compose has.
        let log = if error.code == Code::StepFailed { format!("{said}\n{message}\n") } else { said };
        let phase = if seen.is_running() { Phase::Health } else { Phase::Runtime };
        report.failure = Some(Failure { phase, log, state: Some(self.redacted(&seen)) });
        Ok(report)
    }

    /// A build that failed, with what it printed.
    pub(super) fn not_built(&self, message: &str, output: &[u8]) -> Report {
        let log = self.log.redact(&String::from_utf8_lossy(output));
        Report {
            code: Code::StepFailed.as_str().to_owned(),
            message: self.log.redact(message),
            failure: Some(Failure { phase: Phase::Build, log, state: None }),
            ..Report::default()
        }
    }
}
