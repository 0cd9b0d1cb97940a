//! `cooper health`: asks `/health` and says yes or no; needs no token and no runtime, as container checks run often.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpStream, ToSocketAddrs},
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use cooper_common::{config::Role, error::Code};
use serde_json::Value;
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};

use crate::{
    context::Context,
    failure::{Failure, Result, cause},
};

const TIMEOUT: Duration = Duration::from_secs(3);
const ANSWER_BYTES_MAX: u64 = 64 << 10;

pub fn run(context: &Context) -> Result<u8> {
    let config = context.config(Role::Client, Default::default())?;
    let url = match config.text("url") {
        Some(url) => url,
        None => {
            let path = config.data().join("endpoint");
            fs::read_to_string(&path).map(|text| text.trim().to_owned()).map_err(|_| {
                Failure::new(Code::Unavailable, format!("no cluster here: {} does not exist", path.display()))
                    .hint("start one with `cooper up`, or name one with --url")
            })?
        }
    };
    let body = get(&url, "/health", config.path("tls_ca").as_deref())?;
    let status = body["status"].as_str().unwrap_or("unknown").to_owned();
    context.out.answer(|| body.clone(), || status.clone())?;
    Ok(if status == "healthy" { 0 } else { 1 })
}

/// What a page said, and when by the clock of who said it.
pub struct Answer {
    pub body: Value,
    pub date: Option<SystemTime>,
}

/// True when a coordinator answers there, well or not, whoever signed its certificate.
pub fn is_cooper(url: &str) -> bool {
    let untrusted = |failure: &Failure| matches!(failure, Failure::Error(report) if report.message.contains("certificate"));
    match get(url, "/health", None) {
        Ok(body) => body["status"].is_string(),
        Err(failure) => untrusted(&failure),
    }
}

/// GET of a page that answers with a JSON object, whatever its status. `ca` is the setting `tls_ca`.
pub fn get(url: &str, path: &str, ca: Option<&Path>) -> Result<Value> {
    answer(url, path, ca).map(|answer| answer.body)
}

/// The same with its date.
pub fn answer(url: &str, path: &str, ca: Option<&Path>) -> Result<Answer> {
    let away = |what: String| {
        Failure::new(Code::Unavailable, format!("{url} is not healthy: {what}"))
            .hint("see its log, or `cooper status`")
    };
    let (host, port, tls) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
        (Some(host), _) => (host, 443, Some(authorities(ca)?)),
        (None, Some(host)) => (host, 80, None),
        (None, None) => {
            let message = format!("health asks http:// and https:// URLs, not {url:?}");
            return Err(Failure::new(Code::InvalidArgument, message));
        }
    };
    let host = host.split('/').next().unwrap_or_default();
    let with_port = match host.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_ok() => host.to_owned(),
        _ => format!("{host}:{port}"),
    };
    let addresses = with_port.to_socket_addrs().map_err(|error| away(error.to_string()))?;
    let mut last = "the name has no address".to_owned();
    for address in addresses {
        let asked = TcpStream::connect_timeout(&address, TIMEOUT)
            .and_then(|stream| exchange(stream, tls.clone(), host, path));
        match asked {
            Ok(answer) => {
                return parse(&answer).ok_or_else(|| away("it does not answer like Cooper".to_owned()));
            }
            Err(error) => last = cause(&error),
        }
    }
    Err(away(last))
}

fn exchange(
    stream: TcpStream,
    tls: Option<Arc<ClientConfig>>,
    host: &str,
    path: &str,
) -> std::io::Result<String> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let answer = match tls {
        None => said(stream, host, path)?,
        Some(tls) => {
            let name = host.rsplit_once(':').map_or(host, |(name, _)| name).trim_matches(['[', ']']);
            let name = ServerName::try_from(name.to_owned()).map_err(std::io::Error::other)?;
            let secured = ClientConnection::new(tls, name).map_err(std::io::Error::other)?;
            said(StreamOwned::new(secured, stream), host, path)?
        }
    };
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn said(mut stream: impl Read + Write, host: &str, path: &str) -> std::io::Result<Vec<u8>> {
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    stream.flush()?;
    let mut answer = Vec::new();
    match stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer) {
        // Closed without TLS's own farewell; what came is judged by its content.
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {}
        other => drop(other?),
    }
    Ok(answer)
}

fn authorities(ca: Option<&Path>) -> Result<Arc<ClientConfig>> {
    let unusable = |what: String| Failure::new(Code::ConfigInvalid, format!("setting tls_ca: {what}"));
    let found: Vec<_> = match ca {
        None => rustls_native_certs::load_native_certs().certs,
        Some(path) => CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect)
            .map_err(|error| unusable(format!("{}: {error}", path.display())))?,
    };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found);
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(error.to_string()))?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

fn parse(answer: &str) -> Option<Answer> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.starts_with("HTTP/1.").then_some(())?;
    let body: Value = serde_json::from_str(body.trim()).ok()?;
    let mut headers = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    let date = headers.find(|(name, _)| name.eq_ignore_ascii_case("date"));
    let date = date.and_then(|(_, value)| httpdate::parse_http_date(value.trim()).ok());
    body.is_object().then_some(Answer { body, date })
}
