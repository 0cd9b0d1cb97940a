//! How the coordinator is reached: address, connection settings, the token, and what its refusals mean.

use std::{io, sync::Arc, time::Duration};

use cooper_common::{
    error::{Code, Error, Kind, Result},
    limits::link::MESSAGE_BYTES_MAX,
};
use cooper_proto::v1::worker_link_client::WorkerLinkClient;
use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Uri},
};
use tonic_types::StatusExt;

use crate::config::{LinkConfig, LinkTls};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The connection's window is larger than that of its streams together, so that none can starve another.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

pub type Client = WorkerLinkClient<Channel>;

/// A connection that is not the kernel's.
pub trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// Makes connections in the kernel's place.
pub type Connect = Arc<dyn Fn(Uri) -> BoxFuture<'static, io::Result<Box<dyn Wire>>> + Send + Sync>;

/// Everything that is needed to speak to the coordinator.
#[derive(Clone)]
pub struct Dial {
    endpoint: Endpoint,
    /// None = the kernel's TCP.
    connect: Option<Connect>,
    authorization: MetadataValue<Ascii>,
}

impl Dial {
    pub fn new(config: &LinkConfig) -> Result<Self> {
        let invalid = |what: String| Error::new(Code::ConfigInvalid, what);
        let addr = &config.coordinator_addr;
        let keepalive = Duration::from_millis(config.timing.keepalive_ms);
        let url = if addr.contains("://") { addr.clone() } else { format!("http://{addr}") };
        let mut endpoint = Endpoint::from_shared(url.clone())
            .map_err(|e| invalid(format!("{addr:?} is no coordinator address (host:port or URL): {e}")))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(keepalive)
            .keep_alive_timeout(keepalive)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        if url.starts_with("https://") {
            endpoint = endpoint
                .tls_config(tls(&config.tls))
                .map_err(|e| invalid(format!("TLS to {addr:?} cannot be set up: {e}")))?;
        }
        let authorization = format!("Bearer {}", config.join_token)
            .parse::<MetadataValue<Ascii>>()
            .map_err(|_| invalid("the join token has characters that no token has".to_owned()))?;
        Ok(Self { endpoint, connect: None, authorization })
    }

    /// The same, through other connections than the kernel's.
    pub fn over(self, connect: Connect) -> Self {
        Self { connect: Some(connect), ..self }
    }

    /// The connection for control.
    pub async fn control(&self) -> Result<Client, Failure> {
        let channel = match &self.connect {
            None => self.endpoint.connect().await,
            Some(connect) => self.endpoint.connect_with_connector(connector(connect)).await,
        };
        Ok(client(channel.map_err(|e| Failure::passing(chain(&e)))?))
    }

    /// The connection for output and file bodies: made when it is first used.
    pub fn bulk(&self) -> Client {
        client(match &self.connect {
            None => self.endpoint.connect_lazy(),
            Some(connect) => self.endpoint.connect_with_connector_lazy(connector(connect)),
        })
    }

    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", self.authorization.clone());
        request
    }
}

fn tls(told: &LinkTls) -> ClientTlsConfig {
    let config = match told.ca.as_str() {
        "" => ClientTlsConfig::new().with_native_roots(),
        ca => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca)),
    };
    match told.cert.as_str() {
        "" => config,
        // By this name the coordinator knows that a certificate comes.
        cert => config.identity(Identity::from_pem(cert, &told.key)).domain_name(&told.name),
    }
}

type Connecting = BoxFuture<'static, io::Result<TokioIo<Box<dyn Wire>>>>;

fn connector(
    connect: &Connect,
) -> impl tower::Service<Uri, Response = TokioIo<Box<dyn Wire>>, Error = io::Error, Future = Connecting>
+ Clone
+ Send
+ Sync
+ 'static {
    let connect = Arc::clone(connect);
    tower::service_fn(move |uri| -> Connecting {
        let connecting = connect(uri);
        Box::pin(async move { Ok(TokioIo::new(connecting.await?)) })
    })
}

