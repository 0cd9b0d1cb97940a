//! MCP as hosts use it: the official SDKs as they are, on the configurations that the README shows.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Stdio},
};

use cooper_tests::{
    Cluster, Finished, Running, Scratch, Setup, binary, cluster::shared_compose, docker, http, processes,
    program::command, seconds, shared, venv, wait::until_true,
};
use serde_json::{Value, json};

use super::{
    approvals::{protected, waits},
    packages::wheels,
    repair::{patient, text},
};

/// What works over any transport.
const SCENARIOS: [&str; 10] =
    ["state", "apart", "images", "progress", "cancels", "long", "files", "artifacts", "sessions", "errors"];

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/mcp")
}

fn page(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)).expect("a page")
}

/// A host's configuration as the README has it, with the names of this place.
fn configuration(about: &str, cluster: &Cluster, token: &str) -> PathBuf {
    let readme = page("README.md");
    let mut blocks = readme.split("```json\n").skip(1).filter_map(|rest| rest.split("```").next());
    let block = blocks.find(|block| block.contains("mcpServers") && block.contains(about));
    let block = block.unwrap_or_else(|| panic!("the README has a configuration with {about}"));
    let here = block
        .replace("\"cooper\",", &format!("{:?},", binary()))
        .replace("/home/you/.cooper", &cluster.data.to_string_lossy())
        .replace("http://127.0.0.1:50051", &cluster.url)
        .replace("TOKEN", token);
    let server = &serde_json::from_str::<Value>(&here).expect("JSON")["mcpServers"]["cooper"];
    assert!(server["command"].is_string() || server["headers"].is_object(), "{here}");
    let name = format!("{}-{:08x}.json", about.trim_matches('"'), rand::random::<u32>());
    cluster.scratch.write(&name, &here)
}

/// Runs scenarios of `client.py`; each one that works is a line.
fn python(configuration: &Path, mode: &str, scenarios: &[&str], env: &[(&str, &str)]) -> Finished {
    let scripts = scripts();
    let wanted = fs::read_to_string(scripts.join("requirements.txt")).expect("the requirements");
    let mut client = command(venv::python("mcp", &wanted));
    client.arg(scripts.join("client.py")).arg(configuration).arg(mode).args(scenarios);
    client.env("PYTHONDONTWRITEBYTECODE", "1").envs(env.iter().copied());
    let done = Running::start(client, b"").finish(seconds(240)).expect(0);
    let works = done.out().lines().filter(|line| line.starts_with("works: ")).count();
    assert_eq!(works, scenarios.len(), "{done}");
    done
}

#[test]
fn the_python_sdk_does_everything_by_http_and_by_standard_input_with_connections_and_without() {
    let wheels = wheels(&[("staves", "1.0")]);
    let cluster = Setup::python()
        .env("PIP_FIND_LINKS", &wheels.path().to_string_lossy())
        .env("PIP_NO_INDEX", "1")
        .env("PIP_CONFIG_FILE", "/dev/null")
        .start();
    let stranger = cluster.token("tenant-b", "client");
    let foreign = cooper_tests::Cooper::with_token(&cluster.url, &stranger).session();
    let env = [("FOREIGN_SESSION", foreign.as_str())];
    let token = cluster.admin_token();
    for (about, mode) in
        [("\"http\"", "legacy"), ("\"http\"", "auto"), ("\"command\"", "legacy"), ("\"command\"", "auto")]
    {
        let mut scenarios = [&["tools"], &SCENARIOS[..], &["packages"]].concat();
        // Without connections over HTTP nothing tells that a client has gone.
        if (about, mode) != ("\"http\"", "auto") {
            scenarios.push("ends");
        }
        python(&configuration(about, &cluster, &token), mode, &scenarios, &env);
    }
}

