//! `cooper.v1.Checkpoints`.

use std::sync::Arc;

use cooper_proto::v1::{self, checkpoints_server};
use tonic::{Request, Response, Status};

use super::convert;
use crate::{
    checkpoints,
    cluster::Cluster,
    doors::{caller, status},
    sessions,
    store::Record,
};

pub struct Checkpoints {
    pub cluster: Arc<Cluster>,
    pub checkpoints: Arc<checkpoints::Checkpoints>,
}

fn answer(record: &Record) -> Result<v1::Checkpoint, Status> {
    let manifest = checkpoints::manifest(record).map_err(status)?;
    Ok(v1::Checkpoint {
        id: record.id.clone(),
        name: manifest.name,
        session_id: manifest.session.to_string(),
        tenant: manifest.tenant,
        created_at_ms: record.row.created_ms,
        python_version: manifest.python_version,
        archive_bytes: manifest.archive_bytes,
        digest: manifest.digest,
        summary: Some(v1::WorkspaceSummary {
            files: manifest.files,
            directories: manifest.directories,
            symlinks: manifest.symlinks,
            hard_links: manifest.hard_links,
            content_bytes: manifest.content_bytes,
            skipped: manifest.skipped,
            skipped_count: manifest.skipped_count,
            globals: checkpoints::read_opaque(&manifest.globals),
        }),
    })
}

#[tonic::async_trait]
impl checkpoints_server::Checkpoints for Checkpoints {
    async fn create_checkpoint(
        &self,
        request: Request<v1::CreateCheckpointRequest>,
    ) -> Result<Response<v1::Checkpoint>, Status> {
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        let record = self.checkpoints.create(&caller, request.into_inner()).await.map_err(status)?;
        Ok(Response::new(answer(&record)?))
    }

    async fn list_checkpoints(
        &self,
        request: Request<v1::ListCheckpointsRequest>,
    ) -> Result<Response<v1::ListCheckpointsResponse>, Status> {
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        let page = self.checkpoints.list(&caller, request.into_inner()).await.map_err(status)?;
        let checkpoints = page.records.iter().map(answer).collect::<Result<_, _>>()?;
        let next_cursor = page.next.map(|cursor| cursor.to_string()).unwrap_or_default();
        Ok(Response::new(v1::ListCheckpointsResponse { checkpoints, next_cursor }))
    }

    async fn get_checkpoint(
        &self,
        request: Request<v1::GetCheckpointRequest>,
    ) -> Result<Response<v1::Checkpoint>, Status> {
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        let id = &request.get_ref().checkpoint_id;
        let record = self.checkpoints.get(&caller, id).await.map_err(status)?;
        Ok(Response::new(answer(&record)?))
    }

    async fn restore_checkpoint(
        &self,
        request: Request<v1::RestoreCheckpointRequest>,
    ) -> Result<Response<v1::Session>, Status> {
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        let create = self.checkpoints.session_of(&caller, request.into_inner()).await.map_err(status)?;
        let created = sessions::create(&self.cluster, &self.checkpoints, &caller, create).await;
        Ok(Response::new(convert::session(&self.cluster, &created.map_err(status)?)?))
    }

    async fn delete_checkpoint(
        &self,
        request: Request<v1::DeleteCheckpointRequest>,
    ) -> Result<Response<v1::Checkpoint>, Status> {
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        let id = &request.get_ref().checkpoint_id;
        let record = self.checkpoints.delete(&caller, id).await.map_err(status)?;
        Ok(Response::new(answer(&record)?))
    }
}
