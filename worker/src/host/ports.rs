//! What sessions listen on, and the way there.
//!
//! A bind(2) of a session is answered with a socket that the host made: it listens on an address of loopback that is this
//! port's alone, and a filter that cannot be taken off drops every packet that does not come from the gate. The gate is a
//! port that the host holds for its life; nobody of another uid can be bound to it (SO_REUSEPORT), sessions bind nothing, so
//! only the host connects from there. It hands connections to the link. Where filters cannot be attached sessions listen only
//! if the worker's operator says so (`ports` = `on`).
//!
//! The host keeps another socket bound to each address, which does not listen: whatever the session does with its own,
//! nobody else gets that address, and a connection there that nobody takes is refused.

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, SocketAddrV4, SocketAddrV6},
    os::fd::OwnedFd,
};

use cooper_common::{
    error::{Code, Error, Result},
    limits::ports::{BACKLOG, PER_SESSION_MAX, PORT_MIN},
};
use cooper_proto::{
    host::{FileOpened, FileWork, to_link},
    v1::{self, call::Op, call_result},
};
use prost::Message as _;
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind as bind_to, connect, listen, socket_with, sockopt},
};

use super::{Host, session::Session, to_wire, unknown_session};
use crate::{
    config,
    confine::{facilities::Facilities, filter},
    frame,
};

/// The port from which connections into sessions come.
pub struct Gate {
    /// Holds it.
    _held: OwnedFd,
    port: u16,
    /// What comes from elsewhere is dropped.
    filters: bool,
    /// Of the next connection: each has a source address of its own.
    next: u32,
}

/// Ports of a session, as it asked for them.
#[derive(Default)]
pub struct Ports(BTreeMap<u16, Port>);

/// Where a port of a session really is.
struct Port {
    /// Bound there, and never listens.
    held: OwnedFd,
    address: SocketAddrV4,
}

/// An address of loopback; all 2^24 are the machine's own. The network's own and the broadcast address are left out, and so
/// is the one that everybody uses.
fn loopback(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x7f00_0000 | (2 + number % 0xff_fffc))
}

fn tcp(family: AddressFamily, flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(socket_with(family, SocketType::STREAM, flags | SocketFlags::CLOEXEC, None)?)
}

/// Bound so that only sockets of this host's uid can be bound to the same.
fn held(address: SocketAddrV4) -> io::Result<(OwnedFd, SocketAddrV4)> {
    let socket = tcp(AddressFamily::INET, SocketFlags::empty())?;
    sockopt::set_socket_reuseport(&socket, true)?;
    bind_to(&socket, &address)?;
    let address = SocketAddrV4::try_from(rustix::net::getsockname(&socket)?)?;
    Ok((socket, address))
}

impl Gate {
    pub fn new(filters: bool) -> io::Result<Self> {
        let (held, address) = held(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0))?;
        Ok(Self { _held: held, port: address.port(), filters, next: rand::random() })
    }

    /// A connection to a port of a session, which may still be on its way.
    fn connect(&mut self, port: &Port) -> io::Result<OwnedFd> {
        let socket = tcp(AddressFamily::INET, SocketFlags::NONBLOCK)?;
        sockopt::set_socket_reuseport(&socket, true)?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        self.next = self.next.wrapping_add(1);
        bind_to(&socket, &SocketAddrV4::new(loopback(self.next), self.port))?;
        match connect(&socket, &port.address) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
            Err(error) => Err(error.into()),
        }
    }

    /// What a session gets: with a filter it takes connections from the gate and from nowhere else.
    fn listener(&self, address: SocketAddrV4, v6: bool) -> io::Result<OwnedFd> {
        let family = if v6 { AddressFamily::INET6 } else { AddressFamily::INET };
        let socket = tcp(family, SocketFlags::empty())?;
        // Before it is anywhere.
        if self.filters {
            filter::attach(&socket, self.port)?;
        }
        sockopt::set_socket_reuseport(&socket, true)?;
        // For `Port::is_listened_on`.
        sockopt::set_socket_reuseaddr(&socket, true)?;
        if v6 {
            sockopt::set_ipv6_v6only(&socket, false)?;
            bind_to(&socket, &SocketAddrV6::new(address.ip().to_ipv6_mapped(), address.port(), 0, 0))?;
        } else {
            bind_to(&socket, &address)?;
        }
        listen(&socket, BACKLOG)?;
        Ok(socket)
    }
}

