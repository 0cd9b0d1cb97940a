//! I3: what is asked twice under one key happens once.

use std::collections::BTreeSet;

use cooper_proto::v1::{
    CreateSessionRequest, DestroySessionRequest, ExecuteResponse, NoopSpec, PythonSpec, SubmitTaskRequest,
    SubmitTasksRequest, TaskSpec, execute_response::Event, task_spec::Kind,
};
use cooper_tests::{
    grpc::{Client, refusal},
    shared,
};

fn key() -> String {
    format!("test-{:032x}", rand::random::<u128>())
}

fn python(session: &str, code: &str, key: &str) -> SubmitTaskRequest {
    let kind = Some(Kind::Python(PythonSpec { code: code.to_owned(), ..PythonSpec::default() }));
    let spec = Some(TaskSpec { kind, session_id: session.to_owned(), ..TaskSpec::default() });
    SubmitTaskRequest { idempotency_key: key.to_owned(), spec, ..SubmitTaskRequest::default() }
}

/// Task id and standard output of an execution, to its end.
async fn execute(client: &Client, request: SubmitTaskRequest) -> (String, String) {
    let mut events = client.tasks().execute(request).await.expect("accepted").into_inner();
    let mut output = Vec::new();
    loop {
        let ExecuteResponse { event } =
            events.message().await.expect("a message").expect("an end comes first");
        match event.expect("an event") {
            Event::Accepted(_) | Event::Restarted(_) => {}
            Event::Output(part) => output.extend(part.data),
            Event::Ended(task) => return (task.id, String::from_utf8(output).expect("text")),
        }
    }
}

#[tokio::test]
async fn a_create_repeated_with_its_key_answers_with_the_first_session() {
    let cluster = shared();
    let client = Client::connect(&cluster.url, Some(&cluster.admin_token())).await;
    let request = CreateSessionRequest { idempotency_key: key(), ..CreateSessionRequest::default() };
    let mut other_client = client.sessions();
    let mut one_client = client.sessions();
    let both = tokio::join!(
        one_client.create_session(request.clone()),
        other_client.create_session(request.clone())
    );
    let (one, other) = (both.0.expect("made").into_inner(), both.1.expect("the same").into_inner());
    assert_eq!(one.id, other.id);
    let again = client.sessions().create_session(request.clone()).await.expect("the same").into_inner();
    assert_eq!(again.id, one.id);

    let different = CreateSessionRequest { name: "different".to_owned(), ..request };
    let status = client.sessions().create_session(different).await.expect_err("another request");
    assert_eq!(refusal(&status).code, "idempotency_conflict");
    let destroy = DestroySessionRequest {
        session_id: one.id,
        idempotency_key: key(),
        ..DestroySessionRequest::default()
    };
    client.sessions().destroy_session(destroy).await.expect("destroyed");
}

#[tokio::test]
async fn an_execution_repeated_with_its_key_runs_once_and_answers_the_same() {
    let cluster = shared();
    let client = Client::connect(&cluster.url, Some(&cluster.admin_token())).await;
    let session = client.session().await.id;
    execute(&client, python(&session, "n = 0", "")).await;
    let key = key();
    let request = python(&session, "n += 1; print(n)", &key);
    let first = execute(&client, request.clone()).await;
    let second = execute(&client, request.clone()).await;
    assert_eq!(first, second);
    assert_eq!(first.1, "1\n");
    assert_eq!(client.tasks().submit_task(request).await.expect("the same").into_inner().id, first.0);
    assert_eq!(execute(&client, python(&session, "print(n)", "")).await.1, "1\n", "it ran once");

    let status =
        client.tasks().submit_task(python(&session, "n += 2", &key)).await.expect_err("another request");
    assert_eq!(refusal(&status).code, "idempotency_conflict");
    let status =
        client.tasks().submit_task(python(&session, "1", &"k".repeat(129))).await.expect_err("too long");
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
}

#[tokio::test]
async fn the_same_environment_in_another_order_is_the_same_request() {
    let cluster = shared();
    let client = Client::connect(&cluster.url, Some(&cluster.admin_token())).await;
    let session = client.session().await.id;
    let key = key();
    let mut ids = BTreeSet::new();
    for _ in 0..8 {
        // Each map has an order of its own.
        let mut request = python(&session, "1", &key);
        let env = (0..8).map(|n| (format!("NAME_{n}"), n.to_string())).collect();
        request.spec.as_mut().expect("a spec").env = env;
        ids.insert(client.tasks().submit_task(request).await.expect("the same").into_inner().id);
    }
    assert_eq!(ids.len(), 1);
}

#[tokio::test]
async fn a_key_twice_in_one_batch_is_one_task_and_batches_do_not_wait_in_a_circle() {
    let cluster = shared();
    let client = Client::connect(&cluster.url, Some(&cluster.admin_token())).await;
    let (one, other) = (key(), key());
    let noop = |key: &str| SubmitTaskRequest {
        idempotency_key: key.to_owned(),
        spec: Some(TaskSpec { kind: Some(Kind::Noop(NoopSpec {})), ..TaskSpec::default() }),
        ..SubmitTaskRequest::default()
    };
    let submit = |keys: [&String; 3]| {
        let (mut tasks, batch) = (client.tasks(), keys.map(|key| noop(key)).to_vec());
        async move {
            let batch = tokio_stream::once(SubmitTasksRequest { tasks: batch });
            let mut answers = tasks.submit_tasks(batch).await.expect("accepted").into_inner();
            let answer = answers.message().await.expect("an answer").expect("one message");
            assert!(answer.errors.is_empty(), "{:?}", answer.errors);
            answer.task_ids
        }
    };
    let both = async { tokio::join!(submit([&one, &other, &one]), submit([&other, &one, &other])) };
    let (a, b) = tokio::time::timeout(cooper_tests::seconds(20), both).await.expect("no circle");
    assert_eq!((&a[0], &a[1], &a[0]), (&b[1], &b[0], &a[2]));
    assert_ne!(a[0], a[1]);
}

#[tokio::test]
async fn an_execution_repeated_with_its_key_answers_the_same_after_its_session_ended() {
    let cluster = shared();
    let cooper = cluster.cooper();
    let client = Client::connect(&cluster.url, Some(&cluster.admin_token())).await;
    let name = format!("k{:x}", rand::random::<u64>());
    let session = cooper.ok(["session", "create", "--name", &name]);
    let (by_id, by_name) = (python(&session, "1", &key()), python(&name, "2", &key()));
    let (first, _) = execute(&client, by_id.clone()).await;
    let (second, _) = execute(&client, by_name.clone()).await;
    cooper.ok(["session", "destroy", &session]);
    assert_eq!(execute(&client, by_id.clone()).await.0, first);
    assert_eq!(execute(&client, by_name).await.0, second, "named by a name that is free again");
    let fresh = SubmitTaskRequest { idempotency_key: key(), ..by_id.clone() };
    let status = client.tasks().submit_task(fresh).await.expect_err("ended");
    assert_eq!(refusal(&status).code, "session_ended");
    let other = python(&session, "3", &by_id.idempotency_key);
    let status = client.tasks().submit_task(other).await.expect_err("another request");
    assert_eq!(refusal(&status).code, "idempotency_conflict");
}
