//! Secrets that a worker's proxy puts into requests: where they may go, and what the header is.

use cooper_common::{
    error::{Error, Result},
    limits::secret::{INJECTED_BYTES_MAX, PER_SESSION_MAX},
    network,
};
use cooper_proto::v1;

use crate::{check, sessions::network::policy};

/// What stands for the secret.
const PLACE: &str = "{}";
const USUAL: &str = "Authorization: Bearer {}";
/// Of the connection, or of the message's own form: not anybody's to set.
const NOT_THESE: [&str; 12] = [
    "accept-encoding",
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// The injections in full, if a session with this network policy can be given them.
///
/// # Errors
/// `invalid_argument`.
pub fn checked(
    wanted: Vec<v1::SecretInjection>,
    network: Option<&v1::NetworkPolicy>,
) -> Result<Vec<v1::SecretInjection>> {
    check::at_most("inject", wanted.len() as u64, PER_SESSION_MAX as u64)?;
    let policy = policy(network)?;
    let mut all: Vec<v1::SecretInjection> = Vec::new();
    for mut it in wanted {
        let (host, port) = place(&it)?;
        if !policy.has_host(&host) || !policy.has_port(port) {
            return Err(Error::invalid(format!("the session's network policy does not allow {host} port {port}"))
                .with_hint(format!(
                    "a secret for a host needs the host in the policy: `--network {host}`, and `--network-port` for a port \
                     besides 80 and 443"
                )));
        }
        if it.header.is_empty() {
            it.header = USUAL.to_owned();
        }
        let (name, _) = header(&it.header)?;
        it.host = format!("{host}:{port}");
        let twice = |other: &v1::SecretInjection| {
            other.host == it.host
                && (other.plain_http != it.plain_http
                    || header(&other.header).is_ok_and(|(own, _)| own.eq_ignore_ascii_case(name)))
        };
        if all.iter().any(twice) {
            return Err(Error::invalid(format!(
                "{}: a header is set by one secret, and one port is spoken to with TLS or without",
                it.host
            )));
        }
        all.push(it);
    }
    Ok(all)
}

fn place(it: &v1::SecretInjection) -> Result<(String, u16)> {
    let usual = if it.plain_http { 80 } else { 443 };
    let found = network::authority(&it.host, Some(usual)).filter(|(host, port)| {
        *port != 0
            && host.parse::<std::net::IpAddr>().is_err()
            && host.contains(|c: char| c.is_ascii_alphabetic())
    });
    let shown: String = it.host.chars().take(80).collect();
    found.ok_or_else(|| {
        Error::invalid(format!(
            "{shown:?} is no host for a secret: name one, such as api.example.com or api.example.com:8443"
        ))
    })
}

/// Name, and value with the secret's place in it.
fn header(text: &str) -> Result<(&str, &str)> {
    let invalid = |why: &str| {
        Error::invalid(format!(
            "a secret's header {why}: write it as \"Name: value\" with {{}} for the secret"
        ))
    };
    let (name, value) = text.split_once(':').ok_or_else(|| invalid("has no name"))?;
    let value = value.trim();
    let is_token = |c: char| c.is_ascii_alphanumeric() || "-_.!#$%&'*+^`|~".contains(c);
    if name.is_empty() || name.len() > 128 || !name.chars().all(is_token) {
        return Err(invalid("has a name that is none"));
    }
    if NOT_THESE.contains(&&*name.to_ascii_lowercase()) {
        return Err(invalid("is one that belongs to the connection"));
    }
    if value.matches(PLACE).count() != 1 || !is_value(value) || value.len() > 256 {
        return Err(invalid("has a value without one place for the secret, or that is none"));
    }
    Ok((name, value))
}

/// Printable ASCII: what every server reads alike.
fn is_value(text: &str) -> bool {
    text.bytes().all(|byte| (0x20..0x7f).contains(&byte))
}

/// The header of an injection with the secret in it, and the secret.
///
/// # Errors
/// `invalid_argument` when it cannot be in a header.
pub fn valued(it: &v1::SecretInjection, value: &[u8]) -> Result<(String, String)> {
    let (_, template) = header(&it.header)?;
    let text = std::str::from_utf8(value).unwrap_or("\n").trim_end_matches(['\r', '\n']);
    if text.trim().is_empty() || !is_value(text) || text.len() > INJECTED_BYTES_MAX {
        return Err(Error::invalid(format!(
            "the value of secret {:?} cannot be in a header: it has to be printable ASCII, at most {INJECTED_BYTES_MAX} bytes",
            it.secret
        )));
    }
    Ok((template.replacen(PLACE, text, 1), text.to_owned()))
}

/// As its worker gets it. None: it was stored and is none.
pub fn granted(it: &v1::SecretInjection, value: Option<&[u8]>) -> Option<v1::GrantedInjection> {
    let (host, port) = place(it).ok()?;
    let (header, _) = header(&it.header).ok()?;
    // One that was set since and cannot be put in is as if there was none: nothing goes there without it.
    let (value, secret) = value.and_then(|value| valued(it, value).ok()).unwrap_or_default();
    Some(v1::GrantedInjection {
        host,
        port: port.into(),
        plain_http: it.plain_http,
        header: header.to_owned(),
        value,
        secret,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(host: &str, header: &str) -> v1::SecretInjection {
        let (secret, host, header) = ("KEY".to_owned(), host.to_owned(), header.to_owned());
        v1::SecretInjection { secret, host, header, plain_http: false }
    }

    fn reach(domains: &[&str]) -> v1::NetworkPolicy {
        let domains = domains.iter().map(|domain| (*domain).to_owned()).collect();
        v1::NetworkPolicy { mode: v1::NetworkMode::Proxy.into(), domains, ports: vec![8443] }
    }

    #[test]
    fn an_injection_is_for_one_host_that_the_policy_allows() {
        let policy = reach(&["api.test", "*.b.test"]);
        let of = |host: &str, header: &str| checked(vec![wanted(host, header)], Some(&policy));
        let made = of("API.test.", "").unwrap().remove(0);
        assert_eq!((&*made.host, &*made.header), ("api.test:443", USUAL));
        assert_eq!(of("x.b.test:8443", "x-api-key: {}").unwrap()[0].host, "x.b.test:8443");
        for (host, header) in [
            ("other.test", ""),
            ("api.test:22", ""),
            ("127.0.0.1", ""),
            ("[::1]", ""),
            ("*.b.test", ""),
            ("api.test:0", ""),
            ("https://api.test", ""),
            ("api.test", "Host: {}"),
            ("api.test", "Content-Length: {}"),
            ("api.test", "x-api-key"),
            ("api.test", "x-api-key: none"),
            ("api.test", "x-api-key: {}{}"),
            ("api.test", "x-api-key: {}\r\nx: y"),
            ("api.test", "x y: {}"),
            ("api.test", ": {}"),
        ] {
            assert!(of(host, header).is_err(), "{host} {header:?}");
        }
        let (a, b) = (wanted("api.test", "x-a: {}"), wanted("api.test", "X-A: z{}"));
        assert!(checked(vec![a.clone(), b], Some(&policy)).is_err());
        let plain = v1::SecretInjection {
            plain_http: true,
            host: "api.test:443".to_owned(),
            ..wanted("", "x-b: {}")
        };
        assert!(checked(vec![a.clone(), plain], Some(&policy)).is_err());
        assert!(checked(vec![a.clone()], None).is_err());
        assert_eq!(checked(vec![a, wanted("api.test", "x-b: {}")], Some(&policy)).unwrap().len(), 2);
    }

    #[test]
    fn a_value_that_would_be_more_than_a_value_is_refused() {
        let it = wanted("api.test", "x-api-key: key {}");
        assert_eq!(valued(&it, b"abc\r\n").unwrap(), ("key abc".to_owned(), "abc".to_owned()));
        for bad in [
            b"a\r\nb: c".as_slice(),
            b"\0",
            b"\xff",
            b"\n",
            "\u{e9}".as_bytes(),
            &[b'a'; INJECTED_BYTES_MAX + 1],
        ] {
            assert!(valued(&it, bad).is_err(), "{bad:?}");
            assert_eq!(granted(&it, Some(bad)).unwrap().value, "");
        }
        assert_eq!(granted(&it, None).unwrap().port, 443);
    }
}
