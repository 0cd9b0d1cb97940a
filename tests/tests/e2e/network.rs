//! What sessions reach, over the command line: a real server on loopback, which the worker's operator allows.

use std::{
    io::{Read, Write},
    net::TcpListener,
};

use cooper_tests::{Setup, seconds};

/// Answers everything with "reached"; its port.
fn server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut head = [0; 4096];
            let _ = stream.read(&mut head);
            let _ =
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\nreached");
        }
    });
    port
}

fn fetch(url: &str) -> String {
    format!(
        "import urllib.request, urllib.error\ntry:\n    print(urllib.request.urlopen({url:?}, timeout=30).read().decode())\n\
         except urllib.error.HTTPError as error:\n    print(error.code, error.headers['X-Cooper-Refused'])"
    )
}

#[test]
fn a_session_reaches_what_its_policy_names_and_refusals_are_events() {
    let port = server();
    let cluster = Setup::python()
        .env("COOPER_EGRESS_ALLOW", &format!("127.0.0.1:{port}"))
        .env("COOPER_EGRESS_HOSTS", "web.test=127.0.0.1,other.test=127.0.0.1")
        .start();
    let cooper = cluster.cooper();
    let port_text = port.to_string();
    let web = fetch(&format!("http://web.test:{port}/"));
    let other = fetch(&format!("http://other.test:{port}/"));

    let none = cooper.ok(["session", "create"]);
    assert_eq!(cooper.json(["session", "show", &none])["network"]["mode"], "none");
    assert_eq!(cooper.exec(&none, &web), "403 none");

    let one = cooper.ok(["session", "create", "--network", "web.test", "--network-port", &port_text]);
    assert_eq!(cooper.exec(&one, &web), "reached");
    assert_eq!(cooper.exec(&one, &other), "403 domain");
    let shown = cooper.json(["session", "show", &one]);
    assert_eq!(shown["network"]["domains"][0], "web.test");
    assert_eq!(shown["network"]["ports"][0], port);

    // With the next heartbeat.
    let told =
        cooper.until_json("the refusal is counted", seconds(20), &["session", "show", &one], |session| {
            session["network_refused"] == 1
        });
    assert_eq!(told["session_id"], one.as_str());

    let updated =
        cooper.json(["session", "update", &one, "--network", "*.test", "--network-port", &port_text]);
    assert_eq!(updated["network"]["domains"][0], "*.test");
    assert_eq!(cooper.exec(&one, &other), "reached");
    cooper.ok(["session", "update", &one, "--network", "none"]);
    assert_eq!(cooper.exec(&one, &web), "403 none");
    // What an update leaves out stays.
    cooper.ok(["session", "update", &one, "--label", "a=b"]);
    assert_eq!(cooper.json(["session", "show", &one])["network"]["mode"], "none");

    let refused = cooper.run(["session", "create", "--network", "http://web.test"]);
    assert_eq!(refused.status, 2, "{}", refused.err());
}

const HOSTILE: &str = r#"
import socket, ssl, time

def begun(text):
    way = socket.create_connection(("127.0.0.1", 3128), timeout=40)
    way.sendall(text)
    return way

def closed_after(way, trickle=False):
    since = time.monotonic()
    way.settimeout(1)
    while time.monotonic() - since < 40:
        try:
            if trickle:
                way.sendall(b"x")
            if not way.recv(1):
                break
        except TimeoutError:
            pass
        except OSError:
            break
    return time.monotonic() - since

def hello(name):
    way = socket.create_connection(("192.0.2.1", 443), timeout=20)
    try:
        ssl.create_default_context().wrap_socket(way, server_hostname=name)
    except OSError as error:
        return getattr(error, "reason", None) or type(error).__name__
"#;

/// Answers everything with a way to somewhere else.
fn leading_to(location: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let _ = write!(
                stream,
                "HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
        }
    });
    port
}

