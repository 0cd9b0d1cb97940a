//! Asks a service whether it is well: an HTTP request, or whether its ports accept.
//!
//! A service's own name is reached by its container's address, else by a published port, else from inside the
//! container; which one it was is said. Any other host is asked as it is written.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use cooper_repair::policy::Health;

use super::observe::Seen;
use super::project::Project;
use super::{Log, process};

/// To connect, and for the whole answer.
const CONNECT: Duration = Duration::from_secs(2);
const ANSWER: Duration = Duration::from_secs(5);
/// Of an answer that much is read.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Starting a process in a container takes its time.
const INSIDE: Duration = Duration::from_secs(15);

/// An `http` URL apart.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    host: String,
    port: u16,
    path: String,
}

/// An answer: its status, and the start of its body.
struct Answer {
    status: u16,
    body: Vec<u8>,
}

/// Whether something in the container listens on the port, as its kernel tells; `None` if the container cannot be asked.
pub(super) async fn listens(project: &Project, seen: &Seen, port: u16) -> Option<bool> {
    let tables = ["exec", &seen.id, "cat", "/proc/net/tcp", "/proc/net/tcp6"];
    let told = process::read(process::docker(&project.dir, &tables), INSIDE).await.ok()?;
    // A kernel without IPv6 has only the first table.
    let text = String::from_utf8_lossy(&told.output).into_owned();
    (!text.is_empty()).then(|| text.lines().any(|line| is_listening(line, port)))
}

/// A line of `/proc/net/tcp`: number, local address, remote address, state, all hexadecimal; 0A is LISTEN.
fn is_listening(line: &str, port: u16) -> bool {
    let mut words = line.split_whitespace().skip(1);
    let local = words.next().and_then(|address| address.rsplit_once(':'));
    let of_port = local.is_some_and(|(_, hex)| u16::from_str_radix(hex, 16) == Ok(port));
    of_port && words.nth(1) == Some("0A")
}

/// Runs the request of `x-cooper.health.exec` in the container.
async fn run_inside(log: &Log, project: &Project, seen: &Seen, health: &Health) -> Result<String, String> {
    let what = health.exec.join(" ");
    let args: Vec<&str> =
        ["exec", &seen.id].into_iter().chain(health.exec.iter().map(String::as_str)).collect();
    let told = process::read(process::docker(&project.dir, &args), INSIDE).await;
    let told = told.map_err(|error| log.redact(&error.message))?;
    if !told.status.success() {
        let code = told.status.code().map_or_else(|| "a signal".to_owned(), |code| code.to_string());
        return Err(log.redact(&format!("`{what}` in the container ended with {code}: {}", told.last_line())));
    }
    if let Some(text) = &health.body_contains
        && !String::from_utf8_lossy(&told.output).contains(text.as_str())
    {
        return Err(format!("`{what}` in the container does not print {text:?}"));
    }
    Ok(log.redact(&format!("`{what}` in the container ended with 0")))
}

/// Asks once. Says in a sentence which way was taken and what came of it.
pub(super) async fn ask(
    log: &Log,
    project: &Project,
    service: &str,
    seen: &Seen,
    health: &Health,
) -> Result<String, String> {
    if !health.exec.is_empty() {
        return run_inside(log, project, seen, health).await;
    }
    let target = parse(&health.url)?;
    let own = target.host == service || target.host == seen.name || seen.aliases.contains(&target.host);
    let mut ways: Vec<(String, SocketAddr)> = Vec::new();
    if own {
        let direct = seen.addresses.iter().map(|ip| SocketAddr::new(*ip, target.port));
        ways.extend(direct.map(|address| (format!("container address {address}"), address)));
        if let Some(published) = seen.published.get(&target.port) {
            let address = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), *published);
            ways.push((format!("published port {published}"), address));
        }
    } else {
        let named = tokio::net::lookup_host((target.host.as_str(), target.port)).await;
        let named = named.map_err(|error| format!("{}: {error}", target.host))?;
        ways.extend(named.map(|address| (format!("{address}"), address)));
    }
    let mut unreachable = Vec::new();
    for (way, address) in &ways {
        match get(*address, &target).await {
            Ok(answer) => return expect(&answer, health, &format!("GET {} by {way}", health.url)),
            // Refused is an answer of the container's network; only a way that leads nowhere is left for the next.
            Err(Failure::Refused(error)) => return Err(format!("GET {} by {way}: {error}", health.url)),
            Err(Failure::Unreachable(error)) => unreachable.push(format!("{way}: {error}")),
        }
    }
    if own {
        match inside(project, seen, &target).await {
            Ok(answer) => {
                return expect(&answer, health, &format!("GET {} inside the container", health.url));
            }
            Err(error) => unreachable.push(format!("inside the container: {error}")),
        }
    }
    let all = unreachable.join("; ");
    Err(log.redact(&format!("GET {}: {all}", health.url)))
}

