//! Finds the cluster and connects to it.

use std::{fs, future::poll_fn, path::PathBuf, time::Duration};

use cooper_common::{
    backoff, clock,
    config::{Config, Origin},
    error::Code,
    limits,
    token::Secret,
};
use cooper_proto::v1::{
    admin_client::AdminClient, checkpoints_client::CheckpointsClient, executions_client::ExecutionsClient,
    runs_client::RunsClient, secrets_client::SecretsClient, sessions_client::SessionsClient,
    tasks_client::TasksClient, templates_client::TemplatesClient,
};
use tonic::{
    Request, Status,
    body::Body,
    client::GrpcService as _,
    codegen::http,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use crate::failure::{Failure, Result, cause};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A peer that answers no ping for this long is gone, even if no packet says so.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Where a coordinator is and what it is asked with.
#[derive(Debug, Clone)]
pub struct Cluster {
    pub url: String,
    /// Where the URL comes from, for messages.
    pub origin: String,
    token: Option<Secret>,
    /// By whom an https:// URL is recognised; none: by the authorities of the system.
    ca: Option<PathBuf>,
    /// Read again at each connect: a restarted coordinator may listen elsewhere.
    endpoint_file: Option<PathBuf>,
}

impl Cluster {
    /// The URL and token given, else the data directory's `endpoint` and `admin.token`. The local admin token is
    /// never sent to a URL that is not the local endpoint's.
    pub fn find(config: &Config) -> Result<Self> {
        let data = config.data();
        let endpoint_file = data.join("endpoint");
        let local = fs::read_to_string(&endpoint_file).ok().map(|text| text.trim().to_owned());
        let given = config.text("url").zip(config.get("url").map(|entry| entry.origin.clone()));
        let (url, origin, follow_file) = match (given, &local) {
            (Some((url, origin)), _) => (url, origin.to_string(), None),
            (None, Some(url)) => (url.clone(), endpoint_file.display().to_string(), Some(endpoint_file)),
            (None, None) => {
                return Err(Failure::new(
                    Code::Unavailable,
                    format!("no cluster here: {} does not exist", endpoint_file.display()),
                )
                .hint("start one with `cooper up`, or name one with COOPER_URL and COOPER_TOKEN_FILE"));
            }
        };
        let named = config.secret("token").is_some() || config.path("token_file").is_some();
        let token = if named {
            Some(config.token("token", "token_file")?)
        } else if local.is_some_and(|local| plain(&local) == plain(&url)) {
            let path = data.join("admin.token");
            Some(Secret::read(&path).map_err(|error| {
                Failure::new(Code::Unauthenticated, format!("cannot read {}: {error}", path.display()))
                    .hint("use the account that started the cluster, or name a token with COOPER_TOKEN_FILE")
            })?)
        } else {
            None
        };
        Ok(Self { url, origin, token, ca: config.path("tls_ca"), endpoint_file: follow_file })
    }

    /// The cluster that `cooper up` just started.
    pub fn local(config: &Config, url: &str) -> Result<Self> {
        let token = Secret::read(&config.data().join("admin.token"))
            .map_err(|error| Failure::new(Code::DataUnusable, format!("cannot read admin.token: {error}")))?;
        Ok(Self {
            url: url.to_owned(),
            origin: Origin::Default.to_string(),
            token: Some(token),
            ca: config.path("tls_ca"),
            endpoint_file: None,
        })
    }

    fn tls(&self) -> Result<ClientTlsConfig> {
        let Some(path) = &self.ca else { return Ok(ClientTlsConfig::new().with_native_roots()) };
        let pem = fs::read(path).map_err(|error| {
            let message = format!("setting tls_ca: {} cannot be read: {error}", path.display());
            Failure::new(Code::ConfigInvalid, message)
        })?;
        Ok(ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)))
    }

    #[cfg(test)]
    pub fn for_tests(url: String) -> Self {
        Self { url, origin: "a test".to_owned(), token: None, ca: None, endpoint_file: None }
    }

    pub async fn connect(&self) -> Result<Client> {
        let url = match &self.endpoint_file {
            Some(file) => {
                fs::read_to_string(file).map_or_else(|_| self.url.clone(), |text| text.trim().to_owned())
            }
            None => self.url.clone(),
        };
        let bad = |what: String| {
            Failure::new(
                Code::ConfigInvalid,
                format!("{url:?} (from {}) is not a usable URL: {what}", self.origin),
            )
        };
        let mut endpoint = Endpoint::from_shared(url.clone())
            .map_err(|error| bad(cause(&error)))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .tcp_nodelay(true);
        if url.starts_with("https://") {
            endpoint = endpoint.tls_config(self.tls()?).map_err(|error| bad(cause(&error)))?;
        }
        let channel = endpoint.connect().await.map_err(|error| {
            Failure::new(
                Code::Unavailable,
                format!("cannot reach {url} (from {}): {}", self.origin, cause(&error)),
            )
            .hint(match url.starts_with("https://") {
                false => "start it with `cooper up`, or name another with --url or COOPER_URL",
                true => {
                    "see that it runs, that its certificate is good for this name, and that tls_ca signed it"
                }
            })
        })?;
        let bearer = match &self.token {
            Some(token) => {
                let mut value: MetadataValue<Ascii> =
                    format!("Bearer {}", token.expose()).parse().map_err(|_| {
                        Failure::new(Code::Unauthenticated, "the token holds characters that no token has")
                            .hint("give a token as `cooper token create` printed it")
                    })?;
                value.set_sensitive(true);
                Some(value)
            }
            None => None,
        };
        Ok(Client { channel: InterceptedService::new(channel, Bearer(bearer)) })
    }
}

