//! Claims about following, against a coordinator that does as each test wants.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use cooper_proto::v1::{self, Output, TaskState, tasks_server};
use tokio_stream::{Stream as Events, wrappers::TcpListenerStream};
use tonic::{Request, Response, Status};

use super::*;

type Item = Result<ExecuteResponse, Status>;

/// What was asked, and what to answer, call by call.
#[derive(Clone, Default)]
struct Stub(Arc<Mutex<Script>>);

#[derive(Default)]
struct Script {
    answers: VecDeque<Vec<Item>>,
    asked: Vec<String>,
}

impl Stub {
    fn next(&self, asked: String) -> Result<Response<Box<dyn Events<Item = Item> + Send + Unpin>>, Status> {
        let mut script = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        script.asked.push(asked);
        let items = script.answers.pop_front().ok_or_else(|| Status::internal("the script is over"))?;
        Ok(Response::new(Box::new(tokio_stream::iter(items))))
    }
    fn asked(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).asked.clone()
    }
}

#[tonic::async_trait]
impl tasks_server::Tasks for Stub {
    type ExecuteStream = Box<dyn Events<Item = Item> + Send + Unpin>;
    type FollowStream = Box<dyn Events<Item = Item> + Send + Unpin>;
    type SubmitTasksStream = tokio_stream::Empty<Result<v1::SubmitTasksResponse, Status>>;
    type WatchTasksStream = tokio_stream::Empty<Result<v1::WatchTasksResponse, Status>>;

    async fn execute(&self, r: Request<SubmitTaskRequest>) -> Result<Response<Self::ExecuteStream>, Status> {
        self.next(format!("execute {}", r.into_inner().idempotency_key))
    }
    async fn follow(&self, r: Request<FollowRequest>) -> Result<Response<Self::FollowStream>, Status> {
        let request = r.into_inner();
        let FollowRequest { task_id, stdout_offset, stderr_offset, attempts_used } = request;
        self.next(format!("follow {task_id} {stdout_offset} {stderr_offset} of {attempts_used}"))
    }
    async fn submit_task(&self, _: Request<SubmitTaskRequest>) -> Result<Response<Task>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn submit_tasks(
        &self,
        _: Request<Streaming<v1::SubmitTasksRequest>>,
    ) -> Result<Response<Self::SubmitTasksStream>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn watch_tasks(
        &self,
        _: Request<v1::WatchTasksRequest>,
    ) -> Result<Response<Self::WatchTasksStream>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn get_task(&self, _: Request<v1::GetTaskRequest>) -> Result<Response<Task>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn list_tasks(
        &self,
        _: Request<v1::ListTasksRequest>,
    ) -> Result<Response<v1::ListTasksResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn cancel_task(&self, _: Request<CancelTaskRequest>) -> Result<Response<Task>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn explain_task(
        &self,
        _: Request<v1::ExplainTaskRequest>,
    ) -> Result<Response<v1::ExplainTaskResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn requeue_task(&self, _: Request<v1::RequeueTaskRequest>) -> Result<Response<Task>, Status> {
        Err(Status::unimplemented(""))
    }
}

fn accepted() -> Item {
    Ok(ExecuteResponse { event: Some(Event::Accepted(Task { id: "tsk_1".to_owned(), ..Task::default() })) })
}
fn output(stream: Stream, offset: u64, data: &'static [u8]) -> Item {
    let output = Output { stream: stream.into(), offset, data: data.into() };
    Ok(ExecuteResponse { event: Some(Event::Output(output)) })
}
fn ended() -> Item {
    let task = Task { id: "tsk_1".to_owned(), state: TaskState::Succeeded.into(), ..Task::default() };
    Ok(ExecuteResponse { event: Some(Event::Ended(task)) })
}
fn cut() -> Item {
    Err(Status::unavailable("going down"))
}

