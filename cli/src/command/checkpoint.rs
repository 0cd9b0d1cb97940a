//! `cooper checkpoint`: create, list, show, restore, delete.

use cooper_proto::v1::{
    Checkpoint, CreateCheckpointRequest, CreateSessionRequest, DeleteCheckpointRequest, GetCheckpointRequest,
    GlobalsSummary, ListCheckpointsRequest, Page, RestoreCheckpointRequest,
};
use serde_json::json;

use crate::{
    args,
    connect::{Client, idempotency_key},
    context::Context,
    failure::Result,
    output::json,
    units,
};

const PAGE: u32 = 500;

pub async fn run(context: &Context, args: args::Checkpoint) -> Result<u8> {
    let client = context.cluster()?.connect().await?;
    match args {
        args::Checkpoint::Create { session, name, wait, globals } => {
            let request = CreateCheckpointRequest {
                session_id: session,
                name: name.unwrap_or_default(),
                wait_ms: wait.unwrap_or(0),
                idempotency_key: idempotency_key(),
                globals,
            };
            let made = client.checkpoints().create_checkpoint(request).await?.into_inner();
            // The id alone, so that C=$(cooper checkpoint create SESSION) works.
            context.out.answer(|| json::checkpoint(&made), || made.id.clone())?;
        }
        args::Checkpoint::List { session } => list(context, &client, session.unwrap_or_default()).await?,
        args::Checkpoint::Show { checkpoint } => {
            let request = GetCheckpointRequest { checkpoint_id: checkpoint };
            let found = client.checkpoints().get_checkpoint(request).await?.into_inner();
            context.out.answer(|| json::checkpoint(&found), || text(&found))?;
        }
        args::Checkpoint::Restore { checkpoint, name, env, label, on, python, wait } => {
            let session = CreateSessionRequest {
                idempotency_key: idempotency_key(),
                name: name.unwrap_or_default(),
                env: env.into_iter().collect(),
                labels: label.into_iter().collect(),
                worker_labels: on.into_iter().collect(),
                python_version: python.unwrap_or_default(),
                wait_ms: wait.unwrap_or(0),
                ..CreateSessionRequest::default()
            };
            let request = RestoreCheckpointRequest { checkpoint_id: checkpoint, session: Some(session) };
            let made = client.checkpoints().restore_checkpoint(request).await?.into_inner();
            context.out.answer(|| json::session(&made), || made.id.clone())?;
        }
        args::Checkpoint::Delete { checkpoints } => {
            let mut deleted = Vec::new();
            for checkpoint_id in checkpoints {
                let request = DeleteCheckpointRequest { checkpoint_id };
                let gone = client.checkpoints().delete_checkpoint(request).await?.into_inner();
                deleted.push(json::checkpoint(&gone));
            }
            if context.out.json {
                context.out.document(&json!({"checkpoints": deleted}))?;
            }
        }
    }
    Ok(0)
}

async fn list(context: &Context, client: &Client, session_id: String) -> Result<()> {
    let mut all = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = Some(Page { limit: PAGE, cursor });
        let request = ListCheckpointsRequest { page, session_id: session_id.clone() };
        let answer = client.checkpoints().list_checkpoints(request).await?.into_inner();
        all.extend(answer.checkpoints);
        cursor = answer.next_cursor;
        if cursor.is_empty() {
            break;
        }
    }
    if context.out.json {
        let list: Vec<_> = all.iter().map(json::checkpoint).collect();
        context.out.document(&json!({"checkpoints": list}))
    } else {
        let row = |it: &Checkpoint| {
            vec![
                it.id.clone(),
                it.name.clone(),
                it.session_id.clone(),
                it.python_version.clone(),
                units::human_bytes(it.archive_bytes),
                units::ago(it.created_at_ms),
            ]
        };
        let rows = all.iter().map(row).collect();
        context.out.table(&["checkpoint", "name", "session", "python", "size", "created"], rows)
    }
}

/// How many, and what was left out and why.
pub fn globals(globals: &GlobalsSummary) -> String {
    if !globals.error.is_empty() {
        return format!("none: {}", globals.error);
    }
    let listed = |names: Vec<String>, count: u64| {
        let more = count.saturating_sub(names.len() as u64);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{}{more}", names.join(", "))
    };
    let mut text = format!("{}: {}", globals.count, listed(globals.names.clone(), globals.count));
    if globals.dropped_count > 0 {
        let dropped = globals.dropped.iter().map(|it| format!("{} ({})", it.name, it.reason)).collect();
        let dropped = listed(dropped, globals.dropped_count);
        text = format!("{text}; left out: {dropped}");
    }
    text
}

fn text(checkpoint: &Checkpoint) -> String {
    let summary = checkpoint.summary.clone().unwrap_or_default();
    let mut lines = vec![
        ("checkpoint", checkpoint.id.clone()),
        ("name", checkpoint.name.clone()),
        ("session", checkpoint.session_id.clone()),
        ("python", checkpoint.python_version.clone()),
        ("size", units::human_bytes(checkpoint.archive_bytes)),
        (
            "holds",
            format!(
                "{} files, {} directories, {} links",
                summary.files, summary.directories, summary.symlinks
            ),
        ),
        (
            "created",
            format!("{} ({})", units::utc(checkpoint.created_at_ms), units::ago(checkpoint.created_at_ms)),
        ),
    ];
    if let Some(saved) = &summary.globals {
        lines.push(("variables", globals(saved)));
    }
    if summary.skipped_count > 0 {
        lines.push(("left out", format!("{} ({})", summary.skipped_count, summary.skipped.join(", "))));
    }
    let lines: Vec<_> = lines
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("{name:<12}{value}"))
        .collect();
    lines.join("\n")
}
