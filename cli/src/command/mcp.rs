//! `cooper mcp`: MCP on standard input and output, for hosts that start their servers as programs. Every line goes to `/mcp`
//! of a coordinator as a request, every message of the answers is a line; nothing else is ever on standard output. Where no
//! cluster runs one is started, which ends with this process.

mod answer;
mod embedded;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use cooper_common::{config::Role, error::Code, limits};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    sync::{Notify, mpsc},
    task::AbortHandle,
};
use tonic::{
    body::Body,
    codegen::http::{HeaderValue, Method, Request, Response, StatusCode, header},
};

use self::{answer::Answer, embedded::Embedded};
use crate::{
    args,
    command::{block_on, healthy},
    connect::{Client, Cluster, Cut, Patience},
    context::Context,
    failure::{Failure, Result},
};

const SESSION: &str = "mcp-session-id";
const CONNECTION: &str = "cooper-connection";
const VERSION: &str = "mcp-protocol-version";
const META_VERSION: &str = "io.modelcontextprotocol/protocolVersion";
/// From this version on there is no connection, and what a request is about is in its headers, too.
const WITHOUT_CONNECTION: &str = "2026-07-28";
/// JSON-RPC: the message is not JSON, or is none of the protocol's; and what else goes wrong here.
const PARSE: i32 = -32700;
const INVALID: i32 = -32600;
const INTERNAL: i32 = -32603;
/// For the session that ends with this process: who started us does not wait for long.
const GOODBYE: Duration = Duration::from_secs(1);
/// Messages that wait to be written.
const WAITING_MAX: usize = 256;

pub fn run(context: &Context, args: args::Mcp) -> Result<u8> {
    let config = context.config(Role::Client, Default::default())?;
    // Commands say where they are sent; only where nothing is said and nothing runs there is something to start.
    let found = match (Cluster::find(&config), config.text("url")) {
        (Ok(cluster), Some(_)) => Some(cluster),
        (Ok(cluster), None) => healthy(&cluster.url, config.path("tls_ca").as_deref()).then_some(cluster),
        (Err(failure), Some(_)) => return Err(failure),
        (Err(failure), None) if args.no_start => return Err(failure),
        (Err(_), None) => None,
    };
    let (cluster, embedded) = match found {
        Some(cluster) => (cluster, None),
        None if args.no_start => {
            return Err(
                Failure::new(Code::Unavailable, "no cluster runs here").hint("start one with `cooper up`")
            );
        }
        None => {
            let embedded = Embedded::start(context)?;
            (Cluster::local(&config, &embedded.url)?, Some(embedded))
        }
    };
    let end = block_on(speak(cluster));
    drop(embedded);
    end.map(|()| 0)
}

/// Until standard input ends, or we are told to stop.
async fn speak(cluster: Cluster) -> Result<()> {
    let (lines, mut written) = mpsc::channel::<String>(WAITING_MAX);
    let writer = tokio::spawn(async move {
        let mut stdout = tokio::io::stdout();
        while let Some(mut line) = written.recv().await {
            line.push('\n');
            if stdout.write_all(line.as_bytes()).await.is_err() || stdout.flush().await.is_err() {
                break;
            }
        }
    });
    let client = cluster.connect().await?;
    let host = Arc::new(Host {
        cluster,
        client: Mutex::new(client),
        connection: format!("{:032x}", rand::random::<u128>()),
        lines,
        state: Mutex::default(),
        answered: Notify::new(),
    });
    let mut input = BufReader::new(tokio::io::stdin());
    let mut stop = std::pin::pin!(stop());
    loop {
        let line = tokio::select! {
            line = line(&mut input) => line,
            () = &mut stop => break,
        };
        match line {
            // What was asked before is answered, if that is soon.
            Line::End => {
                let _ = tokio::time::timeout(GOODBYE, host.idle()).await;
                break;
            }
            Line::TooLong => {
                let most = limits::link::MESSAGE_BYTES_MAX;
                host.refuse(Value::Null, INVALID, &format!("the message has more than {most} bytes")).await;
            }
            Line::Some(line) => host.take(line).await,
        }
    }
    host.leave().await;
    drop(host);
    let _ = tokio::time::timeout(GOODBYE, writer).await;
    Ok(())
}

/// Who started us may say so by a signal, too.
async fn stop() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int), Ok(mut hup)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()), signal(SignalKind::hangup()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
        _ = hup.recv() => {}
    }
}

enum Line {
    Some(Vec<u8>),
    TooLong,
    End,
}

