//! What sessions listen on: reached through the one port with a token, and by nobody else.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use cooper_tests::{Cooper, Setup, http, seconds, shared};
use serde_json::{Value, json};

/// What servers of these tests are made of; `serve(port)` starts one in a thread of the interpreter.
const SERVER: &str = include_str!("ports.py");

fn serving(cooper: &Cooper, port: u16, name: &str) -> String {
    let session = cooper.session();
    cooper.exec(&session, &format!("{SERVER}\nserve({port}, {name:?})"));
    session
}

/// A connection to the one port, with a request begun on it.
struct Http(BufReader<TcpStream>);

impl Http {
    fn send(url: &str, head: &str) -> Self {
        let host = url.strip_prefix("http://").expect("a URL");
        let stream = TcpStream::connect(host).expect("a connection");
        stream.set_read_timeout(Some(seconds(20))).expect("a time");
        let mut this = Self(BufReader::new(stream));
        this.write(format!("{head}\r\n\r\n").as_bytes());
        this
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).expect("written");
    }

    /// Status and headers, in lower case.
    fn head(&mut self) -> (u16, String) {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(self.0.read_line(&mut head).expect("a line") > 0, "ended in its head: {head:?}");
        }
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        (status, head.to_lowercase())
    }

    fn body(&mut self, head: &str) -> Vec<u8> {
        let mut body = Vec::new();
        if head.contains("transfer-encoding: chunked") {
            loop {
                let mut size = String::new();
                self.0.read_line(&mut size).expect("a size");
                let size = u64::from_str_radix(size.trim(), 16).expect("a size");
                (&mut self.0).take(size).read_to_end(&mut body).expect("a chunk");
                self.0.read_line(&mut String::new()).expect("its end");
                if size == 0 {
                    return body;
                }
            }
        }
        let length = head.split("content-length: ").nth(1).and_then(|it| it.lines().next()?.parse().ok());
        (&mut self.0).take(length.expect("a length")).read_to_end(&mut body).expect("a body");
        body
    }
}

fn request(method: &str, token: &str, session: &str, path: &str, more: &str) -> String {
    format!(
        "{method} /sessions/{session}/ports/{path} HTTP/1.1\r\nHost: cooper.test\r\nAuthorization: Bearer {token}{more}"
    )
}

#[test]
fn a_server_in_a_session_answers_over_the_one_port() {
    let cluster = shared();
    let (cooper, token, url) = (cluster.cooper(), cluster.admin_token(), &cluster.url);
    let session = serving(&cooper, 8000, "web");
    assert_eq!(cooper.json(["port", "list", &session])["ports"], json!([8000]));

    let more = "\r\nX-Mine: yes\r\nConnection: close, x-gone\r\nX-Gone: 1\r\nX-Forwarded-For: 6.6.6.6";
    let mut got = Http::send(url, &request("GET", &token, &session, "8000/a%2Fb/c?d=1&e", more));
    let (status, head) = got.head();
    let said: Value = serde_json::from_slice(&got.body(&head)).expect("JSON");
    assert_eq!((status, &said["name"], &said["path"]), (200, &json!("web"), &json!("/a%2Fb/c?d=1&e")));
    let headers = &said["headers"];
    assert_eq!((&headers["x-mine"], &headers["host"]), (&json!("yes"), &json!("cooper.test")));
    assert_eq!(headers["x-forwarded-prefix"], format!("/sessions/{session}/ports/8000"));
    assert_eq!((&headers["x-forwarded-for"], &headers["x-gone"]), (&json!("127.0.0.1"), &Value::Null));
    assert!(!said.to_string().contains(&token), "the token never gets there: {said}");
    assert!(head.contains("content-security-policy: sandbox"), "{head}");
    assert!(!head.contains("strict-transport-security"), "{head}");

    // Any method, bodies of a known length and in pieces, both ways and large.
    let much = vec![b'x'; 20_000_000];
    let length = format!("\r\nContent-Length: {}", much.len());
    let mut put = Http::send(url, &request("PUT", &token, &session, "8000/x", &length));
    put.write(&much);
    let (_, head) = put.head();
    let said: Value = serde_json::from_slice(&put.body(&head)).expect("JSON");
    assert_eq!((&said["method"], &said["bytes"]), (&json!("PUT"), &json!(20_000_000)));
    let mut post =
        Http::send(url, &request("POST", &token, &session, "8000/pieces", "\r\nTransfer-Encoding: chunked"));
    post.write(b"5\r\nhello\r\n");
    let (status, head) = post.head();
    assert_eq!(status, 200, "{head}");
    // The answer has begun before the request has ended.
    let mut echoed = String::new();
    while !echoed.contains("hello") {
        post.0.read_line(&mut echoed).expect("an echo");
    }
    post.write(b"5\r\nagain\r\n0\r\n\r\n");
    while !echoed.contains("again") {
        assert!(post.0.read_line(&mut echoed).expect("an echo") > 0);
    }
    let mut large = Http::send(url, &request("GET", &token, &session, "8000/large", ""));
    let (_, head) = large.head();
    assert_eq!(large.body(&head).len(), 30_000_000);
    let (status, head) = Http::send(url, &request("GET", &token, &session, "8000?q=1", "")).head();
    assert!(status == 308 && head.contains("ports/8000/?q=1"), "{head}");
}