/// True if the port accepts a connection; `None` if there is no way to it from here.
pub(super) async fn accepts(seen: &Seen, port: u16) -> Option<bool> {
    let published = seen.published.get(&port).map(|published| SocketAddr::from(([127, 0, 0, 1], *published)));
    let ways = seen.addresses.iter().map(|ip| SocketAddr::new(*ip, port)).chain(published);
    for address in ways {
        match timeout(CONNECT, TcpStream::connect(address)).await {
            Ok(Ok(_)) => return Some(true),
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => return Some(false),
            _ => {}
        }
    }
    None
}

fn expect(answer: &Answer, health: &Health, asked: &str) -> Result<String, String> {
    let status = answer.status;
    let good = health.expect_status.map_or((200..400).contains(&status), |expected| expected == status);
    if !good {
        return Err(format!("{asked}: status {status}"));
    }
    if let Some(text) = &health.body_contains
        && !String::from_utf8_lossy(&answer.body).contains(text.as_str())
    {
        return Err(format!("{asked}: status {status}, but the body does not contain {text:?}"));
    }
    Ok(format!("{asked}: status {status}"))
}

enum Failure {
    /// Somebody is there and does not serve (yet).
    Refused(String),
    /// Nobody is to be reached this way.
    Unreachable(String),
}

async fn get(address: SocketAddr, target: &Target) -> Result<Answer, Failure> {
    let stream = match timeout(CONNECT, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            return Err(Failure::Refused(error.to_string()));
        }
        Ok(Err(error)) => return Err(Failure::Unreachable(error.to_string())),
        Err(_) => return Err(Failure::Unreachable("no connection in time".to_owned())),
    };
    let exchange = async {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let request = hyper::Request::get(&target.path)
            .header("host", format!("{}:{}", target.host, target.port))
            .header("user-agent", concat!("cooper/", env!("CARGO_PKG_VERSION")))
            .header("connection", "close")
            .body(Empty::<Bytes>::new())?;
        let answer = async {
            let answer = sender.send_request(request).await?;
            let status = answer.status().as_u16();
            // A body that goes on for ever still has a status.
            let body = Limited::new(answer.into_body(), BODY_BYTES_MAX).collect().await;
            Ok(Answer { status, body: body.map(|body| body.to_bytes().to_vec()).unwrap_or_default() })
        };
        tokio::pin!(connection);
        tokio::pin!(answer);
        tokio::select! {
            answer = &mut answer => answer,
            // It ends first where the answer ends with the connection; the answer is then there to be read.
            _ = &mut connection => answer.await,
        }
    };
    let exchange =
        async { exchange.await.map_err(|error: Box<dyn std::error::Error + Send + Sync>| error.to_string()) };
    timeout(ANSWER, exchange)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {} s", ANSWER.as_secs())))
        .map_err(Failure::Refused)
}

