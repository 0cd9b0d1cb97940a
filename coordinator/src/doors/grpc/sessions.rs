//! `cooper.v1.Sessions`.

use std::sync::Arc;

use cooper_common::{
    error::Error,
    tunnel::{self, Piece as Carried},
};
use cooper_proto::v1::{self, call::Op, sessions_server};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tonic::{Request, Response, Status, Streaming};

use super::convert;
use crate::{
    cluster::Cluster,
    doors::{BoxStream, caller, status},
    files,
    fleet::Reply,
    ports, sessions,
};

pub struct Sessions {
    pub cluster: Arc<Cluster>,
    pub checkpoints: Arc<crate::checkpoints::Checkpoints>,
}

#[tonic::async_trait]
impl sessions_server::Sessions for Sessions {
    type ReadFileStream = BoxStream<v1::ReadFileResponse>;
    type ReadArchiveStream = BoxStream<v1::ReadFileResponse>;
    type ForwardPortStream = BoxStream<v1::ForwardPortResponse>;

    async fn create_session(
        &self,
        request: Request<v1::CreateSessionRequest>,
    ) -> Result<Response<v1::Session>, Status> {
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        let record = sessions::create(&self.cluster, &self.checkpoints, &caller, request.into_inner())
            .await
            .map_err(status)?;
        Ok(Response::new(convert::session(&self.cluster, &record)?))
    }

    async fn get_session(
        &self,
        request: Request<v1::GetSessionRequest>,
    ) -> Result<Response<v1::Session>, Status> {
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        let record =
            sessions::get(&self.cluster, &caller, &request.get_ref().session_id).await.map_err(status)?;
        Ok(Response::new(convert::session(&self.cluster, &record)?))
    }

    async fn update_session(
        &self,
        request: Request<v1::UpdateSessionRequest>,
    ) -> Result<Response<v1::Session>, Status> {
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        let record = sessions::update(&self.cluster, &caller, request.into_inner()).await.map_err(status)?;
        Ok(Response::new(convert::session(&self.cluster, &record)?))
    }

    async fn list_sessions(
        &self,
        request: Request<v1::ListSessionsRequest>,
    ) -> Result<Response<v1::ListSessionsResponse>, Status> {
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        let page = sessions::list(&self.cluster, &caller, request.into_inner()).await.map_err(status)?;
        let sessions: Result<Vec<_>, _> =
            page.records.iter().map(|record| convert::session(&self.cluster, record)).collect();
        let next_cursor = page.next.map(|cursor| cursor.to_string()).unwrap_or_default();
        Ok(Response::new(v1::ListSessionsResponse { sessions: sessions?, next_cursor }))
    }

    async fn destroy_session(
        &self,
        request: Request<v1::DestroySessionRequest>,
    ) -> Result<Response<v1::Session>, Status> {
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        let request = request.get_ref();
        let record = match request.checkpoint_first {
            true => self.checkpoints.destroy(&caller, request).await,
            false => sessions::destroy(&self.cluster, &caller, &request.session_id).await,
        };
        let record = record.map_err(status)?;
        Ok(Response::new(convert::session(&self.cluster, &record)?))
    }

    async fn read_file(
        &self,
        request: Request<v1::ReadFileRequest>,
    ) -> Result<Response<Self::ReadFileStream>, Status> {
        self.read(request, Op::Read).await
    }

    async fn read_archive(
        &self,
        request: Request<v1::ReadArchiveRequest>,
    ) -> Result<Response<Self::ReadArchiveStream>, Status> {
        self.read(request, Op::ReadArchive).await
    }

    async fn write_file(
        &self,
        request: Request<Streaming<v1::WriteFileRequest>>,
    ) -> Result<Response<v1::WriteFileResponse>, Status> {
        use v1::write_file_request::Part;
        let written = self.write(request, |message| match message.part {
            Some(Part::Header(header)) => Piece::Header(Op::Write(header)),
            Some(Part::Data(data)) => Piece::Data(data),
            None => Piece::Data(Vec::new()),
        });
        match written.await? {
            Reply::Stat(stat) => Ok(Response::new(v1::WriteFileResponse { stat: Some(stat) })),
            _ => Err(status(files::unexpected())),
        }
    }