/// The next line that is not empty; of one that is too long nothing is kept.
async fn line(input: &mut (impl AsyncBufRead + Unpin)) -> Line {
    let (mut line, mut too_long) = (Vec::new(), false);
    loop {
        let Ok(read) = input.fill_buf().await else { return Line::End };
        if read.is_empty() {
            return if line.is_empty() { Line::End } else { Line::Some(line) };
        }
        let end = read.iter().position(|byte| *byte == b'\n');
        let part = end.unwrap_or(read.len());
        if line.len() + part > limits::link::MESSAGE_BYTES_MAX {
            too_long = true;
            line.clear();
        }
        if !too_long {
            line.extend_from_slice(&read[..part]);
        }
        input.consume(part + usize::from(end.is_some()));
        if end.is_some() {
            match (too_long, line.iter().all(u8::is_ascii_whitespace)) {
                (true, _) => return Line::TooLong,
                (false, true) => line.clear(),
                (false, false) => return Line::Some(line),
            }
        }
    }
}

/// The host on the other side of the pipes, and what it talks to.
struct Host {
    cluster: Cluster,
    client: Mutex<Client>,
    /// What our requests have in common, for the coordinator: they share a session, also after it was started anew.
    connection: String,
    lines: mpsc::Sender<String>,
    state: Mutex<State>,
    /// A request is under way no more.
    answered: Notify,
}

#[derive(Default)]
struct State {
    /// The connection of the protocol, where its version has one.
    session: Option<String>,
    /// Its version, as agreed.
    version: Option<String>,
    /// How it began: a coordinator that was started anew is told again.
    initialize: Option<Value>,
    /// Requests under way, by id.
    running: HashMap<String, Running>,
}

struct Running {
    task: AbortHandle,
    /// It ends with its stream, and is not cancelled by a message.
    by_stream: bool,
}

impl Host {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn client(&self) -> Client {
        self.client.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn say(&self, message: &Value) {
        // Nobody reads any more: the end of the input comes next.
        let _ = self.lines.send(message.to_string()).await;
    }

