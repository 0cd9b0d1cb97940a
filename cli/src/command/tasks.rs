//! `cooper tasks`: list, show, follow, cancel, requeue, and why one waits.

use cooper_proto::v1::{
    CancelTaskRequest, ExplainTaskRequest, GetTaskRequest, ListTasksRequest, Page, RequeueTaskRequest, Task,
};
use serde_json::json;

use super::{exec, follow::Follow};
use crate::{args::Tasks, connect::idempotency_key, context::Context, failure::Result, output::json, units};

pub async fn run(context: &Context, args: Tasks) -> Result<u8> {
    let cluster = context.cluster()?;
    if let Tasks::Follow { task } = args {
        return exec::follow_to_exit(context, Follow::task(&cluster, task)?, None).await;
    }
    let mut tasks = cluster.connect().await?.tasks();
    match args {
        Tasks::List { session, state, limit } => {
            let page = Some(Page { limit, cursor: String::new() });
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
        Tasks::Follow { .. } => {}
    }
    Ok(0)
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