/// How long a coordinator may be away before a command gives up.
pub const PATIENCE_MS: u64 = 60_000;

/// Takes up again what a cut ended, with growing waits, until nothing was heard for [`PATIENCE_MS`].
#[derive(Debug)]
pub struct Patience {
    attempt: u32,
    last_contact: u64,
}

impl Default for Patience {
    fn default() -> Self {
        Self { attempt: 0, last_contact: clock::mono_ms() }
    }
}

impl Patience {
    /// Something was heard.
    pub fn contact(&mut self) {
        *self = Self::default();
    }

    /// # Errors
    /// `cut` when patience is over.
    pub async fn reconnect(&mut self, cluster: &Cluster, cut: Failure) -> Result<Client> {
        loop {
            if clock::mono_ms() - self.last_contact > PATIENCE_MS {
                return Err(cut);
            }
            let (base, cap) = (limits::link::RECONNECT_BASE_MS, limits::link::RECONNECT_CAP_MS);
            let pause = backoff::full_jitter(base, cap, self.attempt, rand::random());
            self.attempt = self.attempt.saturating_add(1);
            tokio::time::sleep(pause.max(Duration::from_millis(20))).await;
            if let Ok(client) = cluster.connect().await {
                return Ok(client);
            }
        }
    }
}

/// `localhost` spelled as the address that `endpoint` holds.
fn plain(url: &str) -> String {
    url.replacen("//localhost:", "//127.0.0.1:", 1)
}

/// Adds the token to every request.
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

/// A request without an answer.
pub struct Cut {
    pub failure: Failure,
    /// It may have arrived.
    pub arrived: bool,
}

/// Nobody listened: nothing has arrived.
fn was_refused(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let io = error.downcast_ref::<std::io::Error>();
        if io.is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused) {
            return true;
        }
        next = error.source();
    }
    false
}

type Service = InterceptedService<Channel, Bearer>;

/// A connection, from which each service's client is made.
#[derive(Clone)]
pub struct Client {
    channel: Service,
}

impl Client {
    pub fn sessions(&self) -> SessionsClient<Service> {
        SessionsClient::new(self.channel.clone()).max_decoding_message_size(limits::link::MESSAGE_BYTES_MAX)
    }
    pub fn templates(&self) -> TemplatesClient<Service> {
        TemplatesClient::new(self.channel.clone())
    }
    pub fn secrets(&self) -> SecretsClient<Service> {
        SecretsClient::new(self.channel.clone())
    }
    pub fn checkpoints(&self) -> CheckpointsClient<Service> {
        CheckpointsClient::new(self.channel.clone())
            .max_decoding_message_size(limits::link::MESSAGE_BYTES_MAX)
    }
    pub fn tasks(&self) -> TasksClient<Service> {
        TasksClient::new(self.channel.clone()).max_decoding_message_size(limits::link::MESSAGE_BYTES_MAX)
    }
    pub fn executions(&self) -> ExecutionsClient<Service> {
        ExecutionsClient::new(self.channel.clone()).max_decoding_message_size(limits::link::MESSAGE_BYTES_MAX)
    }
    pub fn runs(&self) -> RunsClient<Service> {
        RunsClient::new(self.channel.clone()).max_decoding_message_size(limits::link::MESSAGE_BYTES_MAX)
    }
    /// A request of plain HTTP, on the same connection.
    pub async fn http(mut self, request: http::Request<Body>) -> Result<http::Response<Body>, Cut> {
        let sent = async {
            poll_fn(|context| self.channel.poll_ready(context)).await?;
            self.channel.call(request).await
        };
        sent.await.map(|response| response.map(Body::new)).map_err(|error: tonic::transport::Error| Cut {
            arrived: !was_refused(&error),
            failure: Failure::new(
                Code::Unavailable,
                format!("the coordinator cannot be reached: {}", cause(&error)),
            ),
        })
    }
    pub fn admin(&self) -> AdminClient<Service> {
        AdminClient::new(self.channel.clone()).max_decoding_message_size(limits::link::MESSAGE_BYTES_MAX)
    }
}

/// A key that no other request has.
pub fn idempotency_key() -> String {
    format!("cli-{:032x}", rand::random::<u128>())
}
