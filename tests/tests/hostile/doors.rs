//! What a session left in its workspace (`tests/hostile/doors.py`), and everything of Cooper's that opens files there: nothing
//! of that leads out of the workspace, or keeps whoever asks.

use std::time::Duration;

use cooper_proto::v1::{
    ChangeModeRequest, CopyFileRequest, CreateCheckpointRequest, DeleteFileRequest, InstallSpec,
    ListFilesRequest, ReadArchiveRequest, ReadFileRequest, ReadFileResponse, SearchFilesRequest, Session,
    StatFileRequest, SubmitTaskRequest, TaskSpec, TaskState, WriteArchiveHeader, WriteArchiveRequest,
    WriteFileHeader, WriteFileRequest, execute_response, read_file_response, task_spec::Kind,
    write_archive_request, write_file_request,
};
use cooper_tests::{grpc::Client, seconds};
use tonic::{Status, Streaming};

/// Names that lead out, each in its way, and names that are none.
const OUT: &[&str] = &[
    "../../secret",
    "../",
    "/etc/passwd",
    "to-passwd",
    "to-sibling",
    "to-directory/secret",
    "to-root/etc/passwd",
    "to-proc",
    "bits/../../../worker_id",
    "a\0b",
    "loop",
    "pipe",
];
/// How often a name is opened that is another's every time.
const RACES: usize = 150;
/// Nothing here waits for what a session does.
const ANSWER: Duration = seconds(20);

struct Doors<'a> {
    client: &'a Client,
    session: &'a Session,
    found: Vec<String>,
}

/// What was possible.
pub async fn attempts(client: &Client, session: &Session) -> Vec<String> {
    let mut doors = Doors { client, session, found: Vec::new() };
    doors.files().await;
    doors.races().await;
    doors.archives().await;
    doors.packages().await;
    doors.checkpoint().await;
    doors.found
}