impl Port {
    fn new() -> io::Result<Self> {
        let mut last = io::ErrorKind::AddrInUse.into();
        // Somebody may have all ports of one of the addresses.
        for _ in 0..4 {
            match held(SocketAddrV4::new(loopback(rand::random()), 0)) {
                Ok((held, address)) => return Ok(Self { held, address }),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Whether the session has it open, in any of its processes: another socket could not be bound there beside one that
    /// listens, and could beside all others while the one that is held allows it.
    fn is_listened_on(&self) -> bool {
        let bound = || -> io::Result<()> {
            let other = tcp(AddressFamily::INET, SocketFlags::empty())?;
            sockopt::set_socket_reuseaddr(&other, true)?;
            sockopt::set_socket_reuseaddr(&self.held, true)?;
            let bound = bind_to(&other, &self.address);
            sockopt::set_socket_reuseaddr(&self.held, false)?;
            Ok(bound?)
        };
        bound().is_err_and(|error| error.raw_os_error() == Some(libc::EADDRINUSE))
    }
}

/// What a session asks for: a port, 0 being any, and whether by IPv6. Only loopback and all addresses are the session's.
fn asked(address: &[u8]) -> Result<(u16, bool), i32> {
    let family = address.get(..2).map(|it| i32::from(u16::from_ne_bytes([it[0], it[1]])));
    let port = |bytes: &[u8]| u16::from_be_bytes([bytes[2], bytes[3]]);
    let own = |ip: Ipv4Addr| ip.is_unspecified() || ip.is_loopback();
    match family {
        Some(libc::AF_INET) if address.len() >= 16 => {
            let ip = Ipv4Addr::new(address[4], address[5], address[6], address[7]);
            if own(ip) { Ok((port(address), false)) } else { Err(libc::EADDRNOTAVAIL) }
        }
        Some(libc::AF_INET6) if address.len() >= 24 => {
            let mut ip = [0; 16];
            ip.copy_from_slice(&address[8..24]);
            let ip = std::net::Ipv6Addr::from(ip);
            let own = ip.is_unspecified() || ip.is_loopback() || ip.to_ipv4_mapped().is_some_and(own);
            if own { Ok((port(address), true)) } else { Err(libc::EADDRNOTAVAIL) }
        }
        Some(libc::AF_INET | libc::AF_INET6) => Err(libc::EINVAL),
        _ => Err(libc::EAFNOSUPPORT),
    }
}

/// Whether sessions may listen here, and then whether others are kept out.
pub fn filtered(ports: config::Ports, facilities: &Facilities) -> Result<bool> {
    let refused = |what: &str, hint: &str| Err(Error::new(Code::NetworkUnavailable, what).with_hint(hint));
    match ports {
        config::Ports::Off => refused(
            "this worker's setting `ports` is off: its sessions cannot listen",
            "use another worker, or have this one started with `ports` = auto (--ports, COOPER_PORTS)",
        ),
        _ if !facilities.network => refused(
            "this worker lacks the facility `network`: sessions cannot listen",
            "use a worker whose facilities (`cooper workers`) list network",
        ),
        config::Ports::Auto if !facilities.filter => refused(
            "this worker lacks the facility `filter`: what its sessions listened on would be open to others, so they cannot",
            "give the worker CAP_NET_ADMIN; where it is alone in its container, `ports` = on (--ports, COOPER_PORTS) does \
             without",
        ),
        _ => Ok(facilities.filter),
    }
}

/// Answers a session's bind with a socket, or with an error number. `filtered`: see there.
pub fn bind(
    gate: &mut Option<Gate>,
    filtered: Result<bool>,
    session: Option<&mut Session>,
    address: io::Result<Vec<u8>>,
) -> Result<OwnedFd, i32> {
    let number = |error: io::Error| error.raw_os_error().unwrap_or(libc::EADDRNOTAVAIL);
    let filters = filtered.map_err(|_| libc::EPERM)?;
    let session = session.filter(|session| session.accepts().is_ok()).ok_or(libc::EADDRNOTAVAIL)?;
    // Where it cannot be read, nothing can be bound.
    let (wanted, v6) = asked(&address.map_err(|_| libc::EPERM)?)?;
    if (1..PORT_MIN).contains(&wanted) {
        return Err(libc::EACCES);
    }
    let gate = match gate {
        Some(gate) => gate,
        None => gate.insert(Gate::new(filters).map_err(number)?),
    };
    session.ports.bind(gate, wanted, v6)
}

impl Ports {
    fn bind(&mut self, gate: &Gate, wanted: u16, v6: bool) -> Result<OwnedFd, i32> {
        let number = |error: io::Error| error.raw_os_error().unwrap_or(libc::EADDRNOTAVAIL);
        if let Some(port) = self.0.get(&wanted) {
            if port.is_listened_on() {
                return Err(libc::EADDRINUSE);
            }
            return gate.listener(port.address, v6).map_err(number);
        }
        if self.0.len() >= PER_SESSION_MAX {
            let unused = self.0.iter().find(|(_, port)| !port.is_listened_on()).map(|(wanted, _)| *wanted);
            self.0.remove(&unused.ok_or(libc::EMFILE)?);
        }
        let port = Port::new().map_err(number)?;
        let listener = gate.listener(port.address, v6).map_err(number)?;
        let wanted = if wanted == 0 { port.address.port() } else { wanted };
        match self.0.contains_key(&wanted) {
            true => Err(libc::EADDRINUSE),
            false => {
                self.0.insert(wanted, port);
                Ok(listener)
            }
        }
    }

    fn listened_on(&self) -> Vec<u32> {
        let open = self.0.iter().filter(|(_, port)| port.is_listened_on());
        open.map(|(wanted, _)| u32::from(*wanted)).collect()
    }
}

impl Host {
    /// Serves `dial_port` and `list_ports`.
    pub(super) fn port_call(&mut self, work: FileWork) {
        let mut answer = FileOpened { call_id: work.call_id, ..FileOpened::default() };
        let mut fds = Vec::new();
        match self.port_called(work.call.unwrap_or_default()) {
            Ok(fd) => fds.push(fd),
            Err(error) => answer.error = Some(to_wire(&error)),
        }
        self.link.tell(to_link::Message::FileOpened(answer), fds);
    }

    fn port_called(&mut self, call: v1::Call) -> Result<OwnedFd> {
        let id = &call.session_id;
        let session = self.sessions.get(id).ok_or_else(|| unknown_session(id))?;
        session.accepts()?;
        filtered(self.config.ports, &self.confiner.facilities)?;
        let Some(Op::DialPort(dial)) = &call.op else {
            let ports = v1::ListPortsResponse { ports: session.ports.listened_on() };
            let result = Some(call_result::Result::Ports(ports));
            let result = v1::CallResult { call_id: call.call_id, result };
            return frame::sealed_memfd("cooper-answer", &result.encode_to_vec())
                .map_err(|error| Error::internal(format!("ports cannot be listed: {error}")));
        };
        let nobody =
            || Error::new(Code::PortNotOpen, format!("nobody in session {id} listens on port {}", dial.port));
        let wanted = u16::try_from(dial.port).map_err(|_| nobody())?;
        let port = session.ports.0.get(&wanted).ok_or_else(nobody)?;
        // There is one since the first bind.
        let gate = self.gate.as_mut().ok_or_else(nobody)?;
        gate.connect(port).map_err(|error| match error.raw_os_error() {
            Some(libc::ECONNREFUSED) => nobody(),
            _ => Error::internal(format!("port {wanted} of session {id} cannot be reached: {error}")),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{SocketAddr, TcpListener, TcpStream},
        time::Duration,
    };

    use super::*;

    fn stream(socket: OwnedFd) -> TcpStream {
        let stream = TcpStream::from(socket);
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream
    }

    #[test]
    fn only_the_gate_gets_in_and_the_address_stays_the_ports() {
        if !filter::works() {
            return println!("left out: this kernel lets nobody else attach filters");
        }
        for v6 in [false, true] {
            let mut gate = Gate::new(true).unwrap();
            let mut ports = Ports::default();
            let listener = TcpListener::from(ports.bind(&gate, 8000, v6).unwrap());
            let address = ports.0[&8000].address;
            assert_eq!(ports.listened_on(), [8000]);
            assert_eq!(ports.bind(&gate, 8000, v6).err(), Some(libc::EADDRINUSE));
            let mut ours = stream(gate.connect(&ports.0[&8000]).unwrap());
            let (mut theirs, _) = listener.accept().unwrap();
            ours.write_all(b"there").unwrap();
            theirs.write_all(b"back").unwrap();
            let mut heard = [0; 5];
            theirs.read_exact(&mut heard).unwrap();
            ours.read_exact(&mut heard[..4]).unwrap();
            assert_eq!(&heard, b"backe");
            let stranger = TcpStream::connect_timeout(&SocketAddr::V4(address), Duration::from_millis(300));
            assert_eq!(stranger.unwrap_err().kind(), io::ErrorKind::TimedOut);
            let mut other = stream(Gate::new(true).unwrap().connect(&ports.0[&8000]).unwrap());
            other.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
            assert!(other.write_all(b"x").is_err(), "the gate of somebody else");
            assert!(filter::attach(&listener, 1).is_err());
            // What was accepted goes on when nobody listens any more, and keeps nobody from listening again.
            drop(listener);
            assert!(ports.listened_on().is_empty());
            let refused = gate.connect(&ports.0[&8000]).map(stream).and_then(|it| it.peer_addr());
            assert!(refused.is_err());
            assert!(TcpListener::bind(address).is_err(), "nobody else has the address");
            assert!(ports.bind(&gate, 8000, !v6).is_ok());
        }
    }

    #[test]
    fn a_session_has_so_many_ports_and_those_that_it_left_make_room() {
        let gate = Gate::new(filter::works()).unwrap();
        let mut ports = Ports::default();
        let open: Vec<_> =
            (0..PER_SESSION_MAX as u16).map(|n| ports.bind(&gate, 2000 + n, false).unwrap()).collect();
        assert_eq!(ports.bind(&gate, 9000, false).err(), Some(libc::EMFILE));
        drop(open);
        assert!((0..1000).all(|n| ports.bind(&gate, 9000 + n, false).is_ok()));
        assert_eq!(ports.0.len(), PER_SESSION_MAX);
        assert!(ports.bind(&gate, 0, false).is_ok());
    }

    #[test]
    fn an_address_is_the_sessions_own_or_refused() {
        let v4 = |ip: [u8; 4]| {
            let mut address = vec![2, 0, 0x1f, 0x40];
            address.extend(ip);
            address.extend([0; 8]);
            asked(&address)
        };
        assert_eq!(v4([0, 0, 0, 0]), Ok((8000, false)));
        assert_eq!(v4([127, 0, 0, 1]), Ok((8000, false)));
        assert_eq!(v4([10, 0, 0, 1]), Err(libc::EADDRNOTAVAIL));
        assert_eq!(asked(&[1, 0, b'/', b'x']), Err(libc::EAFNOSUPPORT));
        assert_eq!(asked(&[2, 0, 1]), Err(libc::EINVAL));
        assert_eq!(asked(&[]), Err(libc::EAFNOSUPPORT));
        let mut v6 = vec![10, 0, 0x1f, 0x40, 0, 0, 0, 0];
        v6.extend([0; 16]);
        assert_eq!(asked(&v6), Ok((8000, true)));
        v6[8] = 0x20;
        assert_eq!(asked(&v6), Err(libc::EADDRNOTAVAIL));
    }

    #[test]
    fn sessions_listen_where_others_are_kept_out_or_the_operator_wants_it() {
        use config::Ports::{Auto, Off, On};
        let may = |ports, network, filter| {
            let facilities = Facilities { network, filter, ..Facilities::default() };
            filtered(ports, &facilities).map_err(|refused| (refused.code, refused.to_string()))
        };
        assert_eq!((may(Auto, true, true), may(On, true, true)), (Ok(true), Ok(true)));
        assert_eq!(may(On, true, false), Ok(false));
        for (refused, why) in [
            (may(Off, true, true), "`ports` is off"),
            (may(Auto, true, false), "`filter`"),
            (may(On, false, true), "`network`"),
        ] {
            let (code, said) = refused.unwrap_err();
            assert!(code == Code::NetworkUnavailable && said.contains(why), "{said}");
        }
    }
}