    async fn refuse(&self, id: Value, code: i32, what: &str) {
        self.say(&json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": what}})).await;
    }

    /// One message. Requests go on by themselves; what comes before others has to arrive before them.
    async fn take(self: &Arc<Self>, line: Vec<u8>) {
        let message: Value = match serde_json::from_slice(&line) {
            Ok(message) => message,
            Err(error) => {
                return self.refuse(Value::Null, PARSE, &format!("the line is not JSON: {error}")).await;
            }
        };
        let (Some(id), Some(method)) = (message.get("id").cloned(), message["method"].as_str()) else {
            if let Some(running) = self.cancelled(&message) {
                running.task.abort();
                return;
            }
            // Nobody waits for an answer to this.
            let _ = self.forward(&message).await;
            return;
        };
        if method == "initialize" {
            self.state().initialize = Some(message.clone());
            return self.answer(&message, id).await;
        }
        let by_stream = version_of(&message).is_some_and(|version| *version >= *WITHOUT_CONNECTION);
        let (host, key) = (self.clone(), id.to_string());
        // It is not known before it is entered.
        let mut state = self.state();
        let task = tokio::spawn({
            let key = key.clone();
            async move {
                host.answer(&message, id).await;
                host.state().running.remove(&key);
                host.answered.notify_one();
            }
        });
        state.running.insert(key, Running { task: task.abort_handle(), by_stream });
    }

    /// A request that ends by giving up its stream.
    fn cancelled(&self, message: &Value) -> Option<Running> {
        if message["method"] != "notifications/cancelled" {
            return None;
        }
        let key = message["params"]["requestId"].to_string();
        let mut state = self.state();
        match state.running.get(&key) {
            Some(running) if running.by_stream => state.running.remove(&key),
            _ => None,
        }
    }

    /// Sends a request, and says whatever is answered. It is answered in any case.
    async fn answer(&self, message: &Value, id: Value) {
        if let Err(failure) = self.forward(message).await {
            let what = match failure {
                Failure::Error(report) => format!("{}: {}", report.code, report.message),
                _ => "the coordinator cannot be reached".to_owned(),
            };
            self.refuse(id, INTERNAL, &what).await;
        }
    }

    async fn forward(&self, message: &Value) -> Result<()> {
        let mut response = self.send(message).await?;
        // A coordinator that was started anew does not know the connection.
        let begun = self.state().initialize.clone();
        if response.status() == StatusCode::NOT_FOUND
            && message["method"] != "initialize"
            && let Some(begun) = begun
        {
            self.begin_again(&begun).await?;
            response = self.send(message).await?;
        }
        if message["method"] == "initialize" {
            let session = response.headers().get(SESSION).and_then(|id| id.to_str().ok());
            self.state().session = session.map(str::to_owned);
        }
        self.tell(message, response).await
    }

    async fn begin_again(&self, begun: &Value) -> Result<()> {
        self.state().session = None;
        let response = self.send(begun).await?;
        let session = response.headers().get(SESSION).and_then(|id| id.to_str().ok()).map(str::to_owned);
        self.state().session = session;
        let mut answer = Answer::new(response.into_body());
        while answer.next().await?.is_some() {}
        self.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await?;
        Ok(())
    }

    /// What was answered, message by message.
    async fn tell(&self, asked: &Value, response: Response<Body>) -> Result<()> {
        let status = response.status();
        let mut answered = false;
        let mut answer = Answer::new(response.into_body());
        while let Some(mut message) = answer.next().await? {
            if message["jsonrpc"] != "2.0" {
                // A problem of the port as a whole.
                let what = message["message"].as_str().unwrap_or("the coordinator refuses").to_owned();
                let data = json!({"code": message["code"], "hint": message["hint"]});
                message =
                    json!({"jsonrpc": "2.0", "error": {"code": INTERNAL, "message": what, "data": data}});
            }
            if let (Some(id), true) =
                (asked.get("id"), message["id"].is_null() && !message["error"].is_null())
            {
                message["id"] = id.clone();
            }
            if asked["method"] == "initialize"
                && let Some(version) = message["result"]["protocolVersion"].as_str()
            {
                self.state().version = Some(version.to_owned());
            }
            answered |= message["id"] == asked["id"];
            self.say(&message).await;
        }
        if !answered && asked.get("id").is_some() {
            let what = format!("the coordinator ended its answer early ({status})");
            return Err(Failure::new(Code::Unavailable, what));
        }
        Ok(())
    }

    /// One request of HTTP. A coordinator that is started anew is waited for; what runs something is not sent twice.
    async fn send(&self, message: &Value) -> Result<Response<Body>> {
        let mut patience = Patience::default();
        loop {
            let Cut { failure, arrived } =
                match self.client().http(self.request(Method::POST, Some(message))?).await {
                    Ok(response) => return Ok(response),
                    Err(cut) => cut,
                };
            if arrived && message["method"] == "tools/call" {
                return Err(failure);
            }
            let client = patience.reconnect(&self.cluster, failure).await?;
            *self.client.lock().unwrap_or_else(PoisonError::into_inner) = client;
        }
    }

    fn request(&self, method: Method, message: Option<&Value>) -> Result<Request<Body>> {
        let state = self.state();
        let mut request = Request::builder()
            .method(method)
            .uri("/mcp")
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, text/event-stream")
            .header(CONNECTION, &self.connection);
        let said = message.and_then(version_of);
        let with_connection = said.as_deref().is_none_or(|version| version < WITHOUT_CONNECTION);
        if let Some(session) = state.session.as_ref().filter(|_| with_connection) {
            request = request.header(SESSION, session);
        }
        let begins = message.is_some_and(|message| message["method"] == "initialize");
        if let Some(version) = said.or_else(|| state.version.clone()).filter(|_| !begins) {
            request = request.header(VERSION, version);
        }
        if let Some(message) = message.filter(|_| !with_connection) {
            request = request.header("mcp-method", text(&message["method"])?);
            let about = match message["method"].as_str() {
                Some("resources/read") => &message["params"]["uri"],
                _ => &message["params"]["name"],
            };
            if about.is_string() {
                request = request.header("mcp-name", text(about)?);
            }
        }
        let body = message.map_or_else(Body::empty, |message| Body::new(message.to_string()));
        request.body(body).map_err(|error| Failure::new(Code::Internal, error.to_string()))
    }

    /// Until nothing is under way.
    async fn idle(&self) {
        while !self.state().running.is_empty() {
            self.answered.notified().await;
        }
    }

    /// The session ends with us.
    async fn leave(&self) {
        let running: Vec<_> = self.state().running.drain().collect();
        for (_, running) in running {
            running.task.abort();
        }
        if let Ok(request) = self.request(Method::DELETE, None) {
            let _ = tokio::time::timeout(GOODBYE, self.client().http(request)).await;
        }
    }
}

/// Which version of the protocol a message says it is of.
fn version_of(message: &Value) -> Option<String> {
    message["params"]["_meta"][META_VERSION].as_str().map(str::to_owned)
}

/// As a header has it: what is not plain text is encoded.
fn text(value: &Value) -> Result<HeaderValue> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let text = value.as_str().unwrap_or_default();
    let plain = text.bytes().all(|byte| (0x20..0x7f).contains(&byte)) && text.trim() == text;
    let text = if plain { text.to_owned() } else { format!("=?base64?{}?=", STANDARD.encode(text)) };
    HeaderValue::from_str(&text).map_err(|error| Failure::new(Code::Internal, error.to_string()))
}
