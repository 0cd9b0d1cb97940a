//! `cooper.v1.Admin`.

use std::sync::Arc;

use cooper_common::{VERSION, audit::Link, limits, token::Scope};
use cooper_core::worker::Worker;
use cooper_proto::v1::{self, admin_server};
use tokio_stream::StreamExt;
use tonic::{Request, Response, Status};

use crate::{
    audit::Audit,
    bus::Feed,
    cluster::{Cluster, Recorded, durable},
    doors::{BoxStream, caller, grpc::convert, status},
    tokens::Tokens,
};

pub struct Admin {
    pub cluster: Arc<Cluster>,
    pub tokens: Arc<Tokens>,
    pub audit: Arc<Audit>,
    pub bus: crate::bus::Bus,
}

fn worker(core: &cooper_core::cluster::Cluster, worker: &Worker, stacks: bool) -> v1::Worker {
    let body = &worker.body;
    let drain = body.drain.as_ref();
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
        draining_since_ms: drain.map_or(0, |drain| drain.since_ms),
        drain_deadline_at_ms: drain.map_or(0, |drain| drain.deadline_ms),
        drained_at_ms: drain.map_or(0, |drain| drain.drained_ms),
        drained_by: drain.map(|drain| drain.by.clone()).unwrap_or_default(),
        refused: body.refused.as_ref().map(convert::reason),
        drain_checkpoint: worker.sends_sessions_away(),
        drain_waits_for: core.sends_away_waits_for(worker).unwrap_or_default(),
        protocol: worker.attached.map_or(0, |attached| attached.protocol),
        tier: body.tier.clone(),
        python_versions: body.pythons().to_vec(),
        sessions_refused: body.sessions_refused.as_ref().map(convert::reason),
    }
}

impl Admin {
    /// The worker as an answer shows it, once `recorded`.
    async fn changed(
        &self,
        id: &str,
        tenant: &str,
        recorded: Recorded,
    ) -> Result<Response<v1::Worker>, Status> {
        durable(recorded).await.map_err(status)?;
        let shown = self.cluster.look(|core| core.worker(id).map(|w| worker(core, w, *w.tenant == *tenant)));
        Ok(Response::new(shown.unwrap_or_default()))
    }
}

#[tonic::async_trait]
impl admin_server::Admin for Admin {
    type WatchEventsStream = BoxStream<v1::Event>;
    type ExportAuditStream = BoxStream<v1::AuditRow>;

    async fn get_info(&self, request: Request<v1::GetInfoRequest>) -> Result<Response<v1::Info>, Status> {
        let caller = caller(&request)?;
        let last_event_seq = self.cluster.store.last_seq().await.map_err(|error| status(error.into()))?;
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
            last_event_seq,
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

    async fn rotate_token(
        &self,
        request: Request<v1::RotateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenResponse>, Status> {
        let caller = caller(&request)?;
        caller.require(&[]).map_err(status)?;
        let request = request.into_inner();
        let rotated = self.tokens.rotate(&caller, &request.token_id, request.grace_ms).await;
        Ok(Response::new(rotated.map_err(status)?))
    }

    async fn list_audit(
        &self,
        request: Request<v1::ListAuditRequest>,
    ) -> Result<Response<v1::ListAuditResponse>, Status> {
        let caller = caller(&request)?;
        caller.require(&[]).map_err(status)?;
        let request = request.into_inner();
        let limit = match request.limit as usize {
            0 => limits::audit::PAGE_DEFAULT,
            limit => limit.min(limits::audit::PAGE_MAX),
        };
        let rows = self.audit.list(&caller, request.before_seq, limit).await.map_err(status)?;
        Ok(Response::new(v1::ListAuditResponse { rows: rows.into_iter().map(convert::audit).collect() }))
    }

    async fn export_audit(
        &self,
        request: Request<v1::ExportAuditRequest>,
    ) -> Result<Response<Self::ExportAuditStream>, Status> {
        let caller = caller(&request)?;
        caller.require(&[]).map_err(status)?;
        let (audit, mut next) = (self.audit.clone(), request.get_ref().from_seq.max(1));
        let rows = async_stream::try_stream! {
            loop {
                let page = audit.from(&caller, next, limits::audit::PAGE_MAX).await.map_err(status)?;
                let Some(last) = page.last() else { break };
                next = last.seq + 1;
                for row in page {
                    yield convert::audit(row);
                }
            }
        };
        Ok(Response::new(Box::pin(rows)))
    }

    async fn verify_audit(
        &self,
        request: Request<v1::VerifyAuditRequest>,
    ) -> Result<Response<v1::AuditVerdict>, Status> {
        let caller = caller(&request)?;
        caller.require(&[]).map_err(status)?;
        let request = request.into_inner();
        let expected = (request.expected_seq > 0)
            .then_some(Link { seq: request.expected_seq, hash: request.expected_hash });
        Ok(Response::new(self.audit.verify(&caller, expected).await.map_err(status)?))
    }

    async fn list_workers(
        &self,
        request: Request<v1::ListWorkersRequest>,
    ) -> Result<Response<v1::ListWorkersResponse>, Status> {
        let caller = caller(&request)?;
        caller.require(&[Scope::Operator]).map_err(status)?;
        // Workers are shared; their stacks are their tenant's.
        let workers = self
            .cluster
            .look(|core| core.workers().map(|w| worker(core, w, w.tenant == caller.tenant)).collect());
        Ok(Response::new(v1::ListWorkersResponse { workers }))
    }

    async fn drain_worker(
        &self,
        request: Request<v1::DrainWorkerRequest>,
    ) -> Result<Response<v1::Worker>, Status> {
        let caller = caller(&request)?;
        caller.require(&[Scope::Operator]).map_err(status)?;
        let request = request.into_inner();
        let deadline_ms = request.deadline_ms.unwrap_or(limits::link::DRAIN_MS);
        crate::check::at_most("deadline_ms", deadline_ms, limits::link::DRAIN_MS_MAX).map_err(status)?;
        let drained = self.cluster.decide(|core, now| {
            Ok(((), core.drain(now, &request.worker_id, deadline_ms, request.checkpoint, &caller.name)?))
        });
        let ((), recorded) = drained.map_err(status)?;
        self.changed(&request.worker_id, &caller.tenant, recorded).await
    }

    async fn undrain_worker(
        &self,
        request: Request<v1::UndrainWorkerRequest>,
    ) -> Result<Response<v1::Worker>, Status> {
        let caller = caller(&request)?;
        caller.require(&[Scope::Operator]).map_err(status)?;
        let id = &request.get_ref().worker_id;
        let undrained = self.cluster.decide(|core, now| Ok(((), core.undrain(now, id)?)));
        let ((), recorded) = undrained.map_err(status)?;
        self.changed(id, &caller.tenant, recorded).await
    }

    async fn watch_events(
        &self,
        request: Request<v1::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        let request = request.get_ref();
        let tenant = Some(caller.tenant.to_string());
        let mut feed = Feed::from(self.cluster.store.clone(), &self.bus, request.from_seq, tenant);
        if request.until_end {
            feed = feed.until_end().await.map_err(|error| status(error.into()))?;
        }
        let feed = feed.into_stream();
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