#[derive(Default)]
struct Got {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}
impl Sink for Got {
    fn write(&mut self, stream: Stream, data: &[u8]) -> Result<()> {
        if stream == Stream::Stderr { &mut self.stderr } else { &mut self.stdout }.extend_from_slice(data);
        Ok(())
    }
    fn restarted(&mut self, _: u32) {
        *self = Self::default();
    }
}

async fn run(answers: Vec<Vec<Item>>) -> (Result<Task>, Got, Vec<String>) {
    let stub = Stub::default();
    stub.0.lock().unwrap_or_else(PoisonError::into_inner).answers = answers.into();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("its address"));
    let server =
        tonic::transport::Server::builder().add_service(tasks_server::TasksServer::new(stub.clone()));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let cluster = Cluster::for_tests(url);
    let mut got = Got::default();
    let end = Follow::new_task(&cluster, TaskSpec::default(), &Schedule::default())
        .expect("made")
        .run(&mut got)
        .await;
    (end, got, stub.asked())
}

#[tokio::test]
async fn every_byte_arrives_once_across_cuts() {
    let (end, got, asked) = run(vec![
        vec![accepted(), output(Stream::Stdout, 0, b"abc"), output(Stream::Stderr, 0, b"X"), cut()],
        vec![accepted(), output(Stream::Stdout, 1, b"bcd"), output(Stream::Stdout, 9, b"gap")],
        vec![accepted(), output(Stream::Stdout, 4, b"ef"), output(Stream::Stderr, 0, b"XY"), ended()],
    ])
    .await;
    assert_eq!(end.expect("an end").state(), TaskState::Succeeded);
    assert_eq!((got.stdout.as_slice(), got.stderr.as_slice()), (&b"abcdef"[..], &b"XY"[..]));
    assert_eq!(asked[1..], ["follow tsk_1 3 1 of 0", "follow tsk_1 4 1 of 0"]);
}

#[tokio::test]
async fn output_of_an_attempt_that_another_follows_does_not_count() {
    let restarted = || {
        let restarted = v1::Restarted { task_id: "tsk_1".to_owned(), attempts_used: 1 };
        Ok(ExecuteResponse { event: Some(Event::Restarted(restarted)) })
    };
    let (end, got, asked) = run(vec![
        vec![
            accepted(),
            output(Stream::Stdout, 0, b"half"),
            restarted(),
            output(Stream::Stdout, 0, b"a"),
            cut(),
        ],
        vec![accepted(), output(Stream::Stdout, 1, b"ll"), ended()],
    ])
    .await;
    assert!(end.is_ok());
    assert_eq!(got.stdout, b"all");
    assert_eq!(asked[1], "follow tsk_1 1 0 of 1");
}

#[tokio::test]
async fn a_submit_cut_before_it_was_durable_is_repeated_under_the_same_key() {
    let (end, _, asked) = run(vec![vec![cut()], vec![], vec![accepted(), ended()]]).await;
    assert!(end.is_ok());
    assert_eq!(asked.len(), 3);
    assert!(asked[0].starts_with("execute cli-") && asked.iter().all(|key| *key == asked[0]), "{asked:?}");
}

#[tokio::test]
async fn a_refusal_is_final() {
    let (end, _, asked) = run(vec![vec![Err(Status::invalid_argument("no"))], vec![ended()]]).await;
    assert!(matches!(end, Err(Failure::Error(report)) if report.code == "invalid_argument"));
    assert_eq!(asked.len(), 1);
}

#[tokio::test]
async fn a_coordinator_that_was_never_there_is_reported_at_once() {
    let cluster = Cluster::for_tests("http://127.0.0.1:1".to_owned());
    let end = Follow::new_task(&cluster, TaskSpec::default(), &Schedule::default())
        .expect("made")
        .run(&mut Got::default())
        .await;
    let Err(Failure::Error(report)) = end else { panic!("must fail") };
    assert_eq!(report.code, "unavailable");
    assert!(report.message.contains("connection refused") && report.hint.contains("cooper up"), "{report:?}");
}