impl Doors<'_> {
    fn id(&self) -> String {
        self.session.id.clone()
    }

    async fn refused<T>(&mut self, what: &str, attempt: impl Future<Output = Result<T, Status>>) {
        match tokio::time::timeout(ANSWER, attempt).await {
            Ok(Err(_)) => {}
            Ok(Ok(_)) => self.found.push(format!("{what} was possible")),
            Err(_) => self.found.push(format!("{what} does not end")),
        }
    }

    async fn files(&mut self) {
        let sessions = || self.client.sessions();
        let (mut reading, mut writing, mut session_id) = (sessions(), sessions(), self.id());
        for path in OUT.iter().map(|path| (*path).to_owned()).chain(["x".repeat(5000)]) {
            session_id = self.id();
            let what = |how: &str| format!("{how} {:.40}", path.escape_debug().to_string());
            self.refused(&what("reading"), read(&mut reading, &session_id, &path)).await;
            // A link that is replaced is the session's own; a name beneath it is not.
            if path.contains('/') || path.len() > 255 || path.contains('\0') {
                self.refused(&what("writing"), write(&mut writing, &session_id, &path)).await;
            }
            let request =
                ListFilesRequest { session_id: session_id.clone(), path: path.clone(), ..Default::default() };
            self.refused(&what("listing"), sessions().list_files(request)).await;
            let request = ReadArchiveRequest {
                session_id: session_id.clone(),
                path: path.clone(),
                ..Default::default()
            };
            let archive = async {
                let mut sent = sessions().read_archive(request).await?.into_inner();
                collected(&mut sent).await
            };
            self.refused(&what("packing"), archive).await;
            if path.contains('/') {
                let request = DeleteFileRequest {
                    session_id: session_id.clone(),
                    path: path.clone(),
                    ..Default::default()
                };
                self.refused(&what("removing"), sessions().delete_file(request)).await;
                let request =
                    ChangeModeRequest { session_id: session_id.clone(), path: path.clone(), mode: 0o777 };
                self.refused(&what("the mode of"), sessions().change_mode(request)).await;
                let request = CopyFileRequest {
                    session_id: session_id.clone(),
                    from: path.clone(),
                    to: "copied".to_owned(),
                    ..Default::default()
                };
                self.refused(&what("copying"), sessions().copy_file(request)).await;
            }
            let request = StatFileRequest {
                session_id: session_id.clone(),
                path: path.clone(),
                follow: true,
                ..Default::default()
            };
            if path != "pipe" {
                self.refused(&what("following"), sessions().stat_file(request)).await;
            }
        }
        // What is there is listed whatever it is called, and searched without waiting for a pipe.
        let request = ListFilesRequest { session_id: session_id.clone(), ..Default::default() };
        if !matches!(tokio::time::timeout(ANSWER, sessions().list_files(request)).await, Ok(Ok(_))) {
            self.found.push("the workspace cannot be listed".to_owned());
        }
        let request = SearchFilesRequest { session_id, pattern: "root:".to_owned(), ..Default::default() };
        match tokio::time::timeout(ANSWER, sessions().search_files(request)).await {
            Ok(Ok(answer)) => {
                let found = answer.into_inner().matches.into_iter().map(|found| found.path);
                self.found.extend(
                    found.filter(|path| path.starts_with("to-")).map(|path| format!("searched {path}")),
                );
            }
            _ => self.found.push("the workspace cannot be searched".to_owned()),
        }
    }

    async fn races(&mut self) {
        let (mut sessions, mut won) = (self.client.sessions(), 0);
        for _ in 0..RACES {
            let id = self.id();
            match tokio::time::timeout(ANSWER, read(&mut sessions, &id, "swap")).await {
                Ok(Ok(content)) if content != b"mine" => {
                    self.found.push(format!("a race: {:.60}", String::from_utf8_lossy(&content)));
                }
                Ok(outcome) => won += usize::from(outcome.is_ok()),
                Err(_) => self.found.push("a read in a race does not end".to_owned()),
            }
        }
        if won == 0 || won == RACES {
            self.found.push(format!("of {RACES} reads {won} found the session's own file: no race"));
        }
    }

    /// Unpacks what it finds; whether anything came out of the workspace is seen by the neighbour.
    async fn archives(&mut self) {
        let mut sessions = self.client.sessions();
        let kinds = ["up", "absolute", "link", "root", "hard", "device", "twice"];
        let names = kinds.map(|kind| format!("slip-{kind}.tar"));
        for name in names.iter().map(String::as_str).chain(["slip-bomb.zip", "good.tar"]) {
            let id = self.id();
            let Ok(content) = read(&mut sessions, &id, name).await else {
                self.found.push(format!("{name} is not there"));
                continue;
            };
            let header =
                WriteArchiveHeader { session_id: id, path: format!("in/{name}"), ..Default::default() };
            let mut parts =
                vec![WriteArchiveRequest { part: Some(write_archive_request::Part::Header(header)) }];
            parts.extend(content.chunks(32 << 10).map(|piece| WriteArchiveRequest {
                part: Some(write_archive_request::Part::Data(piece.to_vec())),
            }));
            let sent = sessions.write_archive(tokio_stream::iter(parts));
            match tokio::time::timeout(ANSWER, sent).await {
                // A device is left out, and what is beneath its name is a file in a directory.
                Ok(Ok(_)) if !["slip-device.tar", "good.tar"].contains(&name) => {
                    self.found.push(format!("{name} was unpacked"))
                }
                Ok(Err(error)) if name == "good.tar" => self.found.push(format!("{name}: {error}")),
                Ok(_) => {}
                Err(_) => self.found.push(format!("{name}: no answer")),
            }
        }
    }

    async fn packages(&mut self) {
        for wheel in ["./slip-1.0-py3-none-any.whl", "./evil-1.0-py3-none-any.whl"] {
            let install = InstallSpec { packages: vec![wheel.to_owned()], ..Default::default() };
            let spec = TaskSpec {
                kind: Some(Kind::Install(install)),
                session_id: self.id(),
                timeout_ms: 60_000,
                ..Default::default()
            };
            let request = SubmitTaskRequest { spec: Some(spec), ..Default::default() };
            let Ok(stream) = self.client.tasks().execute(request).await else { continue };
            let mut stream = stream.into_inner();
            let end = async {
                loop {
                    match stream.message().await {
                        Ok(Some(message)) => {
                            if let Some(execute_response::Event::Ended(task)) = message.event {
                                break Some(task);
                            }
                        }
                        _ => break None,
                    }
                }
            };
            match tokio::time::timeout(seconds(80), end).await {
                // What would lie beside its place may be left out of the one. The other is a package like any: what it runs, it
                // runs in the session.
                Ok(Some(task)) if task.state() == TaskState::Succeeded || wheel.contains("slip") => {}
                ended => self.found.push(format!("{wheel}: {ended:?}")),
            }
        }
    }

    async fn checkpoint(&mut self) {
        let request = CreateCheckpointRequest { session_id: self.id(), globals: true, ..Default::default() };
        let mut checkpoints = self.client.checkpoints();
        let made = checkpoints.create_checkpoint(request);
        if tokio::time::timeout(seconds(40), made).await.is_err() {
            self.found.push("the checkpoint does not end".to_owned());
        }
    }
}

type Sessions = cooper_proto::v1::sessions_client::SessionsClient<cooper_tests::grpc::Service>;

async fn read(sessions: &mut Sessions, session: &str, path: &str) -> Result<Vec<u8>, Status> {
    let request =
        ReadFileRequest { session_id: session.to_owned(), path: path.to_owned(), ..Default::default() };
    let mut sent = sessions.read_file(request).await?.into_inner();
    collected(&mut sent).await
}

async fn collected(sent: &mut Streaming<ReadFileResponse>) -> Result<Vec<u8>, Status> {
    let mut content = Vec::new();
    while let Some(message) = sent.message().await? {
        if let Some(read_file_response::Part::Data(data)) = message.part {
            content.extend(data);
        }
    }
    Ok(content)
}

async fn write(sessions: &mut Sessions, session: &str, path: &str) -> Result<(), Status> {
    use write_file_request::Part;
    let header =
        WriteFileHeader { session_id: session.to_owned(), path: path.to_owned(), ..Default::default() };
    let parts = [Part::Header(header), Part::Data(b"slip".to_vec())];
    let parts = parts.map(|part| WriteFileRequest { part: Some(part) });
    sessions.write_file(tokio_stream::iter(parts)).await.map(drop)
}
