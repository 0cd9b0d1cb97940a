//! MCP on the one port: streamable HTTP at `/mcp`, with connections and without. Every tool becomes the gRPC calls it
//! stands for, in this process, so that who may do what, checks, bounds and errors are those of every door.

mod artifacts;
mod call;
mod earlier;
mod executions;
mod files;
mod packages;
mod resources;
mod runs;
mod schema;
mod sessions;
mod tasks;
mod tool;

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderName, HeaderValue, Method, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
    routing,
};
use cooper_common::{
    VERSION,
    error::{Code, Error},
    limits,
    token::Scope,
};
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{
        CallToolRequestParams, CallToolResponse, Implementation, ListResourceTemplatesResult,
        ListResourcesResult, ListToolsResult, PaginatedRequestParams, ReadResourceRequestParams,
        ReadResourceResponse, ServerCapabilities, ServerConfig,
    },
    service::{NotificationContext, RequestContext},
    transport::streamable_http_server::{
        StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
    },
};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use self::{
    call::{Call, Connection},
    tool::Tool,
};
use super::error::problem;
use crate::caller::Caller;

/// Of a connection of the protocol's versions that have such.
const SESSION_HEADER: HeaderName = HeaderName::from_static("mcp-session-id");
/// How a client that has no such connection says which of its requests belong together.
pub const CONNECTION_HEADER: HeaderName = HeaderName::from_static("cooper-connection");
/// What a model is told about all of it, before it looks at any tool.
const INSTRUCTIONS: &str = include_str!("mcp/instructions.md");

type Http = StreamableHttpService<Server, LocalSessionManager>;

/// What answers `/mcp`.
#[derive(Clone)]
struct Door {
    http: Http,
    connections: Arc<LocalSessionManager>,
    services: Routes,
}

/// `/mcp` over the services of gRPC, until `stopped`: streams of clients would keep the port from closing. With `earlier`
/// also the tools of the server that came before.
pub fn router(services: Routes, earlier: bool, stopped: watch::Receiver<bool>) -> Router {
    let ended = CancellationToken::new();
    let end = ended.clone();
    let mut stopped = stopped;
    tokio::spawn(async move {
        // Whether told or forgotten.
        let _ = stopped.wait_for(|stop| *stop).await;
        end.cancel();
    });
    let mut connections = LocalSessionManager::default();
    connections.session_config.keep_alive = Some(Duration::from_millis(limits::mcp::CONNECTION_IDLE_MS));
    let connections = Arc::new(connections);
    let tools = Arc::new(tools(earlier));
    let behind = services.clone();
    let server = move || Ok(Server { tools: tools.clone(), services: behind.clone() });
    let config = StreamableHttpServerConfig::default()
        .with_cancellation_token(ended)
        .with_max_request_body_bytes(limits::link::MESSAGE_BYTES_MAX)
        // Which hosts and origins are let in is decided for the whole port.
        .disable_allowed_hosts();
    let http = StreamableHttpService::new(server, connections.clone(), config);
    Router::new().route("/mcp", routing::any(answer)).with_state(Door { http, connections, services })
}

/// Every tool, in the order they are listed in.
fn tools(earlier: bool) -> Vec<Tool> {
    let groups = [
        executions::tools(),
        files::tools(),
        packages::tools(),
        artifacts::tools(),
        sessions::tools(),
        tasks::tools(),
        runs::tools(),
        if earlier { earlier::tools() } else { Vec::new() },
    ];
    groups.into_iter().flatten().collect()
}

async fn answer(State(door): State<Door>, request: Request) -> Response {
    let Some(caller) = request.extensions().get::<Caller>().cloned() else {
        return problem(&Error::new(Code::Unauthenticated, "no token was given"));
    };
    let (mut parts, body) = request.into_parts();
    // A connection is that of the token it was opened with. For another's it is not there.
    if let Some(id) = parts.headers.remove(SESSION_HEADER) {
        let own = id.to_str().ok().and_then(|id| id.strip_suffix(&suffix(&caller)));
        let Some(own) = own.and_then(|own| HeaderValue::from_str(own).ok()) else {
            return rejected(StatusCode::NOT_FOUND, -32001, "there is no such connection: initialize anew");
        };
        parts.headers.insert(SESSION_HEADER, own);
    }
    let connection = Connection::of(&parts, &caller);
    if parts.method == Method::DELETE {
        if let Some(connection) = connection {
            // Who says goodbye does not always wait for the end.
            let (services, caller) = (door.services.clone(), caller.clone());
            let _ = tokio::spawn(async move { connection.end(&services, &caller).await }).await;
        }
        // Without a connection of the protocol it had nothing but its session.
        if parts.headers.contains_key(SESSION_HEADER) {
            let ended = door.http.handle(Request::from_parts(parts, Body::empty())).await;
            if !ended.status().is_success() {
                return ended.map(Body::new);
            }
        }
        return StatusCode::NO_CONTENT.into_response();
    }
    if let Some(connection) = connection {
        parts.extensions.insert(connection);
    }
    let body = match message(body).await {
        Ok(body) => body,
        Err(response) => return response,
    };
    if opens(&parts, &body) && door.connections.sessions.read().await.len() >= limits::mcp::CONNECTIONS_MAX {
        let most = limits::mcp::CONNECTIONS_MAX;
        return problem(&Error::new(Code::Overloaded, format!("{most} clients are connected by MCP")));
    }
    let mut response = door.http.handle(Request::from_parts(parts, Body::from(body))).await.map(Body::new);
    if let Some(id) = response.headers_mut().remove(SESSION_HEADER)
        && let Some(named) = id.to_str().ok().map(|id| format!("{id}{}", suffix(&caller)))
        && let Ok(named) = HeaderValue::from_str(&named)
    {
        response.headers_mut().insert(SESSION_HEADER, named);
    }
    response
}

