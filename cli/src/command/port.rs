//! `cooper port`: what a session listens on, and a port of this machine that leads there.

use std::{io, net::Ipv4Addr, sync::Arc};

use cooper_common::{
    error::Code,
    limits::ports::CONNECTIONS_PER_SESSION_MAX,
    tunnel::{self, Piece},
};
use cooper_proto::v1::{
    ForwardPortHeader, ForwardPortRequest, ListPortsRequest, forward_port_request::Part as Said,
    forward_port_response::Part,
};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    args::Port,
    connect::{Client, Cluster},
    context::Context,
    failure::{Failure, Result},
};

pub async fn run(context: &Context, port: Port) -> Result<u8> {
    match port {
        Port::List { session } => list(context, session).await,
        Port::Forward { session, ports: (there, here) } => forward(context, session, there, here).await,
    }
}

async fn list(context: &Context, session: String) -> Result<u8> {
    let client = context.cluster()?.connect().await?;
    let request = ListPortsRequest { session_id: session.clone() };
    let ports = client.sessions().list_ports(request).await?.into_inner().ports;
    if context.out.json {
        context.out.document(&json!({"session_id": session, "ports": ports}))?;
    } else {
        let rows = ports.iter().map(|port| vec![port.to_string()]);
        context.out.table(&["port"], rows.collect())?;
    }
    Ok(0)
}

async fn forward(context: &Context, session: String, there: u16, here: u16) -> Result<u8> {
    let cluster = context.cluster()?;
    // Whether it is a session of ours is said now, not to the first who connects.
    let request = ListPortsRequest { session_id: session.clone() };
    cluster.connect().await?.sessions().list_ports(request).await?;
    let taken = |error: io::Error| {
        let code =
            if error.kind() == io::ErrorKind::AddrInUse { Code::PortTaken } else { Code::InvalidArgument };
        Failure::new(code, format!("cannot listen on 127.0.0.1:{here}: {error}"))
            .hint(format!("choose another: cooper port forward {session} {there}:0"))
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, here)).await.map_err(taken)?;
    let address = listener.local_addr().map_err(taken)?;
    if context.out.json {
        let document = json!({"session_id": session, "port": there, "local": address.to_string()});
        context.out.document(&document)?;
    } else {
        context.out.line(&format!("http://{address}/ is port {there} of {session}; Ctrl-C ends it"))?;
    }
    let places = Arc::new(Semaphore::new(CONNECTIONS_PER_SESSION_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return Ok(0) };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = tokio::signal::ctrl_c() => return Ok(0),
        };
        // One that was gone before it was looked at.
        let Ok((stream, _)) = accepted else { continue };
        let header = ForwardPortHeader { session_id: session.clone(), port: there.into() };
        let (cluster, out) = (cluster.clone(), context.out);
        tokio::spawn(async move {
            let _place = place;
            if let Err(Failure::Error(report)) = carry(&cluster, header, stream).await {
                out.report(&report);
            }
        });
    }
}

/// One connection, on one of its own to the coordinator: what is slow holds up nothing else.
async fn carry(cluster: &Cluster, header: ForwardPortHeader, stream: TcpStream) -> Result<()> {
    let client: Client = cluster.connect().await?;
    let (parts, outbound) = mpsc::channel(tunnel::PIECES);
    let _ = parts.try_send(ForwardPortRequest { part: Some(Said::Header(header)) });
    let mut answers = client.sessions().forward_port(ReceiverStream::new(outbound)).await?.into_inner();
    let (outgoing, mut said) = mpsc::channel(tunnel::PIECES);
    let (heard, incoming) = mpsc::channel(tunnel::PIECES);
    let say = async {
        while let Some(piece) = said.recv().await {
            let part = match piece {
                Piece::Data(data) => Said::Data(data),
                Piece::Done => Said::Done(true),
                Piece::More(bytes) => Said::More(bytes),
            };
            if parts.send(ForwardPortRequest { part: Some(part) }).await.is_err() {
                return;
            }
        }
    };
    let hear = async {
        while let Ok(Some(answer)) = answers.message().await {
            let piece = match answer.part {
                Some(Part::Data(data)) => Piece::Data(data),
                Some(Part::Done(_)) => Piece::Done,
                Some(Part::More(bytes)) => Piece::More(bytes),
                Some(Part::Opened(_)) | None => continue,
            };
            if heard.send(piece).await.is_err() {
                break;
            }
        }
        drop(heard);
        // The connection decides when it is over.
        std::future::pending::<()>().await
    };
    tokio::select! {
        // A cut shows itself at the connection's own end.
        _ = async { tokio::join!(tunnel::carry(stream, incoming, outgoing, || {}), say) } => {}
        () = hear => {}
    }
    drop(parts);
    // Until the coordinator has it all: leaving earlier would take back what is on its way.
    while let Ok(Some(_)) = answers.message().await {}
    Ok(())
}