#[test]
fn the_typescript_sdk_does_the_same() {
    let cluster = shared();
    // Modules are looked for beside the script.
    let made = scripts().join("../../../target/tools/mcp-typescript");
    fs::create_dir_all(&made).expect("a directory");
    for file in ["package.json", "client.mjs"] {
        fs::copy(scripts().join(file), made.join(file)).expect("copied");
    }
    if !made.join("node_modules/@modelcontextprotocol/sdk/package.json").exists() {
        let mut npm = command("npm");
        npm.args(["install", "--silent", "--no-audit", "--no-fund", "--no-package-lock"]).current_dir(&made);
        Running::start(npm, b"").finish(seconds(240)).expect(0);
    }
    let token = cluster.admin_token();
    for about in ["\"http\"", "\"command\""] {
        let mut node = command("node");
        node.arg(made.join("client.mjs")).arg(configuration(about, &cluster, &token));
        let done = Running::start(node, b"").finish(seconds(120)).expect(0);
        assert_eq!(done.out().lines().filter(|line| line.starts_with("works: ")).count(), 8, "{done}");
    }
}

/// Names in the first column of the table of tools.
fn documented() -> BTreeSet<String> {
    let page = page("docs/mcp.md");
    let (_, tools) = page.split_once("\n## Tools\n").expect("a table of tools");
    let rows = tools.lines().take_while(|line| !line.starts_with("## "));
    rows.filter_map(|row| Some(row.strip_prefix("| `")?.split_once('`')?.0.to_owned())).collect()
}

fn names(done: &Finished) -> BTreeSet<String> {
    let line = done.out().lines().next().map(str::to_owned).expect("a list of names");
    serde_json::from_str(&line).expect("JSON")
}

#[test]
fn the_page_lists_the_tools_there_are_and_earlier_names_answer_where_the_setting_says_so() {
    let token = |cluster: &Cluster| cluster.admin_token();
    let plain = shared();
    let listed =
        names(&python(&configuration("\"http\"", &plain, &token(&plain)), "legacy", &["tools"], &[]));
    assert_eq!(listed, documented());
    let earlier = Setup::python().env("COOPER_MCP_COMPAT", "codegen").start();
    let configuration = configuration("\"http\"", &earlier, &token(&earlier));
    let more = names(&python(&configuration, "legacy", &["tools", "earlier"], &[]));
    let added: Vec<_> = more.difference(&listed).map(String::as_str).collect();
    assert_eq!(
        added,
        [
            "artifact.get",
            "echo",
            "fs.list",
            "fs.read",
            "fs.write",
            "pkg.install",
            "run.python",
            "task.get_result",
            "task.get_status"
        ]
    );
    let page = page("docs/mcp.md");
    assert!(added.iter().all(|name| page.contains(&format!("`{name}`"))), "{added:?}");
}

#[test]
fn a_log_is_diagnosed_and_only_operators_decide_about_plans() {
    if !docker::wanted("a_log_is_diagnosed_and_only_operators_decide_about_plans") {
        return;
    }
    let cluster = shared_compose();
    let cooper = patient(cluster.cooper());
    let stack = protected("mcp");
    let run = waits(&cooper, &stack);
    let of = |scope: &str| {
        let made = cooper.json(["token", "create", "--scope", scope]);
        configuration("\"http\"", &cluster, text(&made, "secret"))
    };
    let (client, operator) = (of("client"), of("operator"));
    let env = |may| [("RUN", text(&run, "run_id")), ("MAY_DECIDE", may)];
    python(&client, "legacy", &["waits"], &env("no"));
    python(&operator, "legacy", &["waits"], &env("yes"));
    // Now nothing has the service any more.
    python(&client, "legacy", &["repairs"], &[("STACK", text(&run, "stack"))]);
}

/// `cooper mcp`, spoken to line by line.
struct Spoken {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    /// Everything it said.
    said: Vec<String>,
}

