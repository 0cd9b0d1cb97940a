//! Secrets that the proxy puts into requests: the host has them, the session never.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
};

use cooper_tests::{Cluster, Cooper, Setup, seconds, wait};
use serde_json::Value;

use super::{VALUE, in_plain, says_nothing};

const CLIENT: &str = include_str!("client.py");

/// A host with its port; what it was asked.
struct Server {
    process: Child,
    port: u16,
    asked: mpsc::Receiver<Value>,
}

impl Server {
    fn start(certificate: Option<&Path>) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/secrets/server.py");
        let mut command = Command::new("python3");
        command.arg(script).args(certificate).stdout(Stdio::piped());
        let mut process = command.spawn().expect("a server");
        let mut lines =
            BufReader::new(process.stdout.take().expect("its output")).lines().map_while(Result::ok);
        let port = lines.next().expect("its port").parse().expect("a port");
        let (tell, asked) = mpsc::sync_channel(64);
        std::thread::spawn(move || {
            for line in lines {
                let _ = tell.send(serde_json::from_str(&line).expect("a request"));
            }
        });
        Self { process, port, asked }
    }

    /// The next request.
    #[track_caller]
    fn asked(&self) -> Value {
        self.asked.recv_timeout(seconds(10)).expect("a request")
    }

    #[track_caller]
    fn was_not_asked(&self) {
        assert_eq!(self.asked.try_recv(), Err(mpsc::TryRecvError::Empty));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Key and certificate, and the certificate alone, which is its own authority.
fn certificate(dir: &Path) -> (std::path::PathBuf, std::path::PathBuf) {
    let (both, alone) = (dir.join("both.pem"), dir.join("alone.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=the test"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-addext", "subjectAltName=DNS:api.test,DNS:other.test", "-keyout"])
        .arg(&both)
        .arg("-out")
        .arg(&alone)
        .output()
        .expect("openssl");
    assert!(made.status.success(), "{made:?}");
    let parts = [&both, &alone].map(|file| fs::read(file).expect("it is there"));
    fs::write(&both, parts.concat()).expect("writable");
    (both, alone)
}

struct Bed {
    tls: Server,
    plain: Server,
    cluster: Cluster,
    _dir: tempfile::TempDir,
}

impl Bed {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (both, alone) = certificate(dir.path());
        let (tls, plain) = (Server::start(Some(&both)), Server::start(None));
        let ports = [tls.port, plain.port].map(|port| format!("127.0.0.1:{port}")).join(",");
        let cluster = Setup::python()
            .env("LOG_LEVEL", "info,cooper=trace,cooper_coordinator=trace,cooper_worker=trace")
            .env("COOPER_EGRESS_ALLOW", &ports)
            .env("COOPER_EGRESS_HOSTS", "api.test=127.0.0.1,other.test=127.0.0.1")
            .env("SSL_CERT_FILE", &alone.to_string_lossy())
            .start();
        Self { tls, plain, cluster, _dir: dir }
    }

    fn set(&self, cooper: &Cooper, value: &str) {
        says_nothing(&cooper.run_with(["secret", "set", "API_KEY"], value.as_bytes()).expect(0));
    }

    fn create(&self, cooper: &Cooper, name: &str, secrets: &[String]) {
        let ports = [self.tls.port, self.plain.port].map(|port| port.to_string());
        let mut args = vec!["session", "create", "--name", name, "--network", "api.test,other.test"];
        for port in &ports {
            args.extend(["--network-port", port]);
        }
        for secret in secrets {
            args.extend(["--secret", secret]);
        }
        says_nothing(&cooper.run(args).expect(0));
        cooper.exec(name, CLIENT);
    }
}

#[test]
fn a_secret_is_put_into_requests_to_its_host_and_the_session_never_holds_it() {
    let bed = Bed::start();
    let cooper = bed.cluster.cooper();
    let (tls, plain) = (bed.tls.port, bed.plain.port);
    bed.set(&cooper, &format!("{VALUE}\n"));
    bed.create(
        &cooper,
        "has",
        &[
            format!("API_KEY=host:api.test:{tls}"),
            format!("API_KEY=host:api.test:{tls},header=x-api-key: key {{}}"),
            format!("API_KEY=host:api.test:{plain},http"),
        ],
    );
    let bearer = serde_json::json!([format!("Bearer {VALUE}")]);

    // Whatever the session itself puts there is replaced.
    let placeholder = "{'Authorization': 'Bearer placeholder', 'X-Api-Key': 'mine'}";
    assert_eq!(
        cooper.exec("has", &format!("print(fetch('https://api.test:{tls}/x?y=1', {placeholder}))")),
        "well"
    );
    let asked = bed.tls.asked();
    assert_eq!((&asked["authorization"], &asked["path"]), (&bearer, &"/x?y=1".into()));
    assert_eq!(asked["key"], serde_json::json!([format!("key {VALUE}")]));
    assert_eq!(asked["host"], format!("api.test:{tls}"));

    // Several over one connection, each with it.
    let kept = cooper.exec("has", &format!("print(kept('api.test', {tls}, ['/1', '/2', '/3']))"));
    assert_eq!(kept, "['200 None well', '200 None well', '200 None well']");
    let asked: Vec<_> = (0..3).map(|_| bed.tls.asked()).collect();
    for (n, request) in (1..).zip(&asked) {
        assert_eq!(request["authorization"], bearer);
        assert_eq!(request["body"], format!("of /{n}"));
        assert_eq!(request["connection"], asked[0]["connection"]);
    }

    // What the host says of it does not say it.
    let echoed = cooper.exec("has", &format!("print(fetch('https://api.test:{tls}/echo'))"));
    assert!(echoed.contains(&"*".repeat(VALUE.len())) && echoed.contains("Bearer *"), "{echoed}");
    bed.tls.asked();

    // Led elsewhere, it does not come along; that host's TLS is its own.
    let led = format!("print(fetch('https://api.test:{tls}/to/https://other.test:{tls}/led'))");
    assert_eq!(cooper.exec("has", &led), "well");
    assert_eq!(bed.tls.asked()["authorization"], bearer);
    let asked = bed.tls.asked();
    assert_eq!((&asked["path"], &asked["authorization"]), (&"/led".into(), &Value::Null));
    let issuer = |host: &str| cooper.exec("has", &format!("print(issuer({host:?}, {tls}))"));
    assert_eq!(
        (issuer("api.test"), issuer("other.test")),
        ("Cooper worker".to_owned(), "the test".to_owned())
    );

    // Without TLS only where that was said.
    assert_eq!(cooper.exec("has", &format!("print(fetch('http://api.test:{plain}/plain'))")), "well");
    assert_eq!(bed.plain.asked()["authorization"], bearer);
    cooper.exec("has", &format!("print(fetch('http://other.test:{plain}/plain'))"));
    assert_eq!(bed.plain.asked()["authorization"], Value::Null);

    // Names that do not agree, and requests that end in two places.
    let host = format!("print(kept('api.test', {tls}, ['/'], named='other.test:{tls}'))");
    assert!(cooper.exec("has", &host).starts_with("['421 mismatch "));
    let raw = |sni: &str, text: &str| {
        cooper.exec("has", &format!("print(raw('api.test', {tls}, {sni:?}, {text:?}))"))
    };
    let named = format!("Host: api.test:{tls}\r\n");
    assert_eq!(raw("other.test", &format!("GET / HTTP/1.1\r\n{named}\r\n")), "SSLError");
    for (text, status) in [
        (format!("POST / HTTP/1.1\r\n{named}Content-Length: 5\r\nContent-Length: 6\r\n\r\n012345"), 400),
        (format!("GET / HTTP/1.1\r\n{named}Host: other.test\r\n\r\n"), 421),
        (format!("GET https://other.test/ HTTP/1.1\r\n{named}\r\n"), 421),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 421),
    ] {
        let answer = raw("api.test", &text);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{text:?}: {answer}");
    }
    bed.tls.was_not_asked();
    // Said in both ways, it is read in one and written anew in that.
    let (chunked, length) = ("Transfer-Encoding: chunked\r\n", "Content-Length: 5\r\n");
    for both in [[chunked, length], [length, chunked]].map(|both| both.concat()) {
        let text = format!("POST / HTTP/1.1\r\n{named}{both}\r\n0\r\n\r\n");
        assert_eq!(raw("api.test", &text), "HTTP/1.1 200 OK");
        assert_eq!((&bed.tls.asked()["body"], bed.tls.asked.try_iter().count()), (&"".into(), 0));
    }

    // Nothing that the session may look into holds it.
    let flipped: String = VALUE.bytes().map(|byte| format!("\\x{:02x}", 255 - byte)).collect();
    let search = format!("print(search('{flipped}'))");
    assert_eq!(cooper.exec("has", &search), "[]");
    cooper.exec("has", &format!("held = bytes(255 - byte for byte in '{flipped}'.encode('latin-1'))"));
    assert_ne!(cooper.exec("has", &search), "[]", "it is found where it is");
    cooper.exec("has", "del held");
    assert!(cooper.exec("has", "import os; print('COOPER_SECRETS' in os.environ)") == "False");

    // The next request has the next value, and none when there is none.
    bed.set(&cooper, "another-value");
    let fetched = format!("print(fetch('https://api.test:{tls}/'))");
    wait::until_true("that the new value arrives", seconds(10), || {
        cooper.exec("has", &fetched);
        bed.tls.asked()["authorization"] == serde_json::json!(["Bearer another-value"])
    });
    cooper.ok(["secret", "rm", "API_KEY"]);
    wait::until_true("that it is gone", seconds(10), || cooper.exec("has", &fetched) == "403 secret");

    let shown = cooper.json(["session", "show", "has"]);
    assert_eq!(shown["inject"][0]["host"], format!("api.test:{tls}"));
    assert_eq!(shown["inject"][0]["header"], "Authorization: Bearer {}");
    says_nothing(&cooper.run(["--json", "events"]).expect(0));
    let mut found = Vec::new();
    in_plain(bed.cluster.scratch.path(), &mut found);
    assert_eq!(found, [""; 0]);
}

#[test]
fn an_injection_is_granted_only_where_it_can_be_kept() {
    let bed = Bed::start();
    let cooper = bed.cluster.cooper();
    bed.set(&cooper, VALUE);
    let code = |secret: &str, network: &str| {
        cooper.error(["session", "create", "--network", network, "--secret", secret]).code
    };
    assert_eq!(code("API_KEY=host:api.test", "none"), "invalid_argument");
    assert_eq!(code("API_KEY=host:api.test", "other.test"), "invalid_argument");
    assert_eq!(code("API_KEY=host:127.0.0.1", "public"), "invalid_argument");
    assert_eq!(code("API_KEY=host:api.test,header=Host: {}", "public"), "invalid_argument");
    assert_eq!(code("API_KEX=host:api.test", "public"), "secret_not_found");
    says_nothing(&cooper.run_with(["secret", "set", "LINES"], b"one\ntwo").expect(0));
    assert_eq!(code("LINES=host:api.test", "public"), "invalid_argument");

    // A session made anew of a checkpoint has it too.
    let secret = format!("API_KEY=host:api.test:{}", bed.tls.port);
    bed.create(&cooper, "has", &[secret]);
    let fetched = format!("{CLIENT}\nprint(fetch('https://api.test:{}/'))", bed.tls.port);
    assert_eq!(cooper.exec("has", &fetched), "well");
    bed.tls.asked();
    let saved = cooper.ok(["checkpoint", "create", "has"]);
    let restored = cooper.ok(["checkpoint", "restore", &saved]);
    assert_eq!(cooper.exec(&restored, &fetched), "well");
    assert_eq!(bed.tls.asked()["authorization"], serde_json::json!([format!("Bearer {VALUE}")]));
}
