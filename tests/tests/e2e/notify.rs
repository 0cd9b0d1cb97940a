//! Who has to act is told, once it is true, however badly the receiver behaves; and how it went is counted.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::Command,
    sync::{Arc, Mutex},
    thread,
};

use cooper_tests::{Answer, Cooper, Scratch, Setup, docker, http, seconds, until};

use super::{
    approvals::{protected, waits},
    repair::{patient, text},
};

const SECRET: &str = "between-us-alone-0123456789";

/// One request, as it came.
#[derive(Debug, Clone)]
struct Told {
    path: String,
    headers: BTreeMap<String, String>,
    body: String,
}

impl Told {
    fn document(&self) -> Answer {
        serde_json::from_str(&self.body).expect("JSON")
    }
}

/// A server that answers the first requests as nobody should, and then as it should.
struct Receiver {
    address: SocketAddr,
    told: Arc<Mutex<Vec<Told>>>,
}

impl Receiver {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let told = Arc::new(Mutex::new(Vec::new()));
        let seen = told.clone();
        thread::spawn(move || {
            let mut kept = Vec::new();
            for stream in listener.incoming().flatten() {
                let Some(request) = read(&stream) else { continue };
                let number = {
                    let mut seen = seen.lock().expect("nobody panics");
                    seen.push(request);
                    seen.len()
                };
                match number {
                    1 => answer(&stream, "500 Internal Server Error\r\n"),
                    2 => answer(&stream, "302 Found\r\nLocation: /elsewhere\r\n"),
                    // Never answers, and holds the connection.
                    3 => kept.push(stream),
                    // Ends it without a word.
                    4 => drop(stream),
                    _ => answer(&stream, "204 No Content\r\n"),
                }
            }
        });
        Self { address, told }
    }

    fn told(&self) -> Vec<Told> {
        self.told.lock().expect("nobody panics").clone()
    }
}

fn read(stream: &TcpStream) -> Option<Told> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let mut body = vec![0; headers.get("content-length")?.parse().ok()?];
    reader.read_exact(&mut body).ok()?;
    Some(Told { path, headers, body: String::from_utf8(body).ok()? })
}

fn answer(mut stream: &TcpStream, status: &str) {
    let _ = stream
        .write_all(format!("HTTP/1.1 {status}Content-Length: 0\r\nConnection: close\r\n\r\n").as_bytes());
}

/// As a receiver would check it, by somebody else's HMAC.
fn signature_of(told: &Told) -> String {
    let script = "import sys, hmac, hashlib; print(hmac.new(sys.argv[1].encode(), sys.argv[2].encode(), hashlib.sha256).hexdigest())";
    let signed = format!("{}.{}", told.headers["cooper-timestamp"], told.body);
    let done = Command::new("python3").args(["-c", script, SECRET, &signed]).output().expect("python3");
    format!("v1={}", String::from_utf8_lossy(&done.stdout).trim())
}

#[test]
fn what_a_person_has_to_act_on_is_told_signed_to_a_receiver_that_fails_in_every_way_and_after_a_restart() {
    let name = "what_a_person_has_to_act_on_is_told_signed_to_a_receiver_that_fails_in_every_way_and_after_a_restart";
    if !docker::wanted(name) {
        return;
    }
    let stack = protected("notified");
    let receiver = Receiver::start();
    let cluster = Setup::compose()
        .env("COOPER_NOTIFY_URL", &format!("http://{}/hook", receiver.address))
        .env("COOPER_NOTIFY_SECRET", SECRET)
        .env("COOPER_APPROVAL_TTL_MS", "8000")
        .start();
    let cooper = patient(cluster.cooper());
    // The receiver fails, and the run does not mind.
    let run = waits(&cooper, &stack);
    let id = text(&run, "run_id");
    until("the first try", seconds(20), || (!receiver.told().is_empty()).then_some(()));
    cluster.kill("coordinator");

    let of = |kind: &str| -> Vec<Told> {
        let all = receiver.told();
        all.into_iter().filter(|told| told.headers.get("cooper-event").is_some_and(|it| it == kind)).collect()
    };
    until("both notifications", seconds(90), || (!of("run.expired").is_empty()).then_some(()));
    let waited = of("run.awaiting_approval");
    assert!(waited.len() >= 5, "500, a redirect, silence, a closed connection, then an answer: {waited:#?}");
    for told in waited.iter().chain(&of("run.expired")) {
        assert_eq!(told.path, "/hook", "a redirect is not followed");
        assert_eq!(told.headers["cooper-signature"], signature_of(told));
        assert!(!told.body.contains(SECRET));
    }
    let deliveries: Vec<&str> = waited.iter().map(|told| told.headers["cooper-delivery"].as_str()).collect();
    assert!(deliveries.iter().all(|number| *number == deliveries[0]), "{deliveries:?}");
    let told = waited[0].document();
    assert_eq!((&told["run"]["id"], &told["run"]["service"]), (&id.into(), &"web".into()), "{told:#}");
    assert!(told["run"]["approval"]["reasons"].to_string().contains("protected"), "{told:#}");
    assert_eq!(told["run"]["plan_hash"], run["plan_hash"]);
    assert!(text(&told, "next").contains(&format!("cooper approve {id}")), "{told:#}");
    assert_eq!(of("run.expired").len(), 1, "what was taken is not told again");

    let stats = cooper.json(["runs", "stats", "--since", "1h"]);
    assert_eq!((&stats["runs"], &stats["states"]["expired"]), (&1.into(), &1.into()), "{stats:#}");
    assert_eq!((&stats["steps"][0]["step"], &stats["steps"][0]["count"]), (&"analyze".into(), &1.into()));
    assert!(cooper.ok(["runs", "stats"]).contains("1 expired"));
    let metrics = http::get_as(&cluster.admin_token(), &cluster.url, "/metrics").body;
    assert!(metrics.contains("cooper_run_seconds_count{state=\"expired\"} 1"), "{metrics}");
    assert!(metrics.contains("cooper_notifications_total{end=\"delivered\"}"), "{metrics}");
}

#[test]
fn notifications_without_a_secret_are_refused_at_the_start() {
    let scratch = Scratch::new("unsigned");
    let data = scratch.join("data");
    let refused = Cooper::default().env("COOPER_NOTIFY_URL", "http://127.0.0.1:9/hook").run([
        "coordinator",
        "--data",
        data.to_str().expect("plain"),
        "--listen",
        "127.0.0.1:0",
    ]);
    let (code, message) = refused.error_line();
    assert!(code == "config_invalid" && message.contains("notify_url"), "{code}: {message}");
}