#[test]
fn a_websocket_speaks_both_ways() {
    let cluster = shared();
    let (cooper, token) = (cluster.cooper(), cluster.admin_token());
    let session = serving(&cooper, 8000, "socket");
    let upgrade = "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    let mut socket = Http::send(&cluster.url, &request("GET", &token, &session, "8000/ws", upgrade));
    let (status, head) = socket.head();
    assert_eq!(status, 101, "{head}");
    assert!(
        head.contains("upgrade: websocket")
            && head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=")
    );
    for text in ["one", "another", &"long ".repeat(10)] {
        let mut frame = vec![0x81, 0x80 | text.len() as u8, 1, 2, 3, 4];
        frame.extend(text.bytes().zip([1, 2, 3, 4].into_iter().cycle()).map(|(byte, mask)| byte ^ mask));
        socket.write(&frame);
        let mut answer = vec![0; 2 + text.len()];
        socket.0.read_exact(&mut answer).expect("an echo");
        assert_eq!((answer[0], &answer[2..]), (0x81, text.as_bytes()));
    }
    // Its end is the end.
    socket.write(&[0x88, 0x80, 0, 0, 0, 0]);
    let mut rest = Vec::new();
    socket.0.read_to_end(&mut rest).expect("the end");
}

#[test]
fn who_has_no_token_or_another_tenants_gets_nothing_and_says_nothing() {
    let cluster = shared();
    let (cooper, token) = (cluster.cooper(), cluster.admin_token());
    let session = serving(&cooper, 8000, "secret");
    let path = |session: &str, port: &str| format!("/sessions/{session}/ports/{port}/");
    let at = path(&session, "8000");
    assert_eq!(http::get_as(&token, &cluster.url, &at).status, 200);
    for answer in [http::get(&cluster.url, &at), http::get_as("cpr_wrong", &cluster.url, &at)] {
        assert_eq!((answer.status, &answer.json()["code"]), (401, &json!("unauthenticated")));
    }
    let worker = http::get_as(&cluster.token("default", "worker"), &cluster.url, &at);
    assert_eq!((worker.status, &worker.json()["code"]), (403, &json!("forbidden")));
    let made = cooper.json(["token", "create", "--tenant", "ports-other", "--scope", "client"]);
    let other = made["secret"].as_str().expect("a secret").to_owned();
    let foreign = http::get_as(&other, &cluster.url, &at);
    let unknown = http::get_as(&other, &cluster.url, &path("ses_00000000000000000000000000", "8000"));
    assert_eq!((foreign.status, &foreign.json()["code"]), (404, &json!("session_not_found")));
    assert_eq!((unknown.status, &unknown.json()["code"]), (404, &json!("session_not_found")));
    // What was refused here, and what was another's, is in the trail.
    let told = |trail: &Value, token: Option<&Value>, outcome: &str| {
        trail["rows"].as_array().expect("rows").iter().any(|row| {
            row["action"] == "Sessions/ForwardPort"
                && row["object"] == json!(session)
                && row["outcome"] == outcome
                && token.is_none_or(|token| row["token_id"] == *token)
        })
    };
    cooper.until_json("both rows", seconds(30), &["audit", "list", "--limit", "1000"], |trail| {
        told(trail, Some(&made["token_id"]), "cross_tenant") && told(trail, None, "forbidden")
    });
    let foreign = Cooper::with_token(&cluster.url, &other);
    assert_eq!(foreign.error(["port", "list", &session]).code, "session_not_found");
    assert_eq!(foreign.error(["port", "forward", &session, "8000:0"]).code, "session_not_found");

    let nobody = http::get_as(&token, &cluster.url, &path(&session, "8001"));
    assert_eq!((nobody.status, &nobody.json()["code"]), (502, &json!("port_not_open")));
    for wrong in ["0", "70000", "x"] {
        let answer = http::get_as(&token, &cluster.url, &path(&session, wrong));
        assert_eq!((answer.status, &answer.json()["code"]), (400, &json!("invalid_argument")), "{wrong}");
    }
    // One that does not speak HTTP, and one that has closed.
    cooper.exec(&session, "rude(8002)");
    let rude = http::get_as(&token, &cluster.url, &path(&session, "8002"));
    assert_eq!((rude.status, &rude.json()["code"]), (502, &json!("port_failed")));
    cooper.exec(&session, "stop(8000)");
    let closed = http::get_as(&token, &cluster.url, &at);
    assert_eq!((closed.status, &closed.json()["code"]), (502, &json!("port_not_open")));
    cooper.exec(&session, "serve(8000, 'again')");
    assert_eq!(http::get_as(&token, &cluster.url, &at).json()["name"], "again");
}

