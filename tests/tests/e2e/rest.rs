//! REST as a script speaks it: paths, JSON, files, events and problems, on the port of everything else.

use std::io::Write as _;

use cooper_tests::{
    Answer, cluster,
    cluster::shared_compose,
    docker,
    docker::Stack,
    http::{self, Response},
    seconds, until,
};
use serde_json::{Value, json};

/// A caller with a token.
struct Rest {
    url: String,
    token: String,
}

impl Rest {
    fn send(&self, verb: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        let bearer = format!("Bearer {}", self.token);
        let headers: Vec<_> = headers.iter().copied().chain([("authorization", bearer.as_str())]).collect();
        http::send(&self.url, verb, path, &headers, body)
            .unwrap_or_else(|error| panic!("{verb} {path}: {error}"))
    }

    fn json(&self, verb: &str, path: &str, body: &Value) -> Response {
        self.send(verb, path, &[("content-type", "application/json")], body.to_string().as_bytes())
    }

    #[track_caller]
    fn get(&self, path: &str) -> Answer {
        let answer = self.send("GET", path, &[], b"");
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        answer.json()
    }

    #[track_caller]
    fn done(&self, verb: &str, path: &str, body: &Value, status: u16) -> Answer {
        let answer = self.json(verb, path, body);
        assert_eq!(answer.status, status, "{verb} {path}: {}", answer.body);
        answer.json()
    }

    /// Status and code of a problem.
    #[track_caller]
    fn problem(&self, verb: &str, path: &str, body: &Value) -> (u16, String) {
        let answer =
            if body.is_null() { self.send(verb, path, &[], b"") } else { self.json(verb, path, body) };
        assert!(answer.head.contains("application/problem+json"), "{verb} {path}: {}", answer.head);
        let said = answer.json();
        assert!(said["detail"].as_str().is_some_and(|text| !text.is_empty()), "{said:#}");
        (answer.status, said["code"].as_str().expect("a code").to_owned())
    }
}

fn ended(rest: &Rest, task: &Value) -> Answer {
    let path = format!("/executions/{}", task["id"].as_str().expect("an id"));
    until("its end", seconds(60), || Some(rest.get(&path)).filter(|task| task["ended_at_ms"] != 0))
}

