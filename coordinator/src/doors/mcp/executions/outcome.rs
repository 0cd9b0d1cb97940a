//! How an execution went: for programs, and as one would see it in a terminal.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use cooper_common::limits;
use cooper_proto::v1::{self, TaskState};
use rmcp::model::ContentBlock;
use schemars::JsonSchema;
use serde::Serialize;

use super::super::{resources, tool::Reply};

/// How an execution went, so far.
#[derive(Default, Serialize, JsonSchema)]
pub struct Execution {
    /// For exec_poll, exec_signal and exec_write_stdin.
    pub exec_id: String,
    pub session_id: String,
    pub status: Status,
    /// The session was made for this call: it is new and empty.
    #[serde(skip_serializing_if = "is_false")]
    pub session_created: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    /// Where exec_poll goes on.
    pub next_stdout_offset: u64,
    pub next_stderr_offset: u64,
    /// There is more output than this: exec_poll gives it.
    pub truncated: bool,
    /// Value of the last expression, as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// Media types of what was displayed; images come as image content.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub displays: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
    /// Files beneath `artifacts/` that it made or changed, and that are kept now.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<Kept>,
    /// The interpreter was started anew: variables from before are gone.
    #[serde(skip_serializing_if = "is_false")]
    pub interpreter_restarted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    #[serde(skip)]
    pub images: Vec<(String, Vec<u8>)>,
}

#[derive(Default, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    #[default]
    Queued,
    Running,
    Ok,
    Error,
    Timeout,
    Oom,
    Killed,
    Cancelled,
    Lost,
}

