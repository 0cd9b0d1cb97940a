//! What sessions bind, on hosts with more and with fewer facilities.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::OwnedFd,
    time::Duration,
};

use cooper_proto::{
    host::{FileWork, to_host, to_link},
    v1::{self, call::Op},
};

use crate::worker::Worker;

/// Where everybody may read it.
const PYTHON: &str = "/usr/bin/python3";
const CODE: &str = include_str!("hostile_ports.py");

pub const ALL: &[(&str, fn())] = &[
    ("a_session_binds_what_is_its_own_and_no_more", a_session_binds_what_is_its_own_and_no_more),
    (
        "a_port_is_reached_by_the_host_and_by_nobody_else_at_every_tier",
        a_port_is_reached_by_the_host_and_by_nobody_else_at_every_tier,
    ),
    (
        "without_a_filter_sessions_listen_only_where_the_operator_wants_it",
        without_a_filter_sessions_listen_only_where_the_operator_wants_it,
    ),
];

fn dial(worker: &mut Worker, session: &str, port: u32) -> Result<TcpStream, v1::Error> {
    let op = Some(Op::DialPort(v1::DialPort { port }));
    let call = v1::Call { call_id: 7, session_id: session.to_owned(), op };
    let work = FileWork { call_id: 7, call: Some(call), archive_path: String::new() };
    worker.link.send(to_host::Message::FileWork(work));
    let (opened, fds) = loop {
        let Some((message, fds)) = worker.link.receive(10_000) else { panic!("no answer") };
        if let to_link::Message::FileOpened(opened) = message {
            break (opened, fds);
        }
    };
    match (opened.error, fds.into_iter().next()) {
        (Some(error), _) => Err(error),
        (None, fd) => Ok(stream(fd.unwrap())),
    }
}

fn stream(fd: OwnedFd) -> TcpStream {
    let stream = TcpStream::from(fd);
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

fn a_session_binds_what_is_its_own_and_no_more() {
    let (mut worker, session) = Worker::with_session();
    let done = worker.python(&session, CODE);
    assert!(done.value().starts_with("{'wrong': [], "), "{} {:?}", done.value(), done.outcome);
    // The host is as it was.
    assert_eq!(worker.python(&session, "6 * 7").value(), "42");
}

fn a_port_is_reached_by_the_host_and_by_nobody_else_at_every_tier() {
    for mask in ["", "namespaces,cgroup", "namespaces,cgroup,landlock", "namespaces,cgroup,landlock:3"] {
        // Without namespaces sessions have to get to Python by the way that is there.
        let python = if mask.is_empty() { "" } else { PYTHON };
        let mut worker = Worker::start_in(&[("TEST_MASK", mask), ("TEST_PYTHON", python)]);
        let session = worker.create_with(None);
        let refused = dial(&mut worker, &session, 8000).unwrap_err();
        assert_eq!(refused.code, "port_not_open", "{mask}");
        let code = "import socket\nserver = socket.create_server(('', 8000))\n'%s:%d' % server.getsockname()";
        let done = worker.python(&session, code);
        let address: SocketAddr = done.value().trim_matches('\'').parse().unwrap_or_else(|_| {
            panic!("{mask}: {} {:?}", done.value(), done.outcome);
        });
        assert!(matches!(address.ip(), IpAddr::V4(ip) if ip.is_loopback()));
        let stranger = TcpStream::connect_timeout(&address, Duration::from_millis(300));
        assert!(stranger.is_err(), "{mask}");
        let mut ours = dial(&mut worker, &session, 8000).unwrap();
        ours.write_all(b"there").unwrap();
        let said = worker.python(&session, "tcp, _ = server.accept(); tcp.sendall(b'back'); tcp.recv(9)");
        assert_eq!(said.value(), "b'there'", "{mask}");
        let mut heard = [0; 4];
        ours.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"back");
        // What a fork of the interpreter binds is the session's as well.
        let fresh = worker.fresh(&session, "import socket; socket.create_server(('', 8000))");
        assert!(fresh.outcome.exception.is_some_and(|it| it.value.contains("in use")), "{mask}");
        worker.destroy(&session);
        assert_eq!(ours.read(&mut heard).unwrap_or(0), 0, "{mask}: its end is the connection's");
    }
}

fn without_a_filter_sessions_listen_only_where_the_operator_wants_it() {
    let code = "import socket\ntry:\n  server = socket.create_server(('', 8000))\n  said = '%s:%d' % server.getsockname()\n\
                except OSError as error:\n  said = error.errno\nsaid";
    for (mask, ports, why) in [("filter", "auto", "`filter`"), ("", "off", "`ports` is off")] {
        let mut worker = Worker::start_in(&[("TEST_MASK", mask), ("TEST_PORTS", ports)]);
        let session = worker.create_with(None);
        assert_eq!(worker.python(&session, code).value(), "1", "EPERM with {ports}");
        let refused = dial(&mut worker, &session, 8000).unwrap_err();
        assert_eq!(refused.code, "network_unavailable", "{ports}");
        assert!(refused.message.contains(why) && refused.hint.contains("`ports`"), "{refused:?}");
    }
    let mut worker = Worker::start_in(&[("TEST_MASK", "filter"), ("TEST_PORTS", "on")]);
    let session = worker.create_with(None);
    let address: SocketAddr = worker.python(&session, code).value().trim_matches('\'').parse().unwrap();
    let mut ours = dial(&mut worker, &session, 8000).unwrap();
    ours.write_all(b"there").unwrap();
    let said = worker.python(&session, "tcp, _ = server.accept(); tcp.recv(9)");
    assert_eq!(said.value(), "b'there'");
    // As documentation says of this setting; nobody from beyond the machine does.
    assert!(address.ip().is_loopback() && TcpStream::connect(address).is_ok());
}