#[test]
fn whoever_leads_inside_dawdles_or_names_another_gets_nowhere_and_keeps_nobody_from_the_rest() {
    let (web, inside, metadata) =
        (server(), leading_to("http://inside.test/"), leading_to("http://169.254.169.254/latest/meta-data/"));
    let allowed = [web, inside, metadata].map(|port| format!("127.0.0.1:{port}")).join(",");
    let cluster = Setup::python()
        .env("COOPER_EGRESS_ALLOW", &allowed)
        .env("COOPER_EGRESS_HOSTS", "web.test=127.0.0.1,inside.test=10.1.2.3")
        .start();
    let cooper = cluster.cooper();
    let create = |policy: &str| {
        let ports = [web, inside, metadata].map(|port| port.to_string());
        let mut args = vec!["session", "create", "--network", policy];
        ports.iter().for_each(|port| args.extend(["--network-port", port]));
        let session = cooper.ok(args);
        cooper.exec(&session, HOSTILE);
        session
    };
    let public = create("public");
    for port in [inside, metadata] {
        assert_eq!(cooper.exec(&public, &fetch(&format!("http://web.test:{port}/"))), "403 address");
    }
    let one = create("web.test");
    let refused = cooper.exec(&one, "print(hello('evil.test'))");
    assert!(refused.contains("ACCESS_DENIED"), "{refused}");

    // Heads that never end, some of which go on for ever: each is closed in time, and others are served meanwhile.
    let text = "b'GET http://web.test/ HTTP/1.1\\r\\nX: '";
    cooper.exec(
        &one,
        &format!("slow = [begun({text}) for _ in range(40)] + [begun(b'\\x16\\x03\\x01\\x02\\x00\\x01')]"),
    );
    assert_eq!(cooper.exec(&one, &fetch(&format!("http://web.test:{web}/"))), "reached");
    let after = cooper.exec(&one, "print(max(closed_after(slow[0], True), *map(closed_after, slow[1:])))");
    assert!(after.parse::<f64>().is_ok_and(|seconds| seconds < 25.0), "{after}");
    // More at once than one session may have are refused to it, and no other session notices.
    cooper.exec(&one, &format!("many = [begun({text}) for _ in range(128)]"));
    let more = "try: print(begun(b'').recv(1))\nexcept OSError as error: print(type(error).__name__)";
    assert!(cooper.exec(&one, more).contains("Refused"));
    assert_eq!(cooper.exec(&public, &fetch(&format!("http://web.test:{web}/"))), "reached");
}

#[test]
fn what_connections_carried_is_counted_also_over_another_link() {
    let port = server();
    let cluster = Setup::python()
        .env("COOPER_EGRESS_ALLOW", &format!("127.0.0.1:{port}"))
        .env("COOPER_EGRESS_HOSTS", "web.test=127.0.0.1")
        .start();
    let cooper = cluster.cooper();
    let port_text = port.to_string();
    let one = cooper.ok(["session", "create", "--network", "web.test", "--network-port", &port_text]);
    let show = ["session", "show", &one];
    let used = |what: &str| cooper.json(show)["network_usage"][what].as_u64().expect("a number");
    assert_eq!((used("connects"), used("sent_bytes"), used("received_bytes")), (0, 0, 0));
    let web = fetch(&format!("http://web.test:{port}/"));
    let counted = |connects: u64| {
        cooper.until_json("the connection is counted", seconds(30), &show, |session| {
            session["network_usage"]["connects"] == connects
        });
    };
    assert_eq!(cooper.exec(&one, &web), "reached");
    counted(1);
    let (sent, received) = (used("sent_bytes"), used("received_bytes"));
    assert!(sent > 50, "{sent}");
    assert_eq!(
        received,
        "HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\nreached".len() as u64
    );
    cluster.kill("worker-link");
    assert_eq!(cooper.exec(&one, &web), "reached");
    counted(2);
    assert_eq!((used("sent_bytes"), used("received_bytes")), (2 * sent, 2 * received));
}
