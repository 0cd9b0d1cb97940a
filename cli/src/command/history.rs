//! `cooper session history`: what has run in a session, as a table, as JSON, or as a Jupyter notebook.

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

use cooper_common::{error::Code, limits::exec};
use cooper_proto::v1::{SessionHistoryRequest, SessionHistoryResponse, Task, task_spec::Kind};
use serde_json::{Value, json};

use super::notebook;
use crate::{
    connect::Client,
    context::Context,
    failure::{Failure, Result},
    output::json,
    units,
};

pub async fn run(context: &Context, client: &Client, session: String, ipynb: Option<&Path>) -> Result<u8> {
    let output_bytes = if ipynb.is_some() { exec::OUTPUT_READ_BYTES_MAX as u32 } else { 0 };
    let request = SessionHistoryRequest { session_id: session, output_bytes };
    let mut stream = client.executions().session_history(request).await?.into_inner();
    let mut rows = Vec::new();
    let mut documents: Vec<Value> = Vec::new();
    let mut cells = notebook::Notebook::default();
    while let Some(entry) = stream.message().await? {
        let SessionHistoryResponse { task: Some(task), .. } = &entry else { continue };
        if ipynb.is_some() {
            cells.add(task, &entry.stdout, &entry.stderr);
        } else if context.out.json {
            documents.push(document(task));
        } else {
            rows.push(row(rows.len() + 1, task));
        }
    }
    match ipynb {
        Some(file) => write(file, &cells.finish())?,
        None if context.out.json => context.out.document(&json!({"executions": documents}))?,
        None => context.out.table(&["", "task", "state", "kind", "what", "took", "result"], rows)?,
    }
    Ok(0)
}

fn write(file: &Path, notebook: &Value) -> Result<()> {
    let mut text = serde_json::to_string_pretty(notebook).map_err(io::Error::from)?;
    text.push('\n');
    if file == Path::new("-") {
        return Ok(io::stdout().lock().write_all(text.as_bytes())?);
    }
    fs::write(file, text).map_err(|error| {
        Failure::new(Code::NotAFile, format!("cannot write {}: {error}", file.display()))
            .hint("name another file")
    })
}

fn document(task: &Task) -> Value {
    let mut value = json::task(task);
    let spec = task.spec.as_ref();
    let what = match spec.and_then(|spec| spec.kind.as_ref()) {
        Some(Kind::Python(python)) => {
            json!({"code": python.code, "args": python.args, "filename": python.filename})
        }
        Some(Kind::Shell(shell)) => json!({"argv": shell.argv}),
        Some(Kind::Install(install)) => json!({"packages": install.packages}),
        _ => json!({}),
    };
    if let (Some(fields), Value::Object(mut what)) = (value.as_object_mut(), what) {
        fields.append(&mut what);
    }
    value
}

fn row(number: usize, task: &Task) -> Vec<String> {
    let (kind, what) = json::task_kind(task.spec.as_ref());
    vec![
        number.to_string(),
        task.id.clone(),
        json::task_state(task.state()),
        kind.to_owned(),
        short(&what),
        units::between(task.started_at_ms, task.ended_at_ms),
        short(&summary(task)),
    ]
}

/// The value, the exception, or the status; in a line.
fn summary(task: &Task) -> String {
    let Some(outcome) = &task.outcome else { return String::new() };
    if let Some(exception) = &outcome.exception {
        return format!("{}: {}", exception.name, exception.value);
    }
    if let Some(error) = &outcome.error {
        return error.code.clone();
    }
    let text = outcome.result.as_ref().and_then(|result| result.data.get("text/plain"));
    match text {
        Some(text) => String::from_utf8_lossy(text).into_owned(),
        None if outcome.exit_code != 0 => format!("exit code {}", outcome.exit_code),
        None => String::new(),
    }
}

fn short(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let mut cut: String = line.chars().take(40).collect();
    if cut.len() < text.trim_end().len() {
        cut.push('…');
    }
    cut
}
