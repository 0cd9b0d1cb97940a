//! `cooper.v1.Secrets`.

use std::sync::Arc;

use cooper_common::token::Scope;
use cooper_proto::v1::{self, secrets_server};
use tonic::{Request, Response, Status};

use crate::{
    cluster::Cluster,
    doors::{caller, status},
};

pub struct Secrets {
    pub cluster: Arc<Cluster>,
}

#[tonic::async_trait]
impl secrets_server::Secrets for Secrets {
    async fn set_secret(
        &self,
        request: Request<v1::SetSecretRequest>,
    ) -> Result<Response<v1::Secret>, Status> {
        let caller = caller(&request)?;
        caller.require(&[Scope::Operator]).map_err(status)?;
        let secret = self.cluster.secrets.set(&caller, request.into_inner()).await.map_err(status)?;
        self.cluster.tell(|core, now| core.secrets_changed(now, &caller.tenant));
        Ok(Response::new(secret))
    }

    async fn list_secrets(
        &self,
        request: Request<v1::ListSecretsRequest>,
    ) -> Result<Response<v1::ListSecretsResponse>, Status> {
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        Ok(Response::new(v1::ListSecretsResponse { secrets: self.cluster.secrets.list(&caller) }))
    }

    async fn delete_secret(
        &self,
        request: Request<v1::DeleteSecretRequest>,
    ) -> Result<Response<v1::DeleteSecretResponse>, Status> {
        let caller = caller(&request)?;
        caller.require(&[Scope::Operator]).map_err(status)?;
        self.cluster.secrets.delete(&caller, &request.get_ref().name).await.map_err(status)?;
        self.cluster.tell(|core, now| core.secrets_changed(now, &caller.tenant));
        Ok(Response::new(v1::DeleteSecretResponse {}))
    }
}
