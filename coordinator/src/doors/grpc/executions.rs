//! `cooper.v1.Executions`.

use std::sync::Arc;

use cooper_common::limits::exec;
use cooper_proto::v1::{self, executions_server};
use tonic::{Request, Response, Status};

use super::convert;
use crate::{
    check,
    cluster::Cluster,
    doors::{BoxStream, caller, status},
    executions,
};

pub struct Executions {
    pub cluster: Arc<Cluster>,
}

#[tonic::async_trait]
impl executions_server::Executions for Executions {
    type SessionHistoryStream = BoxStream<v1::SessionHistoryResponse>;

    async fn write_stdin(
        &self,
        request: Request<v1::WriteStdinRequest>,
    ) -> Result<Response<v1::WriteStdinResponse>, Status> {
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        let written =
            executions::write_stdin(&self.cluster, &caller, request.into_inner()).await.map_err(status)?;
        Ok(Response::new(written))
    }

    async fn signal_execution(
        &self,
        request: Request<v1::SignalExecutionRequest>,
    ) -> Result<Response<v1::SignalExecutionResponse>, Status> {
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        executions::signal(&self.cluster, &caller, request.get_ref()).await.map_err(status)?;
        Ok(Response::new(v1::SignalExecutionResponse {}))
    }

    async fn resize_terminal(
        &self,
        request: Request<v1::ResizeTerminalRequest>,
    ) -> Result<Response<v1::ResizeTerminalResponse>, Status> {
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        executions::resize(&self.cluster, &caller, request.get_ref()).await.map_err(status)?;
        Ok(Response::new(v1::ResizeTerminalResponse {}))
    }

    async fn read_output(
        &self,
        request: Request<v1::ReadOutputRequest>,
    ) -> Result<Response<v1::ReadOutputResponse>, Status> {
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        let request = request.get_ref();
        let (record, data, complete) =
            executions::read_output(&self.cluster, &caller, request).await.map_err(status)?;
        Ok(Response::new(v1::ReadOutputResponse {
            next_offset_bytes: request.offset_bytes + data.len() as u64,
            data,
            state: convert::task(&record)?.state,
            complete,
        }))
    }

    async fn session_history(
        &self,
        request: Request<v1::SessionHistoryRequest>,
    ) -> Result<Response<Self::SessionHistoryStream>, Status> {
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        let v1::SessionHistoryRequest { session_id, output_bytes } = request.into_inner();
        check::at_most("output_bytes", output_bytes.into(), exec::OUTPUT_READ_BYTES_MAX as u64)
            .map_err(status)?;
        let cluster = self.cluster.clone();
        let ids = executions::history(&cluster, &caller, &session_id).await.map_err(status)?;
        let stream = async_stream::try_stream! {
            for id in ids {
                let remembered = executions::remembered(&cluster, &caller, &id, output_bytes).await.map_err(status)?;
                if let Some((record, [stdout, stderr])) = remembered {
                    yield v1::SessionHistoryResponse { task: Some(convert::task(&record)?), stdout, stderr };
                }
            }
        };
        Ok(Response::new(Box::pin(stream)))
    }
}
