//! From a name to a connection: what it resolves to is judged, and that very address is connected to.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use base64::Engine as _;
use cooper_common::network;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{Reason, address};

/// A host, on one port or on all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub host: String,
    pub port: Option<u16>,
}

impl Place {
    /// `host`, `host:port`, or `[address]:port`.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        match network::authority(text, None) {
            Some((host, port)) => Some(Self { host, port: Some(port) }),
            None => Some(Self { host: network::host(text)?, port: None }),
        }
    }

    pub fn is(&self, host: &str, port: u16) -> bool {
        self.host == host && self.port.is_none_or(|own| own == port)
    }
}

/// The proxy of the worker's environment.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Upstream {
    pub http: Option<String>,
    pub https: Option<String>,
    /// As `NO_PROXY` has it.
    pub direct: String,
}

impl Upstream {
    pub fn of_environment() -> Self {
        let read = |names: [&str; 4]| {
            names.iter().find_map(|name| std::env::var(name).ok()).filter(|value| !value.is_empty())
        };
        Self {
            http: read(["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"]),
            https: read(["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]),
            direct: read(["no_proxy", "NO_PROXY", "no_proxy", "NO_PROXY"]).unwrap_or_default(),
        }
    }

    fn to(&self, host: &str, plain: bool) -> Option<&str> {
        let direct = self.direct.split(',').map(|entry| entry.trim().trim_start_matches('.')).any(|entry| {
            let entry = entry.to_ascii_lowercase();
            let suffix = || host.strip_suffix(&*entry).is_some_and(|rest| rest.ends_with('.'));
            entry == "*" || (!entry.is_empty() && (entry == host || suffix()))
        });
        let proxy = if plain { &self.http } else { &self.https };
        proxy.as_deref().filter(|_| !direct)
    }
}

/// What the operator says about where sessions get.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Rules {
    /// May be reached although they are not public.
    pub allowed: Vec<Place>,
    /// The coordinator: never reached, except as `allowed` names it with its port.
    pub forbidden: Vec<Place>,
    /// Names that the DNS is not asked for.
    pub hosts: BTreeMap<String, IpAddr>,
    pub upstream: Upstream,
}

/// A connection, and what has to be known to speak over it.
pub struct Reached {
    pub stream: TcpStream,
    /// Of another proxy, with this header line (or none), which wants requests whole.
    pub via_proxy: Option<String>,
}

impl Rules {
    /// Connects to a host that the policy allows. `plain`: it will be sent one request of HTTP.
    pub async fn reach(&self, host: &str, port: u16, plain: bool) -> Result<Reached, Reason> {
        let addresses = self.addresses(host, port).await;
        if let Some(proxy) = self.upstream.to(host, plain) {
            // A name that is resolved nowhere but behind that proxy is its to judge.
            if addresses.as_ref().is_ok_and(|found| found.is_empty()) {
                return Err(Reason::Address);
            }
            return self.through(proxy, host, port, plain).await;
        }
        let addresses = addresses?;
        if addresses.is_empty() {
            return Err(Reason::Address);
        }
        for address in addresses {
            if let Ok(stream) = TcpStream::connect(address).await {
                let _ = stream.set_nodelay(true);
                return Ok(Reached { stream, via_proxy: None });
            }
        }
        Err(Reason::Unreachable)
    }