fn client(channel: Channel) -> Client {
    WorkerLinkClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// Requests of the second connection say whose they are and to which attach they belong.
#[derive(Clone)]
pub struct Bulk {
    pub client: Client,
    dial: Dial,
    worker_id: MetadataValue<Ascii>,
    attach_epoch: u64,
}

impl Bulk {
    pub fn new(dial: &Dial, worker_id: &str, attach_epoch: u64) -> Result<Self, Failure> {
        let worker_id = worker_id
            .parse()
            .map_err(|_| Failure::passing(format!("worker id {worker_id:?} does not fit into metadata")))?;
        Ok(Self { client: dial.bulk(), dial: dial.clone(), worker_id, attach_epoch })
    }

    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = self.dial.request(message);
        request.metadata_mut().insert("cooper-worker-id", self.worker_id.clone());
        request.metadata_mut().insert("cooper-attach-epoch", self.attach_epoch.into());
        request
    }
}

/// Why an attach failed or ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub what: String,
    /// What a person can do about it; empty when waiting is all there is.
    pub hint: String,
    /// Retrying fast will not help.
    pub permanent: bool,
}

impl Failure {
    pub fn passing(what: impl Into<String>) -> Self {
        Self { what: what.into(), hint: String::new(), permanent: false }
    }
    pub fn permanent(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { what: what.into(), hint: hint.into(), permanent: true }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let info = status.get_details_error_info();
        let code = info.as_ref().and_then(|info| Code::parse(&info.reason));
        let code = code.or(match status.code() {
            tonic::Code::Unauthenticated => Some(Code::Unauthenticated),
            tonic::Code::PermissionDenied => Some(Code::Forbidden),
            _ => None,
        });
        let permanent = code.is_some_and(|code| {
            matches!(code.kind(), Kind::Unauthenticated | Kind::Forbidden | Kind::Invalid)
                || matches!(code, Code::ProtocolVersion | Code::WorkerIdTaken)
        });
        let told = info.and_then(|mut info| info.metadata.remove("hint"));
        let hint = match (told, code) {
            (Some(hint), _) => hint,
            // The general hint speaks to people at a terminal.
            (None, Some(Code::Unauthenticated | Code::Forbidden)) => {
                "give the worker a join token of this coordinator (scope worker)".to_owned()
            }
            (None, Some(code)) => code.hint().to_owned(),
            (None, None) => String::new(),
        };
        let what = match code {
            Some(code) => format!("{}: {}", code.as_str(), status.message()),
            None => format!("{:?}: {}", status.code(), status.message()),
        };
        Self { what, hint, permanent }
    }
}

/// An error with its causes: tonic's own words are only "transport error".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn config(addr: &str, token: &str) -> LinkConfig {
        LinkConfig {
            coordinator_addr: addr.into(),
            join_token: token.into(),
            tls: Default::default(),
            labels: Default::default(),
            timing: Default::default(),
            log_level: "info".into(),
            health_listen: None,
        }
    }

    #[tokio::test]
    async fn addresses_are_host_and_port_or_a_url() {
        for good in ["127.0.0.1:50051", "coordinator:50051", "http://[::1]:50051", "https://cooper.example"] {
            assert!(Dial::new(&config(good, "cpr_x")).is_ok(), "{good}");
        }
        for (addr, token) in [("not an address", "cpr_x"), ("", "cpr_x"), ("127.0.0.1:1", "line\nbreak")] {
            let refused = Dial::new(&config(addr, token)).err().map(|e| e.code);
            assert_eq!(refused, Some(Code::ConfigInvalid), "{addr:?}");
        }
    }

    #[test]
    fn a_refusal_keeps_the_coordinators_hint_and_is_not_hurried() {
        let hint = HashMap::from([("hint".to_owned(), "name it differently".to_owned())]);
        let details = tonic_types::ErrorDetails::with_error_info("worker_id_taken", "cooper", hint);
        let status =
            Status::with_error_details(tonic::Code::FailedPrecondition, "another host has it", details);
        let expected = Failure::permanent("worker_id_taken: another host has it", "name it differently");
        assert_eq!(Failure::from(status), expected);

        let failure = Failure::from(Status::unauthenticated("no such token"));
        assert!(failure.permanent && failure.hint.contains("join token"), "{failure:?}");
        let failure = Failure::from(Status::unavailable("shutting down"));
        assert!(!failure.permanent, "{failure:?}");
    }

    #[tokio::test]
    async fn a_coordinator_that_is_away_is_a_passing_failure_that_says_why() {
        let dial = Dial::new(&config("127.0.0.1:1", "cpr_x")).unwrap();
        let failure = dial.control().await.err().unwrap();
        assert!(!failure.permanent && failure.what.contains("refused"), "{failure:?}");
    }
}
