//! Package indexes that take a password. Installers run code of the packages that they build, and programs of the session's
//! venv: they know such an index by a name that is this worker's own, and here the password is put in.
//!
//! Read-only, and no further than the directory that the index lies in: a password is often good for more.

use std::{io, rc::Rc, sync::Arc, time::Duration};

use cooper_common::limits::{
    exec::PIP_MS_MAX,
    network::{CONNECT_MS_MAX, HEAD_BYTES_MAX, INDEX_PAGE_BYTES_MAX},
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
};

use super::{Proxy, Session};

/// Beneath it each has a number. No names of the DNS.
const ZONE: &str = ".index.cooper.internal";
/// What of a request goes on.
const ASKED: [&str; 7] =
    ["accept", "user-agent", "range", "if-range", "if-none-match", "if-modified-since", "cache-control"];
/// What of an answer does not.
const BETWEEN: [&str; 7] = [
    "connection",
    "keep-alive",
    "set-cookie",
    "www-authenticate",
    "location",
    "content-length",
    "transfer-encoding",
];

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    pub tls: bool,
    pub host: String,
    pub port: u16,
    /// What is asked for lies beneath it; ends with a slash.
    pub beneath: String,
    /// Value of the header.
    pub authorization: String,
}

/// What the number of an index is known by in sessions.
pub fn name(number: usize) -> String {
    format!("{number}{ZONE}")
}

pub fn number(host: &str) -> Option<usize> {
    host.strip_suffix(ZONE)?.parse().ok()
}

/// Trusts the public authorities, and those of a PEM text.
pub fn connector(authorities: &str) -> io::Result<TlsConnector> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let named: Vec<_> = CertificateDer::pem_slice_iter(authorities.as_bytes()).flatten().collect();
    roots.add_parsable_certificates(named);
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

pub(super) async fn serve(
    proxy: &Rc<Proxy>,
    session: &Session,
    mut client: TcpStream,
    begun: &[u8],
    number: usize,
) {
    let answer = async {
        let index = proxy.passwords.get(number).ok_or((404, "there is no such index"))?;
        let request = index.request(begun)?;
        let reached = async {
            let reached = proxy.rules.reach(&index.host, index.port, false).await.ok()?;
            Some(match &proxy.tls {
                Some(tls) if index.tls => {
                    let name = ServerName::try_from(index.host.clone()).ok()?;
                    Box::new(tls.connect(name, reached.stream).await.ok()?) as Box<dyn Stream>
                }
                _ => Box::new(reached.stream),
            })
        };
        let server = timeout(Duration::from_millis(CONNECT_MS_MAX), reached).await.ok().flatten();
        Ok((index, request, server.ok_or((502, "the package index does not answer"))?))
    };
    let own = name(number);
    let done = match answer.await {
        Ok((index, request, server)) => {
            let carried = index.carry(&request, server, &mut client, &own);
            timeout(Duration::from_millis(PIP_MS_MAX), carried).await.map_or(Ok(()), |done| done)
        }
        Err((status, why)) => {
            tracing::debug!(session = %session.id, status, why, "a request to the package index");
            refuse(&mut client, status, why).await
        }
    };
    let _ = done;
    let _ = client.shutdown().await;
}

async fn refuse(client: &mut TcpStream, status: u16, why: &str) -> io::Result<()> {
    let text = format!("cooper: {why}\n");
    let head =
        format!("HTTP/1.1 {status} Refused\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", text.len());
    client.write_all(head.as_bytes()).await?;
    client.write_all(text.as_bytes()).await
}

impl Index {
    fn authority(&self) -> String {
        match (self.tls, self.port) {
            (true, 443) | (false, 80) => self.host.clone(),
            (_, port) => format!("{}:{port}", self.host),
        }
    }

