//! `cooper tasks`: list, show, follow, cancel, requeue, why one waits; and what is said to one that runs.

use std::io::{self, Read, Write};

use cooper_common::{error::Code, limits::exec as exec_limits};
use cooper_proto::v1::{
    CancelTaskRequest, ExplainTaskRequest, GetTaskRequest, ListTasksRequest, Page, ReadOutputRequest,
    RequeueTaskRequest, Signal, SignalExecutionRequest, Stream, Task,
};
use serde_json::json;

use super::{exec, follow::Follow, input::Passing};
use crate::{
    args::Tasks,
    connect::{Client, Cluster, idempotency_key},
    context::Context,
    failure::{Failure, Result},
    output::json,
    units,
};

pub async fn run(context: &Context, args: Tasks) -> Result<u8> {
    let cluster = context.cluster()?;
    if let Tasks::Follow { task } = args {
        return exec::follow_to_exit(context, Follow::task(&cluster, task)?, None).await;
    }
    let client = cluster.connect().await?;
    let mut tasks = client.tasks();
    match args {
        Tasks::List { session, state, limit, cursor } => {
            let page = Some(Page { limit, cursor });
            let states = state.into_iter().map(Into::into).collect();
            let request = ListTasksRequest { page, session_id: session.unwrap_or_default(), states };
            let answer = tasks.list_tasks(request).await?.into_inner();
            if context.out.json {
                let list: Vec<_> = answer.tasks.iter().map(json::task).collect();
                context.out.document(&json!({"tasks": list, "next_cursor": answer.next_cursor}))?;
            } else {
                let rows = answer.tasks.iter().map(row).collect();
                context.out.table(&["task", "state", "kind", "what", "took", "created"], rows)?;
            }
        }
        Tasks::Show { task } => {
            let task = tasks.get_task(GetTaskRequest { task_id: task }).await?.into_inner();
            context.out.answer(|| json::task(&task), || text(&task))?;
        }
        Tasks::Cancel { task } => {
            let request = CancelTaskRequest { task_id: task, idempotency_key: idempotency_key() };
            let task = tasks.cancel_task(request).await?.into_inner();
            context.out.answer(|| json::task(&task), || text(&task))?;
        }
        Tasks::Why { task } => {
            let why = tasks.explain_task(ExplainTaskRequest { task_id: task }).await?.into_inner();
            context.out.answer(|| json::why(&why), || format!("{}: {}", why.code, why.sentence))?;
        }
        Tasks::Requeue { task } => {
            let request = RequeueTaskRequest { task_id: task, idempotency_key: idempotency_key() };
            let task = tasks.requeue_task(request).await?.into_inner();
            context.out.answer(|| json::task(&task), || text(&task))?;
        }
        Tasks::Output { task, stderr, offset } => {
            let stream = if stderr { Stream::Stderr } else { Stream::Stdout }.into();
            let request = ReadOutputRequest { task_id: task, stream, offset_bytes: offset, length_bytes: 0 };
            output(context, &client, request).await?;
        }
        Tasks::Write { task, text, eof } => write(&cluster, task, text, eof).await?,
        Tasks::Signal { task, signal } => {
            let name = format!("SIGNAL_{}", signal.to_uppercase());
            let signal = Signal::from_str_name(&name).unwrap_or_default().into();
            let request = SignalExecutionRequest { task_id: task, signal };
            client.executions().signal_execution(request).await?;
        }
        Tasks::Kill { tasks } => {
            for task_id in tasks {
                let request = SignalExecutionRequest { task_id, signal: Signal::Kill.into() };
                client.executions().signal_execution(request).await?;
            }
        }
        Tasks::Follow { .. } => {}
    }
    Ok(0)
}

/// What is there now; as one document with --json.
async fn output(context: &Context, client: &Client, mut request: ReadOutputRequest) -> Result<()> {
    let mut executions = client.executions();
    if context.out.json {
        let answer = executions.read_output(request).await?.into_inner();
        let mut document = json!({
            "next_offset": answer.next_offset_bytes,
            "state": json::task_state(answer.state()),
            "complete": answer.complete,
        });
        json::add_stream(&mut document, "data", &answer.data);
        return context.out.document(&document);
    }
    loop {
        let answer = executions.read_output(request.clone()).await?.into_inner();
        if answer.data.is_empty() {
            return Ok(());
        }
        let mut stdout = io::stdout().lock();
        stdout.write_all(&answer.data)?;
        stdout.flush()?;
        request.offset_bytes = answer.next_offset_bytes;
    }
}

async fn write(cluster: &Cluster, task: String, text: Option<String>, eof: bool) -> Result<()> {
    let mut passing = Passing::new(cluster, task, false);
    let closed = || Failure::new(Code::StdinNotOpen, "it has ended, or reads no more");
    let Some(text) = text else {
        let mut piece = vec![0; exec_limits::STDIN_WRITE_BYTES_MAX];
        loop {
            let read = io::stdin().lock().read(&mut piece).map_err(|error| {
                Failure::new(Code::NotAFile, format!("cannot read standard input: {error}"))
            })?;
            if (read > 0 || eof) && !passing.give(&piece[..read], eof && read == 0).await? {
                return Err(closed());
            }
            if read == 0 {
                return Ok(());
            }
        }
    };
    let line = format!("{text}\n");
    match passing.give(line.as_bytes(), eof).await? {
        true => Ok(()),
        false => Err(closed()),
    }
}

fn row(task: &Task) -> Vec<String> {
    let (kind, summary) = json::task_kind(task.spec.as_ref());
    let mut what: String = summary.chars().take(40).collect();
    if what.len() < summary.len() {
        what.push('…');
    }
    vec![
        task.id.clone(),
        json::task_state(task.state()),
        kind.to_owned(),
        what,
        units::between(task.started_at_ms, task.ended_at_ms),
        units::ago(task.created_at_ms),
    ]
}

fn text(task: &Task) -> String {
    let (kind, summary) = json::task_kind(task.spec.as_ref());
    let session = task.spec.as_ref().map_or("", |spec| spec.session_id.as_str());
    let mut lines = vec![
        format!("task      {}", task.id),
        format!("state     {}", json::task_state(task.state())),
        format!("kind      {kind}  {summary}"),
        format!("session   {session}"),
        format!("worker    {}  attempt {}", task.worker_id, task.attempt),
        format!("priority  {}", task.priority),
        format!("created   {}", units::utc(task.created_at_ms)),
    ];
    if task.attempts_used > 0 {
        lines.push(format!("used up   {} of {} attempts", task.attempts_used, task.max_attempts));
    }
    if task.not_before_at_ms > 0 {
        lines.push(format!("not before {}", units::utc(task.not_before_at_ms)));
    }
    if let Some(outcome) = &task.outcome {
        lines.push(format!("took      {}", units::between(task.started_at_ms, task.ended_at_ms)));
        lines.push(format!("exit code {}", outcome.exit_code));
        lines.push(format!("output    {} + {} bytes", outcome.stdout_bytes, outcome.stderr_bytes));
        if let Some(error) = &outcome.error {
            lines.push(format!("error     [{}] {}", error.code, error.message));
        }
    }
    lines.retain(|line| line.trim_end().contains(' '));
    lines.join("\n")
}
