//! What REST has: which method of the contract answers at which path. The rest follows from the contract.

use serde_json::{Map, Value, json};

/// One path with one verb.
#[derive(Clone, Copy)]
pub struct Route {
    pub verb: &'static str,
    /// With the names of fields in braces: what stands there is their value.
    pub path: &'static str,
    /// `Service/Method` of cooper.v1.
    pub method: &'static str,
    /// Status of success.
    pub status: u16,
    pub body: Body,
    pub answer: Answer,
    /// Field that what the path and the body say belongs into, where it is not the request itself.
    pub within: Option<&'static str>,
    /// What its query says always.
    pub query: &'static str,
}

/// What a request's body is.
#[derive(Clone, Copy)]
pub enum Body {
    /// Nothing: everything is in path and query.
    None,
    /// A JSON object of the request's fields.
    Json,
    /// The same, but fields are called as people expect them here.
    As(fn(Map<String, Value>) -> Map<String, Value>),
    /// A file: bytes, behind a header of what path and query say.
    Bytes,
}

/// What an answer is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Json,
    /// Server-sent events, one for each message.
    Events,
    /// A file: the bytes of all messages, one after the other.
    Bytes,
}

const fn get(path: &'static str, method: &'static str) -> Route {
    Route {
        verb: "GET",
        path,
        method,
        status: 200,
        body: Body::None,
        answer: Answer::Json,
        within: None,
        query: "",
    }
}

const fn post(path: &'static str, method: &'static str) -> Route {
    Route { verb: "POST", body: Body::Json, ..get(path, method) }
}

const fn put(path: &'static str, method: &'static str) -> Route {
    Route { verb: "PUT", ..post(path, method) }
}

const fn delete(path: &'static str, method: &'static str) -> Route {
    Route { verb: "DELETE", ..get(path, method) }
}

const fn events(path: &'static str, method: &'static str) -> Route {
    Route { answer: Answer::Events, ..get(path, method) }
}

const fn file(path: &'static str, method: &'static str) -> Route {
    Route { answer: Answer::Bytes, ..get(path, method) }
}

const fn created(route: Route) -> Route {
    Route { status: 201, ..route }
}

const fn accepted(route: Route) -> Route {
    Route { status: 202, ..route }
}

const RUNS: &str = "/orchestrator/runs";

