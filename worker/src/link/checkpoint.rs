//! Sessions as archives on the second connection: from the host's descriptor to the coordinator, and back.

use std::fs::File;

use cooper_common::{error::Error, limits::checkpoint::ARCHIVE_BYTES_MAX};
use cooper_proto::{
    host::{OpenFile, open_file::Mode},
    v1::{self, TransferUp, transfer_up::Part},
};
use tokio::sync::mpsc;

use super::{
    calls::{Desk, IntoWire, OpenedFile, blocking},
    transfer::{PIECES, receive_body, send_body, start},
};

/// Sends an archive of the session.
pub async fn pack(
    desk: &Desk,
    call_id: u64,
    session_id: String,
    pack: v1::PackSession,
) -> Result<(), v1::Error> {
    let open = OpenFile {
        session_id,
        mode: Mode::Pack.into(),
        last: pack.last,
        globals: pack.globals,
        ..OpenFile::default()
    };
    let OpenedFile { fd, summary, .. } = desk.open(open).await?;
    let archive = File::from(fd);
    let (archive, bytes) = blocking(move || {
        let bytes = archive.metadata().map(|found| found.len());
        bytes.map(|bytes| (archive, bytes)).map_err(|e| Error::internal(format!("the archive: {e}")))
    })
    .await
    .map_err(IntoWire::into_wire)?;
    let (parts, outbound) = mpsc::channel(PIECES);
    for part in [Part::CallId(call_id), Part::Summary(summary.unwrap_or_default())] {
        let _ = parts.try_send(TransferUp { part: Some(part) });
    }
    tokio::task::spawn_blocking(move || send_body(&archive, 0, bytes, &parts));
    let mut down = start(desk, outbound).await?;
    // Until the coordinator has it all.
    while let Ok(Some(_)) = down.message().await {}
    Ok(())
}

/// Receives an archive and has the host unpack it.
pub async fn unpack(
    desk: &Desk,
    call_id: u64,
    session_id: String,
    unpack: v1::UnpackSession,
) -> Result<(), v1::Error> {
    let mode = Mode::Unpack.into();
    let v1::UnpackSession { shared_digest } = unpack;
    let open = OpenFile { session_id, mode, shared_digest, ..OpenFile::default() };
    let OpenedFile { id, fd, .. } = desk.open(open).await?;
    let (parts, outbound) = mpsc::channel(PIECES);
    let _ = parts.try_send(TransferUp { part: Some(Part::CallId(call_id)) });
    let mut down = match start(desk, outbound).await {
        Ok(down) => down,
        Err(error) => {
            let _ = desk.close(id, false).await;
            return Err(error);
        }
    };
    let end = match receive_body(&mut down, File::from(fd), "the checkpoint", ARCHIVE_BYTES_MAX).await {
        Ok(true) => desk.close(id, true).await,
        Ok(false) => {
            let _ = desk.close(id, false).await;
            return Ok(());
        }
        Err(error) => {
            let _ = desk.close(id, false).await;
            Err(error.into_wire())
        }
    };
    let last = match end {
        Ok(stat) => vec![Part::Stat(stat), Part::Done(true)],
        Err(error) => vec![Part::Error(error)],
    };
    for part in last {
        let _ = parts.send(TransferUp { part: Some(part) }).await;
    }
    drop(parts);
    while let Ok(Some(_)) = down.message().await {}
    Ok(())
}