    async fn write_archive(
        &self,
        request: Request<Streaming<v1::WriteArchiveRequest>>,
    ) -> Result<Response<v1::WriteArchiveResponse>, Status> {
        use v1::write_archive_request::Part;
        let written = self.write(request, |message| match message.part {
            Some(Part::Header(header)) => Piece::Header(Op::WriteArchive(header)),
            Some(Part::Data(data)) => Piece::Data(data),
            None => Piece::Data(Vec::new()),
        });
        match written.await? {
            Reply::Unpacked(unpacked) => Ok(Response::new(unpacked)),
            _ => Err(status(files::unexpected())),
        }
    }

    async fn list_files(
        &self,
        request: Request<v1::ListFilesRequest>,
    ) -> Result<Response<v1::ListFilesResponse>, Status> {
        match self.call(request, Op::List).await? {
            Reply::List(list) => Ok(Response::new(list)),
            _ => Err(status(files::unexpected())),
        }
    }

    async fn list_packages(
        &self,
        request: Request<v1::ListPackagesRequest>,
    ) -> Result<Response<v1::ListPackagesResponse>, Status> {
        match self.call(request, Op::Packages).await? {
            Reply::Packages(list) => Ok(Response::new(list)),
            _ => Err(status(files::unexpected())),
        }
    }

    async fn list_ports(
        &self,
        request: Request<v1::ListPortsRequest>,
    ) -> Result<Response<v1::ListPortsResponse>, Status> {
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        let list = ports::list(&self.cluster, &caller, &request.get_ref().session_id).await;
        list.map(Response::new).map_err(status)
    }

    async fn forward_port(
        &self,
        request: Request<Streaming<v1::ForwardPortRequest>>,
    ) -> Result<Response<Self::ForwardPortStream>, Status> {
        use v1::{forward_port_request::Part, forward_port_response::Part as Answer};
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        let mut parts = request.into_inner();
        let Some(Part::Header(header)) = parts.next().await.transpose()?.and_then(|first| first.part) else {
            return Err(status(Error::invalid("the first message of a forward is its header")));
        };
        let connected = ports::connect(&self.cluster, &caller, &header.session_id, header.port).await;
        let (connection, place) = connected.map_err(status)?;
        let (outgoing, mut said) = mpsc::channel(tunnel::PIECES);
        let (heard, incoming) = mpsc::channel(tunnel::PIECES);
        let hear = async move {
            while let Some(Ok(message)) = parts.next().await {
                let piece = match message.part {
                    Some(Part::Data(data)) => Carried::Data(data),
                    Some(Part::Done(_)) => Carried::Done,
                    Some(Part::More(bytes)) => Carried::More(bytes),
                    Some(Part::Header(_)) => break,
                    None => continue,
                };
                if heard.send(piece).await.is_err() {
                    break;
                }
            }
            drop(heard);
            // The connection decides when it is over.
            std::future::pending::<()>().await
        };
        tokio::spawn(async move {
            let _place = place;
            tokio::select! {
                _ = tunnel::carry(connection, incoming, outgoing, || {}) => {}
                () = hear => {}
            }
        });
        let stream = async_stream::stream! {
            yield Ok(v1::ForwardPortResponse { part: Some(Answer::Opened(true)) });
            while let Some(piece) = said.recv().await {
                let part = match piece {
                    Carried::Data(data) => Answer::Data(data),
                    Carried::Done => Answer::Done(true),
                    Carried::More(bytes) => Answer::More(bytes),
                };
                yield Ok(v1::ForwardPortResponse { part: Some(part) });
            }
        };
        Ok(Response::new(Box::pin(stream)))
    }

    async fn stat_file(
        &self,
        request: Request<v1::StatFileRequest>,
    ) -> Result<Response<v1::FileStat>, Status> {
        self.call_for_stat(request, Op::Stat).await
    }

    async fn move_file(
        &self,
        request: Request<v1::MoveFileRequest>,
    ) -> Result<Response<v1::FileStat>, Status> {
        self.call_for_stat(request, Op::Move).await
    }

    async fn make_dir(&self, request: Request<v1::MakeDirRequest>) -> Result<Response<v1::FileStat>, Status> {
        self.call_for_stat(request, Op::MakeDir).await
    }

    async fn change_mode(
        &self,
        request: Request<v1::ChangeModeRequest>,
    ) -> Result<Response<v1::FileStat>, Status> {
        self.call_for_stat(request, Op::ChangeMode).await
    }

