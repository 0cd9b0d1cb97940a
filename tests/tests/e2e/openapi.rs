//! REST is what `/openapi.json` says: schemathesis asks every path what is and what is not described.

use cooper_tests::{Cluster, program::Running, program::command, seconds, venv};

/// Of which this is not asked: packages are fetched for some, some end the token that asks, and some answer without an end.
const NOT_ASKED: &str = "^(CreateSession|SubmitTask|BuildTemplate|RevokeToken|RotateToken|SessionHistory|Follow|Watch.*|\
    ExportAudit)$";
/// The contract does not say in types which text is a path or an id: what is described is not always taken.
const NOT_CHECKED: &str = "positive_data_acceptance";

#[test]
fn what_is_described_is_what_is_answered_and_what_is_not_described_is_refused() {
    // One of its own: stacks are paused, and its worker is drained.
    let cluster = Cluster::start();
    let python = venv::python("schemathesis", "schemathesis==4.32.5\n");
    let mut asking = command(python.with_file_name("st"));
    asking
        .current_dir(cluster.scratch.path())
        .args(["run", &format!("{}/openapi.json", cluster.url), "--no-color"])
        .args(["--header", &format!("Authorization: Bearer {}", cluster.admin_token())])
        .args(["--phases", "coverage,fuzzing", "--max-examples", "2"])
        .args(["--seed", "6", "--generation-database", "none", "--request-timeout", "10"])
        .args(["--exclude-operation-id-regex", NOT_ASKED, "--exclude-checks", NOT_CHECKED]);
    let done = Running::start(asking, b"").finish(seconds(240)).expect(0);
    let tested =
        done.out().lines().find_map(|line| line.trim().strip_prefix("Tested: ")?.parse::<u32>().ok());
    assert!(tested.is_some_and(|tested| tested >= 65), "{done}");
}
