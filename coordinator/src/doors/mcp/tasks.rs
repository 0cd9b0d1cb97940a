//! Tools for executions as tasks: what ran, what waits, and why.

use cooper_common::{error::Result, limits};
use cooper_proto::v1::{self, task_spec::Kind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    call::{Call, said},
    executions::{Status, status_of},
    files::page,
    tool::{READS, REPLACES, Reply, Tool},
};

pub fn tools() -> Vec<Tool> {
    vec![
        Tool::new(
            "task_list",
            READS,
            "List executions and installs, newest first: those of one session, or all. Their `exec_id` is good for \
             exec_poll, task_status and task_cancel.",
            list,
        ),
        Tool::new(
            "task_status",
            READS,
            "How an execution is, and what it waits for when it does not run.",
            status,
        ),
        Tool::new(
            "task_cancel",
            REPLACES,
            "Cancel an execution: one that waits never starts, one that runs is interrupted and then killed. One that \
             has ended stays as it is.",
            cancel,
        ),
    ]
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct List {
    /// Only those of this session.
    session_id: Option<String>,
    /// At most so many; 50 by default, at most 1000.
    limit: Option<u32>,
    /// `next_cursor` of the answer before.
    cursor: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Named {
    /// Of the execution.
    exec_id: String,
}

#[derive(Serialize, JsonSchema)]
pub struct Task {
    pub exec_id: String,
    /// python, shell, install or other.
    pub kind: String,
    pub status: Status,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub session_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    pub created_at_ms: i64,
    /// 0 = not yet.
    pub started_at_ms: i64,
    /// 0 = not yet.
    pub ended_at_ms: i64,
}
impl Reply for Task {}

impl From<v1::Task> for Task {
    fn from(task: v1::Task) -> Self {
        let spec = task.spec.as_ref();
        let kind = match spec.and_then(|spec| spec.kind.as_ref()) {
            Some(Kind::Python(_)) => "python",
            Some(Kind::Shell(_)) => "shell",
            Some(Kind::Install(_) | Kind::Uninstall(_)) => "install",
            _ => "other",
        };
        Self {
            kind: kind.to_owned(),
            status: status_of(&task),
            session_id: spec.map(|spec| spec.session_id.clone()).unwrap_or_default(),
            exit_code: task.outcome.as_ref().map(|outcome| outcome.exit_code),
            created_at_ms: task.created_at_ms,
            started_at_ms: task.started_at_ms,
            ended_at_ms: task.ended_at_ms,
            exec_id: task.id,
        }
    }
}

#[derive(Serialize, JsonSchema)]
struct Tasks {
    tasks: Vec<Task>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}
impl Reply for Tasks {}

#[derive(Serialize, JsonSchema)]
struct Explained {
    task: Task,
    /// What it waits for, as a code.
    code: String,
    /// The same as a sentence.
    sentence: String,
}
impl Reply for Explained {}

async fn list(call: Call, asked: List) -> Result<Tasks> {
    let limit = page(asked.limit, 50, limits::mcp::LISTED_MAX)?;
    let request = v1::ListTasksRequest {
        page: Some(v1::Page { limit, cursor: asked.cursor.unwrap_or_default() }),
        session_id: asked.session_id.unwrap_or_default(),
        ..Default::default()
    };
    let listed = call.tasks().list_tasks(call.by(request)).await.map_err(said)?.into_inner();
    let next_cursor = Some(listed.next_cursor).filter(|cursor| !cursor.is_empty());
    Ok(Tasks { tasks: listed.tasks.into_iter().map(Task::from).collect(), next_cursor })
}

async fn status(call: Call, asked: Named) -> Result<Explained> {
    let request = v1::ExplainTaskRequest { task_id: asked.exec_id };
    let explained = call.tasks().explain_task(call.by(request)).await.map_err(said)?.into_inner();
    let task = explained.task.unwrap_or_default().into();
    Ok(Explained { task, code: explained.code, sentence: explained.sentence })
}

async fn cancel(call: Call, asked: Named) -> Result<Task> {
    let request = v1::CancelTaskRequest { task_id: asked.exec_id, ..Default::default() };
    Ok(call.tasks().cancel_task(call.by(request)).await.map_err(said)?.into_inner().into())
}