impl Spoken {
    fn start(data: &Path) -> Self {
        let mut mcp = command(binary());
        mcp.arg("mcp").arg("--data").arg(data).env("COOPER_COMPOSE", "off");
        let mut child = mcp
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        let stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        Self { stdin: child.stdin.take(), stdout, child, said: Vec::new() }
    }

    fn say(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("it is open");
        writeln!(stdin, "{line}").and_then(|()| stdin.flush()).expect("it reads");
    }

    fn hear(&mut self) -> Value {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("it says something");
        self.said.push(line.clone());
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    fn begin(&mut self) -> Value {
        let about = json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}});
        self.say(&json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": about}).to_string());
        let begun = self.hear();
        self.say(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}).to_string());
        begun
    }

    fn run(&mut self, id: u64, code: &str) -> Value {
        let answer = self.ask(id, code);
        let structured = answer["result"]["structuredContent"].clone();
        assert!(structured.is_object(), "{answer}");
        structured
    }

    fn ask(&mut self, id: u64, code: &str) -> Value {
        let call = json!({"name": "run_python", "arguments": {"code": code}});
        self.say(&json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": call}).to_string());
        let answer = self.hear();
        assert_eq!(answer["id"], id, "{answer}");
        answer
    }

    /// Closes its input, and waits for its end; what was still said is messages, too.
    fn end(mut self) -> i32 {
        drop(self.stdin.take());
        let mut rest = String::new();
        while self.stdout.read_line(&mut rest).expect("its output") > 0 {
            serde_json::from_str::<Value>(&rest).unwrap_or_else(|error| panic!("{error}: {rest:?}"));
            rest.clear();
        }
        self.child.wait().expect("it ends").code().expect("by itself")
    }
}

