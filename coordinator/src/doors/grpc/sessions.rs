//! `cooper.v1.Sessions`.

use std::sync::Arc;

use cooper_common::error::Error;
use cooper_proto::v1::{self, sessions_server};
use tokio_stream::StreamExt;
use tonic::{Request, Response, Status, Streaming};

use super::convert;
use crate::{
    cluster::Cluster,
    doors::{BoxStream, caller, status},
    sessions,
};

pub struct Sessions {
    pub cluster: Arc<Cluster>,
}

#[tonic::async_trait]
impl sessions_server::Sessions for Sessions {
    type ReadFileStream = BoxStream<v1::ReadFileResponse>;

    async fn create_session(
        &self,
        request: Request<v1::CreateSessionRequest>,
    ) -> Result<Response<v1::Session>, Status> {
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        let record = sessions::create(&self.cluster, &caller, request.into_inner()).await.map_err(status)?;
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
        let id = &request.get_ref().session_id;
        let record = sessions::destroy(&self.cluster, &caller, id).await.map_err(status)?;
        Ok(Response::new(convert::session(&self.cluster, &record)?))
    }

    async fn read_file(
        &self,
        request: Request<v1::ReadFileRequest>,
    ) -> Result<Response<Self::ReadFileStream>, Status> {
        use v1::read_file_response::Part;
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        let (stat, mut body) =
            sessions::read_file(&self.cluster, &caller, request.into_inner()).await.map_err(status)?;
        let stream = async_stream::try_stream! {
            yield v1::ReadFileResponse { part: Some(Part::Stat(stat)) };
            while let Some(piece) = body.recv().await {
                let data = piece.map_err(status)?.into();
                yield v1::ReadFileResponse { part: Some(Part::Data(data)) };
            }
        };
        Ok(Response::new(Box::pin(stream)))
    }

    async fn write_file(
        &self,
        request: Request<Streaming<v1::WriteFileRequest>>,
    ) -> Result<Response<v1::WriteFileResponse>, Status> {
        use v1::write_file_request::Part;
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        let mut parts = request.into_inner();
        let Some(v1::WriteFileRequest { part: Some(Part::Header(header)) }) =
            parts.next().await.transpose()?
        else {
            return Err(status(Error::invalid("the first message of a write is its header")));
        };
        let (body, written) = sessions::write_file(&self.cluster, &caller, header).await.map_err(status)?;
        tokio::pin!(written);
        let send = async {
            while let Some(part) = parts.next().await.transpose()? {
                match part.part {
                    Some(Part::Data(data)) if !data.is_empty() => {
                        if body.send(data.into()).await.is_err() {
                            // The worker gave up; its answer says why.
                            return Ok(());
                        }
                    }
                    Some(Part::Header(_)) => {
                        return Err(status(Error::invalid("a write has one header")));
                    }
                    Some(Part::Data(_)) | None => {}
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
                stat = &mut written => {
                    let stat = stat.map_err(status)?;
                    return Ok(Response::new(v1::WriteFileResponse { stat: Some(stat) }));
                }
            }
        }
    }

    async fn list_files(
        &self,
        request: Request<v1::ListFilesRequest>,
    ) -> Result<Response<v1::ListFilesResponse>, Status> {
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        let files =
            sessions::list_files(&self.cluster, &caller, request.into_inner()).await.map_err(status)?;
        Ok(Response::new(files))
    }
}