    /// What a name resolves to and may be connected to.
    async fn addresses(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, Reason> {
        let found: Vec<IpAddr> = match (self.hosts.get(host), host.parse()) {
            (Some(address), _) => vec![*address],
            (None, Ok(address)) => vec![address],
            (None, Err(_)) => {
                let found = tokio::net::lookup_host((host, port)).await.map_err(|_| Reason::Unresolvable)?;
                found.map(|address| address.ip()).collect()
            }
        };
        let coordinator = self.forbidden(port).await;
        let may = |address: &IpAddr| {
            let address = address.to_canonical();
            let allowed = |place: &Place| place.is(host, port) || place.is(&address.to_string(), port);
            let allowed: Vec<&Place> = self.allowed.iter().filter(|place| allowed(place)).collect();
            if coordinator.contains(&address) {
                return allowed.iter().any(|place| place.port.is_some());
            }
            !allowed.is_empty() || (address::is_public(address) && !address::is_own(address))
        };
        Ok(found.into_iter().filter(may).map(|address| (address, port).into()).collect())
    }

    /// Addresses where the coordinator listens on this port.
    async fn forbidden(&self, port: u16) -> Vec<IpAddr> {
        let mut found = Vec::new();
        for place in self.forbidden.iter().filter(|place| place.port.is_none_or(|own| own == port)) {
            let known = self.hosts.get(&place.host).copied().or_else(|| place.host.parse().ok());
            match known {
                Some(address) => found.push(address.to_canonical()),
                None => {
                    let resolved = tokio::net::lookup_host((&*place.host, port)).await;
                    found.extend(resolved.into_iter().flatten().map(|address| address.ip().to_canonical()));
                }
            }
        }
        found
    }

    async fn through(&self, proxy: &str, host: &str, port: u16, plain: bool) -> Result<Reached, Reason> {
        let (place, authorization) = proxy_of(proxy).ok_or(Reason::Unreachable)?;
        let at = (&*place.host, place.port.unwrap_or(3128));
        let mut stream = TcpStream::connect(at).await.map_err(|_| Reason::Unreachable)?;
        let _ = stream.set_nodelay(true);
        if !plain {
            let named =
                if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
            let request = format!("CONNECT {named} HTTP/1.1\r\nHost: {named}\r\n{authorization}\r\n");
            stream.write_all(request.as_bytes()).await.map_err(|_| Reason::Unreachable)?;
            established(&mut stream).await.ok_or(Reason::Unreachable)?;
        }
        Ok(Reached { stream, via_proxy: Some(authorization) })
    }
}

/// Where a proxy is, and the line that it knows us by.
fn proxy_of(url: &str) -> Option<(Place, String)> {
    let rest =
        url.split_once("://").map_or(Some(url), |(scheme, rest)| (scheme == "http").then_some(rest))?;
    let rest = rest.split('/').next()?;
    let (user, at) = rest.rsplit_once('@').map_or((None, rest), |(user, at)| (Some(user), at));
    let line = user.map_or(String::new(), |user| {
        let encoded = base64::engine::general_purpose::STANDARD.encode(unescaped(user));
        format!("Proxy-Authorization: Basic {encoded}\r\n")
    });
    Some((Place::parse(at)?, line))
}

/// Without the escapes of a URL.
pub fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()).filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

/// Reads a proxy's answer to CONNECT, and not a byte beyond it.
async fn established(stream: &mut TcpStream) -> Option<()> {
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() > 8 << 10 {
            return None;
        }
        answer.push(stream.read_u8().await.ok()?);
    }
    let status = answer.get(9..12)?;
    (answer.starts_with(b"HTTP/1.") && status.starts_with(b"2")).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(allowed: &[&str]) -> Rules {
        Rules {
            allowed: allowed.iter().filter_map(|text| Place::parse(text)).collect(),
            forbidden: vec![Place { host: "127.0.0.1".to_owned(), port: Some(50051) }],
            hosts: [("inside.test".to_owned(), "127.0.0.1".parse().unwrap())].into(),
            upstream: Upstream::default(),
        }
    }

    #[tokio::test]
    async fn a_name_is_what_it_resolves_to() {
        for host in [
            "inside.test",
            "127.0.0.1",
            "localhost",
            "127.1",
            "0x7f.1",
            "2130706433",
            "::ffff:127.0.0.1",
            "::1",
        ] {
            let found = rules(&[]).addresses(host, 80).await;
            assert!(found.as_ref().map_or(true, Vec::is_empty), "{host}: {found:?}");
        }
        assert_eq!(rules(&["inside.test"]).addresses("inside.test", 80).await.unwrap().len(), 1);
        assert_eq!(rules(&["127.0.0.1:80"]).addresses("inside.test", 80).await.unwrap().len(), 1);
        assert!(rules(&["127.0.0.1:81"]).addresses("inside.test", 80).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn the_coordinator_is_reached_only_where_that_is_said() {
        assert!(rules(&["127.0.0.1"]).addresses("127.0.0.1", 50051).await.unwrap().is_empty());
        assert_eq!(rules(&["127.0.0.1"]).addresses("127.0.0.1", 50052).await.unwrap().len(), 1);
        assert_eq!(rules(&["127.0.0.1:50051"]).addresses("127.0.0.1", 50051).await.unwrap().len(), 1);
    }

    #[test]
    fn the_environments_proxy_is_passed_by_for_what_is_named() {
        let upstream = Upstream {
            http: None,
            https: Some("http://p:3128".to_owned()),
            direct: "a.test, .b.test".to_owned(),
        };
        assert_eq!(upstream.to("c.test", false), Some("http://p:3128"));
        assert_eq!(upstream.to("c.test", true), None);
        for direct in ["a.test", "x.a.test", "b.test", "x.b.test"] {
            assert_eq!(upstream.to(direct, false), None, "{direct}");
        }
        let (place, line) = proxy_of("http://us%40er:pw@p.test:3128/").unwrap();
        assert_eq!(place, Place { host: "p.test".to_owned(), port: Some(3128) });
        assert_eq!(line, "Proxy-Authorization: Basic dXNAZXI6cHc=\r\n");
    }
}
