//! `cooper.v1.Templates`.

use std::sync::Arc;

use cooper_proto::v1::{self, build_template_response::Event, templates_server};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};

use crate::{
    checkpoints::Checkpoints,
    cluster::Cluster,
    doors::{BoxStream, caller, status},
    templates::{self, Progress, Template},
};

/// Messages of a build that wait for its client. One that does not read misses output, never a step.
const BUFFERED_MAX: usize = 256;

pub struct Templates {
    pub cluster: Arc<Cluster>,
    pub checkpoints: Arc<Checkpoints>,
}

#[tonic::async_trait]
impl templates_server::Templates for Templates {
    type BuildTemplateStream = BoxStream<v1::BuildTemplateResponse>;

    async fn build_template(
        &self,
        request: Request<v1::BuildTemplateRequest>,
    ) -> Result<Response<Self::BuildTemplateStream>, Status> {
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        let request = request.into_inner();
        let (say, said) = mpsc::channel(BUFFERED_MAX);
        let said = ReceiverStream::new(said).map(Ok);
        let (cluster, checkpoints) = (self.cluster.clone(), self.checkpoints.clone());
        let stream = async_stream::stream! {
            let mut tell = |progress| drop(say.try_send(event(progress)));
            let recipe = request.recipe.unwrap_or_default();
            let build = templates::build(&cluster, &checkpoints, &caller, &request.name, recipe, &mut tell);
            tokio::pin!(build, said);
            let built = loop {
                tokio::select! {
                    biased;
                    Some(said) = said.next() => yield said,
                    built = &mut build => break built,
                }
            };
            yield match built {
                Ok(template) => Ok(response(Event::Built(wire(&cluster, &template)))),
                Err(error) => Err(status(error)),
            };
        };
        Ok(Response::new(Box::pin(stream)))
    }

    async fn list_templates(
        &self,
        request: Request<v1::ListTemplatesRequest>,
    ) -> Result<Response<v1::ListTemplatesResponse>, Status> {
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        let request = request.into_inner();
        let (templates, next_cursor) =
            templates::list(&self.cluster, &caller, request.page, request.name).await.map_err(status)?;
        let templates = templates.iter().map(|template| wire(&self.cluster, template)).collect();
        Ok(Response::new(v1::ListTemplatesResponse { templates, next_cursor }))
    }

    async fn get_template(
        &self,
        request: Request<v1::GetTemplateRequest>,
    ) -> Result<Response<v1::Template>, Status> {
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        let template = templates::get(&self.cluster, &caller.tenant, &request.get_ref().template)
            .await
            .map_err(status)?;
        Ok(Response::new(wire(&self.cluster, &template)))
    }

    async fn delete_template(
        &self,
        request: Request<v1::DeleteTemplateRequest>,
    ) -> Result<Response<v1::DeleteTemplateResponse>, Status> {
        let caller = caller(&request)?;
        caller.require_client().map_err(status)?;
        let deleted =
            templates::delete(&self.cluster, &self.checkpoints, &caller, &request.get_ref().template)
                .await
                .map_err(status)?;
        let templates = deleted.iter().map(|template| wire(&self.cluster, template)).collect();
        Ok(Response::new(v1::DeleteTemplateResponse { templates }))
    }
}

fn response(event: Event) -> v1::BuildTemplateResponse {
    v1::BuildTemplateResponse { event: Some(event) }
}

fn event(progress: Progress) -> v1::BuildTemplateResponse {
    response(match progress {
        Progress::Step(step) => Event::Step(step.to_owned()),
        Progress::Output { stream, offset, data } => {
            Event::Output(v1::Output { stream: i32::from(stream.number()), offset, data })
        }
    })
}

fn wire(cluster: &Cluster, template: &Template) -> v1::Template {
    let ready = cluster
        .look(|core| core.spares().filter(|(_, spare)| spare.template == template.id && spare.warm).count());
    let mut recipe = template.recipe.clone();
    for file in &mut recipe.files {
        file.content.clear();
    }
    v1::Template {
        id: template.id.to_string(),
        name: template.body.name.clone(),
        version: template.body.version,
        tenant: template.tenant.clone(),
        created_at_ms: template.created_ms,
        python_version: template.body.python_version.clone(),
        checkpoint_id: template.body.checkpoint.to_string(),
        recipe: Some(recipe),
        spares_ready: ready as u32,
    }
}
