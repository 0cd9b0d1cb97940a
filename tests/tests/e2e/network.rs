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