/// Every path, in the order they are documented in.
pub static ROUTES: &[Route] = &[
    created(post("/sessions", "Sessions/CreateSession")),
    get("/sessions", "Sessions/ListSessions"),
    get("/sessions/{session_id}", "Sessions/GetSession"),
    Route { verb: "PATCH", ..post("/sessions/{session_id}", "Sessions/UpdateSession") },
    delete("/sessions/{session_id}", "Sessions/DestroySession"),
    accepted(Route { within: Some("spec"), ..post("/sessions/{session_id}/executions", "Tasks/SubmitTask") }),
    get("/sessions/{session_id}/executions", "Tasks/ListTasks"),
    events("/sessions/{session_id}/history", "Executions/SessionHistory"),
    get("/executions", "Tasks/ListTasks"),
    Route { query: "state=queued", ..get("/queue", "Tasks/ListTasks") },
    get("/executions/{task_id}", "Tasks/GetTask"),
    delete("/executions/{task_id}", "Tasks/CancelTask"),
    events("/executions/{task_id}/events", "Tasks/Follow"),
    get("/executions/{task_id}/output", "Executions/ReadOutput"),
    post("/executions/{task_id}/stdin", "Executions/WriteStdin"),
    post("/executions/{task_id}/signal", "Executions/SignalExecution"),
    post("/executions/{task_id}/terminal", "Executions/ResizeTerminal"),
    post("/executions/{task_id}/requeue", "Tasks/RequeueTask"),
    get("/executions/{task_id}/why", "Tasks/ExplainTask"),
    get("/sessions/{session_id}/files", "Sessions/ListFiles"),
    delete("/sessions/{session_id}/files", "Sessions/DeleteFile"),
    file("/sessions/{session_id}/files/content", "Sessions/ReadFile"),
    Route { body: Body::Bytes, ..put("/sessions/{session_id}/files/content", "Sessions/WriteFile") },
    get("/sessions/{session_id}/files/stat", "Sessions/StatFile"),
    post("/sessions/{session_id}/files/move", "Sessions/MoveFile"),
    post("/sessions/{session_id}/files/copy", "Sessions/CopyFile"),
    post("/sessions/{session_id}/files/edit", "Sessions/EditFile"),
    post("/sessions/{session_id}/files/search", "Sessions/SearchFiles"),
    post("/sessions/{session_id}/files/mode", "Sessions/ChangeMode"),
    created(post("/sessions/{session_id}/directories", "Sessions/MakeDir")),
    file("/sessions/{session_id}/archive", "Sessions/ReadArchive"),
    Route { body: Body::Bytes, ..put("/sessions/{session_id}/archive", "Sessions/WriteArchive") },
    get("/sessions/{session_id}/packages", "Sessions/ListPackages"),
    get("/sessions/{session_id}/ports", "Sessions/ListPorts"),
    get("/sessions/{session_id}/artifacts", "Runs/ListArtifacts"),
    file("/sessions/{session_id}/artifacts/{*name}", "Runs/ReadArtifact"),
    delete("/artifacts/{artifact_id}", "Runs/DeleteArtifact"),
    created(post("/sessions/{session_id}/checkpoints", "Checkpoints/CreateCheckpoint")),
    get("/checkpoints", "Checkpoints/ListCheckpoints"),
    get("/checkpoints/{checkpoint_id}", "Checkpoints/GetCheckpoint"),
    delete("/checkpoints/{checkpoint_id}", "Checkpoints/DeleteCheckpoint"),
    created(Route {
        within: Some("session"),
        ..post("/checkpoints/{checkpoint_id}/restore", "Checkpoints/RestoreCheckpoint")
    }),
    get("/templates", "Templates/ListTemplates"),
    get("/templates/{template}", "Templates/GetTemplate"),
    delete("/templates/{template}", "Templates/DeleteTemplate"),
    Route { answer: Answer::Events, ..post("/templates/{name}/build", "Templates/BuildTemplate") },
    get("/secrets", "Secrets/ListSecrets"),
    put("/secrets/{name}", "Secrets/SetSecret"),
    delete("/secrets/{name}", "Secrets/DeleteSecret"),
    accepted(Route { body: Body::As(run), ..post(RUNS, "Runs/CreateRun") }),
    get(RUNS, "Runs/ListRuns"),
    get("/orchestrator/runs/{run_id}", "Runs/GetRun"),
    get("/orchestrator/runs/{run_id}/plan", "Runs/GetPlan"),
    events("/orchestrator/runs/{run_id}/events", "Runs/WatchRun"),
    Route { body: Body::As(decision), ..post("/orchestrator/runs/{run_id}/approvals", "Runs/DecideRun") },
    post("/orchestrator/runs/{run_id}/cancel", "Runs/CancelRun"),
    post("/orchestrator/runs/{run_id}/retry", "Runs/RetryRun"),
    post("/orchestrator/runs/{run_id}/undo", "Runs/UndoRun"),
    get("/orchestrator/runs/{run_id}/artifacts", "Runs/ListArtifacts"),
    file("/orchestrator/runs/{run_id}/artifacts/{*name}", "Runs/ReadArtifact"),
    get("/orchestrator/approvals", "Runs/ListApprovals"),
    get("/orchestrator/stats", "Runs/GetRunStats"),
    get("/orchestrator/pauses", "Runs/ListPauses"),
    post("/orchestrator/pauses", "Runs/Pause"),
    delete("/orchestrator/pauses", "Runs/Resume"),
    get("/stacks/{stack}/check", "Runs/CheckStack"),
    get("/stacks", "Runs/ListStacks"),
    created(post("/stacks", "Runs/RegisterStack")),
    get("/workers", "Admin/ListWorkers"),
    post("/workers/{worker_id}/drain", "Admin/DrainWorker"),
    post("/workers/{worker_id}/undrain", "Admin/UndrainWorker"),
    get("/tokens", "Admin/ListTokens"),
    created(post("/tokens", "Admin/CreateToken")),
    delete("/tokens/{token_id}", "Admin/RevokeToken"),
    post("/tokens/{token_id}/rotate", "Admin/RotateToken"),
    get("/audit", "Admin/ListAudit"),
    get("/audit/verify", "Admin/VerifyAudit"),
    events("/audit/export", "Admin/ExportAudit"),
    events("/events", "Admin/WatchEvents"),
    get("/info", "Admin/GetInfo"),
];

/// A run by the names of whoever asks for a repair: what is repaired is its target.
fn run(mut said: Map<String, Value>) -> Map<String, Value> {
    if let Some(target) = said.remove("target_service") {
        said.insert("service".to_owned(), target);
    }
    said
}

/// A decision by its word and its reason. Who decides is whose token it is.
fn decision(mut said: Map<String, Value>) -> Map<String, Value> {
    match said.get("decision").and_then(Value::as_str) {
        Some("approve" | "approved") => drop(said.insert("approve".to_owned(), json!(true))),
        Some("reject" | "rejected") => drop(said.insert("approve".to_owned(), json!(false))),
        // What it is stays there, and is refused as no field of a decision.
        _ => return said,
    }
    said.remove("decision");
    if let Some(reason) = said.remove("reason") {
        said.insert("comment".to_owned(), reason);
    }
    said
}
