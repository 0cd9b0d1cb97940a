//! `cooper events`: what happened, in order.

use std::io::Write;

use cooper_proto::v1::{Event, GetInfoRequest, WatchEventsRequest};

use crate::{
    args::Events,
    connect::{Client, Patience},
    context::Context,
    failure::{Result, is_cut},
    output::{clean, json},
    units,
};

/// Shows events from a number on: to the end, or for ever. A cut is taken up where it was.
pub async fn run(context: &Context, args: Events) -> Result<u8> {
    let cluster = context.cluster()?;
    let mut client = cluster.connect().await?;
    let mut next_seq = match args.from {
        Some(from) => from.max(1),
        None if args.follow => {
            client.admin().get_info(GetInfoRequest {}).await?.into_inner().last_event_seq + 1
        }
        None => 1,
    };
    let (mut kept, mut patience) = (Vec::new(), Patience::default());
    let mut show = |event: Event| -> Result<()> {
        match (context.out.json, args.follow) {
            (true, false) => kept.push(json::event(&event)),
            (true, true) => writeln!(std::io::stdout().lock(), "{}", json::event(&event))?,
            (false, _) => context.out.line(&line(&event))?,
        }
        Ok(())
    };
    loop {
        match watch(&client, args.follow, &mut next_seq, &mut patience, &mut show).await? {
            None => break,
            Some(cut) => client = patience.reconnect(&cluster, cut.into()).await?,
        }
    }
    if context.out.json && !args.follow {
        context.out.document(&serde_json::json!({"events": kept}))?;
    }
    Ok(0)
}

/// One connection's worth of events; what cut it, or nothing at the end.
async fn watch(
    client: &Client,
    follow: bool,
    next_seq: &mut u64,
    patience: &mut Patience,
    show: &mut impl FnMut(Event) -> Result<()>,
) -> Result<Option<tonic::Status>> {
    let cut = |status: tonic::Status| if is_cut(&status) { Ok(Some(status)) } else { Err(status.into()) };
    let request = WatchEventsRequest { from_seq: *next_seq, until_end: !follow };
    let mut events = match client.admin().watch_events(request).await {
        Ok(events) => events.into_inner(),
        Err(status) => return cut(status),
    };
    patience.contact();
    loop {
        match events.message().await {
            Ok(Some(event)) => {
                *next_seq = event.seq + 1;
                patience.contact();
                show(event)?;
            }
            // A feed that is followed has no end: the coordinator went away in order.
            Ok(None) if follow => {
                return Ok(Some(tonic::Status::unavailable("the coordinator ended the feed")));
            }
            Ok(None) => return Ok(None),
            Err(status) => return cut(status),
        }
    }
}

fn line(event: &Event) -> String {
    let body: String = clean(&event.body).chars().take(200).collect();
    format!("{:>6}  {}  {:<24} {}  {body}", event.seq, units::utc(event.at_ms), event.kind, event.subject)
        .trim_end()
        .to_owned()
}
