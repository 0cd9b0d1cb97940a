//! Connections to ports of sessions: the host connects, the link carries the bytes.

use std::{net::TcpStream as StdStream, os::fd::OwnedFd, time::Duration};

use cooper_common::{
    error::{Code, Error},
    limits::ports::CONNECT_MS_MAX,
    tunnel::{self, Piece},
};
use cooper_proto::v1::{self, TransferDown, TransferUp, transfer_down, transfer_up::Part};
use tokio::{net::TcpStream, sync::mpsc};
use tonic::Streaming;

use super::{
    calls::{Desk, IntoWire, refusal},
    transfer,
};

/// One connection, to its end. An error before it begins is the answer to the call.
pub async fn serve(desk: Desk, call: v1::Call) {
    let call_id = call.call_id;
    if let Err(error) = connected(&desk, call).await {
        desk.answer(refusal(call_id, error)).await;
    }
}

async fn connected(desk: &Desk, call: v1::Call) -> Result<(), v1::Error> {
    let call_id = call.call_id;
    let connection = taken(desk.connect(call).await?).await.map_err(IntoWire::into_wire)?;
    let (parts, outbound) = mpsc::channel(tunnel::PIECES);
    let _ = parts.try_send(TransferUp { part: Some(Part::CallId(call_id)) });
    let mut down = transfer::start(desk, outbound).await?;
    let (heard, incoming) = mpsc::channel(tunnel::PIECES);
    let (outgoing, mut said) = mpsc::channel(tunnel::PIECES);
    let say = async {
        while let Some(piece) = said.recv().await {
            let part = match piece {
                Piece::Data(data) => Part::Data(data),
                Piece::Done => Part::Done(true),
                Piece::More(bytes) => Part::More(bytes),
            };
            if parts.send(TransferUp { part: Some(part) }).await.is_err() {
                return;
            }
        }
    };
    let carry = tunnel::carry(connection, incoming, outgoing, || {});
    // Who is cut says nothing more: that the stream ends without a last word tells the other side.
    tokio::select! {
        _ = async { tokio::join!(carry, say) } => {}
        () = hear(&mut down, heard) => {}
    }
    drop(parts);
    // Until the coordinator has it all: leaving earlier would take back what is on its way.
    while let Ok(Some(_)) = down.message().await {}
    Ok(())
}

/// Never ends before the connection does.
async fn hear(down: &mut Streaming<TransferDown>, heard: mpsc::Sender<Piece>) {
    use transfer_down::Part as Down;
    while let Ok(Some(TransferDown { part })) = down.message().await {
        let piece = match part {
            Some(Down::Data(data)) => Piece::Data(data),
            Some(Down::Done(_)) => Piece::Done,
            Some(Down::More(bytes)) => Piece::More(bytes),
            Some(Down::Kept(_) | Down::Refused(_)) | None => continue,
        };
        if heard.send(piece).await.is_err() {
            break;
        }
    }
    drop(heard);
    std::future::pending().await
}

/// Once the session's kernel side has taken it.
async fn taken(socket: OwnedFd) -> Result<TcpStream, Error> {
    let broken = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::ConnectionRefused => {
            Error::new(Code::PortNotOpen, "nobody in the session listens on that port any more")
        }
        _ => Error::new(Code::PortFailed, format!("the session's port cannot be reached: {error}")),
    };
    let stream = TcpStream::from_std(StdStream::from(socket)).map_err(broken)?;
    let writable = tokio::time::timeout(Duration::from_millis(CONNECT_MS_MAX), stream.writable());
    match writable.await {
        Ok(ready) => ready.map_err(broken)?,
        Err(_) => {
            let what = format!("the session took no connection within {CONNECT_MS_MAX} ms");
            return Err(Error::new(Code::TimedOut, what));
        }
    }
    stream.take_error().map_err(broken)?.map_or(Ok(stream), |error| Err(broken(error)))
}
