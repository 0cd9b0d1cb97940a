//! By which names this coordinator is asked. A page in a browser can have its own name lead to an address of this machine (DNS
//! rebinding), and is then of the same origin as what it finds there: the name that it asks by gives it away.

use std::{net::IpAddr, sync::Arc};

use axum::http::{HeaderMap, HeaderValue, Uri, header, uri::Authority};
use cooper_common::error::{Code, Error, Result};

/// Which names are answered, besides localhost and addresses.
#[derive(Debug, Clone)]
pub enum Hosts {
    Any,
    /// In lower case.
    These(Arc<[String]>),
}

impl Hosts {
    /// From the setting `allowed_hosts`: names with commas between them, `*` for any.
    pub fn parse(text: &str) -> Self {
        let names: Vec<String> = text
            .split(',')
            .map(|name| name.trim().to_ascii_lowercase())
            .filter(|name| !name.is_empty())
            .collect();
        match names.iter().any(|name| name == "*") {
            true => Self::Any,
            false => Self::These(names.into()),
        }
    }

    /// # Errors
    /// `host_not_allowed`.
    pub fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<()> {
        let Self::These(names) = self else { return Ok(()) };
        let named = match uri.authority() {
            Some(authority) => Some(authority.host().to_owned()),
            None => headers.get(header::HOST).map(host_of),
        };
        // HTTP/1.0 has none; no browser speaks it.
        if let Some(host) = named
            && !known(&host, names)
        {
            return Err(refused(&format!("{host:?} is no name of this coordinator")));
        }
        if let Some(origin) = headers.get(header::ORIGIN) {
            let from = origin.to_str().ok().and_then(|text| text.parse::<Uri>().ok());
            let host = from.as_ref().and_then(Uri::host).unwrap_or_default();
            if !known(host, names) {
                return Err(refused("a page of elsewhere asks"));
            }
        }
        Ok(())
    }
}

fn host_of(value: &HeaderValue) -> String {
    let authority = value.to_str().ok().and_then(|text| text.parse::<Authority>().ok());
    authority.map(|authority| authority.host().to_owned()).unwrap_or_default()
}

fn known(host: &str, names: &[String]) -> bool {
    let host = host.trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase();
    host == "localhost"
        || host.ends_with(".localhost")
        || host.parse::<IpAddr>().is_ok()
        || names.contains(&host)
}

fn refused(what: &str) -> Error {
    let shown: String = what.chars().take(200).collect();
    Error::new(Code::HostNotAllowed, shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(hosts: &Hosts, host: &str, origin: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
        }
        hosts.check(&Uri::from_static("/sessions"), &headers).is_ok()
    }

    #[test]
    fn names_that_nobody_allowed_are_refused_and_localhost_and_addresses_never() {
        let hosts = Hosts::parse("Cooper.example.org, other");
        for good in [
            "localhost",
            "localhost:50051",
            "127.0.0.1:1",
            "[::1]:50051",
            "10.0.0.7",
            "COOPER.example.org:443",
            "other.",
        ] {
            assert!(asked(&hosts, good, None), "{good}");
        }
        for bad in [
            "evil.example",
            "localhost.evil.example:50051",
            "cooper.example.org.evil",
            "",
            "127.0.0.1.evil",
            "a b",
            "127.0.0.1@evil.example",
        ] {
            assert!(!asked(&hosts, bad, None), "{bad}");
        }
        assert!(asked(&Hosts::parse("*"), "evil.example", Some("https://evil.example")));
    }

    #[test]
    fn a_page_of_another_origin_is_refused_whatever_host_it_names() {
        let hosts = Hosts::parse("");
        assert!(asked(&hosts, "localhost:1", Some("http://localhost:3000")));
        for bad in ["https://evil.example", "null", "http://localhost.evil.example", ""] {
            assert!(!asked(&hosts, "localhost:1", Some(bad)), "{bad}");
        }
    }

    #[test]
    fn the_authority_of_http2_counts_as_the_host() {
        let hosts = Hosts::parse("");
        let uri = |text: &'static str| Uri::from_static(text);
        assert!(hosts.check(&uri("http://localhost:1/x"), &HeaderMap::new()).is_ok());
        assert!(hosts.check(&uri("http://evil.example/x"), &HeaderMap::new()).is_err());
    }
}
