//! `cooper pause` and `cooper resume`.

use cooper_proto::v1::{ListPausesRequest, Pause, PauseRequest, ResumeRequest};
use serde_json::{Value, json};

use crate::{args, connect::Client, context::Context, failure::Result, output::clean, units};

pub async fn pause(context: &Context, args: args::Pause) -> Result<u8> {
    let client = context.cluster()?.connect().await?;
    let request =
        PauseRequest { stack: args.stack.unwrap_or_default(), reason: args.reason.unwrap_or_default() };
    show(context, &client.runs().pause(request).await?.into_inner().pauses)
}

pub async fn resume(context: &Context, args: args::Resume) -> Result<u8> {
    let client = context.cluster()?.connect().await?;
    let request = ResumeRequest { stack: args.stack.unwrap_or_default() };
    show(context, &client.runs().resume(request).await?.into_inner().pauses)
}

/// Those that hold.
pub async fn held(client: &Client) -> Result<Vec<Pause>> {
    Ok(client.runs().list_pauses(ListPausesRequest {}).await?.into_inner().pauses)
}

pub fn documents(pauses: &[Pause]) -> Vec<Value> {
    let document =
        |it: &Pause| json!({ "stack": it.stack, "reason": it.reason, "by": it.by, "since_ms": it.since_ms });
    pauses.iter().map(document).collect()
}

pub fn sentence(pause: &Pause) -> String {
    let of = if pause.stack.is_empty() { "every stack".to_owned() } else { format!("stack {}", pause.stack) };
    let why = if pause.reason.is_empty() { String::new() } else { format!(": {}", clean(&pause.reason)) };
    format!("paused: automatic work on {of}, by {} {}{why}", clean(&pause.by), units::ago(pause.since_ms))
}

fn show(context: &Context, pauses: &[Pause]) -> Result<u8> {
    let text = || match pauses.is_empty() {
        true => "nothing is paused".to_owned(),
        false => pauses.iter().map(sentence).collect::<Vec<_>>().join("\n"),
    };
    context.out.answer(|| json!({ "pauses": documents(pauses) }), text)?;
    Ok(0)
}
