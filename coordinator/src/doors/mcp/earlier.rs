//! The tools of the server that came before (CodeGen-MCP) by their names, for hosts that were set up with it. What runs is
//! answered with a task, whose result is asked for. Dots in names are refused by some hosts: only there with `mcp_compat`.

use cooper_common::{
    clock,
    error::{Error, Result},
    limits,
};
use cooper_proto::v1::{self, task_spec::Kind};
use rmcp::model::ContentBlock;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    artifacts,
    call::{Call, said},
    executions::{self, Execution, Status},
    files,
    tool::{READS, REPLACES, RUNS, Reply, Tool},
};

/// Ids of writes: they are done when they are answered, and have no task.
const WRITTEN: &str = "file:";

pub fn tools() -> Vec<Tool> {
    vec![
        Tool::new("echo", READS, "Answer with the message.", echo),
        Tool::new("fs.read", READS, "Read a text file of the workspace.", read),
        Tool::new("fs.write", REPLACES, "Write a text file of the workspace.", write),
        Tool::new("fs.list", READS, "List a directory of the workspace.", list),
        Tool::new(
            "run.python",
            RUNS,
            "Run Python code, or a file of the workspace. Answers with a task_id: see task.get_result.",
            python,
        ),
        Tool::new(
            "pkg.install",
            RUNS,
            "Install Python packages, with blanks between them. Answers with a task_id: see task.get_result.",
            install,
        ),
        Tool::new("task.get_status", READS, "Whether a task is queued, running or has ended.", status),
        Tool::new("task.get_result", READS, "Output and exit code of a task, as far as it is.", result),
        Tool::new("artifact.get", READS, "Read an artifact, by its id.", artifact),
    ]
}

#[derive(Deserialize, JsonSchema)]
struct Echo {
    message: String,
}

#[derive(Deserialize, JsonSchema)]
struct Path {
    path: String,
}

