//! I10: another tenant's id behaves exactly like an absent one.

use cooper_proto::v1::{CreateSessionRequest, ListSessionsRequest, WatchTasksRequest};
use cooper_tests::{
    Cluster, Cooper,
    cluster::shared_compose,
    docker::{self, Stack},
    grpc::{Client, refusal},
    shared,
};

use super::repair::{patient, text};

fn stranger(cluster: &Cluster, scope: &str) -> Cooper {
    Cooper::with_token(&cluster.url, &cluster.token("tenant-b", scope))
}

/// An id of the same kind that nobody has.
fn absent(id: &str) -> String {
    let (prefix, _) = id.split_once('_').expect("an id");
    format!("{prefix}_0000000000000000000000000{}", id.chars().last().expect("it is long"))
}

/// The same answer, word for word, whether the id is somebody else's or nobody's.
#[track_caller]
fn same_answer(cooper: &Cooper, id: &str, args: &[&str]) {
    let other = absent(id);
    let answers = [id, other.as_str()].map(|id| {
        let args = args.iter().map(|arg| arg.replace("ID", id));
        let done = cooper.run(["--json".to_owned()].into_iter().chain(args));
        (done.status, done.out().replace(id, "ID"), done.err().replace(id, "ID"))
    });
    assert_eq!(answers[0], answers[1], "{args:?}");
    assert_ne!(answers[0].0, 0, "{args:?}: {:?}", answers[0]);
}

#[test]
fn sessions_and_tasks_of_another_tenant_are_like_absent_ones() {
    let cluster = shared();
    let owner = cluster.cooper();
    let session = owner.ok(["session", "create", "--name", "tenant-a-own"]);
    let task = owner.json(["exec", &session, "-c", "secret = 'of tenant a'; print(secret)"]);
    let task = text(&task, "task_id");
    for scope in ["client", "operator", "admin"] {
        let stranger = stranger(&cluster, scope);
        for args in [
            &["session", "show", "ID"][..],
            &["session", "destroy", "ID"],
            &["exec", "ID", "-c", "1"],
            &["sh", "-n", "ID", "--", "true"],
            &["packages", "install", "ID", "six"],
            &["files", "ls", "ID"],
            &["files", "get", "ID", "f", "-"],
            &["files", "put", "ID", "/dev/null", "f"],
        ] {
            same_answer(&stranger, &session, args);
        }
        for args in [&["tasks", "show", "ID"][..], &["tasks", "follow", "ID"], &["tasks", "cancel", "ID"]] {
            same_answer(&stranger, task, args);
        }
        assert_eq!(
            stranger.error(["session", "show", "tenant-a-own"]).code,
            "session_not_found",
            "names, too"
        );
        for (args, list) in [
            (&["session", "list", "--all"][..], "sessions"),
            (&["tasks", "list"], "tasks"),
            (&["runs", "list"], "runs"),
            (&["stacks"], "stacks"),
        ] {
            let seen = stranger.json(args.iter().copied());
            assert!(!seen.to_string().contains(&session) && !seen.to_string().contains(task), "{args:?}");
            assert!(
                seen[list].as_array().expect("a list").iter().all(|row| row["tenant"] == "tenant-b"),
                "{seen:#}"
            );
        }
        assert_eq!(stranger.json(["status"])["tenant"], "tenant-b");
    }
    assert_eq!(owner.exec(&session, "print(secret)"), "of tenant a", "nobody touched it");
}

#[test]
fn events_are_the_tenants_own() {
    let cluster = shared();
    let stranger = stranger(&cluster, "client");
    cluster.cooper().session();
    let session = stranger.session();
    let events = stranger.json(["events"]);
    let events = events["events"].as_array().expect("a list");
    assert!(events.iter().any(|event| event["subject"] == session.as_str()), "{events:?}");
    assert!(events.iter().all(|event| event["tenant"] == "tenant-b"), "{events:?}");
    stranger.ok(["session", "destroy", &session]);
}

#[test]
fn tenants_do_not_share_names_or_keys() {
    let cluster = shared();
    let (owner, stranger) = (cluster.cooper(), stranger(&cluster, "client"));
    let ours = owner.ok(["session", "create", "--name", "same-name"]);
    let theirs = stranger.ok(["session", "create", "--name", "same-name"]);
    assert_ne!(ours, theirs);
    assert_eq!(stranger.json(["session", "show", "same-name"])["session_id"], theirs.as_str());
    for cooper in [owner, stranger] {
        cooper.ok(["session", "destroy", "same-name"]);
    }
    let token = cluster.token("tenant-b", "client");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let request =
            CreateSessionRequest { idempotency_key: "a-shared-key".to_owned(), ..Default::default() };
        let mut made = Vec::new();
        for token in [cluster.admin_token(), token] {
            let client = Client::connect(&cluster.url, Some(&token)).await;
            made.push(client.sessions().create_session(request.clone()).await.expect("made").into_inner());
        }
        assert_ne!(made[0].id, made[1].id);
        assert_ne!(made[0].tenant, made[1].tenant);
    });
}

