//! What nobody asked for starts only where it may, not while it is paused, and not too often; who waits knows its place.

use cooper_tests::{
    Cooper, Setup,
    docker::{self, Stack},
    http, seconds,
};

use super::{
    approvals::{protected, waits},
    repair::{patient, text},
};

#[test]
fn nothing_starts_by_itself_while_paused_also_after_a_restart_but_people_may() {
    if !docker::wanted("nothing_starts_by_itself_while_paused_also_after_a_restart_but_people_may") {
        return;
    }
    let stack = Stack::files("paused");
    let cluster = Setup::compose().start();
    let cooper = patient(cluster.cooper());
    let instruction = ["--instruction", "add package PyYAML", "--dry-run"];
    let asked = [&["repair", "web", "--stack", stack.arg()], &instruction[..]].concat();
    let automatic = [&asked[..], &["--automatic"]].concat();

    let (status, refused) = cooper.run_json(automatic.clone());
    assert_eq!((status, text(&refused, "state")), (5, "refused"), "the stack does not allow it: {refused:#}");
    assert!(text(&refused["error"], "message").contains("auto_repair"), "{refused:#}");
    assert_eq!(refused["automatic"], true);
    assert_eq!(cooper.error(automatic.clone()).code, "cooldown", "a moment ago");

    let held = cooper.json(["pause", "--reason", "release"]);
    assert_eq!(held["pauses"][0]["reason"], "release");
    for restart in [false, true] {
        if restart {
            cluster.kill("coordinator");
            cooper.until_json("the coordinator", seconds(20), &["runs", "list"], |_| true);
        }
        let refused = cooper.error(automatic.clone());
        assert!(refused.code == "paused" && refused.message.contains("release"), "{refused:?}");
        assert_eq!(cooper.json(["runs", "list"])["pauses"], held["pauses"]);
        assert_eq!(cooper.json(["stacks"])["pauses"], held["pauses"]);
        assert_eq!(http::get(&cluster.url, "/health").json()["pauses"], 1);
    }
    assert_eq!(text(&cooper.json(asked), "state"), "succeeded", "a person may");
    let operator = Cooper::with_token(&cluster.url, &cluster.token("elsewhere", "operator"));
    assert_eq!(operator.json(["stacks"])["pauses"], serde_json::json!([]), "I10");
    let client = Cooper::with_token(&cluster.url, &cluster.token("default", "client"));
    assert_eq!(client.error(["resume"]).code, "forbidden");
    assert_eq!(cooper.json(["resume"])["pauses"], serde_json::json!([]));
    assert_eq!(cooper.error(automatic).code, "cooldown", "resumed, and still too soon");
    assert_eq!(cooper.error(["pause", "--stack", "no-such-stack"]).code, "stack_not_found");
    let events = cooper.json(["events"]).to_string();
    assert!(events.contains("stack.paused") && events.contains("stack.resumed"), "audit");
}

#[test]
fn of_those_that_wait_for_a_service_the_highest_priority_comes_first_and_each_knows_its_place() {
    if !docker::wanted(
        "of_those_that_wait_for_a_service_the_highest_priority_comes_first_and_each_knows_its_place",
    ) {
        return;
    }
    let stack = protected("queued");
    let cooper = patient(cooper_tests::cluster::shared_compose().cooper());
    let holder = waits(&cooper, &stack);
    let asked = |priority| {
        let start =
            ["repair", "web", "--stack", stack.arg(), "--dry-run", "--detach", "--priority", priority];
        let run = cooper.json([&start[..], &["--instruction", "add package PyYAML"]].concat());
        text(&run, "run_id").to_owned()
    };
    let (low, high) = (asked("-5"), asked("5"));
    let place = |id: &str, expected: u64| {
        cooper.until_json("its place", seconds(10), &["runs", "show", id], |run| {
            text(run, "state") == "queued" && run["queue_position"] == expected
        });
    };
    place(&high, 1);
    place(&low, 2);
    assert!(cooper.ok(["runs", "list"]).contains("queued (2 before it)"));
    cooper.ok(["reject", text(&holder, "run_id")]);
    let began = |id: &str| {
        let run = cooper.until_json("its end", seconds(60), &["runs", "show", id], |run| {
            text(run, "state") == "succeeded"
        });
        run["steps"][0]["started_at_ms"].as_i64().expect("it began")
    };
    assert!(began(&high) < began(&low));
}