    /// The request as the index gets it.
    fn request(&self, begun: &[u8]) -> Result<Vec<u8>, (u16, &'static str)> {
        let mut headers = [httparse::EMPTY_HEADER; 100];
        let mut request = httparse::Request::new(&mut headers);
        let whole = request.parse(begun).is_ok_and(|parsed| parsed.is_complete());
        let (Some(method), Some(target), true) = (request.method, request.path, whole) else {
            return Err((400, "that is no request"));
        };
        if method != "GET" && method != "HEAD" {
            return Err((405, "the package index is read, nothing else"));
        }
        let path = match target.strip_prefix("http://") {
            Some(rest) => rest.find('/').map_or("/", |at| &rest[at..]),
            None => target,
        };
        let plain = path.split(['?', '#']).next().unwrap_or_default().to_ascii_lowercase();
        let climbs = plain.split('/').any(|part| part == ".." || part == ".")
            || plain.contains("%2e")
            || plain.contains("%2f");
        if climbs || plain.contains('\\') || !path.starts_with(&self.beneath) {
            return Err((403, "that is not beneath the package index"));
        }
        let mut text = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.authority()).into_bytes();
        for header in
            request.headers.iter().filter(|header| ASKED.contains(&&*header.name.to_ascii_lowercase()))
        {
            text.extend(header.name.as_bytes());
            text.extend(b": ");
            text.extend(header.value);
            text.extend(b"\r\n");
        }
        let own = format!(
            "Authorization: {}\r\nAccept-Encoding: identity\r\nConnection: close\r\n\r\n",
            self.authorization
        );
        text.extend(own.as_bytes());
        Ok(text)
    }

    /// Asks the index, and hands the answer on. Links in its pages are made to lead here too.
    async fn carry(
        &self,
        request: &[u8],
        mut server: Box<dyn Stream>,
        client: &mut TcpStream,
        name: &str,
    ) -> io::Result<()> {
        server.write_all(request).await?;
        let mut begun = Vec::new();
        let head = loop {
            match Head::parse(&begun)? {
                Some(head) => break head,
                None if begun.len() > HEAD_BYTES_MAX => return Err(io::ErrorKind::InvalidData.into()),
                None if server.read_buf(&mut begun).await? == 0 => {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                None => {}
            }
        };
        let mut text = format!("HTTP/1.1 {} {}\r\n", head.status, head.reason);
        let value =
            |name: &str| head.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str());
        for (name, value) in head.headers.iter().filter(|(name, _)| !BETWEEN.contains(&name.as_str())) {
            text += &format!("{name}: {value}\r\n");
        }
        if let Some(location) = value("location") {
            text += &format!("location: {}\r\n", self.led_here(location, name));
        }
        let kind = value("content-type").unwrap_or_default();
        let is_page = (kind.contains("html") || kind.contains("json")) && value("content-encoding").is_none();
        let mut body = begun.split_off(head.length);
        if !is_page || request.starts_with(b"HEAD") {
            for framing in ["content-length", "transfer-encoding"] {
                text += &value(framing).map_or(String::new(), |value| format!("{framing}: {value}\r\n"));
            }
            text += "connection: close\r\n\r\n";
            client.write_all(text.as_bytes()).await?;
            client.write_all(&body).await?;
            return tokio::io::copy(&mut server, client).await.map(drop);
        }
        let length = value("content-length").and_then(|length| length.parse::<u64>().ok());
        let most = length.unwrap_or(INDEX_PAGE_BYTES_MAX + 1).saturating_sub(body.len() as u64);
        (&mut server).take(most).read_to_end(&mut body).await?;
        if body.len() as u64 > INDEX_PAGE_BYTES_MAX {
            return refuse(client, 502, "a page of the package index is too large").await;
        }
        if value("transfer-encoding").is_some() {
            body = unchunked(&body).ok_or(io::ErrorKind::InvalidData)?;
        }
        let page = self.led_here(&String::from_utf8_lossy(&body), name);
        text += &format!("content-length: {}\r\nconnection: close\r\n\r\n", page.len());
        client.write_all(text.as_bytes()).await?;
        client.write_all(page.as_bytes()).await
    }

    fn led_here(&self, text: &str, name: &str) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        let here = format!("http://{name}/");
        let there = text.replace(&format!("{scheme}://{}/", self.authority()), &here);
        there.replace(&format!("{scheme}://{}:{}/", self.host, self.port), &here)
    }
}

struct Head {
    status: u16,
    reason: String,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    length: usize,
}

impl Head {
    fn parse(bytes: &[u8]) -> io::Result<Option<Self>> {
        let mut headers = [httparse::EMPTY_HEADER; 100];
        let mut response = httparse::Response::new(&mut headers);
        let parsed = response.parse(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        let httparse::Status::Complete(length) = parsed else { return Ok(None) };
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        Ok(Some(Self {
            status: response.code.unwrap_or(502),
            reason: response.reason.unwrap_or_default().to_owned(),
            headers: response
                .headers
                .iter()
                .map(|it| (it.name.to_ascii_lowercase(), text(it.value)))
                .collect(),
            length,
        }))
    }
}

fn unchunked(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
        let size = std::str::from_utf8(&rest[..end]).ok()?.split(';').next()?.trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        rest = &rest[end + 2..];
        if size == 0 {
            return Some(whole);
        }
        whole.extend(rest.get(..size)?);
        rest = rest.get(size.checked_add(2)?..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn index() -> Index {
        Index {
            tls: true,
            host: "index.test".to_owned(),
            port: 443,
            beneath: "/team/".to_owned(),
            authorization: "Basic eA==".to_owned(),
        }
    }

    #[test]
    fn a_password_is_put_into_reads_beneath_the_index_and_into_nothing_else() {
        let ask = |line: &str| {
            index().request(
                format!("{line} HTTP/1.1\r\nHost: x\r\nAuthorization: mine\r\nAccept: a/b\r\n\r\n")
                    .as_bytes(),
            )
        };
        let sent =
            String::from_utf8(ask("GET http://0.index.cooper.internal/team/simple/six/").unwrap()).unwrap();
        let expected = "GET /team/simple/six/ HTTP/1.1\r\nHost: index.test\r\nAccept: a/b\r\nAuthorization: Basic eA==\r\n";
        assert!(sent.starts_with(expected), "{sent}");
        for (line, status) in [
            ("POST /team/simple/", 405),
            ("GET /api/v4/user", 403),
            ("GET /team/../api", 403),
            ("GET /team/%2e%2E/api", 403),
            ("GET /team/..%2fapi", 403),
            ("GET http://0.index.cooper.internal", 403),
        ] {
            assert_eq!(ask(line).unwrap_err().0, status, "{line}");
        }
    }

    #[test]
    fn links_of_pages_lead_here() {
        let page = r#"<a href="https://index.test/team/f/x.whl"> <a href="https://index.test:443/y"> <a href="https://else.test/z">"#;
        let led = index().led_here(page, &name(0));
        assert_eq!(
            led,
            page.replace("https://index.test/", "http://0.index.cooper.internal/")
                .replace("https://index.test:443/", "http://0.index.cooper.internal/")
        );
        assert_eq!((number(&name(3)), number("3.index.test")), (Some(3), None));
        assert_eq!(unchunked(b"3\r\nabc\r\n2;x\r\nde\r\n0\r\n\r\n").unwrap(), b"abcde");
    }

    proptest! {
        #[test]
        fn hostile_chunks_are_an_error_not_a_panic(body in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = unchunked(&body);
        }
    }
}