#[test]
fn two_sessions_have_the_same_port_and_nobody_else_gets_to_either() {
    let cluster = shared();
    let (cooper, token) = (cluster.cooper(), cluster.admin_token());
    let sessions = [serving(&cooper, 8000, "first"), serving(&cooper, 8000, "second")];
    for (session, name) in sessions.iter().zip(["first", "second"]) {
        let answer = http::get_as(&token, &cluster.url, &format!("/sessions/{session}/ports/8000/"));
        assert_eq!(answer.json()["name"], name);
    }
    let addresses: Vec<SocketAddr> = sessions
        .iter()
        .map(|session| cooper.exec(session, "address(8000)").trim_matches('\'').parse().expect("an address"))
        .collect();
    assert_ne!(addresses[0], addresses[1]);
    for address in &addresses {
        // This is another process of the machine.
        assert!(address.ip().is_loopback());
        let tried = TcpStream::connect_timeout(address, Duration::from_millis(500));
        assert!(tried.is_err(), "{address} lets strangers in");
    }
    // Neither a sibling nor the session itself gets there by connecting: what it connects to is the proxy.
    for session in &sessions {
        for place in [addresses[0], addresses[1], "127.0.0.1:8000".parse().expect("an address")] {
            let code = format!("knock({:?}, {})", place.ip().to_string(), place.port());
            assert_eq!(cooper.exec(session, &code), "'refused'", "{place}");
        }
    }
    assert_eq!(cooper.exec(&sessions[0], "served('first')"), "1", "one request, which was ours");
    // Bound twice by one session: as anywhere.
    assert_eq!(cooper.exec(&sessions[0], "error(lambda: serve(8000, 'twice'))"), "'EADDRINUSE'");
}

