//! Whoever speaks badly, slowly, or stops in the middle: their connections end within their time, memory and descriptors come
//! back, and everybody else is served meanwhile. With TLS and without.

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    time::Duration,
};

use cooper_common::clock;
use cooper_tests::{
    Cooper, Scratch, http,
    program::{Finished, Running, command},
    seconds,
    wait::until_true,
};

/// Connections of one attack.
const MANY: usize = 400;
/// What an answer may take while others misbehave.
const PROMPT: Duration = seconds(5);
/// `limits::door::BEGIN_MS_MAX` and some.
const BEGUN_WITHIN: Duration = seconds(20);
const RSS_MORE_MAX: u64 = 96 << 20;

struct Port {
    _coordinator: Running,
    scratch: Scratch,
    port: u16,
    tls: bool,
}

impl Port {
    fn start(tls: bool) -> Self {
        let scratch = Scratch::new("connections");
        let port = http::free_port();
        let mut cooper = Cooper::at(&scratch.join("data")).env("COOPER_LISTEN", &format!("127.0.0.1:{port}"));
        if tls {
            let certs = scratch.join("certs");
            Cooper::default().ok(["certs", "init", "--dir", certs.to_str().expect("a path")]);
            for (name, file) in [("CERT", "server.crt"), ("KEY", "server.key"), ("CLIENT_CA", "ca.crt")] {
                cooper = cooper.env(&format!("COOPER_TLS_{name}"), &certs.join(file).to_string_lossy());
            }
        }
        let coordinator = cooper.start(["coordinator"], b"");
        let port = Self { _coordinator: coordinator, scratch, port, tls };
        until_true("a coordinator", seconds(30), || port.curl(&[], "/ready").status == 0);
        port
    }

    fn curl(&self, args: &[&str], path: &str) -> Finished {
        let mut curl = command("curl");
        curl.args(["--silent", "--show-error", "--fail", "--max-time", "20"]).args(args);
        if self.tls {
            curl.arg("--cacert").arg(self.scratch.join("certs/ca.crt"));
        }
        curl.arg(format!("{}://localhost:{}{path}", if self.tls { "https" } else { "http" }, self.port));
        Running::start(curl, b"").finish(seconds(30))
    }

    /// Somebody who behaves is answered at once, over both versions of HTTP.
    #[track_caller]
    fn serves(&self, while_what: &str) {
        let http2 = if self.tls { "--http2" } else { "--http2-prior-knowledge" };
        for version in ["--http1.1", http2] {
            let start = clock::since_start();
            self.curl(&[version], "/health").expect(0);
            assert!(
                clock::since_start() - start < PROMPT,
                "{version} while {while_what}: {:?}",
                clock::since_start() - start
            );
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("a connection");
        stream.set_read_timeout(Some(seconds(60))).expect("a time limit");
        stream
    }

    fn pid(&self) -> u32 {
        self._coordinator.pid().as_raw_nonzero().get().unsigned_abs()
    }

    fn rss(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
        line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).expect("a number") << 10
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("it runs").count()
    }
}

/// True once the other side has closed, whatever it said before.
fn is_over(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).expect("a socket");
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return false,
            Err(_) => return true,
        }
    }
}

fn attack(tls: bool) {
    let port = Port::start(tls);
    let (rss, descriptors) = (port.rss(), port.descriptors());
    // Nothing, the beginning of HTTP/2, of a request, of TLS, and what is none of these.
    let beginnings: [&[u8]; 6] = [
        b"",
        b"PR",
        b"GET /health HT",
        &[0x16, 3, 1, 2, 0, 1],
        &[0xff; 64],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ];
    let mut slow: Vec<TcpStream> = (0..MANY)
        .map(|index| {
            let mut stream = port.connect();
            let _ = stream.write_all(beginnings[index % beginnings.len()]);
            stream
        })
        .collect();
    port.serves("many connections say nothing or nonsense");
    // A request whose head is begun has longer, and one that is not has not.
    let begun = |index: usize| !tls && index % beginnings.len() == 2;
    until_true("the end of those that said nothing of use", BEGUN_WITHIN, || {
        slow.iter_mut().enumerate().filter(|(index, _)| !begun(*index)).all(|(_, stream)| is_over(stream))
    });
    // A byte now and then keeps nobody in.
    until_true("the end of those that go on slowly", seconds(45), || {
        for (index, stream) in slow.iter_mut().enumerate().filter(|(index, _)| begun(*index)) {
            let _ =
                stream.set_nonblocking(true).and_then(|()| stream.write_all(&[b'a' + (index % 26) as u8]));
        }
        std::thread::sleep(Duration::from_millis(200));
        slow.iter_mut().all(is_over)
    });
    drop(slow);

    // A head without end, and a request that is half closed behind its end.
    if !tls {
        let mut stream = port.connect();
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: ").expect("sent");
        let mut said = Vec::new();
        for _ in 0..64 {
            if stream.write_all(&[b'x'; 8192]).is_err() {
                break;
            }
        }
        let _ = stream.read_to_end(&mut said);
        let said = String::from_utf8_lossy(&said);
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 431"), "{said}");
        for _ in 0..MANY {
            let mut stream = port.connect();
            stream
                .write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
                .expect("sent");
            stream.shutdown(Shutdown::Write).expect("half closed");
            let mut said = String::new();
            let _ = stream.read_to_string(&mut said);
            assert!(said.is_empty() || said.starts_with("HTTP/1.1 200"), "{said}");
        }
        let mut refused = port.connect();
        refused
            .write_all(
                b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: x\r\ntransfer-encoding: chunked\r\n\r\n",
            )
            .expect("sent");
        let mut said = String::new();
        let _ = refused.read_to_string(&mut said);
        assert!(said.starts_with("HTTP/1.1 4"), "{said}");
    }
    // A body that is larger than anything here is refused before it is read.
    let token = fs::read_to_string(port.scratch.join("data/admin.token")).expect("a token");
    let large = port.scratch.write("large.json", format!("{{\"name\": \"{}\"}}", "x".repeat(64 << 20)));
    let sent = port.curl(
        &[
            "--http1.1",
            "-X",
            "POST",
            "-H",
            &format!("authorization: Bearer {}", token.trim()),
            "-H",
            "content-type: application/json",
            "--data-binary",
            &format!("@{}", large.display()),
        ],
        "/sessions",
    );
    assert_eq!(sent.status, 22, "{sent}");
    port.serves("after all that");
    until_true("descriptors that come back", seconds(30), || port.descriptors() <= descriptors + 16);
    let more = port.rss().saturating_sub(rss);
    assert!(more < RSS_MORE_MAX, "{} MiB more than before", more >> 20);
}

#[test]
fn slow_broken_and_half_closed_connections_end_in_time_and_keep_nobody_out() {
    attack(false);
}

#[test]
fn the_same_over_tls_handshakes_that_never_end_included() {
    attack(true);
}