#[test]
fn a_session_is_made_used_and_destroyed() {
    let cluster = cluster::shared();
    let rest = Rest { url: cluster.url.clone(), token: cluster.admin_token() };
    let session = rest.done("POST", "/sessions", &json!({"labels": {"kind": "rest"}}), 201);
    let id = session["id"].as_str().expect("an id");
    let at = format!("/sessions/{id}");
    assert_eq!((&session["state"], &session["labels"]["kind"]), (&json!("ready"), &json!("rest")));
    let found = rest.get("/sessions?labels=kind=rest&state=ready&limit=1");
    assert_eq!(found["sessions"][0]["id"], id, "{found:#}");
    let changed = rest.done("PATCH", &at, &json!({"labels": {"more": "1"}, "ttl_ms": 600_000}), 200);
    assert_eq!(changed["labels"], json!({"kind": "rest", "more": "1"}));

    // What runs: accepted at once, polled, followed as events.
    let code = json!({"python": {"code": "print('out'); open('made.txt', 'w').write('made here'); 6 * 7"}});
    let executions = format!("{at}/executions");
    let key = [("content-type", "application/json"), ("idempotency-key", id)];
    let first = rest.send("POST", &executions, &key, code.to_string().as_bytes());
    assert_eq!(first.status, 202, "{}", first.body);
    let again = rest.send("POST", &executions, &key, code.to_string().as_bytes());
    assert_eq!(again.json()["id"], first.json()["id"], "asked twice, done once");
    let task = ended(&rest, &first.json());
    assert_eq!(
        (&task["state"], &task["outcome"]["result"]["data"]["text/plain"]),
        (&json!("succeeded"), &json!("42"))
    );
    let task_at = format!("/executions/{}", task["id"].as_str().expect("an id"));
    let output = rest.get(&format!("{task_at}/output?stream=stdout"));
    assert_eq!((&output["data"], &output["complete"]), (&json!("out\n"), &json!(true)));
    let events = rest.send("GET", &format!("{task_at}/events"), &[], b"");
    assert!(events.head.contains("text/event-stream"), "{}", events.head);
    let names: Vec<&str> = events.body.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!(names, ["accepted", "output", "ended"], "{}", events.body);
    let listed = rest.get(&format!("{executions}?state=succeeded"));
    assert_eq!(listed["tasks"][0]["id"], task["id"]);

    // Files: bytes as they are, in parts, guarded by what was seen.
    let content = format!("{at}/files/content");
    let read = rest.send("GET", &format!("{content}?path=made.txt"), &[], b"");
    assert_eq!((read.status, read.body.as_str()), (200, "made here"));
    let part = rest.send("GET", &format!("{content}?path=made.txt"), &[("range", "bytes=5-6")], b"");
    assert_eq!((part.status, part.body.as_str()), (206, "he"));
    assert!(part.head.to_lowercase().contains("content-range: bytes 5-6/9"), "{}", part.head);
    let big = "x".repeat(1 << 20);
    let put = rest.send("PUT", &format!("{content}?path=in/big.txt&create_dirs=true"), &[], big.as_bytes());
    assert_eq!(put.status, 200, "{}", put.body);
    let stat = rest.get(&format!("{at}/files/stat?path=in/big.txt"));
    assert_eq!(stat["size_bytes"], 1 << 20);
    let stale = rest.send("PUT", &format!("{content}?path=in/big.txt"), &[("if-match", "\"old\"")], b"new");
    assert_eq!((stale.status, &stale.json()["code"]), (409, &json!("file_changed")), "{}", stale.body);
    let edit = json!({"path": "made.txt", "edits": [{"old": "here", "new": "there"}]});
    rest.done("POST", &format!("{at}/files/edit"), &edit, 200);
    assert_eq!(rest.send("GET", &format!("{content}?path=made.txt"), &[], b"").body, "made there");
    assert_eq!(rest.get(&format!("{at}/files?path=in"))["files"][0]["path"], "in/big.txt");
    let gone = rest.send("DELETE", &format!("{at}/files?path=in&recursive=true"), &[], b"");
    assert_eq!(gone.json()["entries"], 2, "{}", gone.body);

    // What broke off is no file.
    let mut half =
        std::net::TcpStream::connect(rest.url.trim_start_matches("http://")).expect("a connection");
    let (token, path) = (&rest.token, format!("{content}?path=half.txt"));
    let head = format!("PUT {path} HTTP/1.1\r\nhost: here\r\nauthorization: Bearer {token}\r\n");
    half.write_all(format!("{head}content-length: 100\r\n\r\nhalf of it").as_bytes()).expect("it is sent");
    half.shutdown(std::net::Shutdown::Both).expect("it ends");
    // Nothing tells that nothing happens: long enough for what would be written.
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(rest.problem("GET", &path, &Value::Null), (404, "file_not_found".to_owned()));

    // What is wrong is said with its status and its code.
    let nothing = Value::Null;
    for (verb, path, body, status, code) in [
        ("GET", "/sessions/ses_unknown".to_owned(), &nothing, 404, "session_not_found"),
        ("GET", "/nowhere".to_owned(), &nothing, 404, "not_found"),
        ("PUT", at.clone(), &nothing, 405, "invalid_argument"),
        ("GET", format!("{at}/files?pth=x"), &nothing, 400, "invalid_argument"),
        ("GET", format!("{content}?path=../../etc/passwd"), &nothing, 400, "path_escapes"),
        ("POST", executions.clone(), &json!({"pythn": {}}), 400, "invalid_argument"),
        ("POST", "/sessions".to_owned(), &json!([]), 400, "invalid_argument"),
    ] {
        assert_eq!(rest.problem(verb, &path, body), (status, code.to_owned()), "{verb} {path}");
    }
    let undeclared = rest.send("POST", "/sessions", &[("content-type", "text/plain")], b"{}");
    assert_eq!(undeclared.status, 400, "what a page elsewhere may send is not taken");
    for token in ["", "cpr_wrong"] {
        let stranger = Rest { url: rest.url.clone(), token: token.to_owned() };
        assert_eq!(stranger.problem("GET", &at, &nothing), (401, "unauthenticated".to_owned()));
    }
    let other = Rest { url: rest.url.clone(), token: cluster.token("elsewhere", "client") };
    assert_eq!(other.problem("GET", &at, &nothing), (404, "session_not_found".to_owned()), "I10");
    assert_eq!(other.problem("GET", "/tokens", &nothing).0, 403);

    assert_eq!(rest.done("DELETE", &at, &nothing, 200)["state"], "destroyed");
}

