//! `cooper events`: what happened, in order.

use std::{io::Write, time::Duration};

use cooper_proto::v1::{Event, WatchEventsRequest};

use crate::{
    args::Events,
    context::Context,
    failure::Result,
    output::{clean, json},
    units,
};

/// The feed has no end; without `--follow` it is over when nothing came for this long.
const QUIET: Duration = Duration::from_millis(400);

pub async fn run(context: &Context, args: Events) -> Result<u8> {
    let from_seq = args.from.unwrap_or(u64::from(!args.follow));
    let client = context.cluster()?.connect().await?;
    let mut events = client.admin().watch_events(WatchEventsRequest { from_seq }).await?.into_inner();
    let mut kept = Vec::new();
    loop {
        let message = match args.follow {
            true => events.message().await?,
            false => match tokio::time::timeout(QUIET, events.message()).await {
                Ok(message) => message?,
                Err(_) => None,
            },
        };
        let Some(event) = message else { break };
        match (context.out.json, args.follow) {
            (true, false) => kept.push(json::event(&event)),
            (true, true) => writeln!(std::io::stdout().lock(), "{}", json::event(&event))?,
            (false, _) => context.out.line(&line(&event))?,
        }
    }
    if context.out.json && !args.follow {
        context.out.document(&serde_json::json!({"events": kept}))?;
    }
    Ok(0)
}

fn line(event: &Event) -> String {
    let body: String = clean(&event.body).chars().take(200).collect();
    format!("{:>6}  {}  {:<24} {}  {body}", event.seq, units::utc(event.at_ms), event.kind, event.subject)
        .trim_end()
        .to_owned()
}