#[test]
fn standard_output_holds_messages_alone_and_a_cluster_that_was_started_ends_with_its_host() {
    let scratch = Scratch::new("mcp-embedded");
    let data = scratch.join("data");
    let mut spoken = Spoken::start(&data);
    let begun = spoken.begin();
    assert_eq!(begun["result"]["serverInfo"]["name"], "cooper", "{begun}");
    assert!(!processes::of(&data).is_empty(), "a cluster was started");
    spoken.say("this is no JSON");
    assert_eq!(spoken.hear()["error"]["code"], -32700);
    spoken.say("[]");
    assert_eq!(spoken.hear()["error"]["code"], -32600);
    spoken.say(r#"{"jsonrpc": "2.0", "id": "x", "method": "no/such/method"}"#);
    let unknown = spoken.hear();
    assert_eq!((&unknown["id"], &unknown["error"]["code"]), (&json!("x"), &json!(-32601)), "{unknown}");
    assert_eq!(spoken.run(1, "x = 1")["status"], "ok");
    assert_eq!(spoken.run(2, "x + 1")["result"], "2");
    assert_eq!(spoken.end(), 0);
    assert!(processes::of(&data).is_empty(), "{:?}", processes::of(&data));

    // Nor does it leave anything when it is killed.
    let mut spoken = Spoken::start(&data);
    spoken.begin();
    spoken.child.kill().expect("it runs");
    spoken.child.wait().expect("it has ended");
    until_true("nothing to be left", seconds(30), || processes::of(&data).is_empty());
}

#[test]
fn a_coordinator_that_is_started_anew_is_found_again_with_the_session_of_the_connection() {
    let cluster = Cluster::start();
    let mut spoken = Spoken::start(&cluster.data);
    spoken.begin();
    assert_eq!(spoken.run(1, "x = 41")["status"], "ok");
    cluster.kill("coordinator");
    // What is asked while the connection breaks may have run: it is answered with an error, and not asked again by itself.
    until_true("a coordinator", seconds(30), || {
        http::try_get(&cluster.url, "/ready", Some(&cluster.admin_token()))
            .is_ok_and(|ready| ready.status == 200)
    });
    let cut = spoken.ask(2, "x");
    assert!(cut["error"].is_null() || cut["error"]["message"].to_string().contains("unavailable"), "{cut}");
    let after = spoken.run(3, "x + 1");
    assert_eq!((&after["result"], &after["session_created"]), (&json!("42"), &Value::Null), "{after}");
    assert_eq!(spoken.end(), 0);
    until_true("its session to end with it", seconds(30), || {
        cluster.cooper().json(["session", "list"])["sessions"] == json!([])
    });
}

/// A request of MCP over HTTP: status, head and the message that it was answered with.
fn post(cluster: &Cluster, token: &str, headers: &[(&str, &str)], body: &str) -> (u16, String, Value) {
    let bearer = format!("Bearer {token}");
    let own = [
        ("authorization", bearer.as_str()),
        ("content-type", "application/json"),
        ("accept", "application/json, text/event-stream"),
    ];
    let response = http::send(&cluster.url, "POST", "/mcp", &[&own, headers].concat(), body.as_bytes());
    let response = response.expect("an answer");
    let events = response.body.lines().filter_map(|line| line.strip_prefix("data:"));
    let message = events.filter_map(|data| serde_json::from_str(data).ok()).next_back();
    let message = message.unwrap_or_else(|| serde_json::from_str(&response.body).unwrap_or_default());
    (response.status, response.head, message)
}

const INITIALIZE: &str = r#"{"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
    "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}}"#;

#[test]
fn what_is_no_message_is_told_so_and_a_connection_is_that_of_its_token() {
    let cluster = shared();
    let token = cluster.admin_token();
    for (body, status, code) in [
        ("no JSON", 400, -32700),
        ("[]", 400, -32600),
        (r#"{"id": 1, "method": "initialize"}"#, 400, -32600),
        (&"x".repeat(9 << 20), 413, -32600),
    ] {
        let (answered, _, message) = post(&cluster, &token, &[], body);
        assert_eq!((answered, &message["error"]["code"]), (status, &json!(code)), "{message}");
        assert!(message["error"]["message"].as_str().is_some_and(|what| what.len() > 10), "{message}");
    }
    let (status, _, message) = post(&cluster, "wrong", &[], INITIALIZE);
    assert_eq!((status, &message["code"]), (401, &json!("unauthenticated")), "{message}");

    let (status, head, _) = post(&cluster, &token, &[], INITIALIZE);
    assert_eq!(status, 200, "{head}");
    let lines = head.lines().map(str::to_lowercase);
    let session = lines.filter_map(|line| line.strip_prefix("mcp-session-id: ").map(str::to_owned)).next();
    let session = session.expect("a connection");
    let list = r#"{"jsonrpc": "2.0", "id": 2, "method": "tools/list"}"#;
    let of = [("mcp-session-id", session.as_str())];
    let ready = r#"{"jsonrpc": "2.0", "method": "notifications/initialized"}"#;
    assert_eq!(post(&cluster, &token, &of, ready).0, 202);
    assert_eq!(post(&cluster, &token, &of, list).0, 200);
    // I10: for anybody else it is not there.
    let stranger = cluster.token("tenant-b", "admin");
    let (status, _, message) = post(&cluster, &stranger, &of, list);
    assert_eq!((status, &message["error"]["code"]), (404, &json!(-32001)), "{message}");

    // Without a connection, it has to be said which session is meant.
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    let call = json!({"name": "run_python", "arguments": {"code": "1"}, "_meta": meta});
    let call = json!({"jsonrpc": "2.0", "id": 3, "method": "tools/call", "params": call}).to_string();
    let newest =
        [("mcp-protocol-version", "2026-07-28"), ("mcp-method", "tools/call"), ("mcp-name", "run_python")];
    let (_, _, message) = post(&cluster, &token, &newest, &call);
    let said = message["result"]["content"][0]["text"].as_str().unwrap_or_default();
    assert!(message["result"]["isError"] == true && said.contains("session_create"), "{message}");
}
