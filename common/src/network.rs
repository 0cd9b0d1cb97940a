//! Which hosts a session may reach, as people write it: `none`, `public`, or a list of hosts. The command line, the
//! coordinator's setting and the worker's proxy read it here.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    limits::network::{DOMAINS_MAX, NAME_BYTES_MAX, PORTS_MAX},
};

/// Ports that every policy with a network has.
pub const PORTS: [u16; 2] = [80, 443];

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reach {
    /// Nobody but the package index.
    #[default]
    None,
    /// The public internet.
    Public,
    Hosts(Vec<Pattern>),
}

/// What a session may reach.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    pub reach: Reach,
    /// Besides [`PORTS`].
    pub ports: Vec<u16>,
}

impl Policy {
    /// # Errors
    /// A host that is none, or too many of them.
    pub fn new(reach: Reach, ports: Vec<u16>) -> Result<Self> {
        if matches!(&reach, Reach::Hosts(hosts) if hosts.len() > DOMAINS_MAX) {
            return Err(Error::invalid(format!("a network policy names at most {DOMAINS_MAX} hosts")));
        }
        if ports.len() > PORTS_MAX || ports.contains(&0) {
            return Err(Error::invalid(format!(
                "a network policy names at most {PORTS_MAX} ports, none of them 0"
            )));
        }
        Ok(Self { reach, ports })
    }

    /// `none`, `public`, or hosts with commas between them.
    pub fn parse(text: &str) -> Result<Self> {
        let reach = match text.trim() {
            "none" => Reach::None,
            "public" => Reach::Public,
            hosts => Reach::Hosts(hosts.split(',').map(str::parse).collect::<Result<_>>()?),
        };
        Self::new(reach, Vec::new())
    }

    pub fn has_port(&self, port: u16) -> bool {
        PORTS.contains(&port) || self.ports.contains(&port)
    }

    pub fn has_host(&self, host: &str) -> bool {
        match &self.reach {
            Reach::None => false,
            Reach::Public => true,
            Reach::Hosts(hosts) => hosts.iter().any(|pattern| pattern.matches(host)),
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reach {
            Reach::None => f.write_str("none")?,
            Reach::Public => f.write_str("public")?,
            Reach::Hosts(hosts) => {
                let hosts: Vec<_> = hosts.iter().map(ToString::to_string).collect();
                f.write_str(&hosts.join(","))?;
            }
        }
        for (n, port) in self.ports.iter().enumerate() {
            write!(f, "{} {port}", if n == 0 { "; also port" } else { "," })?;
        }
        Ok(())
    }
}

/// One host, or all beneath a domain (`*.example.com`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pattern {
    host: String,
    beneath: bool,
}

impl Pattern {
    /// `host` as [`host`] gives it.
    pub fn matches(&self, host: &str) -> bool {
        match self.beneath {
            false => host == self.host,
            true => host.strip_suffix(&self.host).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
        }
    }
}

impl FromStr for Pattern {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        let (beneath, name) = text.strip_prefix("*.").map_or((false, text), |name| (true, name));
        let invalid = || {
            Error::invalid(format!(
                "{text:?} is not a host: name one as api.example.com, or all beneath a domain as *.example.com"
            ))
        };
        let host = host(name).ok_or_else(invalid)?;
        if beneath && host.parse::<IpAddr>().is_ok() {
            return Err(invalid());
        }
        Ok(Self { host, beneath })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.beneath { "*." } else { "" }, self.host)
    }
}

/// The one form of a host's name or address in which it is compared: lower case, no dot at its end, no brackets. None when
/// it is neither.
pub fn host(text: &str) -> Option<String> {
    if let Some(address) = text.strip_prefix('[') {
        let address: std::net::Ipv6Addr = address.strip_suffix(']')?.parse().ok()?;
        return Some(address.to_string());
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address.to_string());
    }
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    (name.len() <= NAME_BYTES_MAX && name.split('.').all(is_label)).then_some(name)
}

/// `host:port` or `[address]:port`; `default` where no port is named.
pub fn authority(text: &str, default: Option<u16>) -> Option<(String, u16)> {
    let end = text.rfind(']').map_or(0, |end| end + 1);
    match text[end..].rfind(':') {
        Some(colon) => {
            let (name, port) = (&text[..end + colon], &text[end + colon + 1..]);
            // u16 would also read "+80".
            let port = port.bytes().all(|byte| byte.is_ascii_digit()).then(|| port.parse().ok()).flatten()?;
            // An address of version 6 has its brackets, or its end is a port to one reader and not to another.
            let whole = !name.contains(':') || name.starts_with('[');
            Some((host(name)?, port)).filter(|(_, port)| whole && *port != 0)
        }
        None => Some((host(text)?, default?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_a_host_or_all_beneath_and_nothing_beside() {
        let matches =
            |pattern: &str, name: &str| pattern.parse::<Pattern>().unwrap().matches(&host(name).unwrap());
        assert!(matches("api.example.com", "API.Example.com."));
        assert!(!matches("api.example.com", "api.example.com.evil.org"));
        assert!(matches("*.example.com", "a.b.example.com"));
        assert!(!matches("*.example.com", "example.com"));
        assert!(!matches("*.example.com", "evilexample.com"));
        for bad in
            ["", "*", "*.", "a b", "http://a", "a/b", "a:80", "*.10.0.0.1", "a..b", "x@y", "exämple.com"]
        {
            assert!(bad.parse::<Pattern>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_authority_has_one_reading() {
        assert_eq!(authority("A.test:443", None), Some(("a.test".to_owned(), 443)));
        assert_eq!(authority("[::1]:80", None), Some(("::1".to_owned(), 80)));
        assert_eq!(authority("a.test", Some(80)), Some(("a.test".to_owned(), 80)));
        for bad in [
            "a.test",
            "a.test:",
            "a.test:+1",
            "a.test:0",
            "a.test:65536",
            "u@a.test:80",
            "::1:80",
            "[::1",
            "a.test:80:90",
            "[a]:1",
        ] {
            assert_eq!(authority(bad, None), None, "{bad}");
        }
    }

    #[test]
    fn a_policy_reads_back_as_itself() {
        for text in ["none", "public", "a.test,*.b.test"] {
            assert_eq!(Policy::parse(text).unwrap().to_string(), text);
        }
        assert!(Policy::parse("").is_err());
    }
}