#[derive(Deserialize, JsonSchema)]
struct Directory {
    path: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
struct Write {
    path: String,
    #[serde(alias = "contents")]
    content: String,
}

#[derive(Deserialize, JsonSchema)]
struct Python {
    code: Option<String>,
    /// Instead of `code`: a file of the workspace.
    file: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
struct Install {
    /// With blanks between them.
    packages: String,
}

#[derive(Deserialize, JsonSchema)]
struct TaskOf {
    task_id: String,
}

#[derive(Deserialize, JsonSchema)]
struct ArtifactOf {
    artifact_id: String,
}

#[derive(Serialize, JsonSchema)]
struct Text {
    text: String,
}
impl Reply for Text {
    fn content(&self) -> Vec<ContentBlock> {
        vec![ContentBlock::text(&self.text)]
    }
}

#[derive(Serialize, JsonSchema)]
struct Names {
    files: Vec<String>,
}
impl Reply for Names {
    fn content(&self) -> Vec<ContentBlock> {
        vec![ContentBlock::text(self.files.join("\n"))]
    }
}

#[derive(Serialize, JsonSchema)]
struct Queued {
    task_id: String,
    status: &'static str,
    session_id: String,
    /// Grows from task to task.
    sequence: i64,
    message: String,
    created_at: i64,
}
impl Reply for Queued {}

#[derive(Serialize, JsonSchema)]
struct Told {
    task_id: String,
    /// queued, running, completed, failed, timeout or cancelled.
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    output: String,
    error: String,
    /// Names of artifacts.
    artifacts: Vec<String>,
}
impl Reply for Told {}

async fn echo(_: Call, asked: Echo) -> Result<Text> {
    Ok(Text { text: asked.message })
}

async fn read(call: Call, asked: Path) -> Result<Text> {
    let place = call.place(None).await?;
    let bytes = files::whole(&call, &place.session_id, &asked.path, limits::mcp::READ_BYTES_MAX).await?;
    Ok(Text { text: String::from_utf8_lossy(&bytes).into_owned() })
}

async fn write(call: Call, asked: Write) -> Result<Queued> {
    let place = call.place(None).await?;
    let header = v1::WriteFileHeader {
        session_id: place.session_id.clone(),
        path: asked.path,
        create_dirs: true,
        ..Default::default()
    };
    let stat = files::put(&call, header, asked.content.as_bytes()).await?;
    let at = clock::wall_ms();
    Ok(Queued {
        task_id: format!("{WRITTEN}{}", stat.path),
        status: "completed",
        session_id: place.session_id,
        sequence: at,
        message: format!("{} bytes are written", stat.size_bytes),
        created_at: at,
    })
}

async fn list(call: Call, asked: Directory) -> Result<Names> {
    let request = v1::ListFilesRequest {
        session_id: call.place(None).await?.session_id,
        path: asked.path.unwrap_or_default(),
        limit: limits::mcp::LISTED_MAX,
        ..Default::default()
    };
    let listed = call.sessions().list_files(call.by(request)).await.map_err(said)?.into_inner();
    let name = |file: v1::FileStat| if file.kind == "dir" { format!("{}/", file.path) } else { file.path };
    Ok(Names { files: listed.files.into_iter().map(name).collect() })
}

async fn python(call: Call, asked: Python) -> Result<Queued> {
    let session_id = call.place(None).await?.session_id;
    let (code, filename) = executions::source(&call, &session_id, asked.code, asked.file).await?;
    let spec = v1::PythonSpec { code, filename, ..Default::default() };
    queue(&call, session_id, Kind::Python(spec)).await
}

async fn install(call: Call, asked: Install) -> Result<Queued> {
    let session_id = call.place(None).await?.session_id;
    let packages = asked.packages.split_whitespace().map(str::to_owned).collect();
    let spec = v1::InstallSpec { packages, ..Default::default() };
    queue(&call, session_id, Kind::Install(spec)).await
}

async fn queue(call: &Call, session_id: String, kind: Kind) -> Result<Queued> {
    let spec = v1::TaskSpec { kind: Some(kind), session_id: session_id.clone(), ..Default::default() };
    let submit = v1::SubmitTaskRequest { spec: Some(spec), ..Default::default() };
    let task = call.tasks().submit_task(call.by(submit)).await.map_err(said)?.into_inner();
    let at = clock::wall_ms();
    let message = format!("ask task.get_result for {}", task.id);
    Ok(Queued { task_id: task.id, status: "queued", session_id, sequence: at, message, created_at: at })
}

async fn status(call: Call, asked: TaskOf) -> Result<Told> {
    let told = result(call, asked).await?;
    Ok(Told { output: String::new(), error: String::new(), ..told })
}

async fn result(call: Call, asked: TaskOf) -> Result<Told> {
    if asked.task_id.starts_with(WRITTEN) {
        let (output, error) = (String::new(), String::new());
        let task_id = asked.task_id;
        return Ok(Told {
            task_id,
            status: "completed",
            exit_code: Some(0),
            output,
            error,
            artifacts: Vec::new(),
        });
    }
    let Execution { exec_id, status, exit_code, stdout, stderr, result, error, artifacts, .. } =
        executions::look(&call, asked.task_id).await?;
    let status = match status {
        Status::Queued => "queued",
        Status::Running => "running",
        Status::Ok => "completed",
        Status::Timeout => "timeout",
        Status::Cancelled => "cancelled",
        Status::Error | Status::Oom | Status::Killed | Status::Lost => "failed",
    };
    let error = match error {
        Some(error) => error.traceback.unwrap_or_else(|| format!("{}: {}", error.name, error.message)),
        None => stderr,
    };
    Ok(Told {
        task_id: exec_id,
        status,
        exit_code,
        output: stdout + &result.unwrap_or_default(),
        error,
        artifacts: artifacts.into_iter().map(|kept| kept.name).collect(),
    })
}

async fn artifact(call: Call, asked: ArtifactOf) -> Result<Text> {
    let most = limits::mcp::READ_BYTES_MAX;
    let request = v1::ReadArtifactRequest { artifact_id: asked.artifact_id, ..Default::default() };
    let (_, bytes) = artifacts::read(&call, request, most).await?;
    match String::from_utf8(bytes) {
        Ok(text) if text.len() <= most => Ok(Text { text }),
        _ => Err(Error::invalid("the artifact is no text, or too long for this name")
            .with_hint("use artifact_get, which takes images, bytes and parts")),
    }
}