    async fn copy_file(
        &self,
        request: Request<v1::CopyFileRequest>,
    ) -> Result<Response<v1::CopyFileResponse>, Status> {
        match self.call(request, Op::Copy).await? {
            Reply::Copied(copied) => Ok(Response::new(copied)),
            _ => Err(status(files::unexpected())),
        }
    }

    async fn delete_file(
        &self,
        request: Request<v1::DeleteFileRequest>,
    ) -> Result<Response<v1::DeleteFileResponse>, Status> {
        match self.call(request, Op::Delete).await? {
            Reply::Deleted(deleted) => Ok(Response::new(deleted)),
            _ => Err(status(files::unexpected())),
        }
    }

    async fn search_files(
        &self,
        request: Request<v1::SearchFilesRequest>,
    ) -> Result<Response<v1::SearchFilesResponse>, Status> {
        match self.call(request, Op::Search).await? {
            Reply::Found(found) => Ok(Response::new(found)),
            _ => Err(status(files::unexpected())),
        }
    }

    async fn edit_file(
        &self,
        request: Request<v1::EditFileRequest>,
    ) -> Result<Response<v1::EditFileResponse>, Status> {
        match self.call(request, Op::Edit).await? {
            Reply::Edited(edited) => Ok(Response::new(edited)),
            _ => Err(status(files::unexpected())),
        }
    }
}

impl Sessions {
    async fn call<T>(&self, request: Request<T>, op: impl FnOnce(T) -> Op) -> Result<Reply, Status> {
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        files::call(&self.cluster, &caller, op(request.into_inner())).await.map_err(status)
    }

    async fn call_for_stat<T>(
        &self,
        request: Request<T>,
        op: impl FnOnce(T) -> Op,
    ) -> Result<Response<v1::FileStat>, Status> {
        match self.call(request, op).await? {
            Reply::Stat(stat) => Ok(Response::new(stat)),
            _ => Err(status(files::unexpected())),
        }
    }

    async fn read<T>(
        &self,
        request: Request<T>,
        op: impl FnOnce(T) -> Op,
    ) -> Result<Response<BoxStream<v1::ReadFileResponse>>, Status> {
        use v1::read_file_response::Part;
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        let (stat, mut body) =
            files::read(&self.cluster, &caller, op(request.into_inner())).await.map_err(status)?;
        let stream = async_stream::try_stream! {
            yield v1::ReadFileResponse { part: Some(Part::Stat(stat)) };
            while let Some(piece) = body.recv().await {
                let data = piece.map_err(status)?.into();
                yield v1::ReadFileResponse { part: Some(Part::Data(data)) };
            }
        };
        Ok(Response::new(Box::pin(stream)))
    }

    /// Passes a body on to the worker; its answer may come before the body's end, and says why then.
    async fn write<T: Send + 'static>(
        &self,
        request: Request<Streaming<T>>,
        piece: impl Fn(T) -> Piece + Send,
    ) -> Result<Reply, Status> {
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        let mut parts = request.into_inner();
        let Some(Piece::Header(op)) = parts.next().await.transpose()?.map(&piece) else {
            return Err(status(Error::invalid("the first message of a write is its header")));
        };
        let (body, written) = files::write(&self.cluster, &caller, op).await.map_err(status)?;
        tokio::pin!(written);
        let send = async {
            while let Some(part) = parts.next().await.transpose()? {
                match piece(part) {
                    Piece::Data(data) if !data.is_empty() => {
                        if body.send(data.into()).await.is_err() {
                            // The worker gave up; its answer says why.
                            return Ok(());
                        }
                    }
                    Piece::Data(_) => {}
                    Piece::Header(_) => return Err(status(Error::invalid("a write has one header"))),
                }
            }
            // Complete. A stream that was cut instead fails above, and the body is dropped without this.
            let _ = body.send(bytes::Bytes::new()).await;
            Ok(())
        };
        tokio::pin!(send);
        let mut sent = false;
        loop {
            tokio::select! {
                result = &mut send, if !sent => {
                    result?;
                    sent = true;
                }
                reply = &mut written => return reply.map_err(status),
            }
        }
    }
}

/// One message of a write.
enum Piece {
    Header(Op),
    Data(Vec<u8>),
}