#[derive(Serialize, JsonSchema)]
pub struct Failure {
    /// The exception's class, or a code of Cooper's.
    pub name: String,
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceback: Option<String>,
    /// What to do next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

#[derive(Serialize, JsonSchema)]
pub struct Kept {
    pub name: String,
    pub size_bytes: u64,
    pub media_type: String,
    pub uri: String,
}

#[derive(Serialize, JsonSchema)]
pub struct Usage {
    pub wall_ms: u64,
    pub cpu_ms: u64,
    pub peak_memory_bytes: u64,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

impl Reply for Execution {
    fn content(&self) -> Vec<ContentBlock> {
        let mut content = vec![ContentBlock::text(self.text())];
        content.extend(
            self.images
                .iter()
                .map(|(media_type, bytes)| ContentBlock::image(STANDARD.encode(bytes), media_type)),
        );
        content
    }
}

impl Execution {
    /// As one would see it in a terminal; what is not plain success is said last.
    fn text(&self) -> String {
        let mut parts = Vec::new();
        if !self.stdout.is_empty() {
            parts.push(self.stdout.trim_end_matches('\n').to_owned());
        }
        if !self.stderr.is_empty() {
            parts.push(format!("[stderr]\n{}", self.stderr.trim_end_matches('\n')));
        }
        if let Some(result) = &self.result {
            parts.push(format!("[result] {result}"));
        }
        if let Some(error) = &self.error {
            parts.push(match &error.traceback {
                Some(traceback) => traceback.trim_end().to_owned(),
                None => format!("{}: {}", error.name, error.message),
            });
            parts.extend(error.hint.as_ref().map(|hint| format!("What to do: {hint}")));
        }
        for kept in &self.artifacts {
            parts.push(format!("[artifact] {} ({} bytes): {}", kept.name, kept.size_bytes, kept.uri));
        }
        let word = serde_json::to_value(self.status).unwrap_or_default();
        let word = word.as_str().unwrap_or_default();
        match self.status {
            Status::Ok => {}
            Status::Queued | Status::Running => parts.push(format!(
                "[{word}] go on with exec_poll: exec_id {}, stdout_offset {}, stderr_offset {}",
                self.exec_id, self.next_stdout_offset, self.next_stderr_offset
            )),
            _ => {
                let exit = self.exit_code.map(|code| format!(", exit code {code}")).unwrap_or_default();
                parts.push(format!("[{word}{exit}]"));
            }
        }
        if self.truncated && !matches!(self.status, Status::Queued | Status::Running) {
            parts.push(format!("[output was cut; exec_poll of {} gives the rest]", self.exec_id));
        }
        if self.interpreter_restarted {
            parts.push("[the interpreter was started anew: earlier variables are gone]".to_owned());
        }
        if self.session_created {
            parts.push(format!("[new session {}]", self.session_id));
        }
        if parts.is_empty() { "(no output)".to_owned() } else { parts.join("\n") }
    }
}

pub fn status_of(task: &v1::Task) -> Status {
    let oom = task.outcome.as_ref().is_some_and(|outcome| outcome.oom);
    let killed = task
        .outcome
        .as_ref()
        .and_then(|outcome| outcome.error.as_ref())
        .is_some_and(|error| error.code == "killed");
    match task.state() {
        TaskState::Unspecified | TaskState::Queued | TaskState::Assigned => Status::Queued,
        TaskState::Running => Status::Running,
        TaskState::Succeeded => Status::Ok,
        TaskState::Failed if oom => Status::Oom,
        TaskState::Failed if killed => Status::Killed,
        TaskState::Failed => Status::Error,
        TaskState::TimedOut => Status::Timeout,
        TaskState::Cancelled => Status::Cancelled,
        TaskState::Lost | TaskState::DeadLetter => Status::Lost,
    }
}

impl Execution {
    /// Takes what came of it.
    pub fn end(&mut self, task: v1::Task) {
        self.status = status_of(&task);
        let Some(outcome) = task.outcome else { return };
        self.exit_code = Some(outcome.exit_code);
        self.truncated |= outcome.stdout_truncated || outcome.stderr_truncated;
        self.interpreter_restarted = outcome.interpreter_restarted;
        if let Some(usage) = outcome.usage {
            let v1::Usage { wall_ms, cpu_ms, peak_memory_bytes, .. } = usage;
            self.usage = Some(Usage { wall_ms, cpu_ms, peak_memory_bytes });
        }
        self.error = match (outcome.exception, outcome.error) {
            (Some(exception), _) => Some(Failure {
                name: exception.name,
                message: exception.value,
                traceback: Some(exception.traceback),
                hint: None,
            }),
            (None, Some(error)) => Some(Failure {
                name: error.code,
                message: error.message,
                traceback: None,
                hint: Some(error.hint).filter(|hint| !hint.is_empty()),
            }),
            (None, None) => None,
        };
        for bundle in outcome.displays {
            self.show(bundle);
        }
        if let Some(result) = outcome.result {
            self.result = result.data.get("text/plain").map(|text| cut(text));
            self.show(result);
        }
        let session_id = &self.session_id;
        self.artifacts = outcome
            .artifacts
            .into_iter()
            .map(|kept| Kept {
                uri: resources::artifact_uri(session_id, &kept.name),
                name: kept.name,
                size_bytes: kept.size_bytes,
                media_type: kept.media_type,
            })
            .collect();
    }

    /// An image is seen, as long as all of them fit into one answer; of anything else is said that it was there.
    fn show(&mut self, bundle: v1::MimeBundle) {
        let mut data: Vec<_> = bundle.data.into_iter().collect();
        data.sort();
        // One picture of what is shown, not each of its forms.
        let image = data.iter().position(|(kind, _)| is_image(kind));
        self.displays.extend(data.iter().map(|(kind, _)| kind.clone()).filter(|kind| kind != "text/plain"));
        if let Some(at) = image {
            let shown: usize = self.images.iter().map(|(_, bytes)| bytes.len()).sum();
            let (kind, bytes) = data.swap_remove(at);
            match shown + bytes.len() <= limits::mcp::IMAGE_BYTES_MAX {
                true => self.images.push((kind, bytes)),
                false => self
                    .displays
                    .push("(an image was too large to show: save it beneath artifacts/)".to_owned()),
            }
        }
    }
}

fn is_image(kind: &str) -> bool {
    matches!(kind, "image/png" | "image/jpeg" | "image/gif" | "image/webp")
}

fn cut(text: &[u8]) -> String {
    let most = limits::mcp::OUTPUT_BYTES;
    let shown = String::from_utf8_lossy(&text[..text.len().min(most)]).into_owned();
    if text.len() > most { format!("{shown}… ({} bytes in all)", text.len()) } else { shown }
}