fn suffix(caller: &Caller) -> String {
    format!(".{}", caller.token_id)
}

/// It asks for a connection that is kept.
fn opens(parts: &Parts, body: &Bytes) -> bool {
    !parts.headers.contains_key(SESSION_HEADER)
        && serde_json::from_slice::<Value>(body).is_ok_and(|message| message["method"] == "initialize")
}

/// The body, as long as it is one message of JSON-RPC: everything else is told what is wrong with it.
async fn message(body: Body) -> Result<Bytes, Response> {
    let most = limits::link::MESSAGE_BYTES_MAX;
    let Ok(bytes) = axum::body::to_bytes(body, most).await else {
        let what = format!("the message has more than {most} bytes, or was cut off");
        return Err(rejected(StatusCode::PAYLOAD_TOO_LARGE, -32600, &what));
    };
    if bytes.is_empty() {
        return Ok(bytes);
    }
    let wrong = match serde_json::from_slice::<Value>(&bytes) {
        Err(error) => Some((-32700, format!("the message is not JSON: {error}"))),
        Ok(Value::Array(_)) => {
            Some((-32600, "batches are not taken: send each message by itself".to_owned()))
        }
        Ok(message) if message["jsonrpc"] != "2.0" => {
            Some((-32600, "the message is no JSON-RPC 2.0: \"jsonrpc\": \"2.0\" is missing".to_owned()))
        }
        Ok(_) => None,
    };
    match wrong {
        Some((code, what)) => Err(rejected(StatusCode::BAD_REQUEST, code, &what)),
        None => Ok(bytes),
    }
}

/// An answer to what is no request that could be answered.
fn rejected(status: StatusCode, code: i32, what: &str) -> Response {
    let body = json!({"jsonrpc": "2.0", "id": null, "error": {"code": code, "message": what}});
    let mut response = (status, Json(body)).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// What one connection, or one request without any, talks to.
struct Server {
    tools: Arc<Vec<Tool>>,
    services: Routes,
}

impl Server {
    fn call(&self, context: RequestContext<RoleServer>) -> Result<Call, ErrorData> {
        let missing = || ErrorData::internal_error("the request has no caller", None);
        let parts = context.extensions.get::<Parts>().ok_or_else(missing)?;
        let caller = parts.extensions.get::<Caller>().cloned().ok_or_else(missing)?;
        let connection = parts.extensions.get::<Connection>().cloned();
        Ok(Call::new(self.services.clone(), caller, connection, context))
    }

    fn offered(&self, scope: Scope) -> impl Iterator<Item = &Tool> {
        self.tools.iter().filter(move |tool| tool.is_offered(scope))
    }
}

impl ServerHandler for Server {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder().enable_tools().enable_resources().build();
        let about = Implementation::new("cooper", VERSION).with_title("Cooper");
        ServerConfig::new(capabilities).with_server_info(about).with_instructions(INSTRUCTIONS)
    }

    async fn on_initialized(&self, _: NotificationContext<RoleServer>) {}

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let call = self.call(context)?;
        let tools = self.offered(call.caller.scope).map(|tool| tool.definition.clone()).collect();
        Ok(ListToolsResult::with_all_items(tools))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let call = self.call(context)?;
        let wanted = self.offered(call.caller.scope).find(|tool| tool.definition.name == request.name);
        let Some(tool) = wanted else {
            let shown: String = request.name.chars().take(100).collect();
            return Err(ErrorData::invalid_params(
                format!("there is no tool {shown:?}: see tools/list"),
                None,
            ));
        };
        Ok(tool.call(call, request.arguments.unwrap_or_default()).await.into())
    }

    async fn list_resources(
        &self,
        _: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        let listed = resources::list(&self.call(context)?).await.map_err(protocol)?;
        Ok(ListResourcesResult::with_all_items(listed))
    }

    async fn list_resource_templates(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        Ok(ListResourceTemplatesResult::with_all_items(resources::templates()))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let read = resources::read(&self.call(context)?, &request.uri).await.map_err(protocol)?;
        Ok(rmcp::model::ReadResourceResult::new(vec![read]).into())
    }
}

/// An error where there is no room for one that a model could read: of what is no tool.
fn protocol(error: Error) -> ErrorData {
    let said = json!({"code": error.code.as_str(), "hint": error.hint()});
    match error.code.kind() {
        cooper_common::error::Kind::NotFound => ErrorData::resource_not_found(error.message, Some(said)),
        cooper_common::error::Kind::Internal => ErrorData::internal_error(error.message, Some(said)),
        _ => ErrorData::invalid_params(error.message, Some(said)),
    }
}
