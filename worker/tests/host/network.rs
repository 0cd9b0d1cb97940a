//! What sessions reach: real servers on loopback, which an operator allowed.

use std::{
    io::{Read, Write},
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use cooper_proto::v1;

use crate::worker::{self, Worker};

const CLIENT: &str = include_str!("network.py");

pub const ALL: &[(&str, fn())] = &[
    (
        "a_session_reaches_the_hosts_of_its_policy_and_nobody_else",
        a_session_reaches_the_hosts_of_its_policy_and_nobody_else,
    ),
    ("a_policy_changes_under_open_connections", a_policy_changes_under_open_connections),
    ("a_dead_proxy_is_replaced_and_nobody_waits_for_it", a_dead_proxy_is_replaced_and_nobody_waits_for_it),
    ("without_the_facility_a_network_is_refused", without_the_facility_a_network_is_refused),
];

/// A server that answers every request with its own name, and counts them.
struct Server {
    port: u16,
    requests: Arc<AtomicUsize>,
}

impl Server {
    fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let counted = Arc::clone(&counted);
                std::thread::spawn(move || {
                    let mut stream = stream;
                    let mut head = Vec::new();
                    let mut byte = [0];
                    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
                        head.push(byte[0]);
                    }
                    if !head.is_empty() {
                        counted.fetch_add(1, Ordering::SeqCst);
                        let body =
                            format!("{name} {}", String::from_utf8_lossy(&head).lines().next().unwrap());
                        let _ = write!(
                            stream,
                            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                            body.len()
                        );
                    }
                });
            }
        });
        Self { port, requests }
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

fn proxy(domains: &[&str], ports: &[u16]) -> v1::NetworkPolicy {
    v1::NetworkPolicy {
        mode: v1::NetworkMode::Proxy.into(),
        domains: domains.iter().map(|domain| (*domain).to_owned()).collect(),
        ports: ports.iter().map(|port| u32::from(*port)).collect(),
    }
}

fn worker(allowed: &Server) -> Worker {
    let allow = format!("127.0.0.1:{}", allowed.port);
    Worker::start_in(&[
        ("TEST_EGRESS_ALLOW", &allow),
        ("TEST_EGRESS_HOSTS", "web.test=127.0.0.1,other.test=127.0.0.1,inside.test=10.0.0.1"),
    ])
}

fn session(worker: &mut Worker, policy: Option<v1::NetworkPolicy>, server: &Server) -> String {
    let session = worker.create_with(policy);
    worker.python(&session, &format!("SERVER = {}\n{CLIENT}", server.port));
    session
}

