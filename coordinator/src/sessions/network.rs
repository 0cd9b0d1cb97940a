//! What a session may reach, as it is asked for.

use cooper_common::{
    error::{Code, Error, Result},
    network::{Policy, Reach},
};
use cooper_proto::v1;

/// A policy in full: `default` where none is said.
pub fn of(asked: Option<v1::NetworkPolicy>, default: &Policy) -> Result<v1::NetworkPolicy> {
    let asked = asked.unwrap_or_default();
    let policy = match asked.mode() {
        v1::NetworkMode::Unspecified if asked.domains.is_empty() && asked.ports.is_empty() => default.clone(),
        v1::NetworkMode::Unspecified => {
            return Err(Error::invalid("a network policy with hosts or ports names its mode"));
        }
        v1::NetworkMode::None if !asked.domains.is_empty() || !asked.ports.is_empty() => {
            return Err(Error::invalid("a network policy of mode NONE has neither hosts nor ports"));
        }
        v1::NetworkMode::None | v1::NetworkMode::Proxy => policy(Some(&asked))?,
    };
    let (mode, domains) = match &policy.reach {
        Reach::None => (v1::NetworkMode::None, Vec::new()),
        Reach::Public => (v1::NetworkMode::Proxy, Vec::new()),
        Reach::Hosts(hosts) => (v1::NetworkMode::Proxy, hosts.iter().map(ToString::to_string).collect()),
    };
    let ports = policy.ports.iter().map(|port| u32::from(*port)).collect();
    Ok(v1::NetworkPolicy { mode: mode.into(), domains, ports })
}

/// # Errors
/// A host or a port that is none, or too many.
pub fn policy(wire: Option<&v1::NetworkPolicy>) -> Result<Policy> {
    let Some(wire) = wire.filter(|wire| wire.mode() == v1::NetworkMode::Proxy) else {
        return Ok(Policy::default());
    };
    let reach = match wire.domains.is_empty() {
        true => Reach::Public,
        false => Reach::Hosts(wire.domains.iter().map(|host| host.parse()).collect::<Result<_>>()?),
    };
    let port = |port: &u32| {
        u16::try_from(*port)
            .map_err(|_| Error::invalid(format!("{port} is not a port: name one from 1 to 65535")))
    };
    Policy::new(reach, wire.ports.iter().map(port).collect::<Result<_>>()?)
}

/// A worker that cannot hold a session to a policy does not give it a network (I11).
pub fn enforceable(policy: &v1::NetworkPolicy, facilities: &[String]) -> Result<()> {
    if policy.mode() == v1::NetworkMode::Proxy && !facilities.iter().any(|facility| facility == "network") {
        return Err(Error::new(Code::NetworkUnavailable, "the session's worker cannot give it a network"));
    }
    Ok(())
}
