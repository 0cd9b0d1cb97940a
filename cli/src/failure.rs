//! How a command ends when it does not end well.

use std::io;

use cooper_common::error::{Code, Error};
use serde_json::json;
use tonic_types::StatusExt;

pub type Result<T, E = Failure> = std::result::Result<T, E>;

#[derive(Debug)]
pub enum Failure {
    /// Reported on standard error as `error[code]: message` and a hint.
    Error(Report),
    /// Everything is said; only the status is left.
    Exit(u8),
    /// Whoever read our output went away: nothing to say, nobody to say it to.
    Pipe,
}

/// An error to show. The code is text: a newer coordinator may know codes that this build does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub code: String,
    pub message: String,
    pub hint: String,
    pub exit: u8,
}

/// Like a shell shows a process that SIGPIPE ended.
pub const EXIT_PIPE: u8 = 141;
/// Cooper's own error where other statuses belong to the code that ran.
pub const EXIT_COOPER: u8 = 125;

impl Report {
    pub fn to_json(&self) -> serde_json::Value {
        json!({"error": {"code": self.code, "message": self.message, "hint": self.hint}})
    }
}

impl Failure {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Error::new(code, message).into()
    }
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        if let Failure::Error(report) = &mut self {
            report.hint = hint.into();
        }
        self
    }
    /// The same, ending with another status.
    pub fn exit(mut self, exit: u8) -> Self {
        if let Failure::Error(report) = &mut self {
            report.exit = exit;
        }
        self
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let hint = error.hint().to_owned();
        Failure::Error(Report { code: error.code.as_str().to_owned(), message: error.message, hint, exit: 1 })
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::Pipe,
            _ => Failure::new(Code::Internal, format!("cannot write output: {error}")).hint(""),
        }
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        if let Some(info) = status.get_details_error_info() {
            let known = Code::parse(&info.reason);
            let hint = info.metadata.get("hint").cloned();
            return Failure::Error(Report {
                hint: hint.or(known.map(|code| code.hint().to_owned())).unwrap_or_default(),
                code: info.reason,
                message: status.message().to_owned(),
                exit: 1,
            });
        }
        if is_cut(&status) {
            return Failure::new(
                Code::Unavailable,
                format!("the connection to the coordinator broke: {}", cause(&status)),
            )
            .hint("see that it runs (`cooper up`), then try again");
        }
        let code = match status.code() {
            tonic::Code::InvalidArgument | tonic::Code::OutOfRange => Code::InvalidArgument,
            tonic::Code::Unauthenticated => Code::Unauthenticated,
            tonic::Code::PermissionDenied => Code::Forbidden,
            tonic::Code::DeadlineExceeded => Code::TimedOut,
            tonic::Code::ResourceExhausted => Code::Overloaded,
            tonic::Code::Unimplemented => {
                return Failure::new(Code::ProtocolVersion, "the coordinator does not know this request");
            }
            _ => Code::Internal,
        };
        Failure::new(code, status.message())
    }
}

/// True when the connection, or a coordinator that waits for its store, ended a call: the call may be taken up again.
pub fn is_cut(status: &tonic::Status) -> bool {
    if let Some(info) = status.get_details_error_info() {
        return [Code::Unavailable, Code::StoreUnavailable].iter().any(|code| info.reason == code.as_str());
    }
    matches!(status.code(), tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::Cancelled)
        || (status.code() == tonic::Code::Internal && std::error::Error::source(status).is_some())
        || (status.code() == tonic::Code::Internal && status.message().contains("h2 protocol error"))
}

/// The innermost reason of a transport error, e.g. "Connection refused (os error 111)".
pub fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    let text = innermost.to_string();
    match text.split_once(" (os error") {
        Some((reason, _)) => reason.to_lowercase(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use tonic_types::{ErrorDetails, StatusExt};

    fn status_with(reason: &str, hint: Option<&str>) -> tonic::Status {
        let metadata: HashMap<_, _> =
            hint.map(|hint| ("hint".to_owned(), hint.to_owned())).into_iter().collect();
        let details = ErrorDetails::with_error_info(reason, "cooper", metadata);
        tonic::Status::with_error_details(tonic::Code::NotFound, "session \"x\" does not exist", details)
    }
    fn report(failure: Failure) -> Report {
        match failure {
            Failure::Error(report) => report,
            other => panic!("{other:?} is not an error"),
        }
    }

    #[test]
    fn a_status_keeps_its_code_message_and_hint() {
        let report = report(status_with("session_not_found", Some("look again")).into());
        assert_eq!((report.code.as_str(), report.hint.as_str()), ("session_not_found", "look again"));
        assert_eq!((report.message.as_str(), report.exit), ("session \"x\" does not exist", 1));
    }

    #[test]
    fn a_status_without_a_hint_has_that_of_its_code_and_an_unknown_code_survives() {
        assert!(report(status_with("session_not_found", None).into()).hint.contains("cooper session list"));
        assert_eq!(report(status_with("code_of_tomorrow", None).into()).code, "code_of_tomorrow");
    }

    #[test]
    fn only_a_broken_connection_is_a_cut() {
        assert!(is_cut(&tonic::Status::unavailable("gone")));
        assert!(is_cut(&status_with("unavailable", None)));
        assert!(!is_cut(&status_with("session_not_found", None)));
        assert!(!is_cut(&tonic::Status::internal("a fault")));
        assert!(!is_cut(&tonic::Status::unauthenticated("no")));
    }

    #[test]
    fn a_closed_pipe_is_not_an_error() {
        assert!(matches!(Failure::from(io::Error::from(io::ErrorKind::BrokenPipe)), Failure::Pipe));
    }
}