/// What a container may have to make a request with, each printing the status on its first line, then the body.
const CLIENTS: [&[&str]; 4] = [
    &["curl", "-sS", "-m", "5", "-w", "\n%{http_code}", "URL"],
    &["python3", "-c", PYTHON, "URL"],
    &["python", "-c", PYTHON, "URL"],
    &["wget", "-q", "-T", "5", "-O", "-", "URL"],
];
const PYTHON: &str = "import sys, urllib.request, urllib.error
try: a = urllib.request.urlopen(sys.argv[1], timeout=5)
except urllib.error.HTTPError as e: a = e
sys.stdout.write(a.read(1048576).decode('utf-8', 'replace') + '\\n' + str(a.status))";

/// Asks from inside the container, with whatever it has.
async fn inside(project: &Project, seen: &Seen, target: &Target) -> Result<Answer, String> {
    let url = format!("http://127.0.0.1:{}{}", target.port, target.path);
    for client in CLIENTS {
        let args = ["exec", &seen.id]
            .into_iter()
            .chain(client.iter().map(|arg| if *arg == "URL" { &url } else { *arg }));
        let args: Vec<&str> = args.collect();
        let told = process::read(process::docker(&project.dir, &args), INSIDE)
            .await
            .map_err(|error| error.message)?;
        match told.status.code() {
            // Not found or not executable: the next one.
            Some(126 | 127) => {}
            Some(0) if client[0] == "wget" => return Ok(Answer { status: 200, body: told.output }),
            Some(0) => {
                let text = String::from_utf8_lossy(&told.output).into_owned();
                let (body, status) = text.rsplit_once('\n').unwrap_or(("", &text));
                let status = status.trim().parse().map_err(|_| format!("{} printed no status", client[0]))?;
                return Ok(Answer { status, body: body.as_bytes().to_vec() });
            }
            _ => return Err(told.last_line()),
        }
    }
    Err("it has none of curl, python, wget".to_owned())
}

fn parse(url: &str) -> Result<Target, String> {
    let wrong = || format!("x-cooper.health.url is {url:?}; it must be http://HOST:PORT/PATH");
    let rest = url.strip_prefix("http://").ok_or_else(wrong)?;
    let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| wrong())?),
        _ => (authority, 80),
    };
    let host = host.trim_matches(['[', ']']);
    if host.is_empty() || host.contains('@') {
        return Err(wrong());
    }
    Ok(Target { host: host.to_owned(), port, path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart() {
        let target = |host: &str, port, path: &str| Ok(Target { host: host.into(), port, path: path.into() });
        assert_eq!(parse("http://web:8000/health?x=1"), target("web", 8000, "/health?x=1"));
        assert_eq!(parse("http://web"), target("web", 80, "/"));
        assert_eq!(parse("http://[::1]:81/"), target("::1", 81, "/"));
        for wrong in ["https://web/", "http://", "http://web:port/", "http://u:p@web/", "web:80"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn an_answer_is_judged_by_status_and_body() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let serve = async {
            loop {
                let (mut peer, _) = listener.accept().await.expect("a connection");
                let _ = peer.read(&mut [0; 1024]).await;
                let chunked =
                    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nwe\r\n2\r\nll\r\n0\r\n\r\n";
                let _ = peer.write_all(chunked.as_bytes()).await;
            }
        };
        let asked = async {
            let answer = get(address, &parse("http://web:1/").expect("a URL")).await.ok().expect("an answer");
            let health = |status, body: &str| Health {
                expect_status: status,
                body_contains: Some(body.to_owned()),
                ..Health::default()
            };
            assert!(expect(&answer, &health(None, "well"), "").is_ok());
            assert!(expect(&answer, &health(Some(204), "well"), "").is_err());
            assert!(expect(&answer, &health(Some(200), "ill"), "").is_err());
        };
        tokio::select! { () = serve => {}, () = asked => {} }
    }

    #[test]
    fn a_listening_port_is_read_from_the_kernels_table() {
        let line = "   0: 00000000:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1";
        assert!(is_listening(line, 8000) && !is_listening(line, 8001));
        assert!(!is_listening(&line.replace(" 0A ", " 01 "), 8000));
        assert!(!is_listening("  sl  local_address rem_address   st", 8000));
    }
}
