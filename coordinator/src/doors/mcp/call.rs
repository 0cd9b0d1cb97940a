//! One call of a tool: who asks, on which connection, and the services that answer.

use std::time::Duration;

use axum::http::request::Parts;
use cooper_common::{
    error::{Code, Error, Result},
    limits,
};
use cooper_proto::v1::{
    self, checkpoints_client::CheckpointsClient, executions_client::ExecutionsClient,
    runs_client::RunsClient, sessions_client::SessionsClient, tasks_client::TasksClient,
};
use rmcp::{
    RoleServer,
    model::{ProgressNotificationParam, ProgressToken},
    service::{Peer, RequestContext},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status, service::Routes};

use super::{CONNECTION_HEADER, SESSION_HEADER};
use crate::{caller::Caller, doors::error::from_status};

/// Requests that belong together: those of one connection, or those that name one.
#[derive(Clone)]
pub struct Connection {
    /// Of its session. Made from the token and what the client calls the connection, so that it is found again by the next
    /// request, also after a restart, and by nobody else.
    session: String,
}

impl Connection {
    /// The client's own name for it counts more than the protocol's, which ends with every start of the coordinator.
    pub fn of(parts: &Parts, caller: &Caller) -> Option<Self> {
        let key = [CONNECTION_HEADER, SESSION_HEADER].iter().find_map(|name| parts.headers.get(name))?;
        let mut hash = blake3::Hasher::new();
        hash.update(caller.token_id.as_bytes()).update(&[0]).update(key.as_bytes());
        let digest = hash.finalize().to_hex();
        Some(Self { session: format!("mcp-{}", &digest[..24]) })
    }

    /// Its session ends with it.
    pub async fn end(&self, services: &Routes, caller: &Caller) {
        let mut request = Request::new(v1::DestroySessionRequest {
            session_id: self.session.clone(),
            ..Default::default()
        });
        request.extensions_mut().insert(caller.clone());
        if let Err(status) = SessionsClient::new(services.clone()).destroy_session(request).await {
            // Most have none.
            tracing::debug!(session = self.session, %status, "the session of a connection was not destroyed");
        }
    }
}

/// A session that was meant, and whether it was made for that.
pub struct Place {
    pub session_id: String,
    pub created: bool,
}

pub struct Call {
    pub caller: Caller,
    pub cancelled: CancellationToken,
    services: Routes,
    connection: Option<Connection>,
    progress: Option<(Peer<RoleServer>, ProgressToken)>,
    began: Instant,
}

impl Call {
    pub fn new(
        services: Routes,
        caller: Caller,
        connection: Option<Connection>,
        context: RequestContext<RoleServer>,
    ) -> Self {
        let token = context.meta.get_progress_token();
        let progress = token.map(|token| (context.peer, token));
        Self { caller, cancelled: context.ct, services, connection, progress, began: Instant::now() }
    }

    pub fn sessions(&self) -> SessionsClient<Routes> {
        let max = limits::link::MESSAGE_BYTES_MAX;
        SessionsClient::new(self.services.clone()).max_decoding_message_size(max)
    }

    pub fn checkpoints(&self) -> CheckpointsClient<Routes> {
        CheckpointsClient::new(self.services.clone())
            .max_decoding_message_size(limits::link::MESSAGE_BYTES_MAX)
    }

    pub fn tasks(&self) -> TasksClient<Routes> {
        TasksClient::new(self.services.clone()).max_decoding_message_size(limits::link::MESSAGE_BYTES_MAX)
    }

    pub fn executions(&self) -> ExecutionsClient<Routes> {
        ExecutionsClient::new(self.services.clone())
            .max_decoding_message_size(limits::link::MESSAGE_BYTES_MAX)
    }

    pub fn runs(&self) -> RunsClient<Routes> {
        RunsClient::new(self.services.clone()).max_decoding_message_size(limits::link::MESSAGE_BYTES_MAX)
    }

    /// A request by whoever calls.
    pub fn by<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.extensions_mut().insert(self.caller.clone());
        request
    }

    /// The session that is named, or the connection's own, made when it is wanted for the first time.
    pub async fn place(&self, named: Option<String>) -> Result<Place> {
        if let Some(session_id) = named.filter(|id| !id.is_empty()) {
            return Ok(Place { session_id, created: false });
        }
        if let Some(session_id) = self.own().await? {
            return Ok(Place { session_id, created: false });
        }
        let session = self.connection()?.session.clone();
        let create = v1::CreateSessionRequest {
            name: session,
            labels: [("mcp".to_owned(), "connection".to_owned())].into(),
            idle_timeout_ms: limits::mcp::SESSION_IDLE_MS,
            wait_ms: limits::mcp::SESSION_WAIT_MS,
            ..Default::default()
        };
        match self.sessions().create_session(self.by(create)).await {
            Ok(session) => Ok(Place { session_id: session.into_inner().id, created: true }),
            Err(status) => match (from_status(&status), self.own().await?) {
                // Another call of the connection was quicker.
                (Error { code: Code::NameTaken, .. }, Some(session_id)) => {
                    Ok(Place { session_id, created: false })
                }
                (error, _) => Err(error),
            },
        }
    }

    /// A session that is there: the one that is named, or the connection's own. None is made.
    pub async fn meant(&self, named: Option<String>) -> Result<String> {
        match named.filter(|id| !id.is_empty()) {
            Some(session_id) => Ok(session_id),
            None => self.own().await?.ok_or_else(|| {
                Error::new(Code::SessionNotFound, "the connection has no session yet")
                    .with_hint("run something first, or give a session_id")
            }),
        }
    }

    /// The connection's session, if it has one by now.
    pub async fn own(&self) -> Result<Option<String>> {
        let session_id = self.connection()?.session.clone();
        match self.sessions().get_session(self.by(v1::GetSessionRequest { session_id })).await {
            Ok(session) => Ok(Some(session.into_inner().id)),
            Err(status) => match from_status(&status) {
                error if error.code == Code::SessionNotFound => Ok(None),
                error => Err(error),
            },
        }
    }

    fn connection(&self) -> Result<&Connection> {
        let missing = || {
            let hint = "call session_create and give its id as session_id from then on; or let the client send the \
                        header Cooper-Connection, whose value says which requests share a session";
            Error::invalid("session_id is missing, and there is no connection that has a session of its own")
                .with_hint(hint)
        };
        self.connection.as_ref().ok_or_else(missing)
    }

    /// Tells the client that it goes on, and what was said since, where it asked for that.
    pub async fn progress(&self, said: Option<String>) {
        let Some((peer, token)) = &self.progress else { return };
        let seconds = self.began.elapsed().as_secs_f64();
        let progress = ProgressNotificationParam::new(token.clone(), seconds);
        let progress = match said {
            Some(said) => progress.with_message(said),
            None => progress,
        };
        // A client that is gone is noticed elsewhere.
        let _ = peer.notify_progress(progress).await;
    }

    pub fn wants_progress(&self) -> bool {
        self.progress.is_some()
    }
}

/// Until when a call waits; what takes longer is asked about again.
pub fn deadline(wait_ms: Option<u64>) -> Result<Instant> {
    let (default, most) = (limits::mcp::WAIT_MS, limits::mcp::WAIT_MS_MAX);
    let wait = wait_ms.unwrap_or(default);
    if wait > most {
        return Err(Error::invalid(format!("wait_ms is {wait}; at most {most}")));
    }
    Ok(Instant::now() + Duration::from_millis(wait))
}

/// What a status of a service said.
pub fn said(status: Status) -> Error {
    from_status(&status)
}
