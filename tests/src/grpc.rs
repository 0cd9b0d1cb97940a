//! The contract, spoken directly.

use cooper_proto::v1::{
    CreateSessionRequest, Error, Session, admin_client::AdminClient, checkpoints_client::CheckpointsClient,
    executions_client::ExecutionsClient, runs_client::RunsClient, sessions_client::SessionsClient,
    tasks_client::TasksClient,
};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt;

#[derive(Clone)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

pub type Service = InterceptedService<Channel, Bearer>;

/// A connection with a token, or without.
#[derive(Clone)]
pub struct Client {
    pub service: Service,
}

pub async fn channel(url: &str) -> Channel {
    Endpoint::from_shared(url.to_owned()).expect("a URL").connect().await.expect("a connection")
}

impl Client {
    pub async fn connect(url: &str, token: Option<&str>) -> Self {
        let bearer = token.map(|token| format!("Bearer {token}").parse().expect("a token"));
        Self { service: InterceptedService::new(channel(url).await, Bearer(bearer)) }
    }
    pub fn sessions(&self) -> SessionsClient<Service> {
        SessionsClient::new(self.service.clone())
    }
    pub fn tasks(&self) -> TasksClient<Service> {
        TasksClient::new(self.service.clone())
    }
    pub fn executions(&self) -> ExecutionsClient<Service> {
        ExecutionsClient::new(self.service.clone())
    }
    pub fn runs(&self) -> RunsClient<Service> {
        RunsClient::new(self.service.clone())
    }
    pub fn checkpoints(&self) -> CheckpointsClient<Service> {
        CheckpointsClient::new(self.service.clone())
    }
    pub fn admin(&self) -> AdminClient<Service> {
        AdminClient::new(self.service.clone())
    }
    pub async fn session(&self) -> Session {
        let made = self.sessions().create_session(CreateSessionRequest::default()).await;
        made.expect("a session").into_inner()
    }
}

/// What a refusal says to programs: google.rpc.ErrorInfo of domain `cooper`.
#[track_caller]
pub fn refusal(status: &Status) -> Error {
    let info = status.get_details_error_info().unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"));
    assert_eq!(info.domain, "cooper");
    Error {
        code: info.reason,
        message: status.message().to_owned(),
        hint: info.metadata.get("hint").cloned().unwrap_or_default(),
    }
}
