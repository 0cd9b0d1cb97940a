//! A session's history as a Jupyter notebook, nbformat 4.5.

use base64::{Engine, engine::general_purpose::STANDARD};
use cooper_proto::v1::{ExecutionMode, MimeBundle, Outcome, Task, TaskState, task_spec::Kind};
use serde_json::{Map, Value, json};

use crate::output::json as document;

#[derive(Default)]
pub struct Notebook {
    cells: Vec<Value>,
    /// Executions of Python code so far, as a kernel counts them.
    count: u64,
}

impl Notebook {
    /// Adds an execution as a cell. A command is one that a kernel would hand to a shell.
    pub fn add(&mut self, task: &Task, stdout: &[u8], stderr: &[u8]) {
        let mut about = json!({"task_id": task.id, "state": document::task_state(task.state())});
        let source = match task.spec.as_ref().and_then(|spec| spec.kind.as_ref()) {
            Some(Kind::Python(python)) => {
                if python.mode() == ExecutionMode::Fresh {
                    about["mode"] = json!("fresh");
                }
                if !python.args.is_empty() {
                    about["args"] = json!(python.args);
                }
                python.code.clone()
            }
            Some(Kind::Shell(shell)) => {
                let words: Vec<String> = shell.argv.iter().map(|word| quoted(word)).collect();
                format!("%%sh\n{}", words.join(" "))
            }
            Some(Kind::Install(install)) => {
                let packages: Vec<String> = install.packages.iter().map(|package| quoted(package)).collect();
                format!("%pip install {}", packages.join(" "))
            }
            _ => return,
        };
        self.count += 1;
        let empty = Outcome::default();
        let outcome = task.outcome.as_ref().unwrap_or(&empty);
        let mut outputs = Vec::new();
        for (name, bytes) in [("stdout", stdout), ("stderr", stderr)] {
            if !bytes.is_empty() {
                let text = String::from_utf8_lossy(bytes);
                outputs.push(json!({"output_type": "stream", "name": name, "text": lines(&text)}));
            }
        }
        for display in &outcome.displays {
            outputs.push(json!({"output_type": "display_data", "data": bundle(display), "metadata": {}}));
        }
        if let Some(result) = &outcome.result {
            outputs.push(json!({
                "output_type": "execute_result",
                "execution_count": self.count,
                "data": bundle(result),
                "metadata": {},
            }));
        }
        if let Some(exception) = &outcome.exception {
            let traceback: Vec<&str> = exception.traceback.lines().collect();
            outputs.push(error(&exception.name, &exception.value, &traceback));
        } else if let Some(why) = &outcome.error {
            outputs.push(error(&why.code, &why.message, &[&format!("{}: {}", why.code, why.message)]));
        } else if task.state() == TaskState::Failed {
            let status = outcome.exit_code.to_string();
            outputs.push(error("ExitStatus", &status, &[&format!("it ended with status {status}")]));
        }
        self.cells.push(json!({
            "cell_type": "code",
            "id": cell_id(&task.id),
            "execution_count": self.count,
            "metadata": {"cooper": about},
            "source": lines(&source),
            "outputs": outputs,
        }));
    }

    pub fn finish(self) -> Value {
        json!({
            "nbformat": 4,
            "nbformat_minor": 5,
            "metadata": {
                "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
                "language_info": {"name": "python"},
            },
            "cells": self.cells,
        })
    }
}

fn error(name: &str, value: &str, traceback: &[&str]) -> Value {
    json!({"output_type": "error", "ename": name, "evalue": value, "traceback": traceback})
}

/// 1 to 64 of letters, digits, - and _.
fn cell_id(task: &str) -> String {
    task.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')).take(64).collect()
}

/// Text as nbformat has it: lines with their ends.
fn lines(text: &str) -> Vec<&str> {
    text.split_inclusive('\n').collect()
}

/// JSON is JSON, what is text is text, all else is base64.
fn bundle(bundle: &MimeBundle) -> Value {
    let mut data = Map::new();
    for (mime, bytes) in &bundle.data {
        let is_json = mime == "application/json" || mime.ends_with("+json");
        let value = match std::str::from_utf8(bytes) {
            Ok(text) if is_json => serde_json::from_str(text).unwrap_or_else(|_| json!(text)),
            Ok(text) if mime.starts_with("text/") || mime == "image/svg+xml" => json!(lines(text)),
            _ => json!(STANDARD.encode(bytes)),
        };
        data.insert(mime.clone(), value);
    }
    Value::Object(data)
}

/// As a shell takes it for one word.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cooper_proto::v1::{PythonError, PythonSpec, ShellSpec, TaskSpec};

    fn task(kind: Kind, outcome: Outcome) -> Task {
        let spec = Some(TaskSpec { kind: Some(kind), ..TaskSpec::default() });
        Task { id: "tsk_1".to_owned(), spec, outcome: Some(outcome), ..Task::default() }
    }

    #[test]
    fn values_streams_and_errors_are_cells_as_nbformat_has_them() {
        let data = [
            ("text/plain", b"a\nb".to_vec()),
            ("application/json", b"{\"x\": 1}".to_vec()),
            ("image/png", vec![0x89, 0x50]),
        ];
        let data = data.into_iter().map(|(mime, bytes)| (mime.to_owned(), bytes)).collect();
        let result = Some(MimeBundle { data, truncated: Vec::new() });
        let mut notebook = Notebook::default();
        let python = |code: &str| Kind::Python(PythonSpec { code: code.to_owned(), ..PythonSpec::default() });
        notebook.add(&task(python("x = 1\nx"), Outcome { result, ..Outcome::default() }), b"out\n", b"");
        let exception = Some(PythonError {
            name: "ValueError".to_owned(),
            value: "no".to_owned(),
            traceback: "Traceback\nValueError: no\n".to_owned(),
        });
        notebook.add(
            &task(python("raise"), Outcome { exception, exit_code: 1, ..Outcome::default() }),
            b"",
            b"",
        );
        let shell =
            Kind::Shell(ShellSpec { argv: vec!["echo".to_owned(), "it's".to_owned()], stdin: Vec::new() });
        notebook.add(&task(shell, Outcome::default()), b"it's\n", b"");
        let notebook = notebook.finish();
        let cells = &notebook["cells"];
        assert_eq!(cells[0]["source"], json!(["x = 1\n", "x"]));
        assert_eq!(
            cells[0]["outputs"][0],
            json!({"output_type": "stream", "name": "stdout", "text": ["out\n"]})
        );
        let data = &cells[0]["outputs"][1]["data"];
        assert_eq!(data["text/plain"], json!(["a\n", "b"]));
        assert_eq!((&data["application/json"], &data["image/png"]), (&json!({"x": 1}), &json!("iVA=")));
        assert_eq!(
            cells[1]["outputs"][0],
            json!({"output_type": "error", "ename": "ValueError", "evalue": "no",
                   "traceback": ["Traceback", "ValueError: no"]})
        );
        assert_eq!(cells[2]["source"], json!(["%%sh\n", "echo 'it'\\''s'"]));
    }
}
