//! What the pages show works as they show it.

use std::path::Path;

use cooper_tests::{
    Scratch,
    document::{self, examples},
    shared,
};

#[test]
fn every_example_of_docs_sessions_md_does_what_the_page_says() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/sessions.md");
    let directory = Scratch::new("documented");
    let examples = document::run(&page, &shared(), &directory.join("."));
    assert!(examples >= 20, "{examples} examples are left");
}

#[test]
fn every_door_opens_as_docs_doors_md_says() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/doors.md");
    // Others leave their sessions in the shared cluster; this page begins in a directory of `cooper up`.
    let cluster = shared();
    let directory = Scratch::new("doors");
    std::os::unix::fs::symlink(&cluster.data, directory.join(".cooper")).expect("a link");
    let examples = document::run(&page, &cluster, &directory.join("."));
    assert!(examples >= 10, "{examples} examples are left");
}

fn fits(expected: &[&str], printed: &str) -> bool {
    let expected: Vec<String> = expected.iter().map(|line| (*line).to_owned()).collect();
    document::fits(&expected, printed)
}

#[test]
fn an_ellipsis_stands_for_text_and_for_lines_and_nothing_else_is_left_open() {
    assert!(fits(&["a", "b"], "a\nb"));
    assert!(!fits(&["a"], "a\nb") && !fits(&["a", "b"], "a") && !fits(&[], "a"));
    assert!(fits(&[], ""));
    assert!(fits(&["ses_…", "…", "end"], "ses_123\nx\ny\nend") && fits(&["…", "end"], "end"));
    assert!(!fits(&["ses_…"], "tsk_1") && fits(&["(1.5)*"], "(1.5)*"));
    assert!(fits(&["a", "…"], "a\nb\nc") && fits(&["a", "…"], "a\n"));
}

#[test]
fn commands_go_on_over_lines_and_everything_else_is_output() {
    let text =
        "x\n```console\n$ cat <<END\n> hello\n> END\nhello\n$ true\n```\n$ not one\n```sh\n$ nor this\n```\n";
    let found = examples(text);
    let commands: Vec<_> = found.iter().map(|example| (example.line, &*example.command)).collect();
    assert_eq!(commands, [(3, "cat <<END\nhello\nEND"), (7, "true")]);
    assert_eq!(found[0].expected, ["hello"]);
}
