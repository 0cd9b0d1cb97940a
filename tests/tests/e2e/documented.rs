//! What the pages show works as they show it.

use std::path::Path;

use cooper_tests::{
    Scratch, Setup, docker,
    docker::Stack,
    document::{self, Block, examples},
    program::{Running, command},
    seconds, shared, venv,
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

#[test]
fn the_tour_of_sessions_in_the_readme_goes_as_it_shows() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let directory = Scratch::new("tour");
    // A cluster of its own: the page shows the cells of a session that nobody else has used.
    let cluster = Setup::python().start();
    let examples = document::run_section(&page, "## A tour of sessions", &cluster, &directory.join("."));
    assert!(examples >= 15, "{examples} examples are left");
}

/// Runs a section that repairs stacks, on a cluster of its own: another's memory would know the fixes already.
fn repairs(page: &str, heading: &str, name: &str) -> usize {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let stack = Stack::place(name);
    let directory = stack.dir.parent().expect("it lies in a directory");
    // What the commands copy is named from the top of the checkout.
    for part in ["examples", "tests"] {
        let from = top.join(part).canonicalize().expect("a directory of the checkout");
        std::os::unix::fs::symlink(from, directory.join(part)).expect("a link");
    }
    document::run_with_stack(&top.join(page), heading, name, &stack, &Setup::compose().start())
}

#[test]
fn the_tour_of_repairs_in_the_readme_goes_as_it_shows() {
    if docker::wanted("the_tour_of_repairs_in_the_readme_goes_as_it_shows") {
        let examples = repairs("README.md", "## A tour of repairs", "tour");
        assert!(examples >= 13, "{examples} examples are left");
    }
}

#[test]
fn the_walk_through_a_repair_in_docs_repair_md_goes_as_it_shows() {
    if docker::wanted("the_walk_through_a_repair_in_docs_repair_md_goes_as_it_shows") {
        let examples = repairs("docs/repair.md", "## A walk through a repair", "shop");
        assert!(examples >= 10, "{examples} examples are left");
    }
}

#[test]
fn the_manifest_for_kubernetes_is_what_its_schemas_ask_for() {
    // As a module: scripts of an environment that was moved with its target name the Python of where it was.
    let mut check = command(venv::python("kubernetes", "kubernetes-validate==1.37.0\n"));
    check
        .args(["-m", "kubernetes_validate", "--strict"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes.yaml"));
    let said = Running::start(check, b"").finish(seconds(60)).expect(0);
    assert!(said.to_string().contains("statefulset/coordinator"), "{said}");
}

/// Pages whose `console` blocks are run, with the tests above.
const RUN: [&str; 4] = ["README.md", "docs/doors.md", "docs/repair.md", "docs/sessions.md"];

#[test]
fn every_command_of_a_page_is_run_or_says_why_it_is_not() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut pages: Vec<_> =
        ["README.md", "CONTRIBUTING.md", "clients/python/README.md", "examples/stack/README.md"]
            .map(String::from)
            .into();
    for entry in std::fs::read_dir(top.join("docs")).expect("docs") {
        pages.push(format!("docs/{}", entry.expect("an entry").file_name().to_string_lossy()));
    }
    for page in pages {
        let text = std::fs::read_to_string(top.join(&page)).expect("a page");
        let blocks = document::blocks(&text).unwrap_or_else(|why| panic!("{page}: {why}"));
        for (line, block) in blocks {
            match block {
                Block::Run => {
                    assert!(RUN.contains(&&*page), "{page}:{line}: no test runs the examples of this page")
                }
                Block::Skipped(reason) => println!("not run: {page}:{line}: {reason}"),
                Block::Shown => {}
            }
        }
    }
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
    assert!(fits(&["took 1.5 s"], "took   20 ms") && !fits(&["took 1.5 s"], "took long"));
    assert!(fits(&["run_01m80fzkbweyn9pcmgd4bq26ky web"], "run_x web"));
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