#[test]
fn as_many_connections_as_may_are_open_and_no_more() {
    let cluster = shared();
    let (cooper, token) = (cluster.cooper(), cluster.admin_token());
    let session = serving(&cooper, 8000, "many");
    let get = request("GET", &token, &session, "8000/wait", "");
    let mut open: Vec<Http> = (0..128).map(|_| Http::send(&cluster.url, &get)).collect();
    let heads: Vec<u16> = open.iter_mut().map(|http| http.head().0).collect();
    assert!(heads.iter().all(|status| *status == 200), "{heads:?}");
    let more = http::get_as(&token, &cluster.url, &format!("/sessions/{session}/ports/8000/"));
    assert_eq!((more.status, &more.json()["code"]), (429, &json!("overloaded")));
    drop(open);
    cooper_tests::wait::until_true("a place", seconds(20), || {
        http::get_as(&token, &cluster.url, &format!("/sessions/{session}/ports/8000/")).status == 200
    });
}

#[test]
fn a_session_that_is_destroyed_ends_its_connections() {
    let cluster = shared();
    let (cooper, token) = (cluster.cooper(), cluster.admin_token());
    let session = serving(&cooper, 8000, "mortal");
    let mut waiting = Http::send(&cluster.url, &request("GET", &token, &session, "8000/wait", ""));
    assert_eq!(waiting.head().0, 200);
    cooper.ok(["session", "destroy", &session]);
    let mut rest = Vec::new();
    // Cut, or ended: in any case over.
    let _ = waiting.0.read_to_end(&mut rest);
    let after = http::get_as(&token, &cluster.url, &format!("/sessions/{session}/ports/8000/"));
    assert_eq!(&after.json()["code"], "session_ended");
}

#[test]
fn a_port_here_leads_to_one_in_a_session() {
    let cluster = shared();
    let cooper = cluster.cooper();
    let session = serving(&cooper, 8000, "forwarded");
    let mut forward = cooper.start(["port", "forward", &session, "8000:0", "--json"], b"");
    let line = forward.await_said("where it listens", seconds(20), |forward| {
        forward.stdout().split_once('\n').map(|(line, _)| line.to_owned())
    });
    let local =
        serde_json::from_str::<Value>(&line).expect("JSON")["local"].as_str().expect("a place").to_owned();
    let answer = http::get(&format!("http://{local}"), "/hello");
    assert_eq!((answer.status, &answer.json()["path"]), (200, &json!("/hello")));
    // Raw bytes; one end leaves the other open.
    cooper.exec(&session, "count(8001)");
    let mut raw = cooper.start(["port", "forward", &session, "8001:0", "--json"], b"");
    let line = raw.await_said("where it listens", seconds(20), |raw| {
        raw.stdout().split_once('\n').map(|(line, _)| line.to_owned())
    });
    let local =
        serde_json::from_str::<Value>(&line).expect("JSON")["local"].as_str().expect("a place").to_owned();
    let mut stream = TcpStream::connect(local).expect("a connection");
    stream.set_read_timeout(Some(seconds(20))).expect("a time");
    stream.write_all(&vec![7; 3_000_000]).expect("written");
    stream.shutdown(Shutdown::Write).expect("half closed");
    let mut counted = String::new();
    stream.read_to_string(&mut counted).expect("an answer");
    assert_eq!(counted, "3000000");
    for running in [forward, raw] {
        running.signal(rustix::process::Signal::INT);
        running.finish(seconds(10)).expect(0);
    }
}

#[test]
fn without_the_facility_a_port_is_refused_with_a_code() {
    let cluster = Setup::python().env("COOPER_MASK_FACILITIES", "network").start();
    let cooper = cluster.cooper();
    let session = cooper.session();
    assert_eq!(cooper.error(["port", "list", &session]).code, "network_unavailable");
    let path = format!("/sessions/{session}/ports/8000/");
    let answer = http::get_as(&cluster.admin_token(), &cluster.url, &path);
    assert_eq!((answer.status, &answer.json()["code"]), (409, &json!("network_unavailable")));
    let tried = cooper.exec(&session, "import socket\ntry:\n  socket.socket().listen()\n  said = 'listens'\nexcept OSError as error:\n  said = 'refused'\nsaid");
    assert_eq!(tried, "'refused'");
}
