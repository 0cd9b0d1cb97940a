//! `cooper.v1.Admin`.

use std::sync::Arc;

use cooper_common::{VERSION, token::Scope};
use cooper_core::worker::Worker;
use cooper_proto::v1::{self, admin_server};
use tokio_stream::StreamExt;
use tonic::{Request, Response, Status};

use crate::{
    bus::Feed,
    cluster::Cluster,
    doors::{BoxStream, caller, status},
    tokens::Tokens,
};

pub struct Admin {
    pub cluster: Arc<Cluster>,
    pub tokens: Arc<Tokens>,
    pub bus: crate::bus::Bus,
}

fn worker(worker: &Worker, stacks: bool) -> v1::Worker {
    let body = &worker.body;
    v1::Worker {
        id: worker.id.to_string(),
        state: body.state.as_str().to_owned(),
        incarnation: body.incarnation,
        version: body.version.clone(),
        capabilities: body.capabilities.iter().cloned().collect(),
        sessions: worker.sessions.len() as u32,
        sessions_max: body.sessions_max,
        running: worker.running.len() as u32,
        last_seen_at_ms: worker.last_seen_ms,
        stacks: if stacks { body.stacks.iter().map(|(name, _)| name.clone()).collect() } else { Vec::new() },
        labels: body.labels.clone().into_iter().collect(),
        hostname: body.hostname.clone(),
    }
}

#[tonic::async_trait]
impl admin_server::Admin for Admin {
    type WatchEventsStream = BoxStream<v1::Event>;

    async fn get_info(&self, request: Request<v1::GetInfoRequest>) -> Result<Response<v1::Info>, Status> {
        let caller = caller(&request)?;
        let (epoch, counts) = self.cluster.look(|core| (core.epoch(), core.counts_of(&caller.tenant)));
        Ok(Response::new(v1::Info {
            version: VERSION.to_owned(),
            coordinator_epoch: epoch,
            workers_attached: counts.workers_attached as u32,
            sessions_live: counts.sessions_live as u32,
            tasks_queued: counts.tasks_queued as u32,
            tasks_running: counts.tasks_held as u32,
            tenant: caller.tenant.to_string(),
            scope: caller.scope.as_str().to_owned(),
        }))
    }

    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenResponse>, Status> {
        let caller = caller(&request)?;
        caller.require(&[]).map_err(status)?;
        let created = self.tokens.create(&caller, request.into_inner()).await.map_err(status)?;
        Ok(Response::new(created))
    }

    async fn list_tokens(
        &self,
        request: Request<v1::ListTokensRequest>,
    ) -> Result<Response<v1::ListTokensResponse>, Status> {
        let caller = caller(&request)?;
        caller.require(&[]).map_err(status)?;
        let tokens = self.tokens.list(&caller).await.map_err(status)?;
        Ok(Response::new(v1::ListTokensResponse { tokens }))
    }

    async fn revoke_token(
        &self,
        request: Request<v1::RevokeTokenRequest>,
    ) -> Result<Response<v1::Token>, Status> {
        let caller = caller(&request)?;
        caller.require(&[]).map_err(status)?;
        let token = self.tokens.revoke(&caller, &request.get_ref().token_id).await.map_err(status)?;
        Ok(Response::new(token))
    }

    async fn list_workers(
        &self,
        request: Request<v1::ListWorkersRequest>,
    ) -> Result<Response<v1::ListWorkersResponse>, Status> {
        let caller = caller(&request)?;
        caller.require(&[Scope::Operator]).map_err(status)?;
        // Workers are shared; their stacks are their tenant's.
        let workers =
            self.cluster.look(|core| core.workers().map(|w| worker(w, w.tenant == caller.tenant)).collect());
        Ok(Response::new(v1::ListWorkersResponse { workers }))
    }

    async fn watch_events(
        &self,
        request: Request<v1::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        let from = request.get_ref().from_seq;
        let tenant = Some(caller.tenant.to_string());
        let feed = Feed::from(self.cluster.store.clone(), &self.bus, from, tenant).into_stream();
        let events = feed.map(|event| {
            event.map_err(|error| status(error.into())).map(|event| v1::Event {
                seq: event.seq,
                at_ms: event.at_ms,
                tenant: event.tenant,
                kind: event.kind,
                subject: event.subject,
                body: event.body,
            })
        });
        Ok(Response::new(Box::pin(events)))
    }
}