#[test]
fn the_contract_is_there_for_programs_and_for_people() {
    let cluster = cluster::shared();
    let document = http::get(&cluster.url, "/openapi.json").json();
    assert_eq!(document["openapi"], "3.1.0");
    let create = &document["paths"]["/orchestrator/runs"]["post"];
    let said = &create["requestBody"]["content"]["application/json"]["schema"]["properties"];
    assert!(said["target_service"]["description"].is_string(), "{create:#}");
    assert!(create["responses"]["202"].is_object());
    let operations = document["paths"].as_object().expect("paths").values().flat_map(|path| path.as_object());
    for operation in operations.flat_map(|path| path.values()) {
        assert_ne!(operation["summary"], "", "{operation:#}");
    }
    let page = http::get(&cluster.url, "/docs");
    assert!(page.body.contains("/sessions/{session_id}/executions"), "{}", page.head);
}

#[test]
fn a_repair_is_asked_for_decided_and_looked_at() {
    if !docker::wanted("a_repair_is_asked_for_decided_and_looked_at") {
        return;
    }
    let stack = Stack::broken("rest", &["protected"]);
    let cluster = shared_compose();
    cluster.cooper().ok(["repair", "web", "--stack", stack.arg(), "--dry-run"]);
    let rest = Rest { url: cluster.url.clone(), token: cluster.admin_token() };
    let stacks = rest.get("/stacks");
    let known = stacks["stacks"].as_array().expect("a list").iter().find(|known| known["dir"] == stack.arg());
    let name = known.expect("it is registered")["name"].clone();
    let asked = json!({"target_service": "web", "stack": name, "instruction": "fix the build"});
    let run = rest.done("POST", "/orchestrator/runs", &asked, 202);
    let at = format!("/orchestrator/runs/{}", run["id"].as_str().expect("an id"));
    let waiting = until("a plan", seconds(120), || {
        Some(rest.get(&at)).filter(|run| run["state"] == "awaiting_approval")
    });
    assert!(waiting["approval"]["reasons"][0].is_string(), "{waiting:#}");
    assert_eq!(rest.get("/orchestrator/runs?state=awaiting_approval&limit=1")["runs"][0]["id"], run["id"]);
    assert_eq!(rest.get(&format!("{at}/plan"))["plan"]["service"], "web");
    let patch = rest.send("GET", &format!("{at}/artifacts/patch.diff"), &[], b"");
    assert!(patch.status == 200 && patch.body.contains("PyYAML"), "{}", patch.body);
    let wrong = rest.problem("POST", &format!("{at}/approvals"), &json!({"decision": "perhaps"}));
    assert_eq!(wrong, (400, "invalid_argument".to_owned()));
    let decision = json!({"decision": "reject", "reason": "not today"});
    let rejected = rest.done("POST", &format!("{at}/approvals"), &decision, 200);
    assert_eq!(
        (&rejected["state"], &rejected["approval"]["comment"]),
        (&json!("rejected"), &json!("not today"))
    );
    assert_eq!(
        rest.problem("POST", &format!("{at}/approvals"), &decision),
        (409, "not_awaiting_approval".to_owned())
    );
}
