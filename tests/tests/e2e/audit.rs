//! The audit trail, and what tokens may do and for how long.

use std::{fs, os::unix::fs::PermissionsExt};

use cooper_tests::{Cooper, fleet::Fleet, http, seconds, wait::until_true};

use super::repair::text;

fn start(env: &[(&str, &str)]) -> Fleet {
    let mut fleet = env.iter().fold(Fleet::new(), |fleet, (name, value)| fleet.env(name, value));
    fleet.start_coordinator();
    let cooper = fleet.cooper();
    until_true("a coordinator that serves", seconds(30), || cooper.run(["status"]).status == 0);
    fleet
}

#[test]
fn the_trail_says_who_did_what_from_where_and_shows_what_was_done_to_it() {
    let mut fleet = start(&[]);
    let cooper = fleet.cooper();
    let made = cooper.json(["token", "create", "--scope", "operator", "--name", "ada"]);
    let secret = text(&made, "secret").to_owned();
    let ada = Cooper::with_token(&fleet.url(), &secret);
    ada.ok(["pause"]);
    assert_eq!(ada.error(["token", "list"]).code, "forbidden");
    assert_eq!(ada.error(["session", "show", "ses_nothing"]).code, "session_not_found");
    let rotated = ada.error(["token", "rotate", text(&made, "token_id")]);
    assert_eq!(rotated.code, "forbidden");
    for _ in 0..30 {
        let guess = http::try_get(&fleet.url(), "/sessions", Some("cpr_wrong")).expect("an answer");
        assert_eq!(guess.status, 401);
    }
    let answer = http::send(
        &fleet.url(),
        "POST",
        "/orchestrator/pauses",
        &[("authorization", &format!("Bearer {secret}")), ("content-type", "application/json")],
        b"{}",
    );
    assert_eq!(answer.expect("an answer").status, 200);
    let trail = cooper.until_json("the trail", seconds(30), &["audit", "list"], |trail| {
        trail["rows"].as_array().expect("rows").iter().any(|row| row["action"] == "door.refused")
    });
    let rows = trail["rows"].as_array().expect("rows");
    let find = |action: &str, outcome: &str| {
        let found: Vec<_> =
            rows.iter().filter(|row| row["action"] == action && row["outcome"] == outcome).collect();
        assert!(!found.is_empty(), "{action} {outcome}: {trail:#}");
        found
    };
    let pauses = find("Runs/Pause", "ok");
    assert_eq!(pauses.len(), 2, "by gRPC and by REST: {trail:#}");
    assert!(pauses.iter().all(|row| row["name"] == "ada" && row["from"] == "127.0.0.1"), "{pauses:?}");
    assert_eq!(find("Admin/ListTokens", "forbidden")[0]["token_id"], made["token_id"]);
    assert_eq!(find("Admin/RotateToken", "forbidden")[0]["object"], made["token_id"]);
    find("Admin/CreateToken", "ok");
    let guesses = find("door.refused", "unauthenticated");
    assert!(
        guesses.len() <= 3 && guesses.iter().all(|row| row["from"] == "127.0.0.1"),
        "a flood is few rows: {guesses:?}"
    );
    assert!(!trail.to_string().contains(&secret[4..]));

    let verdict = cooper.json(["audit", "verify"]);
    assert_eq!(verdict["ok"], true, "{verdict}");
    let place = format!("{}:{}", verdict["last_seq"], text(&verdict, "last_hash"));
    cooper.ok(["audit", "verify", "--expect", &place]);
    let file = fleet.scratch.join("trail.jsonl");
    let path = file.to_str().expect("a path");
    cooper.ok(["audit", "export", "--out", path]);
    assert_eq!(fs::metadata(&file).expect("a file").permissions().mode() & 0o777, 0o600);
    Cooper::default().ok(["audit", "verify", "--file", path]);
    let text_of = fs::read_to_string(&file).expect("text");
    fs::write(&file, text_of.replace("\"name\":\"ada\"", "\"name\":\"eve\"")).expect("written");
    let changed = Cooper::default().run(["audit", "verify", "--file", path]);
    assert!(changed.status == 1 && changed.out().contains("not as it was written"), "{changed}");

    // Behind the coordinator's back.
    fleet.end_coordinator();
    let damage = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute(\"UPDATE audit SET name = 'eve' WHERE \
        name = 'ada'\"); c.commit()";
    let mut python = cooper_tests::program::command("python3");
    python.args(["-c", damage]).arg(fleet.scratch.join("coordinator/cooper.db"));
    cooper_tests::Running::start(python, b"").finish(seconds(20)).expect(0);
    fleet.start_coordinator();
    until_true("a coordinator that serves", seconds(30), || cooper.run(["status"]).status == 0);
    let (status, verdict) = cooper.run_json(["audit", "verify"]);
    assert!(status == 1 && verdict["ok"] == false, "{verdict}");
    fleet.stop();
}

#[test]
fn a_rotated_token_opens_by_both_secrets_for_the_grace_also_after_a_restart_and_then_by_the_new_one() {
    let mut fleet = start(&[]);
    let cooper = fleet.cooper();
    let made = cooper.json(["token", "create", "--scope", "client"]);
    let id = text(&made, "token_id");
    let rotated = cooper.json(["token", "rotate", id, "--grace", "1h"]);
    assert_eq!(rotated["token_id"], made["token_id"]);
    fleet.end_coordinator();
    fleet.start_coordinator();
    until_true("a coordinator that serves", seconds(30), || cooper.run(["status"]).status == 0);
    for secret in [&made, &rotated] {
        Cooper::with_token(&fleet.url(), text(secret, "secret")).json(["status"]);
    }
    let listed = cooper.json(["token", "list"]);
    let row =
        listed["tokens"].as_array().expect("tokens").iter().find(|row| row["token_id"] == id).expect("it");
    assert!(
        row["last_used_at_ms"].as_i64() > Some(0) && row["previous_until_ms"].as_i64() > Some(0),
        "{row}"
    );
    let newest = cooper.json(["token", "rotate", id, "--grace", "0s"]);
    Cooper::with_token(&fleet.url(), text(&newest, "secret")).json(["status"]);
    for gone in [&made, &rotated] {
        let refused = Cooper::with_token(&fleet.url(), text(gone, "secret")).error(["status"]);
        assert_eq!(refused.code, "unauthenticated");
    }
    // The file of a first start does not bring back what was replaced.
    let admin = listed["tokens"]
        .as_array()
        .expect("tokens")
        .iter()
        .find(|row| row["name"] == "admin.token")
        .expect("it");
    let admin = cooper.json(["token", "rotate", text(admin, "token_id"), "--grace", "0s"]);
    fleet.end_coordinator();
    fleet.start_coordinator();
    let known = Cooper::with_token(&fleet.url(), text(&admin, "secret"));
    until_true("a coordinator that serves", seconds(30), || known.run(["status"]).status == 0);
    assert_eq!(cooper.error(["status"]).code, "unauthenticated");
    fleet.stop();
}

#[test]
fn a_token_that_asks_too_often_is_told_when_to_come_back_and_others_are_answered() {
    let mut fleet = start(&[("COOPER_TOKEN_REQUESTS", "5")]);
    let cooper = fleet.cooper();
    let token = |scope: &str| text(&cooper.json(["token", "create", "--scope", scope]), "secret").to_owned();
    let (eager, patient) = (token("client"), token("client"));
    let answers: Vec<_> =
        (0..40).map(|_| http::try_get(&fleet.url(), "/sessions", Some(&eager)).expect("an answer")).collect();
    assert!(answers[..5].iter().all(|answer| answer.status == 200));
    let refused = answers.iter().find(|answer| answer.status == 429).expect("one is too many");
    assert!(refused.head.to_lowercase().contains("retry-after: 1"), "{}", refused.head);
    assert_eq!(refused.json()["code"], "rate_limited");
    let other = http::try_get(&fleet.url(), "/sessions", Some(&patient)).expect("an answer");
    assert_eq!(other.status, 200);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let status = runtime.block_on(async {
        let client = cooper_tests::grpc::Client::connect(&fleet.url(), Some(&eager)).await;
        loop {
            if let Err(status) =
                client.sessions().list_sessions(cooper_proto::v1::ListSessionsRequest::default()).await
            {
                break status;
            }
        }
    });
    use tonic_types::StatusExt;
    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    assert!(status.get_details_retry_info().is_some_and(|retry| retry.retry_delay.is_some()), "{status:?}");
    fleet.stop();
}

#[test]
fn a_page_of_elsewhere_is_answered_nothing_and_allowed_names_are() {
    let mut fleet = start(&[("COOPER_ALLOWED_HOSTS", "cooper.example.org")]);
    let token = fs::read_to_string(fleet.scratch.join("coordinator/admin.token")).expect("a token");
    let bearer = format!("Bearer {}", token.trim());
    let ask = |path: &str, headers: &[(&str, &str)]| {
        let mut request = format!("GET {path} HTTP/1.1\r\nconnection: close\r\nauthorization: {bearer}\r\n");
        headers.iter().for_each(|(name, value)| request += &format!("{name}: {value}\r\n"));
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", fleet.port)).expect("a connection");
        std::io::Write::write_all(&mut stream, (request + "\r\n").as_bytes()).expect("asked");
        let mut answer = String::new();
        std::io::Read::read_to_string(&mut stream, &mut answer).expect("an answer");
        answer
    };
    for path in ["/sessions", "/docs", "/openapi.json", "/metrics", "/health", "/nothing"] {
        for headers in
            [&[("host", "evil.example")][..], &[("host", "localhost"), ("origin", "https://evil.example")]]
        {
            let answer = ask(path, headers);
            assert!(
                answer.starts_with("HTTP/1.1 403") && answer.contains("host_not_allowed"),
                "{path} {headers:?}: {answer}"
            );
        }
    }
    for host in ["localhost", "127.0.0.1:50051", "[::1]", "cooper.example.org:50051"] {
        assert!(ask("/sessions", &[("host", host)]).starts_with("HTTP/1.1 200"), "{host}");
    }
    assert!(
        ask("/metrics", &[("host", "localhost")])
            .contains("cooper_auth_refused_total{code=\"host_not_allowed\"} 12")
    );
    fleet.stop();
}
