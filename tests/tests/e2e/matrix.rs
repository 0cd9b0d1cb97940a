//! Every method of the contract against every scope, and against every object of another tenant. A method that is new fails
//! until it has its row.

use std::collections::BTreeSet;

use cooper_tests::{
    Cooper,
    contract::methods,
    fleet::Fleet,
    grpc::{Client, refusal},
    http, shared,
};
use tonic::Code;

use super::repair::text;

const SCOPES: [&str; 4] = ["admin", "operator", "client", "worker"];
/// Which scopes may call what.
const ALLOWED: &[(&[&str], &[&str])] = &[
    (&["admin", "operator", "client", "worker"], &["Admin/GetInfo"]),
    (&["admin", "worker"], &["WorkerLink/Attach", "WorkerLink/StreamOutput", "WorkerLink/Transfer"]),
    (
        &["admin"],
        &[
            "Admin/CreateToken",
            "Admin/ListTokens",
            "Admin/RevokeToken",
            "Admin/RotateToken",
            "Admin/ListAudit",
            "Admin/ExportAudit",
            "Admin/VerifyAudit",
        ],
    ),
    (
        &["admin", "operator"],
        &[
            "Admin/ListWorkers",
            "Admin/DrainWorker",
            "Admin/UndrainWorker",
            "Runs/DecideRun",
            "Runs/Pause",
            "Runs/Resume",
            "Runs/RegisterStack",
            "Secrets/SetSecret",
            "Secrets/DeleteSecret",
        ],
    ),
    (
        &["admin", "operator", "client"],
        &[
            "Admin/WatchEvents",
            "Checkpoints/CreateCheckpoint",
            "Checkpoints/ListCheckpoints",
            "Checkpoints/GetCheckpoint",
            "Checkpoints/RestoreCheckpoint",
            "Checkpoints/DeleteCheckpoint",
            "Executions/WriteStdin",
            "Executions/SignalExecution",
            "Executions/ResizeTerminal",
            "Executions/ReadOutput",
            "Executions/SessionHistory",
            "Runs/CreateRun",
            "Runs/GetRun",
            "Runs/ListRuns",
            "Runs/WatchRun",
            "Runs/GetPlan",
            "Runs/ListApprovals",
            "Runs/GetRunStats",
            "Runs/ListPauses",
            "Runs/RetryRun",
            "Runs/UndoRun",
            "Runs/CancelRun",
            "Runs/ListArtifacts",
            "Runs/ReadArtifact",
            "Runs/DeleteArtifact",
            "Runs/ListStacks",
            "Runs/CheckStack",
            "Secrets/ListSecrets",
            "Sessions/CreateSession",
            "Sessions/GetSession",
            "Sessions/UpdateSession",
            "Sessions/ListSessions",
            "Sessions/DestroySession",
            "Sessions/ReadFile",
            "Sessions/WriteFile",
            "Sessions/ListFiles",
            "Sessions/StatFile",
            "Sessions/MoveFile",
            "Sessions/CopyFile",
            "Sessions/DeleteFile",
            "Sessions/MakeDir",
            "Sessions/ChangeMode",
            "Sessions/SearchFiles",
            "Sessions/EditFile",
            "Sessions/ReadArchive",
            "Sessions/WriteArchive",
            "Sessions/ListPackages",
            "Sessions/ListPorts",
            "Sessions/ForwardPort",
            "Tasks/Execute",
            "Tasks/SubmitTask",
            "Tasks/SubmitTasks",
            "Tasks/WatchTasks",
            "Tasks/Follow",
            "Tasks/GetTask",
            "Tasks/ListTasks",
            "Tasks/CancelTask",
            "Tasks/ExplainTask",
            "Tasks/RequeueTask",
            "Templates/BuildTemplate",
            "Templates/ListTemplates",
            "Templates/GetTemplate",
            "Templates/DeleteTemplate",
        ],
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_method_answers_the_scopes_it_is_for_and_refuses_all_others() {
    let mut fleet = Fleet::new();
    tokio::task::block_in_place(|| fleet.start_coordinator());
    let cooper = fleet.cooper();
    tokio::task::block_in_place(|| fleet.await_ready(200));
    let mut callers = Vec::new();
    for scope in SCOPES {
        let made = tokio::task::block_in_place(|| cooper.json(["token", "create", "--scope", scope]));
        callers.push((scope, Client::connect(&fleet.url(), Some(text(&made, "secret"))).await));
    }
    let nobody = Client::connect(&fleet.url(), None).await;
    let mut rows: BTreeSet<&str> = ALLOWED.iter().flat_map(|(_, methods)| *methods).copied().collect();
    let mut wrong = Vec::new();
    for method in methods() {
        let row = ALLOWED.iter().find(|(_, methods)| methods.contains(&method.name.as_str()));
        let Some((allowed, _)) = row else {
            wrong.push(format!("{} has no row", method.name));
            continue;
        };
        rows.remove(method.name.as_str());
        let refused = method.ask(&nobody, Vec::new()).await.expect_err("nobody comes in");
        assert_eq!(
            (refused.code(), refusal(&refused).code.as_str()),
            (Code::Unauthenticated, "unauthenticated")
        );
        for (scope, client) in &callers {
            let answer = method.ask(client, Vec::new()).await;
            let refused = answer.as_ref().is_err_and(|status| {
                status.code() == Code::PermissionDenied && refusal(status).code == "forbidden"
            });
            if refused == allowed.contains(scope) {
                wrong.push(format!("{} as {scope}: {answer:?}", method.name));
            }
        }
    }
    assert!(wrong.is_empty() && rows.is_empty(), "{wrong:#?}\nrows without a method: {rows:?}");
    // What was refused is on the trail, by whom.
    let wanted = [
        ("Admin/CreateToken", "forbidden"),
        ("Admin/ListTokens", "forbidden"),
        ("door.refused", "unauthenticated"),
    ];
    tokio::task::block_in_place(|| {
        cooper.until_json(
            "the trail",
            cooper_tests::seconds(30),
            &["audit", "list", "--limit", "1000"],
            |trail| {
                let rows = trail["rows"].as_array().expect("rows");
                wanted.iter().all(|(action, outcome)| {
                    rows.iter().any(|row| row["action"] == *action && row["outcome"] == *outcome)
                })
            },
        )
    });
    tokio::task::block_in_place(|| fleet.stop());
}

/// An id of the same kind that nobody has.
fn absent(id: &str) -> String {
    let (prefix, rest) = id.split_once('_').expect("an id");
    format!("{prefix}_{}{}", "0".repeat(rest.len() - 1), id.chars().last().expect("it is long"))
}

#[test]
fn every_object_of_another_tenant_is_at_every_method_and_path_as_if_it_were_not_there_and_that_is_audited() {
    let cluster = shared();
    let owner = cluster.cooper();
    let session = owner.session();
    owner.exec(&session, "import os; os.makedirs('artifacts', exist_ok=True); open('artifacts/kept.txt', 'w').write('of tenant a')");
    let task = owner.json(["exec", &session, "-c", "print('of tenant a')"]);
    let checkpoint = owner.json(["checkpoint", "create", &session]);
    let artifacts = owner.until_json(
        "an artifact",
        cooper_tests::seconds(30),
        &["artifacts", "list", &session],
        |found| found["artifacts"].as_array().is_some_and(|all| !all.is_empty()),
    );
    let token = owner.json(["token", "create", "--scope", "client"]);
    let objects = [
        ("session_id", session.clone()),
        ("task_id", text(&task, "task_id").to_owned()),
        ("checkpoint_id", text(&checkpoint, "checkpoint_id").to_owned()),
        ("artifact_id", text(&artifacts["artifacts"][0], "artifact_id").to_owned()),
        ("token_id", text(&token, "token_id").to_owned()),
    ];
    let made = owner.json(["token", "create", "--scope", "admin", "--tenant", "tenant-m"]);
    let stranger = text(&made, "secret").to_owned();

    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut missed = Vec::new();
    for (field, id) in &objects {
        for method in methods().into_iter().filter(|method| !method.name.starts_with("WorkerLink/")) {
            let answers = [id.clone(), absent(id)].map(|asked| {
                let request = method.request(field, &asked)?;
                let answer = runtime.block_on(async {
                    method.ask(&Client::connect(&cluster.url, Some(&stranger)).await, request).await
                });
                let told = answer.map_err(|status| (status.code(), status.message().replace(&asked, "ID")));
                Some(told)
            });
            assert_eq!(answers[0], answers[1], "{} with a {field}", method.name);
            if matches!(answers[0], Some(Err((Code::NotFound, _)))) {
                missed.push((method.name.clone(), id.clone()));
            }
        }
    }
    assert!(missed.len() > 25, "{missed:?}");
    for path in [
        "/sessions/SES",
        "/sessions/SES/executions",
        "/sessions/SES/files?path=.",
        "/sessions/SES/packages",
        "/sessions/SES/ports",
        "/sessions/SES/artifacts",
        "/sessions/SES/history",
        "/sessions/SES/ports/8000/",
        "/sessions/SES/archive?path=.",
        "/executions/TSK",
        "/executions/TSK/output",
        "/executions/TSK/why",
        "/executions/TSK/events",
        "/checkpoints/CHK",
    ] {
        let answers = [false, true].map(|nobodys| {
            let mut path = path.to_owned();
            for (name, index) in [("SES", 0), ("TSK", 1), ("CHK", 2)] {
                let id = &objects[index].1;
                path = path.replace(name, &if nobodys { absent(id) } else { id.clone() });
            }
            let answer = http::try_get(&cluster.url, &path, Some(&stranger)).expect("an answer");
            let ids = objects.iter().flat_map(|(_, id)| [id.clone(), absent(id)]);
            (answer.status, ids.fold(answer.body, |body, id| body.replace(&id, "ID")))
        });
        assert_eq!(answers[0], answers[1], "{path}");
        assert!(answers[0].0 == 404 || answers[0].1.contains("[]"), "{path}: {answers:?}");
    }

    // Each attempt is on the trail, for the installation's admins alone.
    let trail = |cooper: &Cooper| {
        let listed = cooper.json(["audit", "list", "--limit", "1000"]);
        listed["rows"].as_array().expect("rows").clone()
    };
    let crossed = |rows: &[serde_json::Value]| {
        let rows =
            rows.iter().filter(|row| row["outcome"] == "cross_tenant" && row["token_id"] == made["token_id"]);
        rows.map(|row| (text(row, "action").to_owned(), text(row, "object").to_owned()))
            .collect::<BTreeSet<_>>()
    };
    cooper_tests::wait::until_true("the trail", cooper_tests::seconds(20), || {
        let found = crossed(&trail(&owner));
        missed.iter().all(|attempt| found.contains(attempt))
    });
    let theirs = trail(&Cooper::with_token(&cluster.url, &stranger));
    assert!(
        crossed(&theirs).is_empty() && theirs.iter().all(|row| row["tenant"] == "tenant-m"),
        "{theirs:?}"
    );
    assert_eq!(owner.exec(&session, "print(open('artifacts/kept.txt').read())"), "of tenant a");
    assert_eq!(owner.run(["audit", "verify"]).status, 0);
}