#[test]
fn a_watch_tells_nothing_of_another_tenants_task() {
    let cluster = shared();
    let owner = cluster.cooper();
    let session = owner.session();
    let task = owner.json(["exec", &session, "-c", "1"]);
    let task = text(&task, "task_id").to_owned();
    let token = cluster.token("tenant-b", "client");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let answers = runtime.block_on(async {
        let client = Client::connect(&cluster.url, Some(&token)).await;
        let mut answers = Vec::new();
        for id in [task.clone(), absent(&task)] {
            let asked = client
                .tasks()
                .watch_tasks(WatchTasksRequest { task_ids: vec![id.clone()], from_seq: 0 })
                .await;
            let answer = match asked {
                Err(status) => format!("{:?}", refusal(&status)),
                Ok(feed) => {
                    let mut feed = feed.into_inner();
                    let next =
                        tokio::time::timeout(std::time::Duration::from_millis(500), feed.message()).await;
                    next.map_or_else(|_| "silence".to_owned(), |next| format!("{next:?}"))
                }
            };
            answers.push(answer.replace(&id, "ID"));
        }
        answers
    });
    assert_eq!(answers[0], answers[1]);
    assert!(!answers[0].contains("Succeeded"), "{answers:?}");
}

#[tokio::test]
async fn a_scope_allows_what_it_is_for_and_nothing_else() {
    let cluster = shared();
    let cooper = cluster.cooper();
    let worker = Client::connect(&cluster.url, Some(&cluster.token("tenant-b", "worker"))).await;
    let status =
        worker.sessions().create_session(CreateSessionRequest::default()).await.expect_err("forbidden");
    assert_eq!((status.code(), refusal(&status).code.as_str()), (tonic::Code::PermissionDenied, "forbidden"));
    let status =
        worker.sessions().list_sessions(ListSessionsRequest::default()).await.expect_err("forbidden");
    assert_eq!(refusal(&status).code, "forbidden");

    let client = stranger(&cluster, "client");
    for args in [&["workers"][..], &["token", "list"], &["token", "create", "--scope", "client"]] {
        assert_eq!(client.error(args.iter().copied()).code, "forbidden", "{args:?}");
    }
    let operator = stranger(&cluster, "operator");
    assert_eq!(operator.error(["token", "create", "--scope", "admin"]).code, "forbidden");

    let revoked = cooper.json(["token", "create", "--scope", "client", "--tenant", "tenant-b"]);
    let known = Cooper::with_token(&cluster.url, text(&revoked, "secret"));
    known.json(["status"]);
    cooper.json(["token", "revoke", text(&revoked, "token_id")]);
    assert_eq!(known.error(["status"]).code, "unauthenticated");
    let brief = cooper.json(["token", "create", "--scope", "client", "--ttl", "1ms"]);
    assert_eq!(
        Cooper::with_token(&cluster.url, text(&brief, "secret")).error(["status"]).code,
        "unauthenticated"
    );
}

#[test]
fn runs_stacks_and_artifacts_of_another_tenant_are_like_absent_ones() {
    if !docker::wanted("runs_stacks_and_artifacts_of_another_tenant_are_like_absent_ones") {
        return;
    }
    let stack = Stack::broken("tenants", &["protected"]);
    let cluster = shared_compose();
    let owner = patient(cluster.cooper());
    let (status, run) = owner.run_json(["repair", "web", "--stack", stack.arg()]);
    assert_eq!(status, 3, "{run:#}");
    let id = text(&run, "run_id");
    for scope in ["client", "operator"] {
        let stranger = stranger(&cluster, scope);
        for args in [
            &["runs", "show", "ID"][..],
            &["runs", "watch", "ID"],
            &["runs", "artifacts", "ID"],
            &["runs", "artifact", "ID", "patch.diff"],
            &["approve", "ID"],
            &["approve", "ID", "--plan", text(&run, "plan_hash")],
            &["reject", "ID"],
            &["cancel", "ID"],
        ] {
            same_answer(&stranger, id, args);
        }
        assert_eq!(stranger.json(["stacks"])["stacks"], serde_json::json!([]));
        assert_eq!(stranger.json(["runs", "list"])["runs"], serde_json::json!([]));
        let known = stranger.error(["repair", "web", "--stack", text(&run, "stack")]);
        let unknown = stranger.error(["repair", "web", "--stack", "no-such-stack"]);
        assert_eq!(known.code, unknown.code);
        assert_eq!(
            known.message.replace(text(&run, "stack"), "ID"),
            unknown.message.replace("no-such-stack", "ID")
        );
    }
    // Nor may a client of the same tenant decide.
    let tenant = text(&run, "tenant");
    let client = Cooper::with_token(&cluster.url, &cluster.token(tenant, "client"));
    assert_eq!(client.json(["runs", "show", id])["run_id"], id);
    for decision in ["approve", "reject"] {
        assert_eq!(client.error([decision, id]).code, "forbidden", "{decision}");
    }
    assert_eq!(text(&owner.json(["runs", "show", id]), "state"), "awaiting_approval");
    owner.ok(["reject", id]);
}