fn a_session_reaches_the_hosts_of_its_policy_and_nobody_else() {
    let (web, other) = (Server::start("web"), Server::start("other"));
    let mut worker = worker(&web);
    assert!(
        worker.hello.facilities.iter().any(|facility| facility == "network"),
        "{:?}",
        worker.hello.facilities
    );
    let s = session(&mut worker, Some(proxy(&["web.test"], &[web.port, other.port])), &web);
    let (port, closed) = (web.port, other.port);
    let mut say = |code: &str| {
        let done = worker.python(&s, code);
        match done.value() {
            value if value.is_empty() => format!("{:?} {:?}", done.outcome.exception, done.outcome.error),
            value => value,
        }
    };
    // As programs do it, in each of the ways there are.
    assert_eq!(say(&format!("fetch('http://web.test:{port}/a')")), "'web GET /a HTTP/1.1'");
    assert!(say(&format!("raw('web.test:{port}')")).contains("web GET /x HTTP/1.1"));
    assert!(say(&format!("await streamed('WEB.test.:{port}')")).contains("web GET /x HTTP/1.1"));
    assert_eq!(say(&format!("connect('web.test:{port}')[1]")), "'200'");
    assert_eq!(
        say(&format!("connect('web.test:{port}', b'Host: other.test:{closed}\\r\\n')[1]")),
        "'200'",
        "the target counts"
    );
    // Nobody else: by name, by address, by tricks with either.
    for (authority, reason) in [
        (format!("other.test:{port}"), "domain"),
        (format!("web.test.evil.test:{port}"), "domain"),
        (format!("127.0.0.1:{port}"), "domain"),
        (format!("[::ffff:127.0.0.1]:{port}"), "domain"),
        (format!("web.test:{closed}"), "address"),
        ("web.test:22".to_owned(), "port"),
        (format!("web.test:{port}@other.test:{port}"), "closed"),
        (format!("http://web.test:{port}"), "closed"),
    ] {
        assert_eq!(say(&format!("connect({authority:?})[1]")), format!("'{reason}'"), "{authority}");
    }
    assert_eq!(say("connect('web.test:80', b'X: ' + b'y' * 70000)[1]"), "'closed'", "an endless head");
    assert_eq!(say("raw('')"), "''", "nobody's name");
    assert_eq!(say("kinds()"), "[]");
    assert_eq!(other.requests(), 0);
    // What it starts has the same way, and no other.
    let script = format!("{CLIENT}\nprint(raw('web.test:{port}')[-20:], connect('other.test:{port}')[1])");
    let shell = worker.shell(&s, &["python", "-c", &script], b"");
    assert_eq!(
        shell.out().trim(),
        "web GET /x HTTP/1.1 domain",
        "{}",
        String::from_utf8_lossy(&shell.stderr)
    );
    let fresh = worker.shell(&s, &["sh", "-c", "env | grep -i proxy= | sort -f | head -1"], b"");
    assert_eq!(fresh.out().trim().to_ascii_lowercase(), "all_proxy=http://127.0.0.1:3128");
    // It is told what was refused.
    let refused = worker.link.refusal(|refused| refused.host == "other.test");
    assert_eq!((refused.session_id, refused.reason), (s, "domain".to_owned()));
    // The public internet is none of these, either.
    let public = session(&mut worker, Some(proxy(&[], &[closed, 50051])), &web);
    for place in [
        "127.0.0.1",
        "127.1",
        "localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "169.254.169.254",
        "inside.test",
        "10.0.0.1",
        "[fd00:ec2::254]",
        "[64:ff9b::7f00:1]",
        "0.0.0.0",
        "[2002:7f00:1::]",
        "100.64.0.1",
    ] {
        let done = worker.python(&public, &format!("connect('{place}:{closed}')[1]"));
        assert_eq!(done.value(), "'address'", "{place}");
    }
    assert_eq!(other.requests(), 0);
    // And with none there is nobody.
    let none = session(&mut worker, None, &web);
    assert_eq!(worker.python(&none, &format!("fetch('http://web.test:{port}/a')")).value(), "'none'");
}

fn a_policy_changes_under_open_connections() {
    let web = Server::start("web");
    let mut worker = worker(&web);
    let policy = proxy(&["web.test"], &[web.port]);
    let s = session(&mut worker, Some(policy), &web);
    let open = worker.python(&s, &format!("way, status = connect('web.test:{}'); status", web.port));
    assert_eq!(open.value(), "'200'");
    worker.grant_again(&s, None);
    let closed = worker.python(&s, "way.recv(1)");
    assert!(closed.value() == "b''" || closed.outcome.exception.is_some(), "{}", closed.value());
    assert_eq!(worker.python(&s, &format!("connect('web.test:{}')[1]", web.port)).value(), "'none'");
    worker.grant_again(&s, Some(proxy(&["*.test"], &[web.port])));
    assert_eq!(worker.python(&s, &format!("connect('web.test:{}')[1]", web.port)).value(), "'200'");
    // Its uid is what it was.
    if rustix::process::geteuid().is_root() {
        assert_ne!(worker.shell(&s, &["id", "-u"], b"").out().trim(), "0");
    }
}

fn a_dead_proxy_is_replaced_and_nobody_waits_for_it() {
    let web = Server::start("web");
    let mut worker = worker(&web);
    let s = session(&mut worker, Some(proxy(&["web.test"], &[web.port])), &web);
    let code = format!(
        "import time\nfor n in range(600):\n  try:\n    said = connect('web.test:{}')[1]\n  except OSError as error:\n    \
         said = type(error).__name__\n  if said == '200' and n: break\n  time.sleep(0.05)\nsaid",
        web.port
    );
    for _ in 0..2 {
        let before = worker.children("cooper-egress").pop().unwrap();
        worker::signal(before, rustix::process::Signal::KILL);
        assert_eq!(worker.python(&s, &code).value(), "'200'");
        let after = worker.children("cooper-egress").pop().unwrap();
        assert_ne!(before, after);
    }
}

fn without_the_facility_a_network_is_refused() {
    let mut worker = Worker::start_in(&[("TEST_MASK", "network")]);
    assert!(!worker.hello.facilities.iter().any(|facility| facility == "network"));
    let update = worker.try_with(Some(proxy(&[], &[])));
    assert_eq!((&*update.state, &*update.error.unwrap().code), ("failed", "network_unavailable"));
    let s = worker.create_with(None);
    let tried = worker.python(&s, "import socket; socket.create_connection(('127.0.0.1', 1), 5)");
    assert!(tried.outcome.exception.is_some());
}
